"""The cache on disk meets real faults: of disks, of other programs, of other people."""

import ctypes
import ctypes.util
import gc
import os
import pickle
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import diskcache
import pytest

from llm_magic.entries import Entry, Row, fingerprint, pack, unpack
from llm_magic.errors import StoreWarning
from llm_magic.stores import disk, many, reader, writer
from llm_magic.stores.cache_file import CacheFile
from llm_magic.stores.disk import DiskCache
from llm_magic.types import Request, Usage

ROOT = hasattr(os, "getuid") and os.getuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root gives files away")
LONG = 60.0


class Troubles(list[tuple[str, str]]):
    """What was told, as (message, fix)."""

    def __call__(self, message: str, fix: str) -> None:
        assert message
        assert fix
        assert "\n" not in message + fix
        self.append((message, fix))

    @property
    def only(self) -> str:
        assert len(self) == 1, self
        return self[0][0]


@pytest.fixture
def told() -> Troubles:
    return Troubles()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return with_old_rows(tmp_path / "cache")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again by the next call."""
    monkeypatch.setattr(disk, "RETRY", 0.0)


def old(number: int) -> bytes:
    return f"answer {number} ".encode() * 100


def put_old(cache: DiskCache) -> None:
    for number in range(20):
        cache.put(f"old {number}", old(number))


def with_old_rows(folder: Path) -> Path:
    """A folder with a cache of twenty rows, closed."""
    cache = DiskCache(folder)
    put_old(cache)
    cache.close()
    return folder


def sql(place: Path, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
    """Runs a statement on the file, as another program would."""
    connection = sqlite3.connect(place / "cache.db", isolation_level=None)
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def plant(place: Path, key: object, **columns: object) -> None:
    """Puts a row into the file."""
    row = {"key": key, "raw": 1, "mode": 1, "filename": None, "value": b"planted"}
    row |= {"store_time": 1.0, "access_time": 1.0, "size": 0} | columns
    names = ", ".join(row)
    marks = ", ".join("?" * len(row))
    sql(place, f"INSERT INTO Cache ({names}) VALUES ({marks})", tuple(row.values()))


def files(place: Path) -> set[str]:
    return {each.name for each in place.iterdir()}


def asides(place: Path) -> list[str]:
    """Files that were set aside, without what lies beside them."""
    sides = ("-wal", "-shm", "-journal")
    return [name for name in files(place) if ".set-aside-" in name and not name.endswith(sides)]


def fully(cache: DiskCache) -> bool:
    return all(cache.get(f"old {number}") == old(number) for number in range(20))


def works(cache: DiskCache) -> bool:
    """Whether a new row gets to the disk and back."""
    cache.put("new", b"new row")
    cache.close()
    return DiskCache(cache._file.folder).get("new") == b"new row"


# The file as it should be.


def test_nothing_is_touched_before_it_is_needed(tmp_path: Path) -> None:
    DiskCache(tmp_path / "cache")

    assert not (tmp_path / "cache").exists()


def test_a_look_makes_no_file(tmp_path: Path, told: Troubles) -> None:
    cache = DiskCache(tmp_path / "cache", trouble=told)

    assert cache.get("a") is None
    assert cache.drop() == 0
    assert list(cache.rows()) == []
    assert cache.size() == (0, 0, 1024**3, str(tmp_path / "cache"))
    assert files(tmp_path / "cache") == set()
    assert told == []


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_folder_and_files_are_the_user_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = DiskCache(tmp_path / "cache")
        cache.put("a", b"one")
        cache.get("a")
    finally:
        os.umask(before)

    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in cache._file.folder.iterdir()}
    assert modes == {"cache.db": 0o600, "cache.db-wal": 0o600, "cache.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    cache.close()


def test_closing_leaves_one_file_although_other_threads_had_read(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    cache.put("a", b"x" * 100_000)
    done, read = threading.Event(), threading.Event()

    def look() -> None:
        assert cache.get("a")
        read.set()
        done.wait(LONG)

    thread = threading.Thread(target=look)
    thread.start()
    assert read.wait(LONG)
    cache.close()

    assert files(tmp_path / "cache") == {"cache.db"}
    done.set()
    thread.join()


@pytest.mark.parametrize("name", ["with space", "a?b#c%41", "$HOME", "~", "naïve 日本"])
def test_a_folder_s_name_is_taken_as_it_is(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache = DiskCache(tmp_path / name)
    cache.put("a", b"one")
    cache.close()

    assert cache.get("a") == b"one"
    assert (tmp_path / name / "cache.db").is_file()
    assert not (tmp_path / "home").exists()
    cache.close()


def test_a_hit_writes_nothing(place: Path) -> None:
    cache = DiskCache(place)
    other = sqlite3.connect(place / "cache.db")
    version = other.execute("PRAGMA data_version").fetchone()

    for _ in range(20):
        assert fully(cache)

    assert other.execute("PRAGMA data_version").fetchone() == version
    other.close()
    cache.close()


def uses(place: Path) -> dict[str, float]:
    return dict(sql(place, "SELECT key, access_time FROM Cache"))


def test_uses_are_written_at_the_end(place: Path) -> None:
    before = uses(place)
    cache = DiskCache(place)
    cache.get("old 3")
    assert uses(place) == before

    cache.close()

    after = uses(place)
    assert after.pop("old 3") > before.pop("old 3")
    assert after == before


def test_uses_are_written_with_the_next_row(place: Path) -> None:
    before = uses(place)
    cache = DiskCache(place)
    cache.get("old 3")
    cache.put("new", b"x")

    assert uses(place)["old 3"] > before["old 3"]
    assert cache._marks == {}
    cache.close()


def test_uses_are_written_once_there_are_many(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MARKS", 10)
    before = uses(place)
    cache = DiskCache(place)
    for number in range(10):
        cache.get(f"old {number}")

    after = uses(place)
    assert all(after[f"old {number}"] > before[f"old {number}"] for number in range(10))
    assert all(after[f"old {number}"] == before[f"old {number}"] for number in range(10, 20))
    cache.close()


def test_uses_are_written_after_a_while(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MARK_SECONDS", -1.0)
    before = uses(place)
    cache = DiskCache(place)
    cache.get("old 3")

    assert uses(place)["old 3"] > before["old 3"]
    cache.close()


def test_uses_are_no_reason_to_wait_or_to_complain(
    place: Path, monkeypatch: pytest.MonkeyPatch, told: Troubles
) -> None:
    monkeypatch.setattr(disk, "MARKS", 5)
    cache = DiskCache(place, trouble=told)
    with locked(place):
        assert fully(cache)
    assert told == []

    cache.close()
    assert min(uses(place).values()) > time.time() - LONG


def test_uses_that_cannot_be_written_do_not_grow_for_ever(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "MARKS", 2)
    monkeypatch.setattr(disk, "_MOST_MARKS", 8)
    cache = DiskCache(place)
    with locked(place):
        assert fully(cache)
        assert len(cache._marks) <= 8
    cache.close()


def test_the_file_keeps_below_its_limit_and_shrinks_when_it_is_emptied(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", limit=400_000)
    for number in range(300):
        cache.put(str(number), os.urandom(3000))
    cache.close()
    assert 250_000 < (tmp_path / "cache" / "cache.db").stat().st_size <= 450_000

    dropped = cache.drop()

    assert dropped > 50
    assert sum(each.stat().st_size for each in reader.data_files(cache._file.path)) < 60_000
    cache.close()


def test_a_lowered_limit_is_reached_by_and_by(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    for number in range(300):
        cache.put(str(number), os.urandom(3000))
    cache.close()

    little = DiskCache(tmp_path / "cache", limit=300_000)
    little.put("new", b"x")
    little.close()

    assert (tmp_path / "cache" / "cache.db").stat().st_size <= 310_000
    assert little.get("new") == b"x"
    assert little.get("0") is None
    assert little.get("299")
    little.close()


def test_a_limit_below_the_smallest_file_costs_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    real = writer.Writer.volume
    monkeypatch.setattr(writer.Writer, "volume", lambda self: looks.append(1) or real(self))
    cache = DiskCache(tmp_path / "cache", limit=20_000)
    for number in range(5):
        cache.put(str(number), b"x" * 9_000)

    # It ends once nothing is left, although that is too much still.
    assert 5 <= len(looks) <= 15
    cache.close()


def given_out(rows: list[tuple[str, bytes]], place: int, then: Callable[[], Any]) -> Any:
    """Rows, before one of which something happens."""
    for number, row in enumerate(rows):
        if number == place:
            then()
        yield row


NEW = [(f"new {number}", f"row {number} ".encode() * 60) for number in range(100)]


def has_new(cache: DiskCache) -> bool:
    """Whether all of them are there, by one look and by many."""
    return cache.get_many([key for key, _ in NEW]) == dict(NEW) and all(
        cache.get(key) == value for key, value in NEW
    )


@pytest.mark.usefixtures("at_once")
def test_a_file_that_is_locked_amid_many_rows_gets_the_rest_later(
    place: Path, monkeypatch: pytest.MonkeyPatch, told: Troubles
) -> None:
    monkeypatch.setattr(many, "ROWS_AT_ONCE", 40)
    cache = DiskCache(place, trouble=told)
    with ExitStack() as stack:
        rows = given_out(NEW, 60, lambda: stack.enter_context(locked(place)))
        cache.put_many(rows)

        assert has_new(cache)
        assert len(DiskCache(place).get_many([key for key, _ in NEW])) == 40
        assert "locked" in told.only
    cache.put("last", b"x")

    assert sql(place, "SELECT key FROM Cache WHERE key LIKE 'new %' ORDER BY rowid") == [
        (key,) for key, _ in NEW
    ]
    cache.close()
    assert has_new(DiskCache(place, trouble=told))
    assert len(told) == 1


@pytest.mark.usefixtures("at_once")
def test_a_disk_that_fills_up_amid_many_rows_costs_none(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, told: Troubles
) -> None:
    monkeypatch.setattr(many, "ROWS_AT_ONCE", 40)
    place = with_old_rows(small_disk / "cache")
    cache = DiskCache(place, trouble=told)
    films: list[Path] = []
    cache.put_many(given_out(NEW, 60, lambda: films.append(fill(small_disk))))

    assert "is full" in told.only
    assert has_new(cache)
    assert fully(cache)

    films[0].unlink()
    cache.close()
    other = DiskCache(place, trouble=told)
    assert has_new(other)
    assert fully(other)
    assert len(told) == 1
    other.close()


@pytest.mark.usefixtures("at_once")
def test_many_rows_are_kept_beside_a_read_only_disk(read_only: Path, told: Troubles) -> None:
    cache = DiskCache(read_only, trouble=told)
    cache.put_many(NEW)

    assert "cannot be written" in told.only
    assert has_new(cache)
    assert fully(cache)
    cache.close()
    assert has_new(cache)


def test_rows_of_megabytes_among_small_ones_are_written_in_small_transactions(
    place: Path, monkeypatch: pytest.MonkeyPatch, told: Troubles
) -> None:
    sizes = []
    real = writer.Writer.keep

    def keep(self: writer.Writer, rows: Any, used: Any) -> None:
        sizes.append(sum(len(row.value) for row in rows))
        real(self, rows, used)

    monkeypatch.setattr(writer.Writer, "keep", keep)
    rows = [
        (f"{number}", os.urandom([100, 100, 700_000, 3_000_000][number % 4]))
        for number in range(40)
    ]
    cache = DiskCache(place, trouble=told)
    cache.put_many(rows)

    assert max(sizes) <= many.BYTES_AT_ONCE + 3_000_000
    assert cache.get_many([key for key, _ in rows]) == dict(rows)
    assert cache._waiting.size().entries == 0
    assert told == []
    cache.close()


@pytest.mark.usefixtures("at_once")
def test_no_more_of_many_rows_waits_in_memory_than_is_allowed(
    place: Path, monkeypatch: pytest.MonkeyPatch, told: Troubles
) -> None:
    monkeypatch.setattr(disk, "WAITING", 20_000)
    cache = DiskCache(place, trouble=told)
    with locked(place):
        cache.put_many(NEW)
        kept = cache.get_many([key for key, _ in NEW])

    assert 0 < sum(map(len, kept.values())) <= 20_000
    assert list(kept) == [key for key, _ in NEW][-len(kept) :]
    cache.close()


def test_of_many_rows_those_of_another_form_are_missed(place: Path) -> None:
    plant(place, "text", value="text and no bytes")
    plant(place, "file", value=b"x", filename="x")
    plant(place, "pickle", mode=4, value=b"x")
    plant(place, "stale", expire_time=1.0)

    keys = ["text", "file", "pickle", "stale", "old 3"]
    assert DiskCache(place).get_many(keys) == {"old 3": old(3)}


@pytest.mark.parametrize("opened", [False, True])
def test_many_looks_at_a_damaged_file_set_it_aside(
    place: Path, told: Troubles, opened: bool
) -> None:
    cache = DiskCache(place, trouble=told)
    if opened:
        assert cache.get("old 3")
    with (place / "cache.db").open("r+b") as file:
        file.write(os.urandom((place / "cache.db").stat().st_size))

    found = cache.get_many([f"old {number}" for number in range(20)])
    cache.put_many(NEW)

    assert all(found[key] == old(int(key[4:])) for key in found)
    assert has_new(cache)
    assert len(asides(place)) == 1
    cache.close()
    assert has_new(DiskCache(place))


def test_a_writer_that_is_killed_leaves_whole_parts_of_many_rows(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\n"
        "from llm_magic.stores.disk import DiskCache\n"
        "from llm_magic.stores import many\n"
        "many.ROWS_AT_ONCE = 50\n"
        "cache = DiskCache(pathlib.Path(sys.argv[1]))\n"
        "print('go', flush=True)\n"
        "cache.put_many((str(n), b'%d ' % n * 50) for n in range(10**9))\n"
    )
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "cache"], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"go\n"
            until = time.monotonic() + LONG
            while DiskCache(tmp_path / "cache").size().entries < 100:
                assert time.monotonic() < until
            process.kill()
    cache = DiskCache(tmp_path / "cache")
    rows = list(cache.rows())
    assert len(rows) % 50 == 0
    assert all(row.value == f"{row.key} ".encode() * 50 for row in rows)
    cache.close()


def test_many_rows_are_listed_once_each_though_used_at_one_time(place: Path) -> None:
    cache = DiskCache(place)
    for number in range(600):
        cache.put(str(number), b"x")
    cache.close()
    sql(place, "UPDATE Cache SET access_time = 1e9 WHERE rowid % 5 > 0")
    sql(place, "UPDATE Cache SET access_time = 2e9 WHERE key = '17'")

    rows = list(cache.rows())

    assert len(rows) == len({row.key for row in rows}) == 620
    assert rows[0].key == "17"
    assert [row.used for row in rows] == sorted((row.used for row in rows), reverse=True)
    assert len(list(cache.rows(450))) == 450
    cache.close()


def test_looks_and_listings_go_by_an_index(place: Path) -> None:
    looks = sql(place, f"EXPLAIN QUERY PLAN {reader._FIND}", ("a",))
    listings = sql(place, f"EXPLAIN QUERY PLAN {reader._LIST}", (1.0, 1, 1))

    assert "USING INDEX Cache_key_raw (key=? AND raw=?)" in looks[0][3]
    assert "USING INDEX Cache_access_time" in listings[0][3]
    assert len(looks) == len(listings) == 1


def test_a_look_needs_no_diskcache_import_where_there_is_no_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from llm_magic.stores.disk import DiskCache\n"
        f"assert DiskCache(Path({str(tmp_path / 'cache')!r})).get('a') is None\n"
        "assert 'diskcache' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cache_that_was_forgotten_closes(place: Path) -> None:
    cache = DiskCache(place)
    cache.put("new", b"x")
    cache.get("new")
    del cache
    gc.collect()

    # For which SQLite wants to be alone.
    assert sql(place, "PRAGMA journal_mode = delete") == [("delete",)]


def test_without_a_listener_trouble_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    cache = DiskCache(tmp_path / "cache")

    with pytest.warns(StoreWarning, match="is a file and no folder.*%config LLMMagic.cache_dir"):
        cache.put("a", b"one")

    assert cache.get("a") == b"one"


# What somebody else put into the file.


class Payload:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark of a payload that ran"


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of the user's, which must be there afterwards."""
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    yield path
    assert path.read_text() == "years of work"


