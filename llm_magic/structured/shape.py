"""The kind of a type: what columns its values fill, read from pydantic's own description of it.

The JSON schema would not do: it has aliases for names, one spelling for a Decimal and for
``float | str``, and cannot tell a Path from a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_magic.kinds import OBJECT, Kind, of_choices
from llm_magic.structured.schema import Schema

_NAMES = {
    "int": "Int64",
    "bool": "boolean",
    "float": "Float64",
    "str": "string",
    "multi-host-url": "url",
    **{each: each for each in ("datetime", "date", "time", "timedelta")},
    **{each: each for each in ("bytes", "decimal", "url", "uuid")},
}
# What says more about a value without changing what it is. A validator may still change it: then
# its column holds objects from that value on.
_AROUND = frozenset(
    {"default", "nullable", "custom-error", "function-after", "function-before", "function-wrap"}
)
_LISTS = frozenset({"list", "set", "frozenset"})
_FIELDS = frozenset({"model-fields", "dataclass-args", "typed-dict", "named-tuple", "arguments"})


def kind_of(schema: Schema) -> Kind:
    """What the values of a schema are."""
    core: Any = schema.bare.core_schema
    return _Reader().kind(core)


class _Reader:
    """One walk over a description, with the definitions that it refers to."""

    def __init__(self) -> None:
        self._definitions: dict[str, Mapping[str, Any]] = {}
        self._known: dict[str, Kind] = {}

    def kind(self, node: Mapping[str, Any]) -> Kind:
        name = node.get("ref")
        if name is None:
            return self._kind(node)
        if name not in self._known:
            # A type that holds itself has no end, and no library a column for it.
            self._known[name] = OBJECT
            self._known[name] = self._kind(node)
        return self._known[name]

    def _kind(self, node: Mapping[str, Any]) -> Kind:
        told = str(node["type"])
        if told in _AROUND:
            return self.kind(node["schema"])
        if told in ("definitions", "definition-ref"):
            return self._defined(node)
        if told in ("literal", "enum"):
            return of_choices(node.get("expected", node.get("members", ())))
        if told in _LISTS or told in ("dict", "tuple"):
            return self._held(node)
        if told in ("model", "dataclass", "call") or told in _FIELDS:
            return self._struct(node)
        if told == "union":
            return self._union(node)
        if told in ("json-or-python", "lax-or-strict"):
            return self._either(node)
        if told not in _NAMES:
            return OBJECT
        aware = node.get("tz_constraint") == "aware"
        return Kind(_NAMES[told], aware=aware, scale=node.get("decimal_places") or 0)

    def _defined(self, node: Mapping[str, Any]) -> Kind:
        if node["type"] == "definitions":
            self._definitions |= {each["ref"]: each for each in node["definitions"]}
            return self.kind(node["schema"])
        found = self._definitions.get(node["schema_ref"])
        return OBJECT if found is None else self.kind(found)

    def _held(self, node: Mapping[str, Any]) -> Kind:
        if node["type"] == "dict":
            if node.get("keys_schema", {}).get("type") != "str" or "values_schema" not in node:
                return OBJECT
            return Kind("map", parts=(("value", self.kind(node["values_schema"])),))
        items = node.get("items_schema", {"type": "any"})
        item = _common(
            [self.kind(each) for each in (items if isinstance(items, list) else [items])]
        )
        return OBJECT if item is None else Kind("list", parts=(("item", item),))

    def _struct(self, node: Mapping[str, Any]) -> Kind:
        if node.get("root_model"):
            return Kind("struct", parts=(("root", self.kind(node["schema"])),), root=True)
        # What stands around the fields: the class, its validators.
        while node["type"] not in _FIELDS:
            inner = node.get("schema") or node.get("arguments_schema")
            if _open(node) or not isinstance(inner, Mapping):
                return OBJECT
            node = inner
        if _open(node):
            return OBJECT
        fields = node.get("fields") or node.get("arguments_schema") or {}
        pairs = fields.items() if isinstance(fields, Mapping) else ((f["name"], f) for f in fields)
        # An InitVar is told to a dataclass, and is gone then.
        kept = ((name, each) for name, each in pairs if not each.get("init_only"))
        return Kind("struct", parts=tuple((name, self.kind(each["schema"])) for name, each in kept))

    def _union(self, node: Mapping[str, Any]) -> Kind:
        """What all branches are, or the choices that they offer together."""
        told = (each[0] if isinstance(each, tuple) else each for each in node["choices"])
        kinds = [self.kind(each) for each in told]
        if all(each.choices for each in kinds):
            return of_choices(choice for each in kinds for choice in each.choices)
        return _common(kinds) or OBJECT

    def _either(self, node: Mapping[str, Any]) -> Kind:
        """A list or a dict by another name stays one; a Path is no text, though read from one."""
        found = self.kind(node.get("json_schema") or node["lax_schema"])
        return found if found.name in ("list", "map") else OBJECT


def _common(kinds: list[Kind]) -> Kind | None:
    """The one kind that all are of; None where they differ, or where there are none."""
    # Not by a set: an Enum's values may have no hash.
    return kinds[0] if kinds and all(each == kinds[0] for each in kinds) else None


def _open(node: Mapping[str, Any]) -> bool:
    """Whether a class takes fields that it does not name, which no struct has a place for."""
    told = node.get("extra_behavior") or node.get("config", {}).get("extra_fields_behavior")
    return bool(told == "allow")
