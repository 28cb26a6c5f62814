"""A Redis Cluster of three servers: the same scripts, whose keys are declared and of one slot."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import pytest
from redis.crc import key_slot

import llm_magic
from llm_magic import owner
from llm_magic.errors import QuotaExceeded, StoreError
from llm_magic.ledger import Amount, Claim, Full, Limit, Saved, Used
from llm_magic.meeting import GOING, Visit
from llm_magic.stores import redis as stores
from llm_magic.stores.redis.ledger import RedisLedger
from llm_magic.stores.redis.pace import RedisPace
from llm_magic.stores.redis.server import Server
from llm_magic.testing import ScriptedServer
from tests.conftest import SOON, Terminal
from tests.redis_counts import assert_keys_are_in_order, assert_sums_are_true
from tests.redis_servers import RedisCluster3, RedisServer, free_port, wait_until

ADA = "ada/} {x"
LIMITS = [
    Limit("kernel", "requests", 80, 3600.0),
    Limit("user", "usd", 10**9, 86_400.0),
    Limit("team", "tokens", 10**6, None),
    Limit("run", "usd", 10**9, None),
]


def everything(server: Server, user: str, team: str) -> list[Any]:
    """All that a ledger and a meeting do, and what they say to it."""
    run = "run 1"
    ledger = RedisLedger(server, kernel="kernel", user=user, team=team, run=run)
    limits = [each for each in LIMITS if team or each.scope != "team"]
    # A process of this machine that is dead, and what it left.
    dead = owner.current()._replace(pid=2**22 + 1)
    left = RedisLedger(server, kernel="dead", user=user, team=team, owner=dead)
    left.hold_many([Claim(f"left {n}", Amount(1, 2, 3), f"left {n}") for n in range(70)], [])
    left.sent("left 0")

    said: list[Any] = []
    ledger.limit_shared("user", "requests", 500, 3600.0)
    ledger.limit_shared("user", "tokens", 10**6, None)
    if team:
        ledger.limit_shared("team", "usd", 10**9, 60.0)
    ledger.limit_shared("user", "tokens", None, None)
    said.append(ledger.shared_limits())
    said.append(ledger.hold(Claim("a", Amount(1, 100, 1000), "key", "m", "In [1]"), limits))
    said.append(ledger.hold(Claim("b", Amount(1, 100, 1000), "key", "m", "In [1]"), limits))
    said.append((ledger.flying("key"), ledger.flying("left 1"), ledger.flying("nothing")))
    ledger.sent("a")
    ledger.settle("a", Used(Amount(1, 50, 500), "m", 40, 10, 5))
    many = [Claim(f"many {n}", Amount(1, 1, 1), f"key {n}", "m", sent=True) for n in range(70)]
    said.append(ledger.hold_many(many, limits))
    (full,) = ledger.hold_many([Claim("c", Amount(10, 1, 1))], limits)
    assert isinstance(full, Full)
    said.append((full.limit, full.used, full.asked))
    ledger.void("many 0")
    ledger.settle_many([(each.id, Used(each.worst, "m", 1)) for each in many[1:60]])
    ledger.settle_many([("unknown", None), ("late", Used(Amount(1, 7, 7), "m"))])
    ledger.renew()
    said.append([used for _, used in ledger.standing(limits)])
    ledger.saved_many([Saved("m", "In [1]", 5, 6)] * 3)
    said.append([ledger.usage("model"), ledger.usage("cell"), ledger.usage("day")])
    said.append(ledger.usage("model", kernel_only=True))
    for scope in ("kernel", "user"):
        ledger.forgive(scope)  # type: ignore[arg-type]
    said.append([used for _, used in ledger.standing(limits)])
    ledger.settle_many([(each.id, None) for each in many])
    pace = RedisPace(server, user=user, team=team)
    said.append(pace.meet(Visit("me", "line", held=2.0)).asking)
    met = pace.meet(Visit("you", "line", run=run, state=GOING, chunk=1))
    said.append((met.asking, met.held > 1, met.state, met.begun))
    left.close()
    ledger.close()
    return said


# Which keys are used


class Watched:
    """What a server was asked to do, by its own account.

    Attributes:
        scripts: Names of the scripts that ran.
        declared: The keys of each run, by its number.
        used: Number of the run, command and key, of all that scripts did.
    """

    def __init__(self) -> None:
        self.scripts: set[str] = set()
        self.declared: list[list[str]] = []
        self.used: list[tuple[int, str, str]] = []

    def take(self, line: str) -> None:
        """One line of MONITOR."""
        words = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
        command = words[0].upper()
        if re.search(r"\[\d+ lua\]", line):
            if command not in ("TIME", "SELECT"):
                self.used.append((len(self.declared) - 1, command, words[1]))
        elif command in ("EVALSHA", "EVAL"):
            self.scripts.add(words[1])
            self.declared.append(words[3 : 3 + int(words[2])])


@contextmanager
def watched(server: RedisServer) -> Iterator[Watched]:
    """Notes what a server is asked to do."""
    seen = Watched()
    with server.client() as client, client.monitor() as monitor:
        yield seen
        with server.client() as other:
            other.echo("that was all")
        while "that was all" not in (line := monitor.connection.read_response().decode()):
            seen.take(line)


def sources() -> list[str]:
    """The scripts, without the parts that several of them have in common."""
    folder = files(stores)
    return [
        each.name
        for each in folder.iterdir()
        if each.name.endswith(".lua") and each.name not in ("common.lua", "limits.lua")
    ]


@pytest.mark.parametrize("team", ["", "crew {1}"])
def test_scripts_use_only_keys_that_they_declare_and_of_one_slot(
    redis_server: RedisServer, team: str
) -> None:
    with watched(redis_server) as seen:
        everything(Server(redis_server.url), ADA, team)

    # By hash where it was known to the server, and once by its text where it was not.
    hashes = {each for each in seen.scripts if re.fullmatch("[0-9a-f]{40}", each)}
    assert len(hashes) == len(sources())
    assert len(seen.used) > 500
    for run, command, key in seen.used:
        assert key in seen.declared[run], command
    for keys in seen.declared:
        assert len({key_slot(key.encode()) for key in keys}) == 1
    with redis_server.client() as client:
        assert_keys_are_in_order(client)
        assert assert_sums_are_true(client) > 0


# The cluster


def test_a_cluster_says_the_same_as_one_server(
    redis_cluster: RedisCluster3, redis_server: RedisServer
) -> None:
    one, many = Server(redis_server.url), Server(redis_cluster.url)
    for user, team in ((ADA, ""), ("bob", ""), ("eve", "crew {1}")):
        assert everything(many, user, team) == everything(one, user, team)

    assert len(redis_cluster.keys()) == len(_keys(redis_server)) > 0
    for node in redis_cluster.nodes:
        with node.client() as client:
            assert_keys_are_in_order(client)


def _keys(node: RedisServer) -> list[bytes]:
    with node.client() as client:
        found: list[bytes] = client.keys("*")
        return found


def people() -> list[str]:
    """A person for each server of a cluster, by the slots that they have."""
    names = {
        key_slot(f"{{user:person {number}}}".replace(" ", "%20").encode()) // 5462: number
        for number in range(50)
    }
    return [f"person {names[place]}" for place in range(3)]


def test_people_are_spread_over_the_servers(redis_cluster: RedisCluster3) -> None:
    server = Server(redis_cluster.url)
    for name in people():
        ledger = RedisLedger(server, kernel="k", user=name)
        assert ledger.hold(Claim(name, Amount(1)), [Limit("user", "requests", 1, 60.0)]) == "held"

    for name, node in zip(people(), redis_cluster.nodes, strict=True):
        keys = _keys(node)
        assert keys
        assert all(quote(name).encode() in key for key in keys)
    server.close()


def test_cells_and_rows_ask_once_and_count_in_a_cluster(
    terminal: Terminal,
    server: ScriptedServer,
    redis_cluster: RedisCluster3,
    keeping: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLM_MAGIC_STORE", redis_cluster.url)
    monkeypatch.setenv("LLM_MAGIC_USER", ADA)
    monkeypatch.setenv("LLM_MAGIC_MODEL", "m")
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "32")
    server.enqueue("Forty-two.")
    cells = [terminal.run("%%llm\nWhat is it?") for _ in range(2)]
    rows = [f"row {number}" for number in range(30)]
    results = [llm_magic.map_rows(rows, "{{ text }}") for _ in range(2)]

    assert ["Forty-two." in cell.out for cell in cells] == [True, True]
    assert [len(each) for each in results] == [30, 30]
    assert len(server.requests) == 31
    assert terminal.run("%%llm\nNew").error is None
    assert isinstance(terminal.run("%%llm\nNewer").error, QuotaExceeded)
    assert len(server.requests) == 32
    kept = [[key for key in _keys(node) if b":cache:" in key] for node in redis_cluster.nodes]
    assert sum(map(len, kept)) == 32
    assert all(kept)


# A server of it fails


@pytest.fixture
def cluster(redis_kind: str) -> Iterator[tuple[RedisCluster3, RedisServer]]:
    """One of the test's own, and another server that can step in for its last one."""
    bus = free_port()
    with (
        RedisCluster3(redis_kind, repl_diskless_sync_delay=0) as made,
        RedisServer(
            redis_kind,
            cluster_enabled="yes",
            cluster_port=bus,
            cluster_node_timeout=1000,
            cluster_replica_validity_factor=0,
        ) as spare,
        made.nodes[2].client() as primary,
        spare.client() as replica,
    ):
        name = primary.execute_command("CLUSTER MYID")
        primary.execute_command("CLUSTER", "MEET", "127.0.0.1", spare.port, bus)
        wait_until(lambda: name.decode() in _known(replica))
        replica.execute_command("CLUSTER", "REPLICATE", name)
        # Those who vote for it must know it as the one that steps in.
        own = replica.execute_command("CLUSTER MYID").decode()
        for node in made.nodes:
            with node.client() as client:
                wait_until(lambda client=client: "slave" in _known(client).get(own, ""))
        # And it must know the slots that it takes over.
        wait_until(lambda: replica.cluster("info")["cluster_slots_assigned"] == "16384")
        wait_until(lambda: replica.info("replication")["master_link_status"] == "up")
        yield made, spare


