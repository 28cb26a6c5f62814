"""A shared ledger that may fail, and the machine's own that counts meanwhile.

Only where the user wants it so (``quota_strict = False``): what others spend is then not seen, and
a limit of the team is kept by each machine for itself. What was used meanwhile is booked in the
shared ledger as well, once it is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from llm_magic.entries import Trouble
from llm_magic.errors import StoreError
from llm_magic.ledger import (
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


class SpareLedger(Ledger):
    """A ledger, and another one for as long as it cannot be used.

    Args:
        shared: The ledger.
        own: The other one, which knows kernel and user only.
        trouble: Told once that it is in use.
    """

    def __init__(self, shared: Ledger, own: Ledger, trouble: Trouble) -> None:
        self.lease = shared.lease
        self._shared = shared
        self._own = own
        self._trouble = trouble
        # Calls that are open in the own ledger.
        self._here: set[str] = set()

    def hold(self, claim: Claim, limits: Sequence[Limit]) -> Verdict:
        """Holds a call in the shared ledger, or else in the own one."""
        return self.hold_many([claim], limits)[0]

    def hold_many(self, claims: Sequence[Claim], limits: Sequence[Limit]) -> list[Verdict]:
        """Holds calls in the shared ledger, or else in the own one."""
        try:
            return self._shared.hold_many(claims, limits)
        except StoreError as error:
            self._tell(error)
        meant = {_local(limit): limit for limit in limits}
        verdicts = self._own.hold_many(claims, list(meant))
        pairs = zip(claims, verdicts, strict=True)
        self._here |= {claim.id for claim, verdict in pairs if verdict == "held"}
        return [
            replace(each, limit=meant.get(each.limit, each.limit)) if type(each) is Full else each
            for each in verdicts
        ]

    def sent(self, id: str) -> None:  # noqa: A002
        """The request is about to be sent: from now on it may be counted."""
        (self._own if id in self._here else self._shared).sent(id)

    def settle(self, id: str, used: Used) -> None:  # noqa: A002
        """Books what a call used, in the ledger that holds it."""
        self.settle_many([(id, used)])

    def void(self, id: str) -> None:  # noqa: A002
        """Frees a hold that came to nothing, in the ledger that has it."""
        self.settle_many([(id, None)])

    def settle_many(self, uses: Sequence[tuple[str, Used | None]]) -> None:
        """Books what calls used, or frees their holds (None), in the ledger that has them.

        What the own one has is booked in the shared one as well; it writes that when it can.
        """
        own = [use for use in uses if use[0] in self._here]
        self._own.settle_many(own)
        shared = [use for use in uses if use[1] is not None or use[0] not in self._here]
        self._here.difference_update(id_ for id_, _ in own)
        if shared:
            self._shared.settle_many(shared)

    def flying(self, key: str) -> bool:
        """Whether a living process has an open hold for this key, as far as can be seen."""
        try:
            return self._shared.flying(key)
        except StoreError:
            return self._own.flying(key)

    def renew(self) -> None:
        """Prolongs the leases of this process's open holds."""
        if self._here:
            self._own.renew()
        self._shared.renew()

    def standing(self, limits: Sequence[Limit]) -> list[tuple[Limit, int]]:
        """What counts now against each limit, in the ledger that can be used."""
        try:
            return self._shared.standing(limits)
        except StoreError as error:
            self._tell(error)
        found = self._own.standing([_local(limit) for limit in limits])
        counts = [used for _, used in found[: len(limits)]]
        return [*zip(limits, counts, strict=True), *found[len(limits) :]]

    def shared_limits(self) -> list[Limit]:
        """The limits that were set for all kernels, in the shared ledger."""
        return self._shared.shared_limits()

    def limit_shared(
        self, scope: Scope, metric: Metric, cap: int | None, window: float | None
    ) -> None:
        """Sets a limit for all kernels, in the shared ledger."""
        self._shared.limit_shared(scope, metric, cap, window)

    def forgive(self, scope: Scope) -> None:
        """Lets what was used so far no longer count, in both ledgers."""
        self._shared.forgive(scope)
        if scope in ("kernel", "user"):
            self._own.forgive(scope)

    def saved(self, saved: Saved) -> None:
        """Notes a free answer."""
        self._shared.saved(saved)

    def saved_many(self, saved: Sequence[Saved]) -> None:
        """Notes free answers."""
        self._shared.saved_many(saved)

    def usage(
        self, by: Literal["model", "day", "cell"], *, kernel_only: bool = False
    ) -> list[Line]:
        """Sums by model, day or cell, of the shared ledger."""
        return self._shared.usage(by, kernel_only=kernel_only)

    def reset_file(self) -> None:
        """Starts to count anew in the shared ledger."""
        self._shared.reset_file()

    def close(self) -> None:
        """Writes what is pending and lets go of both."""
        try:
            self._shared.close()
        finally:
            self._own.close()

    def _tell(self, error: StoreError) -> None:
        self._trouble(
            "The shared quota cannot be used, so calls are counted in this machine's own ledger "
            f"until it can: {error.args[0].replace('; nothing was sent', '')}",
            error.fix,
        )


def _local(limit: Limit) -> Limit:
    """A limit as the machine's own ledger can keep it."""
    scopes: dict[Scope, Scope] = {"team": "user", "run": "kernel"}
    return replace(limit, scope=scopes.get(limit.scope, limit.scope))
