"""Writing to the cache's file by diskcache, of which nothing is left that a file could misuse.

Plain diskcache unpickles what a row says is a pickle, reads and deletes the files that rows name,
takes its settings and even its methods from a table of the file, and waits a minute for a lock.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import diskcache
from diskcache.core import DEFAULT_SETTINGS, METADATA, MODE_RAW

from llm_magic.entries import Row
from llm_magic.stores import many
from llm_magic.stores.reader import Schema

PATIENCE = 0.5
"""Seconds that a write waits for another process's write."""

_EVICTING = 0.1
"""Seconds that one write spends at most on making room, as after the limit was lowered."""

SETTINGS = frozenset({*DEFAULT_SETTINGS, *METADATA})
"""The names of settings that diskcache writes into a file."""

# diskcache writes one row at a time, and a statement costs a wait for the interpreter (`many`).
_MARK = """WITH used (key, time) AS (VALUES #)
    INSERT INTO Cache (key, raw, access_time)
    SELECT used.key, 1, used.time FROM used CROSS JOIN Cache AS row ON row.key = used.key
    AND row.raw = 1 WHERE used.key IS NOT NULL
    ON CONFLICT (key, raw) DO UPDATE SET access_time = excluded.access_time
    WHERE access_time < excluded.access_time"""
_PUT = """WITH new (key, value, time) AS (VALUES #)
    INSERT INTO Cache (key, raw, store_time, expire_time, access_time, access_count, tag, size,
        mode, filename, value)
    SELECT key, 1, time, NULL, time, 0, NULL, 0, ?1, NULL, value FROM new WHERE key IS NOT NULL
    ON CONFLICT (key, raw) DO UPDATE SET store_time = excluded.store_time, expire_time = NULL,
        access_time = excluded.access_time, access_count = 0, tag = NULL, size = 0,
        mode = excluded.mode, filename = NULL, value = excluded.value"""

_OLDEST = """SELECT rowid, coalesce(length(key), 0) + coalesce(length(value), 0) FROM Cache
    ORDER BY access_time LIMIT 256"""


def _settings(limit: int) -> dict[str, Any]:
    return {
        "statistics": 0,
        "tag_index": 0,
        "eviction_policy": "least-recently-used",
        "size_limit": limit,
        # None with every write: `keep` makes room, as much as is needed.
        "cull_limit": 0,
        # Full: what is deleted makes the file smaller at once, not only roomier.
        "sqlite_auto_vacuum": 1,
        "sqlite_cache_size": 2048,
        "sqlite_journal_mode": "wal",
        # None: a mapped file that another program cuts off ends the whole kernel.
        "sqlite_mmap_size": 0,
        "sqlite_synchronous": 1,
        "disk_min_file_size": 0,
        "disk_pickle_protocol": 0,
    }


