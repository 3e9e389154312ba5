"""What goes wrong is said in words, and what was shown stays."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.browser.showing import BOOT, ask, expect_answer, label_and_confidence, wait_for_answer

REFUSED = "Failed to load resource"


@pytest.fixture
def refused(complaints: list[str]) -> Iterator[list[str]]:
    """The complaints, without what the browser itself says of a request that fails; there must be such."""
    yield complaints
    assert any(text.startswith(REFUSED) for text in complaints)
    complaints[:] = [text for text in complaints if not text.startswith(REFUSED)]


def error(code: str, message: str, field: str | None = None) -> dict[str, object]:
    return {"error": {"code": code, "message": message, "field": field, "request_id": "8f41c2"}}


@pytest.mark.usefixtures("refused")
def test_an_error_of_the_service(page: Page, server: httpx.Client) -> None:
    before = label_and_confidence(page)
    message = "the server has more work than it can do in time; try again"
    page.route("**/compare", lambda route: route.fulfill(status=429, json=error("too_many_requests", message)))
    page.get_by_label("Rotation").fill("90")
    wait_for_answer(page)
    expect(page.get_by_role("alert")).to_have_text(
        f"The service did not answer: {message} (status 429, request 8f41c2). What is shown is the answer before."
    )
    assert label_and_confidence(page) == before
    page.unroute("**/compare")
    page.get_by_label("Rotation").fill("0")
    expect_answer(page, ask(server, BOOT))
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.usefixtures("refused")
def test_a_real_error_names_its_field(page: Page) -> None:
    page.locator("#target").evaluate("slider => { slider.max = 0.4; slider.value = 0.4; }")
    page.locator("#target").dispatch_event("input")
    expect(page.get_by_role("alert")).to_contain_text("field target_error, status 400, request ")


def test_a_model_of_other_images_is_not_asked(context: BrowserContext, server: httpx.Client) -> None:
    def eight(route: Route) -> None:
        answer = route.fetch()
        content = answer.json()
        content["card"]["input"]["shape"] = [8, 8]
        route.fulfill(response=answer, json=content)

    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    page.route("**/model", eight)
    page.goto(f"{server.base_url}/ui")
    expect(page.get_by_role("alert")).to_contain_text("mlp takes images of 8 x 8 values, and this page makes 28 x 28")
    page.get_by_role("radio", name="Bag, first").click()
    page.wait_for_timeout(500)
    assert asked == []


@pytest.mark.usefixtures("refused")
def test_a_server_that_is_not_there(page: Page, server: httpx.Client) -> None:
    page.route("**/predict", lambda route: route.abort())
    page.get_by_role("radio", name="Bag, first").click()
    expect(page.get_by_role("alert")).to_contain_text("The service did not answer: it can’t be reached.")
    assert label_and_confidence(page)[0] == "Ankle boot"
    page.unroute("**/predict")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#truth")).to_contain_text("Bag")
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.usefixtures("refused")
def test_a_key(context: BrowserContext, server: httpx.Client) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json=error("unauthorized", "a key is wanted"))

    for path in ("model", "predict", "compare"):
        context.route(f"**/{path}", guard)
    page = context.new_page()
    page.goto(f"{server.base_url}/ui")
    expect(page.get_by_role("alert")).to_contain_text("The service wants an API key: a key is wanted")
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_label("API key")).to_have_value("")
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("API key").fill("open sesame")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_hidden()
    expect_answer(page, ask(server, BOOT))
    assert "open sesame" not in page.content()
    assert page.locator("#curl").inner_text().count('-H "Authorization: Bearer $API_KEY"') == 1
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
