"""Every kind of Python type against every kind of server: what is sent, and what comes back.

Each case is a type, the JSON of a value as a model writes it, the value that must come of it, and
an answer that must not be taken.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from types import NoneType
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import jsonschema
import pytest
import typing_extensions
from pydantic import (
    AliasChoices,
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveInt,
    RootModel,
    SecretStr,
    StringConstraints,
    computed_field,
    create_model,
    field_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import TzInfo
from typing_extensions import TypeAliasType

import llm_magic
from llm_magic.errors import (
    AuthenticationFailed,
    InvalidAnswer,
    PromptError,
    ProviderError,
    RateLimited,
)
from llm_magic.structured import Schema, schema_for
from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import KEY, end_session
from tests.strict_rules import violations, walk

# --- the types

T = TypeVar("T")


class Review(BaseModel):
    """A review of a product."""

    product: str
    rating: int


class Address(BaseModel):
    street: str
    zip: str | None


class Person(BaseModel):
    name: str
    home: Address
    former: list[Address]


@dataclass
class Point:
    x: int
    y: float


@dataclass
class Path2(Point):
    tags: list[str] = field(default_factory=list)


@pydantic_dataclass
class Checked:
    x: int
    y: str = "why"


class Film(TypedDict):
    title: str
    year: int


class Book(typing_extensions.TypedDict):
    title: str
    pages: int


class Song(TypedDict):
    title: str
    album: NotRequired[str]


class Track(typing_extensions.TypedDict, total=False):
    title: Required[str]
    seconds: int


class Options(TypedDict, total=False):
    verbose: bool
    level: int


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Mixed(Enum):
    ONE = 1
    TWO = "two"


class Only(Enum):
    HERE = "here"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mood(StrEnum):
    GOOD = "good"
    BAD = "bad"


class Optionals(BaseModel):
    a: int | None
    b: str | None = None
    c: int | None = 3


class Defaults(BaseModel):
    a: int = 1
    b: str = "hi"
    c: list[int] = Field(default_factory=list)
    d: Review = Review(product="pan", rating=1)


class Constrained(BaseModel):
    stars: int = Field(ge=1, le=5)
    share: float = Field(gt=0, lt=1)
    code: str = Field(pattern=r"^[A-Z]{2}\d+$")
    tags: list[str] = Field(min_length=1, max_length=3)


class Ahead(BaseModel):
    word: Annotated[str, Field(json_schema_extra={"pattern": r"^(?!no).*$"})]


class Short(BaseModel):
    name: Annotated[str, StringConstraints(min_length=2, max_length=5)]


class Node(BaseModel):
    name: str
    children: list["Node"]


class Chain(BaseModel):
    name: str
    next: Optional["Chain"] = None


class Ping(BaseModel):
    pong: Optional["Pong"]


class Pong(BaseModel):
    ping: Optional["Ping"]


class Box(BaseModel, Generic[T]):
    content: T


class Pair(NamedTuple):
    left: int
    right: str


class Numbers(RootModel[list[int]]):
    pass


class Counts(RootModel[dict[str, int]]):
    pass


class Wrapped(RootModel[Review]):
    pass


class Aliased(BaseModel):
    kind: str = Field(alias="type")
    number: int = Field(validation_alias="no.")


class Choices(BaseModel):
    name: str = Field(validation_alias=AliasChoices("fullName", "full_name"))


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)
    first_name: str
    last_name: str


class Computed(BaseModel):
    side: int

    @computed_field(alias="theArea")
    @property
    def area(self) -> int:
        return self.side**2


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str


class Exact(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date
    count: int
    pair: tuple[int, int]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


Animal = Annotated[Cat | Dog, Field(discriminator="kind")]


class Zoo(BaseModel):
    animals: list[Animal]
    best: Animal | None


class Red(BaseModel):
    colour: Literal[Colour.RED]
    shade: int


class Blue(BaseModel):
    colour: Literal[Colour.BLUE]
    depth: int


class Loose(BaseModel):
    name: str
    data: Any


class Untyped(BaseModel):
    name: str
    rows: list
    data: dict


class Maps(BaseModel):
    counts: dict[str, int]
    reviews: dict[str, list[Review]]


class Unions(BaseModel):
    parts: list[int | str | Review]
    flag: bool | None


class Times(BaseModel):
    day: date
    at: datetime
    clock: time
    took: timedelta


class Tricky(BaseModel):
    """A model whose fields are called as JSON Schema's own words."""

    title: str
    default: int
    required: list[str]
    properties: str
    type: str
    format: Literal["uri"]
    discriminator: bool


class Resulting(BaseModel):
    result: int


