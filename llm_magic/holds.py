"""A call's place in the ledger: its worst case before it is sent, the truth after."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from decimal import Decimal
from typing import Any, Literal

from llm_magic.answer import Answer
from llm_magic.bounds import ZERO, Terms, Worst, refusal, worst_case
from llm_magic.errors import StoreError
from llm_magic.ledger import LEASE, Amount, Claim, Full, Ledger, Used, nanos
from llm_magic.types import Request, Usage


class Quota:
    """The ledger as calls use it: a claim before, the truth after.

    Args:
        ledger: Where it is written.
        executor: One thread: what is done first is written first, and waits for no loop.
        trouble: Told what is worked around.
    """

    def __init__(
        self, ledger: Ledger, executor: Executor, trouble: Callable[[str, str], None]
    ) -> None:
        self.ledger = ledger
        self._executor = executor
        self._trouble = trouble
        self._open: set[Hold] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def hold(
        self, request: Request, body: Mapping[str, Any], key: str | None, terms: Terms
    ) -> Hold | Literal["flying"]:
        """Holds the worst case of a request.

        Args:
            request: What is asked.
            body: The JSON body that it becomes.
            key: The request's key, where equal calls are one; else None.
            terms: The limits.

        Returns:
            The hold, or ``"flying"`` where another kernel is asking the same.

        Raises:
            QuotaExceeded: It does not fit, or its price is not known and a limit is in USD.
            StoreError: The ledger cannot be written, and the terms are strict.
        """
        hold = Hold(self, terms, uuid.uuid4().hex)
        try:
            granted: Hold | Literal["flying"] = await self.do(self._hold, hold, request, body, key)
            if isinstance(granted, Hold):
                self._renew_while_open(granted)
            return granted
        except asyncio.CancelledError:
            # The thread works in order, so this frees the hold even if it is being made now.
            hold.give_back()
            raise

    def _hold(
        self, hold: Hold, request: Request, body: Mapping[str, Any], key: str | None
    ) -> Hold | Literal["flying"]:
        terms = hold.terms
        try:
            standing = self.ledger.standing(terms.limits)
            hold.worst = worst_case(request, body, terms, standing)
            claim = Claim(hold.id, hold.worst.amount, key, request.model, terms.cell)
            verdict = self.ledger.hold(claim, terms.limits)
        except StoreError as error:
            if terms.strict:
                raise
            self._trouble(f"{error.args[0]} Calls are not counted.", error.fix)
            hold.worst = worst_case(request, body, terms, [])
            hold.booked = False
            return hold
        if isinstance(verdict, Full):
            raise refusal(verdict)
        return hold if verdict == "held" else "flying"

    def _renew_while_open(self, hold: Hold) -> None:
        """Prolongs the leases of open holds, for those who cannot look at this process."""
        self._open.add(hold)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            self.later(self.ledger.renew)

    def closed(self, hold: Hold) -> None:
        """Notes that a hold is no longer open."""
        self._open.discard(hold)
        if self._renewing and not self._open:
            self._renewing.cancel()
            self._renewing = None

    async def do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Runs something on the ledger's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def wait(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Runs something on the ledger's thread, behind all that was booked so far."""
        return self._executor.submit(work, *arguments).result()

    def later(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Has something done on the ledger's thread, in its turn; nobody waits for it."""
        try:
            self._executor.submit(self._tried, work, *arguments)
        except RuntimeError:
            # The interpreter is ending, and its threads take nothing more.
            self._tried(work, *arguments)

    def _tried(self, work: Callable[..., Any], *arguments: Any) -> None:
        try:
            work(*arguments)
        except StoreError as error:
            self._trouble(str(error.args[0]), error.fix)


class Hold:
    """One call's place in the ledger.

    Attributes:
        id: Its id there.
        worst: What is held, once it is.
        booked: Whether the ledger knows of it.
    """

    worst: Worst

    def __init__(self, quota: Quota, terms: Terms, id_: str) -> None:
        self.id = id_
        self.terms = terms
        self.booked = True
        self._quota = quota
        self._sent = False

    async def sent(self) -> None:
        """To be called before each attempt; the first one is written down.

        Raises:
            StoreError: The ledger cannot be written, and the terms are strict.
        """
        if self._sent or not self.booked:
            return
        self._sent = True
        try:
            await self._quota.do(self._quota.ledger.sent, self.id)
        except StoreError as error:
            if self.terms.strict:
                self._sent = False
                raise
            self._quota._trouble(str(error.args[0]), error.fix)
        # Looked up while the server thinks, so that it is there when the answer ends.
        request = self.worst.request
        self._quota.later(self.terms.prices.known, request.model, request.base_url)

    async def price(self, answer: Answer) -> Decimal | None:
        """What an answer cost in USD, with those before it; None where that is not known."""
        # Not on the loop's thread: the list of prices takes 0.2 s to import.
        model = answer.model or answer.request.model
        cost: Decimal | None = await self._quota.do(self._cost, model, answer.counted())
        if cost is None or answer.before is None:
            return cost
        return None if answer.before.cost is None else answer.before.cost + cost

    def settle(self, answer: Answer) -> None:
        """Books what the call came to; in its turn, so nobody waits for the disk."""
        self._quota.closed(self)
        if self.booked:
            self._quota.later(self._settle, answer)

    def _settle(self, answer: Answer) -> None:
        ledger = self._quota.ledger
        if not self._sent or not answer.billable:
            ledger.void(self.id)
            return
        usage, model = answer.counted(), answer.model or answer.request.model
        cost = self._cost(model, usage)
        used = Used(
            self._booked(answer, cost),
            model,
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_tokens,
            priced=cost is not None,
        )
        ledger.settle(self.id, used)

    def _booked(self, answer: Answer, cost: Decimal | None) -> Amount:
        """What counts against the limits: the truth, or a bound of it."""
        held = self.worst.amount
        if answer.usage:
            return Amount(1, answer.usage.total_tokens, nanos(cost or ZERO))
        bound = Usage(self.worst.input_tokens, answer.received())
        most = nanos(self._cost(answer.model, bound) or ZERO)
        if answer.finished:
            # Complete, but nobody counted: a token is at least a byte.
            capped = self.worst.output_tokens is not None
            tokens = min(held.tokens, bound.total_tokens) if capped else bound.total_tokens
            return Amount(1, tokens, min(held.nanos, most) if capped else most)
        # Cut off. What the provider counted until then, thinking included, nobody has told us.
        return Amount(1, max(held.tokens, bound.total_tokens), max(held.nanos, most))

    def give_back(self) -> None:
        """Frees what is held, for a call that is not made."""
        self._quota.closed(self)
        if self.booked:
            self._quota.later(self._quota.ledger.void, self.id)

    def _cost(self, model: str, usage: Usage) -> Decimal | None:
        request, prices = self.worst.request, self.terms.prices
        tier = request.fields.get("service_tier")
        # By the model that answered; a name that only the server knows has the price of the one
        # that was asked.
        for name in (model, request.model):
            cost = prices.cost(name, request.base_url, usage, service_tier=tier)
            if cost is not None:
                return cost
        return None
