"""Statements over many rows at once.

Every statement costs a wait for the interpreter (``turns``), and `executemany` is one for each row.
So rows go as the values of one statement. Its room is one of a few sizes and what is left over is
NULL: the texts stay few, and SQLite's statements for them are found again instead of made anew.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from llm_magic.entries import Row

_SIZES = (1, 8, 32, 64, 256)

ROWS_AT_ONCE = 256
"""Rows that one transaction writes at most."""

BYTES_AT_ONCE = 1024**2
"""Bytes of rows from which on a transaction takes no more of them."""

R = TypeVar("R", Row, tuple[str, bytes])


def run(
    db: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]], *fixed: Any
) -> list[tuple[Any, ...]]:
    """Runs a statement over rows, in as many parts as SQLite's limit on parameters asks for.

    Args:
        db: A connection.
        statement: ``VALUES #`` in it becomes the rows. Those whose first value is NULL are room
            that is left over, and are to be passed over.
        rows: Values of equal number.
        fixed: Values of ``?1`` and so on.

    Returns:
        What it finds, if it is one that finds something.
    """
    if not rows:
        return []
    columns = len(rows[0])
    (head, before), (tail, after) = map(_in_order, statement.split("VALUES #"))
    room = db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) - len(before) - len(after)
    sizes = [size for size in _SIZES if size <= room // columns]
    found: list[tuple[Any, ...]] = []
    for first in range(0, len(rows), sizes[-1]):
        part = rows[first : first + sizes[-1]]
        size = next(size for size in sizes if size >= len(part))
        values = [fixed[number] for number in before]
        for row in part:
            values += row
        values += [None] * ((size - len(part)) * columns)
        values += [fixed[number] for number in after]
        found += db.execute(_text(head, tail, columns, size), values).fetchall()
    return found


def execute(db: sqlite3.Connection, statement: str, *fixed: Any) -> sqlite3.Cursor:
    """Runs a statement in which ``?1`` is the first value, wherever it stands."""
    text, order = _in_order(statement)
    return db.execute(text, [fixed[number] for number in order])


@lru_cache(maxsize=64)
def _in_order(statement: str) -> tuple[str, tuple[int, ...]]:
    """The same with a ``?`` for each ``?N``, and which value each of them is, counted from 0.

    To Python 3.12 numbered parameters are named ones: it warns of each that comes in a sequence,
    and later ones refuse it; a dict of so many names takes a hundred times as long.
    """
    order = tuple(int(number) - 1 for number in re.findall(r"\?(\d+)", statement))
    return re.sub(r"\?\d+", "?", statement), order


@lru_cache(maxsize=256)
def _text(head: str, tail: str, columns: int, size: int) -> str:
    row = "(" + ", ".join("?" * columns) + ")"
    return f"{head}VALUES {', '.join([row] * size)}{tail}"


def parts(rows: Sequence[R]) -> Iterator[list[R]]:
    """Rows in parts that one transaction takes."""
    part: list[R] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row[1])
        if len(part) == ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part