def use(cache: DiskCache, key: str) -> None:
    """Everything that can be done with a row that must not be served."""
    assert cache.get(key) is None
    assert key not in {row.key for row in cache.rows() if row.value != b"own"}
    assert cache.size().entries >= 1
    cache.put(key, b"own")
    assert cache.get(key) == b"own"
    cache.delete(key)
    assert cache.get(key) is None


def test_the_payload_of_these_tests_runs_where_nothing_is_done(place: Path, mark: Path) -> None:
    plant(place, "bad", mode=4, value=pickle.dumps(Payload(mark)))

    with diskcache.Cache(place) as plain:
        plain.get("bad")

    assert mark.exists()


def test_a_planted_pickle_is_a_miss_and_does_not_run(
    place: Path, mark: Path, told: Troubles
) -> None:
    plant(place, "bad", mode=4, value=pickle.dumps(Payload(mark)))
    cache = DiskCache(place, trouble=told)

    use(cache, "bad")

    assert not mark.exists()
    assert fully(cache)
    assert works(cache)
    assert told == []


def test_a_planted_pickle_in_a_file_is_a_miss_and_does_not_run(place: Path, mark: Path) -> None:
    (place / "side.val").write_bytes(pickle.dumps(Payload(mark)))
    plant(place, "bad", mode=4, filename="side.val", value=None, size=10)
    cache = DiskCache(place)

    use(cache, "bad")

    assert not mark.exists()
    assert (place / "side.val").exists()
    assert works(cache)


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_a_planted_file_name_neither_shows_nor_deletes_the_file(
    place: Path, victim: Path, mode: int
) -> None:
    plant(place, "bad", mode=mode, filename=str(victim), value=None, size=13)
    plant(place, "worse", mode=mode, filename=str(victim), value=b"bytes", size=13)
    cache = DiskCache(place)

    use(cache, "bad")
    use(cache, "worse")

    assert victim.exists()
    assert works(cache)


