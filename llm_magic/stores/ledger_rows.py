"""The rows of a ledger: one for each call, and one for a day's free answers of a cell.

Functions of a connection within a transaction. Each keeps the running sums in step with the row
that it changes, so that nobody else has to think of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, starmap
from typing import NamedTuple, get_args

from llm_magic.ledger import Amount, Claim, Limit, Line, Metric, Used
from llm_magic.stores import ledger_sums as sums
from llm_magic.stores import many

_MOST = 2**50
"""Of what is kept in one row, so that no sum can overflow SQLite's 64 bits."""

_OPEN = """SELECT n, t, user, kernel, state, owner, lease, requests, tokens, nanos
    FROM calls WHERE state IN ('held', 'sent')"""
_ABOUT = """WITH claim (id, key) AS (VALUES #)
    SELECT 1, id, state, owner, lease FROM calls WHERE id IN (SELECT id FROM claim)
    UNION ALL SELECT 0, key, state, owner, lease FROM calls
    WHERE key IN (SELECT key FROM claim) AND state IN ('held', 'sent')"""
_NEW = """WITH new (id, state, key, requests, tokens, nanos, model, cell) AS (VALUES #)
    INSERT INTO calls
    (id, t, user, kernel, state, key, owner, lease, requests, tokens, nanos, model, cell)
    SELECT id, ?1, ?2, ?3, state, key, ?4, ?5, requests, tokens, nanos, model, cell
    FROM new WHERE id IS NOT NULL"""
# What is to be booked, of rows that are there and not done, and of those that were not known.
_USES = """WITH new (id, state, requests, tokens, nanos, model, input_tokens, output_tokens,
        cached_tokens, priced) AS (VALUES #),
    change AS (SELECT new.*, coalesce(old.user, ?2) AS user, coalesce(old.kernel, ?3) AS kernel,
        coalesce(old.t, max(?1, coalesce((SELECT t FROM calls ORDER BY n DESC LIMIT 1), ?1),
            coalesce((SELECT max(t) + 1 FROM forgiven), ?1))) AS t,
        coalesce(old.requests, 0) AS old_requests, coalesce(old.tokens, 0) AS old_tokens,
        coalesce(old.nanos, 0) AS old_nanos
        FROM new LEFT JOIN calls AS old ON old.id = new.id
        WHERE new.id IS NOT NULL
        AND CASE WHEN old.id IS NULL THEN new.state = 'done' ELSE old.state != 'done' END)
    """
_SUM = (
    _USES  # noqa: S608
    + """UPDATE sums SET (requests, tokens, nanos) = (SELECT
        sums.requests + coalesce(sum(c.requests - old_requests), 0),
        sums.tokens + coalesce(sum(c.tokens - old_tokens), 0),
        sums.nanos + coalesce(sum(c.nanos - old_nanos), 0)
        FROM change AS c WHERE c.t > floor
        AND CASE scope WHEN 'kernel' THEN c.kernel ELSE c.user END = name)
    WHERE (scope = 'kernel' AND name IN (SELECT kernel FROM change))
        OR (scope = 'user' AND name IN (SELECT user FROM change))"""
)
_BOOK = (
    _USES  # noqa: S608
    + """INSERT INTO calls (id, t, user, kernel, state, owner, lease, requests, tokens, nanos,
        model, cell, input_tokens, output_tokens, cached_tokens, priced)
    SELECT id, t, user, kernel, state, ?4, ?1, requests, tokens, nanos,
        model, '', input_tokens, output_tokens, cached_tokens, priced FROM change WHERE 1
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, requests = excluded.requests,
        tokens = excluded.tokens, nanos = excluded.nanos,
        model = CASE excluded.model WHEN '' THEN model ELSE excluded.model END,
        input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
        cached_tokens = excluded.cached_tokens, priced = excluded.priced"""
)
_NOTE = """WITH new (day, user, kernel, model, cell, hits, tokens, nanos) AS (VALUES #)
    INSERT INTO hits SELECT * FROM new WHERE day IS NOT NULL
    ON CONFLICT (day, user, kernel, model, cell) DO UPDATE SET hits = hits + excluded.hits,
        tokens = tokens + excluded.tokens, nanos = nanos + excluded.nanos"""
