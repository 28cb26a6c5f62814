"""One flight: equal requests of a kernel at the same time are one call, heard by all.

A call belongs to nobody: whoever asked first may be interrupted, and it goes on for the others. The
last one to leave ends it. Everything here runs on the session's loop, so nothing needs a lock.
(Equal requests of other kernels meet in the ledger: the open hold is the claim.)
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from dataclasses import replace
from decimal import Decimal
from typing import Any, Protocol

from llm_magic.decode import Piece
from llm_magic.errors import LLMError
from llm_magic.types import Response, Usage


class Sink(Protocol):
    """Where an answer is shown while it comes. Called on the loop's thread; must not block."""

    def piece(self, piece: Piece) -> None:
        """New words."""

    def notice(self, message: str) -> None:
        """Something to tell while waiting, such as a retry."""

    def again(self, message: str) -> None:
        """The words so far do not count: the answer is asked anew, and why."""

    def stopped(self, response: Response) -> None:
        """The call was cancelled; this is what there was."""


class Flight:
    """A call under way: the sink of the one that flies, a source for all who wait."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Response]
        self.left = False
        self._pieces: list[Piece] = []
        self._sinks: list[Sink] = []

    def piece(self, piece: Piece) -> None:
        """New words, for all."""
        self._pieces.append(piece)
        for sink in self._sinks:
            sink.piece(piece)

    def notice(self, message: str) -> None:
        """Something to tell all."""
        for sink in self._sinks:
            sink.notice(message)

    def again(self, message: str) -> None:
        """The words so far do not count, for all."""
        self._pieces = []
        for sink in self._sinks:
            sink.again(message)

    def stopped(self, response: Response) -> None:
        """The last one has left."""
        for sink in self._sinks:
            sink.stopped(response)

    async def follow(self, sink: Sink) -> Response:
        """What the call gives, its words so far first."""
        for piece in self._pieces:
            sink.piece(piece)
        self._sinks.append(sink)
        try:
            return await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if len(self._sinks) == 1:
                # The sink stays until the call has handed over what it had.
                self.left = True
                self.task.cancel()
                await asyncio.wait([self.task])
            else:
                sink.stopped(self._so_far())
            raise
        finally:
            self._sinks.remove(sink)

    def _so_far(self) -> Response:
        text = "".join(piece.text for piece in self._pieces if piece.kind == "text")
        return Response(text, Usage(estimated=True), "", "interrupted", value=text)


class Flights:
    """The calls of a kernel that others may join."""

    def __init__(self) -> None:
        self._open: dict[str, Flight] = {}

    async def share(
        self, key: str, fly: Callable[[Sink], Coroutine[Any, Any, Response]], sink: Sink
    ) -> Response:
        """Joins the call for a key, or starts it.

        Args:
            key: The request's key.
            fly: Makes the call.
            sink: Shown every word from the first one on, however late it comes.

        Returns:
            The answer; for those who joined, one that cost nothing.

        Raises:
            LLMError: What went wrong, for everyone alike.
        """
        flight = self._open.get(key)
        joined = flight is not None and not flight.left
        if flight is None or flight.left:
            flight = self._start(key, fly)
        try:
            response = await flight.follow(sink)
        except LLMError as error:
            if not joined:
                raise
            fault = copy.copy(error)
        else:
            return free(response) if joined and not response.cached else response
        raise fault

    def _start(self, key: str, fly: Callable[[Sink], Coroutine[Any, Any, Response]]) -> Flight:
        flight = self._open[key] = Flight()

        def landed(task: asyncio.Task[Response]) -> None:
            if self._open.get(key) is flight:
                del self._open[key]
            # Looked at, so that asyncio does not report an error that nobody was left to hear.
            if not task.cancelled():
                task.exception()

        flight.task = asyncio.create_task(fly(flight))
        flight.task.add_done_callback(landed)
        return flight


def free(response: Response) -> Response:
    """An answer that somebody else has just paid for."""
    return replace(response, cached=True, cost=Decimal(0), saved=response.cost, age=0.0, attempts=0)
