"""Tables and cassettes: rows are recorded beside a notebook, and replayed without a key."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import Terminal, plain

TEXTS = ["kettle", "toaster", "kettle", "blender"]
CELL = "%%llm_map rows results <<\nWhat is a {{ text }}?"
ANSWERS = {"kettle": "It boils.", "toaster": "It toasts.", "blender": "It blends."}


@pytest.fixture
def server() -> Any:
    with ScriptedServer(ANSWERS) as running:
        yield running


@pytest.fixture
def rows(terminal: Terminal) -> Terminal:
    terminal["rows"] = pd.DataFrame({"text": TEXTS})
    return terminal


def recorded() -> list[str]:
    """The prompts in the cassette."""
    lines = Path("answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["request"]["body"]["messages"][-1]["content"] for line in lines]


def replay(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another machine: no key, nothing may be asked."""
    monkeypatch.delenv("OPENAI_API_KEY")
    terminal.run("%config LLMMagic.mode = 'replay'")


@pytest.mark.parametrize("option", ["", "--record"])
def test_each_distinct_row_is_recorded(option: str, rows: Terminal) -> None:
    rows.run(f"%llm_cassette answers.jsonl {option}")
    rows.run(CELL)

    assert sorted(recorded()) == [f"What is a {each}?" for each in ("blender", "kettle", "toaster")]


@pytest.mark.usefixtures("keeping")
def test_rows_out_of_the_cache_are_recorded_as_well(rows: Terminal, server: ScriptedServer) -> None:
    rows.run(CELL)
    rows.run("%llm_cassette answers.jsonl --record")
    rows.run(CELL)

    assert len(server.requests) == len(recorded()) == 3


@pytest.mark.parametrize("option", ["", "--record"])
def test_a_recorded_table_is_replayed_without_asking(
    option: str, rows: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.run(f"%llm_cassette answers.jsonl {option}")
    rows.run(CELL)
    before = rows["results"].answer.tolist()
    server.reset()
    replay(rows, monkeypatch)
    ran = rows.run(CELL)

    assert ran.error is None
    assert rows["results"].answer.tolist() == before == [ANSWERS[each] for each in TEXTS]
    assert rows["results"]._error.isna().all()
    assert server.requests == []


def test_replay_finds_the_model_of_a_server_that_names_none(
    rows: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded by its only model; in replay mode it cannot be asked for that."""
    rows.run("%llm_cassette answers.jsonl")
    rows.run(CELL)
    replay(rows, monkeypatch)
    with server.refusing():
        rows.run(CELL)

    assert rows["results"]._cached.all()


def test_a_row_that_is_not_recorded_fails_alone_when_replaying(
    rows: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.run("%llm_cassette answers.jsonl")
    rows.run(CELL)
    server.reset()
    replay(rows, monkeypatch)
    rows["rows"] = pd.DataFrame({"text": ["kettle", "mixer"]})
    rows.run(CELL)

    results = rows["results"]
    assert results.answer[0] == "It boils."
    assert "no recorded answer to 'What is a mixer?'" in results._error[1]
    assert server.requests == []


def test_without_a_cassette_replay_asks_nothing(
    rows: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay(rows, monkeypatch)
    rows.run(CELL)

    assert server.requests == []
    assert rows["results"]._error.str.contains("mode is replay").all()


@pytest.mark.parametrize("option", ["", "--record"])
def test_a_dry_run_when_replaying_counts_what_is_recorded(
    option: str, rows: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.run(f"%llm_cassette answers.jsonl {option}")
    rows.run(CELL)
    replay(rows, monkeypatch)

    plan = rows.run(CELL.replace("results <<", "--dry-run")).value.plan
    assert (plan.rows, plan.equal, plan.cached, plan.to_ask) == (4, 1, 3, 0)


def test_rows_that_were_replayed_are_used_and_stay(
    rows: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.run("%llm_cassette answers.jsonl")
    rows.run(CELL)
    rows.run("%llm_cassette off")
    replay(rows, monkeypatch)
    rows["rows"] = rows["rows"].head(2)
    rows.run("%llm_cassette answers.jsonl")
    rows.run(CELL)
    rows.run("%llm_cassette prune")

    assert sorted(recorded()) == ["What is a kettle?", "What is a toaster?"]


def test_a_failed_row_is_not_recorded(rows: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply(refusal="No."))
    rows.run("%llm_cassette answers.jsonl")
    rows.run(CELL.replace("<<", "<< --concurrency 1"))

    assert rows["results"]._error.notna().sum() == 2
    assert len(recorded()) == 2


def test_the_first_rows_are_shown_in_their_order_and_not_as_they_come(
    terminal: Terminal, server: ScriptedServer
) -> None:
    """What a notebook saves must not differ from run to run."""
    terminal["rows"] = pd.DataFrame({"id": range(8), "text": [f"text {n} " * 3 for n in range(8)]})
    late = Reply("Late.", delay=0.2)
    answers = {f"text {n} ": late if n % 2 else "Early." for n in range(8)}
    with ScriptedServer(answers) as other:
        terminal.run(f"%config LLMMagic.base_url = {other.url!r}")
        said = plain(terminal.run("%%llm_map rows results <<\n{{ text }} {{ id }}").out)

    places = [said.index(f"text {n} ") for n in range(5)]
    assert places == sorted(places)
    assert "text 5 " not in said
