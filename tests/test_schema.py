"""Types as JSON schemas: their names, whether strict mode can say them, and what is refused."""

import datetime
import enum
import re
import sys
import typing
from typing import Annotated, Any, Generic, Literal, NotRequired, TypedDict, TypeVar

import pytest
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, StringConstraints, create_model

from llm_magic.errors import PromptError
from llm_magic.structured import Schema, schema_for
from llm_magic.structured.strict import strict

T = TypeVar("T")
AHEAD = Annotated[str, StringConstraints(pattern="^(?!x)")]
PYTHON_RE = ConfigDict(regex_engine="python-re")


class Inner(BaseModel):
    n: int


class Box(BaseModel, Generic[T]):
    inside: T


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Old(TypedDict):
    a: int
    b: NotRequired[str]


def schema(type_: Any) -> Schema:
    made = schema_for(type_)
    assert made is not None
    return made


def model(**fields: Any) -> Any:
    return create_model("Made", **fields)


def test_prose_has_no_schema() -> None:
    assert schema_for(str) is None


@pytest.mark.parametrize(
    ("type_", "label", "name"),
    [
        (Inner, "Inner", "Inner"),
        (list[Inner], "list[Inner]", "list_Inner"),
        (dict[str, list[Inner]], "dict[str, list[Inner]]", "dict_str_list_Inner"),
        (Literal["a b", "c"], "Literal['a b', 'c']", "Literal_a_b_c"),
        (Inner | None, "Inner | None", "Inner_None"),
        (Box[list[int]], "Box[list[int]]", "Box_list_int"),
        (Annotated[int, Field(gt=0)], "int", "int"),
        (datetime.date, "date", "date"),
        (tuple[int, ...], "tuple[int, ...]", "tuple_int"),
        (Literal["ä", "ö"], "Literal['ä', 'ö']", "Literal"),
        (list[Literal["x" * 99]], None, None),
    ],
    ids=str,
)
def test_labels_and_names(type_: Any, label: str | None, name: str | None) -> None:
    made = schema(type_)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", made.name)
    if label:
        assert (made.label, made.name) == (label, name)


@pytest.mark.parametrize(
    ("type_", "wrapped"),
    [
        (Inner, False),
        (Old, False),
        (Box[int], False),
        (list[Inner], True),
        (dict[str, int], True),
        (int, True),
        (Mood, True),
        (Inner | None, True),
        (Inner | Box[int], True),
    ],
    ids=str,
)
def test_only_what_is_no_object_is_wrapped(type_: Any, wrapped: bool) -> None:
    made = schema(type_)
    assert made.wrapped is wrapped
    assert made.plain["type"] == "object"
    assert ("result" in made.plain["properties"]) is wrapped


@pytest.mark.parametrize(
    "type_",
    [
        Inner,
        Box[Inner],
        list[Inner],
        Mood,
        int | None,
        model(a=(int, 3), b=(str | None, None)),
        model(a=(Literal["only"], ...)),
        model(a=(Annotated[int, Field(ge=1, le=5, multiple_of=2)], ...)),
        model(a=(Annotated[str, StringConstraints(pattern="^[a-z]+$")], ...)),
        model(a=(datetime.datetime, ...), b=(datetime.timedelta, ...)),
        model(a=(Inner, Field(description="of many", examples=[{"n": 1}]))),
        model(a=(Annotated[list[int], Field(min_length=1, max_length=3)], ...)),
    ],
    ids=str,
)
def test_strict_where_the_rules_can_say_it(type_: Any) -> None:
    made = schema(type_)
    assert made.strict
    text = str(made.strict)
    for word in ("'title'", "'default'", "'examples'", "'const'", "'oneOf'"):
        assert word not in text
    assert made.strict["required"] == list(made.plain["properties"])


def test_examples_are_kept_in_words() -> None:
    made = schema(model(a=(int, Field(description="A count.", examples=[3, 5]))))
    assert made.strict
    assert made.strict["properties"]["a"]["description"] == "A count. For example: 3, 5"


@pytest.mark.parametrize(
    "type_",
    [
        dict[str, int],
        dict,
        list,
        Any,
        set[int],
        tuple[int, str],
        Old,
        AnyUrl,
        bytes,
        model(a=(Any, ...)),
        model(a=(list[str], Field(default_factory=list))),
        create_model("Ahead", __config__=PYTHON_RE, a=(AHEAD, ...)),
        create_model("Open", __config__=ConfigDict(extra="allow"), a=(int, ...)),
        Literal[1, "a"],
    ],
    ids=str,
)
def test_not_strict_where_they_cannot_and_then_nothing_is_lost(type_: Any) -> None:
    if type_ == Old and sys.version_info < (3, 12):
        plain = schema(type_).plain
        assert plain["required"] == ["a"]
    assert schema(type_).strict is None
    assert schema(dict[str, int]).plain["properties"]["result"]["additionalProperties"] == {
        "type": "integer"
    }


def nested(depth: int) -> Any:
    made: Any = Inner
    for level in range(depth - 1):
        made = create_model(f"Level{level}", inner=(made, ...))
    return made


def inline(depth: int) -> dict[str, Any]:
    node: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        node = {"type": "object", "properties": {"a": node}, "required": ["a"]}
    return node


def test_limits() -> None:
    assert strict(inline(10))
    assert strict(inline(11)) is None
    # Each definition is counted by itself.
    assert schema(nested(30)).strict
    names = {f"p{n}": (int, ...) for n in range(5_001)}
    assert strict(schema(create_model("Wide", **names)).plain) is None
    del names["p0"]
    assert strict(schema(create_model("Wide", **names)).plain)
    values = [f"v{n}" for n in range(1_001)]
    assert strict(inline(1) | {"properties": {"a": {"type": "string", "enum": values}}}) is None
    assert strict(inline(1) | {"properties": {"a": {"type": "string", "enum": values[1:]}}})
    long = [f"{n}" + "x" * 60 for n in range(251)]
    assert strict(inline(1) | {"properties": {"a": {"type": "string", "enum": long}}}) is None
    assert strict(inline(1) | {"properties": {"a": {"type": "string", "enum": long[:250]}}})


def test_a_union_in_another_order_is_another_schema() -> None:
    one, other = schema(int | str).plain, schema(str | int).plain
    assert one != other
    assert schema(int | str).plain == one


def test_a_class_that_is_defined_again_is_another_type() -> None:
    first = schema(model(a=(int, ...)))
    second = schema(model(b=(int, ...)))
    assert first.plain != second.plain


def test_what_cannot_be_hashed_is_a_type_as_well() -> None:
    assert schema(Annotated[int, {"not": "hashable"}]).label == "int"


@pytest.mark.parametrize(
    "type_",
    [
        typing.Callable[[int], int],
        re.Match,
        list[typing.Callable[[], int]],
        list["NotThere"],  # type: ignore[name-defined] # noqa: F821
        AHEAD,
        object(),
        3,
        "Inner",
    ],
)
def test_what_cannot_be_read_is_refused_in_two_lines(type_: Any) -> None:
    with pytest.raises(PromptError, match="nothing was sent") as caught:
        schema_for(type_)
    assert len(str(caught.value).splitlines()) == 2
    assert "http" not in str(caught.value)
