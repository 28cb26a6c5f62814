"""The file of results: complete, as its scripts write it, and of no machine in particular."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
RESULTS = FOLDER / "RESULTS.md"
LARGEST = 30_000


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules that say what is claimed and drawn."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("bars", "report", "plots")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


def cells(line: str) -> list[str]:
    return [each.strip() for each in line.strip("| \n").split(" | ")]


def test_every_bar_has_a_line_in_the_table(scripts: dict[str, ModuleType]) -> None:
    table = [cells(each) for each in RESULTS.read_text().splitlines() if each.startswith("| ")]
    told = {line[5]: line[6] for line in table if len(line) == 7}

    assert {bar.text for bar in scripts["bars"].BARS.values()} <= told.keys()


def test_every_bar_is_claimed_by_a_script_that_runs(scripts: dict[str, ModuleType]) -> None:
    run = (FOLDER / "run.py").read_text()
    parts = [path for path in FOLDER.glob("*.py") if f'"{path.stem}"' in run]
    claims = "".join(path.read_text() for path in parts)

    for name in scripts["bars"].BARS:
        # Some names are put together: "rate with headers" from f"rate {with_}".
        first, _, rest = name.partition(" ")
        assert f'"{name}"' in claims or (f'f"{first} {{' in claims and f'"{rest}"' in claims), name


def test_a_bar_that_is_not_met_is_told_with_its_reason(scripts: dict[str, ModuleType]) -> None:
    text = RESULTS.read_text()
    _, _, below = text.partition("## What is not met, and why")
    table = [cells(each) for each in text.splitlines() if each.startswith("| ")]
    missed = {line[5] for line in table if len(line) == 7 and line[6].lower().startswith("no")}

    for bar in missed - {""}:
        assert f"**{bar}**" in below


def test_every_plot_is_there_and_small(scripts: dict[str, ModuleType]) -> None:
    text = RESULTS.read_text()
    shown = re.findall(r"!\[[^\]]+\]\((plots/[^)]+)\)", text)

    assert {Path(each).stem for each in shown} == set(scripts["plots"].PLOTS)
    for each in shown:
        assert 0 < (FOLDER / each).stat().st_size < LARGEST
    for plot in scripts["plots"].PLOTS.values():
        assert plot.words in text


def test_no_plot_is_there_that_is_not_shown(scripts: dict[str, ModuleType]) -> None:
    there = {path.stem for path in (FOLDER / "plots").iterdir()}

    assert there == set(scripts["plots"].PLOTS)


def test_no_folder_and_no_name_of_the_machine_is_told() -> None:
    files = [RESULTS, *(FOLDER / "plots").iterdir()]
    for file in files:
        text = file.read_text()
        assert not re.search(r"/(?:home|root|work|tmp|Users|opt|var)/|[A-Z]:\\", text), file
        assert "127.0.0.1" not in text


def test_a_missed_bar_fails_the_run_unless_it_is_known(scripts: dict[str, ModuleType]) -> None:
    row = scripts["report"].Row

    assert row("work", 1.0, "s", bar="load").failed
    assert not row("work", 0.1, "s", bar="load").failed
    known = row("work", 1.0, "rows/s", "aiohttp", 10.0, "rows beside aiohttp")
    assert known.met is False
    assert not known.failed
    assert known.cells()[6] == "no, see below"


def test_least_and_most_bars_hold_on_their_side(scripts: dict[str, ModuleType]) -> None:
    bars = scripts["bars"].BARS

    assert bars["rows"].met(600, 100)
    assert not bars["rows"].met(599, 100)
    assert bars["bytes"].met(200, 100)
    assert not bars["bytes"].met(201, 100)
    assert bars["rows memory"].met(50, 60)
    assert not bars["rows memory"].met(61, 60)
