"""The figures of a benchmark: a line for each as it is measured, and all of them for the table."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bars import BARS

QUICK = "quick" in sys.argv
FULL = "full" in sys.argv
SCALES = {
    "s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1e6, "MB"), (1e3, "kB"), (1, "B")),
}


def figure(value: float | None, unit: str) -> str:
    """A value and its unit, for people."""
    if value is None:
        return ""
    scales = SCALES.get(unit, ((1.0, unit),))
    scale, name = next((each for each in scales if abs(value) >= each[0]), scales[-1])
    shown = value / scale
    digits = 0 if abs(shown) >= 100 or shown == int(shown) else 1 if abs(shown) >= 10 else 2
    return f"{shown:,.{digits}f} {name}".strip()


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: What was done.
        ours: What it took here.
        unit: Of both figures.
        peer: Whom it was compared with.
        theirs: What it took there.
        bar: The name of the claim in `BARS`, where there is one.
    """

    work: str
    ours: float
    unit: str
    peer: str = ""
    theirs: float | None = None
    bar: str = ""

    @property
    def ratio(self) -> float | None:
        """Of ours to theirs, where that means something."""
        positive = self.ours > 0 and self.theirs is not None and self.theirs > 0
        return self.ours / self.theirs if positive and self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the claim holds; None where none is made."""
        return BARS[self.bar].met(self.ours, self.theirs) if self.bar else None

    @property
    def failed(self) -> bool:
        """Whether a claim is missed that is not known to be."""
        return self.met is False and not BARS[self.bar].known

    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        told = {None: "", True: "yes", False: "no, see below" if not self.failed else "NO"}
        ratio = "" if self.ratio is None else f"{self.ratio:.{2 if self.ratio >= 0.1 else 4}f}"
        bar = BARS[self.bar].text if self.bar else ""
        ours, theirs = figure(self.ours, self.unit), figure(self.theirs, self.unit)
        return self.work, ours, self.peer, theirs, ratio, bar, told[self.met]


HEADER = ("work", "ours", "beside", "theirs", "ratio", "bar", "met")
WIDTHS = (47, 13, 34, 13, 6, 46, 13)


def line(cells: tuple[str, ...]) -> str:
    """One line of the table in a terminal."""
    right = (1, 3, 4)
    padded = [
        cell.rjust(width) if place in right else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    ]
    return "  ".join(padded).rstrip()


class Report:
    """What one script has measured, printed as it comes.

    Args:
        title: What the script is about, in the table.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.versions: dict[str, str] = {}
        self.points: dict[str, dict[str, list[tuple[float, float]]]] = {}
        print(line(HEADER), flush=True)

    def add(
        self,
        work: str,
        ours: float,
        unit: str,
        peer: str = "",
        theirs: float | None = None,
        bar: str = "",
    ) -> None:
        """One line."""
        assert not bar or bar in BARS, bar
        self.rows.append(Row(work, ours, unit, peer, theirs, bar))
        print(line(self.rows[-1].cells()), flush=True)

    def note(self, text: str) -> None:
        """A sentence that the figures need."""
        self.notes.append(text)
        print(text, flush=True)

    def point(self, plot: str, name: str, x: float, y: float) -> None:
        """A point of a curve."""
        self.points.setdefault(plot, {}).setdefault(name, []).append((x, y))

    def finish(self) -> int:
        """Hands all to the run that asked for it; the exit code."""
        if target := os.environ.get("BENCH_REPORT"):
            told = {
                "title": self.title,
                "rows": [asdict(row) for row in self.rows],
                "notes": self.notes,
                "versions": self.versions,
                "points": self.points,
            }
            Path(target).write_text(json.dumps(told))
        failed = [row for row in self.rows if row.failed]
        for row in failed:
            print(f"NOT MET: {BARS[row.bar].text} ({row.work}, {row.peer})")
        return 1 if failed else 0
