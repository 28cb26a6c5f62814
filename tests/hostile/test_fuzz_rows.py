"""Any rows and any bytes where the cache's file should be: a right hit or a miss, never a fault."""

from __future__ import annotations

import json
import pickle
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llm_magic
from llm_magic.entries import _check, describe, fingerprint, pack, unpack
from llm_magic.stores import disk
from llm_magic.stores.disk import DiskCache
from llm_magic.types import Request, Usage
from tests.conftest import end_session
from tests.hostile import fuzz as fuzzing
from tests.hostile.fuzz import Payload, Raw, RawServer, asked, fuzz, not_hung
from tests.hostile.test_fuzz_cassette import JSON, answer

pytestmark = pytest.mark.usefixtures("keeping")


@pytest.fixture(autouse=True)
def inert() -> Iterator[None]:
    """Nothing that is stored is ever unpickled."""
    fuzzing.RAN.clear()
    yield
    assert fuzzing.RAN == []


def echo(body: bytes) -> Raw:
    """A server that says the prompt again."""
    words = json.loads(body)["messages"][-1]["content"]
    said = {"index": 0, "delta": {"content": f"To {words}"}, "finish_reason": "stop"}
    return Raw([b"data: " + json.dumps({"choices": [said]}).encode() + b"\n\ndata: [DONE]\n\n"])


