from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from models import bundle, records, sealed
from models.bundle import BundleError, CalibrationScores, StrategyScores
from models.records import (
    CONFORMAL_METHODS,
    AbstentionRecord,
    Calibration,
    Scaling,
    StrategyCalibration,
)
from tests.conftest import write_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole, calibrated bundle."""
    path = tmp_path / "tiny"
    write_bundle(path, "YourDropoutModel", {"dropout": [0.1, 0.2], "hidden_widths": [8]})
    loaded = bundle.load(path)
    bundle.save_calibration(loaded, *calibration_for(loaded))
    return path


def calibration_for(loaded: bundle.Bundle, temperature: float = 0.7) -> tuple[Calibration, CalibrationScores]:
    calibration = Calibration(
        weights_sha256=loaded.card.weights_sha256,
        images=5000,
        samples=64,
        seed=0,
        design="orthogonal",
        strategies={
            "mc_dropout": StrategyCalibration(
                scaling=Scaling(temperature=temperature), nll_before=0.5, nll_after=0.4,
                cross_validated_nll={"pool_then_calibrate": 0.4},
                abstention=(
                    AbstentionRecord(
                        target_error=0.1, delta=0.05, threshold=0.2, error_bound=0.09, coverage=0.8,
                        selective_error=0.08,
                    ),
                ),
            )
        },
        versions={},
    )  # fmt: skip
    values = torch.linspace(0, temperature, 5)
    scores = StrategyScores(dict.fromkeys(CONFORMAL_METHODS, values + 1), values, values > 0.3, 2 * values, 3 * values)
    return calibration, CalibrationScores(torch.arange(5), {"mc_dropout": scores})


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_loaded_is_what_was_written(tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "one")
    loaded = bundle.load(tmp_path / "one")
    assert loaded.card.network.name == "RandomDropoutModel"
    assert loaded.card.classes[9] == "Ankle boot"
    assert loaded.calibration is None
    assert loaded.scaling("mc_dropout") == Scaling()
    assert not loaded.network.training
    inputs = torch.randn(4, 28, 28)
    assert torch.equal(loaded.network(inputs), written(inputs))


def test_calibration_is_stored_and_changes_the_version(folder: Path) -> None:
    loaded = bundle.load(folder)
    assert loaded.scaling("mc_dropout") == Scaling(temperature=0.7)
    assert loaded.scaling("weight_scaling").temperature == 1
    other = bundle.save_calibration(loaded, *calibration_for(loaded, temperature=0.8))
    again = bundle.load(folder)
    assert again.version == other.version != loaded.version
    assert again.calibration == other.calibration
    assert len(list(folder.glob("calibration-*"))) == 1, "the scores before are gone"
    assert again.scores is not None
    kept, written = again.scores.strategies["mc_dropout"], calibration_for(loaded, temperature=0.8)[1]
    assert torch.equal(again.scores.labels, written.labels)
    assert kept.correct.dtype == torch.bool
    torch.testing.assert_close(vars(kept), vars(written.strategies["mc_dropout"]))


def test_the_scores_are_those_of_the_calibration(folder: Path) -> None:
    path = next(folder.glob("calibration-*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"calibration-\w+\.safetensors is corrupt.*calibration fit"):
        bundle.load(folder)
    path.unlink()
    with pytest.raises(BundleError, match=r"calibration-\w+\.safetensors is missing"):
        bundle.load(folder)
    assert bundle.load(folder, calibrated=False).calibration is None, "so that it can be fitted anew"


def test_a_calibration_of_an_older_release_is_named(folder: Path) -> None:
    edit(folder / "calibration.json", set_key("format", 1))
    with pytest.raises(BundleError, match=r"written by an older release; fit it anew with `python -m calibration fit"):
        bundle.load(folder)


def test_pixels_are_normalised_as_the_card_says(folder: Path) -> None:
    pixels = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8)
    expected = torch.tensor([[-1, 1], [-0.6, -0.2]])
    loaded = bundle.load(folder)
    torch.testing.assert_close(loaded.prepare(pixels), expected)
    torch.testing.assert_close(loaded.prepare(pixels.float()), expected)
    assert pixels.dtype == torch.uint8
    kept = pixels.float()
    loaded.prepare(kept)
    assert torch.equal(kept, pixels.float()), "the caller's pixels must not change"


def set_key(key: str, value: object) -> Callable[[dict[str, object]], object]:
    return lambda content: content.update({key: value})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("card.json", set_key("format", 2), r"card.json has format 2, .* reads up to 1.*upgrade"),
        ("calibration.json", set_key("format", 9), "calibration.json has format 9"),
        ("card.json", set_key("name", "other"), "card.json was altered"),
        ("card.json", lambda content: content.pop("sha256"), "card.json was altered"),
        ("card.json", set_key("weights_sha256", "0" * 64), "card.json was altered"),
        ("card.json", set_key("classes", "ten"), "card.json is not a valid card: classes"),
        ("card.json", set_key("input", {"shape": [28, 28], "mean": 0.5, "std": 0}), "input.std: .* greater than 0"),
        ("card.json", set_key("surprise", 1), "surprise: Extra inputs are not permitted"),
        ("card.json", lambda content: content.pop("network"), "network: Field required"),
        ("calibration.json", set_key("images", 4999), "calibration.json was altered"),
    ],
)
def test_an_edited_file_is_noticed(
    folder: Path, file: str, change: Callable[[dict[str, object]], object], message: str
) -> None:
    edit(folder / file, change)
    with pytest.raises(BundleError, match=message):
        bundle.load(folder)


@pytest.mark.parametrize("file", ["card.json", "weights.safetensors"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(BundleError, match=f"{file} is missing"):
        bundle.load(folder)


@pytest.mark.parametrize("content", ["", "{", "[1]", "nul", "[" * 100_000], ids=["empty", "{", "[1]", "nul", "deep"])
@pytest.mark.parametrize("file", ["card.json", "calibration.json"])
def test_a_file_that_is_no_json_object_is_named(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(BundleError, match=file):
        bundle.load(folder)


def test_binary_in_the_place_of_json_is_an_error_not_a_crash(folder: Path) -> None:
    (folder / "card.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match=r"card\.json is not valid JSON"):
        bundle.load(folder)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_flipped_bit_in_the_weights_is_noticed(folder: Path, position: int) -> None:
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[position] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.safetensors is corrupt"):
        bundle.load(folder)


def test_truncated_weights_are_noticed(folder: Path) -> None:
    content = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(content[:-4])
    with pytest.raises(BundleError, match="corrupt"):
        bundle.load(folder)


def test_another_bundles_calibration_is_noticed(folder: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", seed=5)
    shutil.copy(folder / "calibration.json", tmp_path / "other")
    with pytest.raises(BundleError, match="was fitted for other weights"):
        bundle.load(tmp_path / "other")


def resealed_weights(folder: Path, content: bytes) -> None:
    """Put ``content`` in the weights' place and make the checksums agree, as somebody malicious would."""
    loaded = bundle.load(folder)
    (folder / "calibration.json").unlink()
    fields = loaded.card.model_dump(exclude={"weights_sha256", "format"})
    bundle.write(folder, loaded.network, fields)
    card = (folder / "card.json").read_text()
    import hashlib

    old = json.loads(card)["weights_sha256"]
    resealed = records.Card.model_validate_json(
        json.dumps({key: value for key, value in json.loads(card).items() if key != "sha256"}).replace(
            old, hashlib.sha256(content).hexdigest()
        )
    )
    (folder / "card.json").write_text(sealed.sealed(resealed))
    (folder / "weights.safetensors").write_bytes(content)


