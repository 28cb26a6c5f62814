"""A run over rows while it goes on: a widget with a Stop button, plain updates, or one display."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llm_magic.progress import Plan, ProgressView, Standing, Summary
from llm_magic.views import runs_widgets, watched
from llm_magic.views.base import News, undivided
from llm_magic.views.notebook import BYTES_PER_SECOND, Output, show, waiting
from llm_magic.views.render import line_html, quiet_html, status_html
from llm_magic.views.rows import (
    PlanReport,
    growing_rows,
    plan_html,
    saved_rows,
    standing_html,
)

if TYPE_CHECKING:
    from llm_magic.views.live import Stream

PAUSE = 0.25
"""Seconds between two redraws, at least."""
_STOPS = "interrupt the kernel to stop"


def choose_progress(
    shell: Any, *, quiet: bool = False, live: bool = True, widgets: bool = True
) -> ProgressView:
    """The view of a run over rows for this shell.

    Args:
        shell: The IPython shell, or None outside of one.
        quiet: Draw nothing.
        live: Draw while it goes on, where the front end can.
        widgets: Use a widget where the front end runs it.
    """
    if quiet:
        return SilentProgress()
    if not hasattr(shell, "kernel"):
        from llm_magic.views.terminal_progress import TerminalProgress

        if shell is not None:
            return TerminalProgress(live=live)
        # A script's own output is the script's.
        seen = live and sys.stderr is not None and sys.stderr.isatty()
        return TerminalProgress(to=sys.stderr) if seen else SilentProgress()
    if not (live and watched(shell)):
        return HeadlessProgress()
    return LiveProgress() if widgets and runs_widgets(shell) else PlainProgress()


def plan_report(plan: Plan) -> PlanReport:
    """What a dry run shows of a plan, in a notebook and in a terminal."""
    return PlanReport(plan)


class SilentProgress:
    """Draws nothing: for ``--quiet``, and for scripts that nobody watches."""

    def start(self, label: str, plan: Plan | None, stop: Callable[[], None]) -> None:
        """Nothing."""

    def draw(self, standing: Standing) -> float:
        """Nothing."""
        return 1.0

    def finish(self, standing: Standing, summary: Summary) -> None:
        """Nothing."""


class HeadlessProgress(SilentProgress):
    """Shows what came of it, once, at the end."""

    _plan: Plan | None = None

    def start(self, label: str, plan: Plan | None, stop: Callable[[], None]) -> None:
        """Nothing yet."""
        self._plan = plan

    def finish(self, standing: Standing, summary: Summary) -> None:
        """The one display."""
        show(saved_rows(summary, self._plan))


class PlainProgress:
    """In one output that is updated in place.

    Args:
        output: Where it goes on, where there is one already.
    """

    def __init__(self, output: Output | None = None) -> None:
        self._output = output or Output()
        self._plan: Plan | None = None
        self._shown = ""

    def start(self, label: str, plan: Plan | None, stop: Callable[[], None]) -> None:
        """Shows at once that something is on its way, what it would come to, and how to stop it."""
        self._plan = plan
        told = waiting(label)
        self._output.show({"text/html": status_html(told) + self._above(), "text/plain": told})

    def draw(self, standing: Standing) -> float:
        """Redraws all of it."""
        row = quiet_html(f"{standing_html(standing)} · {_STOPS}")
        content = row + self._above() + growing_rows(standing)
        if content != self._shown:
            self._output.show({"text/html": content})
            self._shown = content
        return max(PAUSE, len(content) / BYTES_PER_SECOND)

    def finish(self, standing: Standing, summary: Summary) -> None:
        """Puts the form that is saved in its place."""
        self._output.show(saved_rows(summary, self._plan))

    def _above(self) -> str:
        # Not folded: what a user has opened would be closed again by the next update.
        return status_html(self._plan.line()) if self._plan else ""


class Growing:
    """What a widget shows below its row: the plan, which stays, the first rows, the last error.

    Args:
        plan: What it would come to, where that was found out.
    """

    def __init__(self, plan: Plan | None) -> None:
        self._plan = plan_html(plan)
        self.standing = Standing(None)

    def add(self, words: str) -> None:
        """Nothing: a run has no words."""

    def html(self) -> tuple[str, str]:
        """What is final and new since the last call, and what may still change."""
        closed, self._plan = self._plan, ""
        return closed, growing_rows(self.standing)


class LiveProgress:
    """In a widget while it goes on, and as ordinary output when it has ended."""

    def __init__(self) -> None:
        self._plain: PlainProgress | None = None
        self._stream: Stream | None = None
        self._output = Output()
        self._plan: Plan | None = None

    def start(self, label: str, plan: Plan | None, stop: Callable[[], None]) -> None:
        """Shows the row with the button, before the first row is there."""
        from llm_magic.views.live import Column, Stream, warn

        self._label, self._plan, self._stop = label, plan, stop
        try:
            with undivided():
                self._stream = Stream([label], stop, interrupts=True)
            self._growing = Growing(plan)
            self._column = Column(self._stream, 0, None, lambda: self._growing)
            self._output.show(self._stream.bundle(label))
            self._column.draw(News(""), line_html(label))
        # Libraries that do not fit each other raise anything.
        except Exception as error:  # noqa: BLE001
            warn(error)
            self._go_plain()

    def draw(self, standing: Standing) -> float:
        """Sends what is new, or draws without the widget where no page shows it."""
        if self._plain is None and self._stream and self._stream.unseen():
            self._go_plain()
        if self._plain:
            return self._plain.draw(standing)
        self._growing.standing = standing
        return max(PAUSE, self._column.draw(News(""), standing_html(standing)))

    def finish(self, standing: Standing, summary: Summary) -> None:
        """Puts the form that is saved in the widget's place."""
        self._output.show(saved_rows(summary, self._plan))
        if self._stream:
            self._stream.close()

    def _go_plain(self) -> None:
        """Draws by updates of the output from now on."""
        self._plain = PlainProgress(self._output)
        self._plain.start(self._label, self._plan, self._stop)
