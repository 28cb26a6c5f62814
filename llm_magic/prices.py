"""What calls cost: the user's own table first, then the public list prices. Always Decimal.

A price that is not known is None and never 0, since a limit in dollars would pass what it cannot
see. The only module that knows genai-prices, which brings its list along and is never let online.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal, localcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from llm_magic.entries import normalised
from llm_magic.errors import PromptError
from llm_magic.types import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, PriceCalculation, Provider, TieredPrices

MILLION = Decimal(1_000_000)

_FIELDS = ("input", "output", "cached", "cache_write", "reasoning")
_EXAMPLE = '%config LLMMagic.prices = {"my-model": {"input": 0.25, "output": 2}, "gpu-box:8000": 0}'
_LOOPBACK = re.compile(r"localhost|127\.[\d.]+|::1|0\.0\.0\.0")
_DATE = re.compile(r"-20\d\d(-\d\d-\d\d|\d{4})$")
# Tiers that are billed at list prices or below; another one may be dearer.
_LISTED_TIERS = (None, "auto", "default", "flex")
# A notebook may have set its own precision; money is not computed with it.
_EXACT = Context(prec=50, rounding=ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class _Rates:
    """A line of the user's table: USD per million tokens."""

    input: Decimal
    output: Decimal
    cached: Decimal
    cache_write: Decimal
    reasoning: Decimal

    def cost(self, tokens: _Tokens) -> Decimal:
        plain = tokens.input - tokens.cached - tokens.written
        return (
            plain * self.input
            + tokens.cached * self.cached
            + tokens.written * self.cache_write
            + (tokens.output - tokens.reasoning) * self.output
            + tokens.reasoning * self.reasoning
        ) / MILLION

    def worst(self, input_tokens: int, output_tokens: int) -> Decimal:
        into = input_tokens * max(self.input, self.cached, self.cache_write)
        return (into + output_tokens * max(self.output, self.reasoning)) / MILLION


_FREE = _Rates(*[Decimal(0)] * len(_FIELDS))


class _Tokens(NamedTuple):
    """Counts that add up."""

    input: int
    output: int
    cached: int
    written: int
    reasoning: int


def _tokens(usage: Usage) -> _Tokens:
    """The counts, with no part larger than its whole, whatever a server reports."""
    total, output = max(usage.input_tokens, 0), max(usage.output_tokens, 0)
    cached = min(max(usage.cached_tokens, 0), total)
    written = min(max(usage.cache_write_tokens, 0), total - cached)
    return _Tokens(total, output, cached, written, min(max(usage.reasoning_tokens, 0), output))


