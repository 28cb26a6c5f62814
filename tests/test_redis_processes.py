"""The ledger in Redis between processes that are killed, while Redis itself is restarted.

Run as a program, this file is the crowd. Each of its processes writes down for itself what it was
granted and what it used, before it tells the ledger: by these notes no limit may have been passed.

``STRESS=N python -m pytest tests/test_redis_processes.py`` goes on N times as long, in more ways.
"""

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Claim, Full, Limit, Saved, Used
from llm_magic.stores.redis import server as servers
from llm_magic.stores.redis.keys import Keys
from llm_magic.stores.redis.ledger import RedisLedger
from llm_magic.stores.redis.server import Server

if __name__ != "__main__":
    from tests.redis_counts import assert_keys_are_in_order, assert_sums_are_true, log, state
    from tests.redis_servers import RedisServer, wait_until
    from tests.test_ledger_processes import most_in_a_window

PROCESSES, USERS, TEAM = 8, ("ada", "bob/}é", "eve"), "crew {1}"
KILLS, RESTARTS = 20, 5
TIMES = int(os.environ.get("STRESS", "1"))
MICROS = 1_000_000
PATIENCE = 60.0
KINDS = ("requests", "tokens", "usd")

OWN_LIMITS = [
    Limit("kernel", "requests", 20, 0.5),
    Limit("kernel", "usd", 4_500, 1.0),
    Limit("user", "tokens", 3_000, 0.5),
    Limit("team", "requests", 110, 0.5),
]
SHARED_LIMITS = [
    Limit("user", "requests", 45, 0.5),
    Limit("user", "usd", 4_000, 0.5),
    Limit("team", "tokens", 7_000, 0.5),
    # It is used up for good, and then only what is free goes through.
    Limit("team", "usd", 40_000 * TIMES, 3600.0),
]
# Worst cases in tokens and nano-dollars: many small ones, then long ones, then dear ones.
MOODS = [((1, 20), (0, 0)), ((100, 300), (0, 3)), ((1, 20), (100, 500))]


def user_of(kernel: str) -> str:
    return USERS[int(kernel[1:]) % len(USERS)]


def keys_of(kernel: str) -> Keys:
    return Keys(kernel, user_of(kernel), TEAM)


def ledger_of(url: str, kernel: str) -> RedisLedger:
    return RedisLedger(Server(url), kernel=kernel, user=user_of(kernel), team=TEAM)


# What a process does


