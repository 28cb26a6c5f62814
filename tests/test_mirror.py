"""What headers say of a limit, and what becomes of it."""

import time
from dataclasses import dataclass, field

import pytest

from llm_magic.mirror import Mirror, Reading, duration, readings
from llm_magic.pacer import Pacer
from tests.pretend import Pretended, run


@pytest.mark.parametrize(
    ("text", "seconds", "grain"),
    [
        ("6m0s", 360, 1),
        ("2ms", 0.002, 0.001),
        ("1.5", 1.5, 0.1),
        ("1.5s", 1.5, 0.1),
        ("0", 0, 1),
        ("12", 12, 1),
        ("2m59.56s", 179.56, 0.01),
        ("1h2m3s", 3723, 1),
        ("1d", 86_400, 86_400),
        ("250us", 0.00025, 0.001),
        (" 7.66S ", 7.66, 0.01),
        ("1m 30s", 90, 1),
    ],
)
def test_times_as_servers_write_them(text, seconds, grain):
    assert duration(text) == pytest.approx((seconds, grain))


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "-5s", "s", "1x", "6m-3s", "1..5", "nan", "inf", "1e5s", "٣s٣", "½s"]
)
def test_a_time_that_is_none(text):
    assert duration(text) is None


@pytest.mark.parametrize("scale", [1, 1000])
def test_a_moment_since_1970_is_the_time_until_then(scale):
    seconds, grain = duration(str(int((time.time() + 30) * scale)))
    assert 25 < seconds <= 30
    assert grain == 1


def test_a_moment_that_is_over_is_now():
    assert duration(str(int(time.time()) - 100))[0] == 0


def headers(limit="60", remaining="59", reset="1s", kind="requests"):
    parts = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{part}-{kind}": value for part, value in parts.items()}


def test_requests_and_tokens_are_told_apart():
    found = readings(headers() | headers("1000", "900", "6m0s", "tokens"))
    assert found["requests"] == Reading(60, 59, 1, 1, generic=False)
    assert found["tokens"] == Reading(1000, 900, 360, 1, generic=False)


def test_names_in_any_case_and_without_a_kind():
    names = {"RateLimit-Limit": "10", "RATELIMIT-REMAINING": "4", "ratelimit-reset": "5"}
    assert readings(names) == {"any": Reading(10, 4, 5, 1, generic=True)}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        headers(limit=""),
        headers(limit="-1"),
        headers(limit="0"),
        headers(limit="unlimited"),
        headers(remaining="none"),
        headers(remaining="-1"),
        headers(reset="soon"),
        headers(reset=""),
        headers(kind="images"),
        {"x-ratelimit": "10"},
        {"x-ratelimit-limit-requests-day": "10"},
        {"x-ratelimit-limit-requests": "10"},
    ],
)
def test_headers_that_are_not_understood_say_nothing(wrong):
    assert readings(wrong) == {}


def test_more_left_than_the_limit_is_the_limit():
    assert readings(headers(limit="5", remaining="50"))["requests"].remaining == 5


def told(mirror, limit, remaining, reset, now, grain=0.001, mark=None):
    mirror.heard(Reading(limit, remaining, reset, grain, False), mark, now, 1)


def test_the_rate_is_what_is_missing_by_the_time_that_it_takes():
    mirror = Mirror("requests")
    told(mirror, 100, 40, 0.2, now=0.0)
    assert mirror.pace == pytest.approx(300, rel=0.02)


def test_a_bucket_that_is_full_says_nothing_of_the_rate():
    mirror = Mirror("requests")
    told(mirror, 100, 100, 0.0, now=0.0)
    assert mirror.pace is None
    assert mirror.delay(0.0) == 0


def test_waits_for_what_the_bucket_has_not():
    mirror = Mirror("requests")
    told(mirror, 100, 0, 10.0, now=0.0)
    assert mirror.delay(0.0) == pytest.approx(0.1 * (1 + 3.5), rel=0.05)


