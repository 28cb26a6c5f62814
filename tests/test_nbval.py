"""The example notebooks give what is saved: asked, and replayed to the letter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parent.parent
NBVAL = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "notebooks"]


def cells() -> int:
    """How many cells of code all notebooks have."""
    books = (json.loads(path.read_text("utf-8")) for path in (ROOT / "notebooks").glob("*.ipynb"))
    return sum(cell["cell_type"] == "code" for book in books for cell in book["cells"])


@pytest.mark.parametrize("mode", ["live", "replay"])
def test_each_output_is_the_saved_one(mode: str) -> None:
    """As ``make nbval``, with the network blocked, and where the developer has set other things."""
    own = {"LLM_MAGIC_MODE": mode, "LLM_MAGIC_MODEL": "another", "OPENAI_API_KEY": "sk-not-asked"}

    ran = subprocess.run(
        NBVAL, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=600
    )

    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-1000:]
    assert f"{cells()} passed" in ran.stdout
    assert "skipped" not in ran.stdout
