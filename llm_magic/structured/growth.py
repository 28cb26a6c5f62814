"""JSON while it grows: what of it is final, in work linear in its length.

A value counts once something behind it proves that it is whole: ``34`` may become ``345``. (jiter's
partial mode was tried and dropped: it gives a cut number as a whole one, and parses from the start
each time.) Each container that is still open is entered, so that a character is read once for every
open container around it and never again.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llm_magic.structured.schema import WRAPPER

_START = re.compile(r"""[{\[](?=\s*["{\[\]}\-\d]|\s*(?:true|false|null)\b)""")
_GAP = re.compile(r"[\s,]*")
_COLON = re.compile(r"\s*:\s*")
_BEHIND = re.compile(r"\s*[,\]}]")
# As much of a text as can be decoded: no half escape, no half of a surrogate pair.
_WORDS = re.compile(
    r"(?:[^\"\\]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\[^u])*+",
    re.DOTALL,
)
_LONGEST_ESCAPE = len(r"\ud83d\ude00")
_CLOSING = {"{": "}", "[": "]", '"': '"'}
_DECODER = json.JSONDecoder(strict=False)
_DEEPEST = 100
"""Open containers that are entered; what goes deeper is not shown while it comes."""


class Growth:
    """The first JSON object or array in a text that comes in pieces.

    Attributes:
        root: What is final of it: a dict or list that fills, or None before it begins.
        open: The containers that are not closed yet, outermost first.
        key: Where the unfinished text belongs, if the innermost of them is an object.
        words: The unfinished text so far; None where none is being written.
    """

    def __init__(self) -> None:
        self.root: Any = None
        self.open: list[Any] = []
        self.key: str | None = None
        self.words: list[str] | None = None
        self._rest = ""
        self._waits = self._fresh = self._stuck = False

    def feed(self, text: str) -> None:
        """Takes what has come."""
        self._rest += text
        self._fresh = True
        if self.root is None:
            found = _START.search(self._rest)
            if not found:
                # A bracket and blanks may be the start, cut.
                self._rest = self._rest[-64:]
                return
            self._enter(found[0])
            self._rest = self._rest[found.end() :]
        place = 0
        while self.open and not self._stuck:
            try:
                step = self._step(place) if self.words is None else self._read_words(place)
            except (ValueError, RecursionError):
                # No JSON: what there is stands still, and the reading will say why.
                self._stuck, step = True, None
            if step is None:
                break
            place = step
        self._rest = self._rest[place:] if self.open and not self._stuck else ""

    def value(self, *, wrapped: bool) -> Any:
        """What there is of the value, without the object that may be around it."""
        root = self.root
        return root.get(WRAPPER) if wrapped and isinstance(root, dict) and root else root

    def inside(self, container: Any) -> Any:
        """The part of a container that is still open; None where none is."""
        places = (place for place, each in enumerate(self.open) if each is container)
        place = next(places, len(self.open))
        return self.open[place + 1] if place + 1 < len(self.open) else None

    def _step(self, place: int) -> int | None:
        """Reads one key or value; the place behind it, or None where more has to come."""
        gap = _GAP.match(self._rest, place)
        place = gap.end() if gap else place
        mark = self._rest[place : place + 1]
        inside = self.open[-1]
        if not mark or mark in "]}":
            if mark:
                self.open.pop()
            return place + 1 if mark else None
        if type(inside) is dict and not self._waits:
            return self._read_key(place)
        many = self._many(place, mark) if self._fresh and type(inside) is list else None
        return self._read_value(place, mark) if many is None else many

    def _many(self, place: int, mark: str) -> int | None:
        """Keeps all items that are whole, in one go: ten times as fast as one by one.

        What stands before a comma and is a list when brackets are put around it ends with a whole
        item: within a text or an inner container the brackets would not match. Tried once for
        each piece of text, so that a character is read twice at most.
        """
        self._fresh = False
        end = self._rest.rfind(_CLOSING.get(mark, "") + ",", place) + len(_CLOSING.get(mark, ""))
        if end <= place:
            return None
        try:
            self.open[-1].extend(_DECODER.decode(f"[{self._rest[place:end]}]"))
        except (ValueError, RecursionError):
            return None
        return end + 1

    def _read_key(self, place: int) -> int | None:
        try:
            key, end = _DECODER.raw_decode(self._rest, place)
        except ValueError:
            return None
        colon = _COLON.match(self._rest, end)
        if not colon or colon.end() == len(self._rest):
            return None
        self.key, self._waits = str(key), True
        return colon.end()

    def _read_value(self, place: int, mark: str) -> int | None:
        if mark == '"':
            end = self._whole(place)
            if end is None:
                self.words = []
                return place + 1
            return end
        end = self._whole(place)
        if end is None and mark in "{[":
            self._stuck = len(self.open) >= _DEEPEST
            if not self._stuck:
                self._enter(mark)
                return place + 1
        return end

    def _whole(self, place: int) -> int | None:
        """Keeps the value at a place if all of it is there."""
        try:
            value, end = _DECODER.raw_decode(self._rest, place)
        except (ValueError, RecursionError):
            return None
        # A text or a container ends with its own mark; a number with what follows it.
        if not isinstance(value, str | dict | list) and not _BEHIND.match(self._rest, end):
            return None
        self._keep(value)
        return end

    def _read_words(self, place: int) -> int | None:
        """Reads on in an unfinished text, from where it was left."""
        found, words = _WORDS.match(self._rest, place), self.words or []
        end = found.end() if found else place
        if end > place:
            words.append(str(_DECODER.decode(f'"{self._rest[place:end]}"')))
        closed = self._rest[end : end + 1] == '"'
        if closed:
            self._keep("".join(words))
        self.words = None if closed else words
        # What is longer than two escapes is not the first half of one.
        self._stuck = not closed and len(self._rest) - end > _LONGEST_ESCAPE
        return None if end == place and not closed else end + closed

    def _enter(self, mark: str) -> None:
        container: Any = {} if mark == "{" else []
        if self.root is None:
            self.root = container
        else:
            self._keep(container)
        self.open.append(container)

    def _keep(self, value: Any) -> None:
        inside = self.open[-1]
        if type(inside) is list:
            inside.append(value)
        else:
            # A key that comes twice does not change what is shown; the reading refuses it.
            inside.setdefault(self.key, value)
            self._waits = False
