"""Writes a study's report: ``report.html``, which needs no other file, and its figures for elsewhere."""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from calibration.report.figures import Picture, slug
from models import storage
from training.study import pictures
from training.study.conclusions import better, conclusions, higher
from training.study.schema import ConfigurationResult, Interval, Measure, Study

__all__ = ["write"]


def write(study: Study, folder: Path) -> None:
    """Write ``report.html`` and ``figure-*.svg`` and ``.png`` into ``folder``, in place of those of an earlier time."""
    curves = pictures.curves(study)
    others = {
        "forest": pictures.forest(study), "rates": pictures.heat_maps(study), "sizes": pictures.size_pictures(study)
    }  # fmt: skip
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("training.study", "."), PackageLoader("calibration.report", ".")]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"svg": Markup, "slug": slug, "mean": _mean, "apart": _apart, "detected": _detected}
    page = environment.get_template("study.html.j2").render(
        study=study, groups=_groups(study), conclusions=conclusions(study), curves=curves, pictures=others
    )
    for old in folder.glob("figure-*"):
        old.unlink()
    drawn: list[Picture] = [*curves.values(), *(picture for picture in others.values() if picture)]
    for picture in drawn:
        for panel in picture.panels:
            storage.write_text(folder / f"figure-{panel.name}.svg", panel.svg)
            storage.write_bytes(folder / f"figure-{panel.name}.png", panel.png)
    storage.write_text(folder / "report.html", page)


def _groups(study: Study) -> dict[str, list[ConfigurationResult]]:
    groups: dict[str, list[ConfigurationResult]] = {}
    for result in study.results:
        groups.setdefault(result.configuration.group, []).append(result)
    return groups


def _mean(result: ConfigurationResult, measure: Measure, digits: int = 4, scale: float = 1) -> str:
    found = result.means.get(measure)
    return "–" if found is None else f"{scale * found.mean:,.{digits}f}".replace("-", "−")


def _apart(result: ConfigurationResult, measure: Measure, digits: int = 4, scale: float = 1) -> Markup:
    """The difference to the baseline with its interval, marked where that excludes 0."""
    found = result.differences.get(measure)
    if found is None:
        return Markup("–")
    value = _marked(_signed(found.mean, digits, scale), better(found, measure))
    return Markup("{} {}").format(value, _interval(found, digits, scale))


def _detected(result: ConfigurationResult, name: str) -> Markup:
    """The mean AUROC of a set, marked where the interval of the difference to the baseline excludes 0."""
    found, apart = result.detection.get(name), result.detection_differences.get(name)
    if found is None:
        return Markup("–")
    return _marked(f"{found.mean:.4f}", None if apart is None else higher(apart))


def _marked(value: str, verdict: bool | None) -> Markup:
    if verdict is not None:
        word = "better" if verdict else "worse"
        return Markup('<span class="{}" title="{} than the baseline">{} {}</span>').format(
            "best" if verdict else "wrong", word, value, "★" if verdict else "▾"
        )
    return Markup.escape(value)


def _interval(found: Interval, digits: int, scale: float) -> Markup:
    if found.low is None or found.high is None:
        return Markup()
    low, high = (_signed(part, digits, scale) for part in (found.low, found.high))
    return Markup('<span class="interval">{} to {}</span>').format(low, high)


def _signed(value: float, digits: int, scale: float) -> str:
    return f"{scale * value:+.{digits}f}".replace("-", "−")
