"""Several answers at once, in the background and side by side; the next cell; Tab."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from llm_magic.testing import Reply, ScriptedServer
from tests.browser.page import Desk, Notebook
from tests.conftest import SOON

pytestmark = pytest.mark.browser

WORDS = " ".join(f"word{number}" for number in range(200))
SLOW = Reply(WORDS, tokens_per_second=60)
BUSY = "import time\nfor _ in range(60): time.sleep(0.1)\nprint('done')"
CELLS = {
    "load": "%load_ext llm_magic",
    "one": "%%llm --bg\nOne",
    "two": "%%llm --bg\nTwo",
    "busy": BUSY,
    "compare": "%%llm --compare alpha,beta\nHello",
    "first": "%%llm -c talk\nFirst",
    "second": "%%llm -c talk\nSecond",
    "models": "%llm_models",
    "typed": "1",
    "code": "%%llm --code\nSix by seven",
}
AT = {name: number for number, name in enumerate(CELLS)}


@pytest.fixture(scope="module")
def opened(desk: Desk) -> Iterator[Notebook]:
    with desk.opened(*CELLS.values()) as notebook:
        notebook.run(AT["load"])
        yield notebook


@pytest.fixture
def notebook(opened: Notebook, server: ScriptedServer) -> Iterator[Notebook]:
    yield opened
    opened.leave_idle()  # After a test that failed.


def test_background_answers_stream_while_another_cell_runs(
    notebook: Notebook, server: ScriptedServer
) -> None:
    server.enqueue(SLOW, SLOW)
    one, two, busy = AT["one"], AT["two"], AT["busy"]
    notebook.run(one)
    server.wait_for_requests(1)
    notebook.run(two)
    notebook.start(busy)
    stops = notebook.page.get_by_role("button", name="Stop", exact=True)
    expect(stops).to_have_count(2)
    notebook.watch(one)
    notebook.page.wait_for_function("window.seen.words.length > 10")
    assert "[*]" in notebook.prompt(busy).inner_text()
    notebook.screenshot("background")

    # One of them ends at once, though the kernel is busy; the other goes on.
    stops.first.click()
    expect(notebook.outputs(one)).to_contain_text("stopped, incomplete", timeout=1000 * SOON)
    assert "[*]" in notebook.prompt(busy).inner_text()
    assert server.requests[0].closed.wait(10)
    expect(notebook.outputs(two)).to_contain_text("scripted-model · ", timeout=20_000)
    notebook.wait()

    assert notebook.output_text(busy) == "done"
    assert "word199" in notebook.output_text(two)
    saved = notebook.save()["cells"]
    assert [len(saved[cell]["outputs"]) for cell in (one, two)] == [1, 1]
    assert "".join(saved[two]["outputs"][0]["data"]["text/plain"]) == WORDS


def test_models_side_by_side_grow_at_the_same_time(
    notebook: Notebook, server: ScriptedServer
) -> None:
    server.enqueue(Reply(WORDS, tokens_per_second=100), Reply(WORDS, tokens_per_second=100))
    cell = AT["compare"]
    notebook.start(cell)
    columns = notebook.cells.nth(cell).locator(".llm-magic > div > .jp-RenderedHTML")
    for place in range(2):
        expect(columns.nth(place)).to_contain_text("word20")
    notebook.screenshot("compare-live")
    left, right = (columns.nth(place).bounding_box() for place in range(2))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"] + 1
    notebook.wait()

    text = notebook.output_text(cell)
    assert text.count("word199") == 2
    assert text.count(" in / ") == 2
    notebook.screenshot("compare")
    saved = notebook.save()
    assert len(saved["cells"][cell]["outputs"]) == 1
    assert "widgets" not in saved["metadata"]


def test_a_cell_run_again_replaces_its_turn(notebook: Notebook, server: ScriptedServer) -> None:
    for name in ("first", "second", "first"):
        notebook.run(AT[name])

    assert "drops the turn after it" in notebook.output_text(AT["first"])
    assert len(server.requests) == 2
    asked = [message["content"] for message in server.requests[1].body["messages"]]
    assert asked[::2] == ["First", "Second"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("%%llm -m scr", "scripted-model"), ("%%llm --comp", "--compare")],
)
def test_tab_completes(notebook: Notebook, typed: str, offered: str) -> None:
    notebook.run(AT["models"])
    notebook.cells.nth(AT["typed"]).locator(".cm-content").click()
    notebook.page.keyboard.press("Control+a")
    notebook.page.keyboard.type(typed)
    notebook.page.keyboard.press("Tab")

    shown = notebook.page.locator(".jp-Completer-item", has_text=offered)
    line = notebook.cells.nth(AT["typed"]).locator(".cm-content")
    notebook.until(
        lambda: shown.count() > 0 or offered in line.inner_text(), f"{offered} to be offered"
    )
    notebook.page.keyboard.press("Escape")


def test_code_goes_into_the_next_cell_once(notebook: Notebook, server: ScriptedServer) -> None:
    server.enqueue("Here:\n\n```python\nprint(6 * 7)\n```\n")
    code, after = AT["code"], AT["code"] + 1
    notebook.run(code)
    expect(notebook.cells).to_have_count(after + 1)
    expect(notebook.cells.nth(after).locator(".cm-content")).to_have_text("print(6 * 7)")
    assert notebook.prompt(after).inner_text().strip() in ("[ ]:", "[]:")
    notebook.save()

    notebook.run(code)
    notebook.run(after)

    expect(notebook.cells).to_have_count(after + 1)
    assert notebook.output_text(after) == "42"
