"""One Jupyter server and one browser for all tests in this folder.

They end with the folder and not with the run: while playwright is there, its event loop runs in
this thread, and tests elsewhere begin loops of their own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from playwright.sync_api import BrowserContext, Page, Route, WebSocket, expect, sync_playwright

from llm_magic.testing import ScriptedServer
from tests.browser.page import Notebook
from tests.browser.site import TOKEN, Site

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ELSEWHERE = re.compile(r"^(https?|wss?|ftp)://(?!127\.0\.0\.1[:/]|localhost[:/])", re.IGNORECASE)
WINDOW = {"width": 1100, "height": 800}


def give_up(reason: str) -> NoReturn:
    """No browser: skipped on a laptop, a failure in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="package")
def shared_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def server(shared_server: ScriptedServer) -> ScriptedServer:
    """What the kernels ask, with nothing asked yet."""
    shared_server.reset()
    return shared_server


@pytest.fixture(scope="package")
def browser() -> Iterator[BrowserContext]:
    """A browser that cannot leave the machine."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        give_up("no Chromium is installed: apt-get install chromium")
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=arguments)
        context = chromium.new_context(viewport=WINDOW, service_workers="block")
        context.set_default_timeout(30_000)
        expect.set_options(timeout=10_000)
        yield context
        chromium.close()


@pytest.fixture(scope="package")
def site(
    shared_server: ScriptedServer,
    browser: BrowserContext,  # Without one no server is started.
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    running = Site(tmp_path_factory.mktemp("jupyter"), shared_server.url)
    yield running
    running.stop()


@pytest.fixture(scope="package")
def page(browser: BrowserContext, site: Site) -> Page:
    """One page for all tests, logged in."""
    page = browser.new_page()
    page.goto(f"{site.url}/login?token={TOKEN}")
    return page


@pytest.fixture
def elsewhere(page: Page) -> Iterator[list[str]]:
    """Addresses off the machine that the page has asked for; the test fails if there is one."""
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    def note(socket: WebSocket) -> None:
        if ELSEWHERE.match(socket.url):
            asked.append(socket.url)

    page.context.route(ELSEWHERE, refuse)
    page.on("websocket", note)
    yield asked
    page.remove_listener("websocket", note)
    page.context.unroute(ELSEWHERE)
    assert asked == []


@pytest.fixture(params=["lab", "notebook"])
def notebook(
    request: pytest.FixtureRequest,
    page: Page,
    site: Site,
    server: ScriptedServer,
    elsewhere: list[str],
    tmp_path: Path,
) -> Iterator[Notebook]:
    """A user of JupyterLab, and one of Notebook 7."""
    pictures = Path(os.environ.get("LLM_MAGIC_SCREENSHOTS", tmp_path))
    notebook = Notebook(page, site, request.param, pictures)
    yield notebook
    notebook.close()