class Prices:
    """Prices of models at servers.

    Args:
        own: The user's table. Keys are model names, patterns such as ``qwen*``, or a server's
            address or host for all of its models; an exact name wins over a pattern, a pattern
            over a server, a longer key over a shorter one. An exact name also stands for its
            dated versions. Values are a mapping with ``input`` and ``output``, and optionally
            ``cached``, ``cache_write`` (default: ``input``) and ``reasoning`` (default:
            ``output``), all in USD per million tokens; or 0 or ``"free"``.

    Raises:
        PromptError: The table is not of this form.
    """

    def __init__(self, own: Mapping[str, Any] | None = None) -> None:
        if own is not None and not isinstance(own, Mapping):
            raise _wrong(f"The prices are {own!r:.60}, and not a table of models.")
        rows = {_key(key): _row(key, value) for key, value in (own or {}).items()}
        # The longest key first: where two patterns or two servers fit, the closer one counts.
        self._own = dict(sorted(rows.items(), key=lambda row: -len(row[0])))
        self._flat = lru_cache(maxsize=256)(self._find_flat)

    def cost(
        self, model: str, base_url: str, usage: Usage, *, service_tier: str | None = None
    ) -> Decimal | None:
        """What a call cost, in USD; None where the price is not known.

        Servers on this machine are free unless the user's table says otherwise.

        Args:
            model: The model's name, as asked or as the server returned it.
            base_url: The server.
            usage: Tokens, counted or estimated.
            service_tier: As for ``worst``.
        """
        tokens = _tokens(usage)
        with localcontext(_EXACT):
            flat = self._flat(model, base_url)
            if flat is not None:
                return flat.cost(tokens)
            found = _listed(model, base_url) if service_tier in _LISTED_TIERS else None
            return _listed_cost(found, tokens) if found is not None else None

    def worst(
        self,
        model: str,
        base_url: str,
        input_tokens: int,
        output_tokens: int,
        *,
        service_tier: str | None = None,
    ) -> Decimal | None:
        """The most that a call can cost today or tomorrow, in USD; None where that is not known.

        Args:
            model: The model's name.
            base_url: The server.
            input_tokens: The prompt has no more tokens.
            output_tokens: The answer has no more tokens, reasoning included.
            service_tier: As in the request's body. Only the user's own table is believed to know
                what a dearer tier, such as ``"priority"``, costs.
        """
        with localcontext(_EXACT):
            flat = self._flat(model, base_url)
            if flat is not None:
                return flat.worst(input_tokens, output_tokens)
            found = _listed(model, base_url) if service_tier in _LISTED_TIERS else None
            if found is None:
                return None
            lists = _prices_ahead(found.model, _now())
            if not all(_has_price(found.model, prices) for prices in lists):
                return None
            return max(_dearest(prices, input_tokens, output_tokens) for prices in lists)

    def known(self, model: str, base_url: str) -> bool:
        """Whether there is a price."""
        return self.of(model, base_url) is not None

    def of(self, model: str, base_url: str) -> tuple[Decimal, Decimal] | None:
        """USD per million tokens in and out, for a short prompt now; None where not known."""
        flat = self._flat(model, base_url)
        if flat is not None:
            return flat.input, flat.output
        found = _listed(model, base_url)
        if found is None:
            return None
        prices = found.model.get_prices(_now())
        both = _at(prices.input_mtok, 0), _at(prices.output_mtok, 0)
        return both if _has_price(found.model, prices) else None

    def _find_flat(self, model: str, base_url: str) -> _Rates | None:
        """The line of the user's table, or nothing to pay at a server on this machine."""
        name = model.lower()
        fitting = [
            *(each for each in (name, _DATE.sub("", name)) if each in self._own),
            *(each for each in self._own if _is_pattern_of(each, name)),
            *(each for each in self._own if _is_server(each, base_url)),
        ]
        if fitting:
            return self._own[fitting[0]]
        return _FREE if _LOOPBACK.fullmatch(urlsplit(base_url).hostname or "") else None


def _key(key: Any) -> str:
    if not isinstance(key, str) or not key.strip():
        raise _wrong(f"The prices have {key!r:.60} for a model's name.")
    name = key.strip()
    return (normalised(name) if "://" in name else name).lower()


def _row(key: str, value: Any) -> _Rates:
    if value == "free" or (_is_number(value) and value == 0):
        return _FREE
    if not isinstance(value, Mapping):
        raise _wrong(f"The price of {key!r} is {value!r:.60}; it takes a table, 0 or 'free'.")
    for name in value:
        if name not in _FIELDS:
            near = difflib.get_close_matches(str(name), _FIELDS, n=1)
            instead = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(_FIELDS)}."
            raise _wrong(f"The price of {key!r} has no field {name!r:.60}; {instead}")
    missing = [name for name in ("input", "output") if name not in value]
    if missing:
        raise _wrong(f"The price of {key!r} lacks {' and '.join(map(repr, missing))}.")
    given = {name: _amount(key, name, price) for name, price in value.items()}
    like_input = dict.fromkeys(("cached", "cache_write"), given["input"])
    return _Rates(**({**like_input, "reasoning": given["output"]} | given))


