"""What counts in windows of time, for the claims of one transaction.

To look at a window moves its sum's floor forward and takes off only the rows that left, so that a
hold costs the same with a hundred rows in the window and with a hundred thousand. A sum that is
not there, or that nobody looked at for a whole window, is made anew from the rows; dropping one is
therefore never wrong. What is granted is added here, and is written once for all claims.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Full, Limit, Metric, Scope
from llm_magic.stores import ledger_rows as rows
from llm_magic.stores import ledger_sums as sums
from llm_magic.stores import many
from llm_magic.stores.ledger_rows import Who

# One statement, whatever the number of windows: a statement costs a wait for the interpreter.
_STATE = """WITH looked (scope, name, length) AS (VALUES #)
    SELECT 'now', '', 0, max(?1, coalesce((SELECT t FROM calls ORDER BY n DESC LIMIT 1), ?1),
        coalesce((SELECT max(t) + 1 FROM forgiven), ?1)), 0, 0, 0
    UNION ALL SELECT 'limit', metric, length, cap, 0, 0, 0 FROM limits WHERE user = ?3
    UNION ALL SELECT 'pardon', scope, 0, t, 0, 0, 0 FROM forgiven
        WHERE (scope, name) IN (VALUES ('kernel', ?2), ('user', ?3))
    UNION ALL SELECT 'sum', scope, length, floor, requests, tokens, nanos FROM sums
        WHERE (scope, name, length) IN (SELECT * FROM looked
            UNION ALL SELECT 'user', user, length FROM limits WHERE user = ?3)"""
_TOTAL = """coalesce(sum(requests), 0), coalesce(sum(tokens), 0), coalesce(sum(nanos), 0)
    FROM """
_BETWEEN: dict[Scope, str] = {
    "kernel": "SELECT ?, " + _TOTAL + "calls WHERE kernel = ? AND t > ? AND t <= ?",
    "user": "SELECT ?, " + _TOTAL + "calls WHERE user = ? AND t > ? AND t <= ?",
}
_KEPT = (
    "SELECT ?, "
    + _TOTAL
    + """kept JOIN calls USING (n)
    WHERE scope = ? AND name = ? AND t > ? AND t <= ?"""
)
_IN_ORDER: dict[Scope, str] = {
    "kernel": """SELECT t, n, requests, tokens, nanos FROM calls
        WHERE kernel = ? AND (t, n) > (?, ?) ORDER BY t, n LIMIT ?""",
    "user": """SELECT t, n, requests, tokens, nanos FROM calls
        WHERE user = ? AND (t, n) > (?, ?) ORDER BY t, n LIMIT ?""",
}
KNOWN: frozenset[Scope] = frozenset({"kernel", "user"})
"""The scopes that one file can count."""
_READ_AT_ONCE = 64
_OPEN = "SELECT n FROM kept WHERE scope = ? AND name = ?"
_STORE = """WITH new (scope, name, length, floor, requests, tokens, nanos) AS (VALUES #)
    INSERT OR REPLACE INTO sums SELECT * FROM new WHERE scope IS NOT NULL"""


class _Sum(NamedTuple):
    """A window's sum from now on, and what of the forgiven is still open."""

    floor: int
    total: Amount
    open: Amount

    def used(self, metric: Metric) -> int:
        """The number that a limit of this metric counts."""
        return self.total.of(metric) + self.open.of(metric)


class Counts:
    """What counts now against limits.

    Args:
        db: A connection, within a transaction.
        who: Whose rows are counted.
        limits: Those that are asked for; the person's own come behind them.
        clock: The time in nanoseconds.

    Attributes:
        now: The present: the clock's, unless the file knows of a later moment.
        limits: All limits.

    Raises:
        StoreError: A limit is of a scope that a file cannot count.
    """

    def __init__(
        self, db: sqlite3.Connection, who: Who, limits: Sequence[Limit], clock: int
    ) -> None:
        if other := next((each.scope for each in limits if each.scope not in KNOWN), None):
            raise unknown(other)
        self._db = db
        self._who = who
        self._asked = limits
        self._taken = Amount()
        self._leaving: dict[sums.Window, _Leaving] = {}
        self.now = clock
        self._pardons: dict[str, int] = {}
        persons: list[tuple[Metric, int, int]] = []
        stored: dict[tuple[str, int], tuple[int, Amount]] = {}
        wanted: list[Sequence[Any]] = [self._window(limit) for limit in limits]
        for kind, name, length, number, *amounts in many.run(
            db, _STATE, wanted or [(None, None, None)], clock, who.kernel, who.user
        ):
            match kind:
                case "now":
                    self.now = int(number)
                case "pardon":
                    self._pardons[name] = int(number)
                case "sum":
                    stored[name, length] = number, Amount(*amounts)
                case "limit":
                    persons.append((name, length, number))
        own = [rows.person_limit(*each) for each in sorted(set(persons))]
        self.limits = (*limits, *own)
        self._sums = self._looked_at(stored)
        self._found = [
            (each, window, self._sums[window].used(each.metric))
            for each in self.limits
            for window in (self._window(each),)
        ]

    def used(self) -> list[tuple[Limit, int]]:
        """What counts against each limit."""
        return [(limit, used) for limit, _, used in self._found]

    def take(self, amount: Amount) -> None:
        """Counts what was granted, until it is a row."""
        self._taken = sums.plus(self._taken, rows.kept(amount))

    def anew(self) -> Counts:
        """The same, after rows were changed."""
        fresh = Counts(self._db, self._who, self._asked, self.now)
        fresh._taken = self._taken
        return fresh

    def full(self, asked: Amount) -> Full | None:
        """The limit in the way that frees last, if any is."""
        last: Full | None = None
        for limit, window, before in self._found:
            used, ask = before + self._taken.of(limit.metric), asked.of(limit.metric)
            excess = used + ask - limit.cap
            if excess <= 0:
                continue
            at = self._fits_at(window, limit.metric, excess) if ask <= limit.cap else None
            if last is None or at is None or (last.retry_at or 0.0) < sums.seconds(at):
                last = Full(limit, used, ask, None if at is None else sums.seconds(at))
            if at is None:
                break
        return last

    def store(self) -> None:
        """Keeps the moved sums, without what was taken; in a transaction that writes."""
        self._leaving.clear()
        moved = [
            (*window, each.floor, each.total.requests, each.total.tokens, each.total.nanos)
            for window, each in self._sums.items()
        ]
        many.run(self._db, _STORE, moved)

    def _window(self, limit: Limit) -> sums.Window:
        name = self._who.kernel if limit.scope == "kernel" else self._who.user
        return sums.Window(limit.scope, name, sums.length(limit.window))

    def _looked_at(
        self, stored: Mapping[tuple[str, int], tuple[int, Amount]]
    ) -> dict[sums.Window, _Sum]:
        """The sum of each window, with its floor where it now has to be."""
        windows = list(dict.fromkeys(map(self._window, self.limits)))
        floors: list[int] = []
        known: list[tuple[Amount, int]] = []
        asked: list[tuple[Any, ...]] = []
        for number, window in enumerate(windows):
            start, pardon = self._start(window), self._pardon(window)
            floor = max(start, pardon)
            before, total = stored.get((window.scope, window.length), (None, Amount()))
            # A floor that lies ahead was set by a clock that has been set back since.
            if before is None or floor < before or 0 < window.length < floor - before:
                known.append((Amount(), 1))
                asked.append((_BETWEEN[window.scope], number, window.name, floor, 2**62))
            else:
                known.append((total, -1))
                if floor > before:
                    asked.append((_BETWEEN[window.scope], number, window.name, before, floor))
            if pardon > sums.BEGINNING:
                asked.append((_KEPT, ~number, *window[:2], start, pardon))
            floors.append(floor)
        found = self._totals(asked)
        return {
            window: _Sum(
                floors[number],
                sums.plus(known[number][0], found.get(number, Amount()), known[number][1]),
                found.get(~number, Amount()),
            )
            for number, window in enumerate(windows)
        }

    def _totals(self, asked: Sequence[Sequence[Any]]) -> dict[int, Amount]:
        """What rows come to, by number, from a query and its parameters each."""
        if not asked:
            return {}
        whole = " UNION ALL ".join(query for query, *_ in asked)
        found = self._db.execute(whole, [value for _, *values in asked for value in values])
        return {number: Amount(*amounts) for number, *amounts in found.fetchall()}

    def _fits_at(self, window: sums.Window, metric: Metric, excess: int) -> int | None:
        """When so much will have left a window, in nanoseconds; None where it never will."""
        if not window.length:
            return None
        if window not in self._leaving:
            self._leaving[window] = _Leaving(self._in_order(window))
        # What was taken in this transaction is the last to leave.
        moment = self._leaving[window].when(metric, excess)
        return (self.now if moment is None else moment) + window.length

    def _in_order(self, window: sums.Window) -> Iterator[tuple[int, Amount]]:
        """The rows that count in a window, the oldest first."""
        pardon, start = self._pardon(window), self._start(window)
        open_ = {n for (n,) in self._db.execute(_OPEN, window[:2])} if pardon > start else set()
        last = (start, 2**62)
        # In pages: a statement that is not read to its end keeps this connection at what was there
        # when it began, and then nothing can be written any more.
        while page := self._db.execute(
            _IN_ORDER[window.scope], (window.name, *last, _READ_AT_ONCE)
        ).fetchall():
            for t, n, *amount in page:
                if t > pardon or n in open_:
                    yield t, Amount(*amount)
            last = page[-1][:2]

    def _start(self, window: sums.Window) -> int:
        return self.now - window.length if window.length else sums.BEGINNING

    def _pardon(self, window: sums.Window) -> int:
        return self._pardons.get(window.scope, sums.BEGINNING)


def unknown(scope: Scope) -> StoreError:
    """The error of a limit that this file cannot keep."""
    return StoreError(
        f"A ledger on disk cannot keep a limit of a {scope}: it does not see what others use. "
        "Nothing was sent.",
        fix='Name a Redis server that all use: %config LLMMagic.store = "redis://HOST:6379/0"',
    )


class _Leaving:
    """When rows leave a window, read as far as was asked: a refusal costs no more for many."""

    def __init__(self, found: Iterator[tuple[int, Amount]]) -> None:
        self._rows = found
        self._times: list[int] = []
        self._sums: dict[Metric, list[int]] = {name: [] for name in get_args(Metric)}

    def when(self, metric: Metric, excess: int) -> int | None:
        """The time of the row with which so much has left; None where there is none."""
        ours = self._sums[metric]
        while not ours or ours[-1] < excess:
            row = next(self._rows, None)
            if row is None:
                return None
            self._times.append(row[0])
            for name, each in self._sums.items():
                each.append((each[-1] if each else 0) + row[1].of(name))
        return self._times[bisect_left(ours, excess)]
