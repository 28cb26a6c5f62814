"""Time limits of one call: until the first byte, and without new content."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType

from llm_magic.decode import Alive, Event, Finish, Sent
from llm_magic.errors import LLMError, ServerUnreachable, StreamBroken

USAGE_WAIT = 2.0
"""Seconds that a complete answer waits for its usage and the end of the stream."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often a call may try.

    Attributes:
        timeout: Seconds until the first byte of the answer; 0 waits for ever.
        stall_timeout: Seconds without new content; keep-alive pings do not count. 0 is for ever.
        retries: How often a request that failed before its first byte is sent again.
    """

    timeout: float = 120.0
    stall_timeout: float = 120.0
    retries: int = 2


class Watch:
    """Ends a call that gives nothing for too long.

    One timer that looks when the last content came and sets itself anew. Re-arming it for every
    token, as ``asyncio.timeout().reschedule`` does, took 1.9 µs where parsing one takes 2.2.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._started = False
        self._limit = limits.timeout
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._scope = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._arm()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer:
            self._timer.cancel()
        await self._scope.__aexit__(kind, error, trace)

    def saw(self, event: Event) -> None:
        """Notes an event: the first ends the wait for the first byte, content each stall."""
        if type(event) is Sent:
            return
        if type(event) is Finish:
            self._restart(USAGE_WAIT)
        elif not self._started:
            self._started = True
            self._restart(self._limits.stall_timeout)
        elif type(event) is not Alive:
            self._last = self._loop.time()

    def error(self, host: str) -> LLMError:
        """What to raise when the time was up."""
        if self._started:
            return StreamBroken(
                f"No new content from {host} for {self._limit:g} s, so the answer was stopped.",
                fix="A model that thinks for long needs: %config LLMMagic.stall_timeout = 600",
            )
        return ServerUnreachable(
            f"No answer from {host} within {self._limit:g} s. Not asked again: the request may "
            "have been counted.",
            fix="Is the server well? Wait longer with: %config LLMMagic.timeout = 600",
        )

    def _restart(self, limit: float) -> None:
        self._last, self._limit = self._loop.time(), limit
        self._arm()

    def _arm(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._limit:
            self._timer = self._loop.call_at(self._last + self._limit, self._check)

    def _check(self) -> None:
        if self._loop.time() >= self._last + self._limit:
            self._scope.reschedule(self._loop.time())
        else:
            self._arm()
