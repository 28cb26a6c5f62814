"""A `Reply` as the bytes, pauses and faults that the scripted server plays. Nothing does I/O."""

from __future__ import annotations

import http
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from llm_magic.testing.replies import CLOSE, HANG, RESET, ContentBytes, Repeat, Reply, Step

# Fixed, so that a reply is the same bytes every time.
_ID: Final = "chatcmpl-scripted"
_CREATED: Final = 1_764_000_000
# Long enough that the client has read what came before: RST may drop data it has not read.
_READ_PAUSE: Final = 0.05
# No data is how a chunked body ends.
_END: Final = b""
# ensure_ascii=False: the wire has real multi-byte characters, as most servers send them.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def json_response(
    status: int, body: object, headers: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """Return a whole HTTP response with a JSON body."""
    return _response(status, "application/json", _encode(body).encode(), headers)


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


def steps(reply: Reply, request: Mapping[str, Any]) -> list[Step]:
    """Return what the server has to do to answer a request, in order.

    Args:
        reply: The answer.
        request: The parsed JSON body of the chat request.
    """
    return [*([reply.delay] if reply.delay else []), *_answer_steps(reply, request)]


def _answer_steps(reply: Reply, request: Mapping[str, Any]) -> Iterator[Step]:
    """Choose the kind of answer: rejection, fault before it, given body, JSON or stream."""
    rejected = reply.rejected(request)
    if rejected is not None:
        message = f"Unrecognized request argument supplied: {rejected}"
        yield json_response(400, openai_error(message, "invalid_request_error", rejected))
    elif reply.fault == "close_before_headers":
        yield CLOSE
    elif reply.raw is not None:
        yield _response(reply.status, reply.raw_type, reply.raw, reply.headers)
    elif reply.error is not None:
        yield json_response(reply.status, reply.error, reply.headers)
    elif reply.status != 200:
        kind = "server_error" if reply.status >= 500 else "invalid_request_error"
        error = openai_error(f"Status {reply.status}, as scripted.", kind)
        yield json_response(reply.status, error, reply.headers)
    elif reply.stream and request.get("stream") is True:
        yield from _stream_steps(reply, request)
    else:
        yield from _json_steps(reply, request)


def _stream_steps(reply: Reply, request: Mapping[str, Any]) -> Iterator[Step]:
    """Give the head of a streamed answer and its events, each as one chunk of the HTTP body."""
    own = {"Content-Type": reply.content_type, "Transfer-Encoding": "chunked"}
    yield _head(200, own, reply.headers)
    for step in _events(reply, _Chunks(reply, request)) if reply.fault != "empty" else [_END]:
        if isinstance(step, Repeat):
            yield Repeat(_frame(step.data), step.interval)
        elif isinstance(step, ContentBytes):
            yield ContentBytes(_frame(step))
        else:
            yield _frame(step) if isinstance(step, bytes) else step


def _events(reply: Reply, chunks: _Chunks) -> Iterator[Step]:
    """Give the server-sent events of a streamed answer, up to its fault or its end."""
    ending = _fault_ending(reply)
    if ending and reply.after == 0:
        yield from ending
        return
    yield from chunks.opening()
    deltas = _deltas(reply)
    on_finish = dict([deltas.pop()]) if reply.last_text_on_finish and deltas else {}
    damaged = min(reply.after, len(deltas) - 1)
    pause = reply.first_token_delay
    for index, (name, piece) in enumerate(deltas[: reply.after] if ending else deltas):
        if pause:
            yield pause
        pause = 1 / reply.tokens_per_second if reply.tokens_per_second else 0.0
        event = chunks.content(name, piece)
        yield from _damage(reply, event, name, here=index == damaged)
        if reply.empty_deltas:
            yield chunks.chunk(({"content": ""}, {"content": None}, {})[index % 3])
    if ending:
        yield from ending
        return
    if pause and on_finish:
        yield pause
    yield from chunks.closing(on_finish)


