"""The README says what the program does, and its Python runs."""

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import llm_magic
from llm_magic.magics import LLMMagics
from llm_magic.mapmagic import MapMagics
from llm_magic.settings import LLMMagic
from llm_magic.testing import ScriptedServer
from tests.conftest import Terminal

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAGICS = (LLMMagics.llm, MapMagics.llm_map)
TABLES = "One prompt, every row"
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def table(heading: str) -> str:
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_readme_lists_every_option_and_no_other() -> None:
    parser = LLMMagics.llm.parser
    known = {name for name in parser._option_string_actions if name.startswith("--")}
    listed = set(re.findall(r"--[a-z][a-z-]+", table("Options").partition("Presets")[0]))

    assert listed == known


def test_readme_lists_every_option_for_tables_and_no_other() -> None:
    known = {each for each in MapMagics.llm_map.parser._option_string_actions if each[:2] == "--"}
    rows = [line for line in table(TABLES).splitlines() if line.startswith("| ")]
    listed = {name for row in rows for name in re.findall(r"`(--[a-z-]+)", row.split(" | ")[0])}

    assert listed == known


def test_an_option_of_both_magics_is_read_alike() -> None:
    one, every = (magic.parser._option_string_actions for magic in MAGICS)

    for name in one.keys() & every.keys():
        for field in ("dest", "nargs", "type", "default", "choices", "metavar"):
            assert getattr(one[name], field) == getattr(every[name], field), (name, field)


def test_the_function_takes_what_the_magic_takes() -> None:
    dests = {action.dest for action in MapMagics.llm_map.parser._actions}
    known = set(inspect.signature(llm_magic.map_rows).parameters)

    # Only a cell binds a name and can be looked at before; its params are called otherwise.
    assert dests - known == {"out", "param", "dry_run"}
    assert known - dests == {"prompt", "params"}


def test_the_cells_about_a_table_give_the_table_that_is_shown(terminal: Terminal) -> None:
    types, cell, shown = re.findall(r"```(?:python|text)\n(.*?)```", table(TABLES), re.DOTALL)[:3]
    answers = {"lid": '{"product": "kettle", "stars": 2}', "": '{"product": "toaster", "stars": 5}'}
    with ScriptedServer(answers) as server:
        terminal.run(f"%config LLMMagic.base_url = {server.url!r}")
        terminal.run('%config LLMMagic.prices = {"scripted-model": {"input": 0.25, "output": 2}}')
        assert terminal.run(types).error is None
        assert terminal.run(cell).error is None

    assert terminal["results"].to_string() == shown.rstrip()


@pytest.mark.parametrize("magic", MAGICS)
def test_help_says_what_each_option_does(magic: Any) -> None:
    assert all(action.help for action in magic.parser._actions)


@pytest.mark.parametrize(
    ("magic", "titles"),
    [
        (MAGICS[0], ("the question", "the answer", "cache and cost", "on screen")),
        (
            MAGICS[1],
            ("the table", "the question", "the answers", "cache and cost", "on its way"),
        ),
    ],
)
def test_help_has_every_option_in_a_group_of_ours(magic: Any, titles: tuple[str, ...]) -> None:
    parser = magic.parser
    groups = {group.title: group._group_actions for group in parser._action_groups}

    assert [title for title, actions in groups.items() if actions] == list(titles)
    assert sum(len(groups[title]) for title in titles) == len(parser._actions)


def test_readme_lists_every_setting_and_no_other() -> None:
    rows = "".join(line.split("|")[1] for line in table("Settings").splitlines() if "|" in line)

    assert set(re.findall(r"`(\w+)`", rows)) == set(LLMMagic.class_traits(config=True))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.usefixtures("provider")
def test_python_of_the_readme_runs(block: str, server: ScriptedServer) -> None:
    if "City" in block:
        server.enqueue('{"result": [{"name": "Santiago", "people": 5600000}]}')
    exec(compile(block, "README.md", "exec"), {})


def test_there_is_python_in_the_readme() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"])
def test_the_other_documents_are_there(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8")


def test_the_architecture_has_the_layers_that_are_checked() -> None:
    """In their order, line by line; what a line says of them may go on below it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = text.partition("## The layers\n")[2].partition("Each vendor")[0]
    lines = [line.strip() for line in drawn.splitlines() if re.match(r"    \S", line)]

    assert [
        next((each for each in layers if is_layer(line, each)), line) for line in lines
    ] == layers


def is_layer(line: str, layer: str) -> bool:
    return re.match(rf"{re.escape(layer)}(\s\s|$)", line) is not None
