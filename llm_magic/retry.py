"""The one retry loop: which errors are worth another request, and when."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from llm_magic.errors import ProviderError
from llm_magic.flight import Sink
from llm_magic.lane import LONGEST_WAIT, Lane
from llm_magic.watch import Limits

if TYPE_CHECKING:
    from tenacity import RetryCallState

FIRST_WAIT = 0.5
"""Most seconds before the first retry, doubled for each further one, up to 8; jitter below it."""


async def persist(
    listen: Callable[[], Awaitable[None]], limits: Limits, sink: Sink, lane: Lane
) -> None:
    """Makes requests until one is answered; only for errors before the first byte of an answer.

    Args:
        listen: Makes one request.
        limits: How many retries there are.
        sink: Told of each.
        lane: The call's right to send.

    Raises:
        LLMError: Of the last request.
    """
    try:
        await listen()
    except ProviderError as error:
        if not _may_help(error):
            raise
        first = [error]
    else:
        return

    async def again() -> None:
        # The failure that is there already is tenacity's first attempt. A call that succeeds at
        # once, as most rows do, goes without: its own work takes a fifth of a row's.
        if first:
            raise first.pop()
        await listen()

    await _attempts(limits, sink, lane)(again)


def _attempts(limits: Limits, sink: Sink, lane: Lane) -> Any:
    # 25 ms to import, so not before it is needed.
    from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

    backoff = wait_random_exponential(multiplier=FIRST_WAIT, max=8)
    failures = 0

    def stop(state: RetryCallState) -> bool:
        nonlocal failures
        # A rate limit is nobody's failure where calls take turns.
        failures += not lane.comes_again(_error_of(state))
        return failures > limits.retries

    def wait(state: RetryCallState) -> float:
        error = _error_of(state)
        if lane.comes_again(error):
            return 0.0
        asked = error.retry_after if isinstance(error, ProviderError) else None
        return float(backoff(state)) if asked is None else asked

    def tell(state: RetryCallState) -> None:
        if lane.comes_again(_error_of(state)):
            return
        seconds = state.next_action.sleep if state.next_action else 0.0
        sink.notice(
            f"{_headline(_error_of(state))} Trying again in {seconds:.1f} s "
            f"(attempt {failures + 1} of {limits.retries + 1})."
        )

    return AsyncRetrying(
        retry=retry_if_exception(_may_help),
        stop=stop,
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
