"""A network as a graph, cut where it first becomes stochastic."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, fx, nn

from calibration.sites import DROPOUT, has_known_forward, layer_of

__all__ = ["Cut", "cut", "is_path"]


@dataclass(frozen=True)
class Cut:
    """A network in eval mode as ``nodes``, those from the first that holds a dropout layer on. ``entering`` are the
    values that they take from before; what doesn't depend on the network's input, ``constant``, is not among them."""

    network: nn.Module
    graph: fx.Graph
    nodes: tuple[fx.Node, ...]
    entering: tuple[fx.Node, ...]
    constant: frozenset[fx.Node]

    def trunk(self) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """What computes the values that enter."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        needed = _sources(self.entering)
        for node in self.graph.nodes:
            if node in needed or node.op == "placeholder":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in self.entering))
        return fx.GraphModule(self.network, graph).eval()

    def rest(self) -> nn.Module:
        """What computes the output from them."""
        graph = fx.Graph()
        copies = {node: graph.placeholder(node.name) for node in self.entering}
        needed = _sources(self.nodes) & self.constant | {*self.nodes}
        for node in self.graph.nodes:
            if node in needed:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        return fx.GraphModule(self.network, graph).eval()


def _sources(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """``nodes`` and all that they are computed from."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def cut(network: nn.Module, sites: Collection[str]) -> Cut | None:
    """``network``, in eval mode, cut where it first calls a layer that one of the dropout ``sites`` is a call of.

    ``None`` if it can't be traced, because what it computes depends on its input's values, say, or takes more than one
    input.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception:  # Tracing runs the network's own code on stand-ins, which may fail in any way.
        return None
    nodes = list(graph.nodes)
    layers = {layer_of(site) for site in sites}
    first = next((index for index, node in enumerate(nodes) if _holds(node, layers)), None)
    if first is None or sum(node.op == "placeholder" for node in nodes) != 1:
        return None
    constant: set[fx.Node] = set()
    for node in nodes:
        if node.op not in ("placeholder", "output") and constant.issuperset(node.all_input_nodes):
            constant.add(node)
    after = nodes[first:]
    entering = dict.fromkeys(source for node in after for source in node.all_input_nodes)
    outside = tuple(node for node in entering if node not in after and node not in constant)
    return Cut(network, graph, tuple(after), outside, frozenset(constant))


def is_path(cut: Cut) -> bool:
    """Whether each node after the cut is a layer that is called on the one before alone, up to the output, and does
    no more than its class says: nothing of its own in a subclass or in hooks."""
    *layers, output = cut.nodes
    return (
        len(cut.entering) == 1
        and output.op == "output"
        and output.args == (layers[-1],)
        and all(node.op == "call_module" and not node.kwargs and len(node.users) == 1 for node in layers)
        and all(node.args == (previous,) for previous, node in pairwise((*cut.entering, *layers)))
        and all(_is_plain(cut.network.get_submodule(str(node.target))) for node in layers)
    )


def _is_plain(module: nn.Module) -> bool:
    return has_known_forward(module) and not (module._forward_hooks or module._forward_pre_hooks)


class _Tracer(fx.Tracer):
    """Takes dropout layers whole, also the project's own, whose code depends on values."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, DROPOUT) or bool(super().is_leaf_module(m, module_qualified_name))


def _holds(node: fx.Node, layers: Collection[str]) -> bool:
    """Whether ``node`` calls one of the ``layers``, or a module that has one inside."""
    return node.op == "call_module" and any(f"{layer}.".startswith(f"{node.target}.") for layer in layers)
