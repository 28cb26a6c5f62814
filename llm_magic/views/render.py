"""Markdown from a model to HTML that cannot act: no scripts, no handlers, nothing loaded.

Rendered here and not by the front end, because front ends run raw HTML in Markdown when they
trust the notebook, and load remote images even when they do not. (Escaping on the Markdown level
was tried and dropped: front ends' parsers differ, and fuzzing found ways through.)
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_SAFE_LINK = re.compile(r"^(https?://|mailto:|#)", re.IGNORECASE)
# A dollar in running text is money. In an element of its own, no pair of them becomes maths.
_DOLLAR = '<span class="tex2jax_ignore mathjax_ignore">$</span>'
# Pygments' token families and the colours of JupyterLab's editor for them, which follow the
# light and the dark theme; the fallback is for front ends without these variables.
_COLOURS = {
    "Token.Keyword": "var(--jp-mirror-editor-keyword-color, #008000)",
    "Token.Literal.String": "var(--jp-mirror-editor-string-color, #ba2121)",
    "Token.Literal.Number": "var(--jp-mirror-editor-number-color, #080)",
    "Token.Comment": "var(--jp-mirror-editor-comment-color, #408080)",
    "Token.Operator": "var(--jp-mirror-editor-operator-color, #7800c2)",
    "Token.Name.Builtin": "var(--jp-mirror-editor-builtin-color, #008000)",
    "Token.Name.Function": "var(--jp-mirror-editor-def-color, #00f)",
    "Token.Name.Class": "var(--jp-mirror-editor-def-color, #00f)",
    "Token.Name.Decorator": "var(--jp-mirror-editor-meta-color, #a2f)",
}


def markdown_html(text: str) -> str:
    """Safe HTML of a model's Markdown."""
    return str(_parser().render(text)) if text else ""


def growing_html(text: str, env: dict[str, Any]) -> tuple[str, str, int]:
    """Safe HTML of Markdown that is still being written.

    Args:
        text: The Markdown from the first block on that may still change.
        env: What earlier calls for the same answer learnt: its link references.

    Returns:
        HTML of the blocks that no further words can change, HTML of the last block, and the
        place in the text where that one begins.
    """
    parser = _parser()
    tokens = parser.parse(text, env)
    # A block is closed by the next one that begins on a whole line: "2" may become "2. item".
    unfinished = text.count("\n")
    first, line = 0, 0
    for index, token in enumerate(tokens):
        if token.level == 0 and token.map and token.nesting >= 0 and token.map[0] < unfinished:
            first, line = index, token.map[0]
    place = 0
    for _ in range(line):
        place = text.index("\n", place) + 1
    closed, last = (
        str(parser.renderer.render(part, parser.options, env))
        for part in (tokens[:first], tokens[first:])
    )
    return closed, last, place


def status_html(status: str) -> str:
    """The quiet line above an answer."""
    return f'<p style="opacity: 0.65"><small>{escaped(status)}</small></p>' if status else ""


def thoughts_html(thoughts: str) -> str:
    """A model's reasoning, folded away."""
    if not thoughts.strip():
        return ""
    words = f'<pre style="white-space: pre-wrap">{escaped(thoughts.strip())}</pre>'
    return f"<details><summary><small>Reasoning</small></summary>{words}</details>"


def escaped(text: str) -> str:
    """Text as HTML in which no pair of dollars becomes a formula."""
    return html.escape(text).replace("$", _DOLLAR)


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.texmath import texmath_plugin

    parser = MarkdownIt("commonmark", {"html": False, "highlight": _highlight})
    parser.enable(["table", "strikethrough"])
    parser.validateLink = lambda url: bool(_SAFE_LINK.match(url))  # type: ignore[method-assign]
    parser.use(dollarmath_plugin, allow_space=False, allow_digits=False, double_inline=True)
    parser.use(texmath_plugin, delimiters="brackets")
    for name, rule in _RULES.items():
        parser.add_render_rule(name, rule)
    return parser


def _text(_: Any, tokens: Any, index: int, *__: Any) -> str:
    return escaped(tokens[index].content)


def _image(_: Any, tokens: Any, index: int, *__: Any) -> str:
    """An image is a link: fetching it could carry the prompt's secrets to somebody's server."""
    source, words = tokens[index].attrs.get("src", ""), tokens[index].content or "image"
    return f'<a href="{html.escape(str(source))}" rel="noopener noreferrer">{escaped(words)}</a>'


def _inline_code(_: Any, tokens: Any, index: int, *__: Any) -> str:
    return f"<code>{html.escape(tokens[index].content)}</code>"


def _inline_math(_: Any, tokens: Any, index: int, *__: Any) -> str:
    return f"${html.escape(tokens[index].content)}$"


def _display_math(_: Any, tokens: Any, index: int, *__: Any) -> str:
    return f"<div>$${html.escape(tokens[index].content)}$$</div>\n"


def _cell(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    # JupyterLab aligns the cells of HTML tables to the right, and Markdown's to the left.
    if not tokens[index].attrGet("style"):
        tokens[index].attrSet("style", "text-align:left")
    return str(renderer.renderToken(tokens, index, options, env))


_RULES: dict[str, Callable[..., Any]] = {
    "text": _text,
    "image": _image,
    "code_inline": _inline_code,
    "math_inline": _inline_math,
    "math_inline_double": _display_math,
    "math_block": _display_math,
    "math_block_label": _display_math,
    "math_block_eqno": _display_math,
    "th_open": _cell,
    "td_open": _cell,
}


def _highlight(code: str, language: str, _: str) -> str:
    """Code with its colours inline, or empty where the language is not known."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return ""
    return "".join(_coloured(str(kind), words) for kind, words in lexer.get_tokens(code))


def _coloured(kind: str, words: str) -> str:
    words = html.escape(words)
    colour = next((value for family, value in _COLOURS.items() if kind.startswith(family)), None)
    return f'<span style="color: {colour}">{words}</span>' if colour else words
