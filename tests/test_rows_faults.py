"""A run over rows under faults: every row accounted for once, every request for a reason."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import llm_magic
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, end_session


class Review(BaseModel):
    """What is asked for."""

    stars: int


GOOD = '{"stars": 4}'
# What a text makes the server say each time that it is asked, and what then stands in _error.
LASTING = {
    "wrong": (Reply('{"stars": "many"}'), "stars"),
    "declined": (FAULTS["refusal"], "declined"),
    "filtered": (FAULTS["content_filter_prompt"], "content filter"),
    "endless": (FAULTS["context_too_long"], "context"),
    "cut": (Reply(GOOD, finish="length"), "was cut"),
    "lost": (FAULTS["close_before_headers"], ""),
    "page": (FAULTS["html_200"], "HTML"),
    "nothing": (Reply(GOOD, finish=None), "finish_reason"),
}
# Asked again once: the second answer of "prose" is a good one.
ASKED_TWICE = ("wrong", "prose", "endless")
PASSING = {
    "limited": Reply(
        status=429,
        error=FAULTS["rate_limited"].error,
        headers={"Retry-After-Ms": "5"},
    ),
    "limited for no time": FAULTS["rate_limited_no_header"],
    "failed": FAULTS["server_error"],
    "busy": FAULTS["unavailable"],
}
PRICES = '{"scripted-model": {"input": 1000, "output": 2000}}'


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedServer]:
    answers = {f"[{name}]": reply for name, (reply, _) in LASTING.items()}
    answers["[prose]"] = Reply("I would say four.")
    # The question that says what is wrong names it.
    answers["many"] = LASTING["wrong"][0]
    with ScriptedServer(answers, default=GOOD) as server:
        yield server


@contextmanager
def fresh(server: ScriptedServer, **more: str) -> Iterator[None]:
    """A kernel of its own, with an empty cache and ledger."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        chosen = {
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": KEY,
            "LLM_MAGIC_CACHE_DIR": str(Path(folder, "cache")),
            "LLM_MAGIC_LEDGER_DIR": str(Path(folder, "ledger")),
            "LLM_MAGIC_CACHE_SIZE": "10000000",
            "LLM_MAGIC_QUOTA_REQUESTS": "None",
            "LLM_MAGIC_RETRIES": "10",
            "LLM_MAGIC_PRICES": PRICES,
        }
        for name, value in {**chosen, **more}.items():
            patch.setenv(name, value)
        server.reset()
        try:
            yield
        finally:
            end_session()


def mapped(rows: Any, prompt: str = "Stars? {{ text }}", **options: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn_explicit", lambda *_, **__: None)
        return llm_magic.map_rows(rows, prompt, schema=Review, quiet=True, **options)


def counted(results: Any) -> dict[str, int]:
    """The totals, which must be what the rows say."""
    found = llm_magic.totals(results)
    counts = {
        name: getattr(found, name) for name in ("asked", "cached", "equal", "failed", "not_sent")
    }
    assert sum(counts.values()) == found.rows == len(results)
    for row in results:
        assert (row["stars"] is None) == (row["_error"] is not None), row
    without = sum(row["stars"] is None for row in results)
    assert without == counts["failed"] + counts["not_sent"]
    return counts


words = st.sampled_from(["a", "b", "c", "d", "e", "f", "ü🍏", "x" * 3000])
cells = st.one_of(
    words,
    words,
    st.sampled_from(sorted(f"[{name}]" for name in (*LASTING, "prose"))),
    st.sampled_from([None, math.nan, "", 0, 1.5, True]),
    # What cannot be a key of a dict.
    st.lists(st.integers(0, 2), max_size=2),
    st.dictionaries(words, st.integers(0, 1), max_size=1),
)


def expected_requests(rows: list[Any]) -> int:
    """Each different prompt once; one that does not fit is asked again once."""
    prompts = {prompt_of(cell) for cell in rows}
    return len(prompts) + sum(prompt in {f"[{name}]" for name in ASKED_TWICE} for prompt in prompts)


def prompt_of(cell: Any) -> str:
    """The text that a cell becomes."""
    missing = cell is None or (isinstance(cell, float) and math.isnan(cell))
    return "" if missing else str(cell)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(cells, max_size=25),
    passing=st.lists(st.sampled_from(sorted(PASSING)), max_size=6),
    at_once=st.sampled_from(["auto", 1, 3, 50]),
)
@example(rows=[], passing=["failed"], at_once="auto")
def test_every_row_is_accounted_for_and_every_request_has_a_reason(
    scripted: ScriptedServer, rows: list[Any], passing: list[str], at_once: Any
) -> None:
    # A connection that is closed before an answer is tried again, as often as there are retries.
    rows = [cell for cell in rows if cell != "[lost]"]
    asked = expected_requests(rows)
    with fresh(scripted):
        # No more than there are requests that can meet them, none of which then stays behind.
        scripted.enqueue(*(PASSING[name] for name in passing[:asked]))
        results = mapped([{"text": cell} for cell in rows], concurrency=at_once)

        counts = counted(results)
        assert counts["not_sent"] == counts["cached"] == 0
        assert len(scripted.requests) == asked + len(passing[:asked])
        for cell, row in zip(rows, results, strict=True):
            fault = next((name for name in LASTING if f"[{name}]" == cell), None)
            if fault is None:
                assert row["stars"] == 4
            else:
                assert LASTING[fault][1] in row["_error"]

        scripted.reset()
        again = mapped([{"text": cell} for cell in rows], concurrency=at_once)

        # What came is free, what failed is asked anew.
        failed = [cell for cell, row in zip(rows, results, strict=True) if row["_error"]]
        assert len(scripted.requests) == expected_requests(failed)
        assert [row["stars"] for row in again] == [row["stars"] for row in results]
        assert counted(again)["cached"] + counted(again)["equal"] >= len(rows) - len(failed) - 1


