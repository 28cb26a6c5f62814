"""A Jupyter server of the tests' own on loopback, with JupyterLab and Notebook 7."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import nbformat

from tests.conftest import GUARD, KEY

ROOT = Path(__file__).parents[2]
TOKEN = "token-of-the-tests"
SECONDS_TO_START = 60
DEVELOPERS_OWN = ("OPENAI_", "LLM_MAGIC_", "JPY_", "JUPYTER")
# Without it JupyterLab asks whether it may fetch news, over the cells and then over the network.
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}


class Site:
    """A running Jupyter server.

    Args:
        folder: For its notebooks, and its settings.
        provider: Base URL of the server that its kernels ask.
    """

    def __init__(self, folder: Path, provider: str) -> None:
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir()
        settings = folder / "config/lab/user-settings/@jupyterlab/apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(NO_NEWS))
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                _command(port, self.notebooks),
                env=_environment(folder, provider),
                stdout=log,
                stderr=log,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def write(self, name: str, cells: tuple[str, ...]) -> Path:
        """A notebook of these code cells, in a folder of its own."""
        path = self.notebooks / name / "x.ipynb"
        path.parent.mkdir()
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, path)
        return path

    def sessions(self, path: Path) -> list[str]:
        """The sessions of a notebook, or of all in a folder."""
        under = path.relative_to(self.notebooks)
        found = self.api("sessions")
        return [each["id"] for each in found if Path(each["path"]).is_relative_to(under)]

    def end_sessions(self, path: Path) -> None:
        """Ends the kernels of a notebook, and with them all that lives only there."""
        for session in self.sessions(path):
            # One that has just ended by itself is not there any more.
            with contextlib.suppress(urllib.error.HTTPError):
                self.api(f"sessions/{session}", "DELETE")

    def api(self, path: str, method: str = "GET") -> Any:
        """What the server's REST API answers."""
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method)
        request.add_header("Authorization", f"token {TOKEN}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or "null")

    def stop(self) -> None:
        """Ends the server and its kernels."""
        with contextlib.suppress(OSError):
            self.end_sessions(self.notebooks)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while self._process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                self.api("status")
                return
            time.sleep(0.1)
        raise RuntimeError(f"Jupyter did not start:\n{self._log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _command(port: int, notebooks: Path) -> list[str]:
    command = [sys.executable, "-m", "jupyterlab", "--no-browser"]
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": notebooks,
        "IdentityProvider.token": TOKEN,
        # The page's commands: for changing the theme, and saying what a front end has.
        "LabApp.expose_app_in_browser": True,
        "JupyterNotebookApp.expose_app_in_browser": True,
    }
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options["ServerApp.allow_root"] = True
    return [*command, *(f"--{name}={value}" for name, value in options.items())]


def _environment(folder: Path, provider: str) -> dict[str, str]:
    """The developer's, without what is set there for Jupyter and for models."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(DEVELOPERS_OWN)}
    own = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    return {
        **environment,
        **{f"JUPYTER_{name}_DIR": str(folder / place) for name, place in own.items()},
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(GUARD)]),
        "OPENAI_BASE_URL": provider,
        "OPENAI_API_KEY": KEY,
        # Relative to where a kernel starts, so that each notebook has its own.
        "LLM_MAGIC_CACHE_DIR": "cache",
        "LLM_MAGIC_LEDGER_DIR": "ledger",
        "LLM_MAGIC_QUOTA_REQUESTS": "None",
    }
