"""``python -m training ensemble``: a deep ensemble beside a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from models import bundle, storage
from models.records import Card
from training import bundling, data
from training.data import FashionMNISTSplits
from training.engines import Engine, TaskError
from training.members import train_members
from training.options import chosen_engine, data_option, engine_options
from training.progress import train_with_progress

__all__ = ["ensemble_command", "train_ensemble"]


@click.command("ensemble")
@click.argument("bundle_name", metavar="BUNDLE")
@click.option("--members", type=click.IntRange(min=2), default=5, show_default=True, help="Networks to train.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder of the members' bundles.  [default: {bundling.ENSEMBLES}/ and BUNDLE's name]",
)
@engine_options
@data_option
def ensemble_command(
    *, bundle_name: str, members: int, out: Path | None, engine_name: str, address: str | None,
    data_folder: Path | None,
) -> None:  # fmt: skip
    """Train a deep ensemble: networks as BUNDLE's, by its recipe, from other seeds.

    The calibration report sets it beside BUNDLE's sub-networks. Members that are in the folder already, from an earlier
    or an interrupted run, are kept. On this machine they are trained one by one, with all its processors.
    """
    engine = chosen_engine(engine_name, address)
    card = bundle.load(bundle_name, calibrated=False).card
    splits = data.load(data_folder, split_seed=card.data.split_seed if card.data else data.DEFAULT_SPLIT_SEED)
    train_ensemble(
        card, members, out or bundling.ENSEMBLES / card.name, splits, engine=None if engine_name == "local" else engine
    )


def train_ensemble(
    card: Card, members: int, out: Path, splits: FashionMNISTSplits, *, engine: Engine | None = None
) -> None:
    """Train as many networks as that of ``card`` from the seeds after its own, into ``out``, and say so; those that are
    there already are kept. Without an ``engine`` one by one in this process.

    Raises what :func:`training.bundling.load_member` raises of one that is there and is none, and
    :class:`click.ClickException` if some could not be trained.
    """
    first = bundling.recipe_of(card).seed + 1
    waiting = []
    for seed in range(first, first + members):
        folder = bundling.member_folder(out, seed)
        if folder.exists():
            bundling.load_member(folder, card)
            click.echo(f"{folder} is trained already.")
        else:
            waiting.append(seed)
    trained = (
        ((seed, _train_here(card, seed, out, splits)) for seed in waiting)
        if engine is None
        else train_members(card, waiting, out, engine, splits)
    )
    failures = []
    for seed, found in trained:
        if isinstance(found, TaskError):
            failures.append(f"seed {seed}: {found}")
        else:
            accuracy = found.metrics["test_accuracy"]
            click.echo(f"Test accuracy {accuracy:.4f}. Wrote {bundling.member_folder(out, seed)}.")
    if failures:
        raise click.ClickException(
            f"{'; '.join(failures)}. `python -m training ensemble` with the bundle trains what is missing"
        )


def _train_here(card: Card, seed: int, out: Path, splits: FashionMNISTSplits) -> Card:
    with storage.new_folder(bundling.member_folder(out, seed)) as folder:
        return train_with_progress(
            folder, name=f"{card.name}-seed-{seed}", network_name=card.network.name, arguments=card.network.arguments,
            recipe=bundling.recipe_of(card, seed), splits=splits,
        ).card  # fmt: skip
