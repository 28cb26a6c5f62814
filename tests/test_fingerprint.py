"""What makes two requests one: the exact body, less a short list of fields that change nothing."""

import base64
import copy
import random
from collections.abc import Callable
from dataclasses import make_dataclass, replace
from decimal import Decimal
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_magic.entries import (
    NOT_IN_KEY,
    Entry,
    describe,
    dumps,
    fingerprint,
    normalised,
    pack,
    sign,
    unpack,
    unpack_once,
)
from llm_magic.structured import schema_for
from llm_magic.types import Request, Usage


def image(data: bytes, detail: str = "auto") -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


def schema(**properties: str) -> dict[str, Any]:
    """Of a class that is always called Review, as a second definition in a notebook is."""
    shapes = {name: {"type": kind} for name, kind in properties.items()}
    described = {"title": "Review", "type": "object", "properties": shapes}
    return {
        "type": "json_schema",
        "json_schema": {"name": "Review", "strict": True, "schema": described},
    }


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
BASE = Request(
    messages=(
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "One question."},
        {"role": "assistant", "content": "One answer."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "And this picture?"}, image(b"\x89PNG one")],
        },
    ),
    model="gpt-5-mini",
    base_url="https://api.openai.com/v1",
    max_tokens=100,
    fields={
        "temperature": 0.5,
        "seed": 1,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "response_format": schema(stars="integer"),
        "tools": [TOOL],
        "tool_choice": "auto",
        "num_ctx": 4096,
    },
)


def with_message(place: int, **changes: Any) -> Request:
    messages = copy.deepcopy(list(BASE.messages))
    messages[place] |= changes
    return replace(BASE, messages=tuple(messages))


def with_fields(**changes: Any) -> Request:
    fields = {**BASE.fields, **changes}
    return replace(BASE, fields={name: value for name, value in fields.items() if value != "gone"})


def with_picture(**changes: Any) -> Request:
    made = {"data": b"\x89PNG one", **changes}
    return with_message(3, content=[BASE.messages[3]["content"][0], image(**made)])


OTHERS = {
    "model": replace(BASE, model="gpt-5"),
    "model_snapshot": replace(BASE, model="gpt-5-mini-2026-01-01"),
    "system": with_message(0, content="You are terse!"),
    "no_system": replace(BASE, messages=BASE.messages[1:]),
    "question": with_message(1, content="One question?"),
    "answer": with_message(2, content="Another answer."),
    "role": with_message(1, role="assistant"),
    "name_of_speaker": with_message(1, name="Anna"),
    "order": replace(BASE, messages=(*BASE.messages[2:0:-1], *BASE.messages[::3])),
    "white_space": with_message(1, content="One question. "),
    "unicode_form": with_message(1, content="One que\u0301stion."),
    "text_beside_picture": with_message(
        3, content=[{"type": "text", "text": "And that picture?"}, image(b"\x89PNG one")]
    ),
    "picture": with_picture(data=b"\x89PNG two"),
    "picture_detail": with_picture(detail="high"),
    "no_picture": with_message(3, content=[{"type": "text", "text": "And this picture?"}]),
    "text_as_parts": with_message(1, content=[{"type": "text", "text": "One question."}]),
    "base_url": replace(BASE, base_url="https://api.example.com/v1"),
    "port": replace(BASE, base_url="https://api.openai.com:8443/v1"),
    "path": replace(BASE, base_url="https://api.openai.com/v2"),
    "api_version": replace(BASE, base_url="https://api.openai.com/v1?api-version=2"),
    "scheme": replace(BASE, base_url="http://api.openai.com/v1"),
    "max_tokens": replace(BASE, max_tokens=101),
    "no_max_tokens": replace(BASE, max_tokens=None),
    "temperature": with_fields(temperature=0.6),
    "temperature_zero": with_fields(temperature=0.0),
    "no_temperature": with_fields(temperature="gone"),
    "seed": with_fields(seed=2),
    "no_seed": with_fields(seed="gone"),
    "seed_null": with_fields(seed=None),
    "top_p": with_fields(top_p=0.8),
    "effort": with_fields(reasoning_effort="high"),
    "schema": with_fields(response_format=schema(stars="string")),
    "schema_field": with_fields(response_format=schema(stars="integer", text="string")),
    "schema_order": with_fields(response_format=schema(text="string", stars="integer")),
    "no_schema": with_fields(response_format="gone"),
    "tools": with_fields(tools=[TOOL, TOOL]),
    "tool_choice": with_fields(tool_choice="required"),
    "provider_option": with_fields(num_ctx=8192),
    "further_param": with_fields(stop=["\n"]),
    "service_tier": with_fields(service_tier="flex"),
    "number_of_answers": with_fields(n=2),
}


def test_every_change_of_the_request_is_another_key() -> None:
    keys = {name: fingerprint(request).key for name, request in OTHERS.items()}

    assert fingerprint(BASE).key not in keys.values()
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_changed_request_never_gets_the_stored_answer(name: str) -> None:
    stored = pack(fingerprint(BASE), ENTRY)

    assert unpack(fingerprint(BASE), stored) == ENTRY
    assert unpack(fingerprint(OTHERS[name]), stored) is None


