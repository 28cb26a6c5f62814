"""What a model gets for a Python object."""

import base64
import io
import itertools
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from llm_magic.errors import PromptError
from llm_magic.prompt import render
from llm_magic.values import CELL_CHARACTERS, SHOWN_COLUMNS, WHOLE_ROWS, ImageValue, to_prompt

PNG = b"\x89PNG\r\n\x1a\n"
ROWS = {"city": ["Ulm", None, "Bonn"], "people": [126_000, 7, 330_000]}
MAKERS: dict[str, Any] = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}


@pytest.mark.parametrize("library", MAKERS)
def test_a_short_table_is_given_whole(library: str) -> None:
    text = str(to_prompt(MAKERS[library](ROWS)))

    first, city, people, *_ = text.splitlines()
    assert first == "DataFrame: 3 rows x 2 columns"
    assert city == "- city: String, 1 missing"
    assert people == "- people: Int64, 0 missing"
    assert text.endswith("All rows:\ncity,people\nUlm,126000\n,7\nBonn,330000")


@pytest.mark.parametrize("library", MAKERS)
def test_a_long_table_is_a_sample_of_all_of_it(library: str) -> None:
    text = str(to_prompt(MAKERS[library]({"number": list(range(1000))})))

    assert "DataFrame: 1,000 rows x 1 columns" in text
    assert "- number: Int64, 0 missing" in text
    head, _, sample = text.partition("rows, evenly spaced:\nnumber\n")
    numbers = [int(line) for line in sample.splitlines()]
    assert head.rsplit(maxsplit=1)[-1] == str(len(numbers))
    assert len(numbers) <= WHOLE_ROWS
    assert numbers[0] == 0
    assert numbers[-1] >= 900
    assert {b - a for a, b in itertools.pairwise(numbers)} == {100}


@pytest.mark.parametrize("rows", [1, 19, 20, 21, 22, 29, 39, 40, 41, 199, 209, 10_007])
def test_the_sample_reaches_the_end_of_any_table(rows: int) -> None:
    text = str(to_prompt(pd.DataFrame({"number": range(rows)})))

    numbers = [int(line) for line in text.partition(":\nnumber\n")[2].splitlines()]
    assert len(numbers) <= WHOLE_ROWS
    assert numbers[0] == 0
    assert numbers[-1] >= rows * 0.85 - 1


@pytest.mark.parametrize("library", MAKERS)
def test_a_table_without_rows_still_has_columns(library: str) -> None:
    empty = pa.table(ROWS).slice(0, 0) if library == "pyarrow" else MAKERS[library](ROWS)[:0]

    lines = str(to_prompt(empty)).splitlines()

    assert lines[0] == "DataFrame: 0 rows x 2 columns"
    assert any(line.startswith("- city: ") for line in lines)
    assert any(line.startswith("- people: ") for line in lines)


@pytest.mark.parametrize("library", MAKERS)
def test_a_table_without_anything(library: str) -> None:
    assert "0 rows x 0 columns" in str(to_prompt(MAKERS[library]({})))


def test_a_table_with_rows_and_no_columns() -> None:
    assert "3 rows x 0 columns" in str(to_prompt(pd.DataFrame(index=[1, 2, 3])))


@pytest.mark.parametrize(
    ("series", "first"),
    [
        (pd.Series([1, 2], name="age"), "Series 'age': 2 rows"),
        (pd.Series([1, 2]), "Series: 2 rows"),
        (pd.Series([1, 2], name=7), "Series 7: 2 rows"),
        (pd.Series([1, 2], name=("a", "b")), "Series ('a', 'b'): 2 rows"),
        (pl.Series("age", [1, 2]), "Series 'age': 2 rows"),
        (pa.chunked_array([[1, 2]]), "Series"),
    ],
)
def test_a_series(series: Any, first: str) -> None:
    text = str(to_prompt(series))

    assert text.startswith(first)
    assert text.endswith("\n1\n2")


def test_a_series_may_be_empty() -> None:
    assert "0 rows" in str(to_prompt(pd.Series([], dtype=float, name="x")))
    assert "0 rows" in str(to_prompt(pl.Series("x", [])))


def test_a_pandas_index_is_readable() -> None:
    assert "a" in str(to_prompt(pd.Index(["a", "b"])))


def test_columns_of_the_same_name() -> None:
    frame = pd.DataFrame([[1, "x"], [2, None]], columns=["a", "a"])

    text = str(to_prompt(frame))

    assert "2 rows x 2 columns" in text
    assert text.count("\n- a") == 2
    assert "1,x" in text


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        ([1, 2], ["1", "2"]),
        ([("a", "x"), ("a", "y")], ["a", "x", "y"]),
        (pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]), ["a", "x", "y"]),
        ([None, "b"], ["b"]),
        ([pd.Timestamp("2026-01-01"), 1.5], ["2026-01-01", "1.5"]),
        (["with space", 'with "quotes", commas\nand lines'], ["with space", "commas"]),
    ],
)
@pytest.mark.parametrize("rows", [0, 2, 100])
def test_names_of_columns_need_not_be_text(columns: Any, shown: list[str], rows: int) -> None:
    text = str(to_prompt(pd.DataFrame([[10, 20]] * rows, columns=columns)))

    assert f"{rows} rows x 2 columns" in text
    assert all(each in text for each in shown)


