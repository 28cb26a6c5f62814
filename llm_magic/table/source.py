"""Which rows a value has: those of a frame, a list, an iterator, files; or what it is instead."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol

from llm_magic.columns import Column
from llm_magic.errors import PromptError
from llm_magic.frames import names_of
from llm_magic.table import files
from llm_magic.table.cells import TEXT
from llm_magic.table.items import Files, Items, Stream
from llm_magic.table.sheets import ArrowSheet, PandasSheet, PolarsSheet

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


def source(data: Any) -> Source:
    """The rows of what a user has.

    Args:
        data: A data frame or series of pandas, polars or pyarrow; a list of mappings, texts or
            objects with fields; an iterator of these, whose rows are not kept; a pattern of files,
            a folder, or a list of ``Path``.

    Raises:
        PromptError: It is no table, or has no rows yet.
    """
    if isinstance(data, str | os.PathLike):
        return Files(files.matching(data))
    if isinstance(data, list | tuple) and not hasattr(data, "_asdict"):
        return _of_items(data)
    family = {base.__module__.partition(".")[0] for base in type(data).__mro__}
    if family & {"pandas", "modin"}:
        return _of_pandas(data)
    if "polars" in family:
        return _of_polars(data)
    if "pyarrow" in family:
        return _of_arrow(data)
    if isinstance(data, Mapping | bytes | bytearray) or names_of(data) is not None:
        raise _no_table(data)
    if hasattr(data, "__next__"):
        return Stream(data)
    if (lazy := _lazy(data)) is not None:
        raise lazy
    if not isinstance(data, Iterable) or hasattr(data, "shape"):
        raise _no_table(data)
    # A set, a deque, the values of a dict: read once, so that an answer stands beside its row.
    return _of_items(data) if isinstance(data, Sized) else Stream(iter(data))


def _of_items(data: Iterable[Any]) -> Source:
    # A copy: what the user does to the list later is not done to this one.
    items = list(data)
    if items and all(isinstance(each, os.PathLike) for each in items):
        return Files([*map(os.fspath, items)])
    return Items(items)


def _of_pandas(data: Any) -> Source:
    if not hasattr(data, "iloc"):
        raise _no_table(data)
    if data.ndim == 1:
        data = data.to_frame(TEXT if data.name is None or data.name == "" else data.name)
    return PandasSheet(data)


def _of_polars(data: Any) -> Source:
    kind = type(data).__name__
    if kind == "DataFrame":
        return PolarsSheet(data)
    if kind == "Series":
        return PolarsSheet(data.to_frame(data.name or TEXT))
    raise _lazy(data) or _no_table(data)


def _of_arrow(data: Any) -> Source:
    import pyarrow as pa

    if isinstance(data, pa.Table):
        return ArrowSheet(data)
    if isinstance(data, pa.RecordBatch):
        return ArrowSheet(pa.Table.from_batches([data]))
    if isinstance(data, pa.Array | pa.ChunkedArray):
        return ArrowSheet(pa.table({TEXT: data}))
    # A reader and a data set have their rows elsewhere.
    for method in ("read_all", "to_table"):
        if hasattr(data, method):
            raise _not_yet(data, f"{method}()")
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
        f"{_one(data)} has no rows yet; nothing was sent.",
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
        if len(data.shape) == 1:
            fix = "Make a list of it: values.tolist()"
    what = "None" if data is None else _one(data)
    return PromptError(f"{what} is no table; nothing was sent.", fix=fix)


def _one(data: Any) -> str:
    name = type(data).__name__
    vowel = name[0] in "aeiouAEIOU" or name == "ndarray"
    return f"An {name}" if vowel else f"A {name}"
