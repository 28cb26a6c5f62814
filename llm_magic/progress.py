"""How far a run over rows is, what it would come to, and what came of it: data and its words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from llm_magic.types import Usage
from llm_magic.units import usd

PREVIEW_ROWS = 5
"""So many of the first rows are shown."""
NO_CAP = "no cap on the answers"
"""Said instead of what it can come to."""
_TEN, _MINUTE, _HOUR = 10, 60, 3600


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run is: a snapshot.

    Attributes:
        total: Rows; None for an iterator.
        done: Those finished: answered, found, copied from an equal row, or failed.
        cached: Found in the cache.
        equal: Equal to an earlier row.
        failed: Without an answer.
        asked: Answered by the server.
        cost: USD so far; None where the price is not known.
        projected: USD for all rows, expected; None where that is not known.
        budget: The most that the run may come to, in USD; None without a limit.
        tokens: Of all answers so far.
        seconds: Since the run began.
        per_second: Rows lately.
        left: Seconds, expected; None where that is not known.
        window: Requests at once.
        limit: Requests a second that the server allows, where that is known.
        notice: Something to tell while waiting, such as a hold by the server's rate limit.
        problem: The last error.
        names: Columns of the rows below.
        rows: The first rows as they arrive, at most ``PREVIEW_ROWS``, as short texts.
    """

    total: int | None
    done: int = 0
    cached: int = 0
    equal: int = 0
    failed: int = 0
    asked: int = 0
    cost: Decimal | None = None
    projected: Decimal | None = None
    budget: Decimal | None = None
    tokens: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    per_second: float = 0.0
    left: float | None = None
    window: int = 0
    limit: float | None = None
    notice: str = ""
    problem: str = ""
    names: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def share(self) -> float | None:
        """What part of the rows is done, from 0 to 1; None where nobody knows how many there are.

        Of no rows at all it is 1.
        """
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0

    def line(self) -> str:
        """All of it in one line, what matters most first: the end may be cut off on screen."""
        parts = [
            row_count(self.done) if self.total is None else f"{self.done:,} of {self.total:,}",
            _count(self.failed, "failed"),
            self.notice or self._time(),
            self.money(),
            self._rate(),
            _count(self.window, "at once"),
            _count(self.cached, "cached"),
            _count(self.equal, "equal"),
        ]
        return " · ".join(filter(None, parts))

    def money(self) -> str:
        """The cost so far, of what is allowed, and what is expected; empty where there is none."""
        if self.cost is None:
            return f"{self.tokens}, {usd(None)}" if self.asked else ""
        if not self.cost and not self.budget:
            return "free" if self.asked else ""
        allowed = f" of {usd(self.budget)}" if self.budget is not None else ""
        more = self.projected and self.done != self.total
        return f"{usd(self.cost)}{allowed}" + (
            f", about {usd(self.projected)} in all" if more else ""
        )

    def _time(self) -> str:
        if self.left is None or self.done == self.total:
            return duration(self.seconds)
        # Never none: it is not over.
        return f"{duration(max(1, math.ceil(self.left)))} left"

    def _rate(self) -> str:
        if not self.per_second:
            return ""
        rate = f"{_rate(self.per_second)} rows/s"
        return rate + (f" (limit {_rate(self.limit)}/s)" if self.limit else "")


