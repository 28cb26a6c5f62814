"""The connection to a Redis: how it is made, and what becomes of its faults."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from traceback import TracebackException
from typing import Any
from urllib.parse import urlsplit

import cloudpickle
import pytest
from redis import ResponseError

from llm_magic.errors import StoreError
from llm_magic.stores.redis import server as server_module
from llm_magic.stores.redis.many import in_one_go
from llm_magic.stores.redis.server import Server
from llm_magic.testing import ScriptedServer
from tests.conftest import SOON, redis_kind_found
from tests.redis_servers import RedisCluster3, RedisServer, certificate, wait_until


def run(script: str) -> None:
    """Runs a Python process, which must end well."""
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent.parent,
        check=True,
        timeout=60,
    )


def runs(pid: int) -> bool:
    """Whether a process runs: neither gone nor waiting to be asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_ends_with_the_tests_that_were_killed(redis_kind: str) -> None:
    """Else every interrupted run would leave one behind."""
    script = f"""
        import os, signal
        from tests.redis_servers import RedisServer
        server = RedisServer({redis_kind!r})
        print(server.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    wait_until(lambda: not runs(int(ran.stdout)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that failed is tried again soon."""
    monkeypatch.setattr(server_module, "RETRY", 0.05)


def refused(work: Callable[[], Any]) -> StoreError:
    """The error of something that must not take a second."""
    before = time.monotonic()
    with pytest.raises(StoreError) as caught:
        work()
    assert time.monotonic() - before < SOON
    assert caught.value.fix
    return caught.value


def ping(client: Any) -> bool:
    return bool(client.ping())


