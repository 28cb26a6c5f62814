"""What happens in each step, drawn from a seed: the same seed gives the same schedule."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.hostile.provider import HARMLESS, PLANS, STALLS

DISK, TEAM = ("a", "b"), "c"
"""Two kernels with the same folders, of which the first is never killed; one with Redis."""

USES = {
    "cell": 6, "quiet": 2, "whole": 2, "schema": 4, "chat": 4, "bg": 4, "compare": 3, "map": 5,
    "map_schema": 3, "ask": 3, "aask": 2, "again": 3, "both": 3, "look": 1, "cassette": 2,
    "nocache": 2,
}  # fmt: skip
"""Ordinary uses, and how often they come."""
PHASES = ("start", "request", "stream", "end", "later")
STORES = (
    "lock_cache", "lock_ledger", "full_cache", "full_ledger", "corrupt_cache", "delete_cache",
    "read_only",
)  # fmt: skip
REDIS = ("redis_kill", "redis_freeze", "redis_full")
CLOCKS = ("clock_on", "clock_back")
NETS = ("down", "down_for_a_while")
LIMITS = ("requests", "tokens", "usd")


@dataclass(frozen=True)
class Step:
    """What happens at the same time.

    Attributes:
        number: Which step it is.
        kernels: Who works in it.
        use: What they do.
        plans: What becomes of the requests.
        fault: What else fails; empty for nothing.
        stop: ``interrupt`` or ``kill``, of the last of the kernels; or empty.
        phase: When it is stopped.
        limit: What is limited meanwhile; or empty.
        room: How much of it is left.
        seed: For what else is drawn on the way.
    """

    number: int
    kernels: tuple[str, ...]
    use: str
    plans: tuple[str, ...] = ()
    fault: str = ""
    stop: str = ""
    phase: str = ""
    limit: str = ""
    room: int = 0
    seed: int = 0

    def __str__(self) -> str:
        words = [f"{self.number:4}  {self.use} in {'+'.join(self.kernels)}"]
        words += [f"answers {', '.join(self.plans)}"] if self.plans else []
        words += [self.fault] if self.fault else []
        words += [f"{self.stop} at {self.phase}"] if self.stop else []
        words += [f"{self.room} {self.limit} left"] if self.limit else []
        return "; ".join(words)

    @property
    def calm(self) -> bool:
        """Whether every answer must come."""
        return not (self.fault or self.stop or self.limit) and HARMLESS.issuperset(self.plans)


def drawn(seed: int, number: int, *, redis: bool = True) -> Step:
    """One step of the schedule of a seed; known without those before it.

    Args:
        seed: Of the whole schedule.
        number: Which step.
        redis: Whether there is a kernel with Redis.
    """
    dice = random.Random(f"{seed} {number}")
    use = dice.choices(list(USES), list(USES.values()))[0]
    team = redis and use != "both" and dice.random() < 0.35
    kernels: tuple[str, ...] = (TEAM,) if team else (dice.choice(DISK),)
    if use == "both":
        kernels = DISK if dice.random() < 0.5 else DISK[::-1]
    what = dice.choices(
        [
            "calm",
            "net",
            "stop",
            "fault",
            "limit",
            "net and fault",
            "net and stop",
            "fault and stop",
        ],
        [2, 4, 4, 4, 2, 2, 2, 2],
    )[0]
    plans: list[str] = []
    if "net" in what:
        plans = [_plan(dice) for _ in range(dice.choice([1, 1, 1, 2, 3]))]
    fault = _fault(dice, team=team) if "fault" in what else ""
    if "net" in what and not fault and dice.random() < 0.15:
        fault = dice.choice(NETS)
    if fault == "read_only":
        # Its kernel is begun anew, which the first one never is.
        kernels, use = (DISK[1],), "cell" if use == "both" else use
    stop = phase = ""
    if "stop" in what:
        may_die = kernels[-1] != DISK[0]
        stop = dice.choice(["interrupt", "interrupt", "kill"]) if may_die else "interrupt"
        phase = dice.choice(PHASES)
        plans = plans or [dice.choice(["slow", "crawl", "late", "rate_limited"])]
    limit, room = "", 0
    if what == "limit":
        limit = dice.choice(LIMITS)
        room = {
            "requests": dice.randint(0, 8),
            "tokens": dice.randint(200, 60_000),
            "usd": dice.randint(100_000, 100_000_000),
        }[limit]
    return Step(
        number, kernels, use, tuple(plans), fault, stop, phase, limit, room, dice.randrange(2**32)
    )


def _plan(dice: random.Random) -> str:
    name = dice.choice(list(PLANS))
    # A stall takes a second: not as often as what is over at once.
    return dice.choice(list(PLANS)) if name in STALLS and dice.random() < 0.5 else name


def _fault(dice: random.Random, *, team: bool) -> str:
    mine = REDIS if team else STORES
    return dice.choice([*mine, *mine, *CLOCKS])
