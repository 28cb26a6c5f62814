"""What is claimed: every bar that a benchmark holds its figures against, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bar:
    """One claim.

    Attributes:
        text: The claim as the table shows it.
        bound: Its number.
        of: What the number bounds: our figure, its ratio to theirs, or ours less theirs.
        least: Whether the figure is to be at least so much; else at most.
        known: Why it is not met, where that is known; the run does not fail then.
    """

    text: str
    bound: float
    of: Literal["ours", "ratio", "difference"] = "ours"
    least: bool = False
    known: str = ""

    def met(self, ours: float, theirs: float | None) -> bool:
        """Whether the claim holds for these figures."""
        figure = ours
        if self.of != "ours":
            assert theirs is not None, self.text
            figure = ours / theirs if self.of == "ratio" else ours - theirs
        return figure >= self.bound if self.least else figure <= self.bound


FLOOR = (
    "A row costs about three times the CPU of the bare loop: that one sends and reads, while ours "
    "also renders the template, looks the row up in the cache, holds its worst case against the "
    "limits, books what it used and keeps its answer. No part of that stands out in a profile. 0.6 "
    "is an aim."
)
HIT = (
    "It lies at the bar, on either side of it by the hour and the size of the cache. A hit is some "
    "60 to 90 µs where the bare get is 10 to 20: a third of it unpacks the row, which halves the "
    "file, and checks its sum and its request, so that no damaged or planted row is served; the "
    "rest reads the settings, makes the key and the Response, and notes what was saved."
)
FULL_SPEED = (
    "An answer that is whole within a tenth of a second leaves nothing to stream. What is saved in "
    "the notebook, raw Markdown and the rendered form, is by itself more than twice the text; "
    "`print` saves the text alone. The speed of a model is that of the lines at 200 tokens/s."
)
REDRAWS = (
    "A redraw costs some 45 µs, whatever the length of the list, and parsing once costs it not at "
    "all: 50 of them lie at 1.8 times, and 200 at the bar, at 2.8 to 3.3 in runs of one day."
)
WHOLE_SECONDS = (
    "A server that asks for whole seconds takes two of them from a run of ten: one rejection ends "
    "the guess, one ends the count by which the rate is measured. That count lasts half a second, "
    "and 20 ms on the way shift it by 4 %: 78 to 85 %, 11 of 13 runs at 80 and more. A run of 20 "
    "seconds, the one with 50 rows/s, is at 95 %."
)

BARS: dict[str, Bar] = {
    # extension.py
    "load": Bar("load: at most 150 ms more than IPython alone", 0.150),
    "light": Bar("load: imports none of five heavy libraries", 0),
    # line.py
    "first token": Bar("first token: at most 1.1 times", 1.1, "ratio"),
    "stream CPU": Bar("2,000 tokens: at most 1.5 times the CPU", 1.5, "ratio"),
    # cells.py
    "interrupt": Bar("Ctrl-C: back within 0.5 s", 0.5),
    "frame": Bar("1,000,000 rows in a prompt: within 0.2 s", 0.2),
    # keeping.py
    "hit": Bar("hit: within 2 ms", 2e-3),
    "hit beside SQLite": Bar("hit: at most 5 times", 5, "ratio", known=HIT),
    "hit beside others": Bar("hit: faster than theirs", 1, "ratio"),
    "booking": Bar("hold + settle: within 1 ms", 1e-3),
    "booking grows": Bar("hold + settle: flat, at most 1.5 times", 1.5, "ratio"),
    "file": Bar("file of an entry: at most 0.5 times", 0.5, "ratio"),
    # structured.py
    "structured": Bar("structured call: less than theirs", 0, "difference"),
    "structured import": Bar("structured: not imported by %load_ext", 0),
    "live view": Bar("live view: at most 3 times parsing", 3, "ratio", known=REDRAWS),
    # views.py
    "bytes": Bar("bytes at 200 tokens/s: at most 2 times", 2, "ratio"),
    "bytes at full speed": Bar(
        "bytes at full speed: at most 2 times", 2, "ratio", known=FULL_SPEED
    ),
    "core": Bar("CPU at 200 tokens/s: at most 5 % of a core", 5),
    "linear bytes": Bar("bytes of a token: linear, at most 1.25 times", 1.25, "ratio"),
    "linear CPU": Bar("CPU of a token: linear, at most 1.25 times", 1.25, "ratio"),
    # rows.py
    "rows": Bar("rows/s: at least 6 times", 6, "ratio", least=True),
    "rows beside openai": Bar("rows/s: at least 3 times", 3, "ratio", least=True),
    "rows beside aiohttp": Bar(
        "rows/s: aim of 0.6 times bare aiohttp", 0.6, "ratio", least=True, known=FLOOR
    ),
    "rows memory": Bar("peak memory: less than theirs", 0, "difference"),
    "cached rows": Bar("cached rows: at least 5,000 rows/s", 5_000, least=True),
    "many rows": Bar("memory beyond the columns: below 60 MB", 60),
    # limits.py
    "rate with headers": Bar("rate told: at least 95 % of it", 95, least=True),
    "rejected with headers": Bar("rate told: at most 2 of 100 rejected", 2),
    "rate without": Bar("rate not told: at least 80 % of it", 80, least=True),
    "rate in whole seconds": Bar(
        "rate not told: at least 80 % of it", 80, least=True, known=WHOLE_SECONDS
    ),
    "rejected without": Bar("rate not told: at most 5 of 100 rejected", 5),
    "slots": Bar("16 slots: at least 95 % of the throughput", 95, least=True),
    "latency": Bar("16 slots: at most 3 times the latency", 3, "ratio"),
    "lost": Bar("limits: no row lost", 0),
    "auto": Bar("no limit: at least 0.8 times 128 at once", 0.8, "ratio", least=True),
    # redis_store.py
    "Redis booking": Bar("Redis hold + settle: at most 3 times", 3, "ratio"),
    "Redis hit": Bar("Redis hit: within 3 ms", 3e-3),
    # workers.py
    "workers": Bar("CPU of a row on Dask: at most 2 times", 2, "ratio"),
}
