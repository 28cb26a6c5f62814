"""Rows against servers with a limit: how much of it is used, and how often it is passed.

    python benchmarks/limits.py          everything, about four minutes
    python benchmarks/limits.py quick    fewer rows

A load server in a process of its own; ``map_rows`` in another one, with its window and its rate
found anew for each line. Ends with 1 where a bound is passed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from load import LoadServer  # noqa: E402

QUICK = "quick" in sys.argv
# Of the allowed rate at least, and rejections for 100 rows at most.
BOUNDS = {True: (0.95, 2.0), False: (0.80, 5.0)}
OF_SLOTS, LATENCIES = 0.95, 3.0
SLOTS, SECONDS = 16, 0.1
OF_FIXED = 0.8


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


def limited(rate: int, headers: bool, count: int, **server: Any) -> bool:
    """One line for a server with a limit; whether the bounds hold."""
    found = run(count, rate=rate, headers=headers, **server)
    # The bucket is full at the start: what it could have let in is more than rate * seconds.
    could = rate * found["seconds"] + server["burst"]
    share, rejections = count / could, 100 * found["rejected"] / count
    least, most = BOUNDS[headers]
    holds = share >= least and rejections < most and not found["lost"]
    told = "with headers" if headers else "without"
    print(
        f"{rate:>5}/s {server['burst']:>4} {told:13}{server['retry_after']:>5}{count:>8,}"
        f"{count / found['seconds']:9.0f}/s{share:8.1%}{rejections:9.2f}{found['lost']:6}"
        f"  >= {least:.0%}, < {most:g}: {'yes' if holds else 'NO'}"
    )
    return holds


def slotted(count: int) -> bool:
    """A server that works on few requests at a time and rejects none."""
    found = run(count, slots=SLOTS, latency=SECONDS, spread=0.3)
    share = count * SECONDS / SLOTS / found["seconds"]
    latency = found["each"] / SECONDS
    holds = share >= OF_SLOTS and latency <= LATENCIES and not found["lost"]
    print(
        f"{SLOTS} slots of {SECONDS:g} s, {count:,} rows: {share:.1%} of its throughput (bound "
        f"{OF_SLOTS:.0%}), {latency:.2f} times its latency (bound {LATENCIES:g}), at most "
        f"{found['max_in_flight']} in flight, window {found['window']} at the end, "
        f"{found['lost']} lost: {'yes' if holds else 'NO'}"
    )
    return holds


def unlimited(count: int) -> bool:
    """A fast server without any limit."""
    own = run(count, latency=0.02)
    fixed = run(count, "128", latency=0.02)
    ratio = fixed["seconds"] / own["seconds"]
    print(
        f"no limit, 20 ms, {count:,} rows: auto {count / own['seconds']:,.0f} rows/s, concurrency "
        f"128 {count / fixed['seconds']:,.0f}; {ratio:.2f} of it (bound {OF_FIXED:g})"
    )
    return ratio >= OF_FIXED


def main() -> None:
    """All of it, as a table."""
    good = True
    print("share: of what the server could have let in, its burst included; * of 100 rows")
    print(
        f"{'allowed':>7} {'burst':>4} {'':13}{'wait':>5}{'rows':>8}{'reached':>11}{'share':>8}",
        end="",
    )
    print(f"{'429s*':>9}{'lost':>6}  bound")
    for rate, count in ((300, 1_500 if QUICK else 4_000), (50, 300 if QUICK else 1_000)):
        for headers in (True, False):
            for burst, wait in ((60, "ms"), (10, "ms"), (60, "s")):
                good &= limited(
                    rate, headers, count, burst=burst, retry_after=wait, latency=0.02, spread=0.2
                )
    good &= slotted(800 if QUICK else 3_000)
    good &= unlimited(2_000 if QUICK else 10_000)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["of"]:
        print(json.dumps(mapped(int(sys.argv[2]), sys.argv[3])))
    else:
        main()
