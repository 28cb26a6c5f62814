"""What a template sees of a row: odd names and cells; and what is no table at all."""

import dataclasses
import datetime as dt
import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from llm_magic import batches, map_rows, rows
from llm_magic.errors import PromptError
from llm_magic.testing import ScriptedServer
from tests.conftest import Terminal
from tests.tables import LIBRARIES, OWN, asked, column, numbers, table_server

pytestmark = pytest.mark.usefixtures("provider")


@pytest.fixture(scope="module")
def one_server() -> Iterator[ScriptedServer]:
    with table_server() as running:
        yield running


@pytest.fixture
def server(one_server: ScriptedServer) -> ScriptedServer:
    one_server.reset()
    return one_server


TEXTS = ["3", "1", "2"]


@dataclasses.dataclass
class Data:
    text: str


class Named(NamedTuple):
    text: str


class Elsewhere:
    """As ibis and datasets have them."""

    def to_pandas(self) -> None:
        """Never called."""


def rows_of_a_database() -> list[sqlite3.Row]:
    with sqlite3.connect(":memory:") as database:
        database.row_factory = sqlite3.Row
        return database.execute("select 1 as n").fetchall()


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": [None, "x"], "b": [np.nan, 1.5]}, dtype=object),
        pd.DataFrame({"a": pd.array([None, "x"], "string"), "b": pd.array([None, 1.5], "Float64")}),
        pd.DataFrame({"a": pd.Categorical([None, "x"]), "b": [np.nan, 1.5]}),
        pd.DataFrame({"a": [pd.NaT, "x"], "b": [Decimal("NaN"), Decimal("1.5")]}, dtype=object),
        pd.DataFrame({"a": [pd.NA, "x"], "b": [np.float64("nan"), np.float64(1.5)]}, dtype=object),
        pl.DataFrame({"a": [None, "x"], "b": [float("nan"), 1.5]}),
        pl.DataFrame({"a": [None, "x"], "b": [None, 1.5]}),
        pa.table({"a": [None, "x"], "b": [None, 1.5]}),
        [{"a": None, "b": float("nan")}, {"a": "x", "b": 1.5}],
        [{}, {"a": "x", "b": 1.5}],
    ],
    ids=str,
)
def test_missing_cells_are_put_in_as_nothing(server: ScriptedServer, frame: Any) -> None:
    map_rows(frame, "[{{ a }}|{{ row.b }}]{{ ' none' if a is none }}", quiet=True)
    assert asked(server) == ["[x|1.5]", "[|] none"]


def test_missing_moments_are_put_in_as_nothing(server: ScriptedServer) -> None:
    times = pd.to_datetime(["2026-01-02", None])
    frame = pd.DataFrame({"t": times, "z": times.tz_localize("UTC"), "d": times - times[0]})
    map_rows(frame, "[{{ t.year if t }}|{{ z }}|{{ d }}]", quiet=True)
    assert asked(server) == ["[2026|2026-01-02 00:00:00+00:00|0 days 00:00:00]", "[||]"]


@pytest.mark.parametrize(
    ("names", "prompt"),
    [
        (["odd name"], "row {{ row['odd name'] }}."),
        ([""], "row {{ row[''] }}."),
        (["größe"], "row {{ größe }}."),
        (["class"], "row {{ class }}."),
        (["if"], "row {{ row['if'] }}."),
        (["items"], "row {{ row.items }}."),
        (["_id"], "row {{ row['_id'] }}."),
        (["_id"], "row {{ _id }}{{ row._id[1:] }}."),
        (["row"], "row {{ row.row }}."),
        (["self.x"], "row {{ row['self.x'] }}."),
        ([7], "row {{ row['7'] }}."),
        ([7], "row {{ row[7] }}."),
        ([pd.Timestamp("2026-01-02")], "row {{ row['2026-01-02 00:00:00'] }}."),
        (pd.CategoricalIndex(["text"]), "row {{ text }}."),
        (pd.MultiIndex.from_tuples([("text", "")]), "row {{ text }}."),
        (pd.MultiIndex.from_tuples([("text", "mean")]), "row {{ row['text mean'] }}."),
        (["{{ 7 }}"], "row {{ row['{{ 7 }}'] }}."),
    ],
    ids=str,
)
def test_columns_of_odd_names_are_read_and_kept(names: Any, prompt: str) -> None:
    frame = pd.DataFrame([["3"], ["1"]])
    frame.columns = names
    result = numbers(frame, prompt)
    assert list(result.columns[:1]) == list(names)
    assert column(result, result.columns[1]) == [3, 1]


