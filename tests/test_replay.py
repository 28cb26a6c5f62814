"""Cassettes: answers that travel with a notebook, and runs that ask nobody."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llm_magic.errors import PromptError, ReplayMissing, StoreError
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, Terminal, end_session

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "01_quickstart.ipynb"
TAPE = Path("answers.jsonl")

# In every process of a replayed run: openai cannot be imported, and no address can be reached but
# those on which a kernel and its client talk to each other.
NO_WAY_OUT = """
import sys

class NoOpenAI:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("openai", "httpx", "httpx2"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, NoOpenAI())

def refuse(event, arguments):
    if event == "socket.getaddrinfo" or (
        event == "socket.connect" and isinstance(arguments[1], tuple)
        and "llm_magic" in str(sys._getframe(1).f_globals.get("__name__"))
    ):
        raise PermissionError(f"no network: {arguments}")

sys.addaudithook(refuse)
"""


def tape() -> list[dict[str, object]]:
    return [json.loads(line) for line in TAPE.read_text(encoding="utf-8").splitlines()]


def restart(terminal: Terminal) -> None:
    end_session()
    terminal.run("%load_ext llm_magic")


@pytest.fixture
def recorded(terminal: Terminal, server: ScriptedServer) -> Terminal:
    """A terminal that has asked two things with a cassette in."""
    server.enqueue("Paris.", "Rome.")
    terminal.run("%llm_cassette answers.jsonl")
    terminal.run("%llm -m m What is the capital of France?")
    terminal.run("%llm -m m What is the capital of Italy?")
    server.reset()
    return terminal


def test_what_is_asked_is_recorded_and_answers_from_then_on(
    recorded: Terminal, server: ScriptedServer
) -> None:
    before = TAPE.read_bytes()
    assert len(tape()) == 2
    restart(recorded)
    assert recorded.run("%llm_cassette answers.jsonl").out == ""
    again = recorded.run("%llm -m m What is the capital of France?")

    assert server.requests == []
    assert (again.value.text, again.value.cached, again.value.age) == ("Paris.", True, None)
    assert "· recorded" in again.out
    assert TAPE.read_bytes() == before


def test_nothing_of_the_machine_the_moment_or_the_key_is_on_it(recorded: Terminal) -> None:
    text = TAPE.read_text(encoding="utf-8")

    assert KEY not in text
    assert str(Path.cwd()) not in text
    assert os.environ["HOME"] not in text
    assert not {"time", "seconds", "age"} & {name for line in tape() for name in line["response"]}
    assert text.splitlines() == sorted(text.splitlines())


def test_recording_again_in_another_order_gives_the_same_bytes(
    recorded: Terminal, server: ScriptedServer
) -> None:
    before = TAPE.read_bytes()
    TAPE.unlink()
    restart(recorded)
    server.enqueue("Rome.", "Paris.")
    recorded.run("%llm_cassette answers.jsonl")
    recorded.run("%llm -m m What is the capital of Italy?")
    recorded.run("%llm -m m What is the capital of France?")

    assert TAPE.read_bytes() == before


def test_what_the_cache_knew_is_recorded_too(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    terminal.run("%llm -m m Hello")
    terminal.run("%llm_cassette answers.jsonl")
    terminal.run("%llm -m m Hello")

    assert len(server.requests) == 1
    assert len(tape()) == 1


@pytest.mark.parametrize("name", ["cut", "finish_length", "refusal", "stall", "html_200"])
def test_only_whole_answers_are_recorded(
    name: str, terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_STALL_TIMEOUT", "1.5")
    server.enqueue(FAULTS[name])
    terminal.run("%llm_cassette answers.jsonl")
    assert terminal.run("%llm -m m Hello").error

    assert not TAPE.exists()


def test_record_takes_down_and_does_not_answer(recorded: Terminal, server: ScriptedServer) -> None:
    server.enqueue("Lyon.")
    recorded.run("%llm_cassette answers.jsonl --record")
    ran = recorded.run("%llm -m m What is the capital of France?")

    assert ran.value.text == "Lyon."
    assert len(tape()) == 2
    assert "Lyon." in TAPE.read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["option", "environment", "setting"])
def test_replay_asks_nobody(
    how: str, recorded: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart(recorded)
    # Neither a key nor a server is needed.
    monkeypatch.delenv("OPENAI_API_KEY")
    if how == "environment":
        monkeypatch.setenv("LLM_MAGIC_MODE", "replay")
    if how == "setting":
        recorded.run("%config LLMMagic.mode = 'replay'")
    recorded.run("%llm_cassette answers.jsonl" + " --replay" * (how == "option"))
    with server.refusing():
        found = recorded.run("%llm -m m What is the capital of Italy?")
        fresh = recorded.run("%llm -m m --fresh What is the capital of Italy?")
        missing = recorded.run("%llm -m m What is the capital of Spain?")

    assert found.value.text == fresh.value.text == "Rome."
    assert type(missing.error) is ReplayMissing
    assert "Spain" in missing.error.prompt
    assert "capital of" in missing.error.nearest
    assert "-" in missing.error.diff
    assert "+What is the capital of Spain?" in missing.error.diff
    assert "What is the capital of Spain?" in missing.out
    assert len(missing.error._render_traceback_()) <= 6


def test_replay_needs_no_model_named(recorded: Terminal) -> None:
    recorded.run("%llm_cassette answers.jsonl --replay")

    assert recorded.run("%llm What is the capital of Italy?").value.text == "Rome."
    assert type(recorded.run("%llm What is the capital of Peru?").error) is ReplayMissing


def test_replay_with_another_setting_names_it(recorded: Terminal) -> None:
    recorded.run("%llm_cassette answers.jsonl --replay")
    missing = recorded.run("%llm -m m -t 0 What is the capital of Italy?")

    assert type(missing.error) is ReplayMissing
    assert "temperature" in missing.out


def test_replay_does_not_look_into_the_cache(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    """What is answered here must be answered on a machine without this cache."""
    terminal.run("%llm_cassette answers.jsonl")
    terminal.run("%llm -m m One")
    terminal.run("%llm_cassette off")
    terminal.run("%llm -m m Two")
    terminal.run("%llm_cassette answers.jsonl --replay")

    assert terminal.run("%llm -m m One").error is None
    assert type(terminal.run("%llm -m m Two").error) is ReplayMissing
    assert len(server.requests) == 2


def test_replay_without_a_cassette_answers_from_the_cache(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    terminal.run("%llm -m m One")
    terminal.run("%config LLMMagic.mode = 'replay'")

    assert terminal.run("%llm -m m One").value.cached
    missing = terminal.run("%llm -m m Two")
    assert type(missing.error) is ReplayMissing
    assert "%llm_cassette" in missing.out
    assert len(server.requests) == 1


def test_status_and_prune(recorded: Terminal, server: ScriptedServer) -> None:
    restart(recorded)
    recorded.run("%llm_cassette answers.jsonl")
    recorded.run("%llm -m m What is the capital of Italy?")
    status = recorded.run("%llm_cassette status").out
    dropped = recorded.run("%llm_cassette prune").out

    assert [line.split()[-1] for line in status.splitlines() if "capital" in line] == [
        "stale",
        "used",
    ]
    assert "1 answer dropped" in dropped
    assert len(tape()) == 1
    assert "Rome." in TAPE.read_text(encoding="utf-8")


def test_status_without_a_cassette_says_how_to_put_one_in(terminal: Terminal) -> None:
    assert "%llm_cassette answers.jsonl" in terminal.run("%llm_cassette").out
    assert "No cassette is in" in terminal.run("%llm_cassette prune").out


def test_off_takes_it_out(recorded: Terminal, server: ScriptedServer) -> None:
    recorded.run("%llm_cassette off")
    recorded.run("%llm -m m What is the capital of Italy?")

    assert len(server.requests) == 1
    assert len(tape()) == 2


def test_a_cassette_to_replay_must_be_there(terminal: Terminal) -> None:
    ran = terminal.run("%llm_cassette nowhere.jsonl --replay")

    assert type(ran.error) is StoreError
    assert "nowhere.jsonl" in ran.out


def test_a_broken_cassette_is_named_with_its_line(recorded: Terminal) -> None:
    with TAPE.open("a", encoding="utf-8") as file:
        file.write("<<<<<<< HEAD\n")
    ran = recorded.run("%llm_cassette answers.jsonl")

    assert type(ran.error) is StoreError
    assert "line 3" in ran.out
    assert "<<<<<<< HEAD" in TAPE.read_text(encoding="utf-8")


def test_record_and_replay_exclude_each_other(recorded: Terminal) -> None:
    ran = recorded.run("%llm_cassette answers.jsonl --record --replay")

    assert type(ran.error) is PromptError


def test_a_cassette_that_cannot_be_written_does_not_cost_the_answer(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    folder = Path("tapes")
    folder.mkdir()
    assert terminal.run("%llm_cassette tapes/answers.jsonl").error is None
    server.enqueue(Reply("Paid for. " * 10, tokens_per_second=50))

    def take_away() -> None:
        server.wait_for_requests(1)
        folder.rmdir()
        folder.write_text("no folder any more")

    thief = threading.Thread(target=take_away)
    thief.start()
    with pytest.warns(match="answers.jsonl.* not recorded"):
        ran = terminal.run("%llm -m m Hello")
    thief.join()

    assert ran.error is None
    assert ran.value.text == "Paid for. " * 10
    # Before anything is asked, a cassette that cannot be read is an error: it may know the answer.
    assert type(terminal.run("%llm -m m Hello").error) is StoreError


def test_the_quickstart_passes_nbval_with_no_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("01_quickstart.ipynb", "01_quickstart.jsonl"):
        shutil.copy(NOTEBOOK.parent / name, folder)
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(NO_WAY_OUT)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--nbval", str(folder / "01_quickstart.ipynb")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(guard), "LLM_MAGIC_MODE": "replay"},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
