from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from calibration.report import PredictionCache, cache, default_folder
from calibration.report.cache import digest
from calibration.report.predictions import DEEP_ENSEMBLE, Predictions, Way
from models import bundle, records
from tests.conftest import write_bundle
from training.data import LabelledImages

KEY = {"weights": "abc", "samples": 64}


class Counting:
    """Computes a tensor, and counts how often."""

    def __init__(self, value: float = 1.0) -> None:
        self.value, self.count = value, 0

    def __call__(self) -> dict[str, Tensor]:
        self.count += 1
        return {"mean": torch.full((3, 2), self.value), "order": torch.arange(3)}


def test_what_was_computed_is_found_again(tmp_path: Path) -> None:
    compute = Counting()
    first = PredictionCache(tmp_path).get(KEY, compute)
    again = PredictionCache(tmp_path).get(dict(reversed(KEY.items())), compute)
    assert compute.count == 1
    torch.testing.assert_close(again, first)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("key", [{**KEY, "samples": 65}, {**KEY, "design": "orthogonal"}, {"weights": "abc"}])
def test_another_key_is_another_prediction(tmp_path: Path, key: dict[str, object]) -> None:
    PredictionCache(tmp_path).get(KEY, Counting(1.0))
    assert PredictionCache(tmp_path).get(key, Counting(2.0))["mean"][0, 0] == 2


def test_other_code_computes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Counting()
    PredictionCache(tmp_path).get(KEY, compute)
    monkeypatch.setattr(cache, "_code", lambda: "another release")
    PredictionCache(tmp_path).get(KEY, compute)
    assert compute.count == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "swapped"])
def test_a_damaged_file_is_computed_anew(tmp_path: Path, damage: str) -> None:
    kept = PredictionCache(tmp_path)
    kept.get(KEY, Counting(1.0))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    elif damage == "swapped":
        kept.get({"other": 1}, Counting(9.0))
        content = bytearray(next(file for file in tmp_path.iterdir() if file != path).read_bytes())
    if damage in {"truncated", "empty"}:
        content = content[:-3] if damage == "truncated" else bytearray()
    path.write_bytes(content)
    compute = Counting(1.0)
    assert kept.get(KEY, compute)["mean"][0, 0] == 1
    assert compute.count == 1
    assert kept.get(KEY, compute)["mean"][0, 0] == 1
    assert compute.count == 1, "and mended"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = PredictionCache(tmp_path / "file")
    compute = Counting()
    assert kept.get(KEY, compute)["mean"][0, 0] == 1
    assert kept.get(KEY, compute)["mean"][0, 0] == 1
    assert compute.count == 2
    kept.prune()
    assert (tmp_path / "file").read_text() == "in the way"


def test_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compute = Counting()
    for _ in range(2):
        PredictionCache(None).get(KEY, compute)
    assert compute.count == 2
    assert list(tmp_path.iterdir()) == []


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    kept = PredictionCache(tmp_path)
    for number in range(4):
        kept.get({"number": number}, Counting(number))
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_ctime_ns)
        os.utime(newest, (number, number))
    kept.get({"number": 0}, Counting())  # Used again.
    (tmp_path / "mine.txt").write_text("not the cache's")
    size = next(tmp_path.glob("*.safetensors")).stat().st_size
    kept.prune(2 * size)
    compute = Counting(9.0)
    assert kept.get({"number": 0}, compute)["mean"][0, 0] == 0
    assert kept.get({"number": 3}, compute)["mean"][0, 0] == 3
    assert compute.count == 0
    assert kept.get({"number": 1}, compute)["mean"][0, 0] == 9
    assert (tmp_path / "mine.txt").exists()


def test_a_digest_is_of_content_type_and_shape() -> None:
    values = torch.arange(6)
    others = [values.float(), values.reshape(2, 3), values + 1, values.reshape(3, 2)]
    assert len({digest(tensor) for tensor in [values, *others]}) == 5
    assert digest(torch.arange(12)[::2] // 2) == digest(values)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "dropout-uncertainty"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "dropout-uncertainty"


class Recording(PredictionCache):
    """Remembers the keys that it was asked for."""

    def __init__(self) -> None:
        super().__init__(None)
        self.keys: list[str] = []

    def get(self, key: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        self.keys.append(json.dumps(key, sort_keys=True))
        return super().get(key, compute)


def test_a_prediction_is_kept_under_all_that_it_depends_on(tmp_path: Path) -> None:
    arguments: dict[str, object] = {"dropout": [0.1, 0.1], "hidden_widths": [8]}
    for seed in (0, 1):
        write_bundle(tmp_path / str(seed), "YourDropoutModel", arguments, seed=seed)
    bundles = [bundle.load(tmp_path / str(seed)) for seed in (0, 1)]
    other_input = replace(
        bundles[0], card=bundles[0].card.model_copy(update={"input": records.InputRecord(mean=0.1)})
    )  # fmt: skip
    pixels = torch.randint(0, 256, (6, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(6)
    way = Way("mc_dropout", 8, 0, "orthogonal")
    kept = Recording()

    def asked(
        of: bundle.Bundle = bundles[0], way: Way = way, temperature: float = 1.0, images: Tensor = pixels
    ) -> None:
        Predictions(of, (), kept, lambda _: None).summary(way, records.Scaling(temperature=temperature), images)

    asked()
    asked(bundles[1])
    asked(other_input)
    for other in (replace(way, samples=16), replace(way, seed=1), replace(way, design="independent")):
        asked(way=other)
    asked(way=Way("geometric_mean", 8, 0, "orthogonal"))
    asked(temperature=0.5)
    asked(images=pixels + 1)
    asked(images=pixels[:5])
    predictions = Predictions(bundles[0], bundles, kept, lambda _: None)
    for fitted in (labels, labels.flip(0)):
        predictions.scaling(way, LabelledImages(pixels, fitted))
    for members in (bundles, bundles[::-1]):
        Predictions(bundles[0], members, kept, lambda _: None).summary(
            Way(DEEP_ENSEMBLE, 2, 0, "independent"), records.Scaling(), pixels
        )
    assert len(kept.keys) == len(set(kept.keys)) == 14
    asked()
    assert kept.keys[-1] == kept.keys[0]
