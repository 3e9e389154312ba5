"""Where a network drops units: its dropout layers, call by call, and a refusal of randomness that is none of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode

from calibration.masks import LayerMask
from models.noise import DropConnectLinear, GaussianDropout

__all__ = [
    "DROPOUT",
    "PROBE_IMAGES",
    "NoActiveDropoutError",
    "Survey",
    "UnsupportedNetworkError",
    "active_layers",
    "dropout_modules",
    "has_known_forward",
    "is_dropout",
    "layer_of",
    "parameter_like",
    "probe_images",
    "site_name",
    "structural_copy",
    "survey",
]

PROBE_IMAGES = (3, 5)
"""Two batches, so that an axis that is as long as one of them by chance isn't taken for the batch."""
DROPOUT = (_DropoutNd, GaussianDropout)
"""Layers that drop values; those that drop weights are dropout layers too."""
CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)


class NoActiveDropoutError(ValueError):
    """The network has nothing to sample: no dropout layer, or only layers at rate 0."""


class UnsupportedNetworkError(ValueError):
    """The network has randomness of a kind that can't be sampled faithfully here."""


@dataclass(frozen=True)
class Survey:
    """The active dropout ``layers`` of a network, one entry a call by :func:`site_name`, in the order of a forward
    pass; and the size of the ``widest`` value that any module takes for one example, or of the largest mask."""

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
    """Run ``network`` on noise to see where it drops; it is left as it was. ``input_shape`` is that of one example.

    Layers at rate 0, and layers that no forward pass meets, don't count. Raises :class:`UnsupportedNetworkError`,
    with the place, for dropout whose input's first axis is not the batch, or that is met in train mode alone; for
    randomness of torch's from elsewhere: functional dropout, that of attention and recurrent layers, stochastic
    depth; and for an output other than logits ``[B, C]``.
    """
    _refuse_other_randomness(network, probe_images(network, input_shape, PROBE_IMAGES[0]))
    found, again = (_record(network, probe_images(network, input_shape, count)) for count in PROBE_IMAGES)
    if found.layers != again.layers:
        raise UnsupportedNetworkError(
            f"what {type(network).__name__} drops depends on the images, or on how many there are"
        )
    in_training = _record(network, probe_images(network, input_shape, PROBE_IMAGES[0]), training=True)
    if only := [site for site in in_training.layers if site not in found.layers]:
        raise UnsupportedNetworkError(
            f"dropout layer {layer_of(only[0])!r} is used in train mode more often than in eval mode; call it in both, "
            "and leave it to the layer to do nothing in eval mode"
        )
    for name, module in network.named_modules():
        if found.layers and isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UnsupportedNetworkError(
                f"{name!r} ({type(module).__name__}) takes its statistics from the batch, by which images and "
                "sub-networks would change each other's answers; use running statistics"
            )
    return found


def probe_images(network: nn.Module, input_shape: Sequence[int], count: int) -> Tensor:
    """Noise in the shape of ``count`` images, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *input_shape, generator=generator).to(parameter_like(network))


def _record(network: nn.Module, images: Tensor, *, training: bool = False) -> Survey:
    probe = _training_copy(network) if training else structural_copy(network)
    layers: dict[str, LayerMask] = {}
    sizes = [0]

    def measure(_: nn.Module, inputs: tuple[object, ...]) -> None:
        sizes.extend(value.numel() // len(images) for value in inputs if isinstance(value, Tensor))

    recorders: dict[str, nn.Module] = {}
    for name, module, alias in list(dropout_modules(probe)):
        if module.p > 0:
            probe.set_submodule(alias, recorders.setdefault(name, _Recorder(name, module, layers, len(images))))
    for module in set(probe.modules()):
        module.register_forward_pre_hook(measure)
    try:
        with torch.inference_mode():
            output = probe(images)
    except UnsupportedNetworkError:
        raise
    except Exception as error:
        raise UnsupportedNetworkError(
            f"{type(network).__name__} can't be run on images of shape {list(images.shape[1:])}: {error}"
        ) from error
    if not training and not (isinstance(output, Tensor) and output.dim() == 2 and len(output) == len(images)):
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UnsupportedNetworkError(
            f"{type(network).__name__} must return logits [B, C]; for a batch of {len(images)} it gave {found}"
        )
    return Survey(layers, max(*sizes, *(mask.units for mask in layers.values())))


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
        if is_dropout(module) and has_known_forward(module):
            yield names.setdefault(id(module), alias), module, alias


def is_dropout(module: nn.Module) -> bool:
    """Whether ``module`` drops values or weights."""
    return isinstance(module, (*DROPOUT, DropConnectLinear))


def has_known_forward(module: nn.Module) -> bool:
    """Whether ``module`` computes what the class of torch's, or of :mod:`models.noise`, that it is or extends does."""
    known = next(kind for kind in type(module).__mro__ if kind.__module__.startswith(("torch.nn.", "models.noise")))
    return bool(getattr(type(module), "forward", None) is getattr(known, "forward", None))


