"""What a cached answer and a booked call cost: one run, medians, ratios.

    python benchmarks/keeping.py          everything, about a minute
    python benchmarks/keeping.py quick    fewer entries and repeats

A hit is `llm_magic.ask()` to its Response, beside a bare SQLite get and JSON parse of the same
value, and beside the cached calls of other libraries where `.venv/peers` has them.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

from report import QUICK, Report

from llm_magic.entries import Entry, fingerprint, pack
from llm_magic.ledger import Amount, Claim, Limit, Used
from llm_magic.stores.ledger import SqliteLedger
from llm_magic.types import Request, Usage

PEERS = Path(__file__).parent.parent / ".venv" / "peers" / "bin" / "python"
URL = "http://127.0.0.1:9/v1"
_VOWELS, _CONSONANTS = "aeiou", "bcdfghklmnprstvw"
random.seed(1)
WORDS = [
    "".join(random.choice(each) for each in (_CONSONANTS, _VOWELS) * random.randint(1, 4))
    for _ in range(3000)
]


def prompt(n: int) -> str:
    """A question of some 400 characters."""
    return f"Question {n}: " + "which of these columns looks wrong? " * 10


def answer(n: int) -> str:
    """A text of some 2 KB that compresses as English does."""
    random.seed(n)
    return " ".join(random.choices(WORDS, k=300))


def median(work: Callable[[int], object], turns: int) -> float:
    """Median seconds of a turn."""
    taken = []
    for turn in range(turns):
        began = time.perf_counter()
        work(turn)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def filled(folder: Path, count: int) -> None:
    """The cache and a bare table with the same answers."""
    from llm_magic.stores.disk import DiskCache

    cache = DiskCache(folder / "cache", limit=10**10)
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, value TEXT)")
    bare.execute("BEGIN")
    rows: list[tuple[str, bytes]] = []
    for n in range(count):
        message = {"role": "user", "content": prompt(n)}
        print_ = fingerprint(Request((message,), "bench", URL))
        usage = Usage(100, 400)
        entry = Entry(answer(n), "bench", "stop", usage, cost=Decimal("0.001"), time=time.time())
        rows.append((print_.key, pack(print_, entry)))
        if len(rows) == 500 or n == count - 1:
            cache.put_many(rows)
            rows = []
        value = {"request": json.loads(print_.canonical), **entry.plain()}
        bare.execute("INSERT INTO answers VALUES (?, ?)", (print_.key, json.dumps(value)))
    bare.execute("COMMIT")
    bare.close()
    cache.close()


def hits(count: int) -> None:
    """A hit with so many entries, each key the first time and again; in a process of its own."""
    import llm_magic

    folder = Path(tempfile.mkdtemp())
    filled(folder, count)
    os.environ |= {
        "LLM_MAGIC_CACHE_DIR": str(folder / "cache"),
        "LLM_MAGIC_LEDGER_DIR": str(folder / "ledger"),
        "LLM_MAGIC_CACHE_SIZE": "10 GB",
        "LLM_MAGIC_BASE_URL": URL,
        "LLM_MAGIC_MODEL": "bench",
    }
    bare = sqlite3.connect(folder / "bare.db")
    random.seed(2)
    chosen = [random.randrange(count) for _ in range(200 if QUICK else 1000)]
    prompts = [prompt(n) for n in chosen]
    keys = [
        fingerprint(Request(({"role": "user", "content": each},), "bench", URL)).key
        for each in prompts
    ]

    def ours(turn: int) -> None:
        assert llm_magic.ask(prompts[turn % len(prompts)]).cached

    def plain(turn: int) -> None:
        row = bare.execute("SELECT value FROM answers WHERE key = ?", (keys[turn % len(keys)],))
        json.loads(row.fetchone()[0])

    ours(0)
    plain(0)
    sides = {"first": [], "bare": []}  # type: dict[str, list[float]]
    for turn in range(len(prompts)):
        for name, side in (("first", ours), ("bare", plain)):
            began = time.perf_counter()
            side(turn)
            sides[name].append(time.perf_counter() - began)
    print(json.dumps([statistics.median(sides["first"]), statistics.median(sides["bare"])]))


LEDGER = """
import sys, time, uuid, statistics
from pathlib import Path
from llm_magic.ledger import *
from llm_magic.stores.ledger import SqliteLedger
ledger = SqliteLedger(Path(sys.argv[1]), kernel=uuid.uuid4().hex, user="bench")
limits = [Limit("kernel", "requests", 10**9, 3600), Limit("kernel", "tokens", 10**12, 3600),
          Limit("user", "usd", 10**18, 86400)]
ledger.hold(Claim("warm" + uuid.uuid4().hex, Amount(1, 1, 1)), limits)
print("ready", flush=True)
sys.stdin.readline()
taken = []
for n in range(int(sys.argv[2])):
    name = uuid.uuid4().hex
    began = time.perf_counter()
    assert ledger.hold(Claim(name, Amount(1, 1000, 1000), name), limits) == "held"
    held = time.perf_counter() - began
    ledger.sent(name)
    time.sleep(0.02)
    began = time.perf_counter()
    ledger.settle(name, Used(Amount(1, 500, 500), "bench", 400, 100))
    taken.append(held + time.perf_counter() - began)
