"""The cache in a real Redis and a real Valkey: expiry, and what steps in while it fails.

What it has in common with every cache is in ``test_stores``.
"""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_magic.stores.disk import DiskCache
from llm_magic.stores.redis import cache as cache_module
from llm_magic.stores.redis import server as server_module
from llm_magic.stores.redis.cache import RedisCache
from llm_magic.stores.redis.server import Server
from tests.conftest import SOON, redis_kind_found
from tests.redis_servers import RedisCluster3, RedisServer, wait_until

DAY = 86_400_000
SPACE = "llm_magic:cache:user:ann:"

Open = Callable[..., "Opened"]


class Opened(RedisCache):
    """A cache with what is behind it, and what it has told.

    Attributes:
        told: Pairs of a message and how to mend it.
        disk: The cache that steps in.
    """

    told: list[tuple[str, str]]
    disk: DiskCache


@pytest.fixture
def open_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens caches, which try a server that failed again soon."""
    for module in (server_module, cache_module):
        monkeypatch.setattr(module, "RETRY", 0.05)
    opened: list[Opened] = []

    def make(
        url: str, password: str = "", name: str = "user:ann", ttl: float | None = None
    ) -> Opened:
        disk = DiskCache(tmp_path / f"disk {len(opened)}")
        told: list[tuple[str, str]] = []
        server = Server(url, password)
        made = Opened(server, name, ttl=ttl, spare=disk, trouble=lambda *each: told.append(each))
        made.told, made.disk = told, disk
        opened.append(made)
        return made

    yield make
    for each in opened:
        each.close()


def timed(work: Callable[[], Any]) -> Any:
    """What it returns, which must not take a second."""
    before = time.monotonic()
    done = work()
    assert time.monotonic() - before < SOON
    return done


def left(server: RedisServer, key: str) -> int:
    """Milliseconds until a row of ann's expires."""
    with server.client() as client:
        return int(client.pttl(SPACE + key))


def eventually(cache: RedisCache, key: str, value: bytes, server: RedisServer) -> None:
    """Waits until a row is in the server, which is looked at by using the cache."""
    with server.client() as client:
        wait_until(lambda: cache.get(key) == value and client.get(SPACE + key) == value, 5)


class TestExpiry:
    def test_a_row_is_kept_for_ninety_days(
        self, redis_server: RedisServer, open_cache: Open
    ) -> None:
        cache = open_cache(redis_server.url)
        cache.put("a", b"x")
        cache.put_many([("b", b"x"), ("c", b"x")])

        assert all(90 * DAY - 60_000 < left(redis_server, key) <= 90 * DAY for key in "abc")

    def test_a_hit_prolongs_it(self, redis_server: RedisServer, open_cache: Open) -> None:
        cache = open_cache(redis_server.url)
        cache.put_many([(key, b"x") for key in "abc"])
        with redis_server.client() as client:
            for key in "abc":
                client.pexpire(SPACE + key, DAY)

        cache.get("a")
        cache.get_many(["b", "missing"])

        assert left(redis_server, "a") > 89 * DAY
        assert left(redis_server, "b") > 89 * DAY
        assert left(redis_server, "c") <= DAY

    @pytest.mark.parametrize("ttl", [0.2, 3600.0, 31_536_000.0])
    def test_a_set_age_counts_from_when_it_was_written(
        self, redis_server: RedisServer, open_cache: Open, ttl: float
    ) -> None:
        cache = open_cache(redis_server.url, ttl=ttl)
        cache.put_many([(key, b"x") for key in "ab"])
        with redis_server.client() as client:
            client.pexpire(SPACE + "a", 150)

        assert set(cache.get_many(["a", "b"])) == {"a", "b"}
        assert left(redis_server, "a") <= 150
        assert 1000 * ttl - 60_000 < left(redis_server, "b") <= 1000 * ttl

    def test_a_row_of_the_set_age_is_gone(
        self, redis_server: RedisServer, open_cache: Open
    ) -> None:
        cache = open_cache(redis_server.url, ttl=0.05)
        cache.put("a", b"x")

        wait_until(lambda: cache.get("a") is None, 5)
        assert list(cache.rows()) == []

    @pytest.mark.parametrize("ttl", [0.0, 1e15])
    def test_no_age_is_more_than_the_server_can_count(
        self, redis_server: RedisServer, open_cache: Open, ttl: float
    ) -> None:
        cache = open_cache(redis_server.url, ttl=ttl)
        cache.put("a", b"x")

        assert cache.told == []
        assert left(redis_server, "a") != -1


