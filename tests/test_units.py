"""Amounts as people write and read them."""

import time
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_magic.units import ago, clock, seconds, size, span, usd, whole_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (90, 90),
        ("90", 90),
        ("30s", 30),
        ("5 min", 300),
        ("1h", 3600),
        ("1.5 hours", 5400),
        ("7 days", 604_800),
        ("1d", 86_400),
        ("2w", 1_209_600),
        ("0", 0),
    ],
)
def test_seconds(text: str | float, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1 fortnight", "-1h", "1h30", "nan", "inf", "1e9"])
def test_no_span(text: str) -> None:
    with pytest.raises(ValueError, match="span of time"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(1000, 1000), ("500 MB", 500_000_000), ("1 GiB", 2**30), ("1.5kB", 1500), ("0", 0)],
)
def test_whole_bytes(text: str | int, expected: int) -> None:
    assert whole_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "big", "1 XB", "-5 MB"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        whole_bytes(text)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("0", "$0"),
        ("0.0004", "$0.0004"),
        ("0.00027", "$0.00027"),
        ("0.000000001", "$0.000000001"),
        ("0.013", "$0.013"),
        ("0.0994", "$0.099"),
        ("0.0996", "$0.10"),
        ("0.3", "$0.30"),
        ("0.996", "$1.00"),
        ("2", "$2.00"),
        ("1234.5", "$1,234.50"),
    ],
)
def test_usd(amount: str, expected: str) -> None:
    assert usd(Decimal(amount)) == expected


@given(st.decimals(min_value="1e-12", max_value="1e9", allow_nan=False))
def test_an_amount_in_words_is_near_and_never_an_exponent(amount: Decimal) -> None:
    with localcontext(prec=3):
        words = usd(amount)

    assert "E" not in words
    shown = Decimal(words.removeprefix("$").replace(",", ""))
    assert abs(shown - amount) <= amount * Decimal("0.051")


def test_a_price_that_is_not_known_is_said() -> None:
    assert usd(None) == "price unknown"


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0, "just now"),
        (59, "just now"),
        (60, "1 min ago"),
        (7200, "2 h ago"),
        (86_400, "1 day ago"),
        (300_000, "3 days ago"),
    ],
)
def test_ago(age: float, expected: str) -> None:
    assert ago(age) == expected


@pytest.mark.parametrize(
    ("length", "expected"),
    [(3600, "1 h"), (86_400, "1 d"), (5400, "90 min"), (90, "90 s")],
)
def test_span(length: float, expected: str) -> None:
    assert span(length) == expected


def test_clock_names_the_day_only_where_it_is_another() -> None:
    now = time.time()
    noon = time.mktime((*time.localtime(now)[:3], 12, 0, 0, 0, 0, -1))

    assert " on " not in clock(noon)
    assert " on 20" in clock(now + 3 * 86_400)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(812, "812 B"), (1500, "1.5 kB"), (1.1e9, "1.1 GB"), (5e12, "5000.0 GB")],
)
def test_size(count: float, expected: str) -> None:
    assert size(count) == expected
