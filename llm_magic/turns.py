"""Quick turns at the interpreter, for a thread that does much in small steps.

SQLite lets go of the interpreter's lock (GIL) at every step. A thread that computes takes it at
once, and whoever wants it back asks for it only after the switch interval: 5 ms, for a statement of
10 us.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL = 0.0005
"""Seconds; the switch interval meanwhile. A tenth of Python's: switches cost more below."""


class _Quick:
    """How many are at it, and the interval that was there before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.before = self.set = 0.0

    def begin(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before = sys.getswitchinterval()
                sys.setswitchinterval(min(self.before, INTERVAL))
                # It is kept in whole microseconds.
                self.set = sys.getswitchinterval()
            self.inside += 1

    def end(self) -> None:
        with self.lock:
            self.inside -= 1
            # Somebody else may have set another one meanwhile, which then stays.
            if self.inside == 0 and sys.getswitchinterval() == self.set:
                sys.setswitchinterval(self.before)


_quick = _Quick()


@contextmanager
def quick() -> Iterator[None]:
    """Lets threads of this process take turns ten times as often, until the last one leaves."""
    _quick.begin()
    try:
        yield
    finally:
        _quick.end()


def _after_fork() -> None:
    """Who was inside is in the parent."""
    global _quick
    left, _quick = _quick, _Quick()
    if left.inside:
        sys.setswitchinterval(left.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
