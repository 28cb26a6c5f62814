"""A shared ledger that fails, and the machine's own that counts meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Claim, Full, Limit, Line
from llm_magic.stores.ledger import SqliteLedger
from llm_magic.stores.redis import server as servers
from llm_magic.stores.redis.ledger import RedisLedger
from llm_magic.stores.redis.server import Server
from llm_magic.stores.spare import SpareLedger
from tests.redis_servers import RedisServer, wait_until
from tests.test_every_ledger import ONE, counted, used

LIMIT = Limit("user", "tokens", 100, 3600.0)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def server(start_redis: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    monkeypatch.setattr(servers, "RETRY", 0.05)
    return start_redis(appendonly="yes", appendfsync="always")


@pytest.fixture
def shared(server: RedisServer) -> Iterator[RedisLedger]:
    ledger = RedisLedger(Server(server.url), kernel="k1", user="ada", team="crew", run="r")
    yield ledger
    with suppress(StoreError):
        ledger.close()


@pytest.fixture
def own(tmp_path: Path) -> SqliteLedger:
    return SqliteLedger(tmp_path / "ledger.db", kernel="k1", user="ada")


@pytest.fixture
def ledger(shared: RedisLedger, own: SqliteLedger, told: list[str]) -> Iterator[SpareLedger]:
    made = SpareLedger(shared, own, lambda message, fix: told.append(f"{message} {fix}"))
    yield made
    with suppress(StoreError):
        made.close()


@pytest.fixture
def other(server: RedisServer) -> Iterator[RedisLedger]:
    """Of another kernel, to look with."""
    ledger = RedisLedger(Server(server.url), kernel="k2", user="ada", team="crew", run="r")
    yield ledger
    ledger.close()


def back(shared: RedisLedger) -> None:
    def is_back() -> bool:
        with suppress(StoreError):
            shared.renew()
            return True
        return False

    wait_until(is_back)


def test_while_the_shared_one_works_the_own_one_is_not_used(ledger, own, shared, told):
    assert ledger.hold(Claim("a", Amount(1, 60), key="key"), [LIMIT]) == "held"
    assert ledger.flying("key")
    ledger.sent("a")
    ledger.renew()
    ledger.settle("a", used(tokens=20, model="m"))
    ledger.hold(Claim("b", Amount(1, 60)), [LIMIT])
    ledger.void("b")
    assert counted(ledger, LIMIT) == counted(shared, LIMIT) == [20]
    assert counted(own, LIMIT) == [0]
    assert [line.name for line in ledger.usage("model")] == ["m"]
    assert told == []


@pytest.mark.parametrize("how", ["freeze", "kill"])
def test_while_it_fails_the_own_one_counts_and_once_it_is_back_it_knows_all(
    ledger, own, shared, other, server, told, how
):
    assert ledger.hold(Claim("before", Amount(1, 40), sent=True), [LIMIT]) == "held"
    server.freeze() if how == "freeze" else server.kill()
    assert ledger.hold(Claim("a", Amount(1, 70), key="key"), [LIMIT]) == "held"
    assert ledger.flying("key")
    ledger.sent("a")
    refused = ledger.hold(Claim("b", Amount(1, 31)), [LIMIT])
    assert isinstance(refused, Full)
    assert (refused.limit, refused.used) == (LIMIT, 70)
    ledger.settle_many([("a", used(tokens=20)), ("before", used(tokens=10))])
    assert counted(ledger, LIMIT) == [20]
    assert len(set(told)) == 1
    assert "counted in this machine's own ledger" in told[0]
    server.thaw() if how == "freeze" else server.restart()
    back(shared)
    assert ledger.hold(Claim("c", Amount(1, 5)), [LIMIT]) == "held"
    assert counted(ledger, LIMIT) == counted(other, LIMIT) == [35]
    assert counted(own, LIMIT) == [20]
    assert other.usage("model") == [Line("", requests=2)]


def test_a_call_is_ended_where_it_is_open(ledger, own, shared, other, server):
    server.freeze()
    assert ledger.hold(Claim("a", Amount(1, 70)), [LIMIT]) == "held"
    assert ledger.hold(Claim("b", Amount(1, 30)), [LIMIT]) == "held"
    server.thaw()
    back(shared)
    ledger.sent("a")
    ledger.renew()
    ledger.settle("a", used(tokens=20))
    ledger.void("b")
    assert counted(own, LIMIT) == [20]
    assert counted(other, LIMIT) == [20]


def test_a_limit_of_a_team_or_run_is_kept_by_the_machine_for_itself(ledger, server):
    limits = [Limit("team", "requests", 1, 60.0), Limit("run", "usd", 100, None)]
    server.freeze()
    assert ledger.hold(Claim("a", Amount(1, 0, 60)), limits) == "held"
    refused = ledger.hold(Claim("b", ONE), limits)
    assert isinstance(refused, Full)
    assert refused.limit is limits[0]
    assert ledger.standing(limits) == [(limits[0], 1), (limits[1], 60)]


def test_what_concerns_all_kernels_is_refused_while_the_shared_one_fails(ledger, server):
    server.freeze()
    for call in (
        ledger.shared_limits,
        lambda: ledger.limit_shared("team", "usd", 1, None),
        lambda: ledger.forgive("user"),
        lambda: ledger.usage("model"),
    ):
        with pytest.raises(StoreError):
            call()


def test_both_forgive(ledger, own, shared, server):
    server.freeze()
    ledger.hold(Claim("a", Amount(1, 70)), [LIMIT])
    ledger.settle("a", used(tokens=70))
    server.thaw()
    back(shared)
    for scope in ("user", "team"):
        ledger.forgive(scope)
    assert counted(ledger, LIMIT) == counted(own, LIMIT) == [0]


def test_closing_lets_go_of_both_also_when_the_shared_one_cannot_write(ledger, other, server):
    server.freeze()
    ledger.hold(Claim("a", Amount(1, 70)), [LIMIT])
    ledger.settle("a", used(tokens=20))
    with pytest.raises(StoreError):
        ledger.close()
    server.thaw()
    wait_until(lambda: _closes(ledger))
    assert counted(other, LIMIT) == [20]


def _closes(ledger: SpareLedger) -> bool:
    with suppress(StoreError):
        ledger.close()
        return True
    return False
