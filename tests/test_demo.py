"""The demo model and the notebook in the terminal: what `make demo` does."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_magic import demo
from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import KEY, Terminal

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "01_quickstart.ipynb"


@pytest.fixture(autouse=True)
def no_server_is_left() -> object:
    yield
    if demo._server:
        demo._server.stop()
        demo._server = None


def test_demo_model_says_that_it_is_one(bare_terminal: Terminal) -> None:
    bare_terminal.run("%load_ext llm_magic")

    said = bare_terminal.run("from llm_magic.demo import use_demo_model; use_demo_model()").out
    known = bare_terminal.run("%llm In one word: which column?")
    unknown = bare_terminal.run("%llm Who are you?")

    assert "the answers come from the demo model, a script" in said
    assert known.value.text == "returned"
    assert "not a language model" in unknown.value.text
    assert unknown.value.model == "demo-model"
    # A second call, as when a cell is run again, changes nothing.
    assert bare_terminal.run("use_demo_model()").out == said


def test_with_a_key_the_notebook_is_live(
    bare_terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    bare_terminal.run("%load_ext llm_magic")

    said = bare_terminal.run("from llm_magic.demo import use_demo_model; use_demo_model()").out
    bare_terminal.run("%llm Hello")

    assert said.startswith("Live")
    assert len(server.requests) == 1


def test_the_demo_model_knows_every_prompt_of_the_notebook() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    prompts = [each for each in sources if each.startswith("%%llm") and "--dry-run" not in each]

    assert len(prompts) == 4
    for prompt in prompts:
        assert [words for words in demo._ANSWERS if words in prompt], prompt


def test_the_notebook_runs_in_the_terminal(tmp_path: Path) -> None:
    """As `make demo` runs it: a process of its own, no key."""
    copy = shutil.copy(NOTEBOOK, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "llm_magic.demo", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "In [2]: %%llm" in done.stdout
    prose = [demo._ANSWERS[words] for words in ("p-value", "unusual", "one word")]
    for answer in prose:
        assert answer.strip() in done.stdout
    assert "Nothing was sent." in done.stdout


def test_the_notebook_on_tables_runs_in_the_terminal(tmp_path: Path) -> None:
    """Every row has an answer of the demo model, and its two models do not quite agree."""
    copy = shutil.copy(NOTEBOOK.with_name("03_tables.ipynb"), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "llm_magic.demo", str(copy)],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "IPYTHONDIR": str(tmp_path), "MPLBACKEND": "agg"},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 rows: 15 asked, 1 equal" in done.stdout
    assert "81% agreed" in done.stdout
    assert "not a language model" not in done.stdout


def test_run_twice_it_asks_only_the_first_time(tmp_path: Path, server: ScriptedServer) -> None:
    """A process each, as after a restart; a server that counts, in the place of the demo's."""
    copy = shutil.copy(NOTEBOOK, tmp_path)
    environment = {
        **os.environ,
        "IPYTHONDIR": str(tmp_path),
        "LLM_MAGIC_CACHE_SIZE": "1 GB",
        "LLM_MAGIC_PRICES": '{"scripted-model": {"input": 1, "output": 2}}',
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": KEY,
    }
    server.enqueue("It depends.", "Nothing.", "returned")
    runs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "llm_magic.demo", str(copy)],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        runs.append((len(server.requests), done.stdout))

    # Four prompts, of which the last is the first one again.
    assert [asked for asked, _ in runs] == [3, 3]
    assert len(re.findall(r"cached just now · saved \$0\.0000", runs[0][1])) == 1
    assert len(re.findall(r"cached just now · saved \$0\.0000", runs[1][1])) == 4


def test_a_failing_notebook_fails(
    tmp_path: Path, bare_terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["words"]},
        {"cell_type": "code", "source": ["%load_ext llm_magic\n", "%llm {{ nobody }}"]},
        {"cell_type": "code", "source": ["print('not reached')"]},
    ]
    path = tmp_path / "bad.ipynb"
    path.write_text(json.dumps({"cells": cells}))

    assert not demo.run_in_terminal(path)
    assert "not reached'" not in capsys.readouterr().out


def test_its_pace_is_that_of_a_model() -> None:
    reply = demo._paced("Some words.")

    assert isinstance(reply, Reply)
    assert reply.tokens_per_second == demo.TOKENS_PER_SECOND
