"""One flight: who joins, who leaves, and what everybody hears."""

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

import pytest

from llm_magic.decode import Piece
from llm_magic.errors import StreamBroken
from llm_magic.flight import Flights, Sink
from llm_magic.types import Response, Usage

ANSWER = Response("one two", Usage(3, 2), "m", "stop", cost=Decimal("0.5"))


class Listener:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.notices: list[str] = []
        self.partial: Response | None = None

    def piece(self, piece: Piece) -> None:
        self.words.append(piece.text)

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def stopped(self, response: Response) -> None:
        self.partial = response


class Pilot:
    """Makes calls that go on when they are told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = asyncio.Event()
        self.halfway = asyncio.Event()
        self.cancelled = False
        self.fault: Exception | None = None

    async def fly(self, sink: Sink) -> Response:
        self.calls += 1
        sink.piece(Piece("text", "one"))
        self.halfway.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            sink.stopped(Response("one", Usage(), "m", "interrupted"))
            raise
        if self.fault:
            raise self.fault
        sink.piece(Piece("text", " two"))
        return ANSWER


def run(check: Callable[[Flights, Pilot], Coroutine[Any, Any, None]]) -> None:
    async def prepared() -> None:
        flights = Flights()
        await asyncio.wait_for(check(flights, Pilot()), 10)
        await asyncio.sleep(0)
        assert not flights._open, "a flight that is over is still listed"

    asyncio.run(prepared())


def started(flights: Flights, pilot: Pilot, sink: Sink, key: str = "k") -> asyncio.Task[Response]:
    return asyncio.create_task(flights.share(key, pilot.fly, sink))


def test_equal_calls_are_one_and_only_the_first_pays() -> None:
    async def check(flights: Flights, pilot: Pilot) -> None:
        sinks = [Listener() for _ in range(5)]
        first = started(flights, pilot, sinks[0])
        await pilot.halfway.wait()
        others = [started(flights, pilot, sink) for sink in sinks[1:]]
        await asyncio.sleep(0)
        pilot.go.set()

        paid, *free = await asyncio.gather(first, *others)

        assert pilot.calls == 1
        assert paid is ANSWER
        for each in free:
            assert (each.text, each.cached, each.cost) == ("one two", True, Decimal(0))
            assert each.saved == Decimal("0.5")
        # Who came late has missed nothing.
        assert all("".join(sink.words) == "one two" for sink in sinks)

    run(check)


def test_other_keys_fly_by_themselves() -> None:
    async def check(flights: Flights, pilot: Pilot) -> None:
        pilot.go.set()
        await asyncio.gather(*(started(flights, pilot, Listener(), key) for key in "abc"))
        assert pilot.calls == 3

    run(check)


def test_after_it_has_landed_the_next_one_flies() -> None:
    async def check(flights: Flights, pilot: Pilot) -> None:
        pilot.go.set()
        await started(flights, pilot, Listener())
        second = await started(flights, pilot, Listener())
        assert pilot.calls == 2
        assert not second.cached

    run(check)


def test_the_first_may_leave_and_the_call_goes_on() -> None:
    async def check(flights: Flights, pilot: Pilot) -> None:
        gone, stays = Listener(), Listener()
        first = started(flights, pilot, gone)
        await pilot.halfway.wait()
        second = started(flights, pilot, stays)
        await asyncio.sleep(0)

        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        pilot.go.set()
        response = await second

        assert not pilot.cancelled
        assert pilot.calls == 1
        assert response.text == "one two"
        assert gone.partial is not None
        assert gone.partial.text == "one"
        assert "".join(gone.words) == "one"

    run(check)


def test_the_last_to_leave_ends_it() -> None:
    async def check(flights: Flights, pilot: Pilot) -> None:
        sinks = Listener(), Listener()
        calls = [started(flights, pilot, sink) for sink in sinks]
        await pilot.halfway.wait()
        for call in calls:
            call.cancel()
        for call in calls:
            with pytest.raises(asyncio.CancelledError):
                await call

        assert pilot.cancelled
        assert all(sink.partial and sink.partial.text == "one" for sink in sinks)

    run(check)


def test_who_comes_while_the_last_leaves_flies_anew() -> None:
    async def check(flights: Flights, pilot: Pilot) -> None:
        first = started(flights, pilot, Listener())
        await pilot.halfway.wait()
        first.cancel()
        # Its task has not yet seen the cancellation.
        late = started(flights, pilot, Listener())
        await asyncio.wait([first])
        pilot.go.set()

        assert (await late).text == "one two"
        assert pilot.calls in (1, 2)

    run(check)


def test_an_error_reaches_everyone_as_its_own() -> None:
    async def check(flights: Flights, pilot: Pilot) -> None:
        pilot.fault = StreamBroken("It broke.", fix="Run it again.", text="one", attempts=1)
        calls = [started(flights, pilot, Listener()) for _ in range(3)]
        await pilot.halfway.wait()
        pilot.go.set()
        errors = await asyncio.gather(*calls, return_exceptions=True)

        assert pilot.calls == 1
        assert [str(error) for error in errors] == ["It broke.\nRun it again."] * 3
        assert len({id(error) for error in errors}) == 3
        assert all(error.text == "one" for error in errors if isinstance(error, StreamBroken))

    run(check)


def test_notices_reach_everyone() -> None:
    async def check(flights: Flights, pilot: Pilot) -> None:
        async def fly(sink: Sink) -> Response:
            await pilot.go.wait()
            sink.notice("Trying again.")
            return ANSWER

        sinks = [Listener() for _ in range(3)]
        calls = [asyncio.create_task(flights.share("k", fly, sink)) for sink in sinks]
        await asyncio.sleep(0)
        pilot.go.set()
        await asyncio.gather(*calls)
        assert [sink.notices for sink in sinks] == [["Trying again."]] * 3

    run(check)
