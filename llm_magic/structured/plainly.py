"""Whether reading a value of a type runs any of the notebook's own code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

Node = Mapping[str, Any]

# The kinds of pydantic's core schemas that are checked by pydantic itself. All others (functions,
# custom errors, isinstance, arguments, callables ...) may run what the notebook defines.
_OWN = (
    {"any", "none", "bool", "int", "float", "complex", "decimal", "str", "bytes", "uuid", "url"}
    | {"multi-host-url", "date", "time", "datetime", "timedelta", "literal", "enum", "json"}
    | {"list", "tuple", "set", "frozenset", "dict", "nullable", "union", "tagged-union", "default"}
    | {"model", "model-fields", "model-field", "dataclass", "dataclass-args", "dataclass-field"}
    | {"typed-dict", "typed-dict-field", "definitions", "definition-ref"}
)
# Parts that are no schema, and are not used to read a value.
_INERT = (
    {"cls", "config", "default", "expected", "generic_origin", "members", "metadata"}
    | {"ref", "schema_ref", "computed_fields"}
    | {"serialization", "serialization_exclude_if"}
)
# Parts that hold schemas by the names of fields and tags, which may be any.
_NAMED = ("fields", "choices")
_CLASSES = ("model", "dataclass")
_STANDARD = ("builtins", "datetime", "decimal", "uuid")
_SIMPLE = (str, int, float, bool, type(None))


def is_plain(schema: Node) -> bool:
    """Whether pydantic alone reads a value of a core schema, which takes no time to speak of."""
    return all(map(_is_own, _nodes(schema)))


def _nodes(node: Node) -> Iterator[Node]:
    """A schema, and all that are in it."""
    yield node
    for name, part in node.items():
        if name not in _INERT:
            named = name in _NAMED and isinstance(part, Mapping)
            for each in part.values() if named else (part,):
                yield from _inside(each)


def _inside(part: Any) -> Iterator[Node]:
    if isinstance(part, Mapping):
        yield from _nodes(part)
    elif isinstance(part, list | tuple):
        for each in part:
            yield from _inside(each)


def _is_own(node: Node) -> bool:
    """Whether pydantic alone does what this schema says, those in it aside."""
    kind = node.get("type")
    if kind not in _OWN or node.get("post_init") or node.get("custom_init"):
        return False
    # A factory of defaults, a discriminator, a finder of members.
    if any(callable(part) for name, part in node.items() if name not in _INERT):
        return False
    if kind in _CLASSES:
        return node["cls"].__new__ is object.__new__
    if kind == "enum":
        return _finds_simply(node["cls"]) and _are_simple(node["members"])
    if kind == "literal":
        return _are_simple(node["expected"])
    if kind in ("set", "frozenset", "dict"):
        return not _hashes_classes(node.get("keys_schema" if kind == "dict" else "items_schema"))
    return kind != "default" or _is_copied_simply(node.get("default"))


def _finds_simply(choices: Any) -> bool:
    """Whether an Enum has no way of its own to find a member."""
    return bool(choices._missing_.__func__ is vars(Enum)["_missing_"].__func__)


def _are_simple(choices: Iterable[Any]) -> bool:
    """Whether choices are compared as texts and numbers are, and not in a way of their own."""
    values = (each.value if isinstance(each, Enum) else each for each in choices)
    return all(type(each) in _SIMPLE for each in values)


def _hashes_classes(part: Node | None) -> bool:
    """Whether objects of the notebook are put into a set, which asks them for their hashes."""
    inside = _nodes(part) if part else ()
    return any(node["type"] in (*_CLASSES, "definition-ref") for node in inside)


def _is_copied_simply(default: Any) -> bool:
    """Whether copying a default, as pydantic does with what has no hash, runs no object's code."""
    if type(default) in (list, tuple, set, frozenset):
        return all(map(_is_simply_held, default))
    if type(default) is dict:
        return all(map(_is_simply_held, (*default, *default.values())))
    return type(default).__hash__ is not None


def _is_simply_held(value: Any) -> bool:
    """The same of what is in a default, which is copied with it."""
    if type(value) in (list, tuple, set, frozenset, dict):
        return _is_copied_simply(value)
    return isinstance(value, Enum) or type(value).__module__ in _STANDARD
