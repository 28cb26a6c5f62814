"""What a process still has to write into Redis: bookings and free answers.

A booking is late when Redis could not be asked in its time. It stays here, and goes with the next
write that succeeds, or by itself when Redis is back: what it holds meanwhile is missing to others.
Each may be written twice without harm.
"""

from __future__ import annotations

import struct
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence

from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Line, Saved, Used
from llm_magic.stores.ledger_rows import kept
from llm_magic.stores.redis.scripts import AT_ONCE, Scripts, booked, name, told

AGAIN = 5.0
"""Seconds after which what could not be written is tried again, if nobody writes before."""

_LINE = struct.Struct("<9d")
"""As scripts keep it: the numbers of a `Line` in their order, the free answers last."""


class Pending:
    """What is pending in one process, from several threads.

    Args:
        scripts: How it is written.
        owner: Who writes.
    """

    def __init__(self, scripts: Scripts, owner: str) -> None:
        self._scripts = scripts
        self._told = told(owner=owner)
        self._lock = threading.RLock()
        self._late: list[tuple[str, Used | None]] = []
        self._batch = uuid.uuid4().hex
        self._hits: Counter[tuple[str, str, str, str]] = Counter()
        self._noting: Counter[tuple[str, str, str, str]] = Counter()
        self._timer: threading.Timer | None = None

    def add(self, uses: Iterable[tuple[str, Used | None]]) -> None:
        """Remembers what calls came to."""
        with self._lock:
            self._late += uses

    def note(self, saved: Sequence[Saved]) -> None:
        """Remembers free answers."""
        today = self._scripts.today()
        with self._lock:
            for each in saved:
                line = (today, name(each.model), name(each.cell))
                amount = kept(Amount(1, each.tokens, each.nanos))
                self._hits[*line, "hits"] += 1
                self._hits[*line, "tokens"] += amount.tokens
                self._hits[*line, "nanos"] += amount.nanos

    def write_later(self) -> None:
        """Has it written though nobody calls meanwhile, as a kernel that is idle."""
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(AGAIN, self._write_again)
                self._timer.daemon = True
                self._timer.start()

    def stop(self) -> None:
        """Tries no more by itself."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _write_again(self) -> None:
        with self._lock:
            self._timer = None
            try:
                self.write()
            except StoreError:
                self.write_later()

    def ids(self) -> list[str]:
        """The calls whose bookings are late."""
        with self._lock:
            return [id_ for id_, _ in self._late]

    def write(self) -> None:
        """Writes everything.

        Raises:
            StoreError: Redis cannot be used; what is not written stays.
        """
        with self._lock:
            while self._late:
                self._settle(part := self._late[:AT_ONCE])
                del self._late[: len(part)]
            while self._noting or self._hits:
                if not self._noting:
                    # A batch has one name until it is written: what comes meanwhile is another.
                    self._batch = uuid.uuid4().hex
                    self._noting, self._hits = self._hits, Counter()
                self._note()
                self._noting = Counter()

    def _settle(self, uses: Sequence[tuple[str, Used | None]]) -> None:
        header = f'{self._told},"day":"{self._scripts.today()}"'
        calls = [(id_, booked(used)) for id_, used in uses]
        self._scripts.of_calls("settle", header, calls, keys=self._scripts.keys.usage)

    def _note(self) -> None:
        keys = self._scripts.keys
        lines = dict.fromkeys(key[:3] for key in self._noting)
        asked = [
            (*line, *(self._noting[*line, metric] for metric in ("hits", "tokens", "nanos")))
            for line in lines
        ]
        self._scripts.run(
            "saved", "", asked, scopes=(), keys=[*keys.usage, keys.batch(self._batch)]
        )


def lines(found: dict[bytes, bytes], by: str) -> list[Line]:
    """Lines of usage from what is stored, by model, day or cell."""
    place = ("day", "model", "cell").index(by)
    sums: dict[str, list[int]] = {}
    for field, numbers in found.items():
        before = sums.setdefault(field.decode().split("\x1f")[place], [0] * 9)
        for number, amount in enumerate(_LINE.unpack(numbers)):
            before[number] += int(amount)
    # What was booked for a process that was not dead after all is taken off again.
    made = [Line(name, *numbers) for name, numbers in sorted(sums.items()) if any(numbers)]
    if by == "day":
        return made[::-1]
    return sorted(made, key=lambda line: (-line.nanos, -line.requests))