def test_a_planted_file_name_goes_without_its_file_when_room_is_made(
    place: Path, victim: Path
) -> None:
    plant(place, "bad", mode=2, filename=str(victim), value=None, access_time=0.5)
    plant(place, "stale", mode=2, filename=str(victim), value=None, expire_time=1.0)
    cache = DiskCache(place, limit=100_000)
    for number in range(30):
        cache.put(str(number), b"x" * 8000)

    assert sql(place, "SELECT key FROM Cache WHERE filename IS NOT NULL") == []
    plant(place, "bad", mode=2, filename=str(victim), value=None)
    assert cache.drop(2.0) >= 1
    plant(place, "bad", mode=2, filename=str(victim), value=None)
    assert cache.drop() >= 1
    cache.close()


def test_a_planted_key_is_not_unpickled(place: Path, mark: Path) -> None:
    plant(place, pickle.dumps(Payload(mark)), raw=0)
    plant(place, "bad", raw=0, value=pickle.dumps(Payload(mark)))
    plant(place, b"bytes", raw=1)
    plant(place, 7, raw=1)
    cache = DiskCache(place)

    assert {row.key for row in cache.rows()} == {f"old {number}" for number in range(20)}
    use(cache, "bad")
    cache.drop(2.0)

    assert not mark.exists()
    assert works(cache)


@pytest.mark.parametrize(
    "columns",
    [
        {"value": "text and no bytes"},
        {"value": 7},
        {"value": None},
        {"mode": 2, "value": b"bytes"},
        {"mode": "1; DROP TABLE Cache"},
        {"expire_time": 9e9},
        {"expire_time": 1.0},
    ],
)
def test_a_row_of_another_form_is_a_miss(place: Path, columns: dict[str, object]) -> None:
    plant(place, "bad", **columns)
    cache = DiskCache(place)

    use(cache, "bad")

    assert fully(cache)
    assert works(cache)


def test_text_that_is_none_does_not_end_a_listing(place: Path) -> None:
    plant(place, "bad", value="x", access_time="never")
    sql(place, "UPDATE Cache SET value = CAST(x'ff80' AS TEXT) WHERE key = 'bad'")
    sql(place, "UPDATE Cache SET key = CAST(x'ff80' AS TEXT) WHERE key = 'old 3'")
    cache = DiskCache(place)

    rows = list(cache.rows())

    assert len(rows) == 20
    assert "\ufffd\ufffd" in {row.key for row in rows}
    assert cache.get("bad") is None
    assert cache.get("old 4") == old(4)
    cache.close()


