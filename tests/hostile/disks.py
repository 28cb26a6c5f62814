"""Folders that are full, read-only, locked, damaged or gone, as a user meets them."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

SIZE = 64 * 1024**2
_MOUNT = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tmpfs"]


class Disk:
    """A small disk of its own where mounting is allowed; else a folder.

    Args:
        place: The folder, not yet there.

    Attributes:
        mounted: Whether it is a disk.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(mode=0o700)
        may = hasattr(os, "getuid") and os.getuid() == 0 and shutil.which("mount")
        self.mounted = bool(may) and not _run([*_MOUNT, str(place)])

    def remove(self) -> None:
        """Gives the disk back."""
        if self.mounted:
            _run(["umount", "-l", str(self.place)])
            self.mounted = False

    @contextmanager
    def full(self, pids: list[int]) -> Iterator[None]:
        """No byte is left on it; where it is no disk, these processes may make no file longer.

        Args:
            pids: The processes that write to it.
        """
        if not self.mounted:
            with _no_longer_files(pids, self.place):
                yield
            return
        filling = self.place / "filling"
        with suppress(OSError), filling.open("wb", buffering=0) as file:
            # In halves: the space is gone to the last page.
            step = shutil.disk_usage(self.place).free
            while step >= 4096:
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                    continue
                step //= 2
        try:
            yield
        finally:
            filling.unlink(missing_ok=True)

    @contextmanager
    def read_only(self) -> Iterator[bool]:
        """Nothing on it can be changed; to be entered while no kernel has it open.

        Gives whether that could be done.
        """
        if self.mounted:
            done = not _run(["mount", "-o", "remount,ro", str(self.place)])
            try:
                yield done
            finally:
                _run(["mount", "-o", "remount,rw", str(self.place)])
        elif os.getuid() == 0:
            yield False
        else:
            folders = [each for each in self.place.iterdir() if each.is_dir()]
            for each in folders:
                each.chmod(0o500)
            try:
                yield True
            finally:
                for each in folders:
                    each.chmod(0o700)


def _run(words: list[str]) -> int:
    return subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL).returncode


@contextmanager
def _no_longer_files(pids: list[int], place: Path) -> Iterator[None]:
    """What a quota of the user does: files end where they are (EFBIG in the place of ENOSPC)."""
    longest = max((each.stat().st_size for each in place.rglob("*.db*")), default=0)
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (longest, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


class Lock:
    """Another program's write lock on a database.

    Args:
        file: The database; where it is not there, nothing is locked.
    """

    def __init__(self, file: Path) -> None:
        self._database: sqlite3.Connection | None = None
        if file.exists():
            database = sqlite3.connect(
                file, timeout=10, isolation_level=None, check_same_thread=False
            )
            try:
                database.execute("BEGIN IMMEDIATE")
                self._database = database
            except sqlite3.OperationalError:
                database.close()

    def release(self) -> None:
        """Lets go of it."""
        if self._database is not None:
            self._database.close()
            self._database = None


def flip_bytes(file: Path, dice: random.Random) -> bool:
    """Changes some bytes of a file behind its header, as a bad disk does."""
    if not file.exists() or file.stat().st_size < 8192:
        return False
    with file.open("r+b") as opened:
        size = os.fstat(opened.fileno()).st_size
        for _ in range(dice.randint(1, 40)):
            opened.seek(dice.randrange(100, size))
            byte = opened.read(1)
            opened.seek(-1, os.SEEK_CUR)
            opened.write(bytes([byte[0] ^ 255]))
    return True


def rows_of(file: Path, query: str) -> list[tuple]:
    """What a database says, read by nobody of ours; nothing where there is no file."""
    if not file.exists():
        return []
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=20)) as database:
        database.text_factory = lambda text: text.decode(errors="replace")
        return database.execute(query).fetchall()
