"""Many rows at once: statements over them, what a shelf finds and a ledger grants of them."""

import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_magic.cassette import Cassette
from llm_magic.entries import Entry, Fingerprint, Row, fingerprint, pack
from llm_magic.ledger import Amount, Claim, Full, Ledger, Limit, Line, Saved, Used
from llm_magic.shelf import Shelf
from llm_magic.stores import many
from llm_magic.stores.ledger import SqliteLedger
from llm_magic.stores.memory import MemoryCache
from llm_magic.stores.redis.ledger import RedisLedger
from llm_magic.stores.redis.server import Server
from llm_magic.types import Request, Response, Usage
from tests.redis_servers import RedisServer

# Statements over many rows


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 255, 256, 257, 5000])
@pytest.mark.parametrize("most", [None, 50, 999])
def test_a_statement_runs_over_rows_whatever_sqlites_limit(count: int, most: int | None) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        if most:
            db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, most)
        db.execute("CREATE TABLE t (a, b, c)")
        rows = [(number, f"text {number}", None) for number in range(count)]
        many.run(
            db,
            "WITH new (a, b, c) AS (VALUES #) INSERT INTO t SELECT a, b || ?1, c FROM new "
            "WHERE a IS NOT NULL",
            rows,
            "!",
        )

        assert db.execute("SELECT * FROM t ORDER BY rowid").fetchall() == [
            (a, f"{b}!", c) for a, b, c in rows
        ]
        keys = [(number,) for number in range(0, count, 2)]
        found = many.run(db, "SELECT a FROM t WHERE a IN (VALUES #)", keys)
        assert sorted(found) == keys


def test_few_texts_of_statements_do_for_any_number_of_rows() -> None:
    texts = set()
    with closing(sqlite3.connect(":memory:")) as db:
        db.set_trace_callback(texts.add)
        for count in range(1, 300):
            many.run(db, "SELECT 1 WHERE 0 IN (VALUES #)", [(None,)] * count)

    # With the values in them they are as many as there are sizes.
    assert len(texts) <= 5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400_000), max_size=600))
def test_parts_are_the_rows_in_their_order_and_within_bounds(sizes: list[int]) -> None:
    rows = [Row(str(number), bytes(size), 0.0) for number, size in enumerate(sizes)]
    found = list(many.parts(rows))

    assert [row for part in found for row in part] == rows
    assert all(0 < len(part) <= many.ROWS_AT_ONCE for part in found)
    assert all(sum(len(row.value) for row in part[:-1]) < many.BYTES_AT_ONCE for part in found)


# What a shelf finds of many


def asked(number: int) -> Fingerprint:
    message = {"role": "user", "content": f"Row {number}"}
    return fingerprint(Request((message,), "m", "http://far.example/v1"))


def answer(number: int, **more: Any) -> Response:
    whole = {"usage": Usage(7, 3), "model": "m", "finish_reason": "stop", "cost": Decimal("0.1")}
    return Response(f"Answer {number}", **{**whole, **more})


def entry(number: int, at: float = 0.0) -> Entry:
    return Entry(f"Answer {number}", "m", "stop", Usage(7, 3), time=at or time.time())


def silent(message: str, fix: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """With rows of every sort: good, old, damaged, another's, none; and a cassette."""
    cache = MemoryCache()
    for number in range(40):
        row = pack(asked(number), entry(number, time.time() - 1000 * (number % 2)))
        match number % 4:
            case 2:
                row = row[:-1]
            case 3 if number % 8 == 3:
                row = pack(asked(number + 1), entry(number))
        cache.put(asked(number).key, row)
    cassette = Cassette(tmp_path / "answers.jsonl")
    cassette.record_many([(asked(number), entry(number)) for number in range(30, 50)])
    return Shelf(cache, silent, cassette)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ttl": 500.0},
        {"cassette": None},
        {"cassette": None, "ttl": 500.0},
        {"records": True},
        {"reads": False},
        {"writes": False},
    ],
)
def test_of_many_the_shelf_finds_what_it_finds_of_each(
    shelf: Shelf, changes: dict[str, Any]
) -> None:
    shelf = replace(shelf, **changes)
    prints = [asked(number) for number in (*range(60), 5, 5)]
    found = shelf.find_many(prints)
    alone = [shelf.find(print_) for print_ in prints]

    assert [each and each.text for each in found] == [each and each.text for each in alone]
    assert any(found) == shelf.reads
    assert not all(found)


