"""Mistyped %%llm_map cells: what was meant is named, and nothing is sent."""

from typing import Any

import pandas as pd
import pytest

from llm_magic.errors import PromptError
from llm_magic.testing import ScriptedServer
from tests.conftest import Terminal, plain


@pytest.fixture
def reviews(terminal: Terminal) -> Terminal:
    """A terminal with a small table."""
    terminal.run("import llm_magic")
    terminal["reviews"] = pd.DataFrame({"text": ["good", None], "shop no": [1, 2]})
    return terminal


def refused(terminal: Terminal, server: ScriptedServer, cell: str) -> str:
    """The error of a cell, which sent nothing and bound nothing."""
    ran = terminal.run(cell)
    assert isinstance(ran.error, PromptError), ran.out
    assert server.requests == []
    assert "results" not in terminal.shell.user_ns
    return plain(ran.out)


@pytest.mark.parametrize("option", ["", "--dry-run", "--quiet"])
@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("{{ txet }}", "{{ text }}"),
        ("{{ row.txet }}", "{{ text }}"),
        ('{{ row["shopno"] }}', '{{ row["shop no"] }}'),
    ],
)
def test_a_misspelt_column_ends_the_run_and_names_the_nearest(
    named: str, meant: str, option: str, reviews: Terminal, server: ScriptedServer
) -> None:
    said = refused(reviews, server, f"%%llm_map reviews results << {option}\nRead: {named}")

    assert "nothing was sent" in said
    assert f"Did you mean {meant}?" in said


def test_a_missing_cell_is_put_in_as_nothing(reviews: Terminal, server: ScriptedServer) -> None:
    reviews.run(
        "%%llm_map reviews results <<\nRead {{ row['shop no'] }}: {{ text }}|{{ row.text }}"
    )

    prompts = {request.body["messages"][-1]["content"] for request in server.requests}
    assert prompts == {"Read 1: good|good", "Read 2: |"}


def test_a_row_without_a_prompt_fails_alone(reviews: Terminal, server: ScriptedServer) -> None:
    reviews.run("%%llm_map reviews results <<\n{{ text }}")

    results: Any = reviews["results"]
    assert results._error.isna().tolist() == [True, False]
    assert results._error[1] == "The prompt is empty; nothing was sent."
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("reviews results << --shcema str", "Did you mean --schema? See the options: %%llm_map?"),
        ("reviews results << --sample many", "See the options: %%llm_map?"),
        ("reviews results << --schema", "See the options: %%llm_map?"),
        ("reviews results << --quiet=1", "See the options: %%llm_map?"),
        ("", "%%llm_map needs a FRAME, which comes first; nothing was sent.\n%%llm_map FRAME\n"),
        ("results <<", "%%llm_map FRAME results <<\n"),
        ("reviewz results <<", "Did you mean reviews?"),
        ("reviews results << Hello", "The prompt goes below the line."),
        ("reviews results", "go to a name with <<: %%llm_map reviews results <<"),
        ("reviews results = --schema str", "go to a name with <<: %%llm_map reviews results <<"),
        ("reviews .head(1)", "The prompt goes below the line."),
        ("reviews results << --schema Reviewz", "there is no Reviewz in the notebook"),
        ("reviews results << --max-cost lots", "Write it as 0.05 or $0.05"),
        ("reviews results << --concurrency many", "Give a number from 1 on"),
        ("reviews results << --sample 0", "sample=0 is no number of rows"),
        ("reviews.txt results <<", "has no attribute 'txt'"),
        ("[1, 2] results <<", "Row 0 is 1, which has no columns"),
        ('{"text": "a"} results <<', "One row goes into a list"),
        ('"*.txt" results <<', "No file matches '*.txt'"),
    ],
)
def test_a_mistake_on_the_line_is_named_with_what_to_write(
    line: str, said: str, reviews: Terminal, server: ScriptedServer
) -> None:
    assert said in refused(reviews, server, f"%%llm_map {line}\nRead: {{{{ text }}}}")


