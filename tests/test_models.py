"""%llm_models: what the server offers, and what of it is remembered."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llm_magic import models
from llm_magic.errors import (
    AuthenticationFailed,
    Interrupted,
    ProviderError,
    ServerUnreachable,
)
from llm_magic.session import Session, current
from llm_magic.testing import ScriptedServer
from tests.conftest import KEY, Terminal, interrupted_when

OFFERED = ("zeta", "gpt-5", "Alpha", "gpt-5-mini", "beta-2")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(models=OFFERED) as running:
        yield running


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that says what it likes; gives its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def saying(status: int, body: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        data = body.encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def listed(terminal: Terminal, line: str = "") -> list[str]:
    """The names in the table, in its order."""
    return [row[0] for row in terminal.run(f"%llm_models {line}").value.rows]


def remembered(session: Session, url: str) -> tuple[str, ...]:
    return session.models[url].result(0)


def test_all_by_name_where_none_is_the_default(terminal: Terminal) -> None:
    assert listed(terminal) == ["Alpha", "beta-2", "gpt-5", "gpt-5-mini", "zeta"]


def test_the_default_is_first_and_marked(terminal: Terminal) -> None:
    terminal.run("%config LLMMagic.model = 'gpt-5-mini'")
    table = terminal.run("%llm_models").value

    assert [row[0] for row in table.rows][:2] == ["gpt-5-mini", "Alpha"]
    assert [row[3] for row in table.rows] == ["default", "", "", "", ""]
    assert table.note == ""


def test_a_default_that_is_not_offered_is_told(terminal: Terminal) -> None:
    terminal.run("%config LLMMagic.model = 'gpt-6'")

    assert "The default, gpt-6, is not among them." in terminal.run("%llm_models").out


def test_the_only_model_is_the_default(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as single:
        monkeypatch.setenv("OPENAI_BASE_URL", single.url)
        table = terminal.run("%llm_models").value

    assert table.rows == [("scripted-model", "free", "free", "default")]
    assert "1 model;" in table.title


@pytest.mark.parametrize(
    ("word", "found"),
    [("gpt-5", ["gpt-5", "gpt-5-mini"]), ("ALPHA", ["Alpha"])],
)
def test_a_word_filters(word: str, found: list[str], terminal: Terminal) -> None:
    assert listed(terminal, word) == found


def test_a_word_that_nothing_has_says_what_is_near(terminal: Terminal) -> None:
    said = terminal.run("%llm_models gtp-5").out

    assert "5 models, none with 'gtp-5' in its name" in said
    assert "Near: gpt-5" in said


def test_prices_are_those_of_the_day_or_unknown(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run(
        'c = {"gpt-5": {"input": 1.25, "output": 10}, "zeta": {"input": 0.125, "output": 0}}\n'
        "%config LLMMagic.prices = c"
    )
    rows = {row[0]: row[1:3] for row in terminal.run("%llm_models").value.rows}

    assert rows["gpt-5"] == ("$1.25", "$10.00")
    assert rows["zeta"] == ("$0.125", "free")
    assert rows["Alpha"] == ("free", "free")  # a server on this machine


def test_a_price_that_is_not_known_is_said(terminal: Terminal, server: ScriptedServer) -> None:
    """A named route: the address is not this machine's, and no list has its models."""
    session = current(terminal.shell)
    session.routes["https://llm.example/v1"] = server.url
    terminal.run("%config LLMMagic.base_url = 'https://llm.example/v1'")
    rows = {row[0]: row[1:3] for row in terminal.run("%llm_models").value.rows}

    assert rows["zeta"] == ("unknown", "unknown")


def test_known_prices_come_without_a_setting(terminal: Terminal, server: ScriptedServer) -> None:
    current(terminal.shell).routes["https://api.openai.com/v1"] = server.url
    terminal.run("%config LLMMagic.base_url = 'https://api.openai.com/v1'")
    rows = terminal.run("%llm_models gpt-5").value.rows

    assert rows[0][0] == "gpt-5-mini"
    assert rows[0][3] == "default"
    assert all(price.startswith("$") for row in rows for price in row[1:3])


def test_it_is_a_table_with_the_server_above(terminal: Terminal, server: ScriptedServer) -> None:
    ran = terminal.run("%llm_models")

    assert f"{server.url.partition('://')[2]}, 5 models; USD per million tokens" in ran.out
    assert "<table>" in ran.value._repr_html_()
    assert server.requests == []


def test_a_password_in_the_address_is_not_shown(terminal: Terminal, server: ScriptedServer) -> None:
    address = server.url.replace("://", "://me:s3cret@")
    terminal.run(f"%config LLMMagic.base_url = {address!r}")
    ran = terminal.run("%llm_models")

    assert ran.error is None
    assert "s3cret" not in ran.out + ran.value._repr_html_()


