"""``python -m calibration``: fit a bundle's calibration, write its report, score images with it."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from calibration import comparison
from calibration import score as scoring
from calibration.data_options import FASHION, calibration_images, measured_data_options, measured_on, path_option
from calibration.export_command import export_command
from calibration.log_command import log_command
from calibration.masks import DEFAULT_DESIGN, DESIGNS
from calibration.prediction import DEFAULT_STRATEGIES, build_strategy
from calibration.progress import calibrate_with_progress
from calibration.report_command import report_command
from calibration.strategies import DEFAULT_SAMPLES, DEFAULT_SEED, STRATEGIES, Sampling
from calibration.subnetworks import NoActiveDropoutError, UnsupportedNetworkError
from models import bundle as bundles
from models.command_line import NameList, NumberList, progress_bar, run
from models.records import DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR, MaskDesign
from training import data, own_images
from training.options import network_option


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Calibrate dropout networks, and measure how to use them at test time.

    A BUNDLE is the name of one that ships with the project, or a folder.
    """


@main.command("fit")
@click.argument("bundle_name", metavar="BUNDLE")
@click.option(
    "--samples", type=click.IntRange(2, 1024), default=DEFAULT_SAMPLES, show_default=True, help="Sub-networks."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=DEFAULT_SEED, show_default=True, help="Of the sub-networks."
)
@click.option(
    "--design",
    type=click.Choice(DESIGNS),
    default=DEFAULT_DESIGN,
    show_default=True,
    help="How the sub-networks' masks depend on each other; independent is plain MC dropout.",
)
@path_option("--data", "data_path", text=f"{FASHION}labelled images that it was not trained on, as `score` takes them.")
@path_option(
    "--train-data",
    text="For a BUNDLE that was trained elsewhere: labelled images that it was trained on, for the novelty of others.",
)
@network_option
def fit_command(
    *, bundle_name: str, samples: int, seed: int, design: MaskDesign, data_path: Path | None, train_data: Path | None
) -> None:
    """Calibrate every test-time strategy on the bundle's calibration images, and store that in BUNDLE.

    One half of the images serves the temperatures, the other prediction sets and abstention.
    """
    bundle = bundles.load(bundle_name, calibrated=False)
    images, trained_on = calibration_images(bundle, data_path, train_data)
    calibration, scores = calibrate_with_progress(
        bundle, images, trained_on, Sampling(samples, seed, design),
        on_no_density=lambda reason: click.echo(f"Warning: no novelty: {reason}", err=True),
    )  # fmt: skip
    bundles.save_calibration(bundle, calibration, scores)
    for name, record in calibration.strategies.items():
        click.echo(
            f"{name:18s} temperature {record.scaling.temperature:.3f} ({record.scaling.order.replace('_', ' ')})  "
            f"NLL {record.nll_before:.4f} -> {record.nll_after:.4f}"
        )


@main.command("compare")
@click.argument("bundle_name", metavar="BUNDLE")
@click.option("--strategies", "chosen", type=NameList(STRATEGIES), help="Default: all that the network allows.")
@click.option("--samples", type=NumberList(int), help="Numbers of sub-networks.  [default: the calibration's]")
@click.option("--design", type=click.Choice(DESIGNS), help="Of the masks.  [default: the calibration's]")
@click.option("--images", type=click.IntRange(min=100), help="Measure on so many images alone, for a quick look.")
@measured_data_options
@network_option
def compare_command(
    *, bundle_name: str, chosen: tuple[str, ...] | None, samples: tuple[int, ...] | None, design: MaskDesign | None,
    images: int | None, data_path: Path | None, calibration_path: Path | None,
) -> None:  # fmt: skip
    """A quick table of BUNDLE's test-time strategies on the test images; each way gets a temperature of its own."""
    bundle = bundles.load(bundle_name)
    if samples and not all(2 <= number <= 1024 for number in samples):
        raise click.UsageError("--samples must lie between 2 and 1024", click.get_current_context())
    material = measured_on([bundle], data_path, calibration_path, images=images)
    with progress_bar("ways") as progress:
        rows = list(comparison.compare(
            bundle, material.calibration, material.test, chosen=chosen, samples=samples, design=design,
            on_start=lambda ways: progress.add_task("Comparing", total=ways),
            on_way=lambda: progress.advance(progress.task_ids[0]),
        ))  # fmt: skip
    # A table that is cut to a narrow terminal says nothing.
    console = Console(width=max(Console().width, 80))
    console.print(comparison.as_table(bundle.card.name, len(material.test), rows))


@main.command("score")
@click.argument("bundle_name", metavar="BUNDLE")
@click.argument("source", metavar="IMAGES", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The table: a name that ends in .parquet or .csv. An earlier file is replaced.",
)
@click.option(
    "--strategy",
    "strategy_name",
    type=click.Choice(STRATEGIES),
    help=f"Default: the first of {', '.join(DEFAULT_STRATEGIES)} that the network allows.",
)
@click.option(
    "--samples", type=click.IntRange(2, 1024), help="Sub-networks. Default: as many as BUNDLE was calibrated with."
)
@click.option(
    "--coverage",
    type=click.FloatRange(0.5, 0.999),
    default=DEFAULT_COVERAGE,
    show_default=True,
    help="How often a prediction set shall hold the true class.",
)
@click.option(
    "--target-error",
    type=click.FloatRange(0.001, 0.5),
    default=DEFAULT_TARGET_ERROR,
    show_default=True,
    help="The fraction of wrong ones among the answers that are not abstained from.",
)
@network_option
def score_command(
    *, bundle_name: str, source: Path, out: Path, strategy_name: str | None, samples: int | None, coverage: float,
    target_error: float,
) -> None:  # fmt: skip
    """Write BUNDLE's answers for your own IMAGES into a table, the same as those over HTTP.

    IMAGES is a folder of PNG, JPEG, WebP or BMP pictures, which may lie in one subfolder for each class; or an .npz
    file with an array `images`, of the shape and range in BUNDLE's card (those that ship: [N, 28, 28] or [N, 784] in
    0..255, white on black), and `labels` if there are any.
    """
    if out.suffix.lower() not in scoring.SUFFIXES:
        raise click.BadParameter(f"{out} should end in {' or '.join(scoring.SUFFIXES)}", param_hint="'--out'")
    bundle = bundles.load(bundle_name)
    strategy = build_strategy(bundle, strategy_name, samples)
    with progress_bar("images") as progress:
        task = progress.add_task("Reading", total=None)
        images = own_images.read(
            source,
            bundle.card.classes,
            bundle.card.input,
            on_pictures=lambda done, total: progress.update(task, completed=done, total=total),
        )
        progress.reset(task, description=f"Scoring by {strategy.name}", total=len(images))
        scores = scoring.score(
            bundle, strategy, images, out, coverage=coverage, target_error=target_error,
            on_images=lambda done: progress.advance(task, done),
        )  # fmt: skip
    accuracy = "" if scores.accuracy is None else f", accuracy {scores.accuracy:.4f}"
    click.echo(
        f"Images scored: {scores.images:,}, mean confidence {scores.mean_confidence:.4f}{accuracy}. Wrote {out}."
    )


main.add_command(export_command)
main.add_command(log_command)
main.add_command(report_command)


if __name__ == "__main__":
    run(main, "python -m calibration", data.DataError, UnsupportedNetworkError, NoActiveDropoutError)