_FREE = """UPDATE calls SET state = 'void', requests = 0, tokens = 0, nanos = 0
    WHERE n IN (VALUES #)"""
_VOID = ("void", 0, 0, 0, "", 0, 0, 0, 1)
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
    def amount(self) -> Amount:
        """What of it counts."""
        return Amount(self.requests, self.tokens, self.nanos)


class About(NamedTuple):
    """What is there of a batch of claims.

    Attributes:
        rows: State, owner and lease of the calls with their ids.
        holders: Owner and lease of the open calls with their keys.
    """

    rows: dict[str, tuple[str, str, int]]
    holders: dict[str, list[tuple[str, int]]]

    def owners(self) -> Iterator[tuple[str, int]]:
        """Owner and lease of each open call."""
        for state, owner, lease in self.rows.values():
            if state in ("held", "sent"):
                yield owner, lease
        yield from chain.from_iterable(self.holders.values())


def about(db: sqlite3.Connection, claims: Sequence[Claim]) -> About:
    """What is there under the ids and keys of these claims."""
    found = About({}, {})
    asked = [(claim.id, claim.key) for claim in claims]
    for by_id, name, state, owner, lease in many.run(db, _ABOUT, asked):
        if by_id:
            found.rows[name] = state, owner, lease
        else:
            found.holders.setdefault(name, []).append((owner, lease))
    return found


def state(db: sqlite3.Connection, id: str) -> str | None:  # noqa: A002
    """The state of a call; None where it is not known."""
    found = db.execute("SELECT state FROM calls WHERE id = ?", (id,)).fetchone()
    return None if found is None else str(found[0])


def holders(db: sqlite3.Connection, key: str) -> list[tuple[str, int]]:
    """Owner and lease of each open call with this key."""
    return db.execute(
        "SELECT owner, lease FROM calls WHERE key = ? AND state IN ('held', 'sent')", (key,)
    ).fetchall()


def insert(db: sqlite3.Connection, claims: Sequence[Claim], who: Who, t: int, lease: int) -> None:
    """Adds rows with new ids, held or sent, and counts them.

    Args:
        db: A connection, within a transaction that writes.
        claims: What was granted.
        who: To whom.
        t: When, in nanoseconds: later than any floor of a sum in which the rows are.
        lease: Until when their process is taken for alive where it cannot be looked at.
    """
    new, total = [], Amount()
    for claim in claims:
        worst = kept(claim.worst)
        total = sums.plus(total, worst)
        now = "sent" if claim.sent else "held"
        numbers = (worst.requests, worst.tokens, worst.nanos)
        new.append((claim.id, now, claim.key, *numbers, plain(claim.model), plain(claim.cell)))
    many.run(db, _NEW, new, t, who.user, who.kernel, who.owner, lease)
    sums.add(db, who.kernel, who.user, t, total)


