"""Kernels that are stopped, killed and started anew, with a clock that can be set."""

from __future__ import annotations

import json
import mmap
import os
import queue
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.conftest import Kernel, Shown, gather, started
from tests.test_nothing_grows import COUNT

LONGEST = 90.0
"""Seconds in which every cell ends, however busy the machine is."""
CLOCK = """
import mmap, os, struct, time
with open(os.environ["HOSTILE_CLOCK"], "r+b") as _file:
    _clock = mmap.mmap(_file.fileno(), 8)
_time, _time_ns = time.time, time.time_ns
def _set(clock=_clock, unpack=struct.Struct("<q").unpack):
    return unpack(clock[:8])[0]
time.time = lambda: _time() + _set()
time.time_ns = lambda: _time_ns() + _set() * 10**9
"""
SETUP = """
%load_ext llm_magic
import json, llm_magic
from llm_magic.errors import ReplayMissing
from typing import TypedDict
get_ipython().cache_size = 0
Item = TypedDict("Item", {"name": str, "people": int})
def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "finish_reason"):
        return {"text": value.text, "finish": value.finish_reason, "value": _plain(value.value)}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
def probe(*names):
    print(json.dumps({each: _plain(globals()[each]) for each in names if each in globals()}))
def forget(*names):
    for each in names:
        globals().pop(each, None)
"""


class Died(Exception):
    """The kernel's process is gone."""


class Hung(Exception):
    """A cell did not end."""


class _Lost(Exception):
    """The reply to a cell does not come, though its kernel is well."""


_LOST = b"KeyboardInterrupt caught in kernel"
"""What ipykernel says when an interrupt comes once the cell is through, and drops its reply."""


class Worker(Kernel):
    """A kernel of somebody who works in it while everything fails.

    Args:
        name: Its name; the key it has says it, and which of its lives it lives.
        folder: Where its own files are.
        environment: Whose stores it has.
        saw: Told each message, as text.
        watched: Whether a notebook shows it.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        environment: Mapping[str, str],
        saw: Callable[[str, str], None],
        *,
        watched: bool,
    ) -> None:
        self.name, self._saw, self.lives = name, saw, 0
        self._watched = {"JPY_SESSION_NAME": "hostile.ipynb"} if watched else {}
        self._own = folder
        startup = folder / "ipython/profile_default/startup"
        startup.mkdir(parents=True)
        (startup / "00-clock.py").write_text(CLOCK)
        self._clock = folder / "clock"
        self._clock.write_bytes(bytes(8))
        self._environment = dict(environment)
        self.begin()

    @property
    def life(self) -> str:
        """Its name in this life."""
        return f"{self.name}{self.lives}"

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self.manager.provisioner.pid)

    @property
    def log(self) -> Path:
        """What its process said."""
        return self._own / "log"

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return bool(self.manager.is_alive())

    def begin(self) -> None:
        """Starts the process, and loads the extension."""
        self.lives += 1
        self.baseline: dict[str, int] | None = None
        key = f"{self._environment['OPENAI_API_KEY']}-{self.life}"
        own = {
            "OPENAI_API_KEY": key,
            "IPYTHONDIR": str(self._own / "ipython"),
            "HOSTILE_CLOCK": str(self._clock),
        }
        plain = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OPENAI_", "LLM_MAGIC_", "JPY_"))
        }
        with self.log.open("ab") as log:
            self.manager, self.client = started(
                LONGEST,
                env={**plain, **self._environment, **self._watched, **own},
                cwd=str(self._own),
                stdout=log,
                stderr=log,
            )
        self._replies_lost = self._lost()
        for cell in (SETUP, COUNT):
            shown = self.run(cell)
            assert not shown.of("error"), shown.of("error")

    def set_clock(self, seconds: int) -> None:
        """Puts its clock forward or back by so much."""
        with self._clock.open("r+b") as file, mmap.mmap(file.fileno(), 8) as clock:
            (now,) = struct.unpack("<q", clock[:8])
            clock[:8] = struct.pack("<q", now + seconds)

    def finish(self, request: str, timeout: float = LONGEST) -> Shown:
        """Waits for a cell's end.

        Raises:
            Died: The process ended.
            Hung: It took longer.
        """
        end = time.monotonic() + timeout
        shown = Shown([], {})
        next_output = partial(self._next, self.client.get_iopub_msg, end)
        try:
            gather(shown, request, next_output, partial(self._next, self.client.get_shell_msg, end))
        except _Lost:
            lost = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
            return Shown([*shown.messages, ("error", lost)], {"status": "error"})
        return shown

    def _lost(self) -> int:
        return self.log.read_bytes().count(_LOST)

    def _next(self, get: Callable[..., Any], end: float) -> Any:
        while True:
            try:
                message = get(timeout=0.5)
            except queue.Empty:
                if not self.alive:
                    raise Died(self.life) from None
                if (lost := self._lost()) > self._replies_lost:
                    self._replies_lost = lost
                    raise _Lost from None
                if time.monotonic() > end:
                    raise Hung(f"{self.life} does not end\n{self._stacks()}") from None
            else:
                text = json.dumps([message["msg_type"], message["content"]], default=str)
                self._saw(self.life, text)
                return message

    def _stacks(self) -> str:
        """Where its threads are, if the tool for that is installed."""
        spy = Path(sys.executable).with_name("py-spy")
        if not spy.exists():
            return ""
        words = [str(spy), "dump", "--pid", str(self.pid)]
        return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout

    def surely(self, code: str) -> Shown:
        """Runs a cell that nothing may stop: again where an interrupt came that was too late."""
        for _ in range(5):
            shown = self.run(code)
            if not (errors := shown.of("error")):
                return shown
            if errors[0]["ename"] != "KeyboardInterrupt":
                break
        raise AssertionError(shown.of("error"))

    def probed(self, *names: str) -> dict[str, Any]:
        """Values of these names, which are forgotten."""
        words = ", ".join(map(repr, names))
        found: dict[str, Any] = json.loads(self.surely(f"probe({words})").text)
        self.surely(f"forget({words})")
        return found

    def calm(self) -> None:
        """Lets an interrupt that came too late hit a cell that does nothing."""
        self.surely("pass")
        # One that came behind a reply that was sent has lost none, and is no later cell's.
        self._replies_lost = self._lost()

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """Ends the process in the middle of whatever it does."""
        os.kill(self.pid, signal.SIGKILL)

    def restart(self) -> None:
        """Starts a new process in the place of the one that was killed."""
        self.stop()
        self.begin()

    def stop(self) -> None:
        """Ends the process."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
