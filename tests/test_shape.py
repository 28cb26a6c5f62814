"""What columns a type's values fill, told from the type alone."""

import collections
import dataclasses
import datetime as dt
import enum
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import pytest
import typing_extensions
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    Json,
    NaiveDatetime,
    PastDate,
    PlainValidator,
    PositiveInt,
    RootModel,
    SecretStr,
    Strict,
    WrapValidator,
    computed_field,
    field_validator,
    model_validator,
)

from llm_magic.kinds import Kind
from llm_magic.structured import schema_for
from llm_magic.structured.shape import kind_of


def told(kind: Kind) -> str:
    """A kind in one line."""
    words = kind.name + (str(list(kind.choices)) if kind.choices else "")
    if kind.parts or kind.name == "struct":
        words += "{" + ", ".join(f"{name}: {told(part)}" for name, part in kind.parts) + "}"
    words += " aware" * kind.aware + " root" * kind.root
    return words + (f" .{kind.scale}" if kind.scale else "")


def shape(type_: Any) -> str:
    schema = schema_for(type_)
    assert schema is not None
    return told(kind_of(schema))


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 9


class Shade(enum.StrEnum):
    DARK = "dark"


class Share(enum.Enum):
    HALF = 0.5
    WHOLE = 1.0


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


class Corner(enum.Enum):
    LEFT = [0, 0]  # noqa: RUF012
    RIGHT = [1, 0]  # noqa: RUF012


class Large(enum.IntEnum):
    HUGE = 2**63


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (int, "Int64"),
        (bool, "boolean"),
        (float, "Float64"),
        (Annotated[str, Field(max_length=3)], "string"),
        (PositiveInt, "Int64"),
        (Annotated[float, Strict()], "Float64"),
        (int | None, "Int64"),
        (Decimal, "decimal"),
        (Annotated[Decimal, Field(decimal_places=2)], "decimal .2"),
        (bytes, "bytes"),
        (dt.date, "date"),
        (PastDate, "date"),
        (dt.time, "time"),
        (dt.timedelta, "timedelta"),
        (dt.datetime, "datetime"),
        (AwareDatetime, "datetime aware"),
        (NaiveDatetime, "datetime"),
        (uuid.UUID, "uuid"),
        (HttpUrl, "url"),
    ],
    ids=str,
)
def test_single_values(type_: Any, kind: str) -> None:
    assert shape(type_) == kind


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (Literal["b", "a"], "category['b', 'a']"),
        (Literal["a", None], "category['a']"),
        (Literal["a"] | None, "category['a']"),
        (Literal["a"] | Literal["b"], "category['a', 'b']"),
        (Literal["a"] | Colour, "category['a', 'red', 'green']"),
        (Colour, "category['red', 'green']"),
        (Colour | None, "category['red', 'green']"),
        (Shade, "category['dark']"),
        (Literal[2, 1], "Int64[2, 1]"),
        (Size, "Int64[1, 9]"),
        (Literal[True], "boolean[True]"),
        (Share, "Float64[0.5, 1.0]"),
        (Literal[1, True], "object[1, True]"),
        (Mixed, "object[1, 'two']"),
        (list[Corner], "list{item: object[[0, 0], [1, 0]]}"),
        (Large, f"object[{2**63}]"),
    ],
    ids=str,
)
def test_choices(type_: Any, kind: str) -> None:
    """Those of texts are categories, in the type's order; None is no choice but nothing."""
    assert shape(type_) == kind


class Address(BaseModel):
    street: str
    number: int = 0


class Person(BaseModel):
    home: Address
    work: Address | None = None


class Tree(BaseModel):
    name: str
    children: list["Tree"] = []


class Wife(BaseModel):
    husband: "Husband | None" = None


class Husband(BaseModel):
    wife: Wife | None = None
    home: Address


@dataclasses.dataclass
class Point:
    x: int
    unit: dataclasses.InitVar[str]
    y: float = dataclasses.field(init=False, default=0.0)


class Pair(NamedTuple):
    key: str
    value: int = 0


class Movie(TypedDict, total=False):
    title: str
    year: NotRequired[int]


