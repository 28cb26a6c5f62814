"""A call's right to send: always there for a cell, in its turn for a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from llm_magic.errors import LLMError, ProviderError, RateLimited
from llm_magic.gate import Gate, Turn

LONGEST_WAIT = 60.0
"""A server that asks for a longer pause (seconds) is not waited for: the user is told instead."""


class Halted(LLMError):
    """A call was not sent, since the run that it belongs to was stopped."""


class Lane:
    """One call's way through the gate, its further attempts included.

    Args:
        gate: Of its server and model; None for a call that does not wait for others.
        at_once: The user's own number of calls at once; None lets the gate find it.
        stopped: Whether no more is to be sent.
    """

    def __init__(
        self,
        gate: Gate | None = None,
        at_once: int | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._gate = gate
        self._at_once = at_once
        self._stopped = stopped
        self._turn: Turn | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    @property
    def shared(self) -> bool:
        """Whether it is one of many calls."""
        return self._gate is not None

    async def enter(self) -> None:
        """Waits until the call may be sent; at once where it still may.

        Raises:
            Halted: It need not be sent any more.
        """
        if self._gate and self._turn is None and not self._stopped():
            self._turn = await self._gate.turn(self._at_once)
        if self._stopped():
            if self._turn:
                self._turn.unused()
            raise Halted(
                "The run over rows that asked the same was stopped; this was not sent.",
                fix="Run the cell again.",
            )

    def heard(self, headers: Mapping[str, str]) -> None:
        """The server has taken the request, and says what more it takes."""
        if self._turn:
            self._turn.heard(headers)

    def answered(self, tokens: int) -> None:
        """The answer is whole."""
        if self._turn:
            self._turn.answered(tokens)

    def failed(self, error: LLMError) -> None:
        """There was none. A server that has enough of all calls is left alone by all of them."""
        if self._turn is None:
            return
        if isinstance(error, ProviderError) and error.headers:
            self._turn.heard(error.headers)
        if self.comes_again(error):
            self._turn.rejected(error.retry_after if isinstance(error, ProviderError) else None)
            self._leave()
        else:
            self._turn.failed()
            if self._gate and isinstance(error, RateLimited) and self._gate.stuck():
                # All calls were turned away for minutes; each would find out by itself.
                error.retryable = False

    def comes_again(self, error: BaseException | None) -> bool:
        """Whether a call that was turned away waits for its turn again, however often that is."""
        if self._gate is None or not isinstance(error, ProviderError) or not error.retryable:
            return False
        turned_away = isinstance(error, RateLimited) or error.retry_after is not None
        soon = (error.retry_after or 0.0) <= LONGEST_WAIT
        return turned_away and soon and not self._gate.stuck()

    def _leave(self) -> None:
        if self._turn:
            self._turn.leave()
            self._turn = None
