"""Equal prompts of a team's people, on machines of their own, are asked and paid once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_magic.stores.redis.ledger import RedisLedger
from llm_magic.stores.redis.server import Server
from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import KEY, Kernel
from tests.redis_servers import RedisServer, wait_until

DRIVER = Path(__file__).with_name("redis_driver.py")
SLOW = Reply("A slow answer, " * 20, tokens_per_second=150)
ENDLESS = Reply("Never finished. " * 500, tokens_per_second=50)
LEASE = 1.2


class Driver:
    """The process that forks those who ask.

    Args:
        folder: Where its errors go.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "errors"
        with self._path.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, DRIVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def write(self, line: str) -> None:
        """One line of its input."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def said(self) -> dict[str, Any]:
        """What one of them says next."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, self.errors
        said: dict[str, Any] = json.loads(line)
        return said

    @property
    def errors(self) -> str:
        """What went wrong in any of them."""
        return self._path.read_text()

    def stop(self) -> None:
        """Ends all."""
        self._process.communicate()


class Crowd:
    """Processes that ask one prompt at a server through a Redis.

    Args:
        driver: Who starts them.
        store: The address of the Redis.
        server: Who is asked.
        folder: Where each has a cache and a ledger of its own.
    """

    def __init__(self, driver: Driver, store: str, server: ScriptedServer, folder: Path) -> None:
        self._driver = driver
        self._folder = folder
        self._environment = {
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": KEY,
            "LLM_MAGIC_STORE": store,
            "LLM_MAGIC_CACHE_SIZE": "1 GB",
            "LLM_MAGIC_PRICES": json.dumps({"m": {"input": 1, "output": 2}}),
            "LLM_MAGIC_USER": "ada",
        }
        self.pids: dict[str, int] = {}

    def ask(
        self,
        names: Sequence[str],
        *,
        apart: bool = True,
        lease: float | None = None,
        **environment: Callable[[str], str] | str,
    ) -> None:
        """Has processes ask, all at once.

        Args:
            names: What they are called.
            apart: Whether each is on a machine of its own.
            lease: Seconds that their leases last.
            **environment: What is set besides, or how it comes from the name.
        """
        askers = []
        for name in names:
            own = {
                f"LLM_MAGIC_{key.upper()}": value if isinstance(value, str) else value(name)
                for key, value in environment.items()
            }
            for kind in ("cache", "ledger"):
                own[f"LLM_MAGIC_{kind.upper()}_DIR"] = str(self._folder / name / kind)
            asker: dict[str, Any] = {"name": name, "prompt": "The same question"}
            asker["environment"] = self._environment | own
            if apart:
                asker["machine"] = name
            if lease:
                asker["lease"] = lease
            askers.append(asker)
        self._driver.write(json.dumps(askers))
        for _ in names:
            said = self._driver.said()
            self.pids[said["name"]] = said["ready"]
        self._driver.write("go")

    def answers(self, count: int) -> dict[str, dict[str, Any]]:
        """What so many of them got."""
        found = [self._driver.said() for _ in range(count)]
        return {said["name"]: said for said in found}

    def kill(self, name: str) -> float:
        """Ends one in the middle; gives when."""
        os.kill(self.pids[name], signal.SIGKILL)
        return time.time()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    started = Driver(tmp_path_factory.mktemp("driver"))
    yield started
    started.stop()
    assert started.errors == ""


@pytest.fixture
def crowd(
    driver: Driver, redis_server: RedisServer, server: ScriptedServer, tmp_path: Path
) -> Crowd:
    return Crowd(driver, redis_server.url, server, tmp_path)


def many(count: int) -> list[str]:
    return [f"m{number}" for number in range(count)]


def wait_until_all_wait(store: RedisServer, crowd: Crowd, count: int) -> None:
    """Until so many processes have looked twice whether the flight goes on."""
    with store.client() as client:
        looks = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        wait_until(
            lambda: client.info("commandstats")["cmdstat_evalsha"]["calls"] > looks + 6 * count
        )


def assert_answered(answers: dict[str, dict[str, Any]], text: str, payers: int = 1) -> None:
    """All have the answer, and so many have paid for it."""
    assert [said.get("text", said) for said in answers.values()] == [text] * len(answers)
    paid = [said for said in answers.values() if not said["cached"]]
    assert len(paid) == payers
    free = [said for said in answers.values() if said["cached"]]
    assert {said["cost"] for said in free} <= {"0"}
    assert {said["saved"] for said in free} <= {said["cost"] for said in paid}


