"""Code from an answer into the next cell: put there once, and never run.

The kernel cannot see the notebook's cells. Whether a cell has its code already is read from the
notebook as it was last saved, and remembered for as long as the kernel runs, because that file
lags behind the screen.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from llm_magic.chats import message_of

NO_CODE = "no code block in the answer"
PUT = "code put into the next cell"
PROMPTED = "code put into the next prompt"
IN_NEXT = "the next cell has the code already"
BELOW = "a cell below has the code already"
EARLIER = "the code was put into a cell before"
COPY = "this front end takes no cells: copy the code from the answer"
_PLACED = (PUT, IN_NEXT, BELOW, EARLIER)
LARGEST_NOTEBOOK = 50_000_000
"""Bytes; a larger file is not read, which would take longer than a second."""

_given: dict[str, set[str]] = {}


def put(shell: Any, code: str) -> str:
    """Puts code into the cell below the one that runs, unless that was done before.

    JupyterLab, Notebook 7 and VS Code insert a cell; a terminal has the code on its next prompt;
    Colab does nothing. Under nbclient, papermill and nbval nothing is inserted: nobody is there,
    and the notebook must stay what it is.

    Args:
        shell: The IPython shell.
        code: The code; empty where the answer had none.

    Returns:
        What happened, in a few words; empty where nobody is there.
    """
    code = code.strip()
    if not code:
        return NO_CODE
    if not hasattr(shell, "kernel"):
        shell.set_next_input(code)
        return PROMPTED
    if "google.colab" in sys.modules:
        return COPY
    message = message_of(shell)
    name = message.get("metadata", {}).get("cellId") or ""
    path = _path(shell, name)
    if path is None:
        return ""
    source = message.get("content", {}).get("code", "")
    given = _given.setdefault(name or source, set())
    seen = _seen(_saved_cells(path), name, source, code)
    if not seen and code in given:
        seen = EARLIER
    given.add(code)
    if seen:
        return seen
    shell.set_next_input(code)
    return PUT


def _path(shell: Any, name: str) -> Path | None:
    """The notebook's file where a front end shows it, None where nobody is there.

    A runner that is started from a notebook has that one's session in its environment; but what
    it runs has no cell's name.
    """
    path = os.environ.get("JPY_SESSION_NAME") if name else None
    path = path or shell.user_ns.get("__vsc_ipynb_file__")
    return Path(path) if path else None


def _saved_cells(path: Path) -> list[dict[str, Any]]:
    """The cells as they were last saved; none where there is no such file, or no notebook."""
    try:
        if path.stat().st_size > LARGEST_NOTEBOOK:
            return []
        cells = json.loads(path.read_bytes())["cells"]
        return [cell for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _seen(cells: list[dict[str, Any]], name: str, source: str, code: str) -> str:
    """Where the saved notebook has the code for a cell; empty where it has not."""
    here = [at for at, cell in enumerate(cells) if name and cell.get("id") == name]
    # VS Code has names of its own for cells.
    here = here or [at for at, cell in enumerate(cells) if _text(cell.get("source")) == source]
    if len(here) != 1:
        return ""
    below = [_text(cell.get("source")).strip() for cell in cells[here[0] + 1 :]]
    if code in below:
        return IN_NEXT if below[0] == code else BELOW
    return EARLIER if _was_given(cells[here[0]], code) else ""


def _was_given(cell: dict[str, Any], code: str) -> bool:
    """Whether the cell's saved output says that this code was put into a cell.

    It is the user's since then, who has perhaps changed it; after a restart only this tells.
    """
    from llm_magic.views.render import first_code

    for output in cell.get("outputs") or []:
        data = output.get("data") or {}
        html = _text(data.get("text/html"))
        if any(note in html for note in _PLACED):
            return first_code(_text(data.get("text/plain"))).strip() == code
    return False


def _text(lines: Any) -> str:
    """A text of a notebook's file, which may be cut into lines."""
    return "".join(lines) if isinstance(lines, list) else str(lines or "")
