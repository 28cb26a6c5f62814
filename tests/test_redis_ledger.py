"""The ledger in Redis: what is special to it, its faults, and all of it against a model."""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    rule,
    run_state_machine_as_test,
)

from llm_magic import owner as owners
from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Claim, Full, Limit, Line
from llm_magic.stores.redis import ledger as ledgers
from llm_magic.stores.redis.keys import Keys
from llm_magic.stores.redis.ledger import LEASE, RedisLedger
from llm_magic.stores.redis.server import Server
from tests import redis_counts
from tests.redis_servers import RedisServer
from tests.test_every_ledger import ONE, Clock, counted, process, used
from tests.test_ledger import (
    BATCHES,
    FIXED,
    HOUR,
    IDS,
    KERNELS,
    SECOND,
    SOME,
    Model,
    Rules,
)

TIMES = int(os.environ.get("STRESS", "1"))

# Against a model that adds everything up anew


class RedisModel(Model):
    """Time stands still where a clock is set back, also for who only looks."""

    latest = 0

    def now(self) -> int:
        self.latest = max(self.latest, super().now())
        return self.latest


class Ledgers(Rules):
    """Two kernels on one server do as the model says."""

    server: RedisServer
    number = 0

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.dead: set[str] = set()
        self.patch.setattr(owners, "alive", lambda text: text not in self.dead)
        self.patch.setattr(ledgers, "LOOK_EVERY", float("inf"))
        self.client = self.server.client()
        self.client.flushall()
        self.model = RedisModel()
        self.processes = 0
        self.owners: dict[str, int] = {}
        self.ledgers: dict[str, RedisLedger] = {}
        for kernel in ("k1", "k2"):
            self.start(kernel)
        self.look()

    def look(self) -> None:
        """Lets both tell the time, as far as they are concerned."""
        for ledger in self.ledgers.values():
            ledger.renew()
            ledger.standing([])

    def start(self, kernel: str) -> None:
        self.processes += 1
        self.owners[kernel] = self.processes
        if kernel in self.ledgers:
            self.ledgers[kernel].close()
        self.ledgers[kernel] = RedisLedger(
            Server(self.server.url, patience=5),
            kernel=kernel,
            user="ada",
            owner=process(self.processes),
            clock=lambda: self.model.clock,
        )

    def teardown(self) -> None:
        for ledger in self.ledgers.values():
            ledger.close()
        self.client.close()
        self.patch.undo()

    def mine(self, kernel: str, id_: str) -> str:
        """Two kernels never use one id."""
        return f"{kernel} {id_}"

    @rule(kernel=KERNELS, claims=BATCHES, more=st.lists(st.sampled_from(SOME), unique=True))
    def hold(self, kernel, claims, more):
        limits = [*FIXED, *more]
        claims = [
            Claim(self.mine(kernel, each.id), each.worst, each.key, sent=each.sent)
            for each in claims
        ]
        verdicts = self.ledgers[kernel].hold_many(claims, limits)
        for verdict, claim in zip(verdicts, claims, strict=True):
            self.compare(verdict, claim, limits, kernel)

    @rule(kernel=KERNELS, id_=IDS)
    def sent(self, kernel, id_):
        id_ = self.mine(kernel, id_)
        call = self.model.calls.get(id_)
        if call is None or call.state == "void":
            # That its owner died is not always written yet; then it is sent as if it lived.
            self.ledgers[kernel].usage("model")
            with pytest.raises(StoreError):
                self.ledgers[kernel].sent(id_)
            return
        if call.state == "held":
            call.state = "sent"
        self.ledgers[kernel].sent(id_)

    @rule(micros=st.sampled_from([1, 250_000, 999_999, 1_000_000, 5_000_000, 3600_000_000]))
    def time_passes(self, micros):
        self.model.clock += 1000 * micros
        self.look()

    @rule(micros=st.sampled_from([1, 1_000_000, 3600_000_000]))
    def clock_is_set_back(self, micros):
        self.model.clock -= 1000 * micros

    @rule(kernel=KERNELS, scope=st.sampled_from(["kernel", "user"]))
    def forgive(self, kernel, scope):
        # So that what counts on is what the model takes to be open.
        self.ledgers[kernel].usage("model")
        self.ledgers[kernel].forgive(scope)
        self.model.forgive(kernel if scope == "kernel" else "ada")
        self.model.clock = self.model.pardons[kernel if scope == "kernel" else "ada"] + 1000
        self.look()

    @rule(kernel=KERNELS)
    def process_dies(self, kernel):
        self.dead.add(str(process(self.owners[kernel])))
        self.model.kill(self.owners[kernel])
        self.start(kernel)
        # Whoever meets a dead one within many claims looks for more of them, and asks again for
        # these alone: then it is not in their order.
        self.ledgers[kernel].usage("model")

    @rule()
    def scripts_are_flushed(self):
        self.client.script_flush()

    @invariant()
    def what_is_stored_is_in_order(self):
        redis_counts.assert_sums_are_true(self.client)
        redis_counts.assert_keys_are_in_order(self.client)


