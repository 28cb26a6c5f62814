"""What a booked call and a cached answer cost in Redis and in Valkey: one run, medians, ratios.

    python benchmarks/redis_store.py          everything, about half a minute
    python benchmarks/redis_store.py quick    fewer calls and repeats

A booking is a hold and a settle, beside INCR and EXPIRE by the same library on a connection with
the same settings, in turns. A hit is a whole `llm_magic.ask()` or cell. Each kind of server that is
installed is started for it on loopback, with an append-only file.
"""

from __future__ import annotations

import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from redis_servers import KINDS, RedisServer, binary  # noqa: E402
from report import QUICK, Report  # noqa: E402

from llm_magic.ledger import Amount, Claim, Limit, Used  # noqa: E402
from llm_magic.stores.memory import MemoryCache  # noqa: E402
from llm_magic.stores.redis.cache import RedisCache  # noqa: E402
from llm_magic.stores.redis.ledger import RedisLedger  # noqa: E402
from llm_magic.stores.redis.server import Server  # noqa: E402

TURNS = 300 if QUICK else 2000
IN_WINDOW = 10_000 if QUICK else 100_000
AT_ONCE = 64
PATIENCE = 0.3
LIMITS = [
    Limit("kernel", "requests", 10**9, 3600.0),
    Limit("kernel", "tokens", 10**12, 3600.0),
    Limit("user", "usd", 10**15, 86_400.0),
]
USED = Used(Amount(1, 500, 500), "bench", 400, 100)
ANSWER = "This is the answer, in some words. " * 60


def medians(*sides: Callable[[int], object], turns: int) -> list[float]:
    """Median seconds of each side, which take turns."""
    taken: list[list[float]] = [[] for _ in sides]
    for turn in range(turns):
        for side, seconds in zip(sides, taken, strict=True):
            began = time.perf_counter()
            side(turn)
            seconds.append(time.perf_counter() - began)
    # The first ones load the library and the scripts.
    return [statistics.median(seconds[turns // 20 :]) for seconds in taken]


def plain_client(server: RedisServer) -> Any:
    """The library with the settings of our own connection."""
    again = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
    return server.client(
        socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=again, protocol=2
    )


def claim(name: str) -> Claim:
    """A call as a cell books it."""
    return Claim(name, Amount(1, 1000, 1000), f"key of {name}", "bench", "In [1]")


def bookings(report: Report, server: RedisServer, kind: str) -> None:
    """A hold and a settle, with few calls in the window and with many."""
    client = plain_client(server)
    connection = Server(server.url, "", PATIENCE)
    ledger = RedisLedger(connection, kernel="bench", user="ada")
    numbers = itertools.count()

    def bare(_: int) -> None:
        client.incr("llm_magic:bare")
        client.expire("llm_magic:bare", 3600)

    def ours(_: int) -> None:
        name = f"one {next(numbers)}"
        assert ledger.hold(claim(name), LIMITS) == "held"
        ledger.settle(name, USED)

    def together(_: int) -> None:
        names = [f"many {next(numbers)}" for _ in range(AT_ONCE)]
        held = ledger.hold_many([claim(name) for name in names], LIMITS)
        assert held == ["held"] * AT_ONCE
        ledger.settle_many([(name, USED) for name in names])

    def measured(words: str, in_window: int) -> None:
        one, other = medians(bare, ours, turns=TURNS)
        one_again, many = medians(bare, together, turns=TURNS // 20)
        peer = "INCR + EXPIRE"
        work = f"{kind}, hold + settle, {words}"
        report.add(work, other, "s", peer, one, "Redis booking")
        # Each call of them, beside one INCR and EXPIRE.
        each = f"  each of {AT_ONCE} at once"
        report.add(each, many / AT_ONCE, "s", peer, one_again, "Redis booking")
        report.point("window", kind, in_window, other)

    measured("few calls", 100)
    while next(numbers) < IN_WINDOW:
        together(0)
    measured(f"{IN_WINDOW:,} calls", IN_WINDOW)
    ledger.close()
    client.close()


def hits(report: Report, server: RedisServer, kind: str) -> None:
    """A cached answer: the row alone, a call of a script, and a cell."""
    import llm_magic
    from llm_magic import session
    from llm_magic.testing import ScriptedServer

    question = "which of these columns looks wrong? " * 10
    prompts = [f"Question {n}: {question}".strip() for n in range(20)]
    connection = Server(server.url, "", PATIENCE)
    cache = RedisCache(
        connection, "bench", ttl=None, spare=MemoryCache(), trouble=lambda message, fix: None
    )
    cache.put("key", os.urandom(1000))
    client = plain_client(server)
    with ScriptedServer(default=ANSWER) as provider, tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "LLM_MAGIC_STORE": server.url,
            "LLM_MAGIC_BASE_URL": provider.url,
            "LLM_MAGIC_MODEL": "bench",
            "LLM_MAGIC_CACHE_DIR": f"{folder}/cache",
            "LLM_MAGIC_LEDGER_DIR": f"{folder}/ledger",
            "OPENAI_API_KEY": "bench",
        }
        shell = notebook(folder)
        for prompt in prompts:
            llm_magic.ask(prompt)

        def row(_: int) -> None:
            assert cache.get("key")

        def get(_: int) -> None:
            assert client.get("llm_magic:cache:bench:key")

        def ask(turn: int) -> None:
            assert llm_magic.ask(prompts[turn % len(prompts)]).cached

        def cell(turn: int) -> None:
            with redirect_stdout(io.StringIO()):
                ran = shell.run_cell(f"%%llm\n{prompts[turn % len(prompts)]}")
            assert ran.success

        bare, alone = medians(get, row, turns=TURNS)
        whole, typed = medians(ask, cell, turns=TURNS // 4)
        assert len(provider.requests) == len(prompts)
        if session._session is not None:
            session._session.close()
            session._session = None
    client.close()
    cache.close()
    report.add(f"{kind}, a kept row", alone, "s", "GET", bare, "Redis hit")
    report.add(f"{kind}, a hit of llm_magic.ask()", whole, "s", bar="Redis hit")
    report.add(f"{kind}, a hit of a %%llm cell", typed, "s", bar="Redis hit")


def notebook(folder: str) -> Any:
    """A shell with the extension loaded, which remembers nothing between runs."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    os.environ["IPYTHONDIR"] = folder
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    shell.run_line_magic("load_ext", "llm_magic")
    return shell


def main() -> int:
    """Every kind of server in turn."""
    report = Report("Redis and Valkey")
    for kind in KINDS:
        if binary(kind) is None:
            report.note(f"{kind}-server is not installed (apt-get install {kind}-server).")
            continue
        with RedisServer(kind, appendonly="yes", appendfsync="everysec") as server:
            with server.client() as client:
                said = client.info("server")
            name = kind.capitalize()
            report.versions[name] = said.get("valkey_version") or said["redis_version"]
            bookings(report, server, name)
            hits(report, server, name)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
