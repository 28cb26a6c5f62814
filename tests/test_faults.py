"""Every fault of a server, as the user of a cell meets it."""

import time
from dataclasses import dataclass

import pytest

from llm_magic.errors import (
    AuthenticationFailed,
    ContextTooLong,
    LLMError,
    OutOfCredit,
    PromptError,
    ProviderError,
    RateLimited,
    Refused,
    ServerUnreachable,
    StreamBroken,
    Truncated,
    UnknownModel,
)
from llm_magic.testing import FAULTS, QUIRKS, Reply, ScriptedServer
from tests.conftest import KEY, Terminal


@dataclass(frozen=True)
class Meets:
    """What a fault must lead to.

    Attributes:
        error: The class raised.
        says: Words of the message that the user reads.
        requests: Chat requests made, retries included.
        partial: Whether a part of the answer had come, is shown and is kept.
    """

    error: type[LLMError]
    says: str
    requests: int = 1
    partial: bool = False


EXPECTED = {
    "rate_limited": Meets(RateLimited, "Too many requests", requests=3),
    "rate_limited_long": Meets(RateLimited, "asks to wait 17 min"),
    "rate_limited_no_header": Meets(RateLimited, "Too many requests", requests=3),
    "out_of_credit": Meets(OutOfCredit, "no credit left"),
    "bad_key": Meets(AuthenticationFailed, "OPENAI_API_KEY"),
    "unknown_model": Meets(UnknownModel, "scripted-model"),
    "context_too_long": Meets(ContextTooLong, "does not fit"),
    "content_filter_prompt": Meets(Refused, "content filter refused the prompt"),
    "server_error": Meets(ProviderError, "said 500", requests=3),
    "bad_gateway_html": Meets(ProviderError, "titled '502 Bad Gateway'", requests=3),
    "unavailable": Meets(ProviderError, "said 503", requests=3),
    "overloaded": Meets(ProviderError, "said 529", requests=3),
    "rejects_response_format": Meets(ProviderError, "response_format"),
    "html_200": Meets(ProviderError, "titled 'Sign in'"),
    "json_error_200": Meets(ProviderError, "upstream server is gone"),
    "close_before_headers": Meets(ServerUnreachable, "Cannot reach", requests=3),
    "cut": Meets(StreamBroken, "was lost", partial=True),
    "reset": Meets(StreamBroken, "was lost", partial=True),
    "end_early": Meets(StreamBroken, "no finish_reason", partial=True),
    "done_without_finish": Meets(StreamBroken, "no finish_reason", partial=True),
    "error_in_stream": Meets(ProviderError, "said", partial=True),
    "error_first_in_stream": Meets(ProviderError, "said"),
    "event_error": Meets(ProviderError, "verloaded", partial=True),
    "old_vllm_error": Meets(ProviderError, "said", partial=True),
    "field_error": Meets(ProviderError, "said", partial=True),
    "raw_line": Meets(StreamBroken, "proxy error", partial=True),
    "stall": Meets(StreamBroken, "No new content", partial=True),
    "stall_pings": Meets(StreamBroken, "No new content", partial=True),
    "stall_before_headers": Meets(ServerUnreachable, "within 1.5 s"),
    "malformed_json": Meets(StreamBroken, "not JSON", partial=True),
    "invalid_utf8": Meets(StreamBroken, "not UTF-8", partial=True),
    "empty_stream": Meets(StreamBroken, "empty answer"),
    "finish_length": Meets(Truncated, "--max-tokens", partial=True),
    "finish_content_filter": Meets(Refused, "content filter stopped", partial=True),
    "refusal": Meets(Refused, "I cannot help with that."),
    "null_finish": Meets(StreamBroken, "no finish_reason", partial=True),
}