def remove(db: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Takes void rows away, to make room for new ones with their ids."""
    many.run(db, "DELETE FROM calls WHERE id IN (VALUES #)", [(each,) for each in ids])


def settle(
    db: sqlite3.Connection, uses: Iterable[tuple[str, Used | None]], who: Who, clock: int
) -> None:
    """Puts what calls used in the place of what was held for them, whatever state they are in.

    What is done stays as it is. A call that is not known is added, unless it came to nothing.

    Args:
        db: A connection, within a transaction that writes.
        uses: Ids, and what was used; None gives back what was held.
        who: Whose a call is that is not known.
        clock: The time in nanoseconds.
    """
    final: dict[str, Used | None] = {}
    for id_, used in uses:
        # The first use ends it; what is void may still be used.
        if final.get(id_) is None:
            final[id_] = used
    new = [(id_, *(_VOID if used is None else _done(used))) for id_, used in final.items()]
    for statement in (_SUM, _BOOK):
        many.run(db, statement, new, clock, who.user, who.kernel, who.owner)


def _done(used: Used) -> tuple[str | int, ...]:
    amount = kept(used.amount)
    tokens = (used.input_tokens, used.output_tokens, used.cached_tokens)
    return (
        *("done", amount.requests, amount.tokens, amount.nanos, plain(used.model)),
        *map(bounded, tokens),
        int(used.priced),
    )


def reap(db: sqlite3.Connection, lives: Callable[[str, int], bool]) -> bool:
    """Closes the calls of dead processes.

    Args:
        db: A connection, within a transaction that writes.
        lives: Whether the process of this owner and lease is to be taken for alive.

    Returns:
        Whether something counts no longer.
    """
    freed: list[tuple[int]] = []
    lost: list[tuple[int]] = []
    changes: dict[tuple[str, str, int], Amount] = {}
    for row in map(Row._make, db.execute(_OPEN).fetchall()):
        if lives(row.owner, row.lease):
            continue
        if row.state == "held":
            freed.append((row.n,))
            place = (row.kernel, row.user, row.t)
            changes[place] = sums.plus(changes.get(place, Amount()), row.amount, -1)
        else:
            lost.append((row.n,))
    many.run(db, _FREE, freed)
    # The provider may have counted it. How many tokens it took, nobody knows.
    many.run(db, "UPDATE calls SET state = 'lost', priced = 0 WHERE n IN (VALUES #)", lost)
    for place, change in changes.items():
        sums.add(db, *place, change)
    return bool(freed)


def note(db: sqlite3.Connection, who: Who, hits: Mapping[HitKey, Iterable[int]]) -> None:
    """Adds free answers to those of their day, model and cell."""
    rows = [
        (day, who.user, who.kernel, model, cell, *amounts)
        for (day, model, cell), amounts in hits.items()
    ]
    many.run(db, _NOTE, rows)


def usage(db: sqlite3.Connection, by: str, user: str, kernel: str | None) -> list[Line]:
    """Calls and free answers by model, day or cell; of all kernels where none is named."""
    whole = (by, user, kernel)
    lines: dict[str, tuple[int, ...]] = {}
    for name, *numbers in chain.from_iterable(
        many.execute(db, each, *whole) for each in (_CALLS, _HITS)
    ):
        before = lines.get(name, (0,) * len(numbers))
        lines[name] = tuple(map(sum, zip(before, numbers, strict=True)))
    found = [Line(name, *numbers) for name, numbers in sorted(lines.items())]
    if by == "day":
        return found[::-1]
    return sorted(found, key=lambda line: (-line.nanos, -line.requests))


def person_limits(db: sqlite3.Connection, user: str) -> list[Limit]:
    """The limits that a person has set."""
    found = db.execute(
        "SELECT metric, length, cap FROM limits WHERE user = ? ORDER BY metric, length", (user,)
    ).fetchall()
    return list(starmap(person_limit, found))


def person_limit(metric: Metric, length: int, cap: int) -> Limit:
    """A person's limit, as its row has it.

    Raises:
        ValueError: There is no such metric.
    """
    if metric not in get_args(Metric):
        raise ValueError("no such metric")
    return Limit("user", metric, cap, length / sums.SECOND if length else None)


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


def kept(amount: Amount) -> Amount:
    """An amount of calls as a row can keep it."""
    numbers = (amount.requests, amount.tokens, amount.nanos)
    if all(type(each) is int and 0 <= each <= _MOST for each in numbers):
        return amount
    return Amount(bounded(amount.requests), bounded(amount.tokens), bounded(amount.nanos))
