"""The cache's file and the connections to it: found, made, looked through, and let go of.

The file under the name may be another one each time: deleted by the user, set aside by another
kernel. What is opened is therefore always what is there now.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llm_magic.stores import reader
from llm_magic.stores.folder import usable_folder

if TYPE_CHECKING:
    from llm_magic.stores.writer import Writer

Tell = Callable[[str, str, str], None]
"""Told a kind of fault, what happened, and how to mend it."""

CHOOSE = 'hoose another folder: %config LLMMagic.cache_dir = "..."'


class CacheFile:
    """The file ``cache.db`` of a folder, opened when it is needed. One thread at a time.

    Args:
        folder: Where the file is to be.
        limit: Most bytes of the file.
        tell: Told what else is used than was wished for.

    Attributes:
        local: Has ``find`` and ``find_many``, to look keys up, where this thread has a connection.
        frozen: Whether the file is seen as it was when it was opened, and without what its log
            holds, without which it may look damaged.
    """

    def __init__(self, folder: Path, limit: int, tell: Tell) -> None:
        self._wanted = folder
        self._folder: Path | None = None
        self._limit = limit
        self._tell = tell
        self._writer: Writer | None = None
        # Which file the connections are to, and whether all was well with it.
        self._seen: reader.Identity | None = None
        self._sound = False
        self.local = threading.local()
        self.frozen = False

    @property
    def folder(self) -> Path:
        """The folder that is used; the one that was wished for before anything is."""
        return self._folder or self._wanted

    @property
    def path(self) -> Path:
        """The file, in a folder that was looked at, and made where it was missing.

        Raises:
            StoreError: The folder cannot be used.
        """
        if self._folder is None:
            self._folder, why = usable_folder(self._wanted, "cache")
            if why:
                self._tell(
                    "network",
                    f"{why} answers are kept in {self._folder}, for this machine alone.",
                    f"C{CHOOSE}",
                )
        return self._folder / reader.NAME

    def connect(self) -> reader.Reader | None:
        """Opens this thread's connection for reading; None where there is no file.

        Raises:
            sqlite3.Error: The file cannot be read, or is not ours.
            StoreError: The folder cannot be used.
            OSError: The file cannot be looked at.
        """
        path = self.path
        found = reader.identity(path)
        if found is None:
            return None
        connection = self._check(path, found)
        self.local.find = connection.find
        self.local.find_many = connection.find_many
        return connection

    def moved(self) -> bool:
        """Whether the name is that of another file by now than the one that is open."""
        try:
            found = reader.identity(self.folder / reader.NAME)
        except OSError:
            return False
        return found is not None and found != self._seen

    def disconnect(self) -> None:
        """Lets go of this thread's connection for reading."""
        self.local.__dict__.clear()

    def writer(self, patience: float | None = None) -> Writer:
        """The file for writing, begun where there is none.

        Args:
            patience: Seconds to wait for a lock while opening; None is the usual.

        Raises:
            sqlite3.Error: The file cannot be written, or is not ours.
            StoreError: The folder cannot be used.
            OSError: The file cannot be made.
        """
        from llm_magic.stores import writer

        path = self.path
        found = reader.identity(path)
        if self._writer is not None and found == self._seen:
            return self._writer
        if found is None:
            path, found = self._make(path)
        self._check(path, found)
        wait = writer.PATIENCE if patience is None else patience
        self._writer = writer.Writer(str(path), self._limit, wait)
        if self.frozen:
            # They would not see what is written.
            self.let_go_of_readers()
        return self._writer

    def _make(self, path: Path) -> tuple[Path, reader.Identity]:
        if self._seen:
            self.let_go()
            self._tell(
                "deleted",
                f"{path} was deleted while it was in use, so a new one was begun.",
                "Answers from before are asked for anew.",
            )
            self._folder = None
            path = self.path
        # Before it is opened: closing this one later would give up SQLite's locks.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        found = os.lstat(path)
        return path, (found.st_dev, found.st_ino)

    def _check(self, path: Path, found: reader.Identity) -> reader.Reader:
        """Opens a file for reading and, once, looks that it is one that we would have written."""
        if found != self._seen:
            self.let_go()
            self._seen = found
        if not self._sound:
            reader.check_plain(path)
        connection = reader.open_reader(path)
        self.frozen |= connection.frozen
        if not self._sound:
            from llm_magic.stores.writer import SETTINGS, schema

            reader.check_content(connection, schema(), SETTINGS)
            self._sound = True
        return connection

    def set_aside(self) -> Path | None:
        """Renames the file; None where another kernel has done that already.

        Raises:
            OSError: It cannot be renamed.
        """
        path, seen = self.folder / reader.NAME, self._seen
        self.let_go()
        return reader.set_aside(path) if reader.identity(path) == seen else None

    def close(self) -> None:
        """Closes what is open. The folder is looked at again before it is used again."""
        self.let_go()
        self._folder = None

    def let_go(self) -> None:
        """Closes what is open."""
        self.let_go_of_readers()
        self.let_go_of_writer()
        self._seen, self._sound = None, False

    def let_go_of_readers(self) -> None:
        """Closes every thread's connection for reading, once a query that it is in is done."""
        self.local = threading.local()
        self.frozen = False

    def let_go_of_writer(self) -> None:
        """Closes the connection for writing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(sqlite3.Error):
                writer.close()


def words(kind: reader.Kind, path: Path, why: str) -> tuple[str, str]:
    """What to say of a fault of the file, and how to mend it."""
    if kind == "locked":
        return (
            f"Another program keeps {path} locked, so new answers are kept in memory until it "
            "lets go.",
            f"Close that program, or c{CHOOSE}",
        )
    if kind == "full":
        return (
            f"The disk of {path} is full, so new answers are kept in memory until there is room.",
            f"Make room there, or c{CHOOSE}",
        )
    can = "written" if kind == "read-only" else "used"
    return (
        f"{path} cannot be {can} ({why}), so answers are kept in memory until the kernel ends.",
        f"C{CHOOSE}",
    )
