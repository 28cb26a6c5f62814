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
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from llm_magic.plain import BIDI, turns
from llm_magic.views import maths

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from pygments.lexer import Lexer

_SAFE_LINK = re.compile(r"^(https?://|mailto:|#)", re.IGNORECASE)
_LINK = 'target="_blank" rel="noopener noreferrer"'
# A dollar in running text is money, and a backslash is one. In an element of its own, neither
# begins a formula.
_NO_MATHS = re.compile(r"[$\\]")
_TO_ESCAPE = re.compile(r"""[&<>"'$\\]""")
_ALONE = r'<span class="tex2jax_ignore mathjax_ignore">\g<0></span>'
_LANGUAGE = re.compile(r"[A-Za-z0-9+#._-]{1,40}")
# Of pygments' 500 languages those that a notebook meets: some of the others take minutes for a
# kilobyte made for it, and a model's words choose the language.
_NAMES = """
    bash c c++ cmake console cpp css cuda dart diff docker dockerfile fortran go
    golang graphql haskell html ini ipython javascript js json jsx julia kotlin latex
    lua make makefile markdown matlab md mysql numpy perl php postgres postgresql powershell
    protobuf py pycon python python3 r rb ruby rs rust scala scss sh shell sql swift tex text toml
    ts tsx typescript xml yaml yml zsh
"""
_COLOURED = frozenset(_NAMES.split())
_LONGEST_CODE = 20_000
# Lexers can take the square of the length of such runs: 10,000 blank lines are 12 s in C.
_SLOW_CODE = re.compile(r"\s{200}|.{1000}")
_BIDI = re.compile(f"[{BIDI}]")
_PYTHON = ("python", "py", "python3", "py3", "ipython", "ipython3", "pycon")
# Pygments' token families and the colours of JupyterLab's editor for them, which follow the
# light and the dark theme; the fallback is for front ends without these variables. (Operators had
# theirs: a third of the HTML of dense code, for single characters.)
_COLOURS = {
    "Token.Keyword": ("k", "var(--jp-mirror-editor-keyword-color, #008000)"),
    "Token.Literal.String": ("s", "var(--jp-mirror-editor-string-color, #ba2121)"),
    "Token.Literal.Number": ("n", "var(--jp-mirror-editor-number-color, #080)"),
    "Token.Comment": ("c", "var(--jp-mirror-editor-comment-color, #408080)"),
    # In JupyterLab's themes keywords and builtins have one colour, or nearly.
    "Token.Name.Builtin": ("k", "var(--jp-mirror-editor-keyword-color, #008000)"),
    "Token.Name.Function": ("d", "var(--jp-mirror-editor-def-color, #00f)"),
    "Token.Name.Class": ("d", "var(--jp-mirror-editor-def-color, #00f)"),
    "Token.Name.Decorator": ("m", "var(--jp-mirror-editor-meta-color, #a2f)"),
}
_NAMED_COLOURS = dict(_COLOURS.values())


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
    # A fresh one, but for the references: the rules for formulas remember places in this text.
    env = {"references": env.setdefault("references", {})}
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


def first_code(text: str) -> str:
    """The code of the first fence that is Python; else of the first without a language; else any.

    Args:
        text: Markdown.

    Returns:
        The code, or an empty text where there is none.
    """
    fences = [token for token in _parser().parse(text) if token.type == "fence"]
    return min(fences, key=_distance).content if fences else ""


def _distance(fence: Token) -> int:
    """How far a fence is from Python."""
    language = fence.info.strip().strip("{}.").lower().split(" ")[0]
    return 0 if language in _PYTHON else 2 if language else 1


def status_html(status: str) -> str:
    """The quiet line above an answer."""
    return quiet_html(line_html(status)) if status else ""


def quiet_html(content: str) -> str:
    """What is HTML already, in the form of such a line."""
    return f'<p style="opacity: 0.65"><small>{content}</small></p>'


def line_html(line: str) -> str:
    """A line of parts.

    A part of it with writing from right to left, as a model's name can have it, is kept apart, so
    that it cannot reorder the numbers beside it.
    """
    parts = (
        f'<span dir="auto">{escaped(part)}</span>' if turns(part) else escaped(part)
        for part in line.split(" · ")
    )
    return " · ".join(parts)


def thoughts_html(thoughts: str) -> str:
    """A model's reasoning, folded away."""
    if not thoughts.strip():
        return ""
    words = f'<pre style="white-space: pre-wrap">{escaped(thoughts.strip())}</pre>'
    return f"<details><summary><small>Reasoning</small></summary>{words}</details>"


