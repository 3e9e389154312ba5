"""How the bundles that ship are made; presets.toml, beside this file, has it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter

from models.records import Floors, Recipe, Record

__all__ = ["PRESETS", "Preset"]


class Preset(Record):
    """How a bundle is made. ``seeds`` networks are trained, from seed 0, whose network ships: the others say how far
    chance goes, and are the report's deep ensemble."""

    network: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    recipe: Recipe
    seeds: int = Field(default=1, ge=1)
    floors: Floors = Floors()


PRESETS: Mapping[str, Preset] = TypeAdapter(dict[str, Preset]).validate_python(
    tomllib.loads(Path(__file__).with_name("presets.toml").read_text())
)
