"""What a request can come to at most, and what to say where that is too much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llm_magic.entries import dumps
from llm_magic.errors import QuotaExceeded
from llm_magic.ledger import Amount, Full, Limit, Metric, dollars, nanos
from llm_magic.prices import Prices
from llm_magic.types import Request
from llm_magic.units import clock, span, usd

if TYPE_CHECKING:
    from llm_magic.structured import Schema

LARGEST_CAP = 16_384
"""The cap on an answer, in tokens, that is sent where a limit needs one and the call names none."""
SMALLEST_CAP = 256
"""An answer is not begun, in tokens, with less than this left for it."""
IMAGE_TOKENS = 50_000
"""The most that an image counts, in tokens: gpt-4o-mini at high detail takes 2,833 and 5,667 for
each of up to 8 tiles (OpenAI's guide to images and vision)."""


class Purse:
    """What all rows of one run may come to. Counted on the ledger's thread alone.

    Args:
        cap: USD; None for no such limit.

    Attributes:
        rows: How many are on their way.
        held: Nano-dollars that they can come to at most.
        spent: Nano-dollars that rows came to.
    """

    def __init__(self, cap: Decimal | None = None) -> None:
        self.cap = cap
        self.rows = self.held = self.spent = 0

    @property
    def left(self) -> Decimal | None:
        """USD that one more row may come to; None for any amount."""
        return None if self.cap is None else self.cap - dollars(self.held + self.spent)

    def hold(self, amount: int) -> None:
        """Holds a row's worst case, in nano-dollars."""
        self.rows += 1
        self.held += amount

    def settle(self, held: int, spent: int) -> None:
        """Puts what a row came to in the place of what it held."""
        self.rows -= 1
        self.held -= held
        self.spent += spent


@dataclass(frozen=True, slots=True)
class Terms:
    """What one call may spend.

    Attributes:
        limits: Of the kernel and of the person, as far as they are settings.
        prices: What models cost.
        max_cost: The most that this call may come to, in USD; None for no such limit.
        strict: Whether nothing is asked when the ledger cannot be written.
        cell: The cell that asks; empty outside of a notebook.
        purse: What the calls of its run may spend together.
        team: The name of the team whose limits are among them; empty where there is none.
    """

    limits: Sequence[Limit] = ()
    prices: Prices = field(default_factory=Prices)
    max_cost: Decimal | None = None
    strict: bool = True
    cell: str = ""
    purse: Purse | None = None
    team: str = ""

    @property
    def most(self) -> Decimal | None:
        """The most that the call may come to now, in USD; None for no such limit."""
        left = self.purse.left if self.purse else None
        if left is None or self.max_cost is None:
            return self.max_cost if left is None else left
        return min(left, self.max_cost)


@dataclass(frozen=True, slots=True)
class Worst:
    """The most that a request can come to.

    Attributes:
        request: The request, with a cap on the answer where a limit needs one.
        input_tokens: Bound on its tokens in.
        output_tokens: Bound on its tokens out, or None where nothing caps them.
        cost: Bound on its price in USD, or None where it is not known.
    """

    request: Request
    input_tokens: int
    output_tokens: int | None
    cost: Decimal | None

    @property
    def amount(self) -> Amount:
        """What is held; an answer without a cap is held where no limit asks for more."""
        return Amount(1, self.input_tokens + (self.output_tokens or 0), nanos(self.cost or ZERO))


ZERO = Decimal(0)


def input_bound(body: Mapping[str, Any]) -> int:
    """Tokens of a body at most: a token is at least one byte; images by their own bound."""
    if not any(isinstance(message["content"], list) for message in body["messages"]):
        return len(dumps(body))
    images = 0
    messages = []
    for message in body["messages"]:
        parts = message["content"]
        if isinstance(parts, list):
            images += sum(part.get("type") == "image_url" for part in parts)
            parts = [part for part in parts if part.get("type") != "image_url"]
        messages.append({**message, "content": parts})
    return len(dumps({**body, "messages": messages})) + images * IMAGE_TOKENS


def output_bound(request: Request) -> int | None:
    """Tokens of the answer at most, of all ``n`` of them; None where nothing caps them."""
    named = [request.fields.get(name) for name in ("max_completion_tokens", "max_tokens")]
    caps = [cap for cap in (request.max_tokens, *named) if isinstance(cap, int)]
    return max(caps) * _answers(request) if caps else None


def _answers(request: Request) -> int:
    count = request.fields.get("n")
    return count if isinstance(count, int) and count > 0 else 1


def worst_case(
    request: Request,
    body: Mapping[str, Any],
    terms: Terms,
    standing: Sequence[tuple[Limit, int]],
    *,
    whole: bool = False,
) -> Worst:
    """The most that a request can come to, capped where a limit needs it.

    Args:
        request: What is asked.
        body: The JSON body that it becomes.
        terms: Prices and the call's own limit.
        standing: Every limit that applies, and what counts against it now.
        whole: Whether it takes no smaller cap than the largest, whatever is left.

    Raises:
        QuotaExceeded: A limit in USD, and the price is not known; or ``max_cost`` is passed.
    """
    tokens_in, out = input_bound(body), output_bound(request)
    if request.schema:
        # In words as well, for a server that will not take it as a field.
        tokens_in += _in_words(request.schema)
    limited = {limit.metric for limit, _ in standing} - {"requests"}
    most = terms.most
    in_money = "usd" in limited or most is not None
    tier = request.fields.get("service_tier")

    known: dict[int, Decimal | None] = {}

    def price(tokens_out: int) -> Decimal | None:
        if tokens_out not in known:
            known[tokens_out] = terms.prices.worst(
                request.model, request.base_url, tokens_in, tokens_out, service_tier=tier
            )
        return known[tokens_out]

    if in_money and price(LARGEST_CAP if out is None else out) is None:
        raise _unpriced(request)
    # Models that are held to JSON can fall into endless blanks: such an answer has a cap always.
    if out is None and (limited or most is not None or request.schema):
        cap = LARGEST_CAP if whole else _affordable(tokens_in, price, most, standing)
        request = replace(request, max_tokens=cap)
        out = cap * _answers(request)
    cost = price(out) if out is not None else None
    if most is not None and cost is not None and cost > most:
        raise _too_dear(terms, cost)
    return Worst(request, tokens_in, out, cost)


@lru_cache(maxsize=64)
def _in_words(schema: Schema) -> int:
    return len(dumps(schema.instruction))


def _affordable(
    tokens_in: int,
    price: Callable[[int], Decimal | None],
    most: Decimal | None,
    standing: Sequence[tuple[Limit, int]],
) -> int:
    """The largest cap that fits; the smallest one where none does, which is then refused."""

    def fits(cap: int) -> bool:
        cost = price(cap) or ZERO
        if most is not None and cost > most:
            return False
        ask = Amount(1, tokens_in + cap, nanos(cost))
        return all(used + ask.of(limit.metric) <= limit.cap for limit, used in standing)

    if fits(LARGEST_CAP):
        return LARGEST_CAP
    low, high = SMALLEST_CAP, LARGEST_CAP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _unpriced(request: Request) -> QuotaExceeded:
    return QuotaExceeded(
        f"The price of {request.model} is not known, and a limit in USD is set; nothing was sent.",
        fix=f"Say it, in USD per million tokens: %config LLMMagic.prices = "
        f'{{"{request.model}": {{"input": 1, "output": 2}}}}',
        metric="usd",
        asked=None,
    )


def _too_dear(terms: Terms, cost: Decimal) -> QuotaExceeded:
    left = terms.purse.left if terms.purse else None
    if terms.purse and left is not None and cost > left:
        cap = terms.purse.cap
        return QuotaExceeded(
            f"{usd(max(ZERO, left))} is left of --max-cost {cap}, and one more row can cost up to "
            f"{usd(cost)}; it was not sent.",
            fix="Ask for shorter answers with --max-tokens N, or allow more.",
            scope="run",
            metric="usd",
            cap=cap,
            used=dollars(terms.purse.spent),
            asked=cost,
        )
    return QuotaExceeded(
        f"This call can cost up to {usd(cost)}, more than --max-cost {terms.max_cost}; nothing "
        "was sent.",
        fix="Ask for a shorter answer with --max-tokens N, or allow more.",
        scope="call",
        metric="usd",
        cap=terms.max_cost,
        asked=cost,
    )


def shown(metric: Metric, amount: int, *, bare: bool = False) -> str:
    """An amount as people read it: ``$1.98``, or ``12,000 tokens``; bare is ``12,000``."""
    if metric == "usd":
        return usd(dollars(amount))
    name = metric.removesuffix("s") if amount == 1 else metric
    return f"{amount:,}" if bare else f"{amount:,} {name}"


def in_the_way(worst: Worst, standing: Sequence[tuple[Limit, int]]) -> Full | None:
    """The limit that a request would pass if it were sent now; of several, the first."""
    for limit, used in standing:
        asked = worst.amount.of(limit.metric)
        if used + asked > limit.cap:
            return Full(limit, used, asked, None)
    return None


def refusal(full: Full, team: str = "") -> QuotaExceeded:
    """The error of a claim that does not fit.

    Args:
        full: Why it was not granted.
        team: The name of the team that a limit of scope ``team`` is for.
    """
    limit, metric = full.limit, full.limit.metric
    time = f"in {span(limit.window)}" if limit.window else "since it started"
    cap = dollars(limit.cap) if metric == "usd" else limit.cap
    more = max(2 * limit.cap, full.used + full.asked)
    enough = f"{dollars(more):f}" if metric == "usd" else str(more)
    shorter = "" if metric == "requests" else "Ask for a shorter answer (--max-tokens N), or raise"
    wait = f"It fits again at {clock(full.retry_at)}. " if full.retry_at else ""
    asks = (
        "" if metric == "requests" else f", and this call can come to {shown(metric, full.asked)}"
    )
    return QuotaExceeded(
        f"{_who_has(limit, team)} used {shown(metric, full.used, bare=True)} of "
        f"{shown(metric, limit.cap)} {time}{asks}; nothing was sent.",
        fix=f"{wait}{shorter or 'Raise'} the limit: {_command(limit, enough)}",
        scope=limit.scope,
        metric=metric,
        cap=cap,
        used=dollars(full.used) if metric == "usd" else full.used,
        asked=dollars(full.asked) if metric == "usd" else full.asked,
        retry_at=full.retry_at,
    )


def _who_has(limit: Limit, team: str) -> str:
    match limit.scope:
        case "kernel":
            return "This kernel has"
        case "team":
            return f"Team {team} has" if team else "The team has"
        case "run":
            return "This run has"
        case _:
            return "You have"


def _command(limit: Limit, enough: str) -> str:
    """What to type for another cap: of the setting that says the limit, if one does."""
    if limit.command:
        return limit.command.format(enough)
    per = "kernel" if limit.window is None else span(limit.window).replace(" ", "")
    scope = "" if limit.scope == "kernel" else f" --scope {limit.scope}"
    return f"%llm_quota --{limit.metric} {enough} --per {per}{scope}"
