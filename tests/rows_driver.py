"""A run over rows as its views see one: how it stands, and what came of it."""

from __future__ import annotations

from decimal import Decimal

from llm_magic.progress import Plan, Standing, Summary
from llm_magic.types import Usage

NAMES = ("text", "sentiment", "stars")
ROWS = (
    ("The soles came off after a week.", "negative", "1"),
    ("Fits like a glove, would buy again!", "positive", "5"),
    ("Delivery took a month; the shoes are fine.", "mixed", "3"),
    ("Too small. I sent them back.", "negative", "2"),
    ("My daughter loves the colour.", "positive", "5"),
)
ERRORS = (
    ("stars: should be at most 5, and is 7", 2, (204, 1_880)),
    ("the content filter declined", 1, (17,)),
)
PLAN = Plan(
    rows=50_000,
    equal=7,
    cached=6_110,
    looked_at=2_000,
    worst=Decimal("4.10"),
    worst_tokens=12_400_000,
    expected=Decimal("1.30"),
    expected_from="20 answers in the cache",
    prompts=("Classify this review for a shoe shop:\nThe soles came off after a week.",),
    budget=Decimal(2),
    model="gpt-5-mini",
)


def standing(done: int, total: int | None = 50_000, *, seconds: float = 0.0) -> Standing:
    """How it stands when so many rows are done, at 500 a second."""
    return Standing(
        total,
        done=done,
        cached=done // 8,
        equal=7 if done > 100 else 0,
        failed=3 if done > 2_000 else 0,
        asked=done - done // 8,
        cost=Decimal(done) * Decimal("0.0000266"),
        projected=None if total is None else Decimal(total) * Decimal("0.000026"),
        budget=Decimal(2),
        tokens=Usage(done * 80, done * 12),
        seconds=seconds,
        per_second=486.0,
        left=None if total is None else (total - done) / 486,
        window=24,
        limit=500,
        problem=ERRORS[0][0] if done > 2_000 else "",
        names=NAMES,
        rows=ROWS[: done // 20],
    )


def summary(last: Standing) -> Summary:
    """What came of it."""
    return Summary(
        f"{last.done:,} rows: {last.asked:,} asked, {last.cached:,} cached, {last.equal} equal, "
        f"{last.failed} failed · $0.83 · 38 s",
        ERRORS if last.failed else (),
        last.names,
        last.rows,
    )
