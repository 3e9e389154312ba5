"""The page shows what the service answers for the picture that it shows."""

from __future__ import annotations

import json
import subprocess

import httpx
import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.browser.showing import BOOT, ask, expect_answer, label_and_confidence, shown_pixels, wait_for_answer


def test_starts_with_a_test_image_and_its_answer(page: Page, server: httpx.Client) -> None:
    assert (shown_pixels(page) == BOOT).all()
    expect_answer(page, ask(server, BOOT))
    expect(page.locator("#truth")).to_have_text("Its true label is Ankle boot: right.")
    expect(page.locator("#ticks")).to_contain_text("log 10 = 2.303")


def test_a_chosen_image(page: Page, server: httpx.Client) -> None:
    for name in ("Dress, second", "Sneaker, second", "Bag, first"):
        page.get_by_role("radio", name=name).click()
        wait_for_answer(page)
        expect_answer(page, ask(server, shown_pixels(page)))
        expect(page.locator("#truth")).to_contain_text(f"Its true label is {name.split(',')[0]}: ")


def test_an_abstention_is_said_in_words(page: Page) -> None:
    page.get_by_role("radio", name="Dress, second").click()
    wait_for_answer(page)
    expect(page.locator("#headline")).to_have_text("The model would rather not answer")
    expect(page.locator("#decision")).to_contain_text("Its best guess is a bag; but it answers only from")
    expect(page.locator("#truth")).to_have_text("Its true label is Dress: the guess is wrong.")
    expect(page.get_by_role("status")).to_contain_text("The model would rather not answer, 23\u00a0%. Best guess Bag.")


def test_novelty_is_said_in_words(page: Page) -> None:
    about = page.locator("#novelty")
    expect(about).to_have_text(
        "Not novel: of images like those it was calibrated on, 11.3\u00a0% are at least as unlike its training images."
    )

    def novel(route: Route) -> None:
        answer = route.fetch()
        content = answer.json()
        for prediction in content["predictions"]:
            prediction["novelty"]["p_value"] = 0.004
        route.fulfill(response=answer, json=content)

    page.route("**/predict", novel)
    page.get_by_role("radio", name="Bag, first").click()
    wait_for_answer(page)
    expect(about).to_contain_text("Novel: of images like those it was calibrated on, only 0.4\u00a0% are as unlike")


def test_arrow_keys_choose_images(page: Page, server: httpx.Client) -> None:
    page.get_by_role("radio", name="Ankle boot, first").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("radio", name="Bag, second")).to_be_checked()
    wait_for_answer(page)
    expect(page.locator("#truth")).to_contain_text("Bag")
    expect_answer(page, ask(server, shown_pixels(page)))


def test_sliders_change_picture_and_answer(page: Page, server: httpx.Client) -> None:
    before = shown_pixels(page), label_and_confidence(page)
    for name, value in (("Rotation", "35"), ("Blur", "1.2"), ("Noise", "30")):
        page.get_by_label(name).fill(value)
        after = shown_pixels(page), label_and_confidence(page)
        assert (after[0] != before[0]).any()
        assert after[1] != before[1]
        expect_answer(page, ask(server, after[0]))
        before = after
    page.get_by_label("Noise").fill("0")
    page.get_by_label("Noise").fill("30")
    assert (shown_pixels(page) == before[0]).all()
    page.get_by_role("button", name="Reset").click()
    expect_answer(page, ask(server, BOOT))


def test_a_quarter_turn_is_exact(page: Page) -> None:
    page.get_by_label("Rotation").fill("90")
    assert (shown_pixels(page) == np.rot90(BOOT, -1)).all()


def test_options(page: Page, server: httpx.Client) -> None:
    page.get_by_label("Coverage of the set").fill("0.99")
    page.get_by_label("Errors among answers").fill("0.04")
    page.get_by_role("combobox", name="Sub-networks").select_option("16")
    expect_answer(page, ask(server, BOOT, samples=16, coverage=0.99, target_error=0.04))
    expect(page.locator("#plot-caption")).to_contain_text("one of 16 sub-networks")
    expect(page.locator("#approximate")).to_be_visible()
    page.get_by_role("combobox", name="Sub-networks").select_option("auto")
    answer = ask(server, BOOT, samples="auto", coverage=0.99, target_error=0.04)
    expect_answer(page, answer)
    expect(page.locator("#exact")).to_contain_text(f"{answer['predictions'][0]['samples']} sub-networks")


