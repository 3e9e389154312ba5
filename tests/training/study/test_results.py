from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.training.study.synthetic import compared, configuration, detecting, run, study
from training.study import markdown, results
from training.study.schema import Failure


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_the_interval_is_students(values: list[float]) -> None:
    found = results.interval(values)
    error = float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else (np.mean(values),) * 2
    expected = (np.mean(values), low, high)
    np.testing.assert_allclose((found.mean, found.low or 0, found.high or 0), expected, rtol=0, atol=1e-7)


def test_one_run_has_no_interval() -> None:
    found = results.interval([0.5])
    assert (found.mean, found.low, found.high, found.runs) == (0.5, None, None, 1)


def test_differences_are_paired_by_seed() -> None:
    """Seeds move both by 5 units, their difference by 1: unpaired intervals would be several times as wide."""
    found = compared(0.02, noise=0.01).results[1]
    own, apart = found.means["test_accuracy"], found.differences["test_accuracy"]
    assert apart.mean == pytest.approx(0.02)
    assert own.high is not None
    assert apart.high is not None
    assert own.high - own.mean == pytest.approx(6 * (apart.high - apart.mean))


def test_a_seed_that_only_one_has_is_no_pair() -> None:
    found = study(
        [configuration("plain"), configuration("other", "plain")],
        [run("plain", 0, accuracy=0.5), run("plain", 1, accuracy=0.6), run("other", 1, accuracy=0.7)],
    ).results[1]
    assert found.differences["test_accuracy"].mean == pytest.approx(0.1)
    assert found.differences["test_accuracy"].runs == 1


def test_gaps_are_positive_where_the_network_overfits() -> None:
    found = study([configuration("one")], [run("one", 0, accuracy=0.8, loss=0.5, train_loss=0.1)]).results[0]
    assert found.means["loss_gap"].mean == pytest.approx(0.4)
    assert found.means["accuracy_gap"].mean == pytest.approx(0.1)


def test_sampled_measures_are_compared_with_a_baseline_that_samples_nothing() -> None:
    found = compared(0.0, loss=-0.1).results
    assert "mc_nll" not in found[0].means
    assert found[1].means["mc_nll"].mean == pytest.approx(0.35)
    assert found[1].differences["mc_nll"].mean == pytest.approx(0.35 - 0.5)


def test_a_configuration_without_runs_is_kept() -> None:
    found = study(
        [configuration("plain"), configuration("other", "plain")], [], [Failure(name="plain", seed=0, error="x")]
    )
    assert [result.runs for result in found.results] == [(), ()]
    assert found.results[1].means == {}
    assert found.results[1].differences == {}


def test_the_markdown_table_marks_what_is_told_apart() -> None:
    lines = markdown.summary(compared(0.02, loss=0.0001)).splitlines()
    assert lines[2] == "| plain | 80.00 |  | 0.5000 |  | 0.0300 |  |  | 0.100 | 3.0 |"
    assert lines[3].startswith(
        "| other | 82.00 | **+2.00 ± 0.25** | 0.5001 | +0.0001 ± 0.0025 | 0.0300 | 0.4501 | 0.0200 |"
    )
    assert lines[5].startswith("- Test accuracy better than the baseline's")


def test_detection_is_compared_set_by_set() -> None:
    made = detecting()
    plain, other, third = made.results
    assert plain.detection["letters"].mean == pytest.approx(0.85)
    assert plain.detection_differences == third.detection == third.detection_differences == {}
    apart = other.detection_differences["letters"]
    assert apart.mean == pytest.approx(0.101)
    assert apart.low == pytest.approx(0.101 - 4.3027 * 0.001 / 3**0.5, abs=1e-6)
    lines = markdown.summary(made).splitlines()
    start = lines.index("| configuration | letters | uniform noise |")
    assert lines[start + 2 : start + 5] == [
        "| plain | 0.8500 | 0.9000 |", "| other | **0.9510** | 0.9000 |", "| third |  |  |",
    ]  # fmt: skip
    assert "- AUROC of letters by mutual information better than the baseline's: other (+0.1010)." in lines
    assert not any("uniform noise by mutual" in line for line in lines)


def test_the_table_has_a_line_for_each_run() -> None:
    made = compared(0.1)
    rows = list(csv.DictReader(results.table(made).splitlines()))
    assert [(row["name"], row["seed"]) for row in rows] == [
        (name, str(seed)) for name in ("plain", "other") for seed in range(3)
    ]
    assert [float(row["test_accuracy"]) for row in rows] == [
        each.test.accuracy for result in made.results for each in result.runs
    ]
    assert rows[0]["mc_nll"] == ""
