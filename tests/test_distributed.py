"""Rows on an executor: what workers are told, what they share, and what becomes of a pool."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import Executor as StandardExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Annotated, Any

import pandas as pd
import pytest
from pydantic import AfterValidator

import llm_magic
from llm_magic.distributed.parcel import error_of, plain_error
from llm_magic.distributed.pools import failure
from llm_magic.errors import (
    ContextTooLong,
    LLMError,
    PromptError,
    QuotaExceeded,
    RowsWarning,
    StoreError,
)
from llm_magic.testing import Reply, ScriptedServer
from llm_magic.types import Usage
from tests.conftest import KEY, Terminal, emptied_redis, end_session, provided
from tests.dask_driver import PASSWORD, Executor, when
from tests.load import LoadServer
from tests.redis_servers import RedisServer, wait_until

ANSWER = '{"stars": 4, "topic": "fit", "positive": true}'


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadServer]:
    with LoadServer(latency=0.01, answer=ANSWER) as server:
        yield server


@pytest.fixture
def environment(
    loaded: LoadServer, monkeypatch: pytest.MonkeyPatch, keeping: None
) -> Iterator[LoadServer]:
    """A load server as the provider; answers are kept."""
    provided(monkeypatch, loaded.url, prices='{"load": {"input": 1, "output": 1}}')
    loaded.set(latency=0.01)
    loaded.reset()
    yield loaded
    end_session()


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    with RedisServer("redis", requirepass=PASSWORD) as server:
        yield server


@pytest.fixture
def shared(
    environment: LoadServer, guarded: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> LoadServer:
    """The same with a Redis that wants a password, which workers have from their environment."""
    emptied_redis("own", {"own": guarded})
    monkeypatch.setenv("LLM_MAGIC_STORE", guarded.url_of())
    monkeypatch.setenv("LLM_MAGIC_STORE_PASSWORD", PASSWORD)
    return environment


@pytest.fixture
def pool() -> Iterator[Callable[..., ProcessPoolExecutor]]:
    """Pools of two processes that begin with the environment of the test."""
    made: list[ProcessPoolExecutor] = []

    def make(**environment: str | None) -> ProcessPoolExecutor:
        made.append(ProcessPoolExecutor(2, initializer=change, initargs=(environment,)))
        return made[-1]

    yield make
    for each in made:
        each.shutdown()


def change(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def rows(count: int) -> list[dict[str, Any]]:
    return [{"text": f"Row {number}"} for number in range(count)]


# What is refused


def test_without_a_shared_store_rows_are_not_given_to_workers(environment: LoadServer) -> None:
    with (
        ThreadPoolExecutor(1) as on,
        pytest.raises(PromptError, match=r"shared store.*\n.*LLM_MAGIC_STORE=redis.*unshared"),
    ):
        llm_magic.map_rows(rows(3), "{{ text }}", on=on)
    assert environment.stats()["requests"] == 0


def test_a_cost_that_nobody_could_keep_is_refused(environment: LoadServer) -> None:
    with ThreadPoolExecutor(1) as on, pytest.raises(PromptError, match="max_cost=1"):
        llm_magic.map_rows(rows(3), "{{ text }}", on=on, unshared=True, max_cost=1)


def test_unshared_without_workers_is_refused(environment: LoadServer) -> None:
    with pytest.raises(PromptError, match="none are named"):
        llm_magic.map_rows(rows(3), "{{ text }}", unshared=True)


def test_what_takes_no_work_is_no_pool(environment: LoadServer) -> None:
    with pytest.raises(PromptError, match=r"on=list takes no work"):
        llm_magic.map_rows(rows(3), "{{ text }}", on=[], unshared=True)


def test_a_name_that_is_nowhere_is_told_with_the_nearest(
    terminal: Terminal, environment: LoadServer
) -> None:
    terminal["frame"] = rows(3)
    with ThreadPoolExecutor(1) as on:
        terminal["client"] = on
        ran = terminal.run("%%llm_map frame --on clinet --unshared\n{{ text }}")
    assert "There is no clinet in the notebook" in ran.out
    assert "Did you mean client?" in ran.out


# Workers of a standard pool


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_a_standard_pool_gives_the_frame_of_one_kernel(
    kind: type[StandardExecutor], shared: LoadServer
) -> None:
    frame = pd.DataFrame({"text": [f"Row {n % 90}" for n in range(100)]}, index=range(100, 0, -1))
    alone = llm_magic.map_rows(frame, "{{ text }}", no_cache=True)
    shared.reset()
    with kind(2) as on:
        together = llm_magic.map_rows(frame, "{{ text }}", on=on)
    pd.testing.assert_frame_equal(together, alone)
    assert shared.stats()["requests"] == 90


def test_workers_of_their_own_need_no_redis(
    environment: LoadServer, pool: Callable[..., ProcessPoolExecutor]
) -> None:
    results = llm_magic.map_rows(rows(50), "{{ text }}", on=pool(), unshared=True)
    assert all(row["answer"] == ANSWER for row in results)
    # The kernel keeps what they found.
    again = llm_magic.map_rows(rows(50), "{{ text }}")
    assert all(row["_cached"] for row in again)
    assert environment.stats()["requests"] == 50


def test_a_pool_that_breaks_ends_the_run_in_one_message(
    shared: LoadServer, pool: Callable[..., ProcessPoolExecutor]
) -> None:
    on, frame = pool(), rows(3_000)
    killer = when(
        lambda: shared.stats()["answered"] >= 1_000,
        lambda: os.kill(next(iter(on._processes)), signal.SIGKILL),
    )
    with pytest.warns(RowsWarning, match=r"process pool died.*\n.*Make a new pool"):
        results = llm_magic.map_rows(frame, "{{ text }}", on=on, concurrency=20)
    killer.join()
    missing = [row for row in results if row["_error"]]
    assert missing
    assert all(row["_error"].startswith("not sent: ") for row in missing)
    assert all(row["answer"] == ANSWER for row in results if not row["_error"])
    again = llm_magic.map_rows(frame, "{{ text }}", on=pool())
    assert all(row["answer"] == ANSWER for row in again)
    # What the dead had paid and not given back was found where they had kept it.
    assert llm_magic.totals(again).cached == 3_000 - len(missing)
    # A pool that breaks ends its other process as well.
    assert shared.stats()["requests"] <= 3_000 + 20


def test_what_a_worker_raises_does_not_end_the_kernel(shared: LoadServer) -> None:
    class Interrupted(Executor):
        def submit(self, work: Any, *arguments: Any) -> Any:
            future: Future[Any] = Future()
            future.set_exception(KeyboardInterrupt())
            return future

    with pytest.raises(LLMError, match="ended with KeyboardInterrupt"):
        llm_magic.map_rows(rows(3), "{{ text }}", on=Interrupted())
    assert llm_magic.map_rows(rows(1), "{{ text }}", on=Executor())[0]["answer"] == ANSWER


def test_a_pool_that_is_shut_down_is_told(shared: LoadServer) -> None:
    on = ThreadPoolExecutor(1)
    on.shutdown()
    with pytest.raises(LLMError, match="cannot schedule new futures after shutdown"):
        llm_magic.map_rows(rows(3), "{{ text }}", on=on)


def test_failed_rows_are_asked_again_on_the_workers(
    shared: LoadServer, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("LLM_MAGIC_RETRIES", "0")
    server.enqueue(Reply("no number"), Reply("no number"))
    on = Executor()
    results = llm_magic.map_rows(["Row 1"], "{{ text }}", schema=int, on=on)
    assert "answer" in results[0]
    assert results[0]["_error"]
    server.enqueue(Reply('{"result": 5}'))
    again = llm_magic.totals(results).retry_failed()
    assert again[0]["answer"] == 5
    assert len(on.sent) == 2


def test_rows_of_an_iterator_are_asked_on_workers(shared: LoadServer) -> None:
    results = llm_magic.map_rows(iter(rows(700)), "{{ text }}", on=Executor(), concurrency=50)
    assert len(results) == 700
    assert results["answer"].eq(ANSWER).all()


def test_a_row_that_fails_does_not_end_the_others(
    shared: LoadServer, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    server.enqueue(Reply("1"), Reply("many", finish="length"))
    results = llm_magic.map_rows(["a", "b"], "{{ text }}", on=Executor(), concurrency=1)
    assert [row["answer"] for row in results] == ["1", None]
    assert "output limit" in results[1]["_error"]
    assert [*llm_magic.totals(results).errors.values()] == [[1]]


def test_a_server_that_fails_with_every_third_row_is_asked_for_all(
    shared: LoadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left alone after fifty failures in a row, and these are not."""
    monkeypatch.setenv("LLM_MAGIC_RETRIES", "0")
    shared.set(fail_every=3)
    try:
        results = llm_magic.map_rows(rows(300), "{{ text }}", on=Executor())
    finally:
        shared.set(fail_every=0)
    assert llm_magic.totals(results).failed == 100
    assert llm_magic.totals(results).not_sent == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BrokenProcessPool(), "process pool died"),
        (type("KilledWorker", (Exception,), {})("run_chunk"), "gave up a chunk"),
        (CancelledError(), "client cancelled"),
        (ModuleNotFoundError("No module named 'llm_magic'"), r"cannot import .*llm_magic"),
        (ValueError("odd"), "failed with ValueError: odd"),
    ],
)
def test_why_a_chunk_did_not_come_back(error: BaseException, told: str) -> None:
    assert re.search(told, str(failure(error)))


