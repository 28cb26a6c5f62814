"""Rows on two Dask workers in processes of their own: the same frame, limits, and paid once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import pandas as pd
import pytest
from dask import dataframe as dd
from pydantic import BaseModel

import llm_magic
from llm_magic.errors import PromptError, QuotaExceeded, RowsWarning
from tests.conftest import (
    KEY,
    Kernel,
    Terminal,
    emptied_redis,
    end_session,
    interrupted_when,
    provided,
)
from tests.dask_driver import PASSWORD, Workers, when
from tests.load import LoadServer
from tests.redis_servers import RedisServer, wait_until

ANSWER = '{"stars": 4, "topic": "fit", "tags": ["a", "b"]}'


class Review(BaseModel):
    stars: int
    topic: Literal["fit", "price"]
    tags: list[str]


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadServer]:
    with LoadServer(latency=0.02, answer=ANSWER) as server:
        yield server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with RedisServer("redis", requirepass=PASSWORD) as redis:
        workers = Workers(redis, tmp_path_factory.mktemp("workers"))
        yield workers
        workers.close()


@pytest.fixture
def workers(
    running: Workers, loaded: LoadServer, monkeypatch: pytest.MonkeyPatch, keeping: None
) -> Workers:
    """The workers with an empty store, and a load server as the provider."""
    emptied_redis("own", {"own": running.redis})
    provided(
        monkeypatch,
        loaded.url,
        store=running.redis.url,
        prices='{"load": {"input": 1, "output": 1}}',
    )
    loaded.set(latency=0.02, rate=0, headers=False)
    loaded.reset()
    running.both()
    return running


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    end_session()


def reviews(count: int) -> pd.DataFrame:
    """Reviews under an odd index, every tenth like the first."""
    texts = [f"Review {number if number % 10 else 0}" for number in range(count)]
    return pd.DataFrame({"text": texts, "n": range(count)}, index=[f"r{n}" for n in range(count)])


def test_the_frame_is_that_of_one_kernel(workers: Workers, loaded: LoadServer) -> None:
    frame = reviews(600)
    alone = llm_magic.map_rows(frame, "{{ text }}", schema=Review, no_cache=True)
    loaded.reset()
    together = llm_magic.map_rows(frame, "{{ text }}", schema=Review, on=workers.client)
    pd.testing.assert_frame_equal(together, alone)
    assert loaded.stats()["requests"] == 541


def test_both_workers_ask(workers: Workers) -> None:
    llm_magic.map_rows(reviews(1_000), "{{ text }}", on=workers.client)
    with workers.redis.client() as redis:
        (line,) = redis.keys("*:asking")
        assert redis.zcard(line) == 2


def test_the_executor_of_a_client_is_its_client(workers: Workers, loaded: LoadServer) -> None:
    on = workers.client.get_executor()
    results = llm_magic.map_rows(reviews(20), "{{ text }}", on=on)
    assert results["answer"].eq(ANSWER).all()


def test_a_cluster_is_no_client_and_says_so(workers: Workers) -> None:
    with pytest.raises(PromptError, match=r"on=LocalCluster .*\n.*on=Client\(cluster\)"):
        llm_magic.map_rows(reviews(3), "{{ text }}", on=workers.cluster)


def test_what_came_is_free_for_the_kernel_as_well(workers: Workers, loaded: LoadServer) -> None:
    frame = reviews(100)
    llm_magic.map_rows(frame, "{{ text }}", on=workers.client)
    asked = loaded.stats()["requests"]
    again = llm_magic.map_rows(frame, "{{ text }}")
    assert again["_cached"].all()
    assert loaded.stats()["requests"] == asked


def test_rows_of_a_worker_that_is_killed_are_done_again_and_paid_once(
    workers: Workers, loaded: LoadServer
) -> None:
    count = 3_000
    frame = pd.DataFrame({"text": [f"Row {n}" for n in range(count)]})
    killer = when(lambda: loaded.stats()["requests"] > 0.4 * count, workers.kill_one)
    results = llm_magic.map_rows(
        frame, "{{ text }}", schema=Review, on=workers.client, concurrency=60
    )
    killer.join()
    assert results["stars"].eq(4).all()
    assert results.index.equals(frame.index)
    assert results["text"].equals(frame["text"])
    # At most what was on its way of the 30 that a worker may have.
    assert loaded.stats()["requests"] <= count + 30
    assert llm_magic.totals(results).rows == count


@pytest.mark.parametrize(
    ("setting", "limit", "metric"),
    [("requests", 100, "requests"), ("tokens", 30_000, "tokens"), ("usd", 0.03, "usd")],
)
def test_no_limit_of_the_kernel_is_passed_by_both(
    setting: str,
    limit: float,
    metric: str,
    workers: Workers,
    loaded: LoadServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row comes to 60 tokens and $0.00006, and can come to some more."""
    monkeypatch.setenv(f"LLM_MAGIC_QUOTA_{setting.upper()}", str(limit))
    with pytest.warns(RowsWarning, match="Stopped at"):
        results = llm_magic.map_rows(reviews(1_000), "{{ text }}", on=workers.client, max_tokens=20)
    used = {"requests": 1, "tokens": 60, "usd": 0.00006}[metric] * loaded.stats()["requests"]
    assert 0.5 * limit < used <= limit * 1.000001
    done = results["_error"].isna()
    assert loaded.stats()["requests"] == (done & ~results["_cached"]).sum()
    assert results["_error"][~done].str.startswith("not sent: ").all()


