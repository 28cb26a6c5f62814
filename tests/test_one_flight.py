"""Equal calls at the same time, from threads and from several processes, are paid once."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llm_magic
from llm_magic import session
from llm_magic.stores.disk import DiskCache
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, Kernel, Terminal, end_session

ASK = """
import json, sys, time
import llm_magic
from llm_magic.errors import LLMError
from llm_magic.wire import _make_client
import os
_make_client(os.environ["OPENAI_BASE_URL"], "warm")  # the slow import, before the start
print("ready", flush=True)
sys.stdin.readline()
try:
    response = llm_magic.ask("The same question", model="m", max_tokens=500)
    said = [response.text, response.cached, str(response.cost), str(response.saved)]
except LLMError as error:
    said = [type(error).__name__]
print(json.dumps([*said, time.time()]), flush=True)
"""
SLOW = Reply("A slow answer, " * 20, tokens_per_second=150)


class Asker:
    """A process of its own that asks when it is told to."""

    def __init__(self, server: ScriptedServer) -> None:
        environment = {
            **os.environ,
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": KEY,
            "LLM_MAGIC_PRICES": json.dumps({"m": {"input": 1, "output": 2}}),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", ASK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ready(self) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline().strip() == "ready"

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def said(self) -> list[Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        said: list[Any] = json.loads(line) if line else []
        self.process.communicate()
        return said


@pytest.fixture
def askers(request: pytest.FixtureRequest, server: ScriptedServer, keeping: None) -> Any:
    started = [Asker(server) for _ in range(getattr(request, "param", 8))]
    for asker in started:
        asker.ready()
    yield started
    for asker in started:
        asker.process.kill()
        asker.process.communicate()


def test_eight_processes_ask_once(askers: list[Asker], server: ScriptedServer) -> None:
    server.enqueue(*[SLOW] * 8)
    for asker in askers:
        asker.go()
    answers = [asker.said() for asker in askers]

    assert len(server.requests) == 1
    assert [answer[0] for answer in answers] == [SLOW.text] * 8
    paid = [answer for answer in answers if not answer[1]]
    assert len(paid) == 1
    assert all(answer[2] == "0" for answer in answers if answer[1])
    assert {answer[3] for answer in answers if answer[1]} == {paid[0][2]}


@pytest.mark.parametrize("askers", [4], indirect=True)
def test_when_the_leader_is_killed_another_takes_over(
    askers: list[Asker], server: ScriptedServer
) -> None:
    server.enqueue(Reply("Never finished. " * 500, tokens_per_second=50), *[SLOW] * 3)
    leader, *others = askers
    leader.go()
    server.wait_for_requests(1)
    for asker in others:
        asker.go()
    time.sleep(0.3)  # so that they wait; were they late, they would only have it easier
    killed = time.time()
    leader.process.send_signal(signal.SIGKILL)
    server.wait_for_requests(2)
    taken_over = time.time()
    answers = [asker.said() for asker in others]

    assert len(server.requests) == 2
    assert taken_over - killed < 10
    assert [answer[0] for answer in answers] == [SLOW.text] * 3
    assert [answer[1] for answer in answers].count(False) == 1
    # What the killed one may have cost is booked, and nothing is held any more.
    session.current().settings.read_environment()
    frame = llm_magic.usage()
    assert frame.requests.sum() == 2
    assert "2 " in repr(llm_magic.quota(requests=9, scope="user"))
    end_session()


@pytest.mark.parametrize("askers", [4], indirect=True)
def test_a_leader_s_error_is_its_own(askers: list[Asker], server: ScriptedServer) -> None:
    """The next in line asks; nobody waits for an answer that does not come."""
    server.enqueue(FAULTS["cut"], *[SLOW] * 3)
    for asker in askers:
        asker.go()
    answers = [asker.said() for asker in askers]

    assert len(server.requests) == 2
    assert [answer[0] for answer in answers].count("StreamBroken") == 1
    assert [answer[0] for answer in answers].count(SLOW.text) == 3


def test_threads_of_one_kernel_ask_once(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    server.enqueue(*[SLOW] * 8)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: llm_magic.ask("Hello", model="m"), range(8)))

    assert len(server.requests) == 1
    assert [answer.text for answer in answers] == [SLOW.text] * 8
    assert [answer.cached for answer in answers].count(False) == 1
    assert llm_magic.usage().hits.sum() == 7


def test_fresh_calls_are_calls_of_their_own(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda _: llm_magic.ask("Hello", model="m", no_cache=True), range(4))
        )

    assert len(server.requests) == 4
    assert not any(answer.cached for answer in answers)


def test_the_one_who_waits_in_another_kernel_is_told_and_can_be_interrupted(
    server: ScriptedServer, tmp_path: Path
) -> None:
    shared = {
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": KEY,
        "LLM_MAGIC_CACHE_DIR": str(tmp_path / "cache"),
        "LLM_MAGIC_LEDGER_DIR": str(tmp_path / "ledger"),
        "LLM_MAGIC_CACHE_SIZE": "1 GB",
        "LLM_MAGIC_MODEL": "m",
    }
    server.enqueue(Reply("Long. " * 400, tokens_per_second=60))
    kernels = [Kernel(watched=True, environment=shared) for _ in range(2)]
    try:
        for kernel in kernels:
            kernel.run("%load_ext llm_magic")
        one, other = kernels
        leading = one.start("%%llm\nHello")
        server.wait_for_requests(1, timeout=20)
        waiting = other.start("%%llm\nHello")
        told = ""
        while "Another kernel is asking the same" not in told:
            message = other.client.get_iopub_msg(timeout=20)
            told += json.dumps(message["content"], default=str)
        other.manager.interrupt_kernel()
        stopped = other.finish(waiting)
        assert stopped.of("error")[0]["ename"] == "Interrupted"
        one.manager.interrupt_kernel()
        assert one.finish(leading).of("error")[0]["ename"] == "Interrupted"
        assert len(server.requests) == 1
    finally:
        for kernel in kernels:
            kernel.stop()


def test_an_answer_that_comes_just_before_the_claim_is_found(
    terminal: Terminal, server: ScriptedServer, keeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another kernel keeps the answer after our look into the cache, and before our claim."""
    llm_magic.ask("Hello", model="m")
    looks: list[str] = []

    def late(self: DiskCache, key: str) -> bytes | None:
        looks.append(key)
        return None

    monkeypatch.setattr(DiskCache, "get", late)
    again = llm_magic.ask("Hello", model="m")

    # With the claim, many are looked up at once.
    assert len(looks) == 2
    assert again.cached
    assert len(server.requests) == 1
    assert "requests in 1 h  this kernel     1" in repr(llm_magic.quota())
