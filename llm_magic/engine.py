"""The line: one request on its way to one answer. Everything that asks a model goes through here.

Knows neither IPython nor openai: it takes a Wire to ask through and a Sink to show things to, and
runs on the session's event loop. (An asynchronous engine only; there is no second, blocking one.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from llm_magic.answer import Answer
from llm_magic.booking import Quota
from llm_magic.bounds import Terms
from llm_magic.decode import Event, Piece, Sent
from llm_magic.entries import Fingerprint, fingerprint
from llm_magic.errors import (
    ContextTooLong,
    InvalidAnswer,
    LLMError,
    QuotaExceeded,
    StreamBroken,
    UnknownModel,
)
from llm_magic.flight import Flights, Sink
from llm_magic.gate import Gate
from llm_magic.holds import Hold
from llm_magic.lane import Lane
from llm_magic.naming import name_models, with_model
from llm_magic.retry import persist
from llm_magic.shelf import Shelf
from llm_magic.types import Request, Response
from llm_magic.watch import Limits, Watch

FLIGHT_LOOK = 0.05
"""Seconds between two looks whether another kernel's equal call is over."""
LONGEST_AT_ONCE = 20_000
"""Characters of an answer that are read on the loop's thread, if none of the notebook's code runs
for it: a thread of its own costs five times a small answer's reading."""
SMALLER_CAP = 2048
"""The cap on a structured answer, in tokens, where the context is too small for the first."""


class Wire(Protocol):
    """A server, as the engine sees it."""

    host: str

    async def ready(self, *, whole: bool = False) -> None:
        """Makes what is needed to send; no time limit runs yet, since importing takes time."""

    def body(self, request: Request, *, whole: bool = False) -> dict[str, Any]:
        """The exact JSON body that is sent for a request."""

    def stream(self, request: Request) -> AsyncGenerator[Event]:
        """The events of one answer; an async generator, closed by the engine."""

    async def whole(self, request: Request) -> list[Event]:
        """The same for an answer that comes in one piece."""

    async def models(self) -> list[str]:
        """Names of the models on offer."""


@dataclass(frozen=True)
class Call:
    """How one request is to be made.

    Attributes:
        limits: Seconds and retries.
        shelf: Where the answer may be found, and where it is kept.
        terms: What it may spend.
        quota: Where that is booked.
        flights: The calls of this kernel that it may join.
        repairs: How often an answer that does not fit the schema is asked again.
        gate: Where calls for many rows wait for their turn. Nobody reads these words as they come,
            so such an answer is not streamed. None for a cell.
        at_once: The user's own number of calls at once, through the gate.
        stopped: Whether no more is to be sent.
    """

    limits: Limits
    shelf: Shelf
    terms: Terms
    quota: Quota
    flights: Flights
    repairs: int = 1
    gate: Gate | None = None
    at_once: int | None = None
    stopped: Callable[[], bool] = lambda: False


async def ask(request: Request, *, wire: Wire, sink: Sink, call: Call) -> Response:
    """Asks once, whatever it takes within the limits; or finds the answer.

    Args:
        request: What is asked; with an empty model, the server's only one is.
        wire: The server.
        sink: Told every piece as it arrives.
        call: Limits, stores and terms.

    Returns:
        The whole answer; a partial one is never returned.

    Raises:
        LLMError: What went wrong, with ``text``, ``usage`` and ``attempts`` of the call.
        asyncio.CancelledError: After the connection is closed and ``sink.stopped`` is told.
    """
    async with _told(Answer(request), wire, sink) as answer:
        await wire.ready()
        answer.request = request = await with_model(request, wire, call.limits, call.shelf)
        print_ = fingerprint(request)
        # Looked up before the call was handed over, but perhaps by another model's name.
        if found := await _find(request, print_, call):
            return found
    return await obtain(request, print_, wire=wire, sink=sink, call=call)


async def obtain(
    request: Request, print_: Fingerprint, *, wire: Wire, sink: Sink, call: Call
) -> Response:
    """Asks for an answer that is not kept; the wire is ready, and the request names its model.

    Args:
        request: What is asked.
        print_: Its identity.
        wire: The server.
        sink: Told every piece as it arrives.
        call: Limits, stores and terms.

    Raises:
        LLMError: As ``ask``.
        asyncio.CancelledError: Likewise.
    """
    if not call.shelf.shared:
        return await _fly(request, print_, wire=wire, sink=sink, call=call)

    def fly(everyone: Sink) -> Coroutine[Any, Any, Response]:
        return _fly(request, print_, wire=wire, sink=everyone, call=call)

    while True:
        response = await call.flights.share(print_.key, fly, sink)
        if not (response.cached and request.schema):
            return response
        # Another one's answer, read by its own class: by ours it may be another value, or none.
        if fitting := await _fitting(request, response):
            return fitting


async def _find(request: Request, print_: Fingerprint, call: Call) -> Response | None:
    """The kept answer, if it still is one."""
    found = call.shelf.find(print_)
    return await _fitting(request, found) if found else None


async def _fitting(request: Request, response: Response) -> Response | None:
    """The response, if it still is an answer."""
    try:
        return await _read(request, response)
    except InvalidAnswer:
        return None


async def _read(request: Request, response: Response) -> Response:
    """The response with the value that its text gives."""
    if request.schema is None:
        return response
    if request.schema.plainly and len(response.text) < LONGEST_AT_ONCE:
        return request.schema.fit(response)
    # On a thread of its own: the notebook's validators may take long, or ask a model themselves.
    return await asyncio.to_thread(request.schema.fit, response)