def test_a_column_of_a_name_that_is_there_twice_has_its_number(server: ScriptedServer) -> None:
    pandas = pd.DataFrame([["a", "b", "c"]], columns=["x", "x", "x (2)"])
    arrow = pa.table([["a"], ["b"], ["c"]], names=["x", "x", "x (2)"])
    for frame in (pandas, arrow):
        server.reset()
        map_rows(frame, "{{ x }} {{ row['x (2)'] }} {{ row['x (2) (2)'] }}", quiet=True)
        assert asked(server) == ["a b c"]


def test_columns_of_several_levels_get_answers_under_their_first() -> None:
    frame = pd.DataFrame([["1", 2.0]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]))
    result = numbers(frame, "row {{ row['a x'] }}.")
    assert list(result.columns[2:]) == [(name, "") for name in ["n", *OWN]]
    again = numbers(result, "row {{ row['a x'] }}.")
    assert list(again.columns) == list(result.columns)


@pytest.mark.parametrize("name", ["max", "list", "dict", "range", "len", "str"])
def test_a_column_comes_before_a_builtin_of_its_name(server: ScriptedServer, name: str) -> None:
    map_rows(pd.DataFrame({name: ["3"]}), "value {{ " + name + " }}", quiet=True)
    assert asked(server) == ["value 3"]