class TestConnection:
    @pytest.mark.parametrize(
        ("url", "place"),
        [
            ("redis://host", "host:6379/0"),
            ("redis://host:7000/5", "host:7000/5"),
            ("redis://ann@host?db=2", "host:6379/2"),
            ("rediss://:SECRET@host:1/0?ssl_cert_reqs=none", "host:1/0"),
            ("redis://ann:SECRET@[::1]:7000/1", "[::1]:7000/1"),
            ("unix:///run/redis.sock", "/run/redis.sock"),
            ("unix://ann:SECRET@/run/my%20redis.sock?db=3", "/run/my redis.sock db 3"),
            ("unix:///run/redis.sock?password=SECRET", "/run/redis.sock"),
        ],
    )
    def test_the_place_is_where_it_is_and_nothing_more(self, url: str, place: str) -> None:
        server = Server(url)

        assert server.place == place
        assert repr(server) == f"Server({place!r})"

    def test_nothing_is_connected_nor_loaded_before_it_is_needed(self) -> None:
        script = """
            import socket, sys
            socket.socket.connect = None
            import llm_magic
            from llm_magic.stores.redis.cache import RedisCache
            from llm_magic.stores.redis.server import Server
            Server("redis://127.0.0.1:1")
            assert "redis" not in sys.modules
        """
        run(script)

    def test_the_extension_loads_no_redis(self, redis_server: RedisServer) -> None:
        script = f"""
            import os, sys
            os.environ["LLM_MAGIC_STORE"] = {redis_server.url!r}
            from IPython.core.interactiveshell import InteractiveShell
            shell = InteractiveShell.instance()
            shell.run_line_magic("load_ext", "llm_magic")
            loaded = [name for name in ("redis", "distributed", "dask") if name in sys.modules]
            assert loaded == [], loaded
        """
        run(script)

    def test_threads_share_it(self, redis_server: RedisServer) -> None:
        server = Server(redis_server.url)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: server.do(lambda each: each.incr("count")), range(400)))

        assert server.do(lambda each: each.get("count")) == b"400"
        server.close()

    def test_an_address_cannot_take_its_patience_away(self, own_redis: RedisServer) -> None:
        own_redis.freeze()
        options = "socket_timeout=60&socket_connect_timeout=60&retry_on_timeout=yes"
        server = Server(f"{own_redis.url}?{options}")

        assert "did not answer within 0.3 s" in str(refused(lambda: server.do(ping)))

    def test_a_user_of_the_address_and_the_password_beside_it(self, own_redis: RedisServer) -> None:
        with own_redis.client() as client:
            client.execute_command("ACL", "SETUSER", "a@b", "on", ">p:/@ss", "~*", "+@all")

        for server in (
            Server(own_redis.url_of("a@b"), "p:/@ss"),
            Server(own_redis.url_of("a@b", "p:/@ss")),
        ):
            assert server.do(lambda client: client.acl_whoami()) in ("a@b", b"a@b")
            server.close()

    def test_a_name_that_is_not_found_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The system looks for many seconds, where its resolver does not answer."""
        found = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found.wait(10) and [])

        error = refused(lambda: Server("redis://far-away:6379").do(ping))

        found.set()
        assert "far-away:6379/0 cannot be reached" in str(error)

    @pytest.mark.parametrize("host", ["nowhere.invalid", "x" * 80, "a..b"])
    def test_a_name_that_there_is_not(self, host: str) -> None:
        error = refused(lambda: Server(f"redis://{host}:6379").do(ping))

        assert "cannot be reached" in str(error)

    @pytest.mark.parametrize(
        "url",
        ["redis://127.0.0.1:{}?db=x", "rediss://127.0.0.1:{}?ssl_no=1", "unix:///x.sock?db=x"],
    )
    def test_an_option_that_cannot_be(self, redis_server: RedisServer, url: str) -> None:
        server = Server(url.format(redis_server.port))

        assert "behind the ? of its address" in str(refused(lambda: server.do(ping)))

    def test_a_file_of_certificates_that_there_is_not(self, redis_server: RedisServer) -> None:
        url = f"rediss://127.0.0.1:{redis_server.port}?ssl_ca_certs=/nowhere.crt"

        assert "cannot be reached" in str(refused(lambda: Server(url).do(ping)))

    def test_options_of_tls_are_none_where_it_is_not_spoken(
        self, redis_server: RedisServer
    ) -> None:
        assert Server(f"{redis_server.url}?ssl_cert_reqs=none").do(ping)

    def test_a_server_that_is_no_redis(self, server: ScriptedServer) -> None:
        port = urlsplit(server.url).port

        assert refused(lambda: Server(f"redis://127.0.0.1:{port}").do(ping)).args

    def test_no_tls_where_the_server_speaks_none(self, redis_server: RedisServer) -> None:
        url = redis_server.url.replace("redis://", "rediss://")

        refused(lambda: Server(url).do(ping))


class TestFaults:
    @pytest.mark.parametrize("where", ["socket", "tls"])
    def test_a_frozen_server_on_a_socket_or_with_tls(
        self, start_redis: Callable[..., RedisServer], tmp_path: Path, where: str
    ) -> None:
        unix = where == "socket"
        running = start_redis(unix=unix, tls=None if unix else certificate(tmp_path))
        server = Server(running.url)
        assert server.do(ping)
        running.freeze()

        assert "did not answer" in str(refused(lambda: server.do(ping)))
        assert "did not answer" in str(refused(lambda: Server(running.url, "other").do(ping)))

    def test_a_server_with_no_room_for_another_client(
        self, redis_kind: str, start_redis: Callable[..., RedisServer]
    ) -> None:
        running = start_redis(redis_kind, maxclients=1)
        with running.client() as client:
            client.ping()
            assert "max number of clients" in str(refused(lambda: Server(running.url).do(ping)))

    def test_a_server_that_cannot_save_its_data(
        self, redis_kind: str, start_redis: Callable[..., RedisServer]
    ) -> None:
        running = start_redis(redis_kind, enable_protected_configs="yes")
        server = Server(running.url)
        with running.client() as client:
            client.set("a", "x")
            client.config_set("dbfilename", "none")
            (running.folder / "none").mkdir()
            client.config_set("save", "1 1")
            with pytest.raises(ResponseError):
                client.save()
            client.bgsave()
            wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")

        error = refused(lambda: server.do(lambda each: each.set("b", "x")))
        assert "cannot save its data" in str(error)
        assert server.do(lambda each: each.get("a")) == b"x"

    def test_a_server_that_failed_is_not_waited_for_again_at_once(
        self, own_redis: RedisServer
    ) -> None:
        server = Server(own_redis.url)
        own_redis.freeze()

        errors = {str(refused(lambda: server.do(ping))) for _ in range(3)}

        assert len(errors) == 1
        refused(lambda: [suppressed(server) for _ in range(100)] and server.do(ping))

    def test_nor_by_another_with_the_same_login(self, own_redis: RedisServer) -> None:
        """A kernel's cache and ledger do not wait one after the other."""
        servers = [Server(own_redis.url, patience=0.2) for _ in range(10)]
        own_redis.freeze()

        refused(lambda: [suppressed(server) for server in servers] and servers[0].do(ping))

    def test_threads_do_not_wait_one_after_the_other(self, own_redis: RedisServer) -> None:
        server = Server(own_redis.url)
        own_redis.freeze()

        with ThreadPoolExecutor(8) as pool:
            tried = [pool.submit(refused, lambda: server.do(ping)) for _ in range(8)]
            for each in tried:
                assert "did not answer" in str(each.result())

    def test_another_login_is_tried(
        self, redis_kind: str, start_redis: Callable[..., RedisServer]
    ) -> None:
        running = start_redis(redis_kind, requirepass="right")
        refused(lambda: Server(running.url_of(), "wrong").do(ping))

        assert Server(running.url_of(), "right").do(ping)

    def test_a_server_that_is_back_is_used(self, own_redis: RedisServer, quick: None) -> None:
        server = Server(own_redis.url)
        own_redis.freeze()
        refused(lambda: server.do(ping))
        own_redis.thaw()
        wait_until(lambda: not suppressed(server))

        own_redis.kill()
        refused(lambda: server.do(ping))
        own_redis.restart()
        wait_until(lambda: not suppressed(server))
        server.close()

    def test_a_restart_is_not_seen(self, own_redis: RedisServer) -> None:
        server = Server(own_redis.url)
        for _ in range(3):
            assert server.do(ping)
            own_redis.restart()
        assert server.do(ping)

    def test_what_may_have_been_done_is_not_done_again(self, own_redis: RedisServer) -> None:
        """A command that is not answered in time is carried out once, or not at all."""
        server = Server(own_redis.url)
        server.do(ping)
        own_redis.freeze()
        refused(lambda: server.do(lambda client: client.incr("count")))
        own_redis.thaw()

        with own_redis.client() as client:
            assert client.get("count") in (b"1", None)

    def test_one_command_that_is_refused_stops_no_other(self, own_redis: RedisServer) -> None:
        server = Server(own_redis.url)
        with own_redis.client() as client:
            client.set("a", "x")
            client.config_set("maxmemory", "1")

        assert "is full" in str(refused(lambda: server.do(lambda each: each.set("b", "x"))))
        assert server.do(lambda each: each.get("a")) == b"x"

    def test_a_primary_that_became_a_replica_is_connected_to_anew(
        self, own_redis: RedisServer
    ) -> None:
        """Its address may lead to another server by now."""
        server = Server(own_redis.url)
        before = server.do(lambda each: each.client_id())
        with own_redis.client() as client:
            client.replicaof("127.0.0.1", 1)

        error = refused(lambda: server.do(lambda each: each.set("a", "x")))

        assert "is a replica" in str(error)
        assert server.do(lambda each: each.client_id()) != before

    def test_words_of_what_was_to_be_stored_are_not_in_the_error(
        self, own_redis: RedisServer
    ) -> None:
        server = Server(own_redis.url)
        with own_redis.client() as client:
            client.lpush("list", "x")
        commands = [("SET", "key", "PROMPT"), ("GETSET", "list", "PROMPT")]

        error = refused(lambda: server.do(lambda each: in_one_go(each, commands)))

        assert "WRONGTYPE" in str(error)
        assert "PROMPT" not in str(error)