def test_a_pickle_is_never_loaded(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    resealed_weights(folder, pickle.dumps(Bomb()))
    with pytest.raises(BundleError, match="does not hold the weights"):
        bundle.load(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"layers.2.weight": torch.zeros(3, 3)}, "does not hold the weights of YourDropoutModel"),
        (None, "not finite in layers.2.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder: Path, tensors: dict[str, torch.Tensor] | None, message: str) -> None:
    if tensors is None:
        tensors = dict(bundle.load(folder).network.state_dict())
        tensors["layers.2.bias"] = torch.full_like(tensors["layers.2.bias"], torch.nan)
    resealed_weights(folder, safetensors.torch.save(tensors))
    with pytest.raises(BundleError, match=message):
        bundle.load(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classes", ("a", "b", "c"), r"card\.json names 3 classes, the network's output is \(1, 10\)"),
        ("input", records.InputRecord(shape=(10, 10)), r"does not take images of \(10, 10\)"),
        ("network", {"parameters": 1}, r"card\.json says 1 parameters, the weights have 6,370"),
    ],
)
def test_a_card_that_is_not_of_this_network(folder: Path, field: str, value: object, message: str) -> None:
    """Sealed rightly, and yet wrong."""
    loaded = bundle.load(folder)
    fields = loaded.card.model_dump(exclude={"weights_sha256", "format"})
    fields[field] = fields[field] | value if isinstance(value, dict) else value
    bundle.write(folder, loaded.network, fields)
    with pytest.raises(BundleError, match=message):
        bundle.load(folder)


def test_the_version_changes_with_the_card(folder: Path) -> None:
    """A card with another normalisation gives other answers from the same weights."""
    loaded = bundle.load(folder)
    fields = loaded.card.model_dump(exclude={"weights_sha256", "format"}) | {"input": records.InputRecord(std=0.1)}
    bundle.write(folder, loaded.network, fields)
    other = bundle.load(folder)
    assert other.card.weights_sha256 == loaded.card.weights_sha256
    assert other.version != loaded.version


def test_an_unknown_name_lists_what_ships() -> None:
    with pytest.raises(BundleError, match=r"no bundle 'mpl'.*\(cnn, mlp, mlp-wide\)"):
        bundle.load("mpl")
