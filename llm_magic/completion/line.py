"""Tab on the line of a magic: its options, and what can stand behind each."""

from __future__ import annotations

import argparse
import enum
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from inspect import getattr_static
from typing import Any

from llm_magic import options as line_options
from llm_magic.completion.names import NONE, Found, path_at_end, starting, value_of, visible
from llm_magic.completion.tables import tables
from llm_magic.images import image_files, is_image
from llm_magic.options import Ending
from llm_magic.session import current

_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_PLAIN_TYPES = ("str", "int", "float", "bool", "list", "dict", "Literal")
# What pydantic models, dataclasses and TypedDicts have, so that none of these needs an import.
_MARKS = ("__pydantic_core_schema__", "__dataclass_fields__", "__required_keys__")
_FUNCTIONS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    *(types.ModuleType, type),
)


def on_line(shell: Any, parser: argparse.ArgumentParser, line: str) -> Found:
    """What can stand at the end of a magic's line.

    Args:
        shell: The IPython shell.
        parser: Knows the options and arguments.
        line: Everything behind the magic's name, up to the cursor.
    """
    end = line_options.ending(parser, line)
    if end is None:
        return NONE
    typed, action = end.typed, end.action
    if action is None:
        return Found(typed, _options(parser, typed))
    options = [] if typed or action.option_strings else _options(parser, typed)
    if action.choices:
        chosen = [(str(each), action.dest) for each in action.choices]
        return Found(typed, [*starting(typed, chosen), *options])
    known = VALUES.get(action.dest)
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
    return starting(typed, names)


def _models(shell: Any, end: Ending) -> Found:
    from llm_magic.models import known

    return Found(
        end.typed, starting(end.typed, ((name, "model") for name in known(current(shell))))
    )


def _several_models(shell: Any, end: Ending) -> Found:
    *before, typed = end.typed.split(",")
    found = _models(shell, Ending(typed, None)).texts
    return Found(typed, [each for each in found if each[0] not in before])


def _names(shell: Any, end: Ending) -> Found:
    """What an answer may be bound to again."""
    own = visible(shell).items()
    names = [name for name, value in own if not isinstance(value, _FUNCTIONS)]
    return Found(end.typed, starting(end.typed, ((name, "instance") for name in names)))


def _chats(shell: Any, end: Ending) -> Found:
    chats = getattr(current(shell), "chats", None)
    names = [(str(name), "chat") for name in chats.names()] if chats is not None else []
    return Found(end.typed, starting(end.typed, names))


def _images(shell: Any, end: Ending) -> Found:
    quote = end.typed[:1] if end.typed[:1] in ("'", '"') else ""
    typed = end.typed.removeprefix(quote)
    pictures = [name for name, value in visible(shell).items() if is_image(value)]
    texts = [] if quote else starting(typed, ((name, "image") for name in pictures))
    return Found(
        end.typed, [*texts, *((_quoted(file, quote), "path") for file in image_files(typed))]
    )


def _quoted(file: str, quote: str) -> str:
    """A path as a word of the line; the quote stays open behind a folder, whose files follow."""
    if not quote and re.search(r"[\s'\"]", file):
        quote = "'" if '"' in file else '"'
    return f"{quote}{file}" + ("" if file.endswith(os.sep) else quote)


def _cassettes(_: Any, end: Ending) -> Found:
    words = starting(end.typed, ((word, "word") for word in ("status", "prune", "off")))
    files = image_files(end.typed, (".jsonl",))
    return Found(end.typed, [*words, *((_quoted(file, ""), "path") for file in files)])


def _concurrency(_: Any, end: Ending) -> Found:
    return Found(end.typed, starting(end.typed, [("auto", "what the server takes")]))


def _workers(shell: Any, end: Ending) -> Found:
    """What takes work: clients of Dask and executors."""
    takes = [
        name
        for name, value in visible(shell).items()
        if not isinstance(value, type) and callable(getattr_static(type(value), "submit", None))
    ]
    return Found(end.typed, starting(end.typed, ((name, "workers") for name in takes)))


def _types(shell: Any, end: Ending) -> Found:
    """Types of the notebook, also inside of brackets and of a module."""
    text = end.typed
    if text[:1] in ("'", '"') and text.count(text[0]) == 1:
        text = text[1:]
    path = path_at_end(text)
    before = text[: len(text) - len(path)].rstrip()
    if re.search("[\"']", _STRING.sub("", text)) or before[-1:] in ("]", ")", "."):
        return NONE
    folder, _, typed = path.rpartition(".")
    names = visible(shell)
    if folder:
        owner = value_of(folder, names)
        names = dict(vars(owner)) if isinstance(owner, types.ModuleType | type) else {}
    own = [name for name, value in names.items() if is_schema(value) and name[0] != "_"]
    found = dict.fromkeys([*own, *(() if folder else _PLAIN_TYPES)], "class")
    return Found(typed, starting(typed, found.items()))


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


VALUES: Mapping[str, Callable[[Any, Ending], Found]] = {
    "model": _models,
    "compare": _several_models,
    "schema": _types,
    "out": _names,
    "chat": _chats,
    "image": _images,
    "file": _cassettes,
    "frame": tables,
    "concurrency": _concurrency,
    "on": _workers,
}
