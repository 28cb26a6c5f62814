"""Any JSON where an answer should be, whole or in a stream: the right answer or one error."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

import llm_magic
from llm_magic.errors import InvalidAnswer, RowsWarning
from tests.conftest import KEY
from tests.hostile import reading
from tests.hostile.fuzz import (
    Raw,
    RawServer,
    asked,
    check_no_key,
    check_settled,
    entries,
    fuzz,
    not_hung,
)

pytestmark = pytest.mark.usefixtures("keeping")
numbers = itertools.count()

# JSON as text, since much of what servers send is nothing that Python could write.

Written = str
# Hypothesis lets the stack grow to some 2,000 levels.
DEPTHS = [1, 10, 90, 400, *range(900, 2000, 20), 5000, 100_000]


def quoted(text: str) -> Written:
    return json.dumps(text)


@st.composite
def deep(draw: st.DrawFn) -> Written:
    depth = draw(st.sampled_from(DEPTHS))
    opening, closing = draw(st.sampled_from([("[", "]"), ('{"error":', "}"), ('{"a":', "}")]))
    return opening * depth + draw(st.sampled_from(["1", '"x"', "null", ""])) + closing * depth


PLAIN = st.one_of(
    st.sampled_from(
        [
            *[
                "null",
                "true",
                "false",
                "0",
                "-0",
                "-1",
                "1.5",
                "1e999",
                "-1e999",
                "NaN",
                "Infinity",
            ],
            *["9" * 30, "9" * 400, "9" * 5000, "1e400", "1e-400", '""', "[]", "{}"],
            *[r'"\ud800"', r'"\udc00\ud800"', r'"\ud83d\ude00"', r'"\u0000"', '"\\u001b[2J"'],
            *['"stop"', '"length"', '"error"', '"content_filter"', '"tool_calls"'],
        ]
    ),
    st.builds(lambda length: quoted("y" * length), st.sampled_from([300, 70_000])),
    st.integers().map(str),
    st.floats().map(json.dumps),
    st.text(max_size=6).map(quoted),
    st.text(max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=4).map(quoted),
)


def members(inner: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    """Objects, also such that have a name twice."""
    names = st.sampled_from(
        [
            *["content", "text", "type", "message", "error", "code", "detail", "role", "index"],
            *["prompt_tokens", "completion_tokens", "cached_tokens", "object", "status"],
            *["prompt_tokens_details", "completion_tokens_details", "innererror", "msg"],
        ]
    ).map(quoted)
    pairs = st.tuples(names, inner).map(":".join)
    return st.lists(pairs, max_size=4).map(lambda each: "{" + ",".join(each) + "}")


ANY = st.recursive(
    PLAIN,
    lambda inner: (
        members(inner) | st.lists(inner, max_size=3).map(lambda each: f"[{','.join(each)}]")
    ),
    max_leaves=6,
) | st.one_of(deep(), PLAIN)

# What a server says of an error, which may hold the key that it was sent.
TOLD = ANY | members(PLAIN | st.sampled_from([quoted(KEY), quoted(f"wrong key Bearer {KEY}")]))


@st.composite
def having(draw: st.DrawFn, usual: dict[str, Written], odd: int) -> Written:
    """An object of which some members are odd, missing, or there twice."""
    pairs = []
    for name, value in usual.items():
        how = draw(st.integers(0, 99))
        if how < odd:
            value = draw(ANY)
        if how != odd:
            pairs.append(f"{quoted(name)}:{value}")
        if how == odd + 1:
            pairs.append(f"{quoted(name)}:{draw(ANY)}")
    if draw(st.integers(0, 99)) < odd:
        pairs.append(draw(members(TOLD))[1:-1])
    return "{" + ",".join(each for each in pairs if each) + "}"


@st.composite
def completion(draw: st.DrawFn, part: str = "message", content: Written = '"A"') -> Written:
    """A whole completion, or a chunk of one."""
    odd = draw(st.sampled_from([0, 3, 15, 40]))
    said = {"role": '"assistant"', "content": content, "refusal": "null"}
    if draw(st.integers(0, 4)) == 0:
        said["reasoning_content"] = draw(ANY)
    message = draw(having(said, odd))
    finish = draw(st.sampled_from(['"stop"', '"stop"', '"stop"', '"length"', "null"]))
    usual = {"index": "0", part: message, "finish_reason": finish}
    usage = {"prompt_tokens": "5", "completion_tokens": "7", "total_tokens": "12"}
    if draw(st.integers(0, 4)) == 0:
        usage["prompt_tokens_details"] = draw(ANY)
    whole = {
        "id": '"c"',
        "model": '"m"',
        "choices": f"[{draw(having(usual, odd))}]",
        "usage": draw(having(usage, odd)),
    }
    if draw(st.integers(0, 9)) == 0:
        whole["error"] = draw(TOLD)
    return draw(having(whole, odd))


WHOLE = st.one_of(completion(), completion(), ANY).map(
    lambda text: text.encode(errors="surrogatepass")
)


@st.composite
def streamed(draw: st.DrawFn) -> bytes:
    words = draw(st.lists(st.one_of(ANY, st.just('"A"')), max_size=3))
    chunks = [draw(completion("delta", each)) for each in [*words, '"A"']]
    text = "".join(f"data: {each}\n\n" for each in chunks) + "data: [DONE]\n\n"
    return text.encode(errors="surrogatepass")


def of_whole(body: bytes) -> reading.Said:
    """What a whole completion says, read on its own."""
    return reading.of_chunks([json.loads(body.decode())], "message")


def in_a_column(text: str) -> str:
    """The same in a column, which is UTF-8: half of a surrogate pair has none."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_answer(reply: Raw, text: str, finish: str, said: reading.Said) -> None:
    assert reply.status == 200
    assert (text, finish) == said


