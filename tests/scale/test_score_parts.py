"""Scores in parts: the same wherever they are computed, none lost or doubled whatever dies, in bounded memory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pyarrow import csv, dataset, parquet

from calibration import score as scoring
from calibration.__main__ import main
from calibration.score_parts import SUMMARY, Job, score_parts
from models import bundle
from models.networks import own
from models.packing import PackedBundle
from tests import own_networks
from tests.calibration.own_bundles import DIGITS, imported, saved
from tests.command_line import run
from tests.scale.cluster import content, ray
from training import engines, pieces
from training.data import CLASSES, FashionMNISTSplits

SIZE = 16
"""Of a part, in images."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "IMAGES_AT_ONCE", SIZE)
    monkeypatch.setenv("DROPOUT_NETWORKS", "")  # What a command trusts is forgotten with the test.


@pytest.fixture(scope="module")
def images(fashion: FashionMNISTSplits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=fashion.test.pixels[:100].numpy(), labels=fashion.test.labels[:100].numpy())
    return path


def score(source: Path, out: Path, *options: str, name: str | Path = "mlp") -> Result:
    workers = [] if "--engine" in options else ["--workers", "2"]
    return CliRunner().invoke(main, ["score", str(name), str(source), "--out", str(out), *workers, *options])


def test_parts_are_the_table(shipped: bundle.Bundle, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "scores"
    done = score(images, out, "--samples", "8")
    assert done.exit_code == 0, done.output
    assert re.search(
        r"Images scored: 100, mean confidence 0\.\d{4}, accuracy 0\.\d\d00\. Wrote .*scores\.", done.stdout
    )
    assert sorted(content(out)) == [SUMMARY, *(f"part-{number:05}.parquet" for number in range(7))]
    one = tmp_path / "scores.parquet"
    assert CliRunner().invoke(main, ["score", "mlp", str(images), "--out", str(one), "--samples", "8"]).exit_code == 0
    table = parquet.read_table(one)
    together = dataset.dataset(out).to_table()
    assert together.schema.equals(table.schema)
    assert together.drop_columns(["confidence", "probabilities", "uncertainty", "novelty", "standard_error"]).equals(
        table.drop_columns(["confidence", "probabilities", "uncertainty", "novelty", "standard_error"])
    )
    assert together["confidence"].to_numpy() == pytest.approx(table["confidence"].to_numpy(), abs=2e-6)
    summary = json.loads((out / SUMMARY).read_text())
    assert summary.pop("mean_confidence") == pytest.approx(together["confidence"].to_numpy().mean())
    correct = np.array(together["label"]) == np.array(together["true_label"])
    assert summary == {
        "bundle": "mlp", "version": shipped.version, "strategy": "mc_dropout", "samples": 8, "schema": 3,
        "temperature": round(shipped.scaling("mc_dropout").temperature, 6), "coverage": 0.9, "target_error": 0.05,
        "parts": 7, "images": 100, "accuracy": correct.mean(),
    }  # fmt: skip
    metadata = parquet.read_schema(out / "part-00000.parquet").metadata
    assert {key: value for key, value in metadata.items() if key not in (b"piece", b"scores")} == (
        parquet.read_schema(one).metadata
    )


@pytest.mark.parametrize("kind", ["npz", "pictures", "own"])
def test_a_cluster_gives_the_same_bytes(
    kind: str, cluster: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    name: str | Path = "mlp"
    source, options = images, list[str]()
    if kind == "pictures":
        source = tmp_path / "pictures"
        for number in range(40):
            folder = source / CLASSES[number % 2].replace("/", "-")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.load(images)["images"][number]
            Image.fromarray(pixels).save(folder / f"{number}.png")
    if kind == "own":
        own.trust(DIGITS)
        weights = saved(own_networks.digits(), tmp_path / "weights.safetensors")
        name, options = imported("digits", weights, tmp_path / "own").path, ["--network", DIGITS]
        np.savez(tmp_path / "digits.npz", np.random.default_rng(0).integers(0, 17, (50, 8, 8)).astype(np.float32))
        source = tmp_path / "digits.npz"
    # By a path that leads elsewhere from where the nodes were started.
    monkeypatch.chdir(tmp_path)
    source = Path(os.path.relpath(source))
    for engine, out in (([], tmp_path / "local"), (ray(cluster), tmp_path / "ray")):
        done = score(source, out, *engine, *options, name=name)
        assert done.exit_code == 0, done.output
    assert len(content(tmp_path / "local")) > 3
    assert content(tmp_path / "local") == content(tmp_path / "ray")


def test_finished_parts_are_kept(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    assert score(images, out).exit_code == 0
    before, times = content(out), {file.name: file.stat().st_mtime_ns for file in out.glob("part*")}
    (out / "part-00003.parquet").unlink()
    (out / "part-00005.parquet").write_bytes(b"PAR1 and no more")
    again = score(images, out)
    assert again.exit_code == 0, again.output
    assert content(out) == before
    written = [file.name for file in sorted(out.glob("part*")) if file.stat().st_mtime_ns != times[file.name]]
    assert written == ["part-00003.parquet", "part-00005.parquet"]
    assert "Images scored: 100" in again.stdout


def test_parts_of_images_that_changed_are_made_anew(images: Path, tmp_path: Path) -> None:
    pixels = np.load(images)["images"]
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(3):
        np.savez(shards / f"{number}.npz", pixels[number * 10 : number * 10 + 10])
    out = tmp_path / "scores"
    assert score(shards, out).exit_code == 0
    before, times = content(out), {file.name: file.stat().st_mtime_ns for file in out.glob("part*")}
    np.savez(shards / "1.npz", pixels[50:60])
    np.savez(shards / "3.npz", pixels[30:40])
    assert score(shards, out).exit_code == 0
    changed = {name for name, found in content(out).items() if found != before.get(name)}
    assert changed == {"part-00001.parquet", "part-00003.parquet", SUMMARY}
    assert {name for name, time in times.items() if (out / name).stat().st_mtime_ns != time} == {"part-00001.parquet"}
    assert parquet.read_table(out)["image"].to_pylist() == [
        f"{file}.npz/{row}" for file in range(4) for row in range(10)
    ]


def test_other_images_of_the_same_size_are_others(images: Path, tmp_path: Path) -> None:
    """Older than the parts, and by the same name: what tells them apart is where they are."""
    pixels = np.load(images)["images"][:20]
    for folder, ordered in (("one", pixels), ("two", pixels[::-1])):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "images.npz", ordered)
    found = {}
    for folder in ("one", "two"):
        done = score(tmp_path / folder / "images.npz", tmp_path / "scores")
        assert done.exit_code == 0
        found[folder] = parquet.read_table(tmp_path / "scores")["confidence"].to_pylist()
    assert found["one"] == pytest.approx(found["two"][::-1], abs=2e-6)
    assert found["one"] != found["two"]


def test_images_that_change_while_they_are_scored_are_scored_again(images: Path, tmp_path: Path) -> None:
    pixels = np.load(images)["images"][:20]
    np.savez(tmp_path / "images.npz", pixels)
    card = bundle.load("mlp").card

    class Meanwhile:
        """An engine on which others write, once a part is under way."""

        def map(self, function: Any, tasks: Any, shared: Any) -> Iterator[tuple[Any, Any]]:
            for task in tasks:
                found = function(shared, task)
                np.savez(tmp_path / "images.npz", pixels[::-1])
                yield task, found

    job = Job(PackedBundle.of(bundle.load("mlp")), "weight_scaling", 1, 0.9, 0.05)
    found = pieces.split(tmp_path / "images.npz", card.classes, card.input)
    outcome = score_parts(job, found, tmp_path / "scores", Meanwhile())
    assert "don't change the images meanwhile" in outcome.failures["part-00000.parquet"]
    assert not (tmp_path / "scores" / SUMMARY).exists()
    outcome = score_parts(job, found, tmp_path / "scores", engines.build("local", workers=1))
    assert not outcome.failures
    one = CliRunner().invoke(
        main,
        [
            "score",
            "mlp",
            str(tmp_path / "images.npz"),
            "--out",
            str(tmp_path / "one.csv"),
            "--strategy",
            "weight_scaling",
        ],
    )
    assert one.exit_code == 0
    confidences = csv.read_csv(tmp_path / "one.csv")["confidence"].to_pylist()
    assert parquet.read_table(tmp_path / "scores")["confidence"].to_pylist() == pytest.approx(confidences, abs=2e-6)


def test_scores_are_not_written_among_images(images: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    np.savez(shards / "0.npz", np.load(images)["images"][:3])
    (tmp_path / "file").touch()
    for source, out, message in (
        (shards, shards, "is where the images are"),
        (shards, shards / "scores", "is where the images are"),
        (shards, shards / "scores.parquet", "is where the images are"),
        (images, images, "should end in .parquet or .csv, or be a folder: one that is there, or a name without a dot"),
        (shards, tmp_path / "file", "file is a file: name a folder, or end it in .parquet or .csv"),
    ):
        done = CliRunner().invoke(main, ["score", "mlp", str(source), "--out", str(out)])
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
    assert list(content(shards)) == ["0.npz"]
    again = tmp_path / "again.parquet"
    table = pa.table({"image": [row.tobytes() for row in np.load(images)["images"][:3]]})
    parquet.write_table(table, again)
    done = CliRunner().invoke(main, ["score", "mlp", str(again), "--out", str(again)])
    assert "is where the images are" in " ".join(done.output.split())


def test_what_a_killed_worker_left_behind_is_removed_in_time(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    out.mkdir()
    for name in (".part-00000.parquet.old", ".part-00000.parquet.new", ".notes"):
        (out / name).touch()
    for name in (".part-00000.parquet.old", ".notes"):
        os.utime(out / name, (1, 1))
    assert score(images, out, "--strategy", "weight_scaling").exit_code == 0
    assert {name for name in content(out) if name.startswith(".")} == {".part-00000.parquet.new", ".notes"}


def test_other_scores_and_files_are_never_mixed_in(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    assert score(images, out, "--samples", "8").exit_code == 0
    before = content(out)
    for options, message in (
        (["--samples", "9"], "part-00000.parquet is by other settings: samples 8, and not 9; choose another --out"),
        (["--samples", "8", "--coverage", "0.8"], "part-00000.parquet is by other settings: coverage 0.9, and not 0.8"),
        (["--strategy", "weight_scaling"], "by other settings: strategy mc_dropout, and not weight_scaling"),
    ):
        done = score(images, out, *options)
        assert done.exit_code == 1
        assert message in " ".join(done.output.split())
    np.savez(tmp_path / "fewer.npz", np.load(images)["images"][:20])
    done = score(tmp_path / "fewer.npz", out, "--samples", "8")
    assert "part-00002.parquet is of images that are no longer there: delete it" in " ".join(done.output.split())
    assert content(out) == before
    (out / "notes.txt").touch()
    assert "holds something else than scores, as notes.txt" in score(images, out, "--samples", "8").output
    for arguments in (["--engine", "ray"], ["--workers", "2"]):
        command = ["score", "mlp", str(images), "--out", str(tmp_path / "scores.csv"), *arguments]
        assert "--engine and --workers are for a table in parts" in CliRunner().invoke(main, command).output


def test_one_bad_part_does_not_stop_the_others(images: Path, tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "scores"
    shards.mkdir()
    pixels = np.load(images)["images"].astype(np.float32)
    for number in range(3):
        np.savez(shards / f"{number}.npz", pixels if number != 1 else -pixels)
    done = run("calibration", "score", "mlp", shards, "--out", out)
    assert done.returncode == 1
    assert "part-00001.parquet is missing: DataError: `arr_0` in " in done.stderr
    assert "pixels that are NaN or outside 0..255, first at index 0" in done.stderr
    assert done.stderr.endswith("Error: 1 of 3 parts are missing; the same command tries them again\n")
    assert "Images scored: 200" in done.stdout
    assert sorted(content(out)) == ["part-00000.parquet", "part-00002.parquet"]
    np.savez(shards / "1.npz", pixels)
    done = run("calibration", "score", "mlp", shards, "--out", out)
    assert done.returncode == 0
    assert "Images scored: 300" in done.stdout
    assert len(content(out)) == 4
