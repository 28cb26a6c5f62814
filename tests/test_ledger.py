"""The ledger in a file: its faults, and all of it against a model that adds up anew.

The rules that every ledger keeps are in ``test_every_ledger``.
"""

import errno
import gc
import os
import random
import re
import shutil
import sqlite3
import stat
import tempfile
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llm_magic import owner as owners
from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Claim, Full, Ledger, Limit, Line, Saved, Used
from llm_magic.owner import Owner
from llm_magic.stores import ledger as ledgers
from llm_magic.stores import ledger_file
from llm_magic.stores.ledger import SqliteLedger
from llm_magic.stores.ledger_pending import HITS_IN_MEMORY
from llm_magic.stores.ledger_sums import seconds

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
YEAR = 365 * DAY
START = 1_700_000_000 * SECOND

ONE = Amount(requests=1)
PATIENCE = 60.0
CALM = Limit("user", "requests", 10**6, 3600.0)


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "ledger"
    folder.mkdir(mode=0o700)
    return folder / "ledger.db"


@pytest.fixture
def make(path: Path, clock: Clock):
    """Makes ledgers on the one file, and closes them afterwards."""
    made = []

    def ledger(kernel: str = "k1", where: Path | None = path, **more) -> SqliteLedger:
        more = {"user": "ada", "clock": clock, "busy_timeout": 0.05, **more}
        made.append(SqliteLedger(where, kernel=kernel, **more))
        return made[-1]

    yield ledger
    for each in made:
        with suppress(StoreError):
            each.close()