def test_when_replaying_many_only_the_cassette_is_looked_into(shelf: Shelf) -> None:
    shelf = replace(shelf, replays=True, reads=False)
    found = shelf.find_many([asked(number) for number in range(60)])

    assert [bool(each) for each in found] == [30 <= number < 50 for number in range(60)]


def test_what_many_looks_find_in_the_cache_is_recorded_at_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(
        "llm_magic.cassette.replace", lambda target, text: written.append(text.count("\n"))
    )
    found = shelf.find_many([asked(number) for number in range(30)])

    assert written == [20 + sum(map(bool, found))]


def test_an_answer_with_a_servers_own_reason_to_end_is_passed_on_and_not_kept(
    shelf: Shelf,
) -> None:
    """Neither in the cache nor in the cassette; and those beside it are."""
    odd, good = asked(100), asked(101)
    shelf.keep_many([(odd, answer(100, finish_reason="eos_token")), (good, answer(101))])

    assert shelf.cache.get(odd.key) is None
    assert shelf.cassette.get(odd.key) is None
    assert shelf.cassette.get(good.key).text == "Answer 101"
    assert shelf.find(good).text == "Answer 101"


def test_a_cassette_that_cannot_be_written_costs_none_of_many_answers(tmp_path: Path) -> None:
    told = []
    cassette = Cassette(tmp_path / "nowhere" / "answers.jsonl")
    shelf = Shelf(MemoryCache(), lambda message, fix: told.append(message), cassette)
    shelf.keep_many([(asked(number), answer(number)) for number in range(20)])

    assert all(shelf.cache.get(asked(number).key) for number in range(20))
    assert len(told) == 1
    assert "20 answers are not recorded" in told[0]


# What a ledger grants many

SECOND = 10**9
CLAIMS = st.lists(
    st.builds(
        Claim,
        st.sampled_from([f"id {number}" for number in range(30)]),
        st.builds(Amount, st.integers(0, 2), st.integers(0, 200), st.integers(0, 200)),
        st.sampled_from([None, None, "x", "y", "z"]),
        sent=st.booleans(),
    ),
    max_size=20,
)
LIMITS = [
    Limit("kernel", "requests", 12, 5.0),
    Limit("user", "tokens", 900, None),
    Limit("user", "usd", 1200, 2.0),
    Limit("kernel", "requests", 25, 60.0),
]


class Pair:
    """Two ledgers, of which one is asked for many and the other for one after the other.

    Args:
        many: The one, as a function of its clock; in memory by default.
    """

    def __init__(self, many: Callable[[Callable[[], int]], Ledger] | None = None) -> None:
        self.now = 1_700_000_000 * SECOND
        self.one = self._in_memory(lambda: self.now)
        self.many = (many or self._in_memory)(lambda: self.now)

    def _in_memory(self, clock: Callable[[], int]) -> Ledger:
        return SqliteLedger(None, kernel="k", user="u", clock=clock)

    def hold(self, claims: list[Claim]) -> set[str]:
        """Gives the ids of what is held."""
        verdicts = self.many.hold_many(claims, LIMITS)
        assert verdicts == [self.one.hold(claim, LIMITS) for claim in claims]
        pairs = zip(claims, verdicts, strict=True)
        return {claim.id for claim, verdict in pairs if verdict == "held"}

    def settle(self, uses: list[tuple[str, Used | None]], wait: float) -> None:
        self.many.settle_many(uses)
        for id_, used in uses:
            if used is None:
                self.one.void(id_)
            else:
                self.one.settle(id_, used)
        assert self.many.standing(LIMITS) == self.one.standing(LIMITS)
        self.now += int(wait * SECOND)
        assert self.many.standing(LIMITS) == self.one.standing(LIMITS)

    def close(self) -> None:
        self.many.close()
        self.one.close()


