"""What README states is what the commands it names have written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from models import bundle
from tests.command_line import ROOT
from tests.serving import serving

README = (ROOT / "README.md").read_text()
NAMES = {
    "weight scaling": "weight_scaling",
    "MC dropout": "mc_dropout",
    "geometric mean": "geometric_mean",
    "last layer": "last_layer",
    "moment propagation": "moment_propagation",
    "deep ensemble": "deep_ensemble",
}


def read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / path).read_text())
    return content


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    """The shipped model's part of the report in docs."""
    (found,) = read("docs/report/report.json")["models"]
    assert isinstance(found, dict)
    return found


def difference(model: dict[str, Any], strategy: str, measure: str) -> dict[str, Any]:
    """To weight scaling."""
    (row,) = (row for row in model["differences"] if (row["strategy"], row["measure"]) == (strategy, measure))
    assert isinstance(row, dict)
    return row


def interval(found: dict[str, float], sign: int = 1) -> str:
    """As "by 0.0045 nats (95 % interval 0.0016 to 0.0074)" is written, of a value or of what it is less."""
    low, high = sorted(sign * found[side] for side in ("low", "high"))
    return f"{low:.4f} to {high:.4f}"


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_results_is_the_report(model: dict[str, Any], name: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| {name}"))
    section = model["strategies"][NAMES[name]]
    raw, calibrated = section["raw"], section["calibrated"]
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    mnist = model["outliers"]["mnist"]["detection"][NAMES[name]]
    assert cells == [
        f"{100 * raw['accuracy']['value']:.2f} %",
        *(f"{raw[measure]['value']:.4f}" for measure in ("nll", "ece")),
        *(f"{calibrated[measure]['value']:.4f}" for measure in ("nll", "brier", "ece")),
        f"{1000 * section['ranking']['confidence']['aurc']['value']:.1f}",
        f"{max(scores['auroc']['value'] for scores in mnist.values()):.3f}",
        f"{section['cost']['among_many']:.3f}",
    ]


SHIPPED = {
    "mlp": "784-120-60-10",
    "mlp-wide": "784-512-256-10",
    "cnn": "6 convolutions, 256-10",
}


def row_of(name: str) -> str:
    """As the tables in README and in docs/models.md have it."""
    loaded = bundle.load(name)
    card, found = loaded.card, loaded.card.metrics
    megabytes = (loaded.path / "weights.safetensors").stat().st_size / 1e6
    cells = [
        f"`{name}`", SHIPPED[name], f"{card.network.parameters:,}", f"{megabytes:.2f}",
        f"{100 * found['weight_scaling_accuracy']:.2f} %", f"{100 * found['mc_dropout_accuracy']:.2f} %",
        f"{found['mc_dropout_nll']:.4f}", f"{found['mc_dropout_ece']:.4f}",
        f"{found['mnist_mutual_information_auroc']:.4f}", f"{found['mnist_novelty_auroc']:.4f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("page", ["README.md", "docs/models.md"])
def test_the_table_of_the_models_that_ship_is_their_cards(page: str, name: str) -> None:
    assert row_of(name) in (ROOT / page).read_text().splitlines()


def test_what_is_said_of_the_seeds_is_in_the_card() -> None:
    found = bundle.load("cnn").card.metrics
    said = (
        f"over five seeds {found['mnist_mutual_information_auroc_mean']:.4f} ± "
        f"{found['mnist_mutual_information_auroc_sd']:.4f}"
    )
    assert found["seeds"] == 5
    assert said in " ".join((ROOT / "docs" / "models.md").read_text().split())


def test_the_report_is_of_the_shipped_bundle(model: dict[str, Any], shipped: bundle.Bundle) -> None:
    assert model["version"] == shipped.version
    assert read("docs/report/report.json")["missing"] == {}


def test_what_is_said_of_the_comparison_is_so(model: dict[str, Any]) -> None:
    text = " ".join(README.split())
    assert model["best"]["accuracy"] is None
    assert [difference(model, "mc_dropout", measure)["better"] for measure in ("accuracy", "nll")] == [None] * 2
    assert difference(model, "mc_dropout", "aurc")["better"] is False
    brier = difference(model, "mc_dropout", "brier")["difference"]
    assert f"Brier score (by {brier['value']:.4f}, 95 % interval {interval(brier)}) and AURC" in text
    last, deep = (difference(model, strategy, "nll")["difference"] for strategy in ("last_layer", "deep_ensemble"))
    assert f"by {-last['value']:.4f} nats (95 % interval {interval(last, -1)})" in text
    assert f"trained apart gain {-deep['value']:.4f} (95 % interval {interval(deep, -1)}), not distinguishable" in text
    assert last["high"] < 0
    assert deep["low"] < 0 < deep["high"]


def test_what_is_said_of_subnetworks_calibration_and_abstention_is_so(model: dict[str, Any]) -> None:
    text = " ".join(README.split())
    chapter, section = model["interpretation"], model["strategies"]["mc_dropout"]
    assert f"a single sub-network has {100 * chapter['member_accuracy'][2]:.1f} % accuracy (median)" in text
    assert f"from {chapter['level_accuracy']} on their mean can't be told from weight scaling by accuracy" in text
    assert f"from {chapter['level_nll']} on by calibrated NLL" in text
    assert f"(KL divergence {chapter['kl_geometric']['mean']:.4f} nats)" in text
    assert f"the arithmetic one ({chapter['kl_arithmetic']['mean']:.4f})" in text
    found = section["calibrated"]
    assert found["ece_p_value"] > 0.05
    assert section["raw"]["overconfidence"]["high"] < -0.05
    assert f"its ECE of {found['ece']['value']:.4f} is not" in text
    assert f"(mean {found['ece_if_calibrated']:.4f}, p = {found['ece_p_value']:.2f})" in text
    (abstention,) = (row for row in section["abstention"] if row["promised"]["target_error"] == 0.05)
    assert f"{100 * abstention['coverage']:.1f} % of the test images are answered" in text
    assert f"{100 * abstention['selective_error']:.2f} % of them wrongly" in text
    mnist = model["outliers"]["mnist"]["detection"]
    assert f"AUROC {mnist['mc_dropout']['epistemic']['auroc']['value']:.3f}" in text
    assert f"{mnist['weight_scaling']['total']['auroc']['value']:.3f} by the entropy of weight scaling" in text


def test_the_training_speed_is_the_benchmarks() -> None:
    rows = {row["way"]: row for row in read("benchmarks/results/training.json")["rows"]}
    seconds, notebook = rows["project"]["epoch_seconds"], rows["notebook"]["epoch_seconds"]
    speedup = rows["project"]["speedup"]
    assert f"{seconds:.2f} s; the notebook's way {notebook:.2f} s: {speedup:.1f} times as fast" in README
    (study,) = (row for way, row in rows.items() if "side by side" in way)
    assert (
        f"{study['networks_epochs_per_second']:.2f} networks·epochs a second, {study['speedup']:.1f} times as many"
        in " ".join(README.split())
    )


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def block(language: str) -> str:
    return blocks(language)[0]


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """What `make serve` serves."""
    with serving(tmp_path_factory.mktemp("default") / "log", "", workers=1) as client:
        yield client


def test_the_curl_example(default: httpx.Client) -> None:
    expected = json.loads(block("console").split("\n", 1)[1])
    body = (ROOT / "docs" / "boot.png").read_bytes()
    answer = default.post("/predict_image", content=body, headers={"Content-Type": "image/png"}).json()
    assert_nearly_equal(answer, expected)


def test_the_python_example(
    default: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(block("python").replace("http://localhost:3000", str(default.base_url)), {})  # noqa: S102
    number = re.compile(r"\d+\.\d+")
    printed, expected = capsys.readouterr().out, block("text")
    assert number.sub("#", printed).split() == number.sub("#", expected).split()
    assert [float(value) for value in number.findall(printed)] == pytest.approx(
        [float(value) for value in number.findall(expected)], abs=2e-5
    )


@pytest.mark.parametrize("number", [1, 2])
def test_the_library_examples(number: int) -> None:
    names: dict[str, Any] = {}
    exec(blocks("python")[number], names)  # noqa: S102
    distribution = names["distribution"]
    assert distribution.mean.shape == (5, 10)
    assert distribution.mutual_information.shape == (5,)
    assert distribution.standard_error.isfinite().all()
    assert (distribution.temperature == 1) == (number == 2)


def test_every_python_example_is_run() -> None:
    assert len(blocks("python")) == 3


def assert_nearly_equal(found: Any, expected: Any) -> None:
    """Equal, but that numbers may differ in the last digits, as they do between kinds of processor."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_nearly_equal(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_nearly_equal(*pair)
    elif isinstance(expected, float):
        # The novelty's distance goes into the hundreds, its p-value in steps of 1 / 5,001.
        assert found == pytest.approx(expected, abs=2e-5) or found == pytest.approx(expected, rel=1e-3)
    else:
        assert found == expected
