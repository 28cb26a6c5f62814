"""Cells as a template gets them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from llm_magic.values import ImageValue, raster_type

TEXT = "text"
"""The column of rows that are texts, and of a series without a name."""

# What pandas and numpy have in the place of a value.
_MISSING = ("NAType", "NaTType", "MaskedConstant")


def cell(value: Any) -> Any:
    """A value of plain Python where a library has its own; None for a missing one.

    The bytes of a picture are one, as data sets keep their photographs.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is bytes:
        return ImageValue(value) if raster_type(value) else value
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == ():
        # Nanoseconds would come as an integer.
        unit = {"datetime64": "M8[us]", "timedelta64": "m8[us]"}.get(kind.__name__)
        value = (value.astype(unit) if unit else value).item()
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, Decimal):
        return None if value.is_nan() else value
    return None if kind.__name__ in _MISSING else value


def label(name: Any) -> str:
    """What a template calls a column, whose name may be of any kind or of several levels."""
    return " ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name)


def unique(names: list[str]) -> list[str]:
    """The names, a repeated one with its number: what a row has by name, it has once."""
    found: dict[str, None] = {}
    for name in names:
        number, each = 1, name
        while each in found:
            number += 1
            each = f"{name} ({number})"
        found[each] = None
    return list(found)
