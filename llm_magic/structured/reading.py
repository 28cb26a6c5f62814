"""From the words of an answer to a value of the type, or to what is wrong with them.

Models write prose around JSON, think aloud in it, quote the question and correct themselves. The
last attempt counts. Nothing is mended: what is no JSON, or could be read in two ways, is asked
again, because a guess may be a wrong value that nobody notices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from llm_magic.errors import InvalidAnswer, LLMError
from llm_magic.structured.guard import Guard
from llm_magic.structured.schema import WRAPPER, Schema
from llm_magic.structured.spans import MOST, Floats, Span, decoder, find_spans, spoken

LARGEST = 8 * 1024 * 1024
"""Characters of an answer that are read; 128,000 tokens are about half a million."""
_MOST_ERRORS = 10
_FENCED = re.compile(r"\A```[ \t]*[\w+-]*[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL)


def read(schema: Schema, text: str) -> Any:
    """The value that an answer gives.

    Args:
        schema: What it must be.
        text: The answer.

    Raises:
        InvalidAnswer: It gives none, or none for certain; ``errors`` says what is wrong.
    """
    if len(text) > LARGEST:
        raise _invalid(schema, text, [f"the answer is longer than {LARGEST:,} characters"])
    words = spoken(text)
    found = list(find_spans(words, _part_of(schema)))
    if len(found) > MOST:
        raise _invalid(schema, text, [f"the answer has more than {MOST:,} JSON values"])
    try:
        return _value(schema, found) if found else _scalar(schema, words)
    except _Misfit as misfit:
        raise _invalid(schema, text, misfit.errors) from None


class _Misfit(Exception):
    """What is wrong with an answer."""

    def __init__(self, *errors: str) -> None:
        super().__init__(*errors)
        self.errors = list(errors)


def _value(schema: Schema, spans: list[Span]) -> Any:
    """The value of the last attempt, where no other one contradicts it."""
    attempts, bare = _attempts(schema, spans)
    last = attempts[-1]
    value = _fitted(schema, last, bare=bare)
    if last.doubtful:
        raise _Misfit("the words before the JSON leave in doubt whether it is the answer")
    if _is_followed(schema, spans, last):
        raise _Misfit("there is more JSON behind the value that fits")
    # A fence says "this is it"; of several lists in prose nothing says which one is meant.
    alike = bare or last.remark or last.adjacent
    rivals = attempts if alike else [span for span in attempts if span.fenced and not last.fenced]
    for rival in rivals:
        if not rival.fault and rival.value != last.value and _fits(schema, rival, bare=bare):
            raise _Misfit("the answer gives several values that fit, and they differ")
    return value


def _is_followed(schema: Schema, spans: list[Span], last: Span) -> bool:
    """Whether something behind the last attempt may correct it, under other names."""
    for span in spans[spans.index(last) + 1 :]:
        is_object = isinstance(span.value, dict) and bool(span.value)
        is_list = schema.wrapped and span.alone and span.text[0] == "["
        is_meant = is_object or is_list or (span.fault and span.text[0] == "{")
        if is_meant and not _is_echo(schema, span.value):
            return True
    return False


def _attempts(schema: Schema, spans: list[Span]) -> tuple[list[Span], bool]:
    """The spans that were meant as the answer, and whether they lack our object around them.

    A malformed one counts, so that a draft before it, or a quoted example, is not taken instead.
    """
    keys = [WRAPPER] if schema.wrapped else list(schema.plain["properties"])
    meant = [span for span in spans if keys and _naming(tuple(keys)).search(span.text)]
    echoes = [span for span in meant if _is_echo(schema, span.value)]
    meant = [span for span in meant if span not in echoes] or meant
    if meant:
        return meant, False
    # Without a name in it, a bracket in prose is a bracket in prose.
    alone = [span for span in spans if span.alone or span.fenced or span.fault]
    if not alone:
        raise _Misfit("the answer has no JSON that stands by itself")
    if not schema.wrapped:
        return alone, False
    kinds = {"[": "array", "{": "object"}
    bare = [span for span in alone if kinds[span.text[0]] in _kinds(schema, schema.inner)]
    return (bare, True) if bare else (alone, True)


def _kinds(schema: Schema, node: dict[str, Any]) -> set[str]:
    """The kinds of JSON that a part of the schema allows."""
    node = schema.resolved(node)
    branches = node.get("anyOf") or node.get("oneOf")
    if branches:
        return set().union(*(_kinds(schema, branch) for branch in branches))
    return {node["type"]} if "type" in node else {"array", "object"}


def _is_echo(schema: Schema, value: Any) -> bool:
    """Whether a value is a schema: ours, or one like it."""
    if not isinstance(value, dict):
        return False
    own = schema.plain["properties"].keys()
    inner = value.get("properties")
    return value == schema.plain or (
        isinstance(inner, dict)
        and "properties" not in own
        and all(isinstance(each, dict) for each in inner.values())
    )


def _fits(schema: Schema, span: Span, *, bare: bool) -> bool:
    try:
        _fitted(schema, span, bare=bare)
    except _Misfit:
        return False
    return True


def _fitted(schema: Schema, span: Span, *, bare: bool) -> Any:
    """The span's value as the type has it."""
    if span.fault:
        raise _Misfit(f"the answer is not valid JSON: {span.fault}")
    if _is_echo(schema, span.value):
        raise _Misfit("the answer repeats the schema instead of giving a value that fits it")
    # pydantic's own parser would round the number away.
    text = json.dumps(span.value) if span.exact else span.text
    return _validated(schema, text, span.value, bare=bare)


