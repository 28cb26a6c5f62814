"""A column of answers as the column of a library: pandas, polars, pyarrow.

Its type follows from its kind and not from the values that came: without any it is the same, but
for a moment's time zone and a decimal's digits, which only they know. What no type of the library
can hold becomes a column of objects, or with pyarrow, which has none, of texts. No value is lost or
changed to fit a type.
"""

from __future__ import annotations

import datetime as dt
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from llm_magic.columns.buffers import Column
from llm_magic.columns.fitting import (
    DIGITS,
    Facts,
    Misfit,
    as_json,
    chunks,
    facts_of,
    fitter,
    is_json,
)
from llm_magic.columns.fitting import text as clean
from llm_magic.frames import plain
from llm_magic.kinds import Kind

_NUMPY = {"q": "int64", "d": "float64", "i": "int32"}
_PLAIN = {"Int64": "int64", "Float64": "float64", "boolean": "bool"}
# How a library, or our own reading of an object that is not what its type says, tells a misfit.
_MISFITS = (Misfit, OverflowError, ValueError, TypeError, AttributeError, NotImplementedError)


def to_pandas(column: Column, count: int, places: Sequence[int] | None = None) -> Any:
    """The answers as what a pandas frame takes for a column.

    Args:
        column: The answers.
        count: The rows, from the first.
        places: Only these rows, in this order.
    """
    import numpy as np
    import pandas as pd

    if raw := column.raw(count):
        data, there = raw
        held = np.frombuffer(data, _NUMPY[data.typecode] if isinstance(data, array) else "uint8")
        absent = np.frombuffer(there, "uint8") == 0
        if places is not None:
            index = np.asarray(places, dtype=np.intp)
            held, absent = held[index], absent[index]
        typed = _masked(column, held, absent)
        if typed is not None:
            return typed
    try:
        facts = facts_of(column.kind, column.each(count, places))
        made = [_natural(column.kind, facts, each) for each in chunks(column.each(count, places))]
        return pd.concat(made, ignore_index=True).array if len(made) > 1 else made[0].array
    except _MISFITS:
        objects = np.empty(count if places is None else len(places), dtype=object)
        for place, value in enumerate(column.each(count, places)):
            objects[place] = plain(value)
        return pd.Series(objects, dtype=object)


def _masked(column: Column, values: Any, absent: Any) -> Any:
    """A masked array of pandas or a categorical, without a Python object for each row."""
    import numpy as np
    import pandas as pd

    kind = column.kind
    if kind.choices:
        table = column.table
        if kind.name == "category":
            numbers = [kind.choices.index(each) for each in table]
            codes = np.where(absent, -1, np.array([*numbers, 0], "int64")[values])
            return pd.Categorical.from_codes(
                codes, categories=pd.Index([*map(clean, kind.choices)])
            )
        if kind.name == "object":
            return None
        # The nought stands for what is missing, and a table without numbers would have no type.
        values = np.array([*table, 0], _PLAIN[kind.name])[values]
    if kind.name == "Float64":
        return pd.arrays.FloatingArray(values, absent)
    if kind.name == "Int64":
        return pd.arrays.IntegerArray(values, absent)
    values = values.astype(bool)
    if column.missing is not None:
        values[absent] = column.missing
        absent = np.zeros_like(absent)
    return pd.arrays.BooleanArray(values, absent)


def _natural(kind: Kind, facts: Facts, values: list[Any]) -> Any:
    """Texts, moments and lengths of time in types of pandas that keep all of them."""
    import numpy as np
    import pandas as pd

    if kind.name == "string":
        return pd.Series([*map(fitter(kind, facts), values)], dtype="string")
    if kind.name == "timedelta":
        return pd.Series(np.array(values, "timedelta64[us]"))
    if kind.name != "datetime":
        raise Misfit
    if facts.zone is None:
        return pd.Series(np.array(values, "datetime64[us]"))
    naive = [value and value.astimezone(dt.UTC).replace(tzinfo=None) for value in values]
    moments = pd.DatetimeIndex(np.array(naive, "datetime64[us]"))
    return pd.Series(moments.tz_localize("UTC").tz_convert(facts.zone))


def to_polars(name: str, column: Column, count: int, places: Sequence[int] | None = None) -> Any:
    """The answers as a polars Series; ``column``, ``count`` and ``places`` as above."""
    import polars as pl

    kind = column.kind
    try:
        facts = facts_of(kind, column.each(count, places))
        dtype = _polars_type(kind, facts)
        fit = fitter(kind, facts)
        parts = [
            pl.Series(name, [*map(fit, chunk)], dtype=dtype)
            for chunk in chunks(column.each(count, places))
        ]
        return pl.concat(parts) if len(parts) > 1 else parts[0]
    except (*_MISFITS, pl.exceptions.PolarsError):
        values = [plain(value) for value in column.each(count, places)]
        return pl.Series(name, values, dtype=pl.Object)


