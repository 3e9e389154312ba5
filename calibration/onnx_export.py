"""A bundle as an ONNX model: pixels in, the calibrated predictive distribution out, in any ONNX runtime.

ONNX's own Dropout does nothing at inference, so that sub-networks are masks here: constants of the model, those that
the bundle was calibrated with, or inputs. What comes before the first dropout layer is run once an image.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from calibration.masks import MaskBank
from calibration.predictive import PredictiveDistribution
from calibration.sites import dropout_modules, layer_of, site_name, structural_copy
from calibration.strategies import Sampling
from calibration.subnetworks import SubnetworkEnsemble
from calibration.tracing import cut
from models import storage
from models.bundle import Bundle, normalise
from models.noise import DropConnectLinear
from models.records import InputRecord, Scaling

__all__ = ["EXPORTED", "OUTPUTS", "TOLERANCE", "ExportError", "Masks", "export"]

Exported = Literal["mc_dropout", "weight_scaling"]
EXPORTED: tuple[Exported, ...] = get_args(Exported)
Masks = Literal["constants", "inputs"]
OUTPUTS = ("probabilities", "total_uncertainty", "aleatoric_uncertainty", "epistemic_uncertainty")
"""``[B, C]``, and ``[B]`` in nats; by weight scaling the first two alone."""
TOLERANCE = 1e-4
"""Largest difference between a model's outputs and the strategy's that is let pass."""
PROBES = (1, 5)
"""Images in the batches that a model is verified on."""
OPSET = 20


class ExportError(Exception):
    """A network can't be exported, or what was exported answers otherwise; the message says which."""


def export(
    bundle: Bundle, path: Path, *, strategy: Exported = "mc_dropout",
    samples: int | None = None, masks: Masks = "constants",
) -> float:  # fmt: skip
    """Write ``bundle`` into ``path`` as an ONNX model, in place of any file before it, and return the largest
    difference between what onnxruntime and the strategy make of images of noise.

    The input ``pixels`` is float32, ``[B, *shape]``, in the range of the card's; the :data:`OUTPUTS` are calibrated as
    the bundle's are. ``samples``, T, are by default as many as it was calibrated with. Where ``masks`` are ``inputs``,
    each site has one, ``mask_0`` and so on in the order of the forward pass, ``[T, ...]``: what the site's input is
    multiplied by, 0 or 1 / (1 - rate) for plain dropout; the model's metadata name the sites and their rates.

    Raises :class:`ExportError` if torch can't export the network, or the difference exceeds :data:`TOLERANCE`; and what
    :class:`~calibration.subnetworks.SubnetworkEnsemble` raises. Nothing is written then.
    """
    shape = bundle.card.input.shape
    fitted = Sampling.of(bundle.calibration)
    scaling = bundle.scaling(strategy)
    metadata = {
        "bundle": bundle.card.name, "version": bundle.version, "strategy": strategy,
        "classes": "\n".join(bundle.card.classes), "temperature": str(scaling.temperature),
    }  # fmt: skip
    ensemble = None
    model: nn.Module = _WeightScaling(bundle.network, bundle.card.input, scaling)
    given: dict[str, Tensor] = {}
    if strategy == "mc_dropout":
        ensemble = SubnetworkEnsemble(
            bundle.network, shape, samples=samples or fitted.samples, seed=fitted.seed, design=fitted.design
        )
        sampled = _Sampled(bundle.network, ensemble.bank, bundle.card.input, scaling)
        model = sampled
        metadata["samples"] = str(ensemble.samples)
        if masks == "inputs":
            if any(shift is not None for _, shift in sampled.affine.values()):
                raise ExportError("alpha dropout also adds to what it multiplies: its masks can be constants alone")
            model = _WithMaskInputs(sampled)
            given = {f"mask_{index}": scale for index, (scale, _) in enumerate(sampled.affine.values())}
            metadata |= {
                f"mask_{index}": f"{site}, rate {layer.rate:g}"
                for index, (site, layer) in enumerate(ensemble.bank.layers.items())
            }
    outputs = OUTPUTS if ensemble else OUTPUTS[:2]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.onnx"
        _write(model, shape, given, outputs, written)
        content = _with_metadata(written, metadata)
    worst = _largest_difference(content, bundle, ensemble, scaling, given)
    if not worst <= TOLERANCE:
        raise ExportError(
            f"the exported model's outputs differ by {worst:.2g} from the strategy's; nothing was written"
        )
    storage.write_bytes(path, content)
    return worst


@dataclass
class _Pass:
    """The masks of the forward pass under way, and how often each layer has been called in it."""

    affine: Mapping[str, tuple[Tensor, Tensor | None]]
    calls: dict[str, int] = field(default_factory=dict)

    def next(self, layer: str) -> tuple[Tensor, Tensor | None]:
        call = self.calls.get(layer, 0)
        self.calls[layer] = call + 1
        return self.affine[site_name(layer, call)]


class _Masked(nn.Module):
    """In the place of a dropout layer. Takes ``[T * B, ...]``, ordered by sub-network."""

    def __init__(self, name: str, passes: list[_Pass]) -> None:
        super().__init__()
        self._name, self._passes = name, passes

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        scale, shift = self._passes[-1].next(self._name)
        copies = input.unflatten(0, (scale.shape[0], -1)) * scale.unsqueeze(1)
        masked: Tensor = (copies if shift is None else copies + shift.unsqueeze(1)).flatten(0, 1)
        return masked


