"""%%llm_map on Dask workers, as a user sees it: the same row on the page, and the same button."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.page import Desk, Notebook
from tests.browser.test_rows import LOAD, done
from tests.conftest import redis_kind_found
from tests.load import LoadServer
from tests.redis_servers import RedisServer

pytestmark = pytest.mark.browser

WORKERS = """%config LLMMagic.store = "{store}"
%config LLMMagic.quota_requests = 100_000
from dask.distributed import Client, LocalCluster
cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0")
client = Client(cluster)"""
ASK = """%%llm_map reviews.head(2000) kept << --schema Review --on client
Classify this review for a shoe shop: {{ text }}"""
COUNT = "len(kept), int(kept._error.isna().sum()), int(kept.stars.notna().sum())"
CLOSE = "client.close(); cluster.close()"
ASKED, COUNTED, CLOSED = 2, 3, 4


@pytest.fixture
def provider() -> Iterator[LoadServer]:
    """400 rows a second at most."""
    with LoadServer(latency=0.05, slots=20) as running:
        yield running


@pytest.fixture
def notebook(desk: Desk, provider: LoadServer) -> Iterator[Notebook]:
    store = RedisServer(redis_kind_found("redis"))
    cells = (LOAD.format(url=provider.url), WORKERS.format(store=store.url), ASK, COUNT, CLOSE)
    with desk.opened(*cells) as opened:
        yield opened
    store.stop()


def test_rows_on_workers_are_stopped_on_the_page_and_gone_on_with(
    notebook: Notebook, provider: LoadServer
) -> None:
    notebook.run(0)
    notebook.run(1)
    notebook.start(ASKED)
    expect(notebook.stop_button(ASKED)).to_be_enabled()
    notebook.until(lambda: done(notebook, ASKED) >= 250, "250 rows are on screen")
    notebook.screenshot("workers-live")
    notebook.stop_button(ASKED).click()
    notebook.wait(seconds=10)
    expect(notebook.stop_button(ASKED)).to_have_count(0)
    stopped = notebook.output_text(ASKED)
    notebook.screenshot("workers-stopped")
    paid = provider.stats()["requests"]

    told = re.search(r"Stopped at ([\d,]+) of 2,000 rows", stopped)
    assert told, stopped
    assert int(told[1].replace(",", "")) == paid < 2_000
    notebook.run(COUNTED)
    assert notebook.output_text(COUNTED) == f"(2000, {paid}, {paid})"
    notebook.run(ASKED)
    assert provider.stats()["requests"] == 2_000
    assert f"{2_000 - paid:,} asked, {paid:,} cached" in notebook.output_text(ASKED)
    notebook.run(CLOSED)
