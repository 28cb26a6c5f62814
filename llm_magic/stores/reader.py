"""Reading the cache's file without waiting for writers, and telling what is wrong with it.

Rows are read by SQLite itself and not by diskcache, which would run what a row says: unpickle it,
open the file that it names. Here only bytes that lie in the row are seen at all.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import sqlite3
import stat
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from llm_magic.entries import Row

NAME = "cache.db"
SIDES = ("-wal", "-shm", "-journal")
PATIENCE = 0.1
"""Seconds that a read waits where a file is locked against reading too, which WAL files are not."""

# The plus: else SQLite goes by the index of that column, in which all rows are alike.
_OURS = (
    "raw = 1 AND mode = 1 AND filename IS NULL AND +expire_time IS NULL AND typeof(value) = 'blob'"
)
_FIND = f"SELECT value FROM Cache WHERE key = ? AND {_OURS}"  # noqa: S608
_FOUND_AT_ONCE = 64
# All in the columns of one row: each row that SQLite hands over costs a wait for the interpreter.
_FIND_MANY = f"SELECT {', '.join([f'({_FIND})'] * _FOUND_AT_ONCE)}"
_LIST = (
    "SELECT key, value, access_time, rowid FROM Cache WHERE (access_time, rowid) < (?, ?)"  # noqa: S608
    f" AND {_OURS} AND typeof(key) = 'text' AND typeof(access_time) = 'real'"
    " ORDER BY access_time DESC, rowid DESC LIMIT ?"
)
_LISTED_AT_ONCE = 200

Identity = tuple[int, int]
Kind = Literal["locked", "full", "read-only", "damaged", "strange", "unusable"]
Schema = Mapping[tuple[str, str, str], str | None]


class Strange(sqlite3.DatabaseError):
    """The file has what a cache does not have; somebody else wrote it."""


class Reader:
    """A connection that cannot write; it closes when it is let go of, in whichever thread that is.

    Attributes:
        connection: For other queries than for a key.
        frozen: Whether the file is seen as it was when it was opened, without its write-ahead log,
            since nothing can be written beside it.
    """

    def __init__(self, path: Path, *, frozen: bool) -> None:
        self.frozen = frozen
        how = "mode=ro&immutable=1" if frozen else "mode=ro"
        self.connection = sqlite3.connect(
            f"{path.as_uri()}?{how}",
            uri=True,
            timeout=PATIENCE,
            isolation_level=None,
            check_same_thread=False,
        )
        self._execute = self.connection.execute
        _open.add(self)
        try:
            self._execute("PRAGMA trusted_schema = OFF")
            self._execute("SELECT 1 FROM sqlite_master").fetchone()
        except (sqlite3.Error, UnicodeDecodeError):
            self.close()
            raise

    def find(self, key: str) -> tuple[bytes] | None:
        """The row of a key.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        found: tuple[bytes] | None = self._execute(_FIND, (key,)).fetchone()
        return found

    def find_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The rows of keys, as far as they are there.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        found: dict[str, bytes] = {}
        for first in range(0, len(keys), _FOUND_AT_ONCE):
            part = keys[first : first + _FOUND_AT_ONCE]
            whole = [*part, *[None] * (_FOUND_AT_ONCE - len(part))]
            values = self._execute(_FIND_MANY, whole).fetchone()
            found |= {
                key: value for key, value in zip(part, values, strict=False) if value is not None
            }
        return found

    def close(self) -> None:
        """Closes the file."""
        self.connection.close()
        _open.discard(self)

    def __del__(self) -> None:
        # A connection alone would wait for the garbage collector, and keep the log from being
        # written back. While `find` runs in another thread, that holds on to this.
        if hasattr(self, "connection"):
            self.connection.close()


_open: weakref.WeakSet[Reader] = weakref.WeakSet()


def wait_until_closed(patience: float = 1.0) -> None:
    """Waits for queries that are running, whose readers close when they are done.

    Args:
        patience: Seconds to wait at most.
    """
    until = time.monotonic() + patience
    while _open and time.monotonic() < until:
        time.sleep(0.0005)


def open_reader(path: Path) -> Reader:
    """Opens a file for reading, also where nothing can be written beside it.

    Raises:
        sqlite3.Error: It cannot be read.
    """
    try:
        return Reader(path, frozen=False)
    except sqlite3.OperationalError as error:
        if kind_of(error) in ("locked", "damaged"):
            raise
    # A file with a write-ahead log wants to make its index anew, and the folder is read-only or
    # the disk full.
    return Reader(path, frozen=True)


