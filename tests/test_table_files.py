"""Files as rows: which ones, what a template sees of them, and what cannot be read."""

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel

from llm_magic import map_rows
from llm_magic.errors import PromptError
from llm_magic.table import source
from llm_magic.testing import ScriptedServer
from llm_magic.values import to_prompt
from tests.conftest import Terminal

OWN = ["_error", "_cached", "_cost"]
pytestmark = pytest.mark.usefixtures("provider")


class Number(BaseModel):
    n: int


@pytest.fixture(scope="module")
def one_server() -> Iterator[ScriptedServer]:
    numbers = {f"text {n}": json.dumps({"n": n}) for n in range(5)}
    with ScriptedServer(numbers, default='{"n": 9}') as running:
        yield running


@pytest.fixture
def server(one_server: ScriptedServer) -> ScriptedServer:
    one_server.reset()
    return one_server


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder with three texts, out of order, a hidden one and a folder with one more."""
    folder = tmp_path / "notes"
    (folder / "deeper").mkdir(parents=True)
    for name, text in (("b.txt", "text 2"), ("a.txt", "text 1"), ("c.md", "text 3")):
        (folder / name).write_text(text)
    (folder / ".hidden").write_text("text 0")
    (folder / "deeper" / "d.txt").write_text("text 4")
    return folder


def numbers(files: Any, prompt: str = "{{ text }}", **options: Any) -> Any:
    return map_rows(files, prompt, schema=Number, repairs=0, quiet=True, **options)


def asked(server: ScriptedServer) -> list[Any]:
    return [each.body["messages"][-1]["content"] for each in server.requests]


def picture() -> bytes:
    """A PNG of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("notes", ["a.txt", "b.txt", "c.md"]),
        ("notes/", ["a.txt", "b.txt", "c.md"]),
        ("notes/*.txt", ["a.txt", "b.txt"]),
        ("notes/[ac].*", ["a.txt", "c.md"]),
        ("notes/?.md", ["c.md"]),
        ("notes/**/*.txt", ["a.txt", "b.txt", "d.txt"]),
        ("notes/*", ["a.txt", "b.txt", "c.md"]),
        ("~/notes/*.md", ["c.md"]),
    ],
)
def test_a_pattern_or_a_folder_names_its_files_in_their_order(
    notes: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, names: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(notes.parent))
    result = numbers(pattern)
    found = {"a.txt": 1, "b.txt": 2, "c.md": 3, "d.txt": 4}
    assert list(result.columns) == ["path", "name", "n", *OWN]
    assert sorted(result["name"]) == names
    assert result["path"].tolist() == sorted(result["path"])
    assert all(os.path.isfile(path) for path in result["path"])
    assert result["n"].tolist() == [found[name] for name in result["name"]]


def test_a_path_object_names_a_folder_too(notes: Path) -> None:
    assert numbers(notes)["n"].tolist() == [1, 2, 3]


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path: Path) -> None:
    folder = tmp_path / "notes [old]"
    folder.mkdir()
    (folder / "a.txt").write_text("text 4")
    assert numbers(folder)["n"].tolist() == [4]


def test_a_list_of_paths_is_those_files_in_its_order(notes: Path) -> None:
    result = numbers([notes / "b.txt", notes / "gone.txt", notes / "a.txt"])
    assert result["n"].tolist() == [2, pd.NA, 1]
    assert "cannot be read (No such file" in result["_error"][1]


def test_a_template_sees_path_and_name(notes: Path, server: ScriptedServer) -> None:
    numbers("notes/a.txt*", "{{ path }} {{ name }} {{ row.text | length }}")
    assert asked(server) == [f"notes{os.sep}a.txt a.txt 6"]


def test_a_sample_of_files(notes: Path) -> None:
    assert numbers("notes/**/*.*", sample=2)["n"].tolist() == [1, 3]


