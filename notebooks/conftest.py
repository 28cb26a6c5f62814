"""How the notebooks are tested: ``pytest --nbval notebooks``, with no key and no network.

Asked, the demo model answers, whatever the developer has set or asked before; with
LLM_MAGIC_MODE=replay each output must be the saved one to the letter.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GUARD = HERE.parent / "tests" / "guard"


def pytest_configure(config: pytest.Config) -> None:
    """Sets what the kernels of this run find in their environment."""
    if not config.getoption("nbval", default=False):
        return
    mode = os.environ.get("LLM_MAGIC_MODE", "live")
    if mode != "replay" and config.option.nbval_sanitize_with is None:
        config.option.nbval_sanitize_with = str(HERE / "nbval.cfg")
    # A process of pytest-xdist has the rest from the one that started it.
    if not hasattr(config, "workerinput"):
        _stand_alone(config, mode)


def _stand_alone(config: pytest.Config, mode: str) -> None:
    """Leaves the kernels of this run nothing of the developer's."""
    folder = tempfile.mkdtemp()
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    for name in [name for name in os.environ if name.startswith("LLM_MAGIC_")]:
        del os.environ[name]
    os.environ |= {
        # Empty and not left out, so that no .env file sets it.
        **dict.fromkeys(("OPENAI_API_KEY", "OPENAI_BASE_URL"), ""),
        **dict.fromkeys(("LLM_MAGIC_API_KEY", "LLM_MAGIC_BASE_URL"), ""),
        "LLM_MAGIC_MODE": mode,
        "LLM_MAGIC_CACHE_DIR": f"{folder}/cache",
        "LLM_MAGIC_LEDGER_DIR": f"{folder}/ledger",
        "PYTHONPATH": str(GUARD),
    }
