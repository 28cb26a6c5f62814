"""What tests talk to: a real IPython shell, a real kernel, a real server on loopback."""

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.terminal.interactiveshell import TerminalInteractiveShell
from traitlets.config import Config

from llm_magic import engine, session
from llm_magic.testing import ScriptedServer

GUARD = Path(__file__).parent / "guard"
KEY = "sk-MARKER-5ecret-0f-the-tests"


def pytest_configure() -> None:
    """Keeps this process, and by PYTHONPATH the kernels it starts, on the machine."""
    spec = importlib.util.spec_from_file_location("network_guard", GUARD / "sitecustomize.py")
    assert spec and spec.loader
    if "sitecustomize" not in sys.modules or not hasattr(sys.modules["sitecustomize"], "_is_local"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    os.environ["PYTHONPATH"] = str(GUARD)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The developer's own keys, servers and .env files stay out; retries are quick."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "LLM_MAGIC_", "JPY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "FIRST_WAIT", 0.02)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A scripted server with one model."""
    with ScriptedServer() as running:
        yield running


@dataclass
class Ran:
    """What came of a cell.

    Attributes:
        out: What the user saw.
        error: What the cell raised, or None.
        value: What it returned.
    """

    out: str
    error: Any
    value: Any


class Terminal:
    """A user in front of a terminal IPython."""

    def __init__(self, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        self.shell = shell
        self._capsys = capsys

    def run(self, cell: str) -> Ran:
        """Runs a cell as if it were typed."""
        self._capsys.readouterr()
        result = self.shell.run_cell(cell, store_history=True)
        captured = self._capsys.readouterr()
        error = result.error_in_exec or result.error_before_exec
        return Ran(captured.out + captured.err, error, result.result)

    def __getitem__(self, name: str) -> Any:
        return self.shell.user_ns[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.shell.user_ns[name] = value


@pytest.fixture
def bare_terminal(capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    """A terminal IPython as it starts: nothing loaded, nothing set."""
    config = Config()
    config.HistoryManager.enabled = False
    config.TerminalInteractiveShell.colors = "nocolor"
    config.TerminalInteractiveShell.simple_prompt = True
    TerminalInteractiveShell.clear_instance()
    InteractiveShell.clear_instance()
    shell = TerminalInteractiveShell.instance(config=config)
    yield Terminal(shell, capsys)
    if session._session is not None:
        session._session.close()
        session._session = None
    TerminalInteractiveShell.clear_instance()


@pytest.fixture
def terminal(
    bare_terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    """The same with the extension loaded, a key, and the scripted server as the provider."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LLM_MAGIC_TIMEOUT", "5")
    monkeypatch.setenv("LLM_MAGIC_STALL_TIMEOUT", "5")
    assert bare_terminal.run("%load_ext llm_magic").out == ""
    return bare_terminal


def plain(text: str) -> str:
    """Text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
