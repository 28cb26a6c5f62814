"""Faults and interrupts leave nothing behind: no thread, no socket, no task."""

import asyncio
import gc
import os
import threading
import time
from pathlib import Path

import pytest

from llm_magic import session
from llm_magic.testing import FAULTS, QUIRKS, Reply, ScriptedServer
from tests.conftest import Terminal, interrupted_when

DESCRIPTORS = Path("/proc/self/fd")
REPLIES = [
    reply
    for reply in [*FAULTS.values(), *QUIRKS.values()]
    # Those that are about waiting are in test_faults.
    if reply.status != 429 and not reply.delay and reply.fault != "hang_after_finish"
]


def left_over() -> tuple[int, int, int]:
    """Open descriptors, threads, tasks on the session's loop."""
    gc.collect()
    loop = session.current()._loop
    assert loop is not None
    tasks = asyncio.run_coroutine_threadsafe(_tasks(), loop).result(10)
    return len(os.listdir(DESCRIPTORS)), threading.active_count(), tasks


async def _tasks() -> int:
    await asyncio.sleep(0.05)
    return len(asyncio.all_tasks())


def go_through_everything(terminal: Terminal, server: ScriptedServer) -> None:
    for reply in REPLIES:
        server.enqueue(reply)
        terminal.run("%llm -m any Hello")
        server.reset()
    server.enqueue(Reply("Some words. " * 50, tokens_per_second=50))
    ran, _ = interrupted_when(
        lambda: bool(server.requests) and server.requests[0].sent_chunks >= 5,
        lambda: terminal.run("%llm -m any Hello"),
    )
    assert isinstance(ran.error, KeyboardInterrupt)
    server.reset()


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="counts what Linux lists in /proc")
def test_nothing_is_left_over(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_RETRIES", "0")
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    monkeypatch.setenv("LLM_MAGIC_STALL_TIMEOUT", "0.1")
    go_through_everything(terminal, server)
    before = left_over()

    go_through_everything(terminal, server)
    go_through_everything(terminal, server)

    # The server's end of the last connection closes a moment later.
    end = time.monotonic() + 5
    while (after := left_over()) != before and time.monotonic() < end:
        pass
    assert after == before