class TestPlaces:
    def test_names_share_nothing(self, redis_server: RedisServer, open_cache: Open) -> None:
        """Neither does one that is a pattern of the other."""
        first, second = (open_cache(redis_server.url, name=name) for name in ("u:a*", "u:ab"))
        first.put("k", b"first")
        second.put("k", b"second")

        assert first.get("k") == b"first"
        assert [row.value for row in first.rows()] == [b"first"]
        assert first.drop() == 1
        assert second.get("k") == b"second"

    def test_caches_of_one_name_share_all(
        self, redis_server: RedisServer, open_cache: Open
    ) -> None:
        first, second = open_cache(redis_server.url), open_cache(redis_server.url)
        first.put("k", b"x")

        assert second.get("k") == b"x"

    def test_the_last_used_of_many_are_listed(
        self, redis_server: RedisServer, open_cache: Open
    ) -> None:
        cache = open_cache(redis_server.url)
        cache.put_many([(f"key {number}", b"x") for number in range(3000)])
        for number in (2000, 7, 999):
            time.sleep(0.003)
            cache.get(f"key {number}")

        assert [row.key for row in cache.rows(3)] == ["key 999", "key 7", "key 2000"]

    def test_a_database_is_its_own(self, redis_server: RedisServer, open_cache: Open) -> None:
        open_cache(redis_server.url_of(db=3)).put("k", b"x")

        assert open_cache(redis_server.url_of(db=2)).get("k") is None
        assert open_cache(redis_server.url_of(db=3)).get("k") == b"x"

    def test_a_row_that_is_too_large_is_not_kept_nor_the_older_one(
        self, redis_server: RedisServer, open_cache: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache_module, "LARGEST", 1000)
        cache = open_cache(redis_server.url)
        cache.put_many([(key, b"small") for key in "abcd"])
        large = b"x" * 1001
        cache.put("a", large)
        cache.put_many([("b", large), ("c", large), ("c", b"again")])

        assert cache.get_many(list("abcd")) == {"c": b"again", "d": b"small"}
        assert cache.disk.size().entries == 0

    def test_a_unix_socket_is_a_place(
        self, redis_kind: str, start_redis: Callable[..., RedisServer], open_cache: Open
    ) -> None:
        running = start_redis(redis_kind, unix=True, requirepass="p@ss/word")
        cache = open_cache(running.url)
        cache.put("k", b"x")

        assert cache.get("k") == b"x"
        assert cache.size().place == str(running.folder / "redis.sock")
        assert cache.told == []

    def test_tls_is_spoken(
        self,
        redis_kind: str,
        start_redis: Callable[..., RedisServer],
        signed: Path,
        open_cache: Open,
    ) -> None:
        running = start_redis(redis_kind, tls=signed, requirepass="secret")
        cache = open_cache(running.url)
        cache.put("k", b"x")

        assert cache.get("k") == b"x"
        assert cache.told == []

    def test_a_certificate_that_nobody_vouches_for_is_refused(
        self,
        redis_kind: str,
        start_redis: Callable[..., RedisServer],
        signed: Path,
        open_cache: Open,
    ) -> None:
        running = start_redis(redis_kind, tls=signed)
        cache = open_cache(running.url.partition("?")[0])
        cache.put("k", b"x")

        assert cache.get("k") == b"x"
        [(message, fix)] = cache.told
        assert "has a certificate that nobody vouches for" in message
        assert "ssl_ca_certs=" in fix

    def test_a_cluster_has_the_rows_on_all_its_servers(
        self, redis_cluster: RedisCluster3, open_cache: Open
    ) -> None:
        cache = open_cache(redis_cluster.url)
        rows = {f"key {number}": b"%d" % number for number in range(300)}
        cache.put_many(list(rows.items()))

        assert cache.get_many([*rows, "missing"]) == rows
        assert cache.get("key 7") == b"7"
        assert {row.key: row.value for row in cache.rows()} == rows
        assert len(list(cache.rows(10))) == 10
        assert cache.size().entries == 300
        counts = [len(node.client().keys()) for node in redis_cluster.nodes]
        assert min(counts) > 30
        cache.delete("key 7")
        assert cache.drop() == 299
        assert cache.told == []


