"""Tab completion on the lines of our magics, and of names in a prompt's template.

IPython asks every matcher for every Tab, so that ours answers only where it is sure of the place,
and then alone; everywhere else it has nothing to say.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from llm_magic import options as line_options
from llm_magic.completion.line import is_schema, on_line
from llm_magic.completion.names import NONE, Found
from llm_magic.completion.tables import columns_named
from llm_magic.completion.template import in_template
from llm_magic.errors import PromptError

__all__ = ["IDENTIFIER", "Found", "complete", "is_schema", "register"]

IDENTIFIER = "llm_magic.completion"
_CELL = re.compile(r"\s*%%(\w+)(?:\s(.*))?$", re.DOTALL)
_LINE = re.compile(r"\s*(?:[^=#'\"%]+=\s*)?%(\w+)\s(.*)$", re.DOTALL)
# IPython before 8.6 gives a completer one line, and asks it where this fits.
_OLD_LINE = r".*%llm"
_ALIASES = 5


def register(shell: Any) -> None:
    """Makes a shell complete our magics; again changes nothing."""
    try:
        from IPython.core.completer import SimpleCompletion, context_matcher
    except ImportError:
        _register_old(shell)
        return

    def match(context: Any) -> Any:
        found = _safely(shell, context.full_text, context.cursor_line, context.cursor_position)
        return {
            "completions": [SimpleCompletion(text, type=word) for text, word in found.texts],
            "matched_fragment": found.typed if found.texts else context.token,
            "suppress": bool(found.texts),
            "ordered": True,
        }

    others = [
        each
        for each in shell.Completer.custom_matchers
        if getattr(each, "matcher_identifier", "") != IDENTIFIER
    ]
    shell.Completer.custom_matchers[:] = [*others, context_matcher(identifier=IDENTIFIER)(match)]


def _register_old(shell: Any) -> None:
    """IPython before 8.6: options and their values; what a cell's body holds it does not tell."""
    there = shell.strdispatchers.get("complete_command")
    if there and any(each.pattern == _OLD_LINE for each in there.regexs):
        return

    def complete(_: Any, event: Any) -> list[str]:
        line, symbol = event.text_until_cursor, event.symbol
        found = _safely(shell, line, 0, len(line))
        # IPython replaces its own idea of the last word, which may be longer than ours or shorter.
        if found.typed.endswith(symbol):
            cut = len(found.typed) - len(symbol)
            return [text[cut:] for text, _ in found.texts if text.startswith(found.typed)]
        kept = symbol.removesuffix(found.typed)
        return [kept + text for text, _ in found.texts]

    shell.set_hook("complete_command", complete, re_key=_OLD_LINE)


def _safely(shell: Any, text: str, row: int, column: int) -> Found:
    try:
        return complete(shell, text, row, column)
    except (Exception, KeyboardInterrupt):  # noqa: BLE001
        # IPython would print the traceback into the cell that is being typed.
        return NONE


def complete(shell: Any, text: str, row: int, column: int) -> Found:
    """What can stand at the cursor; nothing where the place is not one of ours.

    Args:
        shell: The IPython shell.
        text: The cell.
        row: The cursor's line, from 0.
        column: The characters before the cursor in its line.
    """
    lines = text.split("\n")
    before = lines[row][:column]
    heads = _heads(lines)
    if heads and row > heads[-1]:
        head = _CELL.match(lines[heads[-1]])
        if head and (parser := _parser(shell, "cell", head[1])):
            columns = _columns(shell, parser, head[2] or "")
            return in_template(shell, "\n".join([*lines[heads[-1] + 1 : row], before]), columns)
    kind = "cell" if row in heads else "line"
    found = (_CELL if kind == "cell" else _LINE).match(before)
    parser = _parser(shell, kind, found[1]) if found else None
    if found is None or parser is None or found[2] is None:
        return NONE
    templated = in_template(shell, found[2])
    return templated if templated.texts else on_line(shell, parser, found[2])


def _heads(lines: list[str]) -> list[int]:
    """The numbers of the lines with cell magics: ``%%time`` may stand above ``%%llm``."""
    heads = []
    for number, line in enumerate(lines):
        if line.lstrip().startswith("%%"):
            heads.append(number)
        elif heads or line.strip():
            break
    return heads


def _parser(shell: Any, kind: str, name: str) -> argparse.ArgumentParser | None:
    """The parser of a magic, if it is one of ours or an alias of one."""
    magics = shell.magics_manager.magics
    magic = magics[kind].get(name)
    for _ in range(_ALIASES):
        if not hasattr(magic, "magic_name"):
            break
        magic = magics[magic.magic_kind].get(magic.magic_name)
    if not str(getattr(magic, "__module__", "")).startswith("llm_magic."):
        return None
    parser: argparse.ArgumentParser | None = getattr(magic, "parser", None)
    return parser


def _columns(shell: Any, parser: argparse.ArgumentParser, line: str) -> list[str]:
    """The columns of the table that a magic's line names, if it does."""
    if not any(action.dest == "frame" for action in parser._actions):
        return []
    try:
        return columns_named(shell, line_options.parse(parser, line).options.frame)
    except PromptError:
        return []
