"""For everyone: names, contrast, narrow screens, dark rooms."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.showing import wait_for_answer

CONTROLS = ("button", "checkbox", "combobox", "figure", "img", "link", "radio", "radiogroup", "slider", "textbox")

# Every text that is to be seen and has less contrast with what is behind it than 4.5 (WCAG 2.2, 1.4.3).
FAINT = """() => {
  const parse = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
      if (colour[3] > 0) throw new Error(`half transparent: ${at.outerHTML}`);
    }
    throw new Error('nothing behind');
  };
  const found = [];
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest('.unseen, script, noscript')) continue;
    texts += 1;
    let opacity = 1;
    for (let at = element; at; at = at.parentElement) opacity *= Number(getComputedStyle(at).opacity);
    const back = behind(element), front = parse(getComputedStyle(element).color);
    const seen = front.map((v, k) => v * opacity + back[k] * (1 - opacity));
    const [low, high] = [luminance(seen), luminance(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)}: ${text}`);
  }
  return [texts, found];
}"""


def open_with_everything(context: BrowserContext, server: httpx.Client) -> Page:
    """The page with an abstention, an error and the tables open."""
    page = context.new_page()
    page.goto(f"{server.base_url}/ui")
    page.get_by_role("radio", name="Dress, second").click()
    page.get_by_label("Coverage of the set").fill("0.99")
    wait_for_answer(page)
    page.get_by_text("The same as a table").click()
    page.get_by_label("Open a picture file").set_input_files(
        {"name": "a_name_without_end_" * 9, "mimeType": "text/plain", "buffer": b"not a picture"}
    )  # fmt: skip
    expect(page.get_by_role("alert")).to_be_visible()
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.usefixtures("complaints")
def test_contrast(context: BrowserContext, server: httpx.Client, scheme: str) -> None:
    page = open_with_everything(context, server)
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    for state in ("", "stale"):
        page.locator("#answer").evaluate("(answer, state) => state && answer.classList.add(state)", state)
        texts, faint = page.evaluate(FAINT)
        assert texts > 150
        assert faint == []


@pytest.mark.parametrize("width", [320, 375, 700, 900])
@pytest.mark.usefixtures("complaints")
def test_nothing_is_wider_than_the_screen(context: BrowserContext, server: httpx.Client, width: int) -> None:
    page = open_with_everything(context, server)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name(page: Page) -> None:
    page.get_by_text("The same as a table").click()
    lines = page.locator("body").aria_snapshot().splitlines()
    controls = [line for line in lines if re.match(rf"\s*- ({'|'.join(CONTROLS)})\b", line)]
    assert len(controls) > 30
    assert [line for line in controls if not re.match(r'\s*- \w+ "[^"]+', line)] == []


def test_all_can_be_reached_with_the_tab_key(page: Page) -> None:
    page.locator("body").press("Tab")
    reached = []
    for _ in range(40):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        page.keyboard.press("Tab")
    for wanted in (
        "file",
        "clear",
        "rotation",
        "blur",
        "noise",
        "reset",
        "coverage",
        "target",
        "samples",
        "copy",
        "curl",
    ):
        assert wanted in reached


def test_no_movement_for_those_who_do_not_want_it(page: Page) -> None:
    duration = "getComputedStyle(document.querySelector('#bar i')).transitionDuration"
    assert page.evaluate(duration) == "0.12s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(duration) == "0s"
