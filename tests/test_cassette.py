"""Recorded answers in a file that travels with a notebook."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm_magic.cassette import Cassette, alike, file
from llm_magic.entries import VERSION, Entry, Fingerprint, fingerprint, sign
from llm_magic.errors import LLMError, ReplayMissing, StoreError
from llm_magic.types import Request, Usage
from tests.conftest import Terminal
from tests.load import LoadServer

URL = "https://api.openai.com/v1"
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals, links and permissions of POSIX")


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of the test's own, for this process and its children."""
    folder = tmp_path_factory.mktemp("tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return folder / "answers.jsonl"


def asked(prompt: Any, *, url: str = URL, system: str = "", **fields: Any) -> Fingerprint:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return sign({"model": "gpt-5-mini", "messages": messages, **fields}, url)


def answer(text: str, **fields: Any) -> Entry:
    whole: dict[str, Any] = {
        "model": "gpt-5-mini-2025-08-07",
        "finish_reason": "stop",
        "usage": Usage(12, 3),
        "seconds": 1.5,
        "time": 1_764_000_000.0,
    }
    return Entry(text, **{**whole, **fields})


def filled(path: Path, *prompts: str) -> Cassette:
    cassette = Cassette(path)
    for prompt in prompts:
        cassette.record(asked(prompt), answer(f"to {prompt}"))
    return cassette


def lines_of(path: Path) -> list[str]:
    text = path.read_bytes().decode()
    assert text.endswith("\n")
    return text.split("\n")[:-1]


def identity(path: Path) -> tuple[bytes, int, int]:
    """Changes when a file is written, even with the same bytes."""
    found = path.stat()
    return path.read_bytes(), found.st_mtime_ns, found.st_ino


# The file


def test_a_recorded_answer_is_there_for_another_notebook(path: Path) -> None:
    Cassette(path).record(asked("One?"), answer("Yes."))

    entry = Cassette(path).get(asked("One?").key)

    assert entry == answer("Yes.", seconds=0.0, time=0.0)
    assert Cassette(path).get(asked("Two?").key) is None


def test_the_line_is_readable_and_has_nothing_of_the_moment(path: Path) -> None:
    Cassette(path).record(asked("Grüße?", temperature=0.2), answer("„Servus“"))

    assert path.read_bytes().decode() == (
        '{"request": {"body": {"messages": [{"role": "user", "content": "Grüße?"}], '
        '"model": "gpt-5-mini", "temperature": 0.2}, "url": "https://api.openai.com/v1", "v": 1}, '
        '"response": {"finish_reason": "stop", "model": "gpt-5-mini-2025-08-07", '
        '"text": "„Servus“", "usage": {"input_tokens": 12, "output_tokens": 3}}}\n'
    )


def test_reasoning_cost_and_counts_are_there_where_they_are_something(path: Path) -> None:
    entry = answer(
        "Yes.",
        reasoning="Well, …",
        cost=Decimal("0.00027"),
        usage=Usage(12, 3, cached_tokens=8, reasoning_tokens=2, estimated=True),
        time=0.0,
        seconds=0.0,
    )
    Cassette(path).record(asked("One?"), entry)

    response = json.loads(path.read_text("utf-8"))["response"]
    assert response["reasoning"] == "Well, …"
    assert response["cost"] == "0.00027"
    assert response["usage"] == {
        "input_tokens": 12,
        "output_tokens": 3,
        "cached_tokens": 8,
        "reasoning_tokens": 2,
        "estimated": True,
    }
    assert Cassette(path).get(asked("One?").key) == entry


def test_an_answer_without_counts_is_whole(path: Path) -> None:
    Cassette(path).record(asked("One?"), answer("", usage=Usage(), finish_reason="tool_calls"))

    entry = Cassette(path).get(asked("One?").key)
    assert entry is not None
    assert (entry.text, entry.usage, entry.finish_reason) == ("", Usage(), "tool_calls")


def test_the_same_answer_again_leaves_the_file_alone(path: Path) -> None:
    filled(path, "One?", "Two?")
    before = identity(path)

    for cassette in (Cassette(path), filled(path, "Two?", "One?")):
        cassette.record(asked("One?"), answer("to One?", cost=Decimal(1), usage=Usage(99, 99)))
        cassette.record(asked("Two?"), answer("to Two?", seconds=9.0, time=9.0))

    assert identity(path) == before


@pytest.mark.parametrize(
    "other",
    [
        {"text": "No."},
        {"model": "gpt-5-mini-2026-01-01"},
        {"finish_reason": "tool_calls"},
        {"reasoning": "Hm."},
    ],
)
def test_another_answer_takes_the_place_of_the_old_one(path: Path, other: dict[str, str]) -> None:
    filled(path, "One?", "Two?", "Three?")
    before = lines_of(path)
    entry = answer(**{"text": "to Two?", **other}, seconds=0.0, time=0.0)

    Cassette(path).record(asked("Two?"), entry)

    after = lines_of(path)
    assert len(after) == 3
    assert len(set(before) - set(after)) == len(set(after) - set(before)) == 1
    assert [line in before for line in after].count(False) == 1
    assert Cassette(path).get(asked("Two?").key) == entry


def test_the_file_is_the_same_whatever_the_order(path: Path) -> None:
    prompts = [f"Question {n}?" for n in range(12)]
    filled(path, *prompts)
    other = path.with_name("other.jsonl")
    for prompt in reversed(prompts):
        filled(other, prompt)

    assert other.read_bytes() == path.read_bytes()
    lines = lines_of(path)
    assert len(lines) == 12
    assert lines == sorted(lines)


def pairs(count: int, text: str = "to") -> list[tuple[Fingerprint, Entry]]:
    return [(asked(f"Question {n}?"), answer(f"{text} {n}")) for n in range(count)]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=25), st.data())
