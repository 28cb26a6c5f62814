"""How the body of a stream is read: in few turns, and nothing that matters comes later."""

import asyncio
import json
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest

import llm_magic
from llm_magic.errors import LLMError
from llm_magic.pace import paced
from llm_magic.testing import Reply, ScriptedServer

Timed = Sequence[tuple[float, bytes]]


class Hurried(selectors.SelectSelector):
    """Waits for nothing: the clock goes on instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return super().select(0)


class Body:
    """A body whose pieces come at their times, and are kept until they are read."""

    def __init__(self, pieces: Timed) -> None:
        self.pieces = pieces
        self.waits = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        for time, piece in self.pieces:
            if time > clock():
                self.waits += 1
                await asyncio.sleep(time - clock())
            yield piece


def in_no_time(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    selector = Hurried()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    loop._clock_resolution = 1e-9  # type: ignore[attr-defined]
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def read(body: Body) -> list[tuple[float, bytes]]:
    """The pieces as they are handed on, each with its time."""

    async def main() -> list[tuple[float, bytes]]:
        clock = asyncio.get_running_loop().time
        return [(clock(), piece) async for piece in paced(aiter(body))]

    return in_no_time(main)


def regular(count: int, rate: float) -> Timed:
    return [(1 + n / rate, b"piece %d" % n) for n in range(count)]


@pytest.mark.parametrize("rate", [50, 200, 1000])
def test_a_slow_body_is_read_in_few_turns(rate: int) -> None:
    body = Body(regular(10 * rate, rate))

    read(body)

    # Ten seconds of twenty pauses each, and the turns of the first tenth, which has none.
    assert body.waits <= 300 + rate / 10


def test_all_pieces_are_handed_on_in_order() -> None:
    body = Body(regular(500, 200))

    assert [piece for _, piece in read(body)] == [piece for _, piece in body.pieces]


@pytest.mark.parametrize("rate", [20, 200, 2000])
def test_no_piece_is_held_longer_than_a_twentieth_of_the_time_so_far(rate: int) -> None:
    body = Body(regular(5 * rate, rate))

    for (came, _), (handed, _) in zip(body.pieces, read(body), strict=True):
        assert handed - came <= min(0.05, (handed - 1) / 20) + 1e-6


def test_the_first_words_are_not_held_at_all() -> None:
    body = Body(regular(20, 200))

    assert [time for time, _ in read(body)] == pytest.approx([time for time, _ in body.pieces])


def test_what_has_come_already_is_read_without_a_pause() -> None:
    body = Body([(0.0, b"")] * 5000 + [(9.0, b"late")] + [(0.0, b"")] * 5000)

    assert read(body)[5000][0] == pytest.approx(9)
    assert read(body)[-1][0] <= 9.05 + 1e-6


def test_a_fast_body_that_falters_has_no_pause() -> None:
    """The reader may wait for a moment between packets of many tokens each."""
    body = Body([(1 + n / 100, b"") for n in range(200) for _ in range(400)])

    assert read(body)[-1][0] == pytest.approx(body.pieces[-1][0])


@pytest.mark.parametrize(
    "last",
    [
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices": [{"finish_reason": "length", "delta": {}}]}\n\n',
        b"data: [DONE]\n\n",
    ],
)
def test_the_end_is_not_held(last: bytes) -> None:
    end = 11.0
    body = Body([*regular(1000, 100), (end, last), (end + 0.001, b"usage")])

    assert read(body)[-1][0] == pytest.approx(end + 0.001, abs=0.05)
    body = Body([(1.0, b"words"), (end, last), (end + 0.001, b"usage")])
    assert read(body)[-1][0] == pytest.approx(end + 0.001)


def test_a_piece_with_no_reason_to_finish_yet_is_not_the_end() -> None:
    line = b'data: {"choices":[{"delta":{"content":"word"},"finish_reason":null}]}\n\n'
    body = Body([(1 + n / 200, line) for n in range(2000)])

    read(body)

    assert body.waits < 300


def test_an_error_of_the_body_is_handed_on() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"one"
        raise ConnectionError("gone")

    async def main() -> None:
        async for _ in paced(broken()):
            pass

    with pytest.raises(ConnectionError, match="gone"):
        in_no_time(main)


def test_a_pause_ends_when_the_call_is_cancelled() -> None:
    body = Body([(1.0, b"one"), (9.0, b"two"), (99.0, b"three")])

    async def main() -> float:
        loop = asyncio.get_running_loop()

        async def all_of_it() -> None:
            async for _ in paced(aiter(body)):
                pass

        task = loop.create_task(all_of_it())
        await asyncio.sleep(9.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return loop.time()

    assert in_no_time(main) == pytest.approx(9.01)


@pytest.mark.usefixtures("provider")
def test_a_slow_answer_comes_whole(server: ScriptedServer) -> None:
    text = json.dumps([f"ünïcode {n}" for n in range(60)], ensure_ascii=False)
    server.enqueue(Reply(text, tokens_per_second=400))

    assert llm_magic.ask("Hello").text == text


@pytest.mark.usefixtures("provider")
def test_a_slow_answer_that_is_cut_keeps_all_that_came(server: ScriptedServer) -> None:
    text = "word " * 120
    server.enqueue(Reply(text, deltas=["word "] * 120, tokens_per_second=400, fault="end_early"))

    with pytest.raises(LLMError) as caught:
        llm_magic.ask("Hello")

    assert text.startswith(caught.value.text)
    assert len(caught.value.text) == 5 * server.requests[0].sent_chunks
