"""Where in an answer JSON stands, or what was meant to be JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from llm_magic.decode import CLOSE, OPEN

MOST = 1_000
"""Places that are looked at; an answer with more is none."""
_START = re.compile(r"[{\[]")
# What JSON, or something that is meant to be, begins with; a brace in prose or LaTeX does not.
_LIKE_JSON = re.compile(
    r"""\{\s*(?:["'“}/#.]|\w+["']?\s*:)|\[\s*(?:["'“{\[\]/\-\d]|(?:true|false|null|True|False|None)\b)"""
)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\]"]', re.DOTALL)
_FENCE_BEFORE = re.compile(r"```[ \t]*[\w+-]*\s*$")
_LINE_BEFORE = re.compile(r"(?:\A|[\n:>*]|\b(?:is|are)\s)[ \t>*`]*\Z", re.IGNORECASE)
_LINE_BEHIND = re.compile(r"[ \t.*`<]*(?:\Z|[\r\n]|</)")
# Where these stand before it, it may be another one, or none.
_DOUBT = re.compile(
    r"\b(?:alternativ|reject|otherwise|for example|or\s*\Z|e\.g\.)|would (?:look|be)",
    re.IGNORECASE,
)
# The rest of a larger value follows: this was a part of it.
_GOES_ON = re.compile(r'\s*(?:(?:#|//)[^\n]*\s*)?(?:[\]}]|,\s*["{\[\]}])')


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A place in the text that is JSON, or was meant to be.

    Attributes:
        text: Its characters.
        value: The parsed value.
        fault: Why it is none; empty where it is one.
        fenced: Whether it stands in a code fence.
        exact: Whether a number in it has more digits than a float.
        alone: Whether it has a line of its own, or ends one behind a colon, "is" or "are".
        doubtful: Whether the words before it say that it may not be the answer.
        remark: Whether it stands in parentheses.
        adjacent: Whether nothing but blanks stands between it and what is before it.
    """

    text: str
    value: Any
    fault: str
    fenced: bool
    exact: bool
    alone: bool
    doubtful: bool
    remark: bool
    adjacent: bool


def find_spans(text: str, part_of: re.Pattern[str] | None) -> Iterator[Span]:
    """Every top-level place that is JSON or was meant to be; what lies within one is none.

    Args:
        text: The answer.
        part_of: Matches words that name a field of the value: what follows is a part of it.
    """
    place = count = 0
    floats = Floats()
    reader = decoder(floats)
    behind = 0
    while count <= MOST and (found := _START.search(text, place)):
        start = found.start()
        place = start + 1
        if not _LIKE_JSON.match(text, start):
            continue
        before = text[max(behind, start - 80) : start]
        value, fault, floats.exact = None, "", False
        try:
            value, place = reader.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            fault, place = _fault(error), _end(text, start)
        if part_of and part_of.search(before):
            fault = fault or "something is around it"
        while going := _GOES_ON.match(text, place):
            # Only the rest of something larger: to its end, or to the next value's.
            fault, place = fault or "something is around it", going.end()
            if text[place - 1] in '{["':
                place = _end(text, place - 1)
        behind = place
        yield Span(
            text=text[start:place],
            value=value,
            fault=fault,
            fenced=bool(_FENCE_BEFORE.search(before)),
            exact=floats.exact,
            alone=bool(_LINE_BEFORE.search(before) and _LINE_BEHIND.match(text, place)),
            doubtful=bool(_DOUBT.search(before)),
            remark=text[place : place + 1] == ")",
            adjacent=not before.strip(" \t\r\n,;"),
        )
        count += 1


def _fault(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        return f"{error.msg} near {json.dumps(near, ensure_ascii=False)}"
    return str(error)


def _end(text: str, start: int) -> int:
    """Where the brackets that open at a place close; the end of the text where they do not."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        mark = token[0]
        depth += (mark in "{[") - (mark in "}]")
        if mark == '"':
            return len(text)
        if depth == 0:
            return token.end()
    return len(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        for key, value in pairs:
            if made[key] != value:
                raise ValueError(f"the key {key!r} is there twice, with two values")
    return made


class Floats:
    """Numbers; as text where a float would round away digits that a Decimal keeps.

    Attributes:
        exact: Whether there was such a one.
    """

    exact = False

    def __call__(self, literal: str) -> float | str:
        """The number of a literal; ValueError where it is infinite."""
        number = float(literal)
        if not math.isfinite(number):
            raise ValueError(f"the number {literal[:40]} is too large")
        # 17 digits say every float; "0." and the sign are no digits that count.
        if len(literal) > 17 and Decimal(literal) != Decimal(repr(number)):
            digits = sum(character.isdigit() for character in literal.lstrip("-0."))
            if digits > 17:
                self.exact = True
                return literal
        return number


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def decoder(floats: Floats) -> json.JSONDecoder:
    """A strict reader, but for line breaks in texts, which it takes."""
    return json.JSONDecoder(
        object_pairs_hook=_object, parse_float=floats, parse_constant=_constant, strict=False
    )


def spoken(text: str) -> str:
    """An answer without what was thought aloud before it, or never came to an end."""
    words = text.strip("\ufeff \t\r\n")
    if CLOSE not in words and OPEN not in words:
        return words
    try:
        # It may be an answer about these marks.
        _, end = decoder(Floats()).raw_decode(words)
        if end == len(words):
            return words
    except (ValueError, RecursionError):
        pass
    return words.rpartition(CLOSE)[2].partition(OPEN)[0].strip()
