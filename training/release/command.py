"""``python -m training release``: make the bundles that ship anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from models import bundle as bundles
from models import storage
from training import bundling, data, outliers
from training.options import data_option
from training.release.presets import PRESETS

__all__ = ["release_command"]

FOLDER = Path("runs/release")
DETECTED = ("mnist", "digits")
"""The sets out of distribution that the cards tell of; the reports have more."""


@click.command("release")
@click.argument("names", metavar="[BUNDLE]...", nargs=-1, type=click.Choice(list(PRESETS)))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
    show_default=True,
    help="Folder in which they are made; what is trained there already is kept.",
)
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=bundles.PRETRAINED,
    help="Folder of the bundles that ship, where those go that reach their floors.  [default: models/pretrained]",
)
@data_option
@click.pass_context
def release_command(
    context: click.Context, *, names: tuple[str, ...], out: Path, into: Path, data_folder: Path | None
) -> None:
    """Make the bundles that ship anew, all of them or each BUNDLE: train, calibrate, measure, write card and report.

    One that misses the floors in its card is left in --out, and not shipped.
    """
    # They take seconds to import.
    from calibration.report_command import report_command  # noqa: PLC0415
    from training.release.making import MakingError, make  # noqa: PLC0415
    from training.release.measure import unmet  # noqa: PLC0415

    splits = data.load(data_folder)
    found = outliers.load_outliers()
    sets = {name: found.sets[name] for name in DETECTED if name in found.sets}
    for name, reason in found.missing.items():
        click.echo(f"Warning: floors that need {name} are not looked at: {reason}", err=True)
    missed: list[str] = []
    for name in names or tuple(PRESETS):
        try:
            bundle = make(name, PRESETS[name], out, splits, sets)
        except MakingError as error:
            raise click.ClickException(str(error)) from error
        context.invoke(
            report_command, bundle_names=(str(bundle.path),), out=out / "reports" / name, ensembles=out / "ensembles",
            images=None, cache_folder=None, no_cache=False, attach=True, data_path=data_folder, calibration_path=None,
            train_path=None, foreign=(),
        )  # fmt: skip
        faults = list(unmet(bundle.card))
        missed += [f"{name}: {fault}" for fault in faults]
        if not faults:
            with storage.new_folder(into / name, replaceable=bundling.BUNDLE_FILES) as folder:
                shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
            figures = ", ".join(f"{key} {value:.4f}" for key, value in bundle.card.metrics.items())
            click.echo(f"Shipped {into / name}: {figures}")
    if missed:
        raise click.ClickException(f"not shipped, for they miss their floors: {'; '.join(missed)}")
