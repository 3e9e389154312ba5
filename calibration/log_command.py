"""``python -m calibration log``: the service's log of its predictions, as a table and summed up."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click
import pyarrow as pa
from rich.console import Console

from calibration import request_log
from calibration.score import SUFFIXES, new_table
from models import bundle as bundles
from models.command_line import error_console

__all__ = ["log_command"]

TABLE_WIDTH = 100


@click.command("log")
@click.argument("folder", metavar="FOLDER", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all predictions into a table too: a name that ends in .parquet or .csv. An earlier file is replaced.",
)
@click.option(
    "--bundle",
    "bundle_name",
    metavar="BUNDLE",
    help="Compare the uncertainties of what BUNDLE answered with those of its calibration images.",
)
def log_command(*, folder: Path, out: Path | None, bundle_name: str | None) -> None:
    """Sum up the predictions that the service logged in FOLDER: how many, how certain, how often it abstained.

    Lines that are no whole record are counted and left out.
    """
    if out and out.suffix.lower() not in SUFFIXES:
        raise click.BadParameter(f"{out} should end in {' or '.join(SUFFIXES)}", param_hint="'--out'")
    bundle = bundles.load(bundle_name) if bundle_name else None
    if bundle and bundle.scores is None:
        raise click.ClickException(
            f"{bundle_name} is not calibrated; calibrate it with `python -m calibration fit {bundle_name}`"
        )
    try:
        reader = request_log.Reader(folder)
        table = _read(reader, out)
    except request_log.RequestLogError as error:
        raise click.ClickException(str(error)) from error
    if reader.broken:
        click.echo(f"Lines left out, as they are no whole records: {reader.broken:,}; {reader.first_broken}", err=True)
    summary = request_log.summarise(table)
    click.echo(
        f"Predictions: {summary.images:,}, {summary.first:%Y-%m-%d %H:%M:%S} to {summary.last:%Y-%m-%d %H:%M:%S}."
    )
    # Tables that are cut to a narrow terminal say nothing.
    console = Console(width=max(Console().width, TABLE_WIDTH))
    for shown in request_log.summary_tables(summary):
        console.print()
        console.print(shown)
    if bundle:
        found = request_log.compare(table, bundle)
        console.print()
        if found:
            console.print(request_log.drift_table(f"{bundle.card.name} {bundle.version}", found))
        else:
            click.echo(
                f"Nothing to compare: no prediction is by {bundle.card.name} {bundle.version} as it was calibrated."
            )
    if out:
        click.echo(f"\nWrote {out}.")


def _read(reader: request_log.Reader, out: Path | None) -> pa.Table:
    """All records without what takes most memory; they are written to ``out`` with it."""
    kept = []
    with new_table(out, request_log.SCHEMA) if out else nullcontext() as write, error_console().status("Reading"):
        for table in reader:
            if write:
                write(table)
            kept.append(table.drop_columns(["id", "pixels"]))
        if not kept:
            where = f"; lines that are no whole records: {reader.broken:,}" if reader.broken else ""
            raise request_log.RequestLogError(f"the log holds no predictions{where}")
    return pa.concat_tables(kept)
