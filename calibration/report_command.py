"""``python -m calibration report``: compare bundles' test-time strategies, as a page and as data."""

from __future__ import annotations

import shlex
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from calibration import report as calibration_report
from calibration.data_options import measured_data_options, measured_on, path_option
from calibration.material import Material
from calibration.progress import calibrate_with_progress
from models import bundle as bundles
from models import storage
from models.command_line import error_console, progress_bar
from training import bundling
from training.options import chosen_engine, engine_options, network_option

__all__ = ["report_command"]


@click.command("report")
@click.argument("bundle_names", metavar="BUNDLE...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the report; an earlier report there is replaced.",
)
@click.option(
    "--ensembles",
    type=click.Path(file_okay=False, path_type=Path),
    default=bundling.ENSEMBLES,
    show_default=True,
    help="Folder with a deep ensemble for each bundle, in a folder of the bundle's name: see `training ensemble`.",
)
@click.option("--images", type=click.IntRange(min=100), help="Measure on so many images alone, for a quick look.")
@click.option(
    "--cache",
    "cache_folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps predictions between runs.  [default: dropout-uncertainty in the user's cache folder]",
)
@click.option("--no-cache", is_flag=True, help="Keep no predictions, and use none that were kept.")
@click.option("--attach", is_flag=True, help="Store the page in each BUNDLE too, where the service finds it.")
@measured_data_options
@path_option(
    "--train-data",
    "train_path",
    text="For an uncalibrated BUNDLE that was trained elsewhere: labelled images that it was trained on, for novelty.",
)
@path_option(
    "--outliers",
    "foreign",
    multiple=True,
    text="Images out of distribution, as `score` takes them, beside those that are there anyway: a set of that name.",
)
@engine_options
@network_option
def report_command(
    *, bundle_names: tuple[str, ...], out: Path, ensembles: Path, images: int | None, cache_folder: Path | None,
    no_cache: bool, attach: bool, data_path: Path | None, calibration_path: Path | None, train_path: Path | None,
    foreign: tuple[Path, ...], engine_name: str, address: str | None,
) -> None:  # fmt: skip
    """Compare each BUNDLE's test-time strategies: report.json, a self-contained report.html, and the figures.

    Measured on Fashion-MNIST's 10,000 test images, or on --data for what was trained elsewhere; on those shifted, and
    on images out of distribution. An uncalibrated bundle is calibrated for the report, but not modified.
    """
    loaded = [bundles.load(name) for name in bundle_names]
    if attach and not all(bundle.calibration for bundle in loaded):
        raise click.UsageError(
            "--attach is for calibrated bundles: run `python -m calibration fit` first", click.get_current_context()
        )
    names = [bundle.card.name for bundle in loaded]
    if len({calibration_report.slug(name) for name in names}) < len(names):
        raise click.UsageError(
            f"two bundles have the same name, but for signs: {', '.join(names)}", click.get_current_context()
        )
    chosen = chosen_engine(engine_name, address)
    # On this machine torch's threads are as good as processes.
    engine = None if engine_name == "local" else chosen
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(storage.new_folder(out, replaceable=calibration_report.FILES))
            kept: Path | None = cache_folder or calibration_report.default_folder()
            if no_cache:
                kept = None if engine is None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            cache = calibration_report.PredictionCache(kept)
            material = measured_on(
                loaded, data_path, calibration_path, train_path=train_path, foreign=foreign, images=images
            )
            subjects = [_subject(bundle, material, ensembles) for bundle in loaded]
            with progress_bar("images") as progress:
                total = sum(calibration_report.work(subject, material) for subject in subjects)
                ahead = progress.add_task(f"Predicting on {engine_name}", total=None, visible=engine is not None)
                task = progress.add_task("Measuring", total=total)
                report = calibration_report.measure(
                    subjects, material, cache=cache, engine=engine,
                    on_images=lambda count: progress.advance(task, count),
                    on_ahead=lambda done, all_of_it: progress.update(ahead, completed=done, total=all_of_it),
                    on_failure=lambda reason: progress.console.print(f"Predicted here instead: {reason}", markup=False),
                )  # fmt: skip
            with error_console().status("Drawing"):
                calibration_report.write(report, material, folder)
    except FileExistsError as error:
        raise click.ClickException(f"{error}; choose another --out") from error
    cache.prune()
    if attach:
        page = (out / "report.html").read_text()
        for bundle in loaded:
            bundles.attach_report(bundle, page)
    for name, reason in material.missing.items():
        click.echo(f"Missing from the report: {name}: {reason}", err=True)
    click.echo(f"Wrote {out / 'report.html'} and {out / 'report.json'}.")


def _subject(bundle: bundles.Bundle, material: Material, ensembles: Path) -> calibration_report.Subject:
    """The bundle with what the report needs beside it; what is not there is added to what is missing."""
    fitted = bundle.calibration is None or bundle.scores is None
    if bundle.calibration is not None and bundle.scores is not None:
        calibration, scores = bundle.calibration, bundle.scores
    else:
        calibration, scores = calibrate_with_progress(
            bundle, material.calibration, material.train,
            on_no_density=lambda reason: material.missing.update({f"novelty of {bundle.card.name}": reason}),
        )  # fmt: skip
    folder = ensembles / bundle.card.name
    members = bundling.load_ensemble(folder, bundle.card)
    if len(members) < 2:
        members = ()
        material.missing[f"deep ensemble of {bundle.card.name}"] = f"no two networks in {folder}; " + (
            f"train them with `python -m training ensemble {shlex.quote(str(bundle.path))} "
            f"--out {shlex.quote(str(folder))}`"
            if bundle.card.data
            else f"import some that were trained as it was, from other seeds, as {folder / 'seed-1'} and so on"
        )
    return calibration_report.Subject(bundle, calibration, scores, fitted, members)