class Documented(BaseModel):
    """Words, "quoted" and – not – ASCII."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Åsa"}]})
    name: str = Field(description="A name", examples=["Åsa"], title="Name!")
    old: int = Field(deprecated=True, default=0)
    made: Address = Field(description="Where it is made")


class Even(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def _even(cls, number: int) -> int:
        if number % 2:
            raise ValueError("an even number is wanted")
        return number


class Sets(BaseModel):
    ids: set[int]
    pair: tuple[int, str]


class Empty(BaseModel):
    pass


class Holder(BaseModel):
    secret: SecretStr
    where: Path
    host: IPv4Address


@dataclass
class Team:
    lead: Review
    points: list[Point]


def nested(levels: int) -> tuple[type[BaseModel], str]:
    """A model so deep, and the JSON of its value."""
    made = create_model("Level1", x=(int, ...))
    text = '{"x": 1}'
    for level in range(2, levels + 1):
        made = create_model(f"Level{level}", inner=(made, ...))
        text = f'{{"inner": {text}}}'
    return made, text


DEEP, DEEP_TEXT = nested(12)
DEEP_LIST = list[list[list[list[list[list[list[list[list[list[list[list[int]]]]]]]]]]]]
WIDE = create_model("Wide", **{f"field_{n}": (int, ...) for n in range(120)})
MANY = Literal[tuple(f"word number {n} of a long list of words of a choice" for n in range(400))]
UserId = NewType("UserId", int)
Ints = TypeAliasType("Ints", list[int])
UID = "12345678-1234-5678-1234-567812345678"

# --- the cases


@dataclass
class Case:
    """A type and its answers.

    Attributes:
        type: What is asked for.
        text: JSON of the value, without the object that we may put around it.
        value: What comes of it.
        wrong: An answer that gives no value.
    """

    type: Any
    text: str
    value: Any
    wrong: str = '{"nonsense": 1}'

    @property
    def schema(self) -> Schema:
        made = schema_for(self.type)
        assert made is not None
        return made

    @property
    def answer(self) -> str:
        """What a server that keeps to the schema answers."""
        return f'{{"result": {self.text}}}' if self.schema.wrapped else self.text


PROSE = "I would rather not say."
KETTLE = '{"product": "kettle", "rating": 4}'
KETTLE_VALUE = Review(product="kettle", rating=4)
TIMES = '{"day": "2026-11-23", "at": "2026-11-23T10:30:00Z", "clock": "10:30:00", "took": "P1DT2H"}'
CASES = {
    "model": Case(Review, KETTLE, KETTLE_VALUE, '{"product": "kettle", "rating": "five"}'),
    "nested model": Case(
        Person,
        '{"name": "Åsa", "home": {"street": "Main", "zip": null},'
        ' "former": [{"street": "Old \\"one\\"", "zip": "1"}]}',
        Person(
            name="Åsa",
            home=Address(street="Main", zip=None),
            former=[Address(street='Old "one"', zip="1")],
        ),
        '{"name": "Åsa", "home": {"street": "Main"}, "former": []}',
    ),
    "dataclass": Case(Point, '{"x": 1, "y": 2.5}', Point(1, 2.5)),
    "dataclass with default_factory": Case(
        Path2, '{"x": 1, "y": 2.5, "tags": ["a"]}', Path2(1, 2.5, ["a"])
    ),
    "dataclass of models": Case(
        Team,
        f'{{"lead": {KETTLE}, "points": [{{"x": 1, "y": 0.5}}]}}',
        Team(KETTLE_VALUE, [Point(1, 0.5)]),
    ),
    "pydantic dataclass": Case(Checked, '{"x": 1, "y": "z"}', Checked(1, "z")),
    "typing TypedDict": Case(
        Film, '{"title": "Alien", "year": 1979}', {"title": "Alien", "year": 1979}
    ),
    "typing_extensions TypedDict": Case(
        Book, '{"title": "Emma", "pages": 474}', {"title": "Emma", "pages": 474}
    ),
    "NotRequired, there": Case(
        Song, '{"title": "So What", "album": "KB"}', {"title": "So What", "album": "KB"}
    ),
    "NotRequired, not there": Case(Song, '{"title": "So What"}', {"title": "So What"}),
    "total=False with Required": Case(Track, '{"title": "Intro"}', {"title": "Intro"}),
    "total=False": Case(Options, '{"level": 2}', {"level": 2}),
    "list of typing TypedDict": Case(
        list[Film], '[{"title": "Alien", "year": 1979}]', [{"title": "Alien", "year": 1979}]
    ),
    "Enum": Case(Colour, '"red"', Colour.RED, '{"result": "green"}'),
    "Enum of mixed values": Case(Mixed, "1", Mixed.ONE, '{"result": "three"}'),
    "Enum of one": Case(Only, '"here"', Only.HERE, '{"result": "there"}'),
    "IntEnum": Case(Level, "2", Level.HIGH, '{"result": 3}'),
    "StrEnum": Case(Mood, '"good"', Mood.GOOD, '{"result": "Good"}'),
    "list of Enum": Case(list[Colour], '["red", "blue"]', [Colour.RED, Colour.BLUE]),
    "Literal of str": Case(Literal["good", "bad"], '"bad"', "bad", '{"result": "worse"}'),
    "Literal of int": Case(Literal[1, 2], "2", 2, '{"result": 3}'),
    "Literal mixed": Case(Literal["a", 1, None], "1", 1, '{"result": "b"}'),
    "Literal of one": Case(Literal["only"], '"only"', "only", '{"result": "other"}'),
    "Literal of a StrEnum's member": Case(
        Literal[Mood.GOOD], '"good"', Mood.GOOD, '{"result": "bad"}'
    ),
    "Literal of many words": Case(
        MANY,
        '"word number 7 of a long list of words of a choice"',
        "word number 7 of a long list of words of a choice",
    ),
    "list of int": Case(list[int], "[1, 2]", [1, 2], '{"result": ["one"]}'),
    "empty list": Case(list[int], "[]", []),
    "list of models": Case(list[Review], f"[{KETTLE}]", [KETTLE_VALUE]),
    "list of lists": Case(list[list[float]], "[[1.5], []]", [[1.5], []]),
    "tuple, fixed": Case(tuple[int, str], '[1, "a"]', (1, "a"), '{"result": [1]}'),
    "tuple, variadic": Case(tuple[int, ...], "[1, 2, 3]", (1, 2, 3)),
    "set": Case(set[int], "[3, 1]", {1, 3}),
    "frozenset": Case(frozenset[int], "[1, 2]", frozenset({1, 2})),
    "deque": Case(deque[int], "[1, 2]", deque([1, 2])),
    "Sequence": Case(Sequence[int], "[1, 2]", [1, 2]),
    "set and tuple as fields": Case(
        Sets, '{"ids": [1], "pair": [1, "b"]}', Sets(ids={1}, pair=(1, "b"))
    ),
    "dict of int": Case(dict[str, int], '{"a": 1, "b": 2}', {"a": 1, "b": 2}, '{"result": [1]}'),
    "dict with the key result": Case(
        dict[str, int], '{"result": 1}', {"result": 1}, '{"result": {"result": "x"}}'
    ),
    "empty dict": Case(dict[str, int], "{}", {}, '{"result": {"a": "one"}}'),
    "dict with int keys": Case(dict[int, str], '{"1": "a"}', {1: "a"}, '{"result": {"x": "a"}}'),
    "dict of models": Case(dict[str, Review], f'{{"k": {KETTLE}}}', {"k": KETTLE_VALUE}),
    "dict of Literal": Case(
        dict[Literal["a", "b"], int], '{"a": 1}', {"a": 1}, '{"result": {"c": 1}}'
    ),
    "dict to a Literal of one": Case(
        dict[str, Literal["x"]], '{"a": "x"}', {"a": "x"}, '{"result": {"a": "y"}}'
    ),
    "bare dict": Case(dict, '{"a": [1]}', {"a": [1]}, PROSE),
    "bare list": Case(list, '[1, "a", null]', [1, "a", None]),
    "maps as fields": Case(
        Maps,
        f'{{"counts": {{"a": 1}}, "reviews": {{"k": [{KETTLE}]}}}}',
        Maps(counts={"a": 1}, reviews={"k": [KETTLE_VALUE]}),
    ),
    "Optional model, there": Case(Optional[Review], KETTLE, KETTLE_VALUE),  # noqa: UP045
    "Optional model, None": Case(Review | None, "null", None),
    "Optional int": Case(int | None, "7", 7),
    "Union of scalars": Case(int | str, '"x"', "x"),
    "Union of models": Case(Union[Address, Review], KETTLE, KETTLE_VALUE),  # noqa: UP007
    "discriminated union": Case(
        Animal,
        '{"kind": "dog", "tricks": ["sit"]}',
        Dog(kind="dog", tricks=["sit"]),
        '{"result": {"kind": "cow"}}',
    ),
    "discriminated unions as fields": Case(
        Zoo,
        '{"animals": [{"kind": "cat", "lives": 9}], "best": null}',
        Zoo(animals=[Cat(kind="cat", lives=9)], best=None),
    ),
    "list of unions": Case(
        Unions,
        f'{{"parts": [1, "1", {KETTLE}], "flag": null}}',
        Unions(parts=[1, "1", KETTLE_VALUE], flag=None),
    ),
    "constrained int": Case(Annotated[int, Field(ge=1, le=5)], "5", 5, '{"result": 6}'),
    "constrained float": Case(
        Annotated[float, Field(gt=0, multiple_of=0.5)], "1.5", 1.5, '{"result": -1}'
    ),
    "constrained str": Case(
        Annotated[str, StringConstraints(min_length=2, max_length=5)],
        '"abc"',
        "abc",
        '{"result": "a"}',
    ),
    "constrained list": Case(
        Annotated[list[int], Field(min_length=1, max_length=3)], "[1]", [1], '{"result": []}'
    ),
    "constraints as fields": Case(
        Constrained,
        '{"stars": 5, "share": 0.25, "code": "AB12", "tags": ["x"]}',
        Constrained(stars=5, share=0.25, code="AB12", tags=["x"]),
        '{"stars": 6, "share": 0.25, "code": "AB12", "tags": ["x"]}',
    ),
    "pattern": Case(Annotated[str, Field(pattern=r"^\d{3}$")], '"123"', "123", '{"result": "12"}'),
    "pattern that looks ahead": Case(Ahead, '{"word": "yes"}', Ahead(word="yes")),
    "lengths as fields": Case(Short, '{"name": "Åsa"}', Short(name="Åsa"), '{"name": "Å"}'),
    "PositiveInt": Case(PositiveInt, "7", 7, '{"result": 0}'),
    "bool": Case(bool, "false", False, '{"result": "maybe"}'),
    "int": Case(int, "42", 42, '{"result": true}'),
    "float": Case(float, "2.5", 2.5, '{"result": "much"}'),
    "float written as int": Case(float, "2", 2.0),
    "date": Case(date, '"2026-11-23"', date(2026, 11, 23), '{"result": 2026}'),
    "datetime": Case(
        datetime,
        '"2026-11-23T10:30:00Z"',
        datetime(2026, 11, 23, 10, 30, tzinfo=TzInfo(0)),
        '{"result": "soon"}',
    ),
    "time": Case(time, '"10:30:00"', time(10, 30), '{"result": 10}'),
    "timedelta": Case(timedelta, '"P1DT2H"', timedelta(days=1, hours=2), '{"result": "a while"}'),
    "times as fields": Case(
        Times,
        TIMES,
        Times(
            day=date(2026, 11, 23),
            at=datetime(2026, 11, 23, 10, 30, tzinfo=TzInfo(0)),
            clock=time(10, 30),
            took=timedelta(days=1, hours=2),
        ),
        TIMES.replace('"2026-11-23"', "2026"),
    ),
    "Decimal": Case(Decimal, '"1.50"', Decimal("1.50"), '{"result": "dear"}'),
    "Decimal as a number": Case(
        list[Decimal], "[0.12345678901234567890]", [Decimal("0.12345678901234567890")]
    ),
    "UUID": Case(UUID, f'"{UID}"', UUID(UID), '{"result": "1234"}'),
    "AnyUrl": Case(AnyUrl, '"https://example.org/a"', AnyUrl("https://example.org/a")),
    "bytes": Case(bytes, '"hi"', b"hi"),
    "odd formats as fields": Case(
        Holder,
        '{"secret": "s", "where": "a/b", "host": "10.0.0.1"}',
        Holder(secret=SecretStr("s"), where=Path("a/b"), host=IPv4Address("10.0.0.1")),
        '{"secret": "s", "where": "a/b", "host": "ten"}',
    ),
    "None": Case(NoneType, "null", None),
    "fields that may be None": Case(
        Optionals, '{"a": null, "b": "x", "c": null}', Optionals(a=None, b="x", c=None)
    ),
    "defaults": Case(
        Defaults,
        f'{{"a": 2, "b": "ho", "c": [1], "d": {KETTLE}}}',
        Defaults(a=2, b="ho", c=[1], d=KETTLE_VALUE),
    ),
    "recursive model": Case(
        Node,
        '{"name": "a", "children": [{"name": "b", "children": []}]}',
        Node(name="a", children=[Node(name="b", children=[])]),
    ),
    "recursive by Optional": Case(
        Chain,
        '{"name": "a", "next": {"name": "b", "next": null}}',
        Chain(name="a", next=Chain(name="b")),
    ),
    "list of a recursive model": Case(
        list[Node], '[{"name": "a", "children": []}]', [Node(name="a", children=[])]
    ),
    "two models recursive": Case(
        Ping, '{"pong": {"ping": {"pong": null}}}', Ping(pong=Pong(ping=Ping(pong=None)))
    ),
    "generic model": Case(Box[list[int]], '{"content": [1]}', Box[list[int]](content=[1])),
    "generic in a list": Case(
        list[Box[Review]], f'[{{"content": {KETTLE}}}]', [Box[Review](content=KETTLE_VALUE)]
    ),
    "NamedTuple": Case(Pair, '[1, "b"]', Pair(1, "b"), '{"result": ["x", "b"]}'),
    "RootModel of list": Case(Numbers, "[1, 2]", Numbers([1, 2])),
    "RootModel of dict": Case(Counts, '{"a": 1}', Counts({"a": 1}), '{"result": [1]}'),
    "RootModel of model": Case(Wrapped, KETTLE, Wrapped(KETTLE_VALUE)),
    "aliases": Case(
        Aliased, '{"type": "a", "no.": 1}', Aliased.model_validate({"type": "a", "no.": 1})
    ),
    "AliasChoices": Case(
        Choices, '{"fullName": "Åsa"}', Choices.model_validate({"full_name": "Åsa"})
    ),
    "alias generator": Case(
        Camel,
        '{"firstName": "Åsa", "lastName": "B"}',
        Camel(first_name="Åsa", last_name="B"),
    ),
    "computed field": Case(Computed, '{"side": 3}', Computed(side=3)),
    "extra=allow": Case(Open, '{"name": "a", "age": 7}', Open(name="a", age=7)),
    "extra=forbid": Case(Closed, '{"name": "a"}', Closed(name="a"), '{"name": "a", "age": 7}'),
    "frozen model": Case(Frozen, '{"name": "a"}', Frozen(name="a")),
    "model in pydantic's strict mode": Case(
        Exact,
        '{"day": "2026-11-23", "count": 1, "pair": [1, 2]}',
        Exact(day=date(2026, 11, 23), count=1, pair=(1, 2)),
        '{"day": "2026-11-23", "count": "1", "pair": [1, 2]}',
    ),
    "Any as a field": Case(
        Loose, '{"name": "a", "data": {"b": [1]}}', Loose(name="a", data={"b": [1]})
    ),
    "Any": Case(Any, '{"b": [1]}', {"b": [1]}, PROSE),
    "JsonValue": Case(JsonValue, '["a", {"b": null}]', ["a", {"b": None}], PROSE),
    "bare list and dict as fields": Case(
        Untyped,
        '{"name": "a", "rows": [1, "b"], "data": {"c": 1}}',
        Untyped(name="a", rows=[1, "b"], data={"c": 1}),
    ),
    "12 levels of models": Case(DEEP, DEEP_TEXT, DEEP.model_validate_json(DEEP_TEXT)),
    "12 levels of lists": Case(DEEP_LIST, "[" * 12 + "1" + "]" * 12, [[[[[[[[[[[[1]]]]]]]]]]]]),
    "120 fields": Case(
        WIDE,
        json.dumps({f"field_{n}": n for n in range(120)}),
        WIDE(**{f"field_{n}": n for n in range(120)}),
    ),
    "fields named like JSON Schema's words": Case(
        Tricky,
        '{"title": "a", "default": 1, "required": ["b"], "properties": "c", "type": "object",'
        ' "format": "uri", "discriminator": true}',
        Tricky(
            title="a",
            default=1,
            required=["b"],
            properties="c",
            type="object",
            format="uri",
            discriminator=True,
        ),
    ),
    "a field named as our own": Case(Resulting, '{"result": 1}', Resulting(result=1)),
    "list of those": Case(list[Resulting], '[{"result": 1}]', [Resulting(result=1)]),
    "descriptions and examples": Case(
        Documented,
        '{"name": "Åsa", "old": 1, "made": {"street": "Main", "zip": null}}',
        Documented(name="Åsa", old=1, made=Address(street="Main", zip=None)),
    ),
    "validator": Case(Even, '{"number": 2}', Even(number=2), '{"number": 3}'),
    "empty model": Case(Empty, "{}", Empty(), "[1]"),
    "NewType": Case(UserId, "7", 7),
    "type alias": Case(Ints, "[1]", [1]),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
FEW = [CASES[name] for name in ("model", "dict of int", "discriminated union", "Literal of one")]

# --- the servers


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    """One server, and so one session, for the whole file: each test asks a model of its own."""
    with ScriptedServer() as server:
        yield server
    end_session()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("ledger"))


@pytest.fixture
def server(running: ScriptedServer) -> ScriptedServer:
    running.reset()
    return running


@pytest.fixture(autouse=True)
def provider(
    clean_environment: None, server: ScriptedServer, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LLM_MAGIC_LEDGER_DIR", ledger)
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    monkeypatch.setenv("LLM_MAGIC_RETRIES", "0")


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model that no other test asks: what its server takes is remembered by its name."""
    return re.sub(r"\W+", "-", request.node.nodeid)


