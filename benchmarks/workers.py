"""The same rows on one kernel, on Dask workers and on a process pool: one run, medians, ratios.

    python benchmarks/workers.py          about three quarters of a minute
    python benchmarks/workers.py quick    fewer rows, one round

A load server in a process of its own answers after 20 ms, and a Redis keeps answers, limits and
pace for all. Everybody asks for 3,000 rows with the same schema in a process of its own, in turn,
three times, with workers that have asked before. The overhead of an engine is what a row costs in
CPU, of all its processes, over what it costs in one kernel.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests")]

from load import LoadServer  # noqa: E402
from peer_rows import ANSWER, Review, texts  # noqa: E402
from report import QUICK, Report  # noqa: E402

from tests.redis_servers import KINDS, RedisServer, binary  # noqa: E402

ROWS, ROUNDS = (2_000, 1) if QUICK else (3_000, 3)
CONTENDERS = ("kernel", "dask 1", "dask 2", "pool 2")
LABELS = {"dask 1": "1 Dask worker", "dask 2": "2 Dask workers", "pool 2": "a pool of 2"}
PROMPT = "Classify this review for a shoe shop: {{ text }}"


@contextmanager
def workers(kind: str) -> Iterator[Any]:
    """What rows are asked on; None for this process."""
    engine, _, count = kind.partition(" ")
    if engine == "dask":
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                n_workers=int(count), threads_per_worker=1, dashboard_address=None
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
    elif engine == "pool":
        with ProcessPoolExecutor(int(count)) as pool:
            yield pool
    else:
        yield None


def cpu() -> float:
    """Seconds of CPU of this process and its children."""
    import psutil

    own = psutil.Process()
    times = [each.cpu_times() for each in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def contender(kind: str, count: int) -> dict[str, float]:
    """Rows by map_rows, in this process or on its workers."""
    import llm_magic

    with workers(kind) as on:

        def run(rows: list[dict[str, str]]) -> Any:
            return llm_magic.map_rows(rows, PROMPT, schema=Review, on=on)

        # Both workers have imported, connected, and found how many at once.
        run([{"text": text} for text in texts(1_000, 10**6)])
        rows = [{"text": text} for text in texts(count)]
        began, before = time.perf_counter(), cpu()
        found = run(rows)
        seconds, used = time.perf_counter() - began, cpu() - before
        assert len(found) == count
        assert all(row["stars"] == 4 for row in found)
        assert not any(row["_cached"] or row["_error"] for row in found)
        return {"rate": count / seconds, "cpu": used / count}


def measured(kind: str, url: str, redis: RedisServer) -> dict[str, float]:
    """What a contender's process prints."""
    with redis.client() as client:
        client.flushall()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "OPENAI_BASE_URL": url,
            "OPENAI_API_KEY": "bench",
            "LLM_MAGIC_MODEL": "bench",
            "LLM_MAGIC_STORE": redis.url,
            "LLM_MAGIC_CACHE_DIR": f"{folder}/cache",
            "LLM_MAGIC_LEDGER_DIR": f"{folder}/ledger",
            # Limits that are checked with every row and not reached.
            "LLM_MAGIC_QUOTA_REQUESTS": "100000000",
            "LLM_MAGIC_QUOTA_TOKENS": "1000000000000",
            "LLM_MAGIC_QUOTA_USD": "1000000",
            "LLM_MAGIC_PRICES": '{"bench": {"input": 0.25, "output": 2}}',
        }
        done = subprocess.run(
            [sys.executable, __file__, "contender", kind, str(ROWS)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Everybody in turn."""
    report = Report("Rows on workers")
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in CONTENDERS}
    found = next((kind for kind in KINDS if binary(kind)), None)
    if found is None:
        report.note("Neither redis-server nor valkey-server is installed.")
        return report.finish()
    with LoadServer(latency=0.02, answer=ANSWER) as server, RedisServer(found) as redis:
        for _ in range(ROUNDS):
            for kind, each in runs.items():
                each.append(measured(kind, server.url, redis))
    middle = {
        kind: {key: statistics.median(run[key] for run in each) for key in ("rate", "cpu")}
        for kind, each in runs.items()
    }
    alone = middle["kernel"]
    for kind, label in LABELS.items():
        each = middle[kind]
        work = f"{ROWS:,} rows on {label}"
        report.add(work, each["rate"], "rows/s", "one kernel", alone["rate"])
        bar = "workers" if kind.startswith("dask") else ""
        report.add("  CPU of a row", each["cpu"], "s", "one kernel", alone["cpu"], bar)
    return report.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["contender"]:
        print(json.dumps(contender(sys.argv[2], int(sys.argv[3]))))
    else:
        sys.exit(main())