class Aliased(BaseModel):
    price: float = Field(alias="Price in EUR")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> float:
        return self.price * 2


class Checked(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def positive(cls, value: int) -> int:
        return value

    @model_validator(mode="wrap")
    @classmethod
    def whole(cls, value: Any, handler: Any) -> "Checked":
        made: Checked = handler(value)
        return made

    @model_validator(mode="after")
    def after(self) -> "Checked":
        return self


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    inside: T


class Empty(BaseModel):
    pass


class Open(BaseModel, extra="allow"):
    n: int


class OpenKeys(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    n: int


class OpenKeysToo(typing_extensions.TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    n: int


ADDRESS = "struct{street: string, number: Int64}"


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (Address, ADDRESS),
        (Person, f"struct{{home: {ADDRESS}, work: {ADDRESS}}}"),
        (Tree, "struct{name: string, children: list{item: object}}"),
        (Wife, f"struct{{husband: struct{{wife: object, home: {ADDRESS}}}}}"),
        (Point, "struct{x: Int64, y: Float64}"),
        (Pair, "struct{key: string, value: Int64}"),
        (Movie, "struct{title: string, year: Int64}"),
        (Aliased, "struct{price: Float64}"),
        (Checked, "struct{n: Int64}"),
        (Box[int], "struct{inside: Int64}"),
        (Box[list[Address]], f"struct{{inside: list{{item: {ADDRESS}}}}}"),
        (Empty, "struct{}"),
        (RootModel[list[int]], "struct{root: list{item: Int64}} root"),
        (RootModel[Address], f"struct{{root: {ADDRESS}}} root"),
        (Address | None, ADDRESS),
    ],
    ids=str,
)
def test_objects_with_fields(type_: Any, kind: str) -> None:
    """By the names of their attributes, those that a type has twice or within itself as well."""
    assert shape(type_) == kind


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (list[int], "list{item: Int64}"),
        (list[int | None], "list{item: Int64}"),
        (tuple[int, int], "list{item: Int64}"),
        (tuple[str, ...], "list{item: string}"),
        (tuple[()], "object"),
        (set[Colour], "list{item: category['red', 'green']}"),
        (frozenset[float], "list{item: Float64}"),
        (Sequence[str], "list{item: string}"),
        (list[list[Address]], f"list{{item: list{{item: {ADDRESS}}}}}"),
        (list, "list{item: object}"),
        (dict[str, int], "map{value: Int64}"),
        (Mapping[str, list[int]], "map{value: list{item: Int64}}"),
        (dict[str, Any], "map{value: object}"),
    ],
    ids=str,
)
def test_lists_and_maps(type_: Any, kind: str) -> None:
    assert shape(type_) == kind


@pytest.mark.parametrize(
    "type_",
    [
        Any,
        None,
        int | str,
        int | float,
        tuple[int, str],
        dict,
        dict[int, str],
        dict[Colour, int],
        Address | Empty,
        Open,
        OpenKeys,
        OpenKeysToo,
        Json[int],
        pathlib.Path,
        SecretStr,
        collections.Counter[str],
        Annotated[int, PlainValidator(str)],
    ],
    ids=str,
)
def test_what_no_column_type_fits_is_an_object(type_: Any) -> None:
    assert shape(type_) == "object"


@pytest.mark.parametrize(
    "marker", [BeforeValidator(int), AfterValidator(int), WrapValidator(lambda v, h: h(v))]
)
def test_a_validator_leaves_the_kind_as_it_was(marker: Any) -> None:
    assert shape(Annotated[int, marker]) == "Int64"


def test_many_types_that_refer_to_each_other_are_read_once_each() -> None:
    """Twelve in a circle of all with all have half a billion paths."""
    names = [f"Node{number}" for number in range(12)]
    fields = {"__annotations__": {each: f"{each} | None" for each in names}}
    made = {name: type(name, (BaseModel,), fields) for name in names}
    for each in made.values():
        each.model_rebuild(_types_namespace=made)
    schema = schema_for(made["Node0"])
    assert schema is not None
    assert [name for name, _ in kind_of(schema).parts] == names
