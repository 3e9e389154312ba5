"""``python -m models``: verify a bundle; make one of a network that was trained elsewhere."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from models import bundle
from models.command_line import NumberList, run
from models.networks import own
from models.records import InputRecord, first_fault
from training.options import Argument, network_option


class _Commands(click.Group):
    """Takes what is no command for a bundle to verify."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["verify", *args])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Look after bundles. `python -m models BUNDLE` is short for `verify`."""


@main.command("verify")
@click.argument("bundle_name", metavar="BUNDLE")
@network_option
def verify_command(*, bundle_name: str) -> None:
    """Verify BUNDLE, the name of one that ships or a folder, and say what it is."""
    loaded = bundle.load(bundle_name)
    calibrated = "not calibrated"
    if loaded.calibration:
        calibrated = f"calibrated for {', '.join(loaded.calibration.strategies)}"
    click.echo(
        f"{loaded.path}: {loaded.card.name}, version {loaded.version}, {loaded.card.network.name} with "
        f"{loaded.card.network.parameters:,} parameters, {calibrated}"
    )


@main.command("import")
@click.argument("network_name", metavar="NETWORK")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Its state_dict, as a safetensors file.",
)
@click.option(
    "--argument", "-a", "arguments", type=Argument(), multiple=True, help="Any argument of NETWORK: name=value."
)
@click.option(
    "--classes", required=True, help="Names of the outputs, separated by commas; or a text file with one in each line."
)
@click.option(
    "--shape", type=NumberList(int), required=True, help="Of one image: height,width or channels,height,width."
)
@click.option(
    "--outputs",
    type=click.Choice(["logits", "log_probabilities", "probabilities"]),
    required=True,
    help="What the network returns. It is not guessed.",
)
@click.option(
    "--maximum", type=click.FloatRange(min=0, min_open=True), default=255.0, show_default=True, help="Of pixels."
)
@click.option("--mean", type=NumberList(float), default="0", show_default=True, help="Taken from pixel / maximum.")
@click.option("--std", type=NumberList(float), default="1", show_default=True, help="Divides what is left.")
@click.option(
    "--light-on-dark",
    is_flag=True,
    help="The network knows grey pictures of light things on dark: those with a light border are inverted.",
)
@click.option("--name", help="The bundle's name.  [default: the folder's]")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the new bundle."
)
def import_command(
    *, network_name: str, weights: Path, arguments: tuple[tuple[str, Any], ...], classes: str, shape: tuple[int, ...],
    outputs: Any, maximum: float, mean: tuple[float, ...], std: tuple[float, ...], light_on_dark: bool,
    name: str | None, out: Path,
) -> None:  # fmt: skip
    """Make a bundle of a network that was trained elsewhere.

    NETWORK is PACKAGE.MODULE:FACTORY, code of your own that makes a torch.nn.Module, or one of the project's networks.
    Its dropout must be there, active and such that it can be sampled; the engine is held against the sub-networks run
    one by one. --mean and --std are one number, or one for each channel.
    """
    # They import torch and what measures, which takes seconds.
    from calibration.importing import ImportFailedError, import_network  # noqa: PLC0415
    from calibration.sites import NoActiveDropoutError, UnsupportedNetworkError  # noqa: PLC0415

    listed = _class_names(classes)
    try:
        inputs = InputRecord(
            shape=shape, mean=_one_or_all(mean), std=_one_or_all(std), maximum=maximum, light_on_dark=light_on_dark
        )
        made, layers = import_network(
            network_name, weights, out, arguments=dict(arguments), classes=listed,
            inputs=inputs, outputs=outputs, bundle_name=name or out.absolute().name,
        )  # fmt: skip
    except ValidationError as error:
        raise click.UsageError(first_fault(error), click.get_current_context()) from error
    except FileExistsError as error:
        raise click.ClickException(f"{error}; choose another --out") from error
    except (ValueError, ImportFailedError, NoActiveDropoutError, UnsupportedNetworkError) as error:
        raise click.ClickException(str(error)) from error
    sampled = ", ".join(f"{site} ({layer.kind}, rate {layer.rate:g})" for site, layer in layers.items())
    click.echo(f"Dropout: {sampled}.")
    trust = f" --network {network_name}" if own.is_own(network_name) else ""
    click.echo(
        f"Wrote {out}, version {made.version}. Calibrate it: python -m calibration fit {out}{trust} --data IMAGES"
    )


def _class_names(given: str) -> list[str]:
    """Those in the file of that name, if it is one; else those that are listed."""
    try:
        listed = Path(given).read_text("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{given} is not written in UTF-8: {error}", param_hint="'--classes'") from error
    except OSError:  # No file, or a list that is too long to be the name of one.
        listed = given.split(",")
    return [unicodedata.normalize("NFC", name.strip()) for name in listed]


def _one_or_all(values: tuple[float, ...]) -> float | tuple[float, ...]:
    return values[0] if len(values) == 1 else values


if __name__ == "__main__":
    run(main, "python -m models")