class Notes:
    """What one process was granted and what it used, in a file that survives it."""

    def __init__(self, folder: Path, kernel: str) -> None:
        self.name = f"{kernel} {os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(folder / f"notes {self.name}", flags, 0o600)

    def write(self, what: str, id_: str, *more: int) -> None:
        line = " ".join(map(str, (what, time.time_ns() // 1000, *more, id_)))
        os.write(self._file, f"{line}\n".encode())


class Caller:
    """One process of the crowd."""

    def __init__(self, url: str, folder: Path, kernel: str, dice: random.Random) -> None:
        self.ledger = ledger_of(url, kernel)
        self.notes = Notes(folder, kernel)
        self._folder, self._dice = folder, dice
        self._number = 0

    def work(self, *, in_batches: bool) -> None:
        """Calls until it is told to stop, and leaves nothing unwritten."""
        parent = os.getppid()
        while not (self._folder / "stop").exists():
            claims = [self._claim(sent=in_batches) for _ in range(self._size(in_batches))]
            try:
                held = self._hold(claims)
            except StoreError:
                time.sleep(0.1)
                held = []
            (self._use_together if in_batches else self._use)(held)
            if self._dice.random() < 0.2:
                self.notes.write("hit", "-")
                self.ledger.saved(Saved("m", "In [1]", 1, 1))
            if not held:
                time.sleep(self._dice.uniform(0, 0.008))
            if os.getppid() != parent:
                return
        while os.getppid() == parent:
            with suppress(StoreError):
                self.ledger.close()
                break
            time.sleep(0.05)
        self.notes.write("end", "-")

    def _size(self, in_batches: bool) -> int:
        return self._dice.randint(1, 12) if in_batches else 1

    def _claim(self, *, sent: bool) -> Claim:
        dice = self._dice
        self._number += 1
        key = dice.choice([None, f"key {dice.randrange(30)}"])
        tokens, nanos = MOODS[int(time.time() / 0.7) % len(MOODS)]
        worst = Amount(1, dice.randint(*tokens), dice.randint(*nanos))
        return Claim(f"{self.notes.name} {self._number}", worst, key, model="m", sent=sent)

    def _hold(self, claims: Sequence[Claim]) -> list[Claim]:
        for each in claims:
            self.notes.write("ask", each.id, int(each.sent), each.worst.tokens, each.worst.nanos)
        verdicts = self.ledger.hold_many(claims, OWN_LIMITS)
        for each, verdict in zip(claims, verdicts, strict=True):
            if verdict == "held":
                self.notes.write("granted", each.id)
            elif isinstance(verdict, Full):
                self.notes.write(f"full-{verdict.limit.scope}-{verdict.limit.metric}", each.id)
        pairs = zip(claims, verdicts, strict=True)
        return [claim for claim, verdict in pairs if verdict == "held"]

    def _use(self, held: Sequence[Claim]) -> None:
        for each in held:
            time.sleep(self._dice.uniform(0, 0.01))
            if self._dice.random() < 0.1:
                self.notes.write("void", each.id)
                self.ledger.void(each.id)
                continue
            try:
                self.ledger.sent(each.id)
            except StoreError:
                self.notes.write("void", each.id)
                self.ledger.void(each.id)
                continue
            self.notes.write("sent", each.id)
            time.sleep(self._dice.uniform(0, 0.03))
            self.ledger.settle(each.id, self._used(each))

    def _use_together(self, held: Sequence[Claim]) -> None:
        time.sleep(self._dice.uniform(0, 0.15))
        uses: list[tuple[str, Used | None]] = []
        for each in held:
            if self._dice.random() < 0.1:
                self.notes.write("void", each.id)
                uses.append((each.id, None))
            else:
                uses.append((each.id, self._used(each)))
        self._dice.shuffle(uses)
        middle = self._dice.randint(0, len(uses))
        self.ledger.settle_many(uses[:middle])
        self.ledger.settle_many(uses[middle:])

    def _used(self, claim: Claim) -> Used:
        part = self._dice.choice([0, 1, 2, 2])
        used = Amount(1, claim.worst.tokens * part // 2, claim.worst.nanos * part // 2)
        self.notes.write("use", claim.id, used.tokens, used.nanos)
        return Used(used, "m", used.tokens, 0, 0)


def crowd(url: str, folder: Path, seed: str) -> None:
    """Eight processes that call, forked here: starting Python anew takes longer than their work.

    At each line of the input one of them is killed and replaced; at its end all are to stop.
    """
    dice = random.Random(seed)
    kernels: dict[int, str] = {}

    def start(kernel: str) -> None:
        number = dice.randrange(2**32)
        if child := os.fork():
            kernels[child] = kernel
            return
        failed = 1
        try:
            # Every other one asks for a table.
            caller = Caller(url, folder, kernel, random.Random(number))
            caller.work(in_batches=int(kernel[1:]) % 2 == 1)
            failed = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(failed)

    import redis  # noqa: F401  # Loaded once for all.

    # They are at it again soon after a restart.
    servers.RETRY = 0.2
    for number in range(PROCESSES):
        start(f"k{number}")
    try:
        for _ in sys.stdin:
            victim = dice.choice(sorted(kernels))
            os.kill(victim, signal.SIGKILL)
            kernel = kernels.pop(victim)
            assert os.waitpid(victim, 0)[1] == signal.SIGKILL, "it had ended by itself"
            start(kernel)
            print("killed", flush=True)
        (folder / "stop").touch()
        for each in list(kernels):
            assert os.waitpid(each, 0)[1] == 0, kernels.pop(each)
            del kernels[each]
    finally:
        for each in kernels:
            os.kill(each, signal.SIGKILL)
            os.waitpid(each, 0)


if __name__ == "__main__":
    crowd(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    sys.exit()


# What is done to them


def end_by(server: "RedisServer", number: signal.Signals) -> None:
    """Ends Redis by a signal, and waits until it has."""
    os.kill(server.pid, number)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)


def is_busy(client: Any, calls: int) -> bool:
    """Whether so many scripts ran since the server started."""
    with suppress(Exception):
        stats = client.info("commandstats")
        return bool(stats.get("cmdstat_evalsha", {"calls": 0})["calls"] >= calls)
    return False


def torment(
    server: "RedisServer",
    crowd: "subprocess.Popen[str]",
    folder: Path,
    signals: Sequence[signal.Signals],
) -> None:
    """Kills processes in the middle of their work, and ends Redis by these signals in turn."""
    assert crowd.stdin
    assert crowd.stdout
    dice = random.Random()
    kills, restarts = KILLS * TIMES, RESTARTS * TIMES
    after = [kills * (turn + 1) // (restarts + 1) for turn in range(restarts)]
    with server.client() as client:
        wait_until(lambda: is_busy(client, 400), PATIENCE)
        for kill in range(kills):
            if kill in after:
                end_by(server, signals[after.index(kill) % len(signals)])
                # Some are killed while there is no Redis.
                time.sleep(dice.uniform(0, 0.2))
                server.restart()
                wait_until(lambda: is_busy(client, 400), PATIENCE)
                # Longer than anybody waits: what was asked for is done when it wakes.
                server.freeze()
                time.sleep(0.5)
                server.thaw()
            for _ in range(4):
                # What was just done is not told to whom it was done for, who asks for it again.
                client.client_kill_filter(_type="normal")
                time.sleep(dice.uniform(0, 0.03))
            crowd.stdin.write("kill\n")
            crowd.stdin.flush()
            assert crowd.stdout.readline() == "killed\n"
    # Until every kind of limit has been in the way.
    words = ("kernel", "user", "team", *KINDS)
    wait_until(lambda: all(any(word in each for each in refusals(folder)) for word in words), 60)
    crowd.stdin.close()


# What must be true afterwards


class Noted(NamedTuple):
    """What a process noted of a call; moments are microseconds, None for never."""

    kernel: str
    asked: int
    worst: tuple[int, int, int]
    sent_at_once: bool
    granted: int | None
    sent: bool
    voided: bool
    used: tuple[int, int, int] | None
    ended: int | None
    """When it was used or voided, else the last that its process noted; None if sent and killed."""
    survived: bool


def noted(folder: Path) -> dict[str, Noted]:
    """All calls that anybody noted."""
    return {id_: call for path in folder.glob("notes *") for id_, call in _calls_of(path)}


def _lines(path: Path) -> list[tuple[str, str, list[int]]]:
    found = []
    for line in path.read_text().split("\n")[:-1]:
        what, *numbers = line.split(" ", {"ask": 5, "use": 4}.get(line.split(" ")[0], 2))
        found.append((what, numbers[-1], [int(each) for each in numbers[:-1]]))
    return found


def _calls_of(path: Path) -> Iterator[tuple[str, Noted]]:
    kernel = path.name.split(" ")[1]
    calls: dict[str, dict[str, list[int]]] = {}
    found = _lines(path)
    last, survived = found[-1][2][0], found[-1][0] == "end"
    for what, id_, numbers in found:
        if id_ != "-":
            calls.setdefault(id_, {})[what] = numbers
    for id_, by in calls.items():
        asked, at_once, *worst = by["ask"]
        granted, used, void = (by.get(name) for name in ("granted", "use", "void"))
        sent = "sent" in by or bool(at_once and granted)
        ended = next((each[0] for each in (used, void) if each), None if sent else last)
        yield (
            id_,
            Noted(
                kernel,
                asked,
                (1, *worst),
                bool(at_once),
                granted[0] if granted else None,
                sent,
                bool(void),
                (1, *used[1:]) if used else None,
                ended,
                survived,
            ),
        )


def names(scope: str) -> list[str]:
    kernels = [f"k{number}" for number in range(PROCESSES)]
    return {"kernel": kernels, "user": list(USERS), "team": [TEAM]}[scope]


def refusals(folder: Path) -> Counter[str]:
    """How often each limit was in the way."""
    found = Counter[str]()
    for path in folder.glob("notes *"):
        found.update(what for what, _, _ in _lines(path) if what.startswith("full-"))
    return found


def counts_in(call_kernel: str, scope: str, name: str) -> bool:
    return {"kernel": call_kernel, "user": user_of(call_kernel), "team": TEAM}[scope] == name


def most_at_any_time(calls: Sequence[Noted], limit: Limit) -> int:
    """The most that was certainly held or used in any window, by what the processes noted.

    A call was held at some moment between asking and being granted. So much is certain of a
    window: the calls that lie in it with both; each with its worst case until it was ended, and
    what it had used from then on.
    """
    metric = KINDS.index(limit.metric)
    granted = sorted(
        (each for each in calls if each.granted is not None), key=lambda each: each.granted or 0
    )
    asked, known, ended, worst, used = (
        np.array(column)
        for column in zip(
            *(
                (
                    each.asked,
                    each.granted,
                    2**62 if each.ended is None else each.ended,
                    each.worst[metric],
                    each.used[metric] if each.used else 0,
                )
                for each in granted
            ),
            strict=True,
        )
    )
    most = 0
    length = int((limit.window or 0) * MICROS)
    for moment in known:
        inside = (known <= moment) & (asked > moment - length)
        most = max(most, int(np.where(moment < ended, worst, used)[inside].sum()))
    return most


def assert_no_limit_was_passed(calls: dict[str, Noted], logs: dict[Any, Any]) -> None:
    """By the notes, and by the log in Redis."""
    shares = {}
    for limit in [*OWN_LIMITS, *SHARED_LIMITS]:
        for name in names(limit.scope):
            own = [each for each in calls.values() if counts_in(each.kernel, limit.scope, name)]
            most = most_at_any_time(own, limit)
            assert most <= limit.cap, (limit, name)
            entries = logs[limit.scope, name].values()
            rows = sorted((t, amount[KINDS.index(limit.metric)]) for t, amount in entries)
            logged = most_in_a_window(rows, int((limit.window or 0) * MICROS))
            assert logged <= limit.cap, (limit, name)
            shares[limit, name] = most / limit.cap, logged / limit.cap
    for place in (0, 1):
        assert max(share[place] for share in shares.values()) > 0.9, shares


def logs_of(client: Any) -> dict[tuple[str, str], dict[str, tuple[int, tuple[int, int, int]]]]:
    """The log of each scope: the calls that count, with moment and amount."""
    logs = {}
    for number in range(PROCESSES):
        keys = keys_of(f"k{number}")
        for scope, name in keys.names.items():
            logs[scope, name] = log(client, keys.of(scope, "log"))
    return logs


def assert_log_is_what_was_noted(calls: dict[str, Noted], found: dict[str, Any]) -> None:
    """Each call counts what it used; of a killed process what it may have used."""
    assert set(found) <= set(calls)
    for id_, call in calls.items():
        counted = found[id_][1] if id_ in found else None
        if call.survived:
            fitting = [call.used] if call.granted and not call.voided else [None]
        elif call.used:
            fitting = [call.used, call.worst]
        elif call.sent and not call.voided:
            fitting = [call.worst]
        else:
            # Killed while it held, or before it had noted that it did.
            fitting = [None, call.worst]
        assert counted in fitting, (id_, call)
        if counted and call.granted and id_ in found:
            assert call.asked <= found[id_][0] <= call.granted


def assert_usage_is_true(url: str, logged: dict[str, Any], folder: Path) -> None:
    """What each person has used, and the free answers, by the lines of usage."""
    hits = Counter[bool]()
    for path in folder.glob("notes *"):
        lines = _lines(path)
        hits[lines[-1][0] == "end"] += [what for what, _, _ in lines].count("hit")
    seen = 0
    for number, user in enumerate(USERS):
        ledger = ledger_of(url, f"k{number}")
        (line,) = ledger.usage("model")
        own = [each[1] for id_, each in logged.items() if user_of(id_.split(" ")[0]) == user]
        assert (line.requests, line.nanos) == (len(own), sum(each[2] for each in own))
        seen += line.hits
        ledger.close()
    assert hits[True] <= seen <= hits.total()


def assert_nothing_leaks(client: Any) -> None:
    """No call, no flight and no lease is left, and every key has an expiry."""
    for key in keys_of("k0").common:
        assert client.hgetall(key) == {}, key
    assert_keys_are_in_order(client)


# With everysec, what Redis has said was done may be lost when it is killed itself.
WAYS = {"always": [signal.SIGKILL, signal.SIGTERM], "everysec": [signal.SIGTERM]}


@pytest.mark.parametrize("fsync", WAYS if "STRESS" in os.environ else ["always"])
def test_no_limit_is_passed_while_processes_and_redis_are_killed(
    redis_kind: str, start_redis: "Callable[..., RedisServer]", tmp_path: Path, fsync: str
) -> None:
    server = start_redis(redis_kind, appendonly="yes", appendfsync=fsync)
    seed = str(random.SystemRandom().randrange(2**32))
    print("seed", seed)
    first = ledger_of(server.url, "k0")
    for number in range(len(USERS)):
        ledger = ledger_of(server.url, f"k{number}")
        for limit in SHARED_LIMITS:
            ledger.limit_shared(limit.scope, limit.metric, limit.cap, limit.window)
        ledger.close()
    with subprocess.Popen(
        [sys.executable, __file__, server.url, tmp_path, seed],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(errors := (tmp_path / "errors").open("w+")),
        text=True,
    ) as running:
        try:
            torment(server, running, tmp_path, WAYS[fsync])
            assert running.wait(PATIENCE) == 0
        finally:
            running.kill()
            errors.seek(0)
            said = errors.read()
            errors.close()
    assert said == ""
    # Whoever comes next finds who has died.
    first.usage("model")
    assert set(first.shared_limits()) == set(SHARED_LIMITS)
    first.close()
    calls = noted(tmp_path)
    with server.client() as client:
        logs = logs_of(client)
        states = Counter(state(client, key) for key in client.scan_iter("*:call:*", 1000))
        print(len(calls), states, refusals(tmp_path))
        assert states["done"] > 10 * KILLS
        assert set(states) <= {"done", "void", "lost", "gone"}
        assert_no_limit_was_passed(calls, logs)
        assert_log_is_what_was_noted(calls, logs["team", TEAM])
        assert assert_sums_are_true(client) > 4 * PROCESSES
        assert_nothing_leaks(client)
    assert_usage_is_true(server.url, logs["team", TEAM], tmp_path)
