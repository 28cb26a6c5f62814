"""Wheel and sdist, built from what git knows of the working tree."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_BUILD = (
    "import sys; from hatchling import build\n"
    "print(build.build_wheel(sys.argv[1]), build.build_sdist(sys.argv[1]))"
)


def exported(to: Path) -> Path:
    """The tree as a fresh clone would have it, and what is new and not ignored."""
    if not (ROOT / ".git").exists():
        # An unpacked sdist, or a copy.
        ignored = shutil.ignore_patterns(".venv", "__pycache__", ".*_cache", ".hypothesis", "dist")
        return Path(shutil.copytree(ROOT, to, ignore=ignored))
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def built(tree: Path, to: Path) -> tuple[Path, Path]:
    """Wheel and sdist of a tree, by the build backend of this environment."""
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, to], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, sdist = done.stdout.split()[-2:]
    return to / wheel, to / sdist