def test_sixteen_machines_ask_once(crowd: Crowd, server: ScriptedServer) -> None:
    server.enqueue(*[SLOW] * 16)
    crowd.ask(many(16))

    assert_answered(crowd.answers(16), SLOW.text)
    assert len(server.requests) == 1


@pytest.mark.parametrize("apart", [False, True])
def test_when_the_leader_is_killed_another_takes_over(
    crowd: Crowd, server: ScriptedServer, redis_server: RedisServer, apart: bool
) -> None:
    """At once on its own machine; elsewhere when its lease has run out."""
    server.enqueue(ENDLESS, *[SLOW] * 15)
    crowd.ask(["leader"], apart=apart, lease=LEASE)
    server.wait_for_requests(1)
    crowd.ask(many(15), apart=apart, lease=LEASE)
    wait_until_all_wait(redis_server, crowd, 15)
    assert len(server.requests) == 1
    killed = crowd.kill("leader")
    answers = crowd.answers(15)

    assert_answered(answers, SLOW.text)
    assert len(server.requests) == 2
    took = min(said["at"] for said in answers.values()) - killed
    assert took < LEASE + 5 if apart else took < 5
    # What the killed one may have cost is booked, and nothing is on its way any more.
    ledger = RedisLedger(Server(redis_server.url), kernel="looks on", user="ada")
    (line,) = ledger.usage("model")
    assert (line.requests, line.unpriced, line.hits) == (2, 1, 14)
    ledger.close()
    with redis_server.client() as client:
        # Leases of who has ended by itself may be there still.
        assert all(field.startswith(b"l") for field in client.hkeys("llm_magic:{user:ada}:open"))


def test_a_stream_that_is_longer_than_its_lease_keeps_it(
    crowd: Crowd, server: ScriptedServer
) -> None:
    long = Reply("Long. " * 100, tokens_per_second=60)
    server.enqueue(long, SLOW)
    crowd.ask(["leader"], lease=LEASE)
    server.wait_for_requests(1)
    began = time.time()
    crowd.ask(["other"], lease=LEASE)

    answers = crowd.answers(2)
    assert_answered(answers, long.text)
    assert not answers["leader"]["cached"]
    assert answers["other"]["at"] - began > 2 * LEASE
    assert len(server.requests) == 1


def test_a_leader_that_was_only_asleep_books_what_it_used(
    crowd: Crowd, server: ScriptedServer, redis_server: RedisServer
) -> None:
    """A machine that is suspended is taken for dead; when it wakes, its call counts once."""
    server.enqueue(*[SLOW] * 2)
    crowd.ask(["leader"], lease=LEASE)
    server.wait_for_requests(1)
    os.kill(crowd.pids["leader"], signal.SIGSTOP)
    crowd.ask(["other"], lease=LEASE)
    answers = crowd.answers(1)
    # The other one, or whoever looks next, has closed what the leader left.
    ledger = RedisLedger(Server(redis_server.url), kernel="looks on", user="ada")
    wait_until(lambda: ledger.usage("model")[0].requests == 2)
    assert ledger.usage("model")[0].unpriced == 1
    os.kill(crowd.pids["leader"], signal.SIGCONT)
    answers |= crowd.answers(1)

    assert_answered(answers, SLOW.text, payers=2)
    assert len(server.requests) == 2
    (line,) = ledger.usage("model")
    assert (line.requests, line.unpriced) == (2, 0)
    ledger.close()


def test_the_leader_s_error_is_its_own(crowd: Crowd, server: ScriptedServer) -> None:
    """The next one asks; nobody waits for an answer that does not come."""
    server.enqueue(Reply(SLOW.text, tokens_per_second=150, fault="cut", after=30), *[SLOW] * 7)
    crowd.ask(many(8))
    answers = crowd.answers(8)

    failed = [name for name, said in answers.items() if "error" in said]
    assert [answers.pop(name)["error"] for name in failed] == ["StreamBroken"]
    assert_answered(answers, SLOW.text)
    assert len(server.requests) == 2


