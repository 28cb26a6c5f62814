"""How a server is asked for JSON: by its schema, as JSON of any kind, or in words alone.

No server says reliably what it enforces, so the strongest form is tried first, and a weaker one
when the server refuses it before it answers. (Tools, the usual fallback, are refused by OpenAI's
newer models and silently ignored by Ollama and llama.cpp.) What a server does not enforce is in the
prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from llm_magic.errors import ProviderError

if TYPE_CHECKING:
    from llm_magic.structured import Schema
    from llm_magic.types import Message

Rung = Literal["json_schema", "json_object", "text"]

_OPENAI = re.compile(r"(^|\.)(openai\.com|openai\.azure\.com|services\.ai\.azure\.com)$")
_STATUSES = frozenset({400, 404, 415, 422, 500, 501})
# Words by which servers mean the form of the answer, recorded from DeepSeek, Azure, LM Studio,
# Groq, vLLM, llama.cpp, FastAPI gateways, OpenRouter and Gemini; last, JSON Schema's own words.
_FORMAT = re.compile(
    r"response[_ ](format|schema)|json[_ ]?(schema|object|mode|validate)|\bschemas?\b|grammar"
    r"|unknown format|structured[_ ]outputs?|requested parameters|require_parameters"
    r"|\b(minItems|maxItems|minLength|maxLength|additionalProperties|propertyNames|prefixItems"
    r"|uniqueItems|anyOf|oneOf|multipleOf|exclusiveM\w+|\$(defs|ref|schema))\b",
    re.IGNORECASE,
)
_UNKNOWN_NAME = re.compile(r"""unknown name (?:\\?["'])?([$\w]*)""", re.IGNORECASE)


@lru_cache(maxsize=64)
def is_openai(hostname: str) -> bool:
    """Whether a host is OpenAI's or Azure's, which enforce a schema and show it to the model."""
    return bool(_OPENAI.search(hostname))


def formatted(body: Mapping[str, Any], schema: Schema, rung: Rung, hostname: str) -> dict[str, Any]:
    """The fields of a body that ask for a value of the schema.

    Args:
        body: The body without them.
        schema: What the answer must be.
        rung: In which form this server takes it.
        hostname: The server's.
    """
    fields: dict[str, Any] = {}
    if rung != "json_schema" or not is_openai(hostname):
        fields["messages"] = _instructed(body["messages"], schema.instruction)
    if rung == "json_object":
        fields["response_format"] = {"type": "json_object"}
    elif rung == "json_schema":
        # Only OpenAI itself takes limits on the length of a text in strict mode.
        strict = None if schema.lengths and hostname != "api.openai.com" else schema.strict
        form = {"name": schema.name, "schema": strict or schema.plain, "strict": bool(strict)}
        fields["response_format"] = {"type": "json_schema", "json_schema": form}
    if rung != "text" and hostname.endswith("openrouter.ai"):
        # Else it may choose an upstream that ignores the form.
        fields["provider"] = {"require_parameters": True, **body.get("provider", {})}
    return fields


def _instructed(messages: list[Message], instruction: str) -> list[Message]:
    """The messages with the instruction in the system message: many models take only one, first."""
    first, *rest = messages
    if first["role"] != "system":
        return [{"role": "system", "content": instruction}, *messages]
    content = first["content"]
    if isinstance(content, str):
        return [{**first, "content": f"{content}\n\n{instruction}"}, *rest]
    return [{**first, "content": [*content, {"type": "text", "text": instruction}]}, *rest]


def step_down(body: Mapping[str, Any], error: ProviderError) -> Rung | None:
    """The next weaker form, if it was the form that a server refused; else None.

    Args:
        body: What was sent.
        error: What came back before an answer began.
    """
    form = body.get("response_format")
    if form is None or error.status not in _STATUSES:
        return None
    said = json.dumps(error.body, ensure_ascii=False, default=str)
    named = _UNKNOWN_NAME.search(said)
    # Gemini names the one word of a schema that it does not know, or none.
    in_form = named is not None and (not named[1] or f'"{named[1]}"' in json.dumps(form))
    if not (_FORMAT.search(said) or in_form):
        return None
    return "json_object" if form["type"] == "json_schema" else "text"
