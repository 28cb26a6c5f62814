"""--code: the answer's code goes into the next cell, once, and only where somebody is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from llm_magic import nextcell
from llm_magic.errors import PromptError
from llm_magic.testing import Reply, ScriptedServer
from llm_magic.views.render import first_code
from tests.conftest import KEY, Kernel, Shown, Terminal

CODE = "total = 1 + 1"
ANSWER = f"Add them:\n\n```python\n{CODE}\n```\n"
CELL = "%%llm --code\nAdd one and one."

# What counts as the answer's code.


@pytest.mark.parametrize(
    ("markdown", "code"),
    [
        ("```python\na = 1\n```", "a = 1"),
        ("```Python title=x\na = 1\n```", "a = 1"),
        ("```{python}\na = 1\n```", "a = 1"),
        ("~~~py\na = 1\n~~~", "a = 1"),
        ("```\na = 1\n```", "a = 1"),
        ("1. First:\n\n   ```python\n   if a:\n       b\n   ```\n", "if a:\n    b"),
        ("> ```ipython\n> %time f()\n> ```", "%time f()"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("```python\n%%bash\nls\n```", "%%bash\nls"),
    ],
)
def test_a_fence_is_code(markdown: str, code: str) -> None:
    assert first_code(markdown).strip() == code


def test_the_first_python_goes_before_other_languages() -> None:
    shell, plain = "```bash\npip install x\n```\n\n", "```\noutput\n```\n\n"

    assert first_code(shell + plain + "```python\na\n```\n\n```python\nb\n```") == "a\n"
    assert first_code(shell + plain) == "output\n"
    assert first_code(shell) == "pip install x\n"


def test_inline_code_is_no_block() -> None:
    assert first_code("Use `a = 1`, or:\n\n    indented\n") == ""


# In a terminal.


def test_in_a_terminal_the_next_prompt_has_it(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(ANSWER)

    ran = terminal.run(CELL)

    assert terminal.shell.rl_next_input == CODE
    assert nextcell.PROMPTED in ran.out


def test_it_is_not_run(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(ANSWER)
    terminal.run(CELL)

    assert "total" not in terminal.shell.user_ns


def test_an_answer_without_code_is_no_error(terminal: Terminal) -> None:
    ran = terminal.run(CELL)

    assert ran.error is None
    assert nextcell.NO_CODE in ran.out
    assert terminal.shell.rl_next_input is None


def test_without_the_option_nothing_happens(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(ANSWER)
    ran = terminal.run("%%llm\nAdd one and one.")

    assert terminal.shell.rl_next_input is None
    assert nextcell.PROMPTED not in ran.out


def test_on_one_line_and_quiet_as_well(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(ANSWER)
    ran = terminal.run("x = %llm --code --quiet Add one and one.")

    assert ran.out == ""
    assert terminal.shell.rl_next_input == CODE
    assert terminal["x"].text == ANSWER


@pytest.mark.usefixtures("keeping")
def test_a_cached_answer_gives_its_code(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(ANSWER)
    terminal.run(CELL)
    terminal.shell.rl_next_input = None

    assert terminal.run(CELL).value.cached
    assert terminal.shell.rl_next_input == CODE


@pytest.mark.parametrize(
    "broken", [Reply(ANSWER, fault="cut", after=8), Reply(ANSWER, finish="length")]
)
def test_half_an_answer_gives_no_code(
    broken: Reply, terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue(broken)
    ran = terminal.run(CELL)

    assert ran.error is not None
    assert terminal.shell.rl_next_input is None


def test_an_object_has_no_code(terminal: Terminal, server: ScriptedServer) -> None:
    ran = terminal.run("%%llm --code --schema int\nAdd one and one.")

    assert isinstance(ran.error, PromptError)
    assert "--schema int" in str(ran.error)
    assert server.requests == []


# In a notebook.


class Notebook:
    """A saved notebook and the kernel behind it, as JupyterLab runs them."""

    def __init__(self, path: Path, kernel: Kernel, server: ScriptedServer) -> None:
        self.path, self.kernel, self.server = path, kernel, server

    def run(self, answer: str = ANSWER, *, cell: str = "own", code: str = CELL) -> Shown:
        """Runs the cell that has this name."""
        self.server.enqueue(answer)
        client = self.kernel.client
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        message = client.session.msg("execute_request", content, metadata={"cellId": cell})
        client.shell_channel.send(message)
        return self.kernel.finish(message["header"]["msg_id"])

    def save(self, *cells: dict[str, Any]) -> None:
        """Writes the file, as the front end does now and then."""
        whole = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        self.path.write_text(json.dumps(whole), encoding="utf-8")


def saved(name: str, source: str, shown: Shown | None = None) -> dict[str, Any]:
    """A cell of the file, cut into lines as Jupyter does."""
    outputs = [
        {"output_type": "display_data", "data": each["data"], "metadata": {}}
        for each in (shown.of("update_display_data")[-1:] if shown else [])
    ]
    lines = source.splitlines(keepends=True)
    return {"cell_type": "code", "id": name, "source": lines, "outputs": outputs}


def inserted(shown: Shown) -> list[str]:
    assert shown.reply["status"] == "ok", shown.reply
    payload = shown.reply["payload"]
    assert all(each["source"] == "set_next_input" and not each["replace"] for each in payload)
    return [each["text"] for each in payload]


def status(shown: Shown) -> str:
    displays = [*shown.of("display_data"), *shown.of("update_display_data")]
    return str(displays[-1]["data"]["text/html"])


def provider_of(server: ScriptedServer) -> dict[str, str]:
    return {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    path = tmp_path_factory.mktemp("notebooks") / "test.ipynb"
    with ScriptedServer() as server:
        session = {"JPY_SESSION_NAME": str(path)}
        kernel = Kernel(watched=True, environment=provider_of(server) | session)
        kernel.run("%load_ext llm_magic")
        yield Notebook(path, kernel, server)
        kernel.stop()


@pytest.fixture
def notebook(shared: Notebook) -> Notebook:
    """Unsaved, and the kernel as after a restart."""
    shared.server.reset()
    shared.path.unlink(missing_ok=True)
    shared.kernel.run("from llm_magic import nextcell; nextcell._given.clear()")
    return shared


@pytest.mark.kernel
def test_a_notebook_gets_a_cell(notebook: Notebook) -> None:
    shown = notebook.run()

    assert inserted(shown) == [CODE]
    assert nextcell.PUT in status(shown)


@pytest.mark.kernel
def test_running_it_again_inserts_nothing(notebook: Notebook) -> None:
    notebook.run()
    again = notebook.run()

    assert inserted(again) == []
    assert nextcell.EARLIER in status(again)


@pytest.mark.kernel
def test_the_same_code_for_another_cell_is_inserted(notebook: Notebook) -> None:
    notebook.run()

    assert inserted(notebook.run(cell="other")) == [CODE]


@pytest.mark.kernel
def test_another_answer_is_inserted(notebook: Notebook) -> None:
    notebook.run()

    assert inserted(notebook.run("```python\ntotal = 2\n```")) == ["total = 2"]
    assert inserted(notebook.run()) == []


@pytest.mark.kernel
def test_after_a_restart_the_saved_cell_is_seen(notebook: Notebook) -> None:
    notebook.save(saved("own", CELL), saved("x", f"\n{CODE}\n"), saved("y", "other"))
    shown = notebook.run()

    assert inserted(shown) == []
    assert nextcell.IN_NEXT in status(shown)


@pytest.mark.kernel
def test_a_cell_that_was_moved_down_is_seen(notebook: Notebook) -> None:
    text = {"cell_type": "markdown", "id": "t", "source": CODE}
    notebook.save(saved("own", CELL), text, saved("y", "other"), saved("x", CODE))
    shown = notebook.run()

    assert inserted(shown) == []
    assert nextcell.BELOW in status(shown)


@pytest.mark.kernel
def test_the_code_above_or_in_text_does_not_count(notebook: Notebook) -> None:
    text = {"cell_type": "markdown", "id": "t", "source": CODE}
    notebook.save(saved("x", CODE), saved("own", CELL), text)

    assert inserted(notebook.run()) == [CODE]


@pytest.mark.kernel
def test_a_cell_that_the_user_has_changed_is_not_inserted_again(notebook: Notebook) -> None:
    """After a restart: what the saved output says was put is the user's by now."""
    first = notebook.run()
    notebook.save(saved("own", CELL, first), saved("x", f"{CODE} + 1"))
    notebook.kernel.run("nextcell._given.clear()")
    again = notebook.run()

    assert inserted(again) == []
    assert nextcell.EARLIER in status(again)
    assert inserted(notebook.run("```python\ntotal = 3\n```")) == ["total = 3"]


