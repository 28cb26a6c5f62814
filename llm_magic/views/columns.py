"""Several answers side by side, each drawn by a thread of its own, and saved as one output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_magic.types import Comparison, Response
from llm_magic.views.base import News
from llm_magic.views.notebook import BYTES_PER_SECOND, growing, saved_form, show
from llm_magic.views.render import escaped, status_html
from llm_magic.views.terminal import TerminalView

if TYPE_CHECKING:
    from llm_magic.structured import Schema

_REDRAWS_PER_SECOND = 5


class Part(NamedTuple):
    """One of the answers.

    Attributes:
        label: Names the model.
        answer: Markdown, or an object.
        status: The line about it.
        thoughts: The reasoning.
    """

    label: str
    answer: Any
    status: str
    thoughts: str = ""


class Columns:
    """Takes the answers down and draws nothing: for ``--quiet``.

    Args:
        labels: Name the models.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self.parts = [Part(label, "", "") for label in labels]
        self._lock = threading.Lock()

    def column(self, place: int) -> OneColumn:
        """The view of one answer."""
        return OneColumn(self, place)

    def start(self, stop: Callable[[], None]) -> None:
        """The requests are about to be sent; ``stop`` ends all of them."""

    def draw(self, place: int, news: News) -> float:
        """Adds to a column; returns the seconds to leave before its next call."""
        return 1.0

    def again(self, place: int) -> None:
        """What a column has does not count."""

    def done(self, place: int, part: Part) -> None:
        """A column is whole."""
        self.parts[place] = part

    def finish(self) -> None:
        """All of them are."""


class OneColumn:
    """One answer's view, among others.

    Args:
        columns: All of them.
        place: Which one.
    """

    def __init__(self, columns: Columns, place: int) -> None:
        self._columns = columns
        self._place = place

    def start(self, label: str, stop: Callable[[], None]) -> None:
        """Nothing: all have started together."""

    def draw(self, news: News) -> float:
        """Adds to the column."""
        return self._columns.draw(self._place, news)

    def again(self) -> None:
        """Begins the column anew."""
        self._columns.again(self._place)

    def finish(self, answer: Any, status: str, thoughts: str = "") -> None:
        """The column is whole."""
        part = Part(self._columns.labels[self._place], answer, status, thoughts)
        self._columns.done(self._place, part)


class HeadlessColumns(Columns):
    """One display, when all answers are whole."""

    def finish(self) -> None:
        """The one display."""
        show(side_by_side(self.parts))


class TerminalColumns(Columns):
    """One below the other, in the order in which they come to their end."""

    def done(self, place: int, part: Part) -> None:
        """Prints the answer below its model's name."""
        super().done(place, part)
        with self._lock:
            view = TerminalView()
            view.draw(News("", notice=f"── {part.label}"))
            view.finish(part.answer, part.status)


class LiveColumns(Columns):
    """In a widget with a Stop button, each growing as its answer comes.

    Args:
        labels: Name the models.
        schema: What the answers must be; None for prose.
    """

    def __init__(self, labels: Sequence[str], schema: Schema | None) -> None:
        super().__init__(labels)
        self._schema = schema

    def start(self, stop: Callable[[], None]) -> None:
        """Shows the widget."""
        from llm_magic.views.live import Column, Stream

        self._stream = Stream(self.labels, stop, interrupts=True)
        self._columns = [
            Column(self._stream, place, self._schema) for place in range(len(self.labels))
        ]
        self._handle = show(self._stream.bundle(", ".join(self.labels)), display_id=True)

    def draw(self, place: int, news: News) -> float:
        """Sends what is new."""
        return self._columns[place].draw(news)

    def again(self, place: int) -> None:
        """Begins a column anew."""
        self._columns[place].again()

    def done(self, place: int, part: Part) -> None:
        """Puts the status into the column's head."""
        super().done(place, part)
        self._columns[place].end(part.answer, f"{part.label} · {part.status}")

    def finish(self) -> None:
        """Puts the form that is saved in the widget's place."""
        self._handle.update(side_by_side(self.parts), raw=True)
        self._stream.close()


class PlainColumns(Columns):
    """In one output that is updated in place, all columns at once.

    Args:
        labels: Name the models.
        schema: What the answers must be; None for prose.
    """

    def __init__(self, labels: Sequence[str], schema: Schema | None) -> None:
        super().__init__(labels)
        self._drawings = [growing(schema) for _ in labels]
        self._schema = schema
        self._cells = [("", "")] * len(labels)
        self._due = 0.0

    def start(self, stop: Callable[[], None]) -> None:
        """Shows at once that something is on its way, and how to stop it."""
        self._label = f"{', '.join(self.labels)} … (interrupt the kernel to stop)"
        content = {"text/html": status_html(self._label), "text/plain": self._label}
        self._handle = show(content, display_id=True)

    def draw(self, place: int, news: News) -> float:
        """Redraws all columns where it is time to."""
        with self._lock:
            self._drawings[place].add(news.words)
            closed, last = self._drawings[place].html()
            self._cells[place] = (self._cells[place][0] + closed, last)
            if (now := time.monotonic()) >= self._due:
                table = _table(self.labels, ["".join(cell) for cell in self._cells])
                self._handle.update({"text/html": status_html(self._label) + table}, raw=True)
                pause = max(1 / _REDRAWS_PER_SECOND, len(table) / BYTES_PER_SECOND)
                self._due = now + pause
        return 1 / _REDRAWS_PER_SECOND

    def again(self, place: int) -> None:
        """Begins a column anew."""
        self._drawings[place] = growing(self._schema)
        self._cells[place] = ("", "")

    def finish(self) -> None:
        """Puts the form that is saved in its place."""
        self._handle.update(side_by_side(self.parts), raw=True)


def display_answer(answer: Any) -> None:
    """Shows an answer that is whole already, answers side by side, or what there is instead."""
    if isinstance(answer, Response):
        show(saved_form(answer.value, answer.status(), answer.reasoning))
    elif isinstance(answer, Comparison):
        parts = [
            Part(model, each.value, each.status(), each.reasoning) for model, each in answer.items()
        ]
        show(side_by_side(parts))
    else:
        show({"text/plain": repr(answer)})


def side_by_side(parts: Sequence[Part]) -> dict[str, Any]:
    """The bundle of several answers: a column for each."""
    forms = [saved_form(part.answer, part.status, part.thoughts) for part in parts]
    words = (
        f"{part.label}:\n\n{form['text/plain']}" for part, form in zip(parts, forms, strict=True)
    )
    table = _table([part.label for part in parts], [form["text/html"] for form in forms])
    return {"text/plain": "\n\n".join(words), "text/html": table}


def _table(labels: Sequence[str], cells: Sequence[str]) -> str:
    left = 'style="text-align:left;vertical-align:top"'
    heads = "".join(f"<th {left}>{escaped(label)}</th>" for label in labels)
    row = "".join(f"<td {left}>{cell}</td>" for cell in cells)
    return f"<table><thead><tr>{heads}</tr></thead><tbody><tr>{row}</tr></tbody></table>"
