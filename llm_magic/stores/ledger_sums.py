"""What counts in a window of time, kept as running sums.

A sum is that of the rows with t > floor. To look at a window moves its floor forward and takes off
only the rows that left, so that a hold costs the same with a hundred rows in the window and with a
hundred thousand. A sum that is not there, or that nobody looked at for a whole window, is made
anew from the rows; dropping one is therefore never wrong.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterator
from typing import NamedTuple

from llm_magic.ledger import Amount, Metric, Scope

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
KEEP = 400 * DAY
"""Rows older than this are removed."""

_BEGINNING = -(2**62)

_BETWEEN: dict[Scope, str] = {
    "kernel": """SELECT coalesce(sum(requests), 0), coalesce(sum(tokens), 0),
        coalesce(sum(nanos), 0) FROM calls WHERE kernel = ? AND t > ? AND t <= ?""",
    "user": """SELECT coalesce(sum(requests), 0), coalesce(sum(tokens), 0),
        coalesce(sum(nanos), 0) FROM calls WHERE user = ? AND t > ? AND t <= ?""",
}
_KEPT = """SELECT coalesce(sum(requests), 0), coalesce(sum(tokens), 0), coalesce(sum(nanos), 0)
    FROM kept JOIN calls USING (n) WHERE scope = ? AND name = ? AND t > ? AND t <= ?"""
_IN_ORDER: dict[Scope, str] = {
    "kernel": """SELECT n, t, requests, tokens, nanos FROM calls
        WHERE kernel = ? AND t > ? ORDER BY t""",
    "user": """SELECT n, t, requests, tokens, nanos FROM calls
        WHERE user = ? AND t > ? ORDER BY t""",
}


class Window(NamedTuple):
    """A stretch of time up to now, over the rows of a kernel or of a person.

    Attributes:
        scope: Whose rows.
        name: The kernel's id, or the person's name.
        length: Nanoseconds; 0 is without end.
    """

    scope: Scope
    name: str
    length: int


def length(seconds: float | None) -> int:
    """A limit's window in nanoseconds; 0 for None."""
    return 0 if seconds is None else max(1, round(seconds * SECOND))


def seconds(moment: int) -> float:
    """Unix seconds, never before that moment: a float is coarser than a nanosecond."""
    found = moment / SECOND
    up, down = found.as_integer_ratio()
    return math.nextafter(found, math.inf) if up * SECOND < moment * down else found


