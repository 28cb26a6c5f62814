"""The ledger in one SQLite file: all kernels of a person keep their limits by it.

Every change is one transaction that nothing else gets between, so a limit holds whatever runs at
the same time and whatever is killed. The rows are the truth (``ledger_rows``); the sums beside
them only save adding them up (``ledger_sums``); what a file can have is in ``ledger_file``.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import starmap
from pathlib import Path
from typing import Literal, TypeVar

from llm_magic import owner as owners
from llm_magic.entries import Trouble
from llm_magic.errors import StoreError
from llm_magic.ledger import (
    LEASE,
    Amount,
    Claim,
    Full,
    Ledger,
    Limit,
    Line,
    Metric,
    Saved,
    Scope,
    Used,
    Verdict,
)
from llm_magic.stores import ledger_rows as rows
from llm_magic.stores import ledger_sums as sums
from llm_magic.stores.ledger_file import LedgerFile
from llm_magic.stores.ledger_pending import Pending, Taken

T = TypeVar("T")

LOOK_EVERY = 1.0
"""Seconds between two looks for dead processes, where nothing makes a look necessary."""

_LEASE = round(LEASE * sums.SECOND)


@dataclass
class _Here:
    """What is one process's own: after a fork, the child must neither use nor write it."""

    pid: int
    who: rows.Who
    file: LedgerFile
    pending: Pending = field(default_factory=Pending)
    looked: float = float("-inf")
    tidied: int = 0


_inherited: list[_Here] = []
"""Of the processes that this one was forked from, for good: to close what they had open when no
hook ran (``ledger_file``) is not this one's business."""


