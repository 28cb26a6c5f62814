"""The ledger on a Redis that freezes, dies, is full, evicts or loses its data."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis

from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Claim, Full, Limit, Line, Saved
from llm_magic.stores.redis import pending
from llm_magic.stores.redis import server as servers
from llm_magic.stores.redis.keys import Keys
from llm_magic.stores.redis.ledger import RedisLedger
from llm_magic.stores.redis.server import Server
from llm_magic.testing import Reply, ScriptedServer
from tests import redis_counts
from tests.conftest import SOON, Terminal
from tests.redis_servers import RedisServer, wait_until
from tests.test_every_ledger import ONE, counted, used

LIMIT = Limit("user", "tokens", 100, 3600.0)
KEYS = Keys("k1", "ada")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is back is asked again soon."""
    monkeypatch.setattr(servers, "RETRY", 0.05)


@pytest.fixture
def redis_here(redis_kind: str, start_redis: Callable[..., RedisServer]) -> RedisServer:
    """One that keeps what it has been told, also when it is killed."""
    return start_redis(redis_kind, appendonly="yes", appendfsync="always")


@pytest.fixture
def make(redis_here: RedisServer) -> Iterator[Callable[..., RedisLedger]]:
    made = []

    def ledger(kernel: str = "k1", **more: Any) -> RedisLedger:
        made.append(RedisLedger(Server(redis_here.url), kernel=kernel, user="ada", **more))
        return made[-1]

    yield ledger
    for each in made:
        with suppress(StoreError):
            each.close()


def state_of(server: RedisServer, id_: str) -> str:
    with server.client() as client:
        return redis_counts.state(client, KEYS.call(id_))


def back(ledger: RedisLedger) -> None:
    """Waits until the ledger uses the server again."""

    def is_back() -> bool:
        with suppress(StoreError):
            ledger.renew()
            return True
        return False

    wait_until(is_back)


def frozen(server: RedisServer, how: str) -> None:
    if how == "freeze":
        server.freeze()
    else:
        server.kill()


def mended(server: RedisServer, how: str) -> None:
    if how == "freeze":
        server.thaw()
    else:
        server.restart()


HARMS = ["freeze", "kill"]


@pytest.mark.parametrize("how", HARMS)
def test_what_is_late_is_written_by_itself_once_the_server_is_back(
    make, redis_here, how, monkeypatch
):
    """A kernel that is idle meanwhile does not keep room from the others."""
    monkeypatch.setattr(pending, "AGAIN", 0.05)
    ledger, other = make(), make("k2")
    assert ledger.hold(Claim("a", Amount(1, 60), sent=True), [LIMIT]) == "held"
    frozen(redis_here, how)
    ledger.settle("a", used(tokens=7))
    with pytest.raises(StoreError):
        ledger.hold(Claim("b", Amount(1, 40), sent=True), [LIMIT])
    mended(redis_here, how)
    back(other)

    wait_until(lambda: counted(other, LIMIT) == [7])
    assert state_of(redis_here, "a") == "done"


@pytest.mark.parametrize("how", HARMS)
def test_a_hold_that_is_not_answered_is_told_soon_and_holds_nothing_afterwards(
    make, redis_here, how
):
    ledger, other = make(), make("k2")
    assert counted(ledger, LIMIT) == [0]
    frozen(redis_here, how)
    start = time.monotonic()
    with pytest.raises(StoreError) as caught:
        ledger.hold(Claim("a", Amount(1, 60), key="key"), [LIMIT])
    assert time.monotonic() - start < SOON
    assert caught.value.fix
    mended(redis_here, how)
    back(ledger)
    assert counted(other, LIMIT) == [0]
    assert not other.flying("key")
    assert other.hold(Claim("b", Amount(1, 100), key="key"), [LIMIT]) == "held"


def test_a_hold_that_is_done_after_it_was_given_up_holds_nothing(make, redis_here):
    """A server that wakes may read the void from one connection before the hold."""
    ledger = make()
    ledger.void("a")
    with pytest.raises(StoreError, match="given up"):
        ledger.hold(Claim("a", Amount(1, 60)), [LIMIT])
    assert counted(ledger, LIMIT) == [0]
    assert state_of(redis_here, "a") == "gone"


@pytest.mark.parametrize("how", HARMS)
def test_a_settle_that_is_not_answered_is_booked_once_when_it_is(make, redis_here, how):
    told = []
    ledger, other = make(trouble=lambda message, fix: told.append((message, fix))), make("k2")
    assert ledger.hold(Claim("a", Amount(1, 60), model="m"), [LIMIT]) == "held"
    ledger.sent("a")
    frozen(redis_here, how)
    start = time.monotonic()
    ledger.settle("a", used(tokens=20, model="m", input_tokens=20))
    ledger.saved(Saved("m", "", 7, 0))
    assert time.monotonic() - start < SOON
    assert told
    mended(redis_here, how)
    back(ledger)
    ledger.settle("a", used(tokens=30, model="m", input_tokens=30))
    assert counted(other, LIMIT) == [20]
    assert other.usage("model") == [Line("m", requests=1, input_tokens=20, hits=1, saved_tokens=7)]


