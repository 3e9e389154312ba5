"""What README states is what the commands it names have written."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from models import bundle
from tests.command_line import ROOT

README = (ROOT / "README.md").read_text()
NAMES = {
    "weight scaling": "weight_scaling",
    "MC dropout": "mc_dropout",
    "geometric mean": "geometric_mean",
    "last layer": "last_layer",
    "moment propagation": "moment_propagation",
}


def read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / path).read_text())
    return content


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_results_is_the_report(name: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| {name}"))
    section = read("docs/report/report.json")["strategies"][NAMES[name]]
    raw, calibrated = section["raw"], section["calibrated"]
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert cells == [
        f"{100 * raw['accuracy']:.2f} %",
        *(f"{raw[measure]:.4f}" for measure in ("nll", "brier", "ece")),
        *(f"{calibrated[measure]:.4f}" for measure in ("nll", "brier", "ece")),
    ]


def test_the_report_is_of_the_shipped_bundle(shipped: bundle.Bundle) -> None:
    assert read("docs/report/report.json")["model"]["version"] == shipped.version


def test_what_is_said_of_the_comparison_is_so() -> None:
    mc_dropout = read("docs/report/report.json")["comparison"]["mc_dropout"]
    for measure in ("accuracy", "nll"):
        low, high = mc_dropout[measure]["interval"]
        assert low < 0 < high
    difference = read("docs/report/report.json")["comparison"]["last_layer"]["nll"]
    low, high = difference["interval"]
    assert high < 0
    stated = f"by {-difference['difference']:.4f} nats (95 % interval {-high:.4f} to {-low:.4f})"
    assert stated in " ".join(README.split())


def test_the_training_speed_is_the_benchmarks() -> None:
    rows = {row["way"]: row for row in read("benchmarks/results/training.json")["rows"]}
    seconds, notebook = rows["project"]["epoch_seconds"], rows["notebook"]["epoch_seconds"]
    speedup = rows["project"]["speedup"]
    assert f"{seconds:.2f} s; the notebook's way {notebook:.2f} s: {speedup:.1f} times as fast" in README


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def block(language: str) -> str:
    return blocks(language)[0]


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found


def test_the_curl_example(server: httpx.Client) -> None:
    expected = json.loads(block("console").split("\n", 1)[1])
    body = (ROOT / "docs" / "boot.png").read_bytes()
    answer = server.post("/predict_image", content=body, headers={"Content-Type": "image/png"}).json()
    assert_nearly_equal(answer, expected)


def test_the_python_example(
    server: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(block("python").replace("http://localhost:3000", str(server.base_url)), {})  # noqa: S102
    number = re.compile(r"\d+\.\d+")
    printed, expected = capsys.readouterr().out, block("text")
    assert number.sub("#", printed).split() == number.sub("#", expected).split()
    assert [float(value) for value in number.findall(printed)] == pytest.approx(
        [float(value) for value in number.findall(expected)], abs=2e-5
    )


def test_the_library_example() -> None:
    names: dict[str, Any] = {}
    exec(blocks("python")[1], names)  # noqa: S102
    distribution = names["distribution"]
    assert distribution.mean.shape == (5, 10)
    assert distribution.mutual_information.shape == (5,)
    assert distribution.standard_error.isfinite().all()


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
        assert found == pytest.approx(expected, abs=2e-5)
    else:
        assert found == expected
