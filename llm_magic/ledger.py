"""What was used and what is held: the words in which limits are kept, whatever the store.

A call goes held -> sent -> done. Before it is sent, its worst case is held against every limit in
one atomic step; afterwards what it really used takes the hold's place. A hold that was never sent
is void; one whose process died after sending stays booked in full, since the provider may have
counted it. A hold names its request's key while it is open, so that it is also the claim by which
one kernel of several asks and the others wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Any, Literal, Protocol

Scope = Literal["kernel", "user", "team", "run"]
Metric = Literal["requests", "tokens", "usd"]
NANO = Decimal(1_000_000_000)


def nanos(usd: Decimal) -> int:
    """USD as whole nano-dollars, rounded up: a sum of floats drifts."""
    return int((usd * NANO).to_integral_value(ROUND_CEILING))


def dollars(amount: int) -> Decimal:
    """Nano-dollars as USD."""
    return Decimal(amount) / NANO


@dataclass(frozen=True, slots=True)
class Limit:
    """No more than so much in every window of time.

    Attributes:
        scope: The kernel's own, the person's over all kernels, the team's over all its people, or
            that of one run over rows on several workers.
        metric: What is counted.
        cap: Requests, tokens, or nano-dollars.
        window: Seconds; None is as long as the scope lives (the kernel, or since a reset).
        command: What to type to change it, with ``{}`` for the number; empty is %llm_quota.
    """

    scope: Scope
    metric: Metric
    cap: int
    window: float | None
    command: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Amount:
    """Requests, tokens and nano-dollars, as held or as used."""

    requests: int = 0
    tokens: int = 0
    nanos: int = 0

    def of(self, metric: Metric) -> int:
        """The number that a limit of this metric counts."""
        return self.nanos if metric == "usd" else int(getattr(self, metric))


@dataclass(frozen=True, slots=True)
class Claim:
    """What is to be held.

    Attributes:
        id: Unique; holding, sending and settling again under one id changes nothing.
        worst: The most that the call can come to.
        key: The request's key, or None for a call that nobody else may wait for.
        model: The model asked.
        cell: The cell that asks, such as ``In [5]``; empty outside of a notebook.
        sent: Whether the request goes out as soon as it is granted, and ``sent`` need not be said.
    """

    id: str
    worst: Amount
    key: str | None = None
    model: str = ""
    cell: str = ""
    sent: bool = False


@dataclass(frozen=True, slots=True)
class Used:
    """What a call came to.

    Attributes:
        amount: What is booked against the limits.
        model: The model that answered.
        input_tokens: Tokens of the prompt.
        output_tokens: Tokens of the answer.
        cached_tokens: The part of ``input_tokens`` that the provider read from its own cache.
        priced: False where the price was not known; ``amount.nanos`` is 0 then.
    """

    amount: Amount
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    priced: bool = True


@dataclass(frozen=True, slots=True)
class Saved:
    """An answer that was not paid again.

    Attributes:
        model: The model that had answered.
        cell: The cell that asked.
        tokens: Tokens in and out that were not used again.
        nanos: What they had cost, in nano-dollars; 0 where that was not known.
    """

    model: str
    cell: str
    tokens: int
    nanos: int


@dataclass(frozen=True, slots=True)
class Full:
    """Why a claim was not granted.

    Attributes:
        limit: The limit in the way; of several, the one that frees last.
        used: What counts against it now.
        asked: What the claim would add.
        retry_at: Unix time in seconds from which the claim fits, or None where it never does.
    """

    limit: Limit
    used: int
    asked: int
    retry_at: float | None


Verdict = Full | Literal["held", "flying"]
"""``held``: granted. ``flying``: a living process has an open hold for the same key."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of usage: the sum of a model's, a day's or a cell's calls.

    Attributes:
        name: The model, day (``2026-11-24``, local time) or cell.
        requests: Requests that were sent.
        input_tokens: Tokens in.
        output_tokens: Tokens out.
        cached_tokens: The part of ``input_tokens`` that providers read from their own caches.
        nanos: What was spent, in nano-dollars, as far as prices were known.
        unpriced: Requests whose price was not known.
        hits: Answers that were not paid again.
        saved_tokens: Tokens of those answers.
        saved_nanos: What they had cost.
    """

    name: str
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    nanos: int = 0
    unpriced: int = 0
    hits: int = 0
    saved_tokens: int = 0
    saved_nanos: int = 0


class Ledger(Protocol):
    """One ledger for all kernels of a person, or of a team.

    Every method raises StoreError where it cannot; which limits are shared is in ``shared_limits``.

    Attributes:
        lease: Seconds that a hold outlives its last renewal where its process cannot be looked at.
    """

    lease: float

    def hold(self, claim: Claim, limits: Sequence[Limit]) -> Verdict:
        """Holds a call's worst case if it fits all of these and the shared limits."""

    def hold_many(self, claims: Sequence[Claim], limits: Sequence[Limit]) -> list[Verdict]:
        """Holds calls as if one after the other in this order, in one step."""

    def sent(self, id: str) -> None:  # noqa: A002
        """The request is about to be sent: from now on it may be counted."""

    def settle(self, id: str, used: Used) -> None:  # noqa: A002
        """Books what a call used, whether or not its hold is still known."""

    def void(self, id: str) -> None:  # noqa: A002
        """Frees a hold that came to nothing; unknown ids are no error."""

    def settle_many(self, uses: Sequence[tuple[str, Used | None]]) -> None:
        """Settles these calls, or voids them (None), as if one after the other, in one step."""

    def flying(self, key: str) -> bool:
        """Whether a living process has an open hold for this key."""

    def renew(self) -> None:
        """Prolongs the leases of this process's open holds; due every ``lease / 3`` seconds."""

    def standing(self, limits: Sequence[Limit]) -> list[tuple[Limit, int]]:
        """What counts now against each of these limits, then against each of the shared ones."""

    def shared_limits(self) -> list[Limit]:
        """The limits of the person, and of the team, that were set for all kernels."""

    def limit_shared(
        self, scope: Scope, metric: Metric, cap: int | None, window: float | None
    ) -> None:
        """Sets a limit for all kernels of the ``user`` or ``team``, or takes it away (cap None)."""

    def forgive(self, scope: Scope) -> None:
        """Lets what was used so far no longer count against this scope's limits."""

    def saved(self, saved: Saved) -> None:
        """Notes a free answer. In memory first: a hit must not wait for the disk."""

    def saved_many(self, saved: Sequence[Saved]) -> None:
        """Notes free answers."""

    def usage(
        self, by: Literal["model", "day", "cell"], *, kernel_only: bool = False
    ) -> list[Line]:
        """Sums by model, day or cell, the largest spending first (days: the newest first)."""

    def reset_file(self) -> None:
        """Sets a damaged file aside under a new name and starts to count anew."""

    def close(self) -> None:
        """Writes what is pending and lets go of the file."""


LEASE = 60.0
"""The ``lease`` of a ledger on disk."""


def summed(lines: Sequence[Line]) -> Line:
    """All lines as one."""
    total: dict[str, Any] = {
        name: sum(getattr(each, name) for each in lines)
        for name in Line.__slots__
        if name != "name"
    }
    return Line("total", **total)
