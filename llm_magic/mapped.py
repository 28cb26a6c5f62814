"""One prompt over a table, from the side of the cell: planned, drawn while it runs, and its end."""

from __future__ import annotations

import copy
import heapq
import re
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple

from llm_magic.errors import Interrupted, LLMError, PromptError, QuotaExceeded, RowsWarning
from llm_magic.job import Job
from llm_magic.outcome import Outcome
from llm_magic.progress import Plan, ProgressView, Summary, duration, row_count
from llm_magic.rows import Run, is_of_server
from llm_magic.session import Session
from llm_magic.types import Response, Usage
from llm_magic.units import usd
from llm_magic.views import uninterrupted, wait

_NAMED = 5
_BRIEF = 2
_ATTRIBUTE = "llm_magic"


class Mapped(NamedTuple):
    """What came of a run.

    Attributes:
        frame: The table with its new columns.
        totals: The counts.
        error: Why it is not whole; None where it is.
    """

    frame: Any
    totals: Totals
    error: BaseException | None


class Totals(dict[str, Any]):
    """What a run over rows came to, and the way to ask the failed ones again.

    ``llm_magic.totals(results)`` has it; for a pandas frame ``results.attrs["llm_magic"]`` as well.
    As a dict it has the same in plain numbers: what a file or a pickle of the frame has.

    Attributes:
        model: The model that was asked; empty for a server's only one.
        rows: Rows of the run.
        asked: Those that the server answered.
        cached: Those whose answer was there.
        equal: Those that have the answer of an equal row.
        failed: Those without an answer, though they were asked.
        not_sent: Those that were not asked, since the run ended before.
        cost: USD, failed rows included; None where a price is not known.
        usage: Tokens of the rows that the server answered.
        seconds: How long it took.
        errors: Row numbers (from 0) by what went wrong, the commonest first.
        message: Why it is not whole, and what to do; empty where it is.
    """

    model: str
    rows: int
    asked: int
    cached: int
    equal: int
    failed: int
    not_sent: int
    cost: Decimal | None
    usage: Usage
    seconds: float
    errors: Mapping[str, Sequence[int]]
    message: str

    def __init__(self, session: Session, job: Job, outcome: Outcome, message: str) -> None:
        self._session, self._job, self._outcome = session, job, outcome
        self.model = job.base.model
        self.rows, self.not_sent = outcome.rows, outcome.open
        self.asked, self.cached, self.equal = outcome.asked, outcome.cached, outcome.equals
        self.failed = outcome.failures
        self.cost = outcome.cost
        self.usage = outcome.usage
        self.seconds = outcome.seconds
        self.errors = {fault.message: list(fault.rows) for fault in outcome.faults}
        self.message = message
        super().__init__(self._plain())

    def _plain(self) -> dict[str, Any]:
        """What pandas writes into a Parquet file with the frame: as JSON, or not at all."""
        names = ("model", "rows", "asked", "cached", "equal", "failed", "not_sent", "seconds")
        return {
            **{name: getattr(self, name) for name in names},
            "cost": None if self.cost is None else float(self.cost),
            "input_tokens": self.usage.input_tokens,
            "output_tokens": self.usage.output_tokens,
            "errors": {message: len(rows) for message, rows in self.errors.items()},
            "message": self.message,
        }

    def retry_failed(self) -> Any:
        """Asks the rows again that have no answer.

        Returns:
            The whole table, their answers in it.

        Raises:
            LLMError: Nothing can be asked at all; or the rows came from an iterator and are gone.
        """
        from llm_magic.views.progress import choose_progress

        outcome = self._outcome
        if self._job.source.count is None:
            raise PromptError(
                "The rows came from an iterator and are gone; nothing was sent.",
                fix="Map a list of them: map_rows(list(rows), ...)",
            )
        job = replace(self._job, places=outcome.missing())
        session = self._session
        view = choose_progress(session.shell, widgets=session.settings.widgets)
        return tell(go_through(session, job, view, outcome, whole=self._job.places))

    def headline(self) -> str:
        """One line."""
        counts = [
            (self.asked, "asked"),
            (self.cached, "cached"),
            (self.equal, "equal"),
            (self.failed, "failed"),
            (self.not_sent, "not sent"),
        ]
        told = ", ".join(f"{count:,} {what}" for count, what in counts if count)
        cost = "free" if self.cost == 0 else usd(self.cost)
        head = row_count(self.rows)
        # Not of what was there already: a saved notebook then is the same each time.
        took = f" · {duration(self.seconds)}" if self.asked or self.seconds >= _BRIEF else ""
        return f"{head}{': ' if told else ''}{told} · {cost}{took}"

    def __repr__(self) -> str:
        return f"<Totals {self.headline()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither the session, which has a key, nor the table goes into a pickle.
        return dict, (dict(self),)

    # pandas copies the attributes of a frame with every step.
    def __copy__(self) -> Totals:
        return self

    def __deepcopy__(self, _: Any) -> Totals:
        return self


