"""What the page shows, as tests and the screenshot read it."""

from __future__ import annotations

import re
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

from tests.command_line import ROOT

__all__ = ["BOOT", "ask", "expect_answer", "label_and_confidence", "shown_pixels", "wait_for_answer"]

BOOT: NDArray[np.uint8] = np.asarray(Image.open(ROOT / "docs" / "boot.png"))
"""The test image that the page starts with, as ``[28, 28]``."""


def wait_for_answer(page: Page) -> None:
    """Until the page has shown, or failed to get, the answer to the last thing done."""
    expect(page.get_by_role("region", name="Answer")).to_have_attribute("aria-busy", "false")


def label_and_confidence(page: Page) -> tuple[str, float]:
    wait_for_answer(page)
    shown = re.match(r"(.+?) ([\d.e-]+) ", page.locator("#exact").inner_text())
    assert shown
    return shown[1], float(shown[2])


def shown_pixels(page: Page) -> NDArray[np.uint8]:
    """``[28, 28]``, as on the canvas."""
    # Copied to a canvas that is meant to be read: Chromium complains of reading the other one often.
    read = """canvas => {
      const copy = new OffscreenCanvas(28, 28).getContext('2d', {willReadFrequently: true});
      copy.drawImage(canvas, 0, 0);
      return Array.from(copy.getImageData(0, 0, 28, 28).data);
    }"""
    rgba = np.array(page.locator("#canvas").evaluate(read), dtype=np.uint8)
    return rgba.reshape(28, 28, 4)[..., 0]


def ask(server: httpx.Client, image: NDArray[np.uint8], **options: object) -> dict[str, Any]:
    """The service's answer of ``image`` ``[28, 28]``."""
    response = server.post("/predict", json={"instances": [image.tolist()], **options})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def expect_answer(page: Page, answer: dict[str, Any]) -> None:
    """That the page shows ``answer``: its label, confidence, uncertainty, prediction set and abstention."""
    [prediction] = answer["predictions"]
    assert label_and_confidence(page) == (prediction["label"], prediction["confidence"])
    uncertainty = prediction["uncertainty"]
    keys = page.locator("#keys").inner_text()
    shown = [float(value) for value in re.findall(r"\d+\.\d+", keys)]
    np.testing.assert_allclose(shown, [uncertainty[part] for part in ("total", "aleatoric", "epistemic")], atol=0.00051)
    assert page.locator("#set span").all_inner_texts() == prediction["prediction_set"]
    refuses = page.locator("#headline").inner_text() == "The model would rather not answer"
    assert refuses == prediction["abstain"]
