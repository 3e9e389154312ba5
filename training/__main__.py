"""``python -m training``: get the data, train a network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from torch import nn

from models import bundle, networks, storage
from models.command_line import NumberList, error_console, progress_bar, run
from training import data
from training.curves import save_curves
from training.fit import DivergedError, EpochRecord, Fitted, Recipe, evaluate, fit
from training.options import MAX_SEED, data_option

HISTORY, CURVES = "history.json", "curves.png"
BUNDLE_FILES = (bundle.WEIGHTS, bundle.CARD, bundle.CALIBRATION, HISTORY, CURVES)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Train dropout-regularised Fashion-MNIST classifiers."""


@main.command("data")
@data_option
def data_command(data_folder: Path | None) -> None:
    """Find or fetch Fashion-MNIST, and verify it."""
    with error_console().status(f"Finding or fetching {data.NAME}"):
        root = data.fetch(data_folder)
    click.echo(f"{data.NAME}: 60,000 training and 10,000 test images, checksums verified, in {root}")


@main.command("fit")
@click.argument("network_name", metavar="NETWORK", type=click.Choice(list(networks.NETWORKS)))
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    default=0.001,
    show_default=True,
    help="Adam's learning rate.",
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
    help="Rates for the input and each hidden layer, for YourDropoutModel.",
)
@click.option("--hidden-widths", type=NumberList(int), help="Sizes of the hidden layers, for YourDropoutModel.")
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
@data_option
def fit_command(
    *,
    network_name: str, epochs: int, lr: float, batch_size: int, seed: int, dropout: tuple[float, ...] | None,
    hidden_widths: tuple[int, ...] | None, early_stopping: bool, patience: int, split_seed: int, name: str | None,
    out: Path, overwrite: bool, data_folder: Path | None,
) -> None:  # fmt: skip
    """Train NETWORK and write a bundle: weights, card, history and curves.

    The test images are looked at once, at the end, for the card.
    """
    chosen = {"dropout": dropout, "hidden_widths": hidden_widths}
    arguments = {key: list(value) for key, value in chosen.items() if value is not None}
    try:
        network = networks.build(network_name, arguments, seed=seed)
        recipe = Recipe(epochs, lr, batch_size, seed, early_stopping, patience)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error
    try:
        with storage.new_folder(out, replaceable=BUNDLE_FILES if overwrite else ()) as folder:
            splits = data.load(data_folder, split_seed=split_seed)
            record = bundle.InputRecord()
            diverged = None
            try:
                fitted = _fit_with_progress(network, splits, recipe, record, network_name)
            except DivergedError as error:
                if not error.fitted.history:
                    raise
                diverged, fitted = error, error.fitted
            network_record = bundle.NetworkRecord(
                name=network_name,
                arguments=arguments,
                parameters=sum(p.numel() for p in network.parameters()),
            )
            card = _card(
                name=name or out.absolute().name,
                network_record=network_record,
                network=network,
                splits=splits,
                recipe=recipe,
                fitted=fitted,
                record=record,
            )
            bundle.write(folder, network, card)
            history = {"recipe": asdict(recipe), **asdict(fitted)}
            storage.write_text(folder / HISTORY, json.dumps(history, indent=2) + "\n")
            save_curves(fitted.history, fitted.best_epoch, network_name, folder / CURVES)
    except FileExistsError as error:
        hint = "" if overwrite else "; choose another --out, or replace a bundle with --overwrite"
        raise click.ClickException(f"{error}{hint}") from error
    if diverged:
        raise click.ClickException(
            f"{diverged}; the weights of epoch {fitted.best_epoch} are kept in {out}. A lower --lr may help"
        )
    if fitted.stopped == "early":
        click.echo(f"Stopped early after epoch {len(fitted.history)}; restored epoch {fitted.best_epoch}.")
    elif fitted.best_epoch < len(fitted.history):
        click.echo(f"Restored epoch {fitted.best_epoch} of {len(fitted.history)}, the best by validation loss.")
    click.echo(f"Test accuracy {card['metrics']['test_accuracy']:.4f}. Wrote {out}.")


def _fit_with_progress(
    network: nn.Module,
    splits: data.FashionMNISTSplits,
    recipe: Recipe,
    record: bundle.InputRecord,
    title: str,
) -> Fitted:
    with progress_bar("images") as progress:
        task = progress.add_task(title, total=recipe.epochs * len(splits.train))

        def report(epoch: EpochRecord) -> None:
            progress.console.print(
                f"epoch {epoch.epoch:3d}/{recipe.epochs}  train loss {epoch.train_loss:.4f} accuracy "
                f"{epoch.train_accuracy:.4f}  validation loss {epoch.validation_loss:.4f} accuracy "
                f"{epoch.validation_accuracy:.4f}  {epoch.seconds:.2f} s",
            )

        return fit(
            network,
            splits.train,
            splits.validation,
            recipe,
            prepare=lambda pixels: bundle.normalise(pixels, record),
            on_batch=lambda images: progress.advance(task, images),
            on_epoch=report,
        )


def _card(
    *,
    name: str, network_record: bundle.NetworkRecord, network: nn.Module, splits: data.FashionMNISTSplits,
    recipe: Recipe, fitted: Fitted, record: bundle.InputRecord,
) -> dict[str, Any]:  # fmt: skip
    best = fitted.history[fitted.best_epoch - 1]
    test_loss, test_accuracy = evaluate(network, bundle.normalise(splits.test.pixels, record), splits.test.labels)
    return {
        "name": name,
        "network": network_record,
        "classes": data.CLASSES,
        "input": record,
        "training": bundle.TrainingRecord(
            optimizer="adam", **asdict(recipe), epochs_run=len(fitted.history), best_epoch=fitted.best_epoch,
            stopped=fitted.stopped,
        ),
        "data": bundle.DataRecord(
            name=data.NAME, sha256=data.CHECKSUMS, split_seed=splits.split_seed, train=len(splits.train),
            validation=len(splits.validation), calibration=len(splits.calibration),
        ),
        "metrics": {
            "validation_loss": best.validation_loss,
            "validation_accuracy": best.validation_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        },
        "versions": bundle.software_versions(),
    }  # fmt: skip


if __name__ == "__main__":
    run(main, "python -m training", data.DataError, DivergedError)
