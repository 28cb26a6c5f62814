"""The cache in Redis, which a team or all kernels of a person share; another one steps in for it.

Keys are ``llm_magic:cache:<namespace>:<key>``, each with an expiry. How much there may be, and what
makes room, is the server's own policy.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from llm_magic.entries import Cache, Row, Size, Trouble
from llm_magic.errors import StoreError
from llm_magic.stores.many import parts
from llm_magic.stores.redis.many import in_one_go
from llm_magic.stores.redis.server import RETRY, Server

KEPT = 90 * 86_400.0
"""Seconds after its last use for which an answer is kept, where no age is set."""

LARGEST = 16 * 1024**2
"""Most bytes of a row: all of it has to be sent before patience ends."""

REMEMBERED = 100_000
"""Most rows in the spare cache that are moved once the server is back."""

_LONGEST = 10 * 365 * 86_400.0
_READ_AT_ONCE = 512
_MOVED_AT_ONCE = 64
_CLOSING = 2.0


class RedisCache:
    """A `Cache` in a Redis server.

    While the server fails, rows are kept in another cache, and moved from it once it is back.

    Args:
        server: The connection.
        namespace: Whose answers they are.
        ttl: Seconds for which an answer is kept; None is for 90 days after its last use.
        spare: What steps in.
        trouble: Told once for each kind of fault that is worked around.
    """

    def __init__(
        self, server: Server, namespace: str, *, ttl: float | None, spare: Cache, trouble: Trouble
    ) -> None:
        self._server = server
        self._prefix = f"llm_magic:cache:{namespace}:"
        self._ttl = ttl
        life = KEPT if ttl is None else min(max(ttl, 0.001), _LONGEST)
        self._life = round(1000 * life)
        self._spare = spare
        self._trouble = trouble
        self._told: set[str] = set()
        self._troubled = False
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Starts with nothing to be moved, as a forked process does: it is its parent's to move."""
        self._lock = threading.Lock()
        self._moving = threading.Lock()
        # What is to be done in the server once it is back: rows of the spare cache to be moved
        # there (True), rows to be deleted (False).
        self._due: dict[str, bool] = {}
        self._write_at = 0.0

    def get(self, key: str) -> bytes | None:
        """The row of a key."""
        return self.get_many((key,)).get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The rows of these keys, as far as they are there."""
        found: dict[str, bytes] = {}
        if self._due:
            self._move()
            due = self._due.copy()
            found = self._spare.get_many([key for key in keys if due.get(key)])
            keys = [key for key in keys if due.get(key, True) and key not in found]
        for first in range(0, len(keys), _READ_AT_ONCE):
            part = keys[first : first + _READ_AT_ONCE]
            try:
                values = self._run([self._reading(key) for key in part])
            except StoreError as error:
                self._work_around(error)
                return found | self._spare.get_many(keys[first:])
            pairs = zip(part, values, strict=True)
            found |= {key: value for key, value in pairs if value is not None}
        return found

    def put(self, key: str, value: bytes) -> None:
        """Keeps a row, in place of an older one."""
        self._put([(key, value)])

    def put_many(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Keeps rows, each in place of an older one."""
        for part in parts(rows):
            self._put(part)

    def delete(self, key: str) -> None:
        """Forgets a row."""
        self._change({key: None})

    def rows(self, limit: int | None = None) -> Iterator[Row]:
        """Rows, the last used first; told to a millisecond."""
        self._move()
        now = time.time()
        due = [key for key, there in self._due.copy().items() if there]
        waiting = (Row(key, value, now) for key, value in self._spare.get_many(due).items())
        yield from islice(chain(waiting, self._stored(limit, now)), limit)

    def drop(self, unused_since: float | None = None) -> int:
        """Forgets rows not used since a Unix time in seconds (None: all); returns how many."""
        self._move()
        count = self._spare.drop(unused_since)
        with self._lock:
            self._due = {} if unused_since is None else self._due
        try:
            for names in self._server.scan(self._prefix):
                used = {} if unused_since is None else self._used(names, time.time())
                old = [name for name in names if used.get(name, -1.0) < (unused_since or 0.0)]
                count += sum(self._run([("UNLINK", name) for name in old]))
        except StoreError as error:
            self._work_around(error)
        return count

    def size(self) -> Size:
        """How much there is; the limit is the server's, for all that is in it (0 for none)."""
        self._move()
        entries = size = limit = 0
        try:
            for names in self._server.scan(self._prefix):
                entries += len(names)
                size += sum(self._run([("MEMORY USAGE", name) for name in names]))
            limit = sum(int(each.get("maxmemory", 0)) for each in self._server.memory())
        except StoreError as error:
            self._work_around(error)
        return Size(entries, size, limit, self._server.place)

    def close(self) -> None:
        """Moves what is to be moved, as far as it can be, and lets go of files and connections."""
        until = time.monotonic() + _CLOSING
        while self._due and self._move() and time.monotonic() < until:
            pass
        self._spare.close()
        self._server.close()

    def _run(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Runs commands about one key each.

        Raises:
            StoreError: One of them could not be done.
        """
        if not commands:
            return []
        done = self._server.do(lambda client: in_one_go(client, commands))
        self._troubled = False
        return done

    def _reading(self, key: str) -> tuple[Any, ...]:
        name = self._prefix + key
        # A set age counts from when a row was written.
        return ("GETEX", name, "PX", self._life) if self._ttl is None else ("GET", name)

    def _put(self, rows: Sequence[tuple[str, bytes]]) -> None:
        # The last one of a key counts. One that is too large goes, with the older one.
        self._change({key: value if len(value) <= LARGEST else None for key, value in rows})

    def _change(self, rows: Mapping[str, bytes | None]) -> None:
        """Keeps rows, and deletes those that are None."""
        if self._due:
            self._move()
        if self._write(rows):
            self._done([key for key in rows if key in self._due])
            return
        with self._lock:
            for key, value in rows.items():
                self._due.pop(key, None)
                self._due[key] = value is not None
            while len(self._due) > REMEMBERED:
                del self._due[next(iter(self._due))]
        self._spare.put_many([(key, value) for key, value in rows.items() if value is not None])
        for key, value in rows.items():
            if value is None:
                self._spare.delete(key)

    def _write(self, rows: Mapping[str, bytes | None]) -> bool:
        if time.monotonic() < self._write_at:
            return False
        commands = [
            ("UNLINK", self._prefix + key)
            if value is None
            else ("SET", self._prefix + key, value, "PX", self._life)
            for key, value in rows.items()
        ]
        try:
            self._run(commands)
        except StoreError as error:
            self._write_at = time.monotonic() + RETRY
            self._work_around(error)
            return False
        return True

    def _move(self) -> bool:
        """Does some of what is due, if nobody else does; returns whether it could be done."""
        if not self._due or not self._moving.acquire(blocking=False):
            return False
        try:
            if time.monotonic() < self._write_at:
                return False
            with self._lock:
                due = dict(islice(self._due.items(), _MOVED_AT_ONCE))
            rows = self._spare.get_many([key for key, there in due.items() if there])
            for part in parts(list(rows.items())):
                if not self._write(dict(part)):
                    return False
                self._done([key for key, _ in part])
            if not self._write({key: None for key, there in due.items() if not there}):
                return False
            # With those that the spare cache has given up meanwhile.
            self._done([key for key in due if key not in rows])
            return True
        finally:
            self._moving.release()

    def _done(self, keys: Sequence[str]) -> None:
        """Nothing more is to be done for these keys."""
        with self._lock:
            moved = [key for key in keys if self._due.pop(key, False)]
        for key in moved:
            self._spare.delete(key)

    def _used(self, names: Sequence[bytes], now: float) -> dict[bytes, float]:
        """When rows were used, of those that are still there."""
        left = self._run([("PTTL", name) for name in names])
        pairs = zip(names, left, strict=True)
        return {name: now - (self._life - ms) / 1000 for name, ms in pairs if ms >= 0}

    def _stored(self, limit: int | None, now: float) -> Iterator[Row]:
        try:
            used: dict[bytes, float] = {}
            for names in self._server.scan(self._prefix):
                used |= self._used(names, now)
                if limit is not None and len(used) > 2 * limit + _READ_AT_ONCE:
                    used = dict(heapq.nlargest(limit, used.items(), key=lambda item: item[1]))
            ordered = sorted(used, key=lambda name: used[name], reverse=True)
            for first in range(0, len(ordered), _MOVED_AT_ONCE):
                part = ordered[first : first + _MOVED_AT_ONCE]
                values = self._run([("GET", name) for name in part])
                for name, value in zip(part, values, strict=True):
                    if value is not None:
                        yield Row(name.decode()[len(self._prefix) :], value, min(used[name], now))
        except StoreError as error:
            self._work_around(error)

    def _work_around(self, error: StoreError) -> None:
        """Tells of a fault, unless it is part of one that was told."""
        kind = vars(error).get("kind", "")
        if kind not in self._told and not self._troubled:
            self._told.add(kind)
            message = f"{error.args[0]} Answers are kept on this machine meanwhile."
            self._trouble(message, error.fix)
        self._troubled = True


_all: weakref.WeakSet[RedisCache] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_all):
        each._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
