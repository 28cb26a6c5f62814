"""Answers that come while other cells run: ``--bg``, and several models at once: ``--compare``."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from llm_magic.errors import Interrupted
from llm_magic.types import Response, Usage
from llm_magic.views import uninterrupted, wait

_ENDING_SECONDS = 2.0


class Pending:
    """An answer that is still coming. It has the attributes of its Response, and waits for them.

    Args:
        label: Names the model.
        stop: Ends the call.
    """

    # Those of Response, for type checkers and completion; __getattr__ waits for them.
    text: str
    usage: Usage
    model: str
    finish_reason: str
    reasoning: str
    value: Any
    cost: Decimal | None
    cached: bool
    request: Mapping[str, Any]
    attempts: int
    seconds: float
    saved: Decimal | None
    age: float | None
    frame: Callable[[], Any]
    status: Callable[[], str]

    def __init__(self, label: str, stop: Callable[[], None]) -> None:
        self._label = label
        self._stop = stop
        self._future: Future[Response] = Future()
        self._ended = threading.Event()
        self._future.add_done_callback(lambda _: self._ended.set())

    def result(self, timeout: float | None = None) -> Response:
        """Waits for the answer.

        Args:
            timeout: Seconds to wait at most; None is for ever. The call goes on afterwards.

        Raises:
            LLMError: What went wrong with the call.
            Interrupted: It was stopped, here by Ctrl-C or before.
            TimeoutError: It is not there yet.
        """
        try:
            wait(self._ended, timeout)
        except KeyboardInterrupt:
            self.stop()
            wait(self._ended, _ENDING_SECONDS)
            if not self._ended.is_set():
                raise
            # Not this answer alone was meant.
            if isinstance(error := self._future.exception(), Interrupted):
                error.by_button = False
        if not self._ended.is_set():
            raise TimeoutError(f"The answer of {self._label} is not there yet; it is still coming.")
        return self._future.result()

    def done(self) -> bool:
        """Whether it has come to an end, good or bad."""
        return self._future.done()

    def now(self) -> Any:
        """The Response, once it is there; until then, or where none came, this object."""
        came = self.done() and self._future.exception() is None
        return self._future.result() if came else self

    def stop(self) -> None:
        """Ends the call; what has come stays on screen, marked."""
        self._stop()

    def __await__(self) -> Generator[Any, None, Response]:
        return asyncio.wrap_future(self._future).__await__()

    if not TYPE_CHECKING:  # so that a name that there is not is an error

        def __getattr__(self, name: str) -> Any:
            # Only what a Response has: IPython looks for other names, and must not wait.
            if name.startswith("_") or name not in _ATTRIBUTES:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self.result(), name)

    def __str__(self) -> str:
        return str(self.result())

    def __repr__(self) -> str:
        if not self.done():
            return f"<Pending answer of {self._label}; .result() waits for it, .stop() ends it>"
        error = self._future.exception()
        return repr(self._future.result()) if error is None else f"<Pending: {error!r}>"


_ATTRIBUTES = {*Response.__dataclass_fields__, "frame", "status"}


class Background:
    """The calls of one kernel that no cell waits for.

    Args:
        shell: The IPython shell, or None outside of one.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._pending: weakref.WeakSet[Pending] = weakref.WeakSet()
        self._watching = False

    def go_on(self, label: str, work: Callable[[], Response], stop: Callable[[], None]) -> Pending:
        """Ends a call on a thread of its own.

        Args:
            label: Names the model.
            work: Waits for the answer.
            stop: Ends the call.
        """
        self._watch()
        pending = Pending(label, stop)
        self._pending.add(pending)
        # With the cell's context: its outputs belong to the cell.
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(_work, pending, work), name="llm_magic --bg", daemon=True
        ).start()
        return pending

    def stop(self) -> None:
        """Ends all of them."""
        for pending in list(self._pending):
            if not pending.done():
                pending.stop()

    def _watch(self) -> None:
        """Sees to it that the kernel's interrupt ends them, whether a cell runs or not."""
        if self._shell is None or self._watching:
            return
        self._watching = True
        self._shell.events.register("post_run_cell", self._after_cell)
        kernel: Any = getattr(self._shell, "kernel", None)
        # An idle kernel ignores the signal, and restores this attribute's handler after each cell.
        if hasattr(kernel, "saved_sigint_handler"):
            before = kernel.saved_sigint_handler

            def interrupted(number: int, frame: Any) -> None:
                self.stop()
                if callable(before):
                    before(number, frame)

            kernel.saved_sigint_handler = interrupted

    def _after_cell(self, result: Any) -> None:
        # Without a result: Ctrl-C came before the cell's first line.
        error = KeyboardInterrupt() if result is None else result.error_in_exec
        # A Stop button means its own answer alone.
        if isinstance(error, KeyboardInterrupt) and not getattr(error, "by_button", False):
            self.stop()

    def close(self) -> None:
        """Ends all of them, and looks after nothing any more."""
        self.stop()
        if self._watching and self._shell is not None:
            self._watching = False
            self._shell.events.unregister("post_run_cell", self._after_cell)


def together(works: Sequence[Callable[[], Response]], stop: Callable[[], None]) -> list[Response]:
    """Does all of them at the same time, each on a thread of its own, and waits.

    Args:
        works: Each waits for an answer.
        stop: Ends all of them.

    Raises:
        LLMError: One of them went wrong; the others were brought to their end.
        Interrupted: On Ctrl-C or Stop.
    """
    pending = [Pending("", stop) for _ in works]
    begun: list[Pending] = []
    try:
        for each, work in zip(pending, works, strict=True):
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(_work, each, work), daemon=True).start()
            begun.append(each)
        for each in pending:
            wait(each._ended, None)
    except KeyboardInterrupt:
        stop()
        with uninterrupted():
            for each in begun:
                wait(each._ended, _ENDING_SECONDS)
        raise _first_error(pending) or KeyboardInterrupt() from None
    if error := _first_error(pending):
        raise error
    return [each._future.result() for each in pending]


def _first_error(pending: Sequence[Pending]) -> BaseException | None:
    errors = [each._future.exception() for each in pending if each.done()]
    return next(filter(None, errors), None)


def _work(pending: Pending, work: Callable[[], Response]) -> None:
    try:
        pending._future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - told by result()
        pending._future.set_exception(error)


def come(label: str, response: Response) -> Pending:
    """An answer that is there already."""
    pending = Pending(label, lambda: None)
    pending._future.set_result(response)
    return pending
