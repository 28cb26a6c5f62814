"""Tab where a table is named, and the columns of the one that is; no code of the notebook runs."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm_magic.completion.names import NONE, NOTHING, Found, path_at_end, starting, value_of
from llm_magic.completion.names import visible as names_of
from llm_magic.images import image_files
from llm_magic.options import Ending

_LIBRARIES = {"pandas", "polars", "pyarrow", "modin", "cudf", "dask"}
_FRAMES = ("DataFrame", "Table", "RecordBatch")
_SERIES = ("Series", "ChunkedArray", "Array")
_OF_A_TEXT, _OF_A_FILE = ["text"], ["path", "name", "text", "image"]
_EXPRESSION = re.compile(
    r"(?P<path>[^\W\d]\w*(?:\.[^\W\d]\w*)*)\s*(?:\[\s*(?P<quote>[\"'])(?P<column>.*?)(?P=quote)\s*\]$)?"
)
_MOST_COLUMNS = 500


def tables(shell: Any, end: Ending) -> Found:
    """Frames of the notebook, then series, then lists of rows; in quotes, folders and patterns."""
    if end.typed[:1] in ("'", '"'):
        return _files(end.typed)
    path = path_at_end(end.typed)
    if path != end.typed:
        return NONE
    names = names_of(shell)
    folder, _, typed = path.rpartition(".")
    if folder:
        columns = _columns(value_of(folder, names))
        words = ((name, "column") for name in columns if name.isidentifier())
        return Found(typed, starting(typed, words))
    ranked = [(rank, name) for name, value in names.items() if (rank := _rank(value)) is not None]
    ranked.sort(key=lambda each: each[0])
    return Found(typed, starting(typed, ((name, "table") for _, name in ranked)))


def _rank(value: Any) -> int | None:
    """How likely a value is meant as a table; None for never."""
    kind = _kind(value)
    if kind in _FRAMES:
        return 0
    if kind in _SERIES:
        return 1
    return 2 if isinstance(value, list | tuple) and _columns(value) else None


def _kind(value: Any) -> str:
    """What a value of a known library is; empty for all else."""
    for base in type(value).__mro__:
        if base.__module__.partition(".")[0] in _LIBRARIES and base.__name__ in _FRAMES + _SERIES:
            return base.__name__
    return ""


def columns_named(shell: Any, expression: str) -> list[str]:
    """The columns of the table that an expression gives, as far as that is plain to see."""
    if expression[:1] in ("'", '"'):
        return _OF_A_FILE
    found = _EXPRESSION.match(expression)
    if found is None:
        return _OF_A_TEXT if re.match(r"\[\s*[\"']", expression) else []
    names = names_of(shell)
    parts = found["path"].split(".")
    # Of frame.head(20) and of frame[frame.n > 3], those of the frame.
    for length in range(len(parts), 0, -1):
        if columns := _columns(value_of(".".join(parts[:length]), names)):
            rest = found["column"] or ".".join(parts[length:])
            return [rest] if rest in columns and expression == found[0] else columns
    return []


def _columns(value: Any) -> list[str]:
    if value is NOTHING:
        return []
    kind = _kind(value)
    if kind in _SERIES:
        name = getattr(value, "name", None)
        return [str(name)] if name not in (None, "") else _OF_A_TEXT
    if kind in _FRAMES:
        # Of pyarrow, .columns are the values.
        named = getattr(value, "column_names", None)
        named = value.columns if named is None else named
        return [str(name) for name in named[:_MOST_COLUMNS]]
    if isinstance(value, list | tuple) and value and not hasattr(value, "_fields"):
        return _fields(value[0])
    return []


def _fields(item: Any) -> list[str]:
    """The cells of a list's item."""
    if isinstance(item, str):
        return _OF_A_TEXT
    if isinstance(item, Mapping):
        return [name for name in item if isinstance(name, str)]
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return [each.name for each in dataclasses.fields(item)]
    fields = getattr(type(item), "model_fields", getattr(type(item), "_fields", ()))
    return [name for name in fields if isinstance(name, str)]


def _files(typed: str) -> Found:
    """Folders, and in each a pattern for every ending; the quote stays open behind a folder."""
    quote, path = typed[0], typed[1:]
    folders = [(f"{quote}{each}", "folder") for each in image_files(path, ())]
    patterns = [(f"{quote}{each}{quote}", "files") for each in _patterns(path)]
    return Found(typed, [*patterns, *folders])


def _patterns(start: str) -> Iterator[str]:
    folder = os.path.dirname(start)
    files = (os.path.basename(each) for each in image_files(os.path.join(folder, ""), ("",)))
    endings = sorted({os.path.splitext(file)[1] for file in files if file} - {""})
    patterns = (os.path.join(folder, f"*{ending}") for ending in endings)
    return (pattern for pattern in patterns if pattern.startswith(start))
