"""An answer while it comes: Markdown, an object whose fields fill in, or a table that grows.

A table shows its first and its last rows, so that a redraw of ten thousand costs what one of ten
does. Everything in it is escaped text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from llm_magic.frames import fields_of, rows_of
from llm_magic.views.render import escaped, growing_html

if TYPE_CHECKING:
    from llm_magic.structured import Schema

VALUES_PER_SECOND = 10
"""Redraws of an object or table while it comes, at most."""
_HEAD, _TAIL = 10, 4
_SAVED_HEAD, _SAVED_TAIL = 50, 10
_LONGEST_CELL, _LONGEST_FIELD = 500, 10_000
_MOST_KNOWN = 500
_DIM = ' style="opacity: 0.6"'


class Drawing(Protocol):
    """Draws what comes bit by bit."""

    def add(self, words: str) -> None:
        """Takes new words."""

    def html(self) -> tuple[str, str]:
        """What is final and new since the last call, and what may still change."""


class GrowingMarkdown:
    """Prose as it comes; a redraw renders only the block that is being written."""

    def __init__(self) -> None:
        self._text = ""
        self._env: dict[str, Any] = {}

    def add(self, words: str) -> None:
        """Takes new words."""
        # As the renderer counts lines.
        self._text += words.replace("\r", "")

    def html(self) -> tuple[str, str]:
        """What is final and new since the last call, and what may still change."""
        closed, last, place = growing_html(self._text, self._env)
        self._text = self._text[place:]
        return closed, last


class GrowingValue:
    """An object or a list as it comes: what is final, and the text being written, marked as such.

    Args:
        schema: What it is to be.
    """

    def __init__(self, schema: Schema) -> None:
        from llm_magic.structured import Growth

        self._schema = schema
        self._growth = Growth()
        self._known: dict[int, str] = {}

    def add(self, words: str) -> None:
        """Takes new words."""
        self._growth.feed(words)

    def html(self) -> tuple[str, str]:
        """A table of the rows so far, or of the fields: nothing of it is final."""
        return "", self._table()

    def _table(self) -> str:
        value = self._growth.value(wrapped=self._schema.wrapped)
        inside = self._growth.inside(value)
        if isinstance(value, list):
            columns = self._schema.columns
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            return _rows_html(
                value,
                columns,
                open_row=inside is not None,
                partial=self._partial(inside),
                known=self._known if columns else None,
            )
        fields = dict.fromkeys(self._schema.inner.get("properties", {}), "")
        fields |= value if isinstance(value, dict) else {}
        growing = next((name for name, each in fields.items() if each is inside), None)
        return _fields_html(fields, self._partial(value), growing)

    def _partial(self, container: Any) -> dict[str, str]:
        """The text that is being written in a container, by its key."""
        growth = self._growth
        if (
            growth.words is None
            or not isinstance(container, dict)
            or growth.open[-1] is not container
        ):
            return {}
        return {str(growth.key): "".join(growth.words)}


class FinalLines:
    """For a terminal: a line for each field or row, once it is final.

    Args:
        schema: What the answer is to be.
    """

    def __init__(self, schema: Schema) -> None:
        from llm_magic.structured import Growth

        self._schema = schema
        self._growth = Growth()
        self._told = 0

    def add(self, words: str) -> Iterator[str]:
        """Takes new words; gives the lines that they complete."""
        self._growth.feed(words)
        value = self._growth.value(wrapped=self._schema.wrapped)
        if not isinstance(value, dict | list):
            return
        # The last part may still be open.
        done = len(value) - (self._growth.inside(value) is not None)
        if isinstance(value, list):
            parts: Iterable[tuple[Any, Any]] = enumerate(value[self._told : done], self._told)
        else:
            parts = islice(value.items(), self._told, done)
        for name, each in parts:
            yield f"{name}: {_words(each)}"
        self._told = max(self._told, done)


def shown(value: Any) -> str:
    """An object as IPython shows it."""
    from IPython.lib.pretty import pretty

    return str(pretty(value))  # type: ignore[no-untyped-call]


def value_html(value: Any) -> str:
    """A whole value: a list of objects as a table, an object as its fields, else its text."""
    if (fields := fields_of(value)) is not None:
        return _fields_html(fields, {}, None)
    rows = rows_of(value)
    if rows is None:
        return f"<pre>{escaped(shown(value))}</pre>"
    return _rows_html(rows, None, head=_SAVED_HEAD, tail=_SAVED_TAIL)


def _fields_html(fields: Mapping[str, Any], partial: Mapping[str, str], growing: str | None) -> str:
    """A table of an object's fields; the partial ones, and one that grows, are marked."""
    lines = (
        f'<tr><th style="text-align:left;vertical-align:top">{escaped(name)}</th>'
        f"{_cell(value, _LONGEST_FIELD, open_=name in partial or name == growing)}</tr>"
        for name, value in {**fields, **partial}.items()
    )
    return f"<table><tbody>{''.join(lines)}</tbody></table>"


def _rows_html(
    rows: Sequence[Any],
    columns: Sequence[str] | None,
    *,
    head: int = _HEAD,
    tail: int = _TAIL,
    open_row: bool = False,
    partial: Mapping[str, str] = MappingProxyType({}),
    known: dict[int, str] | None = None,
) -> str:
    """A table of rows; the last one may be open, with a partial text in it.

    ``known`` keeps the HTML of final rows, by their identity, from one redraw to the next.
    """
    left_out = max(0, len(rows) - head - tail)
    few = [*rows[:head], *rows[-tail:]] if left_out else list(rows)
    if not all(isinstance(row, dict) for row in few):
        few, known = [row if isinstance(row, dict) else {"value": row} for row in few], None
    columns = columns or list(dict.fromkeys(name for row in few for name in row))
    lines = []
    for place, row in enumerate(few):
        if left_out and place == head:
            gap = f"… {left_out:,} more rows …"
            lines.append(f'<tr><td colspan="{len(columns)}">{gap}</td></tr>')
        if open_row and place == len(few) - 1:
            lines.append(f"<tr{_DIM}>{_cells({**row, **partial}, columns, partial)}</tr>")
            continue
        line = known.get(id(row)) if known is not None else None
        if line is None:
            line = f"<tr>{_cells(row, columns, ())}</tr>"
            if known is not None:
                known[id(row)] = line
        lines.append(line)
    names = _head(tuple(columns))
    count = f"<p><small>{len(rows):,} rows</small></p>" if len(rows) > 1 else ""
    return f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table>{count}"


@lru_cache(maxsize=16)
def _head(columns: tuple[str, ...]) -> str:
    return "".join(f'<th style="text-align:left">{escaped(name)}</th>' for name in columns)


def _cells(row: Mapping[str, Any], columns: Sequence[str], open_: Collection[str]) -> str:
    cells = [_cell(row.get(name, ""), _LONGEST_CELL, open_=name in open_) for name in columns]
    return "".join(cells)


def _cell(value: Any, limit: int, *, open_: bool) -> str:
    text = value if isinstance(value, str) else _words(value)
    if len(text) > limit:
        text, open_ = text[:limit], True
    return f'<td style="text-align:left">{escaped(text)}{"…" if open_ else ""}</td>'


def _words(value: Any) -> str:
    """A value in a cell: a container as JSON, the rest as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else str(value)
