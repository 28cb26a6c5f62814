"""How a run over rows is told in one line: every number at the ends of its range."""

from dataclasses import replace
from decimal import Decimal

import pytest

from llm_magic.bounds import Purse
from llm_magic.errors import ProviderError
from llm_magic.gate import Gate
from llm_magic.outcome import Outcome
from llm_magic.progress import NO_CAP, Plan, Standing, duration
from llm_magic.table import source
from llm_magic.types import Response, Usage

PLAN = Plan(rows=5_000, looked_at=5_000, worst=Decimal(4), worst_tokens=9_000, model="m")
HALF = Standing(
    1_000,
    done=500,
    asked=500,
    cost=Decimal("0.50"),
    projected=Decimal(1),
    seconds=10.0,
    per_second=50.0,
    left=10.0,
    window=24,
)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.04, "0 s"),
        (0.44, "0.4 s"),
        (9.04, "9 s"),
        (9.44, "9.4 s"),
        (9.6, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (250, "4 min 10 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (3900, "1 h 5 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_a_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# --- while it runs


def test_what_matters_most_comes_first() -> None:
    standing = replace(HALF, failed=2, cached=30, equal=4, limit=60.0, budget=Decimal(2))

    assert standing.line() == (
        "500 of 1,000 · 2 failed · 10 s left · $0.50 of $2.00, about $1.00 in all · "
        "50 rows/s (limit 60/s) · 24 at once · 30 cached · 4 equal"
    )


def test_of_what_there_is_none_nothing_is_said() -> None:
    assert Standing(8).line() == "0 of 8 · 0 s"


@pytest.mark.parametrize(("done", "said"), [(0, "0 rows"), (1, "1 row"), (1_234, "1,234 rows")])
def test_an_unknown_total(done: int, said: str) -> None:
    standing = Standing(None, done=done, seconds=3)

    assert standing.line() == f"{said} · 3 s"
    assert standing.share is None


@pytest.mark.parametrize(
    ("total", "done", "share"), [(0, 0, 1.0), (4, 0, 0.0), (4, 1, 0.25), (4, 4, 1.0), (4, 5, 1.0)]
)
def test_the_share_that_is_done(total: int, done: int, share: float) -> None:
    assert Standing(total, done=done).share == share


def test_a_notice_stands_where_the_time_left_would() -> None:
    line = replace(HALF, notice="held by the server's rate limit for 4 s").line()

    assert "500 of 1,000 · held by the server's rate limit for 4 s · $0.50" in line
    assert "left" not in line


@pytest.mark.parametrize(
    ("left", "said"), [(0.0, "1 s left"), (0.2, "1 s left"), (4.01, "5 s left"), (60, "1 min 0 s")]
)
def test_a_run_that_is_not_over_has_time_left(left: float, said: str) -> None:
    assert said in replace(HALF, left=left).line()


def test_at_the_end_the_time_is_what_it_took_and_the_cost_what_it_was() -> None:
    line = replace(HALF, done=1_000, left=0.0, seconds=21.0).line()

    assert line.startswith("1,000 of 1,000 · 21 s · $0.50 · ")


@pytest.mark.parametrize(
    ("a_second", "said"),
    [(0.04, "0.04"), (0.5, "0.5"), (2.0, "2"), (9.94, "9.9"), (10.4, "10"), (5_388.2, "5,388")],
)
def test_a_rate(a_second: float, said: str) -> None:
    assert f" · {said} rows/s (limit {said}/s) · " in (
        replace(HALF, per_second=a_second, limit=a_second).line()
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "$0.50, about $1.00 in all"),
        ({"budget": Decimal(2)}, "$0.50 of $2.00, about $1.00 in all"),
        ({"projected": None}, "$0.50"),
        ({"cost": Decimal(0), "projected": Decimal(0)}, "free"),
        # Nothing was asked yet: it is not known to be free.
        ({"cost": Decimal(0), "projected": None, "asked": 0}, ""),
        ({"cost": Decimal(0), "projected": None, "budget": Decimal(2)}, "$0 of $2.00"),
        ({"cost": Decimal(0), "projected": Decimal(0), "budget": Decimal(2)}, "$0 of $2.00"),
        ({"cost": Decimal(0), "projected": Decimal(0), "budget": Decimal(0)}, "free"),
        ({"cost": None, "projected": None, "asked": 0}, ""),
        (
            {"cost": None, "projected": None, "tokens": Usage(40_000, 900)},
            "40,000 in / 900 out, price unknown",
        ),
    ],
)
def test_money(changes: dict[str, object], said: str) -> None:
    assert replace(HALF, **changes).money() == said  # type: ignore[arg-type]