def _polars_type(kind: Kind, facts: Facts) -> Any:
    import polars as pl

    if kind.root:
        return _polars_type(kind.part, facts)
    if kind.name == "list":
        return pl.List(_polars_type(kind.part, facts))
    # A map is none of these: a struct would have all keys of all rows.
    if kind.name == "struct" and kind.parts:
        return pl.Struct({name: _polars_type(part, facts) for name, part in kind.parts})
    types: dict[str, Callable[[], Any]] = {
        "Int64": pl.Int64,
        "boolean": pl.Boolean,
        "Float64": pl.Float64,
        "string": pl.String,
        "bytes": pl.Binary,
        "url": pl.String,
        "uuid": pl.String,
        "category": lambda: pl.Enum([clean(each) for each in kind.choices]),
        "date": pl.Date,
        "time": pl.Time,
        "timedelta": lambda: pl.Duration("us"),
        "datetime": lambda: pl.Datetime("us", _polars_zone(facts.zone)),
        "decimal": lambda: pl.Decimal(DIGITS, facts.scale),
    }
    if kind.name not in types:
        raise Misfit
    return types[kind.name]()


def _polars_zone(zone: dt.tzinfo | None) -> str | None:
    """The name of a zone: polars knows those of the time zone database only."""
    if not isinstance(zone, dt.timezone):
        return getattr(zone, "key", None)
    hours, rest = divmod(zone.utcoffset(None), dt.timedelta(hours=1))
    if not hours and not rest:
        return "UTC"
    # The database has whole hours, written the other way round, to 12 west and 14 east.
    if rest or not -12 <= hours <= 14:
        raise Misfit
    return f"Etc/GMT{-hours:+d}"


def to_arrow(column: Column, count: int, places: Sequence[int] | None = None) -> Any:
    """The answers as a pyarrow ChunkedArray; the arguments are those of ``to_pandas``."""
    import pyarrow as pa

    kind = column.kind
    try:
        facts = facts_of(kind, column.each(count, places))
        type_ = _arrow_type(kind, facts)
        make = _dictionary(kind) if kind.name == "category" else _arrow_maker(kind, facts, type_)
        return pa.chunked_array([make(each) for each in chunks(column.each(count, places))], type_)
    except _MISFITS:
        return _arrow_objects([plain(value) for value in column.each(count, places)])


def _arrow_maker(kind: Kind, facts: Facts, type_: Any) -> Callable[[list[Any]], Any]:
    import pyarrow as pa

    fit = fitter(kind, facts)
    return lambda values: pa.array([*map(fit, values)], type_)


def _dictionary(kind: Kind) -> Callable[[list[Any]], Any]:
    """Categories in the type's order: pyarrow itself would have them as they come."""
    import pyarrow as pa

    names = pa.array([*map(clean, kind.choices)], pa.string())
    numbers = {each: number for number, each in enumerate(kind.choices)}

    def make(values: list[Any]) -> Any:
        codes = pa.array([numbers.get(plain(each)) for each in values], pa.int32())
        return pa.DictionaryArray.from_arrays(codes, names)

    return make


def _arrow_type(kind: Kind, facts: Facts) -> Any:
    import pyarrow as pa

    if kind.root:
        return _arrow_type(kind.part, facts)
    if kind.name == "list":
        return pa.list_(_arrow_type(kind.part, facts))
    if kind.name == "map":
        return pa.map_(pa.string(), _arrow_type(kind.part, facts))
    if kind.name == "struct":
        return pa.struct([(name, _arrow_type(part, facts)) for name, part in kind.parts])
    types: dict[str, Callable[[], Any]] = {
        "Int64": pa.int64,
        "boolean": pa.bool_,
        "Float64": pa.float64,
        "string": pa.string,
        "bytes": pa.binary,
        "url": pa.string,
        "uuid": pa.string,
        "category": lambda: pa.dictionary(pa.int32(), pa.string()),
        "date": pa.date32,
        "time": lambda: pa.time64("us"),
        "timedelta": lambda: pa.duration("us"),
        "datetime": lambda: pa.timestamp("us", _arrow_zone(facts.zone)),
        "decimal": lambda: pa.decimal128(DIGITS, facts.scale),
    }
    if kind.name not in types:
        raise Misfit
    return types[kind.name]()


def _arrow_zone(zone: dt.tzinfo | None) -> str | None:
    if not isinstance(zone, dt.timezone):
        return getattr(zone, "key", None)
    return str(zone).removeprefix("UTC") or "UTC"


def _arrow_objects(values: list[Any]) -> Any:
    """Structs and lists where all values are of one form, else texts."""
    import pyarrow as pa

    # Of others than JSON's own, pyarrow would make dates of moments and cut time zones.
    if any(value is not None for value in values) and all(map(is_json, values)):
        try:
            return pa.chunked_array([pa.array(values)])
        except _MISFITS:
            pass
    texts = [None if value is None else as_json(value) for value in values]
    return pa.chunked_array([pa.array(texts, pa.string())], pa.string())
