"""Any bytes in a cassette: the recorded answer, or an error that names file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_magic.cassette import Cassette
from llm_magic.entries import Entry, Fingerprint, sign
from llm_magic.errors import ReplayMissing, StoreError
from llm_magic.testing import ScriptedServer
from llm_magic.types import Usage
from tests.conftest import Terminal
from tests.hostile.fuzz import check_message, fuzz, not_hung

NAME = "answers.jsonl"
TEXTS = ["Yes.", "Two\nlines\u2028and more", "\ud83d half", "{{ x }} </script>", ""]


def asked(number: int) -> Fingerprint:
    message = {"role": "user", "content": f"Question {number}?"}
    return sign({"model": "m", "messages": [message]}, "http://127.0.0.1:1/v1")


def answer(text: str) -> Entry:
    return Entry(text, "m-1", "stop", Usage(5, 7), reasoning="Hm.")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A cassette as it is written."""
    path = tmp_path_factory.mktemp("recorded") / NAME
    Cassette(path).record_many([(asked(place), answer(text)) for place, text in enumerate(TEXTS)])
    return path.read_bytes()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 10**30, 1.5, float("nan"), float("inf"), 1e300])
    | st.sampled_from(["", "stop", "length", "1", "-1", "NaN", "sNaN", "1e999999999", "\ud800"])
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
PLACES = [
    *[("request",), ("response",), ("request", "body"), ("request", "url"), ("request", "v")],
    *[("request", "body", "messages"), ("request", "body", "messages", 0)],
    *[("request", "body", "messages", 0, "content"), ("request", "body", "model")],
    *[("response", each) for each in ("text", "model", "finish_reason", "usage", "reasoning")],
    *[("response", each) for each in ("cost", "time", "seconds", "more")],
    *[("response", "usage", each) for each in ("input_tokens", "estimated", "cached_tokens", "x")],
]


def replaced(whole: Any, place: Sequence[Any], value: Any) -> Any:
    """The same with another value at a place, as far as that is there."""
    if not place:
        return value
    if isinstance(whole, dict):
        return {**whole, place[0]: replaced(whole.get(place[0]), place[1:], value)}
    if isinstance(whole, list) and whole:
        return [replaced(whole[0], place[1:], value), *whole[1:]]
    return whole


@st.composite
def odd_line(draw: st.DrawFn, line: bytes) -> bytes:
    """A line with something else in it."""
    how = draw(
        st.sampled_from(["value", "value", "value", "cut", "flip", "twice", "insert", "space"])
    )
    place = draw(st.integers(0, len(line)))
    if how == "value":
        whole = replaced(json.loads(line), draw(st.sampled_from(PLACES)), draw(JSON))
        return json.dumps(whole).encode()
    if how == "twice":
        return line.replace(b'"response": {', b'"response": {"text": "other", "text": 5, ', 1)
    if how == "cut":
        return line[:place]
    if how == "space":
        return b" \t" + line + b" \r"
    noise = draw(
        st.binary(min_size=1, max_size=4) | st.sampled_from([b"\n", b"\r", b"\xed\xa0\x80"])
    )
    return line[:place] + noise + line[place + (len(noise) if how == "flip" else 0) :]


NOISE = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [
            *[
                b"<<<<<<< HEAD",
                b"=======",
                b">>>>>>> other",
                b"|||||||",
                b"null",
                b"[]",
                b"{}",
                b"5",
            ],
            *[b"\xef\xbb\xbf", b"\0", b'{"request": {}}', b'{"request": {"body": {}, "url": ""}}'],
            *[b'{"request": {"body": {}, "url": "", "v": []}, "response": {}}', b"NaN", b'"x"'],
            b"cos\nsystem\n(S'true'\ntR.",
        ]
    ),
    st.builds(bytes.__mul__, st.sampled_from([b"[", b"x", b'{"a":']), st.just(100_000)),
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """A file that somebody edited, merged, cut or overwrote."""
    lines = data.rstrip(b"\n").split(b"\n")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["odd", "odd", "odd", "noise", "twice", "gone", "order"]))
        if how == "odd" and lines[place] in data:
            try:
                lines[place] = draw(odd_line(lines[place]))
            except ValueError:
                lines[place] = b""
        elif how == "noise":
            lines.insert(place, draw(NOISE))
        elif how == "twice":
            lines.insert(place, lines[-1])
        elif how == "gone" and len(lines) > 1:
            del lines[place]
        else:
            lines.reverse()
    whole = draw(st.sampled_from([b"\n", b"\n", b"\r\n"])).join(lines)
    return whole + draw(st.sampled_from([b"\n", b"", b"\n\n", b"\n{"]))


