"""An answer in a notebook: one display, updated while the answer comes, saved in its final form.

Headless (nbclient, papermill, nbval, nbconvert) it is one ``display_data`` and no update: nbval
compares the first content of a display with the saved last one.
"""

from __future__ import annotations

import html
import time
from typing import Any

from llm_magic.types import Response
from llm_magic.views.base import REDRAWS_PER_SECOND
from llm_magic.views.render import bundle, markdown_html, status_html

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

    def finish(self, text: str, status: str) -> None:
        """The one display."""
        if text or status:
            _display(bundle(text, status))


class NotebookView:
    """Shows the answer as it grows, in one output that is updated in place."""

    def __init__(self) -> None:
        self._text = ""
        self._model = self._label = ""
        self._handle: Any = None

    def start(self, label: str) -> None:
        """Shows at once that something is on its way, and how to stop it."""
        self._model = label
        self._label = f"{label} … (interrupt the kernel to stop)"
        self._show({"text/html": status_html(self._label), "text/plain": self._label})
        # Imports the renderer while the server thinks: the first redraw would otherwise take
        # long, and the pause after it ten times as long.
        markdown_html("\n")

    def draw(self, words: str, notice: str) -> float:
        """Redraws the text so far; the pause follows from its size and its cost."""
        began = time.monotonic()
        self._text += words
        content = markdown_html(self._text) + status_html(notice or self._label)
        # text/plain is left to the final form: it would double the bytes.
        self._show({"text/html": content})
        cost = time.monotonic() - began
        return max(1 / REDRAWS_PER_SECOND, len(content) / BYTES_PER_SECOND, 10 * cost)

    def finish(self, text: str, status: str) -> None:
        """Replaces what was shown by the form that is saved."""
        # A front end keeps an emptied output as a gap, so a call without an answer says so.
        nothing = "" if text or status else f"{self._model} · no answer"
        self._show(bundle(text, status or nothing))

    def _show(self, content: dict[str, str]) -> None:
        if self._handle:
            self._handle.update(content, raw=True)
        else:
            self._handle = _display(content, display_id=True)


def _display(content: dict[str, str], **options: Any) -> Any:
    from IPython.display import display

    return display(content, raw=True, **options)  # type: ignore[no-untyped-call]


def display_response(response: Response) -> None:
    """Shows an answer that is whole already."""
    _display(bundle(response.text, response.status()))


def display_report(report: str) -> None:
    """Shows a report as preformatted text."""
    _display({"text/plain": report, "text/html": f"<pre>{html.escape(report)}</pre>"})
