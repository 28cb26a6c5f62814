"""A run on a worker: the same line as in a kernel, for a chunk whose prompts are written."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llm_magic.distributed.parcel import Parcel, plain_error, plain_response
from llm_magic.distributed.spec import Spec
from llm_magic.engine import Call
from llm_magic.errors import AuthenticationFailed, LLMError, StoreError
from llm_magic.job import Job
from llm_magic.ledger import nanos
from llm_magic.meeting import EVERY, STOPPED, Meeting, Met
from llm_magic.progress import Standing
from llm_magic.prompt import Content
from llm_magic.rows import Run
from llm_magic.session import Session
from llm_magic.shelf import Shelf
from llm_magic.types import Request, Response

_CONTENT = "content"


class Prompts:
    """Prompts as rows: a ``Source``."""

    names = (_CONTENT,)

    def __init__(self, prompts: Sequence[Content]) -> None:
        self._prompts = prompts

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._prompts)

    def rows(self, *_: Any) -> Iterator[dict[str, Any]]:
        """Each as a row."""
        return ({_CONTENT: prompt} for prompt in self._prompts)

    def frame(self, *_: Any) -> Any:
        """Columns are made in the kernel alone."""
        raise NotImplementedError


@dataclass(frozen=True)
class ChunkJob(Job):
    """A job whose prompts are written already."""

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Each row with its place."""
        return zip(self.places or (), self.source.rows(), strict=True)

    def request(self, row: Mapping[str, Any]) -> Request:
        """What is asked about a row."""
        messages = (*self.base.messages[:-1], {"role": "user", "content": row[_CONTENT]})
        return replace(self.base, messages=messages)


class Collected:
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
        self.parcel.rows.append((place, True, plain_response(response)))

    def failed(self, place: int, error: LLMError) -> None:
        """A row has none."""
        self.parcel.rows.append((place, False, plain_error(error)))

    def equal(self, place: int, first: int) -> None:
        """A row is the same question as an earlier one."""
        self._twins.append((place, first))

    def standing(self, *_: Any) -> Standing:
        """Nobody looks."""
        return Standing(None)

    def whole(self) -> Parcel:
        """All of it, equal rows with the answers of the first."""
        parcel = self.parcel
        done = {row[0]: row for row in parcel.rows} if self._twins else {}
        parcel.rows += [(place, *done[first][1:]) for place, first in self._twins if first in done]
        parcel.ended = plain_error(self.ended) if self.ended else None
        return parcel


def _came_after(since: float, response: Response) -> bool:
    return response.cached and response.age is not None and time.time() - response.age >= since


class Hired(Run):
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


class Chunk(Hired):
    """A chunk of rows."""

    def __init__(self, session: Session, job: Job, spec: Spec, number: int) -> None:
        self.collected = Collected()
        super().__init__(session, job, self.collected, spec)
        self._number = number

    async def through(self) -> None:
        """Asks for the rows, unless the run was stopped before."""
        met = await self._first_meeting()
        self._has_met = True
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

    async def _first_meeting(self) -> Met | None:
        if (meeting := self._find_meeting()) is None:
            return None
        met = await meeting.once(chunk=self._number)
        if met is not None and met.state:
            return met
        # One that was too busy is asked again; and a Redis that was started anew may have forgotten
        # what the kernel says every second.
        await asyncio.sleep(1.2 * EVERY)
        return await meeting.once(chunk=self._number)

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