def test_many_answers_at_once_are_as_one_after_the_other(
    path: Path, answers: list[tuple[int, int]], data: st.DataObject
) -> None:
    """A later one in the place of an earlier one, in whatever parts they come."""
    other = path.with_name("other.jsonl")
    for each in (path, other):
        each.unlink(missing_ok=True)
    together, alone = Cassette(path), Cassette(other)
    made = [(asked(f"Question {n}?"), answer(f"to {text}")) for n, text in answers]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(made)), max_size=3)))
    for first, last in zip([0, *cuts], [*cuts, len(made)], strict=True):
        together.record_many(made[first:last])
    for print_, entry in made:
        alone.record(print_, entry)

    assert together.status() == alone.status()
    assert not made or path.read_bytes() == other.read_bytes()
    assert together.stale() == []


def test_many_answers_are_written_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: writes.append(handle) or real(handle))
    cassette = Cassette(path)
    cassette.record_many(pairs(500))
    assert len(writes) == 1
    assert len(lines_of(path)) == 500

    cassette.record_many(pairs(500))
    cassette.record_many([])
    assert len(writes) == 1


def test_no_answers_make_no_file(path: Path) -> None:
    Cassette(path).record_many([])

    assert not path.exists()


def test_of_many_answers_all_are_recorded_or_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cassette = filled(path, "One?")
    before = identity(path)
    with pytest.raises(ValueError, match="no whole answer"):
        cassette.record_many([*pairs(3), (asked("Cut?"), answer("cut", finish_reason="length"))])
    assert identity(path) == before

    def fail(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(StoreError, match="No space left"):
            cassette.record_many(pairs(30))
    assert identity(path) == before
    assert [cassette.get(print_.key) for print_, _ in pairs(30)] == [None] * 30

    cassette.record_many(pairs(30))
    assert len(lines_of(path)) == 31


def test_a_table_is_recorded_once_a_row_in_any_order_and_replayed_without_a_server(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.run("import llm_magic")
    terminal["rows"] = [f"row {n}" for n in range(400)] + ["row 7"] * 100
    ask = "llm_magic.map_rows({}, 'What is {{{{ row }}}}?')"
    with LoadServer(latency=0.001) as server:
        terminal.run(f"%config LLMMagic.base_url = {server.url!r}")
        terminal.run("%config LLMMagic.model = 'm'")
        terminal.run("%config LLMMagic.quota_requests = None")
        terminal.run("%llm_cassette first.jsonl")
        first = terminal.run(ask.format("rows")).value
        assert server.stats()["requests"] == 400
        terminal.run("%llm_cassette second.jsonl --record")
        terminal.run(ask.format("rows[::-1]"))
        assert server.stats()["requests"] == 800
    lines = lines_of(Path("first.jsonl"))
    assert len(lines) == 400
    assert lines_of(Path("second.jsonl")) == lines

    monkeypatch.delenv("OPENAI_API_KEY")
    terminal.run("%llm_cassette first.jsonl --replay")
    again = terminal.run(ask.format("rows")).value
    assert [row["answer"] for row in again] == [row["answer"] for row in first]
    assert all(row["_cached"] and not row["_error"] for row in again)


def test_many_answers_keep_what_another_kernel_recorded_meanwhile(path: Path) -> None:
    one, other = Cassette(path), Cassette(path)
    one.record_many(pairs(20))
    other.record_many(pairs(30, "another to")[10:])
    one.record_many(pairs(40)[30:])

    texts = [other.get(print_.key).text for print_, _ in pairs(40)]
    assert texts == [f"{'another to' if 10 <= n < 30 else 'to'} {n}" for n in range(40)]
    assert len(lines_of(path)) == 40


def test_another_process_writes_the_same_bytes(path: Path, tmp_path: Path) -> None:
    far = tmp_path / "far away"
    far.mkdir()
    filled(path, "One?", "Zwei – „drei“?")
    code = CHILD + "record('One?'); record('Zwei – „drei“?')"
    child = run(code, far / "other.jsonl", cwd=far, PYTHONHASHSEED="7", LC_ALL="C")

    assert ended(child) == (0, "")
    assert (far / "other.jsonl").read_bytes() == path.read_bytes()


def test_nothing_but_the_file_is_beside_the_notebook(path: Path, temporary: Path) -> None:
    filled(path, "One?", "Two?").prune()

    assert [each.name for each in path.parent.iterdir()] == ["answers.jsonl"]
    (folder,) = temporary.iterdir()
    assert folder.name.startswith("llm_magic-locks-")
    assert path.name not in "".join(each.name for each in folder.iterdir())


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(prompt=st.text(), text=st.text(), reasoning=st.text())
@example(prompt="a\u2028b", text="c\u2029d\x85e\x0bf\x0cg\x1ch", reasoning="\r\n\r")
@example(prompt="\ufeff", text="\ufeff{", reasoning="\x00")
def test_any_text_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, text: str, reasoning: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "answers.jsonl"
    filled(path, "One?", "Two?")
    Cassette(path).record(asked(prompt), answer(text, reasoning=reasoning))

    entry = Cassette(path).get(asked(prompt).key)
    assert entry is not None
    assert (entry.text, entry.reasoning) == (text, reasoning)
    assert len(lines_of(path)) == len({"One?", "Two?", prompt})


def test_half_of_a_surrogate_pair_comes_back(path: Path) -> None:
    cassette = filled(path, "One?")
    cassette.record(asked("Two?"), answer("half \ud83d of ü"))

    entry = Cassette(path).get(asked("Two?").key)
    assert entry is not None
    assert entry.text == "half \ud83d of ü"


def test_what_is_no_whole_answer_is_not_recorded(path: Path) -> None:
    filled(path, "One?")
    before = identity(path)

    with pytest.raises(ValueError, match="no whole answer"):
        Cassette(path).record(asked("Two?"), answer("cut of", finish_reason="length"))
    assert identity(path) == before


# Read as people and tools leave it


def test_a_file_that_is_not_there_or_is_empty_has_no_answers(path: Path) -> None:
    for content in (None, b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n"):
        if content is not None:
            path.write_bytes(content)
        cassette = Cassette(path)
        assert cassette.get(asked("One?").key) is None
        assert cassette.status() == cassette.stale() == cassette.models(URL) == []
        assert cassette.nearest("One?") is None
        assert cassette.prune() == 0
    filled(path, "One?")
    assert len(lines_of(path)) == 1


@pytest.mark.parametrize(
    "left",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.removesuffix(b"\n"),
        lambda data: b"\n  \n" + data.replace(b"\n", b"\n\n"),
        lambda data: b"\n".join(reversed(data.split(b"\n"))),
    ],
    ids=["CRLF", "BOM", "no last line end", "empty lines", "other order"],
)
def test_what_editors_and_git_do_is_read_and_put_right(
    path: Path, left: Callable[[bytes], bytes]
) -> None:
    filled(path, "One?", "Two?")
    right = path.read_bytes()
    path.write_bytes(left(right))

    cassette = Cassette(path)
    assert cassette.get(asked("One?").key) == answer("to One?", seconds=0.0, time=0.0)
    assert len(cassette.status()) == 2
    assert path.read_bytes() == left(right)

    cassette.record(asked("Three?"), answer("to Three?"))
    cassette.get(asked("Two?").key)
    expected = path.with_name("expected.jsonl")
    filled(expected, "One?", "Two?", "Three?")
    assert path.read_bytes() == expected.read_bytes()


def test_two_schemas_that_differ_in_order_alone_have_two_answers(path: Path) -> None:
    def schema(*names: str) -> Fingerprint:
        fields = {"b": 2, "response_format": {"properties": dict.fromkeys(names, 1)}, "a": 1}
        message = {"role": "user", "content": "One?"}
        return fingerprint(Request((message,), "gpt-5-mini", URL, 9, fields))

    cassette = Cassette(path)
    cassette.record(schema("z", "a"), answer("first z"))
    cassette.record(schema("a", "z"), answer("first a"))

    found = [Cassette(path).get(schema(*names).key) for names in ("za", "az")]
    assert [entry and entry.text for entry in found] == ["first z", "first a"]
    hint = str(cassette.missing(schema("a"))).splitlines()[1]
    assert hint.startswith("The same prompt is recorded with response_format {")


def test_a_request_that_was_edited_is_another_request(path: Path) -> None:
    filled(path, "One?", "Two?")
    path.write_text(path.read_text("utf-8").replace('"One?"', '"Eins?"'), "utf-8")

    cassette = Cassette(path)
    assert cassette.get(asked("One?").key) is None
    entry = cassette.get(asked("Eins?").key)
    assert entry is not None
    assert entry.text == "to One?"


def test_an_answer_that_was_edited_is_the_answer(path: Path) -> None:
    filled(path, "One?")
    path.write_text(path.read_text("utf-8").replace("to One?", "of mine"), "utf-8")

    entry = Cassette(path).get(asked("One?").key)
    assert entry is not None
    assert entry.text == "of mine"


def test_other_lines_stay_as_somebody_wrote_them(path: Path) -> None:
    filled(path, "One?")
    by_hand = path.read_text("utf-8").replace('": ', '":').strip()
    path.write_text(by_hand, "utf-8")

    filled(path, "Two?")

    assert by_hand in lines_of(path)


def test_of_two_lines_for_one_request_the_later_counts_and_stays(path: Path) -> None:
    filled(path, "One?")
    mine = path.read_text("utf-8")
    theirs = mine.replace("to One?", "a merged answer")
    path.write_text(mine + theirs, "utf-8")

    entry = Cassette(path).get(asked("One?").key)
    assert entry is not None
    assert entry.text == "a merged answer"
    filled(path, "Two?")
    assert len(lines_of(path)) == 2
    assert theirs.strip() in lines_of(path)


def test_lines_of_another_version_rest_and_stay(path: Path) -> None:
    filled(path, "One?")
    other = path.read_text("utf-8").replace(f'"v": {VERSION}', f'"v": {VERSION + 1}').strip()
    path.write_text(other, "utf-8")

    cassette = filled(path, "Two?")
    assert cassette.get(asked("One?").key) is None
    assert other in lines_of(path)


LINE = '{"request": {"body": {}, "url": "http://x/v1", "v": 1}, "response": %s}'


@pytest.mark.parametrize(
    "broken",
    [
        "<<<<<<< HEAD",
        "=======",
        '{"request": {"body": {"model": "gp',
        "[]",
        '"text"',
        "null",
        "{}",
        '{"request": [], "response": {}}',
        '{"request": {"body": [], "url": "http://x", "v": 1}, "response": {}}',
        '{"request": {"body": {}, "url": 7, "v": 1}, "response": {}}',
        '{"request": {"body": {}, "url": "http://x:port/", "v": 1}, "response": {}}',
        '{"request": {"body": {"seed": NaN}, "url": "http://x", "v": 1}, "response": {}}',
        LINE % "{}",
        LINE % "null",
        LINE % '{"text": 7, "model": "m", "finish_reason": "stop", "usage": {}}',
        LINE % '{"text": "", "model": "m", "finish_reason": "length", "usage": {}}',
        LINE % '{"text": "", "model": "m", "finish_reason": "stop", "usage": {"cups": 2}}',
        LINE % '{"text": "", "model": "m", "finish_reason": "stop"}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_file_with_a_broken_line_is_refused_and_never_written(path: Path, broken: str) -> None:
    filled(path, "One?", "Two?")
    first, second = lines_of(path)
    path.write_bytes(f"{first}\n\n{broken}\n{second}\n".encode("latin-1"))
    before = identity(path)

    for use in (
        lambda cassette: cassette.get(asked("One?").key),
        lambda cassette: cassette.record(asked("Three?"), answer("Yes.")),
        lambda cassette: cassette.prune(),
        lambda cassette: cassette.status(),
        lambda cassette: cassette.missing(asked("Three?")),
    ):
        with pytest.raises(StoreError) as caught:
            use(Cassette(path))
        message, fix = str(caught.value).splitlines()
        assert message.startswith("answers.jsonl, line 3, is no recorded answer (a merge conflict")
        assert fix == "Repair or delete line 3 of answers.jsonl."
    assert identity(path) == before


def test_the_smallest_line_is_an_answer(path: Path) -> None:
    """What the broken lines above lack is what makes them broken."""
    path.write_text(LINE % '{"text": "", "model": "m", "finish_reason": "stop", "usage": {}}')

    cassette = Cassette(path)
    assert cassette.get(sign({}, "http://x/v1").key) == Entry("", "m", "stop", Usage())
    assert [tuple(each) for each in cassette.status()] == [("", "", True)]
    assert cassette.models("http://x/v1") == []
    assert "another form" not in str(cassette.missing(asked("One?")))


@pytest.mark.parametrize(
    "messages",
    [
        "null",
        "{}",
        "[]",
        "[1]",
        '[{"role": "user"}]',
        '[{"content": {}}]',
        '[{"content": [7, {"text": 7}]}]',
    ],
)
def test_messages_of_any_form_are_listed_and_compared(path: Path, messages: str) -> None:
    whole = LINE % '{"text": "", "model": "m", "finish_reason": "stop", "usage": {}}'
    path.write_text(whole.replace("{}", f'{{"messages": {messages}}}', 1))

    cassette = Cassette(path)
    assert len(cassette.status()) == 1
    for prompt in ("One?", ""):
        assert isinstance(cassette.missing(asked(prompt)), ReplayMissing)


# Changed meanwhile, by others


def edit_in_place(path: Path, old: str, new: str, *, seconds: int) -> None:
    """Changes a text for one as long, and the file's time by so much."""
    before = path.stat()
    assert len(old) == len(new)
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + seconds * 10**9))


def test_what_others_write_is_seen_at_once(path: Path) -> None:
    cassette = filled(path, "One?")
    assert cassette.get(asked("Two?").key) is None

    filled(path, "Two?")
    assert cassette.get(asked("Two?").key) is not None

    edit_in_place(path, "to Two?", "by hand", seconds=1)
    entry = cassette.get(asked("Two?").key)
    assert entry is not None
    assert entry.text == "by hand"

    path.unlink()
    assert cassette.get(asked("Two?").key) is None
    cassette.record(asked("Two?"), answer("again"))
    assert len(lines_of(path)) == 1


def test_a_change_that_cannot_be_seen_is_not_lost(path: Path) -> None:
    """A file system's clock may stand still between two writes of the same length."""
    cassette = filled(path, "One?", "Two?")
    cassette.status()
    edit_in_place(path, "to Two?", "by hand", seconds=0)

    cassette.record(asked("Three?"), answer("to Three?"))

    entry = cassette.get(asked("Two?").key)
    assert entry is not None
    assert entry.text == "by hand"


def test_an_unchanged_file_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cassette = filled(path, "One?")
    assert cassette.get(asked("One?").key)

    def fail(*_: object) -> NoReturn:
        raise AssertionError("read again")

    monkeypatch.setattr("llm_magic.cassette.read", fail)
    assert cassette.get(asked("One?").key)
    cassette.record(asked("One?"), answer("to One?"))


@pytest.mark.parametrize("theirs", ["to One?", "another"])
def test_what_another_kernel_records_while_the_lock_is_waited_for_counts(
    path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    cassette = filled(path, "Two?")
    between: list[tuple[bytes, int, int]] = []

    @contextmanager
    def locked(path: Path) -> Iterator[Path]:
        monkeypatch.setattr("llm_magic.cassette.locked", file.locked)
        filled(path, "Three?").record(asked("One?"), answer(theirs))
        between.append(identity(path))
        with file.locked(path) as target:
            yield target

    monkeypatch.setattr("llm_magic.cassette.locked", locked)
    cassette.record(asked("One?"), answer("to One?"))

    assert (identity(path) == between[0]) is (theirs == "to One?")
    expected = path.with_name("expected.jsonl")
    filled(expected, "One?", "Two?", "Three?")
    assert path.read_bytes() == expected.read_bytes()


def test_the_notebook_may_go_to_another_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    cassette = Cassette(Path(path.name))
    monkeypatch.chdir(tmp_path)

    cassette.record(asked("One?"), answer("Yes."))

    assert path.exists()


# Where it cannot be


def one_line(error: StoreError) -> str:
    message, fix = str(error).splitlines()
    assert fix
    return message


@POSIX
def test_without_its_folder_it_cannot_be_written(path: Path) -> None:
    cassette = filled(path, "One?")
    path.unlink()
    path.parent.rmdir()

    assert cassette.get(asked("One?").key) is None
    with pytest.raises(StoreError) as caught:
        cassette.record(asked("One?"), answer("Yes."))
    assert one_line(caught.value).endswith(
        f"{path} cannot be written (No such file or directory); nothing was changed."
    )


@POSIX
def test_a_working_folder_that_is_gone_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    path.parent.rmdir()

    with pytest.raises(StoreError) as caught:
        Cassette(Path("answers.jsonl"))
    assert "answers.jsonl cannot be found" in one_line(caught.value)


def test_a_folder_is_no_cassette(path: Path) -> None:
    path.mkdir()

    for use in (Cassette(path).status, Cassette(path).prune):
        with pytest.raises(StoreError) as caught:
            use()
        assert f"{path} cannot be read" in one_line(caught.value)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    cassette = filled(path, "One?")
    before = identity(path)

    def fail(_: int) -> NoReturn:
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        expected = StoreError if isinstance(fault, OSError) else KeyboardInterrupt
        with pytest.raises(expected, match="No space left" if expected is StoreError else None):
            cassette.record(asked("Two?"), answer("Yes."))

    assert identity(path) == before
    assert [each.name for each in path.parent.iterdir()] == ["answers.jsonl"]
    cassette.record(asked("Two?"), answer("Yes."))
    assert len(lines_of(path)) == 2


def test_a_reader_in_the_way_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a file that somebody reads cannot be replaced."""
    calls = []

    def busy(source: Any, target: Any, real: Callable[..., None] = os.replace) -> None:
        calls.append(target)
        if len(calls) < 3:
            raise PermissionError(13, "Access is denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", busy)
    filled(path, "One?")

    assert len(calls) == 3
    assert len(lines_of(path)) == 1


def test_a_reader_in_the_way_for_ever_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> NoReturn:
        raise PermissionError(13, "Access is denied")

    filled(path, "One?")
    before = identity(path)
    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(file, "LOCK_SECONDS", 0.05)

    with pytest.raises(StoreError, match="Access is denied"):
        filled(path, "Two?")
    assert identity(path) == before
    assert [each.name for each in path.parent.iterdir()] == ["answers.jsonl"]


@POSIX
def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared.jsonl"
    filled(target, "One?")
    path.symlink_to(os.path.relpath(target, path.parent))

    cassette = filled(path, "Two?")
    cassette.get(asked("One?").key)

    assert path.is_symlink()
    assert len(lines_of(target)) == 2
    assert [each.name for each in path.parent.iterdir()] == ["answers.jsonl"]


@POSIX
def test_a_link_to_nothing_makes_its_target(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "new.jsonl")

    filled(path, "One?")

    assert path.is_symlink()
    assert len(lines_of(tmp_path / "new.jsonl")) == 1


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_permissions_stay(path: Path, mode: int) -> None:
    filled(path, "One?")
    path.chmod(mode)

    filled(path, "Two?")

    assert stat.S_IMODE(path.stat().st_mode) == mode


@POSIX
def test_a_new_file_has_the_permissions_of_any_new_file(path: Path) -> None:
    before = os.umask(0o027)
    try:
        filled(path, "One?")
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# Several kernels


CHILD = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from llm_magic.cassette import Cassette, file
from llm_magic.errors import StoreError
from tests.test_cassette import answer, asked

path = Path(sys.argv[1])
cassette = Cassette(path)

def record(prompt, text=None):
    cassette.record(asked(prompt), answer(text or f"to {{prompt}}"))
"""


def run(code: str, path: Path, *more: str, cwd: Path | None = None, **variables: str) -> Any:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), *more],
        env={**os.environ, **variables},
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(child: Any) -> tuple[int, str]:
    """Waits for a process; what it returned, and what it had yet to say."""
    with child:
        return child.wait(120), child.stdout.read()


@pytest.mark.parametrize("kernels", [2, 4])
def test_kernels_that_record_at_once_lose_nothing(path: Path, kernels: int) -> None:
    code = CHILD + (
        "print('ready', flush=True)\n"
        "while not path.with_name('go').exists(): time.sleep(0.001)\n"
        "for n in range(12):\n"
        "    for _ in range(20):\n"
        "        try:\n"
        "            record(f'{sys.argv[2]} asks {n}')\n"
        "            record('asked by all')\n"
        "            break\n"
        "        except StoreError: pass\n"
        "    else: sys.exit(1)\n"
    )
    filled(path, "before")
    children = [run(code, path, str(each)) for each in range(kernels)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    path.with_name("go").touch()

    assert [ended(child) for child in children] == [(0, "")] * kernels
    cassette = Cassette(path)
    for prompt in (f"{each} asks {n}" for each in range(kernels) for n in range(12)):
        assert cassette.get(asked(prompt).key), prompt
    lines = lines_of(path)
    assert len(lines) == kernels * 12 + 2
    assert lines == sorted(lines)
    assert sorted(each.name for each in path.parent.iterdir()) == ["answers.jsonl", "go"]


def test_threads_that_record_at_once_lose_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "LOCK_SECONDS", 60.0)
    cassette = Cassette(path)

    def record(name: int) -> None:
        for n in range(5):
            cassette.record(asked(f"{name} asks {n}"), answer("Yes."))

    threads = [threading.Thread(target=record, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(lines_of(path)) == 30
    assert cassette.stale() == []


@POSIX
@pytest.mark.parametrize(
    ("moment", "answers"), [("fsync", ["old"]), ("chmod", ["old"]), ("replace", ["new", "old"])]
)
def test_a_kernel_killed_while_recording_leaves_a_whole_file(
    path: Path, moment: str, answers: list[str]
) -> None:
    owner = "Path" if moment == "chmod" else "os"
    code = CHILD + (
        f"real = {owner}.{moment}\n"
        "def die(*arguments):\n"
        "    real(*arguments)\n"
        "    os.kill(os.getpid(), 9)\n"
        f"{owner}.{moment} = die\n"
        "record('new', 'x' * 300_000)\n"
    )
    filled(path, "old")
    child = run(code, path)

    assert ended(child) == (-signal.SIGKILL, "")
    assert sorted(each.prompt for each in Cassette(path).status()) == answers
    filled(path, "after")
    assert len(lines_of(path)) == len(answers) + 1


@POSIX
def test_a_kernel_killed_at_any_moment_leaves_a_whole_file(path: Path) -> None:
    code = CHILD + (
        "for n in range(100_000):\n"
        "    record(f'{n} asked', f'{n}' * 20_000)\n"
        "    print(n, flush=True)\n"
    )
    for wait in (0.0, 0.003, 0.011, 0.017):
        path.unlink(missing_ok=True)
        child = run(code, path)
        for _ in range(3):
            last = int(child.stdout.readline())
        time.sleep(wait)
        child.kill()
        told = ended(child)[1]
        last = max([last, *(int(line) for line in told.split("\n")[:-1])])
        cassette = Cassette(path)
        assert last + 1 <= len(cassette.status()) <= last + 2
        for n in range(last + 1):
            entry = cassette.get(asked(f"{n} asked").key)
            assert entry is not None
            assert entry.text == f"{n}" * 20_000


def test_a_lock_that_is_not_given_back_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cassette = filled(path, "One?")
    before = identity(path)
    monkeypatch.setattr(file, "LOCK_SECONDS", 0.1)
    with file.locked(path):
        for use in (cassette.prune, lambda: cassette.record(asked("Two?"), answer("Yes."))):
            with pytest.raises(StoreError) as caught:
                use()
            assert one_line(caught.value) == (
                "Another process has been writing answers.jsonl for 0.1 s; nothing was changed."
            )
        # What needs no writing needs no lock.
        cassette.record(asked("One?"), answer("to One?"))
        assert cassette.get(asked("One?").key)
    assert identity(path) == before

    cassette.record(asked("Two?"), answer("Yes."))
    assert len(lines_of(path)) == 2


def test_a_lock_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LOCK_SECONDS", 60.0)
    cassette = filled(path, "One?")
    thread = threading.Thread(target=cassette.record, args=(asked("Two?"), answer("Yes.")))
    with file.locked(path):
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert len(lines_of(path)) == 1
    thread.join(60)

    assert len(lines_of(path)) == 2


@POSIX
def test_the_lock_of_a_killed_kernel_is_free(path: Path) -> None:
    code = CHILD + "with file.locked(path):\n    print('locked', flush=True)\n    time.sleep(600)\n"
    child = run(code, path)
    assert child.stdout.readline() == "locked\n"
    child.kill()
    assert ended(child) == (-signal.SIGKILL, "")

    filled(path, "One?")


@POSIX
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_forked_meanwhile_does_not_keep_the_lock(path: Path) -> None:
    with file.locked(path):
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(0)
    try:
        filled(path, "One?")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files in /proc")
def test_no_file_stays_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    filled(path, *(f"{n}?" for n in range(10))).prune()

    assert len(os.listdir("/proc/self/fd")) == before


@POSIX
def test_one_file_by_two_names_has_one_lock(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path, "One?")
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    monkeypatch.setattr(file, "LOCK_SECONDS", 0.05)

    with file.locked(link), pytest.raises(StoreError, match="Another process"):
        filled(path, "Two?")
    with file.locked(path.with_name("other.jsonl")):
        filled(path, "Two?")


@POSIX
def test_the_folder_of_locks_is_closed_to_others(path: Path, temporary: Path) -> None:
    before = os.umask(0)
    try:
        filled(path, "One?")
    finally:
        os.umask(before)

    (folder,) = temporary.iterdir()
    assert folder.name == f"llm_magic-locks-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()] == [0o600]


@POSIX
@pytest.mark.parametrize("kind", ["open to others", "link", "of another user"])
def test_a_folder_of_locks_that_others_can_reach_is_refused(
    path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = temporary / f"llm_magic-locks-{os.getuid()}"
    if kind == "link":
        elsewhere = temporary / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir(mode=0o700)
    if kind == "open to others":
        folder.chmod(0o777)
    if kind == "of another user":
        other = os.getuid() + 1
        folder.rename(temporary / f"llm_magic-locks-{other}")
        monkeypatch.setattr(os, "getuid", lambda: other)

    with pytest.raises(StoreError) as caught:
        filled(path, "One?")
    assert one_line(caught.value).endswith("is open to others; nothing was changed.")
    assert not path.exists()


# What was used


def test_what_was_read_or_recorded_is_used(path: Path) -> None:
    filled(path, "One?", "Two?", "Three?", "Four?")

    cassette = Cassette(path)
    cassette.get(asked("One?").key)
    cassette.get(asked("Five?").key)
    cassette.record(asked("Two?"), answer("to Two?"))
    cassette.record(asked("Three?"), answer("another"))

    used = {each.prompt: each.used for each in cassette.status()}
    assert used == {"One?": True, "Two?": True, "Three?": True, "Four?": False}
    assert [tuple(each) for each in cassette.stale()] == [("Four?", "gpt-5-mini", False)]
    assert [each.prompt for each in cassette.status()] == [
        each.prompt for each in Cassette(path).stale()
    ]


def test_pruning_drops_what_was_not_used(path: Path) -> None:
    filled(path, "One?", "Two?", "Three?")
    kept = path.with_name("kept.jsonl")
    filled(kept, "Two?")

    cassette = Cassette(path)
    cassette.get(asked("Two?").key)
    assert cassette.prune() == 2
    assert path.read_bytes() == kept.read_bytes()

    before = identity(path)
    assert cassette.prune() == 0
    assert identity(path) == before


def test_pruning_keeps_what_another_kernel_added_meanwhile(path: Path) -> None:
    filled(path, "One?", "Two?")
    cassette = Cassette(path)
    cassette.status()
    filled(path, "Three?")
    assert len(cassette.stale()) == 3

    assert cassette.prune() == 2
    assert [each.prompt for each in cassette.status()] == ["Three?"]


def test_a_run_without_any_use_can_prune_all(path: Path) -> None:
    filled(path, "One?", "Two?")

    assert Cassette(path).prune() == 2
    assert path.read_bytes() == b""


def test_the_listing_has_the_first_line_of_a_prompt(path: Path) -> None:
    cassette = Cassette(path)
    picture = [
        {"type": "text", "text": "What is in "},
        {"type": "image_url", "image_url": {"url": "sha256:00"}},
        {"type": "text", "text": "?\nBe brief."},
    ]
    cassette.record(asked(picture, system="You are terse."), answer("A cat."))
    cassette.record(asked("\n\n  " + "word " * 40), answer("Yes."))

    shown = {each.prompt for each in cassette.status()}
    assert shown == {"What is in [image]?", ("word " * 40)[:79] + "…"}


def test_models_are_those_of_one_server(path: Path) -> None:
    cassette = Cassette(path)
    for n, (url, model) in enumerate(
        [
            (URL, "gpt-5-mini"),
            (URL, "gpt-5"),
            (URL + "/", "gpt-5"),
            ("https://API.openai.com:443/v1", "o3"),
            ("http://localhost:11434/v1", "qwen3"),
        ]
    ):
        cassette.record(asked(f"{n}?", url=url, model=model), answer("Yes."))

    assert cassette.models(URL) == ["gpt-5", "gpt-5-mini", "o3"]
    assert cassette.models("https://me:secret@api.openai.com/v1/") == ["gpt-5", "gpt-5-mini", "o3"]
    assert cassette.models("http://localhost:11434/v1/") == ["qwen3"]
    assert cassette.models("http://localhost:8000/v1") == []


# What is like it


def test_the_nearest_prompt_is_the_most_alike(path: Path) -> None:
    cassette = filled(
        path,
        "Which of these reviews are about the delivery?",
        "Which of these reviews are about the price?",
        "Name three rivers.",
    )

    found = cassette.nearest("Which of the reviews are about the prices?")
    assert found is not None
    assert found[0] == "Which of these reviews are about the price?"
    assert found[1].split("\n") == [
        "--- recorded",
        "+++ asked",
        "@@ -1 +1 @@",
        "-Which of these reviews are about the price?",
        "+Which of the reviews are about the prices?",
    ]
    assert cassette.nearest("xyz 123") is None
    assert cassette.nearest("") is None


@pytest.mark.parametrize("word", ["word{n} of a long prompt about reviews", "第{n}条评论"])
def test_the_nearest_of_long_prompts_is_found_by_their_words(path: Path, word: str) -> None:
    def prompt(start: int) -> str:
        return "\n".join(word.format(n=n) for n in range(start, start + 60))

    cassette = filled(path, *(prompt(start) for start in range(0, 2000, 100)))

    found = cassette.nearest(prompt(305))
    assert found is not None
    assert found[0] == prompt(300)
    assert len(found[1].split("\n")) <= 20


def test_the_nearest_of_middling_prompts_is_found_by_their_letters(path: Path) -> None:
    text = "a good deal, a bad deal; " * 10
    cassette = filled(path, text)

    found = cassette.nearest(text.replace("good", "mad"))
    assert found is not None
    assert found[0] == text


def test_comparing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, int]] = []

    class Counting(alike.difflib.SequenceMatcher):  # type: ignore[type-arg]
        def quick_ratio(self) -> float:
            compared.append(("quick", len(self.a) + len(self.b)))
            return super().quick_ratio()

        def ratio(self) -> float:
            compared.append(("whole", len(self.a) + len(self.b)))
            return super().ratio()

    monkeypatch.setattr(alike.difflib, "SequenceMatcher", Counting)
    texts = {f"{n} is the question" + "?" * 5000 for n in range(700)}

    assert alike.most_alike("123 is the question", texts) is None
    assert alike.most_alike("123 is the question" + "?" * 5000, texts) is not None
    kinds = [kind for kind, _ in compared]
    assert kinds.count("quick") == 2 * 500
    assert 1 <= kinds.count("whole") <= 2 * 10
    assert max(size for _, size in compared) <= 8000


def test_a_diff_is_bounded_and_splits_at_line_feeds_alone() -> None:
    long = alike.diff("a\n" * 100, "b\n" * 100)
    near = alike.diff("a\nb\nc\nd", "a\nb\nc\ne")
    odd = alike.diff("one\u2028two\x85three\rfour\nfive", "one\u2028two\x85three\rfour\nsix")

    assert len(long.split("\n")) == 20
    assert near.split("\n")[3:] == [" c", "-d", "+e"]
    assert odd.split("\n")[3:] == [" one\u2028two\x85three\rfour", "-five", "+six"]


FIX = (
    'Record it: %config LLMMagic.mode = "live" and run the cell again (with LLM_MAGIC_MODE unset).'
)


def test_a_missing_answer_names_the_nearest_prompt(path: Path) -> None:
    cassette = filled(path, "Summarise the table.\nIn one sentence.", "Name three rivers.")

    error = cassette.missing(asked("Summarise the table.\nIn two sentences."))

    assert isinstance(error, ReplayMissing)
    assert error._render_traceback_() == [
        "ReplayMissing: There is no recorded answer to 'Summarise the table.' in answers.jsonl; "
        "nothing was sent: mode is replay.",
        "The prompt most like it differs:",
        "- In one sentence.",
        "+ In two sentences.",
        FIX,
    ]
    assert error.prompt == "Summarise the table.\nIn two sentences."
    assert error.nearest == "Summarise the table.\nIn one sentence."
    assert error.diff.split("\n")[3:] == [
        " Summarise the table.",
        "-In one sentence.",
        "+In two sentences.",
    ]
    assert error.model == "gpt-5-mini"


def test_of_long_lines_the_part_that_differs_is_shown(path: Path) -> None:
    same = "word " * 200
    cassette = filled(path, f"{same}ends here {same}")

    lines = str(cassette.missing(asked(f"{same}stops there {same}"))).splitlines()

    assert len(lines) == 5
    assert len(max(lines[1:4], key=len)) <= 84
    assert lines[2].startswith("- …")
    assert "ends here" in lines[2]
    assert lines[3].startswith("+ …")
    assert "stops there" in lines[3]


@pytest.mark.parametrize(
    ("recorded", "now", "change"),
    [
        ("One.\nTwo.", "One.\nTwo.\nThree.", "+ Three."),
        ("One.\nTwo.", "One.", "- Two."),
        ("One.\nTwo.", "One.\n\nTwo.", "+ "),
    ],
)
def test_lines_that_are_only_on_one_side_are_shown(
    path: Path, recorded: str, now: str, change: str
) -> None:
    lines = str(filled(path, recorded).missing(asked(now))).splitlines()

    assert lines[1:-1] == ["The prompt most like it differs:", change]


def test_a_missing_answer_without_any_prompt_like_it(path: Path) -> None:
    def hint() -> str:
        error = Cassette(path).missing(asked("Name three rivers."))
        assert (error.nearest, error.diff) == ("", "")
        _, hint, fix = str(error).splitlines()
        assert fix == FIX
        return hint

    assert hint() == "Nothing is recorded there."
    filled(path, "x" * 50)
    assert hint() == "None of the 1 recorded prompts is much like it."


@pytest.mark.parametrize(
    ("recorded", "now", "hint"),
    [
        ({}, {"model": "gpt-5"}, 'model "gpt-5-mini" (asked: "gpt-5")'),
        ({"temperature": 0.2}, {}, "temperature 0.2 (asked: not set)"),
        ({}, {"temperature": 0}, "temperature not set (asked: 0)"),
        ({"temperature": 1}, {"temperature": 1.0}, "temperature 1 (asked: 1.0)"),
        ({"seed": None}, {}, "seed null (asked: not set)"),
        (
            {},
            {"url": "http://localhost:11434/v1"},
            "server https://api.openai.com/v1 (asked: http://localhost:11434/v1)",
        ),
        ({"system": "Be terse."}, {}, 'system "Be terse." (asked: not set)'),
        (
            {"max_tokens": 1, "seed": 1, "stop": "a", "temperature": 0.5, "top_p": 1},
            {},
            "max_tokens 1 (asked: not set), seed 1 (asked: not set), stop "
            '"a" (asked: not set) and 2 more fields',
        ),
        ({"stop": "x" * 100}, {}, f'stop "{"x" * 38}… (asked: not set)'),
    ],
)
def test_the_same_prompt_with_other_fields_is_told(
    path: Path, recorded: dict[str, Any], now: dict[str, Any], hint: str
) -> None:
    cassette = filled(path, "Name three lakes.")
    cassette.record(asked("Name three rivers.", **recorded), answer("Rhine."))
    for farther in ({"n": 7, "logprobs": True}, {"n": 7, "user_id": 1, "model": "zzz"}):
        cassette.record(asked("Name three rivers.", **recorded, **farther), answer("Rhine."))

    error = cassette.missing(asked("Name three rivers.", **now))

    assert str(error).splitlines()[1:] == [f"The same prompt is recorded with {hint}.", FIX]
    assert error.nearest == error.prompt == "Name three rivers."
    assert len(error.diff.split("\n")) <= 20
    assert error.diff.startswith("--- recorded\n+++ asked\n")


def test_the_fields_that_differ_are_a_diff(path: Path) -> None:
    cassette = Cassette(path)
    cassette.record(asked("One?", temperature=0.2, seed=1), answer("Yes."))

    error = cassette.missing(asked("One?", temperature=0.7, top_p=1))

    assert error.diff.split("\n") == [
        "--- recorded",
        "+++ asked",
        "-seed = 1",
        "-temperature = 0.2",
        "+temperature = 0.7",
        "+top_p = 1",
    ]
    many = cassette.missing(asked("One?", **{f"field{n}": n for n in range(30)}))
    assert len(many.diff.split("\n")) == 20


def test_another_image_or_another_talk_before_is_told(path: Path) -> None:
    def look(total: str) -> Fingerprint:
        image = {"type": "image_url", "image_url": {"url": f"sha256:{total}"}}
        return asked([{"type": "text", "text": "What is this? "}, image])

    def talk(first: str) -> Fingerprint:
        messages = [{"role": "user", "content": first}, {"role": "user", "content": "And then?"}]
        return sign({"model": "gpt-5-mini", "messages": messages}, URL)

    cassette = Cassette(path)
    cassette.record(look("00"), answer("A cat."))
    cassette.record(talk("One."), answer("Two."))

    assert "The same prompt is recorded with images [" in str(cassette.missing(look("11")))
    assert 'recorded with earlier messages "One." (asked: "Two.").' in str(
        cassette.missing(talk("Two."))
    )
    assert 'recorded with earlier messages "One." (asked: "And then?").' in str(
        cassette.missing(talk("And then?"))
    )


def test_a_request_without_a_model_does_not_differ_by_it(path: Path) -> None:
    cassette = Cassette(path)
    cassette.record(asked("One?", temperature=0.2), answer("Yes."))

    error = cassette.missing(asked("One?", model=""))

    assert str(error).splitlines()[1] == (
        "The same prompt is recorded with temperature 0.2 (asked: not set)."
    )
    assert error.model is None


def test_a_request_that_differs_in_form_alone_is_told(path: Path) -> None:
    cassette = filled(path, "One?")

    error = cassette.missing(asked([{"type": "text", "text": "One?"}]))

    assert str(error).splitlines()[1:] == [
        "The same prompt is recorded in a request of another form.",
        FIX,
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.text(max_size=300), st.text(max_size=300))
def test_a_missing_answer_is_told_in_few_lines(
    tmp_path_factory: pytest.TempPathFactory, recorded: str, now: str
) -> None:
    cassette = filled(tmp_path_factory.mktemp("few") / "answers.jsonl", recorded)

    error: LLMError = cassette.missing(asked(now, temperature=0))

    lines = str(error).split("\n")
    assert 3 <= len(lines) <= 5
    assert lines[-1] == FIX
    assert all(len(line) <= 250 for line in lines)


def test_it_needs_nothing_that_is_slow_to_import(path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "import llm_magic.cassette\n"
        "slow = {'IPython', 'openai', 'pydantic', 'genai_prices', 'asyncio', 'diskcache'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )

    assert ended(run(code, path)) == (0, "")
