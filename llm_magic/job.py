"""What is to be done with a table: its rows, the prompt, and how each row is asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from llm_magic.errors import PromptError
from llm_magic.prompt import ROW, Named, Template, render, written
from llm_magic.session import Session
from llm_magic.table import Source, source
from llm_magic.types import Request, Wish

# Columns that an error names.
_SHOWN = 5


@dataclass(frozen=True)
class Job:
    """What is to be done with a table.

    Attributes:
        source: The rows.
        template: The prompt of a row.
        base: The request of a row but for its prompt: the last message is replaced.
        wish: How calls are made; ``max_cost`` is that of the whole run.
        at_once: Rows on their way at the same time; None lets the gate find out.
        places: The rows to do, by number; None for all.
        type_: What an answer must be, as the user wrote it.
        team: The workers that ask the rows; None for this kernel.
    """

    source: Source
    template: Template
    base: Request
    wish: Wish
    at_once: int | None = None
    places: Sequence[int] | None = None
    type_: Any = str
    team: Any = None

    @property
    def total(self) -> int | None:
        """How many rows; None where nobody knows."""
        return self.source.count if self.places is None else len(self.places)

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Each row with its number."""
        places = itertools.count() if self.places is None else iter(self.places)
        uses = self.template.uses
        return zip(
            places, self.source.rows(self.places, None if "row" in uses else uses), strict=False
        )

    def request(self, row: Mapping[str, Any]) -> Request:
        """What is asked about a row.

        Raises:
            LLMError: The template fails with this row.
        """
        content = self.template.render({ROW: True, **row, "row": Named(row)})
        messages = (*self.base.messages[:-1], {"role": "user", "content": content})
        return replace(self.base, messages=messages)


def job_for(
    session: Session,
    frame: Any,
    prompt: str,
    names: Mapping[str, Any],
    *,
    wish: Wish,
    concurrency: int | str = "auto",
    sample: int | None = None,
    system: str | None = None,
    **options: Any,
) -> Job:
    """A job from what the user says.

    Args:
        session: The kernel's.
        frame: The table.
        prompt: The template.
        names: The notebook's namespace.
        wish: How calls are made.
        concurrency: ``"auto"``, or how many rows may be on their way at once.
        sample: Do only so many rows, evenly spaced; None for all.
        system: System message, a template over the notebook's names.
        **options: Of ``Session.request``.

    Raises:
        PromptError: Something of it makes no sense.
    """
    rows = source(frame)
    template = Template(prompt, names, columns=rows.names)
    _check_takes(prompt, template.uses, rows.names, names)
    if system:
        system = str(render(system, names))
    base = session.request("", system=system, **options)
    return Job(
        rows,
        template,
        base,
        wish,
        _at_once(concurrency),
        _sampled(rows, sample),
        options.get("schema", str),
    )


def _check_takes(
    prompt: str, uses: Set[str], columns: Sequence[str], names: Mapping[str, Any]
) -> None:
    """Refuses a prompt that takes nothing of a row, as with ``{text}`` in single braces."""
    if not prompt.strip():
        raise PromptError(
            "The prompt is empty; nothing was sent.",
            fix="Write it with the columns of a row in it: Who wrote this? {{ text }}",
        )
    # Names that are nowhere have an error of their own, which knows the nearest.
    if not columns or uses & {"row", *columns} or uses - names.keys():
        return
    meant = next((name for name in columns if f"{{{name}}}" in prompt), columns[0])
    shown = ", ".join(columns[:_SHOWN]) + (", …" if len(columns) > _SHOWN else "")
    raise PromptError(
        f"The prompt takes no column of a row ({shown}), so it is the same for all of them; "
        "nothing was sent.",
        fix=f"Name one in double braces: {{{{ {written(meant)} }}}}. A question about the whole "
        "table is a %%llm cell.",
    )


def _at_once(concurrency: int | str) -> int | None:
    if concurrency == "auto":
        return None
    try:
        number = int(concurrency)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise PromptError(
            f"concurrency={concurrency!r} is no number of rows; nothing was sent.",
            fix='Give a number from 1 on, or "auto", which finds out what the server takes.',
        )
    return number


def _sampled(rows: Source, sample: int | None) -> Sequence[int] | None:
    """The numbers of the rows in a sample; None for all."""
    if sample is None:
        return None
    if sample < 1:
        raise PromptError(
            f"sample={sample} is no number of rows; nothing was sent.", fix="For example: 20"
        )
    if rows.count is None:
        raise PromptError(
            "Rows from an iterator cannot be sampled, since nobody knows how many there are; "
            "nothing was sent.",
            fix=f"Take the first ones yourself: itertools.islice(rows, {sample})",
        )
    if sample >= rows.count:
        return None
    return [number * rows.count // sample for number in range(sample)]
