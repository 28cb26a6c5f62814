"""Answers in typed columns, and these as columns of pandas, polars and pyarrow: none is changed."""

import dataclasses
import datetime as dt
import enum
import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel, Field, HttpUrl, RootModel, TypeAdapter

from llm_magic.columns import Columns, columns_for
from llm_magic.columns.dtypes import to_arrow, to_pandas, to_polars
from llm_magic.columns.fitting import CHUNK
from llm_magic.frames import plain
from llm_magic.structured import schema_for


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 7


class Shade(enum.StrEnum):
    DARK = "dark"
    PALE = "pale"


class Share(enum.Enum):
    HALF = 0.5
    WHOLE = 1.0


class Part(BaseModel):
    n: int
    name: str | None
    made: dt.date | None = None
    sizes: list[float] = []


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: float


class Title(TypedDict):
    title: str


class Event(BaseModel):
    at: dt.datetime | None
    cost: Decimal


class Names(RootModel[list[str]]):
    pass


BERLIN = ZoneInfo("Europe/Berlin")
# Few of each, so that columns of one zone come as often as mixed ones.
ZONES = st.sampled_from([None, dt.UTC, BERLIN, dt.timezone(dt.timedelta(hours=-5, minutes=-30))])
ALIKE = st.sampled_from([dt.UTC, BERLIN, dt.timezone(dt.timedelta(hours=2))])
INTEGERS = st.one_of(st.integers(-3, 3), st.integers(-(2**70), 2**70))
PARTS = st.builds(
    Part,
    n=INTEGERS,
    name=st.none() | st.text(max_size=3),
    made=st.none() | st.dates(),
    sizes=st.lists(st.floats(), max_size=2),
)
FINITE = st.decimals(allow_nan=False, allow_infinity=False) | st.decimals(-9, 9, places=2)
DECIMALS = st.decimals(allow_nan=False) | st.decimals(-9, 9, places=2)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: INTEGERS,
    bool: st.booleans(),
    float: st.floats(),
    str: st.text(max_size=4) | st.text(min_size=101, max_size=103),
    Literal["x", "y", None]: st.sampled_from(["x", "y"]),
    Literal[1, "a", True]: st.sampled_from([1, "a", True]),
    Mood: st.sampled_from(Mood),
    Size: st.sampled_from(Size),
    Shade: st.sampled_from(Shade),
    Share: st.sampled_from(Share),
    Decimal: DECIMALS,
    bytes: st.binary(max_size=4),
    dt.date: st.dates(),
    dt.datetime: st.datetimes(timezones=ZONES),
    dt.time: st.times(timezones=ZONES),
    dt.timedelta: st.timedeltas(),
    uuid.UUID: st.uuids(),
    HttpUrl: st.sampled_from([HttpUrl("https://a.example/"), HttpUrl("https://b.example/?q=1")]),
    Any: st.none() | st.booleans() | INTEGERS | st.text(max_size=3) | st.lists(INTEGERS),
    int | str: INTEGERS | st.text(max_size=3),
    list[int]: st.lists(INTEGERS, max_size=3),
    list[Mood]: st.lists(st.sampled_from(Mood), max_size=3),
    list[Decimal]: st.lists(DECIMALS, max_size=3),
    list[dt.datetime]: st.lists(st.datetimes(timezones=ALIKE), max_size=3),
    list[dt.time]: st.lists(st.times(timezones=ZONES), max_size=3),
    list[dt.timedelta]: st.lists(st.timedeltas(), max_size=3),
    list[list[str | None]]: st.lists(st.lists(st.none() | st.text(max_size=2)), max_size=3),
    tuple[int, str]: st.tuples(INTEGERS, st.text(max_size=2)),
    dict[str, int]: st.dictionaries(st.text(max_size=2), INTEGERS, max_size=3),
    list[Part]: st.lists(PARTS, max_size=2),
    list[Event]: st.lists(
        st.builds(Event, at=st.none() | st.datetimes(timezones=ZONES), cost=FINITE), max_size=2
    ),
    list[Names]: st.lists(st.builds(Names, st.lists(st.text(max_size=2))), max_size=2),
    dict[str, Part]: st.dictionaries(st.text(max_size=2), PARTS, max_size=2),
}
NAMES = {type_: str(getattr(type_, "__name__", type_)) for type_ in VALUES}


