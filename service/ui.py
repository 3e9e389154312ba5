"""The browser page, and the headers that let a page run its own inline blocks and nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

__all__ = ["page", "security_headers", "ui"]

PAGE = Path(__file__).parent / "page" / "index.html"


def security_headers(html: str, *, style_attributes: bool = False) -> dict[str, str]:
    """Headers for the self-contained page ``html``: it may run its own inline blocks, and talk to its server alone.

    Scripts and style sheets are allowed by their hashes (Content Security Policy Level 3), so that nothing that found
    its way into the page would run. ``style_attributes`` allows style attributes too, as matplotlib's SVGs have them;
    they can't load anything, images aside, and those are limited to the page's own.
    """
    blocks = _InlineBlocks()
    blocks.feed(html)
    blocks.close()
    policy = {
        "default-src": "'none'",
        "script-src": _sources(blocks.found["script"]),
        "style-src": _sources(blocks.found["style"]),
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    if style_attributes:
        policy["style-src-attr"] = "'unsafe-inline'"
    return {
        "Content-Security-Policy": "; ".join(f"{directive} {value}" for directive, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


def page() -> Response:
    """The page with its headers."""
    html, headers = _content()
    return HTMLResponse(html, headers=headers)


async def ui(_: Request) -> Response:
    """``GET /ui``."""
    return page()


@cache
def _content() -> tuple[str, dict[str, str]]:
    """Read once, since nothing in it depends on the request; a response is not shared, as middleware adds to it."""
    html = PAGE.read_text(encoding="utf-8")
    return html, security_headers(html)


class _InlineBlocks(HTMLParser):
    """Collects the text of inline scripts and style sheets."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = self.found.get(tag)
        if self._open is not None:
            self._open.append("")

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._open[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in self.found:
            self._open = None


def _sources(blocks: list[str]) -> str:
    """A source list of the hashes of ``blocks``, each once."""
    digests = dict.fromkeys(hashlib.sha256(block.encode()).digest() for block in blocks)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"
