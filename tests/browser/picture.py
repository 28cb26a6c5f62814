"""The picture of a cell in the README: ``python -m tests.browser.picture`` takes it anew.

It is JupyterLab's own page in a headless Chromium; the cells are the README's, and the demo model
answers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Playwright, ViewportSize, expect, sync_playwright

from tests.browser.conftest import launched
from tests.browser.page import Desk
from tests.browser.site import ROOT, TOKEN, Site
from tests.readme import blocks

PICTURE = ROOT / "notebooks" / "cell.png"
WINDOW: ViewportSize = {"width": 880, "height": 1400}
# The tests' own server and key would have the demo model stand aside.
WITHOUT_KEY = """\
import os

del os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"]"""
LOAD, *MORE = (block.text.rstrip() for block in blocks("Three cells"))
CELLS = (f"{WITHOUT_KEY}\n{LOAD}", *MORE)
ASKED = len(CELLS) - 1
# A tree of files would take a third of the page.
HIDE_SIDE_BAR = "window.jupyterapp.shell.collapseLeft()"


def take(playwright: Playwright, site: Site, path: Path) -> None:
    """Asks in a notebook on screen, and keeps what the cell looks like then.

    Args:
        playwright: What drives the browser.
        site: The Jupyter server.
        path: The picture's file.
    """
    with (
        tempfile.TemporaryDirectory() as profile,
        launched(playwright, Path(profile), WINDOW, scale=2) as context,
    ):
        context.request.get(f"{site.url}/login?token={TOKEN}")
        with Desk(context, site, "lab", path.parent).opened(*CELLS) as notebook:
            notebook.page.evaluate(HIDE_SIDE_BAR)
            for cell in range(len(CELLS)):
                notebook.run(cell)
            expect(notebook.outputs(ASKED).get_by_role("table")).to_be_visible()
            notebook.prompt(0).click()  # The active cell has a frame and a toolbar.
            notebook.page.mouse.move(0, 0)
            notebook.cells.nth(ASKED).screenshot(path=path)


def main() -> None:
    """Takes the picture of the README."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        site = Site(Path(folder), "http://127.0.0.1:9/v1")
        try:
            take(playwright, site, PICTURE)
        finally:
            site.stop()


if __name__ == "__main__":
    main()
