"""Running sums of what counts, and the windows of time that they are for.

A sum is that of the rows with t > floor. Here is what keeps sums and rows in step; how a window is
looked at, which moves its floor, is in ``ledger_counts``.
"""

from __future__ import annotations

import math
import sqlite3
import time
from typing import NamedTuple

from llm_magic.ledger import Amount, Scope

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
KEEP = 400 * DAY
"""Rows older than this are removed."""

BEGINNING = -(2**62)
"""Before all time, in nanoseconds."""


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
        """SELECT coalesce((SELECT t FROM calls ORDER BY n DESC LIMIT 1), ?),
            coalesce((SELECT max(t) + 1 FROM forgiven), ?)""",
        (BEGINNING, BEGINNING),
    ).fetchone()
    return int(max(row))


def add(db: sqlite3.Connection, kernel: str, user: str, t: int, change: Amount) -> None:
    """Applies a row's change to every sum in which the row is."""
    if change != Amount():
        db.execute(
            """UPDATE sums SET requests = requests + ?, tokens = tokens + ?, nanos = nanos + ?
            WHERE floor < ? AND ((scope = 'kernel' AND name = ?) OR (scope = 'user' AND name = ?))
            """,
            (change.requests, change.tokens, change.nanos, t, kernel, user),
        )


def forgive(db: sqlite3.Connection, scope: Scope, name: str, now: int) -> None:
    """Lets only what comes after now count, and what is still open."""
    whole = (scope, name)
    db.execute("INSERT OR REPLACE INTO forgiven VALUES (?, ?, ?)", (*whole, now))
    db.execute("DELETE FROM kept WHERE scope = ? AND name = ?", whole)
    db.execute(
        """INSERT INTO kept SELECT ?, ?, n FROM calls WHERE state IN ('held', 'sent')
        AND CASE ? WHEN 'kernel' THEN kernel ELSE user END = ?""",
        whole * 2,
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
