"""What every cache does, wherever it keeps its rows."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_magic.entries import Cache
from llm_magic.stores.disk import DiskCache
from llm_magic.stores.memory import MemoryCache
from llm_magic.stores.redis.cache import RedisCache
from llm_magic.stores.redis.server import Server
from tests.conftest import emptied_redis
from tests.redis_servers import KINDS, RedisServer


def trouble(message: str, fix: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def server(kind: str, running_redis: dict[str, RedisServer]) -> Iterator[Server | None]:
    """The connection to a server that is empty, where the kind of cache needs one."""
    if kind not in KINDS:
        yield None
        return
    made = Server(emptied_redis(kind, running_redis).url)
    yield made
    made.close()


@pytest.fixture(params=["memory", "disk", *KINDS])
def kind(request: pytest.FixtureRequest) -> str:
    """Where rows are kept."""
    return str(request.param)


def made(name: str, kind: str, server: Server | None, tmp_path: Path) -> Cache:
    if server:
        return RedisCache(server, name, ttl=None, spare=MemoryCache(0), trouble=trouble)
    if kind == "disk":
        return DiskCache(tmp_path / name, trouble=trouble)
    return MemoryCache()


@pytest.fixture
def cache(kind: str, server: Server | None, tmp_path: Path) -> Iterator[Cache]:
    cache = made("cache", kind, server, tmp_path)
    yield cache
    cache.close()


@pytest.fixture
def other(kind: str, server: Server | None, tmp_path: Path) -> Iterator[Cache]:
    """Another cache of the same kind."""
    cache = made("other", kind, server, tmp_path)
    yield cache
    cache.close()


@pytest.fixture(params=["memory", "disk"])
def bounded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], Cache]]:
    """Makes caches of so many bytes, where that is not a server's own setting."""
    made: list[Cache] = []

    def make(limit: int) -> Cache:
        memory = request.param == "memory"
        made.append(MemoryCache(limit) if memory else DiskCache(tmp_path / "small", limit=limit))
        return made[-1]

    yield make
    for each in made:
        each.close()


def later(seconds: float = 0.002) -> float:
    """Waits until the clock shows another time, in milliseconds, which is what Redis counts."""
    before = time.time()
    while (now := time.time()) < before + seconds:
        time.sleep(0.001)
    return now


