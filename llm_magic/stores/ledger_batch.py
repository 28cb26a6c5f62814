"""What a batch of claims is granted: each is checked against what those before it took.

What has to be known of the file is read once for all of them, and what is granted is written once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import NamedTuple

from llm_magic.ledger import Amount, Claim, Full, Limit, Verdict
from llm_magic.stores import ledger_rows as rows
from llm_magic.stores.ledger_counts import Counts


class Scene(NamedTuple):
    """Who asks, and when.

    Attributes:
        who: Whose rows are written.
        clock: The time in nanoseconds.
        lease: Until when a row's process is taken for alive where it cannot be looked at.
        lives: Whether the process of an owner and lease is taken for alive.
        reap: Closes the calls of dead processes; whether something counts no longer.
    """

    who: rows.Who
    clock: int
    lease: int
    lives: Callable[[str, int], bool]
    reap: Callable[[sqlite3.Connection], bool]


class Batch:
    """Claims within one transaction that writes.

    Args:
        db: The connection.
        claims: What is asked for, in this order.
        limits: Limits beside those of the person.
        scene: Who asks, and when.
        look: Whether a look for dead processes is due anyway.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        claims: Sequence[Claim],
        limits: Sequence[Limit],
        scene: Scene,
        *,
        look: bool,
    ) -> None:
        self._db = db
        self._claims = claims
        self._scene = scene
        about = rows.about(db, claims)
        self._looked = look or not all(starmap(scene.lives, about.owners()))
        if self._looked:
            scene.reap(db)
            about = rows.about(db, claims)
        self._void = {id_ for id_, (state, *_) in about.rows.items() if state == "void"}
        self._there = about.rows.keys() - self._void
        self._flying = {
            key for key, held in about.holders.items() if any(starmap(scene.lives, held))
        }
        self._counts = Counts(db, scene.who, limits, scene.clock)

    def hold(self) -> list[Verdict]:
        """Grants what fits, and says of each claim what became of it."""
        verdicts: list[Verdict] = []
        granted: list[Claim] = []
        for claim in self._claims:
            verdict = self._verdict(claim)
            if verdict is None:
                granted.append(claim)
                self._take(claim)
            verdicts.append(verdict or "held")
        self._counts.store()
        if granted:
            scene = self._scene
            rows.remove(self._db, [each.id for each in granted if each.id in self._void])
            rows.insert(self._db, granted, scene.who, self._counts.now, scene.lease)
        return verdicts

    def _verdict(self, claim: Claim) -> Verdict | None:
        """What a claim comes to without a new row; None where there is to be one."""
        if claim.id in self._there:
            return "held"
        if claim.key in self._flying:
            return "flying"
        return self._full(claim.worst)

    def _full(self, asked: Amount) -> Full | None:
        full = self._counts.full(asked)
        if full is not None and not self._looked:
            self._looked = True
            if self._scene.reap(self._db):
                self._counts = self._counts.anew()
                full = self._counts.full(asked)
        return full

    def _take(self, claim: Claim) -> None:
        self._there.add(claim.id)
        if claim.key is not None:
            self._flying.add(claim.key)
        self._counts.take(claim.worst)
