"""A Python type as what an answer must be: its JSON schema on the way out, its values back."""

from __future__ import annotations

import enum
import functools
import json
import operator
import re
import sys
import types
import typing
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, create_model
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import SchemaError

from llm_magic.errors import InvalidAnswer, PromptError
from llm_magic.structured.expression import is_type, kind
from llm_magic.structured.plainly import is_plain
from llm_magic.structured.strict import has_lengths, strict
from llm_magic.types import Message, Response

WRAPPER = "result"
"""The one property of the object around a value that is none: servers enforce objects only."""
_ASK = (
    "Reply with one JSON value that fits this JSON schema, and nothing else: no prose, no code "
    "fence, not the schema itself.\n"
)


@dataclass(frozen=True, eq=False)
class Schema:
    """What an answer must be.

    Attributes:
        label: The type as people write it: ``list[Review]``.
        name: The same in the letters that servers take, 64 at most.
        plain: Its whole JSON schema; always of an object.
        strict: The schema in the form that OpenAI's strict mode enforces; None where that cannot
            say it.
        lengths: Whether it limits the length of a text, which few servers enforce.
        wrapped: Whether the object is ours, with the value in it.
        adapter: Reads the object.
        bare: Reads the value without the object around it.
    """

    label: str
    name: str
    plain: dict[str, Any]
    strict: dict[str, Any] | None
    lengths: bool
    wrapped: bool
    adapter: TypeAdapter[Any]
    bare: TypeAdapter[Any]

    def __repr__(self) -> str:
        return f"<Schema {self.label}>"

    @property
    def instruction(self) -> str:
        """The schema in words, for servers that do not show it to the model."""
        return _ASK + self.text

    def fit(self, response: Response) -> Response:
        """The response with the value that its text gives.

        Raises:
            InvalidAnswer: It gives none.
        """
        from llm_magic.structured.reading import read

        text, thought = response.text, response.reasoning.strip()
        # vLLM puts the JSON of some thinking models into the reasoning, and nothing else there.
        if not text.strip() and thought[:1] in ("{", "[") and thought[-1] in "}]":
            text = thought
        return replace(response, text=text, value=read(self, text))

    def repaired(self, messages: tuple[Message, ...], error: InvalidAnswer) -> tuple[Message, ...]:
        """The messages of another attempt: the wrong answer, and what is wrong with it."""
        wrong = "\n".join(f"- {line}" for line in error.errors)
        told = (
            f"That answer does not fit the JSON schema:\n{wrong}\n"
            "Reply with the corrected JSON value only."
        )
        # Some servers refuse a message without words.
        said = [{"role": "assistant", "content": error.text}] if error.text.strip() else []
        return (*messages, *said, {"role": "user", "content": told})

    @cached_property
    def plainly(self) -> bool:
        """Whether reading a value runs none of the notebook's own code."""
        return is_plain(self.adapter.core_schema) and is_plain(self.bare.core_schema)

    @cached_property
    def text(self) -> str:
        """The schema as compact JSON."""
        return json.dumps(self.plain, ensure_ascii=False, separators=(",", ":"))

    def resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        """A part of the schema, or the definition that it refers to."""
        reference = node.get("$ref")
        if not reference:
            return node
        name = str(reference).rpartition("/")[2]
        return dict(self.plain if reference == "#" else self.plain["$defs"][name])

    @cached_property
    def inner(self) -> dict[str, Any]:
        """The schema of the value itself."""
        return self.resolved(self.plain["properties"][WRAPPER]) if self.wrapped else self.plain

    @cached_property
    def columns(self) -> list[str] | None:
        """The fields of the rows where the value is a list of objects; None where it is not."""
        if self.inner.get("type") != "array" or "items" not in self.inner:
            return None
        row = self.resolved(self.inner["items"])
        return list(row["properties"]) if "properties" in row else None


def schema_for(type_: Any) -> Schema | None:
    """The schema of a type; None for ``str``, which is what an answer is anyway.

    Args:
        type_: Anything that pydantic's ``TypeAdapter`` takes.

    Raises:
        PromptError: It is no type, or none that pydantic can read from JSON.
    """
    if type_ is str:
        return None
    if not is_type(type_):
        raise PromptError(
            f"schema={_label(type_)} is {kind(type_)}, not a type; nothing was sent.",
            fix="Name a class or a type: schema=Review, schema=list[Review]",
        )
    try:
        # By its name as well: int | str equals str | int, and is another question.
        return _cached(type_, repr(type_))
    except TypeError:
        # Annotated with something that cannot be hashed.
        return _schema(type_)


