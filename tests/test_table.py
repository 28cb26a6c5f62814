"""Tables into map_rows and out again: of the same kind, in the same order, columns of types."""

import collections
import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import BaseModel

from llm_magic import map_rows, totals
from llm_magic.errors import PromptError, RowsWarning
from llm_magic.testing import ScriptedServer
from tests.tables import (
    LIBRARIES,
    OWN,
    Number,
    Review,
    asked,
    column,
    numbers,
    reviews,
    table_server,
    types,
)

pytestmark = pytest.mark.usefixtures("provider")


@pytest.fixture(scope="module")
def one_server() -> Iterator[ScriptedServer]:
    with table_server() as running:
        yield running


@pytest.fixture
def server(one_server: ScriptedServer) -> ScriptedServer:
    one_server.reset()
    return one_server


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


@pytest.mark.parametrize("rows", [iter(TEXTS), (Data(each) for each in TEXTS), map(str, TEXTS)])
def test_an_iterator_gives_a_frame_of_the_answers_in_its_order(rows: Any) -> None:
    result = numbers(rows)
    assert list(result.columns) == ["n", *OWN]
    assert column(result, "n") == [3, 1, 2]


class Endless:
    """What can be gone through, and has no length."""

    def __iter__(self) -> Iterator[str]:
        yield from TEXTS


def test_what_has_no_length_is_read_as_an_iterator_is() -> None:
    for _ in range(2):
        result = numbers(Endless())
        assert list(result.columns) == ["n", *OWN]
        assert column(result, "n") == [3, 1, 2]


def test_certain_rows_of_an_iterator_are_refused(server: ScriptedServer) -> None:
    with pytest.raises(PromptError, match="cannot be sampled"):
        numbers(iter(TEXTS), sample=2)
    result = numbers(iter(["1", "many"]))
    with pytest.raises(PromptError, match="came from an iterator and are gone"):
        totals(result).retry_failed()
    assert len(server.requests) == 2


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


@pytest.mark.parametrize("empty", [pd.DataFrame(), pl.DataFrame(), pa.table({}), iter(())])
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


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_sample_has_its_rows_of_the_frame(library: str) -> None:
    result = numbers(LIBRARIES[library][0]([str(n) for n in range(9)]), sample=3)
    assert column(result, "text") == ["0", "3", "6"]
    assert column(result, "n") == [0, 3, 6]


def test_a_sample_keeps_the_labels_of_its_rows() -> None:
    result = numbers(pd.DataFrame({"text": list("0123")}, index=list("wxyz")), sample=2)
    assert list(result.index) == ["w", "y"]


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["3", "1", "2"], pa.string_view()),
        pc.run_end_encode(pa.array(["3", "1", "2"])),
        pa.array(["3", "1", "2"]).dictionary_encode(),
    ],
    ids=lambda each: str(each.type),
)
def test_a_sample_of_texts_in_arrows_newer_forms(texts: Any) -> None:
    """polars gives pyarrow its texts by views."""
    result = numbers(pa.table({"text": texts}), sample=2)
    assert result["text"].type == texts.type
    assert column(result, "n") == [3, 1]


@pytest.mark.parametrize(
    "frame", [pd.DataFrame(index=[5, 6]), pa.table({"a": [1, 2]}).select([])], ids=str
)
def test_a_frame_without_columns_has_its_rows(frame: Any) -> None:
    for sample, count in ((None, 2), (1, 1)):
        result = map_rows(frame, "Say something.", quiet=True, sample=sample)
        assert column(result, "answer") == ["No."] * count


def test_an_item_of_an_iterator_that_is_no_row_fails_alone(server: ScriptedServer) -> None:
    result = numbers(iter(["1", 17, "2"]))
    assert column(result, "n") == [1, None, 2]
    assert "Row 1 is 17, which has no columns; it was not sent." in column(result, "_error")[1]
    assert len(server.requests) == 2


def test_rows_before_the_failure_of_a_generator_are_answered() -> None:
    def broken() -> Iterator[str]:
        yield from "0123456789" * 4
        raise OSError("disk gone")

    with pytest.warns(RowsWarning, match=r"failed with OSError where row 40 was due \(disk gone\)"):
        result = numbers(broken())
    assert column(result, "n") == [*range(10)] * 4


def test_a_generator_that_fails_before_its_first_row_is_refused(server: ScriptedServer) -> None:
    def broken() -> Iterator[str]:
        raise OSError("disk gone")
        yield ""

    with pytest.raises(PromptError, match=r"failed with OSError where row 0 was due \(disk gone\)"):
        numbers(broken())
    assert server.requests == []


def test_a_generator_that_has_given_its_rows_is_refused() -> None:
    """Else running a cell again would look as if there were none."""
    rows = (each for each in TEXTS)
    numbers(rows)
    with pytest.raises(PromptError, match="has given rows before, to a run or to its end; nothing"):
        numbers(rows)


def test_a_generator_is_refused_that_a_failed_run_has_begun() -> None:
    """Else the rows that were read for the failure would be missing."""
    rows = (each for each in TEXTS)
    with pytest.raises(PromptError, match="there is no txt"):
        numbers(rows, "{{ txt }}")
    with pytest.raises(PromptError, match="has given rows before"):
        numbers(rows)


def test_a_generator_whose_head_the_notebook_has_taken_gives_the_rest() -> None:
    rows = (each for each in ["header", *TEXTS])
    next(rows)
    assert column(numbers(rows), "n") == [3, 1, 2]
