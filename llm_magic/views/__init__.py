"""Where answers are drawn: the right view for the place where the cell runs."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_magic.types import Comparison, Response
from llm_magic.views.base import Feed, Silent, View, undivided, uninterrupted, wait

if TYPE_CHECKING:
    from llm_magic.structured import Schema
    from llm_magic.values import ImageValue
    from llm_magic.views.columns import Columns

__all__ = [
    "Feed",
    "Silent",
    "View",
    "choose",
    "choose_columns",
    "show_answers",
    "show_report",
    "undivided",
    "uninterrupted",
    "wait",
]


_ABOVE = "<Response: the answer above, with .text, .value, .usage, .model>"


def choose(
    shell: Any,
    *,
    quiet: bool = False,
    live: bool = True,
    schema: Schema | None = None,
    widgets: bool = True,
    blocks: bool = True,
) -> View:
    """The view for this shell.

    Args:
        shell: The IPython shell, or None outside of one.
        quiet: Draw nothing.
        live: Draw while the answer comes, where the front end can.
        schema: What the answer must be; None for prose.
        widgets: Use a widget where the front end runs it.
        blocks: The cell waits for the answer. Where it does not, words in a terminal would mix
            with what is typed, and a view that shows nothing until the end has no place.
    """
    if quiet or shell is None:
        return Silent()
    if not hasattr(shell, "kernel"):
        if not blocks:
            return Silent()
        from llm_magic.views.terminal import TerminalView

        return TerminalView(live=live, schema=schema)
    from llm_magic.views.notebook import HeadlessView, NotebookView

    if not watched(shell) or (blocks and not live):
        return HeadlessView()
    if widgets and runs_widgets(shell):
        from llm_magic.views.live import LiveView

        return LiveView(schema, interrupts=blocks)
    return NotebookView(schema)


def choose_columns(
    shell: Any,
    labels: Sequence[str],
    *,
    quiet: bool = False,
    live: bool = True,
    schema: Schema | None = None,
    widgets: bool = True,
) -> Columns:
    """The view of several answers at once; the arguments are those of ``choose``."""
    from llm_magic.views import columns

    if quiet or shell is None:
        return columns.Columns(labels)
    if not hasattr(shell, "kernel"):
        return columns.TerminalColumns(labels)
    if not (live and watched(shell)):
        return columns.HeadlessColumns(labels)
    if widgets and runs_widgets(shell):
        return columns.LiveColumns(labels, schema)
    return columns.PlainColumns(labels, schema)


def show_report(shell: Any, report: str, pictures: Sequence[ImageValue] = ()) -> None:
    """A plain text with an output of its own; in a notebook with its pictures, small."""
    if not hasattr(shell, "kernel"):
        print(report)
        return
    from llm_magic.views.notebook import display_report

    display_report(report, pictures)


def show_answers(shell: Any, pending: type[Any], on_screen: Callable[[Any], bool]) -> None:
    """Lets a shell display answers: their words, or nothing where the cell has drawn them already.

    Args:
        shell: The IPython shell.
        pending: The class of answers that are still coming, shown as answers once they are there.
        on_screen: Whether the running cell has drawn this answer.
    """
    formatters = shell.display_formatter
    kinds = (Response, Comparison, pending)

    def come(answer: Any) -> Any:
        return answer.now() if isinstance(answer, pending) else answer

    if hasattr(shell, "kernel"):
        from llm_magic.views.columns import display_answer

        # Claiming the display, and then showing nothing, keeps `_` and Out[n] without a second
        # copy of the answer in the notebook.
        def show(answer: Any) -> None:
            if not on_screen(answer):
                display_answer(come(answer))

        for kind in kinds:
            formatters.ipython_display_formatter.for_type(kind, show)
        return

    def write(answer: Any, printer: Any, _: bool) -> None:
        answer = come(answer)
        if not isinstance(answer, Response):
            printer.text(repr(answer))
        elif on_screen(answer):
            printer.text(_ABOVE)
        elif isinstance(answer.value, str):
            printer.text(answer.text)
        else:
            printer.pretty(answer.value)

    for kind in kinds:
        formatters.formatters["text/plain"].for_type(kind, write)


def runs_widgets(shell: Any) -> bool:
    """Whether the front end is JupyterLab or Notebook 7, with the libraries in the kernel.

    VS Code and Colab load custom widgets from elsewhere, or not at all.
    """
    if "__vsc_ipynb_file__" in shell.user_ns or "google.colab" in sys.modules:
        return False
    return "JPY_SESSION_NAME" in os.environ and importlib.util.find_spec("anywidget") is not None


def watched(shell: Any) -> bool:
    """Whether somebody watches: not under nbclient, papermill, nbval, nbconvert or %%capture."""
    from IPython.core.displaypub import CapturingDisplayPublisher

    if isinstance(shell.display_pub, CapturingDisplayPublisher):
        return False
    # jupyter_server names the session of a notebook (JupyterLab, Notebook 7); VS Code and Colab
    # start kernels in their own ways.
    return (
        ("JPY_SESSION_NAME" in os.environ and not _session_is_inherited())
        or "__vsc_ipynb_file__" in shell.user_ns
        or "google.colab" in sys.modules
    )


@lru_cache(maxsize=1)
def _session_is_inherited() -> bool:
    """Whether a notebook runs this one, as with papermill in a cell: the name is then not ours.

    Told by what started the kernel, which has the name itself; known on Linux only.
    """
    try:
        launcher = Path("/proc", os.environ["JPY_PARENT_PID"], "environ").read_bytes()
    except (KeyError, OSError):
        return False
    name = f"JPY_SESSION_NAME={os.environ['JPY_SESSION_NAME']}"
    return os.fsencode(name) in launcher.split(b"\0")
