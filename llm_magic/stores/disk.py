"""The cache on disk, which no fault of the disk keeps from answering.

One SQLite file. It is read by a plain connection for each thread, which waits for nobody and runs
nothing, and written by diskcache. What cannot be written now stays in memory and is written when
the file can be; a file that is damaged, or that somebody else filled, is set aside for a new one.
"""

from __future__ import annotations

import math
import os
import shlex
import sqlite3
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from llm_magic import turns
from llm_magic.entries import Row, Size, Trouble
from llm_magic.errors import StoreError, StoreWarning
from llm_magic.stores import reader
from llm_magic.stores.cache_file import CHOOSE, CacheFile, words
from llm_magic.stores.many import parts
from llm_magic.stores.memory import MemoryCache

RETRY = 2.0
"""Seconds after which a file that could not be used is tried again."""

WAITING = 64 * 1024**2
"""Most bytes that wait in memory to be written."""

MARKS = 256
"""Rows that were read, from which on it is written down when each was."""

MARK_SECONDS = 60.0
"""Seconds after which that is written down however few they are."""

_MOST_MARKS = 16 * MARKS
_WRITING = 0.2
_AGAIN = object()

T = TypeVar("T")
# The last: sqlite3 cannot even say what is damaged where a name in the file is no text.
_FAULTS = (sqlite3.Error, OSError, StoreError, UnicodeDecodeError)
# They are taken without their traceback, which would hold on to a connection.


def _warn(message: str, fix: str) -> None:
    warnings.warn(f"{message} {fix}", StoreWarning, stacklevel=2)


