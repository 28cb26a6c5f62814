"""Rows against servers with a limit: how much of it is used, and how often it is passed.

    python benchmarks/limits.py          everything, about two and a half minutes
    python benchmarks/limits.py quick    fewer rows

A load server in a process of its own; ``map_rows`` in another one, with its window and its rate
found anew for each line. Servers of 50 rows a second leave a machine idle: two runs go at a time.
(Six on two cores were in each other's way in the first moment, where rejections came too late to
stop what went out: 20 to 71 for a thousand rows, where two draw 19 to 22.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from load import LoadServer  # noqa: E402
from report import QUICK, Report, figure  # noqa: E402

SLOTS, SECONDS = 16, 0.1
# Rate, rows, and how many runs at once.
LIMITED = ((300, 1_000 if QUICK else 3_000, 1), (50, 200 if QUICK else 1_000, 2))
# Whether headers tell the rate, the burst, and the unit of Retry-After.
KINDS = [
    (headers, burst, wait)
    for headers in (True, False)
    for burst, wait in ((60, "ms"), (10, "ms"), (60, "s"))
]


def mapped(count: int, at_once: str) -> dict[str, Any]:
    """So many rows, in this process."""
    import llm_magic
    from llm_magic.session import current

    # Imports and the first connection are not what is measured; another model has another gate.
    llm_magic.map_rows(["warm"], "{{ text }}", model="warm")
    concurrency: Any = at_once if at_once == "auto" else int(at_once)
    began = time.perf_counter()
    found = llm_magic.map_rows(
        [f"row {n}" for n in range(count)], "{{ text }}", concurrency=concurrency
    )
    seconds = time.perf_counter() - began
    lost = int(sum(row["_error"] is not None for row in found))
    gates = current()._gates.values()
    return {"seconds": seconds, "lost": lost, "window": max(gate.window for gate in gates)}


def run(count: int, at_once: str = "auto", **server: Any) -> dict[str, Any]:
    """What a process of its own prints, and what the server counted."""
    with LoadServer(**server) as load, tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "OPENAI_BASE_URL": load.url,
            "OPENAI_API_KEY": "bench",
            "LLM_MAGIC_MODEL": "bench",
            "LLM_MAGIC_CACHE_DIR": f"{folder}/cache",
            "LLM_MAGIC_LEDGER_DIR": f"{folder}/ledger",
            "LLM_MAGIC_QUOTA_REQUESTS": "None",
        }
        done = subprocess.run(
            [sys.executable, __file__, "of", str(count), at_once],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"map_rows failed:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        stats = load.stats()
        return found | stats | {"seconds": found["seconds"], "each": stats["seconds"] / count}


def limited(report: Report) -> None:
    """Servers with a limit, whether they tell it or not."""
    lost = 0
    for rate, count, at_once in LIMITED:
        with ThreadPoolExecutor(at_once) as pool:
            asked = [
                pool.submit(
                    run,
                    count,
                    rate=rate,
                    headers=headers,
                    burst=burst,
                    retry_after=wait,
                    latency=0.02,
                    spread=0.2,
                )
                for headers, burst, wait in KINDS
            ]
        for (headers, burst, wait), each in zip(KINDS, asked, strict=True):
            found = each.result()
            # The bucket is full at the start: what it could have let in is more than the rate.
            share = 100 * count / (rate * found["seconds"] + burst)
            told = f"{'told' if headers else 'not told'}, wait in {wait}"
            work = f"{rate} rows/s, burst {burst}, {told}"
            with_ = "with headers" if headers else "without"
            kind = "in whole seconds" if wait == "s" and not headers else with_
            report.add(work, share, "% of it", bar=f"rate {kind}")
            rejections = 100 * found["rejected"] / count
            report.add("  rejected of 100", rejections, "", bar=f"rejected {with_}")
            lost += found["lost"]
    report.add("all of these, rows lost", lost, "rows", bar="lost")


def slotted(report: Report, count: int) -> None:
    """A server that works on few requests at a time and rejects none."""
    found = run(count, slots=SLOTS, latency=SECONDS, spread=0.3)
    share = 100 * count * SECONDS / SLOTS / found["seconds"]
    work = f"{SLOTS} slots of {figure(SECONDS, 's')}, {count:,} rows"
    report.add(work, share, "% of it", bar="slots")
    report.add("  seconds of a request", found["each"], "s", "an idle server", SECONDS, "latency")


def main() -> int:
    """Everything in turn."""
    report = Report("Rows at a server's limit")
    limited(report)
    slotted(report, 800 if QUICK else 3_000)
    report.note(
        "The shares are of what the server could have let in, its burst included. With a limit of "
        "50 rows/s two runs go at once, each with a server of its own."
    )
    return report.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["of"]:
        print(json.dumps(mapped(int(sys.argv[2]), sys.argv[3])))
    else:
        sys.exit(main())
