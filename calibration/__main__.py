"""``python -m calibration``: fit a bundle's calibration, write its report."""

from __future__ import annotations

from pathlib import Path

import click

from calibration import report as calibration_report
from calibration.masks import DEFAULT_DESIGN, DESIGNS
from calibration.scaling import calibrate
from calibration.strategies import DEFAULT_SAMPLES, DEFAULT_SEED, applicable
from calibration.subnetworks import UnsupportedNetworkError
from models import bundle as bundles
from models import storage
from models.bundle import MaskDesign
from models.command_line import progress_bar, run
from training import data
from training.options import data_option


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
@data_option
def fit_command(*, bundle_name: str, samples: int, seed: int, design: MaskDesign, data_folder: Path | None) -> None:
    """Fit a temperature per test-time strategy on the bundle's calibration images, and store them in BUNDLE."""
    bundle = bundles.load(bundle_name)
    calibration = _calibrate(bundle, data_folder, samples, seed, design)
    bundles.save_calibration(bundle, calibration)
    for name, record in calibration.strategies.items():
        click.echo(
            f"{name:18s} temperature {record.temperature:.3f}  "
            f"NLL {record.nll_before:.4f} -> {record.nll_after:.4f} on {calibration.images:,} images"
        )


@main.command("report")
@click.argument("bundle_name", metavar="BUNDLE")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the report; an earlier report there is replaced.",
)
@data_option
def report_command(*, bundle_name: str, out: Path, data_folder: Path | None) -> None:
    """Compare BUNDLE's test-time strategies on the 10,000 test images: report.json and a self-contained report.html.

    An uncalibrated bundle is calibrated for the report, but not modified.
    """
    bundle = bundles.load(bundle_name)
    try:
        with storage.new_folder(out, replaceable=calibration_report.FILES) as folder:
            calibration = bundle.calibration or _calibrate(bundle, data_folder)
            test = data.load_test(data_folder)
            with progress_bar("images") as progress:
                strategies = applicable(bundle.network, bundle.card.input.shape)
                task = progress.add_task("Measuring", total=len(test) * len(strategies))
                measured = calibration_report.measure(
                    bundle, calibration, test, on_images=lambda images: progress.advance(task, images)
                )
            calibration_report.write(measured, test.pixels, folder)
    except FileExistsError as error:
        raise click.ClickException(f"{error}; choose another --out") from error
    click.echo(f"Wrote {out / 'report.html'} and {out / 'report.json'}.")


def _calibrate(
    bundle: bundles.Bundle,
    data_folder: Path | None,
    samples: int = DEFAULT_SAMPLES,
    seed: int = DEFAULT_SEED,
    design: MaskDesign = DEFAULT_DESIGN,
) -> bundles.Calibration:
    images = data.load(data_folder, split_seed=bundle.card.data.split_seed).calibration
    with progress_bar("strategies") as progress:
        task = progress.add_task("Calibrating", total=len(applicable(bundle.network, bundle.card.input.shape)))
        return calibrate(
            bundle, images, samples=samples, seed=seed, design=design, on_strategy=lambda _: progress.advance(task)
        )


if __name__ == "__main__":
    run(main, "python -m calibration", data.DataError, UnsupportedNetworkError)
