"""%llm_fix: what is sent about the last exception, what is not, and what comes of it."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_magic.errors import PromptError, QuotaExceeded, RateLimited
from llm_magic.redact import Redactor, looks_secret
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, Kernel, Ran, Terminal

CORRECTED = "ratio = 1 / 2"
ANSWER = f"It divides by zero.\n\n```python\n{CORRECTED}\n```\n"


@pytest.fixture(autouse=True)
def no_error_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last error of another test's shell is not ours."""
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        monkeypatch.delattr(sys, name, raising=False)


@pytest.fixture
def asked(terminal: Terminal, server: ScriptedServer) -> Any:
    """Runs cells, the last of which fails, then %llm_fix; gives the prompt that was sent."""

    def ask(*cells: str) -> str:
        for cell in cells:
            ran = terminal.run(cell)
        assert ran.error is not None
        before = len(server.requests)
        fixed = terminal.run("%llm_fix -m m")
        assert fixed.error is None, fixed.error
        assert len(server.requests) == before + 1
        return prompt_of(server)

    return ask


def prompt_of(server: ScriptedServer) -> str:
    return str(server.requests[-1].body["messages"][-1]["content"])


def section(prompt: str, heading: str) -> str:
    """The block below a line of the prompt."""
    return prompt.partition(f"{heading}\n\n")[2].partition("\n\n")[0]


# The answer.


