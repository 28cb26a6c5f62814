"""A run over rows that does not come to its end: Ctrl-C, kill -9, a limit; and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llm_magic
from llm_magic import rows
from llm_magic.window import MOST
from tests.conftest import Terminal, interrupted_when, provided
from tests.load import LoadServer

ROWS = 5_000


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadServer]:
    with LoadServer(latency=0.05, answer="Four stars.") as server:
        yield server


@pytest.fixture
def environment(loaded: LoadServer, monkeypatch: pytest.MonkeyPatch, keeping: None) -> LoadServer:
    """The load server as the provider; answers are kept."""
    provided(monkeypatch, loaded.url)
    loaded.set(latency=0.05)
    loaded.reset()
    return loaded


def until(done: Callable[[], bool], patience: float = 60.0) -> None:
    end = time.monotonic() + patience
    while not done():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


# A process of its own

PROGRAM = textwrap.dedent(
    f"""
    import json, sys, warnings
    import llm_magic

    warnings.simplefilter("ignore")
    at_once = json.loads(sys.argv[1])
    rows = [{{"text": f"Review {{number}}"}} for number in range({ROWS})]
    results = llm_magic.map_rows(rows, "Stars? {{{{ text }}}}", concurrency=at_once)
    totals = llm_magic.totals(results)
    print(json.dumps({{
        "answers": sum(row["answer"] == "Four stars." for row in results),
        "cached": totals.cached, "asked": totals.asked, "not sent": totals.not_sent,
        "errors": sorted({{row["_error"] for row in results if row["_error"]}}),
    }}))
    """
)


def begun(at_once: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(at_once)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.parametrize("at_once", [64, "auto"])
def test_a_killed_run_loses_at_most_what_was_on_its_way(
    environment: LoadServer, at_once: Any
) -> None:
    server = environment
    process = begun(at_once)
    until(lambda: server.stats()["answered"] > ROWS // 3)
    process.kill()
    process.communicate()
    killed = server.stats()
    assert ROWS // 3 < killed["requests"] < ROWS

    found = ended(begun(at_once))

    assert found["answers"] == ROWS
    assert found["cached"] + found["asked"] == ROWS
    lost = server.stats()["requests"] - ROWS
    # Some have their answer, which is not kept yet: the server no longer counts them.
    assert 0 <= lost <= (MOST if at_once == "auto" else at_once)


def test_what_a_killed_run_had_on_its_way_counts_as_used(
    environment: LoadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether the provider counted it."""
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", str(ROWS))
    process = begun(64)
    until(lambda: environment.stats()["answered"] > 500)
    process.kill()
    process.communicate()
    asked = environment.stats()["requests"]

    limits = subprocess.run(
        [sys.executable, "-c", "import llm_magic; print(llm_magic.usage())"],
        capture_output=True,
        text=True,
        check=True,
    )

    used = max(int(word.replace(",", "")) for word in limits.stdout.split() if word.isdigit())
    assert used >= asked


def test_ctrl_c_in_a_script_gives_the_rows_that_came(environment: LoadServer) -> None:
    process = begun(32)
    until(lambda: environment.stats()["answered"] > 300)
    process.send_signal(signal.SIGINT)

    found = ended(process)

    assert 300 <= found["answers"] < ROWS
    assert found["answers"] + found["not sent"] == ROWS
    assert found["errors"] == ["not sent: the run was stopped"]
    # Nothing that was paid for is lost: it was waited for.
    assert found["answers"] == environment.stats()["requests"]


# A terminal


@pytest.fixture
def shell(environment: LoadServer, bare_terminal: Terminal) -> Terminal:
    bare_terminal.run("%load_ext llm_magic")
    bare_terminal.run("import pandas as pd")
    bare_terminal.run("df = pd.DataFrame({'text': [f'Review {n}' for n in range(1200)]})")
    return bare_terminal


CELL = "%%llm_map df results << --concurrency 20\nStars? {{ text }}"


def test_ctrl_c_binds_what_came_and_raises(shell: Terminal, environment: LoadServer) -> None:
    ran, seconds = interrupted_when(
        lambda: environment.stats()["answered"] > 100, lambda: shell.run(CELL)
    )

    assert type(ran.error).__name__ == "Interrupted"
    assert seconds < 10
    results = shell["results"]
    assert len(results) == 1200
    came = results["_error"].isna()
    assert 100 <= came.sum() < 1200
    assert (results["answer"][came] == "Four stars.").all()
    assert set(results["_error"][~came]) == {"not sent: the run was stopped"}
    assert f"Stopped at {came.sum():,} of 1,200 rows" in ran.out
    assert "run the cell again to go on" in ran.out