# --- before it runs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "m · 5,000 rows · at most $4.00"),
        ({"model": ""}, "5,000 rows · at most $4.00"),
        ({"rows": 1, "looked_at": 1}, "m · 1 row · at most $4.00"),
        ({"rows": 0, "looked_at": 0, "worst": Decimal(0)}, "m · 0 rows · free"),
        ({"rows": None}, "m · rows not counted"),
        (
            {"equal": 7, "cached": 3_000, "expected": Decimal(1)},
            "m · 5,000 rows · 7 equal · 3,000 cached · 1,993 to ask · expected $1.00 · "
            "at most $4.00",
        ),
        (
            {"cached": 5_000, "worst": Decimal(0), "expected": Decimal(0)},
            "m · 5,000 rows · 5,000 cached · 0 to ask · free",
        ),
        ({"worst": Decimal(0)}, "m · 5,000 rows · free"),
        ({"worst": None}, "m · 5,000 rows · at most 9,000 tokens, price unknown"),
        ({"worst": None, "worst_tokens": None}, f"m · 5,000 rows · {NO_CAP}"),
    ],
)
def test_a_plan(changes: dict[str, object], said: str) -> None:
    assert replace(PLAN, **changes).line() == said  # type: ignore[arg-type]


def test_what_only_a_part_of_the_rows_told_is_called_about() -> None:
    plan = replace(PLAN, looked_at=2_000, cached=2_500, equal=0)

    assert plan.line().startswith("m · 5,000 rows · about 2,500 cached · about 2,500 to ask")
    assert plan.counted(0) == "0"


@pytest.mark.parametrize(
    ("budget", "expected", "said"),
    [
        (None, Decimal(3), ""),
        (Decimal(2), None, ""),
        (Decimal(3), Decimal(3), ""),
        (Decimal(0), Decimal(0), ""),
        (Decimal("1.5"), Decimal(3), "the limit of $1.50 ends it early, after about 2,500 of"),
        (Decimal(0), Decimal(3), "the limit of $0 ends it early, after about 0 of 5,000 asked"),
    ],
)
def test_a_budget_that_is_not_enough_is_told_before(
    budget: Decimal | None, expected: Decimal | None, said: str
) -> None:
    plan = replace(PLAN, budget=budget, expected=expected)

    assert plan.short().startswith(said)
    assert bool(plan.short()) == bool(said)
    assert plan.line().endswith(plan.short())


def test_more_rows_cached_and_equal_than_there_are_leaves_none_to_ask() -> None:
    """The counts may be reckoned from a part, and rounded."""
    assert replace(PLAN, cached=4_000, equal=1_001).to_ask == 0


# --- what is expected of the rows that are left


ASKED = Response("a", Usage(9, 1), "m", "stop", value="a", cost=Decimal("0.01"))
FOUND = replace(ASKED, cached=True, cost=Decimal(0))


@pytest.fixture
def purse() -> Purse:
    return Purse()


@pytest.fixture
def half_cached(purse: Purse) -> Outcome:
    """A run over 1,000 rows of which the first half was there at once."""
    outcome = Outcome(source([{"text": "x"}] * 1_000), None)
    outcome.begin(Gate(), purse, None)
    for place in range(500):
        outcome.answered(place, FOUND, None)
    return outcome


def ask(outcome: Outcome, purse: Purse, rows: range) -> None:
    """The server answers these rows, for a cent each."""
    for place in rows:
        outcome.answered(place, ASKED, None)
        purse.spent += 10_000_000


def test_rows_that_were_there_promise_no_end_and_no_price(half_cached: Outcome) -> None:
    half_cached.to_ask = 500

    standing = half_cached.standing(1_000)

    assert (standing.left, standing.projected) == (None, None)


def test_time_and_cost_are_expected_from_rows_that_were_asked(
    half_cached: Outcome, purse: Purse
) -> None:
    half_cached.to_ask = 500
    ask(half_cached, purse, range(500, 600))

    standing = half_cached.standing(1_000)

    assert standing.cost == 1
    assert standing.projected == 5
    assert standing.left == pytest.approx(4 * standing.seconds)


def test_where_nobody_looked_the_rest_is_as_the_rows_lately(
    half_cached: Outcome, purse: Purse
) -> None:
    """One in six was asked, so far."""
    ask(half_cached, purse, range(500, 600))

    assert half_cached.standing(1_000).projected == pytest.approx(Decimal(1 + 400 / 600))


def test_more_asked_than_were_thought_missing_is_not_the_end(
    half_cached: Outcome, purse: Purse
) -> None:
    half_cached.to_ask = 50
    ask(half_cached, purse, range(500, 600))

    standing = half_cached.standing(1_000)

    assert standing.left
    assert standing.projected
    assert standing.projected > 1


def test_rows_asked_again_are_counted_anew(half_cached: Outcome, purse: Purse) -> None:
    ask(half_cached, purse, range(500, 990))
    for place in range(990, 1_000):
        half_cached.failed(place, ProviderError("no"))

    half_cached.begin(Gate(), Purse(), half_cached.missing())
    standing = half_cached.standing(10)

    assert (standing.done, standing.failed, standing.cached, standing.asked) == (0, 0, 0, 0)
    assert standing.line().startswith("0 of 10 · ")
