"""One call from the side of the cell: begun, drawn while it comes, and ended in whatever way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from llm_magic.errors import Interrupted, LLMError
from llm_magic.types import Request, Response, Usage
from llm_magic.views import Feed, View, undivided, uninterrupted

SETTLE_SECONDS = 0.3
"""How long an interrupted cell waits for its connection to be closed and counted."""


class Run:
    """A call and its view.

    Args:
        request: What is asked.
        view: Where it is drawn.
        submit: Starts the call on the loop's thread.
        feedback: Show a line about it.
        alone: Nobody is there to raise an error to, so that the view has to tell it.
    """

    def __init__(
        self,
        request: Request,
        view: View,
        submit: Callable[[Feed], Future[Response]],
        *,
        feedback: bool = True,
        alone: bool = False,
    ) -> None:
        self.request = request
        self.label = request.model or "the server's model"
        self.feed = Feed()
        self.view = view
        self._submit = submit
        self._feedback = feedback
        self._alone = alone
        self._future: Future[Response] = Future()

    def begin(self) -> None:
        """Sends the request, and shows that it is on its way.

        Raises:
            LLMError: It cannot even be started: no key, no ledger, no prices.
            Interrupted: On Ctrl-C.
        """
        with self._shown_to_its_end():
            self._future = self._submit(self.feed)
            self._future.add_done_callback(lambda _: self.feed.close())
            self.view.start(self.label, self.feed.halt)

    def end(self) -> Response:
        """Draws until the answer is whole.

        Raises:
            LLMError: What went wrong; what had arrived is drawn and kept in its ``text``.
            Interrupted: On Ctrl-C or Stop; likewise.
        """
        with self._shown_to_its_end():
            self.feed.follow(self.view)
            return self._future.result()

    def through(self) -> Response:
        """Begins, and draws until the answer is whole.

        Raises:
            LLMError: As ``begin`` and ``end``.
            Interrupted: Likewise.
        """
        self.begin()
        return self.end()

    @contextmanager
    def _shown_to_its_end(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            with uninterrupted():
                partial = self._stop()
                self._finish(partial.text, f"{partial.status()} · stopped, incomplete")
            stopped = Interrupted(_stopped_message(partial), partial)
            stopped.by_button = self.feed.halted
            raise stopped from None
        except Exception as error:
            came = self.feed.text()
            told = _incomplete(error) if came else ""
            if self._alone:
                told = " · ".join(filter(None, [told, f"{type(error).__name__}: {error}"]))
            # Ctrl-C comes behind it: a widget would be left over else.
            with undivided():
                self._finish(came, told)
            raise

    def _finish(self, text: str, status: str) -> None:
        if not (self._feedback or self._alone):
            status = ""
        # Half an object is code.
        answer = f"```json\n{text}\n```" if text and self.request.schema else text
        self.view.finish(answer, status, self.feed.thoughts())

    def _stop(self) -> Response:
        """Cancels the call and collects what it had."""
        self._future.cancel()
        if settled := self.feed.settle(SETTLE_SECONDS):
            return settled
        text = self.feed.text()
        usage = Usage(estimated=True)
        return Response(text, usage, self.request.model, "interrupted", value=text)


def _incomplete(error: Exception) -> str:
    known = (error.model, error.usage) if isinstance(error, LLMError) else ()
    return " · ".join(str(part) for part in (*known, "incomplete") if part)


def _stopped_message(partial: Response) -> str:
    kept = (
        f"the {len(partial.text):,} characters that came are in sys.last_value.text"
        if partial.text
        else "nothing had come yet"
    )
    return f"The answer was stopped; {kept}.\nRun the cell again to ask anew."
