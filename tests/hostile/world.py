"""Everything that the hostile tests run against: a provider, three kernels, their stores."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.conftest import KEY
from tests.hostile.disks import Disk
from tests.hostile.kernels import Worker
from tests.hostile.provider import MODELS, PRICES, Provider, Served
from tests.hostile.schedule import DISK, LIMITS, TEAM
from tests.redis_servers import RedisServer, binary

PASSWORD = "pw-MARKER-0f-the-hostile-tests"
MARKERS = (KEY, PASSWORD)
SPAN = "3000d"
"""The window of all limits: longer than all that clocks are put forward."""
USER = "ada"


class Broken(AssertionError):
    """An invariant does not hold.

    Args:
        invariant: Which one.
        why: What was seen.
    """

    def __init__(self, invariant: str, why: str) -> None:
        super().__init__(f"{invariant}: {why}")
        self.invariant = invariant


@dataclass
class Asked:
    """A question, and what came of it.

    Attributes:
        prompt: Its words.
        model: The model.
        got: The answer that was given: text or value; None where there was an error.
        chat: Whether other turns were before it.
        kept: Whether the answer is to be in the cache.
    """

    prompt: str
    model: str = MODELS[0]
    got: Any = None
    chat: bool = False
    kept: bool = True


@dataclass
class Result:
    """What came of a kernel's part of a step.

    Attributes:
        life: The kernel, and which of its lives.
        asked: The questions.
        errors: Class and words of the errors of its cells.
        shown: What its cells showed, as text.
        died: Whether the kernel was killed meanwhile.
    """

    life: str
    asked: list[Asked] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    shown: str = ""
    died: bool = False


@dataclass
class Kept:
    """An answer that must be in a cache.

    Attributes:
        life: The kernel that has it.
        alone: Whether no other turns were before the question.
        seen: Whether it was there already.
    """

    life: str
    alone: bool
    seen: bool = False


class World:
    """The provider, the kernels ``a`` and ``b`` with the same folders, and ``c`` with Redis.

    Attributes:
        kept: Answers that must be in a cache, by the store and the question.
        leaks: Where a secret was seen.
        counted: How often each fault was there.
        stopped: How many calls that were stopped may be booked and never sent, by the store.
        limited: The last limit: what, how much was left, and the requests while it was there.
        damaged: Whether bytes of the cache's file were changed.
        warned: Kernels, and which of their lives, that were warned of a store.
        asked_next: How many plain cells were run after steps.
    """

    def __init__(self, *, redis: bool = True) -> None:
        self._temporary = TemporaryDirectory(prefix="hostile-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self.disks = {name: Disk(self.folder / name) for name in ("cache", "ledger", "spare")}
        self.kept: dict[str, dict[tuple[str, str], Kept]] = {"disk": {}, "team": {}}
        self.warned: set[str] = set()
        self.leaks: list[str] = []
        self.counted: Counter[str] = Counter()
        self.workers: dict[str, Worker] = {}
        self.redis: RedisServer | None = None
        self.stopped: Counter[str] = Counter()
        self.limited: tuple[str, int, list[Served]] | None = None
        self.damaged = False
        self.asked_next = 0
        self.provider = Provider(_life_of)
        try:
            self.provider.start()
            if redis and binary("redis"):
                self.redis = RedisServer(
                    requirepass=PASSWORD, appendonly="yes", appendfsync="always"
                )
            for name in (*DISK, *([TEAM] if self.redis else [])):
                self._employ(name)
        except BaseException:
            self.close()
            raise

    def _employ(self, name: str) -> None:
        folder = self.folder / f"kernel-{name}"
        folder.mkdir()
        self.workers[name] = Worker(
            name, folder, self.environment(name), self._saw, watched=name != "b"
        )

    def environment(self, name: str) -> dict[str, str]:
        """How a kernel is set."""
        found = {
            "OPENAI_BASE_URL": self.provider.url,
            "OPENAI_API_KEY": KEY,
            "LLM_MAGIC_MODEL": MODELS[0],
            "LLM_MAGIC_PRICES": str(dict.fromkeys(MODELS, PRICES)).replace("'", '"'),
            "LLM_MAGIC_CACHE_DIR": str(self.disks["cache"].place / "cache"),
            "LLM_MAGIC_LEDGER_DIR": str(self.disks["ledger"].place / "ledger"),
            "LLM_MAGIC_CACHE_SIZE": "32 MB",
            "LLM_MAGIC_QUOTA_REQUESTS": "None",
            # Where USD are not limited no answer is capped, and nobody knows what one comes to
            # whose kernel is killed.
            "LLM_MAGIC_LIMITS": "; ".join(
                f"1000000000 {each} per {SPAN} per user" for each in LIMITS
            ),
            "LLM_MAGIC_USER": USER,
            "LLM_MAGIC_RETRIES": "1",
            "LLM_MAGIC_TIMEOUT": "60",
            "LLM_MAGIC_STALL_TIMEOUT": "60",
            # One of them streams into a widget that no page shows, the others do without.
            "LLM_MAGIC_WIDGETS": str(name == "a"),
        }
        if name == TEAM and self.redis:
            found |= {"LLM_MAGIC_STORE": self.redis.url_of(), "LLM_MAGIC_STORE_PASSWORD": PASSWORD}
            found["LLM_MAGIC_CACHE_DIR"] = str(self.folder / "team-cache")
        return found

    @cached_property
    def cache_file(self) -> Path:
        """The cache of ``a`` and ``b``."""
        return self.disks["cache"].place / "cache/cache.db"

    @cached_property
    def ledger_file(self) -> Path:
        """Their ledger."""
        return self.disks["ledger"].place / "ledger/ledger.db"

    def store_of(self, name: str) -> str:
        """Which store a kernel has."""
        return "team" if name[0] == TEAM else "disk"

    def served(self, store: str = "", since: int = 0) -> list[Served]:
        """Requests of the kernels of a store; of all without one."""
        found = self.provider.served[since:]
        return [each for each in found if not store or self.store_of(each.kernel) == store]

    def _saw(self, life: str, text: str) -> None:
        if "StoreWarning" in text:
            self.warned.add(life)
        for marker in MARKERS:
            if marker in text:
                place = text.index(marker)
                self.leaks.append(f"a message of {life}: {text[max(0, place - 200) : place + 60]}")

    def close(self) -> None:
        """Ends all processes, and removes all files."""
        for each in self.workers.values():
            with suppress(Exception):
                each.stop()
        with suppress(Exception):
            self.provider.stop()
        if self.redis:
            self.redis.stop()
        for disk in self.disks.values():
            disk.remove()
        self._temporary.cleanup()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _life_of(key: str) -> str:
    found = re.search(r"-([a-z]\d+)$", key)
    return found[1] if found else "?"


@contextmanager
def at(seconds: float, act: Callable[[], Any]) -> Iterator[None]:
    """Does something after so many seconds, at the end of the block at the latest."""
    begun, lock = threading.Event(), threading.Lock()
    failed: list[BaseException] = []

    def once() -> None:
        with lock:
            if not begun.is_set():
                begun.set()
                try:
                    act()
                except BaseException as error:
                    failed.append(error)

    timer = threading.Timer(seconds, once)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        once()
        timer.join()
    if failed:
        raise failed[0]


class Stopper(threading.Thread):
    """Interrupts or kills a kernel at a phase of what it does.

    Args:
        world: Where.
        worker: The kernel.
        stop: ``interrupt`` or ``kill``.
        phase: When.
        dice: For the moment.
    """

    def __init__(
        self, world: World, worker: Worker, stop: str, phase: str, dice: random.Random
    ) -> None:
        super().__init__(daemon=True)
        self._world, self._worker, self._stop_by, self._phase = world, worker, stop, phase
        self._first = len(world.provider.served)
        self._pause = dice.uniform(0, {"start": 0.04, "later": 0.7}.get(phase, 0.02))
        self.over = threading.Event()
        self.done = False

    def run(self) -> None:
        while not self._ready() and not self.over.wait(0.002):
            pass
        if self.over.is_set():
            return
        time.sleep(self._pause)
        if self._stop_by == "kill":
            self._worker.kill()
        else:
            self._worker.interrupt()
        self.done = True

    def _ready(self) -> bool:
        mine = [
            each
            for each in self._world.provider.served[self._first :]
            if each.kernel == self._worker.life
        ]
        match self._phase:
            case "request":
                return bool(mine)
            case "stream":
                return any(each.received.sent_chunks > 2 for each in mine)
            case "end":
                return any(each.received.finished.is_set() for each in mine)
        return True