async def _fly(
    request: Request, print_: Fingerprint, *, wire: Wire, sink: Sink, call: Call
) -> Response:
    """One call; where the answer does not fit the schema, another one that says so."""
    before: InvalidAnswer | None = None
    asked, left = request, call.repairs
    while True:
        try:
            return await _capped(asked, print_, before, wire=wire, sink=sink, call=call)
        except InvalidAnswer as error:
            if left <= 0 or request.schema is None:
                raise
            before, left = error, left - 1
        except QuotaExceeded as error:
            if before:
                error.args = (f"{before.args[0]} Asking again was refused: {error.args[0]}",)
            raise
        sink.again(f"{before.args[0]} Asking again with what is wrong.")
        asked = replace(request, messages=request.schema.repaired(request.messages, before))


async def _capped(
    request: Request, print_: Fingerprint, before: InvalidAnswer | None, **parts: Any
) -> Response:
    """One answer; with a smaller cap where ours does not fit: vLLM adds it to the prompt."""
    try:
        return await _once(request, print_, before, **parts)
    except ContextTooLong:
        if request.schema is None or request.max_tokens is not None:
            raise
    smaller = replace(request, max_tokens=SMALLER_CAP)
    return await _once(smaller, print_, before, **parts)


async def _once(
    request: Request,
    print_: Fingerprint,
    before: InvalidAnswer | None,
    *,
    wire: Wire,
    sink: Sink,
    call: Call,
) -> Response:
    """One answer: held, sent, heard, judged, read, kept, settled."""
    async with _told(Answer(request, before), wire, sink) as answer:
        hold = await _hold(request, print_, wire=wire, sink=sink, call=call)
        if isinstance(hold, Response):
            return hold
        answer.request = hold.worst.request
        try:
            # Not before the hold: what waits for the ledger would be taken for a slow server. And
            # to the end: so many are lost at most when the process is killed.
            async with Lane(call.gate, call.at_once, call.stopped) as lane:
                listen = partial(
                    _listen, answer, hold, wire=wire, sink=sink, limits=call.limits, lane=lane
                )
                await persist(listen, call.limits, sink, lane)
                return await _kept(request, print_, answer, hold, call)
        finally:
            hold.settle(answer)


async def _kept(
    request: Request, print_: Fingerprint, answer: Answer, hold: Hold, call: Call
) -> Response:
    """The answer, judged and read; and kept before its hold is settled.

    Whoever waits for the hold looks into the cache next.
    """
    answer.judge()
    try:
        response = await _read(request, answer.response())
    except InvalidAnswer as error:
        error.cost = await hold.price(answer)
        raise
    return await call.quota.keep(hold, answer, response, print_, call.shelf)


async def _hold(
    request: Request, print_: Fingerprint, *, wire: Wire, sink: Sink, call: Call
) -> Hold | Response:
    """The hold of this call, or the answer that another kernel has meanwhile paid for."""
    told = False
    while True:
        whole = call.gate is not None
        body = wire.body(request, whole=whole)
        hold, found = await call.quota.hold(
            request, body, print_, call.shelf, call.terms, sent=whole
        )
        if found and (response := await _fitting(request, found)):
            if hold:
                hold.give_back()
            return response
        if hold:
            return hold
        if not told:
            sink.notice("Another kernel is asking the same; waiting for its answer.")
            told = True
        while await call.quota.do(call.quota.ledger.flying, print_.key):
            await asyncio.sleep(FLIGHT_LOOK)


@asynccontextmanager
async def _told(answer: Answer, wire: Wire, sink: Sink) -> AsyncGenerator[Answer]:
    """Gives an error the data of its call, and a cancelled call's partial answer to the sink."""
    try:
        yield answer
    except LLMError as error:
        if isinstance(error, UnknownModel) and answer.request.model:
            await name_models(error, answer.request.model, wire)
        answer.stamp(error)
        raise
    except asyncio.CancelledError:
        answer.finish = "interrupted"
        sink.stopped(answer.response())
        raise


async def _listen(
    answer: Answer, hold: Hold, *, wire: Wire, sink: Sink, limits: Limits, lane: Lane
) -> None:
    """One HTTP request, from its turn to the end of its answer."""
    await lane.enter()
    await hold.sent()
    answer.attempts += 1
    answer.billable = True
    watch = Watch(limits)
    try:
        async with watch:
            if lane.shared:
                for event in await wire.whole(answer.request):
                    _take(event, answer, sink, lane)
            else:
                async with aclosing(wire.stream(answer.request)) as events:
                    async for event in events:
                        watch.saw(event)
                        _take(event, answer, sink, lane)
        lane.answered(answer.usage.total_tokens if answer.usage else 0)
    except TimeoutError:
        if not answer.finish:
            raise watch.error(wire.host) from None
    except LLMError as error:
        # A request that was turned away is not counted by anybody.
        answer.billable = answer.begun or isinstance(error, StreamBroken)
        lane.failed(error)
        # Once the server has said that the answer is complete, nothing behind it matters.
        if not answer.finish:
            raise


def _take(event: Event, answer: Answer, sink: Sink, lane: Lane) -> None:
    """Keeps and passes on what an event says."""
    answer.take(event)
    if type(event) is Piece:
        sink.piece(event)
    elif type(event) is Sent:
        lane.heard(event.headers)
