"""The ledger as calls use it: a claim before, the truth after, many of them in one turn.

What many calls have to write at the same time goes together: while the ledger's thread writes, the
next turn gathers. A turn keeps answers, then books what calls came to, then grants holds, so that a
hold sees all that was given back before it was asked for.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from llm_magic.answer import Answer
from llm_magic.bounds import Terms, refusal, worst_case
from llm_magic.entries import Fingerprint
from llm_magic.errors import LLMError, StoreError
from llm_magic.holds import Hold
from llm_magic.ledger import Full, Ledger, Limit, Used
from llm_magic.shelf import Shelf
from llm_magic.types import Request, Response

_Future = asyncio.Future[Any]
_Told = list[tuple[_Future, Any]]
"""Who waits, and what for: a result or an error."""


class Granted(NamedTuple):
    """What a call may do.

    Attributes:
        hold: Its place in the ledger; None where another kernel is asking the same.
        found: The answer, if it is there by now.
    """

    hold: Hold | None
    found: Response | None


class _Asked(NamedTuple):
    """A hold that is asked for."""

    hold: Hold
    request: Request
    body: Mapping[str, Any]
    print_: Fingerprint
    shelf: Shelf
    future: _Future

    @property
    def can_wait(self) -> bool:
        """Whether others of its run hold room, most of which they give back.

        It is not cut short then, but refused for now. What asks again with what was wrong is paid
        for already, and takes what is left.
        """
        purse, asked = self.hold.terms.purse, self.print_.body["messages"]
        again = isinstance(asked, list) and len(self.request.messages) > len(asked)
        return bool(purse and purse.rows) and not again


class _Kept(NamedTuple):
    """An answer that is to be priced and kept."""

    hold: Hold
    answer: Answer
    response: Response
    print_: Fingerprint
    shelf: Shelf
    future: _Future


@dataclass(slots=True)
class _Turn:
    """What the ledger's thread does next."""

    keeps: list[_Kept] = field(default_factory=list)
    closed: list[tuple[Hold, Answer | None]] = field(default_factory=list)
    holds: list[_Asked] = field(default_factory=list)