def suppressed(server: Server) -> bool:
    """Whether it fails."""
    try:
        return not server.do(ping)
    except StoreError:
        return True


class TestSecrets:
    """The password is in nothing that can be seen: no message, repr, traceback or pickle."""

    SECRET = "hunter2-the-password"

    def shown(self, error: BaseException) -> str:
        """All that a debugger's traceback would print, local variables and causes included."""
        found = TracebackException.from_exception(error, capture_locals=True, limit=None)
        text = "".join(found.format())
        seen: list[BaseException] = [error]
        while (context := seen[-1].__context__ or seen[-1].__cause__) is not None:
            seen.append(context)
            inner = TracebackException.from_exception(context, capture_locals=True)
            text += "".join(inner.format())
        return text + repr(error) + str(vars(error))

    def faults(self, server: Server, running: RedisServer) -> Iterator[StoreError]:
        yield refused(lambda: server.do(lambda client: client.execute_command("NONSENSE")))
        running.freeze()
        yield refused(lambda: server.do(ping))
        running.kill()
        server.close()
        yield refused(lambda: server.do(ping))

    @pytest.mark.parametrize("beside", [True, False])
    def test_not_in_what_a_fault_shows(
        self, redis_kind: str, start_redis: Callable[..., RedisServer], beside: bool
    ) -> None:
        running = start_redis(redis_kind, requirepass=self.SECRET)
        url = running.url_of() if beside else running.url
        server = Server(url, self.SECRET if beside else "")

        for error in self.faults(server, running):
            assert self.SECRET not in self.shown(error)

    def test_not_in_what_a_wrong_one_shows(
        self, redis_kind: str, start_redis: Callable[..., RedisServer]
    ) -> None:
        running = start_redis(redis_kind, requirepass="another")
        for server in (
            Server(running.url_of(), self.SECRET),
            Server(running.url_of("ann", self.SECRET)),
            Server(running.url_of("ann"), self.SECRET),
        ):
            error = refused(lambda server=server: server.do(ping))
            assert self.SECRET not in self.shown(error)

    def test_not_in_what_an_interrupt_shows(
        self, redis_kind: str, start_redis: Callable[..., RedisServer]
    ) -> None:
        """Of a login that is not answered."""
        running = start_redis(redis_kind, requirepass=self.SECRET)
        server = Server(running.url, patience=5)
        running.freeze()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

        with pytest.raises(KeyboardInterrupt) as caught:
            server.do(ping)

        own = caught.value.__traceback__
        assert own is not None
        shown = self.shown(caught.value.with_traceback(own.tb_next))
        assert "read_response" in shown
        assert self.SECRET not in shown

    @pytest.mark.parametrize("pickler", [pickle, cloudpickle])
    def test_not_in_a_pickle(self, pickler: Any) -> None:
        with pytest.raises(TypeError, match="password"):
            pickler.dumps(Server("redis://h", self.SECRET))


