"""Reads plans: the presets, which are TOML files beside this one, and the user's own."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models import networks
from models.records import first_fault
from training import regularisers
from training.study.schema import Plan

__all__ = ["PRESETS", "PlanError", "load"]

FOLDER = Path(__file__).parent / "presets"
PRESETS: Mapping[str, Path] = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
"""The plans that come with the project, by name."""
MERGED = ("arguments", "recipe", "regularisation", "augmentation")
"""Tables of a configuration that are laid over the defaults' rather than put in their place."""


class PlanError(ValueError):
    """A plan can't be read, or asks for what there is not; the message says where, and what is known."""


def load(name_or_path: str, *, epochs: int | None = None, seeds: int | None = None) -> Plan:
    """The plan of a preset's name, or in a TOML file; ``epochs`` and ``seeds`` take the place of its own.

    A file has ``title``, ``question``, ``seeds``, a table ``defaults`` with fields of
    :class:`~training.study.schema.Configuration`, and an array of tables ``configurations`` that are laid over them.
    Raises :class:`PlanError`, also for a configuration whose network can't be built, before anything is trained.
    """
    path = PRESETS.get(name_or_path, Path(name_or_path))
    try:
        content = tomllib.loads(path.read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise PlanError(
            f"{name_or_path!r} is neither a preset ({', '.join(PRESETS)}) nor a TOML file with a plan"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} is not valid TOML: {error}") from error
    defaults, own = content.pop("defaults", {}), content.pop("configurations", [])
    if not isinstance(defaults, dict) or not isinstance(own, list):
        raise PlanError(f"{path}: defaults must be a table, and configurations an array of tables")
    configurations = [_laid_over(defaults, each) for each in own]
    if epochs is not None:
        configurations = [_laid_over(each, {"recipe": {"epochs": epochs}}) for each in configurations]
    fields = {"name": path.stem, **content, "configurations": configurations}
    if seeds is not None:
        fields["seeds"] = seeds
    try:
        # As JSON, where an array is a tuple; the records are strict otherwise.
        plan = Plan.model_validate_json(json.dumps(fields, default=str))
    except ValidationError as error:
        raise PlanError(f"{path}: {_first_fault(error, configurations)}") from error
    _check(plan, path)
    return plan


def _laid_over(below: Mapping[str, Any], above: Any) -> dict[str, Any]:
    if not isinstance(above, Mapping):
        raise PlanError(f"a configuration must be a table, got {above!r}")
    result = {**below, **above}
    for name in MERGED:
        if isinstance(below.get(name), Mapping) and isinstance(above.get(name), Mapping):
            result[name] = _laid_over(below[name], above[name])
    return result


def _first_fault(error: ValidationError, configurations: list[dict[str, Any]]) -> str:
    place = error.errors()[0]["loc"]
    if place[:1] != ("configurations",) or len(place) == 1:
        return first_fault(error)
    name = configurations[int(place[1])].get("name", place[1])
    return f"configuration {name!r}: {first_fault(error, 2)}"


def _check(plan: Plan, path: Path) -> None:
    by_name = {each.name: each for each in plan.configurations}
    if len(by_name) < len(plan.configurations):
        names = [each.name for each in plan.configurations]
        twice = next(name for name in names if names.count(name) > 1)
        raise PlanError(f"{path}: two configurations are named {twice!r}; names must differ")
    for each in plan.configurations:
        place = f"{path}: configuration {each.name!r}"
        try:
            network = networks.build(each.network, each.arguments)
            if each.recipe.regularisation.activation_noise:
                regularisers.activations_of(network)
        except (ValueError, TypeError) as error:
            raise PlanError(f"{place}: {error}") from error
        if each.baseline is not None:
            baseline = by_name.get(each.baseline)
            if baseline is None:
                raise PlanError(f"{place}: its baseline {each.baseline!r} is not there")
            if baseline.baseline is not None:
                raise PlanError(f"{place}: its baseline {each.baseline!r} has a baseline itself; name the last one")
            if baseline.train_images != each.train_images:
                raise PlanError(f"{place}: its baseline {each.baseline!r} trains on another number of images")
