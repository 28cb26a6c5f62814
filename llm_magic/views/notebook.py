"""An answer in a notebook: one display, updated while the answer comes, saved in its final form.

Headless (nbclient, papermill, nbval, nbconvert) it is one ``display_data`` and no update: nbval
compares the first content of a display with the saved last one.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llm_magic import plain
from llm_magic.images import THUMBNAIL, about, thumbnail
from llm_magic.views.base import REDRAWS_PER_SECOND, News
from llm_magic.views.growing import (
    VALUES_PER_SECOND,
    Drawing,
    GrowingMarkdown,
    GrowingValue,
    value_html,
)
from llm_magic.views.render import markdown_html, status_html, thoughts_html

if TYPE_CHECKING:
    from llm_magic.structured import Schema
    from llm_magic.values import ImageValue

# Bytes a second sent to the front end while an answer streams. An update carries the whole text
# so far, so the pause between two grows with it, and what is sent grows with the time an answer
# takes instead of with the square of its length.
BYTES_PER_SECOND = 30_000


class HeadlessView:
    """Shows the answer once, when it is complete."""

    def start(self, label: str, stop: Callable[[], None]) -> None:
        """Nothing."""

    def draw(self, news: News) -> float:
        """Nothing; looked at once a second."""
        return 1.0

    def again(self) -> None:
        """Nothing."""

    def finish(self, answer: Any, status: str, thoughts: str = "") -> None:
        """The one display."""
        if answer != "" or status:
            show(saved_form(answer, status, thoughts))


class NotebookView:
    """Shows the answer as it grows, in one output that is updated in place.

    Args:
        schema: What the answer must be; None for prose.
        output: Where it goes on, where there is one already.
    """

    def __init__(self, schema: Schema | None = None, output: Output | None = None) -> None:
        self._schema = schema
        self._model = self._label = ""
        self._output = output or Output()
        self.again()

    def start(self, label: str, stop: Callable[[], None]) -> None:
        """Shows at once that something is on its way, and how to stop it."""
        self._model = label
        self._label = waiting(label)
        self._output.show({"text/html": status_html(self._label), "text/plain": self._label})
        if self._schema is None:
            # Imports the renderer while the server thinks: the first redraw would otherwise take
            # long, and the pause after it ten times as long.
            markdown_html("\n")

    def draw(self, news: News) -> float:
        """Redraws the text so far; the pause follows from its size and its cost."""
        began = time.monotonic()
        self._drawing.add(news.words)
        self._thoughts += len(news.thoughts)
        closed, last = self._drawing.html()
        self._closed += closed
        told = news.notice or self._label
        if self._thoughts and not self._closed and not last:
            told = f"{told} · reasoning, {self._thoughts:,} characters so far"
        content = status_html(told) + self._closed + last
        # text/plain is left to the final form: it would double the bytes.
        self._output.show({"text/html": content})
        cost = time.monotonic() - began
        rate = VALUES_PER_SECOND if self._schema else REDRAWS_PER_SECOND
        return max(1 / rate, len(content) / BYTES_PER_SECOND, 10 * cost)

    def again(self) -> None:
        """Begins anew."""
        self._drawing = growing(self._schema)
        self._closed, self._thoughts = "", 0

    def finish(self, answer: Any, status: str, thoughts: str = "") -> None:
        """Replaces what was shown by the form that is saved."""
        self._output.settle(self._model, answer, status, thoughts)


class Output:
    """One output of a cell: displayed first, and then updated in place."""

    def __init__(self) -> None:
        self._handle: Any = None

    @property
    def there(self) -> bool:
        """Whether it has been displayed."""
        return self._handle is not None

    def show(self, content: dict[str, Any]) -> None:
        """Has this bundle from now on."""
        if self._handle:
            self._handle.update(writable(content), raw=True)
        else:
            self._handle = show(content, display_id=True)

    def settle(self, label: str, answer: Any, status: str, thoughts: str) -> None:
        """Has the form of an answer that is saved."""
        # A front end keeps an emptied output as a gap, so a call without an answer says so.
        nothing = "" if answer != "" or status else f"{label} · no answer"
        self.show(saved_form(answer, status or nothing, thoughts))


def waiting(label: str) -> str:
    """What is shown of an answer that is on its way; ``label`` names the model."""
    return plain.label(f"{label} … (interrupt the kernel to stop)")


def growing(schema: Schema | None) -> Drawing:
    """What draws an answer of this schema while it comes."""
    return GrowingValue(schema) if schema else GrowingMarkdown()


def show(content: dict[str, Any], **options: Any) -> Any:
    """Publishes a bundle as it is; returns its handle where a ``display_id`` is asked for."""
    from IPython.display import display

    return display(writable(content), raw=True, **options)  # type: ignore[no-untyped-call]


def writable(content: dict[str, Any]) -> dict[str, Any]:
    """The content with texts that have a UTF-8."""
    return {
        kind: plain.writable(each) if isinstance(each, str) else each
        for kind, each in content.items()
    }


def saved_form(answer: Any, status: str, thoughts: str = "") -> dict[str, Any]:
    """The bundle of an answer: the raw Markdown or Python's own words, and all of it rendered.

    Args:
        answer: Markdown, or an object; its own HTML, where it has one, goes before ours.
        status: The line above it.
        thoughts: The reasoning, which is folded away.
    """
    above = status_html(status) + thoughts_html(thoughts)
    if isinstance(answer, str):
        return {"text/plain": answer or status, "text/html": above + markdown_html(answer)}
    from IPython.core.getipython import get_ipython

    own: dict[str, Any] = {}
    if (shell := get_ipython()) and shell.display_formatter:
        own, _ = shell.display_formatter.format(answer)  # type: ignore[no-untyped-call]
    rendered = own.get("text/html") or value_html(answer)
    return {"text/plain": own.get("text/plain") or repr(answer), "text/html": above + rendered}


def display_report(report: str, pictures: Sequence[ImageValue] = ()) -> None:
    """Shows a report as preformatted text, and below it its pictures."""
    shown = "".join(_picture_html(number, each) for number, each in enumerate(pictures, 1))
    show({"text/plain": report, "text/html": f"<pre>{html.escape(report)}</pre>{shown}"})


def _picture_html(number: int, picture: ImageValue) -> str:
    width, height = THUMBNAIL
    return (
        '<figure style="display: inline-block; margin: 0.5em">'
        f'<img src="{thumbnail(picture).url()}" alt="image {number}" '
        f'style="max-width: min(100%, {width}px); max-height: {height}px">'
        f"<figcaption><small>image {number}: {about(picture)}</small></figcaption></figure>"
    )
