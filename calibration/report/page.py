"""Writes the report: ``report.json``, the page ``report.html`` that needs no other file, and figures for elsewhere."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from calibration.material import Material
from calibration.report.conclusions import conclusions, model_conclusions, named
from calibration.report.figures import slug
from calibration.report.pictures import model_pictures
from calibration.report.schema import Estimate, Report
from calibration.report.subnetwork_pictures import enumeration_picture
from models import storage

__all__ = ["FILES", "write"]

FILES = ("report.json", "report.html", "figure-*.svg", "figure-*.png")
"""What a report's folder holds, as patterns of names."""
LARGEST = 128
"""Lines or columns of an image on the page, where a hundred of them may be."""


def write(report: Report, material: Material, folder: Path) -> None:
    """Write :data:`FILES` into ``folder``, which should come from :func:`models.storage.new_folder`.

    ``material`` is what the report is of: the galleries' indices refer to its test images.
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
        image=lambda index: _thumbnail(material.test.pixels[index], material.inputs.maximum),
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


def _thumbnail(pixels: Tensor, maximum: float) -> Markup | None:
    """The address and the size of an ``img``; ``None`` for what is no picture: vectors, and other numbers of channels
    than one and three."""
    if pixels.ndim == 3:
        pixels = pixels[0] if len(pixels) == 1 else pixels.movedim(0, 2)
    if pixels.ndim == 1 or (pixels.ndim == 3 and pixels.shape[2] != 3):
        return None
    levels = pixels.float().mul(255 / maximum).round().to(torch.uint8)
    picture = Image.fromarray(levels.numpy())
    picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Markup('src="data:image/png;base64,{}" width="{}" height="{}"').format(content, *picture.size)
