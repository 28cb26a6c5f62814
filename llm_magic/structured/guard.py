"""What pydantic would take, and a reader of the JSON would not.

In its lax mode pydantic reads 2024 as 33 minutes past midnight of 1 January 1970, true as 1, and
an object whose keys are all misspelt as one with all defaults. Where the schema promises something
else, that is a wrong value that looks right. (Its strict mode was tried and dropped: it also
refuses "3" for 3, which is no guess.)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from llm_magic.structured.schema import WRAPPER, Schema

Odd = tuple[Any, ...]
"""Where something is odd and, last, what; empty where nothing is."""
Check = Callable[[Any], Odd]

_TEMPORAL = frozenset({"date-time", "date", "time", "duration"})
_NUMERIC = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_NOTHING = frozenset({"null", "none"})
_JSON_KINDS = {dict: "object", list: "array", type(None): "null"}
_LARGEST = 2**1023


class Guard:
    """Looks at a parsed answer beside the schema.

    Made once for a schema: a check for each part of it in which something can be odd, and none for
    the others, so that ten thousand rows are not walked leaf by leaf.

    Args:
        schema: What an answer must be.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._checks: dict[str | int, Check | None] = {}
        self._whole, self._bare = self._check(schema.plain), self._check(schema.inner)

    def odd(self, value: Any, *, bare: bool) -> str:
        """What is wrong with a value that pydantic has taken; empty where nothing is.

        Args:
            value: As JSON has it.
            bare: Whether it lacks the object that we put around it.
        """
        check = self._bare if bare else self._whole
        *path, what = (check(value) if check else ()) or ("",)
        place = ".".join(str(part) for part in path if part != WRAPPER)
        return f"{place}: {what}" if place else str(what)

    def _check(self, node: Any) -> Check | None:
        """The check of a part of the schema, or None where nothing in it can be odd."""
        if not isinstance(node, dict):
            return None
        key = node.get("$ref", id(node))
        if key not in self._checks:

            def later(value: Any) -> Odd:
                """For what refers to itself: by then the check is there."""
                check = self._checks[key]
                return check(value) if check else ()

            self._checks[key] = later
            self._checks[key] = self._made(self._schema.resolved(node))
        return self._checks[key]

    def _made(self, node: dict[str, Any]) -> Check | None:
        if branches := node.get("anyOf") or node.get("oneOf"):
            return self._union(branches)
        kind = node.get("type")
        if kind == "object":
            return self._object(node)
        if kind == "array":
            return self._array(node)
        if kind in ("integer", "number"):
            return _integer if kind == "integer" else _number
        wanted = node.get("format")
        return _temporal(wanted) if wanted in _TEMPORAL else None

    def _union(self, nodes: list[dict[str, Any]]) -> Check | None:
        """Right where it is for one branch that is of the value's kind."""
        branches = [(self._schema.resolved(node).get("type"), self._check(node)) for node in nodes]
        nullable = any(kind == "null" for kind, _ in branches)
        if not nullable and not any(check for _, check in branches):
            return None

        def check(value: Any) -> Odd:
            if nullable and isinstance(value, str) and value.strip().lower() in _NOTHING:
                return (f"null is no text (got {json.dumps(value)})",)
            found = [
                inner(value) if inner else ()
                for kind, inner in branches
                if kind is None or _like(value, kind)
            ]
            return () if () in found else next(iter(found), ())

        return check

    def _array(self, node: dict[str, Any]) -> Check | None:
        first = [self._check(each) for each in node.get("prefixItems", [])]
        rest = self._check(node.get("items"))
        if rest is None and not any(first):
            return None

        def check(value: Any) -> Odd:
            for place, each in enumerate(value if isinstance(value, list) else ()):
                inner = first[place] if place < len(first) else rest
                if inner and (odd := inner(each)):
                    return (place, *odd)
            return ()

        return check

    def _object(self, node: dict[str, Any]) -> Check | None:
        known: Mapping[str, Any] = node.get("properties", {})
        others = node.get("additionalProperties")
        checks = {name: made for name, each in known.items() if (made := self._check(each))}
        rest = self._check(others)
        # Those needed are there, or pydantic has found them by another name.
        needed = node.get("required", ())
        optional = [name for name in known if name not in needed]
        spelt = {_bare(name): name for name in known}

        def check(value: Any) -> Odd:
            if not isinstance(value, dict):
                return ()
            for name, inner in checks.items():
                if name in value and (odd := inner(value[name])):
                    return (name, *odd)
            if not others and not value.keys() <= known.keys():
                unknown = [name for name in value if name not in known]
                twin = next((name for name in unknown if _bare(name) in spelt), None)
                if twin is not None:
                    return twin, f"not a field; {spelt[_bare(twin)]} is"
                missing = next((name for name in optional if name not in value), None)
                if missing is not None:
                    # A key that nobody knows beside a field that is not there: likely its value.
                    return missing, f"missing, and there is an unknown key {json.dumps(unknown[0])}"
            for name in value.keys() - known.keys() if rest else ():
                if rest and (odd := rest(value[name])):
                    return (name, *odd)
            return ()

        return check if checks or known or rest else None


def _bare(name: str) -> str:
    """A name without what people spell in two ways."""
    return re.sub(r"[\W_]", "", name).lower()


def _integer(value: Any) -> Odd:
    if value is True or value is False:
        return (f"a number is wanted (got {json.dumps(value)})",)
    return ()


def _number(value: Any) -> Odd:
    # What would be read as infinity, or as no number at all.
    if type(value) is int and abs(value) > _LARGEST:
        return ("the number is too large",)
    if isinstance(value, str) and not _is_finite(value):
        return (f"a number is wanted (got {json.dumps(value)})",)
    return _integer(value)


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        # Another branch of a union has taken it.
        return True


def _temporal(wanted: str) -> Check:
    def check(value: Any) -> Odd:
        if isinstance(value, str) and not _NUMERIC.fullmatch(value):
            return ()
        return (f"a {wanted} as text is wanted (got {json.dumps(value)})",)

    return check


def _like(value: Any, kind: str) -> bool:
    """Whether a value is of a kind; scalars of all kinds are alike, since "3" may be 3."""
    wanted = kind if kind in _JSON_KINDS.values() else "scalar"
    return _JSON_KINDS.get(type(value), "scalar") == wanted
