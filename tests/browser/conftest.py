"""One browser for all tests in this folder, and one Jupyter server for each front end.

They end with the folder and not with the run: while playwright is there, its event loop runs in
this thread, and tests elsewhere begin loops of their own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import (
    BrowserContext,
    Playwright,
    ViewportSize,
    expect,
    sync_playwright,
)

from llm_magic.testing import ScriptedServer
from tests.browser.page import Desk
from tests.browser.site import TOKEN, Site
from tests.conftest import give_up

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ELSEWHERE = re.compile(r"^(https?|wss?|ftp)://(?!127\.0\.0\.1[:/]|localhost[:/])", re.IGNORECASE)
# Read here: each test begins without the developer's settings.
PICTURES = os.environ.get("LLM_MAGIC_SCREENSHOTS")
WINDOW: ViewportSize = {"width": 1100, "height": 800}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """JupyterLab alone but with CI set: Notebook 7 runs the same code, and takes as long again."""
    if not os.environ.get("CI"):
        again = {each for each in items if each.path.parent == HERE and "[notebook" in each.name}
        config.hook.pytest_deselected(items=list(again))
        items[:] = [each for each in items if each not in again]


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
def playwright() -> Iterator[Playwright]:
    """What drives browsers: one alone, since its event loop runs in this thread."""
    with sync_playwright() as running:
        yield running


@contextmanager
def launched(
    playwright: Playwright, profile: Path, window: ViewportSize, scale: float = 1
) -> Iterator[BrowserContext]:
    """A Chromium that cannot leave the machine.

    Its profile is on disk, since it keeps compiled scripts there alone, and a page of JupyterLab
    costs a third less with them.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        give_up("no Chromium is installed: apt-get install chromium")
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    context = playwright.chromium.launch_persistent_context(
        profile,
        executable_path=found,
        args=arguments,
        viewport=window,
        device_scale_factor=scale,
        service_workers="block",
    )
    yield context
    context.close()


@pytest.fixture(scope="package")
def browser(
    playwright: Playwright, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserContext]:
    """What all tests look through."""
    with launched(playwright, tmp_path_factory.mktemp("chromium"), WINDOW) as context:
        context.set_default_timeout(30_000)
        expect.set_options(timeout=10_000)
        yield context


@pytest.fixture(scope="package", params=["lab", "notebook"])
def front_end(request: pytest.FixtureRequest) -> str:
    """JupyterLab, and Notebook 7."""
    return str(request.param)


# One for each front end: a Jupyter server that has served a file to JupyterLab refuses Notebook 7
# its own of the same name, such as a font of the formulas.
@pytest.fixture(scope="package")
def site(
    front_end: str,
    shared_server: ScriptedServer,
    browser: BrowserContext,  # Without one no server is started.
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    running = Site(tmp_path_factory.mktemp("jupyter"), shared_server.url)
    browser.request.get(f"{running.url}/login?token={TOKEN}")  # Its cookie is for every page.
    yield running
    running.stop()


@pytest.fixture(scope="package")
def asked_elsewhere(browser: BrowserContext) -> list[str]:
    """Addresses off the machine that a page has asked for, in vain."""
    asked: list[str] = []

    def note(url: str) -> None:
        if ELSEWHERE.match(url):
            asked.append(url)

    # Told, not routed: where requests are routed, Chromium keeps no file of a front end, and each
    # page loads and compiles all of it anew.
    browser.on("request", lambda request: note(request.url))
    browser.on("page", lambda page: page.on("websocket", lambda socket: note(socket.url)))
    return asked


@pytest.fixture(autouse=True)
def elsewhere(asked_elsewhere: list[str]) -> Iterator[list[str]]:
    """The same for one test, which fails if there is one."""
    asked_elsewhere.clear()
    yield asked_elsewhere
    assert asked_elsewhere == []


@pytest.fixture(scope="package")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    return Path(PICTURES) if PICTURES else tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def desk(
    front_end: str,
    browser: BrowserContext,
    site: Site,
    asked_elsewhere: list[str],
    pictures: Path,
) -> Desk:
    """A user of the front end."""
    return Desk(browser, site, front_end, pictures)
