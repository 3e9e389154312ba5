"""Pictures of one's own: drawn, opened, pasted, dropped."""

from __future__ import annotations

import base64
import io

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

from models import pictures
from tests.browser.showing import BOOT, ask, expect_answer, label_and_confidence, shown_pixels, wait_for_answer

GIVE = """([type, name, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type: 'image/png'}));
  const event = type === 'paste' ? new ClipboardEvent(type, {clipboardData: transfer, bubbles: true})
    : new DragEvent(type, {dataTransfer: transfer, bubbles: true});
  document.body.dispatchEvent(event);
}"""


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def upload(page: Page, content: bytes, name: str = "boot.png") -> None:
    page.get_by_label("Open a picture file").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )  # fmt: skip
    page.wait_for_function("document.getElementById('source').textContent.startsWith('From')")


@pytest.fixture
def elsewhere(page: Page) -> Page:
    """The page, with another image than the boot."""
    page.get_by_role("radio", name="Bag, first").click()
    wait_for_answer(page)
    return page


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(BOOT, id="as it is"),
        pytest.param(255 - BOOT, id="dark on light"),
        pytest.param(np.stack([255 - BOOT] * 3, axis=-1), id="in colour"),
    ],
)
def test_an_opened_file(elsewhere: Page, server: httpx.Client, pixels: NDArray[np.uint8]) -> None:
    upload(elsewhere, png(pixels))
    expect_answer(elsewhere, ask(server, BOOT))
    expect(elsewhere.locator("#source")).to_have_text("From boot.png.")
    expect(elsewhere.locator("#truth")).to_be_hidden()
    expect(elsewhere.locator("#strip input:checked")).to_have_count(0)


LARGE = np.kron(BOOT, np.ones((9, 9), dtype=np.uint8))


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(LARGE, id="large"),
        pytest.param(255 - np.pad(LARGE, ((0, 0), (30, 61))), id="wide"),
        pytest.param(np.pad(LARGE, ((17, 90), (0, 0)), constant_values=20), id="high, on grey"),
        pytest.param(BOOT[5:25, 8:20], id="small"),
        pytest.param(np.dstack([LARGE] * 3 + [np.where(LARGE > 9, 255, 0).astype(np.uint8)]), id="transparent"),
        pytest.param(np.dstack([LARGE, LARGE // 2, 255 - LARGE]), id="coloured"),
    ],
)
def test_a_file_is_reduced_as_the_service_would(elsewhere: Page, pixels: NDArray[np.uint8]) -> None:
    upload(elsewhere, png(pixels))
    decoded = pictures.decode(png(pixels), "auto").astype(int)
    assert abs(shown_pixels(elsewhere) - decoded).max() <= 1


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_pasted_or_dropped_picture(elsewhere: Page, server: httpx.Client, way: str) -> None:
    elsewhere.evaluate(GIVE, [way, "boot.png", base64.b64encode(png(BOOT)).decode()])
    expect(elsewhere.locator("#source")).to_have_text("From boot.png.")
    expect_answer(elsewhere, ask(server, BOOT))


def test_a_file_that_is_no_picture(page: Page, server: httpx.Client) -> None:
    page.get_by_label("Open a picture file").set_input_files(
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a picture"}
    )  # fmt: skip
    expect(page.get_by_role("alert")).to_have_text(
        "This picture can’t be read: notes.txt: PNG, JPEG, WebP and BMP can be."
    )
    expect_answer(page, ask(server, BOOT))
    expect(page.get_by_role("radio", name="Ankle boot, first")).to_be_checked()
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_drawing(page: Page) -> None:
    page.get_by_role("button", name="Clear").click()
    empty = label_and_confidence(page)
    canvas = page.get_by_role("img", name="The picture that is asked about")
    box = canvas.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.35, box["y"] + box["height"] * 0.1)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.35, box["y"] + box["height"] * 0.9, steps=10)
    page.mouse.up()
    assert label_and_confidence(page) != empty
    expect(page.locator("#source")).to_have_text("Drawn by hand.")
    column = shown_pixels(page)[:, 9]
    assert column[0] == 0
    assert column[4:24].min() > 200
    page.get_by_role("button", name="Clear").click()
    assert label_and_confidence(page) == empty


def test_drawing_over_an_image_takes_its_label_away_and_clicking_it_brings_it_back(
    page: Page, server: httpx.Client
) -> None:
    page.get_by_label("Rotation").fill("90")
    page.locator("#canvas").click()
    expect(page.get_by_label("Rotation")).to_have_value("0")
    expect(page.locator("#truth")).to_be_hidden()
    drawn = shown_pixels(page)
    assert drawn[14, 14] > 250
    assert (drawn[:8] == np.rot90(BOOT, -1)[:8]).all()
    page.get_by_role("radio", name="Ankle boot, first").click()
    expect_answer(page, ask(server, BOOT))
