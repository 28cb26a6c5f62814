"""Settings of the interpreter that suit a thread which does much in small steps, meanwhile.

SQLite lets go of the interpreter's lock (GIL) at every step. A thread that computes takes it at
once, and whoever wants it back asks for it only after the switch interval: 5 ms, for a statement of
10 us. And thousands of short-lived objects have the garbage collector look again and again for
cycles that are not there: a tenth of the time of a row.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERVAL = 0.0005
"""Seconds; the switch interval meanwhile. A tenth of Python's: switches cost more below."""
ALLOCATIONS = 50_000
"""New objects between two looks of the garbage collector meanwhile; Python has 700 to 2,000."""


class _Meanwhile:
    """A setting while somebody is at it, and the one that was there before.

    Args:
        get: Gives the setting.
        put: Changes it.
        wanted: The setting meanwhile, of that before.
    """

    def __init__(
        self, get: Callable[[], Any], put: Callable[[Any], None], wanted: Callable[[Any], Any]
    ) -> None:
        self._get, self._put, self._wanted = get, put, wanted
        self._lock = threading.Lock()
        self._inside = 0
        self._before = self._set = get()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Until the last one leaves."""
        with self._lock:
            if self._inside == 0:
                self._before = self._get()
                self._put(self._wanted(self._before))
                # As it is kept: an interval in whole microseconds.
                self._set = self._get()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                # Somebody else may have set another one meanwhile, which then stays.
                if self._inside == 0 and self._get() == self._set:
                    self._put(self._before)

    def after_fork(self) -> None:
        """Who was inside is in the parent."""
        self._lock = threading.Lock()
        if self._inside:
            self._inside = 0
            self._put(self._before)


def _seldom(before: tuple[int, ...]) -> tuple[int, ...]:
    # 0 is a collector that somebody has switched off.
    return (max(before[0], ALLOCATIONS) if before[0] else 0, *before[1:])


quick = _Meanwhile(
    sys.getswitchinterval, sys.setswitchinterval, lambda before: min(before, INTERVAL)
)
"""Lets threads of this process take turns ten times as often."""
tidied_seldom = _Meanwhile(gc.get_threshold, lambda limits: gc.set_threshold(*limits), _seldom)
"""Lets the garbage collector look less often."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=quick.after_fork)
    os.register_at_fork(after_in_child=tidied_seldom.after_fork)
