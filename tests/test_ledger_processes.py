"""The ledger between processes that are killed, forked and restarted; and who is still alive.

Run as a program, this file is one of those processes.
"""

import bisect
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from llm_magic import owner as owners
from llm_magic.ledger import Amount, Claim, Full, Limit, Saved, Used
from llm_magic.owner import Owner, alive, current
from llm_magic.stores.ledger import SqliteLedger

SECOND = 10**9
KILLS = 20
PROCESSES = 8
PATIENCE = 60.0

linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
posix = pytest.mark.skipif(os.name != "posix", reason="needs signals and fork")


# What a process does


def four_limits(window: float) -> list[Limit]:
    """Limits that eight busy processes reach within seconds."""
    scale = 1 if window == 1.0 else 4
    return [
        Limit("kernel", "requests", 20 * scale, window),
        Limit("user", "requests", 90 * scale, window),
        Limit("user", "tokens", 7000 * scale, window),
        Limit("user", "usd", 11_000 * scale, window),
    ]


def jumping(dice: random.Random) -> Callable[[], int]:
    """A clock that is now and then set back, by up to a year."""
    steps = [0, 0, 0, SECOND // 2, 5 * SECOND, 3600 * SECOND, 365 * 86400 * SECOND]
    return lambda: time.time_ns() - dice.choice(steps)


def call_often(
    ledger: SqliteLedger,
    name: str,
    limits: list[Limit],
    dice: random.Random,
    stopped: Callable[[], bool],
    seen: Counter[str],
) -> None:
    """Calls until it is stopped; counts how often it was held, refused, and so on."""
    for number in itertools.count():
        if stopped():
            return
        worst = Amount(1, dice.randint(1, 200), dice.randint(1, 300))
        key = dice.choice([None, f"key {dice.randrange(30)}"])
        id_ = f"{name} {number}"
        verdict = ledger.hold(Claim(id_, worst, key), limits)
        seen["full" if isinstance(verdict, Full) else verdict] += 1
        if verdict != "held":
            time.sleep(dice.uniform(0, 0.004))
            continue
        time.sleep(dice.choice([0, 0, 0.002]))
        if dice.random() < 0.1:
            ledger.void(id_)
            continue
        ledger.sent(id_)
        time.sleep(dice.choice([0, 0, 0.004]))
        part = dice.choice([0, 1, 2, 2])
        used = Amount(1, worst.tokens * part // 2, worst.nanos * part // 2)
        ledger.settle(id_, Used(used, model="m"))
        if dice.random() < 0.3:
            ledger.saved(Saved("m", "", 1, 1))


def call_in_batches(
    ledger: SqliteLedger,
    name: str,
    limits: list[Limit],
    dice: random.Random,
    stopped: Callable[[], bool],
    seen: Counter[str],
) -> None:
    """The same as a table's rows do it: held as sent, and settled, many at a time."""
    for number in itertools.count():
        if stopped():
            return
        claims = [
            Claim(
                f"{name} {number} {row}",
                Amount(1, dice.randint(1, 200), dice.randint(1, 300)),
                dice.choice([None, f"key {dice.randrange(30)}"]),
                sent=True,
            )
            for row in range(dice.randint(1, 12))
        ]
        verdicts = ledger.hold_many(claims, limits)
        seen.update("full" if isinstance(each, Full) else each for each in verdicts)
        time.sleep(dice.choice([0, 0.002, 0.004]))
        uses: list[tuple[str, Used | None]] = []
        for claim, verdict in zip(claims, verdicts, strict=True):
            if verdict == "held":
                part = dice.choice([0, 1, 2, 2])
                worst = claim.worst
                used = Amount(1, worst.tokens * part // 2, worst.nanos * part // 2)
                uses.append((claim.id, None if dice.random() < 0.1 else Used(used, model="m")))
        dice.shuffle(uses)
        middle = dice.randint(0, len(uses))
        ledger.settle_many(uses[:middle])
        ledger.settle_many(uses[middle:])
        if not uses:
            time.sleep(dice.uniform(0, 0.004))


def work(path: Path, kernel: str, seed: int, window: str, clock: str, how: str) -> None:
    """One process of a crowd; when it is stopped it leaves a note of how it went."""
    dice = random.Random(seed)
    ledger = SqliteLedger(
        path,
        kernel=kernel,
        user="ada",
        clock=jumping(dice) if clock == "jumps" else time.time_ns,
        # Longer than the default: on a busy machine eight of them may wait long for two cores.
        busy_timeout=PATIENCE,
    )
    stop, full = path.with_name("stop"), path.with_name("full")
    name = f"{kernel} {os.getpid()}"
    seen: Counter[str] = Counter()

    def stopped() -> bool:
        if seen["full"] and not full.exists():
            full.touch()
        return stop.exists()

    # In a mixed crowd every other process asks for a table.
    alone = how == "one by one" or (how == "mixed" and seed % 2)
    call = call_often if alone else call_in_batches
    call(ledger, name, four_limits(float(window)), dice, stopped, seen)
    ledger.close()
    path.with_name(f"seen {name}").write_text(json.dumps(seen))


def crowd(path: Path, window: str, clock: str, how: str, seed: str) -> None:
    """Eight processes that call; one after the other is killed and replaced.

    They are forked here, where nothing else runs, since starting Python 28 times takes longer
    than all that they do.
    """
    dice = random.Random(seed)
    kernels: dict[int, str] = {}

    def start(kernel: str) -> None:
        number = dice.randrange(2**32)
        child = os.fork()
        if child:
            kernels[child] = kernel
            return
        failed = 1
        try:
            work(path, kernel, number, window, clock, how)
            failed = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(failed)

    for number in range(PROCESSES):
        start(f"k{number}")
    try:
        for _ in range(KILLS):
            time.sleep(dice.uniform(0, 0.12))
            victim = dice.choice(sorted(kernels))
            os.kill(victim, signal.SIGKILL)
            kernel = kernels.pop(victim)
            assert os.waitpid(victim, 0)[1] == signal.SIGKILL, "it had ended by itself"
            start(kernel)
        wait_until_used(path, float(window))
        path.with_name("stop").touch()
        for each in list(kernels):
            assert os.waitpid(each, 0)[1] == 0, kernels.pop(each)
            del kernels[each]
    finally:
        for each in kernels:
            os.kill(each, signal.SIGKILL)
            os.waitpid(each, 0)


def wait_until_used(path: Path, window: float) -> None:
    """Waits until some limit was in the way, and short windows have slid."""
    until = time.monotonic() + PATIENCE
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as db:
        while time.monotonic() < until:
            span = db.execute("SELECT max(t) - min(t) FROM calls").fetchone()[0] or 0
            if path.with_name("full").exists() and (window > 2 or span > 2 * window * SECOND):
                return
            time.sleep(0.02)
    raise AssertionError("nothing was used up")


def fork(path: Path) -> None:
    """A parent with a ledger, and a child that uses it on and outlives the parent's closing."""
    ledger = SqliteLedger(path, kernel="k", user="ada", busy_timeout=PATIENCE)
    memory = SqliteLedger(None, kernel="k", user="ada")
    for each in (ledger, memory):
        each.hold(Claim("parent", Amount(1)), [])
        each.saved(Saved("m", "", 1, 1))
    to_child, to_parent = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        ledger.hold(Claim("child before", Amount(1), key="key"), [])
        os.write(to_parent[1], b"x")
        os.read(to_child[0], 1)
        ledger.hold(Claim("child after", Amount(1)), [])
        memory.hold(Claim("child", Amount(1)), [])
        ledger.close()
        os._exit(0)
    os.read(to_parent[0], 1)
    assert ledger.flying("key")
    ledger.hold(Claim("parent after", Amount(1)), [])
    ledger.close()
    os.write(to_child[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert not ledger.flying("key")
    assert memory.standing([Limit("user", "requests", 9, None)])[0][1] == 1
    print(json.dumps([os.getpid(), child]))


if __name__ == "__main__":
    {"crowd": crowd, "fork": fork}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    sys.exit()


def run_myself(*arguments: str | Path) -> str:
    """Runs this file as a program; returns what it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# What must be true afterwards


def rows(path: Path) -> list[tuple]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(
            "SELECT t, kernel, state, requests, tokens, nanos FROM calls ORDER BY n"
        ).fetchall()


def most_in_a_window(found: list[tuple[int, int]], length: int) -> int:
    """The most that (t, amount) come to in any window; the greatest ones end with a row."""
    times = [t for t, _ in found]
    before = [0, *itertools.accumulate(amount for _, amount in found)]
    sums = (
        before[bisect.bisect_right(times, t)] - before[bisect.bisect_right(times, t - length)]
        for t in times
    )
    # On a busy machine one of eight processes may find no room for a single call.
    return max(sums, default=0)


def assert_kept(path: Path, limits: list[Limit], kernels: list[str]) -> None:
    """No window of any limit was ever too full, by the rows alone; some was full."""
    found = rows(path)
    times = [row[0] for row in found]
    assert times == sorted(times)
    shares = []
    for limit in limits:
        column = {"requests": 3, "tokens": 4, "usd": 5}[limit.metric]
        for kernel in kernels if limit.scope == "kernel" else [None]:
            counted = [(row[0], row[column]) for row in found if kernel in (None, row[1])]
            most = most_in_a_window(counted, int((limit.window or 0) * SECOND))
            assert most <= limit.cap, limit
            shares.append(most / limit.cap)
    assert max(shares) > 0.9, shares


def assert_sums_are_true(path: Path) -> None:
    found = rows(path)
    with closing(sqlite3.connect(path)) as db:
        sums = db.execute("SELECT * FROM sums").fetchall()
    assert sums
    for scope, name, length, floor, *amounts in sums:
        counted = [
            row[3:] for row in found if row[0] > floor and (scope == "user" or row[1] == name)
        ]
        assert amounts == [sum(column) for column in zip(*counted, strict=True)] or (
            amounts == [0, 0, 0] and not counted
        ), (scope, name, length)


@posix
@pytest.mark.parametrize(
    ("window", "clock", "how"),
    [
        ("3600", "steady", "one by one"),
        ("1", "steady", "one by one"),
        ("1", "jumps", "one by one"),
        ("1", "steady", "batches"),
        ("3600", "steady", "mixed"),
        ("1", "jumps", "mixed"),
    ],
)
def test_no_limit_is_passed_by_eight_processes_that_are_killed(tmp_path, window, clock, how):
    path = tmp_path / "ledger.db"
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    run_myself("crowd", path, window, clock, how, str(seed))
    seen: Counter[str] = Counter()
    for note in tmp_path.glob("seen *"):
        seen.update(json.loads(note.read_text()))
    after = SqliteLedger(path, kernel="after", user="ada", busy_timeout=PATIENCE)
    after.usage("model")
    after.close()
    states = Counter(row[2] for row in rows(path))
    print(states, seen)
    assert seen["full"] > 0
    assert states["done"] > KILLS
    assert set(states) <= {"done", "void", "lost"}
    # Of each killed process no more than it had asked for at once.
    assert states["lost"] <= KILLS * (1 if how == "one by one" else 12)
    assert_kept(path, four_limits(float(window)), [f"k{number}" for number in range(PROCESSES)])
    assert_sums_are_true(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("jumps", [False, True])
def test_no_limit_is_passed_by_eight_threads_on_one_ledger(tmp_path, jumps):
    path = tmp_path / "ledger.db"
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    clock = jumping(random.Random(seed)) if jumps else time.time_ns
    ledger = SqliteLedger(path, kernel="k0", user="ada", clock=clock, busy_timeout=PATIENCE)
    limits = four_limits(1.0)
    stop = threading.Event()
    seen: list[Counter[str]] = [Counter() for _ in range(8)]

    def run(number: int) -> None:
        dice = random.Random(f"{seed} {number}")
        call_often(ledger, f"t{number}", limits, dice, stop.is_set, seen[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + PATIENCE
    # More than two windows' worth, so that they have slid.
    while ledger.usage("model") == [] or ledger.usage("model")[0].requests <= 2 * limits[0].cap:
        assert time.monotonic() < until
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    ledger.close()
    assert all(each["held"] for each in seen)
    total = sum(seen, Counter())
    states = Counter(row[2] for row in rows(path))
    assert states["done"] + states["void"] == total["held"]
    assert total["full"] > 0
    assert_kept(path, limits, ["k0"])
    assert_sums_are_true(path)


@posix
def test_a_forked_child_writes_as_itself_and_outlives_its_parents_closing(tmp_path):
    path = tmp_path / "ledger.db"
    parent, child = json.loads(run_myself("fork", path))
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT id, owner FROM calls ORDER BY n").fetchall()
        assert db.execute("SELECT hits FROM hits").fetchall() == [(1,)]
    assert [(id_, Owner.of(text).pid) for id_, text in found] == [
        ("parent", parent),
        ("child before", child),
        ("parent after", parent),
        ("child after", child),
    ]


@posix
def test_a_killed_processs_key_is_free_at_once(tmp_path):
    path = tmp_path / "ledger.db"
    code = f"""
import pathlib, sys
from llm_magic.ledger import Amount, Claim
from llm_magic.stores.ledger import SqliteLedger
ledger = SqliteLedger(pathlib.Path({str(path)!r}), kernel="k", user="ada", busy_timeout=60)
print(ledger.hold(Claim("a", Amount(1, 70), key="key"), []), flush=True)
ledger.sent("a")
print("sent", flush=True)
sys.stdin.read()
"""
    ledger = SqliteLedger(path, kernel="me", user="ada", busy_timeout=PATIENCE)
    limit = Limit("user", "tokens", 100, 60.0)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            assert other.stdout.readline() == "sent\n"
            assert ledger.flying("key")
            assert ledger.hold(Claim("b", Amount(1, 1), key="key"), []) == "flying"
        finally:
            other.kill()
        wait_for_end(other.pid)
        # Nobody has asked for its end yet: it is a zombie.
        assert not ledger.flying("key")
        refused = ledger.hold(Claim("b", Amount(1, 31), key="key"), [limit])
        assert isinstance(refused, Full)
        assert refused.used == 70
        assert ledger.hold(Claim("b", Amount(1, 30), key="key"), [limit]) == "held"
    ledger.close()


# Who is alive


def wait_for_end(pid: int) -> None:
    until = time.monotonic() + PATIENCE
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        assert time.monotonic() < until
        time.sleep(0.005)


def owner_of(pid: int) -> Owner:
    """The process of this id, as it would name itself."""
    return current()._replace(pid=pid, start=owners._stat(pid)[1])


def sleeper(program: str = sys.executable) -> subprocess.Popen:
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [program, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"up\n"
    return process


def test_this_process_is_alive_and_reads_back_its_own_name():
    assert alive(str(current())) is True
    assert Owner.of(str(current())) == current()
    odd = current()._replace(host="my machine | 1")
    assert Owner.of(str(odd)) == odd


@linux
@pytest.mark.parametrize("name", ["python", "a) Z (b c", "(x", "Z 1 2 3"])
def test_a_process_is_alive_until_it_ends_even_if_nobody_asked_for_it(tmp_path, name):
    program = tmp_path / name
    program.symlink_to(os.path.realpath(sys.executable))
    with sleeper(str(program)) as process:
        owner = str(owner_of(process.pid))
        try:
            assert Path(f"/proc/{process.pid}/comm").read_text() == f"{name}\n"
            assert alive(owner) is True
        finally:
            process.send_signal(signal.SIGKILL)
        wait_for_end(process.pid)
        assert owners._stat(process.pid)[0] == "Z"
        assert alive(owner) is False
    assert alive(owner) is False


@linux
def test_another_process_of_the_same_id_is_not_the_same():
    with sleeper() as process:
        try:
            owner = owner_of(process.pid)
            assert alive(str(owner)) is True
            assert alive(str(owner._replace(start=owner.start - 1))) is False
        finally:
            process.kill()


@linux
def test_what_ran_before_the_machine_started_anew_is_dead():
    assert alive(str(current()._replace(boot="an-earlier-one"))) is False


@linux
@pytest.mark.parametrize(
    "change",
    [
        {"boot": "another", "host": "another"},
        {"namespace": "pid:[1]"},
        {"namespace": "-"},
        {"boot": "-"},
        {"start": 0},
    ],
)
def test_of_what_cannot_be_looked_at_nothing_is_guessed(change):
    gone = current()._replace(pid=2**22 + 1)
    assert alive(str(gone)) is False
    assert alive(str(gone._replace(**change))) is None


@linux
@pytest.mark.parametrize("error", [PermissionError(), ValueError(), IndexError()])
def test_of_a_process_that_may_not_be_read_nothing_is_said(monkeypatch, error):
    def refuse(pid: int) -> tuple[str, int]:
        raise error

    other = str(current()._replace(pid=2**22 + 1))
    monkeypatch.setattr(owners, "_stat", refuse)
    assert alive(other) is None


@pytest.mark.parametrize("text", ["", "a b", "boot ns pid start host", "\x00", "- - 1 2"])
def test_of_a_text_that_names_nobody_nothing_is_said(text):
    assert alive(text) is None


@pytest.mark.parametrize("proc", ["missing", "another namespace's"])
def test_without_a_proc_of_our_own_only_we_ourselves_are_known(monkeypatch, proc):
    def readlink(path: str) -> str:
        if proc == "missing":
            raise FileNotFoundError(path)
        return "1"

    other = str(current()._replace(pid=2**22 + 1))
    monkeypatch.setattr(os, "readlink", readlink)
    owners._owner.cache_clear()
    try:
        assert current().boot == "-"
        assert current().start == 0
        assert alive(str(current())) is True
        assert alive(other) is None
    finally:
        monkeypatch.undo()
        owners._owner.cache_clear()