def test_the_same_cell_again_pays_only_for_the_rest(
    shell: Terminal, environment: LoadServer
) -> None:
    interrupted_when(lambda: environment.stats()["answered"] > 100, lambda: shell.run(CELL))
    asked = environment.stats()["requests"]

    ran = shell.run(CELL)

    assert ran.error is None
    assert shell["results"]["_error"].isna().all()
    assert environment.stats()["requests"] == 1200
    assert shell["results"]["_cached"].sum() == asked


def test_a_second_ctrl_c_waits_for_nothing(
    shell: Terminal, environment: LoadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "GRACE", 30.0)
    environment.set(latency=60.0)

    def twice() -> bool:
        if environment.stats()["requests"] < 20:
            return False
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        return True

    ran, seconds = interrupted_when(twice, lambda: shell.run(CELL))

    # Nothing had come, so there is nothing to bind.
    assert type(ran.error).__name__ == "Interrupted"
    assert seconds < 10
    assert "results" not in shell.shell.user_ns


def test_ctrl_c_cuts_the_requests_that_take_too_long(
    shell: Terminal, environment: LoadServer
) -> None:
    environment.set(latency=60.0)

    ran, seconds = interrupted_when(
        lambda: environment.stats()["requests"] >= 20, lambda: shell.run(CELL)
    )

    assert type(ran.error).__name__ == "Interrupted"
    assert seconds < 10


def test_the_cell_after_a_stopped_run_works(shell: Terminal, environment: LoadServer) -> None:
    interrupted_when(lambda: environment.stats()["answered"] > 100, lambda: shell.run(CELL))

    ran = shell.run("%%llm_map df.head(3) few <<\nStars, in words? {{ text }}")

    assert ran.error is None
    assert list(shell["few"]["answer"]) == ["Four stars."] * 3


def test_a_limit_binds_what_came_names_the_command_and_raises(
    shell: Terminal, environment: LoadServer
) -> None:
    shell.run("%llm_quota --requests 40")

    ran = shell.run(CELL)

    assert type(ran.error).__name__ == "QuotaExceeded"
    assert shell["results"]["_error"].isna().sum() == 40
    assert environment.stats()["requests"] == 40
    assert "Stopped at 40 of 1,200 rows" in ran.out
    assert "%llm_quota --requests" in ran.out
    shell.run("%llm_quota --requests 60")
    shell.run(CELL)
    assert shell["results"]["_error"].isna().sum() == 60
    assert environment.stats()["requests"] == 60


def test_what_is_on_its_way_at_a_limit_is_waited_for(
    shell: Terminal, environment: LoadServer
) -> None:
    """However long it takes: it is paid for."""
    environment.set(latency=3.0)
    shell.run("%llm_quota --requests 30")

    shell.run(CELL.replace("20", "100"))

    assert shell["results"]["_error"].isna().sum() == 30


def test_retry_failed_asks_only_what_is_missing(shell: Terminal, environment: LoadServer) -> None:
    shell.run("%llm_quota --requests 40")
    shell.run(CELL)
    shell.run("%llm_quota --requests None")
    totals = llm_magic.totals(shell["results"])
    assert totals.not_sent == 1160

    whole = totals.retry_failed()

    assert len(whole) == 1200
    assert whole["_error"].isna().all()
    assert environment.stats()["requests"] == 1200
    assert llm_magic.totals(whole).rows == 1200
    assert llm_magic.totals(whole).asked == 1200
    # The former result stays as it is.
    assert shell["results"]["_error"].isna().sum() == 40


def test_rows_from_a_generator_stop_where_the_limit_is(
    environment: LoadServer, monkeypatch: pytest.MonkeyPatch, provider: None
) -> None:
    """A generator may have no end."""
    monkeypatch.setenv("OPENAI_BASE_URL", environment.url)
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "25")
    pulled = []

    def endless() -> Iterator[str]:
        number = 0
        while True:
            pulled.append(number)
            yield f"Review {number}"
            number += 1

    with pytest.warns(llm_magic.errors.RowsWarning, match="25 of 25 requests"):
        results = llm_magic.map_rows(endless(), "Stars? {{ text }}")

    assert results["answer"].notna().sum() == 25
    assert len(pulled) < 3_000


def test_nothing_of_a_run_is_left_in_a_folder_but_cache_and_ledger(
    environment: LoadServer, tmp_path: Path
) -> None:
    process = begun(64)
    until(lambda: environment.stats()["answered"] > 300)
    process.kill()
    process.communicate()

    assert {each.name for each in tmp_path.iterdir()} <= {"cache", "ledger", "ipython"}
