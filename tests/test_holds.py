"""What a call can come to at most, what is refused, and what is booked afterwards."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from llm_magic.answer import Answer
from llm_magic.booking import Quota
from llm_magic.bounds import (
    IMAGE_TOKENS,
    LARGEST_CAP,
    SMALLEST_CAP,
    Terms,
    Worst,
    input_bound,
    output_bound,
    worst_case,
)
from llm_magic.decode import Finish, Piece
from llm_magic.entries import fingerprint
from llm_magic.errors import QuotaExceeded, StoreError
from llm_magic.holds import Hold
from llm_magic.ledger import Amount, Limit, dollars, nanos
from llm_magic.prices import Prices
from llm_magic.shelf import Shelf
from llm_magic.stores.ledger import SqliteLedger
from llm_magic.stores.memory import MemoryCache
from llm_magic.types import Request, Usage

PRICES = Prices({"m": {"input": 1, "output": 2}})
REQUEST = Request(({"role": "user", "content": "Hello"},), "m", "http://far.example/v1")
BODY = {"model": "m", "messages": list(REQUEST.messages), "stream": True}
BOUND = len('{"model":"m","messages":[{"role":"user","content":"Hello"}],"stream":true}')


def usd(text: str) -> int:
    return nanos(Decimal(text))


def test_input_is_bounded_by_the_bytes_of_the_body() -> None:
    assert input_bound(BODY) == BOUND


def test_characters_count_as_their_bytes() -> None:
    other = {**BODY, "messages": [{"role": "user", "content": "Hé€🙂"}]}

    assert input_bound(other) == BOUND - len("Hello") + 1 + 2 + 3 + 4


def test_a_picture_has_its_own_bound() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    words = {"type": "text", "text": "Hello"}
    other = {**BODY, "messages": [{"role": "user", "content": [words, picture, picture]}]}

    assert 2 * IMAGE_TOKENS < input_bound(other) < 2 * IMAGE_TOKENS + 200


@pytest.mark.parametrize(
    ("request_", "bound"),
    [
        (REQUEST, None),
        (replace(REQUEST, max_tokens=100), 100),
        (replace(REQUEST, fields={"max_completion_tokens": 50}), 50),
        (replace(REQUEST, max_tokens=100, fields={"n": 3}), 300),
        (replace(REQUEST, max_tokens=100, fields={"n": None}), 100),
    ],
)
def test_output_is_bounded_by_the_cap_that_is_sent(request_: Request, bound: int | None) -> None:
    assert output_bound(request_) == bound


def worst(request: Request = REQUEST, terms: Terms | None = None, *standing: Any) -> Worst:
    return worst_case(request, BODY, terms or Terms(prices=PRICES), standing)


def test_without_limits_nothing_is_capped() -> None:
    found = worst()

    assert found.request is REQUEST
    assert found.output_tokens is None
    assert found.cost is None
    assert found.amount == Amount(1, BOUND, 0)


def test_a_limit_on_requests_caps_no_answer() -> None:
    assert worst(REQUEST, None, (Limit("kernel", "requests", 50, 3600), 0)).output_tokens is None


def test_a_limit_on_tokens_caps_the_answer() -> None:
    found = worst(REQUEST, None, (Limit("kernel", "tokens", 10**6, 3600), 0))

    assert found.request.max_tokens == found.output_tokens == LARGEST_CAP
    assert found.amount.tokens == BOUND + LARGEST_CAP


def test_the_cap_is_what_is_left() -> None:
    limit = Limit("kernel", "tokens", 5000, 3600)

    assert worst(REQUEST, None, (limit, 1000)).output_tokens == 4000 - BOUND


def test_the_cap_fits_the_money_to_the_nano_dollar() -> None:
    limit = Limit("user", "usd", usd("0.01"), 86_400)
    found = worst(REQUEST, None, (limit, usd("0.003")))

    assert found.output_tokens is not None
    assert found.cost is not None
    left = usd("0.007")
    assert nanos(found.cost) <= left
    assert nanos(found.cost) + usd("0.000002") > left


def test_nothing_left_asks_for_the_smallest_answer_and_is_refused_later() -> None:
    limit = Limit("kernel", "tokens", 1000, 3600)

    assert worst(REQUEST, None, (limit, 999)).output_tokens == SMALLEST_CAP


def test_a_cap_that_is_named_stays() -> None:
    capped = replace(REQUEST, max_tokens=100)
    found = worst(capped, None, (Limit("kernel", "tokens", 10, 3600), 0))

    assert found.request is capped


@pytest.mark.parametrize(
    "terms", [Terms(max_cost=Decimal(1)), Terms(limits=(Limit("user", "usd", 10**9, 86_400),))]
)
def test_an_unknown_price_under_a_limit_in_usd_is_refused(terms: Terms) -> None:
    with pytest.raises(QuotaExceeded, match="price of m is not known") as refused:
        worst(REQUEST, terms, *((limit, 0) for limit in terms.limits))

    assert "%config LLMMagic.prices" in refused.value.fix


def test_an_unknown_price_without_one_is_not() -> None:
    assert worst(REQUEST, Terms(), (Limit("kernel", "tokens", 10**6, 60), 0)).cost is None


def test_max_cost_both_sides() -> None:
    capped = replace(REQUEST, max_tokens=100)
    exactly = (Decimal(BOUND) + 2 * 100) / 10**6

    assert worst(capped, Terms(prices=PRICES, max_cost=exactly)).cost == exactly
    with pytest.raises(QuotaExceeded, match="can cost up to") as refused:
        worst(capped, Terms(prices=PRICES, max_cost=exactly - Decimal("1e-9")))
    assert refused.value.scope == "call"
    assert refused.value.asked == exactly


def test_max_cost_caps_the_answer() -> None:
    found = worst(REQUEST, Terms(prices=PRICES, max_cost=Decimal("0.005")))

    assert found.cost is not None
    assert found.cost <= Decimal("0.005")
    assert found.output_tokens is not None
    assert found.output_tokens > 2000


class Books:
    """A quota on a ledger in memory."""

    def __init__(self) -> None:
        self.ledger = SqliteLedger(None, kernel="k", user="u")
        self.troubles: list[str] = []
        self.executor = ThreadPoolExecutor(1)
        self.quota = Quota(
            self.ledger, self.executor, lambda message, fix: self.troubles.append(message)
        )

    def used(self, *limits: Limit) -> list[int]:
        standing: list[tuple[Limit, int]] = self.quota.wait(self.ledger.standing, limits)
        return [used for _, used in standing]


REQUESTS = Limit("kernel", "requests", 2, 3600)
TOKENS = Limit("user", "tokens", 10_000, 3600)
MONEY = Limit("user", "usd", usd("1"), 86_400)
ALL = (REQUESTS, TOKENS, MONEY)
ALONE = Shelf(MemoryCache(0), lambda message, fix: None, writes=False)
CAPPED = replace(REQUEST, max_tokens=100)
WORST = [1, BOUND + 100, nanos((Decimal(BOUND) + 200) / 10**6)]


def run(check: Callable[[Books], Coroutine[Any, Any, None]]) -> None:
    books = Books()
    try:
        asyncio.run(asyncio.wait_for(check(books), 20))
    finally:
        books.executor.shutdown()
        books.ledger.close()


async def held(books: Books, request: Request = CAPPED, **terms: Any) -> Hold:
    made = Terms(**{"limits": ALL, "prices": PRICES, **terms})
    granted = await books.quota.hold(request, BODY, fingerprint(request), ALONE, made)
    assert granted.hold is not None
    return granted.hold


def answered(*events: Any, billable: bool = True) -> Answer:
    answer = Answer(CAPPED)
    answer.attempts, answer.billable = 1, billable
    for event in events:
        answer.take(event)
    return answer


WHOLE = (Piece("text", "Hello there."), Finish("stop"), Usage(7, 3))


def test_the_worst_is_held_and_the_truth_is_booked() -> None:
    async def check(books: Books) -> None:
        hold = await held(books)
        assert books.used(*ALL) == WORST
        await hold.sent()
        hold.settle(answered(*WHOLE))
        assert books.used(*ALL) == [1, 10, 13_000]

    run(check)


def test_what_was_never_sent_is_given_back() -> None:
    async def check(books: Books) -> None:
        hold = await held(books)
        hold.settle(answered(billable=False))
        assert books.used(*ALL) == [0, 0, 0]

    run(check)


def test_what_the_server_turned_away_is_given_back() -> None:
    async def check(books: Books) -> None:
        hold = await held(books)
        await hold.sent()
        hold.settle(answered(billable=False))
        assert books.used(*ALL) == [0, 0, 0]

    run(check)


def test_a_cut_answer_is_booked_in_full() -> None:
    async def check(books: Books) -> None:
        hold = await held(books)
        await hold.sent()
        hold.settle(answered(Piece("text", "Hel")))
        assert books.used(*ALL) == WORST

    run(check)


def test_an_answer_cut_before_its_model_was_named_has_the_price_of_the_one_asked() -> None:
    """At a server on this machine, where what has no price of its own is free."""

    async def check(books: Books) -> None:
        request = replace(REQUEST, base_url="http://localhost:8000/v1")
        hold = await held(books, request, limits=(REQUESTS,))
        await hold.sent()
        answer = answered()
        answer.request = request
        hold.settle(answer)
        assert books.used(*ALL) == [1, BOUND, BOUND * 1000]

    run(check)


def test_a_cut_answer_that_was_counted_is_booked_as_counted() -> None:
    async def check(books: Books) -> None:
        hold = await held(books)
        await hold.sent()
        hold.settle(answered(Piece("text", "Hel"), Usage(7, 1)))
        assert books.used(*ALL) == [1, 8, 9000]

    run(check)


def test_a_whole_answer_that_nobody_counted_is_booked_by_its_bytes() -> None:
    async def check(books: Books) -> None:
        hold = await held(books)
        await hold.sent()
        hold.settle(answered(Piece("text", "Hé."), Finish("stop")))
        assert books.used(*ALL) == [1, BOUND + 4, (BOUND + 8) * 1000]

    run(check)


def test_more_than_was_held_is_booked_as_it_is() -> None:
    async def check(books: Books) -> None:
        hold = await held(books)
        await hold.sent()
        hold.settle(answered(Finish("stop"), Usage(5000, 4000)))
        assert books.used(*ALL) == [1, 9000, usd("0.013")]

    run(check)


def test_settling_twice_counts_once() -> None:
    async def check(books: Books) -> None:
        hold = await held(books)
        await hold.sent()
        await hold.sent()
        hold.settle(answered(*WHOLE))
        hold.settle(answered(*WHOLE))
        assert books.used(*ALL) == [1, 10, 13_000]

    run(check)


def test_the_third_of_two_is_refused_with_the_way_out() -> None:
    async def check(books: Books) -> None:
        await held(books)
        await held(books)
        with pytest.raises(QuotaExceeded) as refused:
            await held(books)
        error = refused.value
        assert (error.scope, error.metric, error.cap, error.used) == ("kernel", "requests", 2, 2)
        assert "2 of 2 requests in 1 h" in str(error)
        assert "%llm_quota --requests 4" in error.fix
        assert "It fits again at" in error.fix
        assert error.retry_at is not None
        assert len(error._render_traceback_()) <= 3
        assert books.used(REQUESTS) == [2]

    run(check)


def test_a_refusal_in_money_speaks_of_money() -> None:
    async def check(books: Books) -> None:
        little = Limit("user", "usd", usd("0.0001"), 86_400)
        with pytest.raises(QuotaExceeded) as refused:
            await held(books, limits=[little])
        error = refused.value
        assert error.cap == Decimal("0.0001")
        assert error.asked == dollars(WORST[2])
        assert "$0.0001" in str(error)
        assert "--scope user" in error.fix
        assert "--max-tokens" in error.fix
        assert error.retry_at is None

    run(check)


def test_a_cancelled_hold_leaves_nothing() -> None:
    async def check(books: Books) -> None:
        task = asyncio.create_task(held(books))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert books.used(*ALL) == [0, 0, 0]

    run(check)


class Broken(SqliteLedger):
    """A ledger whose disk is full."""

    def hold_many(self, *_: Any) -> Any:
        raise StoreError("The disk is full.", fix="Make room.")


def test_a_broken_ledger_lets_nothing_pass() -> None:
    async def check(books: Books) -> None:
        books.quota.ledger = Broken(None, kernel="k", user="u")
        with pytest.raises(StoreError, match="disk is full"):
            await held(books)

    run(check)


def test_unless_the_user_wants_it_so() -> None:
    async def check(books: Books) -> None:
        books.quota.ledger = Broken(None, kernel="k", user="u")
        hold = await held(books, strict=False)
        await hold.sent()
        hold.settle(answered(*WHOLE))
        assert books.troubles == ["The disk is full. Calls are not counted."]

    run(check)


def test_open_holds_are_renewed_and_no_task_is_left() -> None:
    async def check(books: Books) -> None:
        before = asyncio.all_tasks()
        first, second = await held(books), await held(books)
        (renewing,) = asyncio.all_tasks() - before
        first.settle(answered(billable=False))
        assert not renewing.cancelling()
        second.give_back()
        await asyncio.wait([renewing])
        assert renewing.cancelled()
        assert books.used(*ALL) == [0, 0, 0]

    run(check)
