"""Tab on the lines of our magics and in their prompts: in a terminal, and in a real kernel."""

import argparse
import dataclasses
import enum
import sys
import threading
import time
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter, rectify_completions
from IPython.terminal.ptutils import IPythonPTCompleter
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llm_magic import completion
from llm_magic.completion import IDENTIFIER, complete, is_schema
from llm_magic.completion.line import VALUES
from llm_magic.magics import LLMMagics
from llm_magic.options import Ending, ending
from llm_magic.session import current
from llm_magic.testing import ScriptedServer
from tests.conftest import KEY, Kernel, Terminal

OFFERED = ("gpt-5", "gpt-5-mini", "llama3.2:3b", "qwen/qwen3-8b")
PARSER = LLMMagics.llm.parser


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(models=OFFERED) as running:
        yield running


def place(cell: str) -> tuple[str, int]:
    """A cell and the cursor's place in it, which ``‸`` marks; else its end."""
    offset = cell.find("‸")
    return cell.replace("‸", ""), len(cell) if offset < 0 else offset


def completions(terminal: Terminal, cell: str) -> list[Any]:
    text, offset = place(cell)
    with provisionalcompleter(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*provisional.*")
        found = terminal.shell.Completer.completions(text, offset)
        return list(rectify_completions(text, found))


def tab(terminal: Terminal, cell: str) -> list[str]:
    """What the cell could be once a completion is taken: the word at the cursor."""
    text, _ = place(cell)
    words = []
    for each in completions(terminal, cell):
        taken = text[: each.start] + each.text
        words.append(taken[max(taken.rfind(" "), taken.rfind("\n")) + 1 :])
    assert all(word for word in words)
    return words


def ours(terminal: Terminal, cell: str) -> list[str]:
    """What our matcher has for a place; empty is nothing."""
    text, offset = place(cell)
    before = text[:offset]
    row = before.count("\n")
    found = complete(terminal.shell, text, row, len(before) - before.rfind("\n") - 1)
    assert before.endswith(found.typed)
    return [each for each, _ in found.texts]


# What stands at the end of a line.


def at_end(line: str) -> tuple[str, str | None] | None:
    found = ending(PARSER, line)
    return None if found is None else (found.typed, found.action and found.action.dest)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ("", None)),
        ("-", ("-", None)),
        ("--", ("--", None)),
        ("--mod", ("--mod", None)),
        ("--model", ("--model", None)),
        ("-m", ("-m", None)),
        ("-m ", ("", "model")),
        ("-m g", ("g", "model")),
        ("-m=g", ("g", "model")),
        ("--model=", ("", "model")),
        ("--raw -m g", ("g", "model")),
        ("-m g ", ("", None)),
        ("-m g --q", ("--q", None)),
        ("answer << -m g", ("g", "model")),
        ("answer << ", ("", None)),
        ("answer <<", None),
        ("answer<", None),
        ('-s "two words" -m g', ("g", "model")),
        ('-s "two wo', ('"two wo', "system")),
        ('-s "said"', ('"said"', "system")),
        ("-s don't", ("don't", "system")),
        ("--schema list[Re", ("list[Re", "schema")),
        ("--schema dict[str, Re", ("dict[str, Re", "schema")),
        ("--schema Re | ", ("Re | ", "schema")),
        ("--schema list[Re] ", ("", None)),
        ('--schema "list[Re', ('"list[Re', "schema")),
        ("-t -1", ("-1", "temperature")),
        ("What is", None),
        ("What is ", None),
        ("-m g What", None),
        ("-m g -- --m", None),
        ("-- ", None),
        ("--nothing x", None),
        ("--raw= ", ("", None)),
    ],
)
def test_ending(line: str, expected: tuple[str, str | None] | None) -> None:
    assert at_end(line) == expected


def test_arguments_without_an_option_are_taken_in_their_order() -> None:
    parser = argparse.ArgumentParser()
    first = parser.add_argument("first")
    second = parser.add_argument("second")
    flag = parser.add_argument("--flag")

    assert ending(parser, "") == Ending("", first)
    assert ending(parser, "a") == Ending("a", first)
    assert ending(parser, "a ") == Ending("", second)
    assert ending(parser, "--flag x a b") == Ending("b", second)
    assert ending(parser, "a --flag x") == Ending("x", flag)
    assert ending(parser, "a b ") == Ending("", None)
    assert ending(parser, "a b c") is None


