"""Servers and clients in no time: an event loop whose clock jumps, and servers on it."""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from llm_magic.gate import Gate
from tests.load_server import Bucket, span


class Jumping(selectors.SelectSelector):
    """Waits for nothing: the clock goes on instead."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits and nothing is to come")
        self.now += max(0.0, timeout)
        return super().select(0)


def in_no_time(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs a coroutine on a loop whose clock jumps to the next timer."""
    selector = Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    loop._clock_resolution = 1e-9  # type: ignore[attr-defined]

    async def leave() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    try:
        return loop.run_until_complete(main())
    finally:
        loop.run_until_complete(leave())
        loop.close()


@dataclass
class Pretended:
    """A server: what it takes, how long it needs, what it tells.

    Attributes:
        window: Seconds of a fixed window, within which ``burst`` requests are let in; 0: a bucket.
        network: Seconds of each way, on average.
        changes: (second, attribute, value) in order.
    """

    latency: float = 0.02
    spread: float = 0.0
    rate: float = 0.0
    burst: float = 1.0
    window: float = 0.0
    headers: bool = False
    retry_after: str = "ms"
    slots: int = 0
    network: float = 0.0005
    slow_refusals: bool = False
    seed: int = 0
    changes: list[tuple[float, str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.loop = asyncio.get_running_loop()
        self.begun = self.loop.time()
        self.bucket = Bucket(self.rate, self.burst, self.begun)
        self.used, self.opened = 0, self.begun
        self.busy = 0
        self.queue: deque[asyncio.Future[None]] = deque()
        self.admitted = self.rejected = 0
        self.allowed, self.allowed_at = self.burst, self.begun
        for after, name, value in self.changes:
            self.loop.call_later(after, self.change, name, value)

    def change(self, name: str, value: float) -> None:
        self.could()
        setattr(self, name, value)
        self.bucket.fill(self.loop.time())
        self.bucket.rate = self.rate

    def could(self) -> float:
        """Rows that it would have let in so far, had somebody been there all the time."""
        now = self.loop.time()
        self.allowed += (now - self.allowed_at) * self.rate
        self.allowed_at = now
        return self.allowed

    def refusal(self) -> float:
        """Seconds to wait, or 0 if it is let in."""
        now = self.loop.time()
        if self.window:
            if now >= self.opened + self.window:
                self.opened += self.window * math.floor((now - self.opened) / self.window)
                self.used = 0
            if self.used >= self.burst:
                return self.opened + self.window - now
            self.used += 1
        elif self.rate:
            if self.bucket.fill(now) < 1 - 1e-9:
                return (1 - self.bucket.level) / self.rate
            self.bucket.level -= 1
        return 0.0

    def tells(self) -> dict[str, str]:
        if not self.headers:
            return {}
        names = [f"X-RateLimit-{part}-Requests" for part in ("Limit", "Remaining", "Reset")]
        if self.window:
            left = self.opened + self.window - self.loop.time()
            values = [self.burst, self.burst - self.used, span(left)]
        else:
            b = self.bucket
            reset = (self.burst - b.level) / self.rate
            values = [self.burst, max(0, math.floor(b.level + 1e-9)), span(reset)]
        return {
            name: f"{v:.0f}" if isinstance(v, float) else str(v)
            for name, v in zip(names, values, strict=True)
        }

    async def way(self) -> None:
        await asyncio.sleep(self.network * (0.5 + self.random.expovariate(2)))

    def seconds(self) -> float:
        if not self.spread:
            return self.latency
        sigma = math.sqrt(math.log(1 + self.spread**2))
        return self.random.lognormvariate(math.log(self.latency) - sigma**2 / 2, sigma)

    async def ask(self) -> tuple[int, dict[str, str], float | None]:
        """Status, headers, and seconds of a Retry-After."""
        await self.way()
        wait = self.refusal()
        told = self.tells()
        if wait:
            self.rejected += 1
            if self.slow_refusals:
                await asyncio.sleep(self.seconds())
            await self.way()
            asked = {"ms": math.ceil(wait * 1000) / 1000, "s": float(math.ceil(wait))}
            return 429, told, asked.get(self.retry_after)
        self.admitted += 1
        if self.slots and self.busy >= self.slots:
            place = self.loop.create_future()
            self.queue.append(place)
            await place
        else:
            self.busy += 1
        await asyncio.sleep(self.seconds())
        self.busy -= 1
        while self.queue and self.busy < self.slots:
            self.busy += 1
            self.queue.popleft().set_result(None)
        await self.way()
        return 200, told, None


@dataclass
class Outcome:
    """What came of a run."""

    rows: int = 0
    seconds: float = 0.0
    rejected: int = 0
    share: float = 0.0
    most: int = 0
    over: int = 0
    sizes: list[tuple[float, int]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    gate: Any = None

    @property
    def p50(self) -> float:
        return sorted(self.latencies)[len(self.latencies) // 2]

    @property
    def mean(self) -> float:
        return sum(self.latencies) / len(self.latencies)

    @property
    def per_100(self) -> float:
        return 100 * self.rejected / self.rows

    def reached(self, size: int) -> float:
        """Seconds until the window was so large; infinite if never."""
        return min((at for at, each in self.sizes if each >= size), default=math.inf)


def run(
    rows: int,
    workers: int = 300,
    fixed: int | None = None,
    kind: type[Pretended] | None = None,
    **server: Any,
) -> Outcome:
    """So many rows through a gate, each until it is answered."""

    async def main() -> Outcome:
        loop = asyncio.get_running_loop()
        gate, there, out = Gate(), (kind or Pretended)(**server), Outcome()
        out.gate = gate
        begun = loop.time()
        left = iter(range(rows))

        async def row() -> None:
            while True:
                with await gate.turn(fixed) as turn:
                    if not out.sizes or out.sizes[-1][1] != gate.window:
                        out.sizes.append((loop.time() - begun, gate.window))
                    out.over += gate.in_flight > (fixed or gate.window)
                    out.most = max(out.most, gate.in_flight)
                    sent = loop.time()
                    status, headers, retry_after = await there.ask()
                    turn.heard(headers)
                    if status == 200:
                        turn.answered(60)
                        out.latencies.append(loop.time() - sent)
                        out.rows += 1
                        return
                    turn.rejected(retry_after)

        async def worker() -> None:
            for _ in left:
                await row()

        await asyncio.gather(*(worker() for _ in range(workers)))
        out.seconds = loop.time() - begun
        out.rejected = there.rejected
        out.share = out.rows / there.could() if there.rate else 0.0
        assert gate.in_flight == 0
        return out

    return in_no_time(main)