def asked(case: Case, model: str, **options: Any) -> Any:
    return llm_magic.ask("Which?", schema=case.type, model=model, max_tokens=500, **options)


def check(case: Case, value: Any) -> None:
    assert type(value) is type(case.value)
    assert value == case.value
    # True == 1 == 1.0: their words differ, at any depth.
    assert repr(value) == repr(case.value)


def form(server: ScriptedServer, place: int = -1) -> dict[str, Any] | None:
    return server.requests[place].body.get("response_format")


def system_words(server: ScriptedServer, place: int) -> str:
    messages = server.requests[place].body["messages"]
    return "".join(each["content"] for each in messages if each["role"] == "system")


def written(schema: Schema) -> str:
    return json.dumps(schema.plain, ensure_ascii=False, separators=(",", ":"))


def open_maps(schema: dict[str, Any]) -> dict[str, Any]:
    """Places where any keys may come, and what may stand there."""
    return {
        path: node.get("additionalProperties", "anything")
        for path, node in walk(schema)
        if isinstance(node, dict)
        and (
            node.get("additionalProperties", False) is not False
            or (
                node.get("type") == "object"
                and not node.keys() & {"properties", "additionalProperties"}
            )
        )
    }


# --- a server that enforces the schema


@every
def test_a_server_that_enforces(case: Case, server: ScriptedServer, model: str) -> None:
    server.enqueue(case.answer)

    check(case, asked(case, model).value)

    assert len(server.requests) == 1
    sent = form(server)
    assert sent is not None
    assert sent["type"] == "json_schema"
    named = sent["json_schema"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", named["name"])
    jsonschema.Draft202012Validator.check_schema(named["schema"])
    jsonschema.validate(json.loads(case.answer), named["schema"])
    if named["strict"]:
        assert violations(named["schema"]) == []
    maps = open_maps(case.schema.plain)
    assert not (maps and named["strict"])
    assert open_maps(named["schema"]) == maps


@pytest.mark.parametrize(
    ("name", "strict"),
    [
        ("model", True),
        ("nested model", True),
        ("dataclass", True),
        ("typing TypedDict", True),
        ("list of models", True),
        ("Enum", True),
        ("Optional int", True),
        ("discriminated union", True),
        ("recursive model", True),
        ("times as fields", True),
        ("constraints as fields", True),
        ("fields that may be None", True),
        ("120 fields", True),
        ("fields named like JSON Schema's words", True),
        ("dict of int", False),
        ("bare list", False),
        ("set", False),
        ("tuple, fixed", False),
        ("extra=allow", False),
        ("NotRequired, there", False),
        ("Any as a field", False),
        ("AnyUrl", False),
        ("pattern that looks ahead", False),
        ("lengths as fields", False),
        ("12 levels of lists", False),
        ("Literal of many words", False),
    ],
)
def test_strict_mode_where_it_can_say_it(
    name: str, strict: bool, server: ScriptedServer, model: str
) -> None:
    server.enqueue(CASES[name].answer)
    asked(CASES[name], model)
    assert form(server)["json_schema"]["strict"] is strict


# --- a server that knows json_object only

ONLY_OBJECT = Reply(
    status=400,
    error={
        "error": {
            "message": "'response_format.type' must be 'json_object' or 'text'",
            "type": "invalid_request_error",
        }
    },
)


@every
def test_a_server_of_json_object(case: Case, server: ScriptedServer, model: str) -> None:
    server.enqueue(ONLY_OBJECT, case.answer, case.answer)

    check(case, asked(case, model).value)
    assert len(server.requests) == 2
    check(case, asked(case, model).value)
    assert len(server.requests) == 3

    for place in (1, 2):
        assert form(server, place) == {"type": "json_object"}
        assert "JSON" in system_words(server, place)
        assert written(case.schema) in system_words(server, place)


# --- a server that ignores what is asked


@every
def test_a_server_that_ignores_the_form(case: Case, server: ScriptedServer, model: str) -> None:
    pretty = json.dumps(json.loads(case.answer, parse_float=Decimal), indent=2, default=_number)
    # json.dumps has no raw numbers: they are marked, and the marks taken off.
    pretty = re.sub(r'"<([-\d.]+)>"', r"\1", pretty)
    server.enqueue(
        f"Sure! Here is what you {{asked}} for:\n\n```json\n{pretty}\n```\n\n"
        "Tell me [if you like] whether I shall change it."
    )

    check(case, asked(case, model).value)

    assert len(server.requests) == 1
    assert written(case.schema) in system_words(server, 0)


def _number(value: Decimal) -> str:
    return f"<{value}>"


# --- servers that refuse it, in their own words


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


VLLM = "The provided JSON schema contains features not supported by xgrammar."
FORMAT_BODIES: dict[str, Reply] = {
    "LM Studio": Reply(
        status=400, error={"error": "'response_format.type' must be 'json_schema' or 'text'"}
    ),
    "DeepSeek": Reply(status=400, error=error("This response_format type is unavailable now")),
    "DeepSeek earlier": Reply(
        status=422, error=error("This response_format type is unavailable now", param=None)
    ),
    "Azure": Reply(
        status=400,
        error={
            "error": {
                "code": "BadRequest",
                "message": "response_format value as json_schema is enabled only for api versions "
                "2024-08-01-preview and later",
            }
        },
    ),
    "Azure earlier": Reply(
        status=400,
        error=error("Invalid parameter: must be one of 'json_object','text'", param=None),
    ),
    "Gemini": Reply(
        status=400,
        error=[
            {
                "error": {
                    "code": 400,
                    "message": 'Invalid JSON payload received. Unknown name "const" at '
                    "'generation_config.response_schema': Cannot find field.",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
    ),
    "Groq model": Reply(
        status=400, error=error("This model does not support response format `json_schema`")
    ),
    "Groq streaming": Reply(
        status=400, error=error("`response_format` does not support streaming")
    ),
    "Groq minItems": Reply(status=400, error=error("minItems is not supported")),
    "Groq failed": Reply(
        status=400,
        error=error(
            "Failed to generate JSON. Please adjust your prompt. See 'failed_generation'.",
            code="json_validate_failed",
            failed_generation='{"product": ',
        ),
    ),
    "vLLM old": Reply(
        status=400,
        error={"object": "error", "message": VLLM, "type": "BadRequestError", "code": 400},
    ),
    "vLLM new": Reply(
        status=400, error={"error": {"message": VLLM, "type": "BadRequestError", "code": 400}}
    ),
    "vLLM format": Reply(
        status=400,
        error={"object": "error", "message": "Grammar error: Unknown format: uri", "code": 400},
    ),
    "llama.cpp": Reply(
        status=400,
        error={
            "error": {
                "code": 400,
                "message": 'Either "json_schema" or "grammar" can be specified, but not both',
                "type": "invalid_request_error",
            }
        },
    ),
    "FastAPI": Reply(
        status=422,
        error={
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "response_format"],
                    "msg": "Extra inputs are not permitted",
                }
            ]
        },
    ),
    "mistral.rs": Reply(
        status=422,
        raw=b"Failed to deserialize the JSON body into the target type: response_format: unknown "
        b"variant `json_object`, expected `text` or `json_schema` at line 1 column 99",
        raw_type="text/plain; charset=utf-8",
    ),
    "OpenAI": Reply(
        status=400,
        error=error(
            "Invalid schema for response_format 'X': In context=(), 'additionalProperties' is "
            "required to be supplied and to be false.",
            param="response_format",
        ),
    ),
}
NAMES = list(FORMAT_BODIES)


def check_refused_twice(case: Case, body: Reply, server: ScriptedServer, model: str) -> None:
    server.enqueue(body, body, case.answer, case.answer)

    check(case, asked(case, model).value)

    forms = [form(server, place) for place in range(len(server.requests))]
    assert [each and each["type"] for each in forms] == ["json_schema", "json_object", None]
    assert "response_format" not in server.requests[-1].body
    assert written(case.schema) in system_words(server, -1)

    asked(case, model)
    assert len(server.requests) == 4
    assert form(server) is None


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, NAMES[place % len(NAMES)]) for place, case in enumerate(CASES.values())],
    ids=[f"{each} - {NAMES[place % len(NAMES)]}" for place, each in enumerate(CASES)],
)
def test_every_type_where_the_form_is_refused(
    case: Case, name: str, server: ScriptedServer, model: str
) -> None:
    check_refused_twice(case, FORMAT_BODIES[name], server, model)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.schema.name)
