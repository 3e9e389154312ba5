"""What the report says and shows of chosen numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.training.study.synthetic import by_size, compared, configuration, detecting, grid, run, study
from training.study import page
from training.study.conclusions import conclusions
from training.study.schema import Failure, Study


def said(made: Study) -> str:
    return "\n".join(conclusions(made))


def written(made: Study, folder: Path) -> str:
    page.write(made, folder)
    return (folder / "report.html").read_text()


class TestConclusions:
    def test_better_and_worse(self) -> None:
        text = said(compared(0.02, loss=0.1))
        assert "Test accuracy better than the baseline's, in percentage points: other (+2.00)." in text
        assert "Test NLL worse than the baseline's, in nats: other (+0.1000)." in text
        assert "Not told apart" not in text

    def test_what_the_seeds_do_not_tell_apart(self) -> None:
        text = said(compared(0.002, noise=0.01))
        assert "Not told apart from the baseline in test accuracy, at this number of seeds: other." in text
        assert "accuracy better" not in text

    def test_long_lists_are_cut(self) -> None:
        names = [f"n{number}" for number in range(10)]
        made = study(
            [configuration("plain"), *(configuration(name, "plain") for name in names)],
            [run("plain", seed, accuracy=0.8) for seed in range(3)]
            + [
                run(name, seed, accuracy=0.81 + 0.01 * number) for number, name in enumerate(names) for seed in range(3)
            ],
        )
        assert "percentage points: n9 (+10.00); n8 (+9.00); " in said(made)
        assert "; n2 (+3.00); and 2 more." in said(made)

    def test_one_seed_tells_nothing(self) -> None:
        text = said(compared(0.1, seeds=1))
        assert "a second seed is needed" in text
        assert "better than the baseline" not in text

    @pytest.mark.parametrize(
        ("validation", "expected"),
        [
            (
                (0.6, 0.5, 0.4),
                "one is not overfitting yet: its validation loss is least in the last epoch of every run.",
            ),
            (
                (0.6, 0.4, 0.5),
                "one overfits: its validation loss is least after epoch 2, and at the end 0.100 nats higher.",
            ),
            ((0.6, 0.4, 0.401), ""),
        ],
    )
    def test_overfitting(self, validation: tuple[float, ...], expected: str) -> None:
        made = study([configuration("one")], [run("one", seed, validation=validation) for seed in range(3)])
        assert said(made) == expected

    def test_sampling_against_weight_scaling(self) -> None:
        text = said(compared(0.0))
        assert "MC dropout's NLL, uncalibrated, is lower (better) than weight scaling's for 1 of 1" in text
        assert "MC dropout's ECE, uncalibrated, is lower (better)" in text

    def test_the_gap(self) -> None:
        made = study(
            [configuration("plain"), configuration("other", "plain")],
            [run("plain", seed, train_loss=0.1 + 0.01 * seed) for seed in range(3)]
            + [run("other", seed, train_loss=0.3 + 0.011 * seed) for seed in range(3)],
        )
        assert "smaller than the baseline's with 1 of 1 configurations, most with other (−0.2010 nats)" in said(made)

    def test_sizes(self) -> None:
        text = said(by_size())
        assert "By size, test accuracy is better beside its baseline with 1,000, 5,000 training images." in text
        assert "By size, test accuracy is worse beside its baseline with 100 training images." in text

    def test_grids(self) -> None:
        text = said(grid())
        assert (
            "At learning rate 0.001 the best mean test accuracy is 90.00 %, with input dropout 0.2 and hidden" in text
        )
        assert "At learning rate 0.003 the best mean test NLL is 0.3000 nats, with input dropout 0 and hidden" in text
        assert "about 1 would exclude 0 by chance" in text

    def test_variance_shift(self) -> None:
        made = study([configuration("bn")], [run("bn", 0, shift={"layers.3": 0.8, "layers.6": 0.9})])
        assert "bn: the variance that batch norm meets at test time is 0.80 to 0.90 times" in said(made)


class TestPage:
    @pytest.mark.parametrize("made", [compared(0.1), compared(0.1, seeds=1), grid(), by_size()], ids=range(4))
    def test_it_has_every_configuration_and_needs_no_other_file(self, made: Study, tmp_path: Path) -> None:
        text = written(made, tmp_path)
        for result in made.results:
            assert f'<th scope="row">{result.configuration.name}</th>' in text
        assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text.replace('xlink:href="#', 'href="#'))
        assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons)", text)
        drawn = {path.stem for path in tmp_path.glob("figure-*.svg")}
        assert drawn == {path.stem for path in tmp_path.glob("figure-*.png")}
        assert len(re.findall(r'<div role="img" aria-label="[^"]+">', text)) == len(drawn)

    def test_the_figures_of_a_grid(self, tmp_path: Path) -> None:
        text = written(grid(), tmp_path)
        assert "By the rates of dropout" in text
        names = {path.stem.removeprefix("figure-") for path in tmp_path.glob("figure-rates-*.png")}
        assert names == {
            f"rates-{what}-{rate}" for what in ("test-accuracy", "test-loss", "mc-nll") for rate in (0.001, 0.003)
        }
        svg = (tmp_path / "figure-rates-test-accuracy-0.001.svg").read_text()
        assert "90.00" in svg

    def test_the_figures_by_size(self, tmp_path: Path) -> None:
        text = written(by_size(), tmp_path)
        assert "By the number of training images" in text
        assert len(list(tmp_path.glob("figure-sizes-*.png"))) == 4

    def test_many_configurations_of_a_group_leave_the_curves_readable(self, tmp_path: Path) -> None:
        names = [f"c{index}" for index in range(12)]
        made = study(
            [configuration("plain"), *(configuration(name, "plain") for name in names)],
            [run(name, seed, loss=0.5 + 0.01 * seed) for name in ("plain", *names) for seed in range(3)],
        )
        assert "7 more are left out" in written(made, tmp_path)

    def test_failures_and_what_has_no_runs(self, tmp_path: Path) -> None:
        made = study(
            [configuration("plain"), configuration("<b>broken</b>", "plain")],
            [run("plain", seed) for seed in range(3)],
            [Failure(name="<b>broken</b>", seed=1, error="ValueError: 1 < 2")],
        )
        text = written(made, tmp_path)
        assert "&lt;b&gt;broken&lt;/b&gt;</strong>, seed 1: ValueError: 1 &lt; 2" in text
        assert "<b>broken" not in text

    def test_variance_shift_by_layer(self, tmp_path: Path) -> None:
        made = study([configuration("bn")], [run("bn", 0, shift={"layers.3": 0.8123})])
        assert "layers.3: 0.812" in written(made, tmp_path)

    def test_detection_by_set(self, tmp_path: Path) -> None:
        text = written(detecting(), tmp_path)
        assert '<th scope="col">uniform noise</th>' in text
        assert '<span class="best" title="better than the baseline">0.9510 ★</span></td><td>0.9000</td>' in text
        assert "Images out of distribution" not in written(compared(0.1), tmp_path)

    def test_figures_of_an_earlier_study_do_not_stay(self, tmp_path: Path) -> None:
        page.write(grid(), tmp_path)
        page.write(compared(0.1), tmp_path)
        assert not list(tmp_path.glob("figure-rates-*"))