def test_a_broken_template_names_its_line(reviews: Terminal, server: ScriptedServer) -> None:
    said = refused(reviews, server, "%%llm_map reviews results <<\nRead this:\n{{ text")

    assert "Line 2 of the prompt is no valid template" in said


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("Read: {text}", "{{ text }}"),
        ("Read: {shop no}", '{{ row["shop no"] }}'),
        ("Read it.", "{{ text }}"),
        ("Read: {{ rate }}", "{{ text }}"),
    ],
)
def test_a_prompt_that_is_the_same_for_all_rows_is_refused(
    prompt: str, meant: str, reviews: Terminal, server: ScriptedServer
) -> None:
    """Single braces, as in an f-string, would have every row answered with one and the same."""
    reviews["rate"] = 1
    said = refused(reviews, server, f"%%llm_map reviews results <<\n{prompt}")

    assert "takes no column of a row (text, shop no)" in said
    assert f"Name one in double braces: {meant}." in said


@pytest.mark.parametrize(
    "prompt", ["{{ row }}", "{% for name in row %}{{ row[name] }}{% endfor %}", "{{ told(row) }}"]
)
def test_a_prompt_may_take_the_row_as_a_whole(
    prompt: str, reviews: Terminal, server: ScriptedServer
) -> None:
    reviews["told"] = str
    reviews.run(f"%%llm_map reviews results <<\n{prompt}")

    assert len(server.requests) == 2


def test_an_empty_prompt_is_no_fault_of_the_rows(reviews: Terminal, server: ScriptedServer) -> None:
    said = refused(reviews, server, "results = llm_magic.map_rows(reviews, ' ')")

    assert "{{ text }}" in said


def test_an_amount_that_is_none_is_refused(reviews: Terminal, server: ScriptedServer) -> None:
    call = "llm_magic.map_rows(reviews, '{{ text }}', max_cost='lots')"

    assert "'lots' is no amount in USD" in refused(reviews, server, f"results = {call}")


def test_names_of_ipython_are_not_meant(reviews: Terminal, server: ScriptedServer) -> None:
    reviews.run("reviews")
    said = refused(reviews, server, "%%llm_map x results <<\n{{ text }}")

    assert "Did you mean reviews?" in said


def test_a_table_above_the_quota_is_told_what_would_be_enough(
    terminal: Terminal, server: ScriptedServer
) -> None:
    """Doubled, as for a cell, the limit would only be met again."""
    terminal["rows"] = pd.DataFrame({"text": [f"row {n}" for n in range(300)]})
    ran = terminal.run("%%llm_map rows results <<\n{{ text }}")

    said, limit, rest = plain(ran.out).strip().splitlines()[-3:]
    assert "Stopped at 50 of 300 rows: This kernel has used 50 of 50 requests" in said
    assert "%llm_quota --requests 330 --per 1h" in limit
    assert "run the cell again" in rest
    assert len(server.requests) == 50
    assert terminal["results"]._error.notna().sum() == 250


def test_a_key_that_a_dict_of_the_notebook_has_not_fails_its_row_alone(
    reviews: Terminal, server: ScriptedServer
) -> None:
    reviews["shops"] = {1: "North"}
    reviews.run("%%llm_map reviews results <<\n{{ shops[row['shop no']] }}")

    assert (
        reviews["results"]._error[1] == "The prompt uses [2], and dict has none; nothing was sent."
    )
    assert len(server.requests) == 1


@pytest.mark.parametrize("option", ["", "--dry-run"])
def test_a_quota_that_is_too_small_is_told_before(option: str, terminal: Terminal) -> None:
    terminal["rows"] = pd.DataFrame({"text": [f"row {n}" for n in range(60)]})
    ran = terminal.run(f"%%llm_map rows results << {option}\n{{{{ text }}}}")
    said = plain(repr(ran.value) if option else ran.out)

    assert "%llm_quota leaves 50 requests for 60 rows" in said


def test_a_quota_that_is_enough_is_not_told(reviews: Terminal) -> None:
    assert "%llm_quota" not in reviews.run("%%llm_map reviews results <<\n{{ text }}").out
