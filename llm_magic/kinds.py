"""What a column of answers holds, told by its type before any value is there."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of one value.

    Attributes:
        name: ``Int64``, ``boolean``, ``Float64``, ``string``, ``category``, ``datetime``, ``date``,
            ``time``, ``timedelta``, ``decimal``, ``bytes``, ``url``, ``uuid``; ``list``,
            ``struct``, ``map`` where the kinds inside are known; ``object`` for all else.
        choices: The only values that there are, plain, in the type's order; empty where it has no
            such list.
        parts: The fields of a struct by name; the one part of a list or map.
        aware: A moment that must have a time zone.
        scale: Digits behind the point that a decimal has at least.
        root: A struct whose one field is the value itself (pydantic's RootModel).
    """

    name: str
    choices: tuple[Any, ...] = ()
    parts: tuple[tuple[str, Kind], ...] = ()
    aware: bool = False
    scale: int = 0
    root: bool = False

    @property
    def part(self) -> Kind:
        """What a list or a map holds."""
        return self.parts[0][1]


OBJECT = Kind("object")


def of_choices(values: Iterable[Any]) -> Kind:
    """The kind of a Literal or an Enum: a category of texts, or what all its values are.

    Args:
        values: The values or members; None among them means that it may be missing.
    """
    found = (each.value if isinstance(each, enum.Enum) else each for each in values)
    choices: list[Any] = []
    for each in found:
        # By type as well: True equals 1.
        if each is not None and not any(same(each, other) for other in choices):
            choices.append(each)
    types = {type(each) for each in choices}
    names = {str: "category", int: "Int64", bool: "boolean", float: "Float64"}
    name = names.get(types.pop(), "object") if len(types) == 1 else "object"
    if name == "Int64" and not all(-(2**63) <= each < 2**63 for each in choices):
        name = "object"
    return Kind(name, choices=tuple(choices))


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one type."""
    return type(one) is type(other) and bool(one == other)
