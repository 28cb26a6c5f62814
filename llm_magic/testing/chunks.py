"""The JSON of the scripted server: the chunks of a stream, a whole completion, error bodies."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from llm_magic.testing.replies import HANG, ContentBytes, Reply, Step

# Fixed, so that a reply is the same bytes every time.
_ID: Final = "chatcmpl-scripted"


_CREATED: Final = 1_764_000_000


# No data is how a chunked body ends.
END: Final = b""


# ensure_ascii=False: the wire has real multi-byte characters, as most servers send them.
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def message_text(message: object) -> str:
    """Return the text of a chat message, whose content is a string or a list of parts."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(text for text in parts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def count_tokens(text: str) -> int:
    """Return the tokens of a text as the scripted server counts them: 4 characters each."""
    return (len(text) + 3) // 4


def openai_error(
    message: str, kind: str | None, param: str | None = None, code: str | int | None = None
) -> dict[str, Any]:
    """Return an error body in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


BAD_KEY: Final = openai_error(
    "Incorrect API key provided.", "invalid_request_error", code="invalid_api_key"
)


ERRORS: Final[Mapping[str, dict[str, Any]]] = {
    "error_in_stream": openai_error(
        "The engine stopped while it was generating.", "InternalServerError", code=500
    ),
    "event_error": {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Overloaded"},
        "request_id": "req_scripted",
    },
    "old_vllm_error": {
        "object": "error",
        "message": "The engine is not running any more.",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    },
    "field_error": {
        "code": 500,
        "message": "The context has no room for another token.",
        "type": "server_error",
    },
}


class Chunks:
    """The chat.completion.chunk events of one streamed answer."""

    def __init__(self, reply: Reply, request: Mapping[str, Any]) -> None:
        self._reply = reply
        self._usage = _usage(reply, request)
        options = request.get("stream_options")
        asked = isinstance(options, Mapping) and options.get("include_usage") is True
        self._own_usage = asked and reply.usage == "own_chunk"
        self._model = _model(reply, request)
        self._numbers = itertools.count() if reply.ids == "changing" else None
        self._characters = 0
        self._role_due = reply.role == "with_text"

    def opening(self) -> Iterator[bytes]:
        """Give the chunks before the first content."""
        if self._reply.first_chunk_without_choices:
            filters = [{"prompt_index": 0, "content_filter_results": {}}]
            azure = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
            yield event_bytes(encode(azure | {"prompt_filter_results": filters}), self._reply)
        if self._reply.role == "first":
            yield self.chunk({"role": "assistant", "content": ""})
        if self._reply.null_choices:
            yield self._chunk(None)

    def content(self, name: str, piece: str) -> bytes:
        """Return the chunk with one piece of the text, the reasoning or the refusal."""
        self._characters += len(piece)
        return self.chunk({name: piece})

    def closing(self, delta: dict[str, str]) -> Iterator[Step]:
        """Give the chunk with the finish_reason and what comes after it."""
        at_end = self._reply.usage in ("finish_chunk", "every_chunk")
        last = self.chunk(delta, self._reply.finish, self._usage if at_end else None)
        yield ContentBytes(last) if delta else last
        if self._reply.fault == "hang_after_finish":
            yield HANG
        if self._own_usage:
            yield self._chunk([], self._usage)
        if self._reply.done:
            yield event_bytes("[DONE]", self._reply)
        yield END

    def chunk(
        self,
        delta: Mapping[str, str | None],
        finish: str | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        """Return the event of one chunk with one choice."""
        if self._reply.role == "every" or self._role_due:
            delta = {"role": "assistant", **delta}
            self._role_due = False
        elif self._reply.role == "null":
            delta = {"role": None, **delta}
        if usage is None and self._reply.usage == "every_chunk":
            sent = min((self._characters + 3) // 4, self._usage["completion_tokens"])
            total = self._usage["prompt_tokens"] + sent
            usage = self._usage | {"completion_tokens": sent, "total_tokens": total}
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": finish}], usage)

    def _chunk(self, choices: object, usage: dict[str, Any] | None = None) -> bytes:
        body = {
            "id": _ID if self._numbers is None else f"{_ID}-{next(self._numbers)}",
            "object": "chat.completion.chunk",
            "created": _CREATED,
            "model": self._model,
            "choices": choices,
        }
        if usage or self._own_usage:
            body["usage"] = usage
        return event_bytes(encode(body), self._reply)


def completion(reply: Reply, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat.completion object of a reply that is not streamed."""
    text, finish = _thought(reply) + reply.text, reply.finish
    if reply.fault in ("end_early", "done_without_finish", "raw_line"):
        kept = deltas_of(reply)[: reply.after]
        text, finish = "".join(piece for name, piece in kept if name == "content"), None
    message = {"role": "assistant", "content": None if reply.refusal else text}
    message["refusal"] = reply.refusal or None
    if reply.reasoning and reply.reasoning_field != "think":
        message[reply.reasoning_field] = reply.reasoning
    completion = {
        "id": _ID,
        "object": "chat.completion",
        "created": _CREATED,
        "model": _model(reply, request),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    return completion if reply.usage == "never" else completion | {"usage": _usage(reply, request)}


def _thought(reply: Reply) -> str:
    """Return the reasoning as a part of the text, if that is where it belongs."""
    inside = reply.reasoning and reply.reasoning_field == "think"
    return f"<think>{reply.reasoning}</think>" if inside else ""


def deltas_of(reply: Reply) -> list[tuple[str, str]]:
    """Return the content chunks of a reply, each as the name of its field and its piece."""

    def split(text: str) -> list[str]:
        return [text] * bool(text) if reply.one_chunk else re.findall(r"\s*\S{1,4}|\s+", text)

    thought = _thought(reply)
    if reply.deltas is None:
        pieces = split(thought + reply.text)
    else:
        pieces = [*split(thought), *reply.deltas]
    reasoning = [] if thought else split(reply.reasoning)
    return [
        *((reply.reasoning_field, piece) for piece in reasoning),
        *(("refusal", piece) for piece in split(reply.refusal)),
        *(("content", piece) for piece in pieces),
    ]


def _usage(reply: Reply, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the usage object: the reply's token counts, or else counted ones."""
    prompt, completion = reply.prompt_tokens, reply.completion_tokens
    if prompt is None:
        messages = request.get("messages")
        texts = map(message_text, messages if isinstance(messages, list) else [])
        prompt = count_tokens("".join(texts))
    if completion is None:
        completion = count_tokens(reply.reasoning + reply.refusal + reply.text)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": count_tokens(reply.reasoning)},
    }


def _model(reply: Reply, request: Mapping[str, Any]) -> object:
    return request.get("model") if reply.model is None else reply.model


def event_bytes(data: str, reply: Reply, *, name: str = "data") -> bytes:
    """Return a server-sent event of one line."""
    return f"{name}: {data}".encode() + reply.line_end * 2