@pytest.mark.parametrize("how", HARMS)
def test_nothing_is_sent_when_that_cannot_be_written_down(make, redis_here, how):
    ledger = make()
    assert ledger.hold(Claim("a", Amount(1, 60)), [LIMIT]) == "held"
    frozen(redis_here, how)
    with pytest.raises(StoreError):
        ledger.sent("a")
    ledger.void("a")
    mended(redis_here, how)
    back(ledger)
    assert counted(ledger, LIMIT) == [0]


def test_many_calls_while_redis_is_away_are_all_refused_soon_and_all_freed(make, redis_here):
    ledger = make()
    assert counted(ledger, LIMIT) == [0]
    redis_here.freeze()
    start = time.monotonic()
    for number in range(50):
        with pytest.raises(StoreError):
            ledger.hold_many([Claim(f"{number} {n}", ONE) for n in range(64)], [LIMIT])
    assert time.monotonic() - start < 5.0
    redis_here.thaw()
    back(ledger)
    assert counted(ledger, LIMIT, Limit("user", "requests", 1, None)) == [0, 0]


def test_a_redis_that_lost_its_data_between_hold_and_request_lets_nothing_be_sent(make, redis_here):
    ledger = make()
    assert ledger.hold(Claim("a", ONE), [LIMIT]) == "held"
    with redis_here.client() as client:
        client.flushall()
    with pytest.raises(StoreError, match="nothing was sent"):
        ledger.sent("a")


def test_what_was_used_is_booked_in_a_redis_that_lost_the_hold(make, redis_here):
    ledger = make()
    assert ledger.hold(Claim("a", Amount(1, 60), sent=True), [LIMIT]) == "held"
    with redis_here.client() as client:
        client.flushall()
    ledger.settle("a", used(tokens=20))
    assert counted(ledger, LIMIT) == [20]


def test_scripts_that_redis_has_forgotten_are_sent_again(make, redis_here):
    ledger = make()
    for number in range(3):
        assert ledger.hold(Claim(str(number), Amount(1, 10)), [LIMIT]) == "held"
        with redis_here.client() as client:
            client.script_flush()
        ledger.settle(str(number), used(tokens=1))
    assert counted(ledger, LIMIT) == [3]


def test_a_full_redis_goes_on_counting(redis_kind, start_redis):
    server = start_redis(redis_kind, maxmemory="3mb", maxmemory_policy="noeviction")
    with server.client() as client, suppress(Exception):
        for number in range(10_000):
            client.set(f"fill {number}", "x" * 10_000)
    ledger = RedisLedger(Server(server.url), kernel="k1", user="ada")
    for number in range(5):
        assert ledger.hold(Claim(str(number), Amount(1, 20)), [LIMIT]) == "held"
        ledger.sent(str(number))
        ledger.settle(str(number), used(tokens=20, model="m"))
    assert isinstance(ledger.hold(Claim("x", Amount(1, 1)), [LIMIT]), Full)
    ledger.saved(Saved("m", "", 1, 1))
    assert ledger.usage("model") == [Line("m", requests=5, hits=1, saved_tokens=1, saved_nanos=1)]
    ledger.forgive("user")
    ledger.limit_shared("user", "tokens", 5, 60.0)
    ledger.close()


def test_a_redis_that_may_evict_what_is_counted_is_refused_with_the_command_that_mends_it(
    redis_kind, start_redis
):
    server = start_redis(redis_kind, maxmemory="50mb", maxmemory_policy="allkeys-lru")
    ledger = RedisLedger(Server(server.url), kernel="k1", user="ada")
    for call in (lambda: ledger.hold(Claim("a", ONE), []), lambda: ledger.standing([])):
        with pytest.raises(StoreError, match="allkeys-lru") as caught:
            call()
        assert "CONFIG SET maxmemory-policy noeviction" in caught.value.fix
    with server.client() as client:
        assert client.dbsize() == 0
        client.config_set("maxmemory-policy", "noeviction")
    again = RedisLedger(Server(server.url), kernel="k1", user="ada")
    assert again.hold(Claim("a", ONE), []) == "held"


def test_a_wrong_password_is_told_and_not_shown(redis_kind, start_redis):
    server = start_redis(redis_kind, requirepass="right-MARKER")
    url = server.url_of(password="wrong-MARKER")
    ledger = RedisLedger(Server(url), kernel="k1", user="ada")
    with pytest.raises(StoreError, match="password") as caught:
        ledger.hold(Claim("a", ONE), [LIMIT])
    assert "MARKER" not in str(caught.value) + repr(caught.value)
    assert not caught.value.damaged