class _MaskedWeights(_Masked):
    """In the place of a DropConnect layer."""

    def __init__(self, name: str, passes: list[_Pass], layer: DropConnectLinear) -> None:
        super().__init__(name, passes)
        self.linear = layer.linear

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        scale, _ = self._passes[-1].next(self._name)
        copies = input.unflatten(0, (scale.shape[0], -1))
        products: Tensor = (copies @ (scale * self.linear.weight).transpose(1, 2)).flatten(0, 1)
        return products if self.linear.bias is None else products + self.linear.bias


class _WeightScaling(nn.Module):
    def __init__(self, network: nn.Module, record: InputRecord, scaling: Scaling) -> None:
        super().__init__()
        self._network, self._record, self._scaling = structural_copy(network), record, scaling

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        logits = self._network(normalise(pixels, self._record)).unsqueeze(0)
        found = PredictiveDistribution.scaled(logits, self._scaling, 1)
        return found.mean, found.predictive_entropy


class _Sampled(nn.Module):
    def __init__(self, network: nn.Module, bank: MaskBank, record: InputRecord, scaling: Scaling) -> None:
        super().__init__()
        self._record, self._scaling, self._passes = record, scaling, list[_Pass]()
        like = next(network.parameters())
        self.affine = {site: mask.affine(bank.rows[site], like) for site, mask in bank.layers.items()}
        for index, (scale, shift) in enumerate(self.affine.values()):
            self.register_buffer(f"scale_{index}", scale)
            if shift is not None:
                self.register_buffer(f"shift_{index}", shift)
        replica, self._trunk = structural_copy(network), None
        here = cut(replica, bank.layers)
        if here is not None:
            self._trunk, replica = here.trunk(), structural_copy(here.rest())
        names = {layer_of(site) for site in bank.layers}
        stand_ins: dict[str, nn.Module] = {}
        for name, layer, alias in list(dropout_modules(replica)):
            if name in names:
                if name not in stand_ins:
                    dropped = isinstance(layer, DropConnectLinear)
                    stand_ins[name] = (
                        _MaskedWeights(name, self._passes, layer) if dropped else _Masked(name, self._passes)
                    )
                replica.set_submodule(alias, stand_ins[name])
        self._rest = replica

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        constants = {
            site: (getattr(self, f"scale_{index}"), getattr(self, f"shift_{index}", None))
            for index, site in enumerate(self.affine)
        }
        return self.under(constants, pixels)

    def under(self, affine: Mapping[str, tuple[Tensor, Tensor | None]], pixels: Tensor) -> tuple[Tensor, ...]:
        inputs = normalise(pixels, self._record)
        values = (inputs,) if self._trunk is None else self._trunk(inputs)
        samples = next(iter(affine.values()))[0].shape[0]
        self._passes.append(_Pass(affine))
        flat = self._rest(*(value.repeat(samples, *(1 for _ in value.shape[1:])) for value in values))
        self._passes.pop()
        found = PredictiveDistribution.scaled(flat.unflatten(0, (samples, -1)), self._scaling, 1)
        return found.mean, found.predictive_entropy, found.expected_entropy, found.mutual_information


class _WithMaskInputs(nn.Module):
    def __init__(self, sampled: _Sampled) -> None:
        super().__init__()
        self._sampled = sampled

    def forward(self, pixels: Tensor, masks: list[Tensor]) -> tuple[Tensor, ...]:
        sites = self._sampled.affine
        return self._sampled.under({site: (mask, None) for site, mask in zip(sites, masks, strict=True)}, pixels)


def _write(
    model: nn.Module, shape: Sequence[int], given: Mapping[str, Tensor], outputs: Sequence[str], path: Path
) -> None:
    images, batch = torch.zeros(2, *shape), torch.export.Dim("batch")
    arguments: tuple[Any, ...] = (images, list(given.values())) if given else (images,)
    dynamic: tuple[Any, ...] = ({0: batch}, [None] * len(given)) if given else ({0: batch},)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model.eval(), arguments, str(path), input_names=["pixels", *given], output_names=list(outputs),
                dynamic_shapes=dynamic, dynamo=True, external_data=False, opset_version=OPSET, verbose=False,
            )  # fmt: skip
    except Exception as error:  # The exporter runs the network's own code, which may fail in any way.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"torch can't export this network to ONNX: {first}") from error


def _with_metadata(path: Path, metadata: Mapping[str, str]) -> bytes:
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _largest_difference(
    content: bytes, bundle: Bundle, ensemble: SubnetworkEnsemble | None, scaling: Scaling, given: Mapping[str, Tensor]
) -> float:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    masks = {name: mask.numpy() for name, mask in given.items()}
    worst = 0.0
    for count in PROBES:
        generator = torch.Generator().manual_seed(count)
        pixels = torch.randint(256, (count, *bundle.card.input.shape), generator=generator).float()
        inputs = bundle.prepare(pixels)
        with torch.inference_mode():
            logits = bundle.network(inputs).unsqueeze(0) if ensemble is None else ensemble.logits(inputs)
        expected = PredictiveDistribution.scaled(logits, scaling, 1)
        found = session.run(None, {"pixels": pixels.numpy(), **masks})
        own = (expected.mean, expected.predictive_entropy, expected.expected_entropy, expected.mutual_information)
        differences = [np.abs(one - other.numpy()).max() for one, other in zip(found, own, strict=False)]
        worst = max(worst, *map(float, differences))
    return worst