def test_a_column_comes_before_a_name_of_the_notebook(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("text, other = 'from the notebook', 'shop'")
    terminal["frame"] = pd.DataFrame({"text": ["a", "b"]})
    terminal.run("import llm_magic; r = llm_magic.map_rows(frame, '{{ text }} {{ other }}')")
    assert asked(server) == ["a shop", "b shop"]


def test_the_whole_row_is_its_columns_with_their_names(server: ScriptedServer) -> None:
    map_rows(pd.DataFrame({"title": ["T"], "n": [3], "gone": [None]}), "{{ row }}", quiet=True)
    assert asked(server) == ["title: T\nn: 3\ngone: "]


def test_cells_that_cannot_be_hashed_are_cells(server: ScriptedServer) -> None:
    frame = pd.DataFrame(
        {"l": [[1, 2], [1, 2]], "d": [{"a": [3]}, {"a": [3]}], "v": [np.array([1, 2])] * 2}
    )
    result = map_rows(frame, "{{ l[1] }} {{ d.a }} {{ v.shape[0] }}", quiet=True)
    assert asked(server) == ["2 [3] 2"]
    assert column(result, "answer") == ["No.", "No."]
    assert column(result, "_cached") == [False, True]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_cell_of_ten_megabytes_is_sent_whole(server: ScriptedServer, library: str) -> None:
    text = "wörter." * 1_250_000
    frame = LIBRARIES[library][0]([text, "short"])
    result = map_rows(frame, "read {{ text }}", quiet=True)
    assert asked(server) == ["read short", f"read {text}"]
    assert column(result, "answer") == ["No.", "No."]


@pytest.mark.parametrize(
    ("rows", "says", "fix"),
    [
        ([1, 2], "Row 0 is 1, which has no columns; nothing was sent.", '[{"n": n} for'),
        (["a", ("b", 1)], "Row 1 is ('b', 1), which has no columns", "columns=[...]"),
        (["a", Path("b")], "Row 1 is PosixPath('b'), which has no columns", "list(paths)"),
        (rows_of_a_database(), "Row 0 is <sqlite3.Row object", "[dict(each) for each in rows]"),
        ([object], "Row 0 is <class 'object'>, which", "vars(each)"),
        (iter([3]), "Row 0 is 3, which has no columns; nothing was sent.", '[{"n": n} for'),
        ({"text": ["a"]}, "A dict is no table; nothing was sent.", "[row]"),
        (Data("a"), "A Data is no table; nothing was sent.", "Give a data frame"),
        (Named("a"), "A Named is no table; nothing was sent.", "Give a data frame"),
        (b"abc", "A bytes is no table; nothing was sent.", "Give a data frame"),
        (None, "None is no table; nothing was sent.", "Give a data frame"),
        (7, "An int is no table; nothing was sent.", "Give a data frame"),
        (np.array(["a"]), "An ndarray is no table; nothing was sent.", "values.tolist()"),
        (np.ones((2, 2)), "An ndarray is no table; nothing was sent.", "pd.DataFrame(array"),
        (pd.Index(["a"]), "An Index is no table; nothing was sent.", "values.tolist()"),
        (pd.DataFrame({"a": [1]}).groupby("a"), "A DataFrameGroupBy is no table", "Give a data"),
        (Elsewhere(), "An Elsewhere is no table", "frame = frame.to_pandas()"),
        (pl.LazyFrame({"a": [1]}), "A LazyFrame has no rows yet", "frame = frame.collect()"),
        (pl.col("a"), "An Expr is no table", "Give a data frame"),
        (
            pads.dataset(pa.table({"a": [1]})),
            "An InMemoryDataset has no rows yet; nothing was sent.",
            "frame = frame.to_table()",
        ),
        (
            pa.table({"a": [1]}).to_reader(),
            "A RecordBatchReader has no rows yet; nothing was sent.",
            "frame = frame.read_all()",
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_is_no_table_is_refused_with_what_would_be_one(
    server: ScriptedServer, rows: Any, says: str, fix: str
) -> None:
    with pytest.raises(PromptError) as caught:
        map_rows(rows, "{{ text }}", quiet=True)
    assert str(caught.value).startswith(says)
    assert fix in (caught.value.fix or "")
    assert server.requests == []


def test_a_row_as_json_is_what_a_model_reads(server: ScriptedServer) -> None:
    row = {"title": "a < b", "größe": 1.5, "gone": float("nan"), "when": dt.date(2026, 1, 2)}
    map_rows([row | {"v": np.array([1, 2])}], "{{ row | tojson }}", quiet=True)
    (told,) = asked(server)
    assert told == (
        '{"title": "a < b", "größe": 1.5, "gone": null, "when": "2026-01-02", "v": [1, 2]}'
    )


def test_keys_of_a_dict_that_are_no_texts_are_read_and_kept() -> None:
    result = numbers([{7: "3", "x": None}], "row {{ row[7] }}.")
    assert {name: result[0][name] for name in (7, "x", "n")} == {7: "3", "x": None, "n": 3}


def test_a_cell_is_never_read_as_a_template(server: ScriptedServer) -> None:
    text = "{{ 1 + 1 }} {% if x %} {# y #} ${z} \ufdd1"
    map_rows([text], "{{ text }}|{{ row }}", quiet=True)
    assert asked(server) == [f"{text}|text: {text}"]


def test_a_cell_that_no_server_could_be_sent_fails_alone(server: ScriptedServer) -> None:
    frame = pd.DataFrame({"text": ["1", "bad \ud800", "", "2"]}, dtype=object)
    result = numbers(frame, "{{ 'row ' ~ text ~ '.' if text }}")
    assert column(result, "n") == [1, None, None, 2]
    errors = column(result, "_error")
    assert "no valid Unicode at position 8" in errors[1]
    assert "The prompt is empty" in errors[2]
    assert asked(server) == ["row 1.", "row 2."]


def test_large_rows_are_pulled_as_there_is_room_for_them(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of pictures would else be in memory before the first is sent."""
    monkeypatch.setattr(rows, "LARGEST", 1_000_000)
    monkeypatch.setattr(batches, "LARGEST", 250_000)
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    ahead = []

    def texts() -> Iterator[str]:
        for number in range(60):
            ahead.append(number - len(server.requests))
            yield f"{number} " + "x" * 50_000

    result = map_rows(texts(), "{{ text }}", quiet=True, concurrency=1)
    assert len(result) == 60
    # A million characters, and a quarter more that were read when there was room.
    assert max(ahead) < 30