class TestFaults:
    """Each fault costs no answer, is told once and in less than a second."""

    def check(self, cache: Opened, *words: str) -> None:
        """Rows are put, got and deleted meanwhile, and one warning has these words."""
        timed(lambda: cache.put("one", b"1"))
        timed(lambda: cache.put_many([("two", b"2"), ("three", b"3"), ("four", b"4")]))
        timed(lambda: cache.delete("four"))
        assert timed(lambda: cache.get("one")) == b"1"
        found = timed(lambda: cache.get_many(["one", "two", "four", "five"]))
        assert found == {"one": b"1", "two": b"2"}
        rows = timed(lambda: list(cache.rows()))
        assert {row[:2] for row in rows} >= {("one", b"1"), ("two", b"2"), ("three", b"3")}
        timed(cache.size)
        assert len(cache.told) == 1, cache.told
        message, fix = cache.told[0]
        assert cache._server.place in message
        assert message.endswith("Answers are kept on this machine meanwhile.")
        assert fix
        for word in words:
            assert word in message + fix

    def test_down_from_the_start(self, own_redis: RedisServer, open_cache: Open) -> None:
        own_redis.kill()
        cache = open_cache(own_redis.url)

        self.check(cache, "cannot be reached (Connection refused)", "redis-cli")

    def test_killed(self, own_redis: RedisServer, open_cache: Open) -> None:
        cache = open_cache(own_redis.url)
        cache.put("before", b"x")
        own_redis.kill()

        self.check(cache, "cannot be reached")

    def test_frozen_when_it_is_read(self, own_redis: RedisServer, open_cache: Open) -> None:
        cache = open_cache(own_redis.url)
        cache.put("before", b"x")
        own_redis.freeze()

        assert timed(lambda: cache.get("before")) is None
        self.check(cache, "did not answer within 0.3 s")

    def test_frozen_when_it_is_written(self, own_redis: RedisServer, open_cache: Open) -> None:
        cache = open_cache(own_redis.url)
        cache.put("before", b"x")
        own_redis.freeze()

        timed(lambda: cache.put_many([(str(number), b"x" * 100_000) for number in range(50)]))
        self.check(cache, "did not answer within 0.3 s")

    def test_frozen_before_it_is_connected_to(
        self, own_redis: RedisServer, open_cache: Open
    ) -> None:
        own_redis.freeze()

        self.check(open_cache(own_redis.url), "did not answer within 0.3 s")

    def test_nobody_takes_the_connection(self, unanswered_address: str, open_cache: Open) -> None:
        self.check(open_cache(f"redis://{unanswered_address}"), "did not answer within 0.3 s")

    def test_full(
        self, redis_kind: str, start_redis: Callable[..., RedisServer], open_cache: Open
    ) -> None:
        full = start_redis(redis_kind, maxmemory="100mb", maxmemory_policy="noeviction")
        cache = open_cache(full.url)
        cache.put("before", b"x")
        with full.client() as client:
            client.config_set("maxmemory", "100kb")

        self.check(cache, "is full (maxmemory)", "CONFIG SET maxmemory")
        assert cache.get("before") == b"x"

    def test_a_replica(self, own_redis: RedisServer, open_cache: Open) -> None:
        with own_redis.client() as client:
            client.replicaof("127.0.0.1", 1)

        self.check(open_cache(own_redis.url), "is a replica, which takes no writes")

    def test_loading(
        self, redis_kind: str, start_redis: Callable[..., RedisServer], open_cache: Open
    ) -> None:
        running = start_redis(redis_kind, enable_debug_command="yes")
        with running.client() as client:
            client.execute_command("DEBUG", "POPULATE", 50_000)
            client.save()
        running.kill()
        running.begin(key_load_delay=200, loading_process_events_interval_bytes=1024)
        wait_until(lambda: "LOADING" in reply(running.port))

        self.check(open_cache(running.url), "is still loading its data")

    def test_a_wrong_password(
        self, redis_kind: str, start_redis: Callable[..., RedisServer], open_cache: Open
    ) -> None:
        running = start_redis(redis_kind, requirepass="right")

        self.check(
            open_cache(running.url_of(), "SECRET"),
            "refuses user or password",
            "LLM_MAGIC_STORE_PASSWORD",
        )

    def test_no_password(
        self, redis_kind: str, start_redis: Callable[..., RedisServer], open_cache: Open
    ) -> None:
        running = start_redis(redis_kind, requirepass="right")

        self.check(open_cache(running.url_of()), "wants a password", "LLM_MAGIC_STORE_PASSWORD")

    def test_a_password_where_none_is_set(self, own_redis: RedisServer, open_cache: Open) -> None:
        self.check(open_cache(own_redis.url, "SECRET"), "has no password, and one is set")

    @pytest.mark.parametrize(
        ("rights", "word"),
        [
            ("~llm_magic:* +@all -set", "set"),
            ("~elsewhere:* +@all", "key"),
        ],
    )
    def test_a_user_without_a_right(
        self, own_redis: RedisServer, open_cache: Open, rights: str, word: str
    ) -> None:
        with own_redis.client() as client:
            client.execute_command("ACL", "SETUSER", "ann", "on", ">SECRET", *rights.split())

        self.check(
            open_cache(own_redis.url_of("ann"), "SECRET"), "does not allow it", word, "SETUSER ann"
        )

    def test_a_user_who_may_not_prolong_reads(
        self, own_redis: RedisServer, open_cache: Open
    ) -> None:
        with own_redis.client() as client:
            rights = "on >SECRET ~llm_magic:* +@all -getex"
            client.execute_command("ACL", "SETUSER", "ann", *rights.split())
        cache = open_cache(own_redis.url_of("ann"), "SECRET")
        cache.put_many([("a", b"x"), ("b", b"y")])

        assert cache.get("a") == b"x"
        assert cache.get_many(["a", "b", "c"]) == {"a": b"x", "b": b"y"}
        assert cache.told == []

    def test_a_replica_is_read(
        self, redis_kind: str, start_redis: Callable[..., RedisServer], open_cache: Open
    ) -> None:
        primary = start_redis(redis_kind, repl_diskless_sync_delay=0)
        open_cache(primary.url).put("a", b"x")
        replica = start_redis(redis_kind, replicaof=("127.0.0.1", primary.port))
        cache = open_cache(replica.url)

        wait_until(lambda: cache.get("a") == b"x")

    def test_the_least_rights_are_enough(self, own_redis: RedisServer, open_cache: Open) -> None:
        """Those that the documentation recommends."""
        with own_redis.client() as client:
            rights = "on >SECRET ~llm_magic:* +@all -@dangerous +info"
            client.execute_command("ACL", "SETUSER", "ann", *rights.split())
        cache = open_cache(own_redis.url_of("ann"), "SECRET")
        cache.put_many([(key, b"x") for key in "abc"])
        cache.delete("a")

        assert cache.get("b") == b"x"
        assert len(list(cache.rows())) == cache.size().entries == 2
        assert cache.drop() == 2
        assert cache.told == []

    def test_an_evicting_server_is_no_fault(
        self, redis_kind: str, start_redis: Callable[..., RedisServer], open_cache: Open
    ) -> None:
        """What it takes away is asked anew."""
        running = start_redis(redis_kind, maxmemory="4mb", maxmemory_policy="allkeys-lru")
        cache = open_cache(running.url)
        for number in range(60):
            cache.put(str(number), os.urandom(100_000))

        assert cache.told == []
        assert cache.get("59") is not None
        assert cache.size().entries < 60
        assert cache.size().limit == 4 * 1024**2

    def test_a_frozen_server_of_a_cluster(self, open_cache: Open) -> None:
        with RedisCluster3(redis_kind_found("redis")) as cluster:
            cache = open_cache(cluster.url)
            rows = [(f"key {number}", b"x") for number in range(200)]
            cache.put_many(rows)
            cluster.nodes[1].freeze()

            assert len(timed(lambda: cache.get_many([key for key, _ in rows]))) < 200
            timed(lambda: cache.put_many(rows))
            assert len(timed(lambda: cache.get_many([key for key, _ in rows]))) == 200
            assert len(cache.told) == 1
            cluster.nodes[1].thaw()
            wait_until(lambda: cache.get("key 1") == b"x" and not cache._due, 10)
            assert len(cache.get_many([key for key, _ in rows])) == 200
            assert cache.disk.size().entries == 0

    def test_the_library_is_missing(self, tmp_path: Path) -> None:
        script = """
            import sys
            sys.modules["redis"] = None
            from llm_magic.stores.memory import MemoryCache
            from llm_magic.stores.redis.cache import RedisCache
            from llm_magic.stores.redis.server import Server
            server, spare = Server("redis://h"), MemoryCache()
            told = lambda message, fix: print(message, fix)
            cache = RedisCache(server, "n", ttl=None, spare=spare, trouble=told)
            cache.put("k", b"x")
            print(cache.get("k"))
        """
        ran = run(script)
        assert ran.count("\n") == 2
        assert 'pip install "llm-magic[redis]"' in ran
        assert ran.endswith("b'x'\n")


