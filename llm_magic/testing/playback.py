"""A `Reply` as the bytes, pauses and faults that the scripted server plays. Nothing does I/O."""

from __future__ import annotations

import http
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from llm_magic.testing.chunks import (
    END,
    ERRORS,
    Chunks,
    completion,
    deltas_of,
    encode,
    event_bytes,
    openai_error,
)
from llm_magic.testing.replies import CLOSE, HANG, RESET, ContentBytes, Repeat, Reply, Step

# Long enough that the client has read what came before: RST may drop data it has not read.
_READ_PAUSE: Final = 0.05


def json_response(
    status: int, body: object, headers: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """Return a whole HTTP response with a JSON body."""
    return _response(status, "application/json", encode(body).encode(), headers)


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
    for step in _events(reply, Chunks(reply, request)) if reply.fault != "empty" else [END]:
        if isinstance(step, Repeat):
            yield Repeat(_frame(step.data), step.interval)
        elif isinstance(step, ContentBytes):
            yield ContentBytes(_frame(step))
        else:
            yield _frame(step) if isinstance(step, bytes) else step


def _events(reply: Reply, chunks: Chunks) -> Iterator[Step]:
    """Give the server-sent events of a streamed answer, up to its fault or its end."""
    ending = _fault_ending(reply)
    if ending and reply.after == 0:
        yield from ending
        return
    yield from chunks.opening()
    deltas = deltas_of(reply)
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
    error = encode(ERRORS.get(reply.fault or "", {}))
    done = [event_bytes("[DONE]", reply)] if reply.done else []
    match reply.fault:
        case "cut":
            return [CLOSE]
        case "reset":
            return [_READ_PAUSE, RESET]
        case "end_early":
            return [END]
        case "done_without_finish":
            return [event_bytes("[DONE]", reply), END]
        case "error_in_stream" | "old_vllm_error":
            return [event_bytes(error, reply), *done, END]
        case "event_error":
            return [b"event: error" + reply.line_end + event_bytes(error, reply), END]
        case "field_error":
            return [event_bytes(error, reply, name="error"), END]
        case "raw_line":
            return [b"proxy error: Failed to read connection\n", END]
        case "stall":
            return [HANG]
        case "stall_pings":
            return [Repeat(b": ping" + reply.line_end * 2, reply.ping_interval)]
    return []


def _json_steps(reply: Reply, request: Mapping[str, Any]) -> Iterator[Step]:
    """Give a chat.completion in one JSON body, after the time that its generation takes."""
    deltas = deltas_of(reply)
    rate = reply.tokens_per_second
    if seconds := reply.first_token_delay + ((len(deltas) - 1) / rate if rate and deltas else 0.0):
        yield seconds
    error = ERRORS.get(reply.fault or "")
    if error is not None:
        yield json_response(500, error, reply.headers)
        return
    body = encode(completion(reply, request)).encode()
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
