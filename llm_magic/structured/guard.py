"""What pydantic would take, and a reader of the JSON would not.

In its lax mode pydantic reads 2024 as 33 minutes past midnight of 1 January 1970, true as 1, and
an object whose keys are all misspelt as one with all defaults. Where the schema promises something
else, that is a wrong value that looks right. (Its strict mode was tried and dropped: it also
refuses "3" for 3, which is no guess.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from llm_magic.structured.schema import WRAPPER, Schema

_TEMPORAL = frozenset({"date-time", "date", "time", "duration"})
_NUMERIC = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")
_JSON_KINDS = {dict: "object", list: "array", type(None): "null"}
_JSON_NAMES = {name: name for name in _JSON_KINDS.values()}


class Guard:
    """Looks at a parsed answer beside the schema.

    Args:
        schema: What it must be.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def odd(self, value: Any, *, bare: bool) -> str:
        """What is wrong with a value that pydantic has taken; empty where nothing is.

        Args:
            value: As JSON has it.
            bare: Whether it lacks the object that we put around it.
        """
        return self._odd(value, self._schema.inner if bare else self._schema.plain, ())

    def _odd(self, value: Any, node: Any, path: tuple[Any, ...]) -> str:
        if not isinstance(node, dict):
            return ""
        node = self._schema.resolved(node)
        if branches := node.get("anyOf") or node.get("oneOf"):
            return self._of_all(value, branches, path)
        if isinstance(value, dict):
            return self._object(value, node, path)
        if isinstance(value, list):
            first = node.get("prefixItems", [])
            rest = node.get("items")
            return _first(
                self._odd(each, first[place] if place < len(first) else rest, (*path, place))
                for place, each in enumerate(value)
            )
        if isinstance(value, bool) and node.get("type") in ("integer", "number"):
            return _said(path, "a number is wanted", value)
        if node.get("format") in _TEMPORAL and not _is_words(value):
            return _said(path, f"a {node['format']} as text is wanted", value)
        return ""

    def _of_all(self, value: Any, branches: list[Any], path: tuple[Any, ...]) -> str:
        """Of a union: right where it is for one that is of the value's kind."""
        nodes = [self._schema.resolved(branch) for branch in branches]
        found = [
            self._odd(value, node, path)
            for node in nodes
            if "type" not in node or _like(value, node["type"])
        ]
        return "" if "" in found else next(iter(found), "")

    def _object(self, value: dict[str, Any], node: dict[str, Any], path: tuple[Any, ...]) -> str:
        known = node.get("properties", {})
        others = node.get("additionalProperties")
        unknown = [key for key in value if key not in known]
        if known and unknown and not others:
            needed = node.get("required", ())
            missing = [key for key in known if key not in value and key not in needed]
            if missing:
                # A key that nobody knows beside a field that is not there: likely its value.
                return _said(
                    (*path, missing[0]), "missing, and there is an unknown key", unknown[0]
                )
        return _first(
            self._odd(each, known.get(key, others), (*path, key)) for key, each in value.items()
        )


def _like(value: Any, kind: str) -> bool:
    return _JSON_KINDS.get(type(value), "scalar") == _JSON_NAMES.get(kind, "scalar")


def _is_words(value: Any) -> bool:
    return isinstance(value, str) and not _NUMERIC.fullmatch(value)


def _said(path: tuple[Any, ...], wanted: str, value: Any) -> str:
    place = ".".join(str(part) for part in path if part != WRAPPER)
    return f"{place + ': ' if place else ''}{wanted} (got {value!r})"


def _first(found: Iterable[str]) -> str:
    return next((each for each in found if each), "")
