"""``python -m calibration``: fit a bundle's calibration, write its report, score images with it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from calibration import comparison
from calibration import report as calibration_report
from calibration import score as scoring
from calibration.calibrators import calibrate
from calibration.export_command import export_command
from calibration.log_command import log_command
from calibration.masks import DEFAULT_DESIGN, DESIGNS
from calibration.prediction import DEFAULT_STRATEGIES, build_strategy
from calibration.strategies import DEFAULT_SAMPLES, DEFAULT_SEED, STRATEGIES, Sampling, applicable
from calibration.subnetworks import NoActiveDropoutError, UnsupportedNetworkError
from models import bundle as bundles
from models import storage
from models.command_line import NameList, NumberList, error_console, progress_bar, run
from models.records import DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR, Calibration, MaskDesign
from training import bundling, data, outliers, own_images
from training.options import data_option, network_option


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Calibrate dropout networks, and measure how to use them at test time.

    A BUNDLE is the name of one that ships with the project, or a folder.
    """


@main.command("fit")
@click.argument("bundle_name", metavar="BUNDLE")
@click.option(
    "--samples", type=click.IntRange(2, 1024), default=DEFAULT_SAMPLES, show_default=True, help="Sub-networks."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=DEFAULT_SEED, show_default=True, help="Of the sub-networks."
)
@click.option(
    "--design",
    type=click.Choice(DESIGNS),
    default=DEFAULT_DESIGN,
    show_default=True,
    help="How the sub-networks' masks depend on each other; independent is plain MC dropout.",
)
@click.option(
    "--data",
    "data_path",
    type=click.Path(exists=True, path_type=Path),
    help="Folder with the Fashion-MNIST files.  [default: as for `training fit`] For a BUNDLE that was trained "
    "elsewhere: labelled images that it was not trained on, as `score` takes them.",
)
@click.option(
    "--train-data",
    type=click.Path(exists=True, path_type=Path),
    help="For a BUNDLE that was trained elsewhere: labelled images that it was trained on, for the novelty of others.",
)
@network_option
def fit_command(
    *, bundle_name: str, samples: int, seed: int, design: MaskDesign, data_path: Path | None, train_data: Path | None
) -> None:
    """Calibrate every test-time strategy on the bundle's calibration images, and store that in BUNDLE.

    One half of the images serves the temperatures, the other prediction sets and abstention.
    """
    bundle = bundles.load(bundle_name, calibrated=False)
    images, trained_on = _own_or_split(bundle, data_path, train_data)
    calibration, scores = _calibrate(bundle, images, trained_on, Sampling(samples, seed, design))
    bundles.save_calibration(bundle, calibration, scores)
    for name, record in calibration.strategies.items():
        click.echo(
            f"{name:18s} temperature {record.scaling.temperature:.3f} ({record.scaling.order.replace('_', ' ')})  "
            f"NLL {record.nll_before:.4f} -> {record.nll_after:.4f}"
        )


