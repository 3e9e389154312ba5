from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from sklearn.metrics import roc_auc_score
from torch import Tensor

from calibration import metrics, strategies
from calibration.novelty import NoveltyDetector
from models import bundle
from models.records import Floors
from training import __main__ as command_line
from training import data, outliers
from training.bundling import recipe_of
from training.data import FashionMNISTSplits, LabelledImages
from training.fit import Recipe
from training.outliers import Outliers, load_outliers
from training.release import presets
from training.release.measure import measured, unmet
from training.release.presets import PRESETS, Preset

METRICS = {"accuracy": 0.9, "nll": 0.3}


@pytest.mark.parametrize(("floors", "missed"), [
    (Floors(), []),
    (Floors(least={"accuracy": 0.9}, most={"nll": 0.3}), []),
    (Floors(least={"accuracy": 0.91}), ["accuracy is 0.9000, and should be at least 0.91"]),
    (Floors(most={"nll": 0.29, "ece": 0.1}), ["nll is 0.3000, and should be at most 0.29"]),
    (Floors(least={"accuracy": 1.0}, most={"nll": 0.1}), ["accuracy is 0.9000, and should be at least 1",
                                                          "nll is 0.3000, and should be at most 0.1"]),
])  # fmt: skip
def test_floors_that_are_missed_are_told(shipped: bundle.Bundle, floors: Floors, missed: list[str]) -> None:
    card = shipped.card.model_copy(update={"metrics": METRICS, "floors": floors})
    assert list(unmet(card)) == missed


def test_a_metric_that_is_no_number_reaches_no_floor(shipped: bundle.Bundle) -> None:
    card = shipped.card.model_copy(update={"metrics": {"nll": float("nan")}, "floors": Floors(most={"nll": 1})})
    assert len(list(unmet(card))) == 1


def test_what_is_measured(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> None:
    """By hand and by scikit-learn, on some of the images; the bundle itself stands for those of other seeds."""
    some = FashionMNISTSplits(
        fashion.train[slice(0, 10)], fashion.validation, fashion.calibration[slice(0, 400)],
        fashion.test[slice(0, 600)], 0,
    )  # fmt: skip
    sets = {"digits": load_outliers().sets["digits"][:300]}
    found = measured(shipped, [shipped], some, sets)
    inputs, labels = shipped.prepare(some.test.pixels), some.test.labels
    foreign = shipped.prepare(sets["digits"])
    truth = torch.cat([torch.zeros(600), torch.ones(300)])

    def area(score: Callable[[Tensor], Tensor]) -> float:
        return float(roc_auc_score(truth, torch.cat([score(inputs), score(foreign)])))

    for name in ("weight_scaling", "mc_dropout"):
        mean = strategies.build(name, shipped.network, (28, 28))(inputs, shipped.scaling(name)).mean
        assert found[f"{name}_accuracy"] == pytest.approx(float((mean.argmax(1) == labels).double().mean()))
        loss = -mean.gather(1, labels.unsqueeze(1)).log().mean()
        assert found[f"{name}_nll"] == pytest.approx(float(loss), rel=1e-4)
        assert found[f"{name}_ece"] == pytest.approx(float(metrics.expected_calibration_error(mean, labels)), abs=1e-4)
    mc = strategies.build("mc_dropout", shipped.network, (28, 28))
    own = area(lambda images: mc(images, shipped.scaling("mc_dropout")).mutual_information)
    assert found["digits_mutual_information_auroc"] == pytest.approx(own, abs=1e-4)
    detector = NoveltyDetector.of(shipped)
    assert detector is not None
    assert found["digits_novelty_auroc"] == pytest.approx(area(lambda images: detector(images).distance), abs=1e-6)
    # The other has a temperature of its own, from other calibration images.
    assert found["digits_mutual_information_auroc_mean"] == pytest.approx(own, abs=0.02)
    assert 0 < found["digits_mutual_information_auroc_sd"] < 0.02
    assert found["seeds"] == 2
    alone = measured(shipped, [], some, sets)
    assert alone == {name: value for name, value in found.items() if name in alone}
    assert set(found) - set(alone) == {
        "seeds", "digits_mutual_information_auroc_mean", "digits_mutual_information_auroc_sd"
    }  # fmt: skip


@pytest.fixture
def release(
    fashion: FashionMNISTSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Floors, Recipe], Result]:
    """Runs the command for one small bundle of these floors, on few images, into ``tmp_path``."""

    def part(images: LabelledImages, count: int) -> LabelledImages:
        return images[slice(0, count)]

    few = FashionMNISTSplits(
        part(fashion.train, 2000), part(fashion.validation, 200), part(fashion.calibration, 400),
        part(fashion.test, 300), 0,
    )  # fmt: skip
    digits = {"digits": load_outliers().sets["digits"][:100]}
    monkeypatch.setattr(data, "load", lambda *_, **__: few)
    monkeypatch.setattr(outliers, "load_outliers", lambda: Outliers(digits, {"mnist": "it is hidden"}))

    def run(floors: Floors, recipe: Recipe = Recipe(epochs=1)) -> Result:  # noqa: B008
        preset = Preset(network="RandomDropoutModel", recipe=recipe, seeds=3, floors=floors)
        monkeypatch.setitem(PRESETS, "mlp", preset)
        arguments = ["release", "mlp", "--out", str(tmp_path / "made"), "--into", str(tmp_path / "shipped")]
        return CliRunner().invoke(command_line.main, arguments, catch_exceptions=False)

    return run


def test_a_bundle_is_shipped_only_if_it_reaches_its_floors(
    release: Callable[..., Result], tmp_path: Path, global_state: Tensor
) -> None:
    first = release(Floors(least={"mc_dropout_accuracy": 0.99}))
    assert first.exit_code == 1
    assert "not shipped, for they miss their floors: mlp: mc_dropout_accuracy is 0." in first.output
    assert "floors that need mnist are not looked at: it is hidden" in first.output
    assert not (tmp_path / "shipped").exists()
    made = bundle.load(tmp_path / "made" / "mlp")
    written = (tmp_path / "made" / "mlp" / "weights.safetensors").stat().st_mtime_ns

    second = release(Floors(least={"mc_dropout_accuracy": 0.3, "mnist_novelty_auroc": 2}))
    assert second.exit_code == 0, second.output
    found = bundle.load(tmp_path / "shipped" / "mlp")
    assert (tmp_path / "made" / "mlp" / "weights.safetensors").stat().st_mtime_ns == written, "trained once"
    assert found.card.weights_sha256 == made.card.weights_sha256
    assert found.card.floors.least["mc_dropout_accuracy"] == 0.3
    assert found.card.metrics["seeds"] == 3
    assert 0 < found.card.metrics["digits_novelty_auroc"] <= 1
    assert found.calibration is not None
    assert found.scores is not None
    assert found.scores.density is not None
    report = bundle.attached_report(found)
    assert report is not None
    assert "Deep ensemble" in report or "deep ensemble" in report
    assert torch.equal(torch.get_rng_state(), global_state)

    third = release(Floors(), Recipe(epochs=2))
    assert third.exit_code == 1
    assert "was made by another recipe; remove it, or name another --out" in third.output


def test_the_presets_are_what_ships() -> None:
    for name, preset in presets.PRESETS.items():
        card = bundle.load(name).card
        assert (card.network.name, card.network.arguments) == (preset.network, preset.arguments)
        assert recipe_of(card) == preset.recipe
        if card.floors != Floors():
            assert card.floors == preset.floors
            assert list(unmet(card)) == []
