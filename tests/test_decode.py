"""From bytes to events: however they are cut, whatever they are."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_magic.body import body_events
from llm_magic.decode import (
    Alive,
    BadStream,
    Done,
    Event,
    Finish,
    MessageReader,
    Model,
    Piece,
    StreamDecoder,
    ThinkSplitter,
    read_usage,
)
from llm_magic.types import Usage


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return json.dumps({"choices": [choice], **more}, ensure_ascii=False)


def said(text: str, **more: Any) -> str:
    return chunk({"content": text}, **more)


def decoded(pieces: Iterable[bytes]) -> list[Event]:
    """The events of a stream that came in these pieces."""
    decoder = StreamDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [*events, *decoder.close()]


def outcome(pieces: Iterable[bytes]) -> tuple[list[Event], str]:
    """The events up to the end, and what ended them too early."""
    decoder = StreamDecoder()
    events: list[Event] = []
    try:
        for piece in pieces:
            events.extend(decoder.feed(piece))
        events.extend(decoder.close())
    except BadStream as error:
        return events, str(error)
    return events, ""


def words(events: Iterable[Event], kind: str = "text") -> str:
    return "".join(each.text for each in events if isinstance(each, Piece) and each.kind == kind)


def sse(*data: str, end: str = "\n") -> bytes:
    return "".join(f"data: {each}{end}{end}" for each in data).encode()


PARTS = (
    ": ping",
    "id: 7",
    "retry: 3000",
    f"data: {said('Zwölf Äpfel 🍏')}",
    f"data:{said('no space', model='m')}",
    f"data: {said('<think>a < b</think>')}",
    f"data: {said('</thi')}",
    f"data: {chunk({'reasoning': 'hm — €'})}",
    'data: {"choices":\ndata: []}',
    f"data: {chunk(finish='stop', usage={'prompt_tokens': 1})}",
    "data: [DONE]",
)


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    parts = draw(st.lists(st.sampled_from(PARTS), max_size=8))
    ends = st.sampled_from(["\n", "\r\n", "\r"])
    lines = "".join(part.replace("\n", draw(ends)) + draw(ends) + draw(ends) for part in parts)
    stream = (lines + draw(st.sampled_from(["", ": last", f"data: {said('end')}"]))).encode()
    return stream, sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))


@given(cut_streams())
def test_events_do_not_depend_on_the_cuts(stream_and_cuts: tuple[bytes, list[int]]) -> None:
    stream, cuts = stream_and_cuts
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]

    assert outcome(pieces) == outcome([stream])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_one_cut_at_every_place(end: str) -> None:
    """Inside a character, between CR and LF, inside [DONE]: the same events."""
    lines = [line for part in PARTS for line in (*part.split("\n"), "")]
    stream = "".join(line + end for line in lines).encode()
    whole = decoded([stream])

    assert "Zwölf Äpfel 🍏" in words(whole)
    assert words(whole, "reasoning").endswith("hm — €")
    assert all(decoded([stream[:at], stream[at:]]) == whole for at in range(len(stream) + 1))
    assert decoded([stream[at : at + 1] for at in range(len(stream))]) == whole


def test_the_line_end_changes_nothing() -> None:
    data = (said("Zwei\r\nZeilen"), chunk(finish="stop"), "[DONE]")

    assert decoded([sse(*data)]) == decoded([sse(*data, end="\r\n")])
    assert decoded([sse(*data)]) == decoded([sse(*data, end="\r")])
    assert words(decoded([sse(*data)])) == "Zwei\r\nZeilen"


@pytest.mark.parametrize("line", [b": ping", b":", b"id: 4", b"retry: 10", b"id", b"retry"])
def test_a_line_beside_the_answer_is_only_a_sign_of_life(line: bytes) -> None:
    assert decoded([line + b"\n\n"]) == [Alive()]
    assert words(decoded([line + b"\n" + sse(said("Hi"))])) == "Hi"


def test_an_event_of_another_name_is_read() -> None:
    assert words(decoded([b"event: message\n" + sse(said("Hi"))])) == "Hi"


def test_an_event_without_data_does_not_name_the_next() -> None:
    assert words(decoded([b"event: error\n\n" + sse(said("Hi"))])) == "Hi"


def test_data_of_several_lines_is_one_value() -> None:
    assert words(decoded([b'data: {"choices": [{"delta":\ndata: {"content": "Hi"}}]}\n\n'])) == "Hi"


@pytest.mark.parametrize("end", ["", "\n", "\r", "\r\n"])
def test_the_last_block_needs_no_blank_line(end: str) -> None:
    events = decoded([f"data: {said('Hi', model='m')}{end}".encode()])

    assert events == [Model("m"), Piece("text", "Hi")]


def test_done_is_told_and_what_follows_still_read() -> None:
    assert decoded([b"data: [DONE]\n\ndata:  [DONE] \n\n"]) == [Done(), Done()]


@pytest.mark.parametrize("cut", range(7))
@pytest.mark.parametrize("before", [b"", b"\n", b" \r\n"])
def test_a_byte_order_mark_is_passed_over_wherever_it_is_cut(before: bytes, cut: int) -> None:
    body = before + b"\xef\xbb\xbf" + sse(chunk({"content": "Hi"}, "stop"))

    async def pieces() -> AsyncGenerator[bytes]:
        yield body[:cut]
        yield body[cut:]

    async def read() -> list[Event]:
        return [event async for event in body_events(pieces())]

    assert asyncio.run(read()) == [Piece("text", "Hi"), Finish("stop")]


def test_an_empty_stream_has_no_events() -> None:
    assert decoded([]) == decoded([b""]) == decoded([b"\n\r\n\r\r\n"]) == []


GARBAGE = {
    "proxy text": (b"proxy error: Failed to read connection\n", "no part of a stream: 'proxy"),
    "html": (b"<html><body>Sign in</body></html>\n", "no part of a stream: '<html>"),
    "no newline": (b"Internal Server Error", "no part of a stream: 'Internal Server Error'"),
    "not JSON": (b"data: {truncat\n\n", "a line that is not JSON: '{truncat'"),
    "empty data": (b"data:\n\n", "a line that is not JSON: ''"),
    "not UTF-8": (b'data: {"a": "\xff\xfe"}\n\n', "bytes that are not UTF-8"),
    "half a character": ('data: "é'.encode()[:-1], "bytes that are not UTF-8"),
    "a number": (b"data: 42\n\n", "JSON that is no chat completion: '42'"),
    "null": (b"data: null\n\n", "JSON that is no chat completion: 'null'"),
    "a list": (b"data: []\n\n", "JSON that is no chat completion: '[]'"),
    "unreadable error field": (b"error: oh no\n\n", "a line that is not JSON: 'oh no'"),
    "long": (b"x" * 1000 + b"\n", "…"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_named(name: str) -> None:
    """In a message that shows where it starts, never all of it."""
    stream, message = GARBAGE[name]

    with pytest.raises(BadStream) as caught:
        decoded([stream])

    assert message in str(caught.value)
    assert len(str(caught.value)) < 160
    assert caught.value.body is None


SENT = {"message": "Overloaded", "code": 500}
OLD = {"object": "error", **SENT}
ERRORS = {
    "error object": (f"data: {json.dumps({'error': SENT})}\n\n", SENT),
    "error text": ('data: {"error": "Overloaded"}\n\n', "Overloaded"),
    "error beside choices": (f"data: {said('x', error=SENT)}\n\n", SENT),
    "old vLLM": (f"data: {json.dumps(OLD)}\n\n", OLD),
    "event": (f"event: error\ndata: {json.dumps({'error': SENT})}\n\n", SENT),
    "event after data": (f"data: {json.dumps({'error': SENT})}\nevent: error\n\n", SENT),
    "field": (f"error: {json.dumps(SENT)}\n", SENT),
    "bare event": ('event: error\ndata: {"message": "Overloaded"}\n\n', {"message": "Overloaded"}),
    "event of a text": ('event: error\ndata: "Overloaded"\n\n', "Overloaded"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_in_the_stream_keeps_what_the_server_said(name: str) -> None:
    stream, body = ERRORS[name]
    decoder = StreamDecoder()
    assert words(decoder.feed(sse(said("So far")))) == "So far"

    with pytest.raises(BadStream, match="the server reported an error") as caught:
        list(decoder.feed(stream.encode()))

    assert caught.value.body == body


def test_a_null_error_is_none() -> None:
    assert words(decoded([sse(said("Hi", error=None))])) == "Hi"


@pytest.mark.parametrize(
    "data",
    [
        "{}",
        '{"choices": null}',
        '{"choices": []}',
        chunk(),
        chunk({"role": "assistant", "content": None}),
        said(""),
        '{"choices": [{"index": 0, "delta": null}]}',
        '{"choices": [{}]}',
        '{"choices": [], "usage": null}',
    ],
)
def test_a_chunk_without_words_is_a_sign_of_life(data: str) -> None:
    assert decoded([sse(data)]) == [Alive()]


def test_the_model_is_told_once_and_again_when_it_changes() -> None:
    events = decoded([sse(said("a", model="m"), said("b", model="m"), said("c", model="n"))])

    assert [each.name for each in events if isinstance(each, Model)] == ["m", "n"]


def test_only_the_first_choice_is_heard() -> None:
    both = '{"choices": [{"delta": {"content": "one"}}, {"delta": {"content": "two"}}]}'

    assert decoded([sse(both)]) == [Piece("text", "one")]


def test_the_last_words_may_sit_on_the_finish_chunk() -> None:
    events = decoded([sse(chunk({"content": "end."}, "length", usage={"completion_tokens": 2}))])

    assert events == [Piece("text", "end."), Finish("length"), Usage(output_tokens=2)]


def test_content_as_a_list_of_parts() -> None:
    parts: list[Any] = [{"type": "text", "text": "Hel"}, {"text": "lo"}, {"text": None}, {}, "?"]

    assert words(decoded([sse(chunk({"content": parts}))])) == "Hello"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (chunk({"content": 5}), "a 'content' that no answer has: '5'"),
        (chunk({"content": {"text": "Hi"}}), "a 'content' that no answer has"),
        (chunk({"content": [{"text": "H"}, {"text": 1}]}), "a 'text' that no answer has: '1'"),
        ('{"choices": [{"delta": "Hi"}]}', "a 'delta' that no answer has"),
        ('{"choices": {"delta": {"content": "Hi"}}}', "a 'choices' that no answer has"),
    ],
    ids=["number", "object", "part", "delta", "choices"],
)
def test_words_in_a_form_that_is_not_known_are_not_left_out(data: str, message: str) -> None:
    """The answer would pass for whole without them, and be kept."""
    with pytest.raises(BadStream, match=message):
        decoded([sse(data)])


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_has_two_names(name: str) -> None:
    events = decoded([sse(chunk({name: "Hm."}), chunk({name: None, "content": "Yes."}))])

    assert events == [Piece("reasoning", "Hm."), Piece("text", "Yes.")]


def test_reasoning_under_both_names_is_taken_once() -> None:
    both = chunk({"reasoning": "Hm.", "reasoning_content": "Hm."})

    assert decoded([sse(both)]) == [Piece("reasoning", "Hm.")]


def test_a_refusal_is_no_answer() -> None:
    assert decoded([sse(chunk({"refusal": "No.", "content": None}))]) == [Piece("refusal", "No.")]


def test_a_whole_completion() -> None:
    message = {"role": "assistant", "content": "<think>Hm.</think>\n\nYes.", "refusal": None}
    body = {
        "model": "m",
        "choices": [{"message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }

    assert list(MessageReader().completion(body)) == [
        Model("m"),
        Piece("reasoning", "Hm."),
        Piece("text", "Yes."),
        Finish("stop"),
        Usage(3, 4),
    ]


def test_a_whole_completion_gives_back_what_looked_like_a_tag() -> None:
    body = {"choices": [{"message": {"content": "<thi"}}]}

    assert words(MessageReader().completion(body)) == "<thi"


@pytest.mark.parametrize(
    ("body", "message", "inner"),
    [
        ({"answer": 42}, "JSON that is no chat completion: '{\"answer\": 42}'", None),
        ([1], "JSON that is no chat completion: '[1]'", None),
        ("text", "JSON that is no chat completion", None),
        (None, "JSON that is no chat completion: 'null'", None),
        ({"error": SENT}, "the server reported an error", SENT),
        ({"error": "Overloaded"}, "the server reported an error", "Overloaded"),
    ],
)
def test_a_body_that_is_no_completion(body: Any, message: str, inner: Any) -> None:
    with pytest.raises(BadStream) as caught:
        list(MessageReader().completion(body))

    assert message in str(caught.value)
    assert caught.value.body == inner


USAGES: list[tuple[Any, Usage | None]] = [
    (None, None),
    ([], None),
    ({}, Usage()),
    ({"prompt_tokens": None, "completion_tokens": None}, Usage()),
    ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, Usage(5, 7)),
    ({"prompt_tokens": 5, "prompt_tokens_details": None}, Usage(5)),
    ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": None}}, Usage(5)),
    (
        {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 6},
        },
        Usage(5, 7, cached_tokens=4, reasoning_tokens=6),
    ),
]


@pytest.mark.parametrize(("sent", "read"), USAGES)
def test_usage(sent: Any, read: Usage | None) -> None:
    assert read_usage(sent) == read
    assert decoded([sse(json.dumps({"choices": [], "usage": sent}))]) == [read or Alive()]


def split(*pieces: str) -> tuple[str, str]:
    """Reasoning and answer of a text that came in these pieces."""
    splitter = ThinkSplitter()
    found = [each for piece in pieces for each in splitter.feed(piece)]
    found += splitter.close()
    assert all(each.text for each in found)
    return words(found, "reasoning"), words(found)


THOUGHTS = {
    "<think>Six times seven.</think>\n\n42": ("Six times seven.", "42"),
    "\n <think>a < b </ th</think>42": ("a < b </ th", "42"),
    "<think></think>42": ("", "42"),
    "<think>\n\n</think>\n\n  \n": ("\n\n", ""),
    "<think>cut in the middle": ("cut in the middle", ""),
    "<think>cut in the tag</thin": ("cut in the tag</thin", ""),
    "<think>a</think>The tag <think>b</think> stays.": ("a", "The tag <think>b</think> stays."),
    "<think>a <think> b</think>c</think>d": ("a <think> b", "c</think>d"),
    "The tag <think>b</think> is text.": ("", "The tag <think>b</think> is text."),
    "<thinking>is another tag</thinking>": ("", "<thinking>is another tag</thinking>"),
    "<thi": ("", "<thi"),
    "  indented text": ("", "  indented text"),
    "  \n ": ("", "  \n "),
    "</think>42": ("", "</think>42"),
    "": ("", ""),
}


@pytest.mark.parametrize("text", THOUGHTS)
def test_reasoning_between_tags_is_told_apart(text: str) -> None:
    """Whole, in single characters, and cut in two or three pieces at every place."""
    assert split(text) == THOUGHTS[text]
    assert split(*text) == THOUGHTS[text]
    for a in range(len(text) + 1):
        for b in range(a, len(text) + 1):
            pieces = [piece for piece in (text[:a], text[a:b], text[b:]) if piece]
            assert split(*pieces) == THOUGHTS[text]


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "thi", "nk>", "\n", "é"])))
@example(["<think>", "</", "</think>", "\n", "é"])
def test_splitting_loses_nothing_and_does_not_depend_on_the_cuts(pieces: list[str]) -> None:
    text = "".join(pieces)

    assert split(*pieces) == split(text)
    if not text.lstrip().startswith("<think>"):
        assert split(text) == ("", text)


def test_blank_lines_between_reasoning_and_answer_may_come_alone() -> None:
    assert split("<think>a", "</think>", "\n", "\n", "b", "\n") == ("a", "b\n")


def test_text_is_given_out_at_once() -> None:
    """Only what may be half of a tag waits."""
    splitter = ThinkSplitter()

    assert list(splitter.feed("<")) == []
    assert list(splitter.feed("b>")) == [Piece("text", "<b>")]
    assert list(splitter.feed("<think>")) == [Piece("text", "<think>")]


def test_reasoning_is_given_out_at_once() -> None:
    splitter = ThinkSplitter()

    assert list(splitter.feed("<think>Hm</")) == [Piece("reasoning", "Hm")]
    assert list(splitter.feed("b>")) == [Piece("reasoning", "</b>")]


def test_the_finish_gives_back_what_waited() -> None:
    events = decoded([sse(said("<think>Hm</thi"), chunk(finish="stop"))])

    assert events == [Piece("reasoning", "Hm"), Piece("reasoning", "</thi"), Finish("stop")]


def steps(work: Callable[[], object]) -> int:
    """How many calls the work makes, of Python and of C functions."""
    count = 0

    def count_calls(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count_calls)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("opening", ["", "<think>", " " * 4])
def test_work_is_linear(opening: str) -> None:
    """Ten times the pieces take ten times the calls, and each piece is an event of its own."""

    def stream(count: int) -> list[bytes]:
        return [sse(said(opening)), *[sse(said("wörd "))] * count]

    small, large = stream(300), stream(3000)

    assert len(decoded(large)) - len(decoded(small)) == 2700
    assert steps(lambda: decoded(large)) < 10.5 * steps(lambda: decoded(small))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "message",
                    "content",
                    "reasoning",
                    "refusal",
                    "index",
                    "error",
                    "finish_reason",
                    "usage",
                    "model",
                    "text",
                    "object",
                    "prompt_tokens",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(JSON)
def test_any_json_is_events_or_a_bad_stream(chunk: Any) -> None:
    for read in (MessageReader().chunk, MessageReader().completion):
        try:
            events = list(read(chunk))
        except BadStream:
            continue
        for event in events:
            if isinstance(event, Piece):
                assert isinstance(event.text, str)
                assert event.text


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_a_bad_stream(data: bytes) -> None:
    decoder = StreamDecoder()
    with contextlib.suppress(BadStream):
        list(decoder.feed(data))
        list(decoder.close())


def test_several_answers_at_once_give_the_first_that_speaks() -> None:
    reader = MessageReader()
    events = [
        event
        for index, words in [(1, "one "), (2, "two "), (1, "more")]
        for event in reader.chunk({"choices": [{"index": index, "delta": {"content": words}}]})
    ]

    assert [event.text for event in events if isinstance(event, Piece)] == ["one ", "more"]


def test_a_line_without_an_end_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_magic.decode.LONGEST_LINE", 1000)
    decoder = StreamDecoder()

    with pytest.raises(BadStream, match="a line of more than 1,000 bytes"):
        [event for _ in range(101) for event in decoder.feed(b"0123456789")]


def test_endless_blanks_are_text_soon() -> None:
    """A server in a whitespace loop: what is held back for a tag stays short."""
    splitter = ThinkSplitter()
    first = next(n for n in range(1, 3000) if list(splitter.feed("\n")))

    assert first == 1000
    assert [piece.text for piece in splitter.feed("\n")] == ["\n"]
