"""What `%load_ext` costs in a fresh IPython, beside other extensions: one run, medians, ratios.

    python benchmarks/extension.py          everything, about half a minute
    python benchmarks/extension.py quick    fewer repeats

Each load is in a process of its own; they take turns. Peers are those of `.venv/peers`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import QUICK, Report

PEERS = Path(__file__).parent.parent / ".venv" / "peers" / "bin" / "python"
REPEATS = 3 if QUICK else 7
HEAVY = ("openai", "pydantic", "ipywidgets", "jinja2", "diskcache")
LOAD = """
import json, sys, time
before, began = set(sys.modules), time.perf_counter()
get_ipython().run_line_magic("load_ext", "{name}")
seconds = time.perf_counter() - began
new = set(sys.modules) - before
print(json.dumps({{"seconds": seconds, "modules": len(new), "new": sorted(new)}}))
"""
EXTENSIONS = {
    "llm_magic": (Path(sys.executable), "llm_magic"),
    "jupyter-ai": (PEERS, "jupyter_ai_magic_commands"),
    "jupysql": (PEERS, "sql"),
}


def loaded(python: Path, name: str, folder: str) -> dict[str, Any]:
    """Seconds and modules of one load."""
    environment = {
        **os.environ,
        "IPYTHONDIR": folder,
        # Neither fetches prices nor tells anybody that it was used.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PLOOMBER_STATS_ENABLED": "false",
        "PLOOMBER_VERSION_CHECK_DISABLED": "true",
    }
    options = ["--no-banner", "--HistoryManager.enabled=False", "-c", LOAD.format(name=name)]
    done = subprocess.run(
        [str(python), "-m", "IPython", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [each for each in done.stdout.splitlines() if each.startswith('{"seconds"')]
    if not lines:
        raise SystemExit(f"%load_ext {name} failed:\n{done.stdout[-500:]}{done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(lines[0])
    return found


def main() -> int:
    """Every extension in turn, after one load of each from the disk."""
    report = Report("Loading the extension")
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for turn in range(REPEATS + 1):
            for name, (python, module) in EXTENSIONS.items():
                if python.exists():
                    found = loaded(python, module, folder)
                    runs.setdefault(name, []).extend([found] if turn else [])
    middle = {
        name: {key: statistics.median(run[key] for run in each) for key in ("seconds", "modules")}
        for name, each in runs.items()
    }
    own = middle.pop("llm_magic")
    new = {each.partition(".")[0] for run in runs["llm_magic"] for each in run["new"]}
    report.add("%load_ext llm_magic", own["seconds"], "s", bar="load")
    report.add(
        f"of {', '.join(HEAVY)}: imported", len(new.intersection(HEAVY)), "modules", bar="light"
    )
    for name, each in middle.items():
        report.add("%load_ext", own["seconds"], "s", name, each["seconds"])
        report.add("modules imported by it", own["modules"], "", name, each["modules"])
    if not middle:
        report.note("Peers: .venv/peers is missing (make bench installs it).")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