class TestScripts:
    TEXT = "return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}"

    def test_a_script_runs_with_keys_and_arguments(self, redis_server: RedisServer) -> None:
        server = Server(redis_server.url)
        script = server.script(self.TEXT)

        assert script(["k"], ["a"]) == [b"k", b"a", 1]
        assert script(["k"], [b"b"]) == [b"k", b"b", 2]
        server.close()

    def test_a_server_that_forgot_it_is_told_it_again(self, own_redis: RedisServer) -> None:
        own_redis.restart(appendonly="yes", appendfsync="always")
        script = Server(own_redis.url).script(self.TEXT)
        script(["k"], ["a"])
        with own_redis.client() as client:
            client.script_flush()
        assert script(["k"], ["a"])[2] == 2
        own_redis.restart()
        assert script(["k"], ["a"])[2] == 3

    def test_an_error_in_a_script_is_told(self, redis_server: RedisServer) -> None:
        script = Server(redis_server.url).script("return redis.call('GET')")

        assert "answers with an error" in str(refused(lambda: script([], [])))


class TestEviction:
    @pytest.mark.parametrize(
        ("config", "policy"),
        [
            ({}, ""),
            ({"maxmemory_policy": "allkeys-lru"}, ""),
            ({"maxmemory": "50mb", "maxmemory_policy": "noeviction"}, ""),
            ({"maxmemory": "50mb", "maxmemory_policy": "allkeys-lru"}, "allkeys-lru"),
            ({"maxmemory": "50mb", "maxmemory_policy": "volatile-ttl"}, "volatile-ttl"),
        ],
    )
    def test_a_server_that_takes_keys_away_is_known(
        self,
        redis_kind: str,
        start_redis: Callable[..., RedisServer],
        config: dict[str, str],
        policy: str,
    ) -> None:
        assert Server(start_redis(redis_kind, **config).url).evicts() == policy

    def test_it_is_looked_again_after_a_while(
        self, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        patient = Server(own_redis.url)
        monkeypatch.setattr(server_module, "LOOK", 0.0)
        eager = Server(own_redis.url)
        assert eager.evicts() == ""
        monkeypatch.undo()
        assert patient.evicts() == ""
        with own_redis.client() as client:
            client.config_set("maxmemory", "50mb")
            client.config_set("maxmemory-policy", "allkeys-lru")

        assert eager.evicts() == "allkeys-lru"
        assert patient.evicts() == ""

    def test_a_user_who_may_not_ask_is_told_which_right_is_missing(
        self, own_redis: RedisServer
    ) -> None:
        with own_redis.client() as client:
            rights = "on >x ~* +@all -@dangerous"
            client.execute_command("ACL", "SETUSER", "ann", *rights.split())

        error = refused(Server(own_redis.url_of("ann"), "x").evicts)

        assert "info" in str(error)
        assert "+info" in error.fix


class TestCluster:
    def test_keys_of_all_servers_are_found(self, redis_cluster: RedisCluster3) -> None:
        server = Server(redis_cluster.url)
        for number in range(50):
            server.do(lambda client, number=number: client.set(f"key:{number}", number))

        found = [name for names in server.scan("key:") for name in names]
        assert sorted(found) == sorted(redis_cluster.keys())
        commands = [("GET", f"key:{number}") for number in range(50)]
        values = server.do(lambda client: in_one_go(client, commands))
        assert values == [b"%d" % number for number in range(50)]
        assert server.evicts() == ""
        server.close()

    def test_a_script_runs_where_its_keys_are(self, redis_cluster: RedisCluster3) -> None:
        server = Server(redis_cluster.url)
        script = server.script("return redis.call('INCRBY', KEYS[1], ARGV[1])")

        for name in ("ann", "bob", "cleo", "dan"):
            assert script([f"{{user:{name}}}:a", f"{{user:{name}}}:b"], [3]) == 3
        server.close()

    def test_it_is_found_by_a_user_with_few_rights(self, redis_cluster: RedisCluster3) -> None:
        for node in redis_cluster.nodes:
            rights = "on >x ~* -@all +set"
            with node.client() as client:
                client.execute_command("ACL", "SETUSER", "ann", *rights.split())
                client.execute_command("ACL", "SETUSER", "ann", "+cluster|slots", "+command")
        server = Server(redis_cluster.nodes[0].url_of("ann"), "x")

        for number in range(20):
            assert server.do(lambda client, number=number: client.set(f"key:{number}", 1))
        server.close()

    def test_on_a_unix_socket_it_is_refused_with_what_to_name_instead(self) -> None:
        with RedisCluster3(redis_kind_found("redis"), unixsocket="redis.sock") as cluster:
            path = cluster.nodes[0].folder / "redis.sock"
            key = key_on(cluster, cluster.nodes[1])

            error = refused(lambda: Server(f"unix://{path}").do(lambda client: client.get(key)))

        assert "has the key on another server of its cluster" in str(error)
        assert "redis://HOST" in error.fix

    def test_others_are_found_when_the_one_of_the_address_is_gone(self, quick: None) -> None:
        with RedisCluster3(
            redis_kind_found("valkey"), cluster_require_full_coverage="no"
        ) as cluster:
            server = Server(cluster.url)
            keys = {node.url: key_on(cluster, node) for node in cluster.nodes}
            for key in keys.values():
                server.do(lambda client, key=key: client.set(key, 1))
            cluster.nodes[0].kill()
            refused(lambda: server.do(lambda client: client.get(keys[cluster.nodes[0].url])))
            there = keys[cluster.nodes[1].url]

            def found() -> bool:
                try:
                    return bool(server.do(lambda client: client.get(there)))
                except StoreError:
                    return False

            wait_until(found)
            server.close()


def key_on(cluster: RedisCluster3, node: RedisServer) -> str:
    """A key that this server of a Cluster has."""
    with node.client() as client:
        slots = client.execute_command("CLUSTER SLOTS")
        mine = [each[:2] for each in slots if each[2][1] == node.port]
        for number in range(1000):
            slot = client.execute_command("CLUSTER KEYSLOT", f"key {number}")
            if any(first <= slot <= last for first, last in mine):
                return f"key {number}"
    raise LookupError("no key")
