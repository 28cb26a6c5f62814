"""Processes that ask the same server: its rate is divided, and a pause is everybody's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

import llm_magic
from llm_magic import rows
from llm_magic.errors import StoreError
from llm_magic.gate import Gate
from llm_magic.meeting import GOING, STOPPED, Met, Visit
from llm_magic.pacer import Pacer
from llm_magic.stores.redis.pace import RedisPace
from llm_magic.stores.redis.server import Server
from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import end_session, provided
from tests.load import LoadServer
from tests.redis_servers import RedisCluster3, RedisServer, wait_until

LINE = "http://127.0.0.1:1/v1 load"


@pytest.fixture
def pace(redis_server: RedisServer) -> RedisPace:
    return RedisPace(Server(redis_server.url, ""), user="ada")


def test_each_hears_how_many_ask(pace: RedisPace) -> None:
    assert pace.meet(Visit("a", LINE)).asking == 1
    assert pace.meet(Visit("b", LINE)).asking == 2
    assert pace.meet(Visit("a", LINE)).asking == 2


def test_others_ask_another_server_or_only_look(pace: RedisPace) -> None:
    pace.meet(Visit("a", LINE))
    assert pace.meet(Visit("b", f"{LINE}-mini")).asking == 1
    assert pace.meet(Visit("c", LINE, asks=False)).asking == 1


def test_people_have_limits_of_their_own_and_a_team_has_one(redis_server: RedisServer) -> None:
    server = Server(redis_server.url, "")
    for user in ("ada", "bob"):
        assert RedisPace(server, user=user).meet(Visit(user, LINE)).asking == 1
    for number, user in enumerate(("ada", "bob"), 1):
        assert RedisPace(server, user=user, team="nlp").meet(Visit(user, LINE)).asking == number


def test_who_is_not_heard_of_does_not_count(pace: RedisPace, redis_server: RedisServer) -> None:
    pace.meet(Visit("a", LINE))
    with redis_server.client() as client:
        (line,) = client.keys("*:asking")
        # Its lease is over.
        client.zadd(line, {"a": 1})
    assert pace.meet(Visit("b", LINE)).asking == 1


def test_a_pause_of_one_is_everybodys_until_it_is_over(pace: RedisPace) -> None:
    pace.meet(Visit("a", LINE, held=0.2))
    assert 0.1 < pace.meet(Visit("b", LINE)).held <= 0.2
    # A shorter one does not end it.
    assert 0.05 < pace.meet(Visit("c", LINE, held=0.01)).held <= 0.2
    wait_until(lambda: pace.meet(Visit("b", LINE)).held == 0)


def test_how_a_run_stands_and_how_often_a_part_was_begun(pace: RedisPace) -> None:
    part = Visit("a", LINE, run="r1", chunk=7)
    assert pace.meet(part) == Met(1, 0.0, "", 0)
    assert pace.meet(Visit("k", LINE, asks=False, run="r1", state=GOING)).state == GOING
    assert (pace.meet(part).begun, pace.meet(part).begun) == (1, 2)
    assert pace.meet(Visit("a", LINE, run="r1", chunk=8)).begun == 1
    pace.meet(Visit("k", LINE, asks=False, run="r1", state=STOPPED))
    assert pace.meet(part).state == STOPPED
    # What was said late does not let it go on.
    pace.meet(Visit("k", LINE, asks=False, run="r1", state=GOING))
    assert pace.meet(part).state == STOPPED


def test_all_that_is_kept_for_it_goes_by_itself(pace: RedisPace, redis_server: RedisServer) -> None:
    pace.meet(Visit("a", LINE, held=5, run="r1", state=GOING, chunk=1))
    with redis_server.client() as client:
        keys = client.keys()
        assert len(keys) == 3
        assert all(client.pttl(key) > 0 for key in keys)
        assert all(b"{user:ada}" in key for key in keys)


def test_it_runs_in_a_cluster(redis_cluster: RedisCluster3) -> None:
    pace = RedisPace(Server(redis_cluster.url, ""), user="ada", team="nlp")
    assert pace.meet(Visit("a", LINE, held=1, run="r1", state=GOING, chunk=1)).begun == 1


def test_a_redis_that_is_gone_is_said(own_redis: RedisServer) -> None:
    pace = RedisPace(Server(own_redis.url, ""), user="ada")
    own_redis.kill()
    with pytest.raises(StoreError):
        pace.meet(Visit("a", LINE))


# What a gate makes of it


def headers(limit: int, remaining: int, reset: float) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": f"{reset}s",
    }


def sent_in(pacer: Pacer, seconds: float, now: float) -> int:
    """How many go, each at once when it may."""
    count, end = 0, now + seconds
    while now < end:
        wait = pacer.delay(now)
        if wait > 0:
            now += wait
            continue
        pacer.sent(now, 0)
        count += 1
    return count


@pytest.mark.parametrize("share", [1, 2, 4])
def test_of_a_bucket_that_the_server_shows_each_takes_its_part(share: int) -> None:
    """Of 100 requests 40 are left, and 10 flow in each second."""
    pacer = Pacer()
    pacer.divide(share, 0.0)
    _, marks = pacer.sent(0.0, 0)
    pacer.heard(marks, headers(100, 40, 6), 0.1, 1)
    rate = pacer.rate()
    assert rate == pytest.approx(10 / share, rel=0.1)
    assert sent_in(pacer, 20, 0.1) == pytest.approx((40 + 200) / share, rel=0.2)


def test_a_rate_that_was_learnt_is_halved_when_another_one_comes() -> None:
    pacer = Pacer()
    for number in range(40):
        sent = pacer.sent(number / 40, 5)
        last = sent[0], number / 40
    pacer.rejected(last[0], last[1], None, False, 1.1)
    alone = pacer.rate()
    assert alone
    pacer.divide(2, 2.0)
    assert pacer.rate() == pytest.approx(alone / 2, rel=0.1)
    pacer.divide(1, 3.0)
    assert pacer.rate() == pytest.approx(alone, rel=0.15)


def test_a_pause_that_another_was_asked_for_is_kept_and_not_passed_on() -> None:
    async def held() -> tuple[bool, float]:
        gate = Gate()
        gate.hold(0.2)
        began = asyncio.get_running_loop().time()
        told = gate.told_to_wait
        with await gate.turn():
            return asyncio.get_running_loop().time() - began >= 0.19, told

    assert asyncio.run(held()) == (True, 0.0)


# A run over rows


@pytest.fixture
def environment(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadServer]:
    with LoadServer(latency=0.05, answer="Four stars.") as loaded:
        provided(monkeypatch, loaded.url, store=redis_server.url, user="ada")
        yield loaded
    end_session()


def test_a_run_of_one_kernel_keeps_to_its_part_as_well(
    environment: LoadServer, redis_server: RedisServer
) -> None:
    other = RedisPace(Server(redis_server.url, ""), user="ada")
    other.meet(Visit("another kernel", f"{environment.url} load"))
    llm_magic.map_rows([str(number) for number in range(20)], "{{ text }}")
    (gate,) = llm_magic.session._session._gates.values()
    assert gate.share == 2


def test_nothing_goes_while_another_kernel_was_told_to_wait(
    environment: LoadServer, redis_server: RedisServer
) -> None:
    other = RedisPace(Server(redis_server.url, ""), user="ada")
    look = Visit("another kernel", f"{environment.url} load", asks=False)
    other.meet(replace(look, held=0.6))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(llm_magic.map_rows, ["a"], "{{ text }}")
        sent = 0
        while other.meet(look).held > 0:
            # Seen before it was seen that the pause is not over.
            assert sent == 0
            sent = environment.stats()["requests"]
        assert asking.result()[0]["answer"] == "Four stars."


def test_others_hear_that_a_kernel_was_told_to_wait(
    environment: LoadServer,
    redis_server: RedisServer,
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setattr(rows, "EVERY", 0.02)
    server.enqueue(Reply("", status=429, headers={"Retry-After": "0.5"}))
    other = RedisPace(Server(redis_server.url, ""), user="ada")
    look = Visit("another kernel", f"{server.url} load", asks=False)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(llm_magic.map_rows, ["a"], "{{ text }}")
        wait_until(lambda: other.meet(look).held > 0.1)
        asking.result()
