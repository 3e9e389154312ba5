"""Where a network drops units: its dropout layers, call by call, and a refusal of randomness that is none of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from calibration.masks import LayerMask
from models.noise import GaussianDropout

__all__ = [
    "DROPOUT",
    "PROBE_IMAGES",
    "NoActiveDropoutError",
    "Survey",
    "UnsupportedNetworkError",
    "active_layers",
    "dropout_modules",
    "has_known_forward",
    "layer_of",
    "parameter_like",
    "site_name",
    "structural_copy",
    "survey",
]

PROBE_IMAGES = 3
DROPOUT = (_DropoutNd, GaussianDropout)
CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)


class NoActiveDropoutError(ValueError):
    """The network has nothing to sample: no dropout layer, or only layers at rate 0."""


class UnsupportedNetworkError(ValueError):
    """The network has randomness of a kind that can't be sampled faithfully here."""


@dataclass(frozen=True)
class Survey:
    """The active dropout ``layers`` of a network, one entry a call by :func:`site_name`, in the order of a forward
    pass; and the size of the ``widest`` value that any module takes for one example."""

    layers: dict[str, LayerMask]
    widest: int


def site_name(layer: str, call: int) -> str:
    """The name of call 0, 1 ... of a dropout layer in one forward pass: ``drop``, ``drop#2`` ...

    A layer that is used several times, as one shared by two blocks, drops other units each time.
    """
    return layer if call == 0 else f"{layer}#{call + 1}"


def layer_of(site: str) -> str:
    """The layer that a :func:`site_name` is a call of."""
    return site.partition("#")[0]


