"""``--schema list[Review]``: a type expression over the notebook's names, read and never run."""

from __future__ import annotations

import ast
import builtins
import datetime
import decimal
import difflib
import types
import typing
import uuid
from collections.abc import Mapping
from typing import Any

from llm_magic.errors import PromptError

# What is understood without an import; the notebook's own names come first.
_KNOWN: Mapping[str, Any] = {
    **vars(builtins),
    **{name: getattr(typing, name) for name in typing.__all__},
    **{name: getattr(datetime, name) for name in ("date", "datetime", "time", "timedelta")},
    "Decimal": decimal.Decimal,
    "UUID": uuid.UUID,
}
_EXAMPLE = 'Write a type: --schema Review, --schema list[Review], --schema Literal["a","b"]'


def type_named(text: str, names: Mapping[str, Any]) -> Any:
    """The type that an expression names.

    Args:
        text: Names, dots, brackets, ``|`` and literals, as in ``dict[str, Review] | None``.
        names: The notebook's namespace.

    Raises:
        PromptError: It is no expression of that kind, a name in it is not known, or it names
            something that is no type.
    """
    value = _Reader(text, names).read()
    if not is_type(value):
        raise PromptError(
            f"--schema {text}: that is {kind(value)}, not a type; nothing was sent.",
            fix=_hint(value),
        )
    return value


def is_type(value: Any) -> bool:
    """Whether a value can stand where a type is expected."""
    if value is None or value is Any or isinstance(value, type | typing.NewType):
        return True
    return typing.get_origin(value) is not None or hasattr(value, "__value__")


class _Reader:
    def __init__(self, text: str, names: Mapping[str, Any]) -> None:
        self.text = text
        self.names = names

    def read(self) -> Any:
        try:
            tree = ast.parse(self.text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._refusal("that is no Python type expression", _EXAMPLE) from None
        return self._value(tree.body)

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name):
                return self._named(name)
            case ast.Attribute(value=base, attr=name):
                return self._member(self._value(base), ast.unparse(base), name)
            case ast.Subscript(value=base, slice=inside):
                return self._filled(self._value(base), base, inside)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                parts = self._part(left), self._part(right)
                # Not left | right: None | None and names in quotes have no such operator.
                return self._apply(node, lambda: typing.Union.__getitem__(parts))
            case ast.Constant(value=None):
                return None
            case ast.Call():
                fix = f"Run it in a cell, MyType = {ast.unparse(node)}, then: --schema MyType"
                raise self._refusal("a call is never run here", fix)
            case _:
                raise self._refusal(f"{ast.unparse(node)} is no type", _EXAMPLE)

    def _part(self, node: ast.expr) -> Any:
        """A type inside of another one: also ``...`` and a name in quotes."""
        match node:
            case ast.Constant(value=value) if value is ...:
                return value
            case ast.Constant(value=str(name)):
                return _Reader(name, self.names).read()
        value = self._value(node)
        if not is_type(value):
            raise self._refusal(f"{ast.unparse(node)} is {kind(value)}, not a type", _EXAMPLE)
        return value

    def _named(self, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        if name in _KNOWN:
            return _KNOWN[name]
        own = [each for each, value in self.names.items() if is_type(value) and each[0] != "_"]
        near = difflib.get_close_matches(name, [*own, *_KNOWN], n=1, cutoff=0.6)
        raise self._refusal(
            f"there is no {name} in the notebook",
            f"Did you mean {near[0]}?" if near else "Run the cell that defines it first.",
        )

    def _member(self, base: Any, path: str, name: str) -> Any:
        # Of modules and classes only: an attribute of anything else may run the notebook's code.
        if not isinstance(base, types.ModuleType | type):
            raise self._refusal(f"{path} is {kind(base)}, neither a module nor a class", _EXAMPLE)
        try:
            return getattr(base, name)
        except AttributeError:
            near = difflib.get_close_matches(name, dir(base), n=1, cutoff=0.6)
            guess = f"Did you mean {path}.{near[0]}?" if near else _EXAMPLE
            raise self._refusal(f"there is no {name} in {path}", guess) from None

    def _filled(self, generic: Any, base: ast.expr, inside: ast.expr) -> Any:
        """``list[...]``: only of types, whose brackets make a type."""
        if not (is_type(generic) or generic in _FORMS):
            raise self._refusal(f"{ast.unparse(base)} is {kind(generic)}, not a type", _EXAMPLE)
        parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        if generic is typing.Literal:
            filled = [self._literal(part) for part in parts]
        elif generic is typing.Annotated:
            filled = [self._part(parts[0]), *(self._mark(part) for part in parts[1:])]
        else:
            filled = [self._part(part) for part in parts]
        index = tuple(filled) if isinstance(inside, ast.Tuple) else filled[0]
        return self._apply(inside, lambda: generic[index])

    def _mark(self, node: ast.expr) -> Any:
        """What stands behind the type in ``Annotated``: anything that has a name."""
        return node.value if isinstance(node, ast.Constant) else self._value(node)

    def _literal(self, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except ValueError:
            value = self._value(node)
        # The members of an Enum are literals as well.
        if isinstance(getattr(type(value), "__members__", None), Mapping):
            return value
        raise self._refusal(f"{ast.unparse(node)} is no literal", _EXAMPLE)

    def _apply(self, node: ast.expr, make: Any) -> Any:
        try:
            return make()
        except TypeError as error:
            reason = f"{ast.unparse(node)} does not fit there ({error})"
            raise self._refusal(reason, _EXAMPLE) from None

    def _refusal(self, what: str, fix: str) -> PromptError:
        return PromptError(f"--schema {self.text}: {what}; nothing was sent.", fix=fix)


_FORMS = (typing.Literal, typing.Annotated, typing.Optional, typing.Union)


def kind(value: Any) -> str:
    """What a value is that is no type, in words."""
    if isinstance(value, types.ModuleType):
        return "a module"
    if callable(value) and not isinstance(value, type):
        return "a function"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _hint(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        inside = [name for name, each in vars(value).items() if isinstance(each, type)]
        near = difflib.get_close_matches(value.__name__, inside, n=1)
        return f"Did you mean {value.__name__}.{near[0]}?" if near else _EXAMPLE
    return _EXAMPLE
