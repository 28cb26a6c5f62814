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
from llm_magic import turns
from llm_magic.entries import Trouble
from llm_magic.errors import StoreError
from llm_magic.ledger import (
    LEASE,
    Claim,
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
from llm_magic.stores.ledger_batch import Batch, Scene
from llm_magic.stores.ledger_counts import KNOWN, Counts, unknown
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

    It keeps limits of a kernel and of a person. Those of a team or of a run over several machines
    are refused, since it does not see what the others use.

    Args:
        path: The file, opened at first use; None keeps everything in memory.
        kernel: Whose rows the limits of scope ``kernel`` count: unique to one kernel's life.
        user: Whose rows the limits of scope ``user`` count.
        owner: Who holds; by default this process.
        clock: The time in nanoseconds since 1970.
        busy_timeout: Most seconds that any method waits for other processes.
        trouble: Told, with a way to mend it, what could not be written yet and is kept in memory.
    """

    lease = LEASE

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
        return self._write(lambda db: self._hold(db, [claim], limits))[0]

    def hold_many(self, claims: Sequence[Claim], limits: Sequence[Limit]) -> list[Verdict]:
        """Holds calls as if one after the other, in one transaction of few statements.

        Args:
            claims: What is asked for; each is checked against what those before it took.
            limits: Limits beside those of the person.

        Raises:
            StoreError: The file cannot be used; nothing is held.
        """
        if not claims:
            return []
        with turns.quick():
            return self._write(lambda db: self._hold(db, claims, limits))

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
            return bool(changed.rowcount) or rows.state(db, id) != "void"

        if not self._write(work):
            raise StoreError(
                "This call's hold was given up, since its process seemed dead; nothing was sent.",
                fix="Run the cell again",
            )

    def settle(self, id: str, used: Used) -> None:  # noqa: A002
        """Books what a call used; what cannot be written now is written with the next write."""
        self._surely([(id, used)])

    def void(self, id: str) -> None:  # noqa: A002
        """Frees a hold that came to nothing; what cannot be written now follows later."""
        self._surely([(id, None)])

    def settle_many(self, uses: Sequence[tuple[str, Used | None]]) -> None:
        """Books what calls used, or frees their holds (None), in one transaction.

        What cannot be written now is written with the next write.
        """
        if uses:
            with turns.quick():
                self._surely(uses)

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
        """What counts now against each of these limits, then against each of the shared ones."""
        if self._mine().pending or self._look_is_due():
            self._write(self._reap)

        return self._mine().file.read(lambda db: self._counts(db, limits).used())

    def shared_limits(self) -> list[Limit]:
        """The limits of the person that were set for all kernels."""
        return self._mine().file.read(lambda db: rows.person_limits(db, self._user))

    def limit_shared(
        self, scope: Scope, metric: Metric, cap: int | None, window: float | None
    ) -> None:
        """Sets a limit for all of the person's kernels, or takes it away.

        Args:
            scope: ``user``, the only one that is shared on disk.
            metric: What is counted. Metric and window together say which limit it is.
            cap: The limit, in place of an older one; None takes it away.
            window: Seconds; None is since the last ``forgive``.

        Raises:
            StoreError: The scope is another; or the file cannot be used.
        """
        if scope != "user":
            raise unknown(scope)
        whole = (self._user, metric, sums.length(window))
        self._write(lambda db: rows.limit_person(db, *whole, cap))

    def forgive(self, scope: Scope) -> None:
        """Lets what was used so far no longer count; what is still open goes on counting.

        Raises:
            StoreError: The scope is that of a team or a run; or the file cannot be used.
        """
        if scope not in KNOWN:
            raise unknown(scope)
        name = self._kernel if scope == "kernel" else self._user
        self._write(lambda db: sums.forgive(db, scope, name, self._now(db)))

    def saved(self, saved: Saved) -> None:
        """Notes a free answer. In memory; only every 64th waits for the disk."""
        self.saved_many([saved])

    def saved_many(self, saved: Sequence[Saved]) -> None:
        """Notes free answers, of which 64 together wait once for the disk."""
        today = sums.day(self._clock())
        hits = [
            (
                (today, rows.plain(each.model), rows.plain(each.cell)),
                (1, rows.bounded(each.tokens), rows.bounded(each.nanos)),
            )
            for each in saved
        ]
        if self._mine().pending.note(hits):
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

    def _hold(
        self, db: sqlite3.Connection, claims: Sequence[Claim], limits: Sequence[Limit]
    ) -> list[Verdict]:
        now = self._clock()
        scene = Scene(self._mine().who, now, now + _LEASE, self._judge(), self._reap)
        return Batch(db, claims, limits, scene, look=self._look_is_due()).hold()

    def _counts(self, db: sqlite3.Connection, limits: Sequence[Limit]) -> Counts:
        return Counts(db, self._mine().who, limits, self._clock())

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

    def _surely(self, uses: Sequence[tuple[str, Used | None]]) -> None:
        # Remembered first: an interrupt must not lose it either.
        self._mine().pending.add(uses)
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
            here.pending.write(db, here.who, self._clock(), taken)
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
