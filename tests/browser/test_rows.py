"""%%llm_map on the page: its row grows, stands still, and its button stops the run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.page import LEAST_CONTRAST, Desk, Notebook
from tests.browser.test_stop import PLACES
from tests.load import LoadServer

pytestmark = pytest.mark.browser

LOAD = """%load_ext llm_magic
%config LLMMagic.base_url = "{url}"
%config LLMMagic.model = "load"
%config LLMMagic.prices = {{"load": {{"input": 0.25, "output": 2.0}}}}
import ipywidgets
import pandas as pd
from typing import TypedDict
from llm_magic.views import live
live.OPENS = live.SHOWS = 2
class Review(TypedDict):
    stars: int
    topic: str
    positive: bool
said = ["The soles came off after a week.", "Fits like a glove, would buy again!",
        "Delivery took a month; the shoes are fine.", "Too small. I sent them back.",
        "My daughter loves the colour."]
texts = [f"{{said[n % 5]}} ({{n}})" for n in range(40_000)]
reviews = pd.DataFrame({{"id": range(40_000), "text": texts}})"""
PROMPT = "Classify this review for a shoe shop: {{ text }}"
KEPT, NEXT, BOUND, LONG, SHORT, FAULTY, DRY, LEFT = range(1, 9)
CELLS = [
    f"%%llm_map reviews.head(1500) kept << --schema Review\n{PROMPT}",
    "open('ran', 'a').write('x')",
    "len(kept), int(kept._error.isna().sum()), int(kept.stars.notna().sum())",
    f"%%llm_map reviews results << --schema Review --max-cost 2 --no-cache\n{PROMPT}",
    f"%%llm_map reviews.head(1000) short << --schema Review --no-cache\n{PROMPT}",
    f"%%llm_map reviews.head(100) faulty << --schema Review --no-cache\n{PROMPT}",
    f"%%llm_map reviews.head(4000) --schema Review --max-cost 0.05 --dry-run\n{PROMPT}",
    "len(ipywidgets.widget._instances)",
]


@pytest.fixture(scope="module")
def provider() -> Iterator[LoadServer]:
    """400 rows a second at most."""
    with LoadServer(latency=0.05, slots=20) as running:
        yield running


@pytest.fixture(scope="module")
def notebook(desk: Desk, provider: LoadServer) -> Iterator[Notebook]:
    with desk.opened(LOAD.format(url=provider.url), *CELLS) as opened:
        yield opened


def done(notebook: Notebook, cell: int) -> int:
    """How many rows are done, as the page tells."""
    found = re.search(r"([\d,]+) of [\d,]+", notebook.output_text(cell))
    return int(found[1].replace(",", "")) if found else 0


def more(notebook: Notebook, rows: int = 1) -> None:
    """Comes back when so many more rows of the long run are done."""
    before = done(notebook, LONG)
    notebook.until(lambda: done(notebook, LONG) >= before + rows, f"{rows} more rows")


# --- stopped, and gone on with


@dataclass
class Story:
    """What a user sees who runs all cells, stops the first run, and runs its cell again.

    Attributes:
        output: The words below the stopped cell.
        saved: The notebook's file after Stop.
        behind: What stands beside the cell behind.
        behind_ran: Whether it ran.
        bound: What the next cell tells of the frame.
        paid: Requests until then.
        output_again: The words below the cell when it has run to its end.
        paid_again: Requests in all.
    """

    output: str
    saved: dict[str, Any]
    behind: str
    behind_ran: bool
    bound: str
    paid: int
    output_again: str
    paid_again: int


@pytest.fixture(scope="module")
def story(notebook: Notebook, provider: LoadServer) -> Story:
    provider.reset()
    notebook.start_all()
    expect(notebook.stop_button(KEPT)).to_be_enabled()
    notebook.until(lambda: done(notebook, KEPT) >= 300, "300 rows are on screen")
    notebook.stop_button(KEPT).click()
    notebook.wait(seconds=5)
    expect(notebook.stop_button(KEPT)).to_have_count(0)
    output = notebook.output_text(KEPT)
    notebook.screenshot("rows-stopped")
    saved = notebook.save()
    behind = notebook.prompt(NEXT).inner_text()
    paid = provider.stats()["requests"]
    notebook.run(BOUND)
    bound = notebook.output_text(BOUND)
    notebook.run(KEPT)
    return Story(
        output,
        saved,
        behind,
        (notebook.path.parent / "ran").exists(),
        bound,
        paid,
        notebook.output_text(KEPT),
        provider.stats()["requests"],
    )


def test_stop_ends_it_and_tells_what_there_is(story: Story) -> None:
    assert re.search(rf"1,500 rows: {story.paid:,} asked, [\d,]+ not sent · \$0\.0", story.output)
    assert f"Stopped at {story.paid:,} of 1,500 rows." in story.output
    assert 300 <= story.paid < 1_500
    assert "The soles came off" in story.output


def test_stop_ends_run_all(story: Story) -> None:
    assert story.behind == "[ ]:"
    assert not story.behind_ran


def test_what_came_before_the_stop_is_bound(story: Story) -> None:
    assert story.bound == f"(1500, {story.paid}, {story.paid})"


def test_the_same_cell_goes_on_where_it_was_stopped(story: Story) -> None:
    assert story.paid_again == 1_500
    assert f"{1_500 - story.paid:,} asked, {story.paid:,} cached" in story.output_again


def test_it_is_saved_as_ordinary_output(story: Story) -> None:
    display, error = story.saved["cells"][KEPT]["outputs"]

    assert sorted(display["data"]) == ["text/html", "text/plain"]
    assert display["data"]["text/plain"][0].startswith("1,500 rows: ")
    assert error["ename"] == "Interrupted"
    assert "widget-view" not in json.dumps(story.saved["cells"])
    assert "progressbar" not in json.dumps(story.saved["cells"])


# --- while it runs


@pytest.fixture(scope="module")
def running(notebook: Notebook, story: Story) -> Iterator[Notebook]:
    """In the middle of a run of two minutes, which the tests leave alone."""
    notebook.start(LONG)
    expect(notebook.stop_button(LONG)).to_be_enabled()
    notebook.scroll_to(LONG)
    notebook.until(lambda: done(notebook, LONG) >= 100, "100 rows are on screen")
    yield notebook
    notebook.leave_idle()


def test_the_row_is_live(running: Notebook) -> None:
    bar = running.outputs(LONG).get_by_role("progressbar")

    def share() -> float:
        return float(bar.get_attribute("aria-valuenow") or 0)

    counts, shares = [done(running, LONG)], [share()]
    for _ in range(3):
        more(running)
        counts.append(done(running, LONG))
        shares.append(share())

    assert counts == sorted(set(counts))
    assert shares == sorted(shares)
    assert 0 < counts[0] < counts[-1] < 40_000
    assert 0 < shares[0] < shares[-1] < 100
    expect(running.stop_button(LONG)).to_be_visible()


def test_the_line_tells_time_cost_and_rate(running: Notebook) -> None:
    assert re.search(
        r"[\d,]+ of 40,000 · (\d+ min )?\d+ s left · \$0\.\d+ of \$2\.00, about \$[\d.]+ in all · "
        r"[\d,]+ rows/s · \d+ at once",
        running.output_text(LONG),
    )


def test_the_first_rows_are_there_while_it_runs(running: Notebook) -> None:
    table = running.outputs(LONG).locator("table")

    expect(table.locator("tbody tr")).to_have_count(5)
    expect(table.get_by_role("columnheader")).to_have_text(["text", "stars", "topic", "positive"])
    expect(table.get_by_text("The soles came off after a week. (0)")).to_be_visible()


def test_row_and_page_stand_still(running: Notebook) -> None:
    expect(running.outputs(LONG).get_by_text("…", exact=True)).to_have_count(0)
    running.cells.nth(LONG).evaluate(PLACES, "[role=progressbar]")
    below = running.cells.nth(SHORT).bounding_box()

    more(running, 500)

    assert len(running.page.evaluate("window.places")) == 1
    assert running.cells.nth(SHORT).bounding_box() == below


def test_what_is_selected_and_opened_stays_so(running: Notebook) -> None:
    """A cell of the first rows, and the plan with its prompts."""
    plan = running.outputs(LONG).locator("details", has_text="at most")
    prompt = plan.locator("pre").first
    expect(prompt).to_be_hidden()
    plan.locator("summary").click()
    running.outputs(LONG).locator("tbody td").first.select_text()

    more(running, 300)

    assert running.page.evaluate("getSelection().toString()").startswith("The soles came off")
    expect(prompt).to_be_visible()
    expect(prompt).to_contain_text("for a shoe shop: The soles came off after a week. (0)")


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_readable_in(running: Notebook, theme: str) -> None:
    running.theme(f"JupyterLab {theme}")
    running.scroll_to(LONG)

    found = running.inks(LONG)
    running.screenshot(f"rows-{theme.lower()}")

    assert "Stop" in {each["text"] for each in found}
    assert [each for each in found if each["contrast"] < LEAST_CONTRAST] == []


def test_a_page_that_shows_the_widget_keeps_it(running: Notebook) -> None:
    """After the time in which others get plain updates."""
    running.until(lambda: done(running, LONG) >= 1_500, "1,500 rows")

    expect(running.stop_button(LONG)).to_be_visible()


def test_the_toolbars_button_ends_it_as_well(running: Notebook) -> None:
    running.interrupt()
    running.wait(seconds=5)

    assert re.search(r"Stopped at [\d,]+ of 40,000 rows", running.output_text(LONG))
    expect(running.stop_button(LONG)).to_have_count(0)


# --- when it has ended


def test_the_final_form_stands_where_the_widget_stood(notebook: Notebook, story: Story) -> None:
    notebook.run(LEFT)
    before = notebook.output_text(LEFT)
    notebook.start(SHORT)
    expect(notebook.stop_button(SHORT)).to_be_enabled()
    notebook.until(lambda: done(notebook, SHORT) >= 200, "200 rows are on screen")
    table = notebook.outputs(SHORT).locator("table").first
    live: Any = table.bounding_box()

    notebook.wait()
    expect(notebook.stop_button(SHORT)).to_have_count(0)
    final: Any = table.bounding_box()

    assert abs(live["x"] - final["x"]) <= 1
    assert abs(live["y"] - final["y"]) <= 1
    notebook.run(LEFT)
    assert notebook.output_text(LEFT) == before


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_errors_and_dry_run_are_readable_in(
    notebook: Notebook, story: Story, provider: LoadServer, theme: str
) -> None:
    notebook.theme(f"JupyterLab {theme}")
    provider.set(fail_every=20, fail_status=400)
    notebook.run(FAULTY)
    provider.set(fail_every=0)
    notebook.run(DRY)
    notebook.scroll_to(FAULTY)
    notebook.screenshot(f"rows-errors-{theme.lower()}")
    notebook.scroll_to(DRY)
    notebook.screenshot(f"rows-dry-{theme.lower()}")

    found = notebook.inks(FAULTY) + notebook.inks(DRY)

    assert any("said 400" in each["text"] for each in found)
    assert any("The limit of" in each["text"] or "ends it early" in each["text"] for each in found)
    assert [each for each in found if each["contrast"] < LEAST_CONTRAST] == []