def _known(client: Any) -> dict[str, str]:
    """What each server of a cluster is to one of them, by their names."""
    found = client.cluster("nodes").values()
    return {each["node_id"]: each["flags"] for each in found if "handshake" not in each["flags"]}


@pytest.mark.filterwarnings("ignore::llm_magic.errors.StoreWarning")
def test_a_dead_server_is_told_within_a_second_and_another_steps_in_for_it(
    terminal: Terminal,
    server: ScriptedServer,
    cluster: tuple[RedisCluster3, RedisServer],
    keeping: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, spare = cluster
    monkeypatch.setenv("LLM_MAGIC_STORE", made.url)
    monkeypatch.setenv("LLM_MAGIC_USER", people()[2])
    monkeypatch.setenv("LLM_MAGIC_MODEL", "m")
    monkeypatch.setenv("LLM_MAGIC_LIMITS", "2 requests per 1h per user")
    server.enqueue("One.", "Two.", "Three.")
    assert terminal.run("%%llm\nFirst").error is None
    llm_magic.usage()  # Behind what was booked.
    with made.nodes[2].client() as primary:
        # What its own connection has written before is what WAIT waits for.
        primary.set(f"{{user:{quote(people()[2])}}}", "mark", px=60_000)
        assert primary.wait(1, 5000) == 1
    made.nodes[2].kill()

    before = time.monotonic()
    told = terminal.run("%%llm\nSecond")
    assert time.monotonic() - before < SOON
    assert isinstance(told.error, StoreError)
    assert len(server.requests) == 1
    # By order: an election takes seconds.
    with spare.client() as client:
        client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
    wait_until(lambda: terminal.run("%%llm\nSecond").error is None)
    assert len(server.requests) == 2
    # What was counted before is known to the one that stepped in.
    assert isinstance(terminal.run("%%llm\nThird").error, QuotaExceeded)
