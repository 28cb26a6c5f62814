"""What a process still has to write into its ledger: late bookings and free answers.

A booking is late when the file could not be written in its time. It stays here, and goes with the
next transaction that succeeds; every one of them may be applied twice without harm.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llm_magic.ledger import Used
from llm_magic.stores import ledger_rows as rows

HITS_IN_MEMORY = 64
"""So many free answers are noted before they are written on their own account."""

Late = tuple[str, Used | None]
"""A call's id and what it used; None where it came to nothing."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one transaction writes of what is pending."""

    late: list[int] = field(default_factory=list)
    hits: dict[rows.HitKey, list[int]] = field(default_factory=dict)


class Pending:
    """What is pending in one process, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._late: dict[int, Late] = {}
        self._next = 0
        self._hits: dict[rows.HitKey, list[int]] = {}
        self._noted = 0

    def __bool__(self) -> bool:
        return bool(self._late or self._hits)

    def add(self, late: Iterable[Late]) -> None:
        """Remembers bookings."""
        with self._lock:
            for each in late:
                self._late[self._next] = each
                self._next += 1

    def note(self, hits: Iterable[tuple[rows.HitKey, Sequence[int]]]) -> bool:
        """Adds to the free answers; True when it is time to write them."""
        with self._lock:
            for key, amounts in hits:
                self._merge(key, amounts)
                self._noted += 1
            due = self._noted >= HITS_IN_MEMORY
            self._noted %= HITS_IN_MEMORY
            return due

    def write(self, db: sqlite3.Connection, who: rows.Who, clock: int, taken: Taken) -> None:
        """Writes everything within a transaction, and says in ``taken`` what that was."""
        with self._lock:
            bookings = list(self._late.items())
            taken.hits.update(self._hits)
            self._hits, self._noted = {}, 0
        if bookings:
            rows.settle(db, [late for _, late in bookings], who, clock)
            taken.late.extend(number for number, _ in bookings)
        if taken.hits:
            rows.note(db, who, taken.hits)

    def written(self, taken: Taken) -> None:
        """Forgets what a transaction wrote that succeeded."""
        with self._lock:
            for number in taken.late:
                self._late.pop(number, None)

    def back(self, taken: Taken) -> None:
        """Takes back what a transaction did not write after all."""
        with self._lock:
            for key, amounts in taken.hits.items():
                self._merge(key, amounts)

    def _merge(self, key: rows.HitKey, amounts: Sequence[int]) -> None:
        before = self._hits.get(key, (0, 0, 0))
        self._hits[key] = [one + other for one, other in zip(before, amounts, strict=True)]
