"""The picture of a cell in the README: ``python -m tests.browser.picture`` takes it anew.

It is JupyterLab's own page in a headless Chromium, and the demo model answers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.browser.conftest import launched
from tests.browser.page import Desk
from tests.browser.site import ROOT, TOKEN, Site

PICTURE = ROOT / "notebooks" / "cell.png"
WINDOW = {"width": 880, "height": 1400}
# The tests' own server and key would have the demo model stand aside.
SET_UP = """\
import os

del os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"]
%load_ext llm_magic
from llm_magic.demo import use_demo_model

use_demo_model()"""
FRAME = """\
import pandas as pd

orders = pd.DataFrame(
    {
        "region": ["North", "South", "East", "West"],
        "orders": [380, 405, 391, 377],
        "returned": [19, 61, 12, None],
    }
)"""
CELL = """\
%%llm --max-tokens 2000
What is unusual in these orders? Answer with a short table and one line of pandas.

{{ orders }}"""
# A tree of files would take a third of the page.
HIDE_SIDE_BAR = "window.jupyterapp.shell.collapseLeft()"


def take(browser: Browser, site: Site, path: Path) -> None:
    """Asks in a notebook on screen, and keeps what the cell looks like then.

    Args:
        browser: A running Chromium.
        site: The Jupyter server.
        path: The picture's file.
    """
    with browser.new_context(viewport=WINDOW, device_scale_factor=2) as context:
        context.request.get(f"{site.url}/login?token={TOKEN}")
        with Desk(context, site, "lab", path.parent).opened(SET_UP, FRAME, CELL) as notebook:
            notebook.page.evaluate(HIDE_SIDE_BAR)
            for cell in range(3):
                notebook.run(cell)
            expect(notebook.outputs(2).get_by_role("table")).to_be_visible()
            notebook.prompt(0).click()  # The active cell has a frame and a toolbar.
            notebook.page.mouse.move(0, 0)
            notebook.cells.nth(2).screenshot(path=path)


def main() -> None:
    """Takes the picture of the README."""
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        site = Site(Path(folder), "http://127.0.0.1:9/v1")
        try:
            take(browser, site, PICTURE)
        finally:
            site.stop()


if __name__ == "__main__":
    main()
