"""One gate for all requests to a server: how many at a time, and how many a second.

    with await gate.turn() as turn:   # waits until one may be sent
        ...                           # turn.heard(headers), then turn.answered(tokens)

A provider has a rate (`pacer`), a server of one's own has room (`window`); neither says so, or not
in time, and a gate finds both. It belongs to one event loop, so that nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Self

from llm_magic.pacer import Pacer
from llm_magic.window import Trial, Window

_FORGOTTEN = 120.0  # Seconds without a rejection after which a server may have recovered.


class Turn:
    """One request that may be sent; ends with ``leave``, or with its ``with`` block."""

    __slots__ = (
        "_begun",
        "_gate",
        "_heard",
        "_marks",
        "_number",
        "_open",
        "_told",
        "_trial",
        "fixed",
    )

    def __init__(self, gate: Gate, now: float, fixed: bool, trial: Trial | None) -> None:
        self.fixed = fixed
        self._gate, self._begun, self._trial = gate, now, trial
        self._number, self._marks = gate._pacer.sent(now, gate.in_flight - 1)
        self._open, self._told, self._heard = True, False, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def heard(self, headers: Mapping[str, str]) -> None:
        """The headers of a response came, whatever its status. Malformed ones say nothing."""
        gate = self._gate
        self._heard = gate._pacer.heard(self._marks, headers, gate._now(), gate.in_flight)

    def answered(self, tokens: int = 0) -> None:
        """It succeeded.

        Args:
            tokens: Of prompt and answer together.
        """
        if self._told:
            return
        self._told = True
        gate = self._gate
        gate._refused.since = None
        gate._pacer.answered(tokens)
        if self._trial is not None:
            under_way = gate.in_flight - gate._fixed_in_flight
            gate._window.rate = gate._pacer.rate()
            gate._window.answered(self._trial, self._begun, gate._now(), under_way)
            self._trial = None

    def rejected(self, retry_after: float | None = None) -> None:
        """It was turned away (429, or 503 and 529 with a Retry-After), and comes again.

        Args:
            retry_after: Seconds that the server asked to wait, or None.
        """
        if self._told:
            return
        self._told = True
        gate, now = self._gate, self._gate._now()
        gate._refused.rejected(now)
        gate._pacer.rejected(self._number, self._begun, retry_after, self._heard, now)
        gate._window.again()

    def failed(self) -> None:
        """It failed in a way that says nothing about limits."""
        self._told = True

    def unused(self) -> None:
        """It was not sent after all."""
        self._gate._pacer.unsent()

    def leave(self) -> None:
        """It has ended; the next may go. Twice is once."""
        if self._open:
            self._open = False
            self._gate._leave(self)


class Gate:
    """Where requests to one server and model wait for their turn.

    Args:
        clock: Gives the time in seconds; that of the running loop if there is none.

    Attributes:
        in_flight: Requests under way.
    """

    def __init__(self, *, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._pacer, self._window = Pacer(), Window()
        self.in_flight = self._fixed_in_flight = 0
        # Those with a number of their own beside the others, so that neither waits for the other.
        self._lines: tuple[deque[_Waiter], deque[_Waiter]] = deque(), deque()
        self._arrived = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refused = _Refused()

    @property
    def window(self) -> int:
        """Requests that may be under way at a time."""
        return self._window.size

    @property
    def rate(self) -> float | None:
        """Requests a second that it keeps to, or None where no limit is known."""
        return self._pacer.rate()

    @property
    def held_until(self) -> float | None:
        """Time of the clock until which the server asked to wait, or None."""
        until = self._pacer.held_until
        return until if until > self._now() else None

    @property
    def told_to_wait(self) -> float:
        """Seconds for which the server still asks this gate itself to wait."""
        return max(0.0, self._pacer.told_until - self._now())

    @property
    def share(self) -> int:
        """Gates that keep to one limit of the server, this one included: each has its part."""
        return self._pacer.share

    @share.setter
    def share(self, count: int) -> None:
        if max(1, count) != self._pacer.share:
            self._pacer.divide(max(1, count), self._now())
            self._pump()

    def hold(self, seconds: float) -> None:
        """Lets nothing go for so long: the server has asked another gate to wait."""
        self._pacer.hold(self._now(), self._now() + seconds)

    def stuck(self, seconds: float = 120.0) -> bool:
        """Whether requests were turned away for so long without one success."""
        return self._refused.longer(seconds, self._now())

    async def turn(self, fixed: int | None = None) -> Turn:
        """Waits until a request may be sent, first come, first served.

        Args:
            fixed: The user's own number of requests at a time, instead of the window found.

        Returns:
            The request's turn, which must be left at the end.
        """
        line = self._lines[fixed is not None]
        if not line and self._room(fixed) and self._pacer.delay(self._now()) <= 0:
            return self._begin(fixed)
        self._arrived += 1
        waiter = _Waiter(self._arrived, fixed)
        line.append(waiter)
        self._pump()
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled():
                # Its turn had come in the same moment: the next one has it.
                turn = waiter.turn.result()
                turn.unused()
                turn.leave()
            else:
                self._pump()
            raise

    def _now(self) -> float:
        if self._clock is None:
            self._clock = asyncio.get_running_loop().time
        return self._clock()

    def _room(self, fixed: int | None) -> bool:
        if fixed is None:
            return self.in_flight - self._fixed_in_flight < self._window.size
        return self._fixed_in_flight < fixed

    def _begin(self, fixed: int | None) -> Turn:
        now = self._now()
        trial = None
        self.in_flight += 1
        if fixed is None:
            trial = self._window.sent(now, self.in_flight - self._fixed_in_flight)
        else:
            self._fixed_in_flight += 1
        return Turn(self, now, fixed is not None, trial)

    def _leave(self, turn: Turn) -> None:
        if turn.fixed:
            self._fixed_in_flight -= 1
        else:
            self._window.moved(self._now(), self.in_flight - self._fixed_in_flight)
        self.in_flight -= 1
        if turn._trial is not None:
            self._window.left(turn._trial)
            turn._trial = None
        self._pump()

    def _pump(self) -> None:
        """Lets in those whose turn it is, and sets a timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (line := self._next()) is not None:
            wait = self._pacer.delay(self._now())
            if wait > 0:
                self._timer = asyncio.get_running_loop().call_later(wait, self._pump)
                return
            waiter = line.popleft()
            waiter.turn.set_result(self._begin(waiter.fixed))

    def _next(self) -> deque[_Waiter] | None:
        """The line whose first one may be sent and has waited longest."""
        found = None
        for line in self._lines:
            while line and line[0].turn.done():
                line.popleft()
            if not line or not self._room(line[0].fixed):
                continue
            if found is None or line[0].number < found[0].number:
                found = line
        return found


class _Waiter:
    """One that waits."""

    __slots__ = ("fixed", "number", "turn")

    def __init__(self, number: int, fixed: int | None) -> None:
        self.number, self.fixed = number, fixed
        self.turn: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()


class _Refused:
    """For how long nothing but rejections came.

    Attributes:
        since: Time of the first of them, or None.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self._last = -math.inf

    def rejected(self, now: float) -> None:
        if self.since is None or now - self._last > _FORGOTTEN:
            self.since = now
        self._last = now

    def longer(self, seconds: float, now: float) -> bool:
        recent = now - self._last <= _FORGOTTEN
        return self.since is not None and recent and now - self.since >= seconds
