"""Each sentence of the conclusions, with figures made up to make it true or false."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calibration.report.conclusions import conclusions, model_conclusions
from calibration.report.schema import Estimate, InterpretationSection, ModelReport, Report
from tests.command_line import ROOT


@pytest.fixture(scope="module")
def report() -> Report:
    return Report.model_validate_json((ROOT / "docs" / "report" / "report.json").read_text())


@pytest.fixture
def model(report: Report) -> ModelReport:
    return report.models[0]


def said(model: ModelReport, chapter: str) -> str:
    return "\n".join(model_conclusions(model)[chapter])


def estimate(low: float, high: float) -> Estimate:
    return Estimate(value=(low + high) / 2, low=low, high=high)


def changed(model: Any, **values: Any) -> Any:
    return model.model_copy(update=values)


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (0.01, 0.02, True, "+1.50 percentage points of accuracy (95 % interval +1.00 to +2.00), better"),
        (-0.02, -0.01, False, "−1.50 percentage points of accuracy (95 % interval −2.00 to −1.00), worse"),
        (-0.01, 0.01, None, "+0.00 percentage points of accuracy (95 % interval −1.00 to +1.00), not distinguishable"),
    ],
)
def test_a_difference_is_named_by_its_interval(
    model: ModelReport, *, low: float, high: float, better: bool | None, expected: str
) -> None:
    rows = tuple(
        changed(row, difference=estimate(low, high), better=better)
        if (row.strategy, row.measure) == ("mc_dropout", "accuracy")
        else row
        for row in model.differences
    )
    sentences = said(changed(model, differences=rows), "Which strategy")
    mine = next(line for line in sentences.splitlines() if line.startswith("MC dropout with 64"))
    assert expected in mine
    assert ("accuracy" in mine.partition("It is worse by")[2]) == (better is False)


def test_a_winner_is_named_only_if_there_is_one(model: ModelReport) -> None:
    none = said(changed(model, best=dict.fromkeys(model.best)), "Which strategy")
    assert none.count("no strategy is better than every other") == 2
    won = said(changed(model, best={**model.best, "accuracy": "mc_dropout"}), "Which strategy")
    assert "By accuracy, MC dropout is better than every other strategy." in won


def sizes(section: InterpretationSection, accuracy: list[tuple[float, float]], **marks: int | None) -> Any:
    rows = tuple(
        changed(row, difference_accuracy=estimate(*bounds))
        for row, bounds in zip(section.sizes[-len(accuracy) :], accuracy, strict=True)
    )
    return changed(section, sizes=rows, **marks)


@pytest.mark.parametrize(
    ("accuracy", "marks", "expected", "absent"),
    [
        ([(-0.02, -0.01)] * 2, {"level_accuracy": None, "crossing_accuracy": None}, "Even 512 sub-networks", "From"),
        (
            [(-0.02, -0.01), (-0.01, 0.008)], {"level_accuracy": 512, "crossing_accuracy": None},
            "From 512 sub-networks on their mean is not significantly less accurate than weight scaling. With",
            "more so",
        ),
        (
            [(0.02, 0.04)] * 2, {"level_accuracy": 256, "crossing_accuracy": 256},
            "from 256 on at least as accurate on these images, from 256 on significantly more so.", "Even",
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_the_number_of_subnetworks(
    model: ModelReport, accuracy: list[tuple[float, float]], marks: dict[str, int | None], expected: str, absent: str
) -> None:
    assert model.interpretation is not None
    section = sizes(model.interpretation, accuracy, **marks)
    sentence = model_conclusions(changed(model, interpretation=section))["The ensemble interpretation"][1]
    assert expected in sentence
    assert absent not in sentence


@pytest.mark.parametrize(
    ("geometric", "arithmetic", "expected"),
    [(0.01, 0.2, "nearer to the geometric mean"), (0.2, 0.01, "nearer to the arithmetic mean"),
     (0.0, 0.0, "as near to the geometric as to the arithmetic mean")],
)  # fmt: skip
def test_which_mean_is_nearer(model: ModelReport, geometric: float, arithmetic: float, expected: str) -> None:
    section: Any = model.interpretation
    section = changed(
        section, kl_geometric=changed(section.kl_geometric, mean=geometric),
        kl_arithmetic=changed(section.kl_arithmetic, mean=arithmetic),
    )  # fmt: skip
    assert expected in said(changed(model, interpretation=section), "The ensemble interpretation")


@pytest.mark.parametrize(
    ("gap", "p", "expected", "absent"),
    [
        ((-0.08, -0.06), 0.3, "is under-confident by 0.070 on average", "more than chance explains"),
        ((0.06, 0.08), 0.001, "is over-confident by 0.070 on average", "not distinguishable from perfect"),
        ((-0.01, 0.02), 0.049, "is neither over- nor under-confident", "not distinguishable from perfect"),
    ],
)
def test_what_is_said_of_calibration(
    model: ModelReport, gap: tuple[float, float], p: float, expected: str, absent: str
) -> None:
    section = model.strategies["mc_dropout"]
    section = changed(
        section, raw=changed(section.raw, overconfidence=estimate(*gap)),
        calibrated=changed(section.calibrated, ece_p_value=p),
    )  # fmt: skip
    (sentence,) = (
        line
        for line in said(changed(model, strategies={"mc_dropout": section}, differences=()), "Calibration").splitlines()
        if line.startswith("MC dropout with 64 sub-networks ")
    )
    assert expected in sentence
    assert absent not in sentence
    assert ("p < 0.01" in sentence) == (p < 0.01)
    if p < 0.05:
        bins = section.calibrated.reliability
        gaps = [n * abs(a - c) for n, a, c in zip(bins.count, bins.accuracy, bins.confidence, strict=True)]
        assert f"its largest part, {100 * max(gaps) / sum(gaps):.0f} %" in sentence


def test_what_is_said_of_outliers(model: ModelReport) -> None:
    section = model.outliers["digits"]
    for gain, ending in ((estimate(0.01, 0.03), "to +0.030)."), (estimate(-0.01, 0.03), "not distinguishable.")):
        outliers = {"digits": changed(section, best=("mc_dropout", "epistemic"), gain=gain)}
        sentence = said(changed(model, outliers=outliers), "Out of distribution")
        assert "is that of epistemic uncertainty of MC dropout: +0.0" in sentence
        assert ending in sentence
        assert section.novelty is not None
        assert sentence.endswith(f"The novelty of the features: {section.novelty.auroc.value:.3f}.")
    without = {"digits": changed(section, novelty=None)}
    assert "novelty" not in said(changed(model, outliers=without), "Out of distribution")
    own = {"digits": changed(section, best=("weight_scaling", "total"))}
    assert "against the entropy" not in said(changed(model, outliers=own), "Out of distribution")


def test_what_is_said_of_sets(model: ModelReport) -> None:
    section = model.strategies["mc_dropout"]
    off = tuple(
        changed(row, probability=1e-5)
        if (row.method, row.nominal, row.class_conditional) == ("aps", 0.9, False)
        else row
        for row in section.conformal
    )
    assert "not further from nominal than chance explains" in said(model, "Calibration")
    strategies = {**model.strategies, "mc_dropout": changed(section, conformal=off)}
    assert "chance explains for APS at 90 %" in said(changed(model, strategies=strategies), "Calibration")


def test_models_are_compared(report: Report, model: ModelReport) -> None:
    assert conclusions(report) == []
    fields = json.loads(report.model_dump_json(by_alias=True))
    row = {"model": "cnn", "reference": "mlp", "measure": "nll", "better": True}
    fields["model_differences"] = [{**row, "difference": {"value": -0.1, "low": -0.12, "high": -0.08}}]
    (sentence,) = conclusions(Report.model_validate_json(json.dumps(fields)))
    assert sentence == (
        "cnn against mlp, each by its default strategy: −0.1000 nats of NLL (95 % interval −0.1200 to −0.0800), better."
    )
