"""How a row is asked: as a cell is, but whole; once where rows are equal; beside others."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import llm_magic
from llm_magic import session
from llm_magic.errors import LLMError
from llm_magic.rows import AHEAD
from llm_magic.testing import FAULTS, QUIRKS, Reply, ScriptedServer
from llm_magic.types import Wish
from tests.conftest import KEY, Terminal, end_session


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MAGIC_TIMEOUT", "1.5")
    monkeypatch.setenv("LLM_MAGIC_STALL_TIMEOUT", "1.5")
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    monkeypatch.setenv("LLM_MAGIC_RETRIES", "1")


def rows_of(count: int) -> list[str]:
    return [f"Row {number}" for number in range(count)]


# What a server does wrong

# Of a row that is turned away nothing is told: it waits for its turn, with all others.
_COMES_AGAIN = {"rate_limited", "rate_limited_no_header"}
# A body that comes whole has no middle in which pings could hide that nothing comes, and an error
# or a broken line of a stream is one of a body; what then differs is in the words alone.
_OTHER_WORDS = {
    *("cut", "reset", "end_early", "done_without_finish", "error_in_stream", "event_error"),
    *("error_first_in_stream", "old_vllm_error", "field_error", "raw_line", "stall"),
    *(
        "close_before_headers",
        "stall_pings",
        "malformed_json",
        "invalid_utf8",
        "empty_stream",
        "null_finish",
    ),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_fault_of_a_row_is_that_of_a_cell(
    name: str, provider: None, server: ScriptedServer
) -> None:
    server.enqueue(*[FAULTS[name]] * 2)
    with pytest.raises(LLMError) as cell:
        llm_magic.ask("Hello")
    asked = len(server.requests)
    server.reset()
    server.enqueue(*[FAULTS[name]] * 2)
    told = fault_of_a_row()

    if name in _COMES_AGAIN:
        assert told == "None"
        assert len(server.requests) == 3
        return
    assert told not in ("", "None")
    assert KEY not in told
    # Where nothing is streamed, an error in a stream is one in its place, which may be retried.
    assert len(server.requests) == asked or "error" in name
    if name not in _OTHER_WORDS:
        # A row's words are nowhere else.
        words = str(cell.value.args[0]).replace("; what came is in sys.last_value.text", "")
        assert " ".join(words.split()) in told


def fault_of_a_row() -> str:
    """What stands in ``_error``, or why nothing could be asked."""
    try:
        (row,) = llm_magic.map_rows(["Hello"], "{{ text }}")
    except LLMError as error:
        return " ".join(str(error.args[0]).split())
    assert (row["answer"] is None) == (row["_error"] is not None)
    return str(row["_error"])


@pytest.mark.parametrize("name", sorted(QUIRKS))
def test_what_is_harmless_in_a_cell_is_so_in_a_row(
    name: str, provider: None, server: ScriptedServer
) -> None:
    server.enqueue(QUIRKS[name])
    expected = llm_magic.ask("Hello").text
    server.enqueue(QUIRKS[name])

    (row,) = llm_magic.map_rows(["Hello"], "{{ text }}")

    assert row["_error"] is None
    assert row["answer"] == expected


def test_a_row_is_not_streamed_and_its_body_is_else_that_of_a_cell(
    provider: None, server: ScriptedServer
) -> None:
    llm_magic.ask("Hello", system="Be brief.", temperature=0.5, params={"top_p": 0.9})
    options: dict[str, Any] = {"system": "Be brief.", "temperature": 0.5, "params": {"top_p": 0.9}}
    llm_magic.map_rows(["Hello"], "{{ text }}", **options)

    cell, row = (dict(request.body) for request in server.requests)
    assert cell.pop("stream") is True
    cell.pop("stream_options")
    assert row == cell
    ours, theirs = (request.headers for request in server.requests)
    assert theirs["authorization"] == ours["authorization"] == f"Bearer {KEY}"


def test_a_server_that_streams_all_the_same_is_understood(
    provider: None, server: ScriptedServer
) -> None:
    stream = (
        b'data: {"model": "m", "choices": [{"index": 0, "delta": {"content": "Four"}}]}\n\n'
        b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
        b"data: [DONE]\n\n"
    )
    server.enqueue(Reply(raw=stream, raw_type="text/event-stream"))

    (row,) = llm_magic.map_rows(["Hello"], "{{ text }}")

    assert (row["answer"], row["_error"]) == ("Four", None)


def test_a_refused_field_is_given_up_for_all_rows(provider: None, server: ScriptedServer) -> None:
    server.enqueue(FAULTS["rejects_response_format"])

    results = llm_magic.map_rows(rows_of(5), "{{ text }}", schema=dict[str, int], concurrency=1)

    assert len(server.requests) >= 6
    assert "response_format" in server.requests[0].body
    assert server.requests[-1].body.get("response_format") != server.requests[0].body.get(
        "response_format"
    )
    assert len(results) == 5


def test_connections_are_kept(provider: None, server: ScriptedServer) -> None:
    llm_magic.map_rows(rows_of(40), "{{ text }}", concurrency=4)

    assert len(server.requests) == 40
    assert len({request.connection for request in server.requests}) == 4


def test_no_more_are_on_their_way_than_was_said(provider: None, server: ScriptedServer) -> None:
    server.enqueue(*[Reply("Fine.", delay=0.5)] * 12)
    thread = threading.Thread(
        target=llm_magic.map_rows,
        args=(rows_of(12), "{{ text }}"),
        kwargs={"concurrency": 3, "quiet": True},
    )
    thread.start()
    server.wait_for_requests(3)
    first = [request for request in server.requests if not request.finished.is_set()]
    thread.join()

    assert len(first) == 3
    assert len({request.connection for request in server.requests}) == 3


def test_few_more_rows_hold_their_worst_case_than_are_at_the_server(
    provider: None, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that is killed has them all counted, and others have no room for theirs."""
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "1000")
    server.enqueue(*[Reply("Fine.", delay=1)] * 2)
    thread = threading.Thread(
        target=llm_magic.map_rows,
        args=(rows_of(400), "{{ text }}"),
        kwargs={"concurrency": 2, "quiet": True},
    )
    thread.start()
    server.wait_for_requests(2)
    assert session._session is not None
    quota, terms = session._session.desk.quota, session._session.desk.terms(Wish(), "")
    ((_, held),) = quota.wait(quota.ledger.standing, terms.limits)
    thread.join()

    assert 2 <= held <= 2 + AHEAD
    ((_, used),) = quota.wait(quota.ledger.standing, terms.limits)
    assert used == 400


