"""The system's Chromium; Playwright's own browsers are not downloaded."""

from __future__ import annotations

import shutil

from playwright.sync_api import Browser, Playwright

__all__ = ["NAMES", "find", "launch"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",  # As root, in a container, there is none to be had.
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str | None:
    """The path of an installed Chromium."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright: Playwright, executable: str) -> Browser:
    """A headless browser that asks nobody for anything by itself."""
    return playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
