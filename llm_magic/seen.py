"""Which rows are equal to an earlier one, in little memory however many there are."""

from __future__ import annotations

from array import array

_EMPTY = (1 << 64) - 1
_TABLES = 64


class _Table:
    """An open hash table of two words a slot: 96 bits of a key, 32 of its row."""

    __slots__ = ("_count", "_slots")

    def __init__(self) -> None:
        self._slots = array("Q", [_EMPTY]) * 32
        self._count = 0

    def first(self, high: int, low: int) -> int | None:
        """The row that is there with this key; else None, and this one is there from now on."""
        found = self._put(high, low)
        if found is None:
            self._count += 1
            # Four fifths full at most.
            if self._count * 5 > len(self._slots) // 2 * 4:
                self._grow()
        return found

    def _put(self, high: int, low: int) -> int | None:
        slots, size = self._slots, len(self._slots) // 2
        place = high % size
        while (at := slots[2 * place + 1]) != _EMPTY:
            if slots[2 * place] == high and at >> 32 == low >> 32:
                return at & 0xFFFFFFFF
            place = (place + 1) % size
        slots[2 * place], slots[2 * place + 1] = high, low
        return None

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", [_EMPTY]) * (2 * (len(old) // 2 * 3 // 2))
        for place in range(0, len(old), 2):
            if old[place + 1] != _EMPTY:
                self._put(old[place], old[place + 1])


class Seen:
    """The first row of each key.

    A dict of a million keys takes 150 MB, this 22. It is many small tables, since one that grows
    is there twice for a moment. Two of a million keys share 96 bits once in 10^17 runs.
    """

    def __init__(self) -> None:
        self._tables = [_Table() for _ in range(_TABLES)]

    def first(self, key: str, row: int) -> int | None:
        """The earlier row of an equal key; None where this is the first.

        Args:
            key: A sum in hex, as of a request.
            row: The row's number.
        """
        table = self._tables[int(key[24:26], 16) % _TABLES]
        return table.first(int(key[:16], 16), int(key[16:24], 16) << 32 | row)
