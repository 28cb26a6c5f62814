"""Any bytes and types in Redis: a cache misses, a ledger counts rightly or refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

import llm_magic
from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Claim, Full, Limit, Saved, Used
from llm_magic.stores.redis.keys import Keys
from llm_magic.stores.redis.ledger import RedisLedger
from llm_magic.stores.redis.server import Server
from tests.conftest import emptied_redis
from tests.hostile import fuzz as fuzzing
from tests.hostile.fuzz import RawServer, asked, check_message, fuzz, not_hung
from tests.hostile.test_fuzz_rows import CHANGES, PICKLES, Change, echo
from tests.redis_servers import RedisServer

pytestmark = pytest.mark.usefixtures("keeping")
numbers = itertools.count()


@pytest.fixture
def store(running_redis: dict[str, RedisServer]) -> RedisServer:
    """The Redis that tests share, empty."""
    return emptied_redis("redis", running_redis)


@pytest.fixture
def client(store: RedisServer) -> Iterator[Any]:
    with store.client() as found:
        yield found


@pytest.fixture(autouse=True)
def inert() -> Iterator[None]:
    """Nothing that is stored is ever unpickled."""
    fuzzing.RAN.clear()
    yield
    assert fuzzing.RAN == []


WORDS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [*PICKLES, b"", b"0", b"-1", b"nan", b"1e999", b"x" * 5000, b"held", b"\x96\xa4held"]
    ),
)
TYPES = st.sampled_from(["string", "list", "set", "hash", "zset", "stream", "gone"])
MOMENTS = st.sampled_from([0.0, -1.0, 1e18, float("inf"), float("-inf"), 1.5])


def put(client: Any, key: bytes, kind: str, word: bytes, moment: float = 0.0) -> None:
    """Puts something of a kind under a key, at one moment: the library may be writing there."""
    at_once = client.pipeline()
    at_once.delete(key)
    if kind == "string":
        at_once.set(key, word)
    elif kind == "list":
        at_once.rpush(key, word)
    elif kind == "set":
        at_once.sadd(key, word)
    elif kind == "hash":
        at_once.hset(key, word, word)
    elif kind == "zset":
        at_once.zadd(key, {word: moment})
    elif kind == "stream":
        at_once.xadd(key, {word: word})
    at_once.execute()


# The cache


@fuzz(30)
@given(kind=TYPES, odd=CHANGES | WORDS)
def test_a_cell_is_answered_rightly_whatever_its_value_in_redis(
    raw: RawServer,
    store: RedisServer,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    odd: Change | bytes,
) -> None:
    monkeypatch.setenv("LLM_MAGIC_STORE", store.url)
    raw.reply, prompt = echo, f"Number {next(numbers)}?"
    assert asked(prompt).response is not None
    keys = client.keys("llm_magic:cache:*")
    assert keys
    for key in keys:
        with suppress(redis.ResponseError):
            value = client.get(key)
            put(client, key, kind, odd if isinstance(odd, bytes) else odd.of(value))

    second = asked(prompt)

    assert second.response is not None
    assert second.response.text == f"To {prompt}"
    assert len(second.told) <= 1
    for key in client.keys("llm_magic:cache:*"):
        client.delete(key)


# The ledger

CAP = 5
LIMIT = Limit("user", "requests", CAP, 3600.0)
TOKENS = Limit("kernel", "tokens", 1000, None)


class Counted:
    """A ledger of which the test itself knows what was let through."""

    def __init__(self, url: str) -> None:
        name = f"k{next(numbers)}"
        self.user = f"u{name}"
        self.server = Server(url, patience=5)
        self.ledger = RedisLedger(self.server, kernel=name, user=self.user)
        self.keys = Keys(name, self.user)
        self.held: list[str] = []

    def hold(self) -> None:
        """One more call, if it fits."""
        id_ = f"c{next(numbers)}"
        verdict = self.ledger.hold(Claim(id_, Amount(1, 10, 0), key=id_), [LIMIT, TOKENS])
        if verdict == "held":
            self.held.append(id_)
        else:
            assert isinstance(verdict, Full), verdict


@contextmanager
def opened(store: RedisServer) -> Iterator[Counted]:
    """A ledger of a person's own, with three calls of which one is done."""
    counted = Counted(store.url)
    try:
        for _ in range(3):
            counted.hold()
        counted.ledger.settle(counted.held[0], Used(Amount(1, 10, 0), "m", 5, 5))
        yield counted
    finally:
        with suppress(StoreError):
            counted.ledger.close()


STEPS = st.lists(
    st.sampled_from(
        ["hold", "hold", "settle", "void", "sent", "standing", "flying", "renew", "usage", "saved"]
    ),
    min_size=1,
    max_size=8,
)
PLACES = st.sampled_from(["open", "user sums", "user log", "kernel sums", "kernel log"]) | (
    st.sampled_from(["user usage", "kernel usage", "first call", "last call"])
)