def test_what_is_pending_is_written_on_closing(make, redis_here):
    ledger, other = make(), make("k2")
    assert ledger.hold(Claim("a", Amount(1, 60)), [LIMIT]) == "held"
    redis_here.freeze()
    ledger.settle("a", used(tokens=20))
    start = time.monotonic()
    with pytest.raises(StoreError):
        ledger.close()
    assert time.monotonic() - start < SOON
    redis_here.thaw()
    wait_until(lambda: _closes(ledger))
    assert counted(other, LIMIT) == [20]


def _closes(ledger: RedisLedger) -> bool:
    with suppress(StoreError):
        ledger.close()
        return True
    return False


def test_a_forked_child_neither_writes_what_is_pending_nor_uses_the_connection(make, redis_here):
    ledger = make()
    assert ledger.hold(Claim("a", Amount(1, 60)), [LIMIT]) == "held"
    redis_here.freeze()
    ledger.settle("a", used(tokens=20))
    child = os.fork()
    if not child:
        failed = 1
        try:
            redis_here.thaw()
            back(ledger)
            # The parent's booking is not written by the child, and it holds as itself.
            right = counted(ledger, LIMIT) == [60]
            right = right and ledger.hold(Claim("child", Amount(1, 1)), [LIMIT]) == "held"
            ledger.settle("child", used(tokens=1))
            failed = not (right and state_of(redis_here, "a") == "held")
        finally:
            os._exit(failed)
    assert os.waitpid(child, 0)[1] == 0
    back(ledger)
    assert counted(ledger, LIMIT) == [21]


def test_threads_use_one_ledger(make):
    ledger = make()
    limit = Limit("user", "requests", 150, None)
    granted = []

    def work(name: int) -> None:
        for number in range(50):
            id_ = f"{name} {number}"
            if ledger.hold(Claim(id_, ONE), [limit]) == "held":
                granted.append(id_)
                ledger.settle(id_, used())

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(granted) == 150
    assert ledger.usage("model") == [Line("", requests=150)]


def test_a_script_that_was_stopped_is_no_damage(redis_kind, start_redis):
    """As by an administrator, while somebody else's keeps Redis busy."""
    server = start_redis(redis_kind, busy_reply_threshold=10)
    ledger = RedisLedger(Server(server.url), kernel="k1", user="ada")
    assert counted(ledger, LIMIT) == [0]

    def keep_busy() -> None:
        with server.client(socket_timeout=60) as client, suppress(redis.ResponseError):
            client.eval("while true do end", 0)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    with server.client() as client:
        wait_until(lambda: is_busy(client))
        with pytest.raises(StoreError) as caught:
            ledger.hold(Claim("a", ONE), [LIMIT])
        assert not caught.value.damaged
        client.script_kill()
    busy.join()
    back(ledger)
    assert ledger.hold(Claim("b", ONE), [LIMIT]) == "held"
    ledger.close()


def is_busy(client: Any) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


def test_an_end_of_the_process_while_redis_is_frozen_is_quick_and_quiet(
    redis_here, server: ScriptedServer
):
    server.enqueue(Reply("One two three four five six seven eight.", tokens_per_second=20))
    script = """
        import os, signal, sys, threading
        import llm_magic
        llm_magic.ask("Hello", model="m")
        print("asked", flush=True)
        sys.stdin.readline()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": "none",
            "LLM_MAGIC_STORE": redis_here.url,
        },
    ) as running:
        server.wait_for_requests(1)
        redis_here.freeze()
        assert running.stdout
        assert running.stdout.readline() == "asked\n"
        assert running.stdin
        start = time.monotonic()
        running.stdin.close()
        said = running.stderr.read() if running.stderr else ""
        assert running.wait(20) == 0
        assert time.monotonic() - start < 5
    assert "Traceback" not in said
    assert said.count("\n") <= 2


def test_a_reset_in_a_cell_mends_what_is_damaged(
    terminal: Terminal, redis_here: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_STORE", redis_here.url)
    monkeypatch.setenv("LLM_MAGIC_MODEL", "scripted-model")
    assert terminal.run("%llm One").error is None
    assert terminal.run("%llm_usage").error is None
    with redis_here.client() as client:
        for key in client.keys("llm_magic:{*:sums"):
            client.set(key, "garbage")
    refused = terminal.run("%llm Two").error
    assert type(refused) is StoreError
    assert "damaged" in str(refused)
    assert refused.fix.endswith("%llm_quota --reset")
    assert terminal.run("%llm_quota --reset").error is None
    assert terminal.run("%llm Two").error is None