def reply(port: int) -> str:
    """What a server says to a PING."""
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100).decode()
    except OSError:
        return ""


def run(script: str) -> str:
    """What a Python process prints."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    ).stdout


class TestComingBack:
    def test_a_server_that_was_started_again_is_used_at_once(
        self, own_redis: RedisServer, open_cache: Open
    ) -> None:
        """Though it has closed all connections: nothing is told."""
        cache = open_cache(own_redis.url)
        for turn in range(3):
            cache.put("a", b"%d" % turn)
            own_redis.restart(appendonly="yes", appendfsync="always")
            cache.put("b", b"%d" % turn)
            own_redis.restart()
            assert cache.get("b") == b"%d" % turn

        assert cache.told == []

    def test_what_was_kept_meanwhile_is_moved(
        self, own_redis: RedisServer, open_cache: Open
    ) -> None:
        cache = open_cache(own_redis.url)
        own_redis.kill()
        cache.put_many([(f"key {number}", b"%d" % number) for number in range(200)])
        own_redis.restart()

        eventually(cache, "key 199", b"199", own_redis)
        wait_until(lambda: cache.get("key 0") == b"0" and not cache._due, 5)
        with own_redis.client() as client:
            assert client.dbsize() == 200
            names = client.keys()
            assert min(client.pttl(name) for name in names) > 89 * DAY
        assert cache.disk.size().entries == 0
        assert len(cache.told) == 1

    def test_what_was_deleted_meanwhile_goes(
        self, own_redis: RedisServer, open_cache: Open
    ) -> None:
        cache = open_cache(own_redis.url)
        cache.put("a", b"x")
        own_redis.freeze()
        cache.delete("a")
        assert cache.get("a") is None
        own_redis.thaw()

        wait_until(lambda: cache.get("other") is None and not cache._due, 5)
        assert cache.get("a") is None
        with own_redis.client() as client:
            assert client.keys() == []

    def test_the_answer_that_was_kept_meanwhile_is_the_newer_one(
        self, own_redis: RedisServer, open_cache: Open
    ) -> None:
        cache = open_cache(own_redis.url)
        cache.put("a", b"old")
        own_redis.freeze()
        cache.put("a", b"new")
        own_redis.thaw()

        assert cache.get("a") == b"new"
        eventually(cache, "a", b"new", own_redis)

    def test_a_miss_is_not_looked_for_in_what_steps_in(
        self, own_redis: RedisServer, open_cache: Open
    ) -> None:
        """What was there before is of another store."""
        cache = open_cache(own_redis.url)
        cache.disk.put("a", b"of before")

        assert cache.get("a") is None
        own_redis.kill()
        assert cache.get("a") == b"of before"

    def test_a_full_server_that_has_room_again(
        self, redis_kind: str, start_redis: Callable[..., RedisServer], open_cache: Open
    ) -> None:
        full = start_redis(redis_kind, maxmemory="100kb", maxmemory_policy="noeviction")
        cache = open_cache(full.url)
        cache.put("a", b"x")
        with full.client() as client:
            client.config_set("maxmemory", "100mb")

        eventually(cache, "a", b"x", full)

    def test_the_end_moves_what_is_left(self, own_redis: RedisServer, open_cache: Open) -> None:
        cache = open_cache(own_redis.url)
        own_redis.freeze()
        cache.put_many([(f"key {number}", b"x") for number in range(300)])
        own_redis.thaw()
        time.sleep(server_module.RETRY)
        cache.close()

        with own_redis.client() as client:
            assert client.dbsize() == 300

    def test_rows_that_are_not_moved_yet_are_forgotten_with_the_others(
        self, own_redis: RedisServer, open_cache: Open
    ) -> None:
        cache = open_cache(own_redis.url)
        cache.put("a", b"x")
        own_redis.kill()
        cache.put("b", b"x")
        assert cache.drop() == 1
        own_redis.restart()
        time.sleep(server_module.RETRY)

        assert cache.get("b") is None
        assert list(cache.rows()) == []

    def test_no_more_keys_are_remembered_than_may_be(
        self, own_redis: RedisServer, open_cache: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache_module, "REMEMBERED", 100)
        cache = open_cache(own_redis.url)
        own_redis.kill()
        cache.put_many([(f"key {number}", b"x") for number in range(500)])

        assert len(cache._due) == 100
        assert cache.get("key 0") == b"x"

    def test_threads_go_on_while_it_is_killed_and_started_again(
        self, own_redis: RedisServer, open_cache: Open
    ) -> None:
        own_redis.restart(appendonly="yes", appendfsync="always")
        cache = open_cache(own_redis.url)
        faults: list[BaseException] = []
        ended = threading.Event()
        written: set[str] = set()

        def work(number: int) -> None:
            try:
                turn = 0
                while not ended.is_set():
                    key = f"{number} {turn}"
                    cache.put(key, key.encode() * 20)
                    written.add(key)
                    # None where it was killed between the two.
                    assert cache.get(key) in (key.encode() * 20, None)
                    turn += 1
                    time.sleep(0.002)
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            count = len(written)
            wait_until(lambda count=count: len(written) > count + 40 or bool(faults))
            own_redis.kill()
            count = len(written)
            wait_until(lambda count=count: len(written) > count + 40 or bool(faults))
            own_redis.restart()
        wait_until(lambda: not cache._due or bool(faults))
        ended.set()
        for thread in threads:
            thread.join()

        assert faults == []
        assert {row.key for row in cache.rows()} == written
        assert len(cache.told) <= 2

    def test_a_fork_has_connections_of_its_own(
        self, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        script = f"""
            import os
            from llm_magic.stores.memory import MemoryCache
            from llm_magic.stores.redis.cache import RedisCache
            from llm_magic.stores.redis.server import Server
            def told(message, fix):
                raise AssertionError(message)
            server = Server({redis_server.url!r})
            cache = RedisCache(server, "n", ttl=None, spare=MemoryCache(), trouble=told)
            cache.put("a", b"parent")
            held = server._lock
            held.acquire()
            child = os.fork()
            if child == 0:
                for turn in range(200):
                    cache.put(f"child {{turn}}", b"%d" % turn)
                    assert cache.get(f"child {{turn}}") == b"%d" % turn
                os._exit(0)
            held.release()
            for turn in range(200):
                cache.put(f"parent {{turn}}", b"%d" % turn)
                assert cache.get(f"parent {{turn}}") == b"%d" % turn
            assert os.waitpid(child, 0)[1] == 0
            print(cache.size().entries)
        """
        assert run(script) == "401\n"