# Once


@pytest.mark.parametrize("options", [{}, {"no_cache": True}, {"fresh": True}])
def test_equal_rows_are_asked_once(
    options: dict[str, Any], keeping: None, provider: None, server: ScriptedServer
) -> None:
    results = llm_magic.map_rows(["a", "b", "a", "a", "b"], "{{ text }}", **options)

    assert len(server.requests) == 2
    assert [row["_cached"] for row in results] == [False, False, True, True, True]
    assert [row["answer"] for row in results] == ["This is a scripted answer."] * 5
    found = llm_magic.totals(results)
    assert (found.asked, found.equal, found.cached) == (2, 3, 0)


def test_rows_that_differ_in_what_the_prompt_does_not_use_are_equal(
    provider: None, server: ScriptedServer
) -> None:
    rows = [{"text": "same", "n": 1}, {"text": "same", "n": 2}]

    llm_magic.map_rows(rows, "{{ text }}")

    assert len(server.requests) == 1


def test_an_equal_row_fails_as_the_first(provider: None, server: ScriptedServer) -> None:
    server.enqueue(FAULTS["refusal"])

    one, other = llm_magic.map_rows(["a", "a"], "{{ text }}")

    assert one["_error"] == other["_error"]
    assert "declined" in one["_error"]
    assert len(server.requests) == 1


def test_a_cell_has_its_answer_from_a_row_and_a_row_from_a_cell(
    keeping: None, provider: None, server: ScriptedServer
) -> None:
    llm_magic.ask("Row 0")
    results = llm_magic.map_rows(rows_of(2), "{{ text }}")
    again = llm_magic.ask("Row 1")

    assert len(server.requests) == 2
    assert [row["_cached"] for row in results] == [True, False]
    assert again.cached


def test_fresh_asks_again_and_no_cache_keeps_nothing(
    keeping: None, provider: None, server: ScriptedServer
) -> None:
    llm_magic.map_rows(rows_of(3), "{{ text }}", no_cache=True)
    llm_magic.map_rows(rows_of(3), "{{ text }}")
    assert len(server.requests) == 6

    server.enqueue(*[Reply("New.")] * 3)
    llm_magic.map_rows(rows_of(3), "{{ text }}", fresh=True)
    last = llm_magic.map_rows(rows_of(3), "{{ text }}")

    assert len(server.requests) == 9
    assert [row["answer"] for row in last] == ["New."] * 3


