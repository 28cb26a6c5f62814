"""A run over rows whose Redis goes away: a moment is outlasted, and nothing is paid twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import llm_magic
from llm_magic import rows as running
from llm_magic.errors import RowsWarning, StoreError
from tests.conftest import end_session, provided
from tests.dask_driver import Executor, when
from tests.load import LoadServer
from tests.redis_servers import RedisServer, wait_until
from tests.test_distributed import reachable

COUNT = 1_000
ANSWER = "Four stars."

pytestmark = pytest.mark.filterwarnings("ignore::llm_magic.errors.StoreWarning")


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadServer]:
    with LoadServer(latency=0.05, answer=ANSWER) as server:
        yield server


@pytest.fixture
def store(
    start_redis: Callable[..., RedisServer],
    loaded: LoadServer,
    keeping: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RedisServer]:
    """A Redis of the run's own, which forgets nothing."""
    redis = start_redis(appendonly="yes", appendfsync="always")
    provided(monkeypatch, loaded.url, store=redis.url)
    loaded.reset()
    yield redis
    end_session()


def rows() -> list[dict[str, Any]]:
    return [{"text": f"Row {number}"} for number in range(COUNT)]


def asked(on: Executor | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = llm_magic.map_rows(rows(), "{{ text }}", on=on, concurrency=20)
    return found


def frozen_for_a_moment(store: RedisServer) -> None:
    store.freeze()
    # Longer than one answer of Redis is waited for.
    time.sleep(0.7)
    store.thaw()


@pytest.mark.parametrize("what", [frozen_for_a_moment, RedisServer.restart])
@pytest.mark.parametrize("on", [None, Executor()], ids=["kernel", "workers"])
def test_a_moment_without_the_store_is_outlasted(
    on: Executor | None,
    what: Callable[[RedisServer], None],
    store: RedisServer,
    loaded: LoadServer,
) -> None:
    failing = when(lambda: loaded.stats()["requests"] > 0.3 * COUNT, lambda: what(store))
    results = asked(on)
    failing.join()
    assert [row["answer"] for row in results] == [ANSWER] * COUNT
    assert loaded.stats()["requests"] == COUNT


def test_a_store_that_stays_away_ends_the_run_and_nothing_is_paid_again(
    store: RedisServer, loaded: LoadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "OUTLASTED", 1)
    failing = when(lambda: loaded.stats()["requests"] > 0.3 * COUNT, store.kill)
    with pytest.warns(RowsWarning, match=r"Stopped at .* cannot be reached"):
        results = asked(None)
    failing.join()
    missing = [row for row in results if row["_error"]]
    assert all(row["_error"].startswith("not sent: ") for row in missing)
    assert loaded.stats()["requests"] == COUNT - len(missing)
    store.restart()
    wait_until(reachable)
    assert [row["answer"] for row in asked(None)] == [ANSWER] * COUNT
    assert loaded.stats()["requests"] == COUNT


def test_a_store_that_refuses_is_not_asked_again(
    store: RedisServer, loaded: LoadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PAUSE", 1_000.0)
    store.restart(requirepass="another")
    with pytest.raises(StoreError, match="wants a password"):
        asked(None)
    assert loaded.stats()["requests"] == 0


def test_stop_ends_the_wait_for_the_store(
    store: RedisServer, loaded: LoadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PAUSE", 1_000.0)
    waiting = []
    pause = running.Run._pause

    async def paused(self: running.Run) -> None:
        waiting.append(self)
        await pause(self)

    monkeypatch.setattr(running.Run, "_pause", paused)
    store.kill()
    stopped = when(lambda: bool(waiting), lambda: waiting[0]._session.run(waiting[0].halt()))
    results = asked(None)
    stopped.join()
    assert all(row["_error"].startswith("not sent: ") for row in results)
    assert loaded.stats()["requests"] == 0
