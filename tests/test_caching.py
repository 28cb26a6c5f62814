"""A repeat is free: what is kept, what is not, and what a cell shows of it."""

import asyncio
import re
import sqlite3
from decimal import Decimal
from pathlib import Path

import pytest

import llm_magic
from llm_magic import session
from llm_magic.errors import LLMError, ServerUnreachable
from llm_magic.testing import FAULTS, QUIRKS, Reply, ScriptedServer
from tests.conftest import KEY, Kernel, Terminal, end_session

pytestmark = pytest.mark.usefixtures("keeping")

PRICES = '{"scripted-model": {"input": 1000, "output": 2000}}'


@pytest.fixture
def priced(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal whose model has a price."""
    monkeypatch.setenv("LLM_MAGIC_PRICES", PRICES)
    return terminal


def rows_on_disk() -> int:
    file = Path("cache/cache.db")
    if not file.exists():
        return 0
    with sqlite3.connect(file) as database:
        count: int = database.execute("SELECT COUNT(*) FROM Cache").fetchone()[0]
    return count


def test_a_repeat_asks_nobody(priced: Terminal, server: ScriptedServer) -> None:
    first = priced.run("%%llm answer <<\nHello")
    again = priced.run("%%llm answer <<\nHello")

    assert len(server.requests) == 1
    assert again.value.text == first.value.text == priced["answer"]
    assert first.value.text in again.out
    assert (first.value.cached, again.value.cached) == (False, True)
    assert again.value.cost == 0
    assert again.value.saved == first.value.cost > 0
    assert again.value.usage == first.value.usage
    assert re.search(r"· cached just now · saved \$0\.\d+", again.out)


def test_after_a_restart_nothing_is_asked_and_openai_is_not_even_imported(
    server: ScriptedServer, tmp_path: Path
) -> None:
    shared = {
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": KEY,
        "LLM_MAGIC_CACHE_DIR": str(tmp_path / "cache"),
        "LLM_MAGIC_CACHE_SIZE": "1 GB",
        "LLM_MAGIC_MODEL": "scripted-model",
    }
    for turn in range(2):
        kernel = Kernel(watched=False, environment=shared)
        try:
            kernel.run("%load_ext llm_magic")
            shown = kernel.run("%%llm answer <<\nHello")
            assert not shown.of("error")
            kernel.run("response = _")
            assert kernel.value("answer") == "This is a scripted answer."
            assert kernel.value("response.cached") == bool(turn)
            assert kernel.value("'openai' in __import__('sys').modules") == (turn == 0)
        finally:
            kernel.stop()
    assert len(server.requests) == 1


def test_without_a_key_and_with_the_server_gone_the_answer_is_still_there(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = terminal.run("%llm -m scripted-model Hello")
    end_session()
    terminal.run("%load_ext llm_magic")
    monkeypatch.delenv("OPENAI_API_KEY")
    with server.refusing():
        again = terminal.run("%llm -m scripted-model Hello")

    assert again.error is None
    assert again.value.text == first.value.text


def test_another_question_is_asked(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm Hello")
    terminal.run("%llm Hello!")
    terminal.run("%llm -t 0 Hello")
    terminal.run("%llm -t 0.0 Hello")

    assert len(server.requests) == 3


def test_the_model_that_is_not_named_is_the_one_that_the_server_has_now(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    port = 0
    for model in ("old-model", "old-model", "new-model"):
        with ScriptedServer(models=[model], port=port) as server:
            port = int(server.url.rsplit(":")[-1].split("/")[0])
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            answers.append(terminal.run("%llm Hello").value)
            end_session()
            terminal.run("%load_ext llm_magic")

    assert [answer.model for answer in answers] == ["old-model", "old-model", "new-model"]
    assert [answer.cached for answer in answers] == [False, True, False]


def test_a_server_that_is_gone_is_taken_to_have_the_model_that_it_had(
    terminal: Terminal, server: ScriptedServer
) -> None:
    first = terminal.run("%llm Hello").value
    end_session()
    terminal.run("%load_ext llm_magic")
    with server.refusing():
        again = terminal.run("%llm Hello")
        other = terminal.run("%llm Something else")

    assert again.error is None
    assert (again.value.text, again.value.model) == (first.text, first.model)
    assert isinstance(other.error, ServerUnreachable)


def test_fresh_asks_again_and_replaces(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue("One.", "Two.")
    terminal.run("%llm Hello")
    fresh = terminal.run("%llm --fresh Hello").value
    after = terminal.run("%llm Hello").value

    assert len(server.requests) == 2
    assert (fresh.text, fresh.cached) == ("Two.", False)
    assert (after.text, after.cached) == ("Two.", True)


def test_no_cache_neither_reads_nor_writes(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue("One.", "Two.", "Three.")
    asked = [
        terminal.run(f"%llm {option} Hello").value.text
        for option in ("--no-cache", "", "--no-cache", "")
    ]

    assert asked == ["One.", "Two.", "Three.", "Two."]


def test_size_zero_keeps_nothing(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_CACHE_SIZE", "0")
    terminal.run("%llm Hello")
    terminal.run("%llm Hello")

    assert len(server.requests) == 2
    assert rows_on_disk() == 0


def test_an_old_answer_is_asked_anew_where_that_is_set(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%llm Hello")
    terminal.run("%config LLMMagic.cache_ttl = '1h'")
    assert terminal.run("%llm Hello").value.cached
    terminal.run("%config LLMMagic.cache_ttl = 1e-6")
    assert not terminal.run("%llm Hello").value.cached
    # The setting is no part of the key: without it the last answer counts again.
    terminal.run("%config LLMMagic.cache_ttl = None")
    assert terminal.run("%llm Hello").value.cached
    assert len(server.requests) == 2


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_only_whole_answers_are_kept(
    name: str, terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_RETRIES", "0")
    if "stall" in name:
        monkeypatch.setenv("LLM_MAGIC_TIMEOUT", "1.5")
        monkeypatch.setenv("LLM_MAGIC_STALL_TIMEOUT", "1.5")
    server.enqueue(FAULTS[name])

    failed = terminal.run("%llm -m scripted-model Hello")
    monkeypatch.setenv("LLM_MAGIC_TIMEOUT", "5")
    monkeypatch.setenv("LLM_MAGIC_STALL_TIMEOUT", "5")
    kept = rows_on_disk()
    again = terminal.run("%llm -m scripted-model Hello")

    assert isinstance(failed.error, LLMError)
    assert kept == 0
    assert again.error is None
    assert not again.value.cached
    assert len(server.requests) == 2
    assert rows_on_disk() == 1


@pytest.mark.parametrize("name", sorted(QUIRKS))
def test_an_odd_but_whole_answer_is_kept(
    name: str, terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue(QUIRKS[name])
    first = terminal.run("%llm -m scripted-model Hello")
    before = len(server.requests)
    again = terminal.run("%llm -m scripted-model Hello")

    assert first.error is None
    assert again.value.cached
    assert (again.value.text, again.value.reasoning) == (first.value.text, first.value.reasoning)
    assert len(server.requests) == before


def test_a_server_that_wants_the_cap_spelt_otherwise_is_asked_once(
    terminal: Terminal, server: ScriptedServer
) -> None:
    refusing = Reply("Whole.", rejects=("max_tokens",))
    server.enqueue(refusing, refusing)
    first = terminal.run("%llm --max-tokens 50 Hello")
    before = len(server.requests)
    end_session()
    terminal.run("%load_ext llm_magic")

    assert first.value.request["max_completion_tokens"] == 50
    assert terminal.run("%llm --max-tokens 50 Hello").value.cached
    assert len(server.requests) == before


def test_an_interrupted_call_keeps_nothing(server: ScriptedServer) -> None:
    server.enqueue(Reply("Some words. " * 50, tokens_per_second=50))

    async def main() -> None:
        task = asyncio.create_task(llm_magic.aask("Hello", model="m"))
        await asyncio.to_thread(server.wait_for_requests, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", server.url)
        asyncio.run(main())
        assert rows_on_disk() == 0
        assert not llm_magic.ask("Hello", model="m").cached
        end_session()


def test_from_python_too(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    first = llm_magic.ask("Hello")
    again = llm_magic.ask("Hello")
    awaited = asyncio.run(llm_magic.aask("Hello"))
    fresh = llm_magic.ask("Hello", fresh=True)
    apart = llm_magic.ask("Hello", no_cache=True)

    assert [each.cached for each in (first, again, awaited, fresh, apart)] == [
        False, True, True, False, False,
    ]  # fmt: skip
    assert len(server.requests) == 3


def test_an_unknown_price_is_said_and_never_zero(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A host that is not this machine by its name, and by its address is.
    url = server.url.replace("127.0.0.1", "far.localhost")
    session.current().routes[url] = server.url
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    first = terminal.run("%llm -m scripted-model Hello")
    again = terminal.run("%llm -m scripted-model Hello")

    assert first.value.cost is None
    assert "· price unknown ·" in first.out
    assert again.value.saved is None
    assert "cached just now · price unknown" in again.out
    assert "$" not in first.out + again.out


def test_the_price_is_that_of_the_tokens(priced: Terminal, server: ScriptedServer) -> None:
    response = priced.run("%llm Hello").value
    usage = response.usage

    assert response.cost == Decimal(usage.input_tokens + 2 * usage.output_tokens) / 1000


def test_what_the_provider_read_from_its_own_cache_is_shown_and_priced(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal["prices"] = {"scripted-model": {"input": 1000, "cached": 100, "output": 0}}
    terminal.run("%config LLMMagic.prices = prices")
    server.enqueue(Reply("Short.", prompt_tokens=100, cached_tokens=60))
    ran = terminal.run("%llm Hello")

    assert "(60 read from the provider's cache)" in ran.out
    assert ran.value.cost == Decimal(40 * 1000 + 60 * 100) / 10**6


def test_only_what_is_needed_is_in_the_file(terminal: Terminal) -> None:
    terminal.run("%llm A prompt to find")
    session.current().close()
    files = sorted(path.name for path in Path("cache").iterdir())

    assert files[0] == "cache.db"
    assert set(files) <= {"cache.db", "cache.db-wal", "cache.db-shm"}
    assert all(KEY.encode() not in path.read_bytes() for path in Path("cache").iterdir())
    assert oct(Path("cache").stat().st_mode & 0o777) == "0o700"
    assert all(path.stat().st_mode & 0o077 == 0 for path in Path("cache").iterdir())