def in_file(data: bytes, print_: Fingerprint) -> str | None:
    """The answer that a file has for a request, by its words alone."""
    found, request = None, json.loads(print_.canonical)
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            whole = json.loads(line.decode())
            # A version is a number, and to Python true is 1.
            version = {"v": 1} if whole["request"]["v"] == 1 else {}
            if json.dumps({**whole["request"], **version}) == json.dumps(request):
                found = whole["response"]["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


def harmed(recorded: bytes, folder: Path, data: st.DataObject) -> tuple[Path, bytes]:
    """A cassette's file to which something has happened, and what is in it."""
    content = data.draw(damaged(recorded) | st.binary(max_size=40), label="file")
    path = folder / NAME
    path.write_bytes(content)
    return path, content


def check_named(error: StoreError, data: bytes, good: bytes) -> None:
    """The error names the file, and a line of it that was not recorded so."""
    check_message(error)
    named = re.search(rf"{re.escape(NAME)}, line (\d+),", str(error))
    assert named, error
    line = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")[int(named[1]) - 1]
    assert line.strip() not in good.split(b"\n")


@fuzz(120)
@given(data=st.data())
def test_any_file_gives_what_was_recorded_or_names_the_line(
    recorded: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    path, content = harmed(recorded, tmp_path, data)
    cassette = Cassette(path)
    try:
        with not_hung():
            found = [cassette.get(asked(number).key) for number in range(len(TEXTS))]
    except StoreError as error:
        refusal = error
    else:
        for number, entry in enumerate(found):
            assert (entry and entry.text) == in_file(content, asked(number))
            assert entry is None or usable(entry)
        assert isinstance(cassette.missing(asked(99)), ReplayMissing)
        assert len(cassette.status()) >= len([each for each in found if each])
        cassette.models("http://127.0.0.1:1/v1")
        return
    check_named(refusal, content, recorded)
    for use in (cassette.status, cassette.stale, cassette.prune):
        with pytest.raises(StoreError):
            use()
    assert path.read_bytes() == content


def usable(entry: Entry) -> bool:
    """Whether nothing of an entry fails where it is shown or counted."""
    assert entry.usage.total_tokens >= 0
    assert str(entry.usage + entry.usage)
    assert entry.cost is None or entry.cost >= 0
    return 0 <= entry.seconds < 1e15 and 0 <= entry.time < 1e15


@fuzz(60)
@given(data=st.data())
def test_recording_destroys_no_line_that_it_cannot_read(
    recorded: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    path, content = harmed(recorded, tmp_path, data)
    try:
        with not_hung():
            Cassette(path).record(asked(50), answer("New."))
    except StoreError:
        assert path.read_bytes() == content
        return
    after = path.read_bytes()
    again = Cassette(path)
    new = again.get(asked(50).key)
    assert new is not None
    assert new.text == "New."
    for number in range(len(TEXTS)):
        assert in_file(after, asked(number)) == in_file(content, asked(number))
    for each in recorded.split(b"\n"):
        assert each not in content.split(b"\n") or each in after or _overruled(content, each)


def _overruled(content: bytes, line: bytes) -> bool:
    """Whether a later line is about the same request."""
    request = json.dumps(json.loads(line)["request"])
    lines = content.split(b"\n")
    later = lines[lines.index(line) + 1 :]
    return any(_request(each) == request for each in later)


def _request(line: bytes) -> str:
    try:
        return json.dumps(json.loads(line.decode())["request"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def texts_of(content: bytes) -> list[str]:
    """The answers in a file, as JSON."""
    found = []
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            found.append(json.dumps(json.loads(line.decode())["response"]["text"]))
    return found


@pytest.fixture
def notebook(terminal: Terminal, keeping: None, tmp_path: Path) -> bytes:
    """What the cassette of a notebook of two cells has in it."""
    terminal.run(f"%llm_cassette {NAME}")
    for number in range(2):
        assert terminal.run(f"%llm -m m Question {number}?").error is None
    terminal.run("%config LLMMagic.mode = 'replay'")
    return (tmp_path / NAME).read_bytes()


@fuzz(40)
@given(data=st.data())
def test_a_notebook_is_replayed_to_the_letter_or_told_the_line(
    notebook: bytes,
    terminal: Terminal,
    server: ScriptedServer,
    tmp_path: Path,
    data: st.DataObject,
) -> None:
    """Nothing is asked in either case, though the cache has the answers."""
    content = data.draw(damaged(notebook), label="file")
    path = tmp_path / NAME
    path.write_bytes(content)
    terminal.run("%llm_cassette off")

    with not_hung():
        put_in = terminal.run(f"%llm_cassette {NAME}")
        ran = [terminal.run(f"%llm -m m Question {number}?") for number in range(2)]
        terminal.run("%llm_cassette status")

    assert len(server.requests) == 2
    assert path.read_bytes() == content
    assert put_in.error is None or isinstance(put_in.error, StoreError)
    for each in ran:
        assert "Traceback" not in each.out
        if each.error is not None:
            assert isinstance(each.error, StoreError | ReplayMissing), repr(each.error)
            check_message(each.error)
        elif put_in.error is None:
            assert json.dumps(each.value.text) in texts_of(content)
            assert str(each.value.usage)
            assert each.value.cached