def do(counted: Counted, what: str) -> None:
    """One thing that a kernel does."""
    ledger, last = counted.ledger, counted.held[-1]
    if what == "hold":
        counted.hold()
    elif what == "settle":
        ledger.settle(last, Used(Amount(1, 10, 0), "m", 5, 5))
    elif what == "void":
        # A call that was counted once stays counted here: to let less through is no fault.
        ledger.void(f"c{next(numbers)}")
    elif what == "sent":
        ledger.sent(last)
    elif what == "standing":
        ledger.standing([LIMIT, TOKENS])
    elif what == "flying":
        ledger.flying(last)
    elif what == "renew":
        ledger.renew()
    elif what == "saved":
        ledger.saved(Saved("m", "In [1]", 5, 7))
    else:
        ledger.usage("model")


def key_of(counted: Counted, place: str) -> bytes:
    """A key of the ledger."""
    keys, (one, other) = counted.keys, place.split() if " " in place else (place, "")
    if place == "open":
        return keys.common[0]
    if other == "call":
        return keys.call(counted.held[0 if one == "first" else -1])
    return keys.of(one, other)  # type: ignore[arg-type]


def are_sums(place: str, kind: str, value: bytes) -> bool:
    """Whether bytes may be other sums: whoever can write those could delete the calls as well."""
    return "sums" in place and kind == "string" and len(value) >= 48 and len(value) % 8 == 0


@fuzz(100)
@given(
    kind=TYPES.filter(lambda each: each != "gone"),
    odd=CHANGES | WORDS,
    moment=MOMENTS,
    place=PLACES,
    steps=STEPS,
)
def test_a_ledger_counts_rightly_or_refuses_whatever_is_in_its_keys(
    store: RedisServer,
    client: Any,
    kind: str,
    odd: Change | bytes,
    moment: float,
    place: str,
    steps: list[str],
) -> None:
    """No limit is passed, nothing but a StoreError is raised, and what the error says mends it."""
    with opened(store) as counted:
        key = key_of(counted, place)
        value = odd if isinstance(odd, bytes) else odd.of(as_bytes(client, key))
        put(client, key, kind, value, moment)

        go_on(counted, steps)

        if not are_sums(place, kind, value):
            assert len(counted.held) <= CAP
        check_reset(counted)


def go_on(counted: Counted, steps: list[str]) -> None:
    """Does this and that, then asks for more than is left; each is done or refused."""
    with not_hung():
        for what in [*steps, *["hold"] * (CAP + 1)]:
            try:
                do(counted, what)
            except StoreError as error:
                refusal = error
            else:
                continue
            check_message(refusal)
            assert refusal.fix


def check_reset(counted: Counted) -> None:
    """What the errors say mends it: a call is held again."""
    counted.ledger.reset_file()
    counted.ledger.forgive("user")
    counted.ledger.forgive("kernel")
    before = len(counted.held)
    counted.hold()
    assert len(counted.held) == before + 1


def as_bytes(client: Any, key: bytes) -> bytes:
    """What is under a key, as far as it is bytes."""
    kind = client.type(key)
    if kind == b"string":
        return bytes(client.get(key))
    if kind == b"zset":
        return bytes(client.zrange(key, 0, 0)[0])
    return bytes(next(iter(client.hgetall(key).values()), b""))


@fuzz(50)
@given(place=st.sampled_from(["open", "user log", "user usage"]), word=CHANGES | WORDS, steps=STEPS)
def test_one_odd_entry_is_counted_rightly_or_refused(
    store: RedisServer,
    client: Any,
    place: str,
    word: Change | bytes,
    steps: list[str],
) -> None:
    """Among the ledger's own entries, and in their place."""
    with opened(store) as counted:
        key = key_of(counted, place)
        if place == "user log":
            entry, moment = client.zrange(key, 0, 0, withscores=True)[0]
            client.zadd(key, {word if isinstance(word, bytes) else word.of(entry): moment})
        else:
            for name, value in client.hgetall(key).items():
                client.hset(key, name, word if isinstance(word, bytes) else word.of(value))

        go_on(counted, steps)

        assert len(counted.held) <= CAP
        check_reset(counted)


@fuzz(20)
@given(kind=TYPES.filter(lambda each: each != "gone"), odd=WORDS, place=st.integers(0, 9))
def test_a_cell_is_answered_or_told_whatever_is_in_the_ledger(
    raw: RawServer,
    store: RedisServer,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    odd: bytes,
    place: int,
) -> None:
    """Where nothing can be counted nothing is sent, and the reset that the error names mends it."""
    monkeypatch.setenv("LLM_MAGIC_STORE", store.url)
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "1000000")
    raw.reply = echo
    first = asked(f"Number {next(numbers)}?")
    assert first.response is not None
    keys = sorted(client.keys("llm_magic:{*"))
    put(client, keys[place % len(keys)], kind, odd)
    sent = len(raw.bodies)

    for _ in range(2):
        prompt = f"Number {next(numbers)}?"
        found = asked(prompt)
        if found.error is None:
            sent += 1
        else:
            assert isinstance(found.error, StoreError), repr(found.error)
        assert len(raw.bodies) == sent

    llm_magic.quota(reset=True)
    llm_magic.quota(reset=True, scope="user")
    assert asked(f"Number {next(numbers)}?").response is not None
