"""Tab completion on the lines of our magics, and of names in a prompt's template.

IPython asks every matcher for every Tab, so that ours answers only where it is sure of the place,
and then alone; everywhere else it has nothing to say.
"""

from __future__ import annotations

import argparse
import enum
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import getattr_static
from typing import Any, NamedTuple

from llm_magic import options as line_options
from llm_magic.images import image_files, is_image
from llm_magic.options import Ending
from llm_magic.session import current

IDENTIFIER = "llm_magic.completion"
_CELL = re.compile(r"\s*%%(\w+)(?:\s(.*))?$", re.DOTALL)
_LINE = re.compile(r"\s*(?:[^=#'\"%]+=\s*)?%(\w+)\s(.*)$", re.DOTALL)
# IPython before 8.6 gives a completer one line, and asks it where this fits.
_OLD_LINE = r".*%llm"
_NAME_PATH = re.compile(r"(?:[^\W\d]\w*\.)*(?:[^\W\d]\w*)?$")
_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_STATEMENTS = ("for", "endfor", "if", "elif", "else", "endif", "set")
_PLAIN_TYPES = ("str", "int", "float", "bool", "list", "dict", "Literal")
# What pydantic models, dataclasses and TypedDicts have, so that none of these needs an import.
_MARKS = ("__pydantic_core_schema__", "__dataclass_fields__", "__required_keys__")
_FUNCTIONS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    *(types.ModuleType, type),
)
_ALIASES = 5
_LONGEST_PATH = 300


class Found(NamedTuple):
    """What can stand at the cursor.

    Attributes:
        typed: The characters before the cursor that each of the texts replaces.
        texts: (text, a word on it) in the order in which they are shown.
    """

    typed: str
    texts: list[tuple[str, str]]


_NONE = Found("", [])


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
        return _NONE


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
        if head and _parser(shell, "cell", head[1]):
            return _in_template(shell, "\n".join([*lines[heads[-1] + 1 : row], before]))
    kind = "cell" if row in heads else "line"
    found = (_CELL if kind == "cell" else _LINE).match(before)
    parser = _parser(shell, kind, found[1]) if found else None
    if found is None or parser is None or found[2] is None:
        return _NONE
    templated = _in_template(shell, found[2])
    return templated if templated.texts else _on_line(shell, parser, found[2])


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


# On the magic's line.


def _on_line(shell: Any, parser: argparse.ArgumentParser, line: str) -> Found:
    end = line_options.ending(parser, line)
    if end is None:
        return _NONE
    typed, action = end.typed, end.action
    if action is None:
        return Found(typed, _options(parser, typed))
    options = [] if typed or action.option_strings else _options(parser, typed)
    if action.choices:
        chosen = [(str(each), action.dest) for each in action.choices]
        return Found(typed, [*_starting(typed, chosen), *options])
    known = _VALUES.get(action.dest)
    found = known(shell, end) if known else Found(typed, [])
    return Found(found.typed, [*found.texts, *options])


def _options(parser: argparse.ArgumentParser, typed: str) -> list[tuple[str, str]]:
    """Options with their help; short names only where one is being typed."""
    names = [
        (name, (action.help or "").rstrip("."))
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") or typed.startswith("-")
    ]
    return _starting(typed, names)


