"""What tests talk to: a real IPython shell, a real kernel, a real server on loopback."""

import ast
import atexit
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import settings
from IPython.core.interactiveshell import InteractiveShell
from IPython.terminal.interactiveshell import TerminalInteractiveShell
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from llm_magic import retry, session
from llm_magic.stores import folder
from llm_magic.testing import ScriptedServer

if TYPE_CHECKING:
    from tests.redis_servers import RedisCluster3, RedisServer

GUARD = Path(__file__).parent / "guard"
KEY = "sk-MARKER-5ecret-0f-the-tests"
SOON = 3.0
"""Seconds within which a busy machine comes back at once; `make bench` holds the real bounds."""
# An example that takes long on a busy machine is not wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_configure() -> None:
    """Keeps this process, and by PYTHONPATH the kernels it starts, on the machine."""
    spec = importlib.util.spec_from_file_location("network_guard", GUARD / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    if "sitecustomize" not in sys.modules or not hasattr(sys.modules["sitecustomize"], "_is_local"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    os.environ["PYTHONPATH"] = str(GUARD)
    signal.signal(signal.SIGINT, interrupt)


def forget_settings() -> None:
    """The developer's own keys, servers and limits, and what a test has set with ``%env``."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "LLM_MAGIC_", "JPY_")):
            del os.environ[name]


def pytest_collection_finish() -> None:
    """Settings of the tests themselves, such as where pictures go, have been read by now."""
    forget_settings()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Several at once (``-n 4``): a file stays in one process, and so does a front end.

    So a kernel, a server or a browser that tests share is started once.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if "/browser/" in file:
                return "Notebook 7" if "[notebook" in test else "JupyterLab"
            return file

    return ByFile(config, log)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C, but not in the middle of coverage's own lock, which nobody would then release."""
    if frame is not None and frame.f_code.co_name in {"lock_data", "unlock_data"}:
        threading.Timer(0.001, os.kill, (os.getpid(), number)).start()
        return
    signal.default_int_handler(number, frame)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The developer's own keys, servers, caches and .env files stay out; retries are quick.

    Answers are not kept, so that a test may ask the same twice; ``keeping`` lets them be.
    """
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("LLM_MAGIC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM_MAGIC_LEDGER_DIR", str(tmp_path / "ledger"))
    monkeypatch.setenv("LLM_MAGIC_CACHE_SIZE", "0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.02)
    yield
    # The kernel that the next file shares is started before its first test.
    monkeypatch.undo()
    forget_settings()


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are kept, as they are where nothing is set."""
    monkeypatch.delenv("LLM_MAGIC_CACHE_SIZE")


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder not yet there, in a home on a network; the temporary folder is not on it."""
    home, local = tmp_path / "home", tmp_path / "local"
    home.mkdir()
    local.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(local))
    mount = f"1 1 0:1 / {os.path.realpath(home)} rw - nfs4 server:/ rw"
    monkeypatch.setattr(folder, "_mountinfo", lambda: mount)
    return home / "away"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A scripted server with one model."""
    with ScriptedServer() as running:
        yield running


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ScriptedServer]:
    """One for all tests of a module whose kernel is one as well; each test resets it."""
    with ScriptedServer() as running:
        yield running


def end_session() -> None:
    """Closes the session of this process, as at the end of a script or of a kernel."""
    if session._session is not None:
        session._session.close()
        session._session = None


@pytest.fixture
def provider(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripted server as the provider of a script, whose session is closed at its end."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield
    end_session()


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


def interrupted_when(
    ready: Callable[[], bool], run: Callable[[], Ran], patience: float = 30.0
) -> tuple[Ran, float]:
    """Runs a cell, sends the interrupt once ready, and says how long it took to return."""
    sent = 0.0

    def watch() -> None:
        nonlocal sent
        end = time.monotonic() + patience
        while not ready() and time.monotonic() < end:
            time.sleep(0.005)
        sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ran = run()
    returned = time.monotonic()
    watcher.join()
    return ran, returned - sent


def provided(monkeypatch: pytest.MonkeyPatch, url: str, **more: str) -> None:
    """Makes a load server the provider of a script, with no limit but those that are set.

    Args:
        monkeypatch: Of the test.
        url: The server's.
        **more: Further settings, as ``store="redis://..."``.
    """
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name, value in {"model": "load", "quota_requests": "None", **more}.items():
        monkeypatch.setenv(f"LLM_MAGIC_{name.upper()}", value)


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
    end_session()
    TerminalInteractiveShell.clear_instance()
    # It would collect garbage at exit, 0.1 s for each shell of the run.
    atexit.unregister(shell.atexit_operations)


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


def give_up(reason: str) -> NoReturn:
    """What a test needs is not installed: skipped on a laptop, a failure in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate that its server made itself."""
    from tests.redis_servers import certificate

    try:
        return certificate(tmp_path_factory.mktemp("tls"))
    except FileNotFoundError:
        give_up("no openssl is installed: apt-get install openssl")


def redis_kind_found(kind: str) -> str:
    """The kind of server, which is installed; else the test ends here."""
    # Imported where needed: most tests have nothing to do with it.
    from tests.redis_servers import binary

    if binary(kind) is None:
        give_up(f"no {kind}-server is installed: apt-get install {kind}-server")
    return kind


@pytest.fixture(params=["redis", "valkey"])
def redis_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server that is spoken to."""
    return redis_kind_found(request.param)


@pytest.fixture(scope="session")
def running_redis() -> "Iterator[dict[str, RedisServer]]":
    """The servers that tests share, by kind, as far as one was asked for."""
    running: dict[str, RedisServer] = {}
    yield running
    for each in running.values():
        each.stop()


@pytest.fixture
def redis_server(redis_kind: str, running_redis: "dict[str, RedisServer]") -> "RedisServer":
    """A Redis and a Valkey that all tests share, empty; none may stop it or change how it is set.

    One that is to be frozen, killed or set otherwise is `own_redis` or `start_redis`.
    """
    return emptied_redis(redis_kind, running_redis)


def emptied_redis(kind: str, running: "dict[str, RedisServer]") -> "RedisServer":
    """The running server of a kind, empty; started where there is none."""
    from tests.redis_servers import RedisServer

    if kind not in running:
        running[kind] = RedisServer(redis_kind_found(kind))
    with running[kind].client() as client:
        client.flushall()
        client.script_flush()
    return running[kind]


@pytest.fixture
def start_redis() -> "Iterator[Callable[..., RedisServer]]":
    """Starts servers of one test: ``start_redis("valkey", maxmemory="2mb")``; redis as it comes."""
    started: list[RedisServer] = []

    def start(kind: str = "redis", **config: Any) -> "RedisServer":
        from tests.redis_servers import RedisServer

        server = RedisServer(redis_kind_found(kind), **config)
        started.append(server)
        return server

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def own_redis(redis_kind: str, start_redis: "Callable[..., RedisServer]") -> "RedisServer":
    """A Redis and a Valkey of the test's own, to be frozen, killed and started again."""
    return start_redis(redis_kind)


@pytest.fixture(scope="session")
def running_clusters() -> "Iterator[dict[str, RedisCluster3]]":
    """The clusters that tests share, by kind, as far as one was asked for."""
    running: dict[str, RedisCluster3] = {}
    yield running
    for each in running.values():
        each.stop()


@pytest.fixture
def redis_cluster(redis_kind: str, running_clusters: "dict[str, RedisCluster3]") -> "RedisCluster3":
    """Three masters of Redis and of Valkey that all tests share, empty; it takes 2 s to form."""
    from tests.redis_servers import RedisCluster3

    if redis_kind not in running_clusters:
        running_clusters[redis_kind] = RedisCluster3(redis_kind)
    cluster = running_clusters[redis_kind]
    cluster.flush()
    return cluster


def plain(text: str) -> str:
    """Text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture
def unanswered_address() -> Iterator[str]:
    """A loopback address whose connections hang: a listener with a full backlog."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        yield f"{address[0]}:{address[1]}"
        for each in waiting:
            each.close()


@dataclass
class Shown:
    """What a kernel published for a cell.

    Attributes:
        messages: (type, content) of every iopub message, in order.
        reply: Content of the execute_reply.
    """

    messages: list[tuple[str, dict[str, Any]]]
    reply: dict[str, Any]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Contents of the messages of one type."""
        return [content for each, content in self.messages if each == kind]

    @property
    def text(self) -> str:
        """Everything printed."""
        return "".join(content["text"] for content in self.of("stream"))


def gather(
    shown: Shown, request: str, next_output: Callable[[], Any], next_reply: Callable[[], Any]
) -> None:
    """Adds what a kernel publishes for a cell, to its end; what came stays where that fails."""
    while True:
        message = next_output()
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        shown.messages.append((kind, content))
        if kind == "status" and content["execution_state"] == "idle":
            break
    while True:
        reply = next_reply()
        if reply["parent_header"].get("msg_id") == request:
            shown.reply = reply["content"]
            return


def started(patience: float, **options: Any) -> tuple[KernelManager, Any]:
    """A kernel that is ready, and its client.

    Begun once more where it does not come: another process can take a port between its choice and
    its use.
    """
    for last in (False, True):
        manager = KernelManager()
        manager.start_kernel(**options)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=patience)
        except RuntimeError:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            if last:
                raise
        else:
            break
    return manager, client


class Kernel:
    """A real Jupyter kernel in a process of its own.

    Args:
        watched: Whether to look like a notebook that somebody has open (JupyterLab names the
            session) in a front end without widgets; else as under nbclient.
        environment: Further variables. Where they say nothing about it, answers are not kept, and
            what is used is counted in a folder of the kernel's own.
    """

    def __init__(self, *, watched: bool, environment: dict[str, str]) -> None:
        seen = {"JPY_SESSION_NAME": "test.ipynb", "LLM_MAGIC_WIDGETS": "False"} if watched else {}
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        own = {
            "LLM_MAGIC_CACHE_DIR": f"{self._folder.name}/cache",
            "LLM_MAGIC_LEDGER_DIR": f"{self._folder.name}/ledger",
            "LLM_MAGIC_CACHE_SIZE": "0",
            "LLM_MAGIC_QUOTA_REQUESTS": "None",
        }
        quiet = subprocess.DEVNULL
        environment = {**os.environ, **own, **seen, **environment}
        self.manager, self.client = started(60, env=environment, stdout=quiet, stderr=quiet)

    def start(self, code: str) -> str:
        """Begins a cell; returns its message id."""
        return self.client.execute(code)

    def finish(self, request: str, timeout: float = 30) -> Shown:
        """Waits for a cell's end."""
        shown = Shown([], {})
        next_output = partial(self.client.get_iopub_msg, timeout=timeout)
        gather(shown, request, next_output, partial(self.client.get_shell_msg, timeout=timeout))
        return shown

    def run(self, code: str) -> Shown:
        """Runs a cell to its end."""
        return self.finish(self.start(code))

    def value(self, expression: str) -> Any:
        """A Python value out of the kernel."""
        shown = self.run(f"print(repr({expression}))")
        assert not shown.of("error"), shown.of("error")
        return ast.literal_eval(shown.text)

    def stop(self) -> None:
        """Ends the process."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self._folder.cleanup()
