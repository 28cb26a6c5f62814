"""OpenAI's published rules of strict mode, checked on a JSON schema.

Written from the rules alone and with no look at how the library makes its schemas, so that the one
finds what the other forgot.
"""

import re
from collections.abc import Iterator
from typing import Any

MOST_PROPERTIES = 5_000
MOST_LEVELS = 10
MOST_ENUM_VALUES = 1_000
LONG_ENUM = 250
"""From here on the words of an enum count."""
MOST_ENUM_CHARACTERS = 15_000
MOST_CHARACTERS = 120_000

FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)
TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
ALLOWED = frozenset(
    {
        "type", "description", "enum", "const", "anyOf", "$ref", "$defs",
        "properties", "required", "additionalProperties",
        "items", "minItems", "maxItems",
        "pattern", "format",
        "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    }
)  # fmt: skip
_LOOKAROUND = re.compile(r"\(\?<?[=!]")


def violations(schema: dict[str, Any]) -> list[str]:
    """What OpenAI would refuse in a schema that is sent with ``strict: true``."""
    return [*_root(schema), *_nodes(schema, schema), *_sizes(schema)]


def _root(schema: dict[str, Any]) -> Iterator[str]:
    if schema.get("type") != "object":
        yield "#: the root is no object"
    if "anyOf" in schema:
        yield "#: anyOf at the root"


def _nodes(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    for path, node in walk(schema):
        if not isinstance(node, dict):
            yield f"{path}: {node!r} is no schema"
            continue
        yield from (f"{path}: {said}" for said in _node(node, root))
        if path != "#" and "$defs" in node:
            yield f"{path}: $defs below the root"


def _node(node: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    yield from (f"{word} is not supported" for word in sorted(node.keys() - ALLOWED))
    if "$ref" in node:
        yield from _reference(node, root)
        return
    kinds = _kinds(node)
    if not kinds and "anyOf" not in node:
        yield "neither type, anyOf nor $ref"
    yield from (f"{kind!r} is no type" for kind in kinds if kind not in TYPES)
    if "object" in kinds or node.keys() & {"properties", "required", "additionalProperties"}:
        yield from _object(node)
    if "array" in kinds and not (isinstance(node.get("items"), dict) and node["items"]):
        yield "an array of anything"
    if "anyOf" in node and not node["anyOf"]:
        yield "anyOf of nothing"
    if "format" in node and node["format"] not in FORMATS:
        yield f"the format {node['format']!r} is not supported"
    if _LOOKAROUND.search(node.get("pattern", "")):
        yield "a pattern that looks around"


def _reference(node: dict[str, Any], root: dict[str, Any]) -> Iterator[str]:
    reference = node["$ref"]
    if node.keys() - {"$ref", "$defs"}:
        yield "$ref has siblings"
    name = reference.removeprefix("#/$defs/")
    if reference != "#" and (name == reference or name not in root.get("$defs", {})):
        yield f"$ref to {reference!r}"


def _object(node: dict[str, Any]) -> Iterator[str]:
    if node.get("additionalProperties") is not False:
        yield "additionalProperties is not false"
    required = node.get("required", [])
    if sorted(required) != sorted(node.get("properties", {})):
        yield f"required is {required}, not every property"


def _kinds(node: dict[str, Any]) -> list[Any]:
    kind = node.get("type", [])
    return kind if isinstance(kind, list) else [kind]


def _sizes(schema: dict[str, Any]) -> Iterator[str]:
    nodes = [node for _, node in walk(schema) if isinstance(node, dict)]
    names = [
        name for node in nodes for part in ("properties", "$defs") for name in node.get(part, {})
    ]
    enums = [node["enum"] for node in nodes if "enum" in node]
    values = [value for enum in enums for value in enum]
    constants = [node["const"] for node in nodes if "const" in node]

    if (count := sum(len(node.get("properties", {})) for node in nodes)) > MOST_PROPERTIES:
        yield f"{count} properties"
    if len(values) > MOST_ENUM_VALUES:
        yield f"{len(values)} enum values"
    for enum in enums:
        words = [value for value in enum if isinstance(value, str)]
        if len(words) > LONG_ENUM and sum(map(len, words)) > MOST_ENUM_CHARACTERS:
            yield f"an enum of {len(words)} words with {sum(map(len, words))} characters"
    if (count := sum(len(str(each)) for each in [*names, *values, *constants])) > MOST_CHARACTERS:
        yield f"{count} characters of names and values"
    own = {key: value for key, value in schema.items() if key != "$defs"}
    for name, part in {"#": own, **schema.get("$defs", {})}.items():
        if (levels := _levels(part)) > MOST_LEVELS:
            yield f"{name}: {levels} levels"


def _levels(node: Any) -> int:
    """How deep objects and arrays lie within each other; what a $ref names is not looked at."""
    if not isinstance(node, dict):
        return 0
    own = bool({"object", "array"}.intersection(_kinds(node)))
    return own + max((_levels(child) for _, child in children(node)), default=0)


def walk(node: Any, path: str = "#") -> Iterator[tuple[str, Any]]:
    """Every schema within a schema, with its place; names of properties are none."""
    yield path, node
    if isinstance(node, dict):
        for place, child in children(node):
            yield from walk(child, f"{path}/{place}")


def children(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas directly within one."""
    for word in ("properties", "$defs"):
        for name, child in node.get(word, {}).items():
            yield f"{word}/{name}", child
    for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for place, child in enumerate(node.get(word, [])):
            yield f"{word}/{place}", child
    if "items" in node:
        yield "items", node["items"]
    if isinstance(node.get("additionalProperties"), dict):
        yield "additionalProperties", node["additionalProperties"]
