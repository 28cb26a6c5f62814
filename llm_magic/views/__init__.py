"""Where answers are drawn: the right view for the place where the cell runs."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llm_magic.types import Response
from llm_magic.views.base import Feed, Silent, View, uninterrupted

if TYPE_CHECKING:
    from llm_magic.structured import Schema

__all__ = ["Feed", "Silent", "View", "choose", "show_report", "show_responses", "uninterrupted"]


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
        blocks: The cell waits for the answer.
    """
    if quiet or shell is None:
        return Silent()
    if not hasattr(shell, "kernel"):
        from llm_magic.views.terminal import TerminalView

        return TerminalView(live=live, schema=schema)
    from llm_magic.views.notebook import HeadlessView, NotebookView

    if not (live and _front_end_draws(shell)):
        return HeadlessView()
    if widgets and _runs_widgets(shell):
        from llm_magic.views.live import LiveView

        return LiveView(schema, interrupts=blocks)
    return NotebookView(schema)


def show_report(shell: Any, report: str) -> None:
    """A plain text with an output of its own."""
    if not hasattr(shell, "kernel"):
        print(report)
        return
    from llm_magic.views.notebook import display_report

    display_report(report)


def show_responses(shell: Any, on_screen: Callable[[Response], bool]) -> None:
    """Lets a shell display a Response: its text, or nothing where the cell has drawn it already.

    Args:
        shell: The IPython shell.
        on_screen: Whether the running cell has drawn this answer.
    """
    formatters = shell.display_formatter
    if hasattr(shell, "kernel"):
        from llm_magic.views.notebook import display_response

        # Claiming the display, and then showing nothing, keeps `_` and Out[n] without a second
        # copy of the answer in the notebook.
        def show(response: Response) -> None:
            if not on_screen(response):
                display_response(response)

        formatters.ipython_display_formatter.for_type(Response, show)
        return

    def write(response: Response, printer: Any, _: bool) -> None:
        if on_screen(response):
            printer.text(_ABOVE)
        elif isinstance(response.value, str):
            printer.text(response.text)
        else:
            printer.pretty(response.value)

    formatters.formatters["text/plain"].for_type(Response, write)


def _runs_widgets(shell: Any) -> bool:
    """Whether the front end is JupyterLab or Notebook 7, with the libraries in the kernel.

    VS Code and Colab load custom widgets from elsewhere, or not at all.
    """
    if "__vsc_ipynb_file__" in shell.user_ns or "google.colab" in sys.modules:
        return False
    return "JPY_SESSION_NAME" in os.environ and importlib.util.find_spec("anywidget") is not None


def _front_end_draws(shell: Any) -> bool:
    """Whether somebody watches: not under nbclient, papermill, nbval, nbconvert or %%capture."""
    from IPython.core.displaypub import CapturingDisplayPublisher

    if isinstance(shell.display_pub, CapturingDisplayPublisher):
        return False
    # jupyter_server names the session of a notebook (JupyterLab, Notebook 7); VS Code and Colab
    # start kernels in their own ways.
    return (
        "JPY_SESSION_NAME" in os.environ
        or "__vsc_ipynb_file__" in shell.user_ns
        or "google.colab" in sys.modules
    )
