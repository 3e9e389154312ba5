"""What one run measures, against the same by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss

from calibration import strategies
from models import bundle, networks
from models.records import InputRecord, Recipe
from training.data import FashionMNISTSplits, LabelledImages
from training.fit import DivergedError, fit
from training.study import measure
from training.study.measure import train_and_measure
from training.study.schema import Configuration

RECIPE = Recipe(epochs=2, learning_rate=0.003)


@pytest.fixture(scope="module")
def few(fashion: FashionMNISTSplits) -> FashionMNISTSplits:
    def first(images: LabelledImages, count: int) -> LabelledImages:
        return images[:count]

    return FashionMNISTSplits(
        fashion.train, first(fashion.validation, 500), fashion.calibration, first(fashion.test, 600), fashion.split_seed
    )


def trained(configuration: Configuration, seed: int, splits: FashionMNISTSplits) -> torch.nn.Module:
    """The same network, trained by hand."""
    network = networks.build(configuration.network, configuration.arguments, seed=seed)
    drawn = measure.drawn(splits.train, configuration.train_images, seed)
    recipe = configuration.recipe.model_copy(update={"seed": seed})
    fit(network, drawn, splits.validation, recipe, prepare=prepare)
    return network


def prepare(pixels: torch.Tensor) -> torch.Tensor:
    return bundle.normalise(pixels, InputRecord())


def test_the_measures_are_those_of_the_network_trained(few: FashionMNISTSplits) -> None:
    configuration = Configuration(name="one", network="RandomDropoutModel", train_images=640, recipe=RECIPE)
    found = train_and_measure(configuration, 4, few)
    network = trained(configuration, 4, few)
    inputs, labels = prepare(few.test.pixels), few.test.labels
    with torch.no_grad():
        probabilities = network(inputs).double().softmax(1)
    assert found.test.loss == pytest.approx(log_loss(labels, probabilities), abs=1e-5)
    assert found.test.accuracy == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))
    sampled = strategies.build("mc_dropout", network, (28, 28), samples=measure.SAMPLES)(inputs)
    assert found.sampled is not None
    assert found.sampled.nll == pytest.approx(float(F.nll_loss(sampled.mean.log(), labels)), abs=1e-5)
    assert found.sampled.mutual_information == pytest.approx(float(sampled.mutual_information.mean()), abs=1e-5)
    assert found.sampled.nll != pytest.approx(found.test.loss, abs=1e-4)
    assert (found.parameters, len(found.history), found.kept_epoch) == (102_070, 2, 2)


def test_images_are_drawn_by_the_seed_for_every_configuration_alike(fashion: FashionMNISTSplits) -> None:
    first, again, other = (measure.drawn(fashion.train, 100, seed).pixels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({image.numpy().tobytes() for image in first}) == 100
    assert len(measure.drawn(fashion.train, 50_000, 0)) == 50_000


def test_without_dropout_nothing_is_sampled(few: FashionMNISTSplits) -> None:
    found = train_and_measure(Configuration(name="one", network="ReLUNet", train_images=200, recipe=RECIPE), 0, few)
    assert found.sampled is None
    assert found.variance_shift == {}


def test_dropout_before_batch_norm_shifts_its_variance_and_after_it_does_not(few: FashionMNISTSplits) -> None:
    """Li et al. (2019): with rate p before it, batch norm learns a variance that is larger than that at test time."""
    shifts = {}
    for order in ("before_dropout", "after_dropout"):
        configuration = Configuration(
            name=order, network="YourDropoutModel", train_images=5_000, recipe=Recipe(epochs=3),
            arguments={"dropout": [0.0, 0.5], "hidden_widths": [200], "batch_norm": order},
        )  # fmt: skip
        (shifts[order],) = train_and_measure(configuration, 0, few).variance_shift.values()
    assert shifts["after_dropout"] < 0.75
    assert 0.9 < shifts["before_dropout"] < 1.15


def test_the_shift_is_the_variance_met_over_that_learnt(few: FashionMNISTSplits) -> None:
    configuration = Configuration(
        name="bn", network="CNN", train_images=300, recipe=Recipe(epochs=1),
        arguments={"channels": [4], "hidden_width": 8, "batch_norm": True},
    )  # fmt: skip
    found = train_and_measure(configuration, 0, few)
    network = trained(configuration, 0, few)
    first, *_ = [(name, module) for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        values = network.get_submodule("trunk")[0](prepare(few.test.pixels).unsqueeze(1))  # type: ignore[index]
    expected = values.double().var(dim=(0, 2, 3)) / first[1].running_var
    assert found.variance_shift[first[0]] == pytest.approx(float(expected.median()), rel=1e-5)


def test_divergence_in_the_first_epoch_is_an_error(few: FashionMNISTSplits) -> None:
    recipe = Recipe(epochs=2, learning_rate=1e30)
    with pytest.raises(DivergedError):
        train_and_measure(Configuration(name="one", network="ReLUNet", train_images=300, recipe=recipe), 0, few)


def test_early_stopping_keeps_the_best_epoch(few: FashionMNISTSplits) -> None:
    recipe = Recipe(epochs=60, learning_rate=0.01, early_stopping=True, patience=2)
    found = train_and_measure(Configuration(name="one", network="ReLUNet", train_images=300, recipe=recipe), 0, few)
    assert found.stopped == "early"
    assert found.kept_epoch == found.epochs_to_best < len(found.history)
    assert found.validation.loss == pytest.approx(min(each.validation_loss for each in found.history), abs=1e-5)
