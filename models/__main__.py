"""``python -m models BUNDLE``: verify a bundle."""

from __future__ import annotations

import click

from models import bundle
from models.command_line import run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle_name", metavar="BUNDLE")
def main(*, bundle_name: str) -> None:
    """Verify BUNDLE, the name of one that ships or a folder, and say what it is."""
    loaded = bundle.load(bundle_name)
    calibrated = "not calibrated"
    if loaded.calibration:
        calibrated = f"calibrated for {', '.join(loaded.calibration.strategies)}"
    click.echo(
        f"{loaded.path}: {loaded.card.name}, version {loaded.version}, {loaded.card.network.name} with "
        f"{loaded.card.network.parameters:,} parameters, {calibrated}"
    )


if __name__ == "__main__":
    run(main, "python -m models")