def test_the_corrected_cell_is_proposed_and_not_run(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("ratio = 1 / 0")
    server.enqueue(ANSWER)
    ran = terminal.run("%llm_fix")

    assert "It divides by zero." in ran.out
    assert terminal.shell.rl_next_input == CORRECTED
    assert "ratio" not in terminal.shell.user_ns
    assert ran.value.text == ANSWER


def test_options_are_those_of_a_cell(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("1 / 0")
    shown = terminal.run("%llm_fix -m other --dry-run")
    terminal.run("%config LLMMagic.prices = {'m*': {'input': 1, 'output': 1}}")
    refused = terminal.run("%llm_fix -m m --max-cost 0.000001")

    assert "1 / 0" in shown.out
    assert shown.value is None
    assert isinstance(refused.error, QuotaExceeded)
    assert server.requests == []
    assert terminal.run("%llm_fix -m m --max-cost $1").error is None
    assert server.requests[-1].body["model"] == "m"


@pytest.mark.usefixtures("keeping")
def test_asking_again_is_a_cache_hit_until_fresh(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("1 / 0")
    terminal.run("%llm_fix")

    assert terminal.run("%llm_fix").value.cached
    assert len(server.requests) == 1
    assert not terminal.run("%llm_fix --fresh").value.cached


@pytest.mark.usefixtures("keeping")
def test_the_same_error_of_another_run_is_a_cache_hit(
    terminal: Terminal, server: ScriptedServer
) -> None:
    """Counters, addresses and the files of cells differ; the prompt does not."""
    terminal["thing"] = object()
    terminal.run("def show(x): raise ValueError(f'no use for {x!r}')")
    terminal.run("show(thing)")
    first = terminal.run("%llm_fix")
    kept = terminal["thing"]
    terminal["thing"] = object()
    terminal.run("def show(x): raise ValueError(f'no use for {x!r}')")
    terminal.run("show(thing)")

    assert repr(kept) != repr(terminal["thing"])
    assert not first.value.cached
    assert terminal.run("%llm_fix").value.cached


# Which cell.


def test_the_cell_is_the_one_that_raised(asked: Any) -> None:
    prompt = asked("a = 1", "b = 2\nb / 0")

    assert section(prompt, "The cell:") == "```python\nb = 2\nb / 0\n```"
    assert section(prompt, "The error:") == "```\nZeroDivisionError: division by zero\n```"
    assert "the cell, line 2, in <module>: b / 0" in prompt


def test_it_is_found_after_other_cells(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("b = 2\nb / 0")
    terminal.run("c = 3")
    terminal.run("d = 4")
    terminal.run("%llm_fix")

    assert section(prompt_of(server), "The cell:") == "```python\nb = 2\nb / 0\n```"


def test_other_cells_that_it_runs_are_sent_too(asked: Any) -> None:
    prompt = asked("def half(x):\n    return x / 0", "half(3)")

    assert section(prompt, "The cell:") == "```python\nhalf(3)\n```"
    assert section(prompt, "Another cell, whose code it runs:").startswith(
        "```python\ndef half(x):"
    )
    assert section(prompt, "Where, from the outside in:").splitlines()[1:-1] == [
        "the cell, line 1, in <module>: half(3)",
        "other cell 1, line 2, in half: return x / 0",
    ]


def test_magics_are_sent_as_they_were_typed(asked: Any) -> None:
    prompt = asked("n = 0", "%%time\n1 / n")

    assert section(prompt, "The cell:") == "```python\n%%time\n1 / n\n```"
    assert "n\n```\nint: 0\n```" in prompt


def test_a_captured_cell_is_sent_whole(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%%capture\n1 / 0")
    terminal.run("%llm_fix")

    assert section(prompt_of(server), "The cell:") == "```python\n%%capture\n1 / 0\n```"


def test_of_libraries_only_the_last_place_is_sent(asked: Any) -> None:
    prompt = asked("import json", "json.loads('{')")
    places = section(prompt, "Where, from the outside in:").splitlines()[1:-1]

    assert len(places) == 2
    assert places[1].startswith("json/decoder.py, line ")
    assert "json.decoder.JSONDecodeError: Expecting property name" in prompt


def test_a_recursion_is_cut_short(asked: Any) -> None:
    prompt = asked("def f(n):\n    return f(n - 1) if n else 1 / n\nf(100)")
    places = section(prompt, "Where, from the outside in:").splitlines()

    assert 10 < len(places) < 20
    assert places[7] == "... and so on"
    assert places[1] == "the cell, line 3, in <module>: f(100)"


@pytest.mark.parametrize("cell", ["x = (1,\ny = 2", "def f():\nreturn 1", "x = = 1", "print 'a'"])
def test_a_syntax_error_has_its_cell_and_line(cell: str, asked: Any) -> None:
    prompt = asked("z = 1", cell)

    assert section(prompt, "The cell:") == f"```python\n{cell}\n```"
    assert "the cell, line " in section(prompt, "Where, from the outside in:")
    assert "<ipython-input" not in prompt


def test_a_syntax_error_is_found_after_other_cells(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("x = = 1")
    terminal.run("c = 3")
    terminal.run("%llm_fix")

    assert section(prompt_of(server), "The cell:") == "```python\nx = = 1\n```"


def test_what_caused_the_error_is_sent(asked: Any) -> None:
    prompt = asked("try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('bad') from e")

    assert section(prompt, "The error:").splitlines()[1:-1] == [
        "ValueError: bad",
        "That came of KeyError: 'a'",
    ]


def test_notes_are_part_of_the_message(asked: Any) -> None:
    prompt = asked("e = ValueError('bad'); e.add_note('see row 3'); raise e")

    assert "ValueError: bad\nsee row 3" in prompt


def test_an_error_without_a_message_is_sent(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.run("class Odd(Exception):\n    def __str__(self): return 1 / 0")
    terminal.run("try:\n    raise Odd\nexcept Odd as error:\n    kept = error")
    monkeypatch.setattr(sys, "last_value", terminal["kept"], raising=False)
    terminal.run("%llm_fix")

    assert "Odd: (it has no message)" in prompt_of(server)


def test_backticks_cannot_end_a_block(asked: Any) -> None:
    prompt = asked("text = '```'\n1 / 0")

    assert "````python\ntext = '```'\n1 / 0\n````" in prompt


def test_a_cell_that_is_not_in_the_history_is_found(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.shell.run_cell("1 / 0", store_history=False)
    terminal.run("c = 3")
    terminal.run("%llm_fix")

    assert section(prompt_of(server), "The cell:") == "```python\n1 / 0\n```"


# Values.


def test_values_are_those_that_the_cell_uses(terminal: Terminal, asked: Any) -> None:
    terminal["rows"], terminal["unused"] = [1, 2, 3], "UNUSED"
    prompt = asked("import math", "rows[7] + math.pi")

    assert "rows\n```\nlist of 3: [1, 2, 3]\n```" in prompt
    assert "UNUSED" not in prompt
    assert "math\n```" not in prompt


def test_what_the_cell_adds_to_is_used(terminal: Terminal, asked: Any) -> None:
    terminal["total"] = "text"

    assert "total\n```\nstr of 4: 'text'\n```" in asked("total += 1")


def test_a_frame_is_summed_up(terminal: Terminal, asked: Any) -> None:
    terminal.run("import pandas as pd; df = pd.DataFrame({'region': ['a', 'b'], 'n': [1, 2]})")
    prompt = asked("df['regoin']")

    assert "DataFrame: 2 rows x 2 columns" in prompt
    assert "KeyError: 'regoin'" in prompt
    assert "pandas/core/" in prompt


def test_a_function_is_its_signature(asked: Any) -> None:
    prompt = asked("def f(a, b=2, api_key='hunter22'):\n    raise OSError", "f(1)")
    values = prompt.partition("What it uses")[2]

    assert "def f(a, b=2, api_key=" in values
    assert "hunter22" not in prompt


def test_values_are_bounded(terminal: Terminal, asked: Any) -> None:
    for name in "abcdefghijklm":
        terminal[name] = "word " * 100_000
    terminal["big"] = [list(range(100_000))] * 1000
    prompt = asked("big[0] + a + b + c + d + e + f + g + h + i + j + k + l + m")

    assert len(prompt) < 20_000
    assert "had no room" in prompt


def test_a_value_that_cannot_be_shown_breaks_nothing(terminal: Terminal, asked: Any) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    terminal["broken"], terminal["raw"] = Broken(), b"\xff\xfe"
    terminal["half"] = "\ud800"
    prompt = asked("broken + raw + half")

    assert "Broken (it cannot be shown: RuntimeError)" in prompt
    assert "bytes of 2" in prompt


def test_a_set_has_one_order(terminal: Terminal, asked: Any) -> None:
    terminal["names"] = {"c", "a", "b"}

    assert "set of 3: {'a', 'b', 'c'}" in asked("names[0]")


def test_a_picture_is_not_sent(terminal: Terminal, asked: Any) -> None:
    from PIL import Image

    terminal["image"] = Image.new("RGB", (4, 4))

    assert "Image (a picture)" in asked("image + 1")


# What is not sent.


@pytest.mark.parametrize("name", ["api_key", "HF_TOKEN", "password", "clientSecret", "keys", "pwd"])
def test_values_with_the_names_of_secrets_are_not_sent(
    name: str, terminal: Terminal, asked: Any
) -> None:
    terminal[name] = "hunter22"
    prompt = asked(f"{name} + 1")

    assert "hunter22" not in prompt
    assert f"{name}\n```\nnot shown" in prompt


@pytest.mark.parametrize("name", ["monkey", "tokenizer", "author", "keyboard", "secretary"])
def test_names_that_only_look_alike_are_sent(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    "value",
    [
        {"user": "joe", "password": "hunter22"},
        [{"api_key": "hunter22"}],
        "password='hunter22'",
        "postgresql://joe:hunter22@db/x",
    ],
)
def test_secrets_inside_values_are_not_sent(value: Any, terminal: Terminal, asked: Any) -> None:
    terminal["settings"] = value

    assert "hunter22" not in asked("settings + 1")


def test_secrets_in_objects_and_messages_are_not_sent(asked: Any) -> None:
    prompt = asked(
        "from dataclasses import dataclass as data",
        "@data\nclass Login:\n    name: str\n    token: str",
        "login = Login('joe', *['hunter22'])",
        "raise ValueError(login)",
    )

    assert "Login(name='joe', token='[secret]')" in prompt
    assert "hunter22" not in prompt


@pytest.mark.parametrize(
    "line",
    [
        "api_key = 'hunter22'",
        'api_key: str = "hunter22"',
        "api_key = '''hunter22'''",
        "connect = dict(password='hunter22')",
        "login = {'password': r'hunter22'}",
        "import os; os.environ['MY_TOKEN'] = 'hunter22'",
        "%env MY_TOKEN=hunter22",
        "url = 'postgresql://joe:hunter22@db/x'",
    ],
)
def test_secrets_in_the_source_are_put_back_into_the_corrected_cell(
    line: str, terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "")
    cell = f"{line}\n1 / 0"
    terminal.run(cell)
    terminal.run("%llm_fix --dry-run")
    terminal.run("%llm_fix")
    sent = section(prompt_of(server), "The cell:")
    server.enqueue(f"So:\n\n{sent}\n")
    terminal.run("%llm_fix --fresh")

    assert "hunter22" not in prompt_of(server)
    assert "[secret 1]" in sent
    assert terminal.shell.rl_next_input == cell


def test_code_that_is_no_secret_is_left_alone() -> None:
    code = "key == 'a'\ntoken = get()\nf(sep=':', label='b')\nd = {'x': 'y'}\npassword = ''\n"

    assert Redactor().source(code) == code


def test_the_api_key_is_cut_out_wherever_it_stands(terminal: Terminal, asked: Any) -> None:
    terminal["note"] = f"use {KEY} here"
    prompt = asked(f"print(note, '{KEY}')\nraise ValueError('wrong: {KEY}')")

    assert KEY not in prompt
    assert "use [secret] here" in prompt
    assert "print(note, '[secret 1]')" in prompt


def test_a_word_for_a_key_is_not_cut_out() -> None:
    assert Redactor("x").source("x = 1") == "x = 1"


def test_paths_of_the_user_are_not_sent(
    terminal: Terminal, asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "joe"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "joe"))
    terminal["path"] = tmp_path / "joe" / "data.csv"
    prompt = asked("open(path)")

    assert str(tmp_path) not in prompt
    assert f"~{os.sep}data.csv" in prompt


def test_temporary_folders_have_no_name(asked: Any) -> None:
    prompt = asked("import tempfile; d = tempfile.mkdtemp()", "open(d + '/none')")

    assert "<temporary folder>/none" in prompt
    assert tempfile.gettempdir() + os.sep + "tmp" not in prompt


# What is refused.


def refused(ran: Ran, server: ScriptedServer) -> PromptError:
    assert isinstance(ran.error, PromptError)
    assert len(ran.error._render_traceback_()) <= 3
    assert server.requests == []
    return ran.error


def test_without_an_error_it_says_so(terminal: Terminal, server: ScriptedServer) -> None:
    first = refused(terminal.run("%llm_fix"), server)
    second = refused(terminal.run("%llm_fix"), server)

    assert "no error to fix" in str(first)
    assert str(first) == str(second)


def test_our_own_errors_say_what_to_do(terminal: Terminal, server: ScriptedServer) -> None:
    terminal["orders"] = 1
    terminal.run("%%llm\n{{ ordes }}")
    error = refused(terminal.run("%llm_fix"), server)

    assert "PromptError" in str(error)
    assert "{{ orders }}" in error.fix


def test_an_interrupt_is_no_error(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("raise KeyboardInterrupt")

    assert "interrupted" in str(refused(terminal.run("%llm_fix"), server))


@pytest.mark.parametrize("line", ["--fast", "use polars", "--max-cost much", "-m"])
def test_a_wrong_line_sends_nothing_and_keeps_the_error(
    line: str, terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("1 / 0")
    refused(terminal.run(f"%llm_fix {line}"), server)
    terminal.run("%llm_fix")

    assert "ZeroDivisionError" in prompt_of(server)


def test_after_a_failed_call_it_can_be_tried_again(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%config LLMMagic.retries = 0")
    terminal.run("1 / 0")
    server.enqueue(FAULTS["rate_limited"])
    failed = terminal.run("%llm_fix")

    assert isinstance(failed.error, RateLimited)
    assert terminal.run("%llm_fix").error is None
    assert "ZeroDivisionError" in prompt_of(server)


def test_a_new_error_goes_before_a_failed_call(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("1 / 0")
    terminal.run("%llm_fix --fast")
    terminal.run("[][1]")
    terminal.run("%llm_fix")

    assert "IndexError" in prompt_of(server)


def test_an_error_from_outside_a_cell_is_refused(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "last_value", ValueError("of nobody"), raising=False)

    assert "not known any more" in str(refused(terminal.run("%llm_fix"), server))


# In a kernel.


@pytest.fixture(scope="module")
def notebook() -> Iterator[tuple[Kernel, ScriptedServer]]:
    with ScriptedServer() as server:
        environment = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
        kernel = Kernel(watched=True, environment=environment)
        kernel.run("%load_ext llm_magic")
        yield kernel, server
        kernel.stop()


@pytest.mark.kernel
def test_a_notebook_gets_the_corrected_cell_below(
    notebook: tuple[Kernel, ScriptedServer],
) -> None:
    kernel, server = notebook
    server.enqueue(Reply(ANSWER))
    kernel.run("n = 0\nratio = 1 / n")
    client = kernel.client
    content = {"code": "%llm_fix", "silent": False, "store_history": True}
    message = client.session.msg("execute_request", content, metadata={"cellId": "own"})
    client.shell_channel.send(message)
    shown = kernel.finish(message["header"]["msg_id"])
    sent = prompt_of(server)

    assert [each["text"] for each in shown.reply["payload"]] == [CORRECTED]
    assert section(sent, "The cell:") == "```python\nn = 0\nratio = 1 / n\n```"
    assert "the cell, line 2, in <module>: ratio = 1 / n" in sent
    assert "ipykernel" not in sent


@pytest.mark.kernel
def test_a_syntax_error_of_a_notebook_names_no_file(
    notebook: tuple[Kernel, ScriptedServer],
) -> None:
    kernel, server = notebook
    kernel.run("x = = 1")
    kernel.run("c = 3")
    kernel.run("%llm_fix")
    sent = prompt_of(server)

    assert section(sent, "The cell:") == "```python\nx = = 1\n```"
    assert "SyntaxError: invalid syntax\n" in sent
    assert "ipykernel" not in sent


@pytest.mark.kernel
def test_another_kernel_asks_the_same(notebook: tuple[Kernel, ScriptedServer]) -> None:
    """Processes, hash seeds and counters differ; the prompt does not, so that it is a cache hit."""
    kernel, server = notebook
    cell = "def show(x): raise ValueError(f'no use for {object()}')\nshow(names)"
    other = Kernel(
        watched=False, environment={"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
    )
    sent = []
    try:
        other.run("%load_ext llm_magic")
        for each in (kernel, other):
            each.run("names = set('abcdefgh')")
            each.run(cell)
            each.run("%llm_fix -m m")
            sent.append(server.requests[-1].body)
    finally:
        other.stop()

    assert sent[0] == sent[1]
    assert "names\n```\nset of 8: {'a', 'b', " in prompt_of(server)
    assert "object at 0x..." in prompt_of(server)
