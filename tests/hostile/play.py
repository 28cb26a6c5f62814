"""A step: what is done, what fails meanwhile, and what must hold afterwards."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.hostile import invariants
from tests.hostile.faults import failing
from tests.hostile.kernels import Died, Hung, Worker
from tests.hostile.schedule import DISK, Step
from tests.hostile.uses import Desk
from tests.hostile.world import Broken, Result, Stopper, World

KILLED_ROWS = 64
"""Calls that a killed kernel can have booked and not sent: those that a run holds at once."""
CUT = 2
"""Calls of an interrupted cell that can be booked and not sent: those of a comparison."""
WARM_UP = """
rows = [{"q": f"q-warm-WORD-{n}"} for n in range(30)]
get_ipython().run_cell_magic("llm_map", "rows out << --quiet", "{{ q }}")
get_ipython().run_cell_magic("llm", "out << --compare m,n --quiet", "Question q-warm-WORD")
get_ipython().run_cell_magic("llm", "out << --schema Item", "Question q-warm-WORD #json")
get_ipython().run_cell_magic("llm", "out << --bg", "Question q-warm-WORD-bg")
out.result()
get_ipython().run_line_magic("config", "LLMMagic.timeout = 60.0")
get_ipython().run_line_magic("llm_usage", "")
get_ipython().run_line_magic("llm_quota", "")
get_ipython().run_line_magic("llm_cache", "list")
del out, rows
"""


def warm(world: World, worker: Worker) -> None:
    """Has a new kernel do once what it will do often, and counts what it has then."""
    shown = worker.run(WARM_UP.replace("WORD", worker.life))
    if shown.of("error"):
        raise Broken("next cell", f"{worker.life}: {shown.of('error')}")
    invariants.nothing_grows(worker)


def play(world: World, step: Step) -> list[str]:
    """Plays a step, and looks that all holds.

    Returns:
        The names of what was looked at.

    Raises:
        Broken: Something does not hold.
    """
    for worker in world.workers.values():
        if worker.baseline is None:
            warm(world, worker)
    first = len(world.provider.served)
    workers = [world.workers[name] for name in step.kernels]
    try:
        with failing(world, step), stopping(world, step):
            if len(workers) == 1:
                results = [Desk(world, workers[0], step).run()]
            else:
                with ThreadPoolExecutor(len(workers)) as pool:
                    results = list(pool.map(lambda each: Desk(world, each, step).run(), workers))
        count(world, step, results)
        return look(world, step, results, first)
    except Hung as error:
        raise Broken("next cell", f"a cell of {error}") from None
    except Died as error:
        raise Broken("next cell", f"kernel {error} died") from None


@contextmanager
def stopping(world: World, step: Step) -> Iterator[None]:
    """Somebody stops a kernel, if the step says so; it runs again at the end."""
    if not step.stop:
        yield
        return
    worker = world.workers[step.kernels[-1]]
    stopper = Stopper(world, worker, step.stop, step.phase, random.Random(f"{step.seed} stop"))
    stopper.start()
    try:
        yield
    finally:
        stopper.over.set()
        stopper.join()
        if stopper.done:
            many = step.stop == "kill" or step.use == "map"
            world.stopped[world.store_of(worker.name)] += KILLED_ROWS if many else CUT
        if stopper.done and step.stop == "kill":
            worker.restart()


def count(world: World, step: Step, results: list[Result]) -> None:
    """Takes down what happened."""
    world.counted.update([step.use, *step.plans])
    world.counted.update(
        each for each in (step.fault, step.limit and f"limit {step.limit}") if each
    )
    if step.stop:
        world.counted[f"{step.stop} at {step.phase}"] += 1
    for result in results:
        world.counted.update(f"error {name}" for name, _ in result.errors)


def look(world: World, step: Step, results: list[Result], first: int) -> list[str]:
    """Looks at each invariant; gives their names."""
    workers = [world.workers[name] for name in step.kernels]
    for result, name in zip(results, step.kernels, strict=True):
        if result.died and not (step.stop == "kill" and name == step.kernels[-1]):
            raise Broken("next cell", f"kernel {result.life} died")
    invariants.provider_is_idle(world)
    invariants.answers_are_right(world, step, results)
    invariants.errors_are_ours(step, results)
    invariants.conversations_are_whole(world, first)
    invariants.asked_once(world, step, first)
    for worker in workers:
        invariants.next_cell_works(world, worker)
    invariants.nothing_is_held(world)
    invariants.limits_hold(world)
    invariants.ledgers_are_true(world)
    invariants.keep(world, step, results)
    invariants.cache_is_right(world)
    invariants.no_secret_is_seen(world)
    for worker in workers:
        if worker.baseline is not None:
            invariants.nothing_grows(worker)
    if world.damaged or step.fault == "delete_cache":
        # What a user does who is told of it; what it had is gone.
        shutil.rmtree(world.cache_file.parent, ignore_errors=True)
        world.kept["disk"].clear()
        world.damaged = False
        for name in DISK:
            invariants.next_cell_works(world, world.workers[name])
    return ["answers", "limits", "holds", "secrets", "growth", "next cell"]
