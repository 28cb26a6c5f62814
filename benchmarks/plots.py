"""How each grows, as small pictures: a curve for ours and for what it is compared with."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

Points = dict[str, dict[str, list[tuple[float, float]]]]


@dataclass(frozen=True)
class Plot:
    """One picture.

    Attributes:
        title: What grows.
        x: The words of the horizontal axis.
        y: The words of the vertical axis, with the unit.
        scale: What a value is multiplied by for that unit.
        words: The sentence below it.
        log: Whether both axes are logarithmic; else the vertical one starts at 0.
    """

    title: str
    x: str
    y: str
    scale: float
    words: str
    log: bool = True


PLOTS = {
    "page": Plot(
        "Bytes to the page",
        "tokens in the answer, at 2,000 tokens/s",
        "kB",
        1e-3,
        "A cell sends the page what has changed, so its bytes grow with the length of the answer; "
        "`display(Markdown)` for each token sends the whole text each time, and grows with its "
        "square.",
    ),
    "stream": Plot(
        "CPU of a streamed answer",
        "tokens in the answer, at full speed",
        "ms of CPU",
        1e3,
        "Reading and drawing a stream costs less CPU than the client's own loop, at any length.",
    ),
    "list": Plot(
        "CPU of a growing table",
        "objects in the list",
        "ms of CPU",
        1e3,
        "Showing a list of objects while it streams costs a small multiple of parsing it once, "
        "however long it is.",
    ),
    "entries": Plot(
        "A cached answer",
        "entries in the cache",
        "µs, median",
        1e6,
        "Among a hundred thousand answers a hit takes up to twice as long as where there is one, "
        "and so does a bare get.",
    ),
    "window": Plot(
        "Holding and settling a call",
        "calls in the window of the limit",
        "µs, median",
        1e6,
        "The ledger keeps running sums, so that a call is not dearer where many were counted "
        "before. `file` is the ledger of one machine; the others are servers.",
    ),
    "processes": Plot(
        "Kernels that share a ledger",
        "processes at once, a call each 20 ms",
        "µs, median",
        1e6,
        "Several kernels wait little for each other; many on few cores wait for the cores.",
    ),
    "rows": Plot(
        "A table",
        "rows, 128 at once, server of 20 ms",
        "s",
        1,
        "The time of a table grows with its rows, in the same way as that of a bare loop.",
    ),
    "memory": Plot(
        "Memory of very many rows",
        "rows of a generator",
        "MB",
        1,
        "Rows are pulled as they are needed and results are kept in typed columns: a row adds some "
        "tens of bytes.",
        log=False,
    ),
}
COLOURS = ("#0b6e4f", "#b3541e", "#3b5b92", "#7d4f9e", "#666666")
OURS = ("%%llm", "llm_magic", "live view", "hold", "file", "memory")


def draw(points: Points, folder: Path) -> list[str]:
    """Writes an SVG for each plot that has points; the names of those."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same file from the same points, its letters as text.
    mpl.rcParams.update({"svg.hashsalt": "llm_magic", "svg.fonttype": "none", "font.size": 9})
    folder.mkdir(exist_ok=True)
    drawn = [name for name in PLOTS if points.get(name)]
    for name in drawn:
        one(PLOTS[name], points[name], folder / f"{name}.svg")
    return drawn


def one(plot: Plot, curves: dict[str, list[tuple[float, float]]], target: Path) -> None:
    """One picture."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullLocator

    figure = Figure(figsize=(4.6, 3.0), layout="constrained", facecolor="white")
    axes = figure.subplots()
    # Ours first, so that it has the same colour everywhere.
    names = sorted(curves, key=lambda name: not name.startswith(OURS))
    for name, colour in zip(names, COLOURS, strict=False):
        xs, ys = zip(*sorted(curves[name]), strict=True)
        wide = 2.2 if name.startswith(OURS) else 1.4
        heights = [y * plot.scale for y in ys]
        axes.plot(xs, heights, "o-", label=name, color=colour, linewidth=wide, markersize=4)
    if plot.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        # A flat curve is to look flat: two decades at least.
        middle = (low * high) ** 0.5
        axes.set_ylim(min(low, middle / 10), max(high, middle * 10))
        # Where few sizes were measured, those are the ticks.
        sizes = sorted({x for curve in curves.values() for x, _ in curve})
        if all(later / one >= 1.9 for one, later in itertools.pairwise(sizes)):
            axes.set_xticks(sizes)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_locator(NullLocator())
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(target, metadata={"Date": None, "Creator": None})
