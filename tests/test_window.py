"""How many at a time a server gets that turns nobody away."""

import pytest

from llm_magic.window import FIRST, MOST
from tests.pretend import run


@pytest.mark.parametrize(
    ("slots", "latency", "spread"),
    [
        (16, 0.1, 0.0),
        (16, 0.1, 0.3),
        (16, 0.1, 0.5),
        (16, 0.02, 0.3),
        (64, 0.1, 0.3),
        (16, 1.0, 0.3),
    ],
)
def test_a_server_that_queues_is_busy_and_not_drowned(slots, latency, spread):
    rows = 200 * slots
    found = run(rows, slots=slots, latency=latency, spread=spread)
    assert rows * latency / slots / found.seconds >= 0.95
    assert found.mean <= 3 * latency
    assert found.p50 <= 3 * latency


def test_few_slots_do_not_keep_a_long_queue():
    found = run(800, slots=4, latency=0.1, spread=0.3)
    last = found.latencies[len(found.latencies) // 2 :]
    assert sum(last) / len(last) <= 0.2


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_a_server_without_a_limit_gets_all_that_there_is(spread):
    """After a short ramp it is as fast as 128 at a time, and then faster."""
    found = run(5000, workers=MOST, latency=0.02, spread=spread)
    fixed = run(5000, workers=MOST, latency=0.02, spread=spread, fixed=128)
    assert found.seconds <= fixed.seconds
    assert found.reached(128) < 0.25
    assert found.most == MOST


def test_begins_with_few():
    found = run(1000, latency=0.1)
    assert found.sizes[0] == (0.0, FIRST)
    assert found.sizes[1][1] <= 2 * FIRST


def test_never_more_at_a_time_than_the_window():
    assert run(3000, slots=16, latency=0.05, spread=0.5).over == 0


def test_slots_that_become_fewer_are_noticed():
    found = run(3000, slots=32, latency=0.1, spread=0.2, changes=[(4, "slots", 4)])
    assert found.gate.window <= 16


def test_slots_that_become_more_are_noticed():
    found = run(4000, slots=4, latency=0.1, spread=0.2, changes=[(10, "slots", 64)])
    assert found.gate.window >= 48


def test_rows_that_take_longer_are_no_queue():
    """The answers of another part of the table are ten times as long, and there is room for all."""
    found = run(6000, latency=0.05, spread=0.3, changes=[(1, "latency", 0.5)])
    assert found.gate.window >= 128


def test_a_known_rate_opens_the_window_in_one_step():
    found = run(1000, workers=600, latency=0.5, rate=300, burst=60, headers=True)
    assert found.reached(200) < 1.1


def test_a_known_rate_does_not_drown_a_slower_server():
    """It says 300 a second and manages 160."""
    found = run(3000, slots=16, latency=0.1, spread=0.3, rate=300, burst=60, headers=True)
    assert 3000 * 0.1 / 16 / found.seconds >= 0.95
    assert found.p50 <= 0.3


def test_rows_too_few_to_fill_it_say_nothing():
    found = run(400, workers=5, latency=0.05, spread=0.3)
    assert found.gate.window == FIRST


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100])
def test_any_number_of_rows_ends(rows):
    found = run(rows, latency=0.1, spread=0.5)
    assert found.rows == rows
