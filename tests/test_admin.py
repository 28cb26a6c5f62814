"""%llm_cache and the tables: in a terminal, and as HTML."""

import re
from pathlib import Path

import pytest

import llm_magic
from llm_magic.errors import PromptError
from llm_magic.testing import ScriptedServer
from llm_magic.views.tables import Table, bar
from tests.conftest import KEY, Kernel, Terminal

pytestmark = pytest.mark.usefixtures("keeping")


def test_stats_say_how_much_and_where(terminal: Terminal) -> None:
    empty = terminal.run("%llm_cache").out
    terminal.run("%llm -m m Hello")
    terminal.run("%llm -m m Other")
    stats = terminal.run("%llm_cache stats").out

    assert re.search(r"^ *0 ", empty, re.MULTILINE)
    assert re.search(r"^ *2 .*kB.*GB.* 0 %", stats, re.MULTILINE)
    assert str(Path("cache").absolute()) in stats


def test_list_shows_what_was_used_last_first(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm -m m First question")
    terminal.run("%llm -m m Second question")
    terminal.run("%llm -m m First question")
    lines = terminal.run("%llm_cache list").out.splitlines()
    prompts = [line.split("  ")[0] for line in lines if "question" in line]

    assert prompts == ["First question", "Second question"]
    assert len(server.requests) == 2


def test_a_long_prompt_is_cut_in_the_list(terminal: Terminal) -> None:
    terminal.run("%llm -m m " + "word " * 100)
    listed = terminal.run("%llm_cache list").out

    assert "word word" in listed
    assert "…" in listed
    assert max(map(len, listed.splitlines())) < 130


def test_clear_forgets_everything(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm -m m Hello")
    said = terminal.run("%llm_cache clear").out
    again = terminal.run("%llm -m m Hello").value

    assert "1 answer removed" in said
    assert not again.cached
    assert len(server.requests) == 2


def test_prune_forgets_what_was_not_used(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm -m m Hello")
    kept = terminal.run("%llm_cache prune").out
    gone = terminal.run("%llm_cache prune --unused 0s").out

    assert "0 answers removed" in kept
    assert "1 answer removed" in gone


def test_from_python(terminal: Terminal) -> None:
    llm_magic.ask("Hello", model="m")
    cache = llm_magic.cache()

    assert "Hello" in repr(cache.list())
    assert "answers" in repr(cache)
    assert "<table>" in cache._repr_html_()
    assert "0 answers" in repr(cache.prune("1d"))
    assert "1 answer " in repr(cache.clear())
    with pytest.raises(PromptError):
        cache.prune("soon")


@pytest.mark.parametrize("line", ["stat", "prune --unused soon", "clear all", "--clear"])
def test_a_wrong_word_does_nothing(line: str, terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm -m m Hello")
    ran = terminal.run(f"%llm_cache {line}")

    assert type(ran.error) is PromptError
    assert len(ran.error._render_traceback_()) <= 3
    assert terminal.run("%llm -m m Hello").value.cached


@pytest.mark.parametrize(
    "magic", ["llm_quota", "llm_usage", "llm_cache", "llm_cassette", "llm_models"]
)
def test_each_explains_itself(magic: str, terminal: Terminal) -> None:
    terminal.run(f"%{magic}?")
    parser = getattr(terminal.shell.magics_manager.registry["AdminMagics"], magic).parser

    assert all(action.help for action in parser._actions)
    assert terminal.run(f"%{magic}").error is None


TABLE = Table(
    ("name", " amount"),
    [("<b>bold</b>", "$1"), ("a $ and a $", "$10"), ("\x1b[31mred", "$11")],
    title="A <title>",
    note="First line.\nSecond line.",
    total=True,
)


def test_a_table_as_text() -> None:
    assert repr(TABLE).splitlines() == [
        "A <title>",
        "name         amount",
        "───────────  ──────",
        "<b>bold</b>      $1",
        "a $ and a $     $10",
        "───────────  ──────",
        "[31mred         $11",
        "First line.",
        "Second line.",
    ]


def test_a_table_as_html_is_escaped_and_holds_no_formula() -> None:
    shown = TABLE._repr_html_()

    assert "&lt;b&gt;bold&lt;/b&gt;" in shown
    assert "<b>" not in shown
    assert "A &lt;title&gt;" in shown
    assert "$ and" not in shown
    assert shown.count("<tr>") == 4
    assert "text-align:right" in shown


def test_a_table_without_rows_is_its_note() -> None:
    empty = Table((), (), note="Nothing here.")

    assert repr(empty) == "Nothing here."
    assert empty._repr_html_() == "<p><small>Nothing here.</small></p>"


@pytest.mark.parametrize(
    ("used", "cap", "expected"),
    [
        (0, 10, "░" * 20 + " 0 %"),
        (5, 10, "█" * 10 + "░" * 10 + " 50 %"),
        (10, 10, "█" * 20 + " 100 %"),
        (30, 10, "█" * 20 + " 100 %"),
        (0, 0, "█" * 20 + " 100 %"),
    ],
)
def test_bar(used: float, cap: float, expected: str) -> None:
    assert bar(used, cap) == expected


@pytest.mark.kernel
def test_tables_are_html_in_a_notebook(server: ScriptedServer) -> None:
    environment = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
    kernel = Kernel(watched=True, environment=environment)
    try:
        kernel.run("%load_ext llm_magic")
        kernel.run("%llm -m m Hello")
        for cell in ("%llm_quota --usd 1", "%llm_usage", "%llm_cache", "llm = %llm_usage\nllm"):
            (shown,) = kernel.run(cell).of("execute_result")
            assert "<table>" in shown["data"]["text/html"]
            assert "──" in shown["data"]["text/plain"]
    finally:
        kernel.stop()
