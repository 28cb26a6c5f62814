"""Rows against real servers with limits: what holds however fast the machine is."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest

import llm_magic
from llm_magic import session
from llm_magic.errors import RowsWarning
from tests.conftest import end_session, interrupted_when
from tests.load import LoadServer


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A script's own session, which ends with the test."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-limits")
    monkeypatch.setenv("LLM_MAGIC_MODEL", "load")
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    yield
    end_session()


def mapped(server, rows, monkeypatch, **how):
    """So many rows through ``map_rows``; their ``_error`` column."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    texts = [f"row {number} of {rows}" for number in range(rows)]
    found = llm_magic.map_rows(texts, "Say {{ text }}", **how)
    return [row["_error"] for row in found]


@pytest.mark.parametrize(
    ("rate", "asked", "headers"),
    [
        (300, "ms", True),
        (300, "s", True),
        (300, "ms", False),
        (300, "s", False),
        (300, "none", False),
        (50, "ms", True),
        (50, "ms", False),
    ],
)
def test_every_row_is_answered_once(rate, asked, headers, monkeypatch):
    rows = 150 if rate == 300 else 80
    limit = {"rate": rate, "burst": 60, "retry_after": asked, "headers": headers}
    with LoadServer(latency=0.02, spread=0.3, **limit) as server:
        errors = mapped(server, rows, monkeypatch)
        stats = server.stats()
    assert errors == [None] * rows
    assert stats["answered"] == rows
    assert stats["requests"] == rows + stats["rejected"]


def test_with_headers_next_to_nothing_is_turned_away(monkeypatch):
    with LoadServer(latency=0.02, rate=300, burst=60, headers=True) as server:
        mapped(server, 400, monkeypatch)
        assert server.stats()["rejected"] < 8


def test_without_headers_little_is_turned_away(monkeypatch):
    with LoadServer(latency=0.02, rate=300, burst=60) as server:
        mapped(server, 400, monkeypatch)
        # What was on its way at the first rejection, and a few later ones.
        assert server.stats()["rejected"] < 80


def test_a_limit_on_tokens_is_kept_to_by_its_headers(monkeypatch):
    """A row takes 60."""
    limit = {"token_rate": 18_000, "token_burst": 3_600, "headers": True}
    with LoadServer(latency=0.02, **limit) as server:
        errors = mapped(server, 300, monkeypatch)
        stats = server.stats()
    assert errors == [None] * 300
    assert stats["rejected"] < 9


def test_the_smaller_of_two_limits_holds(monkeypatch):
    limit = {"rate": 1000, "burst": 500, "token_rate": 9_000, "token_burst": 3_600}
    with LoadServer(latency=0.02, headers=True, **limit) as server:
        errors = mapped(server, 150, monkeypatch)
        stats = server.stats()
    assert errors == [None] * 150
    assert stats["rejected"] < 9


@pytest.mark.parametrize("headers", [True, False])
def test_a_pause_that_is_asked_for_holds_everybody(headers, monkeypatch):
    """Nobody asks in the second half of it."""
    limit = {"rate": 20, "burst": 4, "retry_after": "s", "headers": headers}
    with LoadServer(latency=0.02, **limit) as server:
        mapped(server, 20, monkeypatch)
        stats = server.stats()
    assert stats["rejected"] > 0
    assert stats["early"] == 0


def test_a_limit_that_is_lowered_costs_no_row(monkeypatch):
    with LoadServer(latency=0.02, rate=400, burst=20) as server:
        lowered = threading.Thread(target=when_answered, args=(server, 100, {"rate": 60}))
        lowered.start()
        errors = mapped(server, 200, monkeypatch)
        lowered.join()
        stats = server.stats()
    assert errors == [None] * 200
    assert stats["answered"] == 200


def when_answered(server, count, changes):
    """Changes a server's options when so many are answered."""
    end = time.monotonic() + 30
    while server.stats()["answered"] < count and time.monotonic() < end:
        time.sleep(0.01)
    server.set(**changes)


def test_a_server_that_queues_is_not_flooded(monkeypatch):
    with LoadServer(latency=0.03, slots=8) as server:
        errors = mapped(server, 400, monkeypatch)
        stats = server.stats()
    assert errors == [None] * 400
    assert stats["rejected"] == 0
    # Without a window of its own, all 256 tasks would ask.
    assert stats["max_in_flight"] <= 64


def test_ones_own_number_is_kept_to(monkeypatch):
    with LoadServer(latency=0.01, spread=0.5) as server:
        mapped(server, 100, monkeypatch, concurrency=5)
        assert server.stats()["max_in_flight"] == 5


def test_two_runs_share_one_limit(monkeypatch):
    """The rate is found once for both."""
    with LoadServer(latency=0.02, rate=300, burst=60, headers=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        ends = []

        def run(name):
            texts = [f"{name} {number}" for number in range(200)]
            found = llm_magic.map_rows(texts, "Say {{ text }}")
            ends.append([row["_error"] for row in found])

        threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = server.stats()
    assert ends == [[None] * 200] * 2
    assert stats["answered"] == 400
    assert stats["rejected"] < 12


def test_failures_beside_rejections(monkeypatch):
    """Every seventh request fails with a 500, and is asked again."""
    monkeypatch.setenv("LLM_MAGIC_RETRIES", "9")
    limit = {"rate": 300, "burst": 30, "fail_every": 7}
    with LoadServer(latency=0.01, **limit) as server:
        errors = mapped(server, 200, monkeypatch)
        stats = server.stats()
    assert errors == [None] * 200
    assert stats["answered"] == 200
    assert stats["requests"] == 200 + stats["rejected"] + stats["failed"]


def test_an_interrupt_while_all_wait_returns_what_is_there(monkeypatch):
    """The wait for a limit is no reason to hold up the user."""
    with LoadServer(latency=0.01, rate=2, burst=20, headers=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.warns(RowsWarning, match="Stopped at"):
            found, seconds = interrupted_when(
                lambda: server.stats()["answered"] >= 15,
                lambda: mapped(server, 200, monkeypatch),
                patience=20,
            )
        gate = next(iter(session._session._gates.values()))
        assert gate.in_flight == 0
    assert 15 <= found.count(None) < 60
    assert seconds < 5
