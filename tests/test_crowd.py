"""Who of a run's rows may hold something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llm_magic.crowd import Crowd


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(10):
            await main()

    asyncio.run(in_time())


async def settled() -> None:
    """Lets everybody run who can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_no_more_are_inside_than_may_be() -> None:
    async def main() -> None:
        crowd = Crowd(lambda: 2)
        entering = [asyncio.create_task(crowd.enter()) for _ in range(4)]
        await settled()
        assert [each.done() for each in entering] == [True, True, False, False]

        crowd.leave()
        await settled()

        assert [each.done() for each in entering] == [True, True, True, False]
        crowd.open()
        await settled()
        assert entering[3].done()

    run(main)


def test_more_enter_where_there_is_more_room() -> None:
    async def main() -> None:
        room = 1
        crowd = Crowd(lambda: room)
        entering = [asyncio.create_task(crowd.enter()) for _ in range(5)]
        await settled()
        assert sum(each.done() for each in entering) == 1

        room = 4
        crowd.leave()
        await settled()

        assert sum(each.done() for each in entering) == 5

    run(main)


def test_one_that_was_cancelled_at_the_door_takes_nobodys_place() -> None:
    async def main() -> None:
        crowd = Crowd(lambda: 1)
        await crowd.enter()
        first, second = (asyncio.create_task(crowd.enter()) for _ in range(2))
        await settled()
        first.cancel()
        await settled()

        crowd.leave()
        await settled()

        assert second.done()

    run(main)


def test_the_last_one_that_is_refused_need_not_wait() -> None:
    async def main() -> None:
        crowd = Crowd(lambda: 9)
        one, other = crowd.begin(), crowd.begin()
        waiting = asyncio.create_task(crowd.refused(one))
        await settled()
        assert not waiting.done()

        assert await crowd.refused(other) is False

        crowd.open()
        assert await waiting is True

    run(main)


def test_one_that_ends_lets_those_who_were_refused_try_again() -> None:
    async def main() -> None:
        crowd = Crowd(lambda: 9)
        crowd.begin()
        refused = [asyncio.create_task(crowd.refused(crowd.begin())) for _ in range(3)]
        await settled()

        crowd.ended()
        await settled()

        # Mostly it gives back more than one needs; not so much that all should try.
        assert [each.done() for each in refused] == [True, True, False]
        assert [await each for each in refused[:2]] == [True, True]
        refused[2].cancel()

    run(main)


def test_who_was_refused_before_another_ended_tries_again_at_once() -> None:
    async def main() -> None:
        crowd = Crowd(lambda: 9)
        since = crowd.begin()
        crowd.begin()
        crowd.ended()

        assert await crowd.refused(since) is True

    run(main)


def test_one_that_is_woken_counts_until_it_has_tried() -> None:
    """Else the next that is refused would take itself for the last one."""

    async def main() -> None:
        crowd = Crowd(lambda: 9)
        crowd.begin()

        async def twice() -> None:
            await crowd.refused(crowd.begin())
            crowd.begin()

        woken = asyncio.create_task(twice())
        await settled()
        crowd.ended()

        # It has not run yet.
        other = asyncio.create_task(crowd.refused(crowd.begin()))
        await settled()

        assert woken.done()
        assert not other.done()
        other.cancel()

    run(main)


@pytest.mark.parametrize("when", ["waiting", "woken"])
def test_one_that_is_cancelled_leaves_no_count_behind(when: str) -> None:
    async def main() -> None:
        crowd = Crowd(lambda: 9)
        crowd.begin()
        waiting = asyncio.create_task(crowd.refused(crowd.begin()))
        await settled()
        if when == "woken":
            crowd.ended()
            crowd.begin()
        waiting.cancel()
        await settled()
        crowd.ended()

        # Nobody is left.
        assert await crowd.refused(crowd.begin()) is False

    run(main)
