"""Which rows a value has: frames, lists, iterators, files; and a result of its kind."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from llm_magic.columns import Column
from llm_magic.columns.dtypes import to_polars
from llm_magic.errors import PromptError
from llm_magic.frames import library, names_of
from llm_magic.table import files
from llm_magic.table.cells import TEXT, cell
from llm_magic.table.sheets import ArrowSheet, PandasSheet, PolarsSheet, beside

_GIVE = (
    "Give a data frame (pandas, polars, pyarrow), a series or list of texts, a list of dicts, or a "
    "pattern of files: 'reviews/*.txt'"
)
_FETCH = {"polars": "collect()", "dask": "compute()", "duckdb": "pl()", "pyspark": "toPandas()"}


class Source(Protocol):
    """Rows, and the frame that they came in.

    Attributes:
        count: How many rows there are; None where that is not known before the last.
        names: The columns that a template may name.
    """

    @property
    def count(self) -> int | None: ...  # noqa: D102
    @property
    def names(self) -> list[str]: ...  # noqa: D102

    def rows(
        self, places: Sequence[int] | None = None, uses: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Each row's cells by column, a missing one as None. Few rows are in memory at a time.

        Args:
            places: Only the rows with these numbers, in this order.
            uses: Only these columns, where leaving out the others saves work.

        Raises:
            PromptError: An iterator is asked for certain rows, or gives what is no row.
        """
        ...

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Any:
        """The input's columns and these, in the kind of the input; its index and order kept.

        Args:
            columns: By name. One that the input has as well takes its place.
            count: The rows, from the first.
            places: Only the rows with these numbers, in this order.
        """
        ...


class Rows(list[dict[str, Any]]):
    """The result for a list: a list of dicts that can also carry attributes."""


def source(data: Any) -> Source:
    """The rows of what a user has.

    Args:
        data: A data frame or series of pandas, polars or pyarrow; a list of mappings, texts or
            objects with fields; an iterator of these, whose rows are not kept; a pattern of files
            or a folder.

    Raises:
        PromptError: It is no table, or has no rows yet.
    """
    if isinstance(data, str | os.PathLike):
        return _Files(files.matching(data))
    if isinstance(data, list | tuple) and not hasattr(data, "_asdict"):
        return _List(data)
    family = {base.__module__.partition(".")[0] for base in type(data).__mro__}
    if family & {"pandas", "modin"} and hasattr(data, "iloc"):
        return PandasSheet(data.to_frame(_name(data.name)) if data.ndim == 1 else data)
    if family & {"polars", "pyarrow"}:
        return _of_arrow_or_polars(data)
    if isinstance(data, Mapping | bytes | bytearray) or names_of(data) is not None:
        raise _no_table(data)
    if hasattr(data, "__next__"):
        return _Iterator(data)
    if (lazy := _lazy(data)) is not None:
        raise lazy
    if not isinstance(data, Iterable) or hasattr(data, "shape"):
        raise _no_table(data)
    return _Iterator(iter(data))


def _name(name: Any) -> str:
    return TEXT if name is None or name == "" else str(name)


def _of_arrow_or_polars(data: Any) -> Source:
    kind = type(data).__name__
    if kind == "DataFrame":
        return PolarsSheet(data)
    if kind == "Series":
        return PolarsSheet(data.to_frame(_name(data.name)))
    if (lazy := _lazy(data)) is not None:
        raise lazy
    # A reader and a data set of pyarrow have their rows elsewhere.
    for method in ("read_all", "to_table"):
        if hasattr(data, method):
            raise _not_yet(data, f"{method}()")
    if hasattr(data, "to_batches"):
        return ArrowSheet(data)
    import pyarrow as pa

    if isinstance(data, pa.RecordBatch):
        return ArrowSheet(pa.Table.from_batches([data]))
    if isinstance(data, pa.Array | pa.ChunkedArray):
        return ArrowSheet(pa.table({TEXT: data}))
    raise _no_table(data)


def _lazy(data: Any) -> PromptError | None:
    """What to say of a frame whose rows are not there yet; None for all else."""
    import narwhals as nw

    frame = nw.from_native(data, pass_through=True)
    if not isinstance(frame, nw.LazyFrame):
        return None
    return _not_yet(data, _FETCH.get(type(data).__module__.partition(".")[0], "to_pandas()"))