def test_of_tokens_a_request_takes_what_it_took_before():
    mirror = Mirror("tokens")
    told(mirror, 1000, 100, 9.0, now=0.0)
    for _ in range(100):
        mirror.answered(50)
    told(mirror, 1000, 100, 9.0, now=0.0)
    assert mirror.pace == pytest.approx(2, rel=0.05)


def test_a_request_larger_than_the_bucket_goes_when_it_is_full():
    """The server decides, and not the mirror, which would wait for ever."""
    mirror = Mirror("tokens")
    for _ in range(100):
        mirror.answered(500)
    told(mirror, 100, 100, 0.0, now=0.0)
    told(mirror, 100, 0, 10.0, now=0.0)
    assert mirror.delay(0.0) <= 11
    assert mirror.delay(11.0) == 0


def test_a_limit_for_a_day_is_no_rate_while_much_of_it_is_left():
    """It fills by ten a minute, and thousands may go at once."""
    pacer = Pacer()
    pacer.heard({}, headers("14400", "14370", "2m59.56s"), 0.0, 1)
    assert pacer.rate() is None
    assert pacer.delay(0.0) == 0
    _, marks = pacer.sent(10.0, 0)
    pacer.heard(marks, headers("14400", "14", "23h58m0s"), 10.1, 1)
    assert pacer.rate() == pytest.approx(1 / 6, rel=0.05)


def test_another_limit_is_another_bucket():
    mirror = Mirror("requests")
    told(mirror, 60, 0, 0.2, now=0.0)
    told(mirror, 600, 599, 0.001, now=0.0)
    assert mirror.delay(0.0) == 0


@dataclass
class Lying(Pretended):
    """A server without a limit whose headers never change."""

    lies: dict[str, str] = field(default_factory=dict)

    def tells(self):
        return self.lies


@pytest.mark.parametrize(
    "lies",
    [
        headers("60", "60", "0s"),
        headers("60", "59", "0"),
        headers("60", "59", "1ms"),
        headers("1000000000", "999999999", "1ms"),
        headers("10", "10", "1h"),
        headers("60", "30", "6m0s"),
    ],
)
def test_headers_that_never_change_do_not_stop_a_run(lies):
    found = run(300, latency=0.02, kind=Lying, lies=lies)
    assert found.rows == 300
    assert found.seconds < 60


def test_a_server_that_says_that_nothing_is_left_is_asked_once_a_minute():
    """It may be wrong."""
    found = run(12, latency=0.02, kind=Lying, lies=headers("10", "0", "24h0m0s"))
    assert found.seconds < 12 * 61


class Shared(Pretended):
    """A server half of whose limit goes to somebody else."""

    def refusal(self):
        wait = super().refusal()
        if not wait:
            self.bucket.level = max(0.0, self.bucket.level - 1)
        return wait


def test_others_that_use_the_same_limit_are_made_room_for():
    server = {"latency": 0.02, "rate": 300, "burst": 60, "headers": True, "spread": 0.3}
    found = run(1500, kind=Shared, **server)
    assert found.share >= 0.4
    assert found.per_100 < 5


def test_a_rejection_that_headers_explain_teaches_no_second_rate():
    pacer = Pacer()
    pacer.heard({}, headers("60", "30", "100ms"), 0.0, 1)
    number, marks = pacer.sent(0.0, 0)
    pacer.heard(marks, headers("60", "0", "200ms"), 0.01, 1)
    pacer.rejected(number, 0.0, 0.01, True, 0.01)
    assert pacer._learnt.rate is None


def test_a_rejection_for_another_reason_is_learnt_from():
    """Much is left by the headers; something else was short."""
    pacer = Pacer()
    pacer.heard({}, headers("60", "50", "30ms"), 0.0, 1)
    number, marks = pacer.sent(0.0, 0)
    pacer.heard(marks, headers("60", "50", "30ms"), 0.01, 1)
    pacer.rejected(number, 0.0, 0.01, True, 0.01)
    assert pacer._learnt.rate is not None
