"""The ensemble interpretation of dropout, measured: what one network is, as an ensemble of its sub-networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calibration import metrics, strategies
from calibration.enumeration import enumerate_subnetworks
from calibration.masks import DESIGNS
from calibration.report.cache import PredictionCache, digest
from calibration.report.evaluate import estimate, first_from_which_on
from calibration.report.predictions import identity
from calibration.report.schema import EnumerationError, EnumerationSection, InterpretationSection, Quantiles, SizeRow
from calibration.scaling import best_temperature
from calibration.subnetworks import SubnetworkEnsemble
from models import networks
from models.bundle import Bundle, normalise
from models.records import InputRecord, MaskDesign
from training.data import FashionMNISTSplits, LabelledImages
from training.fit import Recipe, fit

__all__ = ["SUBNETWORKS", "enumerated", "interpretation"]

SUBNETWORKS = 512
IMAGES_AT_ONCE = 250
SEED = 1_000
"""Other sub-networks than those that any strategy was calibrated with."""
KL_EDGES = tuple(round(-6 + 0.25 * k, 2) for k in range(29))

SMALL_NETWORK: dict[str, Any] = {"dropout": [0.0, 0.5, 0.5], "hidden_widths": [8, 6]}
SMALL_RECIPE = Recipe(epochs=5)
SMALL_IMAGES = 500
SMALL_SIZES = (4, 16, 64, 256)
SMALL_BANKS = 8


def interpretation(
    bundle: Bundle, for_temperature: LabelledImages, test: LabelledImages, *, weights: Tensor, cache: PredictionCache,
    on_images: Callable[[int], None],
) -> InterpretationSection:  # fmt: skip
    """The chapter's figures for one bundle. ``on_images`` is told of images done, ``test`` and ``for_temperature``."""
    shape = bundle.card.input.shape
    ensemble = SubnetworkEnsemble(bundle.network, shape, samples=SUBNETWORKS, seed=SEED, design="independent")
    key = {"network": identity(bundle), "of": "interpretation"}

    def fitted() -> dict[str, Tensor]:
        return {"temperatures": _temperatures(ensemble, bundle, for_temperature, on_images)}

    temperatures = cache.get(
        {**key, "images": digest(for_temperature.pixels), "labels": digest(for_temperature.labels)}, fitted
    )["temperatures"]
    found = cache.get(
        {**key, "images": digest(test.pixels), "labels": digest(test.labels), "at": digest(temperatures)},
        lambda: _by_size(ensemble, bundle, test, temperatures, on_images),
    )
    logits = strategies.weight_scaling(bundle.network).logits(bundle.prepare(test.pixels))
    plain = F.log_softmax(logits.double(), -1)
    correct = (plain[0].argmax(1) == test.labels).double()
    loss = _loss(plain / temperatures[0, -1], test.labels)[0]
    sizes = tuple(_size_rows(found, correct, loss, weights))
    members = found["member_accuracy"].sort().values
    kls = {name: _divergence(found[name].double(), plain[0]) for name in ("geometric", "arithmetic")}
    return InterpretationSection(
        subnetworks=SUBNETWORKS,
        sizes=sizes,
        weight_scaling_accuracy=float(correct.mean()),
        weight_scaling_nll=float(loss.mean()),
        weight_scaling_raw_nll=float(_loss(plain, test.labels).mean()),
        crossing_accuracy=first_from_which_on(sizes, lambda row: row.difference_accuracy.value >= 0),
        crossing_nll=first_from_which_on(sizes, lambda row: row.difference_nll.value <= 0),
        level_accuracy=first_from_which_on(sizes, lambda row: row.difference_accuracy.high >= 0),
        level_nll=first_from_which_on(sizes, lambda row: row.difference_nll.low <= 0),
        member_accuracy=tuple(torch.quantile(members, torch.linspace(0, 1, 5, dtype=torch.float64)).tolist()),
        member_accuracies=tuple(members.tolist()),
        member_nll=float(found["member_nll"].mean()),
        disagreement=float(found["disagreement"].mean()),
        kl_geometric=_quantiles(kls["geometric"]),
        kl_arithmetic=_quantiles(kls["arithmetic"]),
        kl_histogram={name: _histogram(values) for name, values in kls.items()},
        kl_edges=KL_EDGES,
    )