def survey(network: nn.Module, input_shape: Sequence[int]) -> Survey:
    """Run ``network`` on zeros to see where it drops; it is left as it was. ``input_shape`` is that of one example.

    Layers at rate 0, and layers that no forward pass meets, don't count. Raises :class:`UnsupportedNetworkError`,
    with the place, for dropout whose input's first axis is not the batch, and for randomness from elsewhere:
    functional dropout, that of attention and recurrent layers, stochastic depth; and for an output
    other than logits ``[B, C]``.
    """
    probe = structural_copy(network)
    layers: dict[str, LayerMask] = {}
    sizes = [0]

    def measure(_: nn.Module, inputs: tuple[object, ...]) -> None:
        sizes.extend(value.numel() // PROBE_IMAGES for value in inputs if isinstance(value, Tensor))

    recorders: dict[str, nn.Module] = {}
    for name, module, alias in list(dropout_modules(probe)):
        if module.p > 0:
            probe.set_submodule(alias, recorders.setdefault(name, _Recorder(name, module, layers)))
    for module in set(probe.modules()):
        module.register_forward_pre_hook(measure)
    like = parameter_like(network)
    zeros = torch.zeros(PROBE_IMAGES, *input_shape, device=like.device, dtype=like.dtype)
    with _generators_restored(zeros), torch.inference_mode():
        output = probe(zeros)
    if not (isinstance(output, Tensor) and output.dim() == 2 and len(output) == PROBE_IMAGES):
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UnsupportedNetworkError(
            f"{type(network).__name__} must return logits [B, C]; for a batch of {PROBE_IMAGES} it gave {found}"
        )
    for name, module in network.named_modules():
        if layers and isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UnsupportedNetworkError(
                f"{name!r} ({type(module).__name__}) takes its statistics from the batch, by which images and "
                "sub-networks would change each other's answers; use running statistics"
            )
    _refuse_other_randomness(network, zeros)
    return Survey(layers, max(sizes))


def active_layers(network: nn.Module, input_shape: Sequence[int]) -> Survey:
    """The :func:`survey` of a network that has active dropout; :class:`NoActiveDropoutError` otherwise."""
    found = survey(network, input_shape)
    if not found.layers:
        raise NoActiveDropoutError(
            f"{type(network).__name__} has no active dropout layer, so it has no sub-networks to sample; "
            "use the weight_scaling strategy, or a network trained with dropout"
        )
    return found


def dropout_modules(network: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """``(name, layer, alias)`` of the dropout layers; one that is registered in several places comes once for each,
    with the first as its name. A subclass that does something else is none."""
    names: dict[int, str] = {}
    for alias, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, DROPOUT) and has_known_forward(module):
            yield names.setdefault(id(module), alias), module, alias


def has_known_forward(module: nn.Module) -> bool:
    """Whether ``module`` computes what the class of torch's, or of :mod:`models.noise`, that it is or extends does."""
    known = next(kind for kind in type(module).__mro__ if kind.__module__.startswith(("torch.nn.", "models.noise")))
    return bool(getattr(type(module), "forward", None) is getattr(known, "forward", None))


def structural_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode that shares parameters and buffers with ``network``."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo=dict(shared)).eval()


def parameter_like(network: nn.Module) -> Tensor:
    """A tensor with the type and device of the network's parameters."""
    return next(network.parameters(), torch.zeros(()))


class _Recorder(nn.Module):
    def __init__(self, name: str, layer: Any, layers: dict[str, LayerMask]) -> None:
        super().__init__()
        self._name, self._layer, self._layers = name, layer, layers
        self._calls = 0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        self._layers[site_name(self._name, self._calls)] = _mask_of(self._name, self._layer, tuple(input.shape))
        self._calls += 1
        return input

    def __deepcopy__(self, memo: dict[int, object]) -> _Recorder:
        return self


def _mask_of(name: str, layer: Any, shape: tuple[int, ...]) -> LayerMask:
    kind = type(layer).__name__
    if layer.p >= 1:
        raise UnsupportedNetworkError(f"dropout layer {name!r} has rate {layer.p}: nothing is left of its input")
    if shape[0] != PROBE_IMAGES:
        raise UnsupportedNetworkError(
            f"dropout layer {name!r} ({kind}) gets a tensor of shape {list(shape)} for a batch of {PROBE_IMAGES}; "
            "its first axis must be the batch (batch_first=True)"
        )
    if isinstance(layer, nn.Dropout1d) and len(shape) == 2:
        raise UnsupportedNetworkError(
            f"dropout layer {name!r} (Dropout1d) gets two axes, which it takes for one example; it needs three"
        )
    mask = shape[1:]
    if isinstance(layer, CHANNELWISE):
        mask = (*mask[:1], *(1 for _ in mask[1:]))
    if isinstance(layer, GaussianDropout):
        return LayerMask(layer.p, mask, "gaussian")
    return LayerMask(layer.p, mask, "alpha" if isinstance(layer, ALPHA) else "bernoulli")


def _refuse_other_randomness(network: nn.Module, zeros: Tensor) -> None:
    """Run a copy in train mode, without its dropout layers, and see whether anything draws random numbers."""
    probe = copy.deepcopy(network).train()
    for _, _, alias in list(dropout_modules(probe)):
        probe.set_submodule(alias, nn.Identity())
    for module in probe.modules():
        if isinstance(module, _NormBase):
            module.eval()  # Some refuse a small batch in train mode; none draws.
    names = {module: name for name, module in probe.named_modules()}
    before: dict[nn.Module, list[Tensor]] = {}
    drawing: list[nn.Module] = []

    def note(module: nn.Module, _: object) -> None:
        before[module] = _generator_states(zeros)

    def compare(module: nn.Module, _: object, __: object) -> None:
        after = _generator_states(zeros)
        if any(not torch.equal(one, other) for one, other in zip(before[module], after, strict=True)):
            drawing.append(module)

    for module in names:
        module.register_forward_pre_hook(note)
        module.register_forward_hook(compare)
    with _generators_restored(zeros), torch.no_grad():
        try:
            probe(zeros)
        except Exception as error:
            raise UnsupportedNetworkError(
                f"{type(network).__name__} can't be run in train mode on a batch of zeros, by which functional dropout "
                f"is looked for: {error}"
            ) from error
    if drawing:  # Inner modules come before outer ones.
        name, kind = names[drawing[0]], type(drawing[0]).__name__
        place = f"module {name!r} ({kind})" if name else f"{kind}.forward"
        raise UnsupportedNetworkError(
            f"{place} draws random numbers in train mode and is no dropout layer: functional dropout, dropout inside "
            "attention or a recurrent layer, or stochastic depth. It would be left out of every sub-network without a "
            "word; use torch.nn's dropout layers, or set its rate to 0"
        )


def _generator_states(like: Tensor) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if like.is_cuda:
        states.append(torch.cuda.get_rng_state(like.device))
    return states


@contextmanager
def _generators_restored(like: Tensor) -> Iterator[None]:
    with torch.random.fork_rng([like.device] if like.is_cuda else []):
        yield
