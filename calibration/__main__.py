"""``python -m calibration``: fit a bundle's calibration, write its report, score images with it."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from calibration import comparison
from calibration.data_options import FASHION, calibration_images, measured_data_options, measured_on, path_option
from calibration.export_command import export_command
from calibration.log_command import log_command
from calibration.masks import DEFAULT_DESIGN, DESIGNS
from calibration.progress import calibrate_with_progress
from calibration.report_command import report_command
from calibration.score_command import score_command
from calibration.strategies import DEFAULT_SAMPLES, DEFAULT_SEED, STRATEGIES, Sampling
from calibration.subnetworks import NoActiveDropoutError, UnsupportedNetworkError
from models import bundle as bundles
from models.command_line import NameList, NumberList, progress_bar, run
from models.records import MaskDesign
from training import data
from training.engines import EngineError
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


main.add_command(export_command)
main.add_command(log_command)
main.add_command(report_command)
main.add_command(score_command)


if __name__ == "__main__":
    run(main, "python -m calibration", data.DataError, EngineError, UnsupportedNetworkError, NoActiveDropoutError)
