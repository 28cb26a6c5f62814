r"""Formulas in Markdown that begin with a backslash, and those that are a block of their own.

Rules for markdown-it, in time linear in the text: each remembers where it has looked for an end in
vain. (mdit-py-plugins' rules for these look again at every line, 37 s for 10,000 open ``$$``, and
lose the words that follow a ``\]`` on its line.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

_ENDS = {"\\(": "\\)", "\\[": "\\]"}
_OPENS = re.compile(r"\$\$|\\\[|\\begin\{([A-Za-z]{1,20}\*?)\}")
# Links, attributes and loading, which only a careful set-up of MathJax or KaTeX refuses; and
# definitions, which outlive the answer: a page has one MathJax, the user's formulas use it as well.
_ACTS = re.compile(
    r"\\(?:href|url|style|class|cssId|data|bbox|mmlToken|texttip|html[A-Z]\w*|includegraphics"
    r"|require|setOptions|[gex]?def|let|futurelet|global|(?:re)?new\w*|provide\w*|Declare\w+)"
    r"(?![A-Za-z])"
)


def acts(formula: str) -> bool:
    """Whether a formula does more than look like one: links, styles, loads or defines."""
    return bool(_ACTS.search(formula))


def brackets(state: StateInline, silent: bool) -> bool:
    r"""Within a line of text: ``\(...\)``, and ``\[...\]``."""
    opening = state.src[state.pos : state.pos + 2]
    if opening not in _ENDS:
        return False
    begin = state.pos + 2
    end = _find(state, _ENDS[opening], begin)
    if not begin < end <= state.posMax - 2 or state.src[begin:end].isspace():
        return False
    if not silent:
        kind = "math_inline" if opening == "\\(" else "math_inline_double"
        state.push(kind, "math", 0).content = state.src[begin:end]
    state.pos = end + 2
    return True


def block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""Lines from one that begins with ``$$``, ``\[`` or ``\begin{...}`` to one that ends so."""
    begin = state.bMarks[first] + state.tShift[first]
    opens = _OPENS.match(state.src, begin, state.eMarks[first])
    if not opens or state.is_code_block(first):
        return False
    ending = f"\\end{{{opens[1]}}}" if opens[1] else _ENDS.get(opens[0], "$$")
    found = _last_line(state, ending, first, last, opens.end())
    if found is None:
        return False
    # getLines takes the marks of a quotation away.
    words = state.getLines(first, found + 1, state.blkIndent, False).strip()
    if not words[2:-2].strip():
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        token.block, token.map = True, [first, found + 1]
        token.content = words if opens[1] else words[2:-2]
        token.info = opens[1] or ""
    state.line = found + 1
    return True


def _last_line(state: StateBlock, ending: str, first: int, last: int, begin: int) -> int | None:
    """The line that ends with ``ending``, before the block around it ends; else None."""
    vain = state.env.setdefault("maths", {})
    start, stop = vain.get(ending, (0, 0))
    if start <= first < stop:
        return None
    line = first
    while line < last:
        inside = line == first or state.sCount[line] >= state.blkIndent or state.isEmpty(line)
        if not inside:
            break
        place = state.src.find(ending, begin, state.eMarks[line])
        if place >= 0:
            if not state.src[place + len(ending) : state.eMarks[line]].strip():
                return line
            # Words behind it: text with a formula in it, which is left to the rules for those.
            break
        line += 1
        begin = state.bMarks[line] + state.tShift[line] if line < last else 0
    vain[ending] = (first, line)
    return None


def _find(state: StateInline, ending: str, begin: int) -> int:
    """Where the next such ending is, or -1."""
    text, place = state.env.get(ending, ("", 0))
    if text is state.src and begin >= place:
        return -1
    found = state.src.find(ending, begin)
    if found < 0:
        state.env[ending] = (state.src, begin)
    return found
