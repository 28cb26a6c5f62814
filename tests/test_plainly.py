"""Whether reading an answer runs the notebook's code: told beforehand, and checked by reading."""

import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Json,
    PlainValidator,
    PositiveInt,
    PrivateAttr,
    RootModel,
    Tag,
    ValidationInfo,
    WrapValidator,
    computed_field,
    field_serializer,
    field_validator,
    model_validator,
)

from llm_magic.structured import schema_for

RAN: list[str] = []
"""What the notebook's code, which these types have, says when it runs."""


def note(value: Any) -> Any:
    RAN.append("ran")
    return value


def noted(value: Any, handler: Callable[[Any], Any]) -> Any:
    return note(handler(value))


class One(BaseModel):
    kind: Literal["one"] = "one"


class Two(BaseModel):
    kind: Literal["two"] = "two"


class Validated(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def check(cls, value: int) -> int:
        return int(note(value))


class Informed(BaseModel):
    n: int

    @field_validator("n", mode="before")
    @classmethod
    def check(cls, value: Any, info: ValidationInfo) -> Any:
        return note(value)


class WholeBefore(BaseModel):
    n: int

    @model_validator(mode="before")
    @classmethod
    def check(cls, value: Any) -> Any:
        return note(value)


class WholeAfter(BaseModel):
    n: int

    @model_validator(mode="after")
    def check(self) -> "WholeAfter":
        note(self.n)
        return self


class Initialised(BaseModel):
    n: int

    def __init__(self, **values: Any) -> None:
        super().__init__(**note(values))


class InitialisedAbove(Initialised):
    pass


class MadeAnew(BaseModel):
    n: int

    def __new__(cls, *args: Any, **values: Any) -> "MadeAnew":
        note(cls)
        return super().__new__(cls)


class AfterInit(BaseModel):
    n: int

    def model_post_init(self, context: Any) -> None:
        note(self.n)


class Private(BaseModel):
    n: int
    _seen: Any = PrivateAttr(default_factory=lambda: note(1))


class Factory(BaseModel):
    n: int
    m: int = Field(default_factory=lambda: int(note(2)))


class Copied:
    def __deepcopy__(self, memo: Any) -> "Copied":
        note(self)
        return self


class DefaultsCopied(BaseModel):
    n: int
    held: Any = {"a": [Copied()]}


class NamedLikeSchemas(BaseModel):
    """Its fields have the names of parts of a core schema."""

    n: int
    config: Annotated[int, AfterValidator(note)] = Field(default=1, validate_default=True)
    metadata: int = 1


class Finding(enum.Enum):
    A = "a"

    @classmethod
    def _missing_(cls, value: object) -> "Finding":
        note(value)
        return cls.A


class Word(str):
    def __eq__(self, other: object) -> bool:
        note(other)
        return str.__eq__(self, other)

    __hash__ = str.__hash__


class OddlyEqual(enum.Enum):
    A = Word("a")


@dataclasses.dataclass
class PostInit:
    n: int

    def __post_init__(self) -> None:
        note(self.n)


@dataclasses.dataclass
class NewData:
    n: int

    def __new__(cls, *args: Any, **values: Any) -> "NewData":
        note(cls)
        return super().__new__(cls)


@dataclasses.dataclass(frozen=True)
class Hashed:
    n: int

    def __hash__(self) -> int:
        note(self.n)
        return self.n


class Root(RootModel[int]):
    @model_validator(mode="before")
    @classmethod
    def check(cls, value: Any) -> Any:
        return note(value)


class Extras(BaseModel, extra="allow"):
    __pydantic_extra__: dict[str, Annotated[int, AfterValidator(note)]]


class Keys(TypedDict):
    n: Annotated[int, BeforeValidator(note)]


class Pair(NamedTuple):
    n: Annotated[int, AfterValidator(note)]


class Deep(BaseModel):
    rows: list[dict[str, tuple[Validated, int] | None]]


class Own:
    """A class that says itself how pydantic reads it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(note, core_schema.int_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        return {"type": "integer"}


Told = Annotated[
    Annotated[One, Tag("one")] | Annotated[Two, Tag("two")],
    Discriminator(lambda value: note("one")),
]

RUNS = [
    (Annotated[int, AfterValidator(note)], "1"),
    (Annotated[int, BeforeValidator(note)], "1"),
    (Annotated[int, PlainValidator(note)], "1"),
    (Annotated[int, WrapValidator(noted)], "1"),
    (Validated, '{"n": 1}'),
    (Informed, '{"n": 1}'),
    (WholeBefore, '{"n": 1}'),
    (WholeAfter, '{"n": 1}'),
    (Initialised, '{"n": 1}'),
    (InitialisedAbove, '{"n": 1}'),
    (MadeAnew, '{"n": 1}'),
    (AfterInit, '{"n": 1}'),
    (Private, '{"n": 1}'),
    (Factory, '{"n": 1}'),
    (DefaultsCopied, '{"n": 1}'),
    (NamedLikeSchemas, '{"n": 1}'),
    (Finding, '"b"'),
    (OddlyEqual, '"a"'),
    (PostInit, '{"n": 1}'),
    (NewData, '{"n": 1}'),
    (set[Hashed], '[{"n": 1}]'),
    (frozenset[tuple[Hashed, int]], '[[{"n": 1}, 2]]'),
    (Root, "1"),
    (Extras, '{"odd": 1}'),
    (Keys, '{"n": 1}'),
    (Pair, "[1]"),
    (Deep, '{"rows": [{"a": [{"n": 1}, 2]}]}'),
    (list[Validated], '[{"n": 1}]'),
    (dict[Annotated[str, AfterValidator(note)], int], '{"a": 1}'),
    (Validated | None, '{"n": 1}'),
    (Json[Annotated[int, AfterValidator(note)]], '"1"'),
    (Own, "1"),
    (Told, '{"kind": "one"}'),
]


@pytest.mark.filterwarnings("ignore:Default value")
@pytest.mark.parametrize(("type_", "text"), RUNS, ids=lambda each: getattr(each, "__name__", None))
def test_types_whose_reading_runs_the_notebooks_code_are_told(type_: Any, text: str) -> None:
    schema = schema_for(type_)
    assert schema is not None
    RAN.clear()
    schema.bare.validate_json(text)
    assert RAN, "the example does not show what it should"
    assert not schema.plainly


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Size(enum.IntEnum):
    SMALL = 1


class Shade(enum.StrEnum):
    DARK = "dark"


@dataclasses.dataclass(slots=True)
class Point:
    x: int
    y: list[int] = dataclasses.field(default=None)  # type: ignore[assignment]


class Movie(TypedDict):
    title: str
    year: int


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    inside: T


class Tree(BaseModel):
    name: str
    children: list["Tree"] = []


class Review(BaseModel):
    """Limits, defaults, aliases, several uses of one type; names of fields as schemas have."""

    model_config = ConfigDict(extra="forbid", alias_generator=str.upper, frozen=True)

    stars: int = Field(ge=1, le=5)
    mood: Literal["good", "bad"] = "good"
    colour: Colour | None = None
    when: AwareDatetime | None = None
    part: Box[int]
    other: Box[int] | None = None
    function: str = "f"
    cls: dict[str, list[int]] = {"a": [1, 2]}
    missing: int = Field(1, validation_alias=AliasChoices("gone", AliasPath("lost", 0)))

    @field_serializer("stars")
    def shown(self, value: int) -> str:
        return str(note(value))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def half(self) -> float:
        return float(note(self.stars)) / 2


PLAIN = [
    int,
    bool,
    float,
    bytes,
    Decimal,
    dt.date,
    dt.datetime,
    dt.time,
    dt.timedelta,
    uuid.UUID,
    Any,
    None,
    PositiveInt,
    Annotated[str, Field(pattern="^a", max_length=3)],
    int | None,
    int | str | None,
    Literal["a", 1, None],
    Literal[Shade.DARK],
    Colour,
    Size,
    Shade,
    list[int],
    tuple[int, str],
    tuple[int, ...],
    set[str],
    frozenset[tuple[int, str]],
    dict[str, int],
    dict[Colour, list[int]],
    Point,
    Movie,
    Tree,
    Box[Point],
    Review,
    list[Review],
    Json[list[int]],
    One | Two,
    Annotated[One | Two, Field(discriminator="kind")],
    RootModel[list[One]],
]


@pytest.mark.parametrize("type_", PLAIN, ids=str)
def test_ordinary_types_are_read_by_pydantic_alone(type_: Any) -> None:
    schema = schema_for(type_)
    assert schema is not None
    assert schema.plainly


def test_serialisers_and_computed_fields_do_not_run_while_reading() -> None:
    schema = schema_for(Review)
    assert schema is not None
    RAN.clear()
    schema.bare.validate_json('{"STARS": 3, "PART": {"inside": 1}}')
    assert not RAN