@main.command("report")
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
@data_option
def report_command(
    *, bundle_names: tuple[str, ...], out: Path, ensembles: Path, images: int | None, cache_folder: Path | None,
    no_cache: bool, attach: bool, data_folder: Path | None,
) -> None:  # fmt: skip
    """Compare each BUNDLE's test-time strategies: report.json, a self-contained report.html, and the figures.

    Measured on the 10,000 test images, on those shifted, and on images out of distribution. An uncalibrated bundle is
    calibrated for the report, but not modified.
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
    seeds = {_split_seed(bundle) for bundle in loaded}
    if len(seeds) > 1:
        raise click.ClickException(
            "the bundles were trained on different splits of the data, so that no images are new to all of them"
        )
    cache = calibration_report.PredictionCache(
        None if no_cache else cache_folder or calibration_report.default_folder()
    )  # fmt: skip
    try:
        with storage.new_folder(out, replaceable=calibration_report.FILES) as folder:
            splits = data.load(data_folder, split_seed=seeds.pop())
            found = outliers.load_outliers()
            sets, missing = dict(found.sets), dict(found.missing)
            if images:
                splits = replace(splits, test=splits.test[slice(images)])
                sets = {name: pixels[:images] for name, pixels in sets.items()}
            subjects = [_subject(bundle, splits, ensembles, missing) for bundle in loaded]
            with progress_bar("images") as progress:
                total = sum(calibration_report.work(subject, splits, sets) for subject in subjects)
                task = progress.add_task("Measuring", total=total)
                report = calibration_report.measure(
                    subjects, splits, sets, missing=missing, cache=cache,
                    on_images=lambda count: progress.advance(task, count),
                )  # fmt: skip
            with error_console().status("Drawing"):
                calibration_report.write(report, splits.test.pixels, folder)
    except FileExistsError as error:
        raise click.ClickException(f"{error}; choose another --out") from error
    cache.prune()
    if attach:
        page = (out / "report.html").read_text()
        for bundle in loaded:
            bundles.attach_report(bundle, page)
    for name, reason in missing.items():
        click.echo(f"Missing from the report: {name}: {reason}", err=True)
    click.echo(f"Wrote {out / 'report.html'} and {out / 'report.json'}.")


def _subject(
    bundle: bundles.Bundle, splits: data.FashionMNISTSplits, ensembles: Path, missing: dict[str, str]
) -> calibration_report.Subject:
    """The bundle with what the report needs beside it; what is not there is added to ``missing``."""
    fitted = bundle.calibration is None or bundle.scores is None
    if bundle.calibration is not None and bundle.scores is not None:
        calibration, scores = bundle.calibration, bundle.scores
    else:
        calibration, scores = _calibrate(bundle, splits.calibration, splits.train)
    folder = ensembles / bundle.card.name
    members = bundling.load_ensemble(folder, bundle.card)
    if len(members) < 2:
        members = ()
        missing[f"deep ensemble of {bundle.card.name}"] = (
            f"no two networks in {folder}; train them with "
            f"`python -m training ensemble {shlex.quote(str(bundle.path))} --out {shlex.quote(str(folder))}`"
        )
    return calibration_report.Subject(bundle, calibration, scores, fitted, members)


@main.command("compare")
@click.argument("bundle_name", metavar="BUNDLE")
@click.option("--strategies", "chosen", type=NameList(STRATEGIES), help="Default: all that the network allows.")
@click.option("--samples", type=NumberList(int), help="Numbers of sub-networks.  [default: the calibration's]")
@click.option("--design", type=click.Choice(DESIGNS), help="Of the masks.  [default: the calibration's]")
@click.option("--images", type=click.IntRange(min=100), help="Measure on so many images alone, for a quick look.")
@data_option
def compare_command(
    *, bundle_name: str, chosen: tuple[str, ...] | None, samples: tuple[int, ...] | None, design: MaskDesign | None,
    images: int | None, data_folder: Path | None,
) -> None:  # fmt: skip
    """A quick table of BUNDLE's test-time strategies on the test images; each way gets a temperature of its own."""
    bundle = bundles.load(bundle_name)
    if samples and not all(2 <= number <= 1024 for number in samples):
        raise click.UsageError("--samples must lie between 2 and 1024", click.get_current_context())
    splits = data.load(data_folder, split_seed=_split_seed(bundle))
    test = splits.test[slice(images)]
    with progress_bar("ways") as progress:
        rows = list(comparison.compare(
            bundle, splits.calibration, test, chosen=chosen, samples=samples, design=design,
            on_start=lambda ways: progress.add_task("Comparing", total=ways),
            on_way=lambda: progress.advance(progress.task_ids[0]),
        ))  # fmt: skip
    # A table that is cut to a narrow terminal says nothing.
    console = Console(width=max(Console().width, 80))
    console.print(comparison.as_table(bundle.card.name, len(test), rows))


