"""A run whose rows are asked by workers: gathered into chunks, sent, and taken as they come."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llm_magic.batches import Todo
from llm_magic.distributed.parcel import Parcel, error_of, response_of
from llm_magic.distributed.pools import Pool, failure, result
from llm_magic.distributed.spec import packed, run_name, spec_for
from llm_magic.distributed.worker import run_chunk
from llm_magic.entries import Fingerprint
from llm_magic.errors import InvalidAnswer, LLMError, QuotaExceeded, StoreError
from llm_magic.ledger import nanos
from llm_magic.meeting import EVERY, GOING, STOPPED, Meeting
from llm_magic.rows import GRACE, Run
from llm_magic.types import Response

if TYPE_CHECKING:
    from llm_magic.job import Job
    from llm_magic.outcome import Outcome
    from llm_magic.session import Session

FIRST, CHUNK = 64, 250
"""Rows of the first chunks, and of a chunk at most: what came is seen when a chunk is back."""
WORTH = 3.0
"""Seconds that a chunk is to take; and two windows of rows, so that a worker's stays full."""
CHARACTERS = 4_000_000
"""Characters of the prompts of a chunk, about: rows of pictures go in smaller ones."""
LINGER = 0.1
"""Seconds without another row after which a chunk goes as it is."""


@dataclass(frozen=True)
class Team:
    """Where the rows of a job are asked, if not in the kernel.

    Attributes:
        pool: The workers.
        shared: Whether they share cache, limits and pace through Redis.
    """

    pool: Pool
    shared: bool


class Abroad:
    """The gates of all workers, as a run is told of them."""

    held_until: float | None = None

    def __init__(self) -> None:
        self._workers: dict[str, tuple[int, float | None]] = {}

    def heard(self, parcel: Parcel) -> None:
        """What a worker said of its gate."""
        self._workers[parcel.who] = parcel.window, parcel.rate

    @property
    def window(self) -> int:
        """Requests that may be under way at a time."""
        return sum(window for window, _ in self._workers.values())

    @property
    def rate(self) -> float | None:
        """Requests a second; None where a worker knows no limit."""
        rates = [rate for _, rate in self._workers.values()]
        return sum(filter(None, rates)) if rates and None not in rates else None


