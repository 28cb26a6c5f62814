"""Limits, prices and usage, as a person meets them in cells."""

import json
import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import llm_magic
from llm_magic import session, sharing
from llm_magic.errors import Interrupted, PromptError, QuotaExceeded, StoreError
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import Terminal, end_session, interrupted_when

PRICES = {"scripted-model": {"input": 1, "output": 2}}


@pytest.fixture
def priced(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal whose model has a price."""
    monkeypatch.setenv("LLM_MAGIC_PRICES", json.dumps(PRICES))
    return terminal


def used(terminal: Terminal, limit: str) -> str:
    """What a line of %llm_quota says is used."""
    line = next(line for line in terminal.run("%llm_quota").out.splitlines() if limit in line)
    return re.split(r"\s{2,}", line)[2]


def restart(terminal: Terminal) -> None:
    end_session()
    terminal.run("%load_ext llm_magic")


def test_fifty_requests_an_hour_is_where_it_starts(
    terminal: Terminal, server: ScriptedServer
) -> None:
    ran = [terminal.run(f"%llm Number {n}") for n in range(51)]

    assert all(each.error is None for each in ran[:50])
    assert type(ran[50].error) is QuotaExceeded
    assert len(server.requests) == 50
    assert "50 of 50 requests in 1 h" in ran[50].out
    assert "It fits again at" in ran[50].out
    assert len(ran[50].error._render_traceback_()) <= 3
    # The command that the message names does what it says.
    assert terminal.run("%llm_quota --requests 100").error is None
    assert terminal.run("%llm Number 51").error is None


def test_what_is_kept_counts_nothing(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    terminal.run("%llm_quota --requests 1")
    ran = [terminal.run("%llm Hello") for _ in range(5)]

    assert all(each.error is None for each in ran)
    assert len(server.requests) == 1
    assert used(terminal, "requests") == "1"


@pytest.mark.parametrize(
    "name", ["server_error", "rate_limited_long", "bad_key", "context_too_long", "unknown_model"]
)
def test_what_the_server_turned_away_counts_nothing(
    name: str, terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue(*[FAULTS[name]] * 3)
    assert terminal.run("%llm -m scripted-model Hello").error
    assert used(terminal, "requests") == "0"


def test_retries_are_one_request(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(FAULTS["unavailable"], FAULTS["unavailable"])
    terminal.run("%llm_quota --requests 1")

    assert terminal.run("%llm Hello").error is None
    assert len(server.requests) == 3
    assert used(terminal, "requests") == "1"


def test_a_limit_in_tokens(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm_quota --tokens 1000")
    first = terminal.run("%llm -m scripted-model --max-tokens 200 Hello").value
    sent = server.requests[0].raw
    left = 1000 - first.usage.total_tokens
    # The bytes of a request bound its tokens; a cap of four digits makes it one byte longer.
    fits = left - len(sent) - len("Again") + len("Hello")

    assert terminal.run(f"%llm -m scripted-model --max-tokens {fits + 1} Again").error
    assert terminal.run(f"%llm -m scripted-model --max-tokens {fits} Again").error is None
    assert len(server.requests) == 2


def test_under_a_limit_an_answer_without_a_cap_gets_one(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    terminal.run("%llm Hello")
    terminal.run("%llm_quota --tokens 5000")
    terminal.run("%llm Other")
    again = terminal.run("%llm Hello").value

    assert "max_tokens" not in server.requests[0].body
    assert 256 <= server.requests[1].body["max_tokens"] < 5000
    # The cap of the moment is no part of the key, so the budget left does not cost an answer.
    assert again.cached
    assert terminal.run("%llm_quota --tokens none").error is None
    assert terminal.run("%llm Other").value.cached


def test_a_budget_in_usd_is_shown_and_kept(priced: Terminal, server: ScriptedServer) -> None:
    priced.run("%llm_quota --usd 0.001 --per kernel")
    shown = priced.run("%llm --max-tokens 100 Hello")
    cost = shown.value.cost
    refused = priced.run("%llm --max-tokens 500 Hello")

    assert cost == Decimal(shown.value.usage.input_tokens + 2 * 7) / 10**6
    assert "· session $0.0000" in shown.out
    assert "of $0.001" in shown.out
    assert type(refused.error) is QuotaExceeded
    assert refused.error.cap == Decimal("0.001")
    assert refused.error.used == cost
    assert refused.error.asked > Decimal("0.001")
    assert refused.error.retry_at is None
    assert len(server.requests) == 1


def test_an_unknown_price_under_a_limit_in_usd_is_refused_with_the_setting(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url.replace("127.0.0.1", "far.localhost")
    session.current().routes[url] = server.url
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    terminal.run("%llm_quota --usd 1")
    refused = terminal.run("%llm -m scripted-model Hello")

    assert type(refused.error) is QuotaExceeded
    assert "price of scripted-model is not known" in refused.out
    setting = re.search(r"%config LLMMagic.prices = .*", refused.out)
    assert setting
    terminal.run(setting[0])
    assert terminal.run("%llm -m scripted-model Hello").error is None


def test_max_cost(priced: Terminal, server: ScriptedServer) -> None:
    refused = priced.run("%llm --max-cost 0.0001 --max-tokens 100 Hello")
    allowed = priced.run("%llm --max-cost $0.01 --max-tokens 100 Hello")
    capped = priced.run("%llm --max-cost 0.001 Hello again")

    assert type(refused.error) is QuotaExceeded
    assert "--max-cost 0.0001" in refused.out
    assert allowed.error is None
    assert capped.error is None
    assert server.requests[1].body["max_tokens"] < 500
    with pytest.raises(QuotaExceeded):
        llm_magic.ask("Hello", max_tokens=100, max_cost=0.0001)


@pytest.mark.parametrize("amount", ["much", "-1", "nan", "1e", "$"])
def test_max_cost_that_is_no_amount(amount: str, priced: Terminal, server: ScriptedServer) -> None:
    assert type(priced.run(f"%llm --max-cost {amount} Hello").error) is PromptError
    assert server.requests == []


def test_a_person_s_limit_holds_in_the_next_kernel(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%llm_quota --requests 2 --scope user --per 1d")
    terminal.run("%llm One")
    restart(terminal)
    terminal.run("%llm Two")
    restart(terminal)
    refused = terminal.run("%llm Three")

    assert type(refused.error) is QuotaExceeded
    assert refused.error.scope == "user"
    assert "--scope user" in refused.out
    assert len(server.requests) == 2
    # The command that is shown raises the very limit that was in the way.
    assert "--requests 4 --per 1d --scope user" in refused.out
    # The kernel's own limit began anew with each.
    assert used(terminal, "this kernel") == "0"
    terminal.run("%llm_quota --reset --scope user")
    assert terminal.run("%llm Three").error is None


def test_a_person_s_limits_of_several_windows_hold_together(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%llm_quota --requests 5 --scope user --per 30d")
    shown = terminal.run("%llm_quota --requests 1 --scope user --per 1h").out
    assert "requests in 30 d" in shown
    assert "requests in 1 h" in shown
    terminal.run("%llm One")
    assert "in 1 h" in terminal.run("%llm Two").out
    # Taken away, whatever their windows.
    assert "all kernels" not in terminal.run("%llm_quota --requests none --scope user").out
    assert terminal.run("%llm Two").error is None


def test_a_day_s_budget_is_a_setting(
    priced: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_USER_USD_PER_DAY", "0.001")
    shown = priced.run("%llm --max-tokens 100 Hello")
    restart(priced)
    refused = priced.run("%llm --max-tokens 500 Other")

    assert "· today $0.0000" in shown.out
    assert type(refused.error) is QuotaExceeded
    assert refused.error.used == shown.value.cost


def test_limits_are_settings(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "1")
    monkeypatch.setenv("LLM_MAGIC_QUOTA_WINDOW", "kernel")
    assert terminal.run("%llm One").error is None
    refused = terminal.run("%llm Two")
    assert "1 of 1 request since it started" in refused.out
    assert refused.error.retry_at is None
    terminal.run("%config LLMMagic.quota_requests = None")
    assert terminal.run("%llm Two").error is None


def test_an_interrupted_call_is_booked_in_full(priced: Terminal, server: ScriptedServer) -> None:
    """What the provider counted until then, nobody tells."""
    priced.run("%llm_quota --usd 1 --tokens 100000")
    server.enqueue(Reply("Some words. " * 50, tokens_per_second=50))
    ran, _ = interrupted_when(
        lambda: bool(server.requests) and server.requests[0].sent_chunks >= 5,
        lambda: priced.run("%llm --max-tokens 1000 Hello"),
    )
    assert type(ran.error) is Interrupted
    bound = len(server.requests[0].raw) + 1000

    assert used(priced, "tokens") == f"{bound:,}"
    restart(priced)
    assert used(priced, "requests") == "0"


def test_usage_by_model_day_and_cell(
    priced: Terminal, server: ScriptedServer, keeping: None
) -> None:
    priced.run("%llm -m scripted-model Hello")
    priced.run("%llm -m scripted-model Hello")
    priced.run("%llm -m another Hello")
    by_model = priced.run("%llm_usage").out
    by_cell = priced.run("%llm_usage --by cell").out
    by_day = priced.run("%llm_usage --by day").out

    for words in ("scripted-model", "another", "total", "free answers", "saved"):
        assert words in by_model
    # What is left of each limit, with a bar.
    assert "░░░░ 4 %" in by_model
    assert "4 %  requests in 1 h (this kernel): 2 of 50" in by_model
    cells = [line.split("  ")[0] for line in by_cell.splitlines() if line.startswith("In [")]
    assert sorted(cells) == ["In [2]", "In [3]", "In [4]"]
    assert re.search(r"20\d\d-\d\d-\d\d", by_day)


def test_usage_as_a_frame(priced: Terminal, server: ScriptedServer, keeping: None) -> None:
    first = llm_magic.ask("Hello", model="scripted-model")
    llm_magic.ask("Hello", model="scripted-model")
    frame = llm_magic.usage()
    row = frame.loc["scripted-model"]

    assert (row.requests, row.hits) == (1, 1)
    assert row.input_tokens == first.usage.input_tokens
    assert row.usd == pytest.approx(float(first.cost or 0))
    assert row.saved_usd == row.usd
    assert list(llm_magic.usage("day").index.names) == ["day"]


def test_usage_lasts_longer_than_a_kernel(priced: Terminal, keeping: None) -> None:
    priced.run("%llm -m scripted-model Hello")
    priced.run("%llm -m scripted-model Hello")
    restart(priced)

    assert llm_magic.usage().loc["scripted-model", "hits"] == 1
    assert "Nothing was asked yet" in priced.run("%llm_usage --by cell").out


def test_quota_from_python(terminal: Terminal, server: ScriptedServer) -> None:
    table = llm_magic.quota(requests=1, per="30min")

    assert "requests in 30 min" in repr(table)
    assert "<table>" in table._repr_html_()
    llm_magic.ask("One")
    with pytest.raises(QuotaExceeded):
        llm_magic.ask("Two")
    llm_magic.quota(reset=True)
    llm_magic.ask("Two")
    with pytest.raises(PromptError, match="scope='galaxy'"):
        llm_magic.quota(requests=1, scope="galaxy")  # type: ignore[arg-type]
    llm_magic.quota(requests="none")
    assert "No limit is set" in repr(llm_magic.quota())


@pytest.mark.parametrize(
    "line",
    [
        "--requests many",
        "--requests 1.5",
        "--requests -1",
        "--usd lots",
        "--usd nan",
        "--usd 1 --per soon",
        "--usd 1 --per 0s",
        "--usd 1 --per 0.0000001s --scope user",
        "--usd 1 --per 9999999999d --scope user",
        "--per 1h",
        "--requests 5 --scope user --per kernel",
        "--scope team --requests 1",
        "--rquests 5",
        "five",
        "--requests 'five",
    ],
)
def test_a_wrong_limit_changes_nothing(line: str, terminal: Terminal) -> None:
    before = terminal.run("%llm_quota").out
    ran = terminal.run(f"%llm_quota {line}")

    assert type(ran.error) is PromptError
    assert len(ran.error._render_traceback_()) <= 3
    after = terminal.run("%llm_quota").out
    assert after.split("\n", 1)[1:] == before.split("\n", 1)[1:]


def test_dry_run_says_what_it_would_come_to(
    priced: Terminal, server: ScriptedServer, keeping: None
) -> None:
    line = "%llm -m scripted-model --max-tokens 100 {} Hello"
    before = priced.run(line.format("--dry-run")).out
    priced.run(line.format(""))
    after = priced.run(line.format("--dry-run")).out

    bound = len(server.requests[0].raw)
    most = Decimal(bound + 200) / 10**6
    assert f"At most {bound} tokens in, 100 out, at most ${most:.2g}" in before
    assert "Not in the cache" in before
    assert "Answered already" in after
    assert "costs nothing" in after
    assert len(server.requests) == 1
    assert used(priced, "requests") == "1"


def test_dry_run_says_what_would_be_refused(priced: Terminal, server: ScriptedServer) -> None:
    ran = priced.run("%llm -m scripted-model --dry-run --max-tokens 500 --max-cost 0.0001 Hello")

    assert "it would be refused" in ran.out
    assert server.requests == []


def test_dry_run_says_which_limit_it_would_pass(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    terminal.run("%llm_quota --requests 1")
    terminal.run("%llm -m scripted-model Hello")
    said = terminal.run("%llm -m scripted-model --dry-run Other").out

    assert "it would be refused: This kernel has used 1 of 1 request in 1 h" in said
    assert "costs nothing" in terminal.run("%llm -m scripted-model --dry-run Hello").out
    assert len(server.requests) == 1


def broken_by(break_it: Callable[[Path], None], terminal: Terminal) -> Any:
    terminal.run("%llm First")
    end_session()
    terminal.run("%load_ext llm_magic")
    break_it(Path("ledger"))
    return terminal.run("%llm Second")


def open_to_all(folder: Path) -> None:
    folder.chmod(0o777)


def damaged(folder: Path) -> None:
    for path in folder.glob("ledger.db*"):
        path.unlink()
    (folder / "ledger.db").write_bytes(os.urandom(20_000))
    (folder / "ledger.db").chmod(0o600)


@pytest.mark.parametrize("break_it", [open_to_all, damaged])
def test_without_a_ledger_nothing_is_asked(
    break_it: Callable[[Path], None],
    terminal: Terminal,
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = broken_by(break_it, terminal)

    assert type(refused.error) is StoreError
    assert len(refused.error._render_traceback_()) <= 3
    assert len(server.requests) == 1
    # Unless the user wants it so.
    monkeypatch.setenv("LLM_MAGIC_QUOTA_STRICT", "0")
    with pytest.warns(match="ledger"):
        assert terminal.run("%llm Second").error is None
    assert len(server.requests) == 2


def test_a_damaged_ledger_begins_anew_on_command(
    terminal: Terminal, server: ScriptedServer
) -> None:
    refused = broken_by(damaged, terminal)
    command = re.search(r"%llm_quota --reset", refused.out)

    assert command
    assert terminal.run(command[0]).error is None
    assert terminal.run("%llm Second").error is None


def test_the_hub_s_user_or_the_login_is_the_person(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharing.person({"JUPYTERHUB_USER": "anna"}) == "anna"
    monkeypatch.setenv("LOGNAME", "ben")
    assert sharing.person({}) == "ben"


def test_a_wrong_table_of_prices_says_so(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%config LLMMagic.prices = {'scripted-model': {'inptu': 1}}")
    ran = terminal.run("%llm Hello")

    assert type(ran.error) is PromptError
    assert "input" in ran.out
    assert server.requests == []
