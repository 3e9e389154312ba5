"""``python -m calibration score``: a bundle's answers for images of one's own."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from calibration import score as scoring
from calibration.prediction import DEFAULT_STRATEGIES, build_strategy
from calibration.score import Scores
from calibration.score_parts import Job, score_parts
from calibration.strategies import STRATEGIES
from models import bundle as bundles
from models.command_line import progress_bar
from models.packing import PackedBundle
from models.records import DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR
from training import pieces
from training.options import chosen_engine, engine_options, network_option

__all__ = ["score_command"]


@click.command("score")
@click.argument("bundle_name", metavar="BUNDLE")
@click.argument("source", metavar="IMAGES", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The table: a name that ends in .parquet or .csv, in place of any earlier file. Or a folder, for a table in "
    "parts, side by side; parts that are finished are kept.",
)
@click.option(
    "--strategy",
    "strategy_name",
    type=click.Choice(STRATEGIES),
    help=f"Default: the first of {', '.join(DEFAULT_STRATEGIES)} that the network allows.",
)
@click.option(
    "--samples", type=click.IntRange(2, 1024), help="Sub-networks. Default: as many as BUNDLE was calibrated with."
)
@click.option(
    "--coverage",
    type=click.FloatRange(0.5, 0.999),
    default=DEFAULT_COVERAGE,
    show_default=True,
    help="How often a prediction set shall hold the true class.",
)
@click.option(
    "--target-error",
    type=click.FloatRange(0.001, 0.5),
    default=DEFAULT_TARGET_ERROR,
    show_default=True,
    help="The fraction of wrong ones among the answers that are not abstained from.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes of this machine that write parts, with one thread each.  [default: as many as torch would take "
    "threads]",
)
@engine_options
@network_option
def score_command(
    *, bundle_name: str, source: Path, out: Path, strategy_name: str | None, samples: int | None, coverage: float,
    target_error: float, workers: int | None, engine_name: str, address: str | None,
) -> int:  # fmt: skip
    """Write BUNDLE's answers for your own IMAGES into a table, the same as those over HTTP.

    IMAGES is a folder of PNG, JPEG, WebP or BMP pictures, which may lie in one subfolder for each class; an .npz file
    with an array `images`, of the shape and range in BUNDLE's card (those that ship: [N, 28, 28] or [N, 784] in 0..255,
    white on black), and `labels` if there are any; a .parquet file with such columns, where `image` may be a picture's
    bytes; an idx file of MNIST's kind; or a folder of such files.
    """
    in_parts = out.is_dir() or not out.suffix
    if not in_parts and out.suffix.lower() not in scoring.SUFFIXES:
        known = " or ".join(scoring.SUFFIXES)
        raise click.BadParameter(
            f"{out} should end in {known}, or be a folder: one that is there, or a name without a dot",
            param_hint="'--out'",
        )
    if not in_parts and (engine_name != "local" or workers):
        raise click.UsageError(
            "--engine and --workers are for a table in parts: name a folder with --out", click.get_current_context()
        )
    _refuse_in_the_way(source, out, in_parts=in_parts)
    engine = chosen_engine(engine_name, address, workers=workers, default=torch.get_num_threads())
    bundle = bundles.load(bundle_name)
    strategy = build_strategy(bundle, strategy_name, samples)
    card, size = bundle.card, scoring.images_at_once(bundle.card.input)
    failures: dict[str, str] = {}
    with progress_bar("images") as progress:
        task = progress.add_task("Looking", total=None)
        found = pieces.split(source, card.classes, card.input, size=size)
        progress.reset(task, description=f"Scoring by {strategy.name}", total=sum(map(len, found)))
        scores: Scores | None
        if in_parts:
            job = Job(PackedBundle.of(bundle), strategy.name, strategy.samples, coverage, target_error)
            try:
                outcome = score_parts(
                    job, found, out, engine,
                    on_finished=lambda done: progress.update(task, completed=done),
                    on_images=lambda done: progress.advance(task, done),
                )  # fmt: skip
            except FileExistsError as error:
                raise click.ClickException(f"{error}; choose another --out") from error
            scores, failures = outcome.scores, outcome.failures
        else:
            scores = scoring.score(
                scoring.Scorer(bundle, strategy, coverage=coverage, target_error=target_error),
                (pieces.read(piece, card.classes, card.input) for piece in found),
                out,
                on_images=lambda done: progress.advance(task, done),
            )
    for name, reason in failures.items():
        click.echo(f"{name} is missing: {reason}", err=True)
    if scores is not None:
        accuracy = "" if scores.accuracy is None else f", accuracy {scores.accuracy:.4f}"
        click.echo(
            f"Images scored: {scores.images:,}, mean confidence {scores.mean_confidence:.4f}{accuracy}. Wrote {out}."
        )
    if failures:
        click.echo(
            f"Error: {len(failures)} of {len(found)} parts are missing; the same command tries them again", err=True
        )
    return 1 if failures else 0


def _refuse_in_the_way(source: Path, out: Path, *, in_parts: bool) -> None:
    """Where scores would be written over images, or be taken for some the next time."""
    place, images = out.resolve(), source.resolve()
    if place == images or (images.is_dir() and images in place.parents):
        raise click.BadParameter(f"{out} is where the images are: name another place", param_hint="'--out'")
    if in_parts and out.exists() and not out.is_dir():
        raise click.BadParameter(f"{out} is a file: name a folder, or end it in .parquet or .csv", param_hint="'--out'")