STRANGE = [
    "INSERT INTO Settings VALUES ('get', 'x')",
    "INSERT INTO Settings VALUES ('_sql', 'x')",
    "INSERT INTO Settings VALUES ('disk_put', 1)",
    "INSERT INTO Settings VALUES (x'00', 1)",
    "INSERT INTO Settings VALUES ('sqlite_temp_store_directory', '/')",
    "UPDATE Settings SET value = 'many' WHERE key = 'count'",
    "UPDATE Settings SET value = -1 WHERE key = 'count'",
    "UPDATE Settings SET value = 1e300 WHERE key = 'size'",
    "CREATE TRIGGER mine AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
    "CREATE TRIGGER Settings_count_insert AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
    "CREATE VIEW mine AS SELECT * FROM Cache",
    "CREATE TABLE mine (x)",
    "CREATE INDEX mine ON Cache (hex(value))",
    "ALTER TABLE Cache ADD COLUMN mine AS (hex(value))",
    "ALTER TABLE Cache RENAME TO Hidden",
]


@pytest.mark.parametrize("statement", STRANGE)
@pytest.mark.parametrize("first", ["get", "put"])
def test_a_file_with_what_no_cache_has_is_set_aside_unread(
    place: Path, told: Troubles, statement: str, first: str
) -> None:
    sql(place, statement)
    cache = DiskCache(place, trouble=told)

    if first == "get":
        assert cache.get("old 3") is None
    assert works(cache)

    assert [cache.get(f"old {number}") for number in range(20)] == [None] * 20
    (aside,) = asides(place)
    assert "has what a cache never has" in told.only
    assert aside in told.only
    assert str(place / "cache.db") in told.only
    assert (place / aside).stat().st_size > 20_000
    cache.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sqlite_journal_mode", "delete"),
        ("sqlite_journal_mode", "x; DROP TABLE Cache"),
        ("sqlite_auto_vacuum", "0 ; --"),
        ("disk_pickle_protocol", "x"),
        ("disk_min_file_size", 1),
        ("eviction_policy", "none"),
        ("cull_limit", 10**9),
        ("size_limit", 1),
        ("statistics", 1),
        ("tag_index", 1),
        ("size", 10**18),
        ("count", 10**18),
    ],
)
def test_what_the_file_says_of_settings_does_not_count(
    place: Path, told: Troubles, key: str, value: object
) -> None:
    sql(place, "INSERT OR REPLACE INTO Settings VALUES (?, ?)", (key, value))
    cache = DiskCache(place, trouble=told)
    for number in range(50):
        cache.put(str(number), b"x" * 1000)

    assert fully(cache)
    assert all(cache.get(str(number)) == b"x" * 1000 for number in range(50))
    assert works(cache)
    assert asides(place) == []
    assert sql(place, "PRAGMA journal_mode") == [("wal",)]
    assert told == []


def test_a_file_of_plain_diskcache_s_own_is_set_aside_unread(
    tmp_path: Path, mark: Path, told: Troubles
) -> None:
    with diskcache.Cache(tmp_path / "cache") as plain:
        plain["bad"] = Payload(mark)
        plain["large"] = "x" * 100_000
    sides = set((tmp_path / "cache").rglob("*.val"))
    assert sides
    # Its folder has other files, so it would be refused.
    (tmp_path / "cache").chmod(0o700)
    cache = DiskCache(tmp_path / "cache", trouble=told)

    assert cache.get("bad") is None
    assert works(cache)

    assert "Cache_store_time" in told.only
    assert not mark.exists()
    assert all(each.exists() for each in sides)


def test_a_look_at_it_with_plain_diskcache_does_no_harm(place: Path, told: Troubles) -> None:
    with diskcache.Cache(place) as plain:
        assert plain.get("old 3") == old(3)
    cache = DiskCache(place, trouble=told)

    assert fully(cache)
    assert works(cache)
    assert told == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes are POSIX's")
