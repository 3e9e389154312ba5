from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.study.plans import TINY, tiny
from training.study import plans
from training.study.plans import PlanError


@pytest.mark.parametrize("name", plans.PRESETS)
def test_every_preset_is_a_plan_with_three_seeds_and_a_baseline(name: str) -> None:
    plan = plans.load(name)
    assert plan.name == name
    assert plan.seeds >= 3
    baselines = {each.baseline for each in plan.configurations} - {None}
    assert baselines
    assert all(each.name in baselines for each in plan.configurations if each.baseline is None)


def test_the_presets_that_are_promised() -> None:
    assert set(plans.PRESETS) == {
        "notebook", "notebook-50", "rates", "regularisers", "combinations", "networks", "small-data", "cnn"
    }  # fmt: skip


def test_a_configuration_is_laid_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("""
title = "Mine"
question = "?"
[defaults]
network = "WideMLP"
arguments = {dropout = [0.0, 0.0, 0.0], activation = "selu"}
[defaults.recipe]
epochs = 7
batch_size = 32
regularisation = {weight_decay = 0.1}
[[configurations]]
name = "one"
arguments = {dropout = [0.1, 0.1, 0.1]}
recipe = {epochs = 3, regularisation = {max_norm = 2}}
""")
    plan = plans.load(str(path))
    (only,) = plan.configurations
    assert (plan.name, plan.seeds) == ("mine", 3)
    assert only.arguments == {"dropout": [0.1, 0.1, 0.1], "activation": "selu"}
    assert (only.recipe.epochs, only.recipe.batch_size) == (3, 32)
    assert (only.recipe.regularisation.weight_decay, only.recipe.regularisation.max_norm) == (0.1, 2.0)


def test_epochs_and_seeds_take_the_place_of_the_plans(tmp_path: Path) -> None:
    plan = plans.load(str(tiny(tmp_path)), epochs=9, seeds=5)
    assert {each.recipe.epochs for each in plan.configurations} == {9}
    assert plan.seeds == 5


def append(more: str) -> str:
    return TINY + "\n[[configurations]]\n" + more


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title = ", "is not valid TOML"),
        ("title = 'x'\nquestion = '?'", "configurations: "),
        (append('name = "x"'), "configuration 'x': network: Field required"),
        (append('name = "x"\nnetwork = "Perceptron"'), "configuration 'x': unknown network 'Perceptron'; known are"),
        (append('name = "x"\nnetwork = "ReLUNet"\nrates = 1'), "configuration 'x': rates: Extra inputs"),
        (append('name = "x"\nnetwork = "CNN"\narguments = {depth = 3}'), "configuration 'x': CNN takes"),
        (append('name = "x"\nnetwork = "ReLUNet"\nrecipe = {epochs = 0}'), "recipe.epochs: Input should be"),
        (append('name = "x"\nnetwork = "ReLUNet"\nrecipe = {epochs = "many"}'), "got 'many'"),
        (
            append('name = "x"\nnetwork = "RowRecurrent"\nrecipe = {regularisation = {activation_noise = 1}}'),
            "configuration 'x': RowRecurrent has no activation modules",
        ),
        (append('name = "none"\nnetwork = "ReLUNet"'), "two configurations are named 'none'"),
        (append('name = "x"\nnetwork = "ReLUNet"\nbaseline = "nothing"'), "its baseline 'nothing' is not there"),
        (append('name = "x"\nnetwork = "ReLUNet"\nbaseline = "dropout"'), "has a baseline itself"),
        (append('name = "x"\nnetwork = "ReLUNet"\nbaseline = "none"\ntrain_images = 100'), "another number of images"),
        ("title = 'x'\nconfigurations = [3]", "a configuration must be a table, got 3"),
        ("defaults = 3\n" + "title = 'x'", "defaults must be a table"),
    ],
)
def test_what_is_wrong_with_a_plan_is_told(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(content)
    with pytest.raises(PlanError) as error:
        plans.load(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_preset_is_told_with_those_known() -> None:
    with pytest.raises(PlanError, match=r"'note-book' is neither a preset .*notebook-50.* nor a TOML file"):
        plans.load("note-book")
