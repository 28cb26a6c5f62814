"""The corpus of malformed answers: never a wrong value, and mostly the right one at once."""

from typing import Any

import pytest

import llm_magic
from llm_magic.decode import ThinkSplitter
from llm_magic.errors import InvalidAnswer
from llm_magic.structured import schema_for
from llm_magic.structured.reading import read
from llm_magic.testing import Reply, ScriptedServer
from tests.malformed import ASK, CASES, GOOD, Case

ASKED = [case for case in CASES if case.expected is ASK]


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")


def value_of(case: Case) -> Any:
    """What the library reads; ASK where it would ask again."""
    schema = schema_for(case.type)
    assert schema is not None
    try:
        return read(schema, case.text)
    except InvalidAnswer as error:
        return ASK if error.errors and error.text == case.text else error


def same(case: Case, value: Any, expected: Any) -> bool:
    """Whether two values are equal, and of the same types within."""
    if value is ASK or expected is ASK or type(value) is not type(expected):
        return value is expected
    schema = schema_for(case.type)
    assert schema is not None
    return bool(value == expected) and schema.bare.dump_json(value) == schema.bare.dump_json(
        expected
    )


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_an_answer_is_read_as_a_human_would(case: Case) -> None:
    value = value_of(case)

    assert same(case, value, case.expected), f"{case.text!r} gave {value!r}"


def test_no_wrong_value_and_most_answers_at_once() -> None:
    values = [(case, value_of(case)) for case in CASES]
    wrong = [
        case.id
        for case, value in values
        if value is not ASK and not same(case, value, case.expected)
    ]
    right = sum(value is not ASK and same(case, value, case.expected) for case, value in values)

    assert len({case.id for case in CASES}) == len(CASES) >= 170
    assert wrong == []
    assert right >= 0.6 * len(CASES)


@pytest.mark.parametrize("case", ASKED, ids=[case.id for case in ASKED])
def test_it_is_asked_again_with_what_is_wrong(
    case: Case, server: ScriptedServer, provider: None
) -> None:
    good, value = GOOD[case.type]
    wrong = spoken(case.text)
    server.enqueue(Reply(case.text, one_chunk=True), good)

    response = llm_magic.ask("Read it.", schema=case.type, repairs=1)

    assert same(case, response.value, value)
    assert response.attempts == 2
    first, second = (request.body["messages"] for request in server.requests)
    *before, told = second
    if wrong.strip():
        assert before.pop() == {"role": "assistant", "content": wrong}
    assert before == first
    assert told["role"] == "user"

    server.reset()
    server.enqueue(Reply(case.text, one_chunk=True))
    with pytest.raises(InvalidAnswer) as caught:
        llm_magic.ask("Read it.", schema=case.type, repairs=0)
    assert caught.value.text == wrong
    assert caught.value.errors
    assert all(line in told["content"] for line in caught.value.errors)


def spoken(text: str) -> str:
    """The text without thoughts at its start, which never were part of the answer."""
    splitter = ThinkSplitter()
    pieces = [*splitter.feed(text), *splitter.close()]
    return "".join(piece.text for piece in pieces if piece.kind == "text")
