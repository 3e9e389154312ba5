"""Bytes that are no picture, or hardly one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.service.asking import predict, refusal
from training.data import FashionMNISTSplits

KINDS = ("PNG", "JPEG", "WEBP", "BMP")
bounded = settings(
    max_examples=60, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def picture(kind: str) -> bytes:
    """A small one, with something to see."""
    shade = np.add.outer(np.arange(24), 5 * np.arange(30)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([shade, 255 - shade, shade // 2], axis=-1)).save(buffer, format=kind)
    return buffer.getvalue()


PICTURES = {kind: picture(kind) for kind in KINDS}
MUTATIONS: dict[str, Callable[[bytes, int, bytes], bytes]] = {
    "overwrite": lambda file, place, noise: file[:place] + noise + file[place + len(noise) :],
    "insert": lambda file, place, noise: file[:place] + noise + file[place:],
    "delete": lambda file, place, noise: file[:place] + file[place + len(noise) :],
    "repeat": lambda file, place, noise: file[: place + len(noise)] + file[place:],
    "truncate": lambda file, place, _: file[: max(1, place)],
}


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> bytes:
    """A picture of ``kind`` with up to four mutations; most at its beginning, where what decides is."""
    file = PICTURES[kind]
    for name in draw(st.lists(st.sampled_from(sorted(MUTATIONS)), min_size=1, max_size=4)):
        place = draw(st.integers(0, min(80, len(file))) | st.integers(0, len(file)))
        file = MUTATIONS[name](file, place, draw(st.binary(min_size=1, max_size=8)))
    return file or b"\0"


def check(server: httpx.Client, body: bytes, kind: str) -> None:
    answer = server.post("/predict_image", content=body, headers={"Content-Type": f"image/{kind.lower()}"})
    if answer.status_code == 200:
        (prediction,) = answer.json()["predictions"]
        assert prediction["confidence"] == max(prediction["probabilities"].values())
    else:
        assert 400 <= answer.status_code < 500
        refusal(answer, answer.status_code)


@pytest.fixture(autouse=True)
def still_serving(server: httpx.Client, fashion: FashionMNISTSplits) -> None:
    """It answered whatever came before."""
    assert predict(server, fashion.test.pixels[:1])["predictions"][0]["label"] == "Ankle boot"


@pytest.mark.parametrize("kind", KINDS)
def test_whole_pictures_are_pictures(server: httpx.Client, kind: str) -> None:
    answer = server.post("/predict_image", content=PICTURES[kind], headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text


@bounded
@given(body=st.binary(min_size=1, max_size=400))
def test_arbitrary_bytes(server: httpx.Client, body: bytes) -> None:
    check(server, body, "png")


@pytest.mark.parametrize("kind", KINDS)
@bounded
@given(data=st.data())
def test_damaged_pictures(server: httpx.Client, kind: str, data: st.DataObject) -> None:
    check(server, data.draw(mutated(kind)), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_that_end_early(server: httpx.Client, kind: str) -> None:
    file = PICTURES[kind]
    for end in range(1, len(file), max(1, len(file) // 25)):
        check(server, file[:end], kind)


def test_nothing_of_it_left_a_traceback(server: httpx.Client, server_log: Path) -> None:
    assert server.get("/livez").status_code == 200
    assert "Traceback" not in server_log.read_text()
