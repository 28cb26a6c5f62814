"""The line: one request on its way to one answer. Everything that asks a model goes through here.

Knows neither IPython nor openai: it takes a Wire to ask through and a Sink to show things to, and
runs on the session's event loop. (An asynchronous engine only; there is no second, blocking one.)
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from llm_magic.answer import Answer
from llm_magic.decode import Event, Piece
from llm_magic.errors import LLMError, ProviderError, ServerUnreachable, StreamBroken, UnknownModel
from llm_magic.types import Request, Response
from llm_magic.watch import Limits, Watch

if TYPE_CHECKING:
    from tenacity import RetryCallState

FIRST_WAIT = 0.5
"""Most seconds before the first retry, doubled for each further one, up to 8; jitter below it."""
LONGEST_WAIT = 60.0
"""A server that asks for a longer pause (seconds) is not waited for: the user is told instead."""


class Wire(Protocol):
    """A server, as the engine sees it."""

    host: str

    async def ready(self) -> None:
        """Makes what is needed to send; no time limit runs yet, since importing takes time."""

    def body(self, request: Request) -> dict[str, Any]:
        """The exact JSON body that is sent for a request."""

    def stream(self, request: Request) -> AsyncGenerator[Event]:
        """The events of one answer; an async generator, closed by the engine."""

    async def models(self) -> list[str]:
        """Names of the models on offer."""


class Sink(Protocol):
    """Where an answer is shown while it comes. Called on the loop's thread; must not block."""

    def piece(self, piece: Piece) -> None:
        """New words."""

    def notice(self, message: str) -> None:
        """Something to tell while waiting, such as a retry."""

    def stopped(self, response: Response) -> None:
        """The call was cancelled; this is what there was."""


async def ask(request: Request, *, wire: Wire, sink: Sink, limits: Limits) -> Response:
    """Asks once, whatever it takes within the limits.

    Args:
        request: What is asked; with an empty model, the server's only one is.
        wire: The server.
        sink: Told every piece as it arrives.
        limits: Seconds and retries.

    Returns:
        The whole answer; a partial one is never returned.

    Raises:
        LLMError: What went wrong, with ``text``, ``usage`` and ``attempts`` of the call.
        asyncio.CancelledError: After the connection is closed and ``sink.stopped`` is told.
    """
    answer = Answer(request)
    try:
        await wire.ready()
        answer.request = request = await _with_model(request, wire, limits)
        await _attempts(limits, sink)(_listen, answer, wire=wire, sink=sink, limits=limits)
        answer.judge()
    except LLMError as error:
        if isinstance(error, UnknownModel) and request.model:
            await _name_models(error, request.model, wire)
        answer.stamp(error)
        raise
    except asyncio.CancelledError:
        answer.finish = "interrupted"
        sink.stopped(answer.response(wire.body(request)))
        raise
    return answer.response(wire.body(request))


async def _listen(answer: Answer, *, wire: Wire, sink: Sink, limits: Limits) -> None:
    """One HTTP request, from sending it to the end of its answer."""
    answer.attempts += 1
    watch = Watch(limits)
    try:
        async with watch, aclosing(wire.stream(answer.request)) as events:
            async for event in events:
                watch.saw(event)
                answer.take(event)
                if type(event) is Piece:
                    sink.piece(event)
    except TimeoutError:
        if not answer.finish:
            raise watch.error(wire.host) from None
    except (StreamBroken, ProviderError):
        # Once the server has said that the answer is complete, nothing behind it matters.
        if not answer.finish:
            raise


def _attempts(limits: Limits, sink: Sink) -> Any:
    """The one retry loop: only for errors that came before the first byte of an answer."""
    # 25 ms to import, so not before it is needed.
    from tenacity import (
        AsyncRetrying,
        retry_if_exception,
        stop_after_attempt,
        wait_random_exponential,
    )

    backoff = wait_random_exponential(multiplier=FIRST_WAIT, max=8)

    def wait(state: RetryCallState) -> float:
        error = _error_of(state)
        asked = error.retry_after if isinstance(error, ProviderError) else None
        return float(backoff(state)) if asked is None else asked

    def tell(state: RetryCallState) -> None:
        seconds = state.next_action.sleep if state.next_action else 0.0
        sink.notice(
            f"{_headline(_error_of(state))} Trying again in {seconds:.1f} s "
            f"(attempt {state.attempt_number + 1} of {limits.retries + 1})."
        )

    return AsyncRetrying(
        retry=retry_if_exception(_may_help),
        stop=stop_after_attempt(limits.retries + 1),
        wait=wait,
        before_sleep=tell,
        reraise=True,
    )


def _may_help(error: BaseException) -> bool:
    if not isinstance(error, ProviderError):
        return False
    return error.retryable and (error.retry_after or 0) <= LONGEST_WAIT


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _headline(error: BaseException | None) -> str:
    return str(error).splitlines()[0] if error else ""


async def _with_model(request: Request, wire: Wire, limits: Limits) -> Request:
    """The request with a model: on a server that has exactly one, none needs to be named."""
    if request.model:
        return request
    try:
        async with asyncio.timeout(limits.timeout or None):
            names = await wire.models()
    except TimeoutError:
        raise ServerUnreachable(
            f"No answer from {wire.host} within {limits.timeout:g} s. The prompt was not sent.",
            fix="Is the server well? Wait longer with: %config LLMMagic.timeout = 600",
        ) from None
    if len(names) == 1:
        return replace(request, model=names[0])
    offered = f"offers {len(names)}: {', '.join(names[:5])}" if names else "lists none"
    raise UnknownModel(
        f"No model was named, and {wire.host} {offered}. The prompt was not sent.",
        fix=f"Name one: %config LLMMagic.model = {(names or ['NAME'])[0]!r}",
        available=tuple(names),
    )


async def _name_models(error: UnknownModel, asked: str, wire: Wire) -> None:
    """Adds the nearest names that the server does have; a courtesy that may fail."""
    try:
        async with asyncio.timeout(2):
            names = await wire.models()
    except (LLMError, TimeoutError):
        return
    error.available = tuple(names)
    near = difflib.get_close_matches(asked, names, n=3, cutoff=0.4) or names[:3]
    if near:
        error.fix = f"It offers {', '.join(near)}. Name one: -m {near[0]}"