def test_all_words_of_refusal(case: Case, name: str, server: ScriptedServer, model: str) -> None:
    check_refused_twice(case, FORMAT_BODIES[name], server, model)


def test_gemini_refuses_one_word_of_the_schema(server: ScriptedServer, model: str) -> None:
    """As it is: the schema has a const, and JSON of any kind is then taken."""
    case = CASES["dict to a Literal of one"]
    server.enqueue(FORMAT_BODIES["Gemini"], case.answer)

    check(case, asked(case, model).value)

    assert '"const"' in json.dumps(form(server, 0))
    assert form(server, 1) == {"type": "json_object"}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "temperature must be below 2"}}, ProviderError),
        (401, {"error": {"message": "Incorrect API key provided"}}, AuthenticationFailed),
        (429, {"error": {"message": "Rate limit reached for requests"}}, RateLimited),
        (500, {"error": {"message": "The server had an error"}}, ProviderError),
    ],
)
def test_another_error_is_no_step_down(
    status: int, body: Any, kind: type[ProviderError], server: ScriptedServer, model: str
) -> None:
    case = CASES["model"]
    server.enqueue(Reply(status=status, error=body), case.answer)

    with pytest.raises(ProviderError) as raised:
        asked(case, model)

    assert type(raised.value) is kind
    assert raised.value.status == status
    assert len(server.requests) == 1
    check(case, asked(case, model).value)
    assert form(server)["type"] == "json_schema"


