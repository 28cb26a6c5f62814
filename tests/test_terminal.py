"""%%llm and %llm in a terminal IPython, option by option."""

import json

import pytest

from llm_magic.errors import PromptError
from llm_magic.testing import QUIRKS, Reply, ScriptedServer
from tests.conftest import Terminal

ANSWER = "This is a scripted answer."


def test_answer_status_and_underscore(terminal: Terminal) -> None:
    ran = terminal.run("%%llm\nHello")

    lines = ran.out.splitlines()
    assert lines[0] == ANSWER
    assert lines[1].startswith("scripted-model · 2 in / 7 out · ")
    assert lines[2].startswith("Out[2]: <Response: the answer above")
    assert terminal.run("_.text").value == ANSWER


def test_a_later_look_at_the_response_shows_the_answer(terminal: Terminal) -> None:
    terminal.run("x = %llm Hello")

    assert terminal.run("x").out.strip().endswith(ANSWER)
    assert repr(terminal["x"]).startswith("<Response scripted-model · 2 in")
    assert str(terminal["x"]) == ANSWER


@pytest.mark.parametrize("line", ["name <<", "-o name", "--out name", "--out=name"])
def test_binding(terminal: Terminal, line: str) -> None:
    terminal.run(f"%%llm {line}\nHello")

    assert terminal["name"] == ANSWER


