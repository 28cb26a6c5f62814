"""What fails beside the answers: stores, servers, clocks; and limits that are reached."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.hostile.disks import Lock, flip_bytes
from tests.hostile.ledgers import used
from tests.hostile.provider import STALLS
from tests.hostile.schedule import DISK, Step
from tests.hostile.world import SPAN, World, at

DAYS, HOUR = 3 * 86_400, 3600


@contextmanager
def failing(world: World, step: Step) -> Iterator[None]:
    """A step's fault is there; afterwards all is well again."""
    dice = random.Random(step.seed)
    with ExitStack() as stack:
        if step.limit:
            stack.enter_context(limited(world, step))
        if set(step.plans) & set(STALLS):
            stack.enter_context(impatient(world, step))
        if step.plans:
            world.provider.plan(*step.plans)
            stack.callback(world.provider.forget_plans)
        if step.fault:
            stack.enter_context(FAULTS[step.fault](world, step, dice))
        yield


@contextmanager
def impatient(world: World, step: Step) -> Iterator[None]:
    """Who works in the step waits for no server longer than a second."""
    for seconds in (1.0, 60.0):
        for name in step.kernels:
            worker = world.workers[name]
            if worker.alive:
                worker.calm()
                worker.surely(
                    f"%config LLMMagic.timeout = {seconds}\n"
                    f"%config LLMMagic.stall_timeout = {seconds}"
                )
        if seconds == 1.0:
            yield


@contextmanager
def limited(world: World, step: Step) -> Iterator[None]:
    """So much is left of a limit of the person's."""
    worker = world.workers[step.kernels[0]]
    store = world.store_of(worker.name)
    before, first = used(world, store)[step.limit], len(world.provider.served)
    cap: Any = before + step.room
    if step.limit == "usd":
        cap = f"{cap / 10**9:.9f}"
    line = f"%llm_quota --{step.limit} {{}} --per {SPAN} --scope user"
    worker.surely(line.format(cap))
    try:
        yield
    finally:
        world.limited = step.limit, step.room, world.served(store, first)
        worker.calm()
        worker.surely(line.format("none"))


@contextmanager
def locked(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """Another program writes to the file for a while."""
    lock = Lock(world.cache_file if step.fault == "lock_cache" else world.ledger_file)
    with at(dice.choice([0.1, 0.5, 1.5, 4.0]), lock.release):
        yield


@contextmanager
def full(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """There is no room."""
    pids = [world.workers[name].pid for name in DISK if world.workers[name].alive]
    with world.disks[step.fault.removeprefix("full_")].full(pids):
        yield


@contextmanager
def damaged(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """Bytes of the cache change, or all of it is gone."""
    world.kept["disk"].clear()

    def damage() -> None:
        if step.fault == "delete_cache":
            shutil.rmtree(world.cache_file.parent, ignore_errors=True)
        else:
            world.damaged |= flip_bytes(world.cache_file, dice)

    with at(dice.uniform(0, 0.3), damage):
        yield
    world.kept["disk"].clear()


@contextmanager
def read_only(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """The kernel's cache is on a disk that takes nothing."""
    worker, disk = world.workers[step.kernels[0]], world.disks["spare"]
    (disk.place / "cache").mkdir(mode=0o700, exist_ok=True)
    worker.stop()
    worker._environment["LLM_MAGIC_CACHE_DIR"] = str(disk.place / "cache")
    with disk.read_only():
        worker.begin()
        try:
            yield
        finally:
            worker.stop()
            worker._environment = world.environment(worker.name)
    worker.begin()


@contextmanager
def redis_killed(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """Redis is killed, and begun anew a while later."""
    assert world.redis is not None
    pause = dice.choice([0.0, 0.3, 2.0])

    def kill() -> None:
        assert world.redis is not None
        world.redis.kill()
        time.sleep(pause)
        world.redis.restart()

    with at(dice.uniform(0, 0.4), kill):
        yield


@contextmanager
def redis_frozen(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """Redis does not answer for a while."""
    redis = world.redis
    assert redis is not None
    pause = dice.choice([0.1, 0.6, 2.5])

    def freeze() -> None:
        redis.freeze()
        time.sleep(pause)
        redis.thaw()

    with at(dice.uniform(0, 0.4), freeze):
        yield


@contextmanager
def redis_full(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """Redis has no room."""
    assert world.redis is not None
    with world.redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


@contextmanager
def jumped(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """The kernel's clock is put forward by days, or back by an hour, and stays there."""
    seconds = DAYS if step.fault == "clock_on" else -HOUR
    with at(dice.uniform(0, 0.3), lambda: world.workers[step.kernels[-1]].set_clock(seconds)):
        yield


@contextmanager
def down(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """The provider is gone with all connections, and back a moment later."""
    with at(dice.uniform(0, 0.4), lambda: world.provider.restart(dice.choice([0.0, 0.3, 1.0]))):
        yield


@contextmanager
def refused(world: World, step: Step, dice: random.Random) -> Iterator[None]:
    """The provider takes no connections."""
    with world.provider.refusing():
        yield


Fault = Callable[[World, Step, random.Random], Any]
FAULTS: dict[str, Fault] = {
    "lock_cache": locked,
    "lock_ledger": locked,
    "full_cache": full,
    "full_ledger": full,
    "corrupt_cache": damaged,
    "delete_cache": damaged,
    "read_only": read_only,
    "redis_kill": redis_killed,
    "redis_freeze": redis_frozen,
    "redis_full": redis_full,
    "clock_on": jumped,
    "clock_back": jumped,
    "down": down,
    "down_for_a_while": refused,
}
