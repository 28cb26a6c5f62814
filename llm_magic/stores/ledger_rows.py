"""The rows of a ledger: one for each call, and one for a day's free answers of a cell.

Functions of a connection within a transaction. Each keeps the running sums in step with the row
that it changes, so that nobody else has to think of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, get_args

from llm_magic.ledger import Amount, Claim, Line, Metric, Used
from llm_magic.stores import ledger_sums as sums

_MOST = 2**50
"""Of what is kept in one row, so that no sum can overflow SQLite's 64 bits."""

_BY_ID = """SELECT n, t, user, kernel, state, owner, lease, requests, tokens, nanos
    FROM calls WHERE id = ?"""
_OPEN = """SELECT n, t, user, kernel, state, owner, lease, requests, tokens, nanos
    FROM calls WHERE state IN ('held', 'sent')"""
_NEW = """INSERT INTO calls
    (id, t, user, kernel, state, key, owner, lease, requests, tokens, nanos, model, cell)
    VALUES (?, ?, ?, ?, 'held', ?, ?, ?, ?, ?, ?, ?, ?)"""
_CALLS = """SELECT CASE ?1 WHEN 'model' THEN model WHEN 'cell' THEN cell
        ELSE date(t / 1000000000, 'unixepoch', 'localtime') END AS name,
    sum(requests), sum(input_tokens), sum(output_tokens), sum(cached_tokens), sum(nanos),
    sum(CASE WHEN priced THEN 0 ELSE requests END), 0, 0, 0
    FROM calls WHERE user = ?2 AND (?3 IS NULL OR kernel = ?3) AND state IN ('done', 'lost')
    GROUP BY 1"""
_HITS = """SELECT CASE ?1 WHEN 'model' THEN model WHEN 'cell' THEN cell ELSE day END AS name,
    0, 0, 0, 0, 0, 0, sum(hits), sum(tokens), sum(nanos)
    FROM hits WHERE user = ?2 AND (?3 IS NULL OR kernel = ?3) GROUP BY 1"""

HitKey = tuple[str, str, str]
"""Day, model and cell of free answers."""


class Who(NamedTuple):
    """Whose rows are written.

    Attributes:
        user: The person.
        kernel: The kernel's id.
        owner: The process, as text.
    """

    user: str
    kernel: str
    owner: str


class Row(NamedTuple):
    """A call's row, as far as limits need it."""

    n: int
    t: int
    user: str
    kernel: str
    state: str
    owner: str
    lease: int
    requests: int
    tokens: int
    nanos: int

    @property
    def is_open(self) -> bool:
        """Whether its call may still be on its way."""
        return self.state in ("held", "sent")

    @property
    def amount(self) -> Amount:
        """What of it counts."""
        return Amount(self.requests, self.tokens, self.nanos)


def find(db: sqlite3.Connection, id: str) -> Row | None:  # noqa: A002
    """The row of a call."""
    found = db.execute(_BY_ID, (id,)).fetchone()
    return None if found is None else Row._make(found)


def holders(db: sqlite3.Connection, key: str) -> list[tuple[str, int]]:
    """Owner and lease of each open call with this key."""
    return db.execute(
        "SELECT owner, lease FROM calls WHERE key = ? AND state IN ('held', 'sent')", (key,)
    ).fetchall()


def insert(db: sqlite3.Connection, claim: Claim, who: Who, t: int, lease: int) -> None:
    """Adds a held row; a void one of the same id makes room for it."""
    db.execute("DELETE FROM calls WHERE id = ? AND state = 'void'", (claim.id,))
    worst = _bounded(claim.worst)
    numbers = (worst.requests, worst.tokens, worst.nanos)
    place = (plain(claim.model), plain(claim.cell))
    row = (claim.id, t, who.user, who.kernel, claim.key, who.owner, lease, *numbers, *place)
    db.execute(_NEW, row)
    sums.add(db, who.kernel, who.user, t, worst)


def settle(db: sqlite3.Connection, id: str, used: Used, who: Who, now: int) -> None:  # noqa: A002
    """Puts what a call used in the place of what was held for it, in whatever state it is."""
    row = find(db, id)
    if row is None:
        insert(db, Claim(id, Amount()), who, now, now)
        row = find(db, id)
    if row is None or row.state == "done":
        return
    _book(db, row, "done", _bounded(used.amount))
    tokens = (used.input_tokens, used.output_tokens, used.cached_tokens)
    db.execute(
        """UPDATE calls SET model = CASE ?1 WHEN '' THEN model ELSE ?1 END,
        input_tokens = ?2, output_tokens = ?3, cached_tokens = ?4, priced = ?5 WHERE n = ?6""",
        (plain(used.model), *map(bounded, tokens), int(used.priced), row.n),
    )


