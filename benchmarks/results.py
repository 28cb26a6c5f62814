"""RESULTS.md: the machine, the versions, the table, how each grows, what is not met or measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from bars import BARS
from plots import PLOTS, Points, draw
from report import HEADER, Row

if TYPE_CHECKING:
    from run import Part

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv" / "peers" / "bin" / "python"
OWN = (
    "openai",
    "pydantic",
    "aiohttp",
    "ipython",
    "ipykernel",
    "ipywidgets",
    "anywidget",
    "diskcache",
    "redis",
    "dask",
    "pandas",
)
THEIRS = (
    "openai",
    "jupyter-ai-magic-commands",
    "jupysql",
    "instructor",
    "pydantic-ai-slim",
    "litellm",
    "langchain-core",
    "langchain-openai",
    "langchain-community",
    "diskcache",
    "aiohttp",
    "httpx",
    "httpx2",
    "pydantic",
    "ipython",
    "ipykernel",
)
HEAD = """\
# Results

Written by `make bench`; change the scripts, not this file. One run on one machine, each part in a
process of its own, servers on loopback in processes of their own: seconds depend on the machine,
the ratios much less. *Ratio* is ours divided by theirs: below 1 is less time, memory or bytes than
theirs; for rows/s, above 1 is faster. A *bar* is what the project claims and the run checks.
"""
BUSY = """\
**The machine had other work during this run.** What is held against a clock suffers from that more
than the ratios do: run `make bench` on a quiet machine for figures to rely on.
"""
UNMEASURED = """\
## What is not measured here

- Bars that speak of what happens rather than of how much are tests: one request for 8 kernels and
  for 16 processes with the same prompt, no limit passed by 8 processes with 20 kills, rows paid
  once after a kill, the faults of servers, disks and Redis (`tests/test_one_flight.py`,
  `tests/test_team_flight.py`, `tests/test_ledger_processes.py`, `tests/test_redis_processes.py`,
  `tests/test_rows_stopped.py`, `tests/test_faults.py`, `tests/test_storage_faults.py`,
  `tests/test_redis_cells.py`).
- The share of malformed answers that are read without asking again, and that no wrong value is
  accepted: `tests/test_structured_corpus.py`.
- The page: that the Stop button ends an answer within a second, and that nothing moves, is tested
  in a browser (`tests/browser`). Here the page is played by the reader of the messages.
- Real providers. All servers here answer a script; with a real one the seconds of the model are
  most of what one waits for, and everybody waits for them alike.
- Windows and macOS, networks with delay, more than one machine.
- What the peers do better: jupyter-ai's magic shows nothing until the answer is whole, and so needs
  fewer bytes than any stream; litellm's cache is in memory and gone with the process. instructor's
  plain call is shorter than ours as a whole, since it reads one body.
"""


def written(parts: list[Part], seconds: float, load: float) -> str:
    """The whole file; draws the plots beside it."""
    points: Points = {}
    for part in parts:
        for name, curves in part.told.get("points", {}).items():
            for curve, each in curves.items():
                points.setdefault(name, {}).setdefault(curve, []).extend(each)
    drawn = draw(points, HERE / "plots")
    about = [
        HEAD,
        f"- {machine()}",
        f"- {time.strftime('%Y-%m-%d', time.gmtime())}, {seconds / 60:.1f} minutes; load of the "
        f"machine before it {load:.1f}",
        f"- Here: {versions(parts)}",
        f"- Peers, in an environment of their own: {peers()}",
        "",
        *([BUSY] if load > 1 else []),
        *table(parts),
        *grows(drawn),
        *missed(parts),
        UNMEASURED,
        "## Seconds of each part\n",
        *(f"- `{part.name}.py`: {part.seconds:.0f} s" for part in parts),
    ]
    return "\n".join(about) + "\n"


def machine() -> str:
    """What it ran on, without names."""
    model = "processor not told"
    if (about := Path("/proc/cpuinfo")).exists():
        names = [each for each in about.read_text().splitlines() if each.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = platform.system()
    if system == "Linux":
        system = platform.freedesktop_os_release().get("PRETTY_NAME", system)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    python = f"Python {platform.python_version()}"
    return f"{cores} cores ({model}), {memory:.0f} GB of memory, {system}, {python}"


def versions(parts: list[Part]) -> str:
    """Of the libraries of our own side, and of the servers."""
    found = {}
    for name in OWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for part in parts:
        found |= part.told.get("versions", {})
    return ", ".join(f"{name} {number}" for name, number in found.items())


def peers() -> str:
    """Of the libraries compared with, as they are installed."""
    if not PEERS.exists():
        return "not installed"
    asked = (
        "import json, sys, importlib.metadata as each;"
        "found = {one.name.lower().replace('_', '-'): one.version for one in each.distributions()};"
        "print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))"
    )
    done = subprocess.run(
        [str(PEERS), "-c", asked, *THEIRS], capture_output=True, text=True, check=True
    )
    return ", ".join(f"{name} {number}" for name, number in json.loads(done.stdout).items())


def table(parts: list[Part]) -> list[str]:
    """The one table, and below it what its lines need."""
    lines = ["## The table\n", row(HEADER), row(["---", "--:", "---", "--:", "--:", "---", "---"])]
    notes = []
    for part in parts:
        lines.append(row([f"**{part.told.get('title', part.name)}**", *[""] * 6]))
        if part.failed:
            lines.append(row(["not measured", *[""] * 5, "NO"]))
        lines += [row(each.cells()) for each in part.rows]
        notes += [f"- {each}" for each in part.told.get("notes", [])]
    return [*lines, "", *notes, ""]


def row(cells: tuple[str, ...] | list[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cell.strip().replace('|', chr(92) + '|') for cell in cells)} |"


def grows(drawn: list[str]) -> list[str]:
    """The pictures, each with its sentence."""
    lines = ["## How each grows\n"]
    for name in drawn:
        lines += [f"![{PLOTS[name].title}](plots/{name}.svg)\n", f"{PLOTS[name].words}\n"]
    return lines


def missed(parts: list[Part]) -> list[str]:
    """What is not met, and why."""
    lines = ["## What is not met, and why\n"]
    rows: list[Row] = [each for part in parts for each in part.rows if each.met is False]
    for each in rows:
        cells = each.cells()
        why = BARS[each.bar].known or "This run missed it; it is not known to be missed."
        beside = f" beside {each.peer}" if each.peer else ""
        shown = cells[4] if BARS[each.bar].of == "ratio" else cells[1]
        lines.append(f"- **{BARS[each.bar].text}** ({each.work.strip()}{beside}): {shown}. {why}")
    measured = {each.bar for part in parts for each in part.rows}
    lines += [
        f"- **{bar.text}**: not measured." for name, bar in BARS.items() if name not in measured
    ]
    if len(lines) == 1:
        lines.append("Everything was met.")
    return [*lines, ""]