def test_the_list_is_asked_anew_and_remembered_by_server(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = current(terminal.shell)
    terminal.run("%llm_models")
    with ScriptedServer() as other:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{other.url}/")
        terminal.run("%llm_models")

        assert remembered(session, server.url) == OFFERED
        assert remembered(session, other.url) == ("scripted-model",)


# What goes wrong.


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_a_list(status: int, terminal: Terminal) -> None:
    with answering(saying(status, '{"error": {"message": "no such route"}}')) as url:
        terminal.run(f"%config LLMMagic.base_url = {url!r}")
        error = terminal.run("%llm_models").error

    assert type(error) is ProviderError
    assert f"does not list its models (it answered {status})" in str(error)
    assert "%config LLMMagic.model" in error.fix
    assert error.status == status


def test_a_server_that_lists_none(terminal: Terminal) -> None:
    with answering(saying(200, '{"object": "list", "data": []}')) as url:
        terminal.run(f"%config LLMMagic.base_url = {url!r}")

        assert "lists no models" in terminal.run("%llm_models").out


@pytest.mark.parametrize("body", ['"text"', "[]", '{"data": [1, {"name": "x"}]}', "{}", "null"])
def test_a_list_that_is_none(body: str, terminal: Terminal) -> None:
    with answering(saying(200, body)) as url:
        terminal.run(f"%config LLMMagic.base_url = {url!r}")
        ran = terminal.run("%llm_models")

    assert ran.error is None
    assert "lists no models" in ran.out


def test_a_server_that_is_not_there(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm_models")
    with server.refusing():
        terminal.run("import os; os.environ['OPENAI_BASE_URL'] += '/'")
        current(terminal.shell)._wires.clear()
        error = terminal.run("%llm_models").error

    assert type(error) is ServerUnreachable
    assert len(error._render_traceback_()) <= 3
    assert remembered(current(terminal.shell), server.url) == OFFERED


def test_a_wrong_key(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(api_key="another") as closed:
        monkeypatch.setenv("OPENAI_BASE_URL", closed.url)
        ran = terminal.run("%llm_models")

    assert type(ran.error) is AuthenticationFailed
    assert KEY not in str(ran.error)


def test_a_server_that_does_not_answer(
    terminal: Terminal, unanswered_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "LONGEST", 0.2)
    terminal.run(f"%config LLMMagic.base_url = 'http://{unanswered_address}/v1'")
    error = terminal.run("%llm_models").error

    assert type(error) is ServerUnreachable
    assert "within 0.2 s" in str(error)


def test_an_interrupt_ends_the_wait(terminal: Terminal, unanswered_address: str) -> None:
    terminal.run(f"%config LLMMagic.base_url = 'http://{unanswered_address}/v1'")
    session = current(terminal.shell)
    ran, _ = interrupted_when(
        lambda: session._loop is not None and bool(session._wires),
        lambda: terminal.run("%llm_models"),
    )

    assert type(ran.error) is Interrupted
    assert "Traceback" not in ran.out


@pytest.mark.parametrize("line", ["--by", "one two"])
def test_a_wrong_line(line: str, terminal: Terminal) -> None:
    assert terminal.run(f"%llm_models {line}").error is not None


def test_nothing_is_asked_when_replaying(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()
    with answering(lambda _: asked.set()) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        terminal.run("%config LLMMagic.mode = 'replay'")
        ran = terminal.run("%llm_models")
        names = models.known(current(terminal.shell))

    assert ran.error is None
    assert "Replayed: no server is asked" in ran.out
    assert names == []
    assert not asked.is_set()


# What completion gets.


def test_known_asks_once(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        saying(200, '{"data": [{"id": "b"}, {"id": "a"}]}')(handler)

    session = current(terminal.shell)
    with answering(answer) as url:
        terminal.run(f"%config LLMMagic.base_url = {url!r}")
        first = models.known(session, 30)
        session._wires.clear()
        again = models.known(session, 30)

    assert first == again == ["a", "b"]
    assert asked == ["/v1/models"]


def test_known_has_the_default_first_even_if_it_is_not_listed(terminal: Terminal) -> None:
    terminal.run("%config LLMMagic.model = 'mine'")

    assert models.known(current(terminal.shell), 30)[:2] == ["mine", "Alpha"]


def test_known_does_not_wait_twice_for_a_silent_server(
    terminal: Terminal, unanswered_address: str
) -> None:
    """The first wait is short, and the second call finds the server still being asked."""
    terminal.run(f"%config LLMMagic.base_url = 'http://{unanswered_address}/v1'")
    session = current(terminal.shell)

    assert models.known(session, 0.1) == []
    future = next(iter(session.models.values()))
    assert not future.done()
    assert models.known(session, 30) == []
    assert next(iter(session.models.values())) is future


def test_known_asks_again_where_the_server_had_failed(
    terminal: Terminal, server: ScriptedServer
) -> None:
    session = current(terminal.shell)
    with server.refusing():
        assert models.known(session, 30) == []

    assert models.known(session, 30) == sorted(OFFERED, key=str.casefold)
