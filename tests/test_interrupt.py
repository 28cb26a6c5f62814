"""Ctrl-C in every phase of a call: soon over, connection closed, partial answer kept."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from types import AsyncGeneratorType

import pytest

import llm_magic
from llm_magic import session
from llm_magic.errors import Interrupted
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, SOON, Terminal, interrupted_when

SLOW = Reply("One two three four five six. " * 20, tokens_per_second=50)


@pytest.fixture
def warm(terminal: Terminal, server: ScriptedServer) -> Terminal:
    """A terminal that has asked once, so that openai is imported."""
    terminal.run("%llm Hello")
    server.reset()
    return terminal


def test_while_waiting_for_the_headers(warm: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply("Too late.", delay=60))

    ran, seconds = interrupted_when(
        lambda: bool(server.requests), lambda: warm.run("%%llm answer <<\nHello")
    )

    assert type(ran.error) is Interrupted
    assert seconds < SOON
    assert server.requests[0].closed.wait(10)
    assert "answer" not in warm.shell.user_ns
    assert "nothing had come yet" in ran.out


def test_while_streaming(warm: Terminal, server: ScriptedServer) -> None:
    server.enqueue(SLOW)

    ran, seconds = interrupted_when(
        lambda: bool(server.requests) and server.requests[0].sent_chunks > 40,
        lambda: warm.run("%%llm answer <<\nHello"),
    )

    assert type(ran.error) is Interrupted
    assert isinstance(ran.error, KeyboardInterrupt)
    assert seconds < SOON
    assert server.requests[0].closed.wait(10)
    assert SLOW.text.startswith(ran.error.text)
    assert len(ran.error.text) > 20
    assert ran.error.text in ran.out
    assert "stopped, incomplete" in ran.out
    assert len(ran.error._render_traceback_()) <= 3
    assert ran.error.response.finish_reason == "interrupted"
    assert ran.error.response.usage.output_tokens > 5
    assert ran.error.response.usage.estimated
    assert "answer" not in warm.shell.user_ns


def test_in_a_stall(warm: Terminal, server: ScriptedServer) -> None:
    server.enqueue(FAULTS["stall_pings"])

    ran, seconds = interrupted_when(
        lambda: bool(server.requests) and server.requests[0].sent_chunks >= 2,
        lambda: warm.run("%llm Hello"),
    )

    assert type(ran.error) is Interrupted
    assert seconds < SOON
    assert server.requests[0].closed.wait(10)


def test_while_backing_off(warm: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply(status=429, headers={"Retry-After": "50"}))

    ran, seconds = interrupted_when(
        lambda: bool(server.requests) and server.requests[0].finished.is_set(),
        lambda: warm.run("%llm Hello"),
    )

    assert type(ran.error) is Interrupted
    assert seconds < SOON
    assert len(server.requests) == 1


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal to another process")
def test_with_polars_which_handles_signals_itself(server: ScriptedServer) -> None:
    """Its handler lets an unlimited wait go on."""
    server.enqueue(Reply("Too late.", delay=60))
    code = "import polars, llm_magic; llm_magic.ask('Hello', model='m')"
    script = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"OPENAI_BASE_URL": server.url},
        stderr=subprocess.PIPE,
        text=True,
    )
    server.wait_for_requests(1)

    sent = time.monotonic()
    script.send_signal(signal.SIGINT)
    _, error = script.communicate(timeout=30)

    assert "Interrupted" in error
    assert time.monotonic() - sent < 5
    assert server.requests[0].closed.wait(10)


@pytest.mark.skipif(os.name != "posix", reason="keeps a POSIX signal from a thread")
def test_where_the_signal_does_not_wake_the_wait(warm: Terminal, server: ScriptedServer) -> None:
    """As where it comes in the moment in which the wait begins. Here another thread gets it."""
    server.enqueue(Reply("Too late.", delay=60))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        ran, seconds = interrupted_when(
            lambda: bool(server.requests), lambda: warm.run("%llm Hello")
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    assert type(ran.error) is Interrupted
    assert seconds < SOON


def test_while_connecting(warm: Terminal, unanswered_address: str) -> None:
    warm.run("%config LLMMagic.timeout = 30")
    warm.run(f"%config LLMMagic.base_url = 'http://{unanswered_address}/v1'")
    began = time.monotonic()

    ran, seconds = interrupted_when(
        lambda: time.monotonic() > began + 0.3, lambda: warm.run("%llm -m any Hello")
    )

    assert type(ran.error) is Interrupted
    assert seconds < SOON


def test_while_importing_openai(terminal: Terminal, server: ScriptedServer) -> None:
    """The very first call: the client is still being imported on another thread."""
    server.enqueue(Reply("Too late.", delay=60))
    began = time.monotonic()

    ran, seconds = interrupted_when(
        lambda: time.monotonic() > began + 0.05, lambda: terminal.run("%llm Hello")
    )

    assert type(ran.error) is Interrupted
    assert seconds < SOON


def test_next_cell_works_and_nothing_runs_on(warm: Terminal, server: ScriptedServer) -> None:
    server.enqueue(SLOW)
    interrupted_when(
        lambda: bool(server.requests) and server.requests[0].sent_chunks > 3,
        lambda: warm.run("%llm Hello"),
    )

    assert warm.run("%llm And now?").value.text == "This is a scripted answer."
    running = session.current()
    assert running._loop
    left = asyncio.run_coroutine_threadsafe(_other_tasks(), running._loop).result(10)
    assert left == 0


def test_no_half_read_body_is_left_to_the_collector(warm: Terminal, server: ScriptedServer) -> None:
    """On another thread than the loop's it would run into what the loop still does with it."""
    server.enqueue(SLOW)
    gc.collect()
    gc.disable()
    try:
        ran, _ = interrupted_when(
            lambda: bool(server.requests) and server.requests[0].sent_chunks > 40,
            lambda: warm.run("%llm Hello"),
        )
        assert ran.error.text
        end = time.monotonic() + SOON
        while (left := _half_read()) and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        gc.enable()

    assert left == [], left


def _half_read() -> list[str]:
    """Bodies of answers that are neither read to the end nor closed."""
    return [
        each.__qualname__
        for each in gc.get_objects()
        if isinstance(each, AsyncGeneratorType)
        and each.ag_frame is not None
        # The client makes one of its own, which nobody reads.
        and each.__name__ != "__stream__"
    ]


def test_ask_raises_it_too(warm: Terminal, server: ScriptedServer) -> None:
    server.enqueue(SLOW)
    warm.run("import llm_magic")

    ran, seconds = interrupted_when(
        lambda: bool(server.requests) and server.requests[0].sent_chunks > 3,
        lambda: warm.run("llm_magic.ask('Hello')"),
    )

    assert type(ran.error) is Interrupted
    assert seconds < SOON
    assert server.requests[0].closed.wait(10)


def test_cancelled_aask_closes_the_connection(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.enqueue(SLOW)

    async def main() -> None:
        call = asyncio.create_task(llm_magic.aask("Hello"))
        while not (server.requests and server.requests[0].sent_chunks > 3):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())

    assert server.requests[0].closed.wait(10)


async def _other_tasks() -> int:
    await asyncio.sleep(0.05)
    return len(asyncio.all_tasks()) - 1
