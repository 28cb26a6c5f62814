"""Several answers side by side, each drawn by a thread of its own, and saved as one output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_magic.types import Comparison, Response
from llm_magic.views.base import News, undivided
from llm_magic.views.notebook import BYTES_PER_SECOND, Output, growing, saved_form, show, waiting
from llm_magic.views.render import escaped, status_html
from llm_magic.views.terminal import TerminalView

if TYPE_CHECKING:
    from llm_magic.structured import Schema
    from llm_magic.views.live import Stream

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


class PlainColumns(Columns):
    """In one output that is updated in place, all columns at once.

    Args:
        labels: Name the models.
        schema: What the answers must be; None for prose.
        output: Where they go on, where there is one already.
    """

    def __init__(
        self, labels: Sequence[str], schema: Schema | None, output: Output | None = None
    ) -> None:
        super().__init__(labels)
        self._schema = schema
        self._output = output or Output()
        self._drawings = [growing(schema) for _ in labels]
        self._cells = [("", "")] * len(labels)
        self._label = waiting(", ".join(labels))
        self._due = 0.0

    def start(self, stop: Callable[[], None]) -> None:
        """Shows at once that something is on its way, and how to stop it."""
        self._output.show({"text/html": status_html(self._label), "text/plain": self._label})

    def draw(self, place: int, news: News) -> float:
        """Redraws all columns where it is time to."""
        with self._lock:
            self._drawings[place].add(news.words)
            closed, last = self._drawings[place].html()
            self._cells[place] = (self._cells[place][0] + closed, last)
            if (now := time.monotonic()) >= self._due:
                table = _table(self.labels, ["".join(cell) for cell in self._cells])
                self._output.show({"text/html": status_html(self._label) + table})
                pause = max(1 / _REDRAWS_PER_SECOND, len(table) / BYTES_PER_SECOND)
                self._due = now + pause
        return 1 / _REDRAWS_PER_SECOND

    def again(self, place: int) -> None:
        """Begins a column anew."""
        with self._lock:
            self._drawings[place] = growing(self._schema)
            self._cells[place] = ("", "")

    def finish(self) -> None:
        """Puts the form that is saved in its place."""
        self._output.show(side_by_side(self.parts))


class LiveColumns(Columns):
    """In a widget with a Stop button, each growing as its answer comes.

    Args:
        labels: Name the models.
        schema: What the answers must be; None for prose.
    """

    def __init__(self, labels: Sequence[str], schema: Schema | None) -> None:
        super().__init__(labels)
        self._schema = schema
        self._words = [""] * len(labels)
        self._plain: PlainColumns | None = None
        self._stream: Stream | None = None
        self._output = Output()

    def start(self, stop: Callable[[], None]) -> None:
        """Shows the widget."""
        from llm_magic.views.live import Column, Stream, warn

        try:
            with undivided():
                self._stream = Stream(self.labels, stop, interrupts=True)
            places = range(len(self.labels))
            self._columns = [Column(self._stream, place, self._schema) for place in places]
            self._output.show(self._stream.bundle(", ".join(self.labels)))
        # Libraries that do not fit each other raise anything.
        except Exception as error:  # noqa: BLE001
            warn(error)
            self._go_plain()

    def draw(self, place: int, news: News) -> float:
        """Sends what is new, or draws without the widget where no page shows it."""
        with self._lock:
            if self._plain is None and self._stream and self._stream.unseen():
                self._go_plain()
            if self._plain is None:
                self._words[place] += news.words
                return self._columns[place].draw(news)
        return self._plain.draw(place, news)

    def again(self, place: int) -> None:
        """Begins a column anew."""
        with self._lock:
            self._words[place] = ""
            if self._plain:
                self._plain.again(place)
            else:
                self._columns[place].again()

    def done(self, place: int, part: Part) -> None:
        """Puts the whole answer and its status into the column."""
        with self._lock:
            super().done(place, part)
            if self._plain is None:
                self._columns[place].end(part.answer, part.status or part.label)

    def finish(self) -> None:
        """Puts the form that is saved in the widget's place."""
        self._output.show(side_by_side(self.parts))
        if self._stream:
            self._stream.close()

    def _go_plain(self) -> None:
        """Draws by updates of the output from now on."""
        self._plain = PlainColumns(self.labels, self._schema, self._output)
        self._plain.start(lambda: None)
        for place, words in enumerate(self._words):
            self._plain.draw(place, News(words))


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