def escaped(text: str) -> str:
    """Text as HTML in which nothing becomes a formula."""
    # Most cells of a table that is drawn again and again have nothing of it.
    if not _TO_ESCAPE.search(text):
        return text
    return _NO_MATHS.sub(_ALONE, html.escape(text))


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    parser = MarkdownIt("commonmark", {"html": False})
    parser.enable(["table", "strikethrough"])
    parser.validateLink = lambda url: bool(_SAFE_LINK.match(url))  # type: ignore[method-assign]
    parser.use(dollarmath_plugin, allow_space=False, allow_digits=False, double_inline=True)
    parser.inline.ruler.before("escape", "brackets", maths.brackets)
    parser.block.ruler.at(
        "math_block", maths.block, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    for name, rule in _RULES.items():
        parser.add_render_rule(name, rule)
    return parser


def _text(_: Any, tokens: Any, index: int, *__: Any) -> str:
    return escaped(tokens[index].content)


def _link(_: Any, tokens: Any, index: int, __: Any, env: Any) -> str:
    # HTML has no link within a link; Markdown has <addresses> within them.
    env["links"] = env.get("links", 0) + 1
    if env["links"] > 1:
        return ""
    href, title = tokens[index].attrGet("href"), tokens[index].attrGet("title")
    named = f' title="{html.escape(title)}"' if title else ""
    return f'<a href="{html.escape(str(href))}"{named} {_LINK}>'


def _link_end(_: Any, __: Any, ___: int, ____: Any, env: Any) -> str:
    env["links"] -= 1
    return "" if env["links"] else "</a>"


def _image(_: Any, tokens: Any, index: int, __: Any, env: Any) -> str:
    """An image is a link: fetching it could carry the prompt's secrets to somebody's server."""
    source, words = tokens[index].attrGet("src"), escaped(tokens[index].content or "image")
    return words if env.get("links") else f'<a href="{html.escape(source)}" {_LINK}>{words}</a>'


def _inline_code(_: Any, tokens: Any, index: int, *__: Any) -> str:
    return f"<code>{_code(tokens[index].content)}</code>"


def _block_code(_: Any, tokens: Any, index: int, *__: Any) -> str:
    from markdown_it.common.utils import unescapeAll

    code, words = tokens[index].content, unescapeAll(tokens[index].info).split()
    # The whole first word, or none: an info string may hold anything.
    language = words[0] if words and _LANGUAGE.fullmatch(words[0]) else ""
    named = f' class="language-{language}"' if language else ""
    colours, html_ = _highlight(code, language)
    return f"<pre{colours}><code{named}>{html_ or _code(code)}</code></pre>\n"


def _code(text: str) -> str:
    """Code as HTML, what would show it in another order than it runs made visible."""
    return _BIDI.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", html.escape(text))


def _formula(tex: str, mark: str) -> str:
    """A formula, or its source where it would do more than look like one."""
    source = f"{mark}{tex}{mark}"
    return f"<code>{_code(source)}</code>" if maths.acts(tex) else html.escape(source)


def _inline_math(_: Any, tokens: Any, index: int, *__: Any) -> str:
    return _formula(tokens[index].content, "$")


def _inline_display(_: Any, tokens: Any, index: int, *__: Any) -> str:
    # No div: it would end the paragraph.
    return _formula(tokens[index].content, "$$")


def _block_math(_: Any, tokens: Any, index: int, *__: Any) -> str:
    # An environment is display maths of its own.
    return f"<div>{_formula(tokens[index].content, '' if tokens[index].info else '$$')}</div>\n"


def _cell(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    # JupyterLab aligns the cells of HTML tables to the right, and Markdown's to the left.
    if not tokens[index].attrGet("style"):
        tokens[index].attrSet("style", "text-align:left")
    return str(renderer.renderToken(tokens, index, options, env))


_RULES: dict[str, Callable[..., Any]] = {
    "text": _text,
    "link_open": _link,
    "link_close": _link_end,
    "image": _image,
    "code_inline": _inline_code,
    "code_block": _block_code,
    "fence": _block_code,
    "math_inline": _inline_math,
    "math_inline_double": _inline_display,
    "math_block": _block_math,
    "th_open": _cell,
    "td_open": _cell,
}


# A closed block comes again in the form that is saved: 19 of 51 calls for an answer with 19 blocks.
@lru_cache(maxsize=128)
def _highlight(code: str, language: str) -> tuple[str, str]:
    """Its colours, as an attribute, and the code with them; empty where the language is not known.

    The colours are named once for the block: with their values at every word the HTML of code
    would be five times as long as the code, on the wire and in the saved notebook.
    """
    language = language.lower()
    if language not in _COLOURED or len(code) > _LONGEST_CODE or _SLOW_CODE.search(code):
        return "", ""
    lexer = _lexer_class(language)(stripnl=False, ensurenl=False)
    tokens = [(_colour(str(kind)), words) for kind, words in lexer.get_tokens(code)]
    # Lexers of sessions in a terminal add a line end.
    if "".join(words for _, words in tokens) != code:
        return "", ""
    runs = [
        (name, _code("".join(words for _, words in run)))
        for name, run in groupby(tokens, key=itemgetter(0))
    ]
    used = sorted({name for name, _ in runs if name})
    values = ";".join(f"--{name}:{_NAMED_COLOURS[name]}" for name in used)
    words = (
        f'<span style="color:var(--{name})">{run}</span>' if name else run for name, run in runs
    )
    return f' style="{values}"' if values else "", "".join(words)


@lru_cache(maxsize=len(_COLOURED))
def _lexer_class(language: str) -> Callable[..., Lexer]:
    """The lexer of a language, which pygments looks for in all that it has."""
    from pygments.lexers import find_lexer_class_by_name

    found: Callable[..., Lexer] = find_lexer_class_by_name(language)
    return found


@lru_cache(maxsize=256)
def _colour(kind: str) -> str:
    return next((name for family, (name, _) in _COLOURS.items() if kind.startswith(family)), "")
