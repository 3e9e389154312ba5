"""What the project's command lines share: one-line errors, exit codes, progress bars, option types."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

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

__all__ = ["NameList", "NumberList", "error_console", "progress_bar", "run"]

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


def run(command: click.Command, program: str, *failures: type[Exception]) -> None:
    """Run ``command`` and exit: 0; 2 for a wrong argument; 130 when interrupted; 1 for one of ``failures``, a
    bundle that can't be used, or a file that can't be read or written. Errors are one line on standard error.

    A request to terminate is an interrupt too, so that it leaves nothing half-written either."""
    signal.signal(signal.SIGTERM, _interrupt)
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


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


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


class NameList(click.ParamType[tuple[str, ...]]):
    """Names out of ``known``, separated by commas."""

    name = "name,..."

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(str(value).split(","))
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}", param, ctx)
        return names


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        number = "-" if not speed else f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"
        return Text(f"{number} {self.unit}/s", style="cyan")


def error_console() -> Console:
    """For what isn't a command's result: progress, and news of it."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


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
        console=error_console(),
    )