# --- wrong answers


@every
def test_a_wrong_answer_is_no_value(case: Case, server: ScriptedServer, model: str) -> None:
    server.enqueue(case.wrong, case.answer)

    with pytest.raises(InvalidAnswer) as raised:
        asked(case, model, repairs=0)

    wrong = raised.value
    assert wrong.errors
    assert all(wrong.errors)
    assert wrong.text == case.wrong
    assert wrong.attempts == 1
    assert wrong.usage is not None
    assert wrong.usage.output_tokens > 0
    assert len(server.requests) == 1


@every
def test_a_wrong_answer_is_asked_again(case: Case, server: ScriptedServer, model: str) -> None:
    server.enqueue(case.wrong, case.wrong, case.answer)
    with pytest.raises(InvalidAnswer) as raised:
        asked(case, model, repairs=0)

    response = asked(case, model, repairs=1)

    check(case, response.value)
    assert response.attempts == 2
    assert len(server.requests) == 3
    *_, said, told = server.requests[2].body["messages"]
    assert said == {"role": "assistant", "content": case.wrong}
    assert told["role"] == "user"
    assert all(line in told["content"] for line in raised.value.errors)
    assert form(server, 2) == form(server, 1)


@every
def test_wrong_twice_is_no_value(case: Case, server: ScriptedServer, model: str) -> None:
    server.enqueue(case.wrong, case.wrong)

    with pytest.raises(InvalidAnswer) as raised:
        asked(case, model)

    assert raised.value.attempts == len(server.requests) == 2
    assert raised.value.text == case.wrong


