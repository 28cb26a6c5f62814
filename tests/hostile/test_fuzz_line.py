"""Any text behind a magic's name, in a real shell: it works, or one error says why not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_magic.background import Pending
from llm_magic.errors import InvalidAnswer, LLMError, PromptError, QuotaExceeded
from llm_magic.testing import ScriptedServer
from tests.conftest import Terminal
from tests.hostile.fuzz import check_message, check_no_key, fuzz, not_hung

OPTIONS = [
    *["-m", "--model", "--compare", "-s", "--system", "-i", "--image", "--raw", "-t"],
    *["--temperature", "--max-tokens", "--seed", "--effort", "--param", "-c", "--chat", "-o"],
    *["--out", "--schema", "--repairs", "--code", "--fresh", "--no-cache", "--max-cost"],
    *["--dry-run", "--bg", "--quiet", "--no-stream", "--sample", "--concurrency", "--help", "-h"],
]
VALUES = [
    *["m", "a,b", ",", "0", "-1", "1e400", "nan", "inf", "9" * 30, "9" * 5000, "0x10", "½", "٣"],
    *["high", "loud", "top_p=0.5", "stop=[1", "x={}", "=", "stream=true", "user=NaN", "a=1e999"],
    *["list[int]", "dict[str,", "int | None", "]", "Literal['a", "unknown", "text", "rows", "name"],
    *[
        "x.png",
        "no such file",
        "../..",
        "\\",
        "/",
        "~",
        "$0.01",
        "$",
        "name <<",
        "1x <<",
        "<<",
        "--",
    ],
    *["class", "a-b", "é", "{{ text }}", "{{", "{% if %}", "%llm", "?", "a\tb", "\u2028", "\ufeff"],
    *["'", '"', "'a", '"a\\"', "''", '""', "a'b", "\\'", '"a b"', "'a\"b'", "\x00", "a\x00b"],
]
WORDS = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(VALUES),
    st.sampled_from(OPTIONS).flatmap(lambda option: st.integers(1, 9).map(lambda n: option[:n])),
    st.tuples(st.sampled_from(OPTIONS), st.sampled_from(VALUES)).map("=".join),
    st.text(st.characters(codec="utf-8"), max_size=5),
)
BLANKS = st.sampled_from([" ", " ", " ", "  ", "\t", "", "\u00a0", "\r", "\x0b"])


@st.composite
def lines(draw: st.DrawFn, *first: str) -> str:
    """A line of words as somebody may type them, or paste half of them."""
    words = list(first) + draw(st.lists(WORDS, max_size=6))
    line = "".join(word + draw(BLANKS) for word in words)
    if draw(st.integers(0, 4)) == 0:
        line = line[: draw(st.integers(0, len(line)))]
    return line


BODIES = st.sampled_from(["Two?", "\n", " ", "{{ text }}", "{{ nothing }}", "{%", "\ud800", "\x00"])


def check(terminal: Terminal, server: ScriptedServer, name: str, line: str, cell: Any) -> None:
    """Runs the magic, and looks that a line that is refused has sent nothing."""
    shell, sent = terminal.shell, len(server.requests)
    for each in ("name", "a", "answer"):
        shell.user_ns.pop(each, None)
    refused: LLMError | None = None
    with not_hung():
        try:
            if cell is None:
                value = shell.run_line_magic(name, line)
            else:
                value = shell.run_cell_magic(name, line, cell)
            if isinstance(value, Pending):
                value.result()
        except LLMError as error:
            refused = error
    if refused:
        check_refusal(refused, server, sent)


def check_refusal(error: BaseException, server: ScriptedServer, sent: int) -> None:
    """A line that is refused has sent nothing; an answer may not fit its type."""
    assert isinstance(error, PromptError | QuotaExceeded | InvalidAnswer), repr(error)
    check_message(error)
    check_no_key(error)
    assert isinstance(error, InvalidAnswer) or len(server.requests) == sent


@pytest.fixture
def table(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal with a text and a table."""
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    terminal["text"] = "Some text."
    terminal["rows"] = pd.DataFrame({"text": ["one"]})
    return terminal


@fuzz(60)
@given(line=lines(), cell=BODIES)
def test_any_line_of_a_cell_works_or_is_refused(
    table: Terminal, server: ScriptedServer, line: str, cell: str
) -> None:
    check(table, server, "llm", line, cell)


@fuzz(60)
@given(line=lines())
def test_any_line_with_its_prompt_works_or_is_refused(
    table: Terminal, server: ScriptedServer, line: str
) -> None:
    check(table, server, "llm", line, None)


@fuzz(40)
@given(
    line=st.one_of(lines("rows"), lines("rows", "name", "<<"), lines("rows[:0]"), lines()),
    cell=BODIES,
)
def test_any_line_of_a_table_works_or_is_refused(
    table: Terminal, server: ScriptedServer, line: str, cell: str
) -> None:
    check(table, server, "llm_map", line, cell)


# What ends a line of Python would make the rest of it code of its own.
ONE_LINE = lines().map(lambda line: "".join(line.splitlines()).replace("\x00", ""))


@fuzz(60)
@given(line=ONE_LINE)
def test_any_typed_cell_shows_no_traceback(
    table: Terminal, server: ScriptedServer, line: str
) -> None:
    """As typed: through the shell's own reading of ``?``, ``!`` and ``%``."""
    sent = len(server.requests)

    with not_hung():
        ran = table.run(f"%llm {line}")
        if isinstance(ran.value, Pending):
            with suppress(InvalidAnswer):
                ran.value.result()

    assert "Traceback" not in ran.out
    if ran.error is not None:
        check_refusal(ran.error, server, sent)


ADMIN = st.sampled_from(
    ["llm_quota", "llm_usage", "llm_cache", "llm_models", "llm_chat", "llm_fix"]
)
SUBJECTS = ["stats", "list", "prune", "--requests", "--tokens", "--usd", "--per", "--scope", "--by"]


@fuzz(60)
@given(name=ADMIN, words=st.lists(WORDS | st.sampled_from(SUBJECTS), max_size=4))
def test_any_line_of_another_magic_works_or_is_refused(
    table: Terminal, server: ScriptedServer, name: str, words: list[str]
) -> None:
    sent = len(server.requests)

    with not_hung():
        try:
            table.shell.run_line_magic(name, " ".join(words))
        except LLMError as error:
            check_message(error)

    assert len(server.requests) == sent
