"""The gate as its users meet it: turns in order, none lost, none leaked."""

import asyncio

import pytest

from llm_magic.errors import RateLimited
from llm_magic.gate import Gate
from llm_magic.lane import Lane
from llm_magic.retry import persist
from llm_magic.watch import Limits
from llm_magic.window import FIRST
from tests.pretend import in_no_time, run


class Deaf:
    """Hears no notice."""

    def notice(self, message):
        pass


def limited(gate, rate=10.0):
    """A gate that has learnt a rate."""
    gate._pacer._learnt.rate = rate
    gate._pacer._learnt._stride = 0.0


async def settle():
    """Lets everybody run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


def waiting(gate, count, log, fixed=None):
    """So many that wait for a turn, and say so when they have it."""

    async def one(number):
        turn = await gate.turn(fixed)
        log.append(number)
        return turn

    return [asyncio.ensure_future(one(number)) for number in range(count)]


def test_first_come_first_served():
    async def main():
        gate, log = Gate(), []
        tasks = waiting(gate, 30, log)
        for task in tasks:
            (await task).leave()
        return log

    assert in_no_time(main) == list(range(30))


def test_no_more_than_the_window_at_a_time():
    async def main():
        gate, log = Gate(), []
        tasks = waiting(gate, 30, log)
        await settle()
        begun = len(log)
        for task in tasks:
            (await task).leave()
        return begun, gate.in_flight

    assert in_no_time(main) == (FIRST, 0)


def test_one_that_is_cancelled_while_it_waits_leaves_the_line():
    async def main():
        gate, log = Gate(), []
        tasks = waiting(gate, FIRST + 5, log)
        await settle()
        for task in tasks[FIRST : FIRST + 4]:
            task.cancel()
        await settle()
        (await tasks[0]).leave()
        await tasks[-1]
        return log[-1], gate.in_flight

    assert in_no_time(main) == (FIRST + 4, FIRST)


def test_a_turn_that_comes_with_the_cancellation_goes_to_the_next():
    async def main():
        gate, log = Gate(), []
        tasks = waiting(gate, FIRST + 2, log)
        await settle()
        # In one and the same turn of the loop.
        tasks[0].result().leave()
        tasks[FIRST].cancel()
        await settle()
        return log, gate.in_flight

    log, in_flight = in_no_time(main)
    assert FIRST not in log
    assert FIRST + 1 in log
    assert in_flight == FIRST


def test_all_cancelled_while_the_rate_makes_them_wait():
    async def main():
        gate, log = Gate(), []
        limited(gate, 1.0)
        tasks = waiting(gate, 20, log)
        await asyncio.sleep(2.5)
        for task in tasks:
            task.cancel()
        for task in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(task, asyncio.CancelledError):
                task.leave()
        (await gate.turn()).leave()
        return gate.in_flight

    assert in_no_time(main) == 0


def test_a_turn_that_is_left_twice_is_left_once():
    async def main():
        gate = Gate()
        one, _other = await gate.turn(), await gate.turn()
        one.leave()
        one.leave()
        return gate.in_flight

    assert in_no_time(main) == 1


def test_a_block_that_fails_leaves_its_turn():
    async def main():
        gate = Gate()
        turn = await gate.turn()
        with pytest.raises(ZeroDivisionError), turn:
            _ = 1 / 0
        return gate.in_flight

    assert in_no_time(main) == 0


def test_a_number_of_ones_own_is_kept_to():
    found = run(500, fixed=3, latency=0.05, spread=0.5)
    assert found.most == 3
    assert found.over == 0


def test_a_number_of_ones_own_beside_the_window():
    """Neither waits for the other, and neither takes the other's places."""

    async def main():
        gate, own, others = Gate(), [], []
        first = waiting(gate, 20, own, fixed=3)
        second = waiting(gate, 20, others)
        await settle()
        counts = len(own), len(others)
        for task in first + second:
            task.cancel()
        return counts

    assert in_no_time(main) == (3, FIRST)


