"""A value as a data frame, of the library that the notebook uses."""

from __future__ import annotations

import dataclasses
import enum
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any


def frame(value: Any) -> Any:
    """A row for each item of a list (tuple, set), a column for each field.

    Args:
        value: A list of models, dataclasses, mappings or plain values; or one object with fields,
            which is one row.

    Raises:
        TypeError: It is neither.
        ImportError: Neither pandas nor polars is installed.
    """
    rows = rows_of(value)
    if rows is None:
        raise TypeError(
            f"a {type(value).__name__} has no rows: ask for a list, as in --schema list[Review]"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    if library() == "polars":
        import polars

        return polars.DataFrame(columns, strict=False)
    return pandas().DataFrame(columns)


def pandas() -> Any:
    """The library, or what to type where there is none.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        message = "A data frame needs pandas, and it is not installed: pip install pandas"
        raise ModuleNotFoundError(message, name="pandas") from None
    return pandas


def rows_of(value: Any) -> list[dict[str, Any]] | None:
    """The rows of a value, each with its fields by name; None where it has none."""
    fields = fields_of(value)
    if fields is not None:
        return [fields]
    if not isinstance(value, list | tuple | set | frozenset):
        return None
    found = [fields_of(item) for item in value]
    return [
        {"value": plain(item)} if each is None else each
        for item, each in zip(value, found, strict=True)
    ]


def library() -> str:
    """Whose frames we make: pandas, unless only polars is imported, or only polars is installed."""
    for there in (sys.modules.__contains__, importlib.util.find_spec):
        if there("pandas"):
            return "pandas"
        if there("polars"):
            return "polars"
    return "pandas"


def fields_of(item: Any) -> dict[str, Any] | None:
    """The fields of an object by name, plain all the way down; None where it has none."""
    names = names_of(item)
    return None if names is None else {name: plain(value) for name, value in names.items()}


def names_of(item: Any) -> dict[str, Any] | None:
    """The fields of an object by name, each as it is; None where it has none."""
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    if hasattr(type(item), "model_fields"):
        return dict(item)
    if hasattr(item, "_asdict"):
        return dict(item._asdict())
    return None


def plain(value: Any) -> Any:
    """Nested objects as dicts, members of an Enum as their values: what a column can hold."""
    if isinstance(value, enum.Enum):
        return value.value
    if getattr(type(value), "__pydantic_root_model__", False):
        return plain(value.root)
    if (fields := fields_of(value)) is not None:
        return fields
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value