class _Generator(GenerateJsonSchema):
    """pydantic's, but for what it describes and then does not accept."""

    def literal_schema(self, schema: Any) -> dict[str, Any]:
        """Refuses ``Literal[Colour.RED]``, whose JSON pydantic calls "red" and reads as nothing."""
        for value in schema["expected"]:
            if isinstance(value, enum.Enum) and not isinstance(value, str | int):
                # Of no class that unions pass over.
                raise PydanticUserError(
                    f"no JSON text is read as {value} in a Literal (Literal[{value.value!r}] or "
                    "the Enum itself would be)",
                    code=None,
                )
        return super().literal_schema(schema)


def _schema(type_: Any) -> Schema:
    label = _label(type_)
    try:
        modern = _modern(type_)
        bare: TypeAdapter[Any] = TypeAdapter(modern)
        plain = _root(bare.json_schema(schema_generator=_Generator))
        wrapped = "properties" not in plain
        adapter = bare
        if wrapped:
            fields: dict[str, Any] = {WRAPPER: (modern, ...)}
            adapter = TypeAdapter(create_model("Result", **fields))
            plain = adapter.json_schema(schema_generator=_Generator)
    except (PydanticUserError, PydanticUndefinedAnnotation, SchemaError, RecursionError) as error:
        raise PromptError(
            f"{label} cannot be read from JSON: {_reason(error)}; nothing was sent.",
            fix="Use a pydantic model, a dataclass, a TypedDict, an Enum, or a list of them.",
        ) from None
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", label).strip("_")[:64] or "Result"
    return Schema(label, name, plain, strict(plain), has_lengths(plain), wrapped, adapter, bare)


# The 64 last types: a model's schema takes about a millisecond, ten times a stored answer's time.
@lru_cache(maxsize=64)
def _cached(type_: Any, _: str) -> Schema:
    return _schema(type_)


def _root(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its root in place, which a recursive model has among its definitions."""
    reference = schema.pop("$ref", None)
    if reference is None:
        return schema
    return {**schema["$defs"][reference.rpartition("/")[2]], **schema}


def _reason(error: Exception) -> str:
    """The first sentence of pydantic's reason, without its links."""
    first = str(getattr(error, "message", error)).splitlines()[0]
    return re.split(r"\.(?:\s|$)| Set `", first)[0][:200]


def _label(type_: Any) -> str:
    """A type as people write it, without the modules that its names come from."""
    if isinstance(type_, type) and not typing.get_args(type_):
        return type_.__qualname__.rpartition(".")[2]
    if typing.get_origin(type_) is typing.Annotated:
        return _label(type_.__origin__)
    text = re.sub(r"<(?:class|enum) '([^']*)'>", r"\1", repr(type_))
    return re.sub(r"(?<![\w'\"])(?:[A-Za-z_]\w*\.|<locals>\.)+(?=[A-Za-z_])", "", text)[:120]


def _modern(type_: Any) -> Any:
    """The type with each TypedDict of the standard library as one that pydantic takes.

    Before Python 3.12 pydantic refuses those and wants typing_extensions' own.
    """
    if sys.version_info >= (3, 12):
        return type_
    from typing import NotRequired, Required

    from typing_extensions import TypedDict

    if typing.is_typeddict(type_):
        hints = typing.get_type_hints(type_, include_extras=True)
        fields = {}
        for name, hint in hints.items():
            inner = _modern(_without_marks(hint))
            fields[name] = (Required if name in type_.__required_keys__ else NotRequired)[inner]
        make: Any = TypedDict
        made = make(type_.__name__, fields)
        made.__doc__ = type_.__doc__
        if config := getattr(type_, "__pydantic_config__", None):
            made.__pydantic_config__ = config
        return made
    if not (parts := typing.get_args(type_)) or typing.get_origin(type_) is typing.Literal:
        return type_
    made_parts = tuple(_modern(part) for part in parts)
    if all(made is part for made, part in zip(made_parts, parts, strict=True)):
        return type_
    if typing.get_origin(type_) is typing.Annotated:
        return typing.Annotated[(made_parts[0], *type_.__metadata__)]
    if isinstance(type_, types.UnionType):
        return functools.reduce(operator.or_, made_parts)
    if hasattr(type_, "copy_with"):
        return type_.copy_with(made_parts)
    return typing.get_origin(type_)[made_parts]


def _without_marks(hint: Any) -> Any:
    while typing.get_origin(hint) in (typing.Required, typing.NotRequired):
        (hint,) = typing.get_args(hint)
    return hint