class TestEveryCache:
    def test_what_was_put_is_got(self, cache: Cache) -> None:
        assert cache.get("a") is None
        cache.put("a", b"one")
        cache.put("b", bytes(range(256)) * 500)

        assert cache.get("a") == b"one"
        assert cache.get("b") == bytes(range(256)) * 500
        assert cache.get("c") is None

    def test_a_newer_row_takes_the_older_one_s_place(self, cache: Cache) -> None:
        cache.put("a", b"old")
        cache.put("a", b"new")

        assert cache.get("a") == b"new"
        assert cache.size().entries == 1

    def test_the_empty_value_is_a_value(self, cache: Cache) -> None:
        cache.put("a", b"")

        assert cache.get("a") == b""

    def test_a_deleted_row_is_gone_and_a_missing_one_no_error(self, cache: Cache) -> None:
        cache.put("a", b"one")
        cache.put("b", b"two")
        cache.delete("a")
        cache.delete("nothing")

        assert cache.get("a") is None
        assert cache.get("b") == b"two"
        cache.put("a", b"again")
        assert cache.get("a") == b"again"

    def test_rows_come_the_last_used_first(self, cache: Cache) -> None:
        before = time.time()
        for key in "abc":
            cache.put(key, key.encode())
            later()
        cache.get("a")

        rows = list(cache.rows())

        assert [row.key for row in rows] == ["a", "c", "b"]
        assert [row.value for row in rows] == [b"a", b"c", b"b"]
        assert all(before - 1 <= row.used <= time.time() + 1 for row in rows)
        assert [row.key for row in cache.rows(2)] == ["a", "c"]
        assert list(cache.rows(0)) == []

    def test_rows_may_be_deleted_while_they_are_listed(self, cache: Cache) -> None:
        for number in range(300):
            cache.put(str(number), b"x")

        for row in cache.rows():
            cache.delete(row.key)

        assert cache.size().entries == 0

    def test_drop_forgets_all(self, cache: Cache) -> None:
        for key in "abc":
            cache.put(key, b"x")

        assert cache.drop() == 3
        assert [cache.get(key) for key in "abc"] == [None] * 3
        assert list(cache.rows()) == []
        assert cache.drop() == 0

    def test_drop_forgets_what_was_not_used_since(self, cache: Cache) -> None:
        for key in "abc":
            cache.put(key, b"x")
        # The clocks of the two are compared to half the time that asking takes.
        since = later(0.2)
        later(0.2)
        cache.get("b")
        cache.put("d", b"x")

        assert cache.drop(since) == 2
        assert [cache.get(key) for key in "abcd"] == [None, b"x", None, b"x"]

    def test_size_says_how_much_there_is(
        self, cache: Cache, server: Server | None, tmp_path: Path
    ) -> None:
        nothing = cache.size()
        assert nothing.entries == 0
        for number in range(20):
            cache.put(str(number), b"x" * 10_000)

        size = cache.size()

        assert size.entries == 20
        assert 200_000 <= size.bytes <= 1_000_000
        assert size.limit == nothing.limit
        assert size.limit > 1_000_000 or server
        assert size.place in (server.place if server else "memory", str(tmp_path / "cache"))

    def test_it_can_be_used_after_it_was_closed(self, cache: Cache) -> None:
        cache.put("a", b"one")
        cache.close()
        cache.close()

        assert cache.get("a") == b"one"
        cache.put("b", b"two")
        assert {row.key for row in cache.rows()} == {"a", "b"}

    def test_it_does_what_a_dict_does(self, cache: Cache) -> None:
        chance = random.Random(7)
        model: dict[str, bytes] = {}
        for _ in range(600):
            key = f"key {chance.randrange(20)}"
            match chance.randrange(8):
                case 0:
                    cache.delete(key)
                    model.pop(key, None)
                case 1 | 2 | 3:
                    model[key] = chance.randbytes(chance.randrange(3000))
                    cache.put(key, model[key])
                case 4 if chance.random() < 0.05:
                    assert cache.drop() == len(model)
                    model.clear()
                case 5 if chance.random() < 0.2:
                    cache.close()
                case _:
                    assert cache.get(key) == model.get(key)
        assert model
        assert {row.key: row.value for row in cache.rows()} == model
        assert cache.size().entries == len(model)

    def test_many_rows_at_once_are_as_one_after_the_other(
        self, cache: Cache, other: Cache, server: Server | None
    ) -> None:
        """With older ones replaced, twice the same key, empty values and rows of megabytes."""
        chance = random.Random(11)
        for _ in range(6):
            rows = [
                (
                    f"key {chance.randrange(400)}",
                    chance.randbytes(chance.choice([0, 1, 500, 500, 500, 3000]))
                    * chance.choice([1] * 60 + [700]),
                )
                for _ in range(chance.choice([0, 1, 64, 257, 600]))
            ]
            cache.put_many(rows)
            for key, value in rows:
                other.put(key, value)
            for number in range(0, 400, 9):
                assert cache.get(f"key {number}") == other.get(f"key {number}")
            if chance.random() < 0.5:
                cache.close()

        kept, expected = ([row[:2] for row in each.rows()] for each in (cache, other))
        if server:
            # Their order is told to a millisecond, in which many were kept.
            kept, expected = sorted(kept), sorted(expected)
        assert kept == expected

    @pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 5000])
    def test_many_keys_are_got_at_once(self, cache: Cache, count: int) -> None:
        cache.put_many([(f"key {number}", b"%d" % number) for number in range(5000)])
        keys = [f"key {number}" for number in range(count)]

        assert cache.get_many(keys) == {key: key[4:].encode() for key in keys}

    def test_of_many_keys_those_that_are_there_are_got(self, cache: Cache) -> None:
        cache.put_many([("a", b"one"), ("empty", b""), ("gone", b"x")])
        cache.delete("gone")

        found = cache.get_many(["a", "b", "empty", "a", "gone", "", "' OR 1"])

        assert found == {"a": b"one", "empty": b""}

    def test_rows_got_at_once_are_used(self, cache: Cache) -> None:
        cache.put_many([(key, b"x") for key in "abcd"])
        since = later()
        later()

        cache.get_many(["b", "d", "nothing"])

        assert cache.drop(since) == 2
        assert {row.key for row in cache.rows()} == {"b", "d"}

    def test_threads_share_it(self, cache: Cache) -> None:
        faults: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(40):
                    cache.put(f"{number} {turn}", f"{number} {turn}".encode() * 50)
                    other = f"{(number + 1) % 6} {turn}"
                    assert cache.get(other) in (None, other.encode() * 50)
                    assert cache.get(f"{number} {turn}") == f"{number} {turn}".encode() * 50
                    if turn == 20 and number == 0:
                        cache.close()
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert faults == []
        assert cache.size().entries == 240