class Quota:
    """The ledger as calls use it: a claim before, the truth after.

    Args:
        ledger: Where it is written.
        executor: One thread: what is done first is written first, and waits for no loop.
        trouble: Told what is worked around.

    Attributes:
        in_usd: Whether a limit in USD held when the last call asked, a shared one for example.
    """

    def __init__(
        self, ledger: Ledger, executor: Executor, trouble: Callable[[str, str], None]
    ) -> None:
        self.ledger = ledger
        self._executor = executor
        self._trouble = trouble
        self.in_usd = False
        self._open: set[Hold] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._next: _Turn | None = None
        self._lock = threading.Lock()
        self._collected: deque[tuple[Hold, Answer | None]] = deque()
        # One random name for all: to draw one for each of many calls takes longer than a hold.
        self._name, self._numbers = uuid.uuid4().hex, itertools.count()

    async def hold(
        self,
        request: Request,
        body: Mapping[str, Any],
        print_: Fingerprint,
        shelf: Shelf,
        terms: Terms,
        *,
        sent: bool = False,
    ) -> Granted:
        """Holds the worst case of a request, and then looks once more whether it is answered.

        Between the last look and the hold, another kernel can have asked and kept the answer.

        Args:
            request: What is asked.
            body: The JSON body that it becomes.
            print_: Its identity.
            shelf: Where its answer may be.
            terms: The limits.
            sent: It is sent as soon as it is granted, and need not say so.

        Raises:
            QuotaExceeded: It does not fit, or its price is not known and a limit is in USD.
            StoreError: The ledger cannot be written, and the terms are strict.
        """
        hold = Hold(self, terms, f"{self._name}-{next(self._numbers):x}", sent=sent)
        future = asyncio.get_running_loop().create_future()
        self._put("holds", _Asked(hold, request, body, print_, shelf, future))
        try:
            granted: Granted = await future
        except asyncio.CancelledError:
            hold.give_back()
            raise
        except BaseException:
            if not hold.refused:
                hold.give_back()
            raise
        if granted.hold:
            self._renew_while_open(hold)
        return granted

    async def keep(
        self, hold: Hold, answer: Answer, response: Response, print_: Fingerprint, shelf: Shelf
    ) -> Response:
        """Prices a whole answer, and keeps it.

        Returns:
            The response with its price.
        """
        future = asyncio.get_running_loop().create_future()
        self._put("keeps", _Kept(hold, answer, response, print_, shelf, future))
        priced: Response = await future
        return priced

    def _put(self, kind: str, work: Any) -> None:
        """Adds to the next turn of the ledger's thread."""
        with self._lock:
            first = self._next is None
            turn = self._next = self._next or _Turn()
            getattr(turn, kind).append(work)
        if first:
            try:
                self._executor.submit(self._take_turn)
            except RuntimeError:
                # The interpreter is ending, and its threads take nothing more.
                self._take_turn()

    def _take_turn(self) -> None:
        with self._lock:
            turn, self._next = self._next or _Turn(), None
        while self._collected:
            turn.closed.append(self._collected.popleft())
        fault: BaseException | None = None
        for work, waiting in self._steps(turn):
            try:
                told = work()
            except BaseException as error:  # noqa: BLE001
                # A fault of ours. Nobody may be left waiting for ever, and the rest is done still.
                fault = error
                told = [(future, error) for future in waiting]
            # At once: a row whose answer is kept has its place free for another.
            _tell(told)
        if fault is not None:
            raise fault

    def _steps(self, turn: _Turn) -> Iterator[tuple[Callable[[], _Told], list[_Future]]]:
        """What a turn does, and who waits for each part of it."""
        yield partial(self._keep, turn.keeps), [each.future for each in turn.keeps]
        yield partial(self._book, turn.closed), []
        groups: dict[int, list[_Asked]] = {}
        for each in turn.holds:
            # One whose call was cancelled meanwhile has been given back already.
            if not each.hold.closed:
                groups.setdefault(id(each.hold.terms), []).append(each)
        for group in groups.values():
            yield partial(self._grant, group), [each.future for each in group]

    def _keep(self, keeps: list[_Kept]) -> _Told:
        """Prices answers, and keeps those of a shelf together."""
        told: _Told = []
        shelves: dict[int, tuple[Shelf, list[tuple[Fingerprint, Response]]]] = {}
        for each in keeps:
            # As dataclasses.replace does it, in half its time.
            response = Response(**{**vars(each.response), "cost": each.hold.cost_of(each.answer)})
            told.append((each.future, response))
            kept = shelves.setdefault(id(each.shelf), (each.shelf, []))[1]
            kept.append((each.print_, response))
        for shelf, kept in shelves.values():
            shelf.keep_many(kept)
        return told

    def _book(self, closed: list[tuple[Hold, Answer | None]]) -> _Told:
        """Puts what calls came to in the place of what was held."""
        booked: list[tuple[str, Used | None]] = []
        for hold, answer in closed:
            used = hold.used(answer)
            hold.release(used.amount.nanos if used else 0)
            if hold.booked:
                booked.append((hold.id, used))
        if booked:
            self._tried(self.ledger.settle_many, booked)
        return []

    def _grant(self, group: list[_Asked]) -> _Told:
        """Holds what fits, for calls of the same terms."""
        terms = group[0].hold.terms
        try:
            standing = self.ledger.standing(terms.limits)
            self.in_usd = any(limit.metric == "usd" for limit, _ in standing)
            told, fitting = _bounded(group, standing)
            claims = [
                each.hold.claim(each.print_.key if each.shelf.shared else None) for each in fitting
            ]
            verdicts = self.ledger.hold_many(claims, terms.limits)
        except StoreError as error:
            return self._without_ledger(group, error)
        for each, verdict, found in zip(fitting, verdicts, _looked_up(fitting), strict=True):
            if verdict != "held":
                each.hold.release()
            if isinstance(verdict, Full):
                each.hold.refused = True
                told.append((each.future, refusal(verdict, terms.team)))
            else:
                hold = each.hold if verdict == "held" else None
                told.append((each.future, Granted(hold, found)))
        return told

    def _without_ledger(self, group: list[_Asked], error: StoreError) -> _Told:
        """Refuses calls, or lets them be made uncounted where the terms say so."""
        for each in group:
            each.hold.release()
        if group[0].hold.terms.strict:
            for each in group:
                each.hold.refused = True
            return [(each.future, _unsent(error)) for each in group]
        self._trouble(f"{error.args[0]} Calls are not counted.", error.fix)
        told, fitting = _bounded(group, [])
        for each in fitting:
            each.hold.booked = False
        return [*told, *((each.future, Granted(each.hold, None)) for each in fitting)]

    def _renew_while_open(self, hold: Hold) -> None:
        """Prolongs the leases of open holds, for those who cannot look at this process."""
        self._open.add(hold)
        # One that is done ended with its loop.
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.ledger.lease / 3)
            self.later(self.ledger.renew)

    def close(self, hold: Hold, answer: Answer | None) -> None:
        """Books what a call came to, or gives back what it held; nobody waits for it."""
        self._open.discard(hold)
        if isinstance(sys.exception(), GeneratorExit):
            # The collector ends a call that nobody waits for, anywhere in this thread: also where
            # it has a lock of the executor. The next turn takes it.
            self._collected.append((hold, answer))
            return
        if self._renewing and not self._open:
            self._renewing.cancel()
            self._renewing = None
        self._put("closed", (hold, answer))

    async def written(self) -> None:
        """Waits until all is booked that calls have come to so far."""
        await self.do(int)

    async def do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Runs something on the ledger's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def wait(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Runs something on the ledger's thread, behind all that was booked so far."""
        return self._executor.submit(work, *arguments).result()

    def later(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Has something done on the ledger's thread, in its turn; nobody waits for it."""
        try:
            self._executor.submit(self._tried, work, *arguments)
        except RuntimeError:
            # The interpreter is ending, and its threads take nothing more.
            self._tried(work, *arguments)

    def _tried(self, work: Callable[..., Any], *arguments: Any) -> None:
        try:
            work(*arguments)
        except StoreError as error:
            self._trouble(str(error.args[0]), error.fix)