# Options.


@pytest.mark.parametrize("cell", ["%%llm --‸\nHello", "%llm --", "x = %llm --", "%%llm x << --"])
def test_all_options(cell: str, terminal: Terminal) -> None:
    every = [name for name in PARSER._option_string_actions if name.startswith("--")]

    assert tab(terminal, cell) == every


def test_options_come_with_their_help(terminal: Terminal) -> None:
    (found,) = completions(terminal, "%%llm --temp")

    assert found.text == "--temperature"
    assert found.type == "Sampling temperature"


def test_short_options_where_one_dash_is_typed(terminal: Terminal) -> None:
    assert {"-m", "-s", "--model", "--raw"} <= set(tab(terminal, "%%llm -"))
    assert "-m" not in tab(terminal, "%%llm ")


def test_options_in_the_middle_of_a_line(terminal: Terminal) -> None:
    assert tab(terminal, "%%llm -m gpt --see‸ --raw\nHello") == ["--seed"]


@pytest.mark.parametrize("jedi", [True, False])
def test_with_and_without_jedi(jedi: bool, terminal: Terminal) -> None:
    terminal.shell.Completer.use_jedi = jedi
    terminal["orders"] = 1

    assert tab(terminal, "%%llm --ra") == ["--raw"]
    assert tab(terminal, "%%llm\n{{ ord") == ["orders"]
    assert "orders" in tab(terminal, "ord")
    assert "append" in "".join(tab(terminal, "[].app"))


def test_of_the_other_magics(terminal: Terminal) -> None:
    assert tab(terminal, "%llm_quota --") == [
        *("--requests", "--tokens", "--usd", "--per", "--scope", "--reset")
    ]
    assert tab(terminal, "%llm_quota --scope ") == ["kernel", "user", "team"]
    assert tab(terminal, "%llm_usage --by d") == ["day"]
    assert tab(terminal, "%llm_usage --by=d") == ["--by=day"]
    assert tab(terminal, "%llm_cache ") == ["stats", "list", "clear", "prune", "--unused"]
    assert tab(terminal, "%llm_cache pr") == ["prune"]
    assert tab(terminal, "%llm_cache prune --") == ["--unused"]
    assert tab(terminal, "%%llm --effort ") == ["low", "medium", "high"]


def test_every_magic_of_ours_has_something(terminal: Terminal) -> None:
    for name, magic in terminal.shell.magics_manager.magics["line"].items():
        if getattr(magic, "__module__", "").startswith("llm_magic."):
            assert ours(terminal, f"%{name} -") != [] or not magic.parser._option_string_actions


def test_cassettes(terminal: Terminal) -> None:
    Path("answers.jsonl").touch()
    Path("plot.png").touch()

    offered = tab(terminal, "%llm_cassette ")

    assert offered[:4] == ["status", "prune", "off", "answers.jsonl"]
    assert offered[-2:] == ["--record", "--replay"]
    assert "plot.png" not in offered
    assert tab(terminal, "%llm_cassette an") == ["answers.jsonl"]


def test_an_alias_completes_as_its_magic(terminal: Terminal) -> None:
    terminal.run("%alias_magic judge llm -p '-t 0'")
    terminal.run("%alias_magic jury judge")

    assert tab(terminal, "%%judge --ra") == ["--raw"]
    assert tab(terminal, "%jury --ra") == ["--raw"]


def test_below_another_cell_magic(terminal: Terminal) -> None:
    terminal["orders"] = 1

    assert tab(terminal, "%%time\n%%llm --ra‸\nHello") == ["--raw"]
    assert tab(terminal, "\n\n%%llm --ra‸\nHello") == ["--raw"]
    assert tab(terminal, "%%time\n%%llm\n{{ ord‸ }}") == ["orders"]


