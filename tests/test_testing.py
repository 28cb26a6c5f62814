"""The scripted server, driven over raw HTTP as a client would."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from llm_magic.testing import FAULTS, QUIRKS, Received, Reply, ScriptedServer
from llm_magic.testing.playback import steps as steps_of
from llm_magic.testing.replies import ContentBytes
from tests.conftest import SOON

CHAT = "/v1/chat/completions"
ERROR_STATUS = {
    "rate_limited": (429, "rate_limit_exceeded"),
    "rate_limited_long": (429, "rate_limit_exceeded"),
    "rate_limited_no_header": (429, "rate_limit_exceeded"),
    "out_of_credit": (429, "insufficient_quota"),
    "bad_key": (401, "invalid_api_key"),
    "unknown_model": (404, "model_not_found"),
    "context_too_long": (400, "context_length_exceeded"),
    "content_filter_prompt": (400, "content_filter"),
    "server_error": (500, None),
    "unavailable": (503, None),
    "overloaded": (529, None),
    "rejects_response_format": (400, None),
    "json_error_200": (200, None),
}
OTHER_BODY = {"bad_gateway_html", "html_200", "empty_stream"}
NO_ANSWER = {"close_before_headers", "stall_before_headers"}
WHOLE = {"finish_length", "finish_content_filter", "null_finish", "refusal"}
BROKEN_OFF = {
    "cut", "reset", "end_early", "done_without_finish", "error_in_stream",
    "error_first_in_stream", "event_error", "old_vllm_error", "field_error", "raw_line",
}  # fmt: skip
STALLED = {"stall", "stall_pings"}
DAMAGED = {"malformed_json", "invalid_utf8"}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(models=("model-a", "model-b")) as running:
        yield running


def port(server: ScriptedServer) -> int:
    return int(server.url.rsplit(":", 1)[1].removesuffix("/v1"))


def ask(text: str = "Hello there", *, stream: bool = True, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "model-a", "messages": messages, "stream": stream, **more}


def post(
    server: ScriptedServer, body: Any, headers: dict[str, str] | None = None, path: str = CHAT
) -> tuple[http.client.HTTPResponse, bytes]:
    """Return the response and its whole body."""
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), headers or {})
        response = connection.getresponse()
        return response, response.read()


def raw_client(server: ScriptedServer, body: Any) -> socket.socket:
    """Return a socket on which the request has been sent."""
    client = socket.create_connection(("127.0.0.1", port(server)), timeout=10)
    data = json.dumps(body).encode()
    client.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(data)))
    client.sendall(data)
    return client


def read_to_end(client: socket.socket) -> tuple[bytes, str]:
    """Return all bytes and how they ended: "eof", "reset" or "timeout"."""
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        return data, "reset"
    except TimeoutError:
        return data, "timeout"
    return data, "eof"


def read_until(client: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        piece = client.recv(65536)
        assert piece, f"the server closed before {mark!r}: {data!r}"
        data += piece
    return data


def body_of(data: bytes) -> tuple[bytes, bool]:
    """Return the de-chunked body of a response, and whether the last chunk came."""
    rest, body = data.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            return body, True
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body, False


def events(body: bytes) -> list[Any]:
    """Return the parsed data of the server-sent events, "[DONE]" as it is."""
    blocks = re.split(r"\r?\n\r?\n", body.decode())
    data = [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def choices(stream: list[Any]) -> list[dict[str, Any]]:
    chunks = [item for item in stream if item != "[DONE]"]
    return [choice for chunk in chunks for choice in chunk.get("choices") or []]


def joined(stream: list[Any], name: str = "content") -> str:
    return "".join(choice["delta"].get(name) or "" for choice in choices(stream))


def finishes(stream: list[Any]) -> list[str]:
    return [choice["finish_reason"] for choice in choices(stream) if choice["finish_reason"]]


def usages(stream: list[Any]) -> list[dict[str, Any]]:
    return [item["usage"] for item in stream if item != "[DONE]" and item.get("usage")]


def first_two(reply: Reply) -> str:
    return "".join(re.findall(r"\s*\S{1,4}", reply.text)[:2])


def streamed(server: ScriptedServer, reply: Reply, **more: Any) -> list[Any]:
    server.enqueue(reply)
    return events(post(server, ask(**more))[1])


def test_catalogue_is_covered() -> None:
    groups = [set(ERROR_STATUS), OTHER_BODY, NO_ANSWER, WHOLE, BROKEN_OFF, STALLED, DAMAGED]
    assert set().union(*groups) == set(FAULTS)
    assert sum(map(len, groups)) == len(FAULTS)


def test_plain_stream(server: ScriptedServer) -> None:
    response, body = post(server, ask(stream_options={"include_usage": True}))
    stream = events(body)
    assert response.getheader("content-type") == "text/event-stream"
    assert joined(stream) == "This is a scripted answer."
    assert stream[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {item["model"] for item in stream[:-1]} == {"model-a"}
    assert len({item["id"] for item in stream[:-1]}) == 1
    assert finishes(stream) == ["stop"]
    assert stream[-2]["choices"] == []
    assert stream[-1] == "[DONE]"
    assert usages(stream) == [stream[-2]["usage"]]
    assert stream[-2]["usage"]["prompt_tokens"] == 3
    assert stream[-2]["usage"]["completion_tokens"] == 7


def test_usage_comes_only_when_asked_for(server: ScriptedServer) -> None:
    assert usages(events(post(server, ask())[1])) == []


def test_not_streamed(server: ScriptedServer) -> None:
    server.enqueue(Reply("Four.", reasoning="2 + 2", model="alias", finish="length"))
    response, body = post(server, ask(stream=False))
    answer = json.loads(body)
    assert response.getheader("content-type") == "application/json"
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "alias"
    assert answer["choices"][0]["message"]["content"] == "Four."
    assert answer["choices"][0]["message"]["reasoning_content"] == "2 + 2"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 3 + 3


@pytest.mark.parametrize("name", ERROR_STATUS)
@pytest.mark.parametrize("stream", [True, False])
def test_error_status(server: ScriptedServer, name: str, stream: bool) -> None:
    server.enqueue(FAULTS[name])
    response, body = post(server, ask(stream=stream))
    status, code = ERROR_STATUS[name]
    assert response.status == status
    assert response.getheader("content-type") == "application/json"
    assert json.loads(body)["error"].get("code") == code
    assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("rate_limited", "1"), ("rate_limited_long", "999"), ("rate_limited_no_header", None)],
)
def test_retry_after(server: ScriptedServer, name: str, seconds: str | None) -> None:
    server.enqueue(FAULTS[name])
    assert post(server, ask())[0].getheader("retry-after") == seconds


def test_bodies_that_are_no_answer(server: ScriptedServer) -> None:
    server.enqueue(FAULTS["bad_gateway_html"], FAULTS["html_200"], FAULTS["empty_stream"])
    gateway, html, empty = (post(server, ask()) for _ in range(3))
    assert (gateway[0].status, gateway[0].getheader("content-type")) == (502, "text/html")
    assert (html[0].status, html[0].getheader("content-type")) == (200, "text/html")
    assert html[1].startswith(b"<!doctype html>")
    assert (empty[0].status, empty[0].getheader("content-type")) == (200, "text/event-stream")
    assert empty[1] == b""


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_whole_stream_with_another_finish(server: ScriptedServer, name: str) -> None:
    stream = streamed(server, FAULTS[name], stream_options={"include_usage": True})
    assert joined(stream) == FAULTS[name].text
    assert joined(stream, "refusal") == FAULTS[name].refusal
    assert finishes(stream) == [FAULTS[name].finish] * (FAULTS[name].finish is not None)
    assert len(usages(stream)) == 1
    assert stream[-1] == "[DONE]"


@pytest.mark.parametrize("name", sorted(BROKEN_OFF))
def test_stream_that_breaks_off(server: ScriptedServer, name: str) -> None:
    server.enqueue(FAULTS[name])
    with raw_client(server, ask()) as client:
        head = read_until(client, b"\r\n\r\n")
        if name not in ("cut", "reset"):
            client.sendall(b"GET /none HTTP/1.1\r\nConnection: close\r\n\r\n")
        rest, end = read_to_end(client)
    body, complete = body_of(head + rest)
    assert end == ("reset" if name == "reset" else "eof")
    assert complete == (name not in ("cut", "reset"))
    received = server.requests[0]
    assert received.finished.wait(10)
    assert not received.closed.is_set()
    assert received.sent_chunks == FAULTS[name].after
    text = body.decode()
    first_error = r'(?s)(event: error\ndata|data: \{"(error|object":"error)"|error|proxy).*'
    before = events(re.sub(first_error, "", text).encode())
    assert joined(before) == (first_two(FAULTS[name]) if FAULTS[name].after else "")
    assert '"finish_reason":"stop"' not in text
    errors_then_done = {"error_in_stream", "error_first_in_stream", "old_vllm_error"}
    assert ("[DONE]" in text) == (name in errors_then_done | {"done_without_finish"})
    mark = {
        "error_in_stream": 'data: {"error":{',
        "error_first_in_stream": 'data: {"error":{',
        "event_error": 'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"',
        "old_vllm_error": 'data: {"object":"error","message":',
        "field_error": '\n\nerror: {"code":500',
        "raw_line": "\n\nproxy error: Failed to read connection\n",
    }.get(name, "")
    assert mark in text


@pytest.mark.parametrize("name", sorted(STALLED))
def test_stall(server: ScriptedServer, name: str) -> None:
    server.enqueue(replace(FAULTS[name], ping_interval=0.01))
    with raw_client(server, ask()) as client:
        if name == "stall_pings":
            data = read_until(client, b": ping\n\n\r\n8\r\n: ping\n\n")
        else:
            wait_for(lambda: server.requests and server.requests[0].sent_chunks == 2)
            client.settimeout(0.2)
            data, end = read_to_end(client)
            assert end == "timeout"
        assert joined(events(body_of(data)[0])) == first_two(FAULTS[name])
        assert not server.requests[0].closed.is_set()
    assert server.requests[0].closed.wait(10)
    assert not server.requests[0].finished.is_set()


def wait_for(condition: Any, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_damaged_chunk(server: ScriptedServer, name: str) -> None:
    server.enqueue(FAULTS[name])
    body = post(server, ask())[1]
    lines = [line for line in body.split(b"\n\n") if line]
    bad = []
    for line in lines[:-1]:
        try:
            json.loads(line.removeprefix(b"data: ").decode())
        except ValueError as error:
            bad.append(type(error))
    assert bad == [json.JSONDecodeError if name == "malformed_json" else UnicodeDecodeError]
    assert b'"finish_reason":"stop"' in body
    assert body.endswith(b"[DONE]\n\n")
    assert (b"\xff" in body) == (name == "invalid_utf8")


def test_no_answer_at_all(server: ScriptedServer) -> None:
    server.enqueue(FAULTS["close_before_headers"], FAULTS["stall_before_headers"])
    with raw_client(server, ask()) as client:
        assert read_to_end(client) == (b"", "eof")
    with raw_client(server, ask()) as client:
        server.wait_for_requests(2)
        client.settimeout(0.1)
        assert read_to_end(client) == (b"", "timeout")
        assert not server.requests[1].closed.is_set()
    assert server.requests[1].closed.wait(10)


@pytest.mark.parametrize("name", sorted(QUIRKS))
def test_quirk_gives_the_whole_text(server: ScriptedServer, name: str) -> None:
    reply = QUIRKS[name]
    server.enqueue(reply)
    with raw_client(server, ask(stream_options={"include_usage": True})) as client:
        last = b'"finish_reason":"stop"' if name == "hang_after_finish" else b"\r\n0\r\n\r\n"
        data = read_until(client, b"}" if name == "not_streaming" else last)
        if name == "not_streaming":
            head, _, body = data.partition(b"\r\n\r\n")
            assert b"application/json" in head
            assert json.loads(body)["choices"][0]["message"]["content"] == reply.text
            return
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        body = body_of(data)[0]
        if name == "hang_after_finish":
            client.settimeout(0.1)
            body += body_of(b"\r\n\r\n" + read_to_end(client)[0])[0]
            assert not server.requests[0].finished.is_set()
    stream = events(body)
    thought = f"<think>{reply.reasoning}</think>" if name == "think_tags" else ""
    assert joined(stream) == thought + reply.text
    assert finishes(stream) == ["stop"]
    done = name not in ("no_done", "hang_after_finish")
    assert ("[DONE]" in stream) == done
    if name not in ("usage_never", "hang_after_finish"):
        assert usages(stream)[-1]["total_tokens"] > 2
    check_quirk(name, stream, data)


def check_quirk(name: str, stream: list[Any], data: bytes) -> None:
    """Assert what is odd in the quirks that have something visible."""
    chunks = [item for item in stream if item != "[DONE]"]
    deltas = [choice["delta"] for choice in choices(stream)]
    roles = [delta.get("role", "absent") for delta in deltas]
    usage = usages(stream)
    texts = [delta["content"] for delta in deltas if delta.get("content")]
    seen = {
        "choices_empty_first": chunks[0]["choices"] == [] and "prompt_filter_results" in chunks[0],
        "choices_null": any(chunk["choices"] is None for chunk in chunks),
        "usage_never": not usage,
        "usage_finish_chunk": len(usage) == 1 and bool(chunks[-1]["choices"]),
        "usage_every_chunk": len(usage) == len(chunks)
        and usage[1]["completion_tokens"] < usage[-1]["completion_tokens"],
        "role_every": set(roles) == {"assistant"},
        "role_never": set(roles) == {"absent"},
        "role_null": set(roles) == {None},
        "role_with_text": roles[0] == "assistant" and bool(deltas[0].get("content")),
        "changing_ids": len({chunk["id"] for chunk in chunks}) == len(chunks),
        "empty_deltas": any(d.get("content", 0) is None for d in deltas) and {} in deltas,
        "one_chunk": len(texts) == 1,
        "last_text_on_finish": bool(choices(stream)[-1]["delta"].get("content")),
        "reasoning_content": joined(stream, "reasoning_content") == "Six times seven.",
        "reasoning": joined(stream, "reasoning") == "Six times seven.",
        "text_plain_type": b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in data,
        "crlf": b"}\r\n\r\n" in data and b"}\n" not in data,
    }
    assert seen.get(name, True)
    assert name in seen or name in {
        "split_utf8", "no_done", "think_tags", "hang_after_finish", "ignored_response_format"
    }  # fmt: skip


def test_split_utf8_comes_in_separate_writes(server: ScriptedServer) -> None:
    steps = steps_of(Reply("ä", fault="split_utf8"), ask())
    pause = next(i for i, step in enumerate(steps) if isinstance(step, float))
    before, after = steps[pause - 1], steps[pause + 1]
    assert isinstance(before, bytes)
    assert isinstance(after, bytes)
    assert before.removesuffix(b"\r\n").endswith("ä".encode()[:1])
    assert after.partition(b"\r\n")[2].startswith("ä".encode()[1:])
    assert joined(streamed(server, Reply("ä", fault="split_utf8"))) == "ä"


@pytest.mark.parametrize("fault", ["cut", "reset", "stall", "close_before_headers"])
def test_connection_faults_without_streaming(server: ScriptedServer, fault: Any) -> None:
    server.enqueue(Reply("A text.", fault=fault))
    with raw_client(server, ask(stream=False)) as client:
        if fault == "stall":
            read_until(client, b"\r\n\r\n")
            client.settimeout(0.1)
        data, end = read_to_end(client)
    assert end == {"reset": "reset", "stall": "timeout"}.get(fault, "eof")
    assert b"A text." not in data[-10:]


@pytest.mark.parametrize(
    "fault", ["error_in_stream", "event_error", "old_vllm_error", "field_error"]
)
def test_stream_errors_without_streaming(server: ScriptedServer, fault: Any) -> None:
    server.enqueue(Reply("A text.", fault=fault))
    response, body = post(server, ask(stream=False))
    assert response.status == 500
    assert "message" in json.dumps(json.loads(body))


@pytest.mark.parametrize("fault", ["end_early", "malformed_json", "invalid_utf8", "empty"])
def test_damage_without_streaming(server: ScriptedServer, fault: Any) -> None:
    server.enqueue(Reply("A longer text for it.", fault=fault))
    body = post(server, ask(stream=False))[1]
    if fault == "end_early":
        choice = json.loads(body)["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"]) == (None, "A long")
    elif fault == "empty":
        assert body == b""
    else:
        with pytest.raises(ValueError, match=r"."):
            json.loads(body.decode())


@pytest.mark.parametrize("where", ["delay", "first_token_delay", "between tokens", "stall"])
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_leaving_client_is_noticed(server: ScriptedServer, where: str, how: str) -> None:
    reply = {
        "delay": Reply("One two three.", delay=60),
        "first_token_delay": Reply("One two three.", first_token_delay=60.0),
        "between tokens": Reply("One two three.", tokens_per_second=0.01),
        "stall": Reply("One two three.", fault="stall", after=1),
    }[where]
    server.enqueue(reply)
    client = raw_client(server, ask())
    server.wait_for_requests(1)
    received = server.requests[0]
    if where in ("between tokens", "stall"):
        read_until(client, b'"content":"One"')
        wait_for(lambda: received.sent_chunks == 1)
    start = time.monotonic()
    if how == "rst":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert received.closed.wait(10)
    assert time.monotonic() - start < SOON
    assert not received.finished.is_set()
    assert received.sent_chunks == (1 if where in ("between tokens", "stall") else 0)
    assert post(server, ask())[0].status == 200


def test_leaving_client_that_does_not_read_is_noticed(server: ScriptedServer) -> None:
    server.enqueue(Reply(deltas=["x" * 2000] * 10_000))
    client = raw_client(server, ask())
    server.wait_for_requests(1)
    client.recv(10)
    client.close()
    assert server.requests[0].closed.wait(10)
    assert server.requests[0].sent_chunks < 10_000


def test_keep_alive(server: ScriptedServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=10)
    with contextlib.closing(connection):
        for stream in (True, False, True):
            connection.request("POST", CHAT, json.dumps(ask(stream=stream)))
            assert b"scri" in connection.getresponse().read()
    assert post(server, ask())[0].status == 200
    assert [received.connection for received in server.requests] == [1, 1, 1, 2]
    assert all(received.finished.wait(10) for received in server.requests)
    assert not any(received.closed.is_set() for received in server.requests)


@pytest.mark.parametrize("head", [b"HTTP/1.1\r\nConnection: close", b"HTTP/1.0\r\nX: y"])
def test_connection_is_closed_when_asked(server: ScriptedServer, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port(server)), timeout=10) as client:
        client.sendall(b"GET /v1/models " + head + b"\r\n\r\n")
        data, end = read_to_end(client)
    assert end == "eof"
    models = json.loads(data.partition(b"\r\n\r\n")[2])
    assert [model["id"] for model in models["data"]] == ["model-a", "model-b"]
    assert {"id", "object", "created", "owned_by"} == set(models["data"][0])


def test_recorded_request(server: ScriptedServer) -> None:
    body = ask("Grüße", temperature=0)
    post(server, body, {"X-Test": "1", "Authorization": "Bearer secret"}, "/other/chat/completions")
    (received,) = server.requests
    assert isinstance(received, Received)
    assert received.path == "/other/chat/completions"
    assert received.headers["x-test"] == "1"
    assert received.body == body
    assert json.loads(received.raw) == body
    assert received.at <= time.monotonic()
    assert received.finished.wait(10)
    assert received.sent_chunks == 7
    assert "secret" not in repr(received)


def test_chunked_and_large_request_bodies(server: ScriptedServer) -> None:
    body = ask("x" * 3_000_000)
    data = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=10)
    with contextlib.closing(connection):
        pieces = (data[i : i + 100_000] for i in range(0, len(data), 100_000))
        connection.request("POST", CHAT, pieces, encode_chunked=True)
        assert connection.getresponse().read()
        connection.request("POST", CHAT, data)
        assert connection.getresponse().read()
    assert [received.body == body for received in server.requests] == [True, True]


def test_expect_continue(server: ScriptedServer) -> None:
    data = json.dumps(ask()).encode()
    with socket.create_connection(("127.0.0.1", port(server)), timeout=10) as client:
        head = b"POST %b HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % (CHAT.encode(), len(data)))
        read_until(client, b"HTTP/1.1 100 Continue\r\n\r\n")
        client.sendall(data)
        read_until(client, b"[DONE]")


def test_bad_requests(server: ScriptedServer) -> None:
    with socket.create_connection(("127.0.0.1", port(server)), timeout=10) as client:
        client.sendall(b"nonsense\r\n\r\n")
        data, end = read_to_end(client)
    assert data.startswith(b"HTTP/1.1 400 ")
    assert end == "eof"
    assert post(server, ["not an object"])[0].status == 400
    assert server.requests[0].body == {}
    response, body = post(server, ask(), path="/v1/responses")
    assert (response.status, json.loads(body)["error"]["type"]) == (404, "not_found_error")
    assert len(server.requests) == 1


def test_api_key() -> None:
    with ScriptedServer(api_key="right-key") as server:
        for headers in ({}, {"Authorization": "Bearer wrong-key"}):
            response, body = post(server, ask(), headers)
            assert response.status == 401
            assert b"key" in body
            assert b"right-key" not in body
            assert b"wrong-key" not in body
        assert post(server, ask(), {"Authorization": "Bearer right-key"})[0].status == 200
        assert len(server.requests) == 3


def test_order_of_answers() -> None:
    answers: dict[str, str | Reply] = {"France": "Paris", "capital": Reply("A city")}
    with ScriptedServer(answers, default="None") as server:
        server.enqueue("first", Reply("second"))
        questions = ["capital of France", "capital of France", "capital of France", "capital", "?"]
        found = [joined(events(post(server, ask(question))[1])) for question in questions]
        assert found == ["first", "second", "Paris", "A city", "None"]
        parts = [{"type": "text", "text": "the capital"}, {"type": "image_url"}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "France"}]
        assert joined(events(post(server, {**ask(), "messages": messages})[1])) == "A city"
        server.enqueue("forgotten")
        server.reset()
        assert server.requests == []
        assert joined(events(post(server, ask())[1])) == "None"


def test_each_model_has_answers_of_its_own() -> None:
    models = {"one": "Always.", "some": {"France": "Paris"}}
    with ScriptedServer({"shared": "Both."}, default="None", models=models) as server:

        def answer(model: str, question: str) -> str:
            return joined(events(post(server, ask(question, model=model))[1]))

        assert [answer("one", each) for each in ("France", "shared")] == ["Always.", "Both."]
        assert [answer("some", each) for each in ("France", "shared", "?")] == [
            *("Paris", "Both.", "None")
        ]
        assert answer("another", "France") == "None"


def test_rejected_field(server: ScriptedServer) -> None:
    server.enqueue(Reply("Accepted.", rejects=("stream_options", "seed")))
    response, body = post(server, ask(stream_options={"include_usage": True}))
    assert response.status == 400
    assert json.loads(body) == {
        "error": {
            "message": "Unrecognized request argument supplied: stream_options",
            "type": "invalid_request_error",
            "param": "stream_options",
            "code": None,
        }
    }
    assert joined(events(post(server, ask())[1])) == "Accepted."
    assert joined(events(post(server, ask())[1])) == "This is a scripted answer."


def test_pacing(server: ScriptedServer) -> None:
    server.enqueue(Reply("word " * 20, deltas=["word "] * 20, tokens_per_second=100))
    with raw_client(server, ask()) as client:
        server.wait_for_requests(1)
        read_until(client, b'"word "')
        assert server.requests[0].sent_chunks < 20
        assert not server.requests[0].finished.is_set()
        read_until(client, b"[DONE]")
        assert time.monotonic() - server.requests[0].at >= 0.19


def test_delays(server: ScriptedServer) -> None:
    server.enqueue(Reply("A", delay=0.1, first_token_delay=0.1))
    with raw_client(server, ask()) as client:
        read_until(client, b"\r\n\r\n")
        head_at = time.monotonic()
        read_until(client, b'"A"')
        assert time.monotonic() - server.requests[0].at >= 0.2
    assert head_at - server.requests[0].at >= 0.1


def test_pace_without_streaming(server: ScriptedServer) -> None:
    server.enqueue(Reply("a b c", deltas=["a ", "b ", "c"], tokens_per_second=20))
    post(server, ask(stream=False))
    assert time.monotonic() - server.requests[0].at >= 0.1


def test_unpaced_stream_is_fast(server: ScriptedServer) -> None:
    server.enqueue(Reply("word " * 20_000))
    start = time.monotonic()
    body = post(server, ask())[1]
    assert time.monotonic() - start < 2.0
    assert body.count(b'"content":" word"') == 19_999
    assert server.requests[0].finished.wait(10)
    assert server.requests[0].sent_chunks == 20_001  # the last one is the space at the end


def test_parallel_requests(server: ScriptedServer) -> None:
    barrier = threading.Barrier(8)

    def client(number: int) -> str:
        barrier.wait(10)
        return joined(events(post(server, ask(f"question {number}"))[1]))

    server.enqueue(*(Reply("A paced answer.", tokens_per_second=50) for _ in range(8)))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(client, range(8))) == {"A paced answer."}
    assert {received.body["messages"][0]["content"] for received in server.requests} == {
        f"question {number}" for number in range(8)
    }
    assert len({received.connection for received in server.requests}) == 8


def test_wait_for_requests(server: ScriptedServer) -> None:
    with pytest.raises(TimeoutError, match=r"expected 1 .* got 0: \[\]"):
        server.wait_for_requests(1, timeout=0.01)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.wait_for_requests, 1)
        post(server, ask())
        waiting.result(10)
    with pytest.raises(TimeoutError, match=r"expected 2 .* got 1: \['Hello there'\]"):
        server.wait_for_requests(2, timeout=0.01)


def test_refusing(server: ScriptedServer) -> None:
    url = server.url
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port(server))) as kept:
        kept.request("POST", CHAT, json.dumps(ask()))
        kept.getresponse().read()
        with server.refusing():
            for _ in range(3):
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port(server)), timeout=10)
            assert kept.sock.recv(1) == b""
    assert server.url == url
    assert post(server, ask())[0].status == 200


def test_stop_leaves_nothing_open() -> None:
    threads = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        server = ScriptedServer()
        with pytest.raises(RuntimeError, match="start it first"):
            _ = server.url
        server.start()
        server.start()
        server.enqueue(FAULTS["stall"], FAULTS["stall_pings"], FAULTS["stall_before_headers"])
        clients = [raw_client(server, ask()) for _ in range(3)]
        clients.append(socket.create_connection(("127.0.0.1", port(server)), timeout=10))
        server.wait_for_requests(3)
        server.stop()
        server.stop()
        ends = [read_to_end(client)[1] for client in clients]
        for client in clients:
            client.close()
        gc.collect()
    assert set(ends) <= {"eof", "reset"}
    assert set(threading.enumerate()) == threads
    assert [str(warning.message) for warning in caught] == []
    assert not any(received.closed.is_set() for received in server.requests)
    address = ("127.0.0.1", port(server))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=10)
    with server:
        assert port(server) == address[1]
        assert post(server, ask())[0].status == 200
    with pytest.raises(RuntimeError, match="not running"), server.refusing():
        pass


def test_taken_port_is_reported_and_leaves_no_thread(server: ScriptedServer) -> None:
    threads = set(threading.enumerate())
    with pytest.raises(OSError, match=r"."):
        ScriptedServer(port=port(server)).start()
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize(
    "wrong",
    [
        {"fault": "cutt"},
        {"usage": "sometimes"},
        {"text": "abc", "deltas": ["a", "b"]},
        {"text": "ascii", "fault": "split_utf8"},
        {"tokens_per_second": 0},
        {"rejects": "seed"},
    ],
)
def test_wrong_replies_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Reply(**wrong)


def test_reply_is_deterministic_and_counts() -> None:
    reply = Reply(deltas=["one ", "two"], cached_tokens=3, prompt_tokens=9, completion_tokens=2)
    assert reply.text == "one two"
    body = ask(stream_options={"include_usage": True})
    assert steps_of(reply, body) == steps_of(reply, body)
    contents = [step for step in steps_of(reply, body) if isinstance(step, ContentBytes)]
    assert len(contents) == 2
    usage = json.loads(steps_of(reply, ask(stream=False))[-1].partition(b"\r\n\r\n")[2])["usage"]  # type: ignore[union-attr]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (9, 2)
