"""What a cached answer and a booked call cost: one run, medians, ratios.

    python benchmarks/keeping.py          everything, about three minutes
    python benchmarks/keeping.py quick    fewer entries and repeats

A hit is `llm_magic.ask()` to its Response, beside a bare SQLite get and JSON parse of the same
value, and beside the cached calls of other libraries where `.venv/peers` has them.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from llm_magic.entries import Entry, fingerprint, pack
from llm_magic.types import Request, Usage

QUICK = "quick" in sys.argv
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
    for n in range(count):
        message = {"role": "user", "content": prompt(n)}
        print_ = fingerprint(Request((message,), "bench", URL))
        usage = Usage(100, 400)
        entry = Entry(answer(n), "bench", "stop", usage, cost=Decimal("0.001"), time=time.time())
        cache.put(print_.key, pack(print_, entry))
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
    chosen = [random.randrange(count) for _ in range(200 if QUICK else 2000)]
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
    one, other = statistics.median(sides["bare"]), statistics.median(sides["first"])
    shown(f"hit among {count:,}", one, other, "at most 5, and 2 ms")


def shown(name: str, one: float, other: float, bound: str) -> None:
    """One line of the table."""
    print(f"{name:34} {one * 1e6:10.0f} us {other * 1e6:10.0f} us {other / one:7.2f}  {bound}")


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


def ledger(processes: int) -> None:
    """Reserve and settle while so many processes do the same, with calls of 20 ms between."""
    path = Path(tempfile.mkdtemp()) / "ledger.db"
    turns = "50" if QUICK else "300"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LEDGER, str(path), turns],
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
    medians = [float(each.communicate()[0]) for each in started]
    value = statistics.median(medians) * 1e6
    print(f"reserve + settle, {processes} processes: {value:.0f} us (bound 1,000 us)")


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


def peers() -> None:
    """Cached calls of other libraries on the same server, and ours."""
    if not PEERS.exists():
        print("peers: .venv/peers is missing (make bench installs it)")
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
            print(f"{line['name']}: {line['failed'][:90]}")
        elif "bytes" in line:
            mine = growth()
            print(
                f"bytes an entry of 2 KB: ours {mine:.0f}, diskcache {line['version']} as it "
                f"comes {line['bytes']:.0f}, ratio {mine / line['bytes']:.2f} (bound 0.5)"
            )
        else:
            shown(f"{line['name']} {line['version']}", line["seconds"], ours, "below 1")


def main() -> None:
    """Every part in turn."""
    print(f"{'':34} {'other':>13} {'ours':>13} {'ratio':>7}")
    for count in (1, 1000) if QUICK else (1, 1000, 100_000):
        options = ["quick"] if QUICK else []
        subprocess.run([sys.executable, __file__, "hits", str(count), *options], check=True)
    peers()
    for processes in (1, 8):
        ledger(processes)


if __name__ == "__main__":
    hits(int(sys.argv[2])) if "hits" in sys.argv else main()