def structural_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode that shares parameters, buffers and other tensors with ``network``."""
    return copy.deepcopy(network, memo={id(tensor): tensor for tensor in _tensors(network)}).eval()


def _training_copy(network: nn.Module) -> nn.Module:
    """A copy of its own in train mode, but for normalisation, which may refuse a small batch and never draws."""
    memo = {id(tensor): tensor.detach().clone() for tensor in _tensors(network) if not isinstance(tensor, nn.Parameter)}
    result = copy.deepcopy(network, memo=memo).train()
    for module in result.modules():
        if isinstance(module, _NormBase):
            module.eval()
    return result


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    """All that its modules hold, also as plain attributes, as pruning and weight normalisation leave them."""
    for module in network.modules():
        held = (*module.parameters(recurse=False), *module.buffers(recurse=False), *vars(module).values())
        yield from (value for value in held if isinstance(value, Tensor))


def parameter_like(network: nn.Module) -> Tensor:
    """A tensor with the type and device of the network's parameters."""
    return next(network.parameters(), torch.zeros(()))


class _Recorder(nn.Module):
    def __init__(self, name: str, layer: Any, layers: dict[str, LayerMask], images: int) -> None:
        super().__init__()
        self._name, self._layer, self._layers, self._images = name, layer, layers, images
        self._calls, self._rest = 0, _without_dropping(layer)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        mask = _mask_of(self._name, self._layer, tuple(input.shape), self._images)
        self._layers[site_name(self._name, self._calls)] = mask
        self._calls += 1
        output: Tensor = self._rest(input)
        return output


def _without_dropping(layer: nn.Module) -> nn.Module:
    return layer.linear if isinstance(layer, DropConnectLinear) else nn.Identity()


def _mask_of(name: str, layer: Any, shape: tuple[int, ...], images: int) -> LayerMask:
    kind = type(layer).__name__
    if layer.p >= 1:
        raise UnsupportedNetworkError(f"dropout layer {name!r} has rate {layer.p}: nothing is left of its input")
    if shape[0] != images:
        raise UnsupportedNetworkError(
            f"dropout layer {name!r} ({kind}) gets a tensor of shape {list(shape)} for a batch of {images}; "
            "its first axis must be the batch (batch_first=True)"
        )
    if (isinstance(layer, nn.Dropout1d) and len(shape) == 2) or (isinstance(layer, nn.Dropout3d) and len(shape) == 4):
        raise UnsupportedNetworkError(
            f"dropout layer {name!r} ({kind}) gets {len(shape)} axes, which it takes for one example; it needs "
            f"{len(shape) + 1}"
        )
    if isinstance(layer, DropConnectLinear):
        return LayerMask(layer.p, tuple(layer.linear.weight.shape), "weights")
    mask = shape[1:]
    if isinstance(layer, CHANNELWISE):
        mask = (*mask[:1], *(1 for _ in mask[1:]))
    if isinstance(layer, GaussianDropout):
        return LayerMask(layer.p, mask, "gaussian")
    return LayerMask(layer.p, mask, "alpha" if isinstance(layer, ALPHA) else "bernoulli")


def _refuse_other_randomness(network: nn.Module, images: Tensor) -> None:
    """Run a copy in train mode, without its dropout layers, and see whether anything draws random numbers."""
    probe = _training_copy(network)
    for _, layer, alias in list(dropout_modules(probe)):
        probe.set_submodule(alias, _without_dropping(layer))
    names = {module: name for name, module in probe.named_modules()}
    inside: list[nn.Module] = []
    for module in names:
        module.register_forward_pre_hook(lambda module, _: inside.append(module))
        module.register_forward_hook(lambda *_: inside.pop() and None)
    try:
        with torch.no_grad(), _NoRandomNumbers():  # type: ignore[no-untyped-call]
            probe(images)
    except _RandomNumbersDrawn:
        name, kind = names[inside[-1]], type(inside[-1]).__name__
        place = f"module {name!r} ({kind})" if name else f"{kind}.forward"
        raise UnsupportedNetworkError(
            f"{place} draws random numbers in train mode and is no dropout layer: functional dropout, dropout inside "
            "attention or a recurrent layer, or stochastic depth. It would be left out of every sub-network without a "
            "word; use torch.nn's dropout layers, or set its rate to 0"
        ) from None
    except Exception as error:
        raise UnsupportedNetworkError(
            f"{type(network).__name__} can't be run in train mode on images of shape {list(images.shape[1:])}, "
            f"{images.dtype}, by which functional dropout is looked for: {error}"
        ) from error


class _RandomNumbersDrawn(Exception):  # noqa: N818  (a signal, not an error)
    pass


class _NoRandomNumbers(TorchDispatchMode):
    """Raises :class:`_RandomNumbersDrawn` instead of drawing. In this thread alone, and no generator moves."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Saves the import of torch's compiler, which takes a second and a hundred MiB, to be told to do nothing.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and _rate(func, args, kwargs) != 0:
            raise _RandomNumbersDrawn
        return func(*args, **kwargs)


def _rate(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """The operator's own dropout rate, as fused attention has one: at 0 it draws nothing."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[position] if position < len(args) else kwargs.get("dropout_p", argument.default_value)
            return cast("object", given)
    return None
