"""Any bytes where a stream should be: the right answer or one error, and nothing else."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import KEY
from tests.hostile import reading
from tests.hostile.fuzz import (
    End,
    Raw,
    RawServer,
    asked,
    check_settled,
    entries,
    fuzz,
)

pytestmark = pytest.mark.usefixtures("keeping")
numbers = itertools.count()


# Streams, piece by piece

WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            *["", "[DONE]", "data: x", "\n\ndata: [DONE]\n\n", ": ping", "</think>", "<think>"],
            *["\r", "\u2028", "\U0001f600", "e\u0301", "\x00", "\ufeff", '{"error": "no"}'],
        ]
    ),
    st.builds(lambda n: "long " * n, st.integers(1, 60_000)),
)
ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
QUIET = st.sampled_from(
    [b": ping", b":", b"id: 7", b"retry: 3000", b"event: message", b""]
) | st.builds(bytes.__mul__, st.just(b":"), st.just(70_000))


def chunk(content: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}


USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


@st.composite
def blocks(draw: st.DrawFn) -> list[bytes]:
    """The lines of a valid stream, without their ends."""
    words = ["A", *draw(st.lists(WORDS, max_size=5))]
    if draw(st.booleans()):
        words.insert(0, f"<think>{draw(st.text(max_size=5))}</think>")
    chunks = [chunk(each) for each in words]
    chunks.append(chunk(None, draw(st.sampled_from(["stop", "stop", "tool_calls", "eos"]))))
    if draw(st.booleans()):
        chunks.append({"choices": [], "usage": USAGE})
    lines: list[bytes] = []
    for each in chunks:
        lines += draw(st.lists(QUIET, max_size=2))
        text = json.dumps(
            each,
            ensure_ascii=draw(st.booleans()),
            indent=draw(st.sampled_from([None, None, None, 1])),
        )
        before = draw(st.sampled_from([b"data: ", b"data:"]))
        # Text that JSON has as it is may hold a line end of Unicode's, but none of a stream's.
        lines += [before + line for line in text.encode().split(b"\n")]
        lines.append(b"")
    if draw(st.booleans()):
        lines += [b"data: [DONE]", b""]
    return lines


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """The bytes of a valid stream."""
    body, before = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])), b""
    for line in draw(blocks()):
        end = draw(ENDS)
        # CR and LF of two lines would be the one end of one.
        end = b"\r" if before == b"\r" and not line and end == b"\n" else end
        body, before = body + line + end, end
    return body


def split(draw: st.DrawFn, body: bytes) -> list[bytes]:
    """A body in pieces, cut anywhere."""
    places = draw(st.lists(st.integers(0, min(len(body), 2000)), max_size=6))
    if draw(st.integers(0, 9)) == 0:
        places = list(range(min(len(body), 300)))
    places = sorted({0, *places, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(places)]


@st.composite
def valid(draw: st.DrawFn) -> Raw:
    """A stream as a server may send it."""
    return Raw(split(draw, draw(streams())))


NOISE = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.sampled_from(
        [
            *[b"\xff", b"\xe2\x82", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\n", b"\n\n", b"\r", b"\0"],
            *[b"data: {", b"data: [DONE]\n\n", b"event: error\n", b"error: {}\n", b"<html>"],
            *[b'data: {"error": "gone"}\n\n', b"data: null\n\n", b"data: []\n\n", b"data: \n\n"],
            KEY.encode(),
        ]
    ),
    st.builds(bytes.__mul__, st.sampled_from([b"x", b"[", b"data: x\n"]), st.just(100_000)),
)


@st.composite
def broken(draw: st.DrawFn) -> Raw:
    """A stream that something happened to, at any byte."""
    body = bytearray(draw(streams()))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(body)))
        what = draw(st.sampled_from(["insert", "delete", "flip", "twice", "replace"]))
        length = draw(st.integers(1, 40))
        if what == "insert":
            body[place:place] = draw(NOISE)
        elif what == "delete":
            del body[place : place + length]
        elif what == "replace":
            body[place : place + length] = draw(NOISE)
        elif what == "twice":
            body[place:place] = body[place : place + length]
        elif place < len(body):
            body[place] ^= 1 << draw(st.integers(0, 7))
    if draw(st.booleans()):
        del body[draw(st.integers(0, len(body))) :]
    end: End = draw(st.sampled_from(["whole", "whole", "cut", "reset"]))
    kind = draw(st.sampled_from(["text/event-stream", "text/plain", "application/json"]))
    return Raw(split(draw, bytes(body)), end, kind=kind)


@st.composite
def noise(draw: st.DrawFn) -> Raw:
    """Bytes that never were a stream."""
    pieces = draw(st.lists(st.one_of(NOISE, st.binary(max_size=50)), max_size=8))
    return Raw(pieces, draw(st.sampled_from(["whole", "cut", "reset"])))


def check(raw: RawServer, reply: Raw, ledger: Path) -> str | None:
    """Asks, and looks at all that must hold; gives the answer's text, or None for an error."""
    raw.reply = lambda body: reply
    sent, kept, prompt = len(raw.bodies), entries(), f"Number {next(numbers)}?"

    first = asked(prompt)

    check_settled(ledger)
    assert len(raw.bodies) == sent + 1
    if first.response is None:
        assert first.error is not None
        assert first.error.attempts == 1
        assert entries() == kept
        return None
    said = reading.of_stream(reply.body)
    assert first.response.text == said.text
    assert first.response.finish_reason == said.finish
    whole = said.finish in ("stop", "tool_calls")
    assert entries() == kept + whole
    if whole:
        again = asked(prompt).response
        assert again is not None
        assert again.cached
        assert again.text == said.text
        assert len(raw.bodies) == sent + 1
    return first.response.text


@fuzz(80)
@given(reply=valid())
def test_a_valid_stream_is_read_to_the_letter_however_it_is_cut(
    raw: RawServer, tmp_path: Path, reply: Raw
) -> None:
    assert check(raw, reply, tmp_path / "ledger") is not None


@fuzz(120)
@given(reply=broken())
@example(reply=Raw([f"data: {json.dumps(chunk(KEY, 'stop'))}\n\n".encode()]))
def test_a_broken_stream_is_the_right_answer_or_one_error(
    raw: RawServer, tmp_path: Path, reply: Raw
) -> None:
    check(raw, reply, tmp_path / "ledger")


@fuzz(40)
@given(reply=noise())
def test_bytes_that_are_no_stream_are_one_error(raw: RawServer, tmp_path: Path, reply: Raw) -> None:
    assert check(raw, reply, tmp_path / "ledger") is None
