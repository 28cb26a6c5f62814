"""A run over rows on the page: its row grows, stands still, and its button stops it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.page import LEAST_CONTRAST, Desk, Notebook
from tests.browser.test_stop import PLACES

pytestmark = pytest.mark.browser

# A run over 20,000 rows that takes minutes; one of two seconds and more; both have five columns.
LONG_RUN = "from tests.rows_driver import run; run(20_000, 400)"
SHORT_RUN = "from tests.rows_driver import run; run(3_000, 900)"
RUN, SHORT, NEXT, LEFT, HURRY = range(1, 6)
CELLS = [
    "%load_ext llm_magic",
    LONG_RUN,
    SHORT_RUN,
    "open('ran', 'a').write('x')",
    "import ipywidgets; len(ipywidgets.widget._instances)",
    "from llm_magic.views import live; live.OPENS = live.SHOWS = 2",
]


@pytest.fixture(scope="module")
def opened(desk: Desk) -> Iterator[Notebook]:
    with desk.opened(*CELLS) as notebook:
        notebook.run(0)
        yield notebook


@pytest.fixture
def notebook(opened: Notebook) -> Iterator[Notebook]:
    (opened.path.parent / "ran").unlink(missing_ok=True)
    yield opened
    opened.leave_idle()  # After a test that failed.


def done(notebook: Notebook, cell: int = RUN) -> int:
    """How many rows are done, as the page tells."""
    found = re.search(r"([\d,]+) of [\d,]+", notebook.output_text(cell))
    return int(found[1].replace(",", "")) if found else 0


def begin(notebook: Notebook, cell: int = RUN, rows: int = 200) -> None:
    """Starts a cell; comes back when so many rows are done on the page."""
    notebook.start(cell)
    expect(notebook.stop_button(cell)).to_be_enabled()
    notebook.until(lambda: done(notebook, cell) >= rows, f"{rows} rows are on screen")


def stop(notebook: Notebook) -> None:
    notebook.stop_button(RUN).click()
    notebook.wait(seconds=2)


def test_the_numbers_grow(notebook: Notebook) -> None:
    begin(notebook)

    counts = [done(notebook)]
    while len(counts) < 4:
        notebook.until(lambda: done(notebook) > counts[-1], "more rows")
        counts.append(done(notebook))

    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] < 20_000
    stop(notebook)


def test_the_bar_grows_and_says_so(notebook: Notebook) -> None:
    begin(notebook)
    bar = notebook.outputs(RUN).get_by_role("progressbar")

    def share() -> float:
        return float(bar.get_attribute("aria-valuenow") or 0)

    before = share()
    notebook.until(lambda: share() > before, "more of the bar")

    assert 0 < before < 100
    stop(notebook)


def test_the_first_rows_are_there_while_it_runs(notebook: Notebook) -> None:
    begin(notebook)
    rows = notebook.outputs(RUN).locator("tbody tr")

    expect(rows).to_have_count(5)
    expect(notebook.outputs(RUN).get_by_role("columnheader").first).to_be_visible()
    expect(notebook.stop_button(RUN)).to_be_visible()
    stop(notebook)


def test_stop_ends_it_and_tells_what_there_is(notebook: Notebook) -> None:
    begin(notebook)

    stop(notebook)

    expect(notebook.stop_button(RUN)).to_have_count(0)
    assert re.search(r"stopped at [\d,]+ of 20,000", notebook.output_text(RUN))
    assert 200 <= done(notebook) < 20_000
    expect(notebook.outputs(RUN).first.locator("tbody tr").nth(4)).to_be_visible()


def test_stop_ends_run_all(notebook: Notebook) -> None:
    notebook.start_all()
    notebook.until(lambda: done(notebook) > 100, "rows are on screen")

    stop(notebook)

    expect(notebook.prompt(NEXT)).to_have_text("[ ]:")
    assert not (notebook.path.parent / "ran").exists()


def test_the_toolbars_button_ends_it_as_well(notebook: Notebook) -> None:
    begin(notebook)

    notebook.interrupt()
    notebook.wait(seconds=2)

    assert re.search(r"stopped at [\d,]+ of 20,000", notebook.output_text(RUN))


def test_row_and_page_stand_still(notebook: Notebook) -> None:
    begin(notebook)
    notebook.scroll_to(RUN)
    expect(notebook.outputs(RUN).locator("tbody tr")).to_have_count(5)
    notebook.cells.nth(RUN).evaluate(PLACES, "[role=progressbar]")
    table = notebook.outputs(RUN).locator("table")
    below: Any = notebook.cells.nth(SHORT).bounding_box()
    before = done(notebook)

    notebook.until(lambda: done(notebook) > before + 300, "more rows")

    assert len(notebook.page.evaluate("window.places")) == 1
    assert notebook.cells.nth(SHORT).bounding_box() == below
    expect(table).to_have_count(1)
    stop(notebook)


def test_the_final_form_stands_where_the_widget_stood(notebook: Notebook) -> None:
    begin(notebook, SHORT, rows=500)
    table = notebook.outputs(SHORT).locator("table").first
    live: Any = table.bounding_box()

    notebook.wait()
    expect(notebook.stop_button(SHORT)).to_have_count(0)
    final: Any = table.bounding_box()

    assert abs(live["x"] - final["x"]) <= 1
    assert abs(live["y"] - final["y"]) <= 1


def test_what_is_selected_in_the_first_rows_stays_selected(notebook: Notebook) -> None:
    begin(notebook)
    expect(notebook.outputs(RUN).get_by_text("…", exact=True)).to_have_count(0)
    notebook.outputs(RUN).locator("tbody td").first.select_text()
    selected = notebook.page.evaluate("getSelection().toString()")
    before = done(notebook)

    notebook.until(lambda: done(notebook) > before + 300, "more rows")

    assert selected
    assert notebook.page.evaluate("getSelection().toString()") == selected
    stop(notebook)


def test_a_plan_that_was_opened_stays_open(notebook: Notebook) -> None:
    begin(notebook)
    plan = notebook.outputs(RUN).locator("details", has_text="at most")
    prompt = plan.locator("pre").first
    expect(prompt).to_be_hidden()

    plan.locator("summary").click()
    before = done(notebook)
    notebook.until(lambda: done(notebook) > before + 300, "more rows")

    expect(prompt).to_be_visible()
    stop(notebook)


def test_it_is_saved_as_ordinary_output(notebook: Notebook) -> None:
    notebook.run(LEFT)
    before = notebook.output_text(LEFT)
    notebook.run(SHORT)

    saved = notebook.save()

    (output,) = saved["cells"][SHORT]["outputs"]
    assert sorted(output["data"]) == ["text/html", "text/plain"]
    assert "3,000 rows" in "".join(output["data"]["text/plain"])
    assert "widget-view" not in json.dumps(saved["cells"])
    notebook.run(LEFT)
    assert notebook.output_text(LEFT) == before


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_readable_in(notebook: Notebook, theme: str) -> None:
    notebook.theme(f"JupyterLab {theme}")
    begin(notebook, rows=2_100)
    notebook.scroll_to(RUN)

    found = notebook.inks(RUN)
    notebook.screenshot(f"rows-{theme.lower()}")
    notebook.outputs(RUN).locator("summary", has_text="at most").click()
    notebook.screenshot(f"rows-plan-{theme.lower()}")
    stop(notebook)
    notebook.screenshot(f"rows-stopped-{theme.lower()}")

    assert "Stop" in {each["text"] for each in found}
    assert [each for each in found if each["contrast"] < LEAST_CONTRAST] == []


def test_a_page_that_shows_the_widget_keeps_it(notebook: Notebook) -> None:
    notebook.run(HURRY)

    begin(notebook, rows=1_300)

    expect(notebook.stop_button(RUN)).to_be_visible()
    stop(notebook)
