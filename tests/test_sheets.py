"""Any frame: its rows are read as they are, and answers stand beside its own columns, unchanged."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import pandas as of_pandas
from polars.testing import assert_frame_equal
from polars.testing.parametric import dataframes

from llm_magic.columns import Column, columns_for
from llm_magic.table import source

OBJECTS = st.one_of(
    st.none(), st.floats(), st.text(max_size=3), st.dates(), st.lists(st.integers(), max_size=2)
)
PANDAS = of_pandas.data_frames(
    [
        of_pandas.column("text", elements=OBJECTS, dtype=object),
        of_pandas.column("when", dtype="datetime64[ns]"),
        of_pandas.column("size", dtype=float),
        of_pandas.column("good", dtype=bool),
        of_pandas.column("took", dtype="timedelta64[ns]"),
    ],
    index=st.one_of(
        of_pandas.range_indexes(max_size=5),
        of_pandas.indexes(dtype=float, max_size=5),
        of_pandas.indexes(elements=st.text(max_size=2), dtype=object, max_size=5, unique=False),
    ),
)
# pyarrow has no such integers.
POLARS = dataframes(max_size=5, allow_null=True, excluded_dtypes=[pl.Object, pl.Int128, pl.UInt128])
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def answers(count: int) -> Mapping[str, Column]:
    made = columns_for(None)
    for place in range(count):
        made.put(place, f"answer {place}")
    return {"answer": made.column("answer")}


def some(data: Any, count: int) -> list[int]:
    """Certain rows, in any order, some of them twice."""
    place = st.integers(0, count - 1)
    return data.draw(st.lists(place, max_size=6)) if count else []


def read_alike(rows: Any, places: list[int]) -> None:
    whole = list(rows.rows())
    assert len(whole) == rows.count
    # By their words: what is no number equals nothing.
    assert repr(list(rows.rows(places))) == repr([whole[place] for place in places])


@QUICK
@given(frame=PANDAS, data=st.data())
def test_any_frame_of_pandas(frame: pd.DataFrame, data: Any) -> None:
    rows, count = source(frame), len(frame)
    places = some(data, count)
    read_alike(rows, places)
    for chosen in (None, places):
        made = rows.frame(answers(count), count, chosen)
        expected = range(count) if chosen is None else chosen
        pd.testing.assert_frame_equal(made[frame.columns], frame.iloc[list(expected)])
        assert made["answer"].tolist() == [f"answer {place}" for place in expected]


@QUICK
@given(frame=POLARS, data=st.data())
def test_any_frame_of_polars(frame: pl.DataFrame, data: Any) -> None:
    rows, count = source(frame), frame.height
    places = some(data, count)
    read_alike(rows, places)
    for chosen in (None, places):
        made = rows.frame(answers(count), count, chosen)
        expected = list(range(count)) if chosen is None else chosen
        if frame.width:
            assert_frame_equal(made.select(frame.columns), frame[expected])
        assert made["answer"].to_list() == [f"answer {place}" for place in expected]


@QUICK
@given(frame=POLARS, data=st.data())
def test_any_table_of_arrow(frame: pl.DataFrame, data: Any) -> None:
    table = frame.to_arrow(compat_level=pl.CompatLevel.newest())
    rows, count = source(table), table.num_rows
    places = some(data, count)
    read_alike(rows, places)
    for chosen in (None, places):
        made = rows.frame(answers(count), count, chosen)
        expected = range(count) if chosen is None else chosen
        assert made.schema.types[: table.num_columns] == table.schema.types
        assert made.column_names == [*table.column_names, "answer"]
        assert made["answer"].to_pylist() == [f"answer {place}" for place in expected]
        own = table.to_pylist()
        kept = made.select(table.column_names).to_pylist()
        assert repr(kept) == repr([own[place] for place in expected])