USES = st.lists(
    st.tuples(
        st.sampled_from([f"id {number}" for number in range(36)]),
        st.none()
        | st.builds(
            Used,
            st.builds(Amount, st.integers(0, 2), st.integers(0, 100), st.integers(0, 100)),
            st.sampled_from(["", "m"]),
            st.integers(0, 9),
            priced=st.booleans(),
        ),
    ),
    max_size=12,
)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(CLAIMS, USES, st.sampled_from([0, 0.5, 2, 5, 61])), max_size=5))
def test_many_calls_are_held_and_settled_as_one_after_the_other(steps: list[Any]) -> None:
    pair = Pair()
    try:
        for claims, uses, wait in steps:
            pair.hold(claims)
            pair.settle(uses, wait)
        assert pair.many.usage("model") == pair.one.usage("model")
    finally:
        pair.close()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(CLAIMS, USES, st.sampled_from([0, 0.5, 2, 5, 61])), max_size=5))
def test_redis_holds_and_settles_many_calls_as_a_file_does(
    redis_server: RedisServer, steps: list[Any]
) -> None:
    user = uuid.uuid4().hex
    pair = Pair(
        lambda clock: RedisLedger(
            Server(redis_server.url, patience=5), kernel="k", user=user, clock=clock
        )
    )
    known: set[str] = set()
    try:
        for claims, uses, wait in steps:
            # Redis remembers a void of a call that it does not know, whose hold may follow.
            known |= pair.hold(claims)
            pair.settle([use for use in uses if use[1] or use[0] in known], wait)
        for by in ("model", "day", "cell"):
            lines = [line for line in pair.one.usage(by) if line != Line(line.name)]
            assert pair.many.usage(by) == lines
    finally:
        pair.close()


def test_claims_of_one_batch_count_against_each_other() -> None:
    ledger = SqliteLedger(None, kernel="k", user="u")
    limit = Limit("kernel", "tokens", 1000, 60.0)
    verdicts = ledger.hold_many(
        [Claim(str(number), Amount(1, 300)) for number in range(5)], [limit]
    )

    assert verdicts[:3] == ["held"] * 3
    assert [(each.used, each.asked) for each in verdicts[3:]] == [(900, 300)] * 2
    ledger.close()


def test_a_small_claim_fits_behind_a_large_one_that_does_not() -> None:
    ledger = SqliteLedger(None, kernel="k", user="u")
    limit = Limit("kernel", "tokens", 1000, 60.0)
    claims = [Claim(str(number), Amount(1, size)) for number, size in enumerate([900, 200, 100])]
    first, second, third = ledger.hold_many(claims, [limit])

    assert (first, third) == ("held", "held")
    assert isinstance(second, Full)
    assert second.retry_at is not None
    ledger.close()


def test_two_thousand_claims_are_granted_as_far_as_they_fit(tmp_path: Path) -> None:
    """More than SQLite's parameters of one statement; and of keys each once."""
    ledger = SqliteLedger(tmp_path / "ledger.db", kernel="k", user="u")
    limit = Limit("user", "requests", 700, None)
    claims = [Claim(f"id {n}", Amount(1, 10), f"key {n % 1000}") for n in range(2000)]
    verdicts = ledger.hold_many(claims, [limit])

    assert verdicts[:700] == ["held"] * 700
    assert all(isinstance(each, Full) for each in verdicts[700:1000])
    assert verdicts[1000:1700] == ["flying"] * 700
    ledger.settle_many([(f"id {n}", Used(Amount(1, 3))) for n in range(700)])
    assert ledger.standing([limit, Limit("user", "tokens", 9, None)]) == [
        (limit, 700),
        (Limit("user", "tokens", 9, None), 2100),
    ]
    assert not ledger.flying("key 3")
    ledger.close()


def test_many_free_answers_are_noted_as_one_after_the_other() -> None:
    saved = [Saved(f"m{n % 3}", f"In [{n % 2}]", n, 2 * n) for n in range(200)]
    together, alone = (SqliteLedger(None, kernel="k", user="u") for _ in range(2))
    together.saved_many(saved)
    for each in saved:
        alone.saved(each)

    for by in ("model", "cell"):
        assert together.usage(by) == alone.usage(by)
    together.close()
    alone.close()