def void(db: sqlite3.Connection, id: str) -> None:  # noqa: A002
    """Gives back what was held; what is settled or not known stays as it is."""
    row = find(db, id)
    if row is not None and row.state != "done":
        _book(db, row, "void", Amount())


def reap(db: sqlite3.Connection, lives: Callable[[str, int], bool]) -> bool:
    """Closes the calls of dead processes.

    Args:
        db: A connection, within a transaction that writes.
        lives: Whether the process of this owner and lease is to be taken for alive.

    Returns:
        Whether something counts no longer.
    """
    freed = False
    for row in map(Row._make, db.execute(_OPEN).fetchall()):
        if lives(row.owner, row.lease):
            continue
        if row.state == "held":
            _book(db, row, "void", Amount())
            freed = True
        else:
            # The provider may have counted it. How many tokens it took, nobody knows.
            _book(db, row, "lost", row.amount)
            db.execute("UPDATE calls SET priced = 0 WHERE n = ?", (row.n,))
    return freed


def note(db: sqlite3.Connection, who: Who, hits: Mapping[HitKey, Iterable[int]]) -> None:
    """Adds free answers to those of their day, model and cell."""
    db.executemany(
        """INSERT INTO hits VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET hits = hits + excluded.hits,
        tokens = tokens + excluded.tokens, nanos = nanos + excluded.nanos""",
        [
            (day, who.user, who.kernel, model, cell, *amounts)
            for (day, model, cell), amounts in hits.items()
        ],
    )


def usage(db: sqlite3.Connection, by: str, user: str, kernel: str | None) -> list[Line]:
    """Calls and free answers by model, day or cell; of all kernels where none is named."""
    whole = (by, user, kernel)
    lines: dict[str, tuple[int, ...]] = {}
    for name, *numbers in (*db.execute(_CALLS, whole), *db.execute(_HITS, whole)):
        before = lines.get(name, (0,) * len(numbers))
        lines[name] = tuple(map(sum, zip(before, numbers, strict=True)))
    found = [Line(name, *numbers) for name, numbers in sorted(lines.items())]
    if by == "day":
        return found[::-1]
    return sorted(found, key=lambda line: (-line.nanos, -line.requests))


def person_limits(db: sqlite3.Connection, user: str) -> list[tuple[Metric, int, int]]:
    """Metric, cap and window (nanoseconds) of each limit that a person has set."""
    found = db.execute(
        "SELECT metric, cap, length FROM limits WHERE user = ? ORDER BY metric, length", (user,)
    ).fetchall()
    if any(metric not in get_args(Metric) for metric, _, _ in found):
        raise ValueError("no such metric")
    return found


def limit_person(
    db: sqlite3.Connection, user: str, metric: Metric, length: int, cap: int | None
) -> None:
    """Sets a person's limit for a metric and window, or with cap None takes it away."""
    key = (user, metric, length)
    db.execute("DELETE FROM limits WHERE user = ? AND metric = ? AND length = ?", key)
    if cap is not None:
        db.execute("INSERT INTO limits VALUES (?, ?, ?, ?)", (*key, min(cap, 2**62)))


def bounded(amount: int) -> int:
    """An amount as a row can keep it."""
    return max(0, min(int(amount), _MOST))


def plain(text: str) -> str:
    """A text as SQLite can keep it: a server's model name may have half of a surrogate pair."""
    return text.encode(errors="replace").decode()


def _bounded(amount: Amount) -> Amount:
    return Amount(bounded(amount.requests), bounded(amount.tokens), bounded(amount.nanos))


def _book(db: sqlite3.Connection, row: Row, state: str, amount: Amount) -> None:
    db.execute(
        "UPDATE calls SET state = ?, requests = ?, tokens = ?, nanos = ? WHERE n = ?",
        (state, amount.requests, amount.tokens, amount.nanos, row.n),
    )
    sums.add(db, row.kernel, row.user, row.t, sums.plus(amount, row.amount, -1))