def test_an_image_is_attached_and_a_text_has_none(tmp_path: Path, server: ScriptedServer) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.png").write_bytes(picture())
    (tmp_path / "mixed" / "b.txt").write_text("words")
    result = numbers("mixed", "{{ name }}: {{ image or text }}")
    assert result["_error"].isna().all()
    attached, words = sorted(asked(server), key=str, reverse=True)
    parts = attached if isinstance(attached, list) else words
    text = words if isinstance(words, str) else attached
    assert text == "b.txt: words"
    assert parts[0] == {"type": "text", "text": "a.png: "}
    assert parts[1]["image_url"]["url"].startswith("data:image/png;base64,")


def test_the_whole_row_of_a_picture_has_the_picture(tmp_path: Path, server: ScriptedServer) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    numbers("*.png", "{{ row }}")
    ((words, attached),) = asked(server)
    assert words["text"].split() == ["path:", "a.png", "name:", "a.png", "text:", "image:"]
    assert attached["type"] == "image_url"


@pytest.mark.parametrize(
    "make", [pd.DataFrame, pl.DataFrame, pa.table, lambda columns: columns["photo"]]
)
def test_the_bytes_of_a_picture_in_a_cell_are_attached(make: Any, server: ScriptedServer) -> None:
    frame = make({"photo": [picture(), b"words"]})
    rows = frame if not isinstance(frame, list) else [{"photo": each} for each in frame]
    result = numbers(rows, "See {{ photo }}")
    words, parts = sorted(asked(server), key=lambda each: isinstance(each, list))
    assert words == "See words"
    assert parts[1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert len(result) == 2


def test_the_mark_that_windows_puts_before_a_text_is_no_part_of_it(
    tmp_path: Path, server: ScriptedServer
) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext 1")
    numbers("*.txt")
    assert asked(server) == ["text 1"]


def test_a_file_that_is_no_text_fails_alone(notes: Path, server: ScriptedServer) -> None:
    (notes / "b.txt").write_bytes("Größe".encode("latin-1"))
    result = numbers("notes/*.txt")
    assert result["n"].tolist() == [1, pd.NA]
    assert "b.txt' is no UTF-8 text (byte 2 is 0xf6); the row was not sent" in result["_error"][1]
    assert asked(server) == ["text 1"]


def test_a_picture_that_no_server_takes_fails_alone(tmp_path: Path, server: ScriptedServer) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture() + bytes(25_000_000))
    result = numbers("*.png", "{{ image }}")
    assert result["n"].tolist() == [9, pd.NA]
    assert "b.png has 25.0 MB, and an image may have 20.0 MB" in result["_error"][1]
    assert len(server.requests) == 1


