"""Takes a network that was trained elsewhere into a bundle, once it is seen that its dropout can be sampled."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from calibration.copies import MaskedCopies
from calibration.masks import LayerMask
from calibration.sites import active_layers, probe_images
from calibration.subnetworks import SubnetworkEnsemble
from models import bundle as bundles
from models import networks, storage
from models.networks import own
from models.records import InputRecord, NetworkRecord

__all__ = ["ImportFailedError", "NetworkOutput", "import_network"]

NetworkOutput = Literal["logits", "log_probabilities", "probabilities"]
CHECKED_SAMPLES, CHECKED_IMAGES = 4, 3
TOLERANCE = 1e-4
"""Of the engine's logits, relative to the largest; of sums of probabilities."""
CHANNELS = (1, 3, 4)
LOGITS_NEEDED = (
    "A network must return logits, or log-probabilities: temperatures divide them, and probabilities have lost what "
    "small ones were. Take the softmax away, or return its logarithm (torch.nn.LogSoftmax)"
)


class ImportFailedError(Exception):
    """A network can't be made a bundle of; the message says why, and what to do."""


def import_network(
    name: str,
    weights: Path,
    out: Path,
    *,
    arguments: Mapping[str, Any],
    classes: Sequence[str],
    inputs: InputRecord,
    outputs: NetworkOutput,
    bundle_name: str,
) -> tuple[bundles.Bundle, dict[str, LayerMask]]:
    """Write the bundle of the network ``name``, with ``arguments`` and the safetensors file ``weights``, into the new
    folder ``out``; return it, and what of it can be sampled: the dropout layers by name.

    ``classes`` name its outputs, which are ``outputs``: log-probabilities are logits too, probabilities none.

    Raises :class:`ImportFailedError` for weights that don't fit or aren't float32, images whose channels come last, an
    output of another width or kind than told, a network that changes its input, and an engine that disagrees with the
    sub-networks run one by one; :class:`~calibration.sites.NoActiveDropoutError` and
    :class:`~calibration.sites.UnsupportedNetworkError` for dropout that is absent or can't be sampled, with the name of
    the module; and ``ValueError`` if the network can't be built.
    """
    if outputs == "probabilities":
        raise ImportFailedError(LOGITS_NEEDED)
    if own.is_own(name):
        own.trust(name)
    network = networks.build(name, arguments, seed=0)
    _load(network, weights)
    network.eval()
    _check_type(network)
    _check_shape(inputs)
    _check_outputs(network, classes, inputs, outputs)
    layers = active_layers(network, inputs.shape).layers
    _check_engine(network, inputs.shape)
    record = NetworkRecord(
        name=name, arguments=dict(arguments), parameters=sum(parameter.numel() for parameter in network.parameters())
    )
    with storage.new_folder(out) as folder:
        bundles.write(
            folder, network,
            {
                "name": bundle_name, "network": record, "classes": tuple(classes), "input": inputs, "training": None,
                "data": None, "metrics": {}, "versions": bundles.software_versions(),
            },
        )  # fmt: skip
        bundles.load(folder)
    return bundles.load(out), layers


def _load(network: nn.Module, weights: Path) -> None:
    try:
        state = safetensors.torch.load(weights.read_bytes())
    except safetensors.SafetensorError as error:
        raise ImportFailedError(
            f"{weights} is no safetensors file ({error}); write one with "
            "safetensors.torch.save_file(network.state_dict(), path)"
        ) from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ImportFailedError(f"{weights} does not hold this network's weights: {error}") from error
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ImportFailedError(f"{weights} holds values that are not finite in {name}")


def _check_type(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise ImportFailedError(
                f"{name} is {parameter.dtype}, and inputs are torch.float32: let the factory return network.float(), "
                "which takes weights of any precision"
            )


def _check_shape(inputs: InputRecord) -> None:
    if len(inputs.shape) < 3:
        return
    first, second, last = inputs.shape
    if last in CHANNELS and first not in CHANNELS:
        raise ImportFailedError(
            f"images of shape {list(inputs.shape)} would have {first} channels: those come first. Name --shape "
            f"{last},{first},{second}, and let a network that wants them last begin with images.permute(0, 2, "
            "3, 1)"
        )


def _check_outputs(network: nn.Module, classes: Sequence[str], inputs: InputRecord, outputs: NetworkOutput) -> None:
    images = probe_images(network, inputs.shape, CHECKED_IMAGES)
    given = images.clone()
    try:
        with torch.inference_mode():
            found = copy.deepcopy(network)(given)
    except Exception as error:  # It is the user's code.
        raise ImportFailedError(
            f"the network does not take images of shape {list(inputs.shape)}: {type(error).__name__}: {error}"
        ) from error
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != [CHECKED_IMAGES, len(classes)]:
        hint = ". Of one logit make two: torch.cat([torch.zeros_like(x), x], 1)" if shape == [CHECKED_IMAGES, 1] else ""
        raise ImportFailedError(
            f"{len(classes)} classes are named, and for a batch of {CHECKED_IMAGES} the network gave {shape}, not "
            f"[{CHECKED_IMAGES}, {len(classes)}]{hint}"
        )
    if not torch.equal(images, given):
        raise ImportFailedError(
            "the network changes its input in place, by which the next strategy would be asked about other images: "
            "write x = x - mean for x -= mean, and leave inplace=True away from the first layer"
        )
    if (found >= 0).all() and (found.sum(1) - 1).abs().max() < TOLERANCE:
        raise ImportFailedError(f"the network returns probabilities, not {outputs}. {LOGITS_NEEDED}")
    if outputs == "log_probabilities" and found.logsumexp(1).abs().max() > TOLERANCE:
        raise ImportFailedError(
            "the network returns no log-probabilities: those of an image don't add up to 1. Are they --outputs logits?"
        )


def _check_engine(network: nn.Module, shape: Sequence[int]) -> None:
    """Hold the engine's sub-networks against each run alone, under masks in the places of the dropout layers."""
    ensemble = SubnetworkEnsemble(network, shape, samples=CHECKED_SAMPLES, seed=0)
    plain = MaskedCopies(network, ensemble.bank, shape, active_layers(network, shape), None)
    images = probe_images(network, shape, CHECKED_IMAGES)
    alone = torch.cat([plain.logits(images, slice(row, row + 1)) for row in range(CHECKED_SAMPLES)])
    worst = float((ensemble.logits(images) - alone).abs().max())
    if not worst <= TOLERANCE * max(1.0, float(alone.abs().max())):
        raise ImportFailedError(f"the engine's sub-networks differ by {worst:.2g} from those run one by one")
