"""The widget of an answer while it comes: what it shows, and that its button stops the answer."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import WebSocketRoute, expect

from llm_magic.testing import Reply, ScriptedServer
from tests.browser.page import LEAST_CONTRAST, Desk, Notebook
from tests.conftest import SOON

pytestmark = pytest.mark.browser

LOAD = """%load_ext llm_magic
from pydantic import BaseModel
class City(BaseModel):
    name: str
    people: int"""
ASK, NEXT, TABLE, LEFT, HURRY, BUSY = range(1, 7)
CELLS = [
    LOAD,
    "%%llm --no-cache\nHello",
    "open('ran', 'a').write('x')",
    "%%llm cities << --no-cache --schema list[City]\nHello",
    "import ipywidgets; len(ipywidgets.widget._instances)",
    "from llm_magic.views import live; live.OPENS = live.SHOWS = 2",
    """import time
open('ran', 'a').write('began')
end = time.monotonic() + 1.5
while time.monotonic() < end:
    pass
open('ran', 'a').write(' and ended')""",
]
NEVER = Reply("Too late.", delay=60)
WORDS = [f"word{number}\n\n" for number in range(3000)]
LONG = Reply(deltas=WORDS, tokens_per_second=60)
THOUGHTS = "First I weigh what the question asks. " * 5
# Pieces that all are on screen for a moment, with all kinds of blocks.
PROSE = "\n\n".join(
    [
        "## Heading\n\nSome *words*, `code` and a formula: $x^2 + y^2$.",
        "- one\n- two\n- three",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "```python\nx = 1  # one\n```",
        "$$\\int_0^1 x\\,dx$$",
        "Last words.",
    ]
)
CITIES = [{"name": f"City {number}", "people": number * 1000} for number in range(8)]
CHANNELS = re.compile(r"/api/kernels/.*/channels")
HEARD = b'"heard"'

# Notes on every frame where the elements of a cell that a selector finds are on the screen.
PLACES = """(cell, selector) => {
    window.places = [];
    const look = () => {
        const element = cell.querySelector(selector);
        if (element) {
            const {x, y, width, height} = element.getBoundingClientRect();
            const place = [x, y, width, height].map(each => Math.round(each * 4) / 4).join();
            if (window.places.at(-1) !== place) window.places.push(place);
        }
        window.placing = requestAnimationFrame(look);
    };
    cancelAnimationFrame(window.placing);
    look();
}"""


@pytest.fixture(scope="module")
def opened(desk: Desk) -> Iterator[Notebook]:
    with desk.opened(*CELLS) as notebook:
        notebook.run(0)
        yield notebook


@pytest.fixture
def notebook(opened: Notebook, server: ScriptedServer) -> Iterator[Notebook]:
    (opened.path.parent / "ran").unlink(missing_ok=True)
    yield opened
    opened.leave_idle()  # After a test that failed.


def ran(notebook: Notebook) -> int:
    """How often the cell behind has run."""
    file = notebook.path.parent / "ran"
    return len(file.read_text()) if file.exists() else 0


def shown(notebook: Notebook) -> int:
    """How many of the numbered words are on screen."""
    return notebook.output_text(ASK).count("word")


def begin(
    notebook: Notebook, server: ScriptedServer, reply: Reply | str, words: int = 0, cell: int = ASK
) -> None:
    """Starts a cell; comes back when so many words are on screen, at least the button."""
    server.enqueue(reply)
    notebook.start(cell)
    server.wait_for_requests(1)
    expect(notebook.stop_button(cell)).to_be_enabled()
    notebook.until(lambda: shown(notebook) >= words, f"{words} words are on screen")


def stop(notebook: Notebook, server: ScriptedServer) -> None:
    """Clicks, and looks whether cell and connection are soon at an end."""
    notebook.stop_button(ASK).click()
    assert server.requests[-1].closed.wait(10)
    notebook.wait(seconds=SOON)


# --- the row above the answer


def test_the_button_is_there_before_the_first_word(
    notebook: Notebook, server: ScriptedServer
) -> None:
    begin(notebook, server, NEVER)

    expect(notebook.stop_button(ASK)).to_be_visible()
    assert server.requests[0].sent_chunks == 0
    stop(notebook, server)


def test_the_seconds_run_before_the_first_word(notebook: Notebook, server: ScriptedServer) -> None:
    begin(notebook, server, NEVER)
    seconds = notebook.outputs(ASK).get_by_text(re.compile(r"\d+\.\d s\b"))

    before = seconds.inner_text()
    expect(seconds).not_to_have_text(before)
    after = seconds.inner_text()

    assert float(before.split()[-2]) < float(after.split()[-2])
    stop(notebook, server)


def test_tokens_are_counted(notebook: Notebook, server: ScriptedServer) -> None:
    begin(notebook, server, LONG, words=20)

    counted = re.search(r"≈ (\d+) tokens", notebook.output_text(ASK))

    assert counted is not None
    assert int(counted[1]) >= 20
    stop(notebook, server)


def test_the_button_stands_still_while_the_answer_grows(
    notebook: Notebook, server: ScriptedServer
) -> None:
    begin(notebook, server, LONG)
    notebook.scroll_to(ASK)
    notebook.cells.nth(ASK).evaluate(PLACES, "button")

    expect(notebook.outputs(ASK).first).to_contain_text("word40")

    assert len(notebook.page.evaluate("window.places")) == 1
    stop(notebook, server)


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_readable_in(notebook: Notebook, server: ScriptedServer, theme: str) -> None:
    notebook.theme(f"JupyterLab {theme}")
    begin(notebook, server, Reply(PROSE + LONG.text, reasoning=THOUGHTS, tokens_per_second=150), 20)

    found = notebook.inks(ASK)
    notebook.screenshot(f"live-{theme.lower()}")
    stop(notebook, server)
    notebook.screenshot(f"stopped-{theme.lower()}")

    assert "Stop" in {each["text"] for each in found}
    assert [each for each in found if each["contrast"] < LEAST_CONTRAST] == []


# --- the button


def test_what_came_stays_and_is_marked(notebook: Notebook, server: ScriptedServer) -> None:
    begin(notebook, server, LONG, words=20)

    stop(notebook, server)

    assert 20 <= shown(notebook) < len(WORDS)
    assert re.search(r"^scripted-model .* stopped", notebook.output_text(ASK))


def test_a_stop_with_nothing_there_says_so(notebook: Notebook, server: ScriptedServer) -> None:
    begin(notebook, server, NEVER)

    stop(notebook, server)

    assert re.search(r"stopped, incomplete[^$]*nothing had come yet", notebook.output_text(ASK))


def test_stop_ends_run_all(notebook: Notebook, server: ScriptedServer) -> None:
    server.enqueue(LONG)
    notebook.start_all()
    notebook.until(lambda: shown(notebook) > 5, "words are on screen")

    stop(notebook, server)

    expect(notebook.prompt(NEXT)).to_have_text("[ ]:")
    assert ran(notebook) == 0


def test_a_cell_runs_after_a_stop(notebook: Notebook, server: ScriptedServer) -> None:
    begin(notebook, server, LONG, words=5)
    stop(notebook, server)

    notebook.run(NEXT)

    assert ran(notebook) == 1


@pytest.mark.parametrize(
    "reply", [NEVER, LONG, Reply(PROSE)], ids=["nothing", "a part", "a whole answer"]
)
def test_nothing_of_the_widget_remains(
    notebook: Notebook, server: ScriptedServer, reply: Reply
) -> None:
    notebook.run(LEFT)
    before = notebook.output_text(LEFT)
    if reply.text == PROSE:
        server.enqueue(reply)
        notebook.run(ASK)
    else:
        begin(notebook, server, reply, words=5 if reply is LONG else 0)
        stop(notebook, server)

    output = notebook.cells.nth(ASK).locator(".jp-Cell-outputArea")
    expect(output.locator("button, .llm-magic, .jupyter-widgets")).to_have_count(0)
    notebook.run(LEFT)
    assert notebook.output_text(LEFT) == before


def test_a_stopped_answer_is_saved_as_ordinary_output(
    notebook: Notebook, server: ScriptedServer
) -> None:
    begin(notebook, server, LONG, words=5)
    stop(notebook, server)

    saved = notebook.save()

    answer, error = saved["cells"][ASK]["outputs"]
    assert (answer["output_type"], sorted(answer["data"])) == (
        "display_data",
        ["text/html", "text/plain"],
    )
    assert "word0" in "".join(answer["data"]["text/plain"])
    assert (error["output_type"], error["ename"]) == ("error", "Interrupted")
    assert "widgets" not in saved["metadata"]
    assert "widget-view" not in json.dumps(saved["cells"])


# --- the answer in it


def test_reasoning_is_folded_away_while_it_comes(
    notebook: Notebook, server: ScriptedServer
) -> None:
    begin(notebook, server, Reply("Done.", reasoning=THOUGHTS * 50, tokens_per_second=60))
    output = notebook.outputs(ASK).first
    thoughts = output.get_by_text("First I weigh")

    expect(output.get_by_text("Reasoning")).to_be_visible()
    expect(thoughts).to_be_hidden()
    output.get_by_text("Reasoning").click()
    expect(thoughts).to_be_visible()

    length = len(thoughts.inner_text())
    notebook.until(lambda: len(thoughts.inner_text()) > length, "more of it")
    stop(notebook, server)


def test_reasoning_is_folded_away_when_it_is_saved(
    notebook: Notebook, server: ScriptedServer
) -> None:
    server.enqueue(Reply("Done.", reasoning=THOUGHTS))
    notebook.run(ASK)
    output = notebook.outputs(ASK).first

    expect(output.get_by_text("Done.")).to_be_visible()
    expect(output.get_by_text("Reasoning")).to_be_visible()
    expect(output.get_by_text("First I weigh")).to_be_hidden()


def test_a_list_grows_as_a_table(notebook: Notebook, server: ScriptedServer) -> None:
    begin(notebook, server, Reply(json.dumps(CITIES), tokens_per_second=40), cell=TABLE)
    rows = notebook.outputs(TABLE).locator("tbody tr")

    counts: list[int] = []

    def done() -> bool:
        button = notebook.stop_button(TABLE).count()
        counts.append(rows.count())
        return not button

    notebook.until(done, "the table is whole")
    notebook.wait()

    assert len(set(counts) - {0, len(CITIES)}) > 2, counts
    expect(rows).to_have_count(len(CITIES))
    expect(notebook.outputs(TABLE).get_by_role("columnheader")).to_have_text(["name", "people"])


@pytest.mark.parametrize("thoughts", ["", THOUGHTS], ids=["", "with reasoning"])
def test_the_final_form_stands_where_the_widget_stood(
    notebook: Notebook, server: ScriptedServer, thoughts: str
) -> None:
    begin(notebook, server, Reply(PROSE, reasoning=thoughts, tokens_per_second=60))
    expect(notebook.outputs(ASK).locator("h2")).to_be_visible()
    notebook.cells.nth(ASK).evaluate(PLACES, "h2")
    live = notebook.page.evaluate("window.places")

    notebook.wait()
    expect(notebook.stop_button(ASK)).to_have_count(0)
    expect(notebook.outputs(ASK).locator("mjx-container")).to_have_count(2)

    assert notebook.page.evaluate("window.places") == live


def test_what_is_below_does_not_move_when_the_answer_is_whole(
    notebook: Notebook, server: ScriptedServer
) -> None:
    begin(notebook, server, Reply(PROSE, tokens_per_second=60))
    expect(notebook.outputs(ASK).get_by_text("Last words.")).to_be_visible()
    below = notebook.cells.nth(NEXT)
    live: Any = below.bounding_box()

    notebook.wait()
    expect(notebook.stop_button(ASK)).to_have_count(0)

    final: Any = below.bounding_box()
    assert abs(live["y"] - final["y"]) <= 1


def test_a_page_that_shows_the_widget_keeps_it(notebook: Notebook, server: ScriptedServer) -> None:
    """What it says must be heard, or it gets an answer without a button after a while."""
    notebook.run(HURRY)
    begin(notebook, server, LONG)

    expect(notebook.outputs(ASK).first).to_contain_text("word180")

    stop(notebook, server)


class SlowLine:
    """Between a page and its kernel; lets all through until the page is deaf.

    Attributes:
        heard: Whether the kernel has told the page that it hears it.
        deaf: Whether what the kernel says is kept back.
    """

    def __init__(self) -> None:
        self.heard = self.deaf = False
        self._late: list[tuple[WebSocketRoute, str | bytes]] = []

    def connect(self, page: WebSocketRoute) -> None:
        """Connects the page."""

        def deliver(message: str | bytes) -> None:
            self.heard |= HEARD in (message.encode() if isinstance(message, str) else message)
            if self.deaf:
                self._late.append((page, message))
            else:
                page.send(message)

        page.connect_to_server().on_message(deliver)

    def deliver_late(self) -> None:
        """Lets through what was kept back."""
        self.deaf = False
        for page, message in self._late:
            page.send(message)


def test_a_late_click_does_not_hit_the_next_cell(
    notebook: Notebook, server: ScriptedServer
) -> None:
    """The page does not know yet that the answer is whole and that the next cell runs."""
    file = notebook.path.parent / "ran"
    line = SlowLine()
    notebook.save()
    notebook.page.route_web_socket(CHANNELS, line.connect)
    notebook.page.reload()
    notebook.wait_for_kernel()
    begin(notebook, server, Reply(deltas=WORDS[:15], tokens_per_second=5))
    notebook.start(BUSY)
    notebook.until(lambda: line.heard, "the kernel hears the page")

    line.deaf = True
    notebook.until(file.exists, "the next cell runs")
    notebook.stop_button(ASK).click()
    notebook.until(lambda: "ended" in file.read_text(), "the next cell has ended")
    line.deliver_late()
    notebook.wait()

    assert "word14" in notebook.output_text(ASK)
    assert file.read_text() == "began and ended"
