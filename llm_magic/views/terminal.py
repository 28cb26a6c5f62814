"""An answer in a terminal: its words as they come, then one quiet line."""

from __future__ import annotations

import sys

from llm_magic.views.base import REDRAWS_PER_SECOND, without_controls


class TerminalView:
    """Prints to whatever ``sys.stdout`` is now, so that ``%%capture`` and pipes get the text."""

    def __init__(self, *, live: bool = True) -> None:
        self._live = live
        self._printed = 0
        self._line_open = False

    def start(self, label: str) -> None:
        """Nothing: the prompt is on screen, and a retry speaks for itself."""

    def draw(self, words: str, notice: str) -> float:
        """Prints what is new."""
        if notice:
            self._end_line()
            self._print(_quiet(notice) + "\n")
        if words and self._live:
            self._words(words)
        return 1 / REDRAWS_PER_SECOND

    def finish(self, text: str, status: str) -> None:
        """Prints the rest and the status line."""
        self._words(text[self._printed :])
        self._end_line()
        if status:
            self._print(_quiet(status) + "\n")

    def _end_line(self) -> None:
        if self._line_open:
            self._line_open = False
            self._print("\n")

    def _words(self, words: str) -> None:
        if words:
            self._printed += len(words)
            self._line_open = not words.endswith("\n")
            self._print(without_controls(words))

    def _print(self, text: str) -> None:
        try:
            print(text, end="", flush=True)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding or "ascii"
            print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


def _quiet(line: str) -> str:
    """A line in the terminal's faint style, or plain where it is piped."""
    line = without_controls(line)
    return f"\x1b[2m{line}\x1b[0m" if sys.stdout.isatty() else line
