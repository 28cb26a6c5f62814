"""Whether OpenAI's strict mode can enforce a schema, decided here and not by a refusal.

The rules are those of OpenAI's guide to structured outputs as of November 2026. What strict mode
cannot say (open maps, tuples, sets, unknown formats) is sent as it is and not enforced: the
client's own conversion turns ``dict[str, int]`` into an object that is always empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_MOST_PROPERTIES = 5_000
_DEEPEST = 10
_MOST_ENUM_VALUES = 1_000
_LONG_ENUM = 250
_LONG_ENUM_CHARACTERS = 15_000
_MOST_CHARACTERS = 120_000
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)
_LOOKAROUND = re.compile(r"\(\?<?[=!]")
_LENGTHS = frozenset({"minLength", "maxLength"})
_SAID_ELSEWHERE = frozenset({"title", "default", "discriminator", "examples", "oneOf", "const"})
_AS_THEY_ARE = frozenset({
    "$ref", "type", "description", "enum", "pattern", "format", "multipleOf", "minItems",
    "maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
})  # fmt: skip
_INSIDE = frozenset({"properties", "required", "additionalProperties", "items", "anyOf", "$defs"})
_KNOWN = _SAID_ELSEWHERE | _AS_THEY_ARE | _INSIDE | _LENGTHS


class _CannotSay(Exception):
    """Strict mode has no word for a part of the schema."""


def strict(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema in the form that strict mode enforces, or None where it has none.

    Args:
        schema: Of an object, as pydantic writes it.
    """
    counts = _Counts()
    try:
        root = _node(schema, 1, counts)
        if "$defs" in schema:
            root["$defs"] = {name: _node(each, 1, counts) for name, each in schema["$defs"].items()}
        counts.check()
    except _CannotSay:
        return None
    return root


def has_lengths(schema: Any) -> bool:
    """Whether a text's length is limited, which api.openai.com alone takes in strict mode."""
    if isinstance(schema, Mapping):
        return not _LENGTHS.isdisjoint(schema) or any(map(has_lengths, schema.values()))
    return isinstance(schema, list) and any(map(has_lengths, schema))


class _Counts:
    """What the limits count."""

    def __init__(self) -> None:
        self.properties = self.values = self.characters = 0

    def check(self) -> None:
        if (
            self.properties > _MOST_PROPERTIES
            or self.values > _MOST_ENUM_VALUES
            or self.characters > _MOST_CHARACTERS
        ):
            raise _CannotSay


def _node(node: Mapping[str, Any], depth: int, counts: _Counts) -> dict[str, Any]:
    if not node.keys() <= _KNOWN or depth > _DEEPEST + 1:
        raise _CannotSay
    made = {key: value for key, value in node.items() if key in _AS_THEY_ARE | _LENGTHS}
    if "const" in node:
        made["enum"] = [node["const"]]
    branches = node.get("anyOf") or node.get("oneOf")
    if branches:
        made["anyOf"] = [_node(branch, depth, counts) for branch in branches]
    elif node.get("type") == "object":
        made |= _object(node, depth, counts)
    elif node.get("type") == "array":
        if not node.get("items") or depth > _DEEPEST:
            raise _CannotSay
        made["items"] = _node(node["items"], depth + 1, counts)
    elif "type" not in node and "$ref" not in node:
        raise _CannotSay
    if examples := node.get("examples"):
        words = ", ".join(json.dumps(each, default=str) for each in examples)
        made["description"] = f"{made.get('description', '')} For example: {words}".strip()
    _check(made, counts)
    if "$ref" in made and len(made) > 1:
        # No siblings beside a reference.
        made = {"anyOf": [{"$ref": made.pop("$ref")}], **made}
    return made


def _object(node: Mapping[str, Any], depth: int, counts: _Counts) -> dict[str, Any]:
    properties = node.get("properties")
    if properties is None or node.get("additionalProperties", False) or depth > _DEEPEST:
        raise _CannotSay
    needed = node.get("required", ())
    for name, each in properties.items():
        # What may be absent, with nothing to stand for it, would have to be invented.
        if name not in needed and "default" not in each:
            raise _CannotSay
        counts.properties += 1
        counts.characters += len(name)
    return {
        "properties": {name: _node(each, depth + 1, counts) for name, each in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }


def _check(node: Mapping[str, Any], counts: _Counts) -> None:
    values = node.get("enum", ())
    counts.values += len(values)
    characters = sum(len(str(value)) for value in values)
    counts.characters += characters
    if len(values) > _LONG_ENUM and characters > _LONG_ENUM_CHARACTERS:
        raise _CannotSay
    if node.get("format", "date") not in _FORMATS or _LOOKAROUND.search(node.get("pattern", "")):
        raise _CannotSay
    # Only references within the schema's own definitions, or to its root.
    reference = str(node.get("$ref", "#"))
    if reference != "#" and not re.fullmatch(r"#/\$defs/[^/]+", reference):
        raise _CannotSay