@pytest.mark.parametrize(("scope", "requests"), [("team", 1), ("user", 2)])
def test_people_of_a_team_share_answers_if_they_want_to(
    crowd: Crowd, server: ScriptedServer, scope: str, requests: int
) -> None:
    server.enqueue(*[SLOW] * 2)
    crowd.ask(["ada", "bob"], user=str, team="crew", store_scope=scope)

    assert_answered(crowd.answers(2), SLOW.text, payers=requests)
    assert len(server.requests) == requests
    # And later as well.
    crowd.ask(["ada", "bob"], user=str, team="crew", store_scope=scope)
    assert all(said["cached"] for said in crowd.answers(2).values())


def test_people_of_other_teams_share_nothing(crowd: Crowd, server: ScriptedServer) -> None:
    server.enqueue(*[SLOW] * 2)
    crowd.ask(["ada", "bob"], user=str, team=lambda name: f"crew of {name}", store_scope="team")

    assert_answered(crowd.answers(2), SLOW.text, payers=2)
    assert len(server.requests) == 2


# Two kernels


@pytest.fixture(scope="module")
def kernels() -> Iterator[list[Kernel]]:
    started = [Kernel(watched=False, environment={}) for _ in range(2)]
    for kernel in started:
        kernel.run("%load_ext llm_magic")
    yield started
    for kernel in started:
        kernel.stop()


@pytest.fixture
def pair(kernels: list[Kernel], server: ScriptedServer) -> Callable[..., list[Kernel]]:
    """The two kernels, once a Redis and what else is to be set is known."""

    def connected(store: RedisServer, **settings: str) -> list[Kernel]:
        environment = {
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": KEY,
            "LLM_MAGIC_MODEL": "m",
            "LLM_MAGIC_CACHE_SIZE": "1 GB",
            "LLM_MAGIC_STORE": store.url,
            "LLM_MAGIC_LIMITS": "",
            **{f"LLM_MAGIC_{name.upper()}": value for name, value in settings.items()},
        }
        for kernel in kernels:
            shown = kernel.run(f"import os; os.environ.update({environment!r})")
            assert not shown.of("error")
        return kernels

    return connected


def told(kernel: Kernel, cell: str) -> str:
    """What a cell shows that ends well."""
    shown = kernel.run(cell)
    assert not shown.of("error"), shown.of("error")
    displays = [*shown.of("display_data"), *shown.of("update_display_data")]
    return shown.text + "".join(str(each["data"]) for each in displays)


def test_a_second_kernel_is_answered_from_redis(
    pair: Callable[..., list[Kernel]], server: ScriptedServer, redis_server: RedisServer
) -> None:
    one, other = pair(redis_server)
    server.enqueue("Forty-two.")

    assert "Forty-two." in told(one, "%%llm\nWhat is it?")
    assert "Forty-two." in told(other, "%%llm\nWhat is it?")
    assert len(server.requests) == 1


def test_a_person_s_limit_holds_over_both_kernels(
    pair: Callable[..., list[Kernel]], server: ScriptedServer, redis_server: RedisServer
) -> None:
    one, other = pair(redis_server, limits="2 requests per 1h per user")
    server.enqueue("One.", "Two.", "Three.")
    told(one, "%%llm\nFirst")
    told(other, "%%llm\nSecond")

    for kernel in (one, other):
        (error,) = kernel.run("%%llm\nThird").of("error")
        assert error["ename"] == "QuotaExceeded"
    assert len(server.requests) == 2


def test_a_restart_of_redis_between_cells_is_not_seen(
    pair: Callable[..., list[Kernel]], server: ScriptedServer, start_redis: Any, redis_kind: str
) -> None:
    store = start_redis(redis_kind, appendonly="yes", appendfsync="always")
    one, other = pair(store, limits="2 requests per 1h per user")
    server.enqueue("One.", "Two.", "Three.")
    told(one, "%%llm\nFirst")
    # Behind what is booked when the cell has ended.
    told(one, "import llm_magic; llm_magic.usage()")
    store.restart()

    assert "One." in told(other, "%%llm\nFirst")
    shown = told(one, "%%llm\nSecond")
    assert "Two." in shown
    assert "Warning" not in shown
    store.restart()
    (error,) = other.run("%%llm\nThird").of("error")
    assert error["ename"] == "QuotaExceeded"
    assert len(server.requests) == 2
