from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models import bundle, networks, records
from models.records import Augmentation, Diversity
from training.data import FashionMNISTSplits, LabelledImages
from training.fit import DivergedError, EpochRecord, Fitted, Recipe, evaluate, fit
from training.regularisers import RISE, averaged, optimizer_for, schedule_for


def prepare(pixels: Tensor) -> Tensor:
    return bundle.normalise(pixels, records.InputRecord())


@pytest.fixture(scope="session")
def small(fashion: FashionMNISTSplits) -> tuple[LabelledImages, LabelledImages]:
    return fashion.train[slice(0, 2000)], fashion.validation[slice(0, 500)]


def test_one_epoch_on_the_real_data_is_over_80_percent(fashion: FashionMNISTSplits) -> None:
    network = networks.build("RandomDropoutModel", seed=0)
    fitted = fit(network, fashion.train, fashion.validation, Recipe(epochs=1), prepare=prepare)
    loss, accuracy = evaluate(network, prepare(fashion.test.pixels), fashion.test.labels)
    assert accuracy > 0.80
    assert math.isfinite(loss)
    assert [record.epoch for record in fitted.history] == [1]
    assert fitted.history[0].validation_accuracy > 0.80
    assert fitted.history[0].seconds > 0


def test_the_same_seed_gives_identical_weights(
    small: tuple[LabelledImages, LabelledImages], global_state: Tensor
) -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        network = networks.build("RandomDropoutModel", seed=seed)
        fit(network, *small, Recipe(epochs=2, seed=seed), prepare=prepare)
        return network.state_dict()

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.2.weight"], other["layers.2.weight"])
    assert torch.equal(torch.get_rng_state(), global_state)


def test_progress_is_told(small: tuple[LabelledImages, LabelledImages]) -> None:
    images: list[int] = []
    epochs: list[EpochRecord] = []
    network = networks.build("ReLUNet", seed=0)
    fitted = fit(
        network,
        *small,
        Recipe(epochs=2, batch_size=300),
        prepare=prepare,
        on_batch=images.append,
        on_epoch=epochs.append,
    )
    assert images == [300] * 6 + [200] + [300] * 6 + [200]
    assert tuple(epochs) == fitted.history
    assert (fitted.best_epoch, fitted.stopped) == (2, "completed")


def test_early_stopping_restores_the_best_weights(small: tuple[LabelledImages, LabelledImages]) -> None:
    train, validation = small[0][slice(0, 300)], small[1]
    network = networks.build("ReLUNet", seed=0)
    recipe = Recipe(epochs=100, learning_rate=0.003, early_stopping=True, patience=4)
    fitted = fit(network, train, validation, recipe, prepare=prepare)
    losses = [record.validation_loss for record in fitted.history]
    assert fitted.stopped == "early"
    assert fitted.best_epoch == 1 + losses.index(min(losses))
    assert len(losses) == fitted.best_epoch + 4
    assert evaluate(network, prepare(validation.pixels), validation.labels)[0] == pytest.approx(min(losses), abs=1e-6)
    assert losses[-1] > min(losses)
    assert not network.training


def test_without_early_stopping_the_last_weights_are_kept(small: tuple[LabelledImages, LabelledImages]) -> None:
    train, validation = small[0][slice(0, 300)], small[1]
    network = networks.build("ReLUNet", seed=0)
    fitted = fit(network, train, validation, Recipe(epochs=30, learning_rate=0.003), prepare=prepare)
    losses = [record.validation_loss for record in fitted.history]
    assert len(losses) == fitted.best_epoch == 30
    assert losses[-1] > min(losses)
    assert evaluate(network, prepare(validation.pixels), validation.labels)[0] == pytest.approx(losses[-1], abs=1e-6)


class DivergesLater(nn.Module):
    """A linear network whose output becomes NaN at a given training batch, or only in validation from then on."""

    def __init__(self, at: int, in_validation: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)
        self.at = at
        self.in_validation = in_validation
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        self.seen += self.training
        if self.seen >= self.at and self.training != self.in_validation:
            return logits * math.nan
        return logits


@pytest.mark.parametrize(
    ("in_validation", "message"),
    [
        (False, "the training loss became nan in epoch 3, batch 3"),
        (True, "the validation loss became nan in epoch 3"),
    ],
)
def test_a_diverging_loss_keeps_the_last_good_weights(
    small: tuple[LabelledImages, LabelledImages], in_validation: bool, message: str
) -> None:
    good: list[dict[str, Tensor]] = []
    network = DivergesLater(at=2 * 4 + 3, in_validation=in_validation)
    with pytest.raises(DivergedError, match=message) as caught:
        fit(
            network,
            *small,
            Recipe(epochs=5, batch_size=500),
            prepare=prepare,
            on_epoch=lambda _: good.append({name: t.clone() for name, t in network.state_dict().items()}),
        )
    fitted = caught.value.fitted
    assert (fitted.stopped, fitted.best_epoch, len(fitted.history)) == ("diverged", 2, 2)
    assert all(torch.equal(tensor, good[1][name]) for name, tensor in network.state_dict().items())


