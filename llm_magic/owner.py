"""Who this process is, and whether another one still lives.

A process id alone tells neither: the system gives it out again, and a container counts its own. So
a process is named by the boot it runs in, its pid namespace, its id and the moment of its start.
Where that cannot be read (no ``/proc``) or looked at (another machine, another container), nothing
is guessed: the answer is None, and the caller's lease decides.
"""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from typing import NamedTuple

_NOTHING = "-"


class Owner(NamedTuple):
    """A process, told apart from every other one before and after it.

    Attributes:
        boot: The id of the machine's boot, or ``-`` where it is not known.
        namespace: The pid namespace, or ``-`` where it is not known.
        pid: The process id within it.
        start: Clock ticks between boot and the start of the process; 0 where they are not known.
        host: The machine's name.
    """

    boot: str
    namespace: str
    pid: int
    start: int
    host: str

    def __str__(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def of(cls, text: str) -> Owner:
        """The owner that was written as this text.

        Raises:
            ValueError: The text is not that of an owner.
        """
        # The host comes last, since it alone might have spaces.
        boot, namespace, pid, start, host = text.split(" ", 4)
        return cls(boot, namespace, int(pid), int(start), host)


def current() -> Owner:
    """This process; after a fork, the child."""
    return _owner(os.getpid())


def alive(owner_text: str) -> bool | None:
    """Whether the process that wrote this text still runs; None where that cannot be known."""
    try:
        owner = Owner.of(owner_text)
    except ValueError:
        return None
    mine = current()
    if owner == mine:
        return True
    if _NOTHING in (owner.boot, mine.boot):
        return None
    if owner.boot != mine.boot:
        # The same machine has started anew since. Of another machine nothing is known.
        return False if owner.host == mine.host else None
    if owner.namespace != mine.namespace or not (owner.start and mine.start):
        return None
    return _runs(owner)


def _runs(owner: Owner) -> bool | None:
    try:
        state, start = _stat(owner.pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, ValueError, IndexError):
        return None
    # A zombie runs no more, though its id is taken until its parent asks for it.
    return state not in ("Z", "X") and start == owner.start


def _stat(pid: int) -> tuple[str, int]:
    """State and start of a process, in clock ticks since boot."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        line = file.read()
    # The second field is the program's name in parentheses, which may have spaces and ")" in it.
    fields = line[line.rindex(b")") + 1 :].split()
    return fields[0].decode(), int(fields[19])


@lru_cache(maxsize=1)
def _owner(pid: int) -> Owner:
    boot = namespace = _NOTHING
    start = 0
    try:
        # A /proc that belongs to another namespace would describe somebody else under this id.
        if os.readlink("/proc/self") == str(pid):
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                boot = file.read().strip() or _NOTHING
            namespace = os.readlink("/proc/self/ns/pid")
            start = _stat(pid)[1]
    except (OSError, ValueError, IndexError):
        start = 0
    return Owner(boot, namespace, pid, start, platform.node())
