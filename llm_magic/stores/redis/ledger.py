"""The ledger in Redis: all kernels of a person or of a team keep their limits by it.

Every change is one script, which Redis runs as one step and by its own clock; each is idempotent by
the ids of its calls, so that what may have been done already can be done again. What they have in
common is in ``common.lua``. A process that held something and died is found by whoever shares its
machine at once, by others when its lease has run out.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from llm_magic import owner as owners
from llm_magic.entries import Trouble
from llm_magic.errors import StoreError
from llm_magic.ledger import Claim, Full, Ledger, Limit, Line, Metric, Saved, Scope, Used, Verdict
from llm_magic.stores.ledger_sums import seconds
from llm_magic.stores.redis.dead import check_open, close_dead, is_dead
from llm_magic.stores.redis.keys import Keys
from llm_magic.stores.redis.pending import Pending, lines
from llm_magic.stores.redis.scripts import Scripts, micros, name, numbers, parts, told
from llm_magic.stores.redis.server import Server

LEASE = 15.0
"""Seconds that a hold outlives its last renewal where its process cannot be looked at."""

LOOK_EVERY = 1.0
"""Seconds between two looks for dead processes, where nothing makes a look necessary."""


class RedisLedger(Ledger):
    """A ledger that many machines share.

    Args:
        server: The connection.
        kernel: Whose calls the limits of scope ``kernel`` count: unique to one kernel's life.
        user: Whose calls the limits of scope ``user`` count.
        team: Likewise for ``team``; empty for no team.
        run: Likewise for ``run``, a run over rows on several workers.
        space: Whose answers are shared: equal calls are one flight within it.
        owner: Who holds; by default this process.
        clock: The time in nanoseconds since 1970; by default the server's.
        trouble: Told, with a way to mend it, what could not be written yet and is kept in memory.
    """

    lease = LEASE

    def __init__(
        self,
        server: Server,
        *,
        kernel: str,
        user: str,
        team: str = "",
        run: str = "",
        space: str = "",
        owner: owners.Owner | None = None,
        clock: Callable[[], int] | None = None,
        trouble: Trouble | None = None,
    ) -> None:
        self._server = server
        self._keys = Keys(kernel, user, team, run)
        self._scripts = Scripts(server, self._keys, clock)
        self._space = space
        self._trouble = trouble
        self._begin(owner or owners.current())
        _all.add(self)

    def _begin(self, owner: owners.Owner) -> None:
        """Starts with nothing pending, as a forked process does: it is its parent's to write."""
        self._owner = str(owner)
        self._names = json.dumps(self._keys.names)
        self._told = told(owner=self._owner, names=self._names, lease=micros(LEASE))
        self._pending = Pending(self._scripts, self._owner)
        self._looked = float("-inf")

    def hold(self, claim: Claim, limits: Sequence[Limit]) -> Verdict:
        """Holds a call's worst case if it fits all of these and the shared limits.

        Args:
            claim: What is asked for. Under an id whose call was voided, it is asked for anew.
            limits: Limits beside the shared ones.

        Raises:
            StoreError: Redis cannot be used; nothing is held.
        """
        return self.hold_many([claim], limits)[0]

    def hold_many(self, claims: Sequence[Claim], limits: Sequence[Limit]) -> list[Verdict]:
        """Holds calls as if one after the other, 64 of them in one step.

        Args:
            claims: What is asked for; each is checked against what those before it took.
            limits: Limits beside the shared ones.

        Raises:
            StoreError: Redis cannot be used, or may evict what is held; nothing is held.
        """
        verdicts: list[Verdict] = []
        self._be_ready()
        try:
            for part in parts(claims):
                verdicts += self._hold(part, limits)
        except StoreError:
            # It may have been done all the same, or be done later: by a frozen server that wakes.
            self._pending.add((each.id, None) for each in claims)
            self._pending.write_later()
            raise
        return verdicts

    def sent(self, id: str) -> None:  # noqa: A002
        """The request is about to be sent: from now on it may be counted.

        Raises:
            StoreError: Redis cannot be used; or it knows nothing of the hold any more. Nothing may
                be sent then.
        """
        state = self._scripts.plain("sent")([self._keys.call(id)], [])
        if state in (b"", b"void", b"gone"):
            raise StoreError(
                "This call's hold was given up, since its process seemed dead or Redis has lost "
                "it; nothing was sent.",
                fix="Run the cell again",
            )

    def settle(self, id: str, used: Used) -> None:  # noqa: A002
        """Books what a call used; what cannot be written now is written with the next write."""
        self.settle_many([(id, used)])

    def void(self, id: str) -> None:  # noqa: A002
        """Frees a hold that came to nothing; what cannot be written now follows later."""
        self.settle_many([(id, None)])

    def settle_many(self, uses: Sequence[tuple[str, Used | None]]) -> None:
        """Books what calls used, or frees their holds (None).

        What cannot be written now is written with the next write.
        """
        # Remembered first: an interrupt must not lose it either.
        self._pending.add(uses)
        self._try_to_write()

    def flying(self, key: str) -> bool:
        """Whether a living process has an open hold for this key."""
        found = self._scripts.run("flying", "", self._flight(key), scopes=())
        return bool(found) and not is_dead(found[1])

    def renew(self) -> None:
        """Prolongs the lease of this process."""
        self._be_ready()
        self._scripts.run("renew", self._told, scopes=())

    def standing(self, limits: Sequence[Limit]) -> list[tuple[Limit, int]]:
        """What counts now against each of these limits, then against each of the shared ones."""
        self._be_ready()
        header = self._scripts.limited(limits)
        found = self._scripts.run("standing", header, before=("limits",))
        known = list(limits)
        return [
            (known[place] if place < len(known) else self._scripts.limit_of(*limit), int(used))
            for place, (*limit, used) in enumerate(found)
        ]

    def shared_limits(self) -> list[Limit]:
        """The limits of the person, and of the team, that were set for all kernels."""
        return [limit for limit, _ in self.standing([])]

    def limit_shared(
        self, scope: Scope, metric: Metric, cap: int | None, window: float | None
    ) -> None:
        """Sets a limit for all kernels of the user or team, or takes it away.

        Args:
            scope: ``user`` or ``team``.
            metric: What is counted. Scope, metric and window together say which limit it is.
            cap: The limit, in place of an older one; None takes it away.
            window: Seconds; None is since the last ``forgive``.

        Raises:
            StoreError: The scope is another, or no team has a name; or Redis cannot be used.
        """
        self._keys.place(scope)
        if scope not in self._keys.shared:
            raise StoreError(f"A limit of a {scope} is not shared; nothing was changed.")
        _, *limit, amount = self._scripts.limit(Limit(scope, metric, cap or 0, window))
        asked = (*limit, False if cap is None else amount)
        self._scripts.run("limit", "", asked, scopes=(scope,))

    def forgive(self, scope: Scope) -> None:
        """Lets what was used so far no longer count; what is still open goes on counting.

        Raises:
            StoreError: Nothing is counted in this scope; or Redis cannot be used.
        """
        self._keys.place(scope)
        self._be_ready()
        # Whoever wants to start anew also means what is damaged elsewhere.
        for look, _ in self._parts():
            look()
        self._scripts.run("forgive", scopes=(scope,))

    def saved(self, saved: Saved) -> None:
        """Notes a free answer."""
        self.saved_many([saved])

    def saved_many(self, saved: Sequence[Saved]) -> None:
        """Notes free answers; what cannot be written now is written with the next write."""
        self._pending.note(saved)
        self._try_to_write()

    def usage(
        self, by: Literal["model", "day", "cell"], *, kernel_only: bool = False
    ) -> list[Line]:
        """Sums by model, day or cell, the largest spending first (days: the newest first).

        Calls on their way are not in them; by cell there are only this kernel's.
        """
        self._be_ready()
        self._look()
        return self._lines(self._keys.usage[kernel_only or by == "cell"], by)

    def _lines(self, key: bytes, by: Literal["model", "day", "cell"]) -> list[Line]:
        with self._scripts.harm():
            found = self._server.do(lambda client: client.hgetall(key))
            oldest = self._scripts.oldest().encode()
            if old := [field for field in found if field < oldest]:
                self._server.do(lambda client: client.hdel(key, *old))
                found = {field: found[field] for field in found.keys() - set(old)}
            return lines(found, by)

    def reset_file(self) -> None:
        """Removes what is damaged of this kernel's, person's and team's counts.

        Raises:
            StoreError: Redis cannot be used.
        """
        for look, keys in self._parts():
            try:
                look()
            except StoreError as error:
                if not error.damaged:
                    raise
                self._server.do(lambda client, keys=keys: client.delete(*keys))  # type: ignore[misc]

    def _parts(self) -> Iterator[tuple[Callable[[], Any], list[bytes]]]:
        """What may be damaged by itself: how to find that out, and the keys."""
        keys, run = self._keys, self._scripts.run
        for scope in keys.scopes:
            yield partial(run, "check", scopes=(scope,)), keys.counts((scope,))
        yield partial(check_open, self._server, self._scripts), keys.common
        for key in keys.usage:
            yield partial(self._lines, key, "model"), [key]
        # A call that cannot be booked would be in the way of all others.
        for id_ in self._pending.ids():
            key = keys.call(id_)
            yield partial(run, "check", scopes=(), keys=[key]), [key]

    def close(self) -> None:
        """Writes what is pending and lets go of the connection; a later use opens it again."""
        self._pending.stop()
        try:
            self._pending.write()
        finally:
            self._server.close()

    def _hold(self, claims: Sequence[Claim], limits: Sequence[Limit]) -> list[Verdict]:
        replies = self._claim(claims, limits)
        doubtful = [place for place, reply in enumerate(replies) if _is_in_doubt(reply)]
        if doubtful and self._look():
            anew = self._claim([claims[place] for place in doubtful], limits)
            for place, reply in zip(doubtful, anew, strict=True):
                replies[place] = reply
        return [self._verdict(reply, limits) for reply in replies]

    def _claim(self, claims: Sequence[Claim], limits: Sequence[Limit]) -> list[Any]:
        day = f'"day":"{self._scripts.today()}"'
        header = f"{self._told},{day},{self._scripts.limited(limits)}"
        calls = [
            (
                each.id,
                self._flight(each.key) if each.key else "",
                numbers(each.worst),
                name(each.model),
                name(each.cell),
                each.sent,
            )
            for each in claims
        ]
        replies = self._scripts.of_calls("hold", header, calls, before=("limits",))
        if replies == b"held":
            return [[replies]] * len(claims)
        if any(reply[0] == b"gone" for reply in replies):
            raise StoreError(
                "This call was given up while Redis did not answer; nothing was sent.",
                fix="Run the cell again",
            )
        return list(replies)

    def _verdict(self, reply: Any, limits: Sequence[Limit]) -> Verdict:
        if reply[0] != b"full":
            return "flying" if reply[0] == b"flying" else "held"
        *which, used, asked, moment = reply[1:]
        told = tuple(map(int, which))
        limit = next((each for each in limits if self._scripts.limit(each) == told), None)
        limit = limit or self._scripts.limit_of(*told)
        return Full(limit, int(used), int(asked), seconds(int(moment) * 1000) if moment else None)

    def _be_ready(self) -> None:
        """Writes what is pending, and looks for the dead from time to time.

        Raises:
            StoreError: Redis cannot be used, or may evict what is counted.
        """
        if policy := self._server.evicts():
            raise StoreError(
                f"The Redis at {self._server.place} may throw the quota's keys away when it is "
                f"full (maxmemory-policy {policy}); nothing was sent.",
                fix="Let it refuse instead: redis-cli CONFIG SET maxmemory-policy noeviction",
            )
        self._pending.write()
        if time.monotonic() - self._looked >= LOOK_EVERY:
            self._look()

    def _look(self) -> int:
        """Closes the calls of dead processes; gives how many."""
        self._looked = time.monotonic()
        return close_dead(self._server, self._scripts)

    def _try_to_write(self) -> None:
        try:
            self._pending.write()
        except StoreError as error:
            self._pending.write_later()
            if self._trouble is not None:
                kept = "What calls have used is kept in memory, and booked when it can be."
                self._trouble(f"{error.args[0]} {kept}", error.fix)

    def _flight(self, key: str) -> str:
        return f"{self._space}:{key}"


def _is_in_doubt(reply: Any) -> bool:
    """Whether a look for dead processes may change a verdict."""
    # Where somebody else holds it, the last is who.
    return bool(reply[0] == b"full") or (len(reply) > 1 and is_dead(reply[-1]))


_all: weakref.WeakSet[RedisLedger] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_all):
        each._begin(owners.current())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
