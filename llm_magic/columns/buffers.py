"""Typed columns that answers are put into, in any order: a few bytes a row, and what is missing."""

from __future__ import annotations

import enum
import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_magic.kinds import OBJECT, Kind, same

if TYPE_CHECKING:
    from llm_magic.structured import Schema

    _Data = array[int] | array[float] | bytearray | list[Any]

ANSWER = "answer"
"""The one column of answers that are no objects with fields."""
_REMEMBERED = 4_096
"""Different texts of a column that are kept once each, if they have 100 characters at most."""


class _Misfit(Exception):
    """A value that is not of its column's kind."""


class Column:
    """One column: values at places, typed, with a mark where there is none.

    One thread may write while others read.

    Args:
        kind: What it holds. A value that is something else (an integer beyond 64 bits, what a
            validator made) turns it into a column of objects; none is refused or changed.
        missing: What stands where nothing was put.

    Attributes:
        kind: What it holds now.
    """

    __slots__ = ("_codes", "_data", "_table", "_texts", "_there", "kind", "missing")

    def __init__(self, kind: Kind, missing: Any = None) -> None:
        self.kind = kind
        self.missing = missing
        self._there = bytearray()
        self._data: _Data = _empty(kind)
        # Values of which there are few, as they came; a row has a number in this list.
        self._table: list[Any] = []
        self._codes: dict[tuple[type, Any], int] = {}
        self._texts: dict[str, str] = {}

    @classmethod
    def of(cls, name: str, missing: Any = None) -> Column:
        """A column by the name of its kind: ``Int64``, ``boolean``, ``Float64``, ``string`` ..."""
        return cls(Kind(name), missing)

    def __repr__(self) -> str:
        return f"<Column {self.kind.name}>"

    def set(self, place: int, value: Any) -> None:
        """Puts a value at a place, in the stead of what is there; None is no value."""
        if value is None:
            self.clear(place)
            return
        if place >= len(self._there):
            self._reach(place + 1)
        try:
            stored = self._stored(value)
        except _Misfit:
            self._loosen()
            stored = value
        data = self._data
        if isinstance(data, list) and place >= len(data):
            # As far as there are values: a column of errors mostly has none.
            data.extend(itertools.repeat(None, place + 1 - len(data)))
        data[place] = stored
        self._there[place] = 1

    def clear(self, place: int) -> None:
        """Takes away what is at a place."""
        if place < len(self._there):
            self._there[place] = 0
            if isinstance(self._data, list) and place < len(self._data):
                self._data[place] = None

    def get(self, place: int) -> Any:
        """The value at a place, as it came."""
        if place >= len(self._there) or not self._there[place]:
            return self.missing
        # By what the data is and not by the kind, which the writing thread may just be changing.
        data = self._data
        if isinstance(data, list):
            return data[place]
        if isinstance(data, bytearray):
            return bool(data[place])
        return self._table[int(data[place])] if data.typecode == "i" else data[place]

    def each(self, count: int, places: Sequence[int] | None = None) -> Iterator[Any]:
        """The values of the first rows, or of those at some places."""
        return map(self.get, range(count) if places is None else places)

    def raw(self, count: int) -> tuple[array[Any] | bytearray, bytearray] | None:
        """A copy of the data of the first rows, and of the marks: 1 where there is a value.

        None where the data are Python's objects.
        """
        if count > len(self._there):
            self._reach(count)
        data = self._data
        return None if isinstance(data, list) else (data[:count], self._there[:count])

    @property
    def table(self) -> list[Any]:
        """The plain values that the numbers stand for in a column of few different ones."""
        return [_plain(each) for each in self._table]

    def _reach(self, count: int) -> None:
        """Makes room, by an eighth more than is asked for, so that most rows find it made."""
        have = len(self._there)
        more = max(count, have + have // 8 + 16) - have
        # The marks come last: who finds one finds its data.
        if isinstance(self._data, array):
            self._data.frombytes(bytes(more * self._data.itemsize))
        elif isinstance(self._data, bytearray):
            self._data.extend(bytes(more))
        self._there.extend(bytes(more))

    def _loosen(self) -> None:
        self._data = [self.get(place) if there else None for place, there in enumerate(self._there)]
        self.kind = OBJECT

    def _stored(self, value: Any) -> Any:
        """The value in the form of the data."""
        name = self.kind.name
        if self.kind.choices:
            return self._code(value)
        # By the very type: an IntEnum's member or a text with methods of its own would be lost.
        kind = type(value)
        if name == "Int64":
            if kind is int and -(2**63) <= value < 2**63:
                return value
        elif name == "Float64":
            # What a validator has rounded, where no digit of it would be lost.
            if kind is float or (kind is int and abs(value) <= 2**53):
                return float(value)
        elif name == "boolean":
            if kind is bool:
                return value
        elif name != "string":
            return value
        elif isinstance(value, str) and not isinstance(value, enum.Enum):
            return self._text(value) if kind is str else value
        raise _Misfit

    def _code(self, value: Any) -> int:
        try:
            # By type as well: True equals 1, and a member of an Enum of texts its text.
            code = self._codes.get((type(value), value))
        except TypeError:
            raise _Misfit from None
        if code is None:
            plain = _plain(value)
            if not any(same(plain, each) for each in self.kind.choices):
                raise _Misfit
            code = self._codes[type(value), value] = len(self._table)
            self._table.append(value)
        return code

    def _text(self, value: str) -> str:
        """The text, or an equal one that is kept already."""
        if len(value) > 100:
            return value
        if len(self._texts) >= _REMEMBERED:
            return self._texts.get(value, value)
        return self._texts.setdefault(value, value)


class Columns:
    """The columns of a schema's values.

    Args:
        kind: What the values are.

    Attributes:
        names: The fields of the type, or ``answer`` where it has none.
    """

    def __init__(self, kind: Kind) -> None:
        self._roots = 0
        while kind.root:
            self._roots += 1
            kind = kind.part
        self._whole = kind.name != "struct"
        kinds = {ANSWER: kind} if self._whole else dict(kind.parts)
        self._columns = {name: Column(each) for name, each in kinds.items()}
        self.names = list(kinds)

    def column(self, name: str) -> Column:
        """The column of a field."""
        return self._columns[name]

    def put(self, place: int, value: Any) -> None:
        """Puts a validated value at a place: its fields, each into its column.

        Args:
            place: The row's number. They come in any order; a second value replaces the first.
            value: An object of the schema's type; None leaves all columns without a value.
        """
        for _ in range(self._roots):
            value = getattr(value, "root", value)
        if self._whole:
            self._columns[ANSWER].set(place, value)
        elif isinstance(value, Mapping):
            self._fill(place, map(value.get, self._columns))
        else:
            self._fill(place, (getattr(value, name, None) for name in self._columns))

    def copy(self, place: int, from_: int) -> None:
        """Puts at a place what another has: the answer of an equal row."""
        self._fill(place, (column.get(from_) for column in self._columns.values()))

    def clear(self, place: int) -> None:
        """Takes away what is at a place."""
        for column in self._columns.values():
            column.clear(place)

    def get(self, place: int) -> dict[str, Any]:
        """The values at a place by column, as the result for a list of dicts has them."""
        return {name: column.get(place) for name, column in self._columns.items()}

    def _fill(self, place: int, values: Iterable[Any]) -> None:
        for column, value in zip(self._columns.values(), values, strict=True):
            column.set(place, value)


def columns_for(schema: Schema | None) -> Columns:
    """Empty columns for the values of a schema; None is that of plain text."""
    if schema is None:
        return Columns(Kind("string"))
    from llm_magic.structured.shape import kind_of

    return Columns(kind_of(schema))


def _empty(kind: Kind) -> _Data:
    if kind.choices:
        return array("i")
    typecode = {"Int64": "q", "Float64": "d"}.get(kind.name)
    if typecode is not None:
        return array(typecode)
    return bytearray() if kind.name == "boolean" else []


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value