def _damage(reply: Reply, event: bytes, name: str, *, here: bool) -> Iterator[Step]:
    """Give one content chunk, damaged on the wire if the reply's fault says so.

    After a damaged chunk the stream goes on to a normal finish, so that a client that only
    skips the bad line loses text and takes the answer for a whole one.
    """
    if reply.fault == "malformed_json" and here:
        event = event[: len(event) * 2 // 3] + reply.line_end * 2
    elif reply.fault == "invalid_utf8" and here:
        start = f'"{name}":"'.encode()
        event = event.replace(start, start + b"\xff", 1)
    elif reply.fault == "split_utf8" and not event.isascii():
        cut = next(i for i, byte in enumerate(event) if byte >= 0x80) + 1
        yield event[:cut]
        yield _READ_PAUSE
        event = event[cut:]
    yield ContentBytes(event)


def _fault_ending(reply: Reply) -> list[Step]:
    """Return the steps that end the stream too early; none when it ends regularly."""
    error = _encode(ERRORS.get(reply.fault or "", {}))
    done = [_event("[DONE]", reply)] if reply.done else []
    match reply.fault:
        case "cut":
            return [CLOSE]
        case "reset":
            return [_READ_PAUSE, RESET]
        case "end_early":
            return [_END]
        case "done_without_finish":
            return [_event("[DONE]", reply), _END]
        case "error_in_stream" | "old_vllm_error":
            return [_event(error, reply), *done, _END]
        case "event_error":
            return [b"event: error" + reply.line_end + _event(error, reply), _END]
        case "field_error":
            return [_event(error, reply, name="error"), _END]
        case "raw_line":
            return [b"proxy error: Failed to read connection\n", _END]
        case "stall":
            return [HANG]
        case "stall_pings":
            return [Repeat(b": ping" + reply.line_end * 2, reply.ping_interval)]
    return []


class _Chunks:
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
            yield _event(_encode(azure | {"prompt_filter_results": filters}), self._reply)
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
            yield _event("[DONE]", self._reply)
        yield _END

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
        return _event(_encode(body), self._reply)


def _json_steps(reply: Reply, request: Mapping[str, Any]) -> Iterator[Step]:
    """Give a chat.completion in one JSON body, after the time that its generation takes."""
    deltas = _deltas(reply)
    rate = reply.tokens_per_second
    if seconds := reply.first_token_delay + ((len(deltas) - 1) / rate if rate and deltas else 0.0):
        yield seconds
    error = ERRORS.get(reply.fault or "")
    if error is not None:
        yield json_response(500, error, reply.headers)
        return
    body = _encode(_completion(reply, request)).encode()
    if reply.fault == "malformed_json":
        body = body[: len(body) // 2]
    elif reply.fault == "invalid_utf8":
        body = body.replace(b'"content":"', b'"content":"\xff', 1)
    elif reply.fault == "empty":
        body = b""
    response = _response(200, "application/json", body, reply.headers)
    match reply.fault:
        case "cut":
            yield from (response[: -len(body) // 2], CLOSE)
        case "reset":
            yield from (response[: -len(body) // 2], _READ_PAUSE, RESET)
        case "stall" | "stall_pings":
            yield from (response[: -len(body) // 2], HANG)
        case _:
            yield response


def _completion(reply: Reply, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat.completion object of a reply that is not streamed."""
    text, finish = _thought(reply) + reply.text, reply.finish
    if reply.fault in ("end_early", "done_without_finish", "raw_line"):
        kept = _deltas(reply)[: reply.after]
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


def _deltas(reply: Reply) -> list[tuple[str, str]]:
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


def _event(data: str, reply: Reply, *, name: str = "data") -> bytes:
    """Return a server-sent event of one line."""
    return f"{name}: {data}".encode() + reply.line_end * 2


def _frame(data: bytes) -> bytes:
    """Return one chunk of a chunked HTTP body; no data: the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _response(status: int, kind: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    return _head(status, {"Content-Type": kind, "Content-Length": str(len(body))}, headers) + body


def _head(status: int, own: Mapping[str, str], headers: Mapping[str, str]) -> bytes:
    """Return the status line and the headers; a header with an empty value is left out."""
    known = {code.value: code.phrase for code in http.HTTPStatus}
    lines = [f"HTTP/1.1 {status} {known.get(status, 'Overloaded')}"]
    lines += [f"{name}: {value}" for name, value in ({**own, **headers}).items() if value]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# A catalogue, one reply for each fault. The bodies are made up, in the shapes that OpenAI, Azure,
# Anthropic, vLLM and llama.cpp really send.
