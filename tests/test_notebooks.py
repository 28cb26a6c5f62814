"""The example notebooks as they are saved: what a reader sees who runs nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NAMES = (
    "01_quickstart",
    "02_structured",
    "03_tables",
    "04_team",
    "05_budget_and_cache",
    "06_servers",
    "07_testing",
    "08_around",
)
LARGEST = 150_000
PATHS = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|var|usr|opt|work|mnt)/\w|[A-Z]:\\\\")
KEYS = re.compile(r"\b(?:sk-[\w-]{8,}|gh[pousr]_\w{8,}|Bearer [\w-]{8,})")

each = pytest.mark.parametrize("name", NAMES)


def saved(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))


def code(name: str) -> list[dict[str, Any]]:
    return [cell for cell in saved(name)["cells"] if cell["cell_type"] == "code"]


def outputs(name: str) -> list[dict[str, Any]]:
    return [output for cell in code(name) for output in cell["outputs"]]


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def words(name: str) -> str:
    cells = saved(name)["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_they_are_those_of_the_list() -> None:
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == list(NAMES)


@each
def test_the_readme_links_to_it(name: str) -> None:
    assert f"(notebooks/{name}.ipynb)" in (ROOT / "README.md").read_text(encoding="utf-8")


@each
def test_it_was_run_from_top_to_bottom(name: str) -> None:
    counts = [cell["execution_count"] for cell in code(name)]
    assert counts == list(range(1, len(counts) + 1))


@each
def test_it_shows_an_error_only_where_one_is_meant(name: str) -> None:
    for cell in code(name):
        failed = any(output["output_type"] == "error" for output in cell["outputs"])
        assert failed == ("raises-exception" in tags(cell)), cell["source"]


@each
def test_it_says_early_that_the_demo_model_answers(name: str) -> None:
    before, _, _ = words(name).partition("\n## ")
    assert "**scripted demo model**" in before
    assert any("the demo model, a script" in "".join(out.get("text", ())) for out in outputs(name))


@each
def test_it_needs_no_kernel_to_be_read(name: str) -> None:
    """No widget, no script; every output has a form that GitHub shows."""
    assert "widgets" not in saved(name)["metadata"]
    for output in outputs(name):
        kinds = set(output.get("data", ()))
        assert not kinds or kinds & {"text/plain", "text/html", "text/markdown", "image/png"}
        assert not any("widget" in kind or "javascript" in kind for kind in kinds)
        assert "<script" not in "".join(output.get("data", {}).get("text/html", ()))


@each
def test_it_ends_with_a_table_or_a_figure(name: str) -> None:
    """In one of the last two cells."""
    kinds = [output.get("data", {}) for cell in code(name)[-2:] for output in cell["outputs"]]
    assert any(
        "image/png" in kind or "<table" in "".join(kind.get("text/html", ())) for kind in kinds
    )


@each
def test_a_figure_is_not_compared(name: str) -> None:
    """Pixels and fonts differ from machine to machine; all else is compared."""
    for cell in code(name):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            assert "nbval-ignore-output" in tags(cell)


@each
def test_nothing_of_the_machine_is_in_it(name: str) -> None:
    """No folder, no key, no time at which a cell ran."""
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not PATHS.findall(text)
    assert not KEYS.findall(text)
    for cell in saved(name)["cells"]:
        assert set(cell["metadata"]) <= {"tags"}


@each
def test_it_is_small_and_short(name: str) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size < LARGEST
    assert len(saved(name)["cells"]) <= 35


def test_all_have_the_same_kernel() -> None:
    found = {json.dumps(saved(name)["metadata"]["kernelspec"], sort_keys=True) for name in NAMES}
    assert len(found) == 1
    assert {saved(name)["nbformat_minor"] for name in NAMES} == {5}
