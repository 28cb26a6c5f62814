"""What a user sees of an answer while it comes, in JupyterLab and in Notebook 7."""

import pytest

from llm_magic.testing import Reply, ScriptedServer
from tests.browser.page import Notebook

pytestmark = pytest.mark.browser

LOAD = "%load_ext llm_magic"
WORDS = [f"word{number} " for number in range(300)]
SLOW = Reply(deltas=WORDS, tokens_per_second=100)


def test_the_answer_grows_on_screen(notebook: Notebook, server: ScriptedServer) -> None:
    server.enqueue(SLOW)
    notebook.open(LOAD, "%%llm\nHello")
    notebook.run(0)

    notebook.watch(1)
    notebook.run(1)

    words = notebook.seen()["words"]
    assert words == sorted(words)
    assert len(set(words)) > 10
    assert words[-1] == len(WORDS)