ERROR_STATUS = st.sampled_from([200, 200, 200, 400, 401, 404, 413, 422, 429, 500, 503, 529])
WAITS = st.sampled_from(["1", "-1", "nan", "inf", "1e400", "9" * 400, "Mon", "\xff", ""])


@st.composite
def replies(draw: st.DrawFn) -> Raw:
    status = draw(ERROR_STATUS)
    told = TOLD.map(lambda text: text.encode(errors="surrogatepass"))
    body = draw(st.one_of(WHOLE, streamed(), told))
    name = draw(st.sampled_from(["Retry-After", "retry-after-ms", "x-ratelimit-reset-requests"]))
    headers = {name: draw(WAITS)} if draw(st.integers(0, 3)) == 0 else {}
    return Raw([body], status=status, headers=headers, kind="application/json")


BEHIND_THE_END = b"".join(
    b'data: {"choices":[%b]}\n\n' % each
    for each in (
        b'{"finish_reason":"stop"}',
        b'{"delta":{"content":{}}}',
        b'{"delta":{"content":"A"}}',
    )
)


@fuzz(80)
@given(reply=replies())
@example(reply=Raw([b'{"error":' * 1200 + b"1" + b"}" * 1200]))
@example(reply=Raw([b'{"error":' * 1200 + b"1" + b"}" * 1200], status=500))
@example(reply=Raw([b"[" * 1200 + b"]" * 1200], status=401))
@example(reply=Raw([BEHIND_THE_END], kind="application/json"))
def test_any_json_is_the_right_answer_of_a_cell_or_one_error(
    raw: RawServer, tmp_path: Path, reply: Raw
) -> None:
    raw.reply = lambda body: reply
    kept, prompt = entries(), f"Number {next(numbers)}?"

    first = asked(prompt)

    check_settled(tmp_path / "ledger")
    if first.response is None:
        assert entries() == kept
        return
    is_whole = reply.body.lstrip()[:1] in (b"{", b"[")
    said = (of_whole if is_whole else reading.of_stream)(reply.body)
    check_answer(reply, first.response.text, first.response.finish_reason, said)
    assert entries() == kept + (said.finish in ("stop", "tool_calls"))
    assert first.response.usage.total_tokens >= 0
    assert first.response.status()


@fuzz(30)
@given(bodies=st.lists(WHOLE, min_size=1, max_size=8))
@example(bodies=[rb'{"choices":[{"message":{"content":"a\ud800b"},"finish_reason":"stop"}]}'])
def test_any_json_is_the_right_answer_of_a_row_or_its_error(
    raw: RawServer, tmp_path: Path, bodies: list[bytes]
) -> None:
    number = next(numbers)
    by_prompt = {f"row {number} {place}": body for place, body in enumerate(bodies)}
    raw.reply = lambda asked: Raw(
        [by_prompt[json.loads(asked)["messages"][-1]["content"]]], kind="application/json"
    )
    rows = pd.DataFrame({"text": list(by_prompt)})

    with not_hung(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RowsWarning)
        # A server and model that fails is asked less: each run has a model of its own.
        results = llm_magic.map_rows(rows, "{{ text }}", model=f"m{number}", quiet=True)

    check_settled(tmp_path / "ledger")
    check_no_key(*results["_error"], *results["answer"])
    for body, answer, error in zip(bodies, results["answer"], results["_error"], strict=True):
        if isinstance(error, str):
            assert error.strip()
            assert pd.isna(answer)
        else:
            assert answer == in_a_column(of_whole(body).text)


@fuzz(50)
@given(text=st.one_of(ANY, st.text(max_size=20), members(PLAIN)))
@example(text='{"":"0"}')
def test_any_text_is_a_value_of_the_type_or_one_error(
    raw: RawServer, tmp_path: Path, text: str
) -> None:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    raw.reply = lambda asked: Raw([json.dumps(body).encode()])

    found = asked(f"Number {next(numbers)}?", schema=dict[str, int], repairs=0)

    check_settled(tmp_path / "ledger")
    if found.response is None:
        assert isinstance(found.error, InvalidAnswer)
        return
    value = found.response.value
    assert isinstance(value, dict)
    assert all(type(key) is str and type(each) is int for key, each in value.items())
    said: Any = json.loads(text)
    inner = said.get("result")
    said = inner if isinstance(inner, dict) else said
    # "5" and 5.0 are a whole number as well.
    assert value == TypeAdapter(dict[str, int]).validate_python(said)
