"""The folders in which files are kept: the user's own, closed to others, and on this machine."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import tempfile
from pathlib import Path

from llm_magic.errors import StoreError

NETWORKS = frozenset(
    {
        *("acfs", "afs", "auristorfs", "beegfs", "ceph", "cifs", "coda", "davfs"),
        *("fhgfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs", "wekafs"),
    }
)
"""Types of file systems that other machines change as well.

Not 9p: it is how sandboxes and WSL pass a folder of the same machine in, often as the whole root,
and then the temporary folder would be no better. Where its locks fail, the file is worked around
like any other that cannot be used.
"""

NETWORK_FUSES = frozenset(
    {
        *("blobfuse", "blobfuse2", "ceph", "ceph-fuse", "cgofuse", "curlftpfs", "davfs", "drive"),
        *("gcsfuse", "gdfuse", "glusterfs", "goofys", "gvfsd-fuse", "hdfs"),
        *("juicefs", "lizardfs", "mfs", "moosefs", "mount-s3", "mountpoint-s3", "quobyte"),
        *("rclone", "s3fs", "s3ql", "seaweedfs", "smbnetfs", "sshfs"),
    }
)
"""The same behind FUSE, without its ``fuse.``."""

_OURS = ("cache.db", "ledger.db")
_OPEN_TO_WRITERS = stat.S_IWGRP | stat.S_IWOTH
_OPEN_AT_ALL = stat.S_IRWXG | stat.S_IRWXO


def private_folder(path: Path, setting: str) -> Path:
    """A folder that nobody else can look into; made with its parents where it is missing.

    Args:
        path: The folder.
        setting: The setting that names it, such as ``"cache_dir"``.

    Returns:
        The folder without symbolic links.

    Raises:
        StoreError: It cannot be made, is no folder, is another user's, or is open to others.
    """
    another = f'%config LLMMagic.{setting} = "..."'
    try:
        _make(path)
        folder = path.resolve(strict=True)
        found = folder.stat()
    except (OSError, RuntimeError) as error:
        # RuntimeError: links in a circle, as Python before 3.13 has it.
        why = getattr(error, "strerror", None) or str(error)
        raise StoreError(
            f"The folder {path} cannot be made ({why}), so nothing is stored there.",
            fix=f"Choose another: {another}",
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(
            f"{path} is a file and no folder, so nothing is stored there.",
            fix=f"Choose another: {another}",
        )
    if hasattr(os, "getuid"):
        _check(folder, found, another)
    return folder


def _make(path: Path) -> None:
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def _check(folder: Path, found: os.stat_result, another: str) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.getuid():
        raise StoreError(
            f"The folder {folder} belongs to the user with id {found.st_uid}, not to you "
            f"({os.getuid()}), so nothing is stored there.",
            fix=f"Choose another: {another}",
        )
    if mode & _OPEN_TO_WRITERS:
        raise StoreError(
            f"Others can change what is in the folder {folder} (mode {mode:04o}), so nothing is "
            "stored there.",
            fix=f"chmod 700 {shlex.quote(str(folder))}, or choose another: {another}",
        )
    if mode & _OPEN_AT_ALL:
        _close(folder, mode, another)


def _close(folder: Path, mode: int, another: str) -> None:
    """Shuts others out of a folder that is ours and holds nothing else."""
    try:
        alone = all(each.name.startswith(_OURS) for each in folder.iterdir())
        if alone:
            folder.chmod(0o700)
            # Some file systems take it and do nothing.
            if not folder.stat().st_mode & _OPEN_AT_ALL:
                return
    except OSError as error:
        # What is on a read-only disk can still be read, and nothing new gets there.
        if error.errno == errno.EROFS:
            return
        alone = True
    holds = "" if alone else ", which holds other files as well"
    raise StoreError(
        f"Others can read the folder {folder} (mode {mode:04o}){holds}, so nothing is stored "
        "there.",
        fix=f"chmod 700 {shlex.quote(str(folder))}, or choose a folder of its own: {another}",
    )


def usable_folder(wanted: Path, kind: str) -> tuple[Path, str]:
    """The wanted folder, or one on this machine where that is on a network; private either way.

    Args:
        wanted: The folder.
        kind: What it is for: ``"cache"`` or ``"ledger"``.

    Returns:
        The folder, and why it is another one than was wanted: empty, or the beginning of a
        sentence that ends in "so".

    Raises:
        StoreError: There is none that is private.
    """
    if not is_network(wanted):
        return private_folder(wanted, f"{kind}_dir"), ""
    why = f"The {kind}'s folder {wanted} is on a network, where SQLite is not safe, so"
    return _local_folder(kind), why


def _local_folder(kind: str) -> Path:
    # By the user's id: the temporary folder is everybody's. Whoever makes this one first under
    # somebody else's id gains nothing, since it is not that user's then.
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    return private_folder(
        Path(tempfile.gettempdir()) / f"llm_magic-{kind}{user}", setting=f"{kind}_dir"
    )


def is_network(path: Path) -> bool:
    """Whether a folder is on a network file system; False where that cannot be told."""
    real = os.path.realpath(path)
    longest, kind = "", ""
    for line in _mountinfo().splitlines():
        before, _, after = line.partition(" - ")
        if len(before.split()) < 5 or not after:
            continue
        place = _decoded(before.split()[4])
        # Not shorter: of two mounts at one place the later one is what is seen.
        if len(place) >= len(longest) and _within(real, place):
            longest, kind = place, after.split()[0]
    kind = kind.lower()
    return kind in NETWORKS or (
        kind.startswith("fuse.") and kind.removeprefix("fuse.") in NETWORK_FUSES
    )


def _mountinfo() -> str:
    """The kernel's list of mounts; empty where there is none."""
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _decoded(place: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), place)


def _within(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")