@main.command("score")
@click.argument("bundle_name", metavar="BUNDLE")
@click.argument("source", metavar="IMAGES", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The table: a name that ends in .parquet or .csv. An earlier file is replaced.",
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
@network_option
def score_command(
    *, bundle_name: str, source: Path, out: Path, strategy_name: str | None, samples: int | None, coverage: float,
    target_error: float,
) -> None:  # fmt: skip
    """Write BUNDLE's answers for your own IMAGES into a table, the same as those over HTTP.

    IMAGES is a folder of PNG, JPEG, WebP or BMP pictures, which may lie in one subfolder for each class; or an .npz
    file with an array `images`, of the shape and range in BUNDLE's card (those that ship: [N, 28, 28] or [N, 784] in
    0..255, white on black), and `labels` if there are any.
    """
    if out.suffix.lower() not in scoring.SUFFIXES:
        raise click.BadParameter(f"{out} should end in {' or '.join(scoring.SUFFIXES)}", param_hint="'--out'")
    bundle = bundles.load(bundle_name)
    strategy = build_strategy(bundle, strategy_name, samples)
    with progress_bar("images") as progress:
        task = progress.add_task("Reading", total=None)
        images = own_images.read(
            source,
            bundle.card.classes,
            bundle.card.input,
            on_pictures=lambda done, total: progress.update(task, completed=done, total=total),
        )
        progress.reset(task, description=f"Scoring by {strategy.name}", total=len(images))
        scores = scoring.score(
            bundle, strategy, images, out, coverage=coverage, target_error=target_error,
            on_images=lambda done: progress.advance(task, done),
        )  # fmt: skip
    accuracy = "" if scores.accuracy is None else f", accuracy {scores.accuracy:.4f}"
    click.echo(
        f"Images scored: {scores.images:,}, mean confidence {scores.mean_confidence:.4f}{accuracy}. Wrote {out}."
    )


main.add_command(export_command)
main.add_command(log_command)


def _split_seed(bundle: bundles.Bundle) -> int:
    if bundle.card.data is None:
        raise click.ClickException(
            f"{bundle.card.name} was trained elsewhere: this command measures on {data.NAME} alone, which is none of "
            "its data; `fit` and `score` take its own"
        )
    return bundle.card.data.split_seed


def _own_or_split(
    bundle: bundles.Bundle, path: Path | None, train: Path | None
) -> tuple[data.LabelledImages, data.LabelledImages | None]:
    """The calibration images, and those trained on if they are there."""
    if bundle.card.data is None:
        if path is None:
            raise click.UsageError(
                f"{bundle.card.name} was trained elsewhere: name labelled images for its calibration with --data",
                click.get_current_context(),
            )
        trained_on = None if train is None else own_images.read_labelled(train, bundle.card)
        return own_images.read_labelled(path, bundle.card), trained_on
    if train is not None or (path is not None and not path.is_dir()):
        raise click.UsageError(
            f"{bundle.card.name} was trained on {data.NAME}: --data is a folder with its files, and --train-data not "
            "needed",
            click.get_current_context(),
        )
    splits = data.load(path, split_seed=_split_seed(bundle))
    return splits.calibration, splits.train


def _calibrate(
    bundle: bundles.Bundle,
    images: data.LabelledImages,
    train: data.LabelledImages | None,
    sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
) -> tuple[Calibration, bundles.CalibrationScores]:
    with progress_bar("strategies") as progress:
        task = progress.add_task("Calibrating", total=len(applicable(bundle.network, bundle.card.input.shape)))
        return calibrate(
            bundle, images, train=train, samples=sampling.samples, seed=sampling.seed, design=sampling.design,
            on_strategy=lambda _: progress.advance(task),
        )  # fmt: skip


if __name__ == "__main__":
    run(main, "python -m calibration", data.DataError, UnsupportedNetworkError, NoActiveDropoutError)
