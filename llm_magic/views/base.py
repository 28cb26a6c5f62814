"""Between the loop's thread, where an answer arrives, and the cell's thread, which draws it."""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Any, Protocol

from llm_magic.decode import Piece
from llm_magic.types import Response

REDRAWS_PER_SECOND = 15


class View(Protocol):
    """Draws one answer. All calls come from the cell's thread."""

    def start(self, label: str) -> None:
        """The request is on its way; ``label`` names the model."""

    def draw(self, words: str, notice: str) -> float:
        """Adds words; returns the seconds to leave before the next call."""

    def again(self) -> None:
        """What was drawn does not count: the answer is asked anew."""

    def finish(self, answer: Any, status: str) -> None:
        """The final form, and one line about it. Called exactly once.

        Args:
            answer: Markdown, or the object that the answer gave.
            status: The line.
        """


class Silent:
    """Draws nothing: for ``--quiet`` and the Python API."""

    def start(self, label: str) -> None:
        """Nothing."""

    def draw(self, words: str, notice: str) -> float:
        """Nothing."""
        return 1.0

    def again(self) -> None:
        """Nothing."""

    def finish(self, answer: Any, status: str) -> None:
        """Nothing."""


class Feed:
    """The engine's sink on one side, a view's source on the other."""

    def __init__(self) -> None:
        self.partial: Response | None = None
        self._words: list[str] = []
        self._drawing = self._words
        self._drawn = 0
        self._notice = ""
        self._news = threading.Event()
        self._closed = threading.Event()
        self._settled = threading.Event()

    def piece(self, piece: Piece) -> None:
        """New words, on the loop's thread. Costs an append unless the view is waiting."""
        if piece.kind == "text":
            self._words.append(piece.text)
            if not self._news.is_set():
                self._news.set()

    def notice(self, message: str) -> None:
        """Something to tell while waiting, on the loop's thread."""
        self._notice = message
        self._news.set()

    def again(self, message: str) -> None:
        """The words so far do not count, on the loop's thread."""
        # Another list: the cell's thread sees by that that it has to begin anew.
        self._words = []
        self.notice(message)

    def stopped(self, response: Response) -> None:
        """The cancelled call's partial answer, on the loop's thread."""
        self.partial = response
        self._settled.set()

    def close(self) -> None:
        """No more will come."""
        self._closed.set()
        self._news.set()

    def text(self) -> str:
        """All words of the answer so far."""
        return "".join(self._words)

    def settle(self, seconds: float) -> Response | None:
        """Waits for a cancelled call to hand over its partial answer, at most so long."""
        wait(self._settled, seconds)
        return self.partial

    def follow(self, view: View) -> None:
        """Draws until the call ends: at once when there is news, then not before its pause."""
        while not self._closed.is_set():
            wait(self._news, None)
            self._news.clear()
            if self._closed.is_set():
                return
            notice, self._notice = self._notice, ""
            wait(self._closed, view.draw(self._take(view), notice))

    def _take(self, view: View) -> str:
        words = self._words
        if words is not self._drawing:
            self._drawing, self._drawn = words, 0
            view.again()
        # A slice from a remembered place: popping while the other thread appends would need a
        # lock for every token.
        fresh = words[self._drawn :]
        self._drawn += len(fresh)
        return "".join(fresh)


def wait(event: threading.Event, seconds: float | None) -> None:
    """Waits for an event so that Ctrl-C is felt at once.

    In turns: an unlimited wait goes on after a signal whose handler was set with SA_RESTART, as
    importing polars does; and on Windows no wait notices Ctrl-C before its end.
    """
    turn = 0.1 if os.name == "nt" else 60.0
    end = math.inf if seconds is None else time.monotonic() + seconds
    while not event.wait(min(turn, end - time.monotonic())) and time.monotonic() < end:
        pass


def without_controls(text: str) -> str:
    """Text for a terminal: control characters gone, so that an answer cannot drive it.

    Keeps tab and newline; drops the other C0 and C1 controls, ESC among them.
    """
    return text.translate(_CONTROLS)


_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
