"""The part of a run that a worker does: a chunk of rows, or a partition of a Dask frame.

A process keeps the session of a run for all of its chunks: connections, the pace that was found.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from typing import Any

from llm_magic.distributed.parcel import Parcel, Plain, plain_error, plain_response
from llm_magic.distributed.spec import Spec, process_group, session_for, unpacked
from llm_magic.engine import Call
from llm_magic.errors import AuthenticationFailed, LLMError, StoreError
from llm_magic.gate import Gate
from llm_magic.job import Job
from llm_magic.ledger import nanos
from llm_magic.meeting import STOPPED, Meeting
from llm_magic.outcome import Outcome
from llm_magic.progress import Standing
from llm_magic.prompt import Content, Template
from llm_magic.rows import Run
from llm_magic.session import Session
from llm_magic.shelf import Shelf
from llm_magic.table import source
from llm_magic.types import Request, Response

_CONTENT = "content"


def run_chunk(
    spec: bytes, number: int, rows: Sequence[tuple[int, Content]], at_once: int | None = None
) -> Parcel:
    """Asks for the rows of a chunk, on a worker.

    Args:
        spec: What the run is.
        number: The chunk's number in it.
        rows: Place and prompt of each.
        at_once: Rows on their way at the same time in one process; None lets its gate find out.

    Raises:
        LLMError: It cannot even begin.
    """
    with _crew(spec) as crew:
        return crew.chunk(number, rows, at_once)


def run_partition(frame: Any, spec: bytes) -> Any:
    """Asks for the rows of a partition, on a worker; gives them with their new columns.

    Raises:
        LLMError: Nothing could be asked at all.
    """
    with _crew(spec) as crew:
        return crew.partition(frame)


class _Prompts:
    """Prompts as rows."""

    names = (_CONTENT,)

    def __init__(self, prompts: Sequence[Content]) -> None:
        self._prompts = prompts

    @property
    def count(self) -> int:
        return len(self._prompts)

    def rows(self, *_: Any) -> Iterator[dict[str, Any]]:
        return ({_CONTENT: prompt} for prompt in self._prompts)

    def frame(self, *_: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class _ChunkJob(Job):
    """A job whose prompts are written already."""

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Each row with its place."""
        return zip(self.places or (), self.source.rows(), strict=True)

    def request(self, row: Mapping[str, Any]) -> Request:
        """What is asked about a row."""
        messages = (*self.base.messages[:-1], {"role": "user", "content": row[_CONTENT]})
        return replace(self.base, messages=messages)


class _Collected:
    """What came of a chunk, in place of the columns that a kernel has."""

    wants_rows = False

    def __init__(self) -> None:
        self.parcel = Parcel()
        self.ended: LLMError | None = None
        self._twins: list[tuple[int, int]] = []
        self.since: float | None = None

    def begin(self, *_: Any) -> None:
        """Nothing."""

    def pulled(self, place: int) -> None:
        """Nothing."""

    def answered(self, place: int, response: Response, _: Any) -> None:
        """A row has its answer."""
        if self.since is not None and _came_after(self.since, response):
            # Paid by this run, on the worker that had the chunk before and was killed.
            cost = response.saved
            self.parcel.spent += nanos(cost) if cost else 0
            response = replace(response, cached=False, cost=cost)
        self.parcel.answers.append((place, plain_response(response)))

    def failed(self, place: int, error: LLMError) -> None:
        """A row has none."""
        self.parcel.failures.append((place, plain_error(error)))

    def equal(self, place: int, first: int) -> None:
        """A row is the same question as an earlier one."""
        self._twins.append((place, first))

    def standing(self, *_: Any) -> Standing:
        """Nobody looks."""
        return Standing(None)

    def whole(self) -> Parcel:
        """All of it, equal rows with the answers of the first."""
        parcel = self.parcel
        for rows in (parcel.answers, parcel.failures):
            by_place: dict[int, Plain] = dict(rows)
            rows += [(place, by_place[first]) for place, first in self._twins if first in by_place]
        parcel.ended = plain_error(self.ended) if self.ended else None
        return parcel


