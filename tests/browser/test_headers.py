"""The policies that come with the page and the report."""

from __future__ import annotations

import base64
import hashlib

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page

from service.ui import security_headers
from tests.command_line import ROOT


def test_the_page_comes_with_a_strict_policy(server: httpx.Client) -> None:
    response = server.get("/ui")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    for name, value in security_headers(response.text).items():
        assert response.headers[name] == value
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    script = response.text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"] == f"'sha256-{digest}'"


def test_what_the_policy_does_not_know_does_not_run(page: Page, complaints: list[str]) -> None:
    page.evaluate("""() => {
      const script = document.createElement('script');
      script.textContent = 'window.ran = 1';
      document.body.append(script);
    }""")
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.body.style.color") == ""
    assert len(complaints) == 2
    complaints.clear()


@pytest.mark.usefixtures("complaints")
def test_the_report_shows_under_its_policy(context: BrowserContext, server: httpx.Client) -> None:
    html = (ROOT / "docs" / "report" / "report.html").read_text()
    headers = security_headers(html, style_attributes=True) | {"Content-Type": "text/html"}
    page = context.new_page()
    page.route("**/report", lambda route: route.fulfill(body=html, headers=headers))
    page.goto(f"{server.base_url}/report")
    # Style sheets of the page and of a figure, and style attributes.
    assert page.evaluate("getComputedStyle(document.body).maxWidth") != "none"
    assert page.locator("svg text[style]").first.evaluate("text => text.style.length") > 0


def test_no_blocks_no_sources() -> None:
    policy = security_headers("<p>nothing inline</p>")["Content-Security-Policy"]
    assert "script-src 'none'; style-src 'none'" in policy
    twice = security_headers("<style>a{}</style><style>a{}</style>")["Content-Security-Policy"]
    assert twice.count("sha256-") == 1