def test_a_line_magic_in_a_cell_of_python(terminal: Terminal) -> None:
    assert tab(terminal, "a = 1\nif a:\n    x = %llm --ra‸\nb = 2") == ["--raw"]


# Values.


def test_models(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm_models")

    assert tab(terminal, "%%llm -m ") == list(OFFERED)
    assert tab(terminal, "%%llm --model gpt") == ["gpt-5", "gpt-5-mini"]
    assert tab(terminal, "%%llm -m llama3.2:") == ["llama3.2:3b"]
    assert tab(terminal, "%%llm -m qwen/q") == ["qwen/qwen3-8b"]
    assert server.requests == []


def wait_for_models(terminal: Terminal) -> None:
    """The first import of the client may take longer than a Tab waits."""
    ours(terminal, "%%llm -m ")
    future = next(iter(current(terminal.shell).models.values()))
    future.result(30)


def test_models_are_fetched_where_none_are_remembered(
    terminal: Terminal, server: ScriptedServer
) -> None:
    wait_for_models(terminal)

    assert tab(terminal, "%%llm -m gpt") == ["gpt-5", "gpt-5-mini"]
    assert server.requests == []


def test_the_default_model_is_first(terminal: Terminal) -> None:
    terminal.run("%config LLMMagic.model = 'qwen/qwen3-8b'")
    terminal.run("%llm_models")

    assert tab(terminal, "%%llm -m ")[0] == "qwen/qwen3-8b"


def test_models_of_a_local_server_need_no_key(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    wait_for_models(terminal)

    assert tab(terminal, "%%llm -m gpt") == ["gpt-5", "gpt-5-mini"]


def test_a_server_elsewhere_without_a_key_costs_no_error(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    terminal.run("%config LLMMagic.base_url = 'https://api.openai.com/v1'")

    assert tab(terminal, "%%llm -m gpt") == ["gpt-5-mini"]
    assert capsys.readouterr() == ("", "")


def test_models_when_replaying_are_not_fetched(terminal: Terminal) -> None:
    terminal.run("%config LLMMagic.mode = 'replay'")

    assert ours(terminal, "%%llm -m ") == []
    assert current(terminal.shell).models == {}


def test_a_server_that_is_gone_costs_no_error(
    terminal: Terminal, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.refusing():
        assert ours(terminal, "%%llm -m ") == []
        assert ours(terminal, "%%llm -m ") == []
    assert capsys.readouterr() == ("", "")


def test_a_setting_that_does_not_fit_costs_no_error(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_MAGIC_TIMEOUT", "soon")

    completions(terminal, "%%llm -m gpt-")
    assert capsys.readouterr() == ("", "")


def test_several_models_behind_commas(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an option of another parser, so that it does not matter which magics have it."""
    terminal.run("%llm_models")
    action = argparse.ArgumentParser().add_argument("--compare")
    compare = VALUES["compare"]

    assert action.dest == "compare"
    assert [each for each, _ in compare(terminal.shell, Ending("gpt-5,", action)).texts] == [
        *("gpt-5-mini", "llama3.2:3b", "qwen/qwen3-8b")
    ]
    found = compare(terminal.shell, Ending("a,gpt-5-", action))
    assert (found.typed, found.texts) == ("gpt-5-", [("gpt-5-mini", "model")])


TYPES = """
import dataclasses, enum, typing
from typing import Annotated, Any, Literal, List, NamedTuple, Optional, TypedDict
from enum import Enum
from pydantic import BaseModel
class Review(BaseModel):
    text: str
@dataclasses.dataclass
class Record:
    text: str
class Recipe(TypedDict):
    text: str
class Reply(Enum):
    YES = 1
class Result(NamedTuple):
    text: str
Reviews = list[Review]
Reason = Literal["a", "b"]
Rest = int | str
class Regular:
    pass
def retry(): ...
rest_of_it = 1
_Reserved = Review
"""


@pytest.fixture
def typed(terminal: Terminal) -> Terminal:
    assert terminal.run(TYPES).error is None
    return terminal


GOOD = ["Review", "Record", "Recipe", "Reply", "Result", "Reviews", "Reason", "Rest"]


def test_types_of_the_notebook(typed: Terminal) -> None:
    assert tab(typed, "%%llm --schema Re") == GOOD


def test_plain_types_behind_those_of_the_notebook(typed: Terminal) -> None:
    found = ours(typed, "%%llm --schema ")

    assert found[-7:] == ["str", "int", "float", "bool", "list", "dict", "Literal"]
    assert set(GOOD) < set(found)
    assert not {"BaseModel", "Enum", "Regular", "retry", "rest_of_it", "Any"} & set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("list[Rev", ["Review", "Reviews"]),
        ("dict[str, Rev", ["Review", "Reviews"]),
        ("dict[str,Rev", ["Review", "Reviews"]),
        ("Rep | Rev", ["Review", "Reviews"]),
        ('"Reply | Rev', ["Review", "Reviews"]),
        ("list[Lit", ["Literal"]),
        ("list[Review]", []),
        ('Literal["Rev', []),
        ("list[Review].", []),
        ("nothing.Re", []),
        ("rest_of_it.re", []),
    ],
)
def test_types_inside_of_others(text: str, expected: list[str], typed: Terminal) -> None:
    assert ours(typed, f"%%llm --schema {text}") == expected


def test_types_of_a_module(typed: Terminal) -> None:
    Path("shapes.py").write_text(TYPES)
    typed.run("import sys; sys.path.insert(0, ''); import shapes")

    assert tab(typed, "%%llm --schema list[shapes.Rec") == [
        *("list[shapes.Record", "list[shapes.Recipe")
    ]


@pytest.mark.parametrize("value", [int, str, object, enum.Enum, typing.Any, 3, "Review", None, len])
def test_what_is_no_type_of_a_notebook(value: Any) -> None:
    assert not is_schema(value)


def test_a_value_is_not_asked_what_it_is() -> None:
    class Odd:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    assert not is_schema(Odd())
    assert not is_schema(Odd)


def test_a_class_whose_base_is_a_dataclass() -> None:
    @dataclasses.dataclass
    class Base:
        text: str

    class Own(Base):
        pass

    assert is_schema(Own)


def test_names_to_bind(terminal: Terminal) -> None:
    terminal.run(
        "import argparse\nanswer = 1\ndef ask(): ...\nclass Animal: ...\n_a = 1\nanimals = []"
    )

    assert tab(terminal, "%%llm -o a") == ["answer", "animals"]
    assert {"In", "Out", "exit", "quit"}.isdisjoint(ours(terminal, "%%llm -o "))


def test_chats_where_the_session_has_some(terminal: Terminal) -> None:
    action = argparse.ArgumentParser().add_argument("--chat")
    session = current(terminal.shell)
    chats = VALUES["chat"]

    class Chats:
        def names(self) -> list[str]:
            return ["plan", "play", "review"]

    if not hasattr(session, "chats"):
        assert chats(terminal.shell, Ending("pla", action)).texts == []
    session.chats = Chats()  # type: ignore[attr-defined]

    assert chats(terminal.shell, Ending("pla", action)).texts == [
        ("plan", "chat"),
        ("play", "chat"),
    ]


def picture(name: str) -> None:
    from PIL import Image

    Image.new("RGB", (2, 2)).save(name)


def test_images_of_the_notebook_and_files(terminal: Terminal) -> None:
    Path("plots").mkdir()
    picture("photo.png")
    picture("plots/sales.jpg")
    Path("prices.csv").touch()
    terminal.run("from PIL import Image; pic = Image.new('RGB', (2, 2)); price = 3")
    terminal.run("from matplotlib.figure import Figure; plan = Figure()")

    assert tab(terminal, "%%llm -i p") == [
        "pic",
        "plan",
        "photo.png",
        f"plots{__import__('os').sep}",
    ]
    assert tab(terminal, "%%llm -i plots/") == ["plots/sales.jpg"]
    assert tab(terminal, "%%llm --image=ph") == ["--image=photo.png"]


def test_a_file_with_blanks_is_quoted(terminal: Terminal) -> None:
    Path("my plots").mkdir()
    picture("my plots/a b.png")
    picture("it's.png")

    assert ours(terminal, "%%llm -i my") == ['"my plots/']
    assert ours(terminal, '%%llm -i "my plots/a') == ['"my plots/a b.png"']
    assert ours(terminal, "%%llm -i 'my plots/a") == ["'my plots/a b.png'"]
    assert ours(terminal, "%%llm -i it") == ['"it\'s.png"']
    (found,) = completions(terminal, '%%llm -i "my pl')
    assert (found.start, found.text) == (9, '"my plots/')


def test_files_of_the_home_folder(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    picture("photo.png")

    assert tab(terminal, "%%llm -i ~/ph") == ["~/photo.png"]


# The prompt's template.


class Thing:
    kind = "class"

    def __init__(self) -> None:
        self.inner = {"deep": 1, "two words": 2}
        self.name = "x"

    @property
    def computed(self) -> int:
        raise AssertionError("a property was run")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was made")


@pytest.fixture
def names(terminal: Terminal) -> Terminal:
    terminal["orders"] = [1]
    terminal["origin"] = Thing()
    terminal["table"] = {"rows": 1, "keep": 2}
    terminal["_hidden"] = 1
    return terminal


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{{ or", ["orders", "origin"]),
        ("{{or", ["orders", "origin"]),
        ("{{- or", ["orders", "origin"]),
        ("Look:\n\n{{ ord‸ }}\nand more", ["orders"]),
        ("{{ orders }} and {{ ori", ["origin"]),
        ("{{ orders\n  + ori", ["origin"]),
        ("{% for x in ord", ["orders"]),
        ("{% if ord", ["orders"]),
        ("{{ len(ord", ["orders"]),
        ('{{ "a" ~ ord', ["orders"]),
        ("{{ origin.na", ["name"]),
        ("{{ origin.comp", ["computed"]),
        ("{{ origin.inner.de", ["deep"]),
        ("{{ table.ro", ["rows"]),
        ("{{ table.ke", ["keep", "keys"]),
        ("{% f", ["for"]),
        ("{% end", ["endfor", "endif"]),
        ("{%- se", ["set"]),
    ],
)
def test_names_in_the_template(body: str, expected: list[str], names: Terminal) -> None:
    assert ours(names, f"%%llm -m x\n{body}") == expected
    assert [each.text for each in completions(names, f"%%llm -m x\n{body}")] == expected


@pytest.mark.parametrize(
    "body",
    [
        "or",
        "{ or",
        "{{ orders }} or",
        "{{ _hid",
        "{{ 'or",
        '{{ "or',
        "{{ orders | or",
        "{{ orders[0].re",
        "{{ f(x).re",
        "{{ origin.computed.de",
        "{{ nothing.de",
        "{{ 5.re",
        "{{ table.__",
        "{% endfor %} or",
    ],
)
def test_where_the_template_has_nothing(body: str, names: Terminal) -> None:
    assert ours(names, f"%%llm\n{body}") == []


def test_on_the_line_as_well(names: Terminal) -> None:
    assert ours(names, "%llm What of {{ ord") == ["orders"]
    assert ours(names, '%%llm -s "Only {{ ord') == ["orders"]
    assert ours(names, "%llm What of {{ orders }} or") == []


def test_columns_of_a_frame(terminal: Terminal) -> None:
    terminal.run("import pandas as pd; df = pd.DataFrame({'region': [1], 'returns': [2]})")

    assert {"region", "returns"} <= set(ours(terminal, "%%llm\n{{ df.re"))


def test_a_long_paste_is_no_trouble(terminal: Terminal) -> None:
    """A search that begins anew at each character would not end in an hour."""
    assert ours(terminal, "%%llm\n{{ " + "x" * 3_000_000) == []


# Everywhere else IPython has its say.


@pytest.mark.parametrize(
    "cell",
    [
        "orders.",
        "ord",
        "import o",
        "%time ord",
        "%%time\nord",
        "%%bash --",
        "%matplotlib --",
        "%%llm",
        "%llm",
        "%llm_ca",
        "%%timeit -m ",
        "x % llm -m ",
        "'%llm' -m",
        "f'{{ ord",
        "%%html\n{{ ord",
        "%%llm\nHello %llm",
        "%%llm_nothing --",
        "",
        "\n",
    ],
)
def test_not_ours(cell: str, names: Terminal) -> None:
    assert ours(names, cell) == []


def test_ipython_s_own_completion_is_as_it_was(
    bare_terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_terminal["orders"] = {"region": 1}
    cells = ["ord", "orders[", "orders.ke", "import collec", "%tim", "%%ba", "%%time\nord", "%cd "]
    before = [[each.text for each in completions(bare_terminal, cell)] for cell in cells]
    bare_terminal.run("%load_ext llm_magic")
    after = [[each.text for each in completions(bare_terminal, cell)] for cell in cells]

    assert before == after
    assert all(before)


def test_the_magics_names_come_from_ipython(terminal: Terminal) -> None:
    assert {"%llm", "%%llm", "%llm_cache"} <= set(tab(terminal, "%llm") + tab(terminal, "%%ll"))


def test_loaded_twice_there_is_one(terminal: Terminal) -> None:
    terminal.run("%reload_ext llm_magic")
    terminal.run("%load_ext llm_magic")
    matchers = terminal.shell.Completer.custom_matchers

    assert [each.matcher_identifier for each in matchers].count(IDENTIFIER) == 1
    assert tab(terminal, "%%llm --ra") == ["--raw"]


def test_other_matchers_stay(bare_terminal: Terminal) -> None:
    def other(text: str) -> list[str]:
        return ["other_match"] if text.startswith("oth") else []

    bare_terminal.shell.Completer.custom_matchers.append(other)
    bare_terminal.run("%load_ext llm_magic")

    assert "other_match" in tab(bare_terminal, "oth")


def test_nothing_is_printed_and_nothing_raised_whatever_is_typed(
    names: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every prefix of lines that are odd."""
    capsys.readouterr()
    lines = [
        "%%llm x << --schema list[Literal[\"a, 'b] --image \"a b' -o ''\n{{ a.b[c](d)|e.f }}{% i",
        "%llm --compare a,,b --nothing=-- -- {{ '\"}} {{{{ %}",
        "%%llm_cache --unused= \\ ' \"\n",
        "%%llm -i ~nobody/x -i /proc/\x00 -m \ud800",
    ]
    for line in lines:
        for end in range(len(line) + 1):
            ours(names, line[:end])
            completions(names, line[:end])

    assert capsys.readouterr() == ("", "")


def test_a_fault_of_a_value_costs_no_completion(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd:
        def __dir__(self) -> list[str]:
            raise RuntimeError("no")

    terminal["odd"] = Odd()

    completions(terminal, "%%llm\n{{ odd.zzz")
    assert capsys.readouterr() == ("", "")


def test_it_loads_nothing_heavy(terminal: Terminal) -> None:
    """In another process the kernel's test looks at what loading brings; here at completing."""
    before = set(sys.modules)
    for cell in ("%%llm --", "%%llm --schema ", "%%llm -o ", "%%llm -i ", "%%llm\n{{ x"):
        ours(terminal, cell)

    assert {name.partition(".")[0] for name in set(sys.modules) - before} == set()


def test_from_another_thread(terminal: Terminal) -> None:
    """prompt_toolkit completes in threads."""
    terminal.run("%llm_models")
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(ours(terminal, "%%llm -m gpt")))
        for _ in range(4)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert found == [["gpt-5", "gpt-5-mini"]] * 4


def test_in_the_terminal_s_own_prompt(terminal: Terminal) -> None:
    """What prompt_toolkit shows: the word, and the help beside it."""
    completer = IPythonPTCompleter(shell=terminal.shell)
    document = Document("%%llm --max-t", len("%%llm --max-t"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = completer.get_completions(document, CompleteEvent())

    assert found.text == "--max-tokens"
    assert found.start_position == -len("--max-t")
    assert found.display_meta_text == "Cap on the answer, in tokens"


# IPython before 8.6.


@pytest.fixture
def old(names: Terminal) -> Terminal:
    """The shell as an older IPython would have it: with our completer as a hook."""
    matchers = names.shell.Completer.custom_matchers
    matchers[:] = [each for each in matchers if each.matcher_identifier != IDENTIFIER]
    completion._register_old(names.shell)
    return names


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%%llm --ra", ["--raw"]),
        ("%llm --schema list[Lit", ["list[Literal"]),
        ("%%llm --effort ", ["low", "medium", "high"]),
        ("%%llm --effort=h", ["--effort=high"]),
        ("%llm_cache pr", ["prune"]),
        ("%llm Look at {{ ord", ["orders"]),
        ("%llm Look at {{ origin.na", ["origin.name"]),
    ],
)
def test_as_a_hook(line: str, expected: list[str], old: Terminal) -> None:
    old.shell.Completer.use_jedi = False

    assert tab(old, line) == expected


def test_a_hook_is_set_once(old: Terminal) -> None:
    completion._register_old(old.shell)
    chains = old.shell.strdispatchers["complete_command"].regexs

    assert [each.pattern for each in chains].count(completion._OLD_LINE) == 1
    assert all(len(list(chain)) == 1 for chain in chains.values())


def test_a_shell_without_the_newer_interface_gets_the_hook(
    bare_terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    import IPython.core.completer

    monkeypatch.delattr(IPython.core.completer, "context_matcher")
    bare_terminal.run("%load_ext llm_magic")
    bare_terminal.shell.Completer.use_jedi = False

    assert bare_terminal.shell.Completer.custom_matchers == []
    assert tab(bare_terminal, "%%llm --ra") == ["--raw"]


# A kernel.


def replies(kernel: Kernel, cell: str) -> dict[str, Any]:
    """What JupyterLab gets for a Tab."""
    text, offset = place(cell)
    request = kernel.client.complete(text, offset)
    while True:
        reply = kernel.client.get_shell_msg(timeout=30)
        if reply["parent_header"].get("msg_id") == request:
            content: dict[str, Any] = reply["content"]
            return content


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with ScriptedServer(models=OFFERED) as server:
        running = Kernel(
            watched=True, environment={"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
        )
        try:
            running.run("%load_ext llm_magic")
            running.run("orders = [1]; import dataclasses")
            running.run("@dataclasses.dataclass\nclass Review:\n    text: str")
            yield running
        finally:
            running.stop()


@pytest.mark.kernel
@pytest.mark.parametrize("jedi", [True, False])
@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("%%llm --ra‸\nHello", ["--raw"]),
        ("%%llm --schema list[Re‸\nHello", ["Review"]),
        ("%%llm\nHello ñ {{ ord‸ }}", ["orders"]),
        ("x = %llm --effort l", ["low"]),
        ("%llm_cache cl", ["clear"]),
    ],
)
def test_in_a_kernel(jedi: bool, cell: str, expected: list[str], kernel: Kernel) -> None:
    kernel.run(f"%config IPCompleter.use_jedi = {jedi}")
    reply = replies(kernel, cell)
    text, offset = place(cell)

    assert reply["matches"] == expected
    assert reply["cursor_end"] == offset
    assert expected[0].startswith(text[reply["cursor_start"] : offset])


@pytest.mark.kernel
def test_models_in_a_kernel(kernel: Kernel) -> None:
    """The first Tab may end before the server has answered; a later one has the list."""
    end = time.monotonic() + 30
    while not (found := replies(kernel, "%%llm -m gpt‸\nHello")["matches"]):
        assert time.monotonic() < end

    assert found == ["gpt-5", "gpt-5-mini"]


@pytest.mark.kernel
def test_a_kernel_tells_the_help(kernel: Kernel) -> None:
    reply = replies(kernel, "%%llm --dry‸\nHello")

    (found,) = reply["metadata"]["_jupyter_types_experimental"]
    assert (found["text"], found["type"]) == ("--dry-run", "Show what would be sent; send nothing")


@pytest.mark.kernel
def test_python_in_a_kernel_is_ipython_s(kernel: Kernel) -> None:
    assert "orders" in replies(kernel, "ord")["matches"]
    assert any("append" in each for each in replies(kernel, "orders.app")["matches"])
