"""The rules of every ledger: in a file, in memory, in Redis and in Valkey."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_magic import owner as owners
from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Claim, Full, Ledger, Limit, Line, Saved, Used, nanos, summed
from llm_magic.owner import Owner
from llm_magic.stores import ledger as files
from llm_magic.stores.ledger import SqliteLedger
from llm_magic.stores.redis import ledger as servers
from llm_magic.stores.redis.keys import Keys
from llm_magic.stores.redis.ledger import RedisLedger
from llm_magic.stores.redis.server import Server
from tests import redis_counts, test_ledger
from tests.conftest import emptied_redis
from tests.redis_servers import KINDS, RedisServer

MICRO = 1000
SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
YEAR = 365 * DAY
START = 1_700_000_000 * SECOND

ONE = Amount(requests=1)
CALM = Limit("user", "requests", 10**6, 3600.0)


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class Store:
    """Where ledgers are, and what is to be seen there from outside.

    Args:
        place: A file; a server; or None for memory, where there is one ledger alone.
        clock: Their clock.

    Attributes:
        tick: The nanoseconds that they tell apart.
    """

    def __init__(self, place: Path | RedisServer | None, clock: Clock) -> None:
        self.place = place
        self._clock = clock
        self.tick = MICRO if isinstance(place, RedisServer) else 1
        self._made: list[Ledger] = []

    def make(self, kernel: str = "k1", **more: Any) -> Ledger:
        """A ledger; closed at the end."""
        more = {"user": "ada", "clock": self._clock, **more}
        if isinstance(self.place, RedisServer):
            made: Ledger = RedisLedger(Server(self.place.url, patience=5), kernel=kernel, **more)
        else:
            assert self.place or not self._made
            made = SqliteLedger(self.place, kernel=kernel, **more)
        self._made.append(made)
        return made

    def close(self) -> None:
        for each in self._made:
            with suppress(StoreError):
                each.close()

    def calls(self) -> dict[str, tuple[Any, ...]]:
        """State, requests, tokens and nano-dollars of each call that is known, by id."""
        if isinstance(self.place, RedisServer):
            return self._calls_in_redis(self.place)
        assert self.place
        if not self.place.exists():
            return {}
        with closing(sqlite3.connect(self.place)) as db:
            found = db.execute("SELECT id, state, requests, tokens, nanos FROM calls ORDER BY n")
            return {id_: tuple(row) for id_, *row in found}

    def _calls_in_redis(self, server: RedisServer) -> dict[str, tuple[Any, ...]]:
        keys = Keys("k1", "ada")
        start = keys.call("")
        with server.client() as client:
            log = redis_counts.log(client, keys.of("user", "log"))
            return {
                (id_ := key[len(start) :].decode()): (
                    redis_counts.state(client, key),
                    *(log[id_][1] if id_ in log else (0, 0, 0)),
                )
                for key in client.scan_iter(start + b"*", 1000)
            }

    def states(self) -> dict[str, str]:
        return {id_: row[0] for id_, row in self.calls().items()}

    def assert_sums_are_true(self) -> None:
        """Every running sum is what its calls come to; in memory nobody can look."""
        if isinstance(self.place, RedisServer):
            with self.place.client() as client:
                assert redis_counts.assert_sums_are_true(client)
                redis_counts.assert_keys_are_in_order(client)
        elif self.place:
            assert test_ledger.assert_sums_are_true(self.place)


def opened(
    kind: str, folder: Path, running: dict[str, RedisServer], clock: Clock
) -> Iterator[Store]:
    place: Path | RedisServer | None = None
    if kind in KINDS:
        place = emptied_redis(kind, running)
    elif kind == "file":
        (folder / "ledger").mkdir(mode=0o700)
        place = folder / "ledger" / "ledger.db"
    made = Store(place, clock)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["file", "memory", *KINDS])
def store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    running_redis: dict[str, RedisServer],
    clock: Clock,
) -> Iterator[Store]:
    """Each kind of ledger."""
    yield from opened(request.param, tmp_path, running_redis, clock)


@pytest.fixture(params=["file", *KINDS])
def shared(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    running_redis: dict[str, RedisServer],
    clock: Clock,
) -> Iterator[Store]:
    """Each kind that several kernels share, and that can be looked at from outside."""
    yield from opened(request.param, tmp_path, running_redis, clock)


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return store.make()


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Days begin and end by UTC; START is 2023-11-14, 22:13."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool | None]:
    """Says of an owner's text whether it lives; who is not in it does."""
    told: dict[str, bool | None] = {}
    monkeypatch.setattr(owners, "alive", lambda text: told.get(text, True))
    look_every(monkeypatch, float("inf"))
    return told


