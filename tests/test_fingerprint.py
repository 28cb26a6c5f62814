"""What makes two requests one: the exact body, less a short list of fields that change nothing."""

import base64
import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_magic.entries import (
    NOT_IN_KEY,
    Entry,
    describe,
    dumps,
    fingerprint,
    normalised,
    pack,
    unpack,
)
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
        {"cost": "a lot"},
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
