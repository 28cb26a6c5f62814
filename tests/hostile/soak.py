"""``python -m tests.hostile.soak``: random faults for many minutes, until something breaks.

Prints the seed, by which ``--seed N`` plays the same again; ``--step K`` begins with that step, and
``--only`` plays that one alone.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time
import traceback
from collections import Counter, deque

from tests import conftest
from tests.hostile import invariants
from tests.hostile.play import play
from tests.hostile.schedule import DISK, Step, drawn
from tests.hostile.world import Broken, World

TREND_MB = 40.0


def main(words: list[str] | None = None) -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="How long.")
    parser.add_argument("--seed", type=int, help="Of the schedule; drawn where none is given.")
    parser.add_argument("--step", type=int, default=0, metavar="K", help="Begin with this step.")
    parser.add_argument("--only", action="store_true", help="Play that step alone.")
    parser.add_argument("--no-redis", action="store_true", help="Without the kernel with Redis.")
    chosen = parser.parse_args(words)
    conftest.pytest_configure()
    # Also then disks are to be given back, and kernels to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.randrange(10**6) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    with World(redis=not chosen.no_redis) as world:
        soak = Soak(world, seed)
        stopped = False
        try:
            end = time.monotonic() + 60 * chosen.minutes
            number = chosen.step
            while time.monotonic() < end:
                soak.step(number)
                number += 1
                if chosen.only:
                    break
            soak.memory_is_bounded()
        except Exception as error:
            soak.report(error)
            return 1
        except KeyboardInterrupt:
            print("\nstopped")
            stopped = True
        soak.table(stopped=stopped)
    return 0


class Soak:
    """A run, and what it prints.

    Args:
        world: Where.
        seed: Of its schedule.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._seed = world, seed
        self._last: deque[Step] = deque(maxlen=20)
        self._steps = 0
        self._looked: Counter[str] = Counter()
        self._began = self._said = time.monotonic()
        self._memory: dict[str, list[float]] = {}

    def step(self, number: int) -> None:
        """Plays one, and looks at all."""
        step = drawn(self._seed, number, redis=self._world.redis is not None)
        self._last.append(step)
        self._looked.update(play(self._world, step))
        self._steps += 1
        for worker in self._world.workers.values():
            self._memory.setdefault(worker.life, []).append(invariants.memory(worker.pid))
        if time.monotonic() - self._said > 60:
            self._said = time.monotonic()
            self.say()

    def say(self) -> None:
        """What was done so far."""
        minutes = (time.monotonic() - self._began) / 60
        counted = self._world.counted
        print(
            f"{minutes:5.1f} min, {self._steps} steps, {len(self._world.provider.served)} requests"
        )
        faults = [
            f"{name} {n}" for name, n in sorted(counted.items()) if not name.startswith("error")
        ]
        print(f"   done: {', '.join(faults)}")
        print(f"   held: {', '.join(f'{name} {n}' for name, n in sorted(self._looked.items()))}")
        for worker in self._world.workers.values():
            now = {} if worker.baseline is None else worker.value("held()")
            more = {
                each: f"{n} (at first {worker.baseline.get(each, 0)})"
                for each, n in now.items()
                if worker.baseline and n != worker.baseline.get(each, 0)
            }
            size = self._memory.get(worker.life, [0.0])[-1]
            print(f"   {worker.life}: {size:.0f} MB, {more or 'as at first'}")
        sys.stdout.flush()

    def memory_is_bounded(self) -> None:
        """The kernel that is never killed has no more in its last quarter than in its second."""
        sizes = self._memory.get(f"{DISK[0]}1", [])
        quarter = len(sizes) // 4
        if quarter < 10:
            return
        before = statistics.median(sizes[quarter : 2 * quarter])
        after = statistics.median(sizes[-quarter:])
        print(f"memory of kernel a: {before:.0f} MB in the second quarter, {after:.0f} in the last")
        if after > before + TREND_MB:
            raise Broken("growth", f"memory grew from {before:.0f} to {after:.0f} MB")

    def report(self, error: Exception) -> None:
        """What broke, and how to play it again."""
        if not isinstance(error, Broken):
            traceback.print_exception(error)
        print(f"\nBROKEN {error}\n")
        print(f"seed {self._seed}, step {self._last[-1].number}; the last steps:")
        for step in self._last:
            print(f"  {step}")
        print("the last requests:")
        for each in self._world.provider.served[-12:]:
            got = each.received
            print(
                f"  {each.kernel} {each.plan or 'plain'} {each.weight}, {got.sent_chunks} chunks,"
                f" finished {got.finished.is_set()}, left {got.closed.is_set()}"
            )
        for name, worker in self._world.workers.items():
            print(f"  {name}: life {worker.lives}, alive {worker.alive}")
        print(
            f"again: python -m tests.hostile.soak --seed {self._seed} --step "
            f"{max(0, self._last[-1].number - 20)}",
            flush=True,
        )

    def table(self, *, stopped: bool) -> None:
        """The end; kernels are in the middle of something where it was stopped."""
        if not stopped:
            self.say()
        print("\nno invariant broken")
        for name, count in sorted(self._world.counted.items()):
            print(f"  {name:32} {count:6}")


if __name__ == "__main__":
    sys.exit(main())