def test_two_kernels_do_as_the_model_says(redis_server: RedisServer) -> None:
    Ledgers.server = redis_server
    run_state_machine_as_test(
        Ledgers,
        settings=settings(
            max_examples=20 * TIMES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        ),
    )


# Whose calls count


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(redis_server: RedisServer, clock: Clock) -> Iterator[Callable[..., RedisLedger]]:
    """Makes ledgers on the one server, and closes them afterwards."""
    made = []

    def ledger(kernel: str = "k1", **more: Any) -> RedisLedger:
        more = {"user": "ada", "clock": clock, **more}
        made.append(RedisLedger(Server(redis_server.url, patience=5), kernel=kernel, **more))
        return made[-1]

    yield ledger
    for each in made:
        with suppress(StoreError):
            each.close()


@pytest.fixture
def look(redis_server: RedisServer) -> Iterator[Any]:
    """A client to look in with."""
    with redis_server.client() as client:
        yield client


@pytest.mark.parametrize(
    "name",
    [
        "ada",
        "a{b}c",
        "}{",
        "{user:ada}",
        "Jürgen Groß",
        "a/b:c",
        "*?[x]",
        "a\nb\x1fc",
        "\udcff",
        "日本",
    ],
)
@pytest.mark.parametrize("in_team", [True, False])
def test_any_name_has_its_own_slot_and_counts(make, look, name, in_team):
    limit = Limit("team" if in_team else "user", "requests", 2, 60.0)
    names = {"user": "ada", "team": name} if in_team else {"user": name}
    one, two = make("k1", **names), make("k2", **names)
    assert one.hold(Claim("a", ONE), [limit]) == "held"
    one.limit_shared(limit.scope, "tokens", 5, 60.0)
    assert counted(two, limit)[0] == 1
    assert two.shared_limits() == [Limit(limit.scope, "tokens", 5, 60.0)]
    slots = {key[: key.index(b"}")] for key in look.scan_iter()}
    assert len(slots) == 1


def test_two_people_of_a_team_share_its_limits_and_not_their_own(make):
    ada, bob = make("k1", team="crew"), make("k2", user="bob", team="crew")
    limits = [Limit("user", "requests", 2, 60.0), Limit("team", "requests", 3, 60.0)]
    for number in range(2):
        assert ada.hold(Claim(f"a{number}", ONE), limits) == "held"
    assert ada.hold(Claim("a2", ONE), limits).limit.scope == "user"
    assert bob.hold(Claim("b0", ONE), limits) == "held"
    assert bob.hold(Claim("b1", ONE), limits).limit.scope == "team"
    assert (counted(ada, *limits), counted(bob, *limits)) == ([2, 3], [1, 3])


def test_teams_do_not_meet(make):
    one, two, none = make("k1", team="one"), make("k2", team="two"), make("k3")
    limits = [Limit("user", "requests", 1, 60.0)]
    for number, each in enumerate((one, two, none)):
        assert each.hold(Claim(str(number), ONE, key="key"), limits) == "held"
    one.limit_shared("team", "requests", 9, 60.0)
    assert two.shared_limits() == none.shared_limits() == []