class DiskCache:
    """A `Cache` in the file ``cache.db`` of a folder, where the least recently used make room.

    Nothing is opened before it is needed, and what was closed opens again.

    Args:
        folder: Where the file is; made where it is missing. One that others can look into, or that
            is on a network, is not used.
        limit: Most bytes of the file. A row of more than half of that is not kept.
        trouble: Told once for each kind of fault that is worked around.
    """

    def __init__(self, folder: Path, *, limit: int = 1024**3, trouble: Trouble = _warn) -> None:
        self._limit = limit
        self._trouble = trouble
        self._told: set[str] = set()
        self._file = CacheFile(folder, limit, self._tell)
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Starts with nothing open and nothing pending, as a forked process does."""
        self._lock = threading.RLock()
        # What is to be written and to be deleted.
        self._waiting = MemoryCache(WAITING)
        self._gone: set[str] = set()
        self._late = False
        # When rows were read: a hit must not write.
        self._marks: dict[str, float] = {}
        self._marks_at, self._mark_at = MARKS, time.time() + MARK_SECONDS
        self._retry_at = self._blind_until = 0.0

    def get(self, key: str) -> bytes | None:
        """The row of a key."""
        if self._late:
            if key in self._gone:
                return None
            if (value := self._waiting.get(key)) is not None:
                return value
        try:
            row = self._file.local.find(key)
        except (AttributeError, *_FAULTS):
            row = _AGAIN
        # Another kernel may have begun a new file, and this one would be asked for what is in it.
        if row is _AGAIN or (row is None and self._file.moved()):
            row = self._look(lambda reader: reader.find(key))
        if row is None:
            return None
        self._marks[key] = now = time.time()
        if now >= self._mark_at or len(self._marks) >= self._marks_at:
            self._write_marks()
        found: bytes = row[0]
        return found

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The rows of these keys, as far as they are there."""
        waiting: dict[str, bytes] = {}
        found: dict[str, bytes]
        if self._late:
            waiting = self._waiting.get_many(keys)
            keys = [key for key in keys if key not in waiting and key not in self._gone]
        try:
            found = self._file.local.find_many(keys)
            again = len(found) < len(keys) and self._file.moved()
        except (AttributeError, *_FAULTS):
            again = True
        if again:
            found = self._look(lambda reader: reader.find_many(keys)) or {}
        if found:
            now = time.time()
            self._marks.update(dict.fromkeys(found, now))
            if now >= self._mark_at or len(self._marks) >= self._marks_at:
                with turns.quick():
                    self._write_marks()
        return found | waiting

    def put(self, key: str, value: bytes) -> None:
        """Keeps a row, in place of an older one."""
        with self._lock:
            self._await(key, value)
            self._write()

    def put_many(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Keeps rows, each in place of an older one, in few transactions."""
        with turns.quick():
            # A part at a time, so that no more waits in memory than may.
            for part in parts(rows):
                with self._lock:
                    for key, value in part:
                        self._await(key, value)
                    self._write()

    def _await(self, key: str, value: bytes) -> None:
        """Has a row wait to be written; one that is too large goes, with the older one."""
        if len(value) > min(self._limit, WAITING) // 2:
            self._forget(key)
        else:
            self._gone.discard(key)
            self._waiting.put(key, value)

    def delete(self, key: str) -> None:
        """Forgets a row."""
        with self._lock:
            self._forget(key)
            self._write()

    def _forget(self, key: str) -> None:
        self._waiting.delete(key)
        self._marks.pop(key, None)
        self._gone.add(key)

    def rows(self, limit: int | None = None) -> Iterator[Row]:
        """Rows, the last used first."""
        self._write_marks()
        waiting = list(self._waiting.rows())
        hidden = {row.key for row in waiting} | self._gone
        stored = (row for row in self._stored() if row.key not in hidden)
        yield from islice(chain(waiting, stored), limit)

    def _stored(self) -> Iterator[Row]:
        if path := self._path_to_read():
            with suppress(*_FAULTS):
                yield from reader.rows(path)

    def drop(self, unused_since: float | None = None) -> int:
        """Forgets rows not used since a Unix time in seconds (None: all); returns how many."""
        with self._lock:
            count = self._waiting.drop(unused_since)
            if self._path_to_read() is None:
                return count
            try:
                count += self._file.writer().drop(unused_since, self._used())
                self._marks = {}
                if unused_since is None:
                    self._gone.clear()
                    self._late = False
                return count
            except _FAULTS as error:
                fault = error.with_traceback(None)
            self._work_around(fault)
            return count

    def size(self) -> Size:
        """How much there is."""
        waiting = self._waiting.size()
        entries, size = waiting.entries, waiting.bytes
        if path := self._path_to_read():
            with suppress(*_FAULTS):
                entries += reader.count(path)
                size += sum(each.stat().st_size for each in reader.data_files(path))
        return Size(entries, size, self._limit, str(self._file.folder))

    def close(self) -> None:
        """Writes what is pending and lets go of the files."""
        with self._lock:
            if self._late:
                self._write(at_last=True)
            self._write_marks()
            self._file.close()

    def _look(self, find: Callable[[reader.Reader], T]) -> T | None:
        """Looks keys up where this thread has no connection, or one that failed."""
        with self._lock:
            self._file.disconnect()
            if time.monotonic() < self._blind_until:
                return None
            try:
                connection = self._file.connect()
                return find(connection) if connection else None
            except _FAULTS as error:
                fault = error.with_traceback(None)
            if "no such table" in str(fault):
                # Somebody is just beginning the file.
                return None
            self._file.disconnect()
            if not self._work_around(fault, reading=True):
                self._blind_until = time.monotonic() + RETRY
            return None

    def _path_to_read(self) -> Path | None:
        """The file, looked at; None where there is none or it cannot be used."""
        with self._lock:
            try:
                return self._file.path if self._file.connect() else None
            except _FAULTS as error:
                fault = error.with_traceback(None)
            self._work_around(fault)
            return None

    def _write(self, *, at_last: bool = False) -> None:
        """Writes what waits, as far as the file lets it."""
        self._late = True
        if time.monotonic() < self._retry_at and not at_last:
            return
        for _ in range(2):
            try:
                self._drain(math.inf if at_last else _WRITING)
                return
            except _FAULTS as error:
                fault = error.with_traceback(None)
            if not self._work_around(fault):
                return

    def _drain(self, patience: float) -> None:
        writer = self._file.writer()
        until = time.monotonic() + patience
        if gone := list(self._gone):
            writer.forget(gone)
            self._gone.difference_update(gone)
        for part in parts(list(self._waiting.rows())[::-1]):
            writer.keep(part, self._used())
            for row in part:
                self._waiting.delete(row.key)
            self._marks = {}
            if time.monotonic() > until:
                break
        self._late = bool(self._gone or self._waiting.size().entries)

    def _used(self) -> list[tuple[str, float]]:
        # Other threads go on marking: a copy is made in one step, a list is not.
        return list(self._marks.copy().items())

    def _write_marks(self) -> None:
        """Writes when rows were read, if that means no waiting; else it is left for later."""
        if not self._marks or not self._lock.acquire(blocking=False):
            return
        try:
            self._mark_at = time.time() + MARK_SECONDS
            self._marks_at = 2 * len(self._marks)
            if self._marks_at > _MOST_MARKS:
                self._marks, self._marks_at = {}, MARKS
            if time.monotonic() < self._retry_at:
                return
            self._file.writer(patience=0).mark(self._used())
            self._marks, self._marks_at = {}, MARKS
        except _FAULTS:
            # A put will meet it as well, and has more to tell.
            self._file.let_go_of_writer()
        finally:
            self._lock.release()

    def _work_around(self, fault: Exception, *, reading: bool = False) -> bool:
        """Sees to it that the fault does no harm; returns whether to try again at once."""
        self._retry_at = time.monotonic() + RETRY
        if isinstance(fault, StoreError):
            message = f"{fault.args[0]} Answers are kept in memory until the kernel ends."
            self._tell("refused", message, fault.fix)
            return False
        folder = self._file.folder
        kind, why = reader.kind_of(fault, folder), str(reader.root_of(fault))
        if kind == "strange" or (kind == "damaged" and not self._file.frozen):
            return self._set_aside(folder / reader.NAME, kind, why)
        if kind != "locked":
            # With all closed, the log is written back and gives up its room.
            self._file.let_go()
        # A put that was made to wait has more to tell than a get.
        if kind != "locked" or not reading:
            self._tell(kind, *words(kind, folder / reader.NAME, why))
        return False

    def _set_aside(self, path: Path, kind: str, why: str) -> bool:
        what = "is damaged" if kind == "damaged" else "has what a cache never has"
        try:
            aside = self._file.set_aside()
        except OSError as error:
            self._tell(
                "stuck",
                f"{path} {what} ({why}) and cannot be renamed ({error.strerror}), so answers are "
                "kept in memory until the kernel ends.",
                f"rm {shlex.quote(str(path))}, or c{CHOOSE}",
            )
            return False
        self._retry_at = 0.0
        if aside:
            self._tell(
                kind,
                f"{path} {what} ({why}), so it was renamed to {aside.name} and a new one was "
                "begun.",
                f"If it is not needed any more: rm {shlex.quote(str(aside))}*",
            )
        return True

    def _tell(self, kind: str, message: str, fix: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._trouble(message, fix)


_all: weakref.WeakSet[DiskCache] = weakref.WeakSet()
_forking: list[DiskCache] = []


def _before_fork() -> None:
    """Closes everything: what SQLite knows of open files and locks is wrong in a child."""
    for each in list(_all):
        each._lock.acquire()
        each._file.let_go()
        _forking.append(each)
    if _forking:
        reader.wait_until_closed()


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop()._lock.release()


def _after_fork_in_child() -> None:
    while _forking:
        # What waits is the parent's to write.
        _forking.pop()._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