def _amount(key: str, name: str, price: Any) -> Decimal:
    if _is_number(price):
        # The shortest text of a float is what was typed: 0.1, and not 0.1000000000000000055.
        amount = Decimal(repr(float(price))) if isinstance(price, float) else Decimal(price)
        if amount.is_finite() and amount >= 0:
            return amount
    raise _wrong(f"The price of {key!r} has {name}={price!r:.60}; it takes USD, 0 or more.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _wrong(message: str) -> PromptError:
    return PromptError(f"{message} Nothing was sent.", fix=f"For example: {_EXAMPLE}")


def _is_pattern_of(key: str, name: str) -> bool:
    return any(sign in key for sign in "*?[") and fnmatch.fnmatchcase(name, key)


def _is_server(key: str, base_url: str) -> bool:
    """Whether a key is this server: its host, host and port, or address down to some folder."""
    address = normalised(base_url).lower()
    whole = address if "://" in key else address.partition("://")[2]
    return whole == key or whole.startswith(f"{key}/") or key == urlsplit(address).hostname


@lru_cache(maxsize=256)
def _listed(model: str, base_url: str) -> PriceCalculation | None:
    import genai_prices

    address = normalised(base_url)
    try:
        found = genai_prices.calc_price(genai_prices.Usage(), model, provider_api_url=address)
    except (LookupError, ValueError):
        return None
    return found if _is_its_host(found.provider, address) else None


def _is_its_host(provider: Provider, address: str) -> bool:
    """Whether an address is the provider's own and not just begins, or goes on, like it.

    The list's patterns are open at the end: api.openai.com.proxy.example fits OpenAI's, and a
    proxy's path may have any name in it. Who runs such a host may charge anything.
    """
    parts = urlsplit(address)
    other = f"{parts.scheme}://{re.sub('[^.]', '-', parts.netloc)}{parts.path}"
    match = re.match(provider.api_pattern, address)
    if match is None or re.match(provider.api_pattern, other):
        return False
    followed = address[match.end() : match.end() + 1]
    return match[0].endswith((".", "/")) or not re.match(r"[\w.-]", followed)


def _listed_cost(found: PriceCalculation, tokens: _Tokens) -> Decimal | None:
    import genai_prices

    usage = genai_prices.Usage(
        input_tokens=tokens.input,
        cache_read_tokens=tokens.cached,
        cache_write_tokens=tokens.written,
        output_tokens=tokens.output,
        output_reasoning_tokens=tokens.reasoning,
    )
    try:
        priced = found.model.calc_price(usage, found.provider, genai_request_timestamp=_now())
    except ValueError:
        return None
    return priced.total_price if _has_price(priced.model, priced.model_price) else None


def _has_price(model: ModelInfo, prices: ModelPrice) -> bool:
    """Whether both directions are priced, or free; what is missing is 0 in the list's own sums."""
    both = prices.input_mtok is not None and prices.output_mtok is not None
    return both or model.id.endswith(":free")


def _prices_ahead(info: ModelInfo, now: datetime) -> list[ModelPrice]:
    """All prices in force between now and the end of tomorrow: some are lower at night."""
    if not isinstance(info.prices, list):
        return [info.prices]
    times = {time(0)}
    for each in info.prices:
        if each.constraint is not None:
            times |= {value for value in vars(each.constraint).values() if type(value) is time}
    moments = [
        datetime.combine(now.date() + timedelta(days), moment, moment.tzinfo or UTC)
        for days in (0, 1)
        for moment in times
    ]
    return [info.get_prices(moment) for moment in (now, *moments)]


def _dearest(prices: ModelPrice, input_tokens: int, output_tokens: int) -> Decimal:
    """The most for at most so many tokens.

    Past a tier's start all tokens have the tier's price. Within a tier more tokens cost more, so
    that the dearest size is the largest of one of the tiers.
    """
    inputs = [prices.input_mtok, prices.cache_read_mtok, prices.cache_write_mtok]
    outputs = [prices.output_mtok, prices.output_reasoning_mtok]
    tiers = [tier for price in (*inputs, *outputs) for tier in getattr(price, "tiers", ())]
    sizes: set[int] = {input_tokens, *(min(tier.start, input_tokens) for tier in tiers)}
    most = max(
        size * max(_at(price, size) for price in inputs)
        + output_tokens * max(_at(price, size) for price in outputs)
        for size in sizes
    )
    return most / MILLION + _at(prices.requests_kcount, 0) / 1000


def _at(price: Decimal | TieredPrices | None, input_tokens: int) -> Decimal:
    """The price for a prompt of this size; 0 where there is none."""
    if price is None or isinstance(price, Decimal):
        return price or Decimal(0)
    past = [tier.price for tier in price.tiers if input_tokens > tier.start]
    return past[-1] if past else price.base


def _now() -> datetime:
    return datetime.now(UTC)
