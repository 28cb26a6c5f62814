"""A request to its answer, on screen: now, in the background, or of several models at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from llm_magic.background import Pending, come, together
from llm_magic.chats import NOWHERE, Place
from llm_magic.run import Run
from llm_magic.session import Session
from llm_magic.types import Comparison, Request, Response, Wish
from llm_magic.views import Silent, View, undivided

if TYPE_CHECKING:
    from llm_magic.views.columns import Columns

After = Callable[[Response], str]
_SILENT = Silent()
_AS_USUAL = Wish()


def ask(
    session: Session,
    request: Request,
    view: View = _SILENT,
    wish: Wish = _AS_USUAL,
    place: Place = NOWHERE,
    after: After | None = None,
) -> Response:
    """Finds the answer, or asks and waits, drawing meanwhile.

    Args:
        session: The kernel's.
        request: What is asked.
        view: Where it is drawn.
        wish: How the call is made.
        place: In a conversation, which the whole answer continues.
        after: Does something with the whole answer, and says what in the status line.

    Raises:
        LLMError: What went wrong; what had arrived is drawn and kept in its ``text``.
        Interrupted: On Ctrl-C or Stop; likewise.
    """
    try:
        response = session.desk.find(request, wish, session.cell)
        response = response or _run(session, request, view, wish).through()
        return _finish(session, request, response, view, place, after)
    finally:
        session.desk.warn()


def start(
    session: Session, request: Request, view: View, wish: Wish, place: Place = NOWHERE
) -> Pending:
    """Finds the answer, or begins to ask, and goes on in the background.

    Args:
        session: The kernel's.
        request: What is asked.
        view: Where it is drawn, from another thread.
        wish: How the call is made.
        place: In a conversation, which the whole answer continues.

    Raises:
        LLMError: It cannot even be started.
    """
    try:
        if response := session.desk.find(request, wish, session.cell):
            return come(response.model, _finish(session, request, response, view, place))
        run = _run(session, request, view, wish, alone=True)
        run.begin()
    finally:
        session.desk.warn()

    def rest() -> Response:
        return _finish(session, request, run.end(), view, place)

    return session.background.go_on(run.label, rest, run.feed.halt)


def compare(
    session: Session, requests: Sequence[Request], columns: Columns, wish: Wish
) -> Comparison:
    """Asks several models at the same time, and waits for all of them.

    Args:
        session: The kernel's.
        requests: One for each model.
        columns: Where they are drawn.
        wish: How the calls are made.

    Raises:
        LLMError: What went wrong with the first that failed; all are drawn.
        Interrupted: On Ctrl-C or Stop; likewise.
    """
    runs = [
        _run(session, request, columns.column(place), wish, alone=True)
        for place, request in enumerate(requests)
    ]

    def stop() -> None:
        for run in runs:
            run.feed.halt()

    try:
        columns.start(stop)
        answers = together([partial(_through, session, run, wish) for run in runs], stop)
    finally:
        with undivided():
            columns.finish()
        session.desk.warn()
    return Comparison(zip((each.model for each in requests), answers, strict=True))


def _through(session: Session, run: Run, wish: Wish) -> Response:
    """The answer of one of several calls: found, or asked."""
    response = session.desk.find(run.request, wish, session.cell) or run.through()
    return _finish(session, run.request, response, run.view)


def _run(session: Session, request: Request, view: View, wish: Wish, *, alone: bool = False) -> Run:
    return Run(
        request,
        view,
        lambda feed: session.submit(request, feed, wish),
        feedback=bool(session.settings.feedback),
        alone=alone,
    )


def _finish(
    session: Session,
    request: Request,
    response: Response,
    view: View,
    place: Place = NOWHERE,
    after: After | None = None,
) -> Response:
    """Takes a whole answer down in its conversation, and draws its final form."""
    drawn, feedback = not isinstance(view, Silent), bool(session.settings.feedback)
    status = ""
    try:
        kept = place.keep(request, response, told=drawn and feedback)
        notes = [kept, after(response) if after else ""]
        if drawn and feedback:
            status = _status(session, response, *notes)
    finally:
        # Also where Ctrl-C comes only now: the answer is whole, and a widget would be left over.
        if drawn:
            with undivided():
                view.finish(response.value, status, response.reasoning)
    return response


def _status(session: Session, response: Response, *notes: str) -> str:
    """The line with an answer: with what is left of a budget, and notes."""
    desk = session.desk
    parts = [response.status(), desk.budget() if desk.in_usd else "", *notes]
    return " · ".join(part for part in parts if part)
