"""Tables into map_rows and out again: their kinds, their indexes, their odd names and cells."""

import collections
import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from pydantic import AwareDatetime, BaseModel

from llm_magic import map_rows, totals
from llm_magic.errors import PromptError
from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import Terminal

OWN = ["_error", "_cached", "_cost"]


class Number(BaseModel):
    n: int


class Part(BaseModel):
    name: str
    size: float | None = None


class Review(BaseModel):
    stars: int
    good: bool
    score: float
    summary: str
    mood: Literal["good", "bad"]
    part: Part
    tags: list[str]
    when: AwareDatetime
    maybe: int | None


REVIEW = {
    "stars": 4,
    "good": True,
    "score": 0.5,
    "summary": "fits",
    "mood": "bad",
    "maybe": None,
    "part": {"name": "sole", "size": None},
    "tags": ["a", "b"],
    "when": "2026-01-02T03:04:05Z",
}


@pytest.fixture(scope="module")
def one_server() -> Iterator[ScriptedServer]:
    """Answers row 7 with the number 7, reviews with a review, and says no to the rest."""
    numbers = {f"row {n}.": json.dumps({"n": n}) for n in range(10)}
    answers: dict[str, str | Reply] = {**numbers, "review": json.dumps(REVIEW)}
    with ScriptedServer(answers, default="No.") as running:
        yield running


@pytest.fixture
def server(one_server: ScriptedServer) -> ScriptedServer:
    one_server.reset()
    return one_server


pytestmark = pytest.mark.usefixtures("provider")


def asked(server: ScriptedServer) -> list[str]:
    """The prompts that the server got, sorted: rows are asked in any order."""
    return sorted(each.body["messages"][-1]["content"] for each in server.requests)


def numbers(frame: Any, prompt: str = "row {{ text }}.", **options: Any) -> Any:
    return map_rows(frame, prompt, schema=Number, repairs=0, quiet=True, **options)


def reviews(frame: Any, **options: Any) -> Any:
    return map_rows(frame, "review {{ text }}", schema=Review, repairs=0, quiet=True, **options)


def column(result: Any, name: str) -> list[Any]:
    """A column of any result as a list, missing values as None."""
    if isinstance(result, list):
        return [row[name] for row in result]
    values = result[name].to_pylist() if isinstance(result, pa.Table) else result[name].to_list()
    return [None if value is pd.NA or value is pd.NaT else value for value in values]


def types(result: Any) -> dict[str, str]:
    if isinstance(result, pa.Table):
        return {field.name: str(field.type) for field in result.schema}
    return {name: str(kind) for name, kind in zip(result.columns, result.dtypes, strict=True)}


@dataclasses.dataclass
class Data:
    text: str


class Model(BaseModel):
    text: str


class Named(NamedTuple):
    text: str


