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
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any

from llm_magic.entries import Cache, Row, Size, Trouble
from llm_magic.errors import StoreError
from llm_magic.stores.many import parts
from llm_magic.stores.redis.faults import kind_of
from llm_magic.stores.redis.many import in_one_go, primaries
from llm_magic.stores.redis.server import RETRY, Server

KEPT = 90 * 86_400.0
"""Seconds after its last use for which an answer is kept, where no age is set."""

LARGEST = 16 * 1024**2
"""Most bytes of a row: all of it has to be sent before patience ends."""

REMEMBERED = 100_000
"""Most rows in the spare cache that are moved once the server is back."""

_READABLE = {"forbidden", "replica", "full"}
"""Kinds of faults with which a row can be read still, if it is not prolonged."""

_LONGEST = 10 * 365 * 86_400.0
_READ_AT_ONCE = 512
_MOVED_AT_ONCE = 64
_CLOSING = 2.0


class _Due:
    """That a row of the spare cache is to be moved, or, where ``moves`` is not, to be deleted."""

    __slots__ = ("moves",)

    def __init__(self, moves: bool) -> None:
        self.moves = moves


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
        # What is to be done in the server once it is back. Changed with the lock, and the spare
        # cache together with it, so that nobody moves what is not there yet.
        self._due: dict[str, _Due] = {}
        self._write_at = 0.0
        self._prolongs = self._ttl is None

    def get(self, key: str) -> bytes | None:
        """The row of a key."""
        return self.get_many((key,)).get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The rows of these keys, as far as they are there."""
        found: dict[str, bytes] = {}
        if self._due:
            self._move()
            due = self._due.copy()
            found = self._spare.get_many([key for key in keys if key in due and due[key].moves])
            keys = [key for key in keys if key not in found and (key not in due or due[key].moves)]
        for first in range(0, len(keys), _READ_AT_ONCE):
            part = keys[first : first + _READ_AT_ONCE]
            try:
                values = self._read(part)
            except StoreError as error:
                self._work_around(error)
                return found | self._spare.get_many(keys[first:])
            pairs = zip(part, values, strict=True)
            found |= {key: value for key, value in pairs if value is not None}
        return found

    def _read(self, keys: Sequence[str]) -> list[bytes | None]:
        names = [self._prefix + key for key in keys]
        if self._prolongs:
            try:
                return self._run([("GETEX", name, "PX", self._life) for name in names])
            except StoreError as error:
                if (kind := kind_of(error)) not in _READABLE:
                    raise
                self._prolongs = kind != "forbidden"
        return self._run([("GET", name) for name in names])

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
        due = self._due.copy()
        kept = self._spare.get_many([key for key, each in due.items() if each.moves])
        waiting = (Row(key, value, now) for key, value in kept.items())
        stored = (row for row in self._stored(limit, now) if row.key not in due)
        yield from islice(chain(waiting, stored), limit)

    def drop(self, unused_since: float | None = None) -> int:
        """Forgets rows not used since a Unix time in seconds (None: all); returns how many."""
        self._move()
        count = self._spare.drop(unused_since)
        with self._lock:
            self._due = {} if unused_since is None else self._due
        try:
            ahead = 0.0 if unused_since is None else self._ahead()
            for names in self._server.scan(self._prefix):
                used = {} if unused_since is None else self._used(names, ahead)
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
                found = self._run([("MEMORY USAGE", name) for name in names])
                size += sum(each or 0 for each in found)
            limit = sum(int(each.get("maxmemory", 0)) for each in self._server.memory())
        except StoreError as error:
            self._work_around(error)
            return self._spare.size()
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

    def _put(self, rows: Sequence[tuple[str, bytes]]) -> None:
        # The last one of a key counts. One that is too large goes, with the older one.
        self._change({key: value if len(value) <= LARGEST else None for key, value in rows})

    def _change(self, rows: Mapping[str, bytes | None]) -> None:
        """Keeps rows, and deletes those that are None."""
        if self._due:
            self._move()
        # An older row that is on its way must not come after this one.
        with self._moving if self._due.keys() & rows.keys() else nullcontext():
            if self._write(rows):
                self._done({key: self._due[key] for key in rows if key in self._due})
                return
        with self._lock:
            kept = {key: value for key, value in rows.items() if value is not None}
            self._spare.put_many(list(kept.items()))
            for key in rows:
                if key not in kept:
                    self._spare.delete(key)
                self._due.pop(key, None)
                self._due[key] = _Due(key in kept)
            while len(self._due) > REMEMBERED:
                del self._due[next(iter(self._due))]

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
            rows = self._spare.get_many([key for key, each in due.items() if each.moves])
            for part in parts(list(rows.items())):
                if not self._write(dict(part)):
                    return False
                self._done({key: due[key] for key, _ in part})
            if not self._write({key: None for key, each in due.items() if not each.moves}):
                return False
            # With those that the spare cache has given up meanwhile.
            self._done(due)
            return True
        finally:
            self._moving.release()

    def _done(self, due: Mapping[str, _Due]) -> None:
        """Takes note of what was done, unless it is due again."""
        with self._lock:
            for key, each in due.items():
                if self._due.get(key) is each:
                    del self._due[key]
                    if each.moves:
                        self._spare.delete(key)

    def _used(self, names: Sequence[bytes], ahead: float) -> dict[bytes, float]:
        """When rows were used, of those that are still there."""
        # Not by the time that is left: it is less by the time that asking takes.
        ends = self._run([("PEXPIRETIME", name) for name in names])
        pairs = zip(names, ends, strict=True)
        return {name: (end - self._life) / 1000 - ahead for name, end in pairs if end >= 0}

    def _ahead(self) -> float:
        """Seconds by which the server's clock is ahead of this one's, to half the round trip."""
        before = time.time()
        seconds, micros = self._server.do(lambda client: primaries(client)[0].time())
        return float(seconds + micros / 1e6 - (before + time.time()) / 2)

    def _stored(self, limit: int | None, now: float) -> Iterator[Row]:
        try:
            used: dict[bytes, float] = {}
            ahead = self._ahead()
            for names in self._server.scan(self._prefix):
                used |= self._used(names, ahead)
                if limit is not None and len(used) > 2 * limit + _READ_AT_ONCE:
                    used = dict(heapq.nlargest(limit, used.items(), key=lambda item: item[1]))
            ordered = sorted(used, key=lambda name: used[name], reverse=True)
            for first in range(0, len(ordered), _MOVED_AT_ONCE):
                part = ordered[first : first + _MOVED_AT_ONCE]
                values = self._run([("GET", name) for name in part])
                for name, value in zip(part, values, strict=True):
                    if value is not None:
                        yield Row(name.decode()[len(self._prefix) :], value, min(used[name], now))
            return
        except StoreError as error:
            self._work_around(error)
        yield from self._spare.rows(limit)

    def _work_around(self, error: StoreError) -> None:
        """Tells of a fault, unless it is part of one that was told."""
        kind = kind_of(error)
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
