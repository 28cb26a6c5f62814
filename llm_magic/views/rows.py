"""The parts of a run over rows as HTML and text: plan, bar, first rows, errors, the saved form.

Cells, names and errors are words of a model, a server or a file: all of them are escaped and cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_magic import plain
from llm_magic.progress import NO_CAP, PREVIEW_ROWS, Plan, Standing, Summary
from llm_magic.units import usd
from llm_magic.views.render import escaped, line_html, status_html
from llm_magic.views.tables import Table

_SHORTEST_CELL, _LONGEST_CELL, _LONGEST_ERROR, _LONGEST_PROMPT = 8, 60, 160, 2_000
_MOST_ERRORS, _MOST_NUMBERS = 10, 5
_SAVED_WIDTH = 120
# JupyterLab's blue and the colour of its lines, which follow the theme; grey where there are none.
_DONE, _REST = "var(--jp-brand-color1, #1976d2)", "var(--jp-border-color1, #bdbdbd)"


def bar_html(standing: Standing) -> str:
    """A bar, also for screen readers; empty where nobody knows how many rows there are."""
    # Not <progress>: its track is white in dark themes, and its colours need a style sheet.
    if standing.share is None:
        return ""
    percent = f"{100 * standing.share:.1f}"
    return (
        f'<span role="progressbar" aria-label="rows done" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}" style="display: inline-block; vertical-align: middle; '
        "width: 9em; height: 5px; border-radius: 3px; margin-right: 0.8em; "
        f'background: linear-gradient(to right, {_DONE} {percent}%, {_REST} {percent}%)"></span>'
    )


def standing_html(standing: Standing) -> str:
    """The bar and the line beside it."""
    return bar_html(standing) + line_html(standing.line())


def plan_html(plan: Plan | None) -> str:
    """What was to be expected, and folded away in it the first prompts."""
    if plan is None:
        return ""
    if not plan.prompts:
        return status_html(plan.line())
    line = f"<small>{line_html(plan.line())}</small>"
    return f"<details><summary>{line}</summary>{_prompts_html(plan)}</details>"


def _prompts_html(plan: Plan) -> str:
    return f'<pre style="white-space: pre-wrap">{escaped(_prompts(plan))}</pre>'


def _prompts(plan: Plan) -> str:
    return "\n\n".join(
        f"[prompt {place}]\n{_cut(prompt, _LONGEST_PROMPT)}"
        for place, prompt in enumerate(plan.prompts, 1)
    )


def first_rows(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    room: int | None = None,
    width: int | None = None,
) -> Table:
    """A table of the first rows.

    Args:
        names: Its columns; without them it is empty.
        rows: The rows that are there.
        room: So many lines in all, those that are to come as dots: the table does not grow.
        width: Characters that a line should not be wider than.
    """
    texts = [[plain.label(each).strip() for each in line] for line in (names, *rows)]
    longest = _LONGEST_CELL if width is None else _share(texts, width)
    # A blank in front would set the column to the right.
    columns, *cells = (tuple(_cut(each, longest) for each in line) for line in texts)
    waiting = [("…", *[""] * (len(columns) - 1))] * ((room or 0) - len(cells))
    return Table(columns, [*cells, *waiting] if columns else [])


def _share(texts: Sequence[Sequence[str]], width: int) -> int:
    """How wide a column may be so that all fit; narrow ones leave their room to the others."""
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    room = width - 2 * (len(widths) - 1)
    for longest in range(_LONGEST_CELL, _SHORTEST_CELL, -1):
        if sum(min(each, longest) for each in widths) <= room:
            return longest
    return _SHORTEST_CELL


def growing_rows(standing: Standing) -> str:
    """The first rows as they arrive, and below them the last error."""
    room = PREVIEW_ROWS if standing.total is None else min(PREVIEW_ROWS, standing.total)
    table = first_rows(standing.names, standing.rows, room=room)
    problem = _cut(plain.label(standing.problem), _LONGEST_ERROR)
    return table._repr_html_() + (status_html(f"last error: {problem}") if problem else "")


def errors_table(errors: Sequence[tuple[str, int, tuple[int, ...]]]) -> Table:
    """The errors of a run, one line for each message."""
    rows = []
    for message, count, numbers in errors[:_MOST_ERRORS]:
        which = ", ".join(f"{number:,}" for number in numbers[:_MOST_NUMBERS])
        more = ", …" if count > len(numbers[:_MOST_NUMBERS]) else ""
        rows.append((_cut(plain.label(message), _LONGEST_ERROR), f"{count:,}", which + more))
    left_out = errors[_MOST_ERRORS:]
    # Messages that name what they found, such as a number, can all be different.
    note = (
        f"and {len(left_out):,} other messages, of {sum(each[1] for each in left_out):,} rows"
        if left_out
        else ""
    )
    return Table(("error", " rows", "in row"), rows, note=note, wraps=(0,))


def saved_rows(summary: Summary, plan: Plan | None = None) -> dict[str, Any]:
    """The bundle that is saved: headline, plan, first rows, errors."""
    # In the order in which the same stand in the live form, so that nothing moves at the end.
    html = status_html(summary.headline) + plan_html(plan)
    html += "".join(each._repr_html_() for each in _tables(summary))
    text = f"{plain.lines(summary.headline)}\n{rows_text(summary, _SAVED_WIDTH)}"
    return {"text/plain": text.rstrip(), "text/html": html}


def rows_text(summary: Summary, width: int | None = None) -> str:
    """The tables as plain text.

    Args:
        summary: What came of the run.
        width: Characters that a line of the first rows should not be wider than.
    """
    return "".join(f"\n{each!r}\n" for each in _tables(summary, width))


def _tables(summary: Summary, width: int | None = None) -> list[Table]:
    tables = first_rows(summary.names, summary.rows, width=width), errors_table(summary.errors)
    return [table for table in tables if table.rows]


@dataclass(frozen=True)
class PlanReport:
    """What a dry run shows: numbers, and the first prompts as they would be sent.

    Attributes:
        plan: What the run would do.
    """

    plan: Plan

    def __repr__(self) -> str:
        return plain.lines(f"{self._table()!r}\n\n{_prompts(self.plan)}".rstrip())

    def _repr_html_(self) -> str:
        prompts = _prompts_html(self.plan) if self.plan.prompts else ""
        return self._table()._repr_html_() + prompts

    def _table(self) -> Table:
        plan = self.plan
        if plan.to_ask is None:
            # Nobody has looked at them: they are there once.
            rows = [("model", plan.model), ("rows", "not counted")]
        else:
            rows = [
                ("model", plan.model),
                ("rows", f"{plan.rows:,}"),
                ("equal to an earlier row", plan.counted(plan.equal)),
                ("in the cache", plan.counted(plan.cached)),
                ("to ask", plan.counted(plan.to_ask)),
                ("expected", self._expected()),
                ("at most", self._at_most()),
            ]
        if plan.budget is not None:
            rows.append(("limit of this run", usd(plan.budget)))
        known = [(name, value) for name, value in rows if value]
        warned = f"{plan.short()[0].upper()}{plan.short()[1:]}.\n" if plan.short() else ""
        return Table(("", " "), known, note=f"{warned}Nothing was sent.")

    def _expected(self) -> str:
        plan = self.plan
        if not plan.expected:
            return ""
        source = f" (from {plan.expected_from})" if plan.expected_from else ""
        return usd(plan.expected) + source

    def _at_most(self) -> str:
        plan = self.plan
        if plan.worst == 0:
            return "free"
        if plan.worst is None and plan.worst_tokens is None:
            return f"{NO_CAP}; --max-tokens sets one"
        tokens = f" ({plan.worst_tokens:,} tokens)" if plan.worst_tokens is not None else ""
        return usd(plan.worst) + tokens


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