TEXTS = ["3", "1", "2"]
KINDS: dict[str, tuple[Callable[[], Any], type]] = {
    "pandas": (lambda: pd.DataFrame({"text": TEXTS}), pd.DataFrame),
    "pandas of objects": (lambda: pd.DataFrame({"text": TEXTS}, dtype=object), pd.DataFrame),
    "pandas of arrow": (
        lambda: pd.DataFrame({"text": pd.array(TEXTS, dtype=pd.ArrowDtype(pa.string()))}),
        pd.DataFrame,
    ),
    "pandas series": (lambda: pd.Series(TEXTS), pd.DataFrame),
    "polars": (lambda: pl.DataFrame({"text": TEXTS}), pl.DataFrame),
    "polars series": (lambda: pl.Series(TEXTS), pl.DataFrame),
    "pyarrow": (lambda: pa.table({"text": TEXTS}), pa.Table),
    "pyarrow batch": (lambda: pa.RecordBatch.from_pydict({"text": TEXTS}), pa.Table),
    "pyarrow array": (lambda: pa.array(TEXTS), pa.Table),
    "pyarrow chunks": (lambda: pa.chunked_array([TEXTS[:1], TEXTS[1:]]), pa.Table),
    "dicts": (lambda: [{"text": each} for each in TEXTS], list),
    "texts": (lambda: list(TEXTS), list),
    "a tuple": (lambda: tuple(TEXTS), list),
    "dataclasses": (lambda: [Data(each) for each in TEXTS], list),
    "models": (lambda: [Model(text=each) for each in TEXTS], list),
    "named tuples": (lambda: [Named(each) for each in TEXTS], list),
    "a deque": (lambda: collections.deque(TEXTS), list),
    "values of a dict": (lambda: dict(enumerate(TEXTS)).values(), list),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_result_is_of_the_kind_of_the_rows_and_in_their_order(name: str) -> None:
    make, kind = KINDS[name]
    result = numbers(make())
    assert isinstance(result, kind)
    assert column(result, "text") == TEXTS
    assert column(result, "n") == [3, 1, 2]
    assert column(result, "_error") == [None] * 3
    assert column(result, "_cached") == [False] * 3


@pytest.mark.parametrize(
    "rows", [iter(TEXTS), (Data(each) for each in TEXTS), map(str, TEXTS)], ids=str
)
def test_an_iterator_gives_a_frame_of_the_answers_in_its_order(rows: Any) -> None:
    result = numbers(rows)
    assert list(result.columns) == ["n", *OWN]
    assert column(result, "n") == [3, 1, 2]


def test_a_set_has_its_texts_beside_the_answers() -> None:
    """Nobody knows its order."""
    result = numbers(set(TEXTS))
    assert {row["text"]: row["n"] for row in result} == {"1": 1, "2": 2, "3": 3}


def test_a_named_series_keeps_its_name() -> None:
    for name, called in (("notes", "notes"), (7, "7"), (None, "text"), ("", "text")):
        result = numbers(pd.Series(["3"], name=name), f"row {{{{ row['{called}'] }}}}.")
        assert list(result.columns) == [name or "text", "n", *OWN]
        assert column(result, "n") == [3]


INDEXES = {
    "unsorted": pd.Index([9, 2, 5]),
    "with a label twice": pd.Index(["x", "y", "x"], name="who"),
    "of moments": pd.DatetimeIndex(["2026-01-03", "2026-01-01", "2026-01-01"], tz="Europe/Berlin"),
    "of two levels": pd.MultiIndex.from_tuples(
        [("b", 1), ("a", 2), ("a", 1)], names=["group", "number"]
    ),
    "of categories": pd.CategoricalIndex(["u", "v", "u"]),
    "with missing labels": pd.Index([1.0, np.nan, np.nan]),
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_the_index_of_pandas_is_kept_as_it_is(index: Any) -> None:
    result = map_rows(
        pd.DataFrame({"text": TEXTS}, index=index), "row {{ text }}.", schema=Number, quiet=True
    )
    assert result.index.equals(index)
    assert result.index.names == index.names
    assert column(result, "n") == [3, 1, 2]
    series = numbers(pd.Series(TEXTS, index=index))
    assert series.index.equals(index)


def test_objects_stand_beside_their_rows_where_labels_are_there_twice() -> None:
    frame = pd.DataFrame({"text": ["1", "2"]}, index=[5, 5])
    result = map_rows(frame, "review {{ text }}", schema=Review, quiet=True)
    assert column(result, "part") == [{"name": "sole", "size": None}] * 2
    assert list(result.index) == [5, 5]


PANDAS = {
    "stars": "Int64",
    "good": "boolean",
    "score": "Float64",
    "summary": "string",
    "mood": "category",
    "part": "object",
    "tags": "object",
    "when": "datetime64[us, UTC]",
    "maybe": "Int64",
    "_error": "string",
    "_cached": "boolean",
    "_cost": "Float64",
}
POLARS = {
    "stars": "Int64",
    "good": "Boolean",
    "score": "Float64",
    "summary": "String",
    "mood": "Enum(categories=['good', 'bad'])",
    "part": "Struct({'name': String, 'size': Float64})",
    "tags": "List(String)",
    "when": "Datetime(time_unit='us', time_zone='UTC')",
    "maybe": "Int64",
    "_error": "String",
    "_cached": "Boolean",
    "_cost": "Float64",
}
ARROW = {
    "stars": "int64",
    "good": "bool",
    "score": "double",
    "summary": "string",
    "mood": "dictionary<values=string, indices=int32, ordered=0>",
    "part": "struct<name: string, size: double>",
    "tags": "list<item: string>",
    "when": "timestamp[us, tz=UTC]",
    "maybe": "int64",
    "_error": "string",
    "_cached": "bool",
    "_cost": "double",
}
LIBRARIES: dict[str, tuple[Callable[[list[str]], Any], dict[str, str]]] = {
    "pandas": (lambda texts: pd.DataFrame({"text": pd.Series(texts, dtype=object)}), PANDAS),
    "polars": (lambda texts: pl.DataFrame({"text": texts}, schema={"text": pl.String}), POLARS),
    "pyarrow": (lambda texts: pa.table({"text": pa.array(texts, pa.string())}), ARROW),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("texts", [["a", "b"], ["a"], []], ids=len)
def test_fields_are_columns_of_their_types_however_many_rows_there_are(
    library: str, texts: list[str]
) -> None:
    make, expected = LIBRARIES[library]
    result = reviews(make(texts))
    assert {name: kind for name, kind in types(result).items() if name != "text"} == expected
    assert column(result, "stars") == [4] * len(texts)
    assert column(result, "mood") == ["bad"] * len(texts)
    assert column(result, "when") == [dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)] * len(texts)
    assert column(result, "maybe") == [None] * len(texts)


@pytest.mark.parametrize("library", LIBRARIES)
def test_types_are_the_same_where_no_row_has_an_answer(library: str) -> None:
    make, expected = LIBRARIES[library]
    result = map_rows(make(["a", "b"]), "other {{ text }}", schema=Review, repairs=0, quiet=True)
    assert {name: kind for name, kind in types(result).items() if name != "text"} == expected
    for name in Review.model_fields:
        assert [value for value in column(result, name) if value == value] in ([], [None, None])
    assert all("does not fit Review" in error for error in column(result, "_error"))


@pytest.mark.parametrize("empty", [pd.DataFrame(), pl.DataFrame(), pa.table({}), iter(())], ids=str)
def test_a_frame_without_columns_and_rows_gets_the_columns_of_the_answers(empty: Any) -> None:
    result = map_rows(empty, "Say something.", schema=Number, quiet=True)
    names = result.column_names if isinstance(result, pa.Table) else list(result.columns)
    assert names == ["n", *OWN]
    assert len(result) == 0


def test_an_empty_list_gives_an_empty_list() -> None:
    assert numbers([]) == []


def test_prose_is_one_column_of_texts() -> None:
    result = map_rows(pd.DataFrame({"text": ["a"]}), "other {{ text }}", quiet=True)
    assert list(result.columns) == ["text", "answer", *OWN]
    assert result["answer"].tolist() == ["No."]
    assert result["answer"].dtype == "string"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_second_run_over_its_own_results_replaces_the_columns(library: str) -> None:
    first = numbers(LIBRARIES[library][0](["1", "2"]))
    again = map_rows(first, "row {{ n + 2 }}.", schema=Number, quiet=True)
    assert list(types(again)) == list(types(first)) == ["text", "n", *OWN]
    assert column(again, "n") == [3, 4]
    assert column(first, "n") == [1, 2]


def test_a_column_that_is_there_twice_is_replaced_by_one() -> None:
    frame = pd.DataFrame([["1", "a", "b"]], columns=["text", "n", "n"])
    assert list(numbers(frame).columns) == ["text", "n", *OWN]
    table = pa.table([["1"], ["a"], ["b"]], names=["text", "n", "n"])
    result = numbers(table)
    assert result.column_names == ["text", "n", *OWN]
    assert column(result, "n") == [1]


def test_the_users_frame_is_left_as_it_is() -> None:
    frame = pd.DataFrame({"text": ["1"], "n": ["old"]}, index=[5])
    frame.attrs["source"] = "shop"
    before = frame.copy(deep=True)
    result = numbers(frame)
    result.loc[5, "text"] = "changed"
    pd.testing.assert_frame_equal(frame, before)
    assert frame.attrs == {"source": "shop"}
    assert result.attrs["source"] == "shop"
    polars = pl.DataFrame({"text": ["1"], "n": ["old"]})
    numbers(polars)
    assert polars.to_dict(as_series=False) == {"text": ["1"], "n": ["old"]}
    rows = [{"text": "1", "n": "old"}]
    numbers(rows)
    assert rows == [{"text": "1", "n": "old"}]


def spoil_pandas(frame: pd.DataFrame) -> None:
    frame["text"] = "spoilt"
    del frame["text"]


def spoil_polars(frame: pl.DataFrame) -> None:
    frame[0, "text"] = "spoilt"
    frame.drop_in_place("text")


@pytest.mark.parametrize(
    ("rows", "spoil"),
    [
        (pd.DataFrame({"text": ["1", "many"]}), spoil_pandas),
        (pl.DataFrame({"text": ["1", "many"]}), spoil_polars),
        (["1", "many"], list.clear),
    ],
    ids=["pandas", "polars", "list"],
)
def test_failed_rows_are_asked_again_as_they_were_when_the_run_began(
    server: ScriptedServer, rows: Any, spoil: Callable[[Any], None]
) -> None:
    result = numbers(rows)
    run = totals(result)
    spoil(rows)
    server.reset()
    server.enqueue('{"n": 5}')
    again = run.retry_failed()
    assert asked(server) == ["row many."]
    assert column(again, "text") == ["1", "many"]
    assert column(again, "n") == [1, 5]


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


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_sample_has_its_rows_of_the_frame(library: str) -> None:
    result = numbers(LIBRARIES[library][0]([str(n) for n in range(9)]), sample=3)
    assert column(result, "text") == ["0", "3", "6"]
    assert column(result, "n") == [0, 3, 6]


def test_a_sample_keeps_the_labels_of_its_rows() -> None:
    result = numbers(pd.DataFrame({"text": list("0123")}, index=list("wxyz")), sample=2)
    assert list(result.index) == ["w", "y"]


def test_an_item_of_an_iterator_that_is_no_row_fails_alone(server: ScriptedServer) -> None:
    result = numbers(iter(["1", 17, "2"]))
    assert column(result, "n") == [1, None, 2]
    assert "Row 1 is 17, which has no columns; it was not sent." in column(result, "_error")[1]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("rows", "says", "fix"),
    [
        ([1, 2], "Row 0 is 1, which has no columns; nothing was sent.", '[{"n": n} for'),
        (["a", ("b", 1)], "Row 1 is ('b', 1), which has no columns", "columns=[...]"),
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


def test_a_generator_that_has_given_its_rows_is_refused() -> None:
    """Else running a cell again would look as if there were none."""
    rows = (each for each in TEXTS)
    numbers(rows)
    with pytest.raises(PromptError, match="given all its rows before; nothing was sent"):
        numbers(rows)
