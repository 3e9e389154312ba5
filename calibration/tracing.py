"""A network as a graph, cut where it first becomes stochastic."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

from calibration.sites import has_known_forward, is_dropout, layer_of

__all__ = ["Cut", "cut", "is_path"]

IN_PLACE = ("iadd", "isub", "imul", "itruediv", "setitem")
_ONE_AT_A_TIME = threading.Lock()


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
    input; or if the graph would not tell all: hooks of the network's own, values that are changed in place.
    """
    parts = [*network.modules()]
    if network._forward_hooks or network._forward_pre_hooks or any("forward" in vars(part) for part in parts):
        return None  # Tracing would pass over them.
    try:
        graph = _Tracer().trace(network)
    except Exception:  # Tracing runs the network's own code on stand-ins, which may fail in any way.
        return None
    nodes = list(graph.nodes)
    if not all(_is_safe(node, network) for node in nodes):
        return None
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


def _is_safe(node: fx.Node, network: nn.Module) -> bool:
    """Whether what ``node`` does is all in its result: nothing is changed in place that others look at."""
    if node.op in ("placeholder", "output", "get_attr"):
        return True
    name = getattr(node.target, "__name__", str(node.target))
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    flags = node.kwargs.get("inplace", False) is not False or getattr(module, "inplace", False)
    by_name = node.op != "call_module" and ((name.endswith("_") and not name.endswith("__")) or name in IN_PLACE)
    if not (flags or by_name) or (module is not None and is_dropout(module)):
        return True
    changed = node.args[0] if node.args and node.users else None
    return isinstance(changed, fx.Node) and len(changed.users) == 1 and changed.op not in ("placeholder", "get_attr")


class _Tracer(fx.Tracer):
    """Takes dropout layers whole, also the project's own, whose code depends on values.

    Tracing changes ``nn.Module`` for the whole process while it lasts: other threads' calls must pass through as they
    are, and only one thread may trace at a time.
    """

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        with _ONE_AT_A_TIME:
            self._thread = threading.get_ident()
            return super().trace(*args, **kwargs)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        ours = threading.get_ident() == self._thread
        return super().call_module(m, forward, args, kwargs) if ours else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        ours = threading.get_ident() == self._thread
        return super().getattr(attr, attr_val, parameter_proxy_cache) if ours else attr_val

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_dropout(m) or bool(super().is_leaf_module(m, module_qualified_name))


def _holds(node: fx.Node, layers: Collection[str]) -> bool:
    """Whether ``node`` calls one of the ``layers``, or a module that has one inside."""
    return node.op == "call_module" and any(f"{layer}.".startswith(f"{node.target}.") for layer in layers)
