"""A user in front of a notebook, in JupyterLab or in Notebook 7."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.browser.site import Site

ADDRESS = {"lab": "/lab/tree/{}?reset", "notebook": "/notebooks/{}"}
SECONDS = 30
"""For a page or a kernel to get ready, at most."""
BUSY = re.compile(r"\[\*\]")

# Notes on every frame what the user sees of a cell: how many of the numbered words, where the
# cell begins on the screen, how far the notebook is scrolled, whether there is a button.
WATCH = """(cell) => {
    const outputs = cell.querySelector('.jp-Cell-outputArea');
    let box = cell.parentElement;
    while (!/auto|scroll/.test(getComputedStyle(box).overflowY)) box = box.parentElement;
    const seen = {words: [], tops: [], scrolls: []};
    const note = (list, value) => { if (list.at(-1) !== value) list.push(value); };
    const look = () => {
        note(seen.words, (outputs.innerText.match(/word\\d+/g) || []).length);
        note(seen.tops, Math.round(cell.getBoundingClientRect().top));
        note(seen.scrolls, Math.round(box.scrollTop));
        window.watching = requestAnimationFrame(look);
    };
    cancelAnimationFrame(window.watching);
    window.seen = seen;
    look();
}"""


class Notebook:
    """A notebook on screen.

    Args:
        page: The browser's page.
        site: The Jupyter server.
        front_end: "lab" or "notebook".
        pictures: Where screenshots go.
    """

    def __init__(self, page: Page, site: Site, front_end: str, pictures: Path) -> None:
        self.page = page
        self.front_end = front_end
        self.path = site.notebooks
        self._site = site
        self._pictures = pictures

    def open(self, *cells: str) -> None:
        """Writes a notebook and opens it; its kernel is ready."""
        self.path = self._site.write(f"{self.front_end}-{time.monotonic_ns()}", cells)
        self._go()
        self._ready()
        expect(self.cells).to_have_count(len(cells))

    def reopen_without_kernel(self) -> None:
        """Closes it and opens it where no kernel can be had."""
        self.close()
        self.page.route("**/api/kernelspecs*", _another_kernel)
        self._go()
        dialog = self.page.locator(".jp-Dialog")
        dialog.get_by_role("button", name="No Kernel").click()
        expect(dialog).to_have_count(0)
        expect(self.cells.first).to_be_visible()
        assert self._site.api("kernels") == []

    def close(self) -> None:
        """Leaves the page and ends the kernel."""
        self.page.goto("about:blank")
        self.page.unroute_all()
        self._site.end_sessions()

    @property
    def cells(self) -> Locator:
        """All cells."""
        return self.page.locator(".jp-Notebook .jp-Cell")

    def outputs(self, cell: int) -> Locator:
        """The outputs of a cell, widgets among them."""
        return self.cells.nth(cell).locator(".jp-Cell-outputArea .jp-OutputArea-output")

    def prompt(self, cell: int) -> Locator:
        """What stands beside a cell: ``[ ]:``, ``[*]:`` or ``[3]:``."""
        return self.cells.nth(cell).locator(".jp-InputArea-prompt")

    def start(self, cell: int) -> None:
        """Begins a cell, which stays the active one."""
        self.cells.nth(cell).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        expect(self.prompt(cell)).not_to_have_text(re.compile(r"\[ \]"))

    def run(self, cell: int) -> None:
        """Runs a cell to its end."""
        self.start(cell)
        self.wait()

    def run_all(self) -> None:
        """Runs all cells by the menu."""
        self.menu("Run", "Run All Cells")
        self.wait()

    def restart_and_run_all(self) -> None:
        """Runs all cells by the menu in a new kernel."""
        self.menu("Kernel", re.compile("^Restart Kernel and Run All Cells"))
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        expect(self.prompt(0)).to_have_text("[1]:", timeout=SECONDS * 1000)
        self.wait()

    def wait(self, seconds: float = SECONDS) -> None:
        """Waits until no cell runs. (The kernel's own sign says idle while widgets are served.)"""
        expect(self.cells.locator(".jp-InputArea-prompt", has_text=BUSY)).to_have_count(
            0, timeout=seconds * 1000
        )

    def interrupt(self) -> None:
        """Presses the toolbar's button."""
        self.page.locator("[data-jp-item-name=interrupt]").click()

    def menu(self, menu: str, entry: str | re.Pattern[str]) -> None:
        """Chooses an entry of the menu bar."""
        self.page.get_by_role("menubar").get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menu").get_by_role("menuitem", name=entry).first.click()

    def output_text(self, cell: int) -> str:
        """The words that a cell shows."""
        self._show(cell)
        return "\n".join(self.outputs(cell).all_inner_texts()).strip()

    def output_html(self, cell: int) -> str:
        """The elements that a cell shows."""
        return "".join(each.inner_html() for each in self.outputs(cell).all())

    def watch(self, cell: int) -> None:
        """From now on, every frame of the page is looked at."""
        self.cells.nth(cell).evaluate(WATCH)

    def seen(self) -> dict[str, list[int]]:
        """What has been seen since: each value that differed from the one before."""
        found: dict[str, list[int]] = self.page.evaluate("window.seen")
        return found

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for something that is not an element of the page."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, f"{what}: not within {SECONDS} s"
            self.page.wait_for_timeout(20)

    def save(self) -> dict[str, Any]:
        """Saves by the keyboard; returns what is in the file."""
        before = self.path.stat().st_mtime_ns
        self.cells.first.locator(".jp-InputArea-prompt").click()
        self.page.keyboard.press("Control+s")
        self.until(lambda: self.path.stat().st_mtime_ns != before, "the file is written")
        return self.saved()

    def saved(self) -> dict[str, Any]:
        """What is in the file."""
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found

    def theme(self, name: str) -> None:
        """Changes the colours."""
        self.page.evaluate(
            "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
            name,
        )
        light = str("Light" in name).lower()
        expect(self.page.locator(f"body[data-jp-theme-light={light}]")).to_have_count(1)

    def screenshot(self, name: str) -> Path:
        """A picture of the window."""
        path = self._pictures / f"{name}-{self.front_end}.png"
        self.page.screenshot(path=path)
        return path

    def _go(self) -> None:
        path = self.path.relative_to(self._site.notebooks)
        self.page.goto(self._site.url + ADDRESS[self.front_end].format(path))

    def _ready(self) -> None:
        idle = self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        expect(idle).to_have_count(1, timeout=SECONDS * 1000)

    def _show(self, cell: int) -> None:
        # A cell that is off the screen has no innerText.
        self.cells.nth(cell).scroll_into_view_if_needed()


def _another_kernel(route: Any) -> None:
    """The server's kernels as a machine has them where the notebook was not made."""
    spec = {"argv": [], "display_name": "Another", "language": "other", "metadata": {}}
    other = {"name": "other", "spec": spec, "resources": {}}
    route.fulfill(json={"default": "other", "kernelspecs": {"other": other}})
