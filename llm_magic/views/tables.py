"""Small tables about usage, limits and stores: plain text in a terminal, HTML in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_magic import plain
from llm_magic.views.render import escaped

_BAR_CELLS = 20


def bar(used: float, cap: float) -> str:
    """A bar of blocks, the same in text and HTML: ``███████░░░░░░░ 35 %``."""
    share = 1.0 if cap <= 0 else min(1.0, used / cap)
    full = int(share * _BAR_CELLS + 0.5)
    return f"{'█' * full}{'░' * (_BAR_CELLS - full)} {share:.0%}".replace("%", " %")


@dataclass(frozen=True)
class Table:
    """Rows of short texts.

    Attributes:
        columns: Their headings; those that start with a blank are set to the right.
        rows: As many texts in each as there are columns.
        title: A line above; may be empty.
        note: Lines below; may be empty.
        total: Whether the last row is a sum of the others.
        wraps: Columns, by their place, whose texts may go on in a second line on a page.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    note: str = ""
    total: bool = False
    wraps: tuple[int, ...] = ()

    def __repr__(self) -> str:
        lines = [plain.lines(self.title)] if self.title else []
        if self.rows:
            head = tuple(plain.label(column.strip()) for column in self.columns)
            rows = [tuple(plain.label(cell) for cell in row) for row in self.rows]
            widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
            rule = tuple("─" * width for width in widths)
            table = [head, rule, *rows]
            if self.total and len(rows) > 1:
                table.insert(-1, rule)
            lines += [self._line(row, widths) for row in table]
        return "\n".join([*lines, plain.lines(self.note)] if self.note else lines)

    def _line(self, row: tuple[str, ...], widths: list[int]) -> str:
        cells = [
            cell.rjust(width) if self._right(place) else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    def _repr_html_(self) -> str:
        title = f"<p>{escaped(self.title)}</p>" if self.title else ""
        note = "".join(f"<p><small>{escaped(line)}</small></p>" for line in self.note.splitlines())
        if not self.rows:
            return title + note
        last = len(self.rows) - 1
        body = "".join(
            self._row(row, "th" if self.total and place == last else "td")
            for place, row in enumerate(self.rows)
        )
        head = self._row(tuple(column.strip() for column in self.columns), "th")
        return f"{title}<table><thead>{head}</thead><tbody>{body}</tbody></table>{note}"

    def _row(self, row: tuple[str, ...], tag: str) -> str:
        cells = "".join(
            f'<{tag} style="text-align:{"right" if self._right(place) else "left"}'
            f'{"" if place in self.wraps else ";white-space:nowrap"}">{escaped(cell)}</{tag}>'
            for place, cell in enumerate(row)
        )
        return f"<tr>{cells}</tr>"

    def _right(self, place: int) -> bool:
        return self.columns[place].startswith(" ")
