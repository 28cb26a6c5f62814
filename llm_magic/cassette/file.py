"""A file that several kernels write: whole at any moment, and no one's change is lost."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_magic.errors import StoreError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_SECONDS = 2.0
"""Longest wait for another process that is writing the same file."""

_PAUSE = 0.01


@contextmanager
def told(path: Path, what: str) -> Iterator[None]:
    """Tells a fault of the storage as a StoreError: the file cannot be ``what``."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The cassette {path} cannot be {what} ({error.strerror or error}); nothing was "
            "changed.",
            fix="Put another in: %llm_cassette FILE",
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Keeps the user's other processes from writing a file; yields what a link leads to.

    Raises:
        StoreError: Another one has been writing for too long, or there is no place for a lock.
    """
    target = path.resolve()
    name = hashlib.sha256(os.fsencode(target)).hexdigest()
    handle = os.open(_folder() / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _taken(handle):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"Another process has been writing {path.name} for {LOCK_SECONDS:g} s; "
                    "nothing was changed.",
                    fix="Run the cell again.",
                )
            time.sleep(_PAUSE)
        try:
            yield target
        finally:
            _give_back(handle)
    finally:
        os.close(handle)


def replace(target: Path, text: str) -> None:
    """Puts a whole new file in the place of an old one, with the old one's permissions."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, 0o666)
    try:
        with open(handle, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        _move(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _move(temporary: Path, target: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            os.replace(temporary, target)
        except PermissionError:
            # Windows refuses as long as somebody reads the file, which takes but an instant.
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _folder() -> Path:
    """Where locks are: in a folder of the user's own, and not in the way beside the notebook."""
    user = os.getuid() if hasattr(os, "getuid") else None
    folder = Path(tempfile.gettempdir()) / f"llm_magic-locks-{'user' if user is None else user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if user is not None and (found.st_uid != user or found.st_mode & 0o077):
        raise StoreError(
            f"The folder {folder} is open to others; nothing was changed.",
            fix="Remove it, or name another temporary folder: %env TMPDIR=... and a new kernel",
        )
    return folder


def _taken(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _give_back(handle: int) -> None:
    # Closing is not enough: a process forked meanwhile would keep the lock as long as it lives.
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_UN)
