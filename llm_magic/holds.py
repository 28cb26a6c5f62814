"""A call's place in the ledger: its worst case before it is sent, the truth after."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from llm_magic.answer import Answer
from llm_magic.bounds import ZERO, Terms, Worst
from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Claim, Used, nanos
from llm_magic.types import Usage

if TYPE_CHECKING:
    from llm_magic.booking import Quota


class Hold:
    """One call's place in the ledger.

    Args:
        quota: Where it is held.
        terms: What it may spend.
        id_: Its id there.
        sent: It is sent as soon as it is granted.

    Attributes:
        id: Its id there.
        worst: What is held, once it is.
        booked: Whether the ledger knows of it.
        held: Nano-dollars that it holds in the purse of its run; None while it holds nothing there.
        refused: Whether nothing is held, since it does not fit.
        closed: Whether it was given back or settled.
    """

    worst: Worst

    def __init__(self, quota: Quota, terms: Terms, id_: str, *, sent: bool = False) -> None:
        self.id = id_
        self.terms = terms
        self.booked = True
        self.held: int | None = None
        self.refused = self.closed = False
        self._quota = quota
        self._sent = sent
        self._priced: tuple[str, Usage, Decimal | None] | None = None

    def claim(self, key: str | None) -> Claim:
        """What is asked of the ledger."""
        model, cell = self.worst.request.model, self.terms.cell
        return Claim(self.id, self.worst.amount, key, model, cell, sent=self._sent)

    def take(self) -> None:
        """Holds the worst case in the purse of its run; on the ledger's thread."""
        self.refused = False
        if self.terms.purse:
            self.held = self.worst.amount.nanos
            self.terms.purse.hold(self.held)

    def release(self, spent: int = 0) -> None:
        """Puts what was spent in the place of what is held there; on the ledger's thread."""
        if self.terms.purse and self.held is not None:
            self.terms.purse.settle(self.held, spent)
        self.held = None

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
        cost: Decimal | None = await self._quota.do(self.cost_of, answer)
        return cost

    def cost_of(self, answer: Answer) -> Decimal | None:
        """The same, on the ledger's thread."""
        cost = self._cost(answer.model or answer.request.model, answer.counted())
        if cost is None or answer.before is None:
            return cost
        return None if answer.before.cost is None else answer.before.cost + cost

    def settle(self, answer: Answer) -> None:
        """Books what the call came to; in its turn, so nobody waits for the disk."""
        self._close(answer)

    def give_back(self) -> None:
        """Frees what is held, for a call that is not made."""
        self._close(None)

    def _close(self, answer: Answer | None) -> None:
        # The first end counts: a purse does not know its holds by their ids, as the ledger does.
        if not self.closed:
            self.closed = True
            self._quota.close(self, answer)

    def used(self, answer: Answer | None) -> Used | None:
        """What a call came to; None where it came to nothing."""
        if answer is None or not self._sent or not answer.billable:
            return None
        usage, model = answer.counted(), answer.model or answer.request.model
        cost = self._cost(model, usage)
        return Used(
            self._booked(answer, cost),
            model,
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_tokens,
            priced=cost is not None,
        )

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

    def _cost(self, model: str, usage: Usage) -> Decimal | None:
        # Asked for twice, for the response and for the ledger.
        if self._priced is None or self._priced[:2] != (model, usage):
            self._priced = model, usage, self._find_cost(model, usage)
        return self._priced[2]

    def _find_cost(self, model: str, usage: Usage) -> Decimal | None:
        request, prices = self.worst.request, self.terms.prices
        tier = request.fields.get("service_tier")
        # By the model that answered; a name that only the server knows has the price of the one
        # that was asked.
        for name in (model or request.model, request.model):
            cost = prices.cost(name, request.base_url, usage, service_tier=tier)
            if cost is not None:
                return cost
        return None