def test_only_the_newest_answer_is_shown(page: Page, server: httpx.Client) -> None:
    held: list[Route] = []
    given_up: list[str] = []
    page.on("requestfailed", lambda request: given_up.append(request.url))
    page.route("**/predict", lambda route: route.continue_() if held else held.append(route))
    page.get_by_label("Rotation").fill("60")
    page.wait_for_timeout(300)
    assert len(held) == 1
    expect(page.get_by_role("region", name="Answer")).to_have_attribute("aria-busy", "true")
    page.get_by_label("Rotation").fill("90")
    wait_for_answer(page)
    newest = ask(server, np.rot90(BOOT, -1))
    expect_answer(page, newest)
    held[0].fulfill(json=ask(server, BOOT))
    page.wait_for_timeout(200)
    expect_answer(page, newest)
    assert given_up == [f"{server.base_url}/predict"]


def test_the_members(page: Page, server: httpx.Client) -> None:
    answer = ask(server, BOOT, members="probabilities")
    members = answer["predictions"][0]["members"]
    page.get_by_text("The same as a table").click()
    rows = page.locator("#class-rows tr").all()
    probabilities = np.array(members["probabilities"])
    assert len(rows) == probabilities.shape[1]
    whole = server.post("/compare", json={"instances": [BOOT.tolist()]}).json()["strategies"]["weight_scaling"]
    raw = np.array(list(whole["predictions"][0]["probabilities"].values())) ** whole["temperature"]
    raw /= raw.sum()
    for index, row in enumerate(rows):
        name = row.get_by_role("rowheader").inner_text()
        calibrated, mean, low, high, single, votes = map(float, row.get_by_role("cell").all_inner_texts())
        assert calibrated == pytest.approx(answer["predictions"][0]["probabilities"][name], abs=5.1e-5)
        assert mean == pytest.approx(probabilities[:, index].mean(), abs=5.1e-5)
        assert single == pytest.approx(raw[index], abs=5.1e-5)
        assert votes == members["histogram"].get(name, 0)
        assert low <= high
    # A dot for each sub-network in each row, at its probability.
    paths = [path.get_attribute("d") or "" for path in page.locator("#plot path.dots").all()]
    at = np.array([[float(dot.split()[0]) for dot in path.split("M")[1:]] for path in paths]) / 1000
    np.testing.assert_allclose(at, probabilities.T, atol=5.1e-5)


def test_strategies_side_by_side(page: Page, server: httpx.Client) -> None:
    compared = server.post("/compare", json={"instances": [BOOT.tolist()]}).json()["strategies"]
    rows = page.locator("#strategy-rows tr").all()
    assert len(rows) == len(compared)
    for row, strategy in zip(rows, compared.values(), strict=True):
        [prediction] = strategy["predictions"]
        label, confidence, total, _, names, abstains, milliseconds = row.get_by_role("cell").all_inner_texts()
        assert (label, names) == (prediction["label"], ", ".join(prediction["prediction_set"]))
        assert float(confidence.split()[0]) == pytest.approx(100 * prediction["confidence"], abs=0.051)
        assert float(total) == pytest.approx(prediction["uncertainty"]["total"], abs=0.00051)
        assert abstains == ("yes" if prediction["abstain"] else "no")
        assert float(milliseconds) >= 0


def test_the_command_gives_the_same_answer(page: Page, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Rotation").fill("20")
    page.get_by_label("Noise").fill("12")
    page.get_by_role("combobox", name="Sub-networks").select_option("32")
    shown = label_and_confidence(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    command = page.evaluate("navigator.clipboard.readText()")
    answered = json.loads(subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=30).stdout)
    assert answered["samples"] == 32
    [prediction] = answered["predictions"]
    assert (prediction["label"], prediction["confidence"]) == shown