def _not_yet(data: Any, call: str) -> PromptError:
    return PromptError(
        f"A {type(data).__name__} has no rows yet; nothing was sent.",
        fix=f"Fetch them first: frame = frame.{call}",
    )


def _no_table(data: Any) -> PromptError:
    fix = _GIVE
    if isinstance(data, Mapping):
        fix = "One row goes into a list, [row]; columns into a frame: pd.DataFrame(columns)"
    elif hasattr(data, "to_pandas"):
        fix = "Make it a pandas frame first: frame = frame.to_pandas()"
    elif hasattr(data, "shape"):
        fix = "Name its columns: pd.DataFrame(array, columns=[...])"
    what = "None" if data is None else f"A {type(data).__name__}"
    return PromptError(f"{what} is no table; nothing was sent.", fix=fix)


def _row(item: Any, place: int) -> dict[str, Any]:
    """The cells of an item: its fields, or its text.

    Raises:
        PromptError: It has neither.
    """
    if (item := cell(item)) is None or isinstance(item, str):
        return {TEXT: item}
    found = names_of(item)
    if found is None:
        raise PromptError(
            f"Row {place:,} is {item!r:.80}, which has no columns; the rows from there on were not "
            "sent.",
            fix='Rows are dicts, texts or objects with fields: [{"n": n} for n in numbers]',
        )
    return found


class _List:
    """A list of mappings, texts or objects; the result is a list of dicts."""

    def __init__(self, data: Sequence[Any]) -> None:
        names: dict[str, None] = {}
        for place, item in enumerate(data):
            names |= dict.fromkeys(_row(item, place))
        self._data = data
        self.names = list(names)

    @property
    def count(self) -> int:
        return len(self._data)

    def rows(
        self, places: Sequence[int] | None = None, uses: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        for place in range(self.count) if places is None else places:
            row = _row(self._data[place], place)
            yield {name: cell(row.get(name)) for name in self.names}

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Rows:
        numbers = range(count) if places is None else places
        return Rows(
            _row(self._data[each], each)
            | {name: column.get(each) for name, column in columns.items()}
            for each in numbers
        )


class _Iterator:
    """Rows that come once and are not kept; the result is a frame of the answers alone."""

    count = None

    def __init__(self, data: Iterator[Any]) -> None:
        self._data = data
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
        for item in self._data:
            row = {name: cell(value) for name, value in _row(item, self._next).items()}
            self._next += 1
            if self._names is None:
                self._names = list(row)
            yield row

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Any:
        return _made({}, columns, count, places)


class _Files:
    """Files by their paths; the result is a frame of path, name and the answers."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self.names = list(files.NAMES)

    @property
    def count(self) -> int:
        return len(self._paths)

    def rows(
        self, places: Sequence[int] | None = None, uses: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        for place in range(self.count) if places is None else places:
            yield files.row(self._paths[place], files.NAMES if uses is None else uses)

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Any:
        paths = [self._paths[each] for each in (range(count) if places is None else places)]
        named = {"path": paths, "name": [os.path.basename(each) for each in paths]}
        return _made(named, columns, count, places)


def _made(
    first: Mapping[str, list[str]],
    columns: Mapping[str, Column],
    count: int,
    places: Sequence[int] | None,
) -> Any:
    """A frame of the library that the notebook uses; a list of dicts where it has none."""
    numbers = range(count) if places is None else places
    name = library()
    if importlib.util.find_spec(name) is None:
        return Rows(
            {head: values[row] for head, values in first.items()}
            | {head: column.get(place) for head, column in columns.items()}
            for row, place in enumerate(numbers)
        )
    if name == "polars":
        import polars as pl

        made = [to_polars(head, column, count, places) for head, column in columns.items()]
        schema = dict.fromkeys(first, pl.String)
        return pl.DataFrame(dict(first), schema=schema).with_columns(made)
    import pandas as pd

    texts = {head: pd.array(values, dtype="string") for head, values in first.items()}
    return beside(pd.DataFrame(texts, index=range(len(numbers))), columns, count, places)
