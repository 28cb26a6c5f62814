"""Settings of the interpreter while many calls are made: there meanwhile, and gone after."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from llm_magic import turns


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    interval, limits = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*limits)


def test_threads_take_turns_more_often_until_the_last_one_leaves() -> None:
    before = sys.getswitchinterval()

    with turns.quick():
        with turns.quick():
            assert sys.getswitchinterval() == turns.INTERVAL
        assert sys.getswitchinterval() == turns.INTERVAL

    assert sys.getswitchinterval() == before


def test_a_shorter_interval_of_the_users_stays() -> None:
    sys.setswitchinterval(0.0001)

    with turns.quick():
        assert sys.getswitchinterval() == pytest.approx(0.0001, abs=2e-6)


def test_what_somebody_else_sets_meanwhile_stays() -> None:
    with turns.quick():
        sys.setswitchinterval(0.002)

    assert sys.getswitchinterval() == 0.002


def test_garbage_is_looked_for_less_often() -> None:
    gc.set_threshold(700, 10, 10)

    with turns.tidied_seldom():
        assert gc.get_threshold() == (turns.ALLOCATIONS, 10, 10)

    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("limit", [0, 1_000_000])
def test_a_collector_that_is_off_or_slower_stays_so(limit: int) -> None:
    gc.set_threshold(limit, 10, 10)

    with turns.tidied_seldom():
        assert gc.get_threshold()[0] == limit


def test_an_error_leaves_it_as_it_was() -> None:
    before = gc.get_threshold()

    with pytest.raises(ValueError, match="no"), turns.tidied_seldom():
        raise ValueError("no")

    assert gc.get_threshold() == before