@pytest.mark.parametrize("name", ["cache.db", "cache.db-wal", "cache.db-shm", "cache.db-journal"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_is_not_written_through(
    place: Path, victim: Path, told: Troubles, name: str, kind: str
) -> None:
    path = place / name
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    cache = DiskCache(place, trouble=told)

    assert cache.get("old 3") is None
    assert works(cache)

    assert f"{name} that is no plain file" in told.only


def test_a_journal_that_would_be_rolled_back_is_not(place: Path, told: Troubles) -> None:
    sql(place, "PRAGMA journal_mode = delete")
    connection = sqlite3.connect(place / "cache.db", isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE Cache SET value = zeroblob(20000)")
    journal = (place / "cache.db-journal").read_bytes()
    connection.execute("ROLLBACK")
    connection.close()
    assert len(journal) > 4096
    (place / "cache.db-journal").write_bytes(journal)
    cache = DiskCache(place, trouble=told)

    assert works(cache)

    assert "is damaged" in told.only


def test_a_writer_that_meets_such_settings_does_not_mind(place: Path) -> None:
    for key, value in (("get", "x"), ("disk_put", 1), ("sqlite_user_version", 7), ("x", 1)):
        sql(place, "INSERT INTO Settings VALUES (?, ?)", (key, value))
    plain = writer.Writer(str(place / "cache.db"), 10**9)

    assert plain.get("old 3") == old(3)
    assert not hasattr(plain, "x")
    plain.close()
    assert sql(place, "PRAGMA user_version") == [(0,)]


def test_an_unknown_use_of_diskcache_is_refused(place: Path) -> None:
    """The rest of diskcache is still there, and has nothing to pickle with."""
    plant(place, "bad", mode=4, value=b"x")
    plant(place, b"key", raw=0)
    plain = writer.Writer(str(place / "cache.db"), 10**9)

    assert plain.get("old 3") == old(3)
    with pytest.raises(writer.Refused):
        plain.get("bad")
    with pytest.raises(writer.Refused):
        list(plain)
    for value in ("text", 7, None, [1], bytearray(b"x")):
        with pytest.raises(TypeError, match="a value is bytes"):
            plain.set("a", value)
    for key in (b"bytes", 7, ("a", "b")):
        with pytest.raises(TypeError, match="a key is text"):
            plain.set(key, b"x")
    plain.close()
    assert files(place) == {"cache.db"}


def test_a_large_row_has_no_file_of_its_own(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    cache.put("a", b"x" * 5_000_000)

    assert cache.get("a") == b"x" * 5_000_000
    cache.close()
    assert files(tmp_path / "cache") == {"cache.db"}


# Locks.


@contextmanager
def locked(place: Path, *statements: str) -> Iterator[None]:
    """Another process, in the middle of a write."""
    code = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for statement in sys.argv[2:]: connection.execute(statement).fetchall()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, place / "cache.db", *(statements or ["BEGIN IMMEDIATE"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        process.communicate(timeout=LONG)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_locked_file_is_read_and_what_is_new_is_written_later(
    place: Path, told: Troubles, kind: str, opened: bool
) -> None:
    cache = DiskCache(place, trouble=told)
    if opened:
        cache.put("open", b"x")
    with locked(place, kind):
        began = time.monotonic()
        assert fully(cache)
        assert told == []
        cache.put("a", b"one")
        cache.put("b", b"two")
        cache.delete("old 3")
        # diskcache alone would try for a minute at each.
        assert time.monotonic() - began < 30
        assert (cache.get("a"), cache.get("b"), cache.get("old 3")) == (b"one", b"two", None)
        assert cache.get("old 4") == old(4)
        assert [row.key for row in cache.rows()][:2] == ["b", "a"]
        assert "old 3" not in {row.key for row in cache.rows()}
        assert cache.size().entries == 22 + opened
        assert DiskCache(place).get("a") is None
    assert "locked" in told.only
    assert "memory" in told.only

    cache.put("c", b"three")

    other = DiskCache(place)
    assert [other.get(key) for key in ("a", "b", "c", "old 3")] == [b"one", b"two", b"three", None]
    assert len(told) == 1
    other.close()
    cache.close()


def test_a_file_known_to_be_locked_is_left_alone_for_a_while(
    place: Path, monkeypatch: pytest.MonkeyPatch, told: Troubles
) -> None:
    cache = DiskCache(place, trouble=told)
    tries = []
    real = CacheFile.writer
    monkeypatch.setattr(
        CacheFile,
        "writer",
        lambda self, *wait, **waits: tries.append(1) or real(self, *wait, **waits),
    )
    monkeypatch.setattr(disk, "RETRY", 3600.0)
    with locked(place):
        for number in range(10):
            cache.put(str(number), b"x")
    assert len(tries) == 1

    cache.close()

    assert all(DiskCache(place).get(str(number)) == b"x" for number in range(10))


def test_what_is_still_locked_at_the_end_is_kept_in_memory(place: Path, told: Troubles) -> None:
    cache = DiskCache(place, trouble=told)
    with locked(place):
        cache.put("a", b"one")
        cache.close()
        assert "locked" in told.only
        assert cache.get("a") == b"one"


@pytest.mark.usefixtures("at_once")
def test_a_file_that_is_locked_against_reading_too_is_missed(place: Path, told: Troubles) -> None:
    cache = DiskCache(place, trouble=told)
    exclusively = ("PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE")
    with locked(place, *exclusively, "UPDATE Cache SET tag = 1", "COMMIT"):
        assert cache.get("old 3") is None
        cache.put("a", b"one")
        assert cache.get("a") == b"one"
        assert list(cache.rows()) == [row for row in cache.rows() if row.key == "a"]
        assert cache.drop(0.0) == 0
    assert "locked" in told.only

    assert fully(cache)
    assert works(cache)
    assert DiskCache(place).get("a") == b"one"


@pytest.mark.usefixtures("at_once")
def test_no_more_waits_in_memory_than_is_allowed(
    place: Path, monkeypatch: pytest.MonkeyPatch, told: Troubles
) -> None:
    monkeypatch.setattr(disk, "WAITING", 50_000)
    cache = DiskCache(place, trouble=told)
    monkeypatch.setattr(disk, "RETRY", 3600.0)
    with locked(place):
        for number in range(20):
            cache.put(str(number), b"x" * 9_000)
        assert [bool(cache.get(str(number))) for number in range(20)] == [False] * 15 + [True] * 5
    cache.close()


def test_what_waits_is_written_bit_by_bit_and_whole_at_the_end(
    place: Path, monkeypatch: pytest.MonkeyPatch, told: Troubles
) -> None:
    monkeypatch.setattr(disk, "_WRITING", -1.0)
    monkeypatch.setattr(many, "ROWS_AT_ONCE", 1)
    cache = DiskCache(place, trouble=told)
    monkeypatch.setattr(disk, "RETRY", 3600.0)
    with locked(place):
        for number in range(8):
            cache.put(str(number), b"x")
    cache._retry_at = 0.0
    cache.put("8", b"x")
    assert cache._waiting.size().entries == 8
    assert sql(place, "SELECT key FROM Cache WHERE key IN ('0', '1')") == [("0",)]

    cache.close()

    assert cache._waiting.size().entries == 0
    assert all(DiskCache(place).get(str(number)) == b"x" for number in range(9))


def test_dropping_under_a_lock_says_so(place: Path, told: Troubles) -> None:
    cache = DiskCache(place, trouble=told)
    with locked(place):
        assert cache.drop() == 0
    assert "locked" in told.only
    assert fully(cache)
    assert cache.drop() == 20
    cache.close()


# Disks that are full or read-only.


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    if not ROOT or not sys.platform.startswith("linux"):
        pytest.skip("only root on Linux mounts disks")
    mount(*arguments, str(place))
    try:
        yield place
    finally:
        gc.collect()
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    place = tmp_path / "small disk"
    place.mkdir()
    with mounted(place, "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"):
        yield place


def fill(place: Path) -> Path:
    """Takes all room that is left on a disk."""
    path = place / "holiday.mp4"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    assert shutil.disk_usage(place).free == 0
    return path


@pytest.mark.usefixtures("at_once")
def test_a_disk_fills_up_under_an_open_cache(small_disk: Path, told: Troubles) -> None:
    cache = DiskCache(small_disk / "cache", trouble=told)
    cache.put("first", b"x" * 1000)
    film = fill(small_disk)
    keys = [f"key {number}" for number in range(30)]
    for key in keys:
        cache.put(key, key.encode() * 500)

    assert "is full" in told.only
    assert cache.get("first") == b"x" * 1000
    assert all(cache.get(key) == key.encode() * 500 for key in keys)
    cache.delete("first")
    assert cache.get("first") is None

    film.unlink()
    cache.put("last", b"x")
    cache.close()

    other = DiskCache(small_disk / "cache", trouble=told)
    assert all(other.get(key) == key.encode() * 500 for key in keys)
    assert other.get("first") is None
    assert len(told) == 1
    other.close()


@pytest.mark.usefixtures("at_once")
def test_a_disk_was_full_before(small_disk: Path, told: Troubles) -> None:
    place = with_old_rows(small_disk / "cache")
    film = fill(small_disk)
    cache = DiskCache(place, trouble=told)

    assert fully(cache)
    cache.put("a", b"one")
    cache.put("b", b"two")
    assert "is full" in told.only
    assert fully(cache)
    assert (cache.get("a"), cache.get("b")) == (b"one", b"two")

    film.unlink()
    cache.put("c", b"three")
    assert fully(cache)
    cache.close()
    other = DiskCache(place, trouble=told)
    assert [other.get(key) for key in "abc"] == [b"one", b"two", b"three"]
    assert fully(other)
    assert len(told) == 1
    other.close()


def test_what_was_read_off_a_full_disk_is_read_anew_once_there_is_room(
    small_disk: Path, told: Troubles
) -> None:
    place = with_old_rows(small_disk / "cache")
    film = fill(small_disk)
    cache = DiskCache(place, trouble=told)
    assert fully(cache)
    film.unlink()

    cache.put("a", b"one")

    assert cache.get("a") == b"one"
    assert fully(cache)
    assert told == []
    cache.close()


def test_a_full_disk_without_a_cache(small_disk: Path, told: Troubles) -> None:
    (small_disk / "cache").mkdir(mode=0o700)
    fill(small_disk)
    cache = DiskCache(small_disk / "cache", trouble=told)
    cache.put("a", b"one")

    assert cache.get("a") == b"one"
    assert "is full" in told.only
    cache.close()


@pytest.fixture
def read_only(place: Path) -> Iterator[Path]:
    """The folder with a cache, which nobody can write to."""
    with mounted(place, "--bind", str(place)):
        mount("-o", "remount,bind,ro", str(place))
        yield place


@pytest.mark.usefixtures("at_once")
def test_a_read_only_disk_is_read(read_only: Path, told: Troubles) -> None:
    cache = DiskCache(read_only, trouble=told)

    assert fully(cache)
    assert len(list(cache.rows())) == 20
    assert cache.size().entries == 20
    assert told == []
    cache.put("a", b"one")
    assert cache.get("a") == b"one"
    assert fully(cache)
    cache.close()
    assert cache.get("a") == b"one"

    assert "cannot be written" in told.only
    assert files(read_only) == {"cache.db"}


@pytest.mark.usefixtures("at_once")
def test_a_damaged_file_on_a_read_only_disk(place: Path, told: Troubles) -> None:
    (place / "cache.db").write_bytes(os.urandom(40_000))
    with mounted(place, "--bind", str(place)):
        mount("-o", "remount,bind,ro", str(place))
        cache = DiskCache(place, trouble=told)
        assert cache.get("old 3") is None
        cache.put("a", b"one")
        assert cache.get("a") == b"one"
        assert "cannot be renamed (Read-only file system)" in told.only
        assert told[0][1].startswith("rm ")
    cache.close()


def test_an_open_folder_on_a_read_only_disk_is_read_all_the_same(
    place: Path, told: Troubles
) -> None:
    place.chmod(0o755)
    with mounted(place, "--bind", str(place)):
        mount("-o", "remount,bind,ro", str(place))
        cache = DiskCache(place, trouble=told)
        assert fully(cache)
        cache.close()
    assert told == []


# Damage.


def mixed(path: Path, seed: int) -> None:
    """Some pages, neither the first nor in order, with random bytes in them."""
    chance = random.Random(seed)
    content = bytearray(path.read_bytes())
    for start in range(4096 + chance.randrange(8192), len(content) - 512, 16_384):
        content[start : start + 512] = chance.randbytes(512)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "random": lambda path: path.write_bytes(random.Random(1).randbytes(50_000)),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a page and a bit": lambda path: os.truncate(path, 5000),
    "a bit": lambda path: os.truncate(path, 50),
    "another database": lambda path: (path.unlink(), make_another(path)),
    "no schema": lambda path: path.write_bytes(path.read_bytes()[:100] + bytes(40_000)),
    # SQLite's message has the name in it, of which sqlite3 can make no text.
    "a name that is no text": lambda path: path.write_bytes(
        path.read_bytes().replace(b"tableCacheCache", b"tableCac\x82eCache")
    ),
}


def make_another(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE moz_cookies (id INTEGER PRIMARY KEY, value TEXT)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("first", ["get", "put", "rows", "drop"])
def test_a_damaged_file_is_set_aside(place: Path, told: Troubles, damage: str, first: str) -> None:
    DAMAGES[damage](place / "cache.db")
    damaged = (place / "cache.db").read_bytes()
    cache = DiskCache(place, trouble=told)

    if first == "get":
        assert [cache.get(f"old {number}") in (None, old(number)) for number in range(20)]
    elif first == "rows":
        list(cache.rows())
    elif first == "drop":
        cache.drop(1.0)
    put_old(cache)

    assert fully(cache)
    cache.close()
    assert fully(DiskCache(place))
    (aside,) = asides(place)
    assert (place / aside).read_bytes()[:40] == damaged[:40]
    assert aside in told.only
    assert aside in told[0][1]


def test_an_empty_file_is_an_empty_cache(place: Path, told: Troubles) -> None:
    os.truncate(place / "cache.db", 0)
    cache = DiskCache(place, trouble=told)

    assert cache.get("old 3") is None
    assert works(cache)
    assert asides(place) == []
    assert told == []


def packed(number: int) -> tuple[Any, Entry, bytes]:
    request = Request(({"role": "user", "content": f"Question {number}"},), "m", "http://x/v1")
    entry = Entry(f"Answer {number} " * 80, "m", "stop", Usage(1, 2))
    return fingerprint(request), entry, pack(fingerprint(request), entry)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_pages_give_right_answers_or_none(tmp_path: Path, seed: int) -> None:
    cache = DiskCache(tmp_path / "cache")
    kept = [packed(number) for number in range(300)]
    for print_, _, row in kept:
        cache.put(print_.key, row)
    cache.close()
    mixed(tmp_path / "cache" / "cache.db", seed)
    cache = DiskCache(tmp_path / "cache", trouble=Troubles())

    for _ in range(3):
        for print_, entry, row in kept:
            found = cache.get(print_.key)
            answer = unpack(print_, found) if found else None
            assert answer in (None, entry)
            if answer is None:
                cache.put(print_.key, row)
    list(cache.rows())
    cache.size()

    assert works(cache)


def test_damage_is_seen_for_what_it_is_while_another_error_is_handled(
    place: Path, told: Troubles
) -> None:
    (place / "cache.db").write_bytes(os.urandom(50_000))
    cache = DiskCache(place, trouble=told)
    try:
        raise ConnectionError(104, "the user's own")
    except ConnectionError:
        assert works(cache)

    assert "is damaged" in told.only


@pytest.mark.parametrize("first", ["get", "put", "rows"])
def test_a_fault_keeps_no_connection_open(place: Path, told: Troubles, first: str) -> None:
    gc.collect()
    gc.disable()
    try:
        content = bytearray((place / "cache.db").read_bytes())
        content[4096:] = os.urandom(len(content) - 4096)
        (place / "cache.db").write_bytes(content)
        cache = DiskCache(place, trouble=told)
        if first == "get":
            cache.get("old 3")
        elif first == "rows":
            list(cache.rows())
        cache.put("a", b"one")
        with locked(place):
            cache.put("b", b"two")
        cache.close()
        assert told
        assert not list(reader._open)
    finally:
        gc.enable()


def test_damage_under_an_open_cache_is_noticed(place: Path, told: Troubles) -> None:
    cache = DiskCache(place, trouble=told)
    cache.put("a", b"one")
    assert fully(cache)
    code = (
        "import os, sys\n"
        "for name in ('cache.db', 'cache.db-wal', 'cache.db-shm'):\n"
        "    with open(os.path.join(sys.argv[1], name), 'r+b') as file:\n"
        "        size = os.path.getsize(file.name)\n"
        "        file.write(os.urandom(size))"
    )
    # By another process: closing the file here would give up this one's locks.
    subprocess.run([sys.executable, "-c", code, place], check=True)
    for number in range(30):
        cache.get(f"old {number}")
        cache.put(f"new {number}", b"x" * 3000)

    assert "is damaged" in told.only
    cache.close()
    other = DiskCache(place)
    assert sum(other.get(f"new {number}") == b"x" * 3000 for number in range(30)) >= 29
    other.close()


def test_of_two_kernels_one_sets_a_damaged_file_aside(place: Path, told: Troubles) -> None:
    (place / "cache.db").write_bytes(os.urandom(50_000))
    one, two = DiskCache(place, trouble=told), DiskCache(place, trouble=told)
    two._file._seen = reader.identity(place / "cache.db")
    one.put("a", b"one")
    two.put("b", b"two")

    assert one.get("b") == b"two"
    assert two.get("a") == b"one"
    assert len(asides(place)) == 1
    assert len(told) == 1
    one.close()
    two.close()


def test_a_file_that_another_kernel_has_just_made_is_not_set_aside(place: Path) -> None:
    cache = DiskCache(place)
    cache.put("a", b"one")
    reader.set_aside(place / "cache.db")
    two = DiskCache(place)
    two.put("b", b"two")

    assert cache._file.set_aside() is None
    assert two.get("b") == b"two"
    assert cache.get("b") == b"two"
    cache.close()
    two.close()


def test_several_files_are_set_aside_under_several_names(place: Path) -> None:
    for _ in range(3):
        (place / "cache.db").write_bytes(os.urandom(5_000))
        assert works(DiskCache(place, trouble=Troubles()))

    assert len(asides(place)) == 3


# Files that go.


def test_a_folder_that_was_deleted_is_made_anew(place: Path, told: Troubles) -> None:
    cache = DiskCache(place, trouble=told)
    cache.put("a", b"one")
    assert fully(cache)
    shutil.rmtree(place)

    cache.put("b", b"two")

    assert (cache.get("a"), cache.get("b"), cache.get("old 3")) == (None, b"two", None)
    assert "was deleted while it was in use" in told.only
    cache.close()
    assert DiskCache(place).get("b") == b"two"
    shutil.rmtree(place)
    assert works(cache)
    assert len(told) == 1


def test_a_file_that_another_kernel_replaced_is_followed(place: Path, told: Troubles) -> None:
    one = DiskCache(place, trouble=told)
    one.put("a", b"one")
    shutil.rmtree(place)
    two = DiskCache(place, trouble=told)
    two.put("b", b"two")

    one.put("c", b"three")

    assert (one.get("a"), one.get("b"), one.get("c")) == (None, b"two", b"three")
    assert two.get("c") == b"three"
    assert told == []
    one.close()
    two.close()


@pytest.mark.parametrize("many_", [False, True])
def test_what_another_kernel_keeps_in_a_new_file_is_found(
    many_: bool, place: Path, told: Troubles
) -> None:
    """Else both would pay for one question, when one of them waited for the other."""
    one = DiskCache(place, trouble=told)
    assert one.get("old 3") is not None
    shutil.rmtree(place)
    two = DiskCache(place, trouble=told)
    two.put("b", b"two")

    found = one.get_many(["b", "c"]) if many_ else {"b": one.get("b")}

    assert found == {"b": b"two"}
    assert told == []
    one.close()
    two.close()


def test_a_thread_that_follows_first_takes_the_others_with_it(place: Path) -> None:
    cache = DiskCache(place)
    cache.put("a", b"one")
    shutil.rmtree(place)
    two = DiskCache(place)
    two.put("b", b"two")
    thread = threading.Thread(target=cache.get, args=("b",))
    thread.start()
    thread.join()

    cache.put("c", b"three")

    assert two.get("c") == b"three"
    cache.close()
    two.close()


# Folders that are not to be used.


@pytest.mark.usefixtures("at_once")
@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_folder_open_to_others_is_not_used_until_it_is_closed(
    place: Path, told: Troubles
) -> None:
    place.chmod(0o777)
    cache = DiskCache(place, trouble=told)

    assert cache.get("old 3") is None
    cache.put("a", b"one")
    cache.delete("old 4")
    assert cache.get("a") == b"one"
    assert [row.key for row in cache.rows()] == ["a"]
    assert cache.size()[:2] == (1, 4)
    assert cache.drop(0.0) == 0
    assert "mode 0777" in told.only
    assert "in memory" in told.only
    assert f"chmod 700 {place}" in told[0][1]
    assert files(place) == {"cache.db"}

    place.chmod(0o700)
    cache.put("b", b"two")
    assert cache.get("old 3") == old(3)
    cache.close()
    other = DiskCache(place)
    assert [other.get(key) for key in ("a", "b", "old 4")] == [b"one", b"two", None]
    other.close()


@as_root
def test_another_user_s_folder_is_not_used(place: Path, told: Troubles) -> None:
    os.chown(place, 65534, 65534)
    cache = DiskCache(place, trouble=told)
    cache.put("a", b"one")

    assert cache.get("a") == b"one"
    assert cache.get("old 3") is None
    assert "belongs to the user with id 65534" in told.only
    cache.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path, told: Troubles) -> None:
    (tmp_path / "file").touch()
    cache = DiskCache(tmp_path / "file" / "cache", trouble=told)
    cache.put("a", b"one")

    assert cache.get("a") == b"one"
    assert "cannot be made" in told.only
    cache.close()
    assert cache.get("a") == b"one"


def test_a_folder_on_a_network_gives_way_to_a_local_one(away: Path, told: Troubles) -> None:
    cache = DiskCache(away, trouble=told)

    cache.put("a", b"one")
    cache.close()

    assert DiskCache(away, trouble=told).get("a") == b"one"
    assert list(away.parent.iterdir()) == []
    (used,) = Path(tempfile.gettempdir()).iterdir()
    assert files(used) >= {"cache.db"}
    assert cache.size().place == str(used)
    assert "on a network" in told[0][0]
    assert str(used) in told[0][0]


# Other processes.


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_kernels_share_the_cache(place: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llm_magic.stores.disk import DiskCache\n"
        "cache = DiskCache(Path(sys.argv[1]))\n"
        "for line in sys.stdin:\n"
        "    word, key = line.split()\n"
        "    if word == 'put': cache.put(key, key.encode() * 100); print('done', flush=True)\n"
        "    else: print(cache.get(key) == key.encode() * 100, flush=True)"
    )
    cache = DiskCache(place)
    process = run(code, place)
    assert process.stdin is not None
    assert process.stdout is not None

    def other(line: str) -> str:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    for number in range(10):
        cache.put(f"mine{number}", f"mine{number}".encode() * 100)
        assert other(f"get mine{number}") == "True"
        assert other(f"put theirs{number}") == "done"
        assert cache.get(f"theirs{number}") == f"theirs{number}".encode() * 100
    process.communicate(timeout=LONG)
    assert fully(cache)
    cache.close()


def test_eight_processes_begin_one_cache(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from llm_magic.stores.disk import DiskCache\n"
        "import llm_magic.stores.writer\n"
        "cache = DiskCache(Path(sys.argv[1]), trouble=lambda *words: None)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "keys = [f'{sys.argv[2]} {number}' for number in range(20)]\n"
        "for key in keys: cache.put(key, key.encode() * 200)\n"
        "until = time.monotonic() + 60\n"
        "while cache._late and time.monotonic() < until: cache.close()\n"
        "cache.close()\n"
        "print(all(cache.get(key) == key.encode() * 200 for key in keys), cache._late)"
    )
    processes = [run(code, tmp_path / "cache", number) for number in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    assert [process.communicate(timeout=LONG)[0] for process in processes] == ["True False\n"] * 8
    cache = DiskCache(tmp_path / "cache")
    assert {row.key for row in cache.rows()} == {
        f"{process} {number}" for process in range(8) for number in range(20)
    }
    cache.put("last", b"x")
    cache.close()
    assert files(tmp_path / "cache") == {"cache.db"}


def test_a_writer_that_is_killed_leaves_whole_rows_or_none(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llm_magic.stores.disk import DiskCache\n"
        "cache = DiskCache(Path(sys.argv[1]))\n"
        "for number in range(10**9):\n"
        "    key = f'{sys.argv[2]} {number}'\n"
        "    cache.put(key, key.encode() * (1000 if number % 3 else 20_000))\n"
        "    print(key, flush=True)"
    )
    told = Troubles()
    done = set()
    for round_ in range(4):
        process = run(code, tmp_path / "cache", round_)
        assert process.stdout is not None
        for _ in range(20 + 7 * round_):
            done.add(process.stdout.readline().strip())
        process.kill()
        done |= {line for line in process.communicate(timeout=LONG)[0].split("\n")[:-1] if line}
        assert process.returncode != 0

        cache = DiskCache(tmp_path / "cache", trouble=told)
        rows = {row.key: row.value for row in cache.rows()}
        assert rows.keys() >= done
        assert all(set(value.split(key.encode())) == {b""} for key, value in rows.items())
        cache.close()

    assert len(done) >= 100
    assert told == []
    assert works(cache)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own(place: Path, told: Troubles) -> None:
    cache = DiskCache(place, trouble=told)
    cache.put("a", b"one")
    assert fully(cache)
    with locked(place):
        cache.put("the parent's", b"x")
    child = os.fork()
    if not child:
        ok = False
        try:
            ok = fully(cache) and cache.get("a") == b"one" and cache.get("the parent's") is None
            for number in range(20):
                cache.put(f"child {number}", b"c" * 2000)
            cache.close()
        finally:
            os._exit(0 if ok else 1)
    for number in range(20):
        cache.put(f"parent {number}", b"p" * 2000)
        assert fully(cache)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    cache.close()
    assert cache.get("the parent's") == b"x"
    assert all(cache.get(f"child {number}") == b"c" * 2000 for number in range(20))
    assert all(cache.get(f"parent {number}") == b"p" * 2000 for number in range(20))
    assert sql(place, "PRAGMA integrity_check") == [("ok",)]
    cache.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_listing_goes_on_after_a_fork(place: Path) -> None:
    cache = DiskCache(place)
    listing = cache.rows()
    next(listing)
    child = os.fork()
    if not child:
        ok = False
        try:
            ok = len(list(listing)) == 19
        finally:
            os._exit(0 if ok else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(listing)) == 19
    cache.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_while_others_work_leaves_no_lock_behind(place: Path) -> None:
    cache = DiskCache(place)
    stop = threading.Event()

    def work(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            cache.put(f"{name} {number % 50}", b"x" * 500)
            assert cache.get("old 3") == old(3)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                ok = False
                try:
                    cache.put("child", b"c")
                    ok = cache.get("child") == b"c" and fully(cache)
                finally:
                    os._exit(0 if ok else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sql(place, "PRAGMA integrity_check") == [("ok",)]
    cache.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux lists open files")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_has_no_file_of_its_parent_s_open(place: Path) -> None:
    cache = DiskCache(place)
    cache.put("large", b"x" * 20_000_000)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            assert cache.get("large")

    def opened() -> list[str]:
        names = []
        for each in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                names.append(each.readlink().name)
        return [name for name in names if name.startswith("cache.db")]

    thread = threading.Thread(target=read)
    thread.start()
    try:
        while not opened():
            time.sleep(0)
        for _ in range(5):
            child = os.fork()
            if not child:
                os._exit(len(opened()))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()
    assert fully(cache)
    assert opened()
    cache.close()
    assert not opened()


def test_a_transaction_that_an_interrupt_left_open_is_ended(place: Path) -> None:
    plain = writer.Writer(str(place / "cache.db"), 10**9)
    plain._con.execute("BEGIN IMMEDIATE")
    plain._con.execute("DELETE FROM Cache")
    plain._txn_id = threading.get_ident()

    plain.keep([Row("a", b"one", time.time())], [])

    assert plain._txn_id is None
    assert fully(DiskCache(place))
    assert DiskCache(place).get("a") == b"one"
    plain.close()


INTERRUPTED = """
import random, signal, sys
from contextlib import suppress
from pathlib import Path
from llm_magic.stores.disk import DiskCache

chance, hits, armed, told = random.Random(3), 0, False, []

def interrupt(number, frame):
    global hits
    if armed:
        hits += 1
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
cache = DiskCache(Path(sys.argv[1]), trouble=lambda *words: told.append(words))
for number in range(400):
    with suppress(KeyboardInterrupt):
        armed = True
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 5e-4))
        cache.put(f"key {number}", f"key {number}".encode() * 300)
        cache.get(f"old {number % 20}")
        if number % 20 == 0:
            cache.close()
    armed = False
cache.close()
assert not told, told
assert not cache._late
print(hits)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX has timers")
def test_interrupts_at_any_moment_leave_it_usable(place: Path) -> None:
    process = run(INTERRUPTED, place)
    hits = int(process.communicate(timeout=LONG)[0])

    assert process.returncode == 0
    assert hits > 20
    cache = DiskCache(place)
    assert fully(cache)
    rows = {row.key: row.value for row in cache.rows() if row.key.startswith("key")}
    assert len(rows) > 300
    assert all(value == key.encode() * 300 for key, value in rows.items())
    assert sql(place, "PRAGMA integrity_check") == [("ok",)]
    assert works(cache)


# SQLite as others build it.


def forbid_double_quotes(connection: sqlite3.Connection) -> None:
    """Makes SQLite as strict as some distributions build it."""
    name = ctypes.util.find_library("sqlite3")
    if sys.implementation.name != "cpython" or name is None:
        pytest.skip("needs SQLite as a library of its own")
    library = ctypes.CDLL(name)
    handle = ctypes.c_void_p.from_address(id(connection) + object.__basicsize__)
    for option in (1013, 1014):
        done = library.sqlite3_db_config(handle, option, ctypes.c_int(0), ctypes.c_void_p())
        assert done == 0
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        connection.execute('SELECT "word"')


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect

    def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection = real(*arguments, **named)
        forbid_double_quotes(connection)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect)


@pytest.mark.usefixtures("strict")
def test_sqlite_without_double_quoted_strings_is_no_trouble(tmp_path: Path, told: Troubles) -> None:
    plain = diskcache.Cache(tmp_path / "plain")
    with pytest.raises(sqlite3.OperationalError, match="no such column"):
        plain["a"] = b"one"
    plain.close()
    cache = DiskCache(tmp_path / "cache", trouble=told)
    cache.put("a", b"one")

    assert works(cache)
    assert told == []


def test_a_fault_of_sqlite_itself_is_named(
    place: Path, told: Troubles, request: pytest.FixtureRequest
) -> None:
    with diskcache.Cache(place):
        """It leaves triggers with double-quoted strings in the file."""
    request.getfixturevalue("strict")
    cache = DiskCache(place, trouble=told)

    assert fully(cache)
    cache.put("a", b"one")
    assert cache.get("a") == b"one"
    assert "cannot be used (no such column" in told.only
    cache.close()