def test_two_runs_at_once_pay_an_equal_row_once(
    keeping: None, provider: None, server: ScriptedServer
) -> None:
    server.enqueue(*[Reply("Fine.", delay=0.2)] * 10)
    found: list[Any] = []

    def run() -> None:
        found.append(llm_magic.map_rows(rows_of(10), "{{ text }}", quiet=True))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert len(server.requests) == 10
    assert all(row["answer"] == "Fine." for results in found for row in results)
    paid = sum(not row["_cached"] for results in found for row in results)
    assert paid == 10


# What a row costs


def test_cost_and_usage_add_up(
    provider: None, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_PRICES", '{"scripted-model": {"input": 1, "output": 2}}')
    server.enqueue(*[Reply("Fine.", prompt_tokens=100, completion_tokens=50)] * 4)

    results = llm_magic.map_rows(["a", "b", "c", "d", "a"], "{{ text }}", concurrency=1)

    found = llm_magic.totals(results)
    assert (found.usage.input_tokens, found.usage.output_tokens) == (400, 200)
    assert [row["_cost"] for row in results] == pytest.approx([0.0002] * 4 + [0.0])
    assert float(found.cost or 0) == pytest.approx(0.0008)
    assert float(llm_magic.usage()["usd"].sum()) == pytest.approx(0.0008)


def test_a_price_that_is_not_known_is_none_and_never_nothing(
    provider: None, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By another name the machine itself is a server elsewhere, which costs something.
    monkeypatch.setenv("LLM_MAGIC_PRICES", '{"another": {"input": 1, "output": 2}}')
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("127.0.0.1", "127.0.0.1.nip.invalid"))
    results = None
    with pytest.raises(LLMError):
        results = llm_magic.map_rows(["a"], "{{ text }}", max_cost=1)

    assert results is None
    assert server.requests == []


# From where it is called


def test_from_a_running_loop_and_its_threads(provider: None, server: ScriptedServer) -> None:
    async def main() -> Any:
        return await asyncio.to_thread(llm_magic.map_rows, rows_of(3), "{{ text }}")

    assert len(asyncio.run(main())) == 3


def test_a_template_that_asks_a_model_itself(
    keeping: None, terminal: Terminal, server: ScriptedServer
) -> None:
    """Templates are rendered on a thread, where a call may wait for the loop."""
    terminal.run("import llm_magic\ndef shorter(text): return llm_magic.ask('Shorten: ' + text)")
    terminal["rows"] = rows_of(2)

    ran = terminal.run("%%llm_map rows results <<\n{{ shorter(text) }}")

    assert ran.error is None
    assert [row["_error"] for row in terminal["results"]] == [None, None]
    assert len(server.requests) == 3


@pytest.mark.parametrize("wrong", [0, -1, "many", None, 2.5j])
def test_a_concurrency_that_is_none_is_refused(wrong: Any, provider: None) -> None:
    with pytest.raises(llm_magic.errors.PromptError, match="concurrency"):
        llm_magic.map_rows(["a"], "{{ text }}", concurrency=wrong)


def test_without_a_key_stored_rows_are_found_and_the_others_refused(
    keeping: None, provider: None, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm_magic.map_rows(rows_of(2), "{{ text }}")
    assert session._session is not None
    end_session()
    monkeypatch.delenv("OPENAI_API_KEY")

    results = llm_magic.map_rows(rows_of(2), "{{ text }}")

    assert [row["_cached"] for row in results] == [True, True]


# When nothing comes of it


def test_a_server_that_answers_no_row_fails_the_cell_and_binds_what_is_known(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal["rows"] = rows_of(3)
    server.enqueue(*[FAULTS["bad_gateway_html"]] * 6)

    ran = terminal.run("%%llm_map rows results <<\n{{ text }}")

    assert type(ran.error).__name__ == "ProviderError"
    assert "None of 3 rows has an answer" in ran.out
    assert all("502" in row["_error"] for row in terminal["results"])


def test_a_server_that_answers_no_row_is_told_of_in_a_script(
    provider: None, server: ScriptedServer
) -> None:
    server.enqueue(*[FAULTS["bad_gateway_html"]] * 6)

    with pytest.warns(llm_magic.errors.RowsWarning, match="None of 3 rows has an answer"):
        results = llm_magic.map_rows(rows_of(3), "{{ text }}")

    assert all("502" in row["_error"] for row in results)


def test_rows_that_a_model_declines_are_a_result(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal["rows"] = rows_of(2)
    server.enqueue(*[FAULTS["refusal"]] * 2)

    ran = terminal.run("%%llm_map rows results <<\n{{ text }}")

    assert ran.error is None
    assert all("declined" in row["_error"] for row in terminal["results"])