def _came_after(since: float, response: Response) -> bool:
    return response.cached and response.age is not None and time.time() - response.age >= since


class _Hired(Run):
    """A run on a worker: the same line, under the limits of the run that it is part of."""

    grace = 1.5

    def __init__(self, session: Session, job: Job, outcome: Any, spec: Spec) -> None:
        # What the whole run may come to is a limit in the shared ledger.
        super().__init__(session, job, outcome, cell=spec.cell)
        self._spec = spec
        self._again = False
        self.handed_out = threading.Event()

    def _find_meeting(self) -> Meeting | None:
        session, base = self._session, self.job.base
        return session.meeting(base, session.gate(base), self._spec.run)

    def halt_soon(self) -> None:
        """Ends it, from any thread."""
        self._session.run(self.halt())

    def _calling(self) -> Call:
        call = super()._calling()
        limits = [*call.terms.limits, *self._spec.limits]
        return replace(call, terms=replace(call.terms, limits=limits))

    async def _prepare(self) -> None:
        try:
            await super()._prepare()
        except AuthenticationFailed as error:
            raise AuthenticationFailed(
                f"A worker ({socket.gethostname()}) has no API key, and none is sent to workers; "
                "nothing was sent.",
                fix="Set LLM_MAGIC_API_KEY or OPENAI_API_KEY in the environment of the workers "
                "before they start.",
            ) from error


class _Chunk(_Hired):
    """A chunk of rows."""

    def __init__(self, session: Session, job: Job, spec: Spec, number: int) -> None:
        self.collected = _Collected()
        super().__init__(session, job, self.collected, spec)
        self._number = number

    async def through(self) -> None:
        """Asks for the rows, unless the run was stopped before."""
        meeting = self._find_meeting()
        met = await meeting.once(chunk=self._number) if meeting else None
        if met is not None:
            if met.state == STOPPED:
                return
            if not met.state:
                raise StoreError(
                    f"The Redis of a worker ({socket.gethostname()}) knows nothing of this run, so "
                    "it is another one than the notebook's; nothing was sent.",
                    fix="Give LLM_MAGIC_STORE of the workers the address of the notebook's Redis.",
                )
            self._again = met.begun > 1
            self.collected.since = self._spec.since if self._again else None
        await super().through()

    def _lookup(self) -> Shelf:
        shelf = self._call.shelf
        if not (self._again and shelf.writes):
            # The kernel has looked a moment ago; a call does so again when it has its hold.
            return replace(shelf, reads=False)
        # What the worker that was killed had asked is not asked again, --fresh or not.
        age = max(0.0, time.time() - self._spec.since)
        return shelf if shelf.reads else replace(shelf, reads=True, ttl=age)

    async def _next(self) -> Any:
        todo = await super()._next()
        if todo is None:
            self.handed_out.set()
        return todo

    async def _tell(self) -> None:
        """Nobody looks."""


