"""How good the estimates are: Monte Carlo error by mask design, and all that is said about it.

On the shipped network and the first test images; the truth is the mean over 20,000 other sub-networks.

    python -m benchmarks.variance
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import figures, machine
from calibration.adaptive import predict_adaptively
from calibration.masks import DESIGNS
from calibration.moments import propagate_moments
from calibration.predictive import PredictiveDistribution
from calibration.strategies import mc_dropout, moment_propagation
from calibration.subnetworks import SubnetworkEnsemble
from models import bundle as bundles
from models import storage
from models.command_line import progress_bar, run
from models.records import MaskDesign
from training import data

RESULTS = Path(__file__).parent / "results" / "variance.json"
FIGURE = Path(__file__).parents[1] / "docs" / "variance.png"
SHAPE = (28, 28)
IMAGES = 300
TRUTH = 20_000
SAMPLES = (16, 24, 28, 32, 64, 128, 256, 1024)
DRAWS = 2_400
"""Sub-networks drawn for each design and number of samples, in as many banks as that makes; 24 at least."""
CHECKED = (16, 64)


class Study:
    """The network, the images, and the truth about them."""

    def __init__(self, bundle: bundles.Bundle, test: data.LabelledImages) -> None:
        self.network = bundle.network
        self.everything = bundle.prepare(test.pixels)
        self.inputs = self.everything[:IMAGES]
        banks = (self.ensemble("independent", 1000, 10_000 + part) for part in range(TRUTH // 1000))
        self.logits = torch.cat([bank.logits(self.inputs) for bank in banks])
        self.truth = PredictiveDistribution.from_logits(self.logits)

    def ensemble(
        self, design: MaskDesign, samples: int, seed: int, replicates: int | None = None
    ) -> SubnetworkEnsemble:
        return SubnetworkEnsemble(self.network, SHAPE, samples=samples, seed=seed, design=design, replicates=replicates)

    def draws(
        self, design: MaskDesign, samples: int, replicates: int | None = None
    ) -> Iterator[PredictiveDistribution]:
        """The predictive distribution by one bank after another."""
        for seed in range(max(24, DRAWS // samples)):
            ensemble = self.ensemble(design, samples, seed, replicates)
            yield PredictiveDistribution.from_logits(ensemble.logits(self.inputs), 1.0, ensemble.bank.replicates)

    def error(self, design: MaskDesign, samples: int, replicates: int | None = None) -> float:
        """Mean squared error of the predictive mean, over images, classes and banks, less that of the truth itself."""
        errors = [(draw.mean - self.truth.mean).square().mean() for draw in self.draws(design, samples, replicates)]
        return float(torch.stack(errors).mean() - self.truth.standard_error.square().mean())

    def intervals(self, design: MaskDesign, samples: int) -> dict[str, Any]:
        """Coverage of nominal 95 % intervals, and the bias of mutual information."""
        top = self.truth.mean.argmax(1, keepdim=True)
        unsure = self.truth.mean.amax(1) < 0.9
        middle = (self.truth.mean > 0.05) & (self.truth.mean < 0.95)
        hits, variances, errors, plain, corrected = [], [], [], [], []
        for draw in self.draws(design, samples):
            low, high = draw.confidence_interval(0.95)
            hits.append((low <= self.truth.mean) & (self.truth.mean <= high))
            variances.append(draw.standard_error.square())
            errors.append((draw.mean - self.truth.mean).square())
            plain.append(draw.mutual_information.mean())
            corrected.append(draw.mutual_information_jackknife.mean())
        hit = torch.stack(hits).double()
        truth = float(self.truth.mutual_information.mean())
        return {
            "design": design,
            "samples": samples,
            "coverage_top_class_of_unsure_images": float(hit.gather(2, top.expand(len(hit), -1, -1))[:, unsure].mean()),
            "coverage_probabilities_between_5_and_95_percent": float(hit[:, middle].mean()),
            "coverage_all": float(hit.mean()),
            "standard_error_to_root_mean_square_error": float(
                (torch.stack(variances).mean() / torch.stack(errors).mean()).sqrt()
            ),
            "mutual_information": truth,
            "bias": float(torch.stack(plain).mean()) - truth,
            "bias_jackknife": float(torch.stack(corrected).mean()) - truth,
        }

    def adaptive(self) -> dict[str, Any]:
        """Agreement with the top class by 1,024 other sub-networks, on all test images: adaptive, and for fixed T."""
        ensemble = self.ensemble("independent", 1024, 0)
        reference = mc_dropout(self.ensemble("orthogonal", 1024, 99)).summarise(self.everything).mean.argmax(1)
        own = mc_dropout(ensemble).summarise(self.everything).mean.argmax(1)
        found = predict_adaptively(ensemble, self.everything)
        top = found.summary.mean.argmax(1)
        fixed: dict[str, dict[str, float]] = {}
        for design in ("independent", "orthogonal"):
            votes = self.ensemble(design, 1024, 0)
            sums = torch.zeros(len(self.everything), 10)
            fixed[design] = {}
            whole: list[tuple[int, Tensor]] = []
            for start in range(0, 1024, 64):
                for first in range(0, len(self.everything), 1000):
                    part = self.everything[first : first + 1000]
                    sums[first : first + 1000] += votes.logits(part, slice(start, start + 64)).softmax(-1).sum(0)
                whole.append((start + 64, sums.argmax(1)))
            for samples, classes in whole:
                fixed[design][str(samples)] = float((classes == whole[-1][1]).double().mean())
        return {
            "mean_samples": float(found.samples.double().mean()),
            "settled": float(found.settled.double().mean()),
            "agreement_of_settled_with_the_same_1024": float((top == own)[found.settled].double().mean()),
            "agreement_of_settled_with_other_1024": float((top == reference)[found.settled].double().mean()),
            "agreement_of_1024_with_other_1024": float((own == reference).double().mean()),
            "agreement_by_fixed_samples_with_the_same_1024": fixed,
        }

    def strategies(self) -> dict[str, float]:
        """Correlation with the truth of what each strategy says of the variance over sub-networks."""
        moments = propagate_moments(self.network, SHAPE)(self.inputs)
        variance = moments.covariance.diagonal(dim1=1, dim2=2)
        probabilities = self.truth.members.var(0)
        by_points = moment_propagation(self.network, SHAPE)(self.inputs)
        sampled = PredictiveDistribution.from_logits(self.ensemble("orthogonal", 64, 0).logits(self.inputs))
        return {
            "moment_propagation_variance_of_logits": _correlation(variance, self.logits.var(0)),
            "moment_propagation_variance_of_probabilities": _correlation(by_points.members.var(0), probabilities),
            "moment_propagation_variance_of_probabilities_ratio": float(
                by_points.members.var(0).sum() / probabilities.sum()
            ),
            "mc_dropout_64_variance_of_probabilities": _correlation(sampled.members.var(0), probabilities),
        }


def _correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten().double(), second.flatten().double()]))[0, 1])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@torch.inference_mode()
def main() -> None:
    """Measure the Monte Carlo error of each mask design, and check what is said about it."""
    study = Study(bundles.load("mlp"), data.load_test())
    errors: list[dict[str, Any]] = []
    with progress_bar("measurements") as progress:
        one_block: list[tuple[MaskDesign, int | None]] = [("latin_hypercube", 1), ("orthogonal", 1)]
        kinds: list[tuple[MaskDesign, int | None]] = [*((design, None) for design in DESIGNS), *one_block]
        task = progress.add_task("Measuring", total=len(kinds) * len(SAMPLES) + len(DESIGNS) * len(CHECKED) + 2)
        for design, replicates in kinds:
            for samples in SAMPLES:
                errors.append({
                    "design": design,
                    "replicates": study.ensemble(design, samples, 0, replicates).bank.replicates,
                    "one_block": replicates == 1,
                    "samples": samples,
                    "squared_error": study.error(design, samples, replicates),
                })  # fmt: skip
                progress.advance(task)
        intervals = []
        for design in DESIGNS:
            for samples in CHECKED:
                intervals.append(study.intervals(design, samples))
                progress.advance(task)
        adaptive = study.adaptive()
        progress.advance(task)
        strategies = study.strategies()
        progress.advance(task)
    result = {
        "machine": machine.describe(),
        "images": IMAGES,
        "truth_samples": TRUTH,
        "rows": errors,
        "intervals": intervals,
        "adaptive": adaptive,
        "strategies": strategies,
    }
    storage.write_text(RESULTS, json.dumps(result, indent=1) + "\n")
    storage.write_bytes(FIGURE, figures.error_by_samples(errors))
    _print(errors)
    Console().print_json(data={"intervals": intervals, "strategies": strategies})


def _print(errors: list[dict[str, Any]]) -> None:
    plain = {row["samples"]: row["squared_error"] for row in errors if row["design"] == "independent"}
    table = Table(title="Squared error of independent masks over that of the design, same number of sub-networks")
    table.add_column("design")
    for samples in SAMPLES:
        table.add_column(str(samples), justify="right")
    lines: dict[str, list[str]] = {}
    for row in errors:
        name = row["design"] + (", one block" if row["one_block"] else "")
        lines.setdefault(name, []).append(f"{plain[row['samples']] / row['squared_error']:.2f}")
    for name, gains in lines.items():
        table.add_row(name, *gains)
    Console().print(table)


if __name__ == "__main__":
    run(main, "python -m benchmarks.variance", data.DataError)
