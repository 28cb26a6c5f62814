"""Installs the package as users do and tries it: ``make package``.

Each form goes into an empty environment of its own, from the package index; what is tried then
stays on this machine. Takes the wheel and the sdist of the working tree.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.distributions import PROJECT, ROOT, built, exported

LOWEST_PYTHON = "3.11"
LOWEST_EXTRAS = ("redis", "dask", "demo")
# Through most of what depends on a library's version. (Completion has less to offer in IPython 7.)
LOWEST_TESTS = ("api", "terminal", "schema", "faults", "whole", "prices", "table")
LOWEST_NEEDS = ("pandas", "polars", "pyarrow", "pillow", "pytest", "pytest-xdist", "hypothesis")


def main() -> None:
    """Tries each form, two at a time, and says what became of it."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        tree = exported(folder / "tree")
        wheel, sdist = built(tree, folder)
        runs = [
            pool.submit(lowest, folder, wheel, tree),
            pool.submit(form, folder, "wheel", [str(wheel)]),
            pool.submit(form, folder, "sdist", [str(sdist)]),
            pool.submit(form, folder, "extras", [f"{wheel}[redis,dask]"], ["redis", "dask"]),
            pool.submit(types, folder, wheel, tree),
        ]
        for run in runs:
            print(run.result(), flush=True)
    print(f"{time.monotonic() - begun:.0f} s")


def form(folder: Path, name: str, wanted: Sequence[str], extras: Sequence[str] = ()) -> str:
    """Installs into an empty environment, and tries cells there."""
    begun = time.monotonic()
    python = environment(folder / name)
    pip(python, ["--no-compile", *wanted])
    pip(python, [], "check")
    said = tried(python, extras)
    count = len(list(site_packages(python).glob("*.dist-info")))
    return told(name, begun, f"{count} distributions; {said}")


def lowest(folder: Path, wheel: Path, tree: Path) -> str:
    """The lowest versions that pyproject.toml allows, and some tests with them.

    With the frames of the demo extra, since many have pandas before 3.
    """
    begun = time.monotonic()
    found = shutil.which(f"python{LOWEST_PYTHON}")
    if f"{sys.version_info.major}.{sys.version_info.minor}" == LOWEST_PYTHON:
        found = sys.executable
    if found is None:
        return f"lowest: not tried, since there is no python{LOWEST_PYTHON}"
    python = environment(folder / "lowest", found)
    constraints = folder / "lowest.txt"
    constraints.write_text("\n".join(bounds()))
    own = [f"{wheel}[redis,dask]", *LOWEST_NEEDS]
    pip(python, ["--no-compile", *own, "--constraint", str(constraints)])
    said = tried(python, ["redis", "dask"])
    # The library of the tree is not to stand in for that of the wheel.
    shutil.copytree(tree / "tests", folder / "only" / "tests")
    shutil.copy(tree / "pyproject.toml", folder / "only")
    tests = [f"tests/test_{name}.py" for name in LOWEST_TESTS]
    ran = run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], folder / "only")
    return told("lowest", begun, f"{len(bounds())} bounds; {said}; {ran.splitlines()[-1]}")


def types(folder: Path, wheel: Path, tree: Path) -> str:
    """Users' calls, against the types of the wheel."""
    begun = time.monotonic()
    python = environment(folder / "types")
    pip(python, [str(wheel), "--no-deps", "--no-index"])
    # The rest is that of the environment of development; its own llm_magic comes after the wheel's.
    rest = site_packages(Path(sys.executable))
    (site_packages(python) / "rest.pth").write_text(str(rest))
    (folder / "user").mkdir()
    shutil.copy(tree / "tests" / "typing_api.py", folder / "user")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python]
    cache = ["--cache-dir", folder / "mypy", "--config-file", os.devnull]
    said = run([*command, *cache, "typing_api.py"], folder / "user")
    return told("types", begun, said.strip())


def bounds() -> list[str]:
    """A pin of each dependency to the lowest version that is allowed."""
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(one for name in LOWEST_EXTRAS for one in extras[name])]
    return [re.sub(r"([\w.-]+)>=([\w.]+).*", r"\1==\2", each) for each in wanted]


def environment(folder: Path, base: str = sys.executable) -> Path:
    """An empty one; its Python."""
    run([base, "-m", "venv", folder], ROOT)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def site_packages(python: Path) -> Path:
    """Where an environment has its libraries."""
    line = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run([python, "-I", "-c", line], ROOT).strip())


def pip(python: Path, wanted: Sequence[str], command: str = "install") -> None:
    """What a user types, and how it is checked."""
    run([python, "-m", "pip", command, "--disable-pip-version-check", *wanted], ROOT)


def tried(python: Path, extras: Sequence[str]) -> str:
    """What the cells said."""
    said = run([python, "-I", ROOT / "tests" / "clean_room.py", *extras], ROOT)
    return said.strip().rpartition(": ")[2]


def run(command: Sequence[str | Path], folder: Path) -> str:
    """What a command says; it must succeed."""
    # pip is told by its variables where the index is; Python is not to be told where to look.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def told(name: str, begun: float, what: str) -> str:
    """A line about a form."""
    return f"{name}: {what} ({time.monotonic() - begun:.0f} s)"


if __name__ == "__main__":
    main()
