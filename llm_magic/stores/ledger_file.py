"""The ledger's file: how it is opened, how a transaction goes, and what its faults are called.

Nothing here waits longer than the time it was given, and no transaction stays open behind a fault,
so that one kernel in trouble never locks the others out.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from llm_magic.errors import StoreError

T = TypeVar("T")

VERSION = 1
"""Of the tables below; kept in the file as its ``user_version``."""

SCHEMA = (
    # Rows are only ever added with a later t, so the newest t is that of the greatest n.
    """CREATE TABLE calls (
    n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, t INTEGER NOT NULL, user TEXT NOT NULL,
    kernel TEXT NOT NULL, state TEXT NOT NULL, key TEXT, owner TEXT NOT NULL,
    lease INTEGER NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
    nanos INTEGER NOT NULL, model TEXT NOT NULL, cell TEXT NOT NULL,
    input_tokens INTEGER NOT NULL DEFAULT 0, output_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0, priced INTEGER NOT NULL DEFAULT 1)""",
    "CREATE INDEX calls_user ON calls (user, t)",
    "CREATE INDEX calls_kernel ON calls (kernel, t)",
    "CREATE INDEX calls_open ON calls (key) WHERE state IN ('held', 'sent')",
    # What the rows with t > floor come to, for each window (ns; 0 is without end) of each scope.
    """CREATE TABLE sums (
    scope TEXT NOT NULL, name TEXT NOT NULL, length INTEGER NOT NULL, floor INTEGER NOT NULL,
    requests INTEGER NOT NULL, tokens INTEGER NOT NULL, nanos INTEGER NOT NULL,
    PRIMARY KEY (scope, name, length)) WITHOUT ROWID""",
    # Up to when a scope's use is forgiven, and the calls that were still open then.
    """CREATE TABLE forgiven (
    scope TEXT NOT NULL, name TEXT NOT NULL, t INTEGER NOT NULL,
    PRIMARY KEY (scope, name)) WITHOUT ROWID""",
    """CREATE TABLE kept (
    scope TEXT NOT NULL, name TEXT NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (scope, name, n)) WITHOUT ROWID""",
    """CREATE TABLE limits (
    user TEXT NOT NULL, metric TEXT NOT NULL, length INTEGER NOT NULL, cap INTEGER NOT NULL,
    PRIMARY KEY (user, metric, length)) WITHOUT ROWID""",
    """CREATE TABLE hits (
    day TEXT NOT NULL, user TEXT NOT NULL, kernel TEXT NOT NULL, model TEXT NOT NULL,
    cell TEXT NOT NULL, hits INTEGER NOT NULL, tokens INTEGER NOT NULL, nanos INTEGER NOT NULL,
    PRIMARY KEY (day, user, kernel, model, cell))""",
)

_SHORTEST, _LONGEST = 0.002, 0.008
"""Seconds between two tries at a lock, doubled up to the second. SQLite's own waiting grows
to 0.1 s a try, by which one of many busy processes can go without its turn for a second; 0.0005 s
cost a third of what eight processes got done on two cores."""

_RESET = "Set it aside and start to count anew: %llm_quota --reset"
_MOVE = 'Keep it in another folder: %config LLMMagic.ledger_dir = "..."'
_PASS = "Try again, or let calls pass uncounted: %config LLMMagic.quota_strict = False"  # noqa: S105

_FAULTS = {
    sqlite3.SQLITE_BUSY: ("is locked by another process", _PASS),
    sqlite3.SQLITE_LOCKED: ("is locked by another process", _PASS),
    sqlite3.SQLITE_FULL: ("cannot be written: the disk is full", _MOVE),
    sqlite3.SQLITE_IOERR_SHMSIZE: ("cannot be written: the disk is full", _MOVE),
    sqlite3.SQLITE_READONLY: ("is read-only", _MOVE),
    sqlite3.SQLITE_CORRUPT: ("is damaged", _RESET),
    sqlite3.SQLITE_NOTADB: ("is damaged", _RESET),
}
_SYSTEM_FAULTS = {
    errno.ENOSPC: ("cannot be written: the disk is full", _MOVE),
    errno.EROFS: ("is read-only", _MOVE),
}


class LedgerFile:
    """One process's way into a ledger's file. Used from several threads, one at a time.

    Args:
        path: The file; None keeps everything in memory.
        patience: Most seconds that a read or write waits for others.

    Attributes:
        opened: How often the file was opened.
    """

    def __init__(self, path: Path | None, patience: float) -> None:
        self.path = path
        self.opened = 0
        self._patience = patience
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._seen: tuple[int, int] | None = None
        if path is not None:
            _on_disk.add(self)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Does all of this or nothing, alone in the file.

        Raises:
            StoreError: The file is locked for too long, full, read-only, damaged or out of reach;
                nothing was written.
        """
        with self._turn() as (db, until):
            _patiently(lambda: db.execute("BEGIN IMMEDIATE"), until)
            try:
                result = work(db)
                _patiently(lambda: db.execute("COMMIT"), until)
            except BaseException:
                self._roll_back(db)
                raise
        return result

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Reads from one moment's state of the file, without waiting for writers.

        Raises:
            StoreError: As for ``write``.
        """
        with self._turn() as (db, until):
            return _patiently(lambda: self._glance(db, work), until)

    def set_aside(self, mark: str) -> None:
        """Renames the file, with this mark in its new name; the next use starts a fresh one.

        Raises:
            StoreError: It cannot be renamed.
        """
        with self._lock, self._explained():
            self._drop()
            for end in ("", "-wal", "-shm") if self.path else ():
                with suppress(FileNotFoundError):
                    os.rename(f"{self.path}{end}", f"{self.path}.{mark}{end}")

    def close(self) -> None:
        """Lets go of the file; a later use opens it again."""
        with self._lock:
            self._drop()

    def before_fork(self) -> Callable[[], None]:
        """Closes the file between two transactions; returns what opens the way again.

        SQLite keeps its locks by process and inode. A child that is born with the file open takes
        its parent's locks for its own, and loses what it writes once the parent closes.
        """
        if not self._lock.acquire(timeout=self._patience):
            return lambda: None
        self._drop()
        return self._lock.release

    @contextmanager
    def _turn(self) -> Iterator[tuple[sqlite3.Connection, float]]:
        """The open connection, for one thread, and until when (monotonic seconds) to wait."""
        until = time.monotonic() + self._patience
        if not self._lock.acquire(timeout=self._patience):
            raise self._error(*_FAULTS[sqlite3.SQLITE_BUSY])
        try:
            with self._explained():
                yield self._ready(until), until
        finally:
            self._lock.release()

    def _ready(self, until: float) -> sqlite3.Connection:
        if self._db is not None and self.path is not None and _identity(self.path) != self._seen:
            # The folder was removed, or the file set aside: what is written now would be lost.
            self._drop()
        if self._db is not None:
            # An interrupt can fall between BEGIN and the guard around the work.
            self._roll_back(self._db)
        if self._db is None:
            self._db = _patiently(self._open, until)
            self.opened += 1
        return self._db

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            _create(self.path)
            self._seen = _identity(self.path)
        # One at a time by the lock above. No timeout: _patiently waits, also where SQLite does not
        # (two processes that switch a new file to WAL at once).
        db = sqlite3.connect(
            self.path or ":memory:", timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA trusted_schema = OFF")
            # What a statement puts by is small, and a temporary file takes 0.1 ms to begin.
            db.execute("PRAGMA temp_store = MEMORY")
            # Before anything is changed: the file may be somebody else's. In one glance: another
            # process may be making it.
            version = self._glance(db, self._version)
            db.execute("PRAGMA journal_mode = WAL")
            # What is committed outlives the process, whatever kills it; a power cut can take the
            # last seconds. FULL would wait for the disk at every step, 3.5 ms each on a plain SSD.
            db.execute("PRAGMA synchronous = NORMAL")
            if version == 0:
                self._make(db)
        except BaseException:
            db.close()
            raise
        return db

    def _version(self, db: sqlite3.Connection) -> int:
        """The file's version, 0 for an empty file; any schema but this one is refused."""
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        found = db.execute(
            "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~'"
        ).fetchall()
        if (version, found) == (0, []):
            return 0
        if version != VERSION or {sql for (sql,) in found} != set(SCHEMA):
            raise self._error("is damaged, or of another version of llm_magic", _RESET)
        return version

    def _make(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        # Another process may have been the first.
        if self._version(db) == 0:
            for statement in SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    def _glance(self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        db.execute("BEGIN")
        try:
            return work(db)
        finally:
            self._roll_back(db)

    def _roll_back(self, db: sqlite3.Connection) -> None:
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.Error:
            # Closing it ends the transaction, whatever state it is in.
            self._drop()

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says in plain words what is wrong with the file."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            reason = " ".join(str(error).split())
            if code is None and isinstance(error, sqlite3.OperationalError):
                # The module's own: a text in the file that is not UTF-8.
                code = sqlite3.SQLITE_CORRUPT
            words = _FAULTS.get(code or 0) or _FAULTS.get((code or 0) & 0xFF)
            raise self._error(*(words or (f"cannot be used: {reason}", _MOVE))) from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            words = _SYSTEM_FAULTS.get(error.errno or 0, (f"cannot be opened: {reason}", _MOVE))
            raise self._error(*words) from error
        except (TypeError, ValueError, ArithmeticError) as error:
            # What SQLite did not see: a text where there was a number.
            raise self._error(*_FAULTS[sqlite3.SQLITE_CORRUPT]) from error

    def _error(self, words: str, fix: str) -> StoreError:
        message = f"The ledger {self.path or 'in memory'} {words}."
        return StoreError(message, fix=fix, damaged=fix == _RESET)


def _patiently(step: Callable[[], T], until: float) -> T:
    """Tries again while others are in the way, until then (monotonic seconds)."""
    pause = _SHORTEST
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)


def _create(path: Path) -> None:
    """Makes the file, for nobody else to read; what is there already stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        # Not opened to look at it: closing it again would drop the locks of this process's other
        # connections to it.
        if os.name == "posix" and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_on_disk: weakref.WeakSet[LedgerFile] = weakref.WeakSet()
_after: list[Callable[[], None]] = []


def _before_fork() -> None:
    _after.extend(file.before_fork() for file in list(_on_disk))


def _after_fork() -> None:
    while _after:
        _after.pop()()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