class _Crew:
    """A run's session in this process."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.session = session_for(spec)
        self.at_work = 0
        # Whether the shared store has failed it.
        self.troubled = not spec.shared
        self.pid = os.getpid()
        if spec.group == process_group():
            _ignore_interrupts()

    def chunk(
        self, number: int, rows: Sequence[tuple[int, Content]], at_once: int | None
    ) -> Parcel:
        """Asks for these rows."""
        spec, session = self.spec, self.session
        prompts = _Prompts([content for _, content in rows])
        job = _ChunkJob(
            prompts,  # type: ignore[arg-type]
            Template("", {}),
            spec.request,
            replace(spec.wish, max_cost=None),
            at_once,
            [place for place, _ in rows],
        )
        run = _Chunk(session, job, spec, number)
        _wait(session.run(run.through()), run)
        parcel = run.collected.whole()
        gate: Gate = session.gate(job.base)
        parcel.spent += run.purse.spent
        parcel.who = f"{socket.gethostname()}:{os.getpid()}"
        parcel.window, parcel.rate = gate.window, gate.rate
        with _lock:
            parcel.troubles = session.desk.take_troubles()
            # Told once, and perhaps with another chunk.
            self.troubled = parcel.aside = self.troubled or bool(parcel.troubles)
        return parcel

    def partition(self, frame: Any) -> Any:
        """Asks for the rows of a frame."""
        spec, session = self.spec, self.session
        rows = source(frame)
        job = Job(
            rows,
            Template(spec.prompt, spec.names, columns=rows.names),
            spec.request,
            replace(spec.wish, max_cost=None),
            spec.at_once,
        )
        outcome = Outcome(rows, job.base.schema)
        if rows.count:
            run = _Hired(session, job, outcome, spec)
            _wait(session.run(run.through()), run)
            if outcome.ended and not (outcome.asked or outcome.cached or outcome.failures):
                raise outcome.ended
        outcome.close(None)
        return outcome.frame(None)


def _wait(future: Future[None], run: _Hired) -> None:
    """Waits for a run; once its last row has gone out, the worker may begin something else."""
    future.add_done_callback(lambda _: run.handed_out.set())
    try:
        with _halted_by_interrupt(run):
            run.handed_out.wait()
            if not future.done():
                _secede()
            future.result()
    except BaseException:
        future.cancel()
        raise


@contextmanager
def _halted_by_interrupt(run: _Hired) -> Iterator[None]:
    """Has Ctrl-C end a chunk in a child process, which gets it with its kernel, as it ends a run.

    Raised there, it would break the user's pool.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or multiprocessing.parent_process() is None:
        yield
        return
    former = signal.signal(signal.SIGINT, lambda *_: run.halt_soon())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _ignore_interrupts() -> None:
    """Has a Dask worker outlive Ctrl-C: a kernel's interrupt goes to all that it has started.

    Dask would close the worker, and not start another. The run itself is told by its kernel.
    """
    if "distributed" not in sys.modules:
        return
    from distributed import get_worker

    def ignore() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    # Not on a worker: there is nothing to close.
    with suppress(ValueError):
        get_worker().loop.add_callback(ignore)


def _secede() -> None:
    """Gives a Dask worker's thread back while the last answers are on their way."""
    if "distributed" not in sys.modules:
        return
    from distributed import get_worker, secede

    # Not on a worker; or its thread is given back already.
    with suppress(ValueError, AssertionError, AttributeError, KeyError):
        get_worker()
        secede()  # type: ignore[no-untyped-call]


_crews: dict[bytes, _Crew] = {}
_lock = threading.Lock()
_closes_in = 0


def _close_at_exit() -> None:
    """Has the sessions closed when this process ends."""
    global _closes_in
    if _closes_in != os.getpid():
        _closes_in = os.getpid()
        # The children of multiprocessing have their own end, and no atexit.
        Finalize(None, _close_all, exitpriority=1)


def _close_all() -> None:
    while _crews:
        with suppress(StoreError):
            _crews.popitem()[1].session.close()


@contextmanager
def _crew(data: bytes) -> Iterator[_Crew]:
    """The crew of a run, made with its first chunk; those of former runs are let go."""
    with _lock:
        crew = _crews.get(data)
        if crew is None or crew.pid != os.getpid():
            _let_go()
            crew = _crews[data] = _Crew(unpacked(data))
            _close_at_exit()
        crew.at_work += 1
    try:
        yield crew
    finally:
        with _lock:
            crew.at_work -= 1


def _let_go() -> None:
    """Closes the sessions of runs that nothing is asked for now."""
    for data, crew in list(_crews.items()):
        if crew.at_work and crew.pid == os.getpid():
            continue
        # What could not be booked while Redis was down is, or is tried again next time: it would
        # be taken for a call that is still under way, as long as this process lives.
        with suppress(StoreError):
            crew.session.close()
            del _crews[data]
