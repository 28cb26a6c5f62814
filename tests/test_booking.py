"""The ledger in turns: what a turn does in which order, who is told, and what a run may spend."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llm_magic
from llm_magic.answer import Answer
from llm_magic.booking import Granted, Quota
from llm_magic.bounds import LARGEST_CAP, Purse, Terms
from llm_magic.cassette import Cassette
from llm_magic.decode import Finish, Piece
from llm_magic.entries import fingerprint
from llm_magic.errors import QuotaExceeded, StoreError
from llm_magic.holds import Hold
from llm_magic.ledger import Limit, dollars, nanos
from llm_magic.prices import Prices
from llm_magic.shelf import Shelf
from llm_magic.stores.ledger import SqliteLedger
from llm_magic.stores.memory import MemoryCache
from llm_magic.testing import ScriptedServer
from llm_magic.types import Request, Usage

PRICES = Prices({"m": {"input": 1, "output": 2}})
PATIENCE = 20
REQUESTS = Limit("kernel", "requests", 1000, 3600)
MONEY = Limit("user", "usd", 10**12, 3600)


def request(number: int = 0, cap: int = 100) -> Request:
    message = {"role": "user", "content": f"Row {number:03}"}
    return Request((message,), "m", "http://far.example/v1", max_tokens=cap)


def body(asked: Request) -> dict[str, Any]:
    return {"model": "m", "messages": list(asked.messages), "max_tokens": asked.max_tokens}


def silent(message: str, fix: str) -> None:
    raise AssertionError(message)


class Noted:
    """Takes down the steps of a ledger and a cache, in their order."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.faults: dict[str, Exception] = {}
        # What is to happen within a step, on the ledger's thread.
        self.meanwhile: dict[str, Callable[[], object]] = {}

    def step(self, name: str, count: int) -> None:
        self.steps.append((name, count))
        if name in self.faults:
            raise self.faults.pop(name)
        if name in self.meanwhile:
            self.meanwhile.pop(name)()


class Ledger(SqliteLedger):
    """A real ledger that says what it does."""

    def __init__(self, noted: Noted, path: Path | None) -> None:
        super().__init__(path, kernel="k", user="u", busy_timeout=0.05)
        self.noted = noted

    def hold_many(self, claims: Any, limits: Any) -> Any:
        self.noted.step("hold", len(claims))
        return super().hold_many(claims, limits)

    def settle_many(self, uses: Any) -> None:
        self.noted.step("settle", len(uses))
        super().settle_many(uses)


class Cache(MemoryCache):
    """A real cache that says what it does."""

    def __init__(self, noted: Noted) -> None:
        super().__init__()
        self.noted = noted

    def put_many(self, rows: Any) -> None:
        self.noted.step("keep", len(rows))
        super().put_many(rows)


class Books:
    """A quota, its thread, and a shelf of which equal calls are one."""

    def __init__(self, path: Path | None = None) -> None:
        self.noted = Noted()
        self.ledger = Ledger(self.noted, path)
        self.troubles: list[str] = []
        self.executor = ThreadPoolExecutor(1)
        self.quota = Quota(
            self.ledger, self.executor, lambda message, fix: self.troubles.append(message)
        )
        self.shelf = Shelf(Cache(self.noted), silent)
        self.terms = Terms((REQUESTS, MONEY), PRICES)

    async def hold(self, number: int = 0, *, cap: int = 100, terms: Terms | None = None) -> Granted:
        asked = request(number, cap)
        return await self.quota.hold(
            asked, body(asked), fingerprint(asked), self.shelf, terms or self.terms, sent=True
        )

    async def held(self, number: int = 0, **more: Any) -> Hold:
        granted = await self.hold(number, **more)
        assert granted.hold is not None
        return granted.hold

    def keep(self, hold: Hold, number: int) -> Coroutine[Any, Any, Any]:
        answer = answered(request(number))
        print_ = fingerprint(request(number))
        return self.quota.keep(hold, answer, answer.response(), print_, self.shelf)

    def used(self) -> list[int]:
        """Requests and nano-dollars that count now."""
        self.settled()
        return [used for _, used in self.ledger.standing((REQUESTS, MONEY))]

    def settled(self) -> None:
        self.quota.wait(int)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The ledger's thread is busy until the end."""
        begun, over = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            assert over.wait(PATIENCE)

        self.executor.submit(wait)
        assert begun.wait(PATIENCE)
        try:
            yield
        finally:
            over.set()


