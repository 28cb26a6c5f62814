"""What came of each row of a run, and how far the run is. Filled on the session's loop."""

from __future__ import annotations

import re
import time
from array import array
from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from llm_magic.bounds import Purse
from llm_magic.columns import Column, columns_for
from llm_magic.errors import LLMError
from llm_magic.gate import Gate
from llm_magic.ledger import dollars
from llm_magic.progress import Standing
from llm_magic.types import Response, Usage

if TYPE_CHECKING:
    from llm_magic.structured import Schema
    from llm_magic.table import Source

SHOWN_ROWS = 5
"""Rows that are shown while the others come."""
_SHOWN_CHARACTERS = 60
_LATELY = 5.0
# Of a row: not part of the run, not done, and so on.
_OTHER, _OPEN, _ANSWERED, _FAILED, _EQUAL = range(5)
# What differs between rows with one and the same fault: the value that did not fit.
_DETAIL = re.compile(r" \(got .*?\)(?=[.;,)]|$)|(?<=position )[\d,]+", re.DOTALL)


@dataclass
class Fault:
    """What went wrong with some of the rows.

    Attributes:
        message: With the first of them.
        rows: Their numbers.
    """

    message: str
    rows: array[int] = field(default_factory=lambda: array("q"))


class Outcome:
    """The columns of a run, and its counts.

    Args:
        source: The rows.
        schema: What an answer must be; None for prose.

    Attributes:
        ended: Why the run ended before all rows were done; None where it did not.
        last: Why a row failed, of the last one that did; None where none has.
        to_ask: Rows that are not in the cache, as far as was looked; None where nobody did.
        asked: Rows that the server answered.
        cached: Rows whose answer was there.
        equals: Rows that have the answer of an equal one.
    """

    def __init__(self, source: Source, schema: Schema | None) -> None:
        self._source = source
        self._columns = columns_for(schema)
        self._error = Column.of("string")
        self._cached = Column.of("boolean", missing=False)
        self._cost = Column.of("Float64")
        self._state = bytearray()
        self._twins = array("q")
        self._purse = Purse()
        self._gate: Gate | None = None
        self._counts = [0] * 5
        self.asked = self.cached = self.equals = self._unpriced = 0
        self._tokens_in = self._tokens_out = self._spent = 0
        self._faults: dict[str, Fault] = {}
        self._problem = ""
        self.ended: LLMError | None = None
        self.last: LLMError | None = None
        self.to_ask: int | None = None
        self._began, self._lasted = time.monotonic(), 0.0
        self._lately: deque[tuple[float, int, int]] = deque()
        # Done, asked and cached when the run began: more than none where rows are asked again.
        self._before = (0, 0, 0)
        # Number, given cells and answer of the rows that are shown, by number.
        self._first: list[tuple[int, dict[str, str], list[str]]] = []

    def begin(self, gate: Gate, purse: Purse, places: Sequence[int] | None) -> None:
        """A run begins; the rows that it is about, by number, are open again.

        Args:
            gate: Where its rows wait.
            purse: What they spend.
            places: The rows; None for all.
        """
        self._spent += self._purse.spent
        self._gate, self._purse = gate, purse
        self._faults, self._problem, self._twins = {}, "", array("q")
        self.ended = None
        self._began = time.monotonic()
        self._lately.clear()
        for place in places or ():
            self.pulled(place)
        self._before = (self.rows - self.open, self.asked, self.cached)

    def pulled(self, place: int) -> None:
        """A row belongs to the run, and is not done."""
        self._mark(place, _OPEN)

    def answered(self, place: int, response: Response, row: Mapping[str, Any] | None) -> None:
        """A row has its answer."""
        self._columns.put(place, response.value)
        if response.cached:
            self.cached += 1
        else:
            self.asked += 1
            self._tokens_in += response.usage.input_tokens
            self._tokens_out += response.usage.output_tokens
            self._unpriced += response.cost is None
        self._fill(place, cached=response.cached, cost=response.cost)
        self._mark(place, _ANSWERED)
        if row is not None and (self.wants_rows or place < self._first[-1][0]):
            self._show(place, row)

    def failed(self, place: int, error: LLMError) -> None:
        """A row has none, and why."""
        message = _headline(error)
        self.last = error
        self._blame(place, message)
        self._problem = message
        self._columns.clear(place)
        self._fill(place, message, cost=getattr(error, "cost", None))
        self._mark(place, _FAILED)

    def _blame(self, place: int, message: str) -> None:
        self._faults.setdefault(_DETAIL.sub("", message), Fault(message)).rows.append(place)

    def equal(self, place: int, first: int) -> None:
        """A row is the same question as an earlier one."""
        self._twins.extend((place, first))
        self._mark(place, _EQUAL)

    @property
    def wants_rows(self) -> bool:
        """Whether more rows are to be shown."""
        return len(self._first) < SHOWN_ROWS

    def _fill(
        self, place: int, error: str | None = None, *, cached: bool = False, cost: Any = None
    ) -> None:
        self._error.set(place, error)
        self._cached.set(place, cached)
        self._cost.set(place, None if cost is None else float(cost))

    def _mark(self, place: int, state: int) -> None:
        if (more := place + 1 - len(self._state)) > 0:
            self._state.extend(bytes(more))
            self._counts[_OTHER] += more
        self._counts[self._state[place]] -= 1
        self._counts[state] += 1
        self._state[place] = state

    def _show(self, place: int, row: Mapping[str, Any]) -> None:
        given = {n: _short(value) for n, value in row.items() if n not in self._columns.names}
        values = self._columns.get(place)
        answer = [_short(values.get(name)) for name in self._columns.names]
        # Not as they arrive: what is saved is the same each time.
        insort(self._first, (place, given, answer), key=lambda each: each[0])
        del self._first[SHOWN_ROWS:]

    def close(self, places: Sequence[int] | None) -> None:
        """The run is over: equal rows get their answers, those that were not asked are marked."""
        self._lasted += time.monotonic() - self._began
        for twin in range(0, len(self._twins), 2):
            self._copy(self._twins[twin], self._twins[twin + 1])
        if places is None:
            for place in range(len(self._state), self._source.count or 0):
                self.pulled(place)
        why = f"not sent: {_headline(self.ended) if self.ended else 'the run was stopped'}"
        for place, state in enumerate(self._state):
            if state == _OPEN:
                self._fill(place, why)

    def _copy(self, place: int, first: int) -> None:
        state = self._state[first]
        self._mark(place, state)
        if state == _ANSWERED:
            self._columns.copy(place, first)
            self._fill(place, cached=True, cost=0)
            self.equals += 1
        elif state == _FAILED:
            self._columns.clear(place)
            message = str(self._error.get(first))
            self._fill(place, message, cost=0)
            self._blame(place, message)

    def missing(self) -> list[int]:
        """The rows that have no answer."""
        return [place for place, state in enumerate(self._state) if state in (_OPEN, _FAILED)]

    def frame(self, places: Sequence[int] | None) -> Any:
        """The table with its new columns.

        Args:
            places: The rows of it, by number; None for all.
        """
        count = self._source.count
        count = len(self._state) if count is None else count
        columns = {name: self._columns.column(name) for name in self._columns.names}
        own = {"_error": self._error, "_cached": self._cached, "_cost": self._cost}
        return self._source.frame({**columns, **own}, count, places)

    @property
    def rows(self) -> int:
        """Rows of the run so far."""
        return len(self._state) - self._counts[_OTHER]

    @property
    def open(self) -> int:
        """Rows that are not done."""
        return self._counts[_OPEN]

    @property
    def failures(self) -> int:
        """Rows that have no answer though they were asked."""
        return self._counts[_FAILED]

    @property
    def usage(self) -> Usage:
        """Tokens of the rows that the server answered."""
        return Usage(self._tokens_in, self._tokens_out)

    @property
    def cost(self) -> Decimal | None:
        """USD, failed rows included; None where a price is not known."""
        return None if self._unpriced else dollars(self._spent + self._purse.spent)

    @property
    def seconds(self) -> float:
        """How long the runs took."""
        return self._lasted

    @property
    def faults(self) -> list[Fault]:
        """What went wrong, the commonest first."""
        return sorted(self._faults.values(), key=lambda fault: -len(fault.rows))

    def standing(self, total: int | None, notice: str = "") -> Standing:
        """How far the run is.

        Args:
            total: Rows in all; None where nobody knows.
            notice: Something to tell meanwhile.
        """
        now = time.monotonic()
        done_before, asked_before, cached_before = self._before
        done = self.rows - self.open - done_before
        rate, asking = self._rates(now, done)
        left = None if total is None else max(0, total - done)
        to_ask = self._still_to_ask(left, asking / rate if rate else 1.0)
        gate = self._gate
        names, rows = self.shown()
        return Standing(
            total=total,
            done=done,
            cached=self.cached - cached_before,
            equal=len(self._twins) // 2,
            failed=self.failures,
            asked=self.asked - asked_before,
            cost=self.cost,
            projected=self._projected(to_ask),
            budget=self._purse.cap,
            tokens=self.usage,
            seconds=now - self._began,
            per_second=rate,
            left=_seconds(to_ask, asking) if to_ask else _seconds(left, rate),
            window=gate.window if gate else 0,
            limit=gate.rate if gate else None,
            notice=notice,
            problem=self._problem,
            names=names,
            rows=rows,
        )

    def shown(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        """Names and short texts of the first rows."""
        first = self._first
        if not first:
            return (), ()
        # One column of the input says which row it is; the longest mostly is the text.
        said = {
            name: sum(len(given.get(name, "")) for _, given, _ in first) for name in first[0][1]
        }
        label = [max(said, key=lambda name: said[name])] if said else []
        rows = tuple(
            (*(given.get(name, "") for name in label), *answer) for _, given, answer in first
        )
        return (*label, *self._columns.names), rows

    def _rates(self, now: float, done: int) -> tuple[float, float]:
        """Rows a second in the last seconds: all, and those that the server was asked."""
        tried = self.asked - self._before[1] + self.failures
        self._lately.append((now, done, tried))
        while now - self._lately[0][0] > _LATELY:
            self._lately.popleft()
        # Since the beginning, while there is no more than that.
        since, *before = self._lately[0] if len(self._lately) > 4 else (self._began, 0, 0)
        if now <= since:
            return 0.0, 0.0
        return (done - before[0]) / (now - since), (tried - before[1]) / (now - since)

    def _still_to_ask(self, left: int | None, share: float) -> float | None:
        """How many of the rows left the server is to be asked, as far as can be told.

        Rows in the cache mostly come first, and say nothing of the time and the cost of the rest.
        """
        if left is None:
            return None
        looked = (self.to_ask or 0) - self.asked - self.failures
        return min(looked, left) if looked > 0 else left * share

    def _projected(self, to_ask: float | None) -> Decimal | None:
        """USD for all rows, if those to be asked are as those that were."""
        cost, tried = self.cost, self.asked + self.failures
        if cost is None or to_ask is None or not tried:
            return None
        return cost + cost / tried * Decimal(to_ask)


def _seconds(rows: float | None, rate: float) -> float | None:
    return rows / rate if rows is not None and rate else None


def _headline(error: LLMError) -> str:
    words = " ".join(str(error.args[0] if error.args else error).split())
    # Of a row's error nobody has more than its words.
    return words.replace("; what came is in sys.last_value.text", "")


def _short(value: Any) -> str:
    if value is None or isinstance(value, bytes):
        return ""
    try:
        words = str(value)
    except Exception:  # noqa: BLE001
        # Whatever an object of the notebook raises, or a file that cannot be read.
        return ""
    # Not all of a long text is looked at.
    text = " ".join(words[: 10 * _SHOWN_CHARACTERS].split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