@pytest.mark.parametrize("name", sorted(NOT_IN_KEY))
def test_what_changes_no_answer_is_not_in_the_key(name: str) -> None:
    assert fingerprint(with_fields(**{name: "anything"})).key == fingerprint(BASE).key


def test_temperature_zero_is_not_the_absent_one() -> None:
    plain = Request(({"role": "user", "content": "Hi"},), "m", "http://localhost/v1")

    assert fingerprint(replace(plain, fields={"temperature": 0.0})) != fingerprint(plain)


def test_prompts_with_the_same_first_1000_characters_differ() -> None:
    start = "The same beginning. " * 500
    one, other = (with_message(1, content=start + end) for end in ("One?", "Two?"))

    assert fingerprint(one).key != fingerprint(other).key


def test_the_order_of_fields_is_not_in_the_key() -> None:
    turned = replace(BASE, fields=dict(reversed(list(BASE.fields.items()))))

    assert fingerprint(turned) == fingerprint(BASE)


def test_fields_cannot_run_into_each_other() -> None:
    plain = Request(({"role": "user", "content": "Hi"},), "m", "http://localhost/v1")
    one = replace(plain, fields={"stop": 'a","top_p":1,"x":"'})
    other = replace(plain, fields={"stop": "a", "top_p": 1, "x": ""})

    assert fingerprint(one).key != fingerprint(other).key


@pytest.mark.parametrize(
    "spelling",
    [
        "https://api.openai.com/v1/",
        "https://API.OpenAI.com/v1",
        "https://api.openai.com:443/v1",
        "https://anna:secret@api.openai.com/v1",
        " https://api.openai.com/v1 ",
    ],
)
def test_one_address_in_several_spellings_is_one(spelling: str) -> None:
    assert normalised(spelling) == "https://api.openai.com/v1"


def test_an_address_keeps_what_matters() -> None:
    assert normalised("http://[::1]:8080/v1") == "http://[::1]:8080/v1"
    assert normalised("http://127.0.0.1:80/v1") == "http://127.0.0.1/v1"
    assert normalised("https://x.com/openai/v1?api-version=7") == (
        "https://x.com/openai/v1?api-version=7"
    )


def test_pictures_are_stored_as_sums() -> None:
    print_ = fingerprint(with_picture(data=b"\x89PNG" + bytes(100_000)))

    assert len(print_.canonical) < 5000
    assert b"sha256:" in print_.canonical


ENTRY = Entry("An answer.", "gpt-5-mini", "stop", Usage(3, 4, cached_tokens=1), "Thought.")


def test_a_row_says_what_was_asked_and_answered() -> None:
    print_ = fingerprint(BASE)
    found = describe(print_.key, pack(print_, ENTRY))

    assert found is not None
    request, entry = found
    assert dumps(request) == print_.canonical
    assert entry == ENTRY


def test_a_flipped_bit_anywhere_is_a_miss() -> None:
    print_ = fingerprint(BASE)
    row = pack(print_, ENTRY)
    for place in range(len(row)):
        broken = bytearray(row)
        broken[place] ^= 1
        assert unpack(print_, bytes(broken)) is None, place


@pytest.mark.parametrize("row", [b"", b"short", bytes(16), bytes(1000)])
def test_a_row_of_something_else_is_a_miss(row: bytes) -> None:
    assert unpack(fingerprint(BASE), row) is None
    assert describe(fingerprint(BASE).key, row) is None


def test_a_row_moved_under_another_key_is_a_miss() -> None:
    other = fingerprint(OTHERS["model"])

    assert unpack(other, pack(fingerprint(BASE), ENTRY)) is None
    # The checksum has the key in it; even with the right one the request is compared.
    assert unpack(other, pack(other._replace(canonical=fingerprint(BASE).canonical), ENTRY)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"finish_reason": "length"},
        {"finish_reason": "content_filter"},
        {"text": None},
        {"model": 7},
        {"usage": {"input_tokens": 1, "spies": 2}},
        {"usage": None},
        {"usage": {"input_tokens": "5"}},
        {"usage": {"output_tokens": -1}},
        {"usage": {"cached_tokens": []}},
        {"usage": {"estimated": "no"}},
        {"cost": "a lot"},
        {"cost": "NaN"},
        {"cost": "-1"},
        {"cost": "1e999999"},
        {"finish_reason": []},
        {"seconds": float("inf")},
        {"time": float("nan")},
    ],
)
def test_what_is_no_whole_answer_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="answer"):
        Entry.of(ENTRY.plain() | change)


# Models do send half a surrogate pair.
ANY_TEXT = st.text(st.characters(exclude_categories=[]))


@given(ANY_TEXT, ANY_TEXT, st.floats(0, 1e10), st.decimals(0, 100, places=9))
def test_any_answer_comes_back(text: str, thought: str, moment: float, cost: Any) -> None:
    entry = replace(ENTRY, text=text, reasoning=thought, time=round(moment, 3), cost=cost)
    print_ = fingerprint(BASE)

    assert unpack(print_, pack(print_, entry)) == entry


