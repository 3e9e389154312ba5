"""``python -m training study``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from models import storage
from models.command_line import error_console, progress_bar
from training import data
from training.engines import Engine
from training.options import chosen_engine, data_option, engine_options
from training.study import plans
from training.study.schema import Failure, Interval, Plan, RunResult, Study

__all__ = ["study_command"]

STUDIES = Path("runs/studies")


@click.command(
    "study",
    epilog="Presets: " + ", ".join(plans.PRESETS) + ".",
)
@click.argument("plan_name", metavar="PRESET")
@click.option("--epochs", type=click.IntRange(min=1), help="Of every configuration.  [default: the plan's]")
@click.option("--seeds", type=click.IntRange(min=1), help="Runs of each configuration.  [default: the plan's]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder of the runs and results.  [default: {STUDIES}/ and the plan's name]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that train at a time, with one thread each.  [default: as many as torch would take threads]",
)
@engine_options
@data_option
def study_command(
    *,
    plan_name: str, epochs: int | None, seeds: int | None, out: Path | None, workers: int | None,
    engine_name: str, address: str | None, data_folder: Path | None,
) -> int:  # fmt: skip
    """Train every configuration of PRESET, or of a TOML file, from several seeds, and compare them.

    Each finished run is kept in OUT/runs: an interrupted study goes on where it was, by the same command. Writes
    study.json, study.csv, the table and conclusions as study.md, and report.html.
    """
    try:
        plan = plans.load(plan_name, epochs=epochs, seeds=seeds)
    except plans.PlanError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error
    from training.study import markdown, page, results  # noqa: PLC0415  (takes a second to import)

    out = out or STUDIES / plan.name
    engine = chosen_engine(engine_name, address, workers=workers, default=torch.get_num_threads())
    runs, failures = _run(plan, out, engine, data.load(data_folder))
    given = {"--epochs": epochs, "--seeds": seeds}
    options = [f"{name} {value}" for name, value in given.items() if value is not None]
    command = " ".join(["python -m training study", shlex.quote(plan_name), *options])
    study = results.summarise(plan, runs, failures, command)
    storage.write_text(out / "study.json", study.model_dump_json(by_alias=True) + "\n")
    storage.write_text(out / "study.csv", results.table(study))
    storage.write_text(out / "study.md", markdown.summary(study))
    page.write(study, out)
    Console().print(_table(study))
    click.echo(f"Wrote {out / 'report.html'}, study.json, study.csv and study.md.")
    if failures:
        click.echo(f"Error: {len(failures)} runs failed; the same command tries them again", err=True)
    return 1 if failures else 0


def _run(
    plan: Plan, out: Path, engine: Engine, splits: data.FashionMNISTSplits
) -> tuple[list[RunResult], list[Failure]]:
    from training.study import runner  # noqa: PLC0415  (takes a second to import)

    console = error_console()
    done: list[RunResult] = []
    failures: list[Failure] = []
    waiting: list[runner.Run] = []
    for run in runner.runs_of(plan):
        try:
            found = runner.finished(run, out)
        except ValueError as error:
            console.print(f"{error}: it is run again")
            found = None
        if found:
            done.append(found)
        else:
            waiting.append(run)
    if done:
        console.print(f"{len(done)} of {len(done) + len(waiting)} runs are finished already.")
    with progress_bar("runs") as progress:
        task = progress.add_task(plan.name, total=len(done) + len(waiting), completed=len(done))
        for ended in runner.run_all(waiting, out, engine=engine, splits=splits):
            if isinstance(ended, Failure):
                failures.append(ended)
                progress.console.print(f"{ended.name}, seed {ended.seed} failed: {ended.error}", markup=False)
            else:
                done.append(ended)
                progress.console.print(
                    f"{ended.name}, seed {ended.seed}: test accuracy {ended.test.accuracy:.4f}, loss "
                    f"{ended.test.loss:.4f}, {len(ended.history)} epochs, {ended.seconds:.1f} s",
                    markup=False,
                )
            progress.advance(task)
    return done, failures


def _table(study: Study) -> Table:
    table = Table(title=study.title, caption="± and differences to the baseline: 95 % intervals over seeds")
    table.add_column("configuration")
    for column in ("test accuracy %", "difference", "test NLL", "difference", "MC NLL"):
        table.add_column(column, justify="right")
    for result in study.results:
        means, apart = result.means, result.differences
        table.add_row(
            result.configuration.name,
            _show(means.get("test_accuracy"), 100, 2),
            _show(apart.get("test_accuracy"), 100, 2, "+"),
            _show(means.get("test_loss"), 1, 4),
            _show(apart.get("test_loss"), 1, 4, "+"),
            _show(means.get("mc_nll"), 1, 4),
        )
    return table


def _show(value: Interval | None, scale: float, digits: int, sign: str = "-") -> str:
    if value is None:
        return ""
    half = "" if value.high is None else f" ±{scale * (value.high - value.mean):.{digits}f}"
    return f"{scale * value.mean:{sign}.{digits}f}{half}"
