"""Wheel and sdist: what is in them, and that the library needs nothing but what it says.

`make package` installs them as users do, from the package index.
"""

import email
import importlib.metadata
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from tests.distributions import PROJECT, ROOT, built, exported

JUNK = ("notes.txt", "dist/old.whl", ".env", "llm_magic/__pycache__/x.pyc", ".venv/bin/python")
# Finds only what is Python's own or of the distributions named; then runs a script.
GATE = """\
import json, runpy, sys
from importlib.machinery import PathFinder
target, packages, allowed, script = sys.argv[1:]
python = list(sys.path)
sys.path[:0] = [target, packages]
allowed = set(json.loads(allowed))

class Gate(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if path is None and name not in allowed:
            path = python
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Gate
sys.argv = [script]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which something has been done."""
    tree = exported(tmp_path_factory.mktemp("clone") / "tree")
    for name in JUNK:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("junk")
    return tree


@pytest.fixture(scope="module")
def distributions(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of it."""
    return built(tree, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def wheel(distributions: tuple[Path, Path]) -> dict[str, bytes]:
    """The files of the wheel."""
    return unzipped(distributions[0])


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    """What the wheel says about itself."""
    (name,) = (name for name in wheel if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel[name])


def unzipped(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_the_library_and_nothing_else(tree: Path, wheel: dict[str, bytes]) -> None:
    about = f"llm_magic-{PROJECT['version']}.dist-info"
    library = {
        str(path.relative_to(tree))
        for path in (tree / "llm_magic").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }

    assert wheel.keys() == library | {
        f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")
    }
    assert "llm_magic/py.typed" in wheel


def test_the_sdist_has_what_the_repository_has_and_no_junk(
    tree: Path, distributions: tuple[Path, Path]
) -> None:
    """Library, tests, notebooks and texts: a packager builds from it, and runs the tests."""
    with tarfile.open(distributions[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}

    assert names == (files - set(JUNK)) | {"PKG-INFO"}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "tests/conftest.py"} <= names


def test_the_sdist_gives_the_same_wheel(
    distributions: tuple[Path, Path], wheel: dict[str, bytes], tmp_path: Path
) -> None:
    with tarfile.open(distributions[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    (tmp_path / "again").mkdir()

    assert unzipped(built(unpacked, tmp_path / "again")[0]) == wheel


def test_the_licence_is_said_as_spdx_says_it(metadata: Message, wheel: dict[str, bytes]) -> None:
    assert metadata["Metadata-Version"] == "2.4"
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    # Index servers refuse a classifier beside the expression.
    assert not [each for each in metadata.get_all("Classifier", []) if "License" in each]
    licence = next(text for name, text in wheel.items() if name.endswith("licenses/LICENSE"))
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_the_classifiers_name_the_pythons_that_the_readme_names(metadata: Message) -> None:
    classifiers = metadata.get_all("Classifier", [])
    minors = [int(found) for found in re.findall(r":: 3\.(\d+)", "\n".join(classifiers))]
    readme = re.search(r"Python 3\.(\d+) to 3\.(\d+)", (ROOT / "README.md").read_text())

    assert readme is not None
    first, last = map(int, readme.groups())
    assert minors == list(range(first, last + 1))
    assert metadata["Requires-Python"] == f">=3.{first}"


def test_the_readme_is_the_long_description(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    body = metadata.get_payload(decode=True)
    assert isinstance(body, bytes)
    assert body.decode().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_the_version_is_written_in_one_place(tree: Path) -> None:
    version = PROJECT["version"]
    named = [
        path.name
        for path in [*(tree / "llm_magic").rglob("*.py"), *tree.glob("*.*")]
        if path.is_file() and f'"{version}"' in path.read_text(encoding="utf-8")
    ]

    assert named == ["pyproject.toml"]


def test_no_extra_is_a_dependency(metadata: Message) -> None:
    needed = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]

    assert sorted(map(name_of, needed)) == sorted(map(name_of, PROJECT["dependencies"]))
    assert {"dask", "redis"} <= set(metadata.get_all("Provides-Extra", []))


def name_of(requirement: str) -> str:
    """The distribution that a requirement asks for, as it is normalised."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found.group()).lower()


def closure() -> set[str]:
    """The distributions that an installation without extras has, as far as they are here."""
    found: set[str] = set()
    todo = [name_of(each) for each in PROJECT["dependencies"]]
    while todo:
        name = todo.pop()
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system
        if name not in found:
            found.add(name)
            todo += [name_of(each) for each in requires if "extra ==" not in each]
    return found


def modules_of(distributions: set[str]) -> set[str]:
    """The names that can be imported of them."""
    return {
        module
        for module, homes in importlib.metadata.packages_distributions().items()
        if distributions & set(map(name_of, homes))
    }


def test_it_works_with_its_dependencies_alone(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    """A stream, the cache, a limit, a schema, rows; and what is missing is named."""
    allowed = sorted(modules_of(closure()) | {"llm_magic"})
    assert not {"pandas", "polars", "pyarrow", "redis", "distributed", "ipykernel"} & set(allowed)
    target = tmp_path / "installed"
    options = ["--no-deps", "--no-index", "--no-compile", "--target", target]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *options, distributions[0]]
    subprocess.run(pip, check=True, timeout=60)

    command = [sys.executable, "-I", "-S", "-c", GATE, target, sysconfig.get_path("purelib")]
    script = ROOT / "tests" / "clean_room.py"
    done: Any = subprocess.run(
        [*command, json.dumps(allowed), script], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"llm_magic {PROJECT['version']} from {target}" in done.stdout
