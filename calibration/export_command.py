"""``python -m calibration export``: a bundle as an ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from calibration.subnetworks import NoActiveDropoutError, UnsupportedNetworkError
from models import bundle as bundles
from training.options import network_option

__all__ = ["export_command"]

EXPORTED = ("mc_dropout", "weight_scaling")


@click.command("export")
@click.argument("bundle_name", metavar="BUNDLE")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The model: a name that ends in .onnx. An earlier file is replaced.",
)
@click.option("--strategy", type=click.Choice(EXPORTED), default=EXPORTED[0], show_default=True)
@click.option(
    "--samples", type=click.IntRange(2, 1024), help="Sub-networks. Default: as many as BUNDLE was calibrated with."
)
@click.option(
    "--masks",
    type=click.Choice(["constants", "inputs"]),
    default="constants",
    show_default=True,
    help="Whether the sub-networks are part of the model, or come with each request.",
)
@network_option
def export_command(*, bundle_name: str, out: Path, **options: Any) -> None:
    """Write BUNDLE as an ONNX model: pixels in, calibrated probabilities and uncertainties out.

    The model is run once by onnxruntime, and nothing is written unless it answers as BUNDLE does, within 1e-4. Needs
    the extra: pip install 'dropout-uncertainty[onnx]'.
    """
    if out.suffix.lower() != ".onnx":
        raise click.BadParameter(f"{out} should end in .onnx", param_hint="'--out'")
    bundle = bundles.load(bundle_name)
    try:
        from calibration.onnx_export import ExportError, export  # noqa: PLC0415  (an extra; takes seconds to import)
    except ImportError as error:
        raise click.ClickException(
            f"{error.name} is not installed; run `pip install 'dropout-uncertainty[onnx]'`"
        ) from error
    try:
        difference = export(bundle, out, **options)
    except (ExportError, UnsupportedNetworkError, NoActiveDropoutError) as error:
        raise click.ClickException(str(error)) from error
    size = out.stat().st_size
    click.echo(f"Wrote {out}, {size:,} bytes; its outputs differ by at most {difference:.1g} from {bundle_name}'s.")