def columns(type_: Any) -> Columns:
    return columns_for(schema_for(type_))


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one type, all the way down; the zone of moments too."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if isinstance(one, dt.datetime | dt.time):
        return one == other and one.utcoffset() == other.utcoffset()
    return bool(one == other) or (one != one and other != other)


@pytest.mark.parametrize("type_", VALUES, ids=NAMES.values())
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_put_in_any_order_and_twice_comes_out_as_it_was(type_: Any, data: Any) -> None:
    puts = data.draw(st.lists(st.tuples(st.integers(0, 40), st.none() | VALUES[type_])))
    made, expected = columns(type_), dict[int, Any]()
    for place, value in puts:
        made.put(place, value)
        expected[place] = value
    for place in range(45):
        assert same(made.get(place)["answer"], expected.get(place))


def read_pandas(values: Any) -> Iterator[Any]:
    for value in pd.Series(values).astype(object).tolist():
        if value is pd.NA or value is pd.NaT:
            yield None
        elif isinstance(value, pd.Timestamp):
            yield value.to_pydatetime()
        else:
            yield value.to_pytimedelta() if isinstance(value, pd.Timedelta) else value


def shown(value: Any) -> Any:
    """A value as frames have it: objects as dicts, members of an Enum as their values."""
    return list(value) if isinstance(value := plain(value), tuple) else value