@pytest.fixture
def impatient(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Waits little, so that stalls are short."""
    monkeypatch.setenv("LLM_MAGIC_TIMEOUT", "1.5")
    monkeypatch.setenv("LLM_MAGIC_STALL_TIMEOUT", "1.5")
    return terminal


def test_every_fault_is_expected() -> None:
    assert EXPECTED.keys() == FAULTS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_fault(
    name: str, impatient: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen, explained in at most three lines, counted, and over for the next cell."""
    expected, reply = EXPECTED[name], FAULTS[name]
    if name == "rate_limited":
        # The pause that the server asks for is kept to, so the test's server asks for less.
        reply = Reply(status=429, error=reply.error, headers={"Retry-After": "0.05"})
    server.enqueue(*[reply] * 3)
    began = time.monotonic()

    ran = impatient.run("%%llm answer << -m scripted-model\nWhat is the answer?")

    assert type(ran.error) is expected.error
    assert time.monotonic() - began < 5
    assert expected.says in str(ran.error)
    lines = ran.error._render_traceback_()
    assert 1 <= len(lines) <= 3
    assert all(line in ran.out for line in lines)
    assert "Traceback" not in ran.out
    assert len(server.requests) == expected.requests
    assert ran.error.attempts == expected.requests
    if expected.partial:
        assert ran.error.text
        assert ran.error.text in ran.out
        assert ran.error.usage.output_tokens > 0
        assert reply.text.startswith(ran.error.text)
    if name not in ("finish_content_filter", "finish_length"):
        assert "answer" not in impatient.shell.user_ns
    assert KEY not in ran.out
    server.reset()
    assert impatient.run("%llm -m scripted-model Still there?").value.text


@pytest.mark.parametrize("name", QUIRKS)
def test_quirk(name: str, terminal: Terminal, server: ScriptedServer) -> None:
    """Harmless oddities give the whole answer, and reasoning apart from it."""
    reply = QUIRKS[name]
    server.enqueue(reply)

    ran = terminal.run("%%llm\nWhat is the answer?")

    assert ran.error is None
    assert ran.value.text == reply.text
    assert ran.value.reasoning == reply.reasoning
    assert ran.value.finish_reason == "stop"
    assert reply.text in ran.out
    assert ran.value.usage.estimated == (name in ("usage_never", "hang_after_finish"))
    if not ran.value.usage.estimated:
        assert ran.value.usage.output_tokens == -(-len(reply.reasoning + reply.text) // 4)
    assert ran.value.usage.output_tokens > 0
    assert len(server.requests) == 1


def test_refused_connection(impatient: Terminal, server: ScriptedServer) -> None:
    with server.refusing():
        ran = impatient.run("%llm -m any Hello")

    assert type(ran.error) is ServerUnreachable
    assert ran.error.attempts == 3
    assert server.url.split("/")[2] in ran.out
    assert "running?" in ran.out
    assert impatient.run("%llm -m any Hello").value.text


def test_retry_is_shown_and_succeeds(terminal: Terminal, server: ScriptedServer) -> None:
    # Long enough to be drawn on a busy machine.
    pause = Reply(status=503, headers={"retry-after-ms": "400"})
    server.enqueue(pause, FAULTS["close_before_headers"], "At last.")

    ran = terminal.run("%llm Hello")

    assert ran.value.text == "At last."
    assert ran.value.attempts == 3
    assert "Trying again in" in ran.out
    assert "(attempt 2 of 3)" in ran.out
    assert "3 attempts" in ran.out


def test_retry_after_is_kept_to(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply(status=503, headers={"retry-after-ms": "300"}), "Ready.")

    ran = terminal.run("%llm -m any Hello")

    first, second = server.requests
    assert ran.value.text == "Ready."
    assert second.at - first.at >= 0.3


def test_retries_can_be_switched_off(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(FAULTS["unavailable"])
    terminal.run("%config LLMMagic.retries = 0")

    ran = terminal.run("%llm -m any Hello")

    assert type(ran.error) is ProviderError
    assert len(server.requests) == 1


def test_rate_limit_says_when(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(FAULTS["rate_limited_long"])

    error = terminal.run("%llm -m any Hello").error

    assert error.retry_after == 999
    assert error.retry_at == pytest.approx(time.time() + 999, abs=5)
    assert error.status == 429


@pytest.mark.parametrize(
    ("refused", "kept"),
    [("stream_options", "max_tokens"), ("max_tokens", "max_completion_tokens")],
)
def test_refused_field_is_given_up_once_and_remembered(
    terminal: Terminal, server: ScriptedServer, refused: str, kept: str
) -> None:
    picky = Reply("Fine.", rejects=(refused,))
    server.enqueue(picky, picky, picky)

    first = terminal.run("%llm -m any --max-tokens 90 Hello")
    second = terminal.run("%llm -m any --max-tokens 90 Hello again")

    assert first.value.text == second.value.text == "Fine."
    assert first.value.attempts == 1
    bodies = [request.body for request in server.requests]
    assert [refused in body for body in bodies] == [True, False, False]
    assert all(kept in body for body in bodies[1:])


def test_server_that_takes_no_cap_at_all_says_so(
    terminal: Terminal, server: ScriptedServer
) -> None:
    picky = Reply("Fine.", rejects=("max_tokens", "max_completion_tokens"))
    server.enqueue(picky, picky, picky)

    ran = terminal.run("%llm -m any --max-tokens 90 Hello")

    assert type(ran.error) is ProviderError
    assert len(server.requests) == 2


def test_unknown_model_names_the_nearest(bare_terminal: Terminal) -> None:
    with ScriptedServer(models=["llama3.2:3b", "qwen3:8b"]) as server:
        bare_terminal.run("%load_ext llm_magic")
        bare_terminal.run(f"%config LLMMagic.base_url = {server.url!r}")
        server.enqueue(FAULTS["unknown_model"])

        error = bare_terminal.run("%llm -m lama3.2 Hello").error

    assert type(error) is UnknownModel
    assert error.available == ("llama3.2:3b", "qwen3:8b")
    assert "-m llama3.2:3b" in error.fix


def test_only_model_needs_no_name_but_one_of_two_does(bare_terminal: Terminal) -> None:
    bare_terminal.run("%load_ext llm_magic")
    with ScriptedServer(models=["only"]) as one, ScriptedServer(models=["a", "b"]) as two:
        bare_terminal.run(f"%config LLMMagic.base_url = {one.url!r}")
        assert bare_terminal.run("%llm Hello").value.model == "only"
        bare_terminal.run(f"%config LLMMagic.base_url = {two.url!r}")

        ran = bare_terminal.run("%llm Hello")

        assert type(ran.error) is UnknownModel
        assert "offers 2: a, b" in ran.out
        assert "%config LLMMagic.model = 'a'" in ran.out
        assert two.requests == []


def test_no_key_for_a_remote_server_sends_nothing(bare_terminal: Terminal) -> None:
    bare_terminal.run("%load_ext llm_magic")

    ran = bare_terminal.run("%llm Hello")

    assert type(ran.error) is AuthenticationFailed
    assert "No API key for api.openai.com: nothing was sent." in ran.out
    assert "OPENAI_API_KEY" in ran.error.fix


def test_key_with_a_typographic_quote_is_not_sent(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"\u201c{KEY}\u201d")

    ran = terminal.run("%llm -m any Hello")

    assert type(ran.error) is AuthenticationFailed
    assert "at position 0" in ran.out
    assert KEY not in ran.out
    assert server.requests == []


def test_address_without_a_scheme_is_refused_at_once(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:11434/v1")

    ran = terminal.run("%llm -m any Hello")

    assert type(ran.error) is PromptError
    assert "OPENAI_BASE_URL='localhost:11434/v1'" in ran.out


def test_config_keeps_the_old_value_and_says_why(
    terminal: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    terminal.run("%config LLMMagic.base_url = 'localhost:1'")

    assert "starts with http:// or https://" in caplog.text
    assert terminal.run("%config LLMMagic.base_url").value.startswith("https://")


def test_server_that_lists_no_model(bare_terminal: Terminal) -> None:
    bare_terminal.run("%load_ext llm_magic")
    with ScriptedServer(models=[]) as server:
        bare_terminal.run(f"%config LLMMagic.base_url = {server.url!r}")

        ran = bare_terminal.run("%llm Hello")

        assert type(ran.error) is UnknownModel
        assert "lists none" in ran.out
        assert server.requests == []


def test_server_that_does_not_answer_what_it_offers(
    terminal: Terminal, unanswered_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://{unanswered_address}/v1")
    monkeypatch.setenv("LLM_MAGIC_TIMEOUT", "1.5")

    ran = terminal.run("%llm Hello")

    assert type(ran.error) is ServerUnreachable
    assert "The prompt was not sent." in ran.out


def test_unknown_model_on_a_server_that_lists_none(bare_terminal: Terminal) -> None:
    bare_terminal.run("%load_ext llm_magic")
    with ScriptedServer(models=[]) as server:
        bare_terminal.run(f"%config LLMMagic.base_url = {server.url!r}")
        server.enqueue(FAULTS["unknown_model"])

        error = bare_terminal.run("%llm -m nobody Hello").error

    assert type(error) is UnknownModel
    assert error.available == ()
    assert "-m NAME" in error.fix
