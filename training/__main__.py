"""``python -m training``: get the data, train a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from models import networks, storage
from models.command_line import NumberList, error_console, run
from models.records import first_fault
from training import bundling, data, outliers, regularisers
from training.engines import EngineError
from training.ensemble_command import ensemble_command, train_ensemble
from training.fit import DivergedError, Recipe
from training.options import (
    MAX_SEED,
    Argument,
    chosen_engine,
    data_option,
    engine_options,
    recipe_options,
    recipe_parts,
)
from training.progress import train_with_progress
from training.release.command import release_command
from training.study.command import study_command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Train dropout-regularised Fashion-MNIST classifiers."""


@main.command("data")
@data_option
def data_command(data_folder: Path | None) -> None:
    """Find or fetch Fashion-MNIST, and verify it; MNIST too, which the calibration report can do without."""
    with error_console().status(f"Finding or fetching {data.NAME}"):
        root = data.fetch(data_folder)
    click.echo(f"{data.NAME}: 60,000 training and 10,000 test images, checksums verified, in {root}")
    try:
        with error_console().status("Finding or fetching MNIST"):
            path = outliers.fetch_mnist()
    except (data.DataError, OSError) as error:
        click.echo(f"Warning: the calibration report will lack MNIST as out-of-distribution images: {error}", err=True)
    else:
        click.echo(f"MNIST: 10,000 test images, checksum verified, in {path}")


@main.command("fit")
@click.argument("network_name", metavar="NETWORK", type=click.Choice(list(networks.NETWORKS)))
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    default=0.001,
    show_default=True,
    help="Adam's learning rate; the highest, if it is scheduled.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Of initial weights, order of examples, dropout.",
)
@click.option(
    "--dropout",
    type=NumberList(float),
    help="Rates for the input and each hidden layer, for YourDropoutModel and WideMLP.",
)
@click.option("--hidden-widths", type=NumberList(int), help="Sizes of the hidden layers, for the same.")
@click.option(
    "--argument",
    "-a",
    "others",
    type=Argument(),
    multiple=True,
    help="Any argument of the network; the value is JSON, or a word: batch_norm=before_dropout, channels=[16,32].",
)
@recipe_options
@click.option(
    "--early-stopping/--no-early-stopping",
    default=False,
    show_default=True,
    help="Stop when the validation loss no longer falls, and restore the best weights.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Epochs without a better validation loss before early stopping.",
)
@click.option(
    "--split-seed",
    type=click.IntRange(min=0),
    default=data.DEFAULT_SPLIT_SEED,
    show_default=True,
    help="Of the split into train, validation and calibration images.",
)
@click.option("--name", help="The bundle's name.  [default: the folder's]")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the new bundle."
)
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is there.")
@click.option(
    "--members",
    type=click.IntRange(min=2),
    help="Train so many more from the next seeds then, a deep ensemble, where `ensemble` puts them: in "
    f"{bundling.ENSEMBLES}/ and the bundle's name.",
)
@engine_options
@data_option
def fit_command(
    *,
    network_name: str, epochs: int, lr: float, batch_size: int, seed: int, dropout: tuple[float, ...] | None,
    hidden_widths: tuple[int, ...] | None, others: tuple[tuple[str, Any], ...], early_stopping: bool, patience: int,
    split_seed: int, name: str | None, out: Path, overwrite: bool, members: int | None, engine_name: str,
    address: str | None, data_folder: Path | None, **more: Any,
) -> None:  # fmt: skip
    """Train NETWORK and write a bundle: weights, card, history and curves.

    The test images are looked at once, at the end, for the card. An --engine is for --members.
    """
    if engine_name != "local" and not members:
        raise click.UsageError(
            "--engine is for --members; one network is trained on this machine", click.get_current_context()
        )
    engine = chosen_engine(engine_name, address)
    chosen = {"dropout": dropout, "hidden_widths": hidden_widths}
    arguments = {key: list(value) for key, value in chosen.items() if value is not None} | dict(others)
    try:
        network = networks.build(network_name, arguments)
        recipe = Recipe(
            epochs=epochs, learning_rate=lr, batch_size=batch_size, seed=seed, early_stopping=early_stopping,
            patience=patience, **recipe_parts(more),
        )  # fmt: skip
        if recipe.regularisation.activation_noise:
            regularisers.activations_of(network)
    except ValidationError as error:
        raise click.UsageError(first_fault(error), click.get_current_context()) from error
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        message = f"{network_name} can't be built with {given}: {error}"
        raise click.UsageError(message, click.get_current_context()) from error
    try:
        with storage.new_folder(out, replaceable=bundling.BUNDLE_FILES if overwrite else ()) as folder:
            splits = data.load(data_folder, split_seed=split_seed)
            trained = train_with_progress(
                folder, name=name or out.absolute().name, network_name=network_name, arguments=arguments, recipe=recipe,
                splits=splits,
            )  # fmt: skip
    except FileExistsError as error:
        hint = "" if overwrite else "; choose another --out, or replace a bundle with --overwrite"
        raise click.ClickException(f"{error}{hint}") from error
    fitted = trained.fitted
    if trained.diverged:
        raise click.ClickException(
            f"{trained.diverged}; the weights of epoch {fitted.best_epoch} are kept in {out}. A lower --lr may help"
        )
    if fitted.stopped == "early":
        click.echo(f"Stopped early after epoch {len(fitted.history)}; restored epoch {fitted.best_epoch}.")
    elif fitted.best_epoch < len(fitted.history):
        click.echo(f"Restored epoch {fitted.best_epoch} of {len(fitted.history)}, the best by validation loss.")
    click.echo(f"Test accuracy {trained.card.metrics['test_accuracy']:.4f}. Wrote {out}.")
    if members:
        train_ensemble(
            trained.card, members, bundling.ENSEMBLES / trained.card.name, splits,
            engine=None if engine_name == "local" else engine,
        )  # fmt: skip


main.add_command(ensemble_command)
main.add_command(release_command)
main.add_command(study_command)


if __name__ == "__main__":
    run(main, "python -m training", data.DataError, DivergedError, EngineError)
