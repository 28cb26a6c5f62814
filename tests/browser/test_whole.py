"""What a user has of an answer that is there: on screen, in the file, and when it is run again."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from llm_magic.testing import ScriptedServer
from tests.browser.page import LEAST_CONTRAST, Desk, Notebook

pytestmark = pytest.mark.browser

LOAD = "%load_ext llm_magic"
ASK = "%%llm\nHello"
WRONG = "%%llm\nHow many are {{ ordes }}?"
ANSWER = """## The Basel problem

The sum $\\sum_{n=1}^{\\infty} n^{-2}$ is not *obviously* $\\pi^2/6$; it costs $5 to be sure.

$$\\int_0^1 \\frac{-\\ln(1 - x)}{x}\\,dx = \\frac{\\pi^2}{6}$$

| terms | sum | error |
|---|---:|---:|
| 10 | 1.5498 | 0.0952 |
| 1000 | 1.6439 | 0.0010 |

```python
def basel(terms: int) -> float:  # slow
    return sum(1 / n**2 for n in range(1, terms + 1))
```

1. It converges.
2. See [the article](https://en.wikipedia.org/wiki/Basel_problem).
"""
FORMULAS = 3


@pytest.fixture(scope="module")
def notebook(desk: Desk, shared_server: ScriptedServer) -> Iterator[Notebook]:
    """A notebook with the answer in it."""
    shared_server.enqueue(ANSWER)
    with desk.opened(LOAD, ASK) as notebook:
        notebook.run_all()
        expect(notebook.outputs(1).locator("mjx-container")).to_have_count(FORMULAS)
        yield notebook


def test_rendered(notebook: Notebook) -> None:
    output = notebook.outputs(1)
    expect(output.get_by_role("heading", name="The Basel problem", level=2)).to_be_visible()
    expect(output.get_by_role("cell", name="1.6439")).to_be_visible()
    expect(output.get_by_text("it costs $5 to be sure")).to_be_visible()
    expect(output.get_by_role("listitem")).to_have_count(2)
    expect(output.get_by_role("link", name="the article")).to_have_attribute(
        "href", "https://en.wikipedia.org/wiki/Basel_problem"
    )


def test_formulas_have_their_fonts(notebook: Notebook) -> None:
    states = "[...document.fonts].filter(each => /MJX/.test(each.family)).map(each => each.status)"
    notebook.page.wait_for_function(f"{states}.includes('loaded')")

    assert "error" not in notebook.page.evaluate(states)


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_readable_in(notebook: Notebook, theme: str) -> None:
    notebook.theme(f"JupyterLab {theme}")

    found = notebook.inks(1)
    notebook.screenshot(f"rendered-{theme.lower()}")

    assert len(found) > 30
    assert [each for each in found if each["contrast"] < LEAST_CONTRAST] == []
    in_code = {each["ink"] for each in found if each["code"]}
    assert len(in_code) >= 4, in_code
    assert notebook.outputs(1).locator("mjx-container").count() == FORMULAS


def test_saved_as_one_ordinary_output(notebook: Notebook) -> None:
    saved = notebook.save()

    (output,) = saved["cells"][1]["outputs"]
    assert output["output_type"] == "display_data"
    assert "".join(output["data"]["text/plain"]) == ANSWER
    assert "<h2>The Basel problem</h2>" in "".join(output["data"]["text/html"])
    assert [kind for kind in output["data"] if "widget" in kind] == []
    assert "widgets" not in saved["metadata"]


def test_reads_the_same_where_there_is_no_kernel(desk: Desk, notebook: Notebook) -> None:
    before = notebook.output_text(1)
    notebook.save()

    with desk.opened_without_kernel(notebook.path) as reopened:
        formulas = reopened.outputs(1).locator("mjx-container")
        expect(formulas).to_have_count(FORMULAS)
        after = reopened.output_text(1)

    assert "The Basel problem" in before
    assert after == before


def test_restart_and_run_all_asks_nothing(notebook: Notebook, server: ScriptedServer) -> None:
    notebook.restart_and_run_all()

    assert "The Basel problem" in notebook.output_text(1)
    assert re.search(r"scripted-model .* cached", notebook.output_text(1))
    assert server.requests == []


def test_an_error_is_short_and_ends_run_all(desk: Desk, server: ScriptedServer) -> None:
    # A kernel drops the requests that have come when a cell fails, and the page may send slowly.
    patient = "get_ipython().kernel.stop_on_error_timeout = 60.0"
    cells = [f"{LOAD}\n{patient}", "orders = 3", WRONG, "open('ran', 'w')"]
    with desk.opened(*cells) as notebook:
        notebook.run_all()

        lines = notebook.output_text(2).splitlines()
        expect(notebook.prompt(3)).to_have_text("[ ]:")
        assert not (notebook.path.parent / "ran").exists()

    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("PromptError: The prompt uses {{ ordes }}")
    assert "Did you mean {{ orders }}?" in lines[1]
    assert server.requests == []


def test_the_browser_cannot_leave_the_machine(notebook: Notebook, elsewhere: list[str]) -> None:
    asks = "fetch('http://192.0.2.1/').then(() => 'came', () => 'refused')"

    assert notebook.page.evaluate(asks) == "refused"

    assert elsewhere == ["http://192.0.2.1/"]
    elsewhere.clear()
