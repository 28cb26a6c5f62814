"""Files as rows: their paths, their texts, their pictures."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from llm_magic.errors import PromptError
from llm_magic.images import image
from llm_magic.values import raster_type

NAMES = ["path", "name", "text", "image"]
"""What a template sees of a file; its text is None for a picture, its image for all others."""
_READERS = {".csv": "read_csv", ".tsv": "read_table", ".parquet": "read_parquet"}
_READERS |= {".json": "read_json", ".jsonl": "read_json", ".xlsx": "read_excel"}


def matching(pattern: str | os.PathLike[str]) -> list[str]:
    """The files of a folder, or those that a pattern names, sorted.

    Args:
        pattern: A folder; or a path with ``*``, ``?`` or ``[`` in it, ``**`` for all folders below.

    Raises:
        PromptError: There are none, or it is neither.
    """
    told = os.fspath(pattern)
    path = os.path.expanduser(told)
    folder = _is_folder(path)
    if not folder and not glob.has_magic(path):
        raise _no_pattern(told, path)
    if folder:
        path = os.path.join(glob.escape(path), "*")
    found = sorted(each for each in glob.glob(path, recursive=True) if os.path.isfile(each))
    if not found:
        raise PromptError(
            f"There is no file in {told!r}; nothing was sent."
            if folder
            else f"No file matches {told!r}; nothing was sent.",
            fix=f"See what is there: !ls {_folder_of(path)}",
        )
    return found


def row(path: str, uses: Collection[str]) -> dict[str, Any]:
    """What is asked for of a file. One that cannot be read fails where it is used, alone.

    Args:
        path: The file.
        uses: Which of ``NAMES``: others are not read.
    """
    found: dict[str, Any] = {"path": path, "name": os.path.basename(path)}
    if "text" not in uses and "image" not in uses:
        return found
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            picture = raster_type(start) is not None
            text = start + file.read() if "text" in uses and not picture else b""
    except OSError as error:
        nothing = Unreadable(_unreadable(path, error))
        return found | {"text": nothing, "image": nothing}
    found["text"] = None if picture else _decoded(path, text)
    found["image"] = _picture(path) if picture and "image" in uses else None
    return found


class Unreadable:
    """Stands for the contents of a file that cannot be read: every use of it raises the reason."""

    def __init__(self, error: PromptError) -> None:
        self._error = error

    def _fail(self, *_: object) -> NoReturn:
        raise self._error

    _repr_llm_ = __str__ = __len__ = __iter__ = __bool__ = __contains__ = __getitem__ = _fail
    __add__ = __radd__ = __mod__ = __format__ = _fail

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error


def _decoded(path: str, data: bytes) -> str | Unreadable:
    try:
        # Without the mark that Windows puts before a text.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Unreadable(
            PromptError(
                f"{path!r} is no UTF-8 text (byte {error.start:,} is 0x{data[error.start]:02x}); "
                "the row was not sent.",
                fix="Read the files with their encoding: [{'text': open(path, "
                "encoding='latin-1').read()} for path in paths]",
            )
        )


def _picture(path: str) -> Any:
    try:
        return image(path)
    except PromptError as error:
        return Unreadable(error)


def _unreadable(path: str, error: OSError) -> PromptError:
    return PromptError(
        f"{path!r} cannot be read ({error.strerror or error}); the row was not sent.",
        fix="Check the file and its permissions: !ls -l",
    )


def _is_folder(path: str) -> bool:
    try:
        return os.path.isdir(path)
    except ValueError:
        # A NUL in it.
        return False


def _folder_of(path: str) -> str:
    """The folders before the first that a pattern leaves open."""
    whole = [*Path(path).parts]
    named = []
    for part in whole[:-1]:
        if glob.has_magic(part):
            break
        named.append(part)
    return os.path.join(*named) if named else "."


def _no_pattern(told: str, path: str) -> PromptError:
    shown = told if len(told) <= 80 else told[:79] + "…"
    if os.path.isfile(path):
        reader = _READERS.get(os.path.splitext(path)[1].lower())
        return PromptError(
            f"{shown!r} is one file, and no table; nothing was sent.",
            fix=f"Read it first: pd.{reader}({told!r})"
            if reader
            else f"One file: [{told!r}] as rows of text, or a pattern such as 'reviews/*.txt'",
        )
    return PromptError(
        f"{shown!r} is neither a folder nor a pattern of files; nothing was sent.",
        fix="A pattern has *, ? or [ in it: 'reviews/*.txt'. A text is a row in a list: [text]",
    )
