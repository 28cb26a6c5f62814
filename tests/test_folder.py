"""Which folders are used, and which are refused with what words."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from llm_magic.desk import Desk
from llm_magic.errors import StoreError, StoreWarning
from llm_magic.settings import LLMMagic
from llm_magic.stores import folder
from llm_magic.stores.folder import is_network, private_folder, usable_folder

posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX's")
as_root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusal(path: Path, setting: str = "cache_dir") -> StoreError:
    with pytest.raises(StoreError) as caught:
        private_folder(path, setting)
    return caught.value


@posix
def test_a_missing_folder_is_made_private_with_its_parents(tmp_path: Path) -> None:
    made = private_folder(tmp_path / "a" / "b", "cache_dir")

    assert made == (tmp_path / "a" / "b").resolve()
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700


def test_one_s_own_private_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    private_folder(tmp_path / "mine", "cache_dir")
    (tmp_path / "mine" / "letter.txt").write_text("kept")

    assert private_folder(tmp_path / "mine", "cache_dir") == (tmp_path / "mine").resolve()
    assert (tmp_path / "mine" / "letter.txt").read_text() == "kept"


@posix
@pytest.mark.parametrize("open_mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, open_mode: int) -> None:
    place = tmp_path / "it's open"
    place.mkdir()
    place.chmod(open_mode)

    error = refusal(place, "ledger_dir")

    assert str(place) in error.args[0]
    assert f"mode {open_mode:04o}" in error.args[0]
    assert "nothing is stored" in error.args[0]
    assert error.fix.startswith("chmod 700 '")
    assert "%config LLMMagic.ledger_dir" in error.fix
    assert mode(place) == open_mode


@posix
def test_the_shell_takes_the_fix_as_it_is_written(tmp_path: Path) -> None:
    place = tmp_path / "it's open"
    place.mkdir()
    place.chmod(0o777)

    command = refusal(place).fix.partition(", or")[0]

    assert os.system(command) == 0
    assert private_folder(place, "cache_dir") == place.resolve()


@as_root
@pytest.mark.parametrize("their_mode", [0o700, 0o755])
def test_another_user_s_folder_is_refused(tmp_path: Path, their_mode: int) -> None:
    place = tmp_path / "theirs"
    place.mkdir()
    place.chmod(their_mode)
    os.chown(place, 65534, 65534)

    error = refusal(place)

    assert "65534" in error.args[0]
    assert "not to you (0)" in error.args[0]
    assert "chmod" not in error.fix
    assert mode(place) == their_mode


@posix
@pytest.mark.parametrize("names", [(), ("cache.db", "cache.db-wal"), ("ledger.db",)])
def test_a_readable_folder_with_only_our_files_is_closed(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    place = tmp_path / "ours"
    place.mkdir()
    place.chmod(0o755)
    for name in names:
        (place / name).touch()

    private_folder(place, "cache_dir")

    assert mode(place) == 0o700


@posix
def test_a_folder_that_will_not_be_closed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "ours"
    place.mkdir()
    place.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)
    assert "mode 0755" in refusal(place).args[0]

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert "mode 0755" in refusal(place).args[0]


@posix
def test_a_readable_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "project"
    place.mkdir()
    place.chmod(0o755)
    (place / "cache.db").touch()
    (place / "thesis.ipynb").touch()

    error = refusal(place)

    assert "holds other files" in error.args[0]
    assert "a folder of its own" in error.fix
    assert mode(place) == 0o755


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "is a file and no folder" in refusal(tmp_path / "file").args[0]


def test_a_folder_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    error = refusal(tmp_path / "file" / "below" / "it")

    assert str(tmp_path / "file" / "below" / "it") in error.args[0]
    assert "Not a directory" in error.args[0] or "not find" in error.args[0]


@posix
def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(target)
    assert private_folder(tmp_path / "link", "cache_dir") == target.resolve()

    target.chmod(0o777)
    assert "mode 0777" in refusal(tmp_path / "link").args[0]


@posix
@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)

    assert "cannot be made" in refusal(tmp_path / "link").args[0]


def test_a_folder_on_this_machine_is_the_one_that_is_used(tmp_path: Path) -> None:
    assert usable_folder(tmp_path / "cache", "cache") == ((tmp_path / "cache").resolve(), "")


@posix
def test_the_local_folder_is_private_and_the_user_s(away: Path) -> None:
    place, why = usable_folder(away, "cache")

    assert why == f"The cache's folder {away} is on a network, where SQLite is not safe, so"
    assert not away.exists()
    assert place.parent == Path(tempfile.gettempdir()).resolve()
    assert str(os.getuid()) in place.name
    assert "cache" in place.name
    assert mode(place) == 0o700
    assert usable_folder(away, "cache")[0] == place
    assert usable_folder(away, "ledger")[0] != place


@as_root
def test_a_local_folder_that_somebody_made_before_us_is_refused(away: Path) -> None:
    place, _ = usable_folder(away, "cache")
    os.chown(place, 65534, 65534)

    with pytest.raises(StoreError, match="belongs to the user with id 65534"):
        usable_folder(away, "cache")


@posix
def test_the_ledger_of_a_folder_on_a_network_is_kept_on_this_machine(away: Path) -> None:
    desk = Desk(LLMMagic(ledger_dir=str(away)))
    desk.now(desk.quota.ledger.standing, desk.limits())
    desk.close()
    with pytest.warns(StoreWarning) as told:
        desk.warn()

    (used,) = Path(tempfile.gettempdir()).iterdir()
    assert [str(each.message) for each in told] == [
        f"The ledger's folder {away} is on a network, where SQLite is not safe, so usage is "
        f"counted in {used.resolve()}, for this machine alone. Choose a local folder: "
        '%config LLMMagic.ledger_dir = "..."'
    ]
    assert (used / "ledger.db").exists()
    assert not away.exists()


MOUNTS = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:40 / /home rw,relatime shared:5 - nfs4 server:/home rw,vers=4.2
24 23 0:41 / /home/ada/scratch rw - xfs /dev/sdb rw
25 22 0:42 / /mnt/with\040space rw - cifs //server/share rw
26 22 0:43 / /mnt/buckets rw master:1 - fuse.s3fs s3fs rw
27 22 0:44 / /mnt/private rw - fuse.gocryptfs /crypt rw
28 22 0:45 / /mnt/c rw - 9p drvfs rw
29 22 0:46 / /mnt/twice rw - nfs server:/x rw
30 29 0:47 / /mnt/twice rw - tmpfs tmpfs rw
31 22 0:48 / /mnt/cluster rw - lustre 10.0.0.1@tcp:/fs rw
32 22 0:49 / /mnt/tab\011and\134 rw - ceph mon:/ rw
33 22 0:50 / /mnt/Drive rw - fuse.drive drive rw
half a line
34 22 0:51 / /mnt/cut rw -
"""


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/", False),
        ("/var/cache", False),
        ("/home", True),
        ("/home/ada/.cache/llm_magic", True),
        ("/homework", False),
        ("/home/ada/scratch/cache", False),
        ("/home/ada/scratches", True),
        ("/mnt/with space/cache", True),
        ("/mnt/with", False),
        ("/mnt/buckets/x", True),
        ("/mnt/private/x", False),
        ("/mnt/c/Users", False),
        ("/mnt/twice/x", False),
        ("/mnt/cluster", True),
        ("/mnt/tab\tand\\/x", True),
        ("/mnt/Drive/MyDrive", True),
        ("/mnt/cut/x", False),
    ],
)
def test_the_nearest_mount_decides_whether_it_is_a_network(
    monkeypatch: pytest.MonkeyPatch, path: str, network: bool
) -> None:
    monkeypatch.setattr(folder, "_mountinfo", lambda: MOUNTS)
    monkeypatch.setattr(os.path, "realpath", lambda path: str(path))

    assert is_network(Path(path)) is network


@posix
def test_a_link_to_a_network_is_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    real = os.path.realpath(tmp_path)
    monkeypatch.setattr(
        folder, "_mountinfo", lambda: f"1 1 0:1 / {real}/far rw - nfs4 server:/far rw\n"
    )

    assert is_network(tmp_path / "link" / "not yet there")
    assert not is_network(tmp_path / "not yet there")


def test_where_mounts_are_not_listed_nothing_is_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_mountinfo", lambda: "")

    assert not is_network(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="Linux lists its mounts")
def test_the_mounts_of_this_machine_are_read(tmp_path: Path) -> None:
    assert " - " in folder._mountinfo()
    assert not is_network(Path("/proc"))
