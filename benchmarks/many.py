"""Memory of very many rows.

    python benchmarks/many.py          400,000 rows, about two minutes
    python benchmarks/many.py full     1,000,000
    python benchmarks/many.py quick    100,000

Rows come from a generator and are answered in the process itself, so that nothing but our own
memory grows: what is beyond the columns of the result is counted.
"""

from __future__ import annotations

import os
import sys
import tempfile

from report import Report
from rows import MANY_ROWS, of_ours


def main() -> int:
    """One run."""
    report = Report("Very many rows")
    # Gives way to what is timed beside it.
    os.nice(10)
    with tempfile.TemporaryDirectory() as folder:
        url = "http://127.0.0.1:9/v1"
        found = of_ours("many", url, MANY_ROWS, folder, LLM_MAGIC_CACHE_SIZE="0")
    beyond = found["grown"] - found["columns"]
    report.add(f"{MANY_ROWS:,} rows of a generator", beyond, "MB", bar="many rows")
    for count, grown in found["curve"]:
        report.point("memory", "memory grown", count, grown)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
