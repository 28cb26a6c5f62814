"""Rows in memory, for as long as the kernel runs."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from llm_magic.entries import Row, Size


class MemoryCache:
    """A `Cache` that forgets what was not used for longest.

    Args:
        limit: Most bytes of keys and values; 0 keeps nothing. A row that is larger is not kept.
    """

    def __init__(self, limit: int = 64 * 1024**2) -> None:
        self._limit = limit
        self._bytes = 0
        self._rows: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """The row of a key."""
        with self._lock:
            return self._get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The rows of these keys, as far as they are there."""
        with self._lock:
            return {key: value for key in keys if (value := self._get(key)) is not None}

    def put(self, key: str, value: bytes) -> None:
        """Keeps a row, in place of an older one."""
        with self._lock:
            self._put(key, value)

    def put_many(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Keeps rows, each in place of an older one."""
        with self._lock:
            for key, value in rows:
                self._put(key, value)

    def delete(self, key: str) -> None:
        """Forgets a row."""
        with self._lock:
            self._forget(key)

    def rows(self, limit: int | None = None) -> Iterator[Row]:
        """Rows, the last used first."""
        with self._lock:
            rows = [Row(key, *found) for key, found in reversed(self._rows.items())]
        yield from rows[:limit]

    def drop(self, unused_since: float | None = None) -> int:
        """Forgets rows not used since a Unix time in seconds (None: all); returns how many."""
        with self._lock:
            old = [
                key
                for key, (_, used) in self._rows.items()
                if unused_since is None or used < unused_since
            ]
            for key in old:
                self._forget(key)
            return len(old)

    def size(self) -> Size:
        """How much there is."""
        with self._lock:
            return Size(len(self._rows), self._bytes, self._limit, "memory")

    def close(self) -> None:
        """Nothing: what is in memory stays until the kernel ends."""

    def _get(self, key: str) -> bytes | None:
        found = self._rows.get(key)
        if found is None:
            return None
        self._rows[key] = found[0], time.time()
        self._rows.move_to_end(key)
        return found[0]

    def _put(self, key: str, value: bytes) -> None:
        self._forget(key)
        if _size(key, value) > self._limit:
            return
        self._rows[key] = value, time.time()
        self._bytes += _size(key, value)
        while self._bytes > self._limit:
            self._forget(next(iter(self._rows)))

    def _forget(self, key: str) -> None:
        if found := self._rows.pop(key, None):
            self._bytes -= _size(key, found[0])


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value)