PICKLES = [pickle.dumps(Payload(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
ODD_VALUES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([*PICKLES, None, 5, -1, 1.5, "text", "", b"", "\ufffd", b"\0" * 100]),
    st.builds(lambda payload: zlib.compress(payload), st.sampled_from(PICKLES)),
)


class Change:
    """What happens to bytes, whatever they are: a part of them becomes something else.

    Args:
        start: Where, in thousandths of the whole.
        gone: How many bytes go.
        new: What comes in their place.
    """

    def __init__(self, start: int, gone: int, new: bytes) -> None:
        self._start, self._gone, self._new = start, gone, new

    def __repr__(self) -> str:
        return f"Change({self._start}, {self._gone}, {self._new!r})"

    def of(self, value: bytes) -> bytes:
        """The bytes after it."""
        place = len(value) * self._start // 1000
        return value[:place] + self._new + value[place + self._gone :]


CHANGES = st.builds(Change, st.integers(0, 1000), st.integers(0, 60), st.binary(max_size=3))


COLUMNS = {
    "key": ODD_VALUES,
    "raw": st.sampled_from([0, 1, 2, None, "1", b"1"]),
    "mode": st.sampled_from([0, 1, 2, 3, 4, 5, -1, None, "4", b"\1"]),
    "filename": st.sampled_from(["x.val", "../x", "/etc/passwd", "", "cache.db", b"x", 5]),
    "expire_time": st.sampled_from([0.0, 1.0, 1e300, "never", b"x", -5]),
    "access_time": st.sampled_from([0.0, -1e300, 1e300, "x", b"x", None]),
    "store_time": st.sampled_from([0.0, "x", None]),
    "access_count": st.sampled_from([0, -1, "x", 2**62]),
    "size": st.sampled_from([0, -1, "x", 2**62, None]),
    "tag": st.sampled_from(["x", b"x", 5]),
}
SETTINGS = {
    "count": st.sampled_from([0, -1, "x", None, 2**62]),
    "size": st.sampled_from([0, -1, "x", None, 2**62]),
    "size_limit": st.sampled_from([0, 1, "x"]),
    "disk_min_file_size": st.sampled_from([0, 1]),
    "eviction_policy": st.sampled_from(["none", "x", "least-frequently-used"]),
    "new": st.sampled_from([1, "x"]),
}
STATEMENTS = st.sampled_from(
    [
        "DELETE FROM Cache",
        "DELETE FROM Settings",
        "DROP TABLE Settings",
        "DROP TABLE Cache",
        "CREATE TABLE other (x)",
        "PRAGMA user_version = 7",
        "CREATE TRIGGER t AFTER UPDATE ON Cache BEGIN DELETE FROM Cache; END",
        "ALTER TABLE Cache ADD COLUMN more",
        "DROP INDEX IF EXISTS Cache_key_raw",
        "CREATE VIEW v AS SELECT * FROM Cache",
    ]
)


@fuzz(60)
@given(data=st.data())
def test_a_cell_is_answered_rightly_whatever_happens_to_its_row(
    raw: RawServer, tmp_path: Path, data: st.DataObject
) -> None:
    """From the row where it is sound; else it is asked anew."""
    raw.reply = echo
    llm_magic.cache().clear()
    assert asked("Question?").response is not None
    with closing(sqlite3.connect(tmp_path / "cache" / "cache.db", isolation_level=None)) as db:
        value = db.execute("SELECT value FROM Cache WHERE typeof(value) = 'blob'").fetchone()[0]
        column = data.draw(st.sampled_from(["value", "value", "value", *COLUMNS]), label="column")
        odd = data.draw(COLUMNS.get(column, CHANGES | ODD_VALUES), label="value")
        if isinstance(odd, Change):
            odd = odd.of(value)
        db.execute(f"UPDATE OR IGNORE Cache SET {column} = ?", (odd,))

    second = asked("Question?")

    assert second.response is not None
    assert second.response.text == "To Question?"
    assert len(second.told) <= 1


@fuzz(8)
@given(data=st.data())
def test_a_cell_is_answered_rightly_whatever_happens_to_the_file(
    raw: RawServer, tmp_path: Path, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the next kernel: settings, tables, bytes and side files of the file may be anything."""
    raw.reply = echo
    folder = tmp_path / f"cache {data.draw(st.integers(0, 10**9), label='folder')}"
    monkeypatch.setenv("LLM_MAGIC_CACHE_DIR", str(folder))
    end_session()
    assert asked("Question?").response is not None
    end_session()
    path = folder / "cache.db"
    damage(path, data)

    second, third = asked("Question?"), asked("Another?")
    again = asked("Another?")
    end_session()

    for each, words in ((second, "Question?"), (third, "Another?"), (again, "Another?")):
        assert each.response is not None
        assert each.response.text == f"To {words}"
        assert len(each.told) <= 2
    assert again.response is not None
    assert again.response.cached


def damage(path: Path, data: st.DataObject) -> None:
    """Does something to a cache's file."""
    how = data.draw(
        st.sampled_from(["bytes", "cut", "settings", "sql", "side", "whole"]), label="how"
    )
    content = path.read_bytes()
    if how == "bytes":
        broken = bytearray(content)
        for _ in range(data.draw(st.integers(1, 20), label="count")):
            # The first page has the header and what tables there are.
            most = data.draw(st.sampled_from([100, 4096, len(broken) - 1]), label="within")
            place = data.draw(st.integers(0, most), label="place")
            broken[place] = data.draw(st.integers(0, 255), label="byte")
        path.write_bytes(broken)
    elif how == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content)), label="length")])
    elif how == "whole":
        path.write_bytes(data.draw(st.binary(max_size=200), label="bytes"))
    elif how == "side":
        side = data.draw(st.sampled_from(["-wal", "-shm", "-journal"]), label="side")
        noise = data.draw(st.binary(min_size=1, max_size=64), label="bytes")
        path.with_name(path.name + side).write_bytes(noise * 100)
    else:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            if how == "sql":
                db.execute(data.draw(STATEMENTS, label="statement"))
            else:
                name = data.draw(st.sampled_from(sorted(SETTINGS)), label="name")
                value = data.draw(SETTINGS[name], label="value")
                db.execute("INSERT OR REPLACE INTO Settings VALUES (?, ?)", (name, value))


