"""Rows that are no frame: items of a list, of an iterator, and files; and results made for them."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import os
import weakref
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from typing import Any

from llm_magic.columns import Column
from llm_magic.columns.dtypes import to_polars
from llm_magic.columns.fitting import text as clean
from llm_magic.errors import LLMError, PromptError
from llm_magic.frames import library, names_of
from llm_magic.table import files
from llm_magic.table.cells import TEXT, cell
from llm_magic.table.files import Unreadable
from llm_magic.table.sheets import beside

_END = object()
# Generators that a run has taken rows from: more than it has sent, so that another run would begin
# somewhere among them.
_READ: weakref.WeakSet[Generator[Any, Any, Any]] = weakref.WeakSet()


class Rows(list[dict[str, Any]]):
    """The result for a list: a list of dicts that can also carry attributes."""


def _row(item: Any) -> dict[str, Any] | None:
    """The cells of an item: its fields, or its text; None where it has neither."""
    if (item := cell(item)) is None or isinstance(item, str):
        return {TEXT: item}
    return names_of(item)


def _kept(item: Any) -> dict[Any, Any]:
    """An item as a row of the result: the keys of a mapping are what they were."""
    return dict(item) if isinstance(item, Mapping) else _row(item) or {}


def _no_row(item: Any, place: int, lost: str) -> PromptError:
    fix = 'Rows are dicts, texts or objects with fields: [{"n": n} for n in numbers]'
    if isinstance(item, os.PathLike):
        fix = "Files are rows where all are paths: list(paths)"
    elif isinstance(item, list | tuple):
        fix = "Name the columns: pd.DataFrame(rows, columns=[...])"
    elif hasattr(item, "keys"):
        fix = "Make dicts of them: [dict(each) for each in rows]"
    elif hasattr(item, "__dict__"):
        fix = "Make dicts of the objects: [vars(each) for each in rows]"
    return PromptError(f"Row {place:,} is {item!r:.80}, which has no columns; {lost}", fix=fix)


class Items:
    """A list of mappings, texts or objects; the result is a list of dicts.

    Raises:
        PromptError: An item is none of these.
    """

    def __init__(self, data: Sequence[Any]) -> None:
        self._data = data
        names: dict[str, None] = {}
        for place, item in enumerate(self._data):
            row = _row(item)
            if row is None:
                raise _no_row(item, place, "nothing was sent.")
            names |= dict.fromkeys(row)
        self.names = list(names)

    @property
    def count(self) -> int:
        """The items."""
        return len(self._data)

    def rows(
        self, places: Sequence[int] | None = None, uses: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Each item's fields; None where it lacks one that others have."""
        names = [name for name in self.names if uses is None or name in uses]
        for place in range(self.count) if places is None else places:
            row = _row(self._data[place]) or {}
            yield {name: cell(row.get(name)) for name in names}

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Rows:
        """Its items as dicts, with these columns."""
        numbers = range(count) if places is None else places
        return Rows(
            _kept(self._data[each]) | {name: column.get(each) for name, column in columns.items()}
            for each in numbers
        )


def _is_read(generator: Generator[Any, Any, Any]) -> bool:
    return generator in _READ or inspect.getgeneratorstate(generator) == inspect.GEN_CLOSED


class Stream:
    """Rows that come once and are not kept; the result is a frame of the answers alone.

    Raises:
        PromptError: It is a generator that has given rows before, and may be amidst them.
    """

    count = None

    def __init__(self, data: Iterator[Any]) -> None:
        self._generator = data if inspect.isgenerator(data) else None
        if self._generator is not None and _is_read(self._generator):
            raise PromptError(
                "The generator has given rows before, to a run or to its end; nothing was sent.",
                fix="Make it anew in the cell that maps its rows, or keep them: rows = list(rows)",
            )
        self._data = iter(data)
        self._first: list[dict[str, Any]] = []
        self._names: list[str] | None = None
        self._next = 0

    @property
    def names(self) -> list[str]:
        """The columns of the first row, which is read for it."""
        if self._names is None:
            self._first = list(itertools.islice(self._read(), 1))
            self._names = list(self._first[0]) if self._first else []
        return self._names

    def rows(
        self, places: Sequence[int] | None = None, uses: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Each item's fields, once; one that has none fails where it is used, alone."""
        if places is not None:
            raise PromptError(
                "An iterator gives its rows once and in order, and certain ones were asked for; "
                "nothing was sent.",
                fix="Keep the rows first: rows = list(rows)",
            )
        return self._rest()

    def _rest(self) -> Iterator[dict[str, Any]]:
        while self._first:
            yield self._first.pop()
        yield from self._read()

    def _read(self) -> Iterator[dict[str, Any]]:
        while (item := self._pulled()) is not _END:
            row = _row(item)
            if row is None and not self._next:
                raise _no_row(item, 0, "nothing was sent.")
            self._next += 1
            names = self._names or ()
            if row is None:
                error = _no_row(item, self._next - 1, "it was not sent.")
                yield dict.fromkeys(names, Unreadable(error))
                continue
            cells = {name: cell(value) for name, value in row.items()}
            if self._names is None:
                self._names = list(cells)
            yield dict.fromkeys(names) | cells

    def _pulled(self) -> Any:
        """The next item, or the end. It is the notebook's own code that gives it."""
        if self._generator is not None:
            _READ.add(self._generator)
            self._generator = None
        try:
            return next(self._data, _END)
        except LLMError:
            raise
        except Exception as error:
            raise PromptError(
                f"The iterator failed with {type(error).__name__} where row {self._next:,} was due "
                f"({error}); the rows from there on were not sent.",
                fix="Mend it, or keep its rows first, which may need the cell's own thread: "
                "rows = list(rows)",
            ) from error

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Any:
        """These columns, and no others."""
        return made({}, columns, count, places)


class Files:
    """Files by their paths; the result is a frame of path, name and the answers."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self.names = list(files.NAMES)

    @property
    def count(self) -> int:
        """The files."""
        return len(self._paths)

    def rows(
        self, places: Sequence[int] | None = None, uses: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Of each file what is used."""
        for place in range(self.count) if places is None else places:
            yield files.row(self._paths[place], files.NAMES if uses is None else uses)

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Any:
        """Their paths and names, with these columns."""
        paths = [self._paths[each] for each in (range(count) if places is None else places)]
        named = {"path": paths, "name": [os.path.basename(each) for each in paths]}
        return made(named, columns, count, places)


def made(
    first: Mapping[str, list[str]],
    columns: Mapping[str, Column],
    count: int,
    places: Sequence[int] | None,
) -> Any:
    """A frame of the library that the notebook uses; a list of dicts where it has none."""
    numbers = range(count) if places is None else places
    # A name of a file that is no UTF-8 has halves of surrogates, which no library takes.
    first = {head: [*map(clean, values)] for head, values in first.items()}
    name = library()
    if importlib.util.find_spec(name) is None:
        return Rows(
            {head: values[row] for head, values in first.items()}
            | {head: column.get(place) for head, column in columns.items()}
            for row, place in enumerate(numbers)
        )
    if name == "polars":
        import polars as pl

        answers = [to_polars(head, column, count, places) for head, column in columns.items()]
        schema = dict.fromkeys(first, pl.String)
        return pl.DataFrame(first, schema=schema).with_columns(answers)
    import pandas as pd

    texts = {head: pd.array(values, dtype="string") for head, values in first.items()}
    return beside(pd.DataFrame(texts, index=range(len(numbers))), columns, count, places)
