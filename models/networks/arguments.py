"""Checks of what networks are built with: it comes from JSON files and command lines, so that any type may arrive."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["MAX_WIDTH", "check_choice", "check_rates", "check_sizes"]

MAX_WIDTH = 1 << 16


def check_sizes(**sizes: object) -> None:
    """Raises ``ValueError``, with the name, unless each is a whole number from 1 to ``MAX_WIDTH``."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_WIDTH:
            raise ValueError(f"{name} must be a whole number from 1 to {MAX_WIDTH:,}, got {size!r}")


def check_rates(**rates: object) -> None:
    """Raises ``ValueError``, with the name, unless each is a dropout rate: a number in [0, 1)."""
    for name, rate in rates.items():
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 <= rate < 1:
            raise ValueError(f"{name} must be a dropout rate in [0, 1), got {rate!r}")


def check_choice(name: str, value: object, known: Collection[object]) -> None:
    """Raises ``ValueError`` unless ``value`` is one of ``known``."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