class SqliteLedger(Ledger):
    """A ledger in a file that many processes share, or in memory for this one alone.

    Args:
        path: The file, opened at first use; None keeps everything in memory.
        kernel: Whose rows the limits of scope ``kernel`` count: unique to one kernel's life.
        user: Whose rows the limits of scope ``user`` count.
        owner: Who holds; by default this process.
        clock: The time in nanoseconds since 1970.
        busy_timeout: Most seconds that any method waits for other processes.
        trouble: Told, with a way to mend it, what could not be written yet and is kept in memory.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        kernel: str,
        user: str,
        owner: owners.Owner | None = None,
        clock: Callable[[], int] = time.time_ns,
        busy_timeout: float = 1.0,
        trouble: Trouble | None = None,
    ) -> None:
        self.path = path
        self._kernel = kernel
        self._user = user
        self._clock = clock
        self._patience = busy_timeout
        self._trouble = trouble
        self._state = self._new(owner or owners.current())

    def hold(self, claim: Claim, limits: Sequence[Limit]) -> Verdict:
        """Holds a call's worst case if it fits all of these and the person's own limits.

        Args:
            claim: What is asked for. Under an id whose call was voided, it is asked for anew.
            limits: Limits beside those of the person.

        Raises:
            StoreError: The file cannot be used; nothing is held.
        """
        return self._write(lambda db: self._hold(db, claim, limits))

    def sent(self, id: str) -> None:  # noqa: A002
        """The request is about to be sent: from now on it may be counted.

        Raises:
            StoreError: The file cannot be used; or the hold was given up meanwhile, as that of a
                process that seemed dead. Nothing may be sent then.
        """

        def work(db: sqlite3.Connection) -> bool:
            changed = db.execute(
                "UPDATE calls SET state = 'sent' WHERE id = ? AND state = 'held'", (id,)
            )
            row = None if changed.rowcount else rows.find(db, id)
            return row is None or row.state != "void"

        if not self._write(work):
            raise StoreError(
                "This call's hold was given up, since its process seemed dead; nothing was sent.",
                fix="Run the cell again",
            )

    def settle(self, id: str, used: Used) -> None:  # noqa: A002
        """Books what a call used; what cannot be written now is written with the next write."""
        who = self._mine().who
        self._surely(lambda db: rows.settle(db, id, used, who, self._now(db)))

    def void(self, id: str) -> None:  # noqa: A002
        """Frees a hold that came to nothing; what cannot be written now follows later."""
        self._surely(lambda db: rows.void(db, id))

    def flying(self, key: str) -> bool:
        """Whether a living process has an open hold for this key. Waits for no writer."""
        holders = self._mine().file.read(lambda db: rows.holders(db, key))
        return any(starmap(self._judge(), holders))

    def renew(self) -> None:
        """Prolongs the leases of this process's open holds."""
        renewed = (self._clock() + _LEASE, self._mine().who.owner)
        self._write(
            lambda db: db.execute(
                "UPDATE calls SET lease = ? WHERE state IN ('held', 'sent') AND owner = ?", renewed
            )
        )

    def standing(self, limits: Sequence[Limit]) -> list[tuple[Limit, int]]:
        """What counts now against each of these limits, then against each of the person's own."""
        if self._mine().pending or self._look_is_due():
            self._write(self._reap)

        def work(db: sqlite3.Connection) -> list[tuple[Limit, int]]:
            now = self._now(db)
            return [
                (each, sums.used(db, self._window(each), now, store=False).of(each.metric))
                for each in (*limits, *self._persons(db))
            ]

        return self._mine().file.read(work)

    def person_limits(self) -> list[Limit]:
        """The limits with scope ``user`` that were set for all kernels."""
        return self._mine().file.read(self._persons)

    def limit_person(self, metric: Metric, cap: int | None, window: float | None) -> None:
        """Sets a limit for all of the person's kernels, or takes it away.

        Args:
            metric: What is counted. Metric and window together say which limit it is.
            cap: The limit, in place of an older one; None takes it away.
            window: Seconds; None is since the last ``forgive``.
        """
        whole = (self._user, metric, sums.length(window))
        self._write(lambda db: rows.limit_person(db, *whole, cap))

    def forgive(self, scope: Scope) -> None:
        """Lets what was used so far no longer count; what is still open goes on counting."""
        name = self._kernel if scope == "kernel" else self._user
        self._write(lambda db: sums.forgive(db, scope, name, self._now(db)))

    def saved(self, saved: Saved) -> None:
        """Notes a free answer. In memory; only every 64th waits for the disk."""
        key = (sums.day(self._clock()), rows.plain(saved.model), rows.plain(saved.cell))
        amounts = (1, rows.bounded(saved.tokens), rows.bounded(saved.nanos))
        if self._mine().pending.note(key, amounts):
            self._try_to_write()

    def usage(
        self, by: Literal["model", "day", "cell"], *, kernel_only: bool = False
    ) -> list[Line]:
        """Sums by model, day or cell, the largest spending first (days: the newest first).

        Calls on their way are not in them; by cell there are only this kernel's.
        """
        kernel = self._kernel if kernel_only or by == "cell" else None

        def work(db: sqlite3.Connection) -> list[Line]:
            self._reap(db)
            return rows.usage(db, by, self._user, kernel)

        return self._write(work)

    def close(self) -> None:
        """Writes what is pending and lets go of the file; a later use opens it again."""
        here = self._mine()
        try:
            if here.pending:
                self._write(_nothing)
        finally:
            here.file.close()

    def reset_file(self) -> None:
        """Sets a damaged file aside under a new name; the next use starts to count anew.

        Raises:
            StoreError: It cannot be renamed.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime())
        self._mine().file.set_aside(f"{stamp}-{time.time_ns() % sums.SECOND:09}")

    def _hold(self, db: sqlite3.Connection, claim: Claim, limits: Sequence[Limit]) -> Verdict:
        lives = self._judge()
        row = rows.find(db, claim.id)
        holders = [] if claim.key is None else rows.holders(db, claim.key)
        of_dead = row is not None and row.is_open and not lives(row.owner, row.lease)
        looked = of_dead or not all(starmap(lives, holders)) or self._look_is_due()
        if looked:
            self._reap(db)
            row = rows.find(db, claim.id)
        if row is not None and row.state != "void":
            return "held"
        if any(starmap(lives, holders)):
            return "flying"
        limits = (*limits, *self._persons(db))
        now = self._now(db)
        full = self._full(db, claim.worst, limits, now)
        if full is not None and not looked and self._reap(db):
            full = self._full(db, claim.worst, limits, now)
        if full is not None:
            return full
        rows.insert(db, claim, self._mine().who, now, self._clock() + _LEASE)
        return "held"

    def _full(
        self, db: sqlite3.Connection, asked: Amount, limits: Sequence[Limit], now: int
    ) -> Full | None:
        """The limit in the way that frees last, if any is."""
        counted = cache(lambda window: sums.used(db, window, now, store=True))
        last: Full | None = None
        for limit in limits:
            window = self._window(limit)
            used = counted(window).of(limit.metric)
            ask = asked.of(limit.metric)
            excess = used + ask - limit.cap
            if excess <= 0:
                continue
            at = None
            if ask <= limit.cap:
                at = sums.fits_at(db, window, limit.metric, now, excess)
            if last is None or at is None or (last.retry_at or 0.0) < sums.seconds(at):
                last = Full(limit, used, ask, None if at is None else sums.seconds(at))
            if at is None:
                break
        return last

    def _reap(self, db: sqlite3.Connection) -> bool:
        self._mine().looked = time.monotonic()
        return rows.reap(db, self._judge())

    def _judge(self) -> Callable[[str, int], bool]:
        """Whether the process of an owner and lease is taken for alive; looks at each once."""
        look = cache(owners.alive)
        now = self._clock()

        def lives(owner: str, lease: int) -> bool:
            alive = look(owner)
            return lease > now if alive is None else alive

        return lives

    def _look_is_due(self) -> bool:
        return time.monotonic() - self._mine().looked >= LOOK_EVERY

    def _now(self, db: sqlite3.Connection) -> int:
        return max(self._clock(), sums.newest(db))

    def _window(self, limit: Limit) -> sums.Window:
        name = self._kernel if limit.scope == "kernel" else self._user
        return sums.Window(limit.scope, name, sums.length(limit.window))

    def _persons(self, db: sqlite3.Connection) -> list[Limit]:
        return [
            Limit("user", metric, cap, length / sums.SECOND if length else None)
            for metric, cap, length in rows.person_limits(db, self._user)
        ]

    def _surely(self, work: Callable[[sqlite3.Connection], None]) -> None:
        # Remembered first: an interrupt must not lose it either.
        self._mine().pending.add(work)
        self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self._write(_nothing)
        except StoreError as error:
            if self._trouble is not None:
                self._trouble(str(error.args[0]), error.fix)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Does this, and before it whatever could not be written earlier, in one transaction."""
        here = self._mine()
        taken = Taken()

        def whole(db: sqlite3.Connection) -> T:
            if here.tidied != here.file.opened:
                sums.tidy(db, self._now(db))
            here.pending.write(db, here.who, taken)
            return work(db)

        try:
            result = here.file.write(whole)
        except BaseException:
            here.pending.back(taken)
            raise
        here.tidied = here.file.opened
        here.pending.written(taken)
        return result

    def _mine(self) -> _Here:
        here = self._state
        if here.pid != os.getpid():
            _inherited.append(here)
            here = self._state = self._new(owners.current())
        return here

    def _new(self, owner: owners.Owner) -> _Here:
        who = rows.Who(self._user, self._kernel, str(owner))
        return _Here(os.getpid(), who, LedgerFile(self.path, self._patience))


def _nothing(db: sqlite3.Connection) -> None:
    """What is pending is written all the same."""
