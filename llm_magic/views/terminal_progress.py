"""A run over rows in a terminal: tqdm's bar while it goes on, then what came of it as text."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, TextIO

from llm_magic import plain
from llm_magic.progress import Plan, Standing, Summary
from llm_magic.views.rows import rows_text
from llm_magic.views.terminal import faint, write

_PAUSE = 0.25
# tqdm's own line, but for the time that is left: it expects the rows that were only found again.
_LINE = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
    "[{elapsed}<{left}, {rate_noinv_fmt}{postfix}]"
)


class TerminalProgress:
    """A bar on ``sys.stderr``, and then what came of it.

    Args:
        live: Draw the bar; else only what came of it.
        to: Where the rest is printed, but for the first rows; None is all of it on ``sys.stdout``.
    """

    def __init__(self, *, live: bool = True, to: TextIO | None = None) -> None:
        self._live = live
        self._to = to
        self._bar: Any = None
        self._label = ""

    def start(self, label: str, plan: Plan | None, stop: Callable[[], None]) -> None:
        """Prints what it would come to."""
        self._label = plain.label(label)
        if plan and self._live:
            write(faint(plan.line(), self._to) + "\n", self._to)

    def draw(self, standing: Standing) -> float:
        """Moves the bar."""
        if self._live:
            if self._bar is None:
                # Gone when it has ended, and never there where nobody would see it move: a file
                # would get a line for each of its redraws.
                self._bar = _bar_class()(
                    total=standing.total,
                    desc=self._label,
                    unit=" rows",
                    unit_scale=False,
                    bar_format=_LINE if standing.total else None,
                    leave=False,
                    disable=None,
                    dynamic_ncols=True,
                    file=sys.stderr,
                )
            self._bar.show(standing)
        return _PAUSE

    def finish(self, standing: Standing, summary: Summary) -> None:
        """Takes the bar away, and prints what came of the run."""
        if self._bar is not None:
            self._bar.close()
        write(f"{faint(summary.headline, self._to)}\n", self._to)
        if self._to is not None:
            # A script goes on with the rows itself.
            summary = replace(summary, names=(), rows=())
        write(rows_text(summary, shutil.get_terminal_size().columns), self._to)


@lru_cache(maxsize=1)
def _bar_class() -> type[Any]:
    from tqdm import tqdm

    # Generic to type checkers alone.
    class Bar(tqdm):  # type: ignore[type-arg]
        """A bar whose numbers are the run's own: tqdm's rate counts rows that were only found."""

        # No thread that looks whether a bar stands still: this one is redrawn by the clock.
        monitor_interval = 0
        standing: Standing | None = None

        def show(self, standing: Standing) -> None:
            """Has this standing from now on."""
            self.standing, self.n = standing, standing.done
            parts = [standing.notice, standing.money()]
            counts = {"cached": standing.cached, "failed": standing.failed}
            parts += [f"{count:,} {what}" for what, count in counts.items() if count]
            told = plain.label(", ".join(filter(None, parts)))
            self.set_postfix_str(told, refresh=False)
            self.refresh()

        @property
        def format_dict(self) -> Any:
            """What tqdm puts into its line."""
            found, standing = super().format_dict, self.standing
            left = None if standing is None else standing.left
            found["left"] = "?" if left is None else self.format_interval(math.ceil(left))
            if standing and standing.per_second:
                found["rate"] = standing.per_second
            return found

    return Bar
