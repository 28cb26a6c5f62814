"""An answer in a terminal: its words as they come, then one quiet line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from llm_magic.plain import lines, without_controls
from llm_magic.views.base import REDRAWS_PER_SECOND, News
from llm_magic.views.growing import VALUES_PER_SECOND, FinalLines, shown

if TYPE_CHECKING:
    from llm_magic.structured import Schema


class TerminalView:
    """Prints to whatever ``sys.stdout`` is now, so that ``%%capture`` and pipes get the text."""

    def __init__(self, *, live: bool = True, schema: Schema | None = None) -> None:
        self._live = live
        self._schema = schema
        self.again()
        self._printed = 0
        self._line_open = False

    def start(self, label: str, stop: Callable[[], None]) -> None:
        """Nothing: the prompt is on screen, and a retry speaks for itself."""

    def draw(self, news: News) -> float:
        """Prints what is new."""
        if news.notice:
            self._end_line()
            write(faint(news.notice) + "\n")
        if news.words and self._live:
            if self._lines is None:
                self._words(news.words)
            elif sys.stdout.isatty():
                for line in self._lines.add(news.words):
                    write(faint(line) + "\n")
        return 1 / (REDRAWS_PER_SECOND if self._lines is None else VALUES_PER_SECOND)

    def again(self) -> None:
        """Begins anew below what stands there."""
        self._lines = FinalLines(self._schema) if self._schema else None

    def finish(self, answer: Any, status: str, thoughts: str = "") -> None:
        """Prints the rest, or the object as Python shows it, and the status line."""
        self._words(answer[self._printed :] if isinstance(answer, str) else shown(answer))
        self._end_line()
        if status:
            write(faint(status) + "\n")

    def _end_line(self) -> None:
        if self._line_open:
            self._line_open = False
            write("\n")

    def _words(self, words: str) -> None:
        if words:
            self._printed += len(words)
            self._line_open = not words.endswith("\n")
            write(without_controls(words))


def write(text: str, to: TextIO | None = None) -> None:
    """Prints as it is, with question marks for what the terminal cannot show.

    Args:
        text: What is printed.
        to: Where; None is ``sys.stdout``.
    """
    to = to or sys.stdout
    try:
        print(text, end="", flush=True, file=to)
    except UnicodeEncodeError:
        encoding = to.encoding or "ascii"
        print(text.encode(encoding, "replace").decode(encoding), end="", flush=True, file=to)


def faint(line: str, to: TextIO | None = None) -> str:
    """A line in the terminal's faint style, or plain where it is piped."""
    line = lines(line)
    return f"\x1b[2m{line}\x1b[0m" if (to or sys.stdout).isatty() else line