def test_every_request_option_reaches_the_server(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal["who"] = "Ada"

    terminal.run(
        "%%llm -m big -s 'You are {{ who }}.' -t 0.5 --max-tokens 9 --seed 4 --effort low "
        """--param top_p=0.9 --param 'stop=["a b", "c"]' --param user=me\nHello"""
    )

    assert server.requests[0].body == {
        "model": "big",
        "messages": [
            {"role": "system", "content": "You are Ada."},
            {"role": "user", "content": "Hello"},
        ],
        "temperature": 0.5,
        "max_tokens": 9,
        "seed": 4,
        "reasoning_effort": "low",
        "top_p": 0.9,
        "stop": ["a b", "c"],
        "user": "me",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_what_is_not_given_is_not_sent(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%%llm\nHello")

    assert set(server.requests[0].body) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize("option", ["-t nan", "-t inf", "--param x=NaN", "--param x=[Infinity]"])
def test_what_json_has_not_is_refused(
    option: str, terminal: Terminal, server: ScriptedServer
) -> None:
    ran = terminal.run(f"%llm {option} Hello")

    assert type(ran.error) is PromptError
    assert server.requests == []


def test_dry_run_shows_the_body_that_is_then_sent(
    terminal: Terminal, server: ScriptedServer
) -> None:
    line = "%%llm {} -m big --max-tokens 5 -t 0\nHello {{{{ 1 + 1 }}}} äöü"

    report = terminal.run(line.format("--dry-run")).out
    assert server.requests == []
    terminal.run(line.format(""))

    shown = report[report.index("{") : report.index("\n}") + 2]
    assert json.loads(shown) == server.requests[0].body
    assert f"At most {len(server.requests[0].raw):,} tokens in, 5 out" in report


def test_raw_leaves_the_prompt_alone(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%%llm --raw\n{{ nothing }} {% %}")

    assert server.requests[0].body["messages"][0]["content"] == "{{ nothing }} {% %}"


def test_quiet_and_no_stream(terminal: Terminal, server: ScriptedServer) -> None:
    quiet = terminal.run("x = %llm --quiet Hello")
    whole = terminal.run("x = %llm --no-stream Hello")

    assert quiet.out == ""
    assert whole.out.splitlines()[0] == ANSWER


def test_feedback_off_leaves_the_answer_alone(terminal: Terminal) -> None:
    terminal.run("%config LLMMagic.feedback = 0")

    assert terminal.run("x = %llm Hello").out == ANSWER + "\n"


def test_reasoning_is_kept_apart(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(QUIRKS["think_tags"])

    ran = terminal.run("%llm Hello")

    assert "Six times seven." not in ran.out
    assert ran.value.reasoning == "Six times seven."


def test_an_answer_cannot_drive_the_terminal(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply("red \x1b[31mtext\x1b]0;title\x07 and \x9bmore"))

    ran = terminal.run("x = %llm Hello")

    assert "red [31mtext]0;title and more" in ran.out
    assert terminal["x"].text.startswith("red \x1b[31m")


@pytest.mark.parametrize(
    "line",
    ["%llm What's a p-value?", "x = %llm What's a p-value?", "  %llm What's a p-value?"],
)
def test_a_question_is_a_prompt(terminal: Terminal, server: ScriptedServer, line: str) -> None:
    """IPython alone would look for help on `value`."""
    assert terminal.run(line).error is None

    assert server.requests[0].body["messages"][0]["content"] == "What's a p-value?"


def test_help_is_still_help(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm?")
    terminal.run("%llm ?")

    assert server.requests == []


def test_a_text_about_the_magic_stays_as_it_is(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("text = '''\n%llm What is it?\n'''")

    assert terminal["text"] == "\n%llm What is it?\n"
    assert server.requests == []


def test_a_question_in_a_loop(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("for n in range(2):\n    x = %llm What is {{ n }}?")

    asked = [request.body["messages"][0]["content"] for request in server.requests]
    assert asked == ["What is 0?", "What is 1?"]


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("%%llm --modle x\nHello", "Did you mean --model?"),
        ("%%llm Hello\nHello", "'Hello' on the %%llm line is no option"),
        ("%%llm -t warm\nHello", "invalid float value: 'warm'"),
        ("%%llm --effort huge\nHello", "invalid choice: 'huge'"),
        ("%%llm --max-tokens\nHello", "--max-tokens needs a value"),
        ("%%llm -o not-a-name\nHello", "'not-a-name' is no Python name"),
        ("%%llm --param model=x\nHello", "--param model=... would change"),
        ("%%llm --param 'stop=[1'\nHello", "is no JSON"),
        ("%%llm --param stop\nHello", "has no value"),
        ("%%llm\n   \n", "The prompt is empty"),
        ("%llm", "The prompt is empty"),
        ("%%llm\n{{ ANSWR }}", "Did you mean {{ ANSWER }}?"),
        ("%%llm\n{{ 1 +", "no valid template"),
        ("%%llm -s '{{ nobody }}'\nHello", "there is no nobody"),
        ("%%llm\n{{ 1 / 0 }}", "ZeroDivisionError"),
        ("%%llm\n{{ broken }}", "no valid Unicode"),
        ("%%llm\n{{ data }}", "not UTF-8"),
    ],
)
def test_a_wrong_cell_says_so_in_three_lines_and_sends_nothing(
    terminal: Terminal, server: ScriptedServer, cell: str, says: str
) -> None:
    terminal["ANSWER"] = 42
    terminal["broken"] = b"caf\xe9".decode(errors="surrogateescape")
    terminal["data"] = b"caf\xe9"

    ran = terminal.run(cell)

    assert type(ran.error) is PromptError
    assert says in ran.out
    assert len(ran.out.splitlines()) <= 3
    assert ran.error.fix in ran.out
    assert ran.error.fix
    assert server.requests == []


def test_an_empty_cell_is_ipython_s_own_error(terminal: Terminal) -> None:
    assert "Did you mean the line magic %llm" in terminal.run("%%llm").out


def test_loading_twice_and_unloading(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%reload_ext llm_magic")
    names = [type(each).__name__ for each in terminal.shell.configurables]

    assert names.count("LLMMagic") == 1
    assert terminal.run("%llm Hello?").value.text == ANSWER
    assert terminal.run("%unload_ext llm_magic").error is None
    assert terminal.run("%load_ext llm_magic").error is None
    assert terminal.run("%llm Hello?").value.text == ANSWER
