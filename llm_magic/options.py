"""The line of %%llm and %llm: options, then, for %llm, the prompt as it was typed.

argparse alone would not do: it splits the prompt of ``%llm what's up?`` as a shell would, takes
half a name for an option, and reports errors in a way that nbval does not see.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shlex
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from llm_magic.errors import PromptError

_NAME = re.compile(r"([^\W\d]\w*)\s*<<(?:\s+|$)")
_OPTION = re.compile(r"(--?[A-Za-z][\w-]*)(?:=|(?=\s|$))")
_QUOTED = re.compile(r"""(?P<quote>["'])(?P<text>(?:\\.|(?!(?P=quote)).)*)(?P=quote)(?=\s|$)""")
_TYPE_PART = re.compile(
    r"""\s*\|\s*|"(?:\\.|[^"])*"|'(?:\\.|[^'])*'|\s+|[\[\]()]|[^\s\[\]()|"']+|["']"""
)
_EXPRESSION_PART = re.compile(
    r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\s+|[\[\](){}]|[^\s\[\](){}"']+|["']"""
)
_WORD = re.compile(r"""(?:[^\s"']|"(?:\\.|[^"])*"|'[^']*'|["'])+""")


@dataclass(frozen=True, slots=True)
class Command:
    """A parsed line.

    Attributes:
        options: The values, by argparse's names.
        rest: What followed the options, exactly as typed.
    """

    options: argparse.Namespace
    rest: str


def parse(parser: argparse.ArgumentParser, line: str) -> Command:
    """Splits a magic's line.

    Args:
        parser: Knows the options; built by ``@magic_arguments``.
        line: Everything behind ``%llm`` or ``%%llm``.

    Raises:
        PromptError: For an unknown option (with the nearest one) or a value that does not fit.
    """
    known = parser._option_string_actions
    arguments = [action for action in parser._actions if not action.option_strings]
    see = _see(parser)
    words: list[str] = []
    name, place = "", 0
    while True:
        place = _past_blanks(line, place)
        if found := _NAME.match(line, place):
            name, place = found[1], found.end()
        elif line[place : place + 3].rstrip() == "--":
            place += 2
            break
        elif found := _OPTION.match(line, place):
            action = known.get(found[1]) or _unknown(found[1], parser)
            place = found.end()
            if action.nargs != 0:
                read = _type if action.dest == "schema" else _value
                value, place = read(line, place, found[1], see)
                if value == "--":
                    # argparse would take it for the end of the options, and the value for none.
                    raise PromptError(f"{found[1]} -- has no value; nothing was sent.", fix=see)
                # In one word, so that a value that starts with a dash is still a value.
                words.append(f"{action.option_strings[-1]}={value}")
            elif found[0].endswith("="):
                raise PromptError(f"{found[1]} takes no value; nothing was sent.", fix=see)
            else:
                words.append(found[1])
        elif arguments and place < len(line):
            value, place = _expression(line, place)
            words.append(value)
            del arguments[0]
        else:
            break
    if arguments:
        needed = str(arguments[0].metavar)
        raise PromptError(
            f"%%{_name(parser)} needs a {needed}, which comes first; nothing was sent.",
            fix=f"%%{_name(parser)} {needed}{f' {name} <<' if name else ''}",
        )
    options = _checked(parser, words, see)
    if name:
        options.out = name
    return Command(options, line[place:].strip())


def _name(parser: argparse.ArgumentParser) -> str:
    return parser.prog.lstrip("%")


def _see(parser: argparse.ArgumentParser) -> str:
    return f"See the options: %%{_name(parser)}?"


def parse_words(parser: argparse.ArgumentParser, line: str) -> argparse.Namespace:
    """A line of words and options in any order, as of ``%llm_quota``.

    Raises:
        PromptError: For an unknown option (with the nearest one) or a value that does not fit.
    """
    from IPython.core.error import UsageError

    known = [name for name in parser._option_string_actions if name.startswith("--")]
    try:
        words = shlex.split(line, posix=os.name != "nt")
        odd = [word for word in words if word.startswith("-") and word.split("=")[0] not in known]
        if odd:
            near = difflib.get_close_matches(odd[0], known, n=1, cutoff=0.5)
            guess = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"there is no option {odd[0]}{guess}")
        return parser.parse_args(words)
    except (UsageError, ValueError) as error:
        raise PromptError(
            f"%{_name(parser)}: {str(error).removesuffix('?')}"
            f"{'?' if str(error).endswith('?') else '.'} Nothing was changed.",
            fix=f"See the options: %{_name(parser)}?",
        ) from None


def params(pairs: list[str] | None) -> dict[str, Any]:
    """``KEY=JSON`` pairs as request fields; a bare word needs no quotes.

    Raises:
        PromptError: For a pair without ``=`` or a value that is neither JSON nor a bare word.
    """
    fields: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise PromptError(
                f"--param {pair} has no value; nothing was sent.",
                fix="Write it as --param KEY=JSON, for example --param top_p=0.9",
            )
        fields[key.strip()] = _json_value(key, value)
    return fields


def money(given: str | float | Decimal | None) -> Decimal | None:
    """An amount in USD, with or without its sign; None where there is none.

    Raises:
        PromptError: It is no amount.
    """
    if given is None:
        return None
    try:
        amount = Decimal(str(given).strip().removeprefix("$"))
    except ArithmeticError:
        amount = Decimal("nan")
    if not amount.is_finite() or amount < 0:
        raise PromptError(
            f"{given!r} is no amount in USD; nothing was sent.", fix="Write it as 0.05 or $0.05"
        )
    return amount


def names(text: str) -> list[str]:
    """Names between commas, each once.

    Raises:
        PromptError: There is none.
    """
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise PromptError(
            "--compare names no model; nothing was sent.", fix="Write it as --compare a,b"
        )
    return found


def _json_value(key: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        if re.fullmatch(r"[\w./:-]+", value):
            return value
        raise PromptError(
            f"--param {key}={value} is no JSON; nothing was sent.",
            fix=f"Quote it for the line and for JSON: --param '{key}={json.dumps(value)}'",
        ) from None


def _value(line: str, place: int, option: str, see: str = "") -> tuple[str, int]:
    """The next word, without the quotes around it or in it; and the place behind it."""
    place = _past_blanks(line, place)
    if found := _QUOTED.match(line, place):
        return re.sub(r"""\\(["'\\])""", r"\1", found["text"]), found.end()
    if found := _WORD.match(line, place):
        return _unquoted(found[0]), found.end()
    raise PromptError(f"{option} needs a value; nothing was sent.", fix=see)


def _type(line: str, place: int, option: str, see: str = "") -> tuple[str, int]:
    """A type expression, which has blanks in its brackets and around ``|``."""
    place = _past_blanks(line, place)
    if found := _QUOTED.match(line, place):
        return found["text"], found.end()
    start, depth = place, 0
    for part in _TYPE_PART.finditer(line, place):
        if part.start() != place or (part[0].isspace() and depth == 0):
            break
        depth += (part[0] in "[(") - (part[0] in ")]")
        place = part.end()
    if place == start:
        return _value(line, place, option, see)
    return line[start:place], place


def _expression(line: str, place: int) -> tuple[str, int]:
    """A Python expression, with blanks in brackets and quotes only; and the place behind it."""
    start, depth = place, 0
    for part in _EXPRESSION_PART.finditer(line, place):
        if part.start() != place or (part[0].isspace() and depth == 0):
            break
        depth += (part[0] in "[({") - (part[0] in "])}")
        place = part.end()
    return line[start:place], place


def _unquoted(word: str) -> str:
    """``key="two words"`` as a shell would read it; quotes that are JSON's own stay."""
    if "=" not in word:
        return word
    key, _, value = word.partition("=")
    if len(value) > 1 and value[0] == value[-1] == "'":
        return f"{key}={value[1:-1]}"
    return word


def _unknown(option: str, parser: argparse.ArgumentParser) -> argparse.Action:
    near = difflib.get_close_matches(option, [*parser._option_string_actions], n=1, cutoff=0.5)
    guess = f"Did you mean {near[0]}? " if near else ""
    # The other magics take no prompt on their line.
    dash = (
        f"  (a prompt that starts with a dash: %llm -- {option})" if _name(parser) == "llm" else ""
    )
    raise PromptError(
        f"There is no option {option}; nothing was sent.", fix=f"{guess}{_see(parser)}{dash}"
    )


def _checked(parser: argparse.ArgumentParser, words: list[str], see: str) -> argparse.Namespace:
    # The parser is IPython's: its error() raises UsageError, which IPython prints on stderr and
    # nbval does not count as a failure.
    from IPython.core.error import UsageError

    try:
        return parser.parse_args(words)
    except UsageError as error:
        raise PromptError(f"{error}; nothing was sent.", fix=see) from None


@dataclass(frozen=True, slots=True)
class Ending:
    """What is being typed at the end of a line.

    Attributes:
        typed: The word so far, with an open quote; may be empty.
        action: The option or argument that it is a value of; None where an option can stand.
    """

    typed: str
    action: argparse.Action | None


def ending(parser: argparse.ArgumentParser, line: str) -> Ending | None:
    """What the line's last word is, for completion; None where it is part of a prompt.

    Args:
        parser: Knows the options and arguments.
        line: Everything behind the magic's name, up to the cursor.
    """
    known = parser._option_string_actions
    arguments = [action for action in parser._actions if not action.option_strings]
    place = 0
    while True:
        place = _past_blanks(line, place)
        if found := _NAME.match(line, place):
            place = found.end()
            continue
        word = line[place:]
        if not word and line[-1:].strip():
            return None
        if word in ("", "-", "--"):
            return Ending(word, arguments[0] if arguments and not word else None)
        if word.startswith("--") and word[2].isspace():
            return None
        if found := _OPTION.match(line, place):
            place = found.end()
            if place == len(line) and not word.endswith("="):
                return Ending(word, None)
            action = known.get(found[1])
            if action is None:
                return None
            if action.nargs == 0:
                continue
        elif arguments:
            action = arguments.pop(0)
        else:
            return None
        start = _past_blanks(line, place)
        place = _end_of_value(line, start, action)
        if place == len(line):
            return Ending(line[start:], action)


def _past_blanks(line: str, place: int) -> int:
    return place + len(line[place:]) - len(line[place:].lstrip())


def _end_of_value(line: str, start: int, action: argparse.Action) -> int:
    if line[start : start + 1] in ("'", '"') and not _QUOTED.match(line, start):
        return len(line)
    try:
        if not action.option_strings:
            return _expression(line, start)[1]
        read = _type if action.dest == "schema" else _value
        return read(line, start, "")[1]
    except PromptError:
        return len(line)