class TestCachesWithALimit:
    def test_the_least_recently_used_make_room(self, bounded: Callable[[int], Cache]) -> None:
        little = bounded(600_000)
        for number in range(60):
            little.put(f"first {number}", b"x" * 5_000)
        for number in range(10):
            assert little.get(f"first {number}")
        for number in range(80):
            little.put(f"second {number}", b"x" * 5_000)

        assert all(little.get(f"first {number}") for number in range(10))
        assert not any(little.get(f"first {number}") for number in range(10, 30))
        assert all(little.get(f"second {number}") for number in range(40, 80))
        assert sum(len(row.value) for row in little.rows()) <= 600_000

    def test_a_row_that_is_too_large_is_not_kept_nor_the_older_one(
        self, bounded: Callable[[int], Cache]
    ) -> None:
        little = bounded(200_000)
        little.put("a", b"small")
        little.put("b", b"small")
        little.put("a", b"x" * 200_001)

        assert little.get("a") is None
        assert little.get("b") == b"small"

    def test_many_rows_make_room_for_themselves(self, bounded: Callable[[int], Cache]) -> None:
        little = bounded(2_000_000)
        little.put_many([(f"first {number}", b"x" * 5_000) for number in range(200)])
        assert little.get_many([f"first {number}" for number in range(10)])
        little.put_many([(f"second {number}", b"x" * 5_000) for number in range(300)])

        kept = [row.key for row in little.rows()]
        assert sum(len(row.value) for row in little.rows()) <= 2_000_000
        assert all(f"second {number}" in kept for number in range(300))
        assert not any(f"first {number}" in kept for number in range(10, 100))

    def test_a_large_old_row_makes_room_before_many_small_new_ones(
        self, bounded: Callable[[int], Cache]
    ) -> None:
        little = bounded(2_000_000)
        little.put_many([(f"large {number}", b"x" * 600_000) for number in range(3)])
        little.put_many([(f"small {number}", b"x" * 1_000) for number in range(250)])

        assert len(little.get_many([f"small {number}" for number in range(250)])) == 250

    def test_of_many_rows_the_too_large_are_not_kept_nor_the_older_ones(
        self, bounded: Callable[[int], Cache]
    ) -> None:
        little = bounded(200_000)
        little.put_many([("a", b"small"), ("b", b"small"), ("c", b"small")])
        large = b"x" * 200_001
        little.put_many([("a", large), ("d", b"new"), ("b", large), ("b", b"again")])

        found = little.get_many(list("abcd"))
        assert found == {"b": b"again", "c": b"small", "d": b"new"}


def test_memory_of_no_size_keeps_nothing() -> None:
    cache = MemoryCache(0)
    cache.put("a", b"")

    assert cache.get("a") is None
    assert cache.size() == (0, 0, 0, "memory")


def test_memory_counts_what_it_gives_up() -> None:
    cache = MemoryCache(100)
    for number in range(50):
        cache.put(str(number % 7), b"x" * (number % 30))
        assert cache.size().bytes == sum(len(row.key) + len(row.value) for row in cache.rows())
        assert cache.size().bytes <= 100
    cache.drop()
    assert cache.size().bytes == 0
