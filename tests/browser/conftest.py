"""A browser, and pages whose every complaint and every request is looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.browser import chromium
from tests.browser.showing import wait_for_answer


# Not for the session: while Playwright runs, its event loop would be in the way of other tests' loops.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    executable = chromium.find()
    if executable is None:
        reason = f"NO BROWSER TESTS: none of {', '.join(chromium.NAMES)} is installed"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        launched = chromium.launch(playwright, executable)
        yield launched
        launched.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1200, "height": 900})
    made.set_default_timeout(10_000)
    yield made
    made.close()


@pytest.fixture
def complaints(context: BrowserContext, server: httpx.Client) -> Iterator[list[str]]:
    """What the page's console says beside chatter, violations of the policy among it, errors, and requests to others.

    There must be none at a test's end; a test that causes some removes them.
    """
    found: list[str] = []
    context.on("console", lambda message: found.append(message.text) if message.type in ("error", "warning") else None)
    context.on("weberror", lambda error: found.append(str(error.error)))
    local = (str(server.base_url), "data:", "blob:")
    context.on("request", lambda request: None if request.url.startswith(local) else found.append(request.url))
    yield found
    assert found == []


@pytest.fixture
def page(context: BrowserContext, server: httpx.Client, complaints: list[str]) -> Page:
    """The page, with the answer for the image that it starts with."""
    opened = context.new_page()
    opened.goto(f"{server.base_url}/ui")
    wait_for_answer(opened)
    return opened