class _Rows(diskcache.Disk):  # type: ignore[misc]
    """Text keys and bytes, in rows of the one file and in no other form."""

    def __init__(self, directory: str, **settings: object) -> None:
        super().__init__(directory)

    def put(self, key: str) -> tuple[str, bool]:
        if type(key) is not str:
            raise TypeError(f"a key is text, not {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: Any) -> str:
        if not raw or type(key) is not str:
            raise Refused("a key that is not text")
        return key

    def store(self, value: bytes, read: bool, key: object = None) -> tuple[int, int, None, bytes]:
        if read or type(value) is not bytes:
            raise TypeError(f"a value is bytes, not {type(value).__name__}")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> bytes:
        if read or mode != MODE_RAW or filename is not None or type(value) is not bytes:
            raise Refused("a value that is not bytes in the row")
        return value

    def filename(self, key: object = None, value: object = None) -> tuple[str, str]:
        raise Refused("no other files are written")

    def remove(self, file_path: str) -> None:
        """Deletes nothing: a row may name any file of the user's."""


class Refused(sqlite3.DatabaseError):
    """diskcache came upon a row that is none of ours."""


class Writer(diskcache.Cache):  # type: ignore[misc]
    """The file as it is written to. One thread at a time.

    Args:
        file: Path of the file, which exists, or ``":memory:"``.
        limit: Most bytes of the file.
        patience: Seconds to wait for a lock while opening.
        triggers: Whether to let diskcache count rows. Nobody reads its counts, which cost two more
            updates a row, and are an error where SQLite is built without double-quoted strings.

    Raises:
        sqlite3.Error: It cannot be opened for writing.
    """

    def __init__(
        self, file: str, limit: int, patience: float = PATIENCE, *, triggers: bool = False
    ) -> None:
        self._file = file
        self._triggers = triggers
        self._fixed = _settings(limit)
        self._until: float | None = time.monotonic() + patience
        self._open: sqlite3.Connection | None = None
        try:
            # Its folder is for what is not done here; it would expand ~ and $ in the real one.
            super().__init__(os.sep, timeout=PATIENCE, disk=_Rows, **self._fixed)
        except BaseException:
            self._until = None
            self.close()
            raise
        self._until = None
        self._con.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000:.0f}")

    @property
    def _con(self) -> sqlite3.Connection:
        # Instead of one for each thread, that does what the file's settings say.
        if self._open is None:
            self._open = sqlite3.connect(
                self._file,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
            )
            self._open.execute("PRAGMA trusted_schema = OFF")
            # A temporary file for what a statement puts by takes 0.1 ms to begin.
            self._open.execute("PRAGMA temp_store = MEMORY")
            # 1 MB, a quarter of the usual: small folders are to be used by answers.
            self._open.execute("PRAGMA wal_autocheckpoint = 256")
        return self._open

    def close(self) -> None:
        """Closes the file; not at the end of opening it, as diskcache would."""
        if self._until is None and self._open is not None:
            open_, self._open = self._open, None
            open_.close()

    def __del__(self) -> None:
        self.close()

    @property
    def _sql_retry(self) -> Callable[..., Any]:
        return self._patiently

    def _patiently(self, statement: str, *values: Any) -> Any:
        """Runs a statement of the opening; diskcache would try for a minute."""
        if statement.startswith("CREATE TRIGGER") and not self._triggers:
            return None
        while True:
            try:
                return self._con.execute(statement, *values)
            except sqlite3.OperationalError as error:
                busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or self._until is None or time.monotonic() > self._until:
                    raise
            time.sleep(0.002)

    def reset(self, key: str, value: Any = None, update: bool = True) -> Any:
        """Sets what is set here, whatever the file says."""
        value = self._fixed.get(key)
        if value is None:
            return 0
        if key.startswith("sqlite_") and not update:
            self._patiently(f"PRAGMA {key.removeprefix('sqlite_')} = {value}").fetchall()
        setattr(self, key, value)
        return value

    def volume(self) -> int:
        """Bytes of the file that are in use."""
        pages, free = (
            self._con.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count")
        )
        return int((pages - free) * self._page_size)

    @contextmanager
    def _whole(self) -> Iterator[sqlite3.Connection]:
        """One transaction, of which a fault leaves nothing: no rows, and no open end."""
        fault: BaseException | None = None
        self._tidy()
        try:
            with self.transact():
                yield self._con
        except diskcache.Timeout as error:
            # That is what it makes of every fault of a beginning, a full disk as well.
            fault = error.__context__ or sqlite3.OperationalError("no transaction")
        finally:
            self._tidy()
        if fault:
            raise fault

    def _tidy(self) -> None:
        """Ends a transaction that a failed commit, or an interrupt, has left open."""
        self._txn_id = None
        if self._con.in_transaction:
            with suppress(sqlite3.Error):
                self._con.execute("ROLLBACK")

    def keep(self, rows: Sequence[Row], used: Sequence[tuple[str, float]]) -> None:
        """Writes rows and when others were used, and makes room.

        Args:
            rows: The rows, under a key each.
            used: Keys and Unix times in seconds.

        Raises:
            sqlite3.Error: It cannot be written.
        """
        with self._whole() as open_:
            many.run(open_, _MARK, used)
            many.run(open_, _PUT, rows, MODE_RAW)
            self._make_room(open_)

    def _make_room(self, open_: sqlite3.Connection) -> None:
        """Deletes what was not used for longest; no more of it than has to go."""
        until = time.monotonic() + _EVICTING
        while (excess := self.volume() - self.size_limit) > 0 and time.monotonic() < until:
            going: list[tuple[int]] = []
            for rowid, size in open_.execute(_OLDEST).fetchall():
                going.append((rowid,))
                excess -= size
                if excess <= 0:
                    break
            if not going:
                return
            many.run(open_, "DELETE FROM Cache WHERE rowid IN (VALUES #)", going)

    def mark(self, used: Sequence[tuple[str, float]]) -> None:
        """Writes when rows were used, if nobody else is writing.

        Raises:
            sqlite3.Error: It cannot be written.
        """
        self._con.execute("PRAGMA busy_timeout = 0")
        try:
            with self._whole() as open_:
                many.run(open_, _MARK, used)
        finally:
            self._con.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000:.0f}")

    def forget(self, keys: Iterable[str]) -> None:
        """Deletes rows.

        Raises:
            sqlite3.Error: It cannot be written.
        """
        with self._whole() as open_:
            many.run(
                open_,
                "DELETE FROM Cache WHERE key IN (VALUES #) AND raw = 1",
                [(key,) for key in keys],
            )

    def drop(self, unused_since: float | None, used: Sequence[tuple[str, float]]) -> int:
        """Deletes rows not used since a Unix time in seconds, or all; returns how many.

        Raises:
            sqlite3.Error: It cannot be written.
        """
        with self._whole() as open_:
            many.run(open_, _MARK, used)
            if unused_since is None:
                count = open_.execute("DELETE FROM Cache").rowcount
            else:
                old = "DELETE FROM Cache WHERE access_time < ?"
                count = open_.execute(old, (unused_since,)).rowcount
        # The file is as large as before until the log is written back into it.
        self._con.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return count


@cache
def schema() -> Schema:
    """What each table, index and trigger that diskcache makes is made by."""
    sample = Writer(":memory:", 0, triggers=True)
    try:
        found = sample._con.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
        return {(type_, name, table): sql for type_, name, table, sql in found}
    finally:
        sample.close()
