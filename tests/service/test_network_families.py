"""A running server answers from a bundle of each family of networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from calibration import strategies
from models import bundle
from tests.conftest import write_bundle
from tests.service.asking import IMAGE, JSON, predict, refusal, with_instances
from tests.serving import serving

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("CNN", {"channels": [4, 8], "hidden_width": 32}),
    "recurrent": ("RowRecurrent", {"width": 32}),
    "transformer": ("VisionTransformer", {"width": 32}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a bundle of each, with random weights and no calibration."""
    place = tmp_path_factory.mktemp("families")
    for name, (network, arguments) in FAMILIES.items():
        write_bundle(place / name, network, arguments)
    return place


@pytest.fixture(scope="module")
def families(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder / "log", ",".join(str(folder / name) for name in FAMILIES), workers=1) as client:
        yield client


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (4, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("strategy", ["mc_dropout", "weight_scaling", "geometric_mean", "last_layer"])
def test_answers_are_those_of_the_library(families: httpx.Client, folder: Path, name: str, strategy: str) -> None:
    answer = predict(families, pixels(), model=name, strategy=strategy, samples=32)
    loaded = bundle.load(folder / name)
    assert answer["model"] == {"name": name, "version": loaded.version}
    expected = strategies.build(strategy, loaded.network, (28, 28), samples=32)(loaded.prepare(pixels()))
    for index, prediction in enumerate(answer["predictions"]):
        assert list(prediction["probabilities"].values()) == pytest.approx(expected.mean[index].tolist(), abs=2e-6)
        epistemic = prediction["uncertainty"]["epistemic"]
        if strategy in ("mc_dropout", "last_layer"):
            assert epistemic == pytest.approx(float(expected.mutual_information[index]), abs=1e-5)
            assert epistemic > 0
        else:
            assert epistemic is None


@pytest.mark.parametrize("name", list(FAMILIES))
def test_each_describes_itself(families: httpx.Client, name: str) -> None:
    model = families.get(f"/model?model={name}").json()
    network, arguments = FAMILIES[name]
    assert (model["card"]["network"]["name"], model["card"]["network"]["arguments"]) == (network, arguments)
    assert ("moment_propagation" in model["strategies"]) is (name == "cnn")


def test_a_strategy_that_a_network_does_not_allow_is_refused(families: httpx.Client) -> None:
    body = with_instances(IMAGE, model="recurrent", strategy="moment_propagation")
    error = refusal(families.post("/predict", content=body, headers=JSON), 400)
    assert error["field"] == "strategy"