class Shipped(Run):
    """One run over rows on several workers; lives on the session's loop.

    Args:
        session: The kernel's.
        job: What is to be done, with its team.
        outcome: Where it goes.
    """

    # A worker hears of the end within a second, and waits for its own last answers.
    grace = GRACE + 1.5

    def __init__(self, session: Session, job: Job, outcome: Outcome) -> None:
        super().__init__(session, job, outcome)
        self._team: Team = job.team
        self._name = run_name()
        self._numbers = itertools.count()
        self._gathering = asyncio.Lock()
        self._under_way: dict[Any, float] = {}
        self._slots = self._processes = 1
        self._abroad = Abroad()
        self._worth = FIRST
        self._spec: bytes | None = None
        # Rows of chunks that did not come back.
        self._lost: dict[int, Todo] = {}

    def _find_gate(self) -> Any:
        return self._abroad

    def _find_meeting(self) -> Meeting | None:
        if not self._team.shared:
            return None
        return self._session.meeting(self.job.base, None, self._name)

    async def through(self) -> None:
        """Has every row asked, and returns when no more is to be had.

        Raises:
            LLMError: Nothing can be asked at all.
        """
        self._since = time.time()
        await asyncio.to_thread(self._count_workers)
        await super().through()
        await self._recover()

    async def _prepare(self) -> None:
        """Makes what workers must know; the key is theirs to have."""
        if self._meeting:
            await self._meeting.once(state=GOING)
        self._spec = await asyncio.to_thread(self._packed)

    def _packed(self) -> bytes:
        shared = self._team.shared
        spec = spec_for(self._session, self.job, self._name, shared=shared, cell=self._cell)
        return packed(replace(spec, since=self._since))

    async def _meet(self) -> None:
        """Says that the run goes on, and sees how many workers there are."""
        while True:
            if self._meeting and self._ready:
                await self._meeting.once(state=STOPPED if self._halted.is_set() else GOING)
            with suppress(Exception):
                await asyncio.to_thread(self._count_workers)
            await asyncio.sleep(EVERY)

    def _count_workers(self) -> None:
        pool = self._team.pool
        self._slots, self._processes = pool.slots, pool.processes

    def _most(self) -> int:
        """Chunks that may be under way: two for each that runs, so that no worker waits."""
        most = 2 * self._slots
        return most if self.job.at_once is None else min(most, self.job.at_once)

    async def _work(self) -> None:
        """Sends chunks, one after the other."""
        while chunk := await self._chunk():
            try:
                await self._send(chunk)
            finally:
                self._held -= sum(todo.size for todo in chunk)
                self._room.set()
                self._crowd.leave()

    async def _chunk(self) -> list[Todo]:
        """The next rows, when a worker has room for them; nothing behind the last."""
        await self._crowd.enter()
        async with self._gathering:
            chunk = await self._gathered()
        if not chunk:
            self._crowd.leave()
        return chunk

    async def _gathered(self) -> list[Todo]:
        most, chunk, size = self._chunk_size(), list[Todo](), 0
        while len(chunk) < most and size < CHARACTERS:
            try:
                async with asyncio.timeout(LINGER if chunk else None):
                    todo = await self._queue.get()
            except TimeoutError:
                break
            if todo is None:
                # For the others.
                self._queue.put_nowait(None)
                break
            chunk.append(todo)
            size += todo.size
        return chunk

    def _chunk_size(self) -> int:
        """Rows of the next chunk: fewer where there would be none for some of the workers."""
        total, most = self.job.total, self._worth
        return most if total is None else max(1, min(most, -(-total // self._slots)))

    async def _send(self, chunk: list[Todo]) -> None:
        """Has a chunk done; what a limit refused is sent again once others have given room back."""
        left = {todo.place: todo for todo in chunk}
        while left and not self._halted.is_set():
            since = self._crowd.begin()
            try:
                refused = await self._done(left)
            except BaseException:
                self._crowd.ended()
                raise
            if refused is None:
                self._crowd.ended()
                return
            if not await self._crowd.refused(since):
                self._end(refused)

    async def _done(self, left: dict[int, Todo]) -> QuotaExceeded | None:
        """Has rows done, and takes off what came; gives why a limit refused the others."""
        rows = [(place, todo.request.messages[-1]["content"]) for place, todo in left.items()]
        pool, at_once = self._team.pool, self.job.at_once
        if at_once is not None:
            at_once = max(1, at_once // self._processes)
        task = run_chunk, self._spec, next(self._numbers), rows, at_once
        try:
            future = await asyncio.to_thread(pool.submit, *task)
        except Exception as error:  # noqa: BLE001
            # Whatever a pool says that takes nothing more.
            self._end(failure(error))
            return None
        self._under_way[future] = time.monotonic()
        try:
            parcel: Parcel = await result(future)
        except asyncio.CancelledError:
            self._cancel(future)
            self._lost.update(left)
            raise
        except Exception as error:  # noqa: BLE001
            # Whatever a worker raised, or became of it.
            self._lost.update(left)
            if not self._halted.is_set():
                self._end(failure(error))
            return None
        finally:
            del self._under_way[future]
            pool.release(future)
        await self._take_parcel(parcel, left)
        ended = error_of(parcel.ended) if parcel.ended else None
        if isinstance(ended, StoreError):
            ended.args = (f"A worker ({parcel.who}) cannot go on: {ended.args[0]}",)
        if isinstance(ended, QuotaExceeded):
            return ended
        if ended is not None:
            self._end(ended)
        return None

    async def _take_parcel(self, parcel: Parcel, left: dict[int, Todo]) -> None:
        self._abroad.heard(parcel)
        if parcel.rows:
            rows = len(parcel.rows) * WORTH / max(parcel.seconds, 0.001)
            self._worth = min(CHUNK, max(FIRST, 2 * parcel.window, int(rows)))
        self.purse.spent += parcel.spent
        for message, fix in parcel.troubles:
            self._session.desk.trouble(message, fix)
        schema = self.job.base.schema
        # The notebook's validators may take long, or ask a model themselves.
        read = await asyncio.to_thread(
            lambda: [
                (place, _fit(schema, response_of(each)) if answered else error_of(each))
                for place, answered, each in parcel.rows
            ]
        )
        kept: list[tuple[Fingerprint, Response]] = []
        for place, response in read:
            todo = left.pop(place)
            if isinstance(response, LLMError):
                self._fail(place, response)
                continue
            self._failures = 0
            self.outcome.answered(place, response, todo.row)
            if response.cached:
                self._session.desk.saved(response, self._cell)
            cost = response.saved if response.cached else response.cost
            kept.append((todo.print_, replace(response, cost=cost)))
        if parcel.aside or self._call.shelf.cassette:
            # A cassette takes down all; and what a worker has for itself is kept here as well.
            await asyncio.to_thread(self._call.shelf.keep_many, kept)

    async def _recover(self) -> None:
        """Takes from the cache what workers have paid that could not give it back."""
        shelf, lost = self._call.shelf, list(self._lost.values())
        if not (lost and self._team.shared and shelf.writes):
            return
        if not shelf.reads:
            shelf = replace(shelf, reads=True, ttl=time.time() - self._since)
        found = await asyncio.to_thread(shelf.find_many, [todo.print_ for todo in lost])
        for todo, kept in zip(lost, found, strict=True):
            response = kept and _fit(self.job.base.schema, kept)
            if isinstance(response, Response):
                self.purse.spent += nanos(response.saved) if response.saved else 0
                paid = replace(response, cached=False, cost=response.saved)
                self.outcome.answered(todo.place, paid, todo.row)

    def _stop_sending(self) -> None:
        super()._stop_sending()
        if self._meeting and self._ready:
            # Not when it is due: each second more is paid for.
            self._told = asyncio.ensure_future(self._meeting.once(state=STOPPED))
        elif not self._team.shared:
            # What is queued only: a chunk that runs cannot be told, and its answers are kept here.
            for future in list(self._under_way)[self._slots :]:
                self._cancel(future)

    def _cancel(self, future: Any) -> None:
        """Has a chunk not done. On another thread: a scheduler that is gone may not answer."""
        asyncio.get_running_loop().run_in_executor(None, self._team.pool.cancel, future)


def _fit(schema: Any, response: Response) -> Response | InvalidAnswer:
    """The response by the notebook's own classes."""
    if schema is None:
        return response
    try:
        fitted: Response = schema.fit(response)
    except InvalidAnswer as error:
        return error
    return fitted