def look_every(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(files, "LOOK_EVERY", seconds)
    monkeypatch.setattr(servers, "LOOK_EVERY", seconds)


def process(number: int) -> Owner:
    return Owner("boot", "pid:[1]", number, 7, "somewhere")


def used(requests: int = 1, tokens: int = 0, spent: int = 0, **more: Any) -> Used:
    return Used(Amount(requests, tokens, spent), **more)


def counted(ledger: Ledger, *limits: Limit) -> list[int]:
    return [amount for _, amount in ledger.standing(limits)]


# Limits


@pytest.mark.parametrize("scope", ["kernel", "user"])
@pytest.mark.parametrize("metric", ["requests", "tokens", "usd"])
def test_exactly_at_the_limit_passes_and_one_more_does_not(ledger, scope, metric):
    name = "nanos" if metric == "usd" else metric
    limit = Limit(scope, metric, 1000, 60.0)
    assert ledger.hold(Claim("a", Amount(**{name: 400})), [limit]) == "held"
    refused = ledger.hold(Claim("b", Amount(**{name: 601})), [limit])
    assert isinstance(refused, Full)
    assert (refused.limit, refused.used, refused.asked) == (limit, 400, 601)
    assert ledger.hold(Claim("c", Amount(**{name: 600})), [limit]) == "held"
    assert isinstance(ledger.hold(Claim("d", Amount(**{name: 1})), [limit]), Full)


def test_a_budget_in_dollars_is_kept_to_the_nano_dollar(ledger):
    limit = Limit("user", "usd", nanos(Decimal("0.30")), None)
    tenth = Amount(nanos=nanos(Decimal("0.10")))
    for name in "abc":
        assert ledger.hold(Claim(name, tenth), [limit]) == "held"
    assert isinstance(ledger.hold(Claim("d", Amount(nanos=1)), [limit]), Full)
    ledger.settle("a", used(spent=tenth.nanos - 1))
    assert isinstance(ledger.hold(Claim("d", Amount(nanos=2)), [limit]), Full)
    assert ledger.hold(Claim("d", Amount(nanos=1)), [limit]) == "held"


def test_a_row_leaves_its_window_at_its_end_and_not_before(ledger, clock):
    limit = Limit("kernel", "requests", 1, 1.0)
    assert ledger.hold(Claim("a", ONE), [limit]) == "held"
    clock.now = START + SECOND - MICRO
    assert isinstance(ledger.hold(Claim("b", ONE), [limit]), Full)
    clock.now = START + SECOND
    assert ledger.hold(Claim("b", ONE), [limit]) == "held"


@pytest.mark.parametrize("back", [1, HOUR, YEAR])
def test_a_clock_set_back_opens_nothing(shared, clock, back):
    ledger = shared.make()
    limits = [Limit("user", "requests", 2, 60.0), Limit("kernel", "requests", 5, None)]
    clock.now += 30 * SECOND
    for name in "ab":
        assert ledger.hold(Claim(name, ONE), limits) == "held"
    clock.now -= back
    for each in (ledger, shared.make("k2")):
        refused = each.hold(Claim("c", ONE), limits)
        assert isinstance(refused, Full)
        assert refused.used == 2
    clock.now = START + 90 * SECOND
    assert ledger.hold(Claim("c", ONE), limits) == "held"


def test_a_refusal_writes_nothing_of_the_claim(shared):
    ledger = shared.make()
    limits = [
        Limit("kernel", "requests", 10, 60.0),
        Limit("user", "requests", 10, 3600.0),
        Limit("user", "tokens", 1000, 3600.0),
        Limit("user", "usd", 5, 3600.0),
    ]
    assert ledger.hold(Claim("a", Amount(1, 100, 3)), limits) == "held"
    before = shared.calls()
    for _ in range(3):
        refused = ledger.hold(Claim("b", Amount(1, 100, 3), key="key"), limits)
        assert isinstance(refused, Full)
        assert refused.limit.metric == "usd"
    assert shared.calls() == before
    assert counted(ledger, *limits) == [1, 1, 100, 3]
    assert not ledger.flying("key")
    shared.assert_sums_are_true()


def test_a_kernels_limit_counts_this_kernel_and_a_persons_all_of_theirs(shared):
    one, two, other = shared.make("k1"), shared.make("k2"), shared.make("k3", user="bob")
    limits = [Limit("kernel", "requests", 10, 60.0), Limit("user", "requests", 10, 60.0)]
    one.hold(Claim("a", ONE), limits)
    two.hold(Claim("b", ONE), limits)
    other.hold(Claim("c", ONE), limits)
    assert counted(one, *limits) == [1, 2]
    assert counted(two, *limits) == [1, 2]
    assert counted(other, *limits) == [1, 1]


def test_the_same_window_may_have_several_metrics_and_limits(ledger):
    limits = [Limit("user", "requests", 9, 60.0), Limit("user", "requests", 1, 60.0)]
    assert ledger.hold(Claim("a", ONE), limits) == "held"
    refused = ledger.hold(Claim("b", ONE), limits)
    assert isinstance(refused, Full)
    assert refused.limit is limits[1]


def test_a_window_seen_late_counts_the_rows_that_were_there(shared, clock):
    ledger = shared.make()
    for number in range(5):
        ledger.hold(Claim(str(number), Amount(1, 10)), [])
        clock.now += SECOND
    assert counted(ledger, Limit("user", "tokens", 0, 3.5)) == [30]
    refused = ledger.hold(Claim("x", Amount(1, 10)), [Limit("user", "tokens", 39, 3.5)])
    assert isinstance(refused, Full)
    assert refused.used == 30
    shared.assert_sums_are_true()


def test_a_sum_that_nobody_looked_at_for_long_is_made_anew(shared, clock):
    ledger = shared.make()
    brief = Limit("user", "requests", 3, 1.0)
    ledger.hold(Claim("a", ONE), [brief])
    for number in range(20):
        clock.now += SECOND
        ledger.hold(Claim(str(number), ONE), [])
    assert ledger.hold(Claim("b", ONE), [brief]) == "held"
    assert counted(ledger, brief) == [2]
    shared.assert_sums_are_true()


# When it fits again


@pytest.mark.parametrize("window", [1.0, 60.0, 86400.0])
def test_a_claim_fits_at_retry_at_and_not_a_moment_before(store, ledger, clock, window):
    # A small number of seconds, so that a float tells microseconds apart.
    clock.now = 1000 * SECOND
    limit = Limit("user", "tokens", 100, window)
    for number, tokens in enumerate((30, 30, 40)):
        assert ledger.hold(Claim(str(number), Amount(1, tokens)), [limit]) == "held"
        clock.now += 12_345_000 + store.tick
    refused = ledger.hold(Claim("x", Amount(1, 50)), [limit])
    assert isinstance(refused, Full)
    moment = round(refused.retry_at * SECOND / store.tick) * store.tick
    assert moment == 1000 * SECOND + 12_345_000 + store.tick + int(window * SECOND)
    clock.now = moment - store.tick
    assert isinstance(ledger.hold(Claim("x", Amount(1, 50)), [limit]), Full)
    clock.now = moment
    assert ledger.hold(Claim("x", Amount(1, 50)), [limit]) == "held"


def test_whoever_waits_until_retry_at_is_not_early_by_a_rounding(store, ledger, clock):
    limit = Limit("user", "requests", 1, 1.0)
    for number in range(200):
        clock.now += 2 * SECOND + (number * 7 + 1) * store.tick
        assert ledger.hold(Claim(f"a{number}", ONE), [limit]) == "held"
        refused = ledger.hold(Claim(f"b{number}", ONE), [limit])
        assert isinstance(refused, Full)
        up, down = refused.retry_at.as_integer_ratio()
        assert 0 <= up * SECOND - (clock.now + SECOND) * down < 1000 * down


def test_the_limit_that_frees_last_is_told(ledger, clock):
    soon = Limit("kernel", "requests", 1, 10.0)
    late = Limit("user", "requests", 1, 20.0)
    ledger.hold(Claim("a", ONE), [])
    for limits in ([soon, late], [late, soon]):
        refused = ledger.hold(Claim("b", ONE), limits)
        assert isinstance(refused, Full)
        assert refused.limit == late
        assert refused.retry_at == (START + 20 * SECOND) / SECOND


@pytest.mark.parametrize("first", [True, False])
def test_a_limit_that_never_frees_is_told_before_all_others(ledger, first):
    late = Limit("user", "requests", 1, 20.0)
    never = Limit("kernel", "requests", 1, None)
    ledger.hold(Claim("a", ONE), [])
    refused = ledger.hold(Claim("b", ONE), [never, late] if first else [late, never])
    assert isinstance(refused, Full)
    assert (refused.limit, refused.retry_at) == (never, None)


def test_a_claim_greater_than_the_limit_never_fits(ledger):
    limit = Limit("user", "tokens", 100, 60.0)
    refused = ledger.hold(Claim("a", Amount(1, 101)), [limit])
    assert refused == Full(limit, 0, 101, None)


# The way of a call


def test_doing_a_thing_twice_changes_nothing(shared):
    ledger = shared.make()
    limit = Limit("user", "tokens", 100, 60.0)
    for _ in range(2):
        assert ledger.hold(Claim("a", Amount(1, 100)), [limit]) == "held"
    assert counted(ledger, limit) == [100]
    for _ in range(2):
        ledger.sent("a")
    assert shared.states() == {"a": "sent"}
    for tokens in (30, 70):
        ledger.settle("a", used(tokens=tokens))
        assert counted(ledger, limit) == [30]
    ledger.void("a")
    ledger.sent("a")
    assert ledger.hold(Claim("a", Amount(1, 100)), [limit]) == "held"
    assert shared.calls() == {"a": ("done", 1, 30, 0)}
    shared.assert_sums_are_true()


def test_what_a_call_used_beyond_its_hold_is_booked_as_it_is(ledger):
    limit = Limit("user", "tokens", 100, 60.0)
    ledger.hold(Claim("a", Amount(1, 50)), [limit])
    ledger.settle("a", used(tokens=150))
    assert counted(ledger, limit) == [150]
    assert isinstance(ledger.hold(Claim("b", ONE), [limit]), Full)


@pytest.mark.parametrize("was_sent", [True, False])
def test_a_voided_hold_is_given_back_once(shared, was_sent):
    ledger = shared.make()
    limit = Limit("user", "requests", 2, 60.0)
    for name in "ab":
        assert ledger.hold(Claim(name, ONE), [limit]) == "held"
    if was_sent:
        ledger.sent("a")
    for _ in range(2):
        ledger.void("a")
        assert counted(ledger, limit) == [1]
    assert shared.states()["a"] == "void"


def test_a_void_of_an_unknown_call_is_no_error_and_a_settled_one_is_booked(ledger):
    limit = Limit("user", "tokens", 100, 60.0)
    counted(ledger, limit)
    ledger.void("never")
    assert counted(ledger, limit) == [0]
    ledger.hold(Claim("a", Amount(1, 1)), [limit])
    ledger.settle("lost by a reset", used(tokens=7))
    assert counted(ledger, limit) == [8]


def test_a_voided_call_must_be_held_anew_before_it_is_sent(ledger, clock):
    limit = Limit("user", "requests", 1, 60.0)
    ledger.hold(Claim("a", ONE), [limit])
    ledger.void("a")
    with pytest.raises(StoreError, match="nothing was sent"):
        ledger.sent("a")
    clock.now += SECOND
    assert ledger.hold(Claim("a", ONE), [limit]) == "held"
    ledger.sent("a")
    assert isinstance(ledger.hold(Claim("b", ONE), [limit]), Full)
    clock.now = START
    assert isinstance(ledger.hold(Claim("b", ONE), [limit]), Full)


def test_odd_amounts_and_names_do_not_break_the_file(ledger):
    limit = Limit("user", "tokens", 10**30, 60.0)
    assert ledger.hold(Claim("a", Amount(1, 10**25), model="\ud800"), [limit]) == "held"
    ledger.settle("a", used(tokens=10**20, model="half \udc00", input_tokens=10**20))
    ledger.settle("b", used(tokens=-5))
    assert counted(ledger, limit) == [2**50]
    assert [line.name for line in ledger.usage("model")] == ["", "half ?"]


# Claims


def test_a_key_flies_until_its_call_ends(shared):
    one, two = shared.make("k1"), shared.make("k2")
    for number, end in enumerate((lambda id_: one.settle(id_, used()), one.void)):
        mine = f"mine {number}"
        assert not two.flying("key")
        assert one.hold(Claim(mine, ONE, key="key"), []) == "held"
        assert two.flying("key")
        assert one.flying("key")
        assert two.hold(Claim("other", ONE, key="key"), []) == "flying"
        assert one.hold(Claim("third", ONE, key="key"), []) == "flying"
        assert one.hold(Claim(mine, ONE, key="key"), []) == "held"
        one.sent(mine)
        assert two.hold(Claim("other", ONE, key="key"), []) == "flying"
        assert two.hold(Claim(f"free {number}", ONE), []) == "held"
        end(mine)
    assert two.hold(Claim("other", ONE, key="key"), []) == "held"


def test_that_a_key_flies_is_told_before_any_limit_and_nothing_is_written(shared):
    ledger = shared.make()
    limit = Limit("user", "requests", 1, 60.0)
    ledger.hold(Claim("a", ONE, key="key"), [limit])
    assert shared.make("k2").hold(Claim("b", ONE, key="key"), [limit]) == "flying"
    assert shared.states() == {"a": "held"}


def test_a_dead_processs_key_does_not_fly(shared, dead):
    one, two = shared.make("k1", owner=process(1)), shared.make("k2", owner=process(2))
    assert one.hold(Claim("a", ONE, key="key"), []) == "held"
    dead[str(process(1))] = False
    assert not two.flying("key")
    assert two.hold(Claim("b", ONE, key="key"), []) == "held"
    assert shared.states() == {"a": "void", "b": "held"}


def test_where_a_process_cannot_be_looked_at_its_lease_decides(shared, dead, clock):
    one, two, three = (shared.make(f"k{n}", owner=process(n)) for n in (1, 2, 3))
    for number in (1, 2, 3):
        dead[str(process(number))] = None
    one.hold(Claim("a", ONE, key="key"), [])
    three.hold(Claim("z", ONE, key="other"), [])
    lease = int(one.lease * SECOND)
    clock.now = START + lease - MICRO
    assert two.flying("key")
    one.renew()
    clock.now = START + 2 * lease - 2 * MICRO
    assert two.flying("key")
    assert not two.flying("other")
    clock.now += MICRO
    assert not two.flying("key")
    assert two.hold(Claim("b", ONE, key="key"), []) == "held"
    two.usage("model")
    assert shared.states() == {"a": "void", "z": "void", "b": "held"}


# Dead processes


def test_a_dead_processs_holds_are_freed_where_they_are_in_the_way(shared, dead):
    one, two = shared.make("k1", owner=process(1)), shared.make("k2", owner=process(2))
    limit = Limit("user", "tokens", 100, 60.0)
    one.hold(Claim("held", Amount(1, 40)), [limit])
    one.hold(Claim("sent", Amount(1, 30)), [limit])
    one.sent("sent")
    assert isinstance(two.hold(Claim("a", Amount(1, 31)), [limit]), Full)
    dead[str(process(1))] = False
    assert two.hold(Claim("a", Amount(1, 20)), [limit]) == "held"
    assert shared.states()["held"] == "held", "nothing was in the way, and no look was due"
    refused = two.hold(Claim("b", Amount(1, 51)), [limit])
    assert isinstance(refused, Full)
    assert refused.used == 50
    assert shared.states() == {"held": "void", "sent": "lost", "a": "held"}
    assert two.hold(Claim("b", Amount(1, 50)), [limit]) == "held"
    shared.assert_sums_are_true()


def test_a_lost_call_counts_in_full_until_its_window_has_passed(shared, dead, clock):
    one, two = shared.make("k1", owner=process(1)), shared.make("k2", owner=process(2))
    limit = Limit("user", "tokens", 100, 60.0)
    one.hold(Claim("a", Amount(1, 100)), [limit])
    one.sent("a")
    dead[str(process(1))] = False
    clock.now += 60 * SECOND - MICRO
    assert isinstance(two.hold(Claim("b", Amount(1, 1)), [limit]), Full)
    clock.now += MICRO
    assert two.hold(Claim("b", Amount(1, 1)), [limit]) == "held"


def test_a_dead_processs_call_is_held_anew_under_its_id(shared, dead):
    one, two = shared.make("k1", owner=process(1)), shared.make("k2", owner=process(2))
    limit = Limit("user", "tokens", 100, 60.0)
    for id_ in ("a", "sent"):
        one.hold(Claim(id_, Amount(1, 30)), [limit])
    one.sent("sent")
    dead[str(process(1))] = False
    two.standing([])
    one.hold(Claim("b", Amount(1, 10)), [limit])
    assert two.hold(Claim("b", Amount(1, 20)), [limit]) == "held"
    assert two.hold(Claim("sent", Amount(1, 99)), [limit]) == "held"
    two.usage("model")
    calls = shared.calls()
    assert (calls["sent"], calls["b"]) == (("lost", 1, 30, 0), ("held", 1, 20, 0))


@pytest.mark.parametrize("was_sent", [True, False])
def test_a_late_settle_takes_the_place_of_what_was_booked_for_the_dead(shared, dead, was_sent):
    one, two = shared.make("k1", owner=process(1)), shared.make("k2", owner=process(2))
    limit = Limit("user", "tokens", 100, 60.0)
    one.hold(Claim("a", Amount(1, 80)), [limit])
    if was_sent:
        one.sent("a")
    dead[str(process(1))] = False
    two.usage("model")
    assert counted(two, limit) == [80 if was_sent else 0]
    for tokens in (30, 50):
        one.settle("a", used(tokens=tokens))
        assert counted(two, limit) == [30]
    shared.assert_sums_are_true()


def test_a_look_for_the_dead_is_due_once_a_second_at_most(shared, dead, monkeypatch):
    one, two = shared.make("k1", owner=process(1)), shared.make("k2", owner=process(2))
    one.hold(Claim("a", ONE), [])
    dead[str(process(1))] = False
    two.standing([])
    assert shared.states() == {"a": "held"} or shared.states() == {"a": "void"}
    one.hold(Claim("b", ONE), [])
    two.hold(Claim("c", ONE), [])
    two.standing([])
    assert shared.states()["b"] == "held"
    look_every(monkeypatch, 0.0)
    two.hold(Claim("d", ONE), [])
    assert shared.states()["b"] == "void"


# Forgiveness and shared limits


@pytest.mark.parametrize("window", [60.0, None])
@pytest.mark.parametrize("scope", ["kernel", "user"])
def test_what_is_forgiven_counts_no_longer_in_that_scope(shared, scope, window):
    ledger = shared.make()
    limits = [Limit("kernel", "requests", 2, window), Limit("user", "requests", 2, window)]
    for name in "ab":
        ledger.hold(Claim(name, ONE), limits)
        ledger.settle(name, used())
    ledger.forgive(scope)
    expected = [0, 2] if scope == "kernel" else [2, 0]
    assert counted(ledger, *limits) == expected
    mine = [limit for limit in limits if limit.scope == scope]
    assert ledger.hold(Claim("c", ONE), mine) == "held", "in the very moment"
    assert counted(ledger, *limits) == [each + 1 for each in expected]
    assert ledger.hold(Claim("d", ONE), mine) == "held"
    assert isinstance(ledger.hold(Claim("e", ONE), mine), Full)
    assert counted(shared.make("k2"), limits[1]) == [expected[1] + 2]
    shared.assert_sums_are_true()


def test_an_open_hold_goes_on_counting_after_a_forgiveness(ledger, clock):
    limit, for_ever = Limit("user", "tokens", 100, 60.0), Limit("kernel", "tokens", 100, None)
    ledger.hold(Claim("done", Amount(1, 10)), [limit, for_ever])
    ledger.settle("done", used(tokens=10))
    ledger.hold(Claim("open", Amount(1, 50)), [limit, for_ever])
    clock.now += SECOND
    ledger.forgive("user")
    ledger.forgive("kernel")
    assert counted(ledger, limit, for_ever) == [50, 50]
    refused = ledger.hold(Claim("a", Amount(1, 51)), [limit])
    assert refused == Full(limit, 50, 51, (START + 60 * SECOND) / SECOND)
    ledger.settle("open", used(tokens=20))
    assert counted(ledger, limit, for_ever) == [20, 20]
    clock.now = START + 60 * SECOND
    assert counted(ledger, limit, for_ever) == [0, 20]
    ledger.forgive("kernel")
    assert counted(ledger, limit, for_ever) == [0, 0]


def test_what_is_forgiven_does_not_count_for_when_a_claim_fits(ledger, clock):
    limit = Limit("user", "requests", 1, 60.0)
    ledger.hold(Claim("a", ONE), [limit])
    ledger.settle("a", used())
    ledger.forgive("user")
    clock.now += 5 * SECOND
    assert ledger.hold(Claim("b", ONE), [limit]) == "held"
    refused = ledger.hold(Claim("c", ONE), [limit])
    assert refused == Full(limit, 1, 1, (START + 65 * SECOND) / SECOND)


def test_a_forgiveness_holds_when_the_clock_is_set_back(ledger, clock):
    limit = Limit("user", "requests", 1, 60.0)
    ledger.hold(Claim("a", ONE), [limit])
    ledger.settle("a", used())
    ledger.forgive("user")
    clock.now -= YEAR
    assert ledger.hold(Claim("b", ONE), [limit]) == "held"
    assert isinstance(ledger.hold(Claim("c", ONE), [limit]), Full)


def test_a_persons_limit_holds_for_every_kernel(shared):
    one, two, other = shared.make("k1"), shared.make("k2"), shared.make("k3", user="bob")
    one.limit_shared("user", "usd", 100, 0.1)
    one.limit_shared("user", "usd", 1000, None)
    limits = [Limit("user", "usd", 1000, None), Limit("user", "usd", 100, 0.1)]
    assert two.shared_limits() == limits
    assert other.shared_limits() == []
    assert two.hold(Claim("a", Amount(1, 0, 60)), []) == "held"
    refused = one.hold(Claim("b", Amount(1, 0, 41)), [CALM])
    assert isinstance(refused, Full)
    assert (refused.limit, refused.used) == (limits[1], 60)
    assert two.standing([CALM]) == [(CALM, 1), (limits[0], 60), (limits[1], 60)]


def test_a_persons_limit_is_changed_or_taken_away_by_metric_and_window(shared):
    ledger = shared.make()
    ledger.limit_shared("user", "tokens", 10, 60.0)
    ledger.limit_shared("user", "tokens", 99, None)
    ledger.limit_shared("user", "tokens", 20, 60.0)
    assert Limit("user", "tokens", 20, 60.0) in ledger.shared_limits()
    ledger.limit_shared("user", "tokens", None, 60.0)
    ledger.limit_shared("user", "requests", None, 60.0)
    assert shared.make("k2").shared_limits() == [Limit("user", "tokens", 99, None)]


# Usage


def test_usage_adds_up_by_model_day_and_cell(shared, clock, utc):
    one, two = shared.make("k1"), shared.make("k2")

    def call(ledger, id_, model, cell, spent, **more):
        ledger.hold(Claim(id_, Amount(1, 100, 100), model="asked", cell=cell), [])
        ledger.sent(id_)
        numbers = {"input_tokens": 10, "output_tokens": 5, "cached_tokens": 2, **more}
        ledger.settle(id_, used(1, 15, spent, model=model, **numbers))

    call(one, "a", "small", "In [1]", 7)
    call(one, "b", "big", "In [2]", 70)
    call(two, "c", "small", "In [1]", 0, priced=False)
    one.saved(Saved("small", "In [2]", 40, 9))
    clock.now += DAY
    call(two, "d", "", "In [1]", 1)
    one.hold(Claim("open", ONE, model="open"), [])
    one.hold(Claim("void", ONE, model="void"), [])
    one.void("void")
    big = Line("big", 1, 10, 5, 2, 70)
    small = Line("small", 2, 20, 10, 4, 7, 1, 1, 40, 9)
    asked = Line("asked", 1, 10, 5, 2, 1)
    for each in (one, two):
        assert each.usage("model") == [big, small, asked]
        first, second = each.usage("day")
        assert first == Line("2023-11-15", 1, 10, 5, 2, 1)
        assert second == Line("2023-11-14", 3, 30, 15, 6, 77, 1, 1, 40, 9)
    assert summed(one.usage("day")) == summed(one.usage("model"))
    assert one.usage("cell") == [
        Line("In [2]", 1, 10, 5, 2, 70, 0, 1, 40, 9),
        Line("In [1]", 1, 10, 5, 2, 7),
    ]
    assert two.usage("model", kernel_only=True) == [asked, Line("small", 1, 10, 5, 2, 0, 1)]
    assert [line.name for line in one.usage("day", kernel_only=True)] == ["2023-11-14"]
    assert shared.make("k4", user="bob").usage("model") == []


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_a_day_is_the_local_one_for_calls_and_for_free_answers(ledger, utc, monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    ledger.settle("a", used())
    ledger.saved(Saved("m", "", 1, 1))
    day = {"UTC": "2023-11-14", "Asia/Tokyo": "2023-11-15"}[zone]
    assert [(line.name, line.requests, line.hits) for line in ledger.usage("day")] == [(day, 1, 1)]


def test_a_dead_processs_sent_calls_are_usage_of_unknown_price(shared, dead):
    one, two = shared.make("k1", owner=process(1)), shared.make("k2", owner=process(2))
    one.hold(Claim("sent", Amount(1, 50, 9), model="m"), [])
    one.hold(Claim("held", Amount(1, 50, 9), model="m"), [])
    one.sent("sent")
    dead[str(process(1))] = False
    assert two.usage("model") == [Line("m", requests=1, nanos=9, unpriced=1)]


def test_a_closed_ledger_opens_again(shared):
    ledger = shared.make()
    ledger.hold(Claim("a", ONE), [])
    ledger.close()
    ledger.close()
    assert counted(ledger, CALM) == [1]