@pytest.mark.parametrize("use", ["text", "text | length", "text.upper()", "text[0]", "text ~ '!'"])
def test_every_use_of_what_cannot_be_read_says_why(tmp_path: Path, use: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    assert "is no UTF-8 text" in numbers("*.txt", f"{{{{ {use} }}}}")["_error"][0]


def test_what_cannot_be_read_and_is_not_used_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text("text 1")
    result = numbers("*.txt", "{{ name if name == 'a.txt' else text }}")
    assert result["n"].tolist() == [9, 1]


def test_the_rows_that_are_shown_have_names_and_no_bytes(
    tmp_path: Path, terminal: Terminal, server: ScriptedServer
) -> None:
    (tmp_path / "photo.png").write_bytes(picture())
    shown = terminal.run("import llm_magic; r = llm_magic.map_rows('*.png', '{{ image }}')").out
    assert "photo.png" in shown
    assert "PNG\\r" not in shown


def test_only_files_are_rows(notes: Path) -> None:
    os.mkfifo(notes / "pipe.txt")
    (notes / "nowhere.txt").symlink_to("nowhere")
    (notes / "circle.txt").symlink_to(notes / "circle.txt")
    (notes / "folder.txt").mkdir()
    assert numbers("notes/*.txt")["name"].tolist() == ["a.txt", "b.txt"]


def test_a_file_that_is_gone_meanwhile_fails_where_it_is_used(notes: Path) -> None:
    rows = source("notes/*.txt")
    (notes / "b.txt").unlink()
    whole, gone = rows.rows()
    assert whole["text"] == "text 1"
    assert gone["name"] == "b.txt"
    with pytest.raises(PromptError, match=r"b.txt' cannot be read \(No such file .* not sent"):
        to_prompt(gone["text"])


def test_contents_are_not_read_where_they_are_not_used(notes: Path) -> None:
    (notes / "b.txt").write_bytes(b"\xff\xfe")
    assert numbers("notes/*.txt", "{{ name }}")["n"].tolist() == [9, 9]


def test_a_name_that_is_no_text_costs_no_answer(tmp_path: Path) -> None:
    os.mkdir("odd")
    with open(os.fsencode("odd/") + b"caf\xe9.txt", "w") as file:
        file.write("text 2")
    result = numbers("odd")
    assert result["n"].tolist() == [2]
    assert result["name"].tolist() == ["caf\ufffd.txt"]


def test_a_file_of_ten_megabytes_is_sent_whole(tmp_path: Path, server: ScriptedServer) -> None:
    text = "0123456789" * 1_000_000
    (tmp_path / "large.txt").write_text(text)
    numbers("*.txt")
    assert asked(server) == [text]


ASK = """
import os, sys
{before}
import llm_magic
result = llm_magic.map_rows("notes/*.txt", "{{{{ name }}}}", quiet=True)
print(type(result).__module__.partition(".")[0], [*result["answer"]] if {frame} else result)
"""


@pytest.mark.parametrize(
    ("before", "library", "frame"),
    [
        ("import pandas", "pandas ['{\"n\": 9}', '{\"n\": 9}']", True),
        ("import polars", "polars ['{\"n\": 9}', '{\"n\": 9}']", True),
        (
            "import importlib.util as u; find, libraries = u.find_spec, ('pandas', 'polars')\n"
            "u.find_spec = lambda name, *a: None if name in libraries else find(name, *a)",
            "llm_magic [{'path': 'notes/a.txt', 'name': 'a.txt', 'answer': '{\"n\": 9}'",
            False,
        ),
    ],
    ids=["pandas", "polars", "neither"],
)
def test_the_result_is_a_frame_of_the_library_that_the_user_has(
    notes: Path, before: str, library: str, frame: bool
) -> None:
    script = ASK.format(before=before, frame=frame)
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.stdout.startswith(library), ran.stderr


@pytest.mark.parametrize(
    ("pattern", "says", "fix"),
    [
        ("notes/a.txt", "'notes/a.txt' is one file, and no table", "['notes/a.txt'] as rows"),
        ("data.csv", "'data.csv' is one file, and no table", "pd.read_csv('data.csv')"),
        ("DATA.PARQUET", "'DATA.PARQUET' is one file", "pd.read_parquet('DATA.PARQUET')"),
        ("missing", "'missing' is neither a folder nor a pattern of files", "'reviews/*.txt'"),
        ("missing/*.txt", "No file matches 'missing/*.txt'", "!ls missing"),
        ("notes/*.pdf", "No file matches 'notes/*.pdf'", "!ls notes"),
        ("*.pdf", "No file matches '*.pdf'", "!ls ."),
        ("empty", "There is no file in 'empty'", "!ls empty"),
        ("", "'' is neither a folder nor a pattern of files", "'reviews/*.txt'"),
        ("It was\0fine.", "'It was\\x00fine.' is neither a folder", "a row in a list: [text]"),
        ("good " * 50, f"'{('good ' * 50)[:79]}…' is neither a folder", "a row in a list: [text]"),
    ],
)
def test_what_names_no_files_is_refused_with_what_would(
    notes: Path, server: ScriptedServer, pattern: str, says: str, fix: str
) -> None:
    (notes.parent / "empty").mkdir()
    for name in ("data.csv", "DATA.PARQUET"):
        (notes.parent / name).write_text("a\n1")
    with pytest.raises(PromptError) as caught:
        numbers(pattern)
    assert str(caught.value).startswith(says)
    assert "nothing was sent" in str(caught.value)
    assert fix in (caught.value.fix or "")
    assert server.requests == []