def identity(path: Path) -> Identity | None:
    """What tells a file from another one under the same name; None where there is none.

    Only while a connection to it is open: then its number is not given to a new file.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def check_plain(path: Path) -> None:
    """Looks that a file and those beside it are files.

    Raises:
        Strange: One is a link or a pipe. A link would have another file written to.
    """
    for suffix in ("", *SIDES):
        each = path.with_name(path.name + suffix)
        try:
            mode = os.lstat(each).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            raise Strange(f"{each.name} that is no plain file")


def check_content(reader: Reader, schema: Schema, settings: frozenset[str]) -> None:
    """Looks that a file has only what the writer would have put there.

    Args:
        reader: The file.
        schema: What each table, index and trigger is made by, by type, name and table.
        settings: The names of settings that a file may have.

    Raises:
        Strange: It has more than that, or what is there is otherwise.
        sqlite3.Error: It cannot be read.
    """
    read = reader.connection.execute
    for *name, sql in read("SELECT type, name, tbl_name, sql FROM sqlite_master"):
        if schema.get((name[0], name[1], name[2]), "") != sql:
            raise Strange(f"the {name[0]} {name[1]!r}")
    if read("SELECT 1 FROM sqlite_master WHERE name = 'Settings'").fetchone() is None:
        return
    for key, value in read("SELECT key, value FROM Settings"):
        if key not in settings:
            raise Strange(f"the setting {key!r}")
        if key in ("count", "size", "hits", "misses") and not (type(value) is int and value >= 0):
            raise Strange(f"{value!r} as its {key}")


def rows(path: Path) -> Iterator[Row]:
    """The well-formed rows of a file, the last used first.

    Raises:
        sqlite3.Error: It cannot be read.
    """
    last = (math.inf, 0)
    while found := _rows_before(path, last):
        for key, value, used, rowid in found:
            last = (used, rowid)
            yield Row(key, value, used)


def _rows_before(path: Path, last: tuple[float, int]) -> list[tuple[str, bytes, float, int]]:
    # Nothing stays open between: whoever lists may take their time, or never come back.
    with closing(open_reader(path)) as reader:
        # A key that is no UTF-8 is listed as something else rather than ending the listing.
        reader.connection.text_factory = lambda text: text.decode(errors="replace")
        return reader.connection.execute(_LIST, (*last, _LISTED_AT_ONCE)).fetchall()


def count(path: Path) -> int:
    """How many rows a file has.

    Raises:
        sqlite3.Error: It cannot be read.
    """
    with closing(open_reader(path)) as reader:
        return int(reader.connection.execute("SELECT COUNT(*) FROM Cache").fetchone()[0])


def data_files(path: Path) -> Iterator[Path]:
    """The file and its write-ahead log, where there is one."""
    for suffix in ("", "-wal"):
        each = path.with_name(path.name + suffix)
        if each.exists():
            yield each


def kind_of(error: BaseException, folder: Path | None = None) -> Kind:
    """What sort of fault it was, as far as its own words and the folder tell."""
    error = root_of(error)
    if isinstance(error, Strange):
        return "strange"
    code = getattr(error, "sqlite_errorcode", None)
    # The lower byte; what is above says more than is needed here.
    kind = _KINDS.get(code & 0xFF if code else None)
    if isinstance(error, UnicodeDecodeError):
        kind = "damaged"
    elif isinstance(error, OSError):
        kind = _ERRNOS.get(error.errno or 0)
    elif "Could not decode" in str(error) or code == sqlite3.SQLITE_READONLY_ROLLBACK:
        # A rollback journal has no business beside a file with a write-ahead log.
        kind = "damaged"
    return kind or _kind_by(folder)


def _kind_by(folder: Path | None) -> Kind:
    """SQLite has one "disk I/O error" for a full disk and others."""
    try:
        if folder and shutil.disk_usage(folder).free < 256 * 1024:
            return "full"
        if folder and folder.is_dir() and not os.access(folder, os.W_OK):
            return "read-only"
    except OSError:
        pass
    return "unusable"


def root_of(error: BaseException) -> BaseException:
    """Why a write was given up, where the error is only that this failed as well."""
    before = error.__context__
    hidden = isinstance(before, sqlite3.Error) and "cannot rollback" in str(error)
    return before if before and hidden else error


_KINDS: dict[int | None, Kind] = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_PROTOCOL: "locked",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    # No row of ours breaks a rule of the table unless its index says something else than it.
    sqlite3.SQLITE_CONSTRAINT: "damaged",
}
_ERRNOS: dict[int, Kind] = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EROFS: "read-only",
    errno.EACCES: "read-only",
    errno.EPERM: "read-only",
}


def set_aside(path: Path) -> Path:
    """Gives a file and those beside it another name, so that a new one can be begun.

    Returns:
        The new name.

    Raises:
        OSError: It cannot be renamed.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        aside = path.with_name(f"{path.name}.set-aside-{stamp}{f'-{number}' if number else ''}")
        if not os.path.lexists(aside):
            break
    path.rename(aside)
    for suffix in SIDES:
        try:
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        except FileNotFoundError:
            continue
    return aside
