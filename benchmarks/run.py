"""Everything that is claimed, measured beside the peers: one table, and RESULTS.md with plots.

    python benchmarks/run.py                 everything, about thirteen minutes on two cores
    python benchmarks/run.py full            all rows for everybody: half an hour
    python benchmarks/run.py quick           fewer repeats; RESULTS.md is left as it is
    python benchmarks/run.py rows views      some parts; RESULTS.md is left as it is

Each part is a script of its own and runs in a process of its own, one after the other.
Ends with 1 where a bar is missed that is not known to be, or where a part fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import FULL, HEADER, QUICK, Row, line
from results import written

HERE = Path(__file__).parent
# In this order.
PARTS = (
    *("extension", "line", "cells", "keeping", "structured", "views", "rows", "limits", "many"),
    *("redis_store", "workers"),
)
PATIENCE = 3600 if FULL else 1200


@dataclass
class Part:
    """What one script told.

    Attributes:
        name: Of the script.
        seconds: How long it ran.
        rows: Lines of the table.
        told: The rest of its report.
        failed: What it said last, where it broke.
    """

    name: str
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    failed: str = ""


def started(name: str, folder: str) -> tuple[subprocess.Popen[str], float]:
    """A script in a process of its own."""
    flags = ["quick"] if QUICK else ["full"] if FULL else []
    environment = {**os.environ, "BENCH_REPORT": f"{folder}/{name}.json"}
    with Path(folder, f"{name}.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(HERE / f"{name}.py"), *flags],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    return process, time.monotonic()


def ended(name: str, process: subprocess.Popen[str], began: float, folder: str) -> Part:
    """Waits for a script, and reads what it found."""
    part = Part(name)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        print(f"{name} is not done after {PATIENCE} s", file=sys.stderr)
    finally:
        if process.poll() is None:
            # With its servers and kernels; also when this run is interrupted.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    part.seconds = time.monotonic() - began
    report = Path(folder, f"{name}.json")
    if report.exists():
        part.told = json.loads(report.read_text())
        part.rows = [Row(**row) for row in part.told["rows"]]
    else:
        said = Path(folder, f"{name}.txt").read_text().strip()
        last = said.splitlines()[-1] if said else "it said nothing"
        # The file that is written shows no folder of this machine.
        part.failed = last.replace(str(HERE.parent), ".")
        print(said[-2000:], file=sys.stderr)
    return part


def measured(chosen: list[str]) -> list[Part]:
    """Every part in turn; who is being measured goes to stderr."""
    found = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name in PARTS:
            if chosen and name not in chosen:
                continue
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            part = ended(name, *started(name, folder), folder)
            print(f"  {part.seconds:.0f} s", file=sys.stderr, flush=True)
            found.append(part)
    return found


def table(parts: list[Part]) -> None:
    """Prints the one table."""
    print(line(HEADER))
    for part in parts:
        print(f"\n{part.told.get('title', part.name)}")
        for row in part.rows:
            print(line(row.cells()))
        if part.failed:
            print(f"NOT MEASURED: {part.failed}")


def main() -> int:
    """The table, and the file where all of it was measured."""
    chosen = [word for word in sys.argv[1:] if word not in ("quick", "full")]
    if unknown := set(chosen).difference(PARTS):
        raise SystemExit(f"no such part: {', '.join(sorted(unknown))}")
    began, load = time.monotonic(), os.getloadavg()[0]
    parts = measured(chosen)
    seconds = time.monotonic() - began
    table(parts)
    print()
    rows = [row for part in parts for row in part.rows]
    claimed = [row for row in rows if row.bar]
    known = [row for row in claimed if row.met is False and not row.failed]
    failed = [row for row in claimed if row.failed]
    print(
        f"{len(claimed)} lines with a bar: {len(claimed) - len(known) - len(failed)} met, "
        f"{len(known)} known not to be, {len(failed)} missed. {seconds / 60:.1f} minutes."
    )
    for row in failed:
        print(f"MISSED: {' | '.join(row.cells())}")
    if not QUICK and not chosen:
        target = HERE / "RESULTS.md"
        target.write_text(written(parts, seconds, load))
        print(f"written: benchmarks/{target.name}")
    return 1 if failed or any(part.failed for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