def test_a_limit_of_a_team_is_set_for_all_of_it_and_by_anyone(make):
    ada, bob = make("k1", team="crew"), make("k2", user="bob", team="crew")
    ada.limit_shared("team", "tokens", 10, 60.0)
    assert bob.shared_limits() == [Limit("team", "tokens", 10, 60.0)]
    assert isinstance(bob.hold(Claim("a", Amount(1, 11)), []), Full)
    bob.limit_shared("team", "tokens", None, 60.0)
    assert ada.shared_limits() == []


def test_a_run_counts_over_the_kernels_that_work_on_it(make):
    one, two, other = make("k1", run="r1"), make("k2", run="r1"), make("k3", run="r2")
    limit = Limit("run", "usd", 100, None)
    assert one.hold(Claim("a", Amount(1, 0, 60)), [limit]) == "held"
    assert isinstance(two.hold(Claim("b", Amount(1, 0, 41)), [limit]), Full)
    one.settle("a", used(spent=10))
    assert two.hold(Claim("b", Amount(1, 0, 41)), [limit]) == "held"
    assert [counted(each, limit) for each in (one, two, other)] == [[51], [51], [0]]


@pytest.mark.parametrize("scope", ["team", "run"])
def test_a_limit_of_a_scope_without_a_name_is_refused(make, scope):
    ledger, limit = make(), Limit(scope, "requests", 1, 60.0)
    for call in (
        lambda: ledger.hold(Claim("a", ONE), [limit]),
        lambda: ledger.standing([limit]),
        lambda: ledger.limit_shared(scope, "requests", 1, 60.0),
        lambda: ledger.forgive(scope),
    ):
        with pytest.raises(StoreError, match=f"limit of a {scope}"):
            call()
    with pytest.raises(StoreError, match="not shared"):
        ledger.limit_shared("kernel", "requests", 1, 60.0)


def test_equal_calls_are_one_flight_only_where_their_answers_are_shared(make):
    ada, bob = (make(name, user=name, team="crew", space=f"user:{name}") for name in ("ada", "bob"))
    together = make("k3", user="cyd", team="crew", space="user:ada")
    assert ada.hold(Claim("a", ONE, key="key"), []) == "held"
    assert bob.hold(Claim("b", ONE, key="key"), []) == "held"
    assert together.hold(Claim("c", ONE, key="key"), []) == "flying"