def day(moment: int) -> str:
    """The local day of a moment, as ``2026-11-24``."""
    return time.strftime("%Y-%m-%d", time.localtime(moment // SECOND))


def newest(db: sqlite3.Connection) -> int:
    """The latest moment that the file knows of, in nanoseconds: before it, time does not go."""
    row = db.execute(
        """SELECT coalesce((SELECT t FROM calls ORDER BY n DESC LIMIT 1), ?1),
            coalesce((SELECT max(t) + 1 FROM forgiven), ?1)""",
        (_BEGINNING,),
    ).fetchone()
    return int(max(row))


def used(db: sqlite3.Connection, window: Window, now: int, *, store: bool) -> Amount:
    """What counts in a window.

    Args:
        db: A connection, within a transaction.
        window: The window.
        now: Its end, in nanoseconds.
        store: Whether to keep the moved sum; only in a transaction that writes.
    """
    pardon = _pardon(db, window)
    floor = max(_start(window, now), pardon)
    row = db.execute(
        """SELECT floor, requests, tokens, nanos FROM sums
        WHERE scope = ? AND name = ? AND length = ?""",
        window,
    ).fetchone()
    # A floor that lies ahead was set by a clock that has been set back since.
    if row is None or floor < row[0] or 0 < window.length < floor - row[0]:
        total = _between(db, window, floor, 2**62)
    else:
        left = _between(db, window, row[0], floor) if floor > row[0] else Amount()
        total = plus(Amount(*row[1:]), left, -1)
    if store:
        db.execute(
            "INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*window, floor, total.requests, total.tokens, total.nanos),
        )
    if pardon > _BEGINNING:
        kept = db.execute(_KEPT, (*window[:2], _start(window, now), pardon)).fetchone()
        total = plus(total, Amount(*kept))
    return total


def add(db: sqlite3.Connection, kernel: str, user: str, t: int, change: Amount) -> None:
    """Applies a row's change to every sum in which the row is."""
    if change != Amount():
        db.execute(
            """UPDATE sums SET requests = requests + ?, tokens = tokens + ?, nanos = nanos + ?
            WHERE floor < ? AND ((scope = 'kernel' AND name = ?) OR (scope = 'user' AND name = ?))
            """,
            (change.requests, change.tokens, change.nanos, t, kernel, user),
        )


def fits_at(
    db: sqlite3.Connection, window: Window, metric: Metric, now: int, excess: int
) -> int | None:
    """When so much will have left a window, in nanoseconds; None where it never will.

    Args:
        db: A connection, within a transaction.
        window: The window.
        metric: What is counted.
        now: The window's end.
        excess: How much of it has to leave.
    """
    if window.length:
        for t, amount in _rows(db, window, now):
            excess -= amount.of(metric)
            if excess <= 0:
                return t + window.length
    return None


def forgive(db: sqlite3.Connection, scope: Scope, name: str, now: int) -> None:
    """Lets only what comes after now count, and what is still open."""
    whole = (scope, name)
    db.execute("INSERT OR REPLACE INTO forgiven VALUES (?, ?, ?)", (*whole, now))
    db.execute("DELETE FROM kept WHERE scope = ? AND name = ?", whole)
    db.execute(
        """INSERT INTO kept SELECT ?1, ?2, n FROM calls WHERE state IN ('held', 'sent')
        AND CASE ?1 WHEN 'kernel' THEN kernel ELSE user END = ?2""",
        whole,
    )


def tidy(db: sqlite3.Connection, now: int) -> None:
    """Removes what no limit and no listing needs any more.

    Args:
        db: A connection, within a transaction that writes.
        now: The present, in nanoseconds.
    """
    db.execute("DELETE FROM sums WHERE length > 0 AND floor < ? - length", (now - DAY,))
    # Kernels come and go. One that is only idle finds its sums made anew, and stays forgiven.
    db.execute(
        """DELETE FROM sums WHERE scope = 'kernel' AND NOT EXISTS
        (SELECT 1 FROM calls WHERE kernel = name AND t > ?)""",
        (now - 30 * DAY,),
    )
    db.execute(
        """DELETE FROM forgiven WHERE scope = 'kernel' AND t < ? AND NOT EXISTS
        (SELECT 1 FROM calls WHERE kernel = name)""",
        (now - 30 * DAY,),
    )
    db.execute(
        """DELETE FROM kept WHERE NOT EXISTS
        (SELECT 1 FROM forgiven AS f WHERE f.scope = kept.scope AND f.name = kept.name)"""
    )
    # A row goes only after it has left every sum: a sum could not take it off any more.
    until = db.execute("SELECT min(floor) FROM sums WHERE length > 0").fetchone()[0]
    until = now - KEEP if until is None else min(until, now - KEEP)
    oldest = db.execute("SELECT t FROM calls ORDER BY n LIMIT 1").fetchone()
    if oldest is not None and oldest[0] <= until:
        db.execute(
            """DELETE FROM calls WHERE t <= ? AND state NOT IN ('held', 'sent')
            AND n < (SELECT max(n) FROM calls)""",
            (until,),
        )
        db.execute("DELETE FROM hits WHERE day < ?", (day(now - KEEP),))


def plus(one: Amount, other: Amount, sign: int = 1) -> Amount:
    """One amount and another (times ``sign``)."""
    return Amount(
        one.requests + sign * other.requests,
        one.tokens + sign * other.tokens,
        one.nanos + sign * other.nanos,
    )


def _start(window: Window, now: int) -> int:
    return now - window.length if window.length else _BEGINNING


def _pardon(db: sqlite3.Connection, window: Window) -> int:
    row = db.execute("SELECT t FROM forgiven WHERE scope = ? AND name = ?", window[:2]).fetchone()
    return _BEGINNING if row is None else int(row[0])


def _between(db: sqlite3.Connection, window: Window, after: int, until: int) -> Amount:
    return Amount(*db.execute(_BETWEEN[window.scope], (window.name, after, until)).fetchone())


def _rows(db: sqlite3.Connection, window: Window, now: int) -> Iterator[tuple[int, Amount]]:
    """The rows that count in a window, the oldest first."""
    pardon = _pardon(db, window)
    kept = {n for (n,) in db.execute("SELECT n FROM kept WHERE scope = ? AND name = ?", window[:2])}
    for n, t, *amount in db.execute(_IN_ORDER[window.scope], (window.name, _start(window, now))):
        if t > pardon or n in kept:
            yield t, Amount(*amount)
