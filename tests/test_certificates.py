"""Certificates: those of the environment count, and they are read once for all servers."""

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import llm_magic
from llm_magic import whole
from llm_magic.errors import ServerUnreachable
from llm_magic.testing import ScriptedServer
from tests.conftest import KEY

ANSWER = "Over TLS."


class Speaker(http.server.BaseHTTPRequestHandler):
    """Answers each request alike: streamed or whole."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = "delta" if asked.get("stream") else "message"
        said = {"role": "assistant", "content": ANSWER}
        choice = {"index": 0, kind: said, "finish_reason": "stop"}
        body = json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]})
        if asked.get("stream"):
            body = f"data: {body}\n\ndata: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if kind == "delta" else "text/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def secure(signed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that speaks TLS is the one that is asked; gives its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed / "server.crt", signed / "server.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Speaker) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"https://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("LLM_MAGIC_RETRIES", "0")
        yield signed / "server.crt"
        server.shutdown()
        serving.join()


def test_one_that_the_environment_names_is_trusted(
    secure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an answer that streams, and by rows."""
    monkeypatch.setenv("SSL_CERT_FILE", str(secure))

    assert llm_magic.ask("Hello", model="m").text == ANSWER
    rows = llm_magic.map_rows([{"x": 1}], "Hello {{ x }}", model="m")
    assert [row["answer"] for row in rows] == [ANSWER]


@pytest.mark.usefixtures("secure")
def test_one_that_nobody_vouches_for_is_refused() -> None:
    with pytest.raises(ServerUnreachable, match="certificate") as refused:
        llm_magic.ask("Hello", model="m")

    assert KEY not in str(refused.value)


@pytest.mark.usefixtures("secure")
def test_a_file_that_is_not_there_vouches_for_nobody(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not in the way of a server that needs none."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")

    with pytest.raises(ServerUnreachable, match="certificate"):
        llm_magic.ask("Hello", model="m")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert llm_magic.ask("Hello", model="m").text


def test_they_are_read_once_for_all_servers(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    counts = []
    read = ssl.create_default_context

    def counted(**options: str | None) -> ssl.SSLContext:
        reads.append(options)
        return read(**options)

    monkeypatch.setattr(ssl, "create_default_context", counted)
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: reads.append({}))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    whole._read.cache_clear()

    with ScriptedServer() as other:
        for url in (server.url, other.url):
            monkeypatch.setenv("OPENAI_BASE_URL", url)
            llm_magic.ask("Hello", model="m")
            counts.append(len(reads))

    assert len(other.requests) == len(server.requests) == 1
    assert counts[0] == counts[1] > 0