def answered(asked: Request, usage: Usage = Usage(7, 3)) -> Answer:  # noqa: B008
    answer = Answer(asked)
    answer.attempts, answer.billable = 1, True
    for event in (Piece("text", "Yes."), Finish("stop"), usage):
        answer.take(event)
    return answer


def run(check: Callable[[Books], Coroutine[Any, Any, None]], path: Path | None = None) -> None:
    books = Books(path)
    try:
        asyncio.run(asyncio.wait_for(check(books), PATIENCE))
    finally:
        books.executor.shutdown()
        books.ledger.close()


async def started(*work: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Tasks that have come as far as they can without the ledger."""
    tasks = [asyncio.create_task(each) for each in work]
    await asyncio.sleep(0)
    return tasks


# Turns


def test_a_turn_keeps_answers_before_it_books_calls_before_it_grants_holds() -> None:
    async def check(books: Books) -> None:
        first, second = await books.held(1), await books.held(2)
        books.noted.steps.clear()
        with books.writing():
            holding, keeping = await started(books.hold(3), books.keep(first, 1))
            second.settle(answered(request(2)))
        await asyncio.gather(holding, keeping)
        assert books.noted.steps == [("keep", 1), ("settle", 1), ("hold", 1)]

    run(check)


def test_what_gathers_while_the_ledger_writes_is_one_step() -> None:
    async def check(books: Books) -> None:
        with books.writing():
            tasks = await started(*(books.held(number) for number in range(50)))
        holds = await asyncio.gather(*tasks)
        with books.writing():
            for number, hold in enumerate(holds):
                hold.settle(answered(request(number)))
        books.settled()
        assert books.noted.steps == [("hold", 50), ("settle", 50)]
        assert books.used() == [50, 50 * 13_000]

    run(check)


def test_a_hold_sees_what_was_given_back_in_the_same_turn() -> None:
    async def check(books: Books) -> None:
        terms = Terms((replace(REQUESTS, cap=1),), PRICES)
        first = await books.held(1, terms=terms)
        with books.writing():
            (second,) = await started(books.held(2, terms=terms))
            first.give_back()
        assert (await second).id != first.id

    run(check)


def test_of_equal_calls_in_one_turn_one_is_made_and_the_others_are_told_to_wait() -> None:
    async def check(books: Books) -> None:
        with books.writing():
            tasks = await started(*(books.hold(7) for _ in range(5)))
        granted = await asyncio.gather(*tasks)
        assert [bool(each.hold) for each in granted] == [True, False, False, False, False]
        assert books.used()[0] == 1

    run(check)


def test_what_was_kept_just_before_is_found_with_the_hold() -> None:
    async def check(books: Books) -> None:
        first = await books.held(7)
        with books.writing():
            keeping, again = await started(books.keep(first, 7), books.hold(7))
            first.settle(answered(request(7)))
        await keeping
        assert (await again).found.text == "Yes."

    run(check)


def test_an_answer_has_its_price_and_is_kept_with_it() -> None:
    async def check(books: Books) -> None:
        hold = await books.held(7)
        response = await books.keep(hold, 7)
        assert response.cost == Decimal("0.000013")
        assert books.shelf.find(fingerprint(request(7))).saved == Decimal("0.000013")

    run(check)


# Cancelled calls


def test_a_hold_that_is_cancelled_before_its_turn_is_not_asked_for() -> None:
    async def check(books: Books) -> None:
        with books.writing():
            gone, stays = await started(books.hold(1), books.held(2))
            gone.cancel()
            await asyncio.wait([gone])
        await stays
        assert ("hold", 1) in books.noted.steps
        assert books.used()[0] == 1

    run(check)


@pytest.mark.parametrize("purse", [None, Purse(Decimal(1))])
def test_a_hold_that_is_cancelled_during_its_turn_is_given_back(purse: Purse | None) -> None:
    async def check(books: Books) -> None:
        loop, cancelled = asyncio.get_running_loop(), threading.Event()

        def cancel() -> None:
            loop.call_soon_threadsafe(lambda: (task.cancel(), cancelled.set()))
            assert cancelled.wait(PATIENCE)

        books.noted.meanwhile["hold"] = cancel
        (task,) = await started(books.hold(1, terms=replace(books.terms, purse=purse)))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert books.used() == [0, 0]
        assert purse is None or (purse.held, purse.spent) == (0, 0)

    run(check)


def test_a_hold_that_is_cancelled_as_it_is_granted_is_given_back() -> None:
    async def check(books: Books) -> None:
        (task,) = await started(books.hold(1))
        books.settled()
        # It is granted, and the loop has not looked yet.
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert books.used() == [0, 0]

    run(check)


def test_an_answer_is_kept_although_nobody_waits_for_it_any_more() -> None:
    async def check(books: Books) -> None:
        hold = await books.held(1)
        with books.writing():
            (keeping,) = await started(books.keep(hold, 1))
            keeping.cancel()
            await asyncio.wait([keeping])
        books.settled()
        assert books.shelf.find(fingerprint(request(1))).text == "Yes."

    run(check)


@pytest.mark.parametrize("purse", [None, Purse(Decimal(1))])
def test_the_first_end_of_a_call_counts(purse: Purse | None) -> None:
    async def check(books: Books) -> None:
        hold = await books.held(1, terms=replace(books.terms, purse=purse))
        hold.settle(answered(request(1)))
        hold.settle(answered(request(1)))
        hold.give_back()
        assert books.used() == [1, 13_000]
        assert purse is None or (purse.held, purse.spent) == (0, 13_000)

    run(check)


# Faults


@pytest.mark.parametrize("step", ["keep", "settle", "hold"])
def test_a_fault_in_one_part_of_a_turn_stops_no_other(step: str) -> None:
    async def check(books: Books) -> None:
        first, second = await books.held(1), await books.held(2)
        books.noted.faults[step] = RuntimeError("a fault of ours")
        with books.writing():
            keeping, holding = await started(books.keep(first, 1), books.hold(3))
            second.settle(answered(request(2)))
        kept, granted = await asyncio.gather(keeping, holding, return_exceptions=True)
        assert isinstance(kept, RuntimeError) == (step == "keep")
        assert isinstance(granted, RuntimeError) == (step == "hold")
        assert ("settle", 1) in books.noted.steps
        # Nothing is held for the call that was told of a fault.
        books.settled()
        assert books.used()[0] == (2 if step == "hold" else 3)
        await books.held(4)

    run(check)


def test_a_fault_with_one_run_s_holds_stops_no_other_run() -> None:
    async def check(books: Books) -> None:
        books.noted.faults["hold"] = RuntimeError("a fault of ours")
        purse = Purse(Decimal(1))
        terms = replace(books.terms, purse=purse)
        with books.writing():
            tasks = await started(books.hold(1, terms=terms), books.hold(2))
        failed, granted = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(failed, RuntimeError)
        assert granted.hold
        assert books.used()[0] == 1
        assert (purse.held, purse.spent) == (0, 0)

    run(check)


def test_a_cassette_that_is_broken_meanwhile_leaves_nothing_held(tmp_path: Path) -> None:
    async def check(books: Books) -> None:
        path = tmp_path / "answers.jsonl"
        path.write_text("<<<<<<< HEAD\n")
        books.shelf = replace(books.shelf, cassette=Cassette(path))
        purse = Purse(Decimal(1))
        with books.writing():
            terms = replace(books.terms, purse=purse)
            tasks = await started(*(books.hold(number, terms=terms) for number in range(3)))
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, StoreError) for error in errors)
        assert books.used() == [0, 0]
        assert (purse.held, purse.spent) == (0, 0)

    run(check)


@pytest.mark.parametrize("refused", ["by the ledger", "by its price", "by its run"])
def test_what_is_refused_writes_nothing_more(refused: str) -> None:
    async def check(books: Books) -> None:
        limits = {"by the ledger": (replace(REQUESTS, cap=0),)}.get(refused, (MONEY,))
        prices = Prices() if refused == "by its price" else PRICES
        purse = Purse(Decimal(0)) if refused == "by its run" else None
        with pytest.raises(QuotaExceeded):
            await books.hold(1, terms=Terms(limits, prices, purse=purse))
        books.settled()
        assert "settle" not in [name for name, _ in books.noted.steps]

    run(check)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process keeps the ledger locked."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_ledger_that_cannot_be_written_refuses_each_call_of_a_turn(tmp_path: Path) -> None:
    async def check(books: Books) -> None:
        purse = Purse(Decimal(1))
        terms = replace(books.terms, purse=purse)
        await books.held(99)
        with locked(tmp_path / "ledger.db"):
            with books.writing():
                tasks = await started(*(books.hold(number, terms=terms) for number in range(20)))
            errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, StoreError) for error in errors)
        # One each: every call writes its own data into its error.
        assert len({id(error) for error in errors}) == 20
        assert all("locked" in str(error) and error.fix for error in errors)
        assert purse.held == 0
        assert books.used()[0] == 1

    run(check, tmp_path / "ledger.db")


def test_where_uncounted_calls_may_pass_they_do_with_one_warning(tmp_path: Path) -> None:
    async def check(books: Books) -> None:
        terms = replace(books.terms, strict=False, purse=Purse(Decimal(1)))
        await books.held(99)
        with locked(tmp_path / "ledger.db"):
            with books.writing():
                tasks = await started(*(books.held(number, terms=terms) for number in range(20)))
            holds = await asyncio.gather(*tasks)
            for number, hold in enumerate(holds):
                await hold.sent()
                hold.settle(answered(request(number)))
            books.settled()
        assert len(books.troubles) == 1
        assert "not counted" in books.troubles[0]
        # The run's own limit is not the ledger's, and holds.
        assert (terms.purse.held, terms.purse.spent) == (0, 20 * 13_000)
        assert books.used()[0] == 1

    run(check, tmp_path / "ledger.db")


def test_a_settlement_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    async def check(books: Books) -> None:
        holds = [await books.held(number) for number in range(3)]
        with locked(tmp_path / "ledger.db"):
            for number, hold in enumerate(holds):
                hold.settle(answered(request(number)))
            books.settled()
        assert books.used() == [3, 3 * 13_000]

    run(check, tmp_path / "ledger.db")


# Ends and loops


def test_at_the_interpreter_s_end_turns_are_taken_by_whoever_asks() -> None:
    async def check(books: Books) -> None:
        hold = await books.held(1)
        books.executor.shutdown()
        second = await books.held(2)
        await books.keep(hold, 1)
        hold.settle(answered(request(1)))
        second.give_back()
        assert [used for _, used in books.ledger.standing((REQUESTS, MONEY))] == [1, 13_000]

    run(check)


def test_two_loops_share_a_turn() -> None:
    books = Books()
    begun = threading.Barrier(3)

    async def ask(number: int) -> bool:
        tasks = await started(books.held(number), books.held(number + 1))
        begun.wait(PATIENCE)
        return all(await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE))

    with ThreadPoolExecutor(2) as threads:
        with books.writing():
            asked = [threads.submit(asyncio.run, ask(number)) for number in (10, 20)]
            begun.wait(PATIENCE)
        assert all(each.result(PATIENCE) for each in asked)
    assert books.noted.steps == [("hold", 4)]
    books.executor.shutdown()


def test_a_loop_that_is_gone_keeps_no_other_from_its_answer() -> None:
    books = Books()

    async def leave() -> list[asyncio.Task[Any]]:
        return await started(books.hold(1))

    async def ask() -> Granted:
        (task,) = await started(books.hold(2))
        over.set()
        return await asyncio.wait_for(task, PATIENCE)

    over = threading.Event()
    books.executor.submit(over.wait, PATIENCE)
    loop = asyncio.new_event_loop()
    (abandoned,) = loop.run_until_complete(leave())
    # As when a thread ends without tidying up.
    loop.close()
    assert asyncio.run(ask()).hold
    assert books.noted.steps == [("hold", 2)]
    abandoned._log_destroy_pending = False
    books.executor.shutdown()


def test_leases_are_renewed_on_a_later_loop_although_a_hold_of_an_earlier_one_is_open() -> None:
    books = Books()

    async def renewing() -> int:
        before = asyncio.all_tasks()
        await books.held(1)
        await books.held(2)
        return len(asyncio.all_tasks() - before)

    try:
        assert asyncio.run(renewing()) == 1
        books.used()
        books.ledger.settle_many([(hold.id, None) for hold in books.quota._open])
        assert asyncio.run(renewing()) == 1
    finally:
        books.executor.shutdown()


# What a run may spend


def test_a_purse_has_what_is_left_to_the_nano_dollar() -> None:
    purse = Purse(Decimal("0.001"))
    purse.hold(nanos(Decimal("0.0004")))
    purse.hold(nanos(Decimal("0.0006")))
    assert purse.left == 0
    purse.settle(nanos(Decimal("0.0006")), 1)
    assert purse.left == Decimal("0.000599999")


def test_a_purse_without_a_cap_counts_and_refuses_nothing() -> None:
    purse = Purse()
    purse.hold(10**15)
    assert purse.left is None
    assert Terms(prices=PRICES, purse=purse).most is None


@pytest.mark.parametrize(("own", "left", "most"), [("2", "1", "1"), ("1", "2", "1")])
def test_a_call_may_cost_the_least_of_its_own_limit_and_its_run_s(
    own: str, left: str, most: str
) -> None:
    terms = Terms(prices=PRICES, max_cost=Decimal(own), purse=Purse(Decimal(left)))
    assert terms.most == Decimal(most)


async def capped(books: Books, number: int, terms: Terms, *, again: bool = False) -> Hold:
    """A hold of a row whose answer has no cap of the user's."""
    first = replace(request(number), max_tokens=None)
    asked = replace(first, messages=first.messages * (2 if again else 1))
    granted = await books.quota.hold(
        asked, body(asked), fingerprint(first), books.shelf, terms, sent=True
    )
    assert granted.hold
    return granted.hold


@pytest.mark.parametrize("limit", ["its run's", "the kernel's"])
def test_no_row_is_cut_short_for_what_others_give_back(limit: str) -> None:
    """It is refused while others hold room, and has what is left once it is alone."""

    async def check(books: Books) -> None:
        largest = 2 * LARGEST_CAP * 1000
        if limit == "its run's":
            terms = replace(books.terms, purse=Purse(dollars(largest * 3 // 2)))
        else:
            tokens = Limit("kernel", "tokens", LARGEST_CAP * 3 // 2, None)
            terms = replace(books.terms, limits=(tokens,), purse=Purse())
        with books.writing():
            tasks = await started(*(capped(books, number, terms) for number in range(3)))
        first, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert first.worst.output_tokens == LARGEST_CAP
        assert all(isinstance(each, QuotaExceeded) for each in others)
        with pytest.raises(QuotaExceeded):
            await capped(books, 1, terms)

        first.settle(answered(request(0), Usage(100, LARGEST_CAP)))
        second = await capped(books, 1, terms)
        assert LARGEST_CAP // 3 < second.worst.output_tokens < LARGEST_CAP

    run(check)


def test_what_asks_again_takes_what_is_left() -> None:
    """The answer before it is paid for, and would be lost."""

    async def check(books: Books) -> None:
        tokens = Limit("kernel", "tokens", LARGEST_CAP * 3 // 2, None)
        terms = replace(books.terms, limits=(tokens,), purse=Purse())
        await capped(books, 0, terms)
        with pytest.raises(QuotaExceeded):
            await capped(books, 1, terms)
        repair = await capped(books, 1, terms, again=True)
        assert LARGEST_CAP // 3 < repair.worst.output_tokens < LARGEST_CAP

    run(check)


@pytest.mark.usefixtures("provider")
def test_rows_under_a_limit_are_all_asked_with_room_for_their_answers(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_MODEL", "m")
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    monkeypatch.setenv("LLM_MAGIC_QUOTA_TOKENS", str(3 * LARGEST_CAP))
    found = llm_magic.map_rows([f"row {n}" for n in range(40)], "Say {{ row }}.", concurrency=16)

    assert [row["_error"] for row in found] == [None] * 40
    assert {received.body["max_tokens"] for received in server.requests} == {LARGEST_CAP}


class Spending:
    """A run over rows whose calls come to less than they could, or fail, in any order."""

    def __init__(self, cap: int, more: tuple[Limit, ...]) -> None:
        self.books = Books()
        self.purse = Purse(dollars(cap))
        self.cap = cap
        self.terms = Terms((REQUESTS, MONEY, *more), PRICES, purse=self.purse)
        self.open: list[tuple[Hold, int]] = []
        self.truth = 0

    def check(self) -> None:
        """By what the calls themselves say, not by the purse."""
        self.books.settled()
        on_their_way = sum(hold.worst.amount.nanos for hold, _ in self.open)
        assert on_their_way + self.truth <= self.cap
        assert (self.purse.held, self.purse.spent) == (on_their_way, self.truth)
        assert self.purse.rows == len(self.open)

    async def hold(self, numbers: list[int], caps: list[int], cancelled: int) -> None:
        with self.books.writing():
            tasks = await started(
                *(
                    self.books.hold(number, cap=cap, terms=self.terms)
                    for number, cap in zip(numbers, caps, strict=False)
                )
            )
            for task in tasks[:cancelled]:
                task.cancel()
            await asyncio.sleep(0)
        for number, found in zip(
            numbers, await asyncio.gather(*tasks, return_exceptions=True), strict=False
        ):
            if isinstance(found, Granted):
                if found.hold:
                    self.open.append((found.hold, number))
            else:
                assert isinstance(found, QuotaExceeded | asyncio.CancelledError), found

    def end(self, place: int, share: int) -> None:
        hold, number = self.open.pop(place % len(self.open))
        if share == 0:
            hold.give_back()
            return
        output = (hold.worst.output_tokens or 0) * share // 4
        usage = Usage(hold.worst.input_tokens * share // 4, output)
        hold.settle(answered(request(number), usage))
        self.truth += nanos((Decimal(usage.input_tokens) + 2 * usage.output_tokens) / 10**6)


def test_a_call_that_the_collector_ends_waits_for_no_lock(tmp_path: Path) -> None:
    """It may come where this thread has one of the executor; the next turn gives back."""
    books = Books(tmp_path / "ledger.db")

    async def collected() -> None:
        call = books.hold()
        call.send(None)  # Now it waits to be told what it was granted.
        books.settled()
        with books.executor._shutdown_lock:
            call.close()

    thread = threading.Thread(target=asyncio.run, args=(collected(),), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    asyncio.run(books.held(1)).give_back()

    assert books.used() == [0, 0]
    books.executor.shutdown()
    books.ledger.close()


STEPS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), min_size=1, max_size=12),
        st.lists(st.integers(1, 400), min_size=12, max_size=12),
        st.sampled_from([0, 0, 0, 1, 3]),
        st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), max_size=8),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, cap=st.integers(300_000, 3_000_000), requests=st.integers(4, 40))
def test_a_run_s_budget_is_never_passed_whatever_is_on_its_way(
    steps: list[Any], cap: int, requests: int
) -> None:
    async def check() -> None:
        spending = Spending(cap, (Limit("kernel", "requests", requests, None),))
        try:
            for numbers, caps, cancelled, ends in steps:
                await spending.hold(numbers, caps, cancelled)
                spending.check()
                for place, share in ends:
                    if spending.open:
                        spending.end(place, share)
                spending.check()
        finally:
            spending.books.executor.shutdown()
            spending.books.ledger.close()

    asyncio.run(asyncio.wait_for(check(), PATIENCE))
