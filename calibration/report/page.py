"""Writes the report: ``report.json``, the page ``report.html`` that needs no other file, and figures for elsewhere."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from calibration.report import figures
from models import storage

__all__ = ["FILES", "write"]

FILES = ("report.json", "report.html", "reliability.svg", "reliability.png")


def write(report: dict[str, Any], pixels: Tensor, folder: Path) -> None:
    """Write :data:`FILES` into ``folder``, which should come from :func:`models.storage.new_folder`.

    ``pixels`` uint8 ``[N, 28, 28]`` are the test images that the gallery's indices refer to.
    """
    drawing = figures.reliability(report["strategies"])
    svg = figures.as_svg(drawing)
    environment = Environment(
        loader=PackageLoader("calibration.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.j2").render(
        report=report,
        conclusions=conclusions(report),
        reliability=svg,
        image=lambda index: _data_uri(pixels[index]),
    )
    storage.write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    storage.write_text(folder / "report.html", page)
    storage.write_text(folder / "reliability.svg", svg)
    storage.write_bytes(folder / "reliability.png", figures.as_png(drawing))


def conclusions(report: dict[str, Any]) -> list[str]:
    """What the figures say, in sentences computed from them; nothing is said that they don't show."""
    sentences = []
    sections = report["strategies"]
    for name, difference in report["comparison"].items():
        sentences.append(
            f"{_named(name, sections[name]['samples'])} against weight_scaling, both calibrated: "
            f"{_verdict(difference['accuracy'], 100, 'percentage points of accuracy', higher_is_better=True)}; "
            f"{_verdict(difference['nll'], 1, 'nats of NLL', higher_is_better=False)}."
        )
    for name, section in sections.items():
        raw, temperature = section["raw"], section["temperature"]
        gap = sum(
            count * (confidence - accuracy)
            for count, confidence, accuracy in zip(
                *(raw["reliability"][key] for key in ("count", "confidence", "accuracy")), strict=True
            )
        ) / sum(raw["reliability"]["count"])
        direction = "over" if gap > 0 else "under"
        sentences.append(
            f"{name} before calibration is {direction}-confident by {abs(gap):.3f} on average; temperature "
            f"{temperature:.2f} takes its ECE from {raw['ece']:.3f} to {section['calibrated']['ece']:.3f}."
        )
    return sentences


def _named(strategy: str, samples: int) -> str:
    return f"{strategy} with {samples} sub-networks" if samples > 1 else strategy


def _verdict(difference: dict[str, Any], scale: float, unit: str, *, higher_is_better: bool) -> str:
    low, high = (bound * scale for bound in difference["interval"])
    value = f"{difference['difference'] * scale:+.3f} {unit} (95 % interval {low:+.3f} to {high:+.3f})".replace(
        "-", "−"
    )
    if low <= 0 <= high:
        return f"{value}, not distinguishable"
    return f"{value}, {'better' if (low > 0) == higher_is_better else 'worse'}"


def _data_uri(pixels: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
