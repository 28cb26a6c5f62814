"""A user in front of notebooks, in JupyterLab or in Notebook 7."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.browser.site import Site

ADDRESS = {"lab": "/lab/tree/{}?reset", "notebook": "/notebooks/{}"}
SECONDS = 30
"""For a page or a kernel to get ready, at most."""
BUSY = re.compile(r"\[\*\]")
LEAST_CONTRAST = 4
"""JupyterLab's own colour of comments has 4.15 in its dark theme; WCAG asks for 4.5."""

# The page's own sign says idle before there is a kernel, too.
KERNEL_IS_READY = """() => {
    const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""

# Whether a cell has waited or run since; a short one is over before anybody could ask.
NOTICE_RUNS = """(notebook) => {
    window.ran = false;
    new MutationObserver((_, observer) => {
        const prompts = [...notebook.querySelectorAll('.jp-InputArea-prompt')];
        if (!prompts.some(each => each.textContent.includes('[*]'))) return;
        window.ran = true;
        observer.disconnect();
    }).observe(notebook, {subtree: true, childList: true, characterData: true});
}"""

# Scrolls, and comes back when the page has stood still for ten frames.
SCROLL = """(cell) => new Promise(done => {
    cell.scrollIntoView({block: 'start', behavior: 'instant'});
    let [still, top] = [0, NaN];
    const look = () => {
        const now = cell.getBoundingClientRect().top;
        still = now === top ? still + 1 : 0;
        top = now;
        still > 10 ? done() : requestAnimationFrame(look);
    };
    look();
})"""

# Notes on every frame what the user sees of a cell: how many of the numbered words, where the
# cell begins on the screen, how far the notebook is scrolled.
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

# Every piece of text in an element: its colour as it is seen, and its contrast (WCAG) with what
# is behind it.
INKS = """(root) => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const paint = layers => {
        for (const [colour, opacity] of layers) {
            canvas.globalAlpha = opacity;
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
        }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = colour => colour.map(each => each / 255)
        .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
        .reduce((sum, each, i) => sum + each * [0.2126, 0.7152, 0.0722][i], 0);
    const look = element => {
        const backgrounds = [];
        let opacity = 1;
        for (let each = element; each; each = each.parentElement) {
            const style = getComputedStyle(each);
            opacity *= style.opacity;
            backgrounds.unshift([style.backgroundColor, 1]);
        }
        const paper = paint(backgrounds);
        const ink = paint([[getComputedStyle(element).color, opacity]]);
        const [dark, bright] = [light(paper), light(ink)].sort((a, b) => a - b);
        return {ink: ink.join(), contrast: (bright + 0.05) / (dark + 0.05)};
    };
    const words = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    const found = [];
    while (words.nextNode()) {
        const [text, element] = [words.currentNode.data, words.currentNode.parentElement];
        if (!text.trim() || element.closest('mjx-container')) continue;
        found.push({text, code: Boolean(element.closest('pre')), ...look(element)});
    }
    return found;
}"""


class Desk:
    """A user of one front end.

    Args:
        browser: The browser.
        site: The Jupyter server.
        front_end: "lab" or "notebook".
        pictures: Where screenshots go.
    """

    def __init__(self, browser: BrowserContext, site: Site, front_end: str, pictures: Path) -> None:
        self.front_end = front_end
        self.pictures = pictures
        self._browser = browser
        self._site = site

    @contextmanager
    def opened(self, *cells: str) -> Iterator[Notebook]:
        """A new notebook of these cells, on screen, with a kernel that is ready."""
        path = self._site.write(f"{self.front_end}-{time.monotonic_ns()}", cells)
        with self._page(path) as notebook:
            notebook.wait_for_kernel()
            expect(notebook.cells).to_have_count(len(cells))
            yield notebook

    @contextmanager
    def opened_without_kernel(self, saved: Path) -> Iterator[Notebook]:
        """A copy of a saved notebook, on screen where its kernel is not to be had."""
        path = saved.with_name("copy.ipynb")
        shutil.copyfile(saved, path)
        with self._page(path, kernels=False) as notebook:
            dialog = notebook.page.locator(".jp-Dialog")
            dialog.get_by_role("button", name="No Kernel").click()
            expect(dialog).to_have_count(0)
            expect(notebook.cells.first).to_be_visible()
            yield notebook
            assert self._site.sessions(path) == []

    @contextmanager
    def _page(self, path: Path, *, kernels: bool = True) -> Iterator[Notebook]:
        page = self._browser.new_page()
        if not kernels:
            page.route("**/api/kernelspecs*", _another_kernel)
        address = ADDRESS[self.front_end].format(path.relative_to(self._site.notebooks))
        page.goto(self._site.url + address)
        try:
            yield Notebook(page, path, self)
        finally:
            page.close()
            self._site.end_sessions(path)


class Notebook:
    """A notebook on screen.

    Args:
        page: The browser's page.
        path: The notebook's file.
        desk: Whose it is.
    """

    def __init__(self, page: Page, path: Path, desk: Desk) -> None:
        self.page = page
        self.path = path
        self.desk = desk

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

    def stop_button(self, cell: int) -> Locator:
        """What ends the answer of a cell."""
        return self.outputs(cell).get_by_role("button", name="Stop")

    def wait_for_kernel(self) -> None:
        """Waits until the page has a kernel that does nothing."""
        self.page.wait_for_function(KERNEL_IS_READY, timeout=SECONDS * 1000)

    def start(self, cell: int) -> None:
        """Begins a cell, which stays the active one."""
        self.cells.nth(cell).locator(".cm-content").click()
        with self._begins():
            self.page.keyboard.press("Control+Enter")

    def run(self, cell: int) -> None:
        """Runs a cell to its end."""
        self.start(cell)
        self.wait()

    def run_all(self) -> None:
        """Runs all cells by the menu."""
        self.start_all()
        self.wait()

    def start_all(self) -> None:
        """Begins all cells by the menu."""
        with self._begins():
            self.menu("Run", "Run All Cells")

    def restart_and_run_all(self) -> None:
        """Runs all cells by the menu in a new kernel."""
        with self._begins():
            self.menu("Kernel", re.compile("^Restart Kernel and Run All Cells"))
            self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.wait()

    def wait(self, seconds: float = SECONDS) -> None:
        """Waits until no cell runs. (The kernel's own sign says idle while widgets are served.)"""
        expect(self.cells.locator(".jp-InputArea-prompt", has_text=BUSY)).to_have_count(
            0, timeout=seconds * 1000
        )

    def interrupt(self) -> None:
        """Presses the toolbar's button."""
        self.page.locator("[data-jp-item-name=interrupt]").click()

    def leave_idle(self) -> None:
        """Interrupts what runs, if anything does."""
        if self.cells.locator(".jp-InputArea-prompt", has_text=BUSY).count():
            self.interrupt()
            self.wait()

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

    def inks(self, cell: int) -> list[dict[str, Any]]:
        """Each piece of text in a cell's last output: its colour, and its contrast."""
        found: list[dict[str, Any]] = self.outputs(cell).last.evaluate(INKS)
        return found

    def scroll_to(self, cell: int) -> None:
        """Scrolls until a cell begins at the top of the window."""
        self.cells.nth(cell).evaluate(SCROLL)

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
        self.cells.first.locator(".jp-InputArea-prompt").click()
        # JupyterLab saves its own layout as well.
        with self.page.expect_response(
            lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url
        ):
            self.page.keyboard.press("Control+s")
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found

    def theme(self, name: str) -> None:
        """Changes the colours."""
        self.page.evaluate(
            "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
            name,
        )
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)
        light = str("Light" in name).lower()
        expect(self.page.locator(f"body[data-jp-theme-light={light}]")).to_have_count(1)

    def screenshot(self, name: str) -> Path:
        """A picture of the window."""
        path = self.desk.pictures / f"{name}-{self.desk.front_end}.png"
        self.page.screenshot(path=path)
        return path

    @contextmanager
    def _begins(self) -> Iterator[None]:
        """Does something after which a cell waits or runs."""
        self.page.locator(".jp-Notebook").evaluate(NOTICE_RUNS)
        yield
        self.page.wait_for_function("window.ran", timeout=SECONDS * 1000)

    def _show(self, cell: int) -> None:
        # A cell that is off the screen has no innerText.
        self.cells.nth(cell).scroll_into_view_if_needed()


def _another_kernel(route: Any) -> None:
    """The server's kernels as a machine has them where the notebook was not made."""
    spec = {"argv": [], "display_name": "Another", "language": "other", "metadata": {}}
    other = {"name": "other", "spec": spec, "resources": {}}
    route.fulfill(json={"default": "other", "kernelspecs": {"other": other}})