def _scalar(schema: Schema, words: str) -> Any:
    """The value of an answer that is a bare number, word or null, in a fence or without."""
    fenced = _FENCED.match(words)
    words = fenced[1].strip() if fenced else words
    if not words:
        raise _Misfit("the answer is empty")
    try:
        value, end = decoder(Floats()).raw_decode(words)
        if end < len(words):
            raise ValueError
    except (ValueError, RecursionError):
        # A model that is to choose a word says the word.
        if words not in _choices(schema, schema.inner):
            raise _Misfit("the answer has no JSON in it") from None
        value = words
    return _validated(schema, json.dumps(value), value, bare=True)


def _choices(schema: Schema, node: dict[str, Any]) -> list[Any]:
    """The words that an Enum or Literal allows."""
    node = schema.resolved(node)
    branches = node.get("anyOf", [])
    own = [*node.get("enum", []), *([node["const"]] if "const" in node else [])]
    return [*own, *(each for branch in branches for each in _choices(schema, branch))]


def _validated(schema: Schema, text: str, value: Any, *, bare: bool) -> Any:
    adapter = schema.bare if bare else schema.adapter
    fitting = _parsed(adapter, text, value)
    if odd := _guard(schema).odd(value, bare=bare):
        raise _Misfit(odd)
    return getattr(fitting, WRAPPER) if schema.wrapped and not bare else fitting


def _parsed(adapter: TypeAdapter[Any], text: str, value: Any) -> Any:
    # pydantic's own parser is precise about types that JSON lacks (tuples, dates, bytes), but takes
    # no line breaks within a text, which models do write.
    try:
        try:
            return adapter.validate_json(text)
        except ValidationError as error:
            if error.errors()[0]["type"] != "json_invalid":
                raise
        return adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        raise _Misfit(*_lines(error)) from None
    except LLMError:
        raise
    except Exception as error:  # noqa: BLE001
        # Whatever a validator of the notebook's own raises: the answer is paid for, and kept.
        raise _Misfit(f"a validator failed ({type(error).__name__}: {error})") from None


def _lines(error: ValidationError) -> Iterator[str]:
    """``place: what is wrong (got input)``, as models understand it."""
    for each in error.errors(include_url=False, include_context=False)[:_MOST_ERRORS]:
        place = ".".join(str(part) for part in each["loc"] if part != WRAPPER)
        words = json.dumps(to_jsonable_python(each["input"], fallback=repr), ensure_ascii=False)
        short = words if len(words) <= 100 else words[:99] + "…"
        yield f"{place + ': ' if place else ''}{each['msg']} (got {short})"
    if error.error_count() > _MOST_ERRORS:
        yield f"and {error.error_count() - _MOST_ERRORS} more"


@lru_cache(maxsize=64)
def _part_of(schema: Schema) -> re.Pattern[str] | None:
    """Matches ``parent:`` or ``parent=`` at the end of words, for a field of that name."""
    if schema.wrapped or not schema.plain["properties"]:
        return None
    names = "|".join(map(re.escape, schema.plain["properties"]))
    return re.compile(rf"""(?<!\w)(?:{names})["']?\s*[:=]\s*\Z""")


@lru_cache(maxsize=64)
def _guard(schema: Schema) -> Guard:
    return Guard(schema)


@lru_cache(maxsize=64)
def _naming(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Finds one of the keys with its colon, however it is quoted."""
    names = "|".join(map(re.escape, keys))
    return re.compile(rf"""(?<!\w)(?:{names})["'”]?\s*:""", re.IGNORECASE)


def _invalid(schema: Schema, text: str, errors: list[str]) -> InvalidAnswer:
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return InvalidAnswer(
        f"The answer does not fit {schema.label}: {errors[0]}{more}.",
        fix="The answer is in sys.last_value.text. Ask again more often: --repairs 3",
        text=text,
        errors=tuple(errors),
    )