def test_a_connection_that_is_always_lost_is_one_rows_end(scripted: ScriptedServer) -> None:
    with fresh(scripted, LLM_MAGIC_RETRIES="2"):
        results = mapped(["a", "[lost]", "b"])

        assert counted(results) == {"asked": 2, "cached": 0, "equal": 0, "failed": 1, "not_sent": 0}
        assert len(scripted.requests) == 2 + 3


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(1, 40),
    cents=st.integers(0, 400),
    passing=st.lists(st.sampled_from(sorted(PASSING)), max_size=4),
    at_once=st.sampled_from(["auto", 2, 40]),
)
def test_a_budget_is_never_passed_however_many_are_on_their_way(
    scripted: ScriptedServer, count: int, cents: int, passing: list[str], at_once: Any
) -> None:
    budget = Decimal(cents) / 100
    rows = [f"{number}" for number in range(count)]
    with fresh(scripted):
        scripted.enqueue(*(PASSING[name] for name in passing))
        results = None
        with suppress(llm_magic.errors.QuotaExceeded):
            results = mapped(rows, max_cost=budget, concurrency=at_once, max_tokens=20)
        if results is None:
            # Not one row fits.
            assert scripted.requests == []
            return

        counts = counted(results)
        paid = sum(Decimal(str(row["_cost"])) for row in results if row["_cost"] is not None)
        answered = [row for row in results if row["stars"] is not None]
        each = Decimal(str(answered[0]["_cost"]))
        assert llm_magic.totals(results).cost == pytest.approx(paid)
        assert paid <= budget
        assert counts["failed"] == 0
        if counts["not_sent"]:
            # It went as near to the limit as a row's worst case, which is known before it is sent.
            assert paid + worst_of(scripted) > budget
            assert all("left of --max-cost" in row["_error"] for row in results if row["_error"])
        else:
            assert paid == pytest.approx(each * count, rel=Decimal("0.2"))


def worst_of(server: ScriptedServer) -> Decimal:
    """What one request can come to at most: a token a byte of its body, and its cap."""
    body = max((request.body for request in server.requests), key=lambda body: len(str(body)))
    sent = len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
    return Decimal(sent + 400) * 1000 / 10**6 + Decimal(20) * 2000 / 10**6


def test_a_quota_of_the_kernel_is_used_up_and_not_passed(scripted: ScriptedServer) -> None:
    with fresh(scripted, LLM_MAGIC_QUOTA_REQUESTS="7"):
        results = mapped([str(number) for number in range(30)], concurrency=20)

        assert counted(results)["asked"] == 7
        assert counted(results)["not_sent"] == 23
        assert len(scripted.requests) == 7
        assert "7 of 7 requests" in results[29]["_error"]


def test_ten_megabytes_in_a_cell_are_one_row_as_any_other(scripted: ScriptedServer) -> None:
    with fresh(scripted):
        results = mapped(["a", "x" * 10_000_000, "b"])

        assert [row["stars"] for row in results] == [4, 4, 4]
        assert len(scripted.requests) == 3


def test_a_server_that_fails_always_is_asked_no_more(scripted: ScriptedServer) -> None:
    rows = [f"{number} [page]" for number in range(300)]
    with fresh(scripted):
        results = mapped(rows, concurrency=10)

        counts = counted(results)
        assert counts["failed"] == len(scripted.requests) < 100
        assert counts["not_sent"] == 300 - counts["failed"]


@pytest.mark.parametrize(
    "fault", ["bad_key", "out_of_credit", "unknown_model", "rate_limited_long"]
)
def test_what_no_row_is_to_blame_for_ends_the_run(scripted: ScriptedServer, fault: str) -> None:
    with fresh(scripted):
        scripted.enqueue(*[FAULTS[fault]] * 50)
        with pytest.raises(llm_magic.errors.ProviderError):
            mapped([str(number) for number in range(40)], concurrency=5)

        # Names of models are looked up before it is said that one is unknown.
        assert len(scripted.requests) < 20


def test_rows_before_and_after_an_empty_account_are_kept(scripted: ScriptedServer) -> None:
    rows = [str(number) for number in range(30)]
    with fresh(scripted):
        mapped(rows[20:])
        scripted.reset()
        scripted.enqueue(*[GOOD] * 6, *[FAULTS["out_of_credit"]] * 30)
        results = mapped(rows, concurrency=1)

        # Those that are kept cost nothing, wherever they stand.
        assert [row["_cached"] for row in results[20:]] == [True] * 10
        assert counted(results) == {
            "asked": 6,
            "cached": 10,
            "equal": 0,
            "failed": 0,
            "not_sent": 14,
        }
        assert "no credit" in results[10]["_error"]
