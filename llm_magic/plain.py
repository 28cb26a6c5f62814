"""Words of a model or a server as plain text: they drive no terminal and reorder no line."""

from __future__ import annotations

import unicodedata

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that say in which direction the text around them runs; none has a shape."""
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_LABEL = (
    _CONTROLS | dict.fromkeys(map(ord, BIDI)) | dict.fromkeys(map(ord, "\t\n\u2028\u2029"), " ")
)
_LINES = {code: to for code, to in _LABEL.items() if code != ord("\n")}
_TURNS = frozenset({"R", "AL", "AN", "LRE", "RLE", "LRO", "RLO", "LRI", "RLI", "FSI"})


def without_controls(text: str) -> str:
    """Text for a terminal: control characters gone, so that an answer cannot drive it.

    Keeps tab and newline; drops the other C0 and C1 controls, ESC among them.
    """
    return text.translate(_CONTROLS)


def label(text: str) -> str:
    """A name among words of ours, on one line: no controls, and no override of the direction."""
    return text.translate(_LABEL)


def lines(text: str) -> str:
    """The same for a message of several lines."""
    return text.translate(_LINES)


def turns(text: str) -> bool:
    """Whether the text runs from right to left somewhere: it could reorder what is beside it."""
    return not text.isascii() and any(unicodedata.bidirectional(each) in _TURNS for each in text)


def writable(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs: those have no UTF-8.

    Models do send them. Jupyter fails on some, and sends others as bytes that no front end reads.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