def test_max_cost_is_that_of_all_workers(workers: Workers, loaded: LoadServer) -> None:
    with pytest.warns(RowsWarning, match="--max-cost"):
        results = llm_magic.map_rows(
            reviews(1_000), "{{ text }}", on=workers.client, max_cost=0.03, max_tokens=20
        )
    totals = llm_magic.totals(results)
    assert 0.015 < float(totals.cost) <= 0.03
    assert float(totals.cost) == pytest.approx(0.00006 * loaded.stats()["requests"])


def test_no_more_are_at_once_than_the_user_says(workers: Workers, loaded: LoadServer) -> None:
    llm_magic.map_rows(reviews(600), "{{ text }}", on=workers.client, concurrency=6)
    assert 1 < loaded.stats()["max_in_flight"] <= 6


def test_the_rate_of_a_server_is_divided(workers: Workers, loaded: LoadServer) -> None:
    loaded.set(rate=150, burst=20, headers=True)
    loaded.reset()
    llm_magic.map_rows(reviews(500), "{{ text }}", on=workers.client)
    stats = loaded.stats()
    assert stats["rejected"] <= 0.1 * stats["answered"]


def test_ctrl_c_ends_it_on_the_workers_and_keeps_what_came(
    workers: Workers, loaded: LoadServer, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", loaded.url)
    loaded.set(latency=0.1)
    terminal["client"], terminal["frame"] = workers.client, reviews(5_000)
    ran, _ = interrupted_when(
        lambda: loaded.stats()["answered"] > 300,
        lambda: terminal.run("%%llm_map frame out << --on client --concurrency 100\n{{ text }}"),
        patience=30,
    )
    assert "Stopped at" in str(ran.error)
    out = terminal["out"]
    stats = loaded.stats()
    assert stats["requests"] < 4_400
    assert out["answer"].notna().sum() > 100
    loaded.set(latency=0)
    again = terminal.run("%%llm_map frame out << --on client\n{{ text }}")
    assert again.error is None
    # Two seconds' answers may have come when nobody waited any more; none was paid twice.
    assert loaded.stats()["requests"] == 4_501


CLASSES = """
import dataclasses, enum
from typing import Literal, TypedDict
from pydantic import BaseModel, field_validator

class Topic(enum.Enum):
    fit = "fit"

class Model(BaseModel):
    stars: int
    topic: Topic

    @field_validator("stars")
    @classmethod
    def few(cls, value):
        assert value <= LIMIT
        return value

@dataclasses.dataclass
class Data:
    stars: int
    topic: Topic = Topic.fit

class Typed(TypedDict):
    stars: int
    topic: Literal["fit"]

LIMIT = 5
"""


@pytest.mark.parametrize("schema", ["Model", "Data", "Typed"])
def test_classes_of_the_notebook_travel(
    schema: str,
    workers: Workers,
    loaded: LoadServer,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", loaded.url)
    assert terminal.run(CLASSES).error is None
    terminal["client"], terminal["frame"] = workers.client, reviews(5)
    ran = terminal.run(f"%%llm_map frame out << --on client --schema {schema}\n{{{{ text }}}}")
    assert ran.error is None
    assert terminal["out"]["_error"].isna().all()


@pytest.mark.kernel
def test_an_interrupt_of_the_kernel_stops_its_workers_and_does_not_end_them(
    workers: Workers, loaded: LoadServer
) -> None:
    """It goes to all processes that the kernel has started."""
    loaded.set(latency=0.3)
    kernel = Kernel(watched=True, environment={"LLM_MAGIC_CACHE_SIZE": "100 MB"})
    try:
        kernel.run(
            "%load_ext llm_magic\n"
            "from distributed import Client, LocalCluster\n"
            "client = Client(LocalCluster(n_workers=2, threads_per_worker=1, "
            "dashboard_address=None))\n"
            "frame = [{'text': f'Row {n}'} for n in range(2_000)]"
        )
        cell = "%%llm_map frame out << --on client --concurrency 100\n{{ text }}"
        started = kernel.start(cell)
        wait_until(lambda: loaded.stats()["answered"] > 250)
        kernel.manager.interrupt_kernel()
        shown = kernel.finish(started)
        assert "Stopped at" in shown.reply["evalue"]
        asked = loaded.stats()["requests"]
        # What was paid for is in the table.
        assert kernel.value("sum(bool(row['answer']) for row in out)") == asked
        loaded.set(latency=0)
        again = kernel.run(cell).reply
        assert again["status"] == "ok", again
        assert loaded.stats()["requests"] == 2_000
        kernel.run("client.cluster.close()")
    finally:
        kernel.stop()


# A Dask DataFrame


def test_a_dask_frame_gives_a_dask_frame_that_asks_when_it_is_computed(
    workers: Workers, loaded: LoadServer
) -> None:
    frame = reviews(60).set_index(pd.RangeIndex(60, 0, -1))
    alone = llm_magic.map_rows(frame, "{{ text }}", schema=Review, no_cache=True)
    loaded.reset()
    lazy = llm_magic.map_rows(
        dd.from_pandas(frame, npartitions=3, sort=False), "{{ text }}", schema=Review
    )
    assert isinstance(lazy, dd.DataFrame)
    assert loaded.stats()["requests"] == 0
    computed = lazy.compute()
    assert computed.dtypes.to_dict() == lazy.dtypes.to_dict()
    columns = ["text", "n", "stars", "topic", "tags", "_error"]
    pd.testing.assert_frame_equal(computed[columns], alone[columns], check_dtype=False)
    # The first of each partition is like the first of all.
    assert loaded.stats()["requests"] == 55


def test_the_prompt_of_a_dask_frame_takes_the_notebooks_names(
    workers: Workers, loaded: LoadServer, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", loaded.url)
    terminal["frame"] = dd.from_pandas(reviews(4), npartitions=2, sort=False)
    terminal["shop"] = "shoes"
    ran = terminal.run("%%llm_map frame out <<\nOf {{ shop }}: {{ text }}")
    assert ran.error is None
    # They are those of the moment when it was written.
    del terminal.shell.user_ns["shop"]
    assert terminal["out"].compute()["answer"].eq(ANSWER).all()


def test_a_series_and_an_empty_partition_are_asked_as_well(workers: Workers) -> None:
    series = dd.from_pandas(pd.Series(["a", "b", "c"], name="text"), npartitions=2)
    lazy = llm_magic.map_rows(series[series != "c"], "{{ text }}")
    assert lazy.compute()["answer"].tolist() == [ANSWER] * 2


def test_a_dask_frame_needs_the_shared_store_as_well(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_STORE", "disk")
    lazy = dd.from_pandas(reviews(3), npartitions=1)
    with pytest.raises(PromptError, match="need a shared store"):
        llm_magic.map_rows(lazy, "{{ text }}")
    asked = llm_magic.map_rows(lazy, "{{ text }}", unshared=True)
    assert asked.compute()["answer"].eq(ANSWER).all()


def test_workers_are_not_named_for_a_dask_frame(workers: Workers) -> None:
    lazy = dd.from_pandas(reviews(3), npartitions=1)
    with pytest.raises(PromptError, match="asked by the workers that compute it"):
        llm_magic.map_rows(lazy, "{{ text }}", on=workers.client)
    with pytest.raises(PromptError, match=r"not there before it is computed.*\n.*head\(2\)"):
        llm_magic.map_rows(lazy, "{{ text }}", sample=2)


def test_a_partition_that_nothing_can_be_asked_about_raises(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "0")
    lazy = llm_magic.map_rows(dd.from_pandas(reviews(3), npartitions=1), "{{ text }}")
    with pytest.raises(QuotaExceeded, match="0 of 0 requests"):
        lazy.compute()


def test_no_secret_is_in_the_graph(workers: Workers) -> None:
    import cloudpickle

    lazy = llm_magic.map_rows(dd.from_pandas(reviews(3), npartitions=1), "{{ text }}")
    graph = cloudpickle.dumps(dict(lazy.__dask_graph__()))
    assert b"{{ text }}" in graph
    assert KEY.encode() not in graph
    assert PASSWORD.encode() not in graph
    assert os.environ["LLM_MAGIC_STORE"].count(PASSWORD) == 1
