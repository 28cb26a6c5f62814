"""One prompt for every row of a table: the run, from rows that are pulled to columns that fill.

A thread of its own renders a batch of rows and looks their answers up; a fixed number of tasks on
the session's loop takes what is missing through the engine, each row as a cell would be. Nothing is
kept for a row but its place in the columns, so that a million rows cost their columns.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llm_magic.batches import Batch, Batches, Todo
from llm_magic.bounds import Purse
from llm_magic.crowd import Crowd
from llm_magic.engine import Call, obtain
from llm_magic.errors import (
    AuthenticationFailed,
    ContextTooLong,
    LLMError,
    OutOfCredit,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    StoreError,
    StreamBroken,
    UnknownModel,
)
from llm_magic.job import Job
from llm_magic.lane import Halted
from llm_magic.meeting import EVERY, STOPPED, Meeting
from llm_magic.naming import with_model
from llm_magic.outcome import Outcome
from llm_magic.progress import Standing
from llm_magic.shelf import Shelf
from llm_magic.turns import tidied_seldom
from llm_magic.types import Request, Response
from llm_magic.window import MOST_BY_RATE

if TYPE_CHECKING:
    from llm_magic.decode import Piece
    from llm_magic.gate import Gate
    from llm_magic.session import Session

AHEAD = 64
"""Rows beyond those at the server that hold their worst case already, so that no place is empty."""
BATCH = 256
"""Rows that are rendered and looked up together."""
LARGEST = 64_000_000
"""Characters of prompts in memory, about: rows of pictures are read as there is room for them."""
GRACE = 2.0
"""Seconds that a stopped run waits for answers on their way: they are paid for."""
TOLD = 0.2
"""Seconds between two looks at how far a run is."""
OUTLASTED, PAUSE = 5, 1.0
"""How often a row whose store did not answer is asked for again, and the seconds before each: a
moment in which Redis is too busy, or its restart, does not end a run of hours."""
FAILURES = 50
"""A server that fails so many rows one after the other is asked no more."""
_FATAL = (AuthenticationFailed, OutOfCredit, RateLimited, StoreError, UnknownModel)


class _Deaf:
    """Nobody listens to the words of a row."""

    def piece(self, piece: Piece) -> None:
        """Nothing."""

    def notice(self, message: str) -> None:
        """Nothing."""

    def again(self, message: str) -> None:
        """Nothing."""

    def stopped(self, response: Response) -> None:
        """Nothing."""


_DEAF = _Deaf()


class Run:
    """One run over rows; lives on the session's loop.

    Args:
        session: The kernel's.
        job: What is to be done.
        outcome: Where it goes.
        cell: The cell that asks; None for the one that runs.

    Attributes:
        purse: What it spends.
        standing: How far it is, a moment ago; for other threads.
        pulled: Whether it has seen the last row.
        grace: Seconds that it waits for answers on their way, once it is stopped.
    """

    grace = GRACE

    def __init__(
        self, session: Session, job: Job, outcome: Outcome, *, cell: str | None = None
    ) -> None:
        self.job = job
        self.outcome = outcome
        self.purse = Purse(job.wish.max_cost)
        self._session = session
        self._wire = session.wire(job.base)
        self._ready = False
        self._cell = session.cell if cell is None else cell
        self._crowd = Crowd(self._most)
        self._queue: asyncio.Queue[Todo | None] = asyncio.Queue(2 * BATCH)
        # Characters of the rows that are not done, and that there are fewer now.
        self._held, self._room = 0, asyncio.Event()
        # Nothing more is sent; and nobody waits for answers any more.
        self._halted, self._left = asyncio.Event(), asyncio.Event()
        self._failures = 0
        self.standing = Standing(job.total)
        self._meeting: Meeting | None = None
        self._has_met = False
        self.pulled = False

    async def through(self) -> None:
        """Asks for every row, and returns when no more is to be had.

        Raises:
            LLMError: Nothing can be asked at all.
        """
        job = self.job
        self._gate = self._find_gate()
        self._call = self._calling()
        self.outcome.begin(self._gate, self.purse, job.places)
        if not job.base.model:
            self.job = replace(job, base=await self._with_model(job.base))
        self._meeting = self._find_meeting()
        count = (job.at_once or MOST_BY_RATE) + AHEAD
        with tidied_seldom():
            await self._all(min(count, max(1, job.total or count)))

    def _find_gate(self) -> Gate:
        """Where its rows wait for their turn."""
        return self._session.gate(self.job.base)

    def _find_meeting(self) -> Meeting | None:
        """Where it meets others who ask the same server."""
        return self._session.meeting(self.job.base, self._gate)

    def _calling(self) -> Call:
        """How each row is asked."""
        session, job = self._session, self.job
        wish = replace(job.wish, max_cost=None)
        return Call(
            limits=session.time_limits(),
            shelf=session.desk.shelf(wish),
            terms=replace(session.desk.terms(wish, self._cell), purse=self.purse),
            quota=session.desk.quota,
            flights=session.desk.flights,
            repairs=wish.repairs,
            gate=self._gate,
            at_once=job.at_once,
            stopped=self._halted.is_set,
        )

    async def _with_model(self, base: Request) -> Request:
        if self._call.shelf.replays:
            models = self._call.shelf.replayed_models(base)
            return replace(base, model=models[0] if models else "")
        return await with_model(base, self._wire, self._call.limits, self._call.shelf)

    async def halt(self) -> None:
        """Sends no more, and waits a moment for what is on its way."""
        self._left.set()
        self._stop_sending()

    async def _all(self, count: int) -> None:
        feeding = asyncio.create_task(self._feed())
        working = [asyncio.create_task(self._work()) for _ in range(count)]
        telling: asyncio.Future[Any] = asyncio.gather(self._tell(), self._meet())
        everyone = asyncio.gather(feeding, *working)
        try:
            # At a limit the other rows are looked up still: what is kept is free. An iterator may
            # have no end.
            known = self.job.total is not None
            if not await _until(everyone, self._left if known else self._halted):
                feeding.cancel()
                self._empty()
                # What is on its way is waited for as long as the user does.
                answered = asyncio.gather(*working, return_exceptions=True)
                if not await _until(answered, self._left):
                    await asyncio.wait(working, timeout=self.grace)
        finally:
            for task in (telling, feeding, *working):
                task.cancel()
            results = await asyncio.gather(*working, feeding, telling, return_exceptions=True)
            with suppress(asyncio.CancelledError, Exception):
                await everyone
            # What the last rows cost is booked behind their answers.
            await self._call.quota.written()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _tell(self) -> None:
        """Says how far it is, a few times a second."""
        while True:
            until = self._gate.held_until
            wait = until - asyncio.get_running_loop().time() if until else 0.0
            held = f"held by the server's rate limit for {wait:.0f} s" if wait >= 1 else ""
            self.standing = self.outcome.standing(self.job.total, held)
            await asyncio.sleep(TOLD)

    async def _meet(self) -> None:
        """Keeps to what others hear who ask the same server, as long as it lasts."""
        while self._meeting is not None:
            await asyncio.sleep(EVERY)
            met = await self._meeting.once()
            if met is not None and met.state == STOPPED:
                self._left.set()
                self._stop_sending()

    async def _feed(self) -> None:
        """Looks rows up, a batch at a time, and hands on what is missing."""
        batches = Batches(self.job, self._lookup(), lambda: self.outcome.wants_rows)
        # A small one first, so that there is something to see.
        for size in itertools.chain((16,), itertools.repeat(BATCH)):
            while self._held > LARGEST:
                self._room.clear()
                await self._room.wait()
            batch = await asyncio.to_thread(batches.next, size)
            if batch is None:
                break
            self._take(batch)
            if batch.todo and not self._ready:
                # Not before: what is kept is found without a key.
                self._ready = True
                try:
                    await self._prepare()
                except LLMError as error:
                    self._end(error)
            for todo in batch.todo:
                self._held += todo.size
                await self._queue.put(todo)
        self.outcome.ended = self.outcome.ended or batches.failure
        self.pulled = True
        await self._queue.put(None)

    def _lookup(self) -> Shelf:
        """Where rows are looked up before they are asked."""
        return self._call.shelf

    async def _prepare(self) -> None:
        """Makes what is needed to ask."""
        await self._wire.ready(whole=True)
        if self._meeting and not self._has_met:
            await self._meeting.once()

    def _take(self, batch: Batch) -> None:
        outcome = self.outcome
        for todo in batch.todo:
            outcome.pulled(todo.place)
        for place, error in batch.failed:
            outcome.failed(place, error)
        for place, first in batch.equal:
            outcome.equal(place, first)
        for todo, response in batch.found:
            outcome.answered(todo.place, response, todo.row)
            self._session.desk.saved(response, self._cell)

    def _empty(self) -> None:
        """Lets the workers find nothing more to do."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def _work(self) -> None:
        while todo := await self._next():
            try:
                response = await self._answer(todo)
            except LLMError as error:
                self._fail(todo.place, error)
            else:
                if response is None:
                    continue
                self._failures = 0
                self.outcome.answered(todo.place, response, todo.row)
            finally:
                self._held -= todo.size
                self._room.set()
                self._crowd.leave()

    async def _next(self) -> Todo | None:
        """The next row, when there is room for it; None behind the last."""
        await self._crowd.enter()
        todo = await self._queue.get()
        if todo is None:
            # For the others.
            self._queue.put_nowait(None)
            self._crowd.leave()
        return todo

    def _most(self) -> int:
        """Rows that may hold something: a few more than the gate lets go."""
        return (self.job.at_once or self._gate.window) + AHEAD

    async def _answer(self, todo: Todo) -> Response | None:
        """The answer for a row; None where the run ends before it could be asked."""
        left = OUTLASTED
        while not self._halted.is_set():
            since = self._crowd.begin()
            try:
                response = await obtain(
                    todo.request, todo.print_, wire=self._wire, sink=_DEAF, call=self._call
                )
            except Halted:
                self._crowd.ended()
                break
            except QuotaExceeded as error:
                # With something paid already it is this row's end, and not yet the run's.
                if error.usage is not None:
                    self._crowd.ended()
                    raise
                refused = error
            except StoreError as error:
                self._crowd.ended()
                # With something paid already, asking anew would pay that again.
                if not (error.passing and left) or error.usage is not None:
                    raise
                left -= 1
                await self._pause()
                continue
            except BaseException:
                self._crowd.ended()
                raise
            else:
                self._crowd.ended()
                return response
            if not await self._crowd.refused(since):
                self._end(refused)
        return None

    async def _pause(self) -> None:
        """Waits until the store may answer again, or the run is stopped."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PAUSE):
                await self._halted.wait()

    def _fail(self, place: int, error: LLMError) -> None:
        if isinstance(error, _FATAL):
            # No row is to blame for it.
            self._end(error)
            return
        self._failures = self._failures + 1 if is_of_server(error) else 0
        self.outcome.failed(place, error)
        if self._failures >= FAILURES:
            self._end(error)

    def _end(self, error: LLMError) -> None:
        """No more is sent, and why."""
        if self.outcome.ended is None and not self._halted.is_set():
            self.outcome.ended = error
        self._stop_sending()

    def _stop_sending(self) -> None:
        self._halted.set()
        self._crowd.open()


def is_of_server(error: LLMError) -> bool:
    """Whether an error is rather a server's fault than a row's."""
    return isinstance(error, ProviderError | StreamBroken) and not isinstance(error, ContextTooLong)


async def _until(work: asyncio.Future[Any], event: asyncio.Event) -> bool:
    """Waits for the first of both; returns whether the work is done."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return work.done()
