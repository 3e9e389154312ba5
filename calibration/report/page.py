"""Writes the report: ``report.json``, the page ``report.html`` that needs no other file, and figures for elsewhere."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from calibration.report.conclusions import conclusions, model_conclusions, named
from calibration.report.figures import slug
from calibration.report.pictures import model_pictures
from calibration.report.schema import Estimate, Report
from calibration.report.subnetwork_pictures import enumeration_picture
from models import storage

__all__ = ["FILES", "write"]

FILES = ("report.json", "report.html", "figure-*.svg", "figure-*.png")
"""What a report's folder holds, as patterns of names."""


def write(report: Report, pixels: Tensor, folder: Path) -> None:
    """Write :data:`FILES` into ``folder``, which should come from :func:`models.storage.new_folder`.

    ``pixels`` uint8 ``[N, 28, 28]`` are the test images that the galleries' indices refer to.
    """
    pictures = {model.name: model_pictures(model) for model in report.models}
    enumeration = enumeration_picture(report.enumeration) if report.enumeration else None
    environment = Environment(
        loader=PackageLoader("calibration.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"named": named, "estimate": _estimate, "percent": _percent, "svg": Markup, "slug": slug}
    page = environment.get_template("page.html.j2").render(
        report=report,
        conclusions=conclusions(report),
        said={model.name: model_conclusions(model) for model in report.models},
        pictures=pictures,
        enumeration=enumeration,
        image=lambda index: _data_uri(pixels[index]),
    )
    storage.write_text(folder / "report.json", report.model_dump_json(by_alias=True, indent=1) + "\n")
    storage.write_text(folder / "report.html", page)
    drawn = [picture for own in pictures.values() for picture in own.values()]
    for picture in [*drawn, *([enumeration] if enumeration else [])]:
        for panel in picture.panels:
            storage.write_text(folder / f"figure-{panel.name}.svg", panel.svg)
            storage.write_bytes(folder / f"figure-{panel.name}.png", panel.png)


def _estimate(value: Estimate, digits: int = 4, scale: float = 1, sign: str = "-") -> Markup:
    """With its interval in small print."""
    parts = (f"{scale * part:{sign}.{digits}f}".replace("-", "−") for part in (value.value, value.low, value.high))
    return Markup('{} <span class="interval">{} to {}</span>').format(*parts)


def _percent(value: Estimate, sign: str = "-") -> Markup:
    return _estimate(value, 2, 100, sign)


def _data_uri(pixels: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
