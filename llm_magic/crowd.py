"""Who of a run's rows may hold something in the ledger: few before the gate, and who a limit lets.

A row holds its worst case before its turn comes. Of all rows at once that would be a budget that
nobody spends; so no more are let in than the gate lets go, and some. Where a limit has no room for
one, it waits for what the others give back: most answers are far below their worst case.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Crowd:
    """The rows of one run; lives on one loop.

    Args:
        most: How many may be inside at the moment.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._inside = self._trying = self._freed = 0
        self._door: deque[asyncio.Future[None]] = deque()
        self._refused: deque[asyncio.Future[None]] = deque()
        self._open = False

    async def enter(self) -> None:
        """Waits until there is room for one more."""
        while not self._open and self._inside >= self._most():
            waiting = asyncio.get_running_loop().create_future()
            self._door.append(waiting)
            await waiting
        self._inside += 1

    def leave(self) -> None:
        """One is done: the next may enter."""
        self._inside -= 1
        for _ in range(min(len(self._door), self._most() - self._inside)):
            _wake(self._door)

    def begin(self) -> int:
        """One tries to get a hold; gives what ``refused`` is to be told."""
        self._trying += 1
        return self._freed

    def ended(self) -> None:
        """One that tried is at its end, and what it held is free: others may try again."""
        self._trying -= 1
        self._freed += 1
        for _ in range(2):
            # Counted here, so that nobody takes it for gone before it runs.
            self._trying += _wake(self._refused)

    async def refused(self, since: int) -> bool:
        """Waits until one may try again that a limit had no room for.

        Args:
            since: What ``begin`` gave.

        Returns:
            Whether it may; not where nobody is left whose room could become free.
        """
        self._trying -= 1
        if since != self._freed:
            # Somebody has ended meanwhile.
            return True
        if not self._trying:
            return False
        waiting = asyncio.get_running_loop().create_future()
        self._refused.append(waiting)
        try:
            await waiting
        finally:
            self._trying -= waiting.done() and not waiting.cancelled()
        return True

    def open(self) -> None:
        """Lets everybody in and go on: nothing more is held."""
        self._open = True
        while self._door:
            _wake(self._door)
        while self._refused:
            self._trying += _wake(self._refused)


def _wake(line: deque[asyncio.Future[None]]) -> bool:
    """Wakes the first who still waits; returns whether there was one."""
    while line:
        waiting = line.popleft()
        if not waiting.done():
            waiting.set_result(None)
            return True
    return False
