"""Whether reading a value of a type runs any of the notebook's own code."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

# The kinds of pydantic's core schemas that are checked by pydantic itself. All others (functions,
# custom errors, isinstance, arguments, callables ...) may run what the notebook defines.
_OWN = frozenset(
    {
        *(
            "any",
            "none",
            "bool",
            "int",
            "float",
            "decimal",
        ),
        *(
            "str",
            "bytes",
            "date",
            "time",
            "datetime",
            "timedelta",
        ),
        *(
            "literal",
            "enum",
            "uuid",
            "url",
            "multi-host-url",
            "list",
        ),
        *(
            "tuple",
            "set",
            "frozenset",
            "dict",
            "nullable",
            "union",
        ),
        *(
            "tagged-union",
            "json",
            "model",
            "model-fields",
            "model-field",
            "dataclass",
        ),
        *(
            "dataclass-args",
            "dataclass-field",
            "typed-dict",
            "typed-dict-field",
            "definitions",
            "definition-ref",
        ),
        *(
            "default",
            "complex",
        ),
    }
)
# Parts of a schema that are or name functions of the notebook.
_HOOKS = frozenset(
    {"post_init", "custom_init", "missing", "default_factory", "function", "computed_fields"}
)
# Parts that hold no schema to be looked into.
_INERT = frozenset({"metadata", "serialization", "cls", "config", "ref", "schema_ref", "expected"})


def is_plain(schema: Any) -> bool:
    """Whether pydantic alone reads a value of a core schema, which takes no time to speak of."""
    if isinstance(schema, list | tuple):
        return all(map(is_plain, schema))
    if not isinstance(schema, Mapping):
        return True
    kind = schema.get("type")
    if isinstance(kind, str) and kind not in _OWN:
        return False
    if kind == "enum" and _overridden(schema["cls"]):
        return False
    if any(schema.get(name) for name in _HOOKS):
        return False
    return all(is_plain(part) for name, part in schema.items() if name not in _INERT)


def _overridden(choices: Any) -> bool:
    """Whether an Enum finds members in a way of its own."""
    return bool(choices._missing_.__func__ is not vars(Enum)["_missing_"].__func__)