def test_two_runs_take_turns():
    """The second does not wait until the first has no more rows."""

    async def main():
        gate, done = Gate(), []

        async def rows(name):
            for _ in range(50):
                with await gate.turn() as turn:
                    await asyncio.sleep(0.1)
                    turn.answered()
                done.append(name)

        await asyncio.gather(*(rows(name) for name in "aabb" for _ in range(10)))
        return done

    done = in_no_time(main)
    assert abs(done[: len(done) // 2].count("a") - len(done) // 4) < 50


def test_what_one_run_has_learnt_the_next_one_knows():
    async def main():
        gate = Gate()
        for _ in range(3):
            with await gate.turn() as turn:
                turn.heard(
                    {
                        "x-ratelimit-limit-requests": "10",
                        "x-ratelimit-remaining-requests": "0",
                        "x-ratelimit-reset-requests": "10s",
                    }
                )
        return gate.rate

    assert in_no_time(main) == pytest.approx(1, rel=0.2)


def test_a_pause_that_the_server_asks_for_holds_everybody():
    async def main():
        loop = asyncio.get_running_loop()
        gate, begun = Gate(), loop.time()
        turn = await gate.turn()
        turn.rejected(7.0)
        turn.leave()
        held = gate.held_until - begun

        async def one(fixed):
            with await gate.turn(fixed):
                return loop.time() - begun

        return held, await asyncio.gather(one(None), one(None), one(4))

    held, times = in_no_time(main)
    assert held == pytest.approx(7)
    assert min(times) >= 7


def test_waiting_costs_nothing():
    """Nobody looks again and again whether it may go: the loop sleeps between two requests."""

    async def main():
        loop = asyncio.get_running_loop()
        gate, turns = Gate(), 0
        limited(gate)

        once = loop._run_once

        def counted():
            nonlocal turns
            turns += 1
            once()

        loop._run_once = counted
        tasks = waiting(gate, 8, [])
        await asyncio.gather(*tasks)
        return turns

    assert in_no_time(main) < 60


@pytest.mark.parametrize("headers", [True, False])
def test_a_clock_that_stands_still(headers):
    """Some give the same time for a while; nothing is divided by it."""

    async def main():
        gate = Gate(clock=lambda: 5.0)
        for number in range(FIRST):
            turn = await gate.turn()
            if headers:
                turn.heard(
                    {
                        "x-ratelimit-limit-requests": "100",
                        "x-ratelimit-remaining-requests": str(50 - number),
                        "x-ratelimit-reset-requests": "1s",
                    }
                )
            turn.answered(10)
            turn.leave()
        turn = await gate.turn()
        turn.rejected(0.0)
        turn.leave()
        return gate.in_flight, gate.rate, gate.window

    in_flight, rate, window = in_no_time(main)
    assert in_flight == 0
    assert rate > 0
    assert window >= 1


def rejected_forever(**error):
    """How long a call goes on at a server that turns everything away, and what ends it."""

    async def main():
        loop = asyncio.get_running_loop()
        gate, begun, asked = Gate(), loop.time(), 0
        failure = RateLimited("Too many requests.", status=429, retryable=True, **error)

        async def call():
            async def once():
                nonlocal asked
                await lane.enter()
                asked += 1
                lane.failed(failure)
                raise failure

            async with Lane(gate, None) as lane:
                await persist(once, Limits(5, 5, 2), Deaf(), lane)

        ends = await asyncio.gather(*(call() for _ in range(20)), return_exceptions=True)
        return ends, loop.time() - begun, asked, gate.in_flight

    return in_no_time(main)


@pytest.mark.parametrize("retry_after", [None, 0.01, 1.0, 20.0])
def test_a_server_that_turns_all_away_ends_the_run(retry_after):
    ends, seconds, asked, in_flight = rejected_forever(retry_after=retry_after)
    assert all(isinstance(end, RateLimited) for end in ends)
    assert 100 < seconds < 400
    assert in_flight == 0
    # While the limit holds, it is not asked again and again.
    assert asked < 20 * 120


def test_a_longer_pause_than_anybody_waits_for_ends_it_at_once():
    ends, seconds, asked, _ = rejected_forever(retry_after=3600.0)
    assert all(isinstance(end, RateLimited) for end in ends)
    assert seconds < 1
    assert asked <= 20


def test_a_server_that_was_stuck_in_the_morning_is_tried_again():
    async def main():
        gate = Gate()
        for _ in range(40):
            turn = await gate.turn()
            turn.rejected(5.0)
            turn.leave()
        stuck = gate.stuck()
        await asyncio.sleep(3600)
        turn = await gate.turn()
        turn.rejected(5.0)
        return stuck, gate.stuck()

    assert in_no_time(main) == (True, False)


def test_one_success_and_it_is_not_stuck():
    async def main():
        gate = Gate()
        for _ in range(40):
            turn = await gate.turn()
            turn.rejected(5.0)
            turn.leave()
        turn = await gate.turn()
        turn.answered()
        return gate.stuck()

    assert in_no_time(main) is False


def test_the_work_for_a_request_does_not_grow_with_those_that_wait():
    """Counted in calls, not in time."""

    def calls(count):
        counted = 0

        async def main():
            gate = Gate()
            limited(gate, 1000.0)
            real = gate._pacer.delay

            def delay(now):
                nonlocal counted
                counted += 1
                return real(now)

            gate._pacer.delay = delay
            tasks = waiting(gate, count, [], fixed=count)
            for task in tasks:
                (await task).leave()

        in_no_time(main)
        return counted / count

    assert calls(2000) < 2 * calls(100) + 1


def test_a_server_that_was_closed_for_a_minute_is_as_fast_afterwards():
    """It let nothing in for a while; that is no slow rate."""
    server = {"rate": 300, "burst": 60, "latency": 0.05, "spread": 0.3, "retry_after": "none"}
    closed = run(6000, **server, changes=[(5, "rate", 1e-9), (65, "rate", 300.0)])
    # The last pause may be half a minute.
    assert closed.seconds < 60 + 30 + 1.3 * 6000 / 300