def go_through(
    session: Session,
    job: Job,
    view: ProgressView,
    outcome: Outcome | None = None,
    plan: Plan | None = None,
    whole: Sequence[int] | None = None,
    *,
    shown: bool = False,
) -> Mapped:
    """Asks for every row and draws how far it is; ends early on Ctrl-C, Stop or a limit.

    Args:
        session: The kernel's.
        job: What is to be done.
        view: Where it is drawn.
        outcome: Where the answers go; a new one unless rows are asked again.
        plan: What it would come to.
        whole: The rows of the result, by number; None for all.
        shown: Whether the cell shows the whole table, if it is whole.

    Raises:
        LLMError: Nothing could be asked at all.
        Interrupted: Likewise, on Ctrl-C or Stop before anything had come.
    """
    again = outcome is not None
    outcome = outcome or Outcome(job.source, job.base.schema)
    outcome.to_ask = plan.to_ask if plan else None
    places = whole if again else job.places
    run = _run(session, job, outcome)
    error: BaseException | None = None
    stopped = False
    try:
        stopped = _draw(session, run, view, plan)
    except BaseException as raised:
        error = raised
        raise
    finally:
        # Also where nothing could be asked: a widget must not stay with its button.
        with uninterrupted():
            outcome.close(places)
            error = error or _why(run, outcome, stopped)
            totals = Totals(session, run.job, outcome, str(error or ""))
            summary = _summary(totals, outcome, rows=not shown or error is not None)
            view.finish(outcome.standing(run.job.total), summary)
            session.desk.warn()
    if error is not None and not (outcome.asked or outcome.cached or outcome.failures):
        raise error
    return Mapped(_known(outcome.frame(places), totals), totals, error)


def _run(session: Session, job: Job, outcome: Outcome) -> Run:
    """The run: in this kernel, or on the job's workers."""
    if job.team is None:
        return Run(session, job, outcome)
    from llm_magic.distributed import Shipped

    return Shipped(session, job, outcome)


def _draw(session: Session, run: Run, view: ProgressView, plan: Plan | None) -> bool:
    """Draws until the run is over; returns whether somebody stopped it."""
    over, halted = threading.Event(), threading.Event()

    def stop() -> None:
        halted.set()
        session.run(run.halt())

    future: Future[None] = session.run(run.through())
    future.add_done_callback(lambda _: over.set())
    try:
        view.start(run.job.base.model or "the server's model", plan, stop)
        while not over.is_set():
            wait(over, view.draw(run.standing))
    except KeyboardInterrupt:
        stop()
        _leave(future, over, run.grace + 1)
    except BaseException:
        future.cancel()
        raise
    if not future.cancelled():
        future.result()
    return halted.is_set()


def _leave(future: Future[None], over: threading.Event, patience: float) -> None:
    """Waits for what is on its way and paid for; not on a second Ctrl-C."""
    with suppress(KeyboardInterrupt):
        wait(over, patience)
    if not over.is_set():
        future.cancel()
        wait(over, 1)


