"""Frames of pandas, polars and pyarrow: their rows in batches, and answers beside their columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from llm_magic.columns import Column
from llm_magic.columns.dtypes import to_arrow, to_pandas, to_polars
from llm_magic.table.cells import cell, label, unique

_BATCH = 4_096
"""Rows that are Python objects at the same time, and the bytes that they may have."""
_BATCH_BYTES = 64_000_000


class PandasSheet:
    """A frame of pandas, with any index and any names; what has its interface is read alike."""

    def __init__(self, frame: Any) -> None:
        # What the user does to the frame later is not done to this one.
        self._frame = _apart(frame)
        self.names = unique([*map(label, frame.columns)])

    @property
    def count(self) -> int:
        """Its rows."""
        return len(self._frame)

    def rows(
        self, places: Sequence[int] | None = None, uses: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Its rows, each by column; few at a time are Python objects."""
        names = _used(self.names, uses)
        # Column by column: rows of a frame with several types would all be of one.
        columns = [self._frame.iloc[:, self.names.index(name)] for name in names]
        # The texts of Arrow's types become Python's; those of object columns are there already.
        held = sum(each.memory_usage(index=False) for each in columns)
        for some in _batches(self.count, places, _batch(held, self.count)):
            piece = some if isinstance(some, slice) else list(some)
            cells = [[cell(value) for value in each.iloc[piece].tolist()] for each in columns]
            if not names:
                yield from ({} for _ in self._frame.index[piece])
            for row in zip(*cells, strict=True):
                yield dict(zip(names, row, strict=True))

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Any:
        """Its columns and these, or of some rows only."""
        piece = slice(count) if places is None else list(places)
        return beside(_apart(self._frame.iloc[piece]), columns, count, places)


def _apart(frame: Any) -> Any:
    """A copy of a pandas frame: what is written into one of them is not in the other."""
    import pandas as pd

    # From pandas 3 on, and in 2 where that is chosen, writing to a shallow copy makes a deep one.
    lazily = int(pd.__version__.partition(".")[0]) >= 3 or pd.options.mode.copy_on_write is True
    return frame.copy(deep=not lazily)


def beside(
    frame: Any, columns: Mapping[str, Column], count: int, places: Sequence[int] | None
) -> Any:
    """Puts columns into a pandas frame that has their rows: behind its own, or in their place."""
    for name, column in columns.items():
        values = to_pandas(column, count, places)
        if hasattr(values, "index"):
            # By place: labels may be there twice.
            values.index = frame.index
        levels = frame.columns.nlevels
        there = [place for place, each in enumerate(frame.columns) if _is_named(each, name, levels)]
        if not there:
            whole = name if levels == 1 else (name, *[""] * (levels - 1))
            frame.insert(frame.shape[1], whole, values)
            continue
        frame.isetitem(there[0], values)
        if there[1:]:
            keep = [each for each in range(frame.shape[1]) if each not in there[1:]]
            frame = frame.iloc[:, keep]
    return frame


def _is_named(each: Any, name: str, levels: int) -> bool:
    """Whether a column has a name, and none below it where names have several levels."""
    if levels == 1:
        return isinstance(each, str) and each == name
    # A level of moments has NaT where we said nothing.
    return each[0] == name and all(cell(part) in (None, "") for part in each[1:])


class _NarwhalsSheet:
    """A frame that narwhals reads.

    Args:
        frame: The user's own.
        readable: The same with each name once.
        held: Its size in bytes.
    """

    def __init__(self, frame: Any, readable: Any, held: int) -> None:
        import narwhals as nw

        self._frame = frame
        self._readable = nw.from_native(readable, eager_only=True)
        self._batch = _batch(held, len(self._readable))
        self.names = list(self._readable.columns)

    @property
    def count(self) -> int:
        """Its rows."""
        return len(self._readable)

    def rows(
        self, places: Sequence[int] | None = None, uses: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Its rows, each by column; few at a time are Python objects."""
        names = _used(self.names, uses)
        if not names:
            yield from ({} for _ in (range(self.count) if places is None else places))
            return
        frame = self._readable.select(names)
        for some in _batches(self.count, places, self._batch):
            piece = frame[some] if isinstance(some, slice) else self._chosen(frame, some)
            for row in piece.iter_rows(named=True, buffer_size=_BATCH):
                yield {name: cell(value) for name, value in row.items()}

    def _chosen(self, frame: Any, places: Sequence[int]) -> Any:
        return frame[list(places)]


class PolarsSheet(_NarwhalsSheet):
    """A frame of polars."""

    def __init__(self, frame: Any) -> None:
        # Its data is shared; columns that the user adds or replaces later are not.
        frame = frame.clone()
        super().__init__(frame, frame, int(frame.estimated_size()))

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Any:
        """Its columns and these, or of some rows only."""
        made = [to_polars(name, column, count, places) for name, column in columns.items()]
        if not self.names:
            # Without columns it has no rows to choose from.
            return type(self._frame)(made)
        rows = self._frame.head(count) if places is None else self._frame[list(places)]
        return rows.with_columns(made)


class ArrowSheet(_NarwhalsSheet):
    """A table of pyarrow, whose names may be there twice."""

    def __init__(self, frame: Any) -> None:
        names = unique(frame.column_names)
        super().__init__(frame, frame.rename_columns(names), frame.nbytes)

    def _chosen(self, frame: Any, places: Sequence[int]) -> Any:
        import narwhals as nw

        return nw.from_native(_taken(frame.to_native(), places), eager_only=True)

    def frame(
        self, columns: Mapping[str, Column], count: int, places: Sequence[int] | None = None
    ) -> Any:
        """Its columns and these, or of some rows only."""
        import pyarrow as pa

        made = {name: to_arrow(column, count, places) for name, column in columns.items()}
        if not self.names:
            # Without columns it has no rows to choose from.
            return pa.table(made)
        rows = self._frame.slice(0, count) if places is None else _taken(self._frame, places)
        for name, values in made.items():
            there = [place for place, each in enumerate(rows.column_names) if each == name]
            for extra in reversed(there[1:]):
                rows = rows.remove_column(extra)
            rows = (
                rows.set_column(there[0], name, values)
                if there
                else rows.append_column(name, values)
            )
        return rows


def _taken(table: Any, places: Sequence[int]) -> Any:
    """Some rows of a table of pyarrow."""
    import pyarrow as pa

    try:
        return table.take(pa.array(places, pa.int64()))
    except NotImplementedError:
        # It cannot choose among texts by views, which polars gives it, nor among runs.
        return pa.concat_tables([table.slice(0, 0), *(table.slice(each, 1) for each in places)])


def _used(names: list[str], uses: Collection[str] | None) -> list[str]:
    return names if uses is None else [name for name in names if name in uses]


def _batch(held: int, count: int) -> int:
    """Rows to be read at once: fewer where they are large."""
    return max(1, min(_BATCH, _BATCH_BYTES * count // max(1, held)))


def _batches(
    count: int, places: Sequence[int] | None, size: int
) -> Iterator[slice | Sequence[int]]:
    if places is None:
        yield from (slice(begin, begin + size) for begin in range(0, count, size))
    else:
        yield from (places[begin : begin + size] for begin in range(0, len(places), size))
