"""What a notebook has by which name, for completion: found without running its code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from inspect import getattr_static
from typing import Any, NamedTuple

_NAME_PATH = re.compile(r"(?:[^\W\d]\w*\.)*(?:[^\W\d]\w*)?$")
_LONGEST_PATH = 300
NOTHING = object()
"""Stands for what is not there, or would have to be run."""


class Found(NamedTuple):
    """What can stand at the cursor.

    Attributes:
        typed: The characters before the cursor that each of the texts replaces.
        texts: (text, a word on it) in the order in which they are shown.
    """

    typed: str
    texts: list[tuple[str, str]]


NONE = Found("", [])


def starting(typed: str, texts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that begin with what is typed."""
    return [each for each in texts if each[0].startswith(typed)]


def path_at_end(text: str) -> str:
    """``a.b.c`` at the end of a text; empty where there is none."""
    # A word of megabytes, pasted, would be looked through from each of its characters.
    found = _NAME_PATH.search(text[-_LONGEST_PATH:])
    return found[0] if found else ""


def value_of(path: str, names: Mapping[str, Any]) -> Any:
    """The value at a path of names and attributes, found without running code of the notebook."""
    first, *rest = path.split(".")
    value = names.get(first, NOTHING)
    for name in rest:
        if type(value) is dict and name in value:
            value = value[name]
            continue
        value = getattr_static(value, name, NOTHING)
        # A property would have to be run; so would a function that makes the attribute.
        if hasattr(type(value), "__get__") and not isinstance(value, type):
            return NOTHING
    return value


def members(value: Any) -> Iterator[str]:
    """What can stand behind the dot: attributes, and the keys of a dict."""
    if value is NOTHING:
        return
    if type(value) is dict:
        yield from (key for key in value if isinstance(key, str) and key.isidentifier())
    yield from (name for name in dir(value) if isinstance(name, str) and name[:1] != "_")


def visible(shell: Any) -> dict[str, Any]:
    """The notebook's own names: without private ones and those that IPython puts there."""
    hidden = shell.user_ns_hidden
    return {
        name: value
        for name, value in list(shell.user_ns.items())
        if name[:1] != "_" and (name not in hidden or hidden[name] is not value)
    }