def _why(run: Run, outcome: Outcome, stopped: bool) -> BaseException | None:
    """Why a run is not whole, in words that say what to do."""
    if not (stopped and (outcome.open or not run.pulled)) and outcome.ended is None:
        return _nothing(outcome)
    done, total = outcome.rows - outcome.open, outcome.rows
    place = f"at {done:,} rows" if run.job.total is None else f"at {done:,} of {total:,} rows"
    wish = run.job.wish
    rest = "The others are marked in _error; " + (
        "ask them: llm_magic.totals(results).retry_failed()"
        if wish.fresh or wish.no_cache
        else "run the cell again to go on: what came is free."
    )
    if outcome.ended is None:
        partial = Response("", outcome.usage, run.job.base.model, "interrupted", cost=outcome.cost)
        if not done:
            place, rest = "before the first row had come", "Run the cell again to ask anew."
        return Interrupted(f"Stopped {place}.\n{rest}", partial)
    error = copy.copy(outcome.ended)
    if done:
        told = str(error.args[0]).replace("; nothing was sent.", ".")
        told = told.removesuffix(" Nothing was sent.")
        error.args = (f"Stopped {place}: {told}",)
        error.fix = f"{_enough(error, outcome.open)}\n{rest}".strip()
    return error


def _nothing(outcome: Outcome) -> BaseException | None:
    """That a server has answered no row at all: the cells below must not take it for a result."""
    if outcome.last is None or outcome.asked or outcome.cached or not is_of_server(outcome.last):
        return None
    error = copy.copy(outcome.last)
    error.args = (f"None of {row_count(outcome.rows)} has an answer: {error.args[0]}",)
    error.fix = f"{error.fix}\nSee _error; run the cell again to ask anew.".strip()
    return error


def _enough(error: LLMError, rows: int) -> str:
    """What to do, with a limit in requests that so many rows fit into, some of them retried."""
    if not isinstance(error, QuotaExceeded) or error.metric != "requests":
        return error.fix
    needed = error.used + rows
    most = needed + needed // 10
    return re.sub(r"(?<=--requests )\d+", lambda found: str(max(int(found[0]), most)), error.fix)


def _summary(totals: Totals, outcome: Outcome, *, rows: bool) -> Summary:
    return Summary(
        totals.headline(),
        tuple(
            (fault.message, len(fault.rows), tuple(heapq.nsmallest(_NAMED, fault.rows)))
            for fault in outcome.faults
        ),
        *(outcome.shown() if rows else ()),
    )


# Of frames that take no attributes; they are looked up by what they are, and not kept alive.
_of_frames: dict[int, tuple[weakref.ref[Any], Totals]] = {}


def _known(frame: Any, totals: Totals) -> Any:
    """The frame, from which the totals can be found."""
    if hasattr(frame, "attrs"):
        frame.attrs[_ATTRIBUTE] = totals
        return frame
    key = id(frame)
    _of_frames[key] = weakref.ref(frame, lambda _: _of_frames.pop(key, None)), totals
    return frame


def totals_of(results: Any) -> Totals:
    """What the run came to that gave these results.

    Args:
        results: What ``map_rows`` or ``%%llm_map`` returned.

    Raises:
        PromptError: They are no such results.
    """
    found = getattr(results, "attrs", {}).get(_ATTRIBUTE)
    if found is None and id(results) in _of_frames:
        found = _of_frames[id(results)][1]
    if not isinstance(found, Totals):
        raise PromptError(
            f"A {type(results).__name__} that no run over rows has returned has no totals.",
            fix="Give it what map_rows or %%llm_map returned, and not a part or a copy of it.",
        )
    return found


def tell(mapped: Mapped) -> Any:
    """The frame of a run that may have ended early, which is said as a warning."""
    if mapped.error is not None:
        warnings.warn_explicit(mapped.totals.message, RowsWarning, "llm_magic", 1)
    return mapped.frame
