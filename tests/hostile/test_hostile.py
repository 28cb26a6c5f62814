"""Random faults against the whole line in real kernels, in a short form; long: ``make soak``."""

from collections.abc import Iterator

import pytest

from tests.conftest import redis_kind_found
from tests.hostile.play import play
from tests.hostile.schedule import drawn
from tests.hostile.world import World

pytestmark = pytest.mark.kernel
SEEDS = (1190, 1699)  # Between them they have every kind of fault.
STEPS = 6


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    redis_kind_found("redis")
    with World() as running:
        yield running


@pytest.mark.parametrize("seed", SEEDS)
def test_all_holds_whatever_fails(world: World, seed: int) -> None:
    """By itself: ``python -m tests.hostile.soak --seed N``."""
    for number in range(STEPS):
        step = drawn(seed, number)
        print(step)
        play(world, step)
