"""How the report's figures look, and what becomes of them: SVG for the page, PNG for elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLOURS", "INK", "Panel", "Picture", "colour", "drawing", "panel", "slug"]

INK = "#010203"
"""Stands for the page's own text colour: :attr:`Panel.svg` replaces it, so that figures follow light and dark."""
STYLE: dict[Any, Any] = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "font.size": 10, "axes.titlesize": 10, "legend.fontsize": 8.5, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.6,
    "svg.fonttype": "none",
}  # fmt: skip
COLOURS = {
    "weight_scaling": "#bb5566", "mc_dropout": "#4477aa", "geometric_mean": "#228833", "last_layer": "#ee8866",
    "moment_propagation": "#aa77cc", "deep_ensemble": "#8a8a8a",
}  # fmt: skip
"""By strategy, the same in every figure; told apart by the colour-blind as well."""
WIDTH, HEIGHT = 4.6, 3.4


def slug(name: str) -> str:
    """A name for files and anchors."""
    return re.sub(r"[^\w.-]+", "-", name)[:80]


def colour(strategy: str) -> str:
    return COLOURS.get(strategy, "#999933")


@dataclass(frozen=True)
class Panel:
    """One drawing: ``name`` for its files, ``alt`` for who can't see it, ``svg`` (without background, in the
    surrounding text colour) and ``png`` (on white)."""

    name: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Picture:
    """Panels under one caption."""

    caption: str
    panels: tuple[Panel, ...]


def panel(name: str, alt: str, draw: Callable[[Axes], None], *, width: float = WIDTH, height: float = HEIGHT) -> Panel:
    """What ``draw`` puts on a pair of axes of ``width`` by ``height`` inches."""
    return drawing(name, alt, lambda figure: draw(figure.subplots()), width=width, height=height)


def drawing(name: str, alt: str, draw: Callable[[Figure], None], *, width: float, height: float) -> Panel:
    """What ``draw`` puts on a figure."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        return Panel(name, alt, _svg(figure, name), _png(figure))


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    # No two figures of one page may share ids: those that refer are salted, those of groups not needed.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return text.replace(INK, "currentColor")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
