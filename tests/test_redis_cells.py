"""What a cell's user sees when the team's Redis fails: told within a second, nothing paid twice."""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_magic.errors import StoreError, StoreWarning
from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import SOON, Ran, Terminal
from tests.redis_servers import RedisServer, wait_until

MEANWHILE = "Answers are kept on this machine meanwhile."


@pytest.fixture(params=["frozen", "killed"])
def fault(request: pytest.FixtureRequest) -> str:
    """What befalls the server."""
    return str(request.param)


def fail(store: RedisServer, fault: str) -> None:
    store.freeze() if fault == "frozen" else store.kill()


def mend(store: RedisServer, fault: str) -> None:
    store.thaw() if fault == "frozen" else store.restart()


@pytest.fixture
def store(
    terminal: Terminal, keeping: None, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> RedisServer:
    """The server of a terminal's user, which has answered one prompt."""
    own_redis.restart(appendonly="yes", appendfsync="always")
    monkeypatch.setenv("LLM_MAGIC_STORE", own_redis.url)
    monkeypatch.setenv("LLM_MAGIC_MODEL", "scripted-model")
    assert terminal.run("%llm First").error is None
    settle(terminal)
    return own_redis


def settle(terminal: Terminal) -> None:
    """Waits until what the last cell used is booked, which is done behind it."""
    assert terminal.run("%llm_usage").error is None


def run(terminal: Terminal, cell: str) -> tuple[Ran, list[str], float]:
    """Runs a cell; with the warnings of its stores and the seconds that it took."""
    before = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ran = terminal.run(cell)
    seconds = time.monotonic() - before
    told = [str(each.message) for each in caught if issubclass(each.category, StoreWarning)]
    return ran, told, seconds


def test_a_cell_is_told_within_a_second_and_nothing_is_sent(
    terminal: Terminal, store: RedisServer, server: ScriptedServer, fault: str
) -> None:
    fail(store, fault)

    for turn in range(3):
        ran, told, seconds = run(terminal, f"%llm Another {turn}")
        assert seconds < SOON
        assert type(ran.error) is StoreError
        assert "Nothing was sent." in str(ran.error)
        assert len(told) == (turn == 0)
    assert len(server.requests) == 1


def test_a_cell_is_answered_where_that_is_wanted(
    terminal: Terminal,
    store: RedisServer,
    server: ScriptedServer,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one warning of the cache and one of the quota; the answer is in Redis in the end."""
    monkeypatch.setenv("LLM_MAGIC_QUOTA_STRICT", "0")
    fail(store, fault)

    told = []
    for _ in range(2):
        ran, words, seconds = run(terminal, "%llm Second")
        assert ran.error is None
        assert seconds < SOON
        told += words
    assert len([each for each in told if MEANWHILE in each]) == 1
    assert len([each for each in told if "quota" in each]) == 1
    assert len(server.requests) == 2
    mend(store, fault)

    def moved() -> bool:
        terminal.run("%llm_cache")
        with store.client() as client:
            return len(list(client.scan_iter("llm_magic:cache:*"))) == 2

    wait_until(moved)
    assert len(server.requests) == 2


def test_a_stream_goes_on_and_is_booked_once(
    terminal: Terminal, store: RedisServer, server: ScriptedServer, fault: str
) -> None:
    server.enqueue(Reply("One two three four five six seven eight.", tokens_per_second=20))

    def interfere() -> None:
        server.wait_for_requests(2)
        fail(store, fault)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(interfere)
        ran, told, seconds = run(terminal, "%llm Count")
        done.result()
    assert ran.error is None
    assert "eight." in ran.out
    assert seconds < 2 * SOON
    assert len([each for each in told if MEANWHILE in each]) <= 1
    mend(store, fault)

    def counted() -> str:
        return terminal.run("%llm_quota").out

    wait_until(lambda: "StoreError" not in counted())
    ran, _, _ = run(terminal, "%llm Count")
    assert "cached" in ran.out
    assert len(server.requests) == 2
    used = int(next(line for line in counted().splitlines() if "this kernel" in line).split()[6])
    assert used == 2


def test_a_restart_is_not_seen(
    terminal: Terminal, store: RedisServer, server: ScriptedServer
) -> None:
    for turn in range(2):
        store.restart()
        ran, told, _ = run(terminal, f"%llm Again {turn}")
        assert ran.error is None
        assert told == []
        settle(terminal)
    store.restart()
    assert "cached" in run(terminal, "%llm Again 0")[0].out
    assert len(server.requests) == 3