def test_diverging_in_the_first_epoch_leaves_the_initial_weights(small: tuple[LabelledImages, LabelledImages]) -> None:
    network = DivergesLater(at=2)
    before = network.linear.weight.clone()
    with pytest.raises(DivergedError) as caught:
        fit(network, *small, Recipe(epochs=5), prepare=prepare)
    assert caught.value.fitted.history == ()
    assert torch.equal(network.linear.weight, before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("patience", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("regularisation", {"max_norm": 0.0}),
    ],
)
def test_impossible_recipes_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Recipe(**{field: value})  # type: ignore[arg-type]


def test_one_cycle_rises_to_the_learning_rate_and_falls() -> None:
    network, recipe = nn.Linear(2, 2), Recipe(learning_rate=0.01, schedule="one_cycle")
    optimizer = optimizer_for(network, recipe)
    schedule = schedule_for(optimizer, recipe, 100)
    assert schedule is not None
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.01)
    top = rates.index(max(rates))
    assert top == pytest.approx(100 * RISE, abs=1)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] < 0.001
    assert rates[-1] < 1e-5


def test_the_moving_average_of_weights_and_statistics() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = averaged(network, 0.75)
    assert average is not None
    expected: dict[str, Tensor] = {}
    for _ in range(5):
        network(torch.randn(8, 3))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update_parameters(network)
        for name, value in network.state_dict().items():
            moved = 0.75 * expected[name] + 0.25 * value if name in expected else value.clone()
            expected[name] = moved
    found = average.module.state_dict()
    for name in ("0.weight", "0.bias", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(found[name], expected[name])


def test_what_is_kept_is_the_average_and_its_validation_is_told(small: tuple[LabelledImages, LabelledImages]) -> None:
    def trained(recipe: Recipe) -> tuple[Fitted, dict[str, Tensor]]:
        network = networks.build("YourDropoutModel", {"batch_norm": "before_dropout"}, seed=0)
        fitted = fit(network, *small, recipe, prepare=prepare)
        found = evaluate(network, prepare(small[1].pixels), small[1].labels)
        last = fitted.history[-1]
        assert found == pytest.approx((last.validation_loss, last.validation_accuracy), abs=1e-6)
        return fitted, network.state_dict()

    plain, plain_state = trained(Recipe(epochs=2))
    average, average_state = trained(Recipe(epochs=2, averaging=0.5))
    assert [record.train_loss for record in average.history] == [record.train_loss for record in plain.history]
    assert any(not torch.equal(average_state[name], plain_state[name]) for name in plain_state)


def test_augmented_images_are_trained_on_by_the_seed(
    small: tuple[LabelledImages, LabelledImages], global_state: Tensor
) -> None:
    def trained(recipe: Recipe) -> list[float]:
        network = networks.build("ReLUNet", seed=0)
        return [record.train_loss for record in fit(network, *small, recipe, prepare=prepare).history]

    recipe = Recipe(epochs=2, augmentation=Augmentation(flip=True, shift=2, erase=0.5))
    assert trained(recipe) == trained(recipe)
    assert trained(recipe)[-1] > trained(Recipe(epochs=2))[-1] + 0.05
    assert torch.equal(torch.get_rng_state(), global_state)


def test_bfloat16_trains_as_well_and_keeps_float32_weights(small: tuple[LabelledImages, LabelledImages]) -> None:
    """Other roundings, and the network is afterwards as any other: float32, for images in any order of memory."""
    found = {}
    for precision in ("float32", "bfloat16"):
        network = networks.build("CNN", {"channels": [8, 16]}, seed=0)
        recipe = Recipe(epochs=2, precision=precision)
        fitted = fit(network, *small, recipe, prepare=prepare)
        found[precision] = fitted.history[-1], network.state_dict()
        assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    exact, rounded = found["float32"], found["bfloat16"]
    assert abs(exact[0].validation_loss - rounded[0].validation_loss) < 0.1
    assert not torch.equal(exact[1]["trunk.0.weight"], rounded[1]["trunk.0.weight"])


def test_diversity_changes_what_is_trained_and_follows_the_seed(
    small: tuple[LabelledImages, LabelledImages], global_state: Tensor
) -> None:
    def trained(seed: int, weight: float) -> tuple[Tensor, Fitted]:
        network = networks.build("RandomDropoutModel", seed=0)
        recipe = Recipe(epochs=1, seed=seed, diversity=Diversity(weight=weight))
        fitted = fit(network, *small, recipe, prepare=prepare)
        return network.state_dict()["layers.2.weight"], fitted

    (first, told), (again, _), (other, _), (plain, _) = trained(0, 0.5), trained(0, 0.5), trained(1, 0.5), trained(0, 0)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)
    assert 0 < told.history[0].train_accuracy <= 1
    assert torch.equal(torch.get_rng_state(), global_state)
