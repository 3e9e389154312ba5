"""Makes the README's picture of the page: ``python -m tests.browser.screenshot docs/ui.png``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser import chromium
from tests.browser.showing import wait_for_answer
from tests.serving import serving

IMAGE, ROTATION = "Ankle boot, first", "-25"


def main(target: Path) -> None:
    executable = chromium.find()
    if executable is None:
        sys.exit(f"none of {', '.join(chromium.NAMES)} is installed")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "log", "cnn") as client,
        sync_playwright() as playwright,
    ):
        browser = chromium.launch(playwright, executable)
        page = browser.new_page(viewport={"width": 1200, "height": 1130}, device_scale_factor=1.25)
        page.goto(f"{client.base_url}/ui")
        page.get_by_role("radio", name=IMAGE).click()
        page.get_by_label("Rotation").fill(ROTATION)
        wait_for_answer(page)
        page.wait_for_timeout(300)  # The bar moves there.
        page.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
