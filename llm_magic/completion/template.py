"""Tab in a prompt: names and attributes where ``{{`` or ``{%`` is open, a row's columns first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llm_magic.completion.names import (
    NONE,
    Found,
    members,
    path_at_end,
    starting,
    value_of,
    visible,
)

_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_ROW_KEY = re.compile(r"\brow\[\s*[\"']([^\"'\]]*)$")
_STATEMENTS = ("for", "endfor", "if", "elif", "else", "endif", "set")


def in_template(shell: Any, text: str, columns: Sequence[str] = ()) -> Found:
    """Names and attributes where ``{{`` or ``{%`` is open.

    Args:
        shell: The IPython shell.
        text: The prompt up to the cursor.
        columns: Of the table whose rows the prompt is about.
    """
    start = max(text.rfind("{{"), text.rfind("{%"))
    if start < 0 or max(text.rfind("}}"), text.rfind("%}")) > start:
        return NONE
    if columns and (key := _ROW_KEY.search(text, start)):
        return Found(key[1], starting(key[1], ((name, "column") for name in columns)))
    inside = _STRING.sub("''", text[start + 2 :])
    path = path_at_end(inside)
    before = inside[: len(inside) - len(path)].rstrip()
    # An open string, a filter, an attribute of something that would have to be computed.
    if inside.count("'") % 2 or '"' in inside or before[-1:] in ("|", ".", "]", ")"):
        return NONE
    if text[start + 1] == "%" and not before.strip("-+"):
        return Found(path, starting(path, ((word, "keyword") for word in _STATEMENTS)))
    folder, _, typed = path.rpartition(".")
    cells = [(name, "column") for name in columns if name.isidentifier()]
    if columns and folder == "row":
        return Found(typed, starting(typed, cells))
    # A column comes before a name of the notebook.
    names = {name: value for name, value in visible(shell).items() if name not in columns}
    if folder:
        of_value = ((name, "property") for name in members(value_of(folder, names)))
        return Found(typed, starting(typed, of_value))
    row = [("row", "row")] if columns else []
    others = [(name, "instance") for name in names if not (row and name == "row")]
    return Found(typed, starting(typed, [*cells, *row, *others]))