# The store alone


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a cache of twenty rows."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    cache = DiskCache(folder)
    cache.put_many([(f"old {number}", _old(number)) for number in range(20)])
    cache.close()
    return folder / "cache.db"


def _old(number: int) -> bytes:
    return f"answer {number} ".encode() * 50


@fuzz(80)
@given(data=st.data())
def test_a_store_over_any_file_gives_what_was_put_or_nothing(
    filled: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    data: st.DataObject,
) -> None:
    monkeypatch.setattr(disk, "RETRY", 0.0)
    folder = tmp_path_factory.mktemp("any") / "cache"
    folder.mkdir(mode=0o700)
    (folder / "cache.db").write_bytes(filled.read_bytes())
    damage(folder / "cache.db", data)
    told: list[str] = []
    cache = DiskCache(folder, trouble=lambda message, fix: told.append(message))

    with not_hung():
        keys = [f"old {number}" for number in range(20)]
        found = {key: cache.get(key) for key in keys}
        many = cache.get_many(keys)
        cache.put("new", b"new")
        new = cache.get("new")
        listed = list(cache.rows())
        cache.size()
        cache.drop(1.0)
        cache.delete("old 3")
        gone = cache.get("old 3")
        cache.close()

    # What SQLite itself cannot see is seen by the checksum in each row, which these have none of.
    assert all(value is None or type(value) is bytes for value in found.values())
    assert all(type(value) is bytes for value in many.values())
    assert all(type(row.key) is str and type(row.value) is bytes for row in listed)
    assert (new, gone) == (b"new", None)
    assert len(told) <= 3


# What a row says

REQUEST = Request(({"role": "user", "content": "Question?"},), "m", "http://127.0.0.1:1/v1")
PRINT = fingerprint(REQUEST)
FORGED = pack(PRINT, answer("Yes."))[:16] + pack(PRINT, answer("No."))[16:]
"""Another answer behind the checksum of the one that was kept."""


@fuzz(200)
@given(change=CHANGES | st.sampled_from([*PICKLES, FORGED]))
def test_bytes_are_the_answer_that_was_kept_or_none(change: Change | bytes) -> None:
    value = change if isinstance(change, bytes) else change.of(pack(PRINT, answer("Yes.")))
    found = unpack(PRINT, value)

    assert found is None or found.text == "Yes."
    described = describe(PRINT.key, value)
    assert described is None or described[1].text == "Yes."


@fuzz(200)
@given(
    inner=st.one_of(
        st.binary(max_size=30),
        st.binary(max_size=30).map(lambda each: PRINT.canonical + b"\n" + each),
        JSON.map(lambda each: PRINT.canonical + b"\n" + json.dumps(each).encode()),
        st.sampled_from(PICKLES),
    ),
    compressed=st.booleans(),
)
def test_a_right_checksum_makes_no_answer_of_what_is_none(inner: bytes, compressed: bool) -> None:
    payload = zlib.compress(inner) if compressed else inner

    found = unpack(PRINT, _check(PRINT.key, payload) + payload)

    assert found is None


FIELDS = ["text", "model", "finish_reason", "usage", "reasoning", "cost", "seconds", "time", "more"]


@fuzz(200)
@given(field=st.sampled_from(FIELDS), value=JSON, count=st.sampled_from([None, *Usage.__slots__]))
def test_an_answer_of_an_odd_form_is_usable_or_none(
    field: str, value: Any, count: str | None
) -> None:
    plain = answer("Yes.").plain()
    if count is None:
        plain[field] = value
    else:
        plain["usage"][count] = value
    payload = zlib.compress(PRINT.canonical + b"\n" + json.dumps(plain).encode())

    found = unpack(PRINT, _check(PRINT.key, payload) + payload)

    if found is not None:
        assert type(found.text) is str
        assert found.usage.total_tokens >= 0
        assert str(found.usage + found.usage)
        assert found.cost is None or 0 <= found.cost < 1e15
        assert 0 <= found.seconds < 1e15