def test_two_hundred_columns() -> None:
    text = str(to_prompt(pd.DataFrame({f"c{n}": [n] for n in range(200)})))

    assert f"1 rows x 200 columns (the first {SHOWN_COLUMNS} described)" in text
    assert "- c59: Int64" in text
    assert "c60" not in text


def test_missing_cells_are_empty() -> None:
    frame = pd.DataFrame(
        {
            "mixed": ["a", None, float("nan"), 4, [1, 2]],
            "when": [pd.Timestamp("2026-01-01"), pd.NaT, None, pd.NaT, pd.NaT],
            "number": [1.5, float("nan"), None, 2, 3],
            "maybe": pd.array([True, None, pd.NA, False, True], dtype="boolean"),
        }
    )

    text = str(to_prompt(frame))

    assert "- mixed: Object, 2 missing" in text
    assert "- when: Datetime(time_unit='us', time_zone=None), 4 missing" in text
    assert "- number: Float64, 2 missing" in text
    assert "- maybe: Boolean, 2 missing" in text
    assert "\n,,,\n,,,\n" in text
    assert "NaT" not in text
    assert "nan" not in text


def test_cells_that_hold_arrays() -> None:
    """An element-wise comparison has no truth value, and must not be asked for one."""
    frame = pd.DataFrame({"vector": [np.array([1.0, 2.0]), np.array([3.0, 4.0])]})

    assert "[1. 2.]" in str(to_prompt(frame))


def test_cells_that_hold_lists_and_structs() -> None:
    frame = pl.DataFrame({"many": [[1, 2], None], "pair": [{"x": 1}, {"x": 2}]})

    text = str(to_prompt(frame))

    assert "[1, 2]" in text
    assert "{'x': 1}" in text


@pytest.mark.parametrize("library", MAKERS)
def test_a_long_cell_is_cut(library: str) -> None:
    text = str(to_prompt(MAKERS[library]({"essay": ["x" * 5000]})))

    assert text.endswith("\n" + "x" * (CELL_CHARACTERS - 1) + "…")


def test_cells_with_commas_and_lines_stay_one_cell() -> None:
    assert str(to_prompt(pd.DataFrame({"a": ['x,"y"\nz']}))).endswith('"x,""y""\nz"')


def test_a_lazy_frame_is_refused_with_the_way_out() -> None:
    with pytest.raises(PromptError, match="no rows yet") as caught:
        to_prompt(pl.LazyFrame(ROWS))

    assert "collect()" in caught.value.fix
    assert len(caught.value._render_traceback_()) <= 3


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_million_rows_are_a_short_text(library: str) -> None:
    rows = 1_000_000
    count = np.arange(rows)
    columns = {
        "id": count,
        "price": count * 0.25,
        "name": np.array(["Ada", "Grace", None], dtype=object)[count % 3],
        "text": np.array(["x" * 500, "short"], dtype=object)[count % 2],
        "when": np.datetime64("2026-01-01", "ms") + count.astype("timedelta64[ms]"),
        "flag": count % 2 == 0,
        "small": count.astype("int8"),
        "gaps": np.where(count % 10 == 0, np.nan, count),
    }
    frame = pd.DataFrame(columns) if library == "pandas" else pl.DataFrame(columns)

    text = str(to_prompt(frame))

    assert len(text) < 20_000
    assert text.startswith("DataFrame: 1,000,000 rows x 8 columns")
    assert all(f"\n- {name}: " in text for name in columns)


def test_a_part_of_a_large_table_is_counted_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_magic.values.COUNTED_CELLS", 1000)

    text = str(to_prompt(pl.DataFrame({"a": [None, 1] * 5000, "b": [1, 2] * 5000})))

    assert "- b: Int64, 0 missing in 500 evenly spaced rows" in text


@pytest.mark.parametrize(
    ("array", "head"),
    [
        (np.array([[1, 2], [3, 4]]), "ndarray: shape (2, 2), dtype int64\n[[1 2]\n [3 4]]"),
        (np.array([]), "ndarray: shape (0,), dtype float64"),
        (np.zeros((3, 0)), "ndarray: shape (3, 0), dtype float64"),
        (np.arange(1000.0), "dtype float64, min 0, mean 499.5, max 999"),
        (np.arange(1000).reshape(10, 100), "shape (10, 100), dtype int64, min 0"),
        (np.array(["a", "b"] * 100), "first values: a, b, a"),
        (np.array([None, {}] * 100), "dtype object"),
        (np.array([True] * 200), "dtype bool"),
        (np.array([1 + 2j] * 200), "dtype complex128"),
        (np.array(["2026-01-01"] * 200, dtype="datetime64[D]"), "2026-01-01"),
        (np.ma.masked_array(np.arange(200), mask=[True, False] * 100), "min 1"),
    ],
)
def test_an_array(array: Any, head: str) -> None:
    text = str(to_prompt(array))

    assert head in text
    assert len(text) < 1000