# What they are told


def test_neither_key_nor_password_goes_to_the_workers(shared: LoadServer) -> None:
    on = Executor()
    llm_magic.map_rows(rows(3), "{{ text }}", on=on, max_cost=1)
    sent = b"".join(on.sent)
    assert b"Row 2" in sent
    assert b"redis://" in sent
    assert KEY.encode() not in sent
    assert PASSWORD.encode() not in sent


def test_a_worker_without_a_key_says_where_it_belongs(
    shared: LoadServer,
    pool: Callable[..., ProcessPoolExecutor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.example.com/v1")
    without = pool(OPENAI_API_KEY=None)
    with pytest.raises(LLMError, match=r"no API key.*\n.*environment of the workers"):
        llm_magic.map_rows(rows(10), "{{ text }}", on=without)


def test_a_kernel_without_a_key_can_have_workers_with_one(
    shared: LoadServer,
    pool: Callable[..., ProcessPoolExecutor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    results = llm_magic.map_rows(rows(3), "{{ text }}", on=pool(OPENAI_API_KEY=KEY))
    assert all(row["answer"] == ANSWER for row in results)


def test_a_worker_with_another_redis_asks_nothing(
    shared: LoadServer,
    pool: Callable[..., ProcessPoolExecutor],
    start_redis: Callable[..., RedisServer],
) -> None:
    with pytest.raises(StoreError, match=r"another one than the notebook's"):
        llm_magic.map_rows(
            rows(3),
            "{{ text }}",
            on=pool(LLM_MAGIC_STORE=start_redis().url, LLM_MAGIC_STORE_PASSWORD=None),
        )
    assert shared.stats()["requests"] == 0


def test_a_worker_without_the_password_says_what_to_set(
    shared: LoadServer, pool: Callable[..., ProcessPoolExecutor]
) -> None:
    without = pool(LLM_MAGIC_STORE_PASSWORD=None)
    with pytest.raises(StoreError, match=r"A worker .*password.*\n.*LLM_MAGIC_STORE_PASSWORD"):
        llm_magic.map_rows(rows(3), "{{ text }}", on=without)


def test_what_cannot_be_sent_is_told_before_anything_is(shared: LoadServer) -> None:
    lock = threading.Lock()

    def check(value: int) -> int:
        with lock:
            return value

    with pytest.raises(PromptError, match="cannot be sent to workers"):
        llm_magic.map_rows(
            rows(3), "{{ text }}", schema=Annotated[int, AfterValidator(check)], on=Executor()
        )
    assert shared.stats()["requests"] == 0


def test_limits_that_were_set_for_the_kernel_hold_for_its_workers(
    shared: LoadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm_magic.quota(requests=5)
    with pytest.warns(RowsWarning, match="Stopped at 5 of 20 rows"):
        llm_magic.map_rows(rows(20), "{{ text }}", on=Executor())
    assert shared.stats()["requests"] == 5


# A chunk that is done again


@pytest.mark.parametrize("fresh", [False, True])
def test_a_chunk_that_is_done_again_is_paid_once(fresh: bool, shared: LoadServer) -> None:
    on = Executor(times=2)
    results = llm_magic.map_rows(rows(40), "{{ text }}", on=on, fresh=fresh)
    totals = llm_magic.totals(results)
    assert shared.stats()["requests"] == 40
    assert not any(row["_cached"] for row in results)
    assert (totals.asked, float(totals.cost)) == (40, pytest.approx(40 * 0.00006))


def test_fresh_asks_again_what_was_kept_before(shared: LoadServer) -> None:
    llm_magic.map_rows(rows(5), "{{ text }}")
    results = llm_magic.map_rows(rows(5), "{{ text }}", on=Executor(times=2), fresh=True)
    assert not any(row["_cached"] for row in results)
    assert shared.stats()["requests"] == 10


def test_when_redis_fails_the_run_ends_and_nothing_is_paid_again(
    environment: LoadServer,
    start_redis: Callable[..., RedisServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis, on = start_redis(appendonly="yes"), Executor()
    monkeypatch.setenv("LLM_MAGIC_STORE", redis.url)
    environment.set(latency=0.05)
    failing = when(lambda: environment.stats()["requests"] > 300, redis.kill)
    with pytest.warns(RowsWarning, match=r"Stopped at .* cannot be reached"):
        llm_magic.map_rows(rows(1_000), "{{ text }}", on=on)
    failing.join()
    redis.restart()
    wait_until(reachable)
    results = llm_magic.map_rows(rows(1_000), "{{ text }}", on=on)
    assert all(row["answer"] == ANSWER for row in results)
    assert environment.stats()["requests"] == 1_000


def reachable() -> bool:
    try:
        llm_magic.usage()
    except StoreError:
        return False
    return True


# What comes back


def test_an_error_comes_back_as_it_was() -> None:
    error = QuotaExceeded("Too much.", fix="Less.", scope="run", metric="usd", cap=5)
    error.usage = Usage(3, 4)
    back = error_of(plain_error(error))
    assert type(back) is QuotaExceeded
    assert str(back) == "Too much.\nLess."
    assert (back.scope, back.metric, back.cap, back.usage) == ("run", "usd", 5, Usage(3, 4))


def test_what_of_an_error_is_no_plain_data_stays_on_the_worker() -> None:
    back = error_of(plain_error(ContextTooLong("Long.", body=object(), status=400)))
    assert (type(back), back.body, back.status) == (ContextTooLong, None, 400)


def test_answers_of_workers_are_recorded(shared: LoadServer, terminal: Terminal) -> None:
    terminal.shell.run_line_magic("config", f"LLMMagic.base_url = '{shared.url}'")
    terminal["frame"], terminal["on"] = rows(5), Executor()
    terminal.run("%llm_cassette answers --record")
    assert terminal.run("%%llm_map frame out << --on on\n{{ text }}").error is None
    terminal.run("%llm_cassette answers --replay")
    assert terminal.run("%%llm_map frame again <<\n{{ text }}").error is None
    assert [row["answer"] for row in terminal["again"]] == [ANSWER] * 5