# Other machines


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process can be looked at, and a look is due at every use."""
    monkeypatch.setattr(owners, "alive", lambda _: None)
    monkeypatch.setattr(ledgers, "LOOK_EVERY", 0.0)


def test_a_lease_that_is_renewed_keeps_a_hold_and_one_that_is_not_frees_it(make, clock, elsewhere):
    limit = Limit("user", "requests", 3, 3600.0)
    one, two, three = (make(f"k{n}", owner=process(n)) for n in (1, 2, 3))
    assert one.hold(Claim("renewed", ONE), [limit]) == "held"
    assert two.hold(Claim("held", ONE), [limit]) == "held"
    assert two.hold(Claim("sent", ONE, sent=True), [limit]) == "held"
    clock.now += int(LEASE * SECOND) - 1000
    one.renew()
    assert counted(three, limit) == [3]
    clock.now += 1000
    assert counted(three, limit) == [2]
    with pytest.raises(StoreError, match="given up"):
        two.sent("held")
    two.settle("sent", used())
    assert counted(three, limit) == [2]
    one.settle("renewed", used())
    assert three.usage("model") == [Line("", requests=2)]


def test_a_settle_after_the_lease_ran_out_takes_the_place_of_what_was_lost(make, clock, elsewhere):
    limit = Limit("user", "usd", 100, 3600.0)
    one, two = make("k1", owner=process(1)), make("k2", owner=process(2))
    assert one.hold(Claim("a", Amount(1, 50, 80), model="m", sent=True), [limit]) == "held"
    clock.now += int(LEASE * SECOND)
    assert two.usage("model") == [Line("m", requests=1, nanos=80, unpriced=1)]
    one.settle("a", used(tokens=5, spent=3, model="m", input_tokens=5))
    assert two.usage("model") == [Line("m", requests=1, input_tokens=5, nanos=3)]
    assert counted(two, limit) == [3]


def test_a_lease_is_by_the_servers_clock_also_when_that_was_set_back(make, clock, elsewhere):
    one, two = make("k1", owner=process(1)), make("k2", owner=process(2))
    assert one.hold(Claim("a", ONE, key="key"), []) == "held"
    clock.now -= HOUR
    one.renew()
    clock.now += int(LEASE * SECOND) - 1000
    assert two.flying("key")
    clock.now += 1000
    assert not two.flying("key")
    assert two.hold(Claim("b", ONE, key="key"), []) == "held"


def test_calls_of_a_dead_process_are_closed_though_its_lease_went_before(make, look, elsewhere):
    """As where whoever closed the first of them was killed in the middle."""
    one, two = make("k1", owner=process(1)), make("k2", owner=process(2))
    limit = Limit("user", "requests", 9, 60.0)
    assert one.hold(Claim("a", ONE), [limit]) == "held"
    look.hdel(Keys("k1", "ada").common[0], f"l{process(1)}")
    assert counted(two, limit) == [0]


def test_a_dead_processs_calls_are_closed_in_all_the_kernels_it_worked_for(make, elsewhere, clock):
    """A worker asks for several, and more of them than one script closes."""
    limits = [Limit("kernel", "requests", 999, None), Limit("run", "requests", 999, None)]
    ledgers_ = [make(f"k{n}", run=f"r{n}", owner=process(1)) for n in range(2)]
    for number, each in enumerate(ledgers_):
        claims = [Claim(f"{number} {n}", ONE, sent=n % 2 == 0) for n in range(150)]
        assert set(each.hold_many(claims, limits)) == {"held"}
    clock.now += int(LEASE * SECOND)
    other = make("k9", owner=process(9))
    assert other.usage("model") == [Line("", requests=150, unpriced=150)]
    for number in range(2):
        assert counted(make(f"k{number}", run=f"r{number}", owner=process(8)), *limits) == [75, 75]


# Time and amounts


def test_a_longer_limit_that_is_set_later_counts_the_last_25_hours(make, clock):
    ledger, long = make(), Limit("user", "tokens", 1000, 30 * 86400.0)
    for hours in (0, 10, 14, 11):
        clock.now += hours * HOUR
        id_ = f"a{clock.now}"
        ledger.hold(Claim(id_, Amount(1, 10)), [Limit("user", "tokens", 100, 60.0)])
        ledger.settle(id_, used(tokens=10))
    assert counted(ledger, long) == [20]
    clock.now += 26 * HOUR
    assert counted(ledger, long) == [20]
    clock.now += 27 * 24 * HOUR
    assert counted(ledger, long) == [20]
    clock.now += 2 * 24 * HOUR
    assert counted(ledger, long) == [0]


def test_a_log_that_a_longer_limit_asks_for_outlives_the_next_day_without_calls(make, look):
    ledger = make()
    ledger.hold(Claim("a", ONE), [])
    ledger.standing([Limit("user", "requests", 9, 7 * 86400.0)])
    key = Keys("k1", "ada").of("user", "log")
    assert look.pttl(key) > 7 * 86_400_000


def test_amounts_up_to_2_to_the_50_are_counted_exactly(make):
    ledger, most = make(), 2**50
    limits = [Limit("user", "usd", 3 * most, 60.0), Limit("kernel", "tokens", 3 * most, None)]
    for number in range(3):
        claim = Claim(f"a{number}", Amount(1, most - number, most))
        assert ledger.hold(claim, limits) == "held"
    assert counted(ledger, *limits) == [3 * most, 3 * most - 3]
    refused = ledger.hold(Claim("b", Amount(1, 0, 1)), limits)
    assert (refused.used, refused.asked) == (3 * most, 1)
    ledger.settle("a0", used(tokens=most - 7, spent=most - 1))
    assert counted(ledger, *limits) == [3 * most - 1, 3 * most - 10]
    assert ledger.hold(Claim("b", Amount(1, 0, 1)), limits) == "held"
    assert ledger.usage("model")[0].nanos == most - 1


@pytest.mark.parametrize("window", [1e-6, 10.0**12])
def test_a_window_may_be_as_short_or_long_as_one_likes(make, look, window):
    ledger, limit = make(), Limit("user", "requests", 1, window)
    assert ledger.hold(Claim("a", ONE), [limit]) == "held"
    assert isinstance(ledger.hold(Claim("b", ONE), [limit]), Full)
    redis_counts.assert_sums_are_true(look)


def test_retry_at_is_right_with_thousands_of_calls_in_the_window(make, clock):
    ledger, limit = make(), Limit("user", "tokens", 10**9, 3600.0)
    for batch in range(50):
        claims = [Claim(f"{batch} {n}", Amount(1, 1 + n % 7)) for n in range(64)]
        ledger.hold_many(claims, [limit])
        clock.now += SECOND
    (total,) = counted(ledger, limit)
    tight = Limit("user", "tokens", total // 3, 3600.0)
    refused = ledger.hold(Claim("x", Amount(1, 5)), [tight])
    moment = round(refused.retry_at * 10**6) * 1000
    clock.now = moment - 1000
    assert isinstance(ledger.hold(Claim("x", Amount(1, 5)), [tight]), Full)
    clock.now = moment
    assert ledger.hold(Claim("x", Amount(1, 5)), [tight]) == "held"


def test_what_is_older_than_any_limit_asks_for_goes(make, clock, look):
    ledger, keys = make(), Keys("k1", "ada")
    ledger.hold_many([Claim(str(n), ONE) for n in range(100)], [])
    ledger.settle_many([(str(n), used()) for n in range(100)])
    clock.now += 27 * HOUR
    ledger.hold(Claim("b", ONE), [])
    assert look.zcard(keys.of("user", "log")) == 1
    assert counted(ledger, Limit("user", "requests", 999, None)) == [101]


def test_usage_that_is_older_than_400_days_goes(make, clock, look):
    ledger = make()
    ledger.settle("a", used(model="m"))
    clock.now += 402 * 24 * HOUR
    ledger.settle("b", used(model="m"))
    assert ledger.usage("model") == [Line("m", requests=1)]
    assert look.hlen(Keys("k1", "ada").usage[0]) == 1


# What is stored is not what was written


WRONG = ["list", "hash", "text", "nothing", "numbers", "strange"]


def spoil(client: Any, key: bytes, how: str) -> None:
    kind = client.type(key)
    fields = client.hkeys(key) if kind == b"hash" else []
    if how == "list" or (how == "hash" and kind == b"hash"):
        client.delete(key)
        client.lpush(key, "garbage")
    elif how == "hash":
        client.delete(key)
        client.hset(key, "garbage", "garbage")
    elif kind == b"string":
        junk = {
            "text": b"garbage",
            "nothing": b"",
            "numbers": b"\xff" * 96,
            "strange": b"\x92\x01\x02",
        }
        client.set(key, junk[how])
    elif kind == b"hash":
        junk = {"text": b"garbage", "nothing": b"", "numbers": b"nan", "strange": b"{}"}
        for field in fields:
            client.hset(key, field, junk[how])
    else:
        junk = {
            "text": "garbage",
            "nothing": "",
            "numbers": "nan nan nan x",
            "strange": "-1 0x9 1e9 y",
        }
        client.zadd(key, {junk[how]: START_MICROS})


START_MICROS = Clock().now // 1000


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("which", ["open", "user:sums", "user:log", "usage", "call"])
def test_garbage_in_a_key_is_damage_and_a_reset_the_way_out(make, look, clock, which, how):
    ledger, keys = make(owner=process(1)), Keys("k1", "ada")
    limit = Limit("user", "requests", 1, 60.0)
    assert ledger.hold(Claim("a", ONE, key="key", model="m"), [limit]) == "held"
    ledger.settle("b", used(model="m"))
    places = {
        "open": keys.common[0],
        "user:sums": keys.of("user", "sums"),
        "user:log": keys.of("user", "log"),
        "usage": keys.usage[0],
        "call": keys.call("a"),
    }
    spoil(look, places[which], how)
    clock.now += 59 * SECOND
    errors: list[StoreError] = []

    def tried(call: Callable[[], Any]) -> Any:
        ledger._looked = float("-inf")
        try:
            return call()
        except StoreError as error:
            errors.append(error)

    assert tried(lambda: ledger.hold(Claim("c", ONE, key="key"), [limit])) != "held"
    tried(lambda: ledger.usage("model"))
    ledger.settle("a", used(model="m"))
    tried(lambda: ledger.standing([Limit("user", "requests", 1, 3600.0)]))
    assert errors, "it was seen"
    with pytest.raises(StoreError) as caught:
        ledger.forgive("kernel")
    assert all(
        each.damaged and each.fix.endswith("%llm_quota --reset") for each in (*errors, caught.value)
    )
    ledger.reset_file()
    ledger.forgive("user")
    assert ledger.hold(Claim("d", ONE, key="key"), [limit]) == "held"
    ledger.settle("d", used())
    ledger.usage("model")
    redis_counts.assert_sums_are_true(look)


@pytest.mark.parametrize(
    ("field", "about"),
    [
        ("cx", b"owner\nnames"),
        ("cx", b"owner\n[]\n1 0 0 x"),
        ("cx", b'owner\n{"kernel": 5}\n1 0 0 x'),
        ("cx", b'\xff\n{"kernel": "k", "user": "u"}\n1 0 0 x'),
        ("fx", b"no call"),
        (b"c\xff", b'owner\n{"kernel": "k", "user": "u"}\n1 0 0 x'),
    ],
    ids=["two lines", "no names", "no user", "no text", "no flight", "no id"],
)
def test_a_reset_is_the_way_out_of_one_odd_entry_among_the_open_calls(make, look, field, about):
    ledger, keys = make(owner=process(1)), Keys("k1", "ada")
    assert ledger.hold(Claim("a", ONE, key="key"), []) == "held"
    look.hset(keys.common[0], field, about)
    with pytest.raises(StoreError) as caught:
        ledger.forgive("user")
    assert caught.value.damaged
    ledger.reset_file()
    ledger.forgive("user")
    assert ledger.hold(Claim("b", ONE, key="key"), []) == "held"


@pytest.mark.parametrize(
    "odd",
    [
        "'x', 1, 0, 0, '', 'm'",
        "1, 'x', 0, 0, '', 'm'",
        "1, 1, 0, 0, '', 5",
        "0/0, 1, 0, 0, '', 'm'",
        "1, -1, 0, 0, '', 'm'",
        "1, 2^60, 0, 0, '', 'm'",
    ],
    ids=["moment", "requests", "model", "no number", "negative", "too large"],
)
def test_a_reset_is_the_way_out_of_a_call_that_cannot_be_booked(make, look, odd):
    """It has as many parts as a call, but not of their kinds."""
    ledger, keys = make(owner=process(1)), Keys("k1", "ada")
    assert ledger.hold(Claim("a", ONE), []) == "held"
    whole = f"{{'held', {odd}, '', '2026-01-01', 'o'}}"
    look.eval(f"redis.call('SET', KEYS[1], cmsgpack.pack({whole}))", 1, keys.call("a"))
    ledger.settle("a", used(model="m"))
    with pytest.raises(StoreError) as caught:
        ledger.hold(Claim("b", ONE), [])
    assert caught.value.damaged
    ledger.reset_file()
    ledger.forgive("user")
    assert ledger.hold(Claim("b", ONE), []) == "held"


@pytest.mark.parametrize("limits", [7.0 * 2**40, -7.0, 7 / 3])
def test_sums_of_more_limits_than_there_are_do_not_hold_up_redis(make, look, limits):
    ledger, key = make(), Keys("k1", "ada").of("user", "sums")
    ledger.settle("a", used(model="m"))
    stored = look.get(key)
    look.set(key, stored[:40] + struct.pack("<d", limits) + stored[48:])
    with pytest.raises(StoreError) as caught:
        ledger.hold(Claim("b", ONE), [])
    assert caught.value.damaged
    ledger.reset_file()
    assert ledger.hold(Claim("c", ONE), []) == "held"


def test_a_reset_takes_away_no_more_than_what_is_damaged(make, look):
    ledger, keys = make(team="crew"), Keys("k1", "ada", "crew")
    ledger.limit_shared("team", "tokens", 100, 60.0)
    ledger.settle("a", used(tokens=60, model="m"))
    look.set(keys.of("kernel", "sums"), "garbage")
    ledger.reset_file()
    assert ledger.standing([]) == [(Limit("team", "tokens", 100, 60.0), 60)]
    assert [line.requests for line in ledger.usage("model")] == [1]
