"""No fault of a disk costs an answer: cells on folders that are broken in every way."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llm_magic import session
from llm_magic.errors import StoreError, StoreWarning
from llm_magic.testing import ScriptedServer
from tests.conftest import Ran, Terminal, end_session

pytestmark = pytest.mark.usefixtures("keeping")

LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


def restart(terminal: Terminal) -> None:
    end_session()
    terminal.run("%load_ext llm_magic")


def told(terminal: Terminal, cell: str) -> tuple[Ran, list[str], float]:
    """Runs a cell; what it gave, the warnings it made, and how many seconds it took."""
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ran = terminal.run(cell)
    words = [str(each.message) for each in caught if each.category is StoreWarning]
    return ran, words, time.monotonic() - began


def random_bytes(folder: Path) -> None:
    (folder / "cache.db").write_bytes(os.urandom(50_000))


def half_of_it(folder: Path) -> None:
    file = folder / "cache.db"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def flipped_bits(folder: Path) -> None:
    file = folder / "cache.db"
    data = bytearray(file.read_bytes())
    for place in range(100, len(data), 97):
        data[place] ^= 255
    file.write_bytes(data)


def open_to_all(folder: Path) -> None:
    folder.chmod(0o777)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


@pytest.mark.parametrize("break_it", [random_bytes, half_of_it, flipped_bits, open_to_all, a_file])
def test_a_broken_folder_costs_one_warning(
    break_it: Callable[[Path], None], terminal: Terminal, server: ScriptedServer
) -> None:
    for n in range(5):
        terminal.run(f"%llm -m m Before {n}")
    end_session()
    break_it(Path("cache"))
    for side in ("cache/cache.db-wal", "cache/cache.db-shm"):
        if os.path.exists(side):
            os.remove(side)
    terminal.run("%load_ext llm_magic")
    terminal.run("import openai")
    server.reset()

    first, words, seconds = told(terminal, "%llm -m m Hello")
    again, more, _ = told(terminal, "%llm -m m Hello")

    assert first.error is None
    assert first.value.text == "This is a scripted answer."
    assert seconds < 2.5
    assert again.value.cached, "the answer that was just paid for is gone"
    assert len(words + more) == 1, words + more
    assert "cache" in words[0]
    assert len(server.requests) == 1


def fill(disk: Path, leaving: int = 0) -> None:
    """Leaves so many bytes free, or none."""
    with suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
        while shutil.disk_usage(disk).free > leaving:
            file.write(bytes(1024))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 400 kB."""
    place = tmp_path / "full"
    place.mkdir()
    if os.name == "nt" or os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    if session._session:
        session._session.close()
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up(
    full_disk: Path, terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_CACHE_DIR", str(full_disk / "cache"))
    terminal.run("%llm -m m Before")
    fill(full_disk, leaving=4096)
    server.reset()
    words = []
    for n in range(10):
        server.enqueue(os.urandom(3000).hex())
        ran, more, seconds = told(terminal, f"%llm -m m Number {n}")
        words += more
        assert ran.error is None
        assert seconds < 2.5
    again, more, _ = told(terminal, "%llm -m m Number 9")

    assert again.value.cached
    assert len(words + more) == 1, words + more
    assert "full" in words[0]
    # What is on the disk can still be read after a restart on the full disk.
    restart(terminal)
    before, _, _ = told(terminal, "%llm -m m Before")
    assert before.value.cached


def test_a_read_only_disk(
    full_disk: Path, terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_CACHE_DIR", str(full_disk / "cache"))
    terminal.run("%llm -m m Before")
    end_session()
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    terminal.run("%load_ext llm_magic")
    server.reset()

    before, words, _ = told(terminal, "%llm -m m Before")
    ran, more, seconds = told(terminal, "%llm -m m Hello")
    again, still_more, _ = told(terminal, "%llm -m m Hello")

    assert before.value.cached, "what is stored can be read"
    assert ran.error is None
    assert seconds < 2.5
    assert again.value.cached
    assert len(server.requests) == 1
    words += more + still_more
    assert len(words) == 1, words
    assert "cannot be written" in words[0]


def test_a_folder_deleted_under_the_kernel(terminal: Terminal, server: ScriptedServer) -> None:
    terminal.run("%llm -m m Before")
    shutil.rmtree("cache")
    ran, words, _ = told(terminal, "%llm -m m Hello")
    _, more, _ = told(terminal, "%llm -m m Other")
    restart(terminal)
    again = terminal.run("%llm -m m Hello")

    assert ran.error is None
    assert again.value.cached
    assert len(words + more) == 1, words + more


def locker(file: str) -> subprocess.Popen[str]:
    """Another process that has the file and does not let go."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().strip() == "locked"
    return process


@pytest.mark.parametrize("opened", [True, False])
def test_a_cache_locked_by_another_process(
    opened: bool, terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%llm -m m Before")
    if not opened:
        restart(terminal)
    server.reset()
    with locker("cache/cache.db") as process:
        before, words, waited = told(terminal, "%llm -m m Before")
        ran, more, seconds = told(terminal, "%llm -m m Hello")
        again, still_more, _ = told(terminal, "%llm -m m Hello")
        process.communicate()
    words += more + still_more

    assert before.value.cached
    assert waited < 2.5
    assert ran.error is None
    assert seconds < 2.5
    assert again.value.cached
    assert len(server.requests) == 1
    assert len(words) == 1, words
    # What could not be written then is written now.
    restart(terminal)
    assert terminal.run("%llm -m m Hello").value.cached


def test_a_ledger_locked_by_another_process_lets_nothing_pass(
    terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.run("%llm -m m Before")
    server.reset()
    with locker("ledger/ledger.db") as process:
        hit, _, _ = told(terminal, "%llm -m m Before")
        refused, _, seconds = told(terminal, "%llm -m m Hello")
        # Only a damaged ledger is set aside.
        assert type(terminal.run("%llm_quota --reset").error) is StoreError
        left = {each.name for each in Path("ledger").iterdir()}
        assert left <= {"ledger.db", "ledger.db-wal", "ledger.db-shm"}
        monkeypatch.setenv("LLM_MAGIC_QUOTA_STRICT", "0")
        passed, words, waited = told(terminal, "%llm -m m Hello")
        process.communicate()

    assert hit.value.cached, "an answer that costs nothing needs no ledger"
    assert type(refused.error) is StoreError
    assert "locked" in refused.out
    assert seconds < 2.5
    assert passed.error is None
    assert waited < 3.5
    assert len(words) == 1, words
    assert len(server.requests) == 1


def test_a_ledger_on_a_full_disk_lets_nothing_pass(
    full_disk: Path, terminal: Terminal, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_LEDGER_DIR", str(full_disk / "ledger"))
    terminal.run("%llm -m m Before")
    fill(full_disk)
    server.reset()
    errors = [terminal.run(f"%llm -m m Number {n}").error for n in range(60)]
    refused = [error for error in errors if error]

    assert refused
    assert all(type(error) is StoreError for error in refused)
    assert "full" in str(refused[0])
    assert len(server.requests) == 60 - len(refused)
    # Nothing that was sent went uncounted: what could not be settled stays held in full.
    (full_disk / "filling").unlink()
    assert terminal.run("%llm -m m Afterwards").error is None


def test_the_ledger_s_folder_is_not_the_cache_s(terminal: Terminal) -> None:
    terminal.run("%llm -m m Hello")
    shutil.rmtree("cache")

    with sqlite3.connect("ledger/ledger.db") as database:
        assert database.execute("SELECT COUNT(*) FROM calls").fetchone() == (1,)


def test_warnings_have_no_path_of_ours(terminal: Terminal) -> None:
    Path("cache").mkdir(mode=0o777)
    Path("cache").chmod(0o777)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        terminal.run("%llm -m m Hello")
        terminal.run("%llm -m m Other")

    (ours,) = [each for each in caught if each.category is StoreWarning]
    shown = warnings.formatwarning(ours.message, ours.category, ours.filename, ours.lineno)
    assert shown.startswith("llm_magic:1: StoreWarning: ")
    assert "chmod 700" in shown
    assert len(shown.splitlines()) == 1
