"""The README says what the program does, and its Python runs."""

import re
from pathlib import Path

import pytest

from llm_magic.magics import LLMMagics
from llm_magic.settings import LLMMagic
from llm_magic.testing import ScriptedServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def table(heading: str) -> str:
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_readme_lists_every_option_and_no_other() -> None:
    parser = LLMMagics.llm.parser
    known = {name for name in parser._option_string_actions if name.startswith("--")}
    listed = set(re.findall(r"--[a-z][a-z-]+", table("Options").partition("Presets")[0]))

    assert listed == known


def test_help_says_what_each_option_does() -> None:
    assert all(action.help for action in LLMMagics.llm.parser._actions)


def test_help_has_every_option_in_a_group_of_ours() -> None:
    parser = LLMMagics.llm.parser
    groups = {group.title: group._group_actions for group in parser._action_groups}
    titles = ("the question", "the answer", "cache and cost", "on screen")

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
