"""The widget of an answer while it comes: a Stop button, the seconds, and the words as they come.

What is sent is the difference to what was sent before, so that it grows with the answer and not
with its square. The widget is gone when the answer is whole: what stays is ordinary output.

A custom message that arrives before the page has loaded the widget is lost, and a server drops
messages that come too fast. So all of it is sent again when a page says that it shows the widget,
and when it has missed a message. Until a page says so, which some cannot while the cell runs, it is
sent again after 1, 2, 4, 8 ... messages: together at most twice the answer.
"""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llm_magic import plain
from llm_magic.views.base import REDRAWS_PER_SECOND, News, undivided
from llm_magic.views.growing import VALUES_PER_SECOND, Drawing
from llm_magic.views.notebook import (
    NotebookView,
    Output,
    growing,
    saved_form,
    show,
    waiting,
    writable,
)

if TYPE_CHECKING:
    from llm_magic.structured import Schema

# Characters a second sent for one answer, and of the block that the page draws anew. New ones are
# sent once and so put no redraw off for longer than this; those sent again have no such limit.
BYTES_PER_SECOND = 10_000
LONGEST_FOR_NEW = 0.25
REDRAWN_PER_SECOND = 200_000
# A page opens a second shell for a widget's messages, and says when it shows the widget. One that
# does not, in so many seconds, gets plain updates instead.
OPENS, SHOWS = 2.5, 5.0
_warned = threading.Event()