def _size_rows(found: dict[str, Tensor], correct: Tensor, loss: Tensor, weights: Tensor) -> Iterator[SizeRow]:
    for level in range(found["correct"].shape[0]):
        of_image, nll = found["correct"][level], found["nll"][level]
        ensembles = SUBNETWORKS >> level

        def difference(values: Tensor) -> Callable[[Tensor | None], Tensor]:
            return lambda given: values.mean() if given is None else given @ values / given.sum(-1)

        blocks = found["block_accuracy"][level, :ensembles]
        yield SizeRow(
            samples=1 << level,
            ensembles=ensembles,
            accuracy=float(of_image.mean()),
            accuracy_spread=float(blocks.std()) if ensembles > 1 else 0.0,
            raw_nll=float(found["raw_nll"][level].mean()),
            nll=float(nll.mean()),
            geometric_accuracy=float(found["geometric_correct"][level].mean()),
            geometric_nll=float(found["geometric_nll"][level].mean()),
            difference_accuracy=estimate(difference(of_image - correct), weights),
            difference_nll=estimate(difference(nll - loss), weights),
        )


def _levels(values: Tensor) -> Iterator[Tensor]:
    """Means of disjoint blocks of 1, 2, 4 ... of T values ``[T, ...]``: ``[T, ...]``, ``[T / 2, ...]`` ..."""
    yield values
    while len(values) > 1:
        values = values.unflatten(0, (-1, 2)).mean(1)
        yield values


def _temperatures(
    ensemble: SubnetworkEnsemble, bundle: Bundle, images: LabelledImages, on_images: Callable[[int], None]
) -> Tensor:
    """Of the arithmetic and the geometric mean at each size, and last of weight scaling: ``[2, levels + 1]``.

    Fitted to the first block of each size, or up to 8 of them for small ones.
    """
    pooled: list[list[Tensor]] = []
    inputs = bundle.prepare(images.pixels)
    for chunk in inputs.split(IMAGES_AT_ONCE):
        logits = ensemble.logits(chunk)
        pairs = zip(_levels(logits.softmax(-1)), _levels(logits), strict=True)
        for level, pair in enumerate(pairs):
            if level == len(pooled):
                pooled.append([])
            logs = (_log(pair[0][:8]), F.log_softmax(pair[1][:8], -1))
            pooled[level].append(torch.stack(logs))
        on_images(len(chunk))
    rows = []
    for parts in pooled:
        whole = torch.cat(parts, dim=2)
        repeated = images.labels.repeat(whole.shape[1])
        rows.append([best_temperature(logs.flatten(0, 1).unsqueeze(0), repeated) for logs in whole.unbind(0)])
    scaled = best_temperature(strategies.weight_scaling(bundle.network).logits(inputs), images.labels)
    return torch.tensor([*rows, [scaled, scaled]], dtype=torch.float64).T.contiguous()


def _by_size(
    ensemble: SubnetworkEnsemble, bundle: Bundle, test: LabelledImages, temperatures: Tensor,
    on_images: Callable[[int], None],
) -> dict[str, Tensor]:  # fmt: skip
    """Per level and image, averaged over blocks: correctness and losses ``[levels, N]``; per level and block accuracy;
    per member accuracy and loss ``[T]``; per image disagreement ``[N]`` and the logarithms of the means of all
    ``[N, C]``."""
    levels = ensemble.samples.bit_length()
    per_image = {
        name: torch.zeros(levels, len(test), dtype=torch.float64)
        for name in ("correct", "raw_nll", "nll", "geometric_correct", "geometric_nll")
    }
    blocks = torch.zeros(levels, ensemble.samples, dtype=torch.float64)
    member_nll = torch.zeros(ensemble.samples, dtype=torch.float64)
    arithmetic, geometric, disagreement = [], [], []
    start = 0
    for chunk in bundle.prepare(test.pixels).split(IMAGES_AT_ONCE):
        here = slice(start, start + len(chunk))
        labels = test.labels[here]
        logits = ensemble.logits(chunk)
        members = logits.softmax(-1)
        for level, (pooled, mean_logits) in enumerate(zip(_levels(members), _levels(logits), strict=True)):
            right = (pooled.argmax(-1) == labels).double()
            per_image["correct"][level, here] = right.mean(0)
            blocks[level, : len(right)] += right.sum(1)
            logs = _log(pooled)
            raw = _loss(logs, labels)
            per_image["raw_nll"][level, here] = raw.mean(0)
            per_image["nll"][level, here] = _loss(logs / temperatures[0, level], labels).mean(0)
            per_image["geometric_correct"][level, here] = (mean_logits.argmax(-1) == labels).double().mean(0)
            per_image["geometric_nll"][level, here] = _loss(mean_logits / temperatures[1, level], labels).mean(0)
            if level == 0:
                member_nll += raw.sum(1)
        # As logarithms: what lies between two predictions may be what underflows.
        arithmetic.append(F.log_softmax(logits, -1).logsumexp(0) - math.log(ensemble.samples))
        geometric.append(F.log_softmax(logits.mean(0), -1))
        votes = F.one_hot(members.argmax(-1), members.shape[-1]).sum(0).double()
        pairs = ensemble.samples * (ensemble.samples - 1)
        disagreement.append(1 - (votes * (votes - 1)).sum(-1) / pairs)
        start += len(chunk)
        on_images(len(chunk))
    return {
        **per_image,
        "block_accuracy": blocks / len(test),
        "member_accuracy": blocks[0] / len(test),
        "member_nll": member_nll / len(test),
        "disagreement": torch.cat(disagreement),
        "arithmetic": torch.cat(arithmetic),
        "geometric": torch.cat(geometric),
    }


