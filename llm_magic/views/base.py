"""Between the loop's thread, where an answer arrives, and the cell's thread, which draws it."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, Protocol

from llm_magic.decode import Piece
from llm_magic.types import Response

REDRAWS_PER_SECOND = 12


class News(NamedTuple):
    """What came since the last redraw.

    Attributes:
        words: Of the answer.
        thoughts: Of the model's reasoning.
        notice: Something to tell while waiting, such as a retry.
    """

    words: str
    thoughts: str = ""
    notice: str = ""


class View(Protocol):
    """Draws one answer. All calls come from one thread, the cell's or a background call's own."""

    def start(self, label: str, stop: Callable[[], None]) -> None:
        """The request is on its way.

        Args:
            label: Names the model.
            stop: Ends the call; may be called from any thread, for a button.
        """

    def draw(self, news: News) -> float:
        """Adds what is new; returns the seconds to leave before the next call."""

    def again(self) -> None:
        """What was drawn does not count: the answer is asked anew."""

    def finish(self, answer: Any, status: str, thoughts: str = "") -> None:
        """The final form, and one line about it. Called exactly once.

        Args:
            answer: Markdown, or the object that the answer gave.
            status: The line.
            thoughts: The model's reasoning, where the server shows it.
        """


class Silent:
    """Draws nothing: for ``--quiet`` and the Python API."""

    def start(self, label: str, stop: Callable[[], None]) -> None:
        """Nothing."""

    def draw(self, news: News) -> float:
        """Nothing."""
        return 1.0

    def again(self) -> None:
        """Nothing."""

    def finish(self, answer: Any, status: str, thoughts: str = "") -> None:
        """Nothing."""


class _Words:
    """Words of one attempt, appended on one thread and read on another."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._drawn = 0

    def fresh(self) -> str:
        """What came since the last call."""
        # A slice from a remembered place: popping while the other thread appends would need a
        # lock for every token.
        fresh = self.all[self._drawn :]
        self._drawn += len(fresh)
        return "".join(fresh)


class Feed:
    """The engine's sink on one side, a view's source on the other."""

    def __init__(self) -> None:
        self.partial: Response | None = None
        self.halted = False
        self._attempt = self._drawing = (_Words(), _Words())
        self._notice = ""
        self._news = threading.Event()
        self._closed = threading.Event()
        self._settled = threading.Event()

    def piece(self, piece: Piece) -> None:
        """New words, on the loop's thread. Costs an append unless the view is waiting."""
        if piece.kind != "refusal":
            self._attempt[piece.kind == "reasoning"].all.append(piece.text)
            if not self._news.is_set():
                self._news.set()

    def notice(self, message: str) -> None:
        """Something to tell while waiting, on the loop's thread."""
        self._notice = message
        self._news.set()

    def again(self, message: str) -> None:
        """The words so far do not count, on the loop's thread."""
        # Other lists: the drawing thread sees by that that it has to begin anew.
        self._attempt = _Words(), _Words()
        self.notice(message)

    def stopped(self, response: Response) -> None:
        """The cancelled call's partial answer, on the loop's thread."""
        self.partial = response
        self._settled.set()

    def close(self) -> None:
        """No more will come."""
        self._closed.set()
        self._news.set()

    def halt(self) -> None:
        """Somebody wants no more, as by a Stop button; from any thread."""
        if not self._closed.is_set():
            self.halted = True
            self.close()

    def text(self) -> str:
        """All words of the answer so far."""
        return "".join(self._attempt[0].all)

    def thoughts(self) -> str:
        """All words of the reasoning so far."""
        return "".join(self._attempt[1].all)

    def settle(self, seconds: float) -> Response | None:
        """Waits for a cancelled call to hand over its partial answer, at most so long."""
        wait(self._settled, seconds)
        return self.partial

    def follow(self, view: View) -> None:
        """Draws until the call ends: at once when there is news, then not before its pause.

        Raises:
            KeyboardInterrupt: It was halted.
        """
        while not self._closed.is_set():
            wait(self._news, None)
            self._news.clear()
            if self._closed.is_set():
                break
            wait(self._closed, view.draw(self._take(view)))
        if self.halted:
            raise KeyboardInterrupt

    def _take(self, view: View) -> News:
        notice, self._notice = self._notice, ""
        if self._attempt is not self._drawing:
            self._drawing = self._attempt
            view.again()
        words, thoughts = self._drawing
        return News(words.fresh(), thoughts.fresh(), notice)


def wait(event: threading.Event, seconds: float | None) -> None:
    """Waits for an event so that Ctrl-C is felt at once.

    In turns: an unlimited wait goes on after a signal whose handler was set with SA_RESTART, as
    importing polars does; one that begins in the moment of the signal, or whose signal another
    thread gets, is not woken either; and on Windows no wait notices Ctrl-C before its end.
    """
    turn = 0.1 if os.name == "nt" else 1.0
    end = math.inf if seconds is None else time.monotonic() + seconds
    while not event.wait(min(turn, end - time.monotonic())) and time.monotonic() < end:
        pass


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Does not let a second Ctrl-C cut off what is soon over."""
    before = signal.getsignal(signal.SIGINT)
    # Other threads get no signals; a handler that is not Python's could not be put back.
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def undivided() -> Iterator[None]:
    """Lets Ctrl-C come behind the block, for what would be left over if it were half made."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *about: came.append(about))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[-1])