@pytest.mark.kernel
def test_an_output_of_a_headless_run_is_no_insertion(notebook: Notebook) -> None:
    first = notebook.run()
    data = first.of("update_display_data")[-1]["data"]
    data["text/html"] = data["text/html"].replace(nextcell.PUT, "")
    notebook.save(saved("own", CELL, first))
    notebook.kernel.run("nextcell._given.clear()")

    assert inserted(notebook.run()) == [CODE]


@pytest.mark.kernel
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cells": [1]}', "# jupytext"])
def test_a_file_that_is_no_notebook_is_passed_over(content: str, notebook: Notebook) -> None:
    notebook.path.write_text(content, encoding="utf-8")

    assert inserted(notebook.run()) == [CODE]


@pytest.mark.kernel
def test_without_a_cell_name_nobody_is_there(notebook: Notebook) -> None:
    """A runner that was started from a notebook has that one's session in its environment."""
    shown = notebook.run(cell="")

    assert inserted(shown) == []
    assert "next cell" not in status(shown)


@pytest.mark.kernel
def test_vs_code_gets_a_cell_once(notebook: Notebook) -> None:
    """Its names of cells are not those of the file: the cell is found by its source."""
    kernel = notebook.kernel
    kernel.run(f"import os; del os.environ['JPY_SESSION_NAME']; {VSCODE} = {str(notebook.path)!r}")
    try:
        fresh = notebook.run(cell="vscode-notebook-cell:/test.ipynb#W1")
        notebook.save(saved("1", CELL), saved("2", CODE))
        kernel.run("nextcell._given.clear()")
        again = notebook.run(cell="vscode-notebook-cell:/test.ipynb#W1")
    finally:
        kernel.run(f"os.environ['JPY_SESSION_NAME'] = {VSCODE}; del {VSCODE}")

    assert inserted(fresh) == [CODE]
    assert inserted(again) == []


VSCODE = "__vsc_ipynb_file__"


@pytest.mark.kernel
def test_colab_says_where_the_code_is(notebook: Notebook) -> None:
    notebook.kernel.run("import sys, types; sys.modules['google.colab'] = types.ModuleType('c')")
    try:
        shown = notebook.run()
    finally:
        notebook.kernel.run("del sys.modules['google.colab']")

    assert inserted(shown) == []
    assert nextcell.COPY in status(shown)


@pytest.mark.kernel
def test_headless_the_notebook_stays_as_it_is(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in provider_of(server).items():
        monkeypatch.setenv(name, value)
    server.enqueue(ANSWER)
    cells = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(each) for each in ("%load_ext llm_magic", CELL)]
    )
    done = NotebookClient(cells).execute()

    assert len(done.cells) == 2
    assert len(done.cells[1].outputs) == 1
    assert "next cell" not in done.cells[1].outputs[0]["data"]["text/html"]