def test_a_large_array_is_a_short_text() -> None:
    assert len(str(to_prompt(np.zeros((1000, 1000, 3), dtype=np.uint8)))) < 1000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float64(1.5), "1.5"),
        (np.int32(7), "7"),
        (np.bool_(True), "True"),
        (np.str_("text"), "text"),
        (np.datetime64("2026-01-01"), "2026-01-01"),
        (np.array(3.5), "3.5"),
        (pd.Timestamp("2026-01-01"), "2026-01-01 00:00:00"),
        (pd.Timedelta("1D"), "1 days 00:00:00"),
        (pd.NaT, "NaT"),
        (pl.Int64, "Int64"),
        (pa.scalar(5), "5"),
        (pa.int64(), "int64"),
        (pd, str(pd)),
        (None, "None"),
        (7, "7"),
        ([1, "a"], "[1, 'a']"),
        ("{{ text }}", "{{ text }}"),
        ("", ""),
        (b"caf\xc3\xa9", "café"),
        (bytearray(b"abc"), "abc"),
    ],
)
def test_small_values_are_printed_plainly(value: Any, text: str) -> None:
    assert to_prompt(value) == text


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(PromptError, match="byte 3 is 0xe9") as caught:
        to_prompt(b"caf\xe9")

    assert "latin-1" in caught.value.fix
    assert len(caught.value._render_traceback_()) <= 3


class Described:
    """Says itself what a model gets."""

    def _repr_llm_(self) -> Any:
        return "for the model"

    def __str__(self) -> str:
        return "for people"


class DescribedFrame(pd.DataFrame):
    """A table that is described in words of its own."""

    def _repr_llm_(self) -> Any:
        return "my table"


def test_an_object_may_describe_itself() -> None:
    assert to_prompt(Described()) == "for the model"
    assert to_prompt(DescribedFrame({"a": [1]})) == "my table"


def test_a_description_need_not_be_text() -> None:
    class Number:
        def _repr_llm_(self) -> int:
            return 42

    assert to_prompt(Number()) == "42"


def test_only_the_class_is_asked_for_a_description() -> None:
    """Objects that answer to every name, and classes themselves, describe nothing."""

    class Answers:
        def __getattr__(self, name: str) -> Any:
            return lambda: "anything"

        def __str__(self) -> str:
            return "itself"

    plain = type("Plain", (), {"__str__": lambda self: "plain"})()
    plain._repr_llm_ = lambda: "from the instance"

    assert to_prompt(Answers()) == "itself"
    assert to_prompt(plain) == "plain"
    assert to_prompt(Described) == str(Described)


def figure() -> Any:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(1, 1))
    drawn.subplots().plot([1, 2])
    return drawn


def picture(mode: str = "RGB") -> Any:
    from PIL import Image

    return Image.new(mode, (2, 3))


def image_of(part: dict[str, Any]) -> bytes:
    assert part["type"] == "image_url"
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(data)


def values_with_a_picture() -> dict[str, Any]:
    drawn = figure()
    return {"figure": drawn, "axes": drawn.axes[0], "line": drawn.axes[0].lines[0]} | {
        f"image {mode}": picture(mode) for mode in ("RGB", "L", "RGBA", "P", "1")
    }


@pytest.mark.parametrize("name", values_with_a_picture())
def test_pictures(name: str) -> None:
    value = to_prompt(values_with_a_picture()[name])

    assert isinstance(value, ImageValue)
    assert value.startswith(PNG)
    assert image_of(value.part()) == value


@pytest.mark.parametrize("mode", ["CMYK", "F", "HSV", "YCbCr"])
def test_a_picture_that_png_cannot_hold_as_it_is(mode: str) -> None:
    value = to_prompt(picture(mode))

    assert isinstance(value, ImageValue)
    assert value.startswith(PNG)


def test_pictures_stand_in_their_place_in_the_prompt() -> None:
    names = {"plot": figure(), "photo": picture()}

    parts = render("First {{ plot }} then\n{{ photo }}{{ photo }}the end: {{ 1 + 1 }}.", names)

    assert isinstance(parts, list)
    assert [part["type"] for part in parts] == [
        "text",
        "image_url",
        "text",
        *["image_url"] * 2,
        "text",
    ]
    assert [part.get("text") for part in parts if part["type"] == "text"] == [
        "First ",
        " then\n",
        "the end: 2.",
    ]
    from PIL import Image

    assert Image.open(io.BytesIO(image_of(parts[3]))).size == (2, 3)
    assert image_of(parts[1]) == to_prompt(names["plot"])


def test_a_picture_alone_is_a_prompt() -> None:
    parts = render("{{ photo }}", {"photo": picture()})

    assert isinstance(parts, list)
    assert [part["type"] for part in parts] == ["image_url"]


def test_a_value_cannot_pretend_to_be_a_picture() -> None:
    parts = render("a {{ odd }} b {{ photo }} c", {"odd": "\ufdd0", "photo": picture()})

    assert isinstance(parts, list)
    assert [part["type"] for part in parts] == ["text", "image_url", "text"]