def _log(probabilities: Tensor) -> Tensor:
    """Finite, though a softmax may underflow to 0."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    """-log softmax of the label: from ``[M, B, C]`` to ``[M, B]``."""
    return (
        scores.logsumexp(-1) - scores.gather(-1, labels.expand(len(scores), -1).unsqueeze(-1)).squeeze(-1)
    ).double()  # fmt: skip


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats for each image, from logarithms ``[N, C]`` of both."""
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)


def _quantiles(values: Tensor) -> Quantiles:
    median, q95 = torch.quantile(values, torch.tensor([0.5, 0.95], dtype=values.dtype)).tolist()
    return Quantiles(mean=float(values.mean()), median=median, q95=q95, maximum=float(values.max()))


def _histogram(values: Tensor) -> tuple[int, ...]:
    logs = values.clamp_min(10.0 ** KL_EDGES[0]).log10().clamp(KL_EDGES[0], KL_EDGES[-1])
    counts = torch.histogram(logs, torch.tensor(KL_EDGES, dtype=torch.float64)).hist
    return tuple(int(count) for count in counts.tolist())


def enumerated(splits: FashionMNISTSplits, cache: PredictionCache) -> EnumerationSection:
    """A small network, trained here, and all of its sub-networks on the first test images."""
    record = InputRecord()
    network = networks.build("YourDropoutModel", SMALL_NETWORK, seed=SMALL_RECIPE.seed)

    def trained() -> dict[str, Tensor]:
        fit(
            network, splits.train, splits.validation, SMALL_RECIPE, prepare=lambda pixels: normalise(pixels, record)
        )  # fmt: skip
        return dict(network.state_dict())

    key: dict[str, Any] = {
        "of": "small network",
        "arguments": SMALL_NETWORK,
        "recipe": SMALL_RECIPE.model_dump(mode="json"),
    }
    for name, part in (("train", splits.train), ("validation", splits.validation)):
        key[name] = [digest(part.pixels), digest(part.labels)]
    network.load_state_dict(cache.get(key, trained))
    network.eval()
    test = splits.test[slice(0, SMALL_IMAGES)]
    inputs = normalise(test.pixels, record)
    exact = enumerate_subnetworks(network, (28, 28), inputs)
    logs = F.log_softmax(strategies.weight_scaling(network).logits(inputs)[0].double(), -1)
    plain = logs.exp()
    ways = {"weight_scaling": plain, "geometric_mean": exact.geometric_mean, "arithmetic_mean": exact.mean}
    return EnumerationSection(
        network=f"hidden layers of {' and '.join(map(str, SMALL_NETWORK['hidden_widths']))} units, "
        f"dropout {' / '.join(map(str, SMALL_NETWORK['dropout']))} before each layer",
        epochs=SMALL_RECIPE.epochs,
        subnetworks=exact.subnetworks,
        images=len(test),
        accuracy={name: float(metrics.accuracy(p, test.labels)) for name, p in ways.items()},
        nll={name: float(metrics.negative_log_likelihood(p, test.labels)) for name, p in ways.items()},
        kl_geometric=float(_divergence(_log(exact.geometric_mean), logs).mean()),
        kl_arithmetic=float(_divergence(_log(exact.mean), logs).mean()),
        mutual_information=float(exact.mutual_information.mean()),
        errors=tuple(
            EnumerationError(design=design, samples=samples, error=_error(network, inputs, exact.mean, design, samples))
            for design in DESIGNS
            for samples in SMALL_SIZES
        ),
    )


def _error(network: torch.nn.Module, inputs: Tensor, exact: Tensor, design: MaskDesign, samples: int) -> float:
    """Root mean squared distance of the sampled mean from the exact one, over several banks."""
    squares = []
    for seed in range(SMALL_BANKS):
        ensemble = SubnetworkEnsemble(network, (28, 28), samples=samples, seed=seed, design=design)
        squares.append((strategies.mc_dropout(ensemble).summarise(inputs).mean - exact).square().mean())
    return math.sqrt(float(torch.stack(squares).mean()))