@dataclass(frozen=True)
class Plan:
    """What a run would do, before it does.

    Attributes:
        rows: How many; None for an iterator.
        equal: Rows that are equal to an earlier one, of all of them.
        cached: Rows whose answers are kept, of all of them.
        looked_at: Rows that ``equal`` and ``cached`` are known of. Where it is fewer than all, the
            two are what that comes to for all, and are called so.
        worst: The most that it can come to, in USD; None where a price is not known.
        worst_tokens: The same in tokens.
        expected: USD; None where nothing is known to expect it from.
        expected_from: What it is expected from, such as ``"20 answers in the cache"``.
        prompts: The first one or two, as they would be sent.
        budget: The most that it may come to, in USD; None without a limit.
        model: Its name.
        room: Requests that your limits leave; None for any number.
    """

    rows: int | None
    equal: int = 0
    cached: int = 0
    looked_at: int = 0
    worst: Decimal | None = None
    worst_tokens: int | None = None
    expected: Decimal | None = None
    expected_from: str = ""
    prompts: tuple[str, ...] = ()
    budget: Decimal | None = None
    model: str = ""
    room: int | None = None

    @property
    def to_ask(self) -> int | None:
        """Rows that would be asked; None where nobody knows how many rows there are."""
        return None if self.rows is None else max(0, self.rows - self.equal - self.cached)

    def counted(self, count: int) -> str:
        """A number of rows, called about where not all were looked at."""
        about = count and self.rows is not None and self.looked_at < self.rows
        return f"about {count:,}" if about else f"{count:,}"

    def line(self) -> str:
        """One line: the rows, and what they would come to."""
        if self.rows is None or self.to_ask is None:
            return " · ".join(filter(None, [self.model, "rows not counted"]))
        parts = [self.model, row_count(self.rows)]
        parts += [
            f"{self.counted(count)} {what}"
            for count, what in ((self.equal, "equal"), (self.cached, "cached"))
            if count
        ]
        # Where none is left out, it says nothing new.
        if self.to_ask != self.rows:
            parts.append(f"{self.counted(self.to_ask)} to ask")
        if self.expected:
            parts.append(f"expected {usd(self.expected)}")
        return " · ".join(filter(None, [*parts, self._at_most(), self.short()]))

    def _at_most(self) -> str:
        if self.worst == 0:
            return "free"
        if self.worst is not None:
            return f"at most {usd(self.worst)}"
        if self.worst_tokens is not None:
            return f"at most {self.worst_tokens:,} tokens, {usd(None)}"
        return NO_CAP

    def short(self) -> str:
        """That a limit is not enough, where it is to be expected; else empty."""
        return "; ".join(filter(None, [self._short_of_money(), self._short_of_room()]))

    def _short_of_money(self) -> str:
        if self.budget is None or self.expected is None or self.expected <= self.budget:
            return ""
        told = f"the limit of {usd(self.budget)} ends it early"
        if self.to_ask is None:
            return told
        asked = int(self.to_ask * self.budget / self.expected)
        return f"{told}, after about {asked:,} of {self.to_ask:,} asked"

    def _short_of_room(self) -> str:
        if self.room is None or self.to_ask is None or self.to_ask <= self.room:
            return ""
        left = f"{self.room:,} request{'' if self.room == 1 else 's'}"
        return f"%llm_quota leaves {left} for {self.to_ask:,} rows"


@dataclass(frozen=True)
class Summary:
    """What came of a run. Why it is not whole is said by the error or the warning that follows.

    Attributes:
        headline: One line: rows, where their answers came from, cost, time.
        errors: Each message once, how many rows have it, and the numbers of the first of them.
        names: Columns of the rows below.
        rows: The first rows, as short texts.
    """

    headline: str
    errors: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    names: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class ProgressView(Protocol):
    """Draws one run. All calls come from the cell's thread."""

    def start(self, label: str, plan: Plan | None, stop: Callable[[], None]) -> None:
        """The first rows are on their way.

        Args:
            label: Names the model, or the run.
            plan: What it would come to, where that was found out.
            stop: Ends the run; may be called from any thread, for a button.
        """

    def draw(self, standing: Standing) -> float:
        """Shows how far it is; returns the seconds to leave before the next call."""

    def finish(self, standing: Standing, summary: Summary) -> None:
        """The form that is saved. Called exactly once, also without a start."""


def duration(seconds: float) -> str:
    """A time that something takes: ``0.4 s``, ``38 s``, ``4 min 10 s``, ``1 h 5 min``."""
    whole = round(seconds)
    if whole < _TEN:
        return f"{round(seconds, 1):g} s"
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def row_count(count: int) -> str:
    """``1 row``, ``50,000 rows``."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}" if a_second >= _TEN else f"{a_second:.2g}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" if count else ""
