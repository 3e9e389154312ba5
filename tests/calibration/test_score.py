"""Offline scoring: by the command, by the functions, and against the service's answers."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner, Result
from pyarrow import csv, parquet

from calibration import score as scoring
from calibration import strategies
from calibration.__main__ import main
from calibration.answers import Answer, NoveltyAnswer, UncertaintyAnswer, answers
from calibration.decisions import DecisionRule
from calibration.novelty import Novelty
from calibration.prediction import build_strategy
from calibration.predictive import PredictiveDistribution
from calibration.strategies import STRATEGIES, Strategy
from calibration.subnetworks import NoActiveDropoutError
from models import bundle
from models.pictures import decode
from service.predictor import Predictor
from service.responses import Prediction, Uncertainty
from service.wire import Options
from tests.command_line import ROOT, refused, run
from tests.conftest import write_bundle
from training.data import CLASSES, DataError, FashionMNISTSplits
from training.own_images import read
from training.pieces import OwnImages

BOOT = ROOT / "docs" / "boot.png"


def some(fashion: FashionMNISTSplits, images: int = 20, *, labelled: bool = True) -> OwnImages:
    names = tuple(map(str, range(images)))
    return OwnImages(names, fashion.test.pixels[:images], fashion.test.labels[:images] if labelled else None)


def invoke(*arguments: str | Path) -> Result:
    """``score ARGUMENTS...`` in this process."""
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


def score(
    used: bundle.Bundle, strategy: Strategy, images: OwnImages | list[OwnImages], out: Path, **options: Any
) -> scoring.Scores:
    steps = {"on_images": options.pop("on_images")} if "on_images" in options else {}
    parts = images if isinstance(images, list) else [images]
    return scoring.score(scoring.Scorer(used, strategy, **options), parts, out, **steps)


def in_parts(images: OwnImages, size: int) -> list[OwnImages]:
    return [
        OwnImages(
            images.names[start : start + size],
            images.pixels[start : start + size],
            None if images.labels is None else images.labels[start : start + size],
        )
        for start in range(0, len(images), size)
    ]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    """Without dropout, and uncalibrated."""
    folder = tmp_path_factory.mktemp("bundles") / "plain"
    write_bundle(folder, "ReLUNet")
    return bundle.load(folder)


@pytest.fixture(scope="module")
def labelled_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The boot in its class's folder, and in a wrong one."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("Ankle boot", "T-shirt-top"):
        (folder / name).mkdir()
        shutil.copy(BOOT, folder / name)
    return folder


def test_the_command_writes_a_parquet_table(shipped: bundle.Bundle, labelled_pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "scores.PARQUET"
    done = run("calibration", "score", "mlp", labelled_pictures, "--out", out, "--samples", "8")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"Images scored: 2, mean confidence 0\.\d{4}, accuracy 0\.5000\. Wrote .*\.\n", done.stdout)
    assert "Scoring by mc_dropout" in done.stderr
    assert "2/2" in done.stderr
    assert listing(out.parent) == [out.name]
    table = parquet.read_table(out)
    assert table.column_names == [
        "image", "true_label", "label", "class_index", "confidence", "probabilities", "uncertainty", "novelty",
        "standard_error", "samples", "prediction_set", "abstain", "reason",
    ]  # fmt: skip
    assert table["image"].to_pylist() == ["Ankle boot/boot.png", "T-shirt-top/boot.png"]
    assert table["true_label"].to_pylist() == ["Ankle boot", "T-shirt/top"]
    assert table["label"].to_pylist() == ["Ankle boot"] * 2
    assert table.schema.field("probabilities").type == pa.struct([(name, pa.float64()) for name in CLASSES])
    assert table.schema.metadata == {
        b"bundle": b"mlp",
        b"version": shipped.version.encode(),
        b"strategy": b"mc_dropout",
        b"samples": b"8",
        b"temperature": str(round(shipped.scaling("mc_dropout").temperature, 6)).encode(),
        b"schema": b"3",
        b"coverage": b"0.9",
        b"target_error": b"0.05",
    }


def test_csv_and_parquet_agree(shipped: bundle.Bundle, fashion: FashionMNISTSplits, tmp_path: Path) -> None:
    strategy = build_strategy(shipped, samples=4)
    for suffix in scoring.SUFFIXES:
        score(shipped, strategy, some(fashion), tmp_path / f"scores{suffix}", coverage=0.999)
    table = parquet.read_table(tmp_path / "scores.parquet")
    joined = [";".join(names) for names in table["prediction_set"].to_pylist()]
    place = table.column_names.index("prediction_set")
    flat = table.set_column(place, "prediction_set", pa.array(joined)).flatten()
    assert any(";" in names for names in joined)
    assert {"true_label", "probabilities.T-shirt/top", "uncertainty.total"} < set(flat.column_names)
    options = csv.ConvertOptions(column_types=flat.schema, strings_can_be_null=True, quoted_strings_can_be_null=False)
    assert csv.read_csv(tmp_path / "scores.csv", convert_options=options).equals(flat)


def answer(used: bundle.Bundle, pixels: np.ndarray[Any, Any], **options: Any) -> dict[str, Any]:
    """What the service says."""
    predictor = Predictor("name", used, coverage=0.9, target_error=0.05)
    return predictor.answer(predictor.question(pixels, Options(**options)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_answers_are_those_of_the_service(tmp_path: Path, shipped: bundle.Bundle, strategy: Any) -> None:
    shutil.copy(BOOT, tmp_path)
    pixels = decode(BOOT.read_bytes(), "auto").astype(np.float32).reshape(1, 28, 28)
    expected = answer(shipped, pixels, strategy=strategy, samples=16)
    built = build_strategy(shipped, strategy, 16)
    out = tmp_path / "out" / "scores.parquet"
    scores = score(shipped, built, read(tmp_path, CLASSES), out)
    (row,) = parquet.read_table(out).to_pylist()
    assert row.pop("image") == "boot.png"
    (prediction,) = expected["predictions"]
    assert {**row, "members": None} == prediction
    assert scores == scoring.Scores(1, prediction["confidence"], None)
    assert scores.accuracy is None
    metadata = parquet.read_schema(out).metadata
    assert int(metadata[b"samples"]) == expected["samples"]
    assert float(metadata[b"temperature"]) == expected["temperature"]
    assert float(metadata[b"coverage"]) == expected["decision"]["coverage"]
    assert float(metadata[b"target_error"]) == expected["decision"]["target_error"]


def test_an_answer_has_the_fields_on_the_wire() -> None:
    assert [*Answer.__annotations__, "members"] == list(Prediction.model_fields)
    assert list(UncertaintyAnswer.__annotations__) == list(Uncertainty.model_fields)


def test_the_defaults_are_those_of_the_service(shipped: bundle.Bundle, plain: bundle.Bundle, tmp_path: Path) -> None:
    write_bundle(tmp_path / "uncalibrated")
    assert shipped.calibration is not None
    otherwise = shipped.calibration.model_copy(update={"samples": 8, "seed": 7, "design": "independent"})
    pixels = torch.rand(4, 28, 28) * 255
    for used in (shipped, plain, bundle.load(tmp_path / "uncalibrated"), replace(shipped, calibration=otherwise)):
        strategy, expected = build_strategy(used), answer(used, pixels.numpy())
        assert (strategy.name, strategy.samples) == (expected["strategy"], expected["samples"])
        out = tmp_path / "scores.parquet"
        score(used, strategy, OwnImages(tuple("abcd"), pixels, None), out)
        rows = parquet.read_table(out).drop_columns("image").to_pylist()
        assert [{**row, "members": None} for row in rows] == expected["predictions"]


def test_an_answer_by_hand() -> None:
    """Two members of equal weight, (1/4, 3/4) and (3/4, 1/4), and then the first alone."""
    members = torch.tensor([[[0.25, 0.75]], [[0.75, 0.25]]])
    rule = DecisionRule(coverage=0.9, nonconformity=0.5, target_error=0.05, uncertainty=0.25)
    novelty = Novelty(torch.tensor([12.34567]).double(), torch.tensor([1 / 3]).double())
    (both,) = answers(
        PredictiveDistribution(members), ("no", "yes"), members=2, samples=[2], rule=rule, novelty=novelty
    )
    assert both == Answer(
        label="no",
        class_index=0,
        confidence=0.5,
        probabilities={"no": 0.5, "yes": 0.5},
        uncertainty=UncertaintyAnswer(total=0.693147, aleatoric=0.562335, epistemic=0.130812),
        novelty=NoveltyAnswer(distance=12.346, p_value=0.333333),
        standard_error=0.25,
        samples=2,
        prediction_set=["no", "yes"],
        abstain=True,
        reason="low_confidence",
    )
    first = PredictiveDistribution(members[:1]).summary()
    (alone,) = answers(first, ("no", "yes"), members=1, samples=[1], rule=rule)
    assert alone == Answer(
        label="yes",
        class_index=1,
        confidence=0.75,
        probabilities={"no": 0.25, "yes": 0.75},
        uncertainty=UncertaintyAnswer(total=0.562335, aleatoric=None, epistemic=None),
        novelty=None,
        standard_error=None,
        samples=1,
        prediction_set=["yes"],
        abstain=False,
        reason=None,
    )
    (undecided,) = answers(first, ("no", "yes"), members=1, samples=[1], rule=None)
    assert [undecided[field] for field in ("prediction_set", "abstain", "reason")] == [None] * 3


def test_many_images_in_steps(
    shipped: bundle.Bundle, fashion: FashionMNISTSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = some(fashion, 500)
    strategy = build_strategy(shipped, "weight_scaling")
    whole = score(shipped, strategy, images, tmp_path / "whole.parquet")
    monkeypatch.setattr(strategies, "IMAGES_AT_ONCE", 50)
    done: list[int] = []
    stepwise = score(shipped, strategy, in_parts(images, 80), tmp_path / "stepwise.csv", on_images=done.append)
    assert done == [50, 30] * 6 + [20]
    assert (stepwise.images, stepwise.correct) == (whole.images, whole.correct)
    assert stepwise.mean_confidence == pytest.approx(whole.mean_confidence, abs=1e-6)
    table, rows = parquet.read_table(tmp_path / "whole.parquet"), csv.read_csv(tmp_path / "stepwise.csv")
    assert table["image"].to_pylist() == list(images.names)
    assert rows["image"].to_pylist() == list(range(500))
    for field in ("true_label", "label", "class_index"):
        assert rows[field].equals(table[field])
    assert rows["confidence"].to_numpy() == pytest.approx(table["confidence"].to_numpy(), abs=2e-6)
    assert whole.mean_confidence == pytest.approx(table["confidence"].to_numpy().mean())
    assert whole.accuracy == np.mean(np.array(table["label"]) == np.array(table["true_label"]))


def test_a_bundle_without_dropout(plain: bundle.Bundle, fashion: FashionMNISTSplits, tmp_path: Path) -> None:
    """It is scored by weight scaling, whose uncertainty has no parts: empty in a CSV file."""
    np.savez(tmp_path / "mine.npz", fashion.test.pixels[:3].numpy())
    done = invoke(plain.path, tmp_path / "mine.npz", "--out", tmp_path / "scores.csv")
    assert done.exit_code == 0, done.output
    assert "Images scored: 3, mean confidence" in done.stdout
    assert "accuracy" not in done.stdout
    table = csv.read_csv(tmp_path / "scores.csv")
    assert "true_label" not in table.column_names
    assert table["uncertainty.total"].null_count == 0
    for field in ("uncertainty.aleatoric", "uncertainty.epistemic", "standard_error"):
        assert table[field].null_count == 3
    with pytest.raises(NoActiveDropoutError, match="use the weight_scaling strategy"):
        build_strategy(plain, "mc_dropout")


@pytest.mark.parametrize("suffix", scoring.SUFFIXES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_leaves_the_old_table(
    *, plain: bundle.Bundle, fashion: FashionMNISTSplits, tmp_path: Path, suffix: str,
    error: type[BaseException],
) -> None:  # fmt: skip
    out = tmp_path / f"scores{suffix}"
    out.write_text("old")
    done: list[int] = []

    def interrupted(images: int) -> None:
        done.append(images)
        assert out.read_text() == "old"
        if len(done) == 2:
            raise error

    strategy = build_strategy(plain)
    with pytest.raises(error):
        score(plain, strategy, in_parts(some(fashion), 8), out, on_images=interrupted)
    assert out.read_text() == "old"
    assert listing(tmp_path) == [out.name]
    score(plain, strategy, some(fashion), out)
    assert out.stat().st_size > 1_000
    assert out.stat().st_mode & 0o444 == 0o444
    assert listing(tmp_path) == [out.name]


@pytest.mark.parametrize("suffix", scoring.SUFFIXES)
def test_a_full_disk_leaves_the_old_table(
    plain: bundle.Bundle, fashion: FashionMNISTSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    out = tmp_path / f"scores{suffix}"
    out.write_text("old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        score(plain, build_strategy(plain), some(fashion), out)
    assert out.read_text() == "old"
    assert listing(tmp_path) == [out.name]


def test_a_table_of_another_kind_is_refused(plain: bundle.Bundle, fashion: FashionMNISTSplits, tmp_path: Path) -> None:
    out = tmp_path / "scores.xlsx"
    with pytest.raises(ValueError, match=r"scores\.xlsx should end in \.parquet or \.csv"):
        score(plain, build_strategy(plain), some(fashion), out)
    done = invoke("nowhere", BOOT.parent, "--out", out)
    assert done.exit_code == 2
    assert f"Invalid value for '--out': {out} should end in .parquet or .csv, or be a folder" in " ".join(
        done.output.split()
    )
    assert listing(tmp_path) == []


def test_a_strategy_that_the_network_does_not_allow_is_one_clear_line(plain: bundle.Bundle, tmp_path: Path) -> None:
    arguments: list[str | Path] = [
        plain.path,
        BOOT.parent,
        "--out",
        tmp_path / "scores.csv",
        "--strategy",
        "mc_dropout",
    ]
    assert "ReLUNet has no active dropout layer" in refused("calibration", "score", *arguments, code=1)


def test_wrong_images_write_nothing(plain: bundle.Bundle, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "notes.txt").write_text("no picture")
    done = invoke(plain.path, pictures, "--out", tmp_path / "out" / "scores.csv")
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith(f"{pictures / 'notes.txt'}: this is not an image of a kind read here")
    assert listing(tmp_path) == ["pictures"]