def _unsent(error: StoreError) -> StoreError:
    """The error for one more call, which says as well what was not done."""
    told = copy.copy(error)
    if "nothing was sent" not in str(error.args[0]).lower():
        told.args = (f"{error.args[0]} Nothing was sent.",)
    return told


def _bounded(
    group: list[_Asked], standing: Sequence[tuple[Limit, int]]
) -> tuple[_Told, list[_Asked]]:
    """What is refused already, and the others with their worst case held in the run's purse."""
    told: _Told = []
    fitting = []
    for each in group:
        hold = each.hold
        try:
            hold.worst = worst_case(
                each.request, each.body, hold.terms, standing, whole=each.can_wait
            )
        except LLMError as error:
            hold.refused = True
            told.append((each.future, error))
            continue
        hold.take()
        fitting.append(each)
    return told, fitting


def _looked_up(asked: list[_Asked]) -> list[Response | None]:
    """The answers that are there by now, where equal calls are one."""
    found: list[Response | None] = [None] * len(asked)
    shelves: dict[int, list[int]] = {}
    for place, each in enumerate(asked):
        if each.shelf.shared:
            shelves.setdefault(id(each.shelf), []).append(place)
    for places in shelves.values():
        prints = [asked[place].print_ for place in places]
        for place, response in zip(places, asked[places[0]].shelf.find_many(prints), strict=True):
            found[place] = response
    return found


def _tell(told: _Told) -> None:
    """Hands results over to the loops that wait for them, all of a loop at once."""
    loops = {future.get_loop() for future, _ in told}
    for loop in loops:
        own = [each for each in told if each[0].get_loop() is loop]
        # A loop that is closed has nobody left who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, own)


def _resolve(told: _Told) -> None:
    for future, result in told:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
