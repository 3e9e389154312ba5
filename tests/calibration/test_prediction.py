"""From an array to a calibrated prediction, as a program outside this project would ask for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calibration import predict
from models import load_bundle
from models.bundle import Bundle
from service.predictor import Predictor
from service.wire import Options
from tests.command_line import ROOT
from tests.conftest import write_bundle
from training.data import DataError, FashionMNISTSplits


@pytest.mark.parametrize("strategy", [None, "weight_scaling", "moment_propagation"])
def test_it_is_what_the_service_answers(shipped: Bundle, fashion: FashionMNISTSplits, strategy: str | None) -> None:
    pixels = fashion.test.pixels[:20].numpy()
    predictor = Predictor("mlp", shipped, coverage=0.9, target_error=0.05)
    options = Options(strategy=strategy) if strategy else Options()
    answer = predictor.answer(predictor.question(pixels.astype(np.float32), options))
    found = predict(load_bundle("mlp"), pixels, strategy=strategy)
    expected = [list(each["probabilities"].values()) for each in answer["predictions"]]
    np.testing.assert_allclose(found.mean.numpy(), expected, atol=1e-6)
    total = [each["uncertainty"]["total"] for each in answer["predictions"]]
    np.testing.assert_allclose(found.predictive_entropy.numpy(), total, atol=2e-6)


def test_tensors_floats_and_rows_are_images_too(shipped: Bundle, fashion: FashionMNISTSplits) -> None:
    pixels = fashion.test.pixels[:3]
    expected = predict(shipped, pixels.numpy(), samples=4)
    assert expected.samples == 4
    for images in (pixels, pixels.float(), pixels.flatten(1).numpy()):
        torch.testing.assert_close(predict(shipped, images, samples=4).members, expected.members)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((28, 28), np.uint8), r"shape \(28, 28\); it should be \[N, 28, 28\]"),
        (np.full((1, 28, 28), np.nan, np.float32), "NaN or outside 0..255, first at index 0"),
        (np.full((1, 28, 28), 0.5), "multiply them by 255"),
        (np.zeros((2, 28, 28), np.int64), "type int64"),
    ],
)
def test_what_is_no_image_is_refused(shipped: Bundle, images: NDArray[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        predict(shipped, images)


def test_an_uncalibrated_network_without_dropout_is_asked_as_it_is(tmp_path: Path) -> None:
    tmp_path.joinpath("plain").mkdir()
    write_bundle(tmp_path / "plain", "ReLUNet")
    found = predict(load_bundle(tmp_path / "plain"), np.zeros((1, 28, 28), np.uint8))
    assert (found.samples, found.temperature) == (1, 1.0)


def test_the_packages_load_no_torch_by_themselves() -> None:
    code = "import sys, models, calibration; sys.exit('torch' in sys.modules or hasattr(models, 'no_such_name'))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