@pytest.fixture
def ledger(make) -> SqliteLedger:
    return make()


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool | None]:
    """Says of an owner's text whether it lives; who is not in it does."""
    told: dict[str, bool | None] = {}
    monkeypatch.setattr(owners, "alive", lambda text: told.get(text, True))
    monkeypatch.setattr(ledgers, "LOOK_EVERY", float("inf"))
    return told


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """The connections that ledgers open from now on."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remember(*args, **more):
        opened.append(connect(*args, **more))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remember)
    return opened


def process(number: int) -> Owner:
    return Owner("boot", "pid:[1]", number, 7, "somewhere")


def used(requests: int = 1, tokens: int = 0, spent: int = 0, **more) -> Used:
    return Used(Amount(requests, tokens, spent), **more)


def rows(path: Path) -> list[tuple]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(
            "SELECT id, state, requests, tokens, nanos FROM calls ORDER BY n"
        ).fetchall()


def states(path: Path) -> dict[str, str]:
    return {row[0]: row[1] for row in rows(path)}


def counted(ledger: SqliteLedger, *limits: Limit) -> list[int]:
    return [amount for _, amount in ledger.standing(limits)]


def assert_sums_are_true(path: Path) -> int:
    """Every running sum is what its rows come to; returns how many there are."""
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT * FROM sums").fetchall()
        for scope, name, length, floor, *amounts in found:
            anew = [0, 0, 0]
            for kernel, user, t, *row in db.execute(
                "SELECT kernel, user, t, requests, tokens, nanos FROM calls"
            ):
                if {"kernel": kernel, "user": user}[scope] == name and t > floor:
                    anew = [one + other for one, other in zip(anew, row, strict=True)]
            assert amounts == anew, (scope, name, length)
    return len(found)


# Limits


def test_a_clock_set_back_after_a_look_ahead_counts_what_had_left(ledger, clock):
    limit, other = Limit("user", "requests", 2, 60.0), Limit("user", "tokens", 0, 60.0)
    for name in "ab":
        assert ledger.hold(Claim(name, ONE), [limit]) == "held"
    clock.now += HOUR
    assert isinstance(ledger.hold(Claim("c", Amount(1, 1)), [limit, other]), Full)
    clock.now -= HOUR
    refused = ledger.hold(Claim("c", ONE), [limit])
    assert isinstance(refused, Full)
    assert refused.used == 2


# When it fits again


def test_a_refusal_after_a_look_for_the_dead_leaves_nothing_open(make, dead):
    """A statement that is not read to its end would keep the file from being written."""
    dead[str(process(7))] = False
    limit = Limit("user", "requests", 300, 3600.0)
    ledger, other = make("k1"), make("k2")
    gone = make("k3", owner=process(7))
    ledger.hold_many([Claim(str(number), ONE) for number in range(299)], [limit])
    assert gone.hold(Claim("gone", ONE), [limit]) == "held"
    gc.disable()
    try:
        for id_ in ("last", "no more"):
            verdict = ledger.hold(Claim(id_, Amount(2)), [limit])
            assert isinstance(verdict, Full)
            assert other.hold(Claim(f"of another, {id_}", Amount()), []) == "held"
        assert ledger.hold(Claim("one", ONE), [limit]) == "held"
    finally:
        gc.enable()


# The way of a call


def test_unknown_ids_are_no_error_and_a_settled_one_is_booked(ledger, path):
    limit = Limit("user", "tokens", 100, 60.0)
    counted(ledger, limit)
    ledger.void("never")
    ledger.sent("never")
    assert rows(path) == []
    ledger.hold(Claim("a", Amount(1, 1)), [limit])
    ledger.settle("lost by a reset", used(tokens=7))
    assert counted(ledger, limit) == [8]
    assert_sums_are_true(path)


# Claims


def test_whether_a_key_flies_is_read_while_another_writes(ledger, path):
    ledger.hold(Claim("a", ONE, key="key"), [])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert ledger.flying("key")
        assert not ledger.flying("no key")


# Dead processes


# Forgiveness and the person's own limits


@pytest.mark.parametrize("scope", ["team", "run"])
def test_what_a_file_cannot_count_is_refused_and_nothing_is_held(make, scope):
    ledger = make()
    others = Limit(scope, "requests", 1, 60.0)
    for call in (
        lambda: ledger.hold(Claim("a", ONE), [CALM, others]),
        lambda: ledger.hold_many([Claim("a", ONE)], [others]),
        lambda: ledger.standing([others]),
        lambda: ledger.limit_shared(scope, "requests", 1, 60.0),
        lambda: ledger.forgive(scope),
    ):
        with pytest.raises(StoreError, match=f"limit of a {scope}") as caught:
            call()
        assert "LLMMagic.store" in caught.value.fix
    assert ledger.standing([CALM]) == [(CALM, 0)]


# Usage


def test_free_answers_wait_in_memory_for_the_next_write(ledger, path):
    hit = Saved("m", "In [1]", 10, 3)
    ledger.saved(hit)
    assert not path.exists()
    for _ in range(HITS_IN_MEMORY - 2):
        ledger.saved(hit)
    assert not path.exists()
    ledger.saved(hit)
    assert hits(path) == (1, 64, 640, 192)
    ledger.saved(hit)
    assert hits(path)[1] == 64
    ledger.hold(Claim("a", ONE), [])
    assert hits(path)[1] == 65
    ledger.saved(hit)
    assert ledger.usage("model")[0].hits == 66
    ledger.saved(hit)
    ledger.close()
    assert hits(path) == (1, 67, 670, 201)


def hits(path: Path) -> tuple[int, ...]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(
            "SELECT count(*), sum(hits), sum(tokens), sum(nanos) FROM hits"
        ).fetchone()


def test_many_free_answers_make_one_row_a_day_model_and_cell(ledger, path, clock):
    for number in range(1000):
        ledger.saved(Saved(f"m{number % 2}", "In [1]", 1, 1))
    clock.now += DAY
    ledger.saved(Saved("m0", "In [1]", 1, 1))
    ledger.close()
    assert hits(path) == (3, 1001, 1001, 1001)


def test_rows_older_than_400_days_go_at_the_next_opening(make, clock, path):
    first = make()
    always, year = Limit("user", "tokens", 10**6, None), Limit("user", "tokens", 10**6, 3600.0)
    first.hold(Claim("old", Amount(1, 5)), [always, year])
    first.settle("old", used(tokens=5))
    first.saved(Saved("m", "", 1, 1))
    first.hold(Claim("old and open", Amount(1, 7)), [])
    clock.now += 399 * DAY
    first.hold(Claim("new", Amount(1, 1)), [year])
    first.close()
    clock.now += 2 * DAY
    second = make()
    assert second.hold(Claim("b", Amount(1, 1)), [always, year]) == "held"
    assert states(path) == {"old and open": "held", "new": "held", "b": "held"}
    assert counted(second, always, year) == [14, 1]
    assert second.usage("day") == []


def test_a_gone_kernels_sums_go_and_an_idle_ones_forgiveness_stays(make, clock, path):
    idle, gone = make("idle"), make("gone")
    limits = [Limit("kernel", "requests", 5, None), Limit("kernel", "requests", 5, 60.0)]
    for name, each in (("i", idle), ("g", gone)):
        each.hold(Claim(name, ONE), limits)
        each.settle(name, used())
    idle.forgive("kernel")
    idle.standing(limits)
    idle.close()
    clock.now += 31 * DAY
    make("new").hold(Claim("n", ONE), limits)
    with closing(sqlite3.connect(path)) as db:
        assert {name for (name,) in db.execute("SELECT name FROM sums")} == {"new"}
    assert counted(idle, *limits) == [0, 0]
    assert counted(gone, *limits) == [1, 0]


# Faults


def test_making_and_closing_a_ledger_touches_no_file(tmp_path):
    SqliteLedger(tmp_path / "no" / "ledger.db", kernel="k", user="u").close()
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_for_its_owner_alone(ledger, path):
    ledger.hold(Claim("a", ONE), [])
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
    assert len(list(path.parent.iterdir())) == 3
    ledger.close()
    path.chmod(0o644)
    ledger.hold(Claim("b", ONE), [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def refused(call) -> StoreError:
    """The error that a call ends with: one line, the file, a way on."""
    with pytest.raises(StoreError) as caught:
        call()
    message, _, fix = str(caught.value).partition("\n")
    assert message.startswith("The ledger /")
    assert fix == caught.value.fix
    assert "%" in fix
    return caught.value


def test_a_locked_file_is_waited_for_and_then_told(make, path):
    told = []
    ledger = make(trouble=lambda message, fix: told.append((message, fix)))
    ledger.hold(Claim("a", Amount(1, 50)), [])
    ledger.sent("a")
    limit = Limit("user", "tokens", 100, 60.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for call in (
            lambda: ledger.hold(Claim("b", ONE), []),
            lambda: ledger.sent("a"),
            ledger.renew,
            lambda: ledger.forgive("user"),
            lambda: ledger.limit_shared("user", "tokens", 1, None),
            lambda: ledger.usage("model"),
        ):
            error = refused(call)
            assert "is locked by another process" in str(error)
            assert "quota_strict = False" in error.fix
        ledger.settle("a", used(tokens=20))
        ledger.void("c")
        assert [message for message, _ in told] == [error.args[0]] * 2
        assert "quota_strict" in told[0][1]
        other.execute("ROLLBACK")
    assert counted(ledger, limit) == [20], "what is late is made up for before it is told"
    assert ledger.hold(Claim("b", Amount(1, 80)), [limit]) == "held"
    assert states(path) == {"a": "done", "b": "held"}
    assert counted(ledger, limit) == [100]
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")


def test_what_could_not_be_written_is_written_on_closing(make, path):
    told = []
    ledger = make(trouble=lambda message, fix: told.append(message))
    ledger.hold(Claim("a", Amount(1, 50)), [])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.settle("a", used(tokens=20))
        for _ in range(2 * HITS_IN_MEMORY):
            ledger.saved(Saved("m", "", 1, 1))
        assert len(told) == 3, "one of 64 free answers waits for the disk"
        with pytest.raises(StoreError, match="locked"):
            ledger.close()
    ledger.close()
    assert rows(path) == [("a", "done", 1, 20, 0)]
    assert hits(path)[1] == 2 * HITS_IN_MEMORY


def test_a_late_void_does_not_free_the_hold_that_came_after_it(ledger, path):
    limit = Limit("user", "requests", 1, 60.0)
    ledger.hold(Claim("a", ONE), [limit])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.void("a")
    assert ledger.hold(Claim("a", ONE), [limit]) == "held"
    assert ledger.hold(Claim("b", ONE), []) == "held"
    assert states(path) == {"a": "held", "b": "held"}


def test_an_interrupt_leaves_no_lock_and_loses_no_booking(ledger, monkeypatch, path):
    ledger.hold(Claim("a", Amount(1, 50)), [])
    ledger.saved(Saved("m", "", 1, 1))

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledgers.rows, "settle", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ledger.settle("a", used(tokens=20))
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
    assert ledger.hold(Claim("b", ONE), []) == "held"
    assert rows(path)[0] == ("a", "done", 1, 20, 0)
    assert hits(path) == (1, 1, 1, 1)


def test_a_thread_waits_no_longer_for_another_than_for_a_process(ledger):
    ledger.hold(Claim("a", ONE), [])
    inside, leave = threading.Event(), threading.Event()

    def slow(db):
        inside.set()
        assert leave.wait(PATIENCE)

    other = threading.Thread(target=ledger._write, args=(slow,))
    other.start()
    assert inside.wait(PATIENCE)
    try:
        assert "is locked" in str(refused(lambda: ledger.hold(Claim("b", ONE), [])))
        ledger_file._before_fork()
        ledger_file._after_fork()
    finally:
        leave.set()
        other.join()
    assert ledger.hold(Claim("b", ONE), []) == "held"


def test_a_file_is_closed_while_its_process_forks(ledger, path, connections):
    ledger.hold(Claim("a", ONE), [])
    ledger_file._before_fork()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connections[0].execute("SELECT 1")
    assert "is locked" in str(refused(lambda: ledger.hold(Claim("b", ONE), [])))
    ledger_file._after_fork()
    assert ledger.hold(Claim("b", ONE), []) == "held"
    assert states(path) == {"a": "held", "b": "held"}


def test_a_transaction_that_cannot_be_undone_ends_with_its_connection(make, monkeypatch, path):
    stuck = False

    class Sticky(sqlite3.Connection):
        def execute(self, sql, *values):
            if stuck and sql in ("ROLLBACK", "COMMIT"):
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: connect(*args, **more, factory=Sticky)
    )
    ledger = make()
    ledger.hold(Claim("a", ONE), [])
    stuck = True
    refused(lambda: ledger.hold(Claim("b", ONE), []))
    with closing(connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
    stuck = False
    assert ledger.hold(Claim("c", ONE), []) == "held"
    assert states(path) == {"a": "held", "c": "held"}


@pytest.mark.parametrize("opened", [True, False])
def test_a_read_only_file_is_told(make, path, monkeypatch, opened):
    first = make()
    first.hold(Claim("a", ONE), [])
    if not opened:
        first.close()
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **more: connect(f"file:{path}?mode=ro", uri=True, **more)
    )
    error = refused(lambda: make("k2").hold(Claim("b", ONE), []))
    assert "is read-only" in str(error)
    assert "ledger_dir" in error.fix


def test_a_full_disk_is_told_and_room_again_is_enough(ledger, connections, path):
    ledger.hold(Claim("a", ONE), [])
    (db,) = connections
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")

    def fill():
        for number in range(10_000):
            ledger.hold(Claim(f"{number:032}", ONE), [])

    error = refused(fill)
    assert "the disk is full" in str(error)
    assert "ledger_dir" in error.fix
    before = rows(path)
    assert 1 < len(before) < 10_000
    db.execute("PRAGMA max_page_count = 100000")
    assert ledger.hold(Claim("b", ONE), []) == "held"
    assert len(rows(path)) == len(before) + 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_takes_no_file_is_told(ledger, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    words = {
        errno.ENOSPC: "cannot be written: the disk is full.",
        errno.EROFS: "is read-only.",
        errno.EACCES: "cannot be opened: Permission denied.",
    }
    error = refused(lambda: ledger.hold(Claim("a", ONE), []))
    assert error.args[0].endswith(words[number])
    assert "ledger_dir" in error.fix


def test_a_folder_that_is_a_file_is_told(make, tmp_path):
    (tmp_path / "file").write_text("")
    error = refused(lambda: make(where=tmp_path / "file" / "ledger.db").hold(Claim("a", ONE), []))
    assert "cannot be opened" in str(error)


def noise(path: Path) -> None:
    path.write_bytes(random.Random(7).randbytes(20_000))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alien(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE mine (a)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


def booby_trapped(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TRIGGER t AFTER INSERT ON calls BEGIN DELETE FROM calls; END")


@pytest.mark.parametrize("harm", [noise, cut, alien, newer, booby_trapped])
def test_a_file_that_is_no_ledger_is_refused_until_it_is_set_aside(make, path, harm):
    first = make()
    for number in range(50):
        first.hold(Claim(str(number), ONE), [])
    first.close()
    harm(path)
    harmed = path.read_bytes()
    ledger = make()
    for call in (lambda: ledger.hold(Claim("a", ONE), []), lambda: ledger.flying("key")):
        error = refused(call)
        assert "is damaged" in str(error)
        assert error.fix.endswith("%llm_quota --reset")
    ledger.settle("5", used(tokens=3))
    assert path.read_bytes() == harmed
    ledger.reset_file()
    assert ledger.hold(Claim("a", ONE), []) == "held"
    assert states(path) == {"5": "done", "a": "held"}
    (aside,) = [
        each
        for each in path.parent.iterdir()
        if each != path and each.suffix not in (".db-wal", ".db-shm")
    ]
    assert re.fullmatch(r"ledger\.db\.\d{8}-\d{6}-\d{9}", aside.name)
    assert aside.read_bytes() == harmed


def test_a_file_that_another_process_makes_meanwhile_is_not_taken_for_a_strange_one(
    make, monkeypatch
):
    other = make("other")

    class Slow(sqlite3.Connection):
        """Lets another process in while the file is looked at."""

        def execute(self, sql, *values):
            if "sqlite_master" in sql:
                monkeypatch.setattr(sqlite3, "connect", connect)
                with suppress(StoreError):
                    other.hold(Claim("other", ONE), [])
            return super().execute(sql, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: connect(*args, **more, factory=Slow)
    )
    ledger = make("k1", busy_timeout=PATIENCE)
    assert ledger.hold(Claim("a", ONE), []) == "held"
    assert other.hold(Claim("b", ONE), []) == "held"


@pytest.mark.parametrize("value", ["CAST(x'ff' AS TEXT)", "x'00'", "'soon'"])
def test_a_value_that_is_none_of_ours_is_damage(ledger, path, value):
    ledger.hold(Claim("a", ONE, key="key"), [CALM])
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"UPDATE sums SET requests = {value}, floor = {value}")
        db.commit()
    error = refused(lambda: ledger.hold(Claim("b", ONE), [CALM]))
    assert "is damaged" in str(error)
    assert error.fix.endswith("%llm_quota --reset")
    assert ledger.hold(Claim("b", ONE), []) == "held", "no lock stays"


def test_setting_aside_what_is_not_there_starts_a_ledger(ledger):
    ledger.reset_file()
    assert ledger.hold(Claim("a", ONE), []) == "held"


def troubles(ledger: SqliteLedger, limits: list[Limit]) -> int:
    """Uses a ledger in every way; returns how many of them end in a StoreError."""
    count = 0
    for call in (
        lambda: ledger.flying("key 3"),
        lambda: ledger.hold(Claim("new", ONE, key="key 3"), limits),
        lambda: ledger.settle("id 3", used(tokens=1)),
        lambda: ledger.standing(limits),
        lambda: ledger.usage("cell"),
        ledger.close,
    ):
        try:
            call()
        except StoreError:
            count += 1
    return count


def test_flipped_bytes_end_in_an_answer_or_in_a_store_error(make, path, tmp_path):
    limits = [Limit("user", "tokens", 10**9, 3600.0), Limit("kernel", "usd", 10**9, None)]
    first = make()
    first.limit_shared("user", "requests", 10**6, 60.0)
    for number in range(40):
        first.hold(Claim(f"id {number}", Amount(1, 10, 10), key=f"key {number}"), limits)
        if number % 3:
            first.settle(f"id {number}", used(tokens=number, spent=5, model="m"))
        first.saved(Saved("m", "c", 1, 1))
    first.forgive("kernel")
    first.close()
    whole = path.read_bytes()
    dice = random.Random(3)
    errors = 0
    for round_ in range(150):
        harmed = bytearray(whole)
        for _ in range(1 + round_ % 5):
            harmed[dice.randrange(100, len(whole))] ^= 1 << dice.randrange(8)
        place = tmp_path / f"{round_}.db"
        place.write_bytes(harmed)
        errors += troubles(make(where=place), limits)
    assert errors > 50


@pytest.mark.parametrize("folder_too", [True, False])
def test_a_file_removed_while_open_is_made_anew(ledger, make, path, folder_too):
    ledger.hold(Claim("a", ONE), [])
    if folder_too:
        shutil.rmtree(path.parent)
    else:
        for each in path.parent.iterdir():
            each.unlink()
    other = make("k2")
    assert other.hold(Claim("b", ONE), []) == "held"
    assert ledger.hold(Claim("c", ONE), []) == "held"
    assert other.hold(Claim("d", ONE), []) == "held"
    assert list(states(path)) == ["b", "c", "d"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_another_set_aside_is_left(ledger, make, path):
    ledger.hold(Claim("a", ONE), [])
    make("k2").reset_file()
    assert ledger.hold(Claim("b", ONE), []) == "held"
    assert list(states(path)) == ["b"]


def test_a_ledger_in_memory_keeps_the_same_rules(make):
    ledger = make(where=None)
    limit = Limit("user", "requests", 1, 60.0)
    assert ledger.hold(Claim("a", ONE, key="key"), [limit]) == "held"
    assert isinstance(ledger.hold(Claim("b", ONE), [limit]), Full)
    assert ledger.flying("key")
    ledger.settle("a", used(model="m"))
    ledger.saved(Saved("m", "", 1, 1))
    assert ledger.usage("model") == [Line("m", requests=1, hits=1, saved_tokens=1, saved_nanos=1)]
    ledger.reset_file()
    assert counted(ledger, limit) == [0]


# Cost


def test_a_hold_costs_the_same_with_many_rows_in_the_window(make, connections, path, clock):
    limits = [
        Limit("kernel", "requests", 10**9, 86400.0),
        Limit("user", "tokens", 10**9, 86400.0),
        Limit("user", "usd", 10**9, None),
    ]
    ledger = make()

    def steps(call) -> int:
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        connections[0].set_progress_handler(tick, 1)
        call()
        connections[0].set_progress_handler(None, 1)
        return count

    def cost(number: int) -> tuple[int, int]:
        clock.now += 1000
        hold = steps(lambda: ledger.hold(Claim(f"x{number}", Amount(1, 5, 5), "key"), limits))
        ledger.sent(f"x{number}")
        return hold, steps(lambda: ledger.settle(f"x{number}", used(tokens=1)))

    def fill(count: int) -> None:
        with closing(sqlite3.connect(path)) as db:
            first = db.execute("SELECT max(n) FROM calls").fetchone()[0]
            db.executemany(
                """INSERT INTO calls SELECT ?, 'fill' || ?, t, user, kernel, 'done', key, owner,
                lease, 1, 1, 1, '', '', 0, 0, 0, 1 FROM calls WHERE n = ?""",
                [(n, n, first) for n in range(first + 1, first + 1 + count)],
            )
            db.execute("DELETE FROM sums")
            db.commit()
        ledger.hold(Claim(f"sums after {count}", ONE), limits)

    ledger.hold(Claim("first", ONE), limits)
    fill(100)
    few = [cost(number) for number in range(3)][-1]
    fill(20_000)
    many = [cost(number) for number in range(3, 6)][-1]
    assert counted(ledger, limits[0]) == [20_109]
    assert 100 < few[0] < 5000
    for before, after in zip(few, many, strict=True):
        assert before / 2 <= after <= 2 * before


# Against a model that adds everything up anew


@dataclass
class Call:
    t: int
    kernel: str
    state: str
    amount: Amount
    owner: int
    key: str | None


@dataclass
class Model:
    """What a ledger says, without sums, indices or transactions."""

    clock: int = START
    calls: dict[str, Call] = field(default_factory=dict)
    pardons: dict[str, int] = field(default_factory=dict)
    kept: dict[str, set[str]] = field(default_factory=dict)
    person: dict[tuple[str, float | None], int] = field(default_factory=dict)

    def now(self) -> int:
        times = [call.t for call in self.calls.values()]
        return max([self.clock, *times, *(t + 1 for t in self.pardons.values())])

    def limits(self, limits: list[Limit]) -> list[Limit]:
        own = [Limit("user", name, cap, window) for (name, window), cap in self.person.items()]
        return [*limits, *own]

    def counts(self, limit: Limit, kernel: str, now: int) -> list[tuple[int, int]]:
        name = kernel if limit.scope == "kernel" else "ada"
        start = -1 if limit.window is None else now - int(limit.window * SECOND)
        pardon, kept = self.pardons.get(name, -1), self.kept.get(name, ())
        return [
            (call.t, call.amount.of(limit.metric))
            for id_, call in self.calls.items()
            if (limit.scope == "user" or call.kernel == kernel)
            and call.t > start
            and (call.t > pardon or id_ in kept)
        ]

    def used(self, limit: Limit, kernel: str, now: int) -> int:
        return sum(amount for _, amount in self.counts(limit, kernel, now))

    def hold(self, claim: Claim, limits: list[Limit], kernel: str, owner: int):
        """The verdict; of a refusal (limit, used, retry in nanoseconds) of each failing limit."""
        if claim.id in self.calls and self.calls[claim.id].state != "void":
            return "held"
        for call in self.calls.values():
            if claim.key and call.key == claim.key and call.state in ("held", "sent"):
                return "flying"
        now = self.now()
        failing = []
        for limit in self.limits(limits):
            used_, ask = self.used(limit, kernel, now), claim.worst.of(limit.metric)
            if used_ + ask > limit.cap:
                failing.append((limit, used_, self._fits(limit, kernel, now, ask)))
        if failing:
            return failing
        state = "sent" if claim.sent else "held"
        self.calls[claim.id] = Call(now, kernel, state, claim.worst, owner, claim.key)
        return "held"

    def _fits(self, limit: Limit, kernel: str, now: int, ask: int) -> int | None:
        if limit.window is None or ask > limit.cap:
            return None
        length = int(limit.window * SECOND)
        moments = sorted({t + length for t, _ in self.counts(limit, kernel, now)})
        return next(
            moment for moment in moments if self.used(limit, kernel, moment) + ask <= limit.cap
        )

    def book(self, id_: str, state: str, amount: Amount) -> None:
        if self.calls[id_].state != "done":
            self.calls[id_].state, self.calls[id_].amount = state, amount

    def kill(self, owner: int) -> None:
        for id_, call in self.calls.items():
            if call.owner == owner and call.state == "held":
                self.book(id_, "void", Amount())
            elif call.owner == owner and call.state == "sent":
                call.state = "lost"

    def forgive(self, name: str) -> None:
        self.pardons[name] = self.now()
        self.kept[name] = {
            id_
            for id_, call in self.calls.items()
            if call.state in ("held", "sent") and name in ("ada", call.kernel)
        }


FIXED = [
    Limit("kernel", "requests", 6, 1.0),
    Limit("user", "tokens", 300, 5.0),
    Limit("user", "usd", 1000, None),
]
SOME = [
    Limit("kernel", "tokens", 150, 2.5),
    Limit("kernel", "usd", 700, None),
    Limit("user", "requests", 4, 0.25),
    Limit("user", "requests", 12, 30.0),
]
KERNELS = st.sampled_from(["k1", "k2"])
AMOUNTS = st.builds(Amount, st.integers(0, 2), st.integers(0, 120), st.integers(0, 400))
IDS = st.sampled_from([f"id {number}" for number in range(24)])
BATCHES = st.lists(
    st.builds(
        Claim, IDS, AMOUNTS, st.sampled_from([None, None, "x", "y", "z"]), sent=st.booleans()
    ),
    max_size=8,
)


def at_most(amount: Amount, held: Amount) -> Amount:
    names = ("requests", "tokens", "nanos")
    return Amount(*(min(getattr(amount, name), getattr(held, name)) for name in names))


class Rules(RuleBasedStateMachine):
    """What two kernels do that share a ledger, wherever it is kept, and a model beside it."""

    model: "Model"
    owners: dict[str, int]
    ledgers: dict[str, Ledger]

    def mine(self, kernel: str, id_: str) -> str:
        """The id that a kernel gives a call."""
        return id_

    def compare(self, verdict, claim, limits, kernel):
        worst = claim.worst
        expected = self.model.hold(claim, limits, kernel, self.owners[kernel])
        if isinstance(expected, str):
            assert verdict == expected
            return
        assert isinstance(verdict, Full)
        # In seconds: of two limits that fit again a nanosecond apart either may be named.
        told = [(limit, used, at and seconds(at)) for limit, used, at in expected]
        frees = [at for _, _, at in told]
        assert verdict.retry_at == (None if None in frees else max(frees))
        assert (verdict.limit, verdict.used, verdict.retry_at) in told
        assert verdict.asked == worst.of(verdict.limit.metric)

    @rule(kernel=KERNELS, uses=st.lists(st.tuples(IDS, st.none() | AMOUNTS), max_size=6))
    def settle_many(self, kernel, uses):
        known = [
            (id_, amount and at_most(amount, self.model.calls[id_].amount))
            for id_, amount in ((self.mine(kernel, id_), amount) for id_, amount in uses)
            if id_ in self.model.calls
        ]
        self.ledgers[kernel].settle_many(
            [(id_, None if amount is None else Used(amount)) for id_, amount in known]
        )
        for id_, amount in known:
            self.model.book(id_, "void" if amount is None else "done", amount or Amount())

    @rule(
        kernel=KERNELS,
        metric=st.sampled_from(["requests", "tokens"]),
        cap=st.sampled_from([None, 5, 200]),
        window=st.sampled_from([None, 3.0]),
    )
    def limit_shared(self, kernel, metric, cap, window):
        self.ledgers[kernel].limit_shared("user", metric, cap, window)
        self.model.person.pop((metric, window), None)
        if cap is not None:
            self.model.person[metric, window] = cap

    @rule(kernel=KERNELS, key=st.sampled_from(["x", "y"]))
    def flying(self, kernel, key):
        open_ = [c.key for c in self.model.calls.values() if c.state in ("held", "sent")]
        assert self.ledgers[kernel].flying(key) == (key in open_)

    @rule(kernel=KERNELS, more=st.lists(st.sampled_from(SOME), unique=True))
    def standing(self, kernel, more):
        self.ledgers[kernel].usage("model")
        expected = {
            limit: self.model.used(limit, kernel, self.model.now())
            for limit in self.model.limits([*FIXED, *more])
        }
        assert dict(self.ledgers[kernel].standing([*FIXED, *more])) == expected

    @invariant()
    def no_limit_is_passed(self):
        for kernel in ("k1", "k2"):
            for limit in FIXED:
                assert self.model.used(limit, kernel, self.model.now()) <= limit.cap


class Ledgers(Rules):
    """Two kernels on one file do as the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.dead: set[str] = set()
        self.patch.setattr(owners, "alive", lambda text: text not in self.dead)
        self.patch.setattr(ledgers, "LOOK_EVERY", float("inf"))
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.model = Model()
        self.processes = 0
        self.owners: dict[str, int] = {}
        self.ledgers: dict[str, SqliteLedger] = {}
        for kernel in ("k1", "k2"):
            self.start(kernel)

    def start(self, kernel: str) -> None:
        self.processes += 1
        self.owners[kernel] = self.processes
        self.ledgers[kernel] = SqliteLedger(
            self.folder / "ledger.db",
            kernel=kernel,
            user="ada",
            owner=process(self.processes),
            clock=lambda: self.model.clock,
        )

    def teardown(self) -> None:
        for ledger in self.ledgers.values():
            ledger.close()
        self.patch.undo()
        # SQLite may be taking its own files away at the same time.
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(
        kernel=KERNELS,
        id_=IDS,
        worst=AMOUNTS,
        key=st.sampled_from([None, None, "x", "y"]),
        more=st.lists(st.sampled_from(SOME), unique=True),
    )
    def hold(self, kernel, id_, worst, key, more):
        claim, limits = Claim(id_, worst, key), [*FIXED, *more]
        verdict = self.ledgers[kernel].hold(claim, limits)
        self.compare(verdict, claim, limits, kernel)

    @rule(kernel=KERNELS, claims=BATCHES, more=st.lists(st.sampled_from(SOME), unique=True))
    def hold_many(self, kernel, claims, more):
        limits = [*FIXED, *more]
        verdicts = self.ledgers[kernel].hold_many(claims, limits)
        for verdict, claim in zip(verdicts, claims, strict=True):
            self.compare(verdict, claim, limits, kernel)

    @rule(kernel=KERNELS, id_=IDS)
    def sent(self, kernel, id_):
        call = self.model.calls.get(id_)
        if call is not None and call.state == "void":
            # That its owner died is not always written yet; then it is sent as if it lived.
            self.ledgers[kernel].usage("model")
            with pytest.raises(StoreError):
                self.ledgers[kernel].sent(id_)
            return
        if call is not None and call.state == "held":
            call.state = "sent"
        self.ledgers[kernel].sent(id_)

    @precondition(lambda self: any(call.state != "void" for call in self.model.calls.values()))
    @rule(data=st.data(), kernel=KERNELS)
    def settle(self, data, kernel):
        known = [id_ for id_, call in self.model.calls.items() if call.state != "void"]
        id_ = data.draw(st.sampled_from(known))
        worst = self.model.calls[id_].amount
        part = data.draw(st.sampled_from([0, 1, 2]))
        amount = Amount(worst.requests, worst.tokens * part // 2, worst.nanos * part // 2)
        self.ledgers[kernel].settle(id_, Used(amount))
        self.model.book(id_, "done", amount)

    @rule(kernel=KERNELS, id_=IDS)
    def void(self, kernel, id_):
        self.ledgers[kernel].void(id_)
        if id_ in self.model.calls:
            self.model.book(id_, "void", Amount())

    @rule(nanoseconds=st.sampled_from([1, SECOND // 4, SECOND - 1, SECOND, 5 * SECOND, HOUR]))
    def time_passes(self, nanoseconds):
        self.model.clock += nanoseconds

    @rule(nanoseconds=st.sampled_from([1, SECOND, HOUR]))
    def clock_is_set_back(self, nanoseconds):
        self.model.clock -= nanoseconds

    @rule(kernel=KERNELS, scope=st.sampled_from(["kernel", "user"]))
    def forgive(self, kernel, scope):
        # So that what counts on is what the model takes to be open.
        self.ledgers[kernel].usage("model")
        self.ledgers[kernel].forgive(scope)
        self.model.forgive(kernel if scope == "kernel" else "ada")

    @rule(kernel=KERNELS, new=st.booleans())
    def process_dies(self, kernel, new):
        self.dead.add(str(process(self.owners[kernel])))
        self.model.kill(self.owners[kernel])
        self.start(kernel)

    @rule(kernel=KERNELS)
    def close(self, kernel):
        self.ledgers[kernel].close()

    @invariant()
    def sums_are_true(self):
        if (self.folder / "ledger.db").exists():
            assert_sums_are_true(self.folder / "ledger.db")


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
