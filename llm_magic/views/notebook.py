"""An answer in a notebook: one display, updated while the answer comes, saved in its final form.

Headless (nbclient, papermill, nbval, nbconvert) it is one ``display_data`` and no update: nbval
compares the first content of a display with the saved last one.
"""

from __future__ import annotations

import html
import time
from typing import TYPE_CHECKING, Any

from llm_magic.types import Response
from llm_magic.views.base import REDRAWS_PER_SECOND
from llm_magic.views.growing import (
    VALUES_PER_SECOND,
    GrowingMarkdown,
    GrowingValue,
    value_html,
)
from llm_magic.views.render import bundle, markdown_html, status_html

if TYPE_CHECKING:
    from llm_magic.structured import Schema

# Bytes a second sent to the front end while an answer streams. An update carries the whole text
# so far, so the pause between two grows with it, and what is sent grows with the time an answer
# takes instead of with the square of its length.
BYTES_PER_SECOND = 30_000


class HeadlessView:
    """Shows the answer once, when it is complete."""

    def start(self, label: str) -> None:
        """Nothing."""

    def draw(self, words: str, notice: str) -> float:
        """Nothing; looked at once a second."""
        return 1.0

    def again(self) -> None:
        """Nothing."""

    def finish(self, answer: Any, status: str) -> None:
        """The one display."""
        if answer != "" or status:
            _display(_saved_form(answer, status))


class NotebookView:
    """Shows the answer as it grows, in one output that is updated in place.

    Args:
        schema: What the answer must be; None for prose.
    """

    def __init__(self, schema: Schema | None = None) -> None:
        self._schema = schema
        self._drawing = self._new()
        self._model = self._label = ""
        self._handle: Any = None

    def start(self, label: str) -> None:
        """Shows at once that something is on its way, and how to stop it."""
        self._model = label
        self._label = f"{label} … (interrupt the kernel to stop)"
        self._show({"text/html": status_html(self._label), "text/plain": self._label})
        if self._schema is None:
            # Imports the renderer while the server thinks: the first redraw would otherwise take
            # long, and the pause after it ten times as long.
            markdown_html("\n")

    def draw(self, words: str, notice: str) -> float:
        """Redraws the text so far; the pause follows from its size and its cost."""
        began = time.monotonic()
        self._drawing.add(words)
        content = self._drawing.html() + status_html(notice or self._label)
        # text/plain is left to the final form: it would double the bytes.
        self._show({"text/html": content})
        cost = time.monotonic() - began
        rate = VALUES_PER_SECOND if self._schema else REDRAWS_PER_SECOND
        return max(1 / rate, len(content) / BYTES_PER_SECOND, 10 * cost)

    def again(self) -> None:
        """Begins anew."""
        self._drawing = self._new()

    def finish(self, answer: Any, status: str) -> None:
        """Replaces what was shown by the form that is saved."""
        # A front end keeps an emptied output as a gap, so a call without an answer says so.
        nothing = "" if answer != "" or status else f"{self._model} · no answer"
        self._show(_saved_form(answer, status or nothing))

    def _new(self) -> GrowingMarkdown | GrowingValue:
        return GrowingValue(self._schema) if self._schema else GrowingMarkdown()

    def _show(self, content: dict[str, str]) -> None:
        if self._handle:
            self._handle.update(content, raw=True)
        else:
            self._handle = _display(content, display_id=True)


def _display(content: dict[str, str], **options: Any) -> Any:
    from IPython.display import display

    return display(content, raw=True, **options)  # type: ignore[no-untyped-call]


def _saved_form(answer: Any, status: str) -> dict[str, Any]:
    """The bundle of an answer; an object's own HTML, where it has one, goes before ours."""
    if isinstance(answer, str):
        return bundle(answer, status)
    from IPython.core.getipython import get_ipython

    own: dict[str, Any] = {}
    if (shell := get_ipython()) and shell.display_formatter:
        own, _ = shell.display_formatter.format(answer)  # type: ignore[no-untyped-call]
    rendered = own.get("text/html") or value_html(answer)
    plain = own.get("text/plain") or repr(answer)
    return {"text/plain": plain, "text/html": rendered + status_html(status)}


def display_response(response: Response) -> None:
    """Shows an answer that is whole already."""
    _display(_saved_form(response.value, response.status()))


def display_report(report: str) -> None:
    """Shows a report as preformatted text."""
    _display({"text/plain": report, "text/html": f"<pre>{html.escape(report)}</pre>"})
