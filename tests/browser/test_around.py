"""Several answers at once, in the background and side by side; the next cell; Tab."""

import pytest
from playwright.sync_api import expect

from llm_magic.testing import Reply, ScriptedServer
from tests.browser.page import Desk

pytestmark = pytest.mark.browser

LOAD = "%load_ext llm_magic"
WORDS = " ".join(f"word{number}" for number in range(200))
SLOW = Reply(WORDS, tokens_per_second=60)
BUSY = "import time\nfor _ in range(60): time.sleep(0.1)\nprint('done')"


def test_background_answers_stream_while_another_cell_runs(
    desk: Desk, server: ScriptedServer
) -> None:
    server.enqueue(SLOW, SLOW)
    with desk.opened(LOAD, "%%llm --bg\nOne", "%%llm --bg\nTwo", BUSY) as notebook:
        notebook.run(0)
        notebook.run(1)
        notebook.run(2)
        notebook.start(3)
        stops = notebook.page.get_by_role("button", name="Stop", exact=True)
        expect(stops).to_have_count(2)
        notebook.watch(1)
        notebook.page.wait_for_function("window.seen.words.length > 10")
        assert "[*]" in notebook.prompt(3).inner_text()
        notebook.screenshot("background")

        # One of them ends at once, though the kernel is busy; the other goes on.
        stops.first.click()
        expect(notebook.outputs(1)).to_contain_text("stopped, incomplete", timeout=1000)
        assert "[*]" in notebook.prompt(3).inner_text()
        assert server.requests[0].closed.wait(1)
        expect(notebook.outputs(2)).to_contain_text("scripted-model · ", timeout=20_000)
        notebook.wait()

        assert notebook.output_text(3) == "done"
        assert "word199" in notebook.output_text(2)
        saved = notebook.save()
    assert [len(cell["outputs"]) for cell in saved["cells"]] == [0, 1, 1, 1]
    assert "".join(saved["cells"][2]["outputs"][0]["data"]["text/plain"]) == WORDS


def test_models_side_by_side_grow_at_the_same_time(desk: Desk, server: ScriptedServer) -> None:
    server.enqueue(Reply(WORDS, tokens_per_second=100), Reply(WORDS, tokens_per_second=100))
    with desk.opened(LOAD, "%%llm --compare alpha,beta\nHello") as notebook:
        notebook.run(0)
        notebook.start(1)
        columns = notebook.cells.nth(1).locator(".llm-magic > div > .jp-RenderedHTML")
        for place in range(2):
            expect(columns.nth(place)).to_contain_text("word20")
        notebook.screenshot("compare-live")
        boxes = [columns.nth(place).bounding_box() for place in range(2)]
        assert boxes[0] is not None
        assert boxes[1] is not None
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] + 1
        notebook.wait()

        text = notebook.output_text(1)
        assert text.count("word199") == 2
        assert text.count(" in / ") == 2
        notebook.screenshot("compare")
        saved = notebook.save()
    assert len(saved["cells"][1]["outputs"]) == 1
    assert "widgets" not in saved["metadata"]


def test_code_goes_into_the_next_cell_once(desk: Desk, server: ScriptedServer) -> None:
    server.enqueue("Here:\n\n```python\nprint(6 * 7)\n```\n")
    with desk.opened(LOAD, "%%llm --code\nSix by seven") as notebook:
        notebook.run(0)
        notebook.run(1)
        expect(notebook.cells).to_have_count(3)
        expect(notebook.cells.nth(2).locator(".cm-content")).to_have_text("print(6 * 7)")
        assert notebook.prompt(2).inner_text().strip() in ("[ ]:", "[]:")
        notebook.save()

        notebook.run(1)
        notebook.run(2)

        expect(notebook.cells).to_have_count(3)
        assert notebook.output_text(2) == "42"


def test_a_cell_run_again_replaces_its_turn(desk: Desk, server: ScriptedServer) -> None:
    with desk.opened(
        LOAD, "%%llm -c talk\nOne", "%%llm -c talk\nTwo", "%llm_chat list"
    ) as notebook:
        for cell in range(3):
            notebook.run(cell)
        notebook.run(1)
        assert "drops the turn after it" in notebook.output_text(1)
        notebook.run(3)
        assert "talk" in notebook.output_text(3)

    assert len(server.requests) == 2
    assert [message["content"] for message in server.requests[1].body["messages"]][::2] == [
        "One",
        "Two",
    ]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("%%llm -m scr", "scripted-model"),
        ("%%llm --comp", "--compare"),
        ("%%llm --eff", "--effort"),
    ],
)
def test_tab_completes(desk: Desk, server: ScriptedServer, typed: str, offered: str) -> None:
    with desk.opened(LOAD, "%llm_models", "1") as notebook:
        notebook.run(0)
        notebook.run(1)
        notebook.cells.nth(2).locator(".cm-content").click()
        notebook.page.keyboard.press("Control+a")
        notebook.page.keyboard.type(typed)
        notebook.page.keyboard.press("Tab")

        shown = notebook.page.locator(".jp-Completer-item", has_text=offered)
        line = notebook.cells.nth(2).locator(".cm-content")
        notebook.until(
            lambda: shown.count() > 0 or offered in line.inner_text(), f"{offered} to be offered"
        )
