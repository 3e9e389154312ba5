"""What docs/engine.md and README say of the engine is what the benchmarks have written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from calibration.masks import DESIGNS
from tests.command_line import ROOT
from training.study import markdown, plans
from training.study.measure import key_of
from training.study.schema import Study

ENGINE = (ROOT / "docs" / "engine.md").read_text()
README = (ROOT / "README.md").read_text()
MLP, CNN = "784-120-60-10", "small CNN"


def results(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return content


def speed_row(network: str, batch: int, threads: int) -> str:
    """Images, one pass, fastest other, engine, ratio, ratio at equal error, MiB of each of the two."""
    content = results("sampling")
    fewer = content["samples_of_equal_error"]
    rows = {
        (row["engine"], row["samples"]): row
        for row in content["rows"]
        if (row["network"], row["batch"], row["threads"]) == (network, batch, threads)
    }
    others = [row for (name, _), row in rows.items() if name not in ("engine", "deterministic")]
    fastest = min(others, key=lambda row: float(row["milliseconds"]))
    engine, less = rows["engine", 64], rows["engine", fewer]
    ratio, at_equal_error = (fastest["milliseconds"] / row["milliseconds"] for row in (engine, less))
    cells = [
        f"{batch:,}",
        *(f"{row['milliseconds']:.2f}" for row in (rows["deterministic", 64], fastest, engine)),
        f"{ratio:.1f}",
        # The number of designed masks that are as good as 64 independent ones was measured on the MLP.
        *([f"{at_equal_error:.1f}"] if network == MLP else []),
        f"{fastest['peak_mib']:.0f}",
        f"{engine['peak_mib']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


CASES = [*((MLP, batch) for batch in (1, 8, 32, 128, 1024)), *((CNN, batch) for batch in (1, 8, 32, 128))]


@pytest.mark.parametrize(("network", "batch"), CASES)
def test_speed(network: str, batch: int) -> None:
    assert speed_row(network, batch, 2) in README
    assert speed_row(network, batch, 1) in ENGINE


def test_the_fraction_of_the_machines_peak() -> None:
    for row in results("sampling")["gemm"]:
        if row["batch"] == 1024:
            assert (
                f"| {row['threads']} | {row['gemm_gigaflops']:.0f} | {row['engine_gigaflops']:.0f} | "
                f"{100 * row['fraction']:.0f} % | {100 * row['fraction_with_padding']:.0f} % |"
            ) in ENGINE


def test_the_profile() -> None:
    (shares,) = (
        row["shares"] for row in results("sampling")["profiles"] if (row["threads"], row["batch"]) == (2, 1024)
    )
    first, later, shared, gathering, copying = (
        f"{100 * shares[name]:.0f} %" for name in ("baddbmm_", "baddbmm", "addmm", "index_select", "copy_")
    )
    stated = (
        f"takes {first} of the time, those of the later layers {later}, the shared product {shared}; "
        f"gathering inputs {gathering}, copies {copying}"
    )
    assert stated in " ".join(ENGINE.split())


@pytest.mark.parametrize("one_block", [False, True])
@pytest.mark.parametrize("design", [design for design in DESIGNS if design != "independent"])
def test_gains_of_designs(design: str, *, one_block: bool) -> None:
    rows = results("variance")["rows"]
    plain = {row["samples"]: row["squared_error"] for row in rows if row["design"] == "independent"}
    gains = {
        row["samples"]: plain[row["samples"]] / row["squared_error"]
        for row in rows
        if row["design"] == design and row["one_block"] == one_block
    }
    if gains:
        cells = " | ".join(f"{gains[samples]:.2f}" for samples in (16, 32, 64, 128, 256, 1024))
        assert f"| `{design}`{', one block' if one_block else ''} | {cells} |" in ENGINE


@pytest.mark.parametrize("design", DESIGNS)
def test_coverage_and_bias(design: str) -> None:
    for row in results("variance")["intervals"]:
        if row["design"] == design:
            cells = [
                f"`{design}`, {row['samples']}",
                f"{100 * row['coverage_top_class_of_unsure_images']:.1f} %",
                f"{100 * row['coverage_probabilities_between_5_and_95_percent']:.1f} %",
                f"{100 * row['coverage_all']:.0f} %",
                f"{row['standard_error_to_root_mean_square_error']:.2f}",
                f"{row['bias']:+.4f}",
                f"{row['bias_jackknife']:+.4f}",
            ]
            assert f"| {' | '.join(cells)} |".replace("-0.", "−0.") in ENGINE


def test_what_is_said_of_adaptive_sampling() -> None:
    found = results("variance")["adaptive"]
    text = " ".join(ENGINE.split())
    assert f"{found['mean_samples']:.0f} sub-networks on average" in text
    assert f"{100 * found['settled']:.1f} % of the images are settled" in text
    assert f"{100 * found['agreement_of_settled_with_other_1024']:.2f} % of those" in text
    needed = {
        design: min(int(count) for count, share in shares.items() if share >= 0.999)
        for design, shares in found["agreement_by_fixed_samples_with_the_same_1024"].items()
    }
    assert f"{needed['independent']} independent or {needed['orthogonal']} orthogonal ones" in text
    assert min(needed.values()) > 4 * found["mean_samples"]


def test_what_is_said_of_memory() -> None:
    found = results("sampling")["images_10000_samples_1024"]
    stated = f"{found['summarise_peak_mib']:.0f} MiB, against {found['logits_peak_mib']:.0f} MiB"
    assert stated in " ".join(ENGINE.split())
    assert found["logits_peak_mib"] < 1024


def test_what_is_said_of_moment_propagation() -> None:
    found = results("variance")["strategies"]
    text = " ".join(ENGINE.split())
    assert f"{found['moment_propagation_variance_of_logits']:.4f} with that of 20,000 sub-networks" in text
    assert f"but {found['moment_propagation_variance_of_probabilities']:.2f} for probabilities" in text
    assert f"{found['moment_propagation_variance_of_probabilities_ratio']:.1f} times too large" in text
    assert f"64 sampled sub-networks reach {found['mc_dropout_64_variance_of_probabilities']:.2f}" in text


def http_row(workers: int, form: str, images: int, clients: int) -> str:
    """Form, images, clients, workers; requests a second of the service, the bare handler, plain BentoML; ratios; p50
    and p99 of the service in milliseconds."""
    rows = {
        row["server"]: row
        for row in results("http")["rows"]
        if (row["workers"], row["form"], row["images"], row["clients"]) == (workers, form, images, clients)
    }
    ours, bare, plain = rows["service"], rows["bare"], rows.get("plain")
    cells = [
        form, f"{images}", f"{clients}", f"{workers}",
        *(f"{row['requests_per_second']:.0f}" for row in (ours, bare)),
        f"{plain['requests_per_second']:.0f}" if plain else "",
        f"{ours['relative']:.2f}",
        f"{ours['requests_per_second'] / plain['requests_per_second']:.0f}" if plain else "",
        f"{ours['p50_milliseconds']:.1f}", f"{ours['p99_milliseconds']:.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


HTTP_CASES = [
    (workers, form, images, clients)
    for workers in (1, 2)
    for form in ("json", "raw")
    for images, clients in ((1, 1), (1, 8), (1, 32), (64, 8))
]


@pytest.mark.parametrize("case", HTTP_CASES)
def test_http_speed(case: tuple[int, str, int, int]) -> None:
    assert http_row(*case) in README


def test_what_is_said_of_http() -> None:
    found = results("http")
    text = " ".join(README.split())
    lone, memory = found["lone_request_milliseconds"], found["memory"]
    assert f"took {lone['before']:.2f} ms before a burst of 64 clients and {lone['after']:.2f} ms after it" in text
    first, *_, last = memory["resident_mebibytes"]
    assert memory["requests"][-1] >= 100_000
    assert f"{first:.0f} MiB after the first tenth of {memory['requests'][-1]:,} requests, {last:.0f} MiB after" in text
    assert not any(row["failures"] for row in found["rows"])


STUDIES = sorted((ROOT / "docs" / "study").glob("*/study.json"))


def test_every_preset_has_its_results() -> None:
    assert {path.parent.name for path in STUDIES} == set(plans.PRESETS)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_what_is_said_of_a_study(path: Path) -> None:
    """Its table and its sentences are those of its results, which are of the preset as it is now."""
    study = Study.model_validate_json(path.read_text())
    text = (ROOT / "docs" / "study.md").read_text()
    assert markdown.summary(study) in text
    assert f"    {study.command}\n" in text
    assert {figure.name for figure in path.parent.glob("*.png")} == set(
        re.findall(rf'src="study/{study.name}/([^"]+)"', text)
    )
    assert not study.failures
    plan = plans.load(study.name)
    assert tuple(result.configuration for result in study.results) == plan.configurations
    for result in study.results:
        keys = [key_of(result.configuration, seed) for seed in range(plan.seeds)]
        assert [run.key for run in result.runs] == keys


def test_the_figures_of_the_conclusion_are_those_of_the_tables() -> None:
    """Those with two decimals or more; a difference may be told without its sign."""
    conclusion, _, tables = (ROOT / "docs" / "study.md").read_text().partition("\n## The notebook")
    said, known = (set(re.findall(r"[+−]?\d+\.\d{2,}", text)) for text in (conclusion, tables))
    assert len(said) > 20
    assert said - {"0.003"} <= known | {number.lstrip("+−") for number in known}


def test_the_figures_of_what_pays_are_those_of_the_study() -> None:
    section = (ROOT / "docs" / "models.md").read_text().partition("\n## What pays\n")[2].partition("\n## ")[0]
    study = Study.model_validate_json((ROOT / "docs" / "study" / "cnn" / "study.json").read_text())
    found = [
        interval
        for result in study.results
        for intervals in (result.means, result.differences, result.detection)
        for interval in intervals.values()
    ]
    known = {
        f"{scale * value:{sign}.{digits}f}".replace("-", "−")
        for interval in found
        for value in (interval.mean, (interval.high or interval.mean) - interval.mean)
        for scale, digits in ((1, 3), (1, 4), (100, 2))
        for sign in "+-"
    }
    said = set(re.findall(r"[+−]?\d+\.\d{2,}", section))
    assert len(said) > 20
    assert said - {"0.001"} <= known
