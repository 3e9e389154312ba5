"""Options that several of the project's commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["MAX_SEED", "data_option"]

MAX_SEED = 2**63 - 1
"""What torch's generators take."""

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
