"""Limits as one line of settings: ``50 requests per 1h per user; 20 usd per 1d per team``."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple, cast

from llm_magic.ledger import Limit, Metric, Scope, nanos
from llm_magic.units import seconds

EXAMPLE = "50 requests per 1h per user"
# A limit ends with a word: a comma behind a digit is one within a number, such as 1,000,000.
_BETWEEN = re.compile(r"[;\n]|(?<!\d),")
_LIMIT = re.compile(
    r"(?P<dollar>\$\s*)?(?P<number>(?:\d{1,3}(?:,\d{3})+|\d[\d_]*)(?:\.\d+)?)"
    r"\s*(?P<metric>requests?|tokens?|usd)?"
    r"\s+per\s+(?P<one>.+?)\s+per\s+(?P<other>.+)",
    re.IGNORECASE,
)
SHORTEST, LONGEST = 0.001, 3660 * 86_400.0
"""Of a window, in seconds: ledgers count in nanoseconds and microseconds, in 64 bits."""
_SCOPES = ("kernel", "user", "team")


def window(text: str | float) -> float:
    """Seconds of a window of time in which something is limited.

    Raises:
        ValueError: It is no time, or none that a ledger can count in.
    """
    length = seconds(text)
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(f"{text!r} is no time from 1 ms to 10 years; write 90s, 30min, 1h or 1d")
    return length


@lru_cache(maxsize=16)
def read(text: str) -> tuple[Limit, ...]:
    """The limits that a text says, each with the command that would change it.

    Args:
        text: ``N requests|tokens|usd per SPAN per kernel|user|team``, several of them separated by
            semicolons, commas or line ends. SPAN is a time such as ``30min``, ``1h``, ``day``, or
            ``kernel`` for as long as the kernel runs.

    Raises:
        ValueError: A part says no limit; the message names it and shows a right one.
    """
    parts = [_read(each.strip()) for each in _BETWEEN.split(text) if each.strip()]
    # Not as they were written: %config takes $20 for the value of 20.
    words = [f"{part.number} {part.rest}" for part in parts]
    found = []
    for place, part in enumerate(parts):
        whole = "; ".join([*words[:place], f"{{}} {part.rest}", *words[place + 1 :]])
        found.append(replace(part.limit, command=f'%config LLMMagic.limits = "{whole}"'))
    return tuple(found)


class _Part(NamedTuple):
    """What one part of the text says."""

    limit: Limit
    number: str
    rest: str


def _read(part: str) -> _Part:
    found = _LIMIT.fullmatch(part)
    if found is None:
        raise _wrong(part, "it is not of the form N requests|tokens|usd per SPAN per SCOPE")
    metric = _metric(part, found)
    span, scope = _span_and_scope(part, found["one"].lower(), found["other"].lower())
    number = Decimal(found["number"].replace(",", "").replace("_", ""))
    if metric != "usd" and number % 1:
        raise _wrong(part, f"{metric} are whole numbers")
    if span == "kernel" and scope != "kernel":
        raise _wrong(part, f"a limit per {scope} outlives the kernel, so name a time")
    try:
        length = None if span == "kernel" else window(span if span[0].isdigit() else f"1 {span}")
    except ValueError:
        raise _wrong(part, f"{span} is no time such as 30min, 1h or 1d") from None
    cap = nanos(number) if metric == "usd" else int(number)
    limit = Limit(scope, metric, cap, length)
    return _Part(limit, f"{number:f}", f"{metric} per {span} per {scope}")


def _metric(part: str, found: re.Match[str]) -> Metric:
    word = (found["metric"] or "").lower()
    if found["dollar"]:
        if word not in ("", "usd"):
            raise _wrong(part, f"it counts both $ and {word}")
        return "usd"
    if not word:
        raise _wrong(part, "it does not say what is counted: requests, tokens or usd")
    return cast("Metric", word if word == "usd" else f"{word.removesuffix('s')}s")


def _span_and_scope(part: str, one: str, other: str) -> tuple[str, Scope]:
    """The two, in whichever order they stand."""
    if other not in _SCOPES and one in _SCOPES:
        one, other = other, one
    if other not in _SCOPES:
        raise _wrong(part, f"per {other} is not per kernel, per user or per team")
    return one, cast("Scope", other)


def _wrong(part: str, why: str) -> ValueError:
    return ValueError(f"limits: {part!r} is no limit, {why}. One is: {EXAMPLE}.")