class Column:
    """One answer in the widget.

    Args:
        stream: The widget's end in the kernel.
        place: Which of its columns.
        schema: What the answer must be; None for prose.
        drawing: Makes what draws it, where that is not an answer.
    """

    def __init__(
        self,
        stream: Stream,
        place: int,
        schema: Schema | None,
        drawing: Callable[[], Drawing] | None = None,
    ) -> None:
        self._stream = stream
        self._place = place
        self._schema = schema
        self._new = drawing or partial(growing, schema)
        self._messages = 0
        self._asked = 0
        self._cost = 0.0
        self.status = ""
        self.again()

    def again(self) -> None:
        """Begins anew."""
        self._drawing = self._new()
        self._final: list[str] = []
        self._length = self._characters = 0
        self._last = ""
        self._thoughts, self._known = "", 0
        # Nothing of what was sent counts.
        self._whole = True

    def draw(self, news: News, line: str = "") -> float:
        """Sends what is new; returns the seconds to leave before the next call.

        Args:
            news: What is new.
            line: HTML for the row with the button, where it is not to tell tokens and seconds.
        """
        began = time.monotonic()
        self._characters += len(news.words) + len(news.thoughts)
        self._drawing.add(news.words)
        closed, last = self._drawing.html()
        # What was the last block is now final, or still the last: either way, its head stays.
        now = closed + last
        same = _common(self._last, now)
        message: dict[str, Any] = {"keep": self._length + _units(now[:same]), "add": now[same:]}
        if news.thoughts:
            message |= {"known": self._known, "thoughts": news.thoughts}
        again = len(self._last) - same
        self._thoughts += news.thoughts
        self._known += _units(news.thoughts)
        self._final.append(closed)
        self._length += _units(closed)
        self._last = last
        self._messages += 1
        if self._all_of_it():
            message = {"keep": 0, "add": self.html(), "known": 0, "thoughts": self._thoughts}
        self._send(message, news.notice, line)
        # One dear redraw, such as the first code's, which imports its lexer, puts nothing off.
        before, self._cost = self._cost, time.monotonic() - began
        cost = min(before, self._cost)
        rate = VALUES_PER_SECOND if self._schema else REDRAWS_PER_SECOND
        new = min(LONGEST_FOR_NEW, (len(now) - same) / BYTES_PER_SECOND)
        drawn = max(again / BYTES_PER_SECOND, len(last) / REDRAWN_PER_SECOND)
        return max(1 / rate, new, drawn, 25 * cost)

    def _all_of_it(self) -> bool:
        """Whether the page needs all of it, and not only what is new."""
        asked, stream = self._asked, self._stream
        self._asked = stream.asked
        unheard = not stream.seen.is_set() and self._messages & (self._messages - 1) == 0
        whole, self._whole = self._whole or unheard or asked != self._asked, False
        return whole

    def end(self, answer: Any, status: str) -> None:
        """The answer is whole, while others in the widget still come."""
        html = saved_form(answer, "")["text/html"]
        self.status, self._length = status, _units(html)
        self._send({"keep": 0, "add": html, "known": 0, "thoughts": self._thoughts}, "")

    def html(self) -> str:
        """All of it so far."""
        if len(self._final) > 1:
            self._final = ["".join(self._final)]
        return "".join(self._final) + self._last

    def _send(self, message: dict[str, Any], notice: str, line: str = "") -> None:
        # As a missing usage is estimated.
        message |= {"final": self._length, "tokens": self._characters // 4, "turn": self._messages}
        # Ten times a second and more: what says nothing is left out.
        rest = {"column": self._place, "status": self.status, "notice": notice, "line": line}
        self._stream.send(message | {name: each for name, each in rest.items() if each})


class Stream:
    """The widget's end in the kernel.

    Args:
        labels: Of the columns.
        stop: Ends the calls; run on the thread that hears the button.
        interrupts: Whether the cell blocks until the end, so that interrupting the kernel stops it.

    Attributes:
        seen: Set once a page has said that it shows the widget.
        asked: How many times a page has asked for all of it.
    """

    def __init__(
        self, labels: Sequence[str], stop: Callable[[], None], *, interrupts: bool
    ) -> None:
        self.seen = threading.Event()
        self.asked = 0
        self._stop = stop
        self._began = time.monotonic()
        self._widget = _widget_class()(
            labels=[plain.label(label) for label in labels], interrupts=interrupts
        )
        self._widget.on_msg(self._hear)
        # ipykernel 7.4 sends the page's messages to the shell that wrote last, which is the busy
        # one; the page itself asks for another. (7.0 to 7.3 do as the page says.)
        comm = self._widget.comm
        if hasattr(comm, "_reply_subshell_for"):
            comm._reply_subshell_for = lambda data, default: default

    def bundle(self, label: str) -> dict[str, Any]:
        """What is displayed: the widget, and words for where it cannot be drawn."""
        bundle = self._widget._repr_mimebundle_()
        # ipywidgets returns the data, anywidget beside it the metadata.
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        return {**data, "text/plain": waiting(label)}

    def send(self, message: dict[str, Any]) -> None:
        """To the page."""
        self._widget.send(writable(message))

    def unseen(self) -> bool:
        """Whether a page had time enough to show the widget, could have said so, and has not."""
        if self.seen.is_set() or (shells := _second_shells()) is None:
            return False
        return time.monotonic() - self._began > (SHOWS if shells else OPENS)

    def close(self) -> None:
        """Takes the widget away, with its layout, which would stay else."""
        layout = self._widget.layout
        self._widget.close()
        layout.close()

    def _hear(self, _: Any, message: Any, __: Any) -> None:
        self.seen.set()
        self.send({"heard": True})
        if message.get("stop"):
            self._stop()
        else:
            # It shows the widget, or has missed a message.
            self.asked += 1


class LiveView:
    """Shows an answer in a widget while it comes, and as ordinary output when it is whole.

    Args:
        schema: What the answer must be; None for prose.
        interrupts: Whether the cell blocks until the answer is there.
    """

    def __init__(self, schema: Schema | None = None, *, interrupts: bool = True) -> None:
        self._schema = schema
        self._interrupts = interrupts
        self._plain: NotebookView | None = None
        self._stream: Stream | None = None
        self._output = Output()
        self._label = self._words = ""

    def start(self, label: str, stop: Callable[[], None]) -> None:
        """Shows the row with the button, before the first word."""
        self._label, self._stop = label, stop
        try:
            with undivided():
                self._stream = Stream([label], stop, interrupts=self._interrupts)
            self._column = Column(self._stream, 0, self._schema)
            self._output.show(self._stream.bundle(label))
            # Imports the renderer while the server thinks.
            self._column.draw(News(""))
        # Libraries that do not fit each other raise anything.
        except Exception as error:  # noqa: BLE001
            warn(error)
            self._go_plain()

    def draw(self, news: News) -> float:
        """Sends what is new, or draws without the widget where no page shows it."""
        if self._plain is None and self._stream and self._stream.unseen():
            self._go_plain()
            news = News(self._words + news.words, news.thoughts, news.notice)
        if self._plain:
            return self._plain.draw(news)
        self._words += news.words
        return self._column.draw(news)

    def again(self) -> None:
        """Begins anew."""
        self._words = ""
        (self._plain or self._column).again()

    def finish(self, answer: Any, status: str, thoughts: str = "") -> None:
        """Puts the form that is saved in the widget's place."""
        if self._output.there:
            self._output.settle(self._label, answer, status, thoughts)
        elif answer != "" or status:
            show(saved_form(answer, status, thoughts))
        if self._stream:
            self._stream.close()

    def _go_plain(self) -> None:
        """Draws by updates of the output from now on."""
        self._plain = NotebookView(self._schema, self._output)
        self._plain.start(self._label, self._stop)


def warn(error: Exception) -> None:
    """Once a kernel: what is missing on screen, and how to have it."""
    # Not left to the filters of warnings: IPython's changes of them make it forget what was said.
    if _warned.is_set():
        return
    _warned.set()
    message = (
        f"The answers come without a Stop button: anywidget fails with {plain.label(repr(error))}. "
        "Mend it: %pip install -U anywidget ipywidgets, then restart the kernel; or do without: "
        "%config LLMMagic.widgets = False"
    )
    warnings.warn_explicit(message, UserWarning, "llm_magic", 1)


def _units(text: str) -> int:
    """The length of a text as JavaScript counts it."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _common(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _second_shells() -> int | None:
    """In how many more shells the kernel hears the page while a cell runs; None if it cannot."""
    from IPython.core.getipython import get_ipython

    kernel: Any = getattr(get_ipython(), "kernel", None)
    if not getattr(kernel, "_supports_kernel_subshells", False):
        return None
    try:
        return len(kernel.shell_channel_thread.manager.list_subshell())
    except AttributeError:
        return None


@lru_cache(maxsize=1)
def _widget_class() -> type[Any]:
    import anywidget
    import traitlets

    class Answer(anywidget.AnyWidget):
        """An answer on the page."""

        # Sent with every answer: without comments and indents.
        _esm = re.sub(
            r"^(\s*//.*\n|[ ]+)",
            "",
            (files("llm_magic.views") / "stream.js").read_text("utf-8"),
            flags=re.MULTILINE,
        )
        labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
        interrupts = traitlets.Bool().tag(sync=True)

    return Answer