def _starting(typed: str, texts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [each for each in texts if each[0].startswith(typed)]


def _models(shell: Any, end: Ending) -> Found:
    from llm_magic.models import known

    return Found(
        end.typed, _starting(end.typed, ((name, "model") for name in known(current(shell))))
    )


def _several_models(shell: Any, end: Ending) -> Found:
    *before, typed = end.typed.split(",")
    found = _models(shell, Ending(typed, None)).texts
    return Found(typed, [each for each in found if each[0] not in before])


def _names(shell: Any, end: Ending) -> Found:
    """What an answer may be bound to again."""
    own = _visible(shell).items()
    names = [name for name, value in own if not isinstance(value, _FUNCTIONS)]
    return Found(end.typed, _starting(end.typed, ((name, "instance") for name in names)))


def _chats(shell: Any, end: Ending) -> Found:
    chats = getattr(current(shell), "chats", None)
    names = [(str(name), "chat") for name in chats.names()] if chats is not None else []
    return Found(end.typed, _starting(end.typed, names))


def _images(shell: Any, end: Ending) -> Found:
    quote = end.typed[:1] if end.typed[:1] in ("'", '"') else ""
    typed = end.typed.removeprefix(quote)
    pictures = [name for name, value in _visible(shell).items() if is_image(value)]
    texts = [] if quote else _starting(typed, ((name, "image") for name in pictures))
    return Found(
        end.typed, [*texts, *((_quoted(file, quote), "path") for file in image_files(typed))]
    )


def _quoted(file: str, quote: str) -> str:
    """A path as a word of the line; the quote stays open behind a folder, whose files follow."""
    if not quote and re.search(r"[\s'\"]", file):
        quote = "'" if '"' in file else '"'
    return f"{quote}{file}" + ("" if file.endswith(os.sep) else quote)


def _cassettes(_: Any, end: Ending) -> Found:
    words = _starting(end.typed, ((word, "word") for word in ("status", "prune", "off")))
    files = image_files(end.typed, (".jsonl",))
    return Found(end.typed, [*words, *((_quoted(file, ""), "path") for file in files)])


def _types(shell: Any, end: Ending) -> Found:
    """Types of the notebook, also inside of brackets and of a module."""
    text = end.typed
    if text[:1] in ("'", '"') and text.count(text[0]) == 1:
        text = text[1:]
    path = _path_at_end(text)
    before = text[: len(text) - len(path)].rstrip()
    if re.search("[\"']", _STRING.sub("", text)) or before[-1:] in ("]", ")", "."):
        return _NONE
    folder, _, typed = path.rpartition(".")
    names = _visible(shell)
    if folder:
        owner = _value_of(folder, names)
        names = dict(vars(owner)) if isinstance(owner, types.ModuleType | type) else {}
    own = [name for name, value in names.items() if is_schema(value) and name[0] != "_"]
    found = dict.fromkeys([*own, *(() if folder else _PLAIN_TYPES)], "class")
    return Found(typed, _starting(typed, found.items()))


def is_schema(value: Any) -> bool:
    """Whether a value is a type that an answer can be asked for as.

    Pydantic models, dataclasses, TypedDicts, named tuples, Enums, and what ``typing`` makes of
    types. Nothing of the value's own is run.
    """
    if not isinstance(value, type):
        made_by_typing = type(value).__module__ in ("typing", "types", "typing_extensions")
        is_alias = typing.get_origin(value) is not None or isinstance(value, typing.NewType)
        return made_by_typing and (is_alias or type(value).__name__ == "TypeAliasType")
    if value.__module__.partition(".")[0] in ("enum", "pydantic", "typing", "typing_extensions"):
        return False
    inherited = {name for base in value.__mro__[:-1] for name in vars(base)}
    is_named_tuple = issubclass(value, tuple) and "_fields" in inherited
    return is_named_tuple or issubclass(value, enum.Enum) or not inherited.isdisjoint(_MARKS)


_VALUES: Mapping[str, Callable[[Any, Ending], Found]] = {
    "model": _models,
    "compare": _several_models,
    "schema": _types,
    "out": _names,
    "chat": _chats,
    "image": _images,
    "file": _cassettes,
}


# In a prompt's template.


def _in_template(shell: Any, text: str) -> Found:
    """Names and attributes where ``{{`` or ``{%`` is open."""
    start = max(text.rfind("{{"), text.rfind("{%"))
    if start < 0 or max(text.rfind("}}"), text.rfind("%}")) > start:
        return _NONE
    inside = _STRING.sub("''", text[start + 2 :])
    path = _path_at_end(inside)
    before = inside[: len(inside) - len(path)].rstrip()
    # An open string, a filter, an attribute of something that would have to be computed.
    if inside.count("'") % 2 or '"' in inside or before[-1:] in ("|", ".", "]", ")"):
        return _NONE
    if text[start + 1] == "%" and not before.strip("-+"):
        return Found(path, _starting(path, ((word, "keyword") for word in _STATEMENTS)))
    folder, _, typed = path.rpartition(".")
    names = _visible(shell)
    if not folder:
        return Found(typed, _starting(typed, ((name, "instance") for name in names)))
    members = ((name, "property") for name in _members(_value_of(folder, names)))
    return Found(typed, _starting(typed, members))


def _path_at_end(text: str) -> str:
    """``a.b.c`` at the end of a text; empty where there is none."""
    # A word of megabytes, pasted, would be looked through from each of its characters.
    found = _NAME_PATH.search(text[-_LONGEST_PATH:])
    return found[0] if found else ""


_NOTHING = object()


def _value_of(path: str, names: Mapping[str, Any]) -> Any:
    """The value at a path of names and attributes, found without running code of the notebook."""
    first, *rest = path.split(".")
    value = names.get(first, _NOTHING)
    for name in rest:
        if type(value) is dict and name in value:
            value = value[name]
            continue
        value = getattr_static(value, name, _NOTHING)
        # A property would have to be run; so would a function that makes the attribute.
        if hasattr(type(value), "__get__") and not isinstance(value, type):
            return _NOTHING
    return value


def _members(value: Any) -> Iterator[str]:
    """What can stand behind the dot: attributes, and the keys of a dict."""
    if value is _NOTHING:
        return
    if type(value) is dict:
        yield from (key for key in value if isinstance(key, str) and key.isidentifier())
    yield from (name for name in dir(value) if isinstance(name, str) and name[:1] != "_")


def _visible(shell: Any) -> dict[str, Any]:
    """The notebook's own names: without private ones and those that IPython puts there."""
    hidden = shell.user_ns_hidden
    return {
        name: value
        for name, value in list(shell.user_ns.items())
        if name[:1] != "_" and (name not in hidden or hidden[name] is not value)
    }
