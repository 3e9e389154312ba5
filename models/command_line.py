"""What the project's command lines share: one-line errors, exit codes, progress bars, option types."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from models.bundle import BundleError

__all__ = ["NumberList", "data_option", "progress_bar", "run"]

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


def run(command: click.Command, program: str, *failures: type[Exception]) -> None:
    """Run ``command`` and exit: 0; 2 for a wrong argument; 130 when interrupted; 1 for one of ``failures``, a
    bundle that can't be used, or a file that can't be read or written. Errors are one line on standard error."""
    try:
        code = command.main(prog_name=program, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(USAGE)
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx else program
        _fail(f"{_one_line(error.format_message())} (see `{place} --help`)", USAGE)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; nothing was left half-written", INTERRUPTED)
    except (click.ClickException, BundleError) as error:
        _fail(_one_line(str(error)), FAILURE)
    except failures as error:
        _fail(_one_line(str(error)), FAILURE)
    except OSError as error:
        _fail(
            _one_line(f"{error.strerror or error}: {error.filename}" if error.filename else str(error)),
            FAILURE,
        )


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


class NumberList(click.ParamType[tuple[float, ...]]):
    """Numbers separated by commas, as in ``0.2,0.5,0.5``."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = f"{kind.__name__},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers separated by commas", param, ctx)


Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def data_option(function: Decorated) -> Decorated:
    """The ``--data`` option, as a :class:`~pathlib.Path` or ``None``."""
    return click.option(
        "--data",
        "data_folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder with the Fashion-MNIST files. Default: $FASHION_MNIST_DIR, the project's data folder, Debian's "
        "package, or a download.",
    )(function)


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else f"- {self.unit}/s", style="cyan")


def progress_bar(unit: str) -> Progress:
    """A bar on standard error that shows the count, the rate in ``unit`` per second, and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
