"""Answers made to fit a column's type, as libraries are strict about what they take.

They would rather cut than refuse: a moment's time zone, the digits of a long timedelta.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

from llm_magic.frames import plain
from llm_magic.kinds import Kind

CHUNK = 65_536
"""Values that are Python objects at the same time."""
DIGITS = 38
"""The most digits of a decimal, in polars and in pyarrow."""
_LONGEST = dt.timedelta(microseconds=2**63 - 1)
_NESTED = frozenset({"list", "map", "struct"})
_TOLD_BY_VALUES = frozenset({"datetime", "time", "timedelta", "decimal"})


class Misfit(Exception):
    """The library has no type for the values."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a type has to be told and only the values know.

    Attributes:
        zone: The time zone of all moments; None where they have none.
        scale: The most digits that a decimal has behind its point.
    """

    zone: dt.tzinfo | None = None
    scale: int = 0


def facts_of(kind: Kind, values: Iterable[Any]) -> Facts:
    """One walk over the values, where the type depends on them.

    Raises:
        Misfit: They have no type in common, or one of them fits none.
    """
    kinds = _leaf_kinds(kind)
    if not any(each.name in _TOLD_BY_VALUES for each in kinds):
        return Facts()
    zones: set[dt.tzinfo | None] = set()
    scale, whole = max(each.scale for each in kinds), 0
    for told, value in itertools.chain.from_iterable(_leaves(kind, each) for each in values):
        if told.name == "datetime":
            zones.add(_zone(value))
        elif told.name == "decimal":
            behind, before = _digits(value)
            scale, whole = max(scale, behind), max(whole, before)
        elif _is_cut(told, value):
            raise Misfit
    if scale + whole > DIGITS or len(zones) > 1:
        raise Misfit
    if not zones and any(each.aware for each in kinds):
        zones.add(dt.UTC)
    return Facts(zones.pop() if zones else None, scale)


def fitter(kind: Kind, facts: Facts) -> Callable[[Any], Any]:
    """What makes a value of a kind, which may be None, into what libraries take for it."""
    inside = _inside(kind, facts)
    if inside is None:
        return lambda value: value
    return lambda value: None if value is None else inside(value)


def chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    """The values in lists of a bounded length; one at least, which may be empty."""
    each = iter(values)
    yield list(itertools.islice(each, CHUNK))
    while chunk := list(itertools.islice(each, CHUNK)):
        yield chunk


def text(value: str) -> str:
    """A text that can be written as UTF-8: half of a surrogate pair becomes U+FFFD."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    # Of a subclass of str, the text alone.
    return str.__str__(value)


def as_json(value: Any) -> str:
    """A value that JSON has as that; any other, and a text, as ``str`` says it."""
    if isinstance(value, bool | int | float | dict | list):
        return text(json.dumps(value, default=str, ensure_ascii=False))
    return text(str(value))


def is_json(value: Any) -> bool:
    """Whether a plain value is one of JSON's own, with no empty object in it."""
    if isinstance(value, dict):
        return bool(value) and all(map(is_json, value.values()))
    if isinstance(value, list):
        return all(map(is_json, value))
    return value is None or type(value) in (str, int, float, bool)


def _inside(kind: Kind, facts: Facts) -> Callable[[Any], Any] | None:
    if kind.name in ("string", "category"):
        return lambda value: text(plain(value))
    if kind.choices:
        return plain
    if kind.name in ("url", "uuid"):
        return str
    if kind.name == "decimal":
        unit, context = Decimal(1).scaleb(-facts.scale), Context(prec=DIGITS)
        return lambda value: value.quantize(unit, context=context)
    if kind.name not in _NESTED:
        return None
    parts = {name: fitter(part, facts) for name, part in kind.parts}
    if kind.root:
        return lambda value: parts["root"](value.root)
    if kind.name == "struct":
        return lambda value: {
            name: fit(each)
            for (name, fit), each in zip(parts.items(), _fields(kind, value), strict=True)
        }
    (fit,) = parts.values()
    if kind.name == "list":
        return lambda value: [fit(each) for each in value]
    return lambda value: [(text(name), fit(each)) for name, each in value.items()]


def _fields(kind: Kind, value: Any) -> Iterator[Any]:
    """The values of a struct's fields, of an object or a mapping."""
    for name, _ in kind.parts:
        yield value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _leaf_kinds(kind: Kind) -> list[Kind]:
    if kind.name not in _NESTED:
        return [kind]
    return [leaf for _, part in kind.parts for leaf in _leaf_kinds(part)]


def _leaves(kind: Kind, value: Any) -> Iterator[tuple[Kind, Any]]:
    """The values inside a value, each with its kind."""
    if value is None:
        return
    if kind.name not in _NESTED:
        yield kind, value
        return
    if kind.name == "struct":
        fields = zip(kind.parts, _fields(kind, value), strict=True)
        pairs = [(part, each) for (_, part), each in fields]
    else:
        held = value.values() if kind.name == "map" else value
        pairs = [(kind.part, each) for each in held]
    for part, each in pairs:
        yield from _leaves(part, each)


def _is_cut(kind: Kind, value: Any) -> bool:
    """Whether libraries would lose a part of a value: the zone of a time, the end of a length."""
    if kind.name == "time":
        return value.tzinfo is not None
    return kind.name == "timedelta" and abs(value) > _LONGEST


def _digits(value: Decimal) -> tuple[int, int]:
    """How many digits a decimal has behind its point, and before it."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        # Infinite, or no number.
        raise Misfit
    return max(0, -exponent), max(0, len(digits) + exponent)


def _zone(value: dt.datetime) -> dt.tzinfo | None:
    """A zone of the database as it is, any other by its offset, so that equal ones are equal."""
    offset = value.utcoffset()
    if offset is None or hasattr(value.tzinfo, "key"):
        return value.tzinfo
    return dt.timezone(offset)
