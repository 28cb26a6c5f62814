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
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.util import Finalize
from typing import Any

from llm_magic.distributed.hired import Chunk, ChunkJob, Hired, Prompts
from llm_magic.distributed.parcel import Parcel
from llm_magic.distributed.spec import Spec, process_group, session_for, unpacked
from llm_magic.errors import StoreError
from llm_magic.gate import Gate
from llm_magic.job import Job
from llm_magic.outcome import Outcome
from llm_magic.prompt import Content, Template
from llm_magic.table import source


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
        prompts = Prompts([content for _, content in rows])
        job = ChunkJob(
            prompts,  # type: ignore[arg-type]
            Template("", {}),
            spec.request,
            replace(spec.wish, max_cost=None),
            at_once,
            [place for place, _ in rows],
        )
        run, began = Chunk(session, job, spec, number), time.monotonic()
        _wait(session.run(run.through()), run)
        parcel = run.collected.whole()
        gate: Gate = session.gate(job.base)
        parcel.spent += run.purse.spent
        parcel.seconds = time.monotonic() - began
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
            run = Hired(session, job, outcome, spec)
            _wait(session.run(run.through()), run)
            if outcome.ended and not (outcome.asked or outcome.cached or outcome.failures):
                raise outcome.ended
        outcome.close(None)
        return outcome.frame(None)


def _wait(future: Future[None], run: Hired) -> None:
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
def _halted_by_interrupt(run: Hired) -> Iterator[None]:
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