# A table's requests share all but their messages, and are signed by a shorter way.


class Stars(IntEnum):
    FIVE = 5


class Text(str):
    __slots__ = ()


def schema_of(type_: Any) -> Any:
    schema = schema_for(type_)
    assert schema
    return schema


SURROGATES = st.text(st.characters(exclude_categories=()), max_size=6)
TEXTS = st.text(max_size=6) | SURROGATES | st.sampled_from(["", "é", "\ud800", '"', "\\", "\x00"])
ALIKE = st.sampled_from([0, 0.0, -0.0, False, 1, 1.0, True, "1", 2**80, -(2**80), 1e300])
ODD = st.sampled_from(
    [
        float("nan"),
        float("inf"),
        b"bytes",
        bytearray(b"bytes"),
        {"a set"},
        1 + 2j,
        Decimal(1),
        object(),
        Stars.FIVE,
        Text("text"),
        numpy.float64(1.5),
        numpy.int64(1),
        numpy.bool_(True),
        MappingProxyType({"a": 1}),
        {1: "a", 2.5: "b", None: "c"},
        {True: "d"},
    ]
)
VALUES = st.recursive(
    st.none() | ALIKE | st.floats() | st.integers() | TEXTS | ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ["temperature", "message", "messages ", "max_tokens", "model", "response_format", "z"]
NAMES = TEXTS | st.sampled_from([*FIELDS, *NOT_IN_KEY])
REQUESTS = st.builds(
    Request,
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user"]), "content": TEXTS},
            optional={"name": TEXTS},
        ),
        min_size=1,
        max_size=2,
    ).map(tuple),
    model=st.sampled_from(["m", "", "é", "\ud800"]),
    base_url=st.sampled_from(["http://a.example/v1", "HTTP://A.example:80/v1/"]),
    max_tokens=st.none() | st.integers(0, 9),
    fields=st.dictionaries(NAMES, VALUES, max_size=4),
    schema=st.none() | st.sampled_from([schema_of(int), schema_of(list[str])]),
)


def signed(request: Request) -> Any:
    """The identity by the long way, or what is wrong with the request."""
    body: dict[str, Any] = {"model": request.model, "messages": list(request.messages)}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    body |= {name: value for name, value in request.fields.items() if name not in NOT_IN_KEY}
    if request.schema:
        form = {"name": request.schema.name, "schema": request.schema.plain}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return said(lambda: sign(body, request.base_url))


def said(make: Callable[[], Any]) -> Any:
    try:
        print_ = make()
    except (TypeError, ValueError) as error:
        return type(error)
    return print_.key, print_.canonical, list(print_.body), repr(print_.body)


@settings(max_examples=300, deadline=None)
@given(REQUESTS)
def test_the_short_way_gives_the_key_and_the_bytes_of_the_long_one(request: Request) -> None:
    assert said(lambda: fingerprint(request)) == signed(request)


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "Other"}], "none", None])
def test_a_field_that_is_called_messages_takes_the_place_of_them(messages: Any) -> None:
    request = Request(BASE.messages, "m", BASE.base_url, fields={"messages": messages})
    body = {"model": "m", "messages": messages}

    assert fingerprint(request) == sign(body, BASE.base_url)


@pytest.mark.parametrize("first", [1, 1.0, True, "1", [1], (1,), {"a": 1}])
def test_values_that_python_takes_for_equal_have_keys_of_their_own(first: Any) -> None:
    """Whichever of them was asked before."""
    for value in (first, 1, 1.0, True, [True], [1.0], {"a": True}, {"a": 1.0}, first):
        request = replace(BASE, messages=BASE.messages[:1], fields={"n": value})
        assert said(lambda request=request: fingerprint(request)) == signed(request)


def test_fields_that_are_changed_in_place_are_another_request() -> None:
    fields: dict[str, Any] = {"stop": ["a"]}
    request = Request(BASE.messages[:1], "m", BASE.base_url, fields=fields)
    before = fingerprint(request)
    fields["stop"].append("b")

    assert fingerprint(request).key != before.key
    assert said(lambda: fingerprint(request)) == signed(request)


def test_two_schemas_of_one_name_are_two_requests() -> None:
    one, other = (make_dataclass("Review", [("stars", type_)]) for type_ in (int, str))
    keys = {
        fingerprint(replace(BASE, messages=BASE.messages[:1], schema=schema_of(each))).key
        for each in (one, other, one)
    }

    assert len(keys) == 2


@pytest.mark.parametrize("size", [0, 1, 100, 7_000, 8_191, 8_192, 8_193, 70_000, 3_000_000])
def test_an_answer_of_any_size_comes_back(size: int) -> None:
    """Small ones are compressed with a smaller window."""
    text = "".join(map(chr, random.Random(size).choices(range(32, 1000), k=size)))
    entry, print_ = replace(ENTRY, text=text), fingerprint(BASE)

    assert unpack_once(print_, pack(print_, entry)) == entry