print(statistics.median(taken), flush=True)
"""


def ledger(processes: int, turns: int) -> float:
    """Reserve and settle while so many processes do the same, with calls of 20 ms between."""
    path = Path(tempfile.mkdtemp()) / "ledger.db"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LEDGER, str(path), str(turns)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for each in started:
        assert each.stdout
        each.stdout.readline()
    for each in started:
        assert each.stdin
        each.stdin.write("go\n")
        each.stdin.flush()
    return statistics.median(float(each.communicate()[0]) for each in started)


def bookings(report: Report) -> None:
    """A hold and a settle beside other processes, and with many calls in the window."""
    for processes in (1, 2, 4, 8, 16):
        taken = ledger(processes, 50 if QUICK else 150)
        bar = "booking" if processes <= 8 else ""
        report.add(f"hold + settle, processes at once: {processes}", taken, "s", bar=bar)
        report.point("processes", "hold + settle", processes, taken)
    first: float | None = None
    for count, taken in windows():
        name = f"hold + settle, {count:,} calls in the window"
        if first is None:
            report.add(name, taken, "s")
        else:
            report.add(name, taken, "s", "an empty window", first, "booking grows")
        first = first or taken
        report.point("window", "file", max(count, 1), taken)


def windows() -> Iterator[tuple[int, float]]:
    """A hold and a settle with more and more calls in the window, one process."""
    book = SqliteLedger(Path(tempfile.mkdtemp()) / "ledger.db", kernel="bench", user="bench")
    limits = [
        Limit("kernel", "requests", 10**9, 3600),
        Limit("kernel", "tokens", 10**12, 3600),
        Limit("user", "usd", 10**18, 86400),
    ]
    used = Used(Amount(1, 500, 500), "bench", 400, 100)
    numbers = itertools.count()

    def one(_: int) -> None:
        name = f"one {next(numbers)}"
        assert book.hold(Claim(name, Amount(1, 1000, 1000), name), limits) == "held"
        book.sent(name)
        book.settle(name, used)

    for turn in range(20):
        one(turn)
    for count in (0, 1_000, 10_000) if QUICK else (0, 1_000, 10_000, 100_000):
        while next(numbers) < count:
            names = [f"many {next(numbers)}" for _ in range(64)]
            book.hold_many([Claim(name, Amount(1, 1000, 1000), name) for name in names], limits)
            book.settle_many([(name, used) for name in names])
        yield count, median(one, 100 if QUICK else 400)
    book.close()


def growth() -> float:
    """Bytes of file for each entry of 2 KB."""
    from llm_magic.stores.disk import DiskCache

    folder = Path(tempfile.mkdtemp())
    cache = DiskCache(folder / "cache", limit=10**10)
    for n in range(2000):
        print_ = fingerprint(Request(({"role": "user", "content": prompt(n)},), "bench", URL))
        cache.put(print_.key, pack(print_, Entry(answer(n), "bench", "stop", Usage(100, 400))))
    cache.close()
    return sum(path.stat().st_size for path in (folder / "cache").iterdir()) / 2000


def peers(report: Report) -> None:
    """Cached calls of other libraries on the same server, and ours."""
    if not PEERS.exists():
        report.note("Peers: .venv/peers is missing (make bench installs it).")
        return
    import llm_magic
    from llm_magic.testing import ScriptedServer

    folder = Path(tempfile.mkdtemp())
    (folder / "words.json").write_text(json.dumps(WORDS))
    os.environ |= {
        "LLM_MAGIC_CACHE_DIR": str(folder / "cache"),
        "LLM_MAGIC_LEDGER_DIR": str(folder / "ledger"),
        "LLM_MAGIC_MODEL": "bench",
        "OPENAI_API_KEY": "bench",
        # litellm would fetch its prices at import.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    repeats = 200 if QUICK else 1000
    with ScriptedServer(default=json.dumps({"text": answer(1)})) as server:
        os.environ["LLM_MAGIC_BASE_URL"] = server.url
        for n in range(20):
            llm_magic.ask(prompt(n))
        ours = median(lambda turn: llm_magic.ask(prompt(turn % 20)), repeats)
        asked = len(server.requests)
        done = subprocess.run(
            [PEERS, Path(__file__).parent / "peer_caches.py", server.url, str(repeats), folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    assert asked == 20, asked
    # Some of them print advice of their own.
    lines = [each for each in done.stdout.splitlines() if each.startswith('{"name"')]
    for line in map(json.loads, lines):
        if "failed" in line:
            report.note(f"{line['name']} could not be measured: {line['failed'][:90]}")
        elif "bytes" in line:
            mine = growth()
            report.add("file of an entry of 2 kB", mine, "B", line["name"], line["bytes"], "file")
        else:
            report.add("cached call", ours, "s", line["name"], line["seconds"], "hit beside others")


def main() -> int:
    """Every part in turn."""
    report = Report("What is kept: cache and ledger")
    for count in (1, 1000) if QUICK else (1, 1000, 10_000, 100_000):
        options = ["quick"] if QUICK else []
        done = subprocess.run(
            [sys.executable, __file__, "hits", str(count), *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        ours, bare = json.loads(done.stdout.splitlines()[-1])
        name = f"hit of ask(), entries in the cache: {count:,}"
        report.add(name, ours, "s", "bare SQLite get + JSON", bare, "hit beside SQLite")
        report.add(name, ours, "s", bar="hit")
        report.point("entries", "llm_magic.ask()", count, ours)
        report.point("entries", "bare SQLite get + JSON", count, bare)
    peers(report)
    bookings(report)
    return report.finish()


if __name__ == "__main__":
    hits(int(sys.argv[2])) if "hits" in sys.argv else sys.exit(main())