def alike(one: Any, other: Any) -> bool:
    """Equal as instants or numbers, and missing where the other one is."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dt.datetime) and one.tzinfo is not None and isinstance(other, dt.datetime):
        # Those of one zone object are compared by their clocks alone.
        return one.astimezone(dt.UTC) == other.astimezone(dt.UTC)
    if isinstance(one, float):
        return isinstance(other, float) and same(one, other)
    return bool(one == other)


def filled(type_: Any, values: list[Any]) -> Columns:
    made = columns(type_)
    for place, value in enumerate(values):
        made.put(place, value)
    return made


@pytest.mark.parametrize("type_", VALUES, ids=NAMES.values())
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_library_loses_or_changes_a_value(type_: Any, data: Any) -> None:
    values = data.draw(st.lists(st.none() | VALUES[type_], max_size=5))
    column = filled(type_, values).column("answer")
    expected = [*map(shown, values)]
    texts = [None if value is None else str(value) for value in expected]
    found: Any = list(read_pandas(to_pandas(column, len(values))))
    if type_ in (Literal["x", "y", None], Mood, Shade):
        found = [None if value != value else value for value in found]
    assert alike(expected, found)
    series = to_polars("answer", column, len(values))
    named = series.dtype == pl.String and type_ in (uuid.UUID, HttpUrl)
    assert alike(texts if named else expected, series.to_list())
    array = to_arrow(column, len(values))
    found = array.to_pylist()
    if pa.types.is_map(array.type):
        found = [None if pairs is None else dict(pairs) for pairs in found]
    if pa.types.is_string(array.type) and type_ not in (str, Mood, Shade):
        # It has no objects: what fits no other type is text, as JSON where that can say it.
        found = [read_text(text, value) for text, value in zip(found, expected, strict=True)]
    assert alike(expected, found)


def read_text(text: str | None, value: Any) -> Any:
    """The value that a text stands for; the one that is expected where its text is this."""
    if text is None or isinstance(value, str):
        return text
    if isinstance(value, bool | int | float | list | dict):
        told = json.dumps(value, default=str, ensure_ascii=False)
    else:
        told = str(value)
    return value if text == told else text


@pytest.mark.parametrize("type_", VALUES, ids=NAMES.values())
def test_types_are_told_by_the_schema_and_not_by_the_values(type_: Any) -> None:
    none = columns(type_).column("answer")
    missing = filled(type_, [None, None]).column("answer")
    for to in (to_pandas, to_arrow, lambda *told: to_polars("a", *told)):
        empty, some = to(none, 0), to(missing, 2)
        kinds = [
            getattr(each, "dtype", None) or getattr(each, "type", None) for each in (empty, some)
        ]
        assert kinds[0] == kinds[1]
        assert (len(empty), len(some)) == (0, 2)


SAMPLES = [
    (int, 3, "Int64", "Int64", "int64"),
    (bool, True, "boolean", "Boolean", "bool"),
    (float, 0.5, "Float64", "Float64", "double"),
    (str, "a", "string", "String", "string"),
    (Mood, Mood.BAD, "category", "Enum(categories=['good', 'bad'])", "dictionary<"),
    (Size, Size.LARGE, "Int64", "Int64", "int64"),
    (Share, Share.HALF, "Float64", "Float64", "double"),
    (dt.date, dt.date(2026, 1, 2), "object", "Date", "date32[day]"),
    (dt.time, dt.time(3, 4), "object", "Time", "time64[us]"),
    (dt.timedelta, dt.timedelta(1), "timedelta64[us]", "Duration(time_unit='us')", "duration[us]"),
    (
        AwareDatetime,
        dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        "datetime64[us, UTC]",
        "Datetime(time_unit='us', time_zone='UTC')",
        "timestamp[us, tz=UTC]",
    ),
    (
        Annotated[Decimal, Field(decimal_places=2)],
        Decimal("1.5"),
        "object",
        "Decimal(precision=38, scale=2)",
        "decimal128(38, 2)",
    ),
    (bytes, b"a", "object", "Binary", "binary"),
    (uuid.UUID, uuid.UUID(int=1), "object", "String", "string"),
    (list[int], [1], "object", "List(Int64)", "list<item: int64>"),
    (
        list[Part],
        [Part(n=1, name=None)],
        "object",
        "List(Struct({'n': Int64, 'name': String, 'made': Date, 'sizes': List(Float64)}))",
        "list<item: struct<n: int64, name: string, made: date32[day], sizes: list<item: double>>>",
    ),
    (dict[str, int], {"a": 1}, "object", "Object", "map<string, int64>"),
    (list[Names], [Names(["a"])], "object", "List(List(String))", "list<item: list<item: string>>"),
]


@pytest.mark.parametrize(("type_", "value", "pandas", "polars", "arrow"), SAMPLES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_each_type_has_its_column_with_values_and_without(
    type_: Any, value: Any, pandas: str, polars: str, arrow: str, count: int
) -> None:
    column = filled(type_, [None, value][:count]).column("answer")
    assert str(pd.Series(to_pandas(column, count)).dtype) == pandas
    assert str(to_polars("a", column, count).dtype) == polars
    assert str(to_arrow(column, count).type).startswith(arrow)


def test_a_category_has_all_choices_in_the_types_order() -> None:
    column = filled(Literal["low", "mid", "high"], ["high", "low"]).column("answer")
    order = ["low", "mid", "high"]
    assert to_pandas(column, 2).categories.tolist() == order
    assert to_polars("a", column, 2).dtype.categories.to_list() == order
    assert to_arrow(column, 2).chunk(0).dictionary.to_pylist() == order


@pytest.mark.parametrize(
    ("type_", "fitting", "odd"),
    [
        (int, [1, -5], 2**63),
        (int, [1, -5], -(2**63) - 1),
        (int, [1, -5], "many"),
        (int, [1, -5], True),
        (int, [1, -5], Size.LARGE),
        (int, [1, -5], 1.0),
        (float, [0.5], "0.1"),
        (float, [0.5], 2**60 + 1),
        (float, [0.5], Decimal("0.1")),
        (bool, [True, False], 1),
        (str, ["a", "b"], 7),
        (str, ["dark"], Shade.DARK),
        (Mood, [Mood.GOOD], "neither"),
        (Mood, [Mood.GOOD], ["unhashable"]),
        (Literal["a"], ["a"], Point(1, 2.0)),
        (Size, [Size.SMALL], True),
    ],
    ids=str,
)
def test_what_a_validator_made_of_a_value_is_kept(type_: Any, fitting: list[Any], odd: Any) -> None:
    """The column then holds objects; those that came before are what they were."""
    values = [*fitting, odd, *fitting]
    column = filled(type_, values).column("answer")
    assert all(map(same, column.each(len(values)), values))
    assert alike([*map(shown, values)], list(read_pandas(to_pandas(column, len(values)))))
    assert alike([*map(shown, values)], to_polars("a", column, len(values)).to_list())
    assert len(to_arrow(column, len(values))) == len(values)


def test_a_rounded_number_leaves_a_column_of_floats_one() -> None:
    column = filled(float, [0.5, 3]).column("answer")
    assert to_pandas(column, 2).dtype == "Float64"
    assert list(column.each(2)) == [0.5, 3]


class Loud(str):
    """A text with a method of its own, as markup libraries have them."""

    def __str__(self) -> str:
        return self.upper()


def test_a_text_of_a_class_of_its_own_stays_of_it_and_is_no_twin_of_an_equal_one() -> None:
    column = filled(str, ["a", Loud("a"), "a"]).column("answer")
    assert [type(value) for value in column.each(3)] == [str, Loud, str]
    assert to_pandas(column, 3).tolist() == ["a", "a", "a"]


def test_many_different_texts_stay_what_they_are() -> None:
    """More than are remembered."""
    texts = [f"text {number}" for number in range(5_000)] * 2
    assert list(filled(str, texts).column("answer").each(10_000)) == texts


def test_equal_short_texts_are_kept_once() -> None:
    """A class name in a million rows is one object."""
    column = filled(str, ["".join(["ye", "s"]) for _ in range(3)]).column("answer")
    assert len({id(value) for value in column.each(3)}) == 1


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "\ud83d\ude00 \ud83d"])
def test_half_a_surrogate_pair_is_replaced_in_frames_that_cannot_hold_it(text: str) -> None:
    made = filled(str, [text])
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    column = made.column("answer")
    assert made.get(0) == {"answer": text}
    assert to_pandas(column, 1).tolist() == [clean]
    assert to_polars("a", column, 1).to_list() == [clean]
    assert to_arrow(column, 1).to_pylist() == [clean]


@pytest.mark.parametrize(
    ("moments", "kept"),
    [
        ([dt.datetime(2026, 7, 1, 12, tzinfo=BERLIN)], "Europe/Berlin"),
        (
            [dt.datetime(2026, 1, 1, tzinfo=BERLIN), dt.datetime(2026, 7, 1, tzinfo=BERLIN)],
            "Europe/Berlin",
        ),
        ([dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))], "+02:00"),
        ([dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.datetime(9999, 12, 31, tzinfo=dt.UTC)], "UTC"),
    ],
    ids=str,
)
def test_moments_of_one_zone_keep_it(moments: list[dt.datetime], kept: str) -> None:
    column = filled(AwareDatetime, [*moments, None]).column("answer")
    made = pd.Series(to_pandas(column, len(moments)))
    assert str(made.dtype).endswith(f"{kept}]")
    assert [value.isoformat() for value in made] == [value.isoformat() for value in moments]
    array = to_arrow(column, len(moments))
    assert array.type.tz == kept
    assert [value.isoformat() for value in array.to_pylist()] == [m.isoformat() for m in moments]


def test_moments_of_several_zones_are_objects_that_keep_theirs() -> None:
    moments = [
        dt.datetime(2026, 7, 1, tzinfo=BERLIN),
        dt.datetime(2026, 7, 1, tzinfo=dt.UTC),
        dt.datetime(2026, 7, 1),
    ]
    column = filled(dt.datetime, moments).column("answer")
    assert pd.Series(to_pandas(column, 3)).tolist() == moments
    assert to_polars("a", column, 3).to_list() == moments
    assert to_arrow(column, 3).to_pylist() == [str(moment) for moment in moments]


def test_moments_around_the_hour_that_comes_twice_stay_apart() -> None:
    twice = [dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=fold) for fold in (0, 1)]
    column = filled(AwareDatetime, twice).column("answer")
    for made in (
        list(pd.Series(to_pandas(column, 2))),
        to_polars("a", column, 2).to_list(),
        to_arrow(column, 2).to_pylist(),
    ):
        assert [value.utcoffset() for value in made] == [value.utcoffset() for value in twice]


@pytest.mark.parametrize("numbers", [["1.10", "2"], ["1e30", "1e-9"], ["NaN"], ["-Infinity", "1"]])
def test_decimals_keep_every_digit(numbers: list[str]) -> None:
    values = [*map(Decimal, numbers)]
    column = filled(Decimal, values).column("answer")
    for made in (to_pandas(column, len(values)), to_polars("a", column, len(values))):
        assert [str(value.normalize()) for value in made] == [str(v.normalize()) for v in values]
    texts = [
        str(Decimal(str(each)).normalize()) for each in to_arrow(column, len(values)).to_pylist()
    ]
    assert texts == [str(value.normalize()) for value in values]


def test_only_some_rows_in_some_order() -> None:
    places = [3, 0, 0]
    for type_, values in (
        (int, [1, 2, 3, 4]),
        (Mood, [*Mood, *Mood]),
        (list[int], [[1], [], [3], [4]]),
    ):
        column = filled(type_, values).column("answer")
        expected = [shown(values[place]) for place in places]
        assert list(read_pandas(to_pandas(column, 4, places))) == expected
        assert to_polars("a", column, 4, places).to_list() == expected
        assert to_arrow(column, 4, places).to_pylist() == expected


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (list[Part], [Part(n=1, name="a")]),
        (str, "a"),
        (dt.timedelta, dt.timedelta(days=1)),
        (AwareDatetime, dt.datetime(2026, 7, 1, tzinfo=BERLIN)),
    ],
    ids=str,
)
def test_more_rows_than_are_made_at_once(type_: Any, value: Any) -> None:
    """The parts of a column are of one type, though none of the first has a value."""
    count = CHUNK + 2
    made = columns(type_)
    made.put(count - 1, value)
    column = made.column("answer")
    for values in (
        list(read_pandas(to_pandas(column, count))),
        to_polars("a", column, count).to_list(),
        to_arrow(column, count).to_pylist(),
    ):
        assert values[0] is None
        assert alike(shown(value), values[-1])
        assert len(values) == count


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Part(n=1, name="a"), {"n": 1, "name": "a", "made": None, "sizes": []}),
        (Point(1, 2.0), {"x": 1, "y": 2.0}),
        (RootModel[Point](root=Point(1, 2.0)), {"x": 1, "y": 2.0}),
        (RootModel[list[int]](root=[1]), {"answer": [1]}),
    ],
    ids=str,
)
def test_objects_are_spread_over_columns_by_their_fields(value: Any, expected: Any) -> None:
    assert filled(type(value), [value]).get(0) == expected


def test_a_typed_dict_without_a_key_has_no_value_there() -> None:
    class Film(TypedDict, total=False):
        title: str
        year: int

    assert filled(Film, [{"title": "M"}]).get(0) == {"title": "M", "year": None}


def test_an_equal_row_gets_a_copy_of_all_columns() -> None:
    made = filled(Part, [Part(n=1, name="a", sizes=[0.5])])
    made.copy(3, 0)
    assert made.get(3) == made.get(0)
    made.copy(0, 7)
    assert made.get(0) == dict.fromkeys(Part.model_fields)


def test_a_row_that_is_cleared_has_no_value() -> None:
    made = filled(Part, [Part(n=1, name="a"), Part(n=2, name="b")])
    made.clear(0)
    made.clear(99)
    assert made.get(0) == dict.fromkeys(Part.model_fields)
    assert made.get(1)["n"] == 2
    assert to_pandas(made.column("n"), 2).isna().tolist() == [True, False]


def test_prose_is_a_column_of_texts() -> None:
    made = columns_for(None)
    made.put(1, "words")
    assert made.names == ["answer"]
    assert to_pandas(made.column("answer"), 2).tolist() == [pd.NA, "words"]


def test_urls_are_texts_where_a_library_has_no_objects() -> None:
    url = TypeAdapter(HttpUrl).validate_python("https://a.example/x?q=1")
    column = filled(HttpUrl, [url]).column("answer")
    assert to_pandas(column, 1).tolist() == [url]
    assert to_polars("a", column, 1).to_list() == to_arrow(column, 1).to_pylist() == [str(url)]
