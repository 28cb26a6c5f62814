"""Tab in a %%llm_map cell: tables, their columns, and the options that it shares with %%llm."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from llm_magic.mapmagic import MapMagics
from tests.conftest import Kernel, Terminal
from tests.test_completion import ours, replies, tab


@dataclasses.dataclass
class Letter:
    sender: str
    body: str


@pytest.fixture
def tables(terminal: Terminal) -> Terminal:
    """A notebook with tables of many kinds, and what is none."""
    reviews = pd.DataFrame({"text": ["a"], "stars": [1], "odd name": [2], 7: [3]})
    terminal["rate"] = 0.5
    terminal["rows"] = [{"id": 1, "body": "a"}]
    terminal["reasons"] = ["late", "broken"]
    terminal["remarks"] = reviews["text"]
    terminal["reviews"] = reviews
    terminal["returns"] = pl.DataFrame({"order": [1], "why": ["a"]})
    terminal["records"] = pa.table({"key": [1], "note": ["a"]})
    terminal["replies"] = [Letter("Ana", "Hello")]
    terminal["region"] = {"text": "no table"}
    terminal["ranks"] = [1, 2]
    return terminal


def test_frames_first_then_series_then_lists_then_options(tables: Terminal) -> None:
    offered = tab(tables, "%%llm_map ")

    assert offered[:7] == [
        *("reviews", "returns", "records"),
        "remarks",
        *("rows", "reasons", "replies"),
    ]
    assert offered[7:] == [
        each for each in MapMagics.llm_map.parser._option_string_actions if each.startswith("--")
    ]


def test_a_table_that_begins_so(tables: Terminal) -> None:
    assert tab(tables, "%%llm_map re") == [
        *("reviews", "returns", "records"),
        *("remarks", "reasons", "replies"),
    ]
    assert tab(tables, "%%llm_map --schema int rev") == ["reviews"]


def test_workers_behind_on(tables: Terminal) -> None:
    with ThreadPoolExecutor(1) as pool:
        tables["readers"] = pool
        tables["ThreadPoolExecutor"] = ThreadPoolExecutor
        assert tab(tables, "%%llm_map reviews --on ") == ["readers"]


def test_a_frame_of_dask_and_its_columns(tables: Terminal) -> None:
    from dask import dataframe as dd

    tables["remote"] = dd.from_pandas(tables["reviews"][["text", "stars"]], npartitions=1)
    assert tab(tables, "%%llm_map rem") == ["remote", "remarks"]
    assert tab(tables, "%%llm_map remote\n{{ st") == ["stars"]


def test_a_column_of_a_frame_as_the_table(tables: Terminal) -> None:
    assert tab(tables, "%%llm_map reviews.") == ["reviews.text", "reviews.stars"]


def test_what_follows_the_table(tables: Terminal) -> None:
    assert tab(tables, "%%llm_map reviews results << --sam") == ["--sample"]
    assert tab(tables, "%%llm_map reviews[reviews.stars > 3] --sam") == ["--sample"]
    assert tab(tables, "%%llm_map reviews --concurrency ") == ["auto"]
    assert tab(tables, "%%llm_map reviews --effort l") == ["low"]
    assert tab(tables, "%%llm_map reviews -o rev") == ["reviews"]


def test_types_and_models_as_behind_the_other_magic(terminal: Terminal) -> None:
    terminal.run("from typing import Literal\nReason = Literal['a']")
    terminal.run("%llm_models")

    assert tab(terminal, "%%llm_map rows --schema list[Rea") == ["list[Reason"]
    assert tab(terminal, "%%llm_map rows -m scr") == ["scripted-model"]


def test_folders_and_patterns_of_files_in_quotes(terminal: Terminal) -> None:
    Path("letters/old").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "c.md"):
        Path("letters", name).touch()

    assert tab(terminal, '%%llm_map "let') == ['"letters/']
    assert tab(terminal, '%%llm_map "letters/') == [
        *('"letters/*.md"', '"letters/*.txt"', '"letters/old/')
    ]


@pytest.mark.parametrize(
    ("frame", "columns"),
    [
        ("reviews", ["text", "stars"]),
        ("reviews.head(3)", ["text", "stars"]),
        ("reviews[reviews.stars > 3]", ["text", "stars"]),
        ("reviews.text", ["text"]),
        ('reviews["text"]', ["text"]),
        ("returns", ["order", "why"]),
        ("records", ["key", "note"]),
        ("remarks", ["text"]),
        ("rows", ["id", "body"]),
        ("replies", ["sender", "body"]),
        ("reasons", ["text"]),
        ('["a", "b"]', ["text"]),
        ('"letters/*.txt"', ["path", "name", "text", "image"]),
    ],
)
@pytest.mark.parametrize("line", ["{} results << --schema int", "--sample 3 {}"])
def test_columns_come_first_in_a_prompt(
    frame: str, columns: list[str], line: str, tables: Terminal
) -> None:
    found = ours(tables, f"%%llm_map {line.format(frame)}\nRead {{{{ ‸ }}}}")

    assert found[: len(columns) + 1] == [*columns, "row"]
    assert "rate" in found


def test_columns_behind_the_row(tables: Terminal) -> None:
    assert tab(tables, "%%llm_map reviews\n{{ row.st") == ["row.stars"]
    assert ours(tables, '%%llm_map reviews\n{{ row["') == ["text", "stars", "odd name", "7"]
    assert ours(tables, "%%llm_map reviews\n{{ row['odd n‸'] }}") == ["odd name"]


def test_a_column_hides_the_notebook_s_name(tables: Terminal) -> None:
    tables["text"] = Letter("Ana", "Hello")

    assert ours(tables, "%%llm_map reviews\n{{ tex").count("text") == 1
    assert ours(tables, "%%llm_map reviews\n{{ text.se") == []
    assert ours(tables, "%%llm_map rows\n{{ text.se") == ["sender"]


@pytest.mark.parametrize(
    "line", ["rate", "nobody", "region", "ranks", "", "reviews --nothing", "("]
)
def test_where_there_is_no_table_the_notebook_s_names_are_left(line: str, tables: Terminal) -> None:
    assert ours(tables, f"%%llm_map {line}\n{{{{ rat") == ["rate"]


def test_nothing_of_the_notebook_is_run(tables: Terminal) -> None:
    class Trap:
        ran = False

        @property
        def columns(self) -> list[str]:
            Trap.ran = True
            return ["text"]

        def __getattr__(self, name: str) -> object:
            Trap.ran = True
            raise AttributeError(name)

    tables["trap"] = Trap()
    tables["traps"] = [Trap()]

    for cell in ("%%llm_map tr", "%%llm_map trap\n{{ tex", "%%llm_map traps\n{{ tex"):
        ours(tables, cell)
    assert not Trap.ran
    assert "trap" not in ours(tables, "%%llm_map tr")


def test_the_other_magic_s_prompt_knows_no_row(tables: Terminal) -> None:
    assert "row" not in ours(tables, "%%llm\n{{ ro")


@pytest.mark.kernel
def test_tables_and_columns_in_a_kernel() -> None:
    """Where the front end asks: a whole cell, and the cursor in it."""
    kernel = Kernel(watched=True, environment={})
    try:
        kernel.run("%load_ext llm_magic\nimport pandas as pd")
        kernel.run("reviews = pd.DataFrame({'text': ['a'], 'stars': [1]})")

        cell = "%%llm_map rev‸ out << --schema int\nRead {{ st }}"
        assert replies(kernel, cell)["matches"] == ["reviews"]
        cell = "%%llm_map reviews out << --schema int\nRead {{ st‸ }}"
        assert replies(kernel, cell)["matches"] == ["stars"]
    finally:
        kernel.stop()