# --- the checker itself


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object as strict mode wants it."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


STRING = {"type": "string"}
NULLABLE = {"anyOf": [STRING, {"type": "null"}]}


def lists(levels: int) -> dict[str, Any]:
    return {"type": "array", "items": lists(levels - 1)} if levels else STRING


def words(count: int, length: int) -> dict[str, Any]:
    return {"type": "string", "enum": [f"{n:0{length}}" for n in range(count)]}


@pytest.mark.parametrize(
    "schema",
    [
        closed({}),
        closed({"a": STRING, "b": NULLABLE, "title": STRING, "oneOf": STRING}),
        closed({"a": {"type": ["string", "null"], "description": "A."}}),
        closed({"a": {"$ref": "#"}, "b": {"$ref": "#/$defs/B"}}, **{"$defs": {"B": closed({})}}),
        closed({"a": {"type": "string", "pattern": r"^(?:a|b)$", "format": "date"}}),
        closed({"a": {"type": "array", "items": STRING, "minItems": 1, "maxItems": 2}}),
        closed({"a": lists(9)}),
        closed({"a": {"$ref": "#/$defs/A"}}, **{"$defs": {"A": lists(10)}}),
        closed({"a": words(1000, 15)}),
        closed({"a": words(250, 100)}),
        closed({f"{n}": STRING for n in range(5000)}),
    ],
    ids=lambda schema: str(schema)[:60],
)
def test_the_rules_let_pass(schema: dict[str, Any]) -> None:
    assert violations(schema) == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "items": STRING}, "the root is no object"),
        ({"anyOf": [closed({})]}, "anyOf at the root"),
        (closed({}, anyOf=[closed({})]), "anyOf at the root"),
        ({"type": "object", "properties": {}, "required": []}, "additionalProperties"),
        (closed({}, additionalProperties=True), "additionalProperties"),
        (closed({"a": {"type": "object"}}), "properties/a: additionalProperties"),
        (closed({"a": STRING}, required=[]), "not every property"),
        (closed({"a": closed({"b": STRING}, required=[])}), "not every property"),
        (closed({"a": {"type": "object", "additionalProperties": STRING}}), "additionalProperties"),
        (closed({"a": {"type": ["object", "null"]}}), "additionalProperties"),
        (closed({"a": {}}), "neither type"),
        (closed({"a": {"enum": ["x"]}}), "neither type"),
        (closed({"a": True}), "is no schema"),
        (closed({"a": {"type": "text"}}), "is no type"),
        (closed({"a": {"type": "array"}}), "an array of anything"),
        (closed({"a": {"type": "array", "items": {}}}), "an array of anything"),
        (closed({"a": {"anyOf": []}}), "anyOf of nothing"),
        (closed({"a": {"oneOf": [STRING]}}), "oneOf is not supported"),
        (closed({"a": {**NULLABLE, "discriminator": {}}}), "discriminator is not supported"),
        (closed({"a": {**STRING, "default": "x"}}), "default is not supported"),
        (closed({"a": {**STRING, "title": "A"}}), "title is not supported"),
        (closed({"a": {**STRING, "minLength": 1}}), "minLength is not supported"),
        (closed({"a": {**STRING, "maxLength": 1}}), "maxLength is not supported"),
        (closed({"a": {**STRING, "format": "uri"}}), "format"),
        (closed({"a": {**STRING, "pattern": "^(?!x)"}}), "looks around"),
        (closed({"a": {**STRING, "pattern": "(?<=x)y"}}), "looks around"),
        *(
            (closed({"a": {**lists(1), word: value}}), f"{word} is not supported")
            for word, value in {
                "allOf": [STRING], "not": STRING, "if": {}, "then": {}, "else": {},
                "dependentRequired": {}, "dependentSchemas": {}, "patternProperties": {},
                "unevaluatedProperties": False, "unevaluatedItems": False, "propertyNames": {},
                "minProperties": 1, "maxProperties": 1, "contains": {}, "minContains": 1,
                "maxContains": 1, "uniqueItems": True, "prefixItems": [STRING],
            }.items()
        ),
        (closed({"a": {"$ref": "#", "description": "A."}}), "$ref has siblings"),
        (closed({"a": {"$ref": "#/properties/b"}, "b": STRING}), "$ref to"),
        (closed({"a": {"$ref": "#/$defs/B"}}), "$ref to"),
        (closed({}, **{"$defs": {"B": {"oneOf": [STRING]}}}), "oneOf is not supported"),
        (closed({"a": closed({}, **{"$defs": {}})}), "$defs below the root"),
        (closed({"a": lists(10)}), "#: 11 levels"),
        (closed({}, **{"$defs": {"A": lists(11)}}), "A: 11 levels"),
        (closed({"a": words(1001, 4)}), "1001 enum values"),
        (closed({"a": words(251, 60)}), "an enum of 251 words"),
        (closed({"a" * 120_001: STRING}), "characters of names"),
        (closed({f"{n}": STRING for n in range(5001)}), "5001 properties"),
    ],
    ids=lambda each: str(each)[:60],
)  # fmt: skip
def test_the_rules_flag(schema: dict[str, Any], said: str) -> None:
    found = violations(schema)
    assert any(said in each for each in found), found


@pytest.mark.parametrize(
    "type_",
    [Literal[Colour.RED], Annotated[Red | Blue, Field(discriminator="colour")]],
    ids=["root", "tag of a union"],
)
def test_a_literal_that_no_text_is_read_as_is_refused(type_: Any, server: ScriptedServer) -> None:
    """pydantic calls it "red" in its schema, and does not take "red" as its value."""
    with pytest.raises(PromptError, match=r"Colour\.(RED|BLUE) in a Literal"):
        llm_magic.ask("Which?", schema=type_, model="m")
    assert server.requests == []
