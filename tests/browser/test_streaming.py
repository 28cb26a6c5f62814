"""What a user sees of an answer while it comes, in JupyterLab and in Notebook 7."""

from collections.abc import Iterator

import pytest

from llm_magic.testing import Reply, ScriptedServer
from tests.browser.page import Desk, Notebook
from tests.conftest import SOON

pytestmark = pytest.mark.browser

TALL = "\n".join(["# filler"] * 12)
ABOVE, ASK, LAST = 2, 4, 8
CELLS = ["%load_ext llm_magic", TALL, TALL, TALL, "%%llm --no-cache\nHello", TALL, TALL, TALL]
# A paragraph each, so that the answer gets higher than the window.
SHORT = Reply(deltas=[f"word{number}\n\n" for number in range(200)], tokens_per_second=100)
LONG = Reply(deltas=[f"word{number} " for number in range(6000)], tokens_per_second=100)


@pytest.fixture(scope="module")
def opened(desk: Desk) -> Iterator[Notebook]:
    with desk.opened(*CELLS, "'still there'") as notebook:
        notebook.run(0)
        yield notebook


@pytest.fixture
def notebook(opened: Notebook, server: ScriptedServer) -> Iterator[Notebook]:
    yield opened
    opened.leave_idle()  # After a test that failed.


def begin(notebook: Notebook, server: ScriptedServer, reply: Reply) -> None:
    server.enqueue(reply)
    notebook.start(ASK)
    server.wait_for_requests(1)


def shown(notebook: Notebook) -> int:
    """How many of the numbered words are on screen."""
    return notebook.output_text(ASK).count("word")


def test_the_answer_grows_on_screen(notebook: Notebook, server: ScriptedServer) -> None:
    begin(notebook, server, SHORT)

    notebook.watch(ASK)
    notebook.wait()

    words = notebook.seen()["words"]
    assert words == sorted(words)
    assert len(set(words)) > 10
    assert words[-1] == len(SHORT.deltas or "")


def test_interrupt_ends_cell_and_connection(notebook: Notebook, server: ScriptedServer) -> None:
    begin(notebook, server, LONG)
    notebook.until(lambda: shown(notebook) > 20, "words are on screen")

    notebook.interrupt()

    assert server.requests[0].closed.wait(10)
    notebook.wait(seconds=SOON)
    assert 20 < shown(notebook) < len(LONG.deltas or "")
    assert "stopped" in notebook.output_text(ASK)


def test_a_cell_runs_after_an_interrupt(notebook: Notebook, server: ScriptedServer) -> None:
    begin(notebook, server, LONG)
    notebook.interrupt()
    notebook.wait()

    notebook.run(LAST)

    assert notebook.output_text(LAST) == "'still there'"


@pytest.mark.parametrize("reads", [ASK, ABOVE], ids=["the answer", "what is above it"])
def test_the_page_stands_still(notebook: Notebook, server: ScriptedServer, reads: int) -> None:
    begin(notebook, server, SHORT)
    notebook.until(lambda: shown(notebook) > 20, "words are on screen")
    notebook.scroll_to(reads)

    notebook.watch(reads)
    notebook.wait()

    seen = notebook.seen()
    assert len(seen["tops"]) == len(seen["scrolls"]) == 1, seen
    assert shown(notebook) == len(SHORT.deltas or "")
