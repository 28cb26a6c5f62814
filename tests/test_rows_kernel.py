"""%%llm_map and map_rows in a real Jupyter kernel: what is published, while it runs and after."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.conftest import KEY, Kernel, Shown
from tests.load import LoadServer

pytestmark = pytest.mark.kernel

SETUP = """%load_ext llm_magic
%config LLMMagic.model = "load"
%config LLMMagic.prices = {"load": {"input": 0.25, "output": 2.0}}
from typing import TypedDict
Review = TypedDict("Review", {"stars": int, "topic": str, "positive": bool})
rows = [{"text": f"review {n}"} for n in range(1000)]"""
PROMPT = "Classify: {{ text }}"


@pytest.fixture(scope="module")
def provider() -> Iterator[LoadServer]:
    """200 rows a second."""
    with LoadServer(latency=0.05, slots=10) as running:
        yield running


@pytest.fixture(scope="module")
def environment(provider: LoadServer) -> dict[str, str]:
    return {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": KEY}


def kernel_for(environment: dict[str, str], *, watched: bool) -> Iterator[Kernel]:
    running = Kernel(watched=watched, environment=environment)
    try:
        assert running.run(SETUP).of("error") == []
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def watched(environment: dict[str, str]) -> Iterator[Kernel]:
    """Of a notebook that somebody has open, in a front end without widgets."""
    yield from kernel_for(environment, watched=True)


@pytest.fixture(scope="module")
def headless(environment: dict[str, str]) -> Iterator[Kernel]:
    """As under nbclient, with a cache."""
    yield from kernel_for(environment | {"LLM_MAGIC_CACHE_SIZE": "1 GB"}, watched=False)


@pytest.fixture
def server(provider: LoadServer) -> LoadServer:
    """With nothing asked, and nothing that fails."""
    provider.set(fail_every=0)
    provider.reset()
    return provider


def over(kernel: Kernel, source: str) -> Shown:
    """A cell that has run to its end, without an error."""
    shown = kernel.run(source)
    assert shown.of("error") == []
    return shown


def html(shown: Shown) -> list[str]:
    """Of every display and update."""
    kinds = ("display_data", "update_display_data")
    return [each["data"]["text/html"] for kind, each in shown.messages if kind in kinds]


def interrupted(kernel: Kernel, server: LoadServer, source: str) -> Shown:
    """A cell that the kernel's interrupt has ended once rows had come."""
    request = kernel.start(source)
    end = time.monotonic() + 20
    while server.stats()["answered"] < 60 and time.monotonic() < end:
        time.sleep(0.01)
    kernel.manager.interrupt_kernel()
    return kernel.finish(request)


# --- somebody watches, without widgets


@pytest.fixture(scope="module")
def drawn(watched: Kernel, provider: LoadServer) -> Shown:
    """A run of five seconds."""
    return over(watched, f"%%llm_map rows results << --schema Review\n{PROMPT}")


def test_one_output_is_updated_and_never_another_added(drawn: Shown) -> None:
    (display,) = drawn.of("display_data")
    updates = drawn.of("update_display_data")

    assert len(updates) >= 5
    assert {each["transient"]["display_id"] for each in updates} == {
        display["transient"]["display_id"]
    }
    assert drawn.of("stream") == drawn.of("execute_result") == []


def test_the_numbers_grow_from_update_to_update(drawn: Shown) -> None:
    found = [re.search(r"([\d,]+) of 1,000", each) for each in html(drawn)]
    counts = [int(each[1].replace(",", "")) for each in found if each]

    assert counts == sorted(counts)
    assert any(0 < count < 1_000 for count in counts)


def test_every_update_has_bar_line_and_the_way_to_stop(drawn: Shown) -> None:
    updates = html(drawn)[1:-1]

    assert all("progressbar" in each for each in updates)
    assert all("interrupt the kernel to stop" in each for each in updates)
    middle = updates[len(updates) // 2]
    assert re.search(r"s left · <[^>]+>\$</span>0\.0\d+, about", middle)
    assert "rows/s" in middle
    assert ">review 0</td>" in middle


def test_before_the_first_row_the_plan_is_there(drawn: Shown) -> None:
    assert "load · 1,000 rows · at most " in html(drawn)[0].replace("</span>", "")


def test_what_is_sent_a_second_is_bounded(drawn: Shown) -> None:
    """An update has no more for a thousand rows than for ten, and there are four a second."""
    updates = html(drawn)[1:-1]
    took = re.search(r" · ([\d.]+) s\n", drawn.of("update_display_data")[-1]["data"]["text/plain"])

    assert took
    assert len(updates) <= 4 * (float(took[1]) + 1)
    assert max(map(len, updates)) < 4_000


def test_what_is_left_is_the_ordinary_form(drawn: Shown) -> None:
    final = drawn.of("update_display_data")[-1]["data"]

    assert sorted(final) == ["text/html", "text/plain"]
    assert re.match(r"1,000 rows: 1,000 asked · \$0\.05 · [\d.]+ s\n", final["text/plain"])
    assert re.search(r"text +stars +topic +positive\n", final["text/plain"])
    assert "progressbar" not in final["text/html"]
    assert "interrupt" not in final["text/html"]


def test_an_interrupt_leaves_what_came_and_one_error(watched: Kernel, server: LoadServer) -> None:
    shown = interrupted(watched, server, "%%llm_map rows part <<\nPart of {{ text }}")

    (error,) = shown.of("error")
    told = " ".join(error["traceback"])
    assert error["ename"] == "Interrupted"
    assert re.search(r"Stopped at \d+ of 1,000 rows\.", told)
    assert "run the cell again to go on" in told
    assert "Stopped at" not in html(shown)[-1]
    assert re.search(r"1,000 rows: \d+ asked, \d+ not sent", html(shown)[-1])
    assert watched.value("len(part)") == 1_000
    answered = watched.value("sum(row['_error'] is None for row in part)")
    assert answered == server.stats()["answered"] < 1_000
    assert watched.value("part[-1]['_error']") == "not sent: the run was stopped"


def test_a_wrong_prompt_leaves_an_error_and_nothing_else(watched: Kernel) -> None:
    shown = watched.run("%%llm_map rows results <<\nWhat of {{ txt }}?")

    assert [each["ename"] for each in shown.of("error")] == ["PromptError"]
    assert html(shown) == []


def test_a_server_that_takes_no_key_leaves_its_error_and_no_running_bar(
    watched: Kernel, server: LoadServer
) -> None:
    server.set(fail_every=1, fail_status=401)

    shown = watched.run(f"%%llm_map rows none <<\nNone of {PROMPT}")

    assert [each["ename"] for each in shown.of("error")] == ["AuthenticationFailed"]
    assert "progressbar" not in html(shown)[-1]
    assert "1,000 rows: 1,000 not sent" in html(shown)[-1]


def test_errors_are_grouped_below_the_rows(watched: Kernel, server: LoadServer) -> None:
    server.set(fail_every=20, fail_status=400)

    shown = over(watched, f"%%llm_map rows[:100] some <<\nSome of {PROMPT}")

    final = html(shown)[-1]
    assert "100 rows: 95 asked, 5 failed" in final
    assert final.count("said 400") == 1
    assert ", about" not in final


def test_a_run_from_the_api_draws_the_same(watched: Kernel, server: LoadServer) -> None:
    shown = over(watched, "import llm_magic\nout = llm_magic.map_rows(rows[:40], 'Of {{ text }}')")

    assert len(shown.of("display_data")) == 1
    assert "40 rows: 40 asked" in html(shown)[-1]


@pytest.fixture
def with_widgets(watched: Kernel) -> Iterator[Kernel]:
    """The same kernel, which takes the front end for one that has widgets."""
    hurry = "from llm_magic.views import live\nlive.OPENS = live.SHOWS = 0.3"
    over(watched, f"%config LLMMagic.widgets = True\n{hurry}")
    yield watched
    over(watched, "%config LLMMagic.widgets = False")


def test_where_no_page_shows_the_widget_updates_take_its_place(
    with_widgets: Kernel, server: LoadServer
) -> None:
    shown = over(with_widgets, "%%llm_map rows[:300] out <<\nUnseen {{ text }}")

    (display,) = shown.of("display_data")
    assert "application/vnd.jupyter.widget-view+json" in display["data"]
    updates = [each["data"] for each in shown.of("update_display_data")]
    assert any("interrupt the kernel to stop" in each["text/html"] for each in updates)
    assert sorted(updates[-1]) == ["text/html", "text/plain"]
    assert with_widgets.value("len(__import__('ipywidgets').widget._instances)") == 0


def test_a_wrong_prompt_leaves_no_widget(with_widgets: Kernel) -> None:
    """Nobody looks at rows of an iterator before the run."""
    shown = with_widgets.run(
        "import llm_magic\nllm_magic.map_rows(iter(rows), 'What of {{ txt }}?')"
    )

    assert [each["ename"] for each in shown.of("error")] == ["PromptError"]
    (final,) = shown.of("update_display_data")
    assert final["data"]["text/plain"].startswith("0 rows · free")
    assert with_widgets.value("len(__import__('ipywidgets').widget._instances)") == 0


# --- nobody watches


def test_headless_there_is_exactly_one_display(headless: Kernel, server: LoadServer) -> None:
    shown = over(headless, f"%%llm_map rows[:300] results << --schema Review\n{PROMPT}")

    assert [kind for kind, _ in shown.messages] == [
        "status",
        "execute_input",
        "display_data",
        "status",
    ]
    (display,) = shown.of("display_data")
    assert display["data"]["text/plain"].startswith("300 rows: 300 asked · ")
    assert ">review 0</td>" in display["data"]["text/html"]


def test_all_cached_says_that_it_was_free(headless: Kernel, server: LoadServer) -> None:
    cell = f"%%llm_map rows[300:340] results << --schema Review\n{PROMPT}"
    over(headless, cell)
    server.reset()

    shown = over(headless, cell)

    assert server.stats()["requests"] == 0
    (display,) = shown.of("display_data")
    assert display["data"]["text/plain"].startswith("40 rows: 40 cached · free")
    assert "40 cached · 0 to ask · free" in display["data"]["text/html"]


def test_quiet_shows_nothing_and_binds(headless: Kernel, server: LoadServer) -> None:
    shown = over(headless, f"%%llm_map rows[:20] quiet << --quiet\nQuiet {PROMPT}")

    assert [kind for kind, _ in shown.messages] == ["status", "execute_input", "status"]
    assert headless.value("len(quiet)") == 20


def test_a_dry_run_shows_the_plan_and_asks_nothing(headless: Kernel, server: LoadServer) -> None:
    shown = over(headless, f"%%llm_map rows --dry-run --max-tokens 10\nDry {PROMPT}")

    (report,) = shown.of("execute_result")
    text = report["data"]["text/plain"]
    assert re.search(r"rows +1,000\n", text)
    assert re.search(r"at most +\$0\.\d+ \([\d,]+ tokens\)\n", text)
    assert "Nothing was sent." in text
    assert "[prompt 2]\nDry Classify: review 1" in text
    assert "<table>" in report["data"]["text/html"]
    assert html(shown) == []
    assert server.stats()["requests"] == 0


def test_headless_an_interrupt_shows_what_came_and_fails(
    headless: Kernel, server: LoadServer
) -> None:
    shown = interrupted(headless, server, "%%llm_map rows part <<\nPart of {{ text }}")

    assert [kind for kind, _ in shown.messages][2:-1] == ["display_data", "error"]
    assert shown.reply["status"] == "error"
    assert "not sent" in shown.of("display_data")[0]["data"]["text/plain"]


def test_without_a_name_the_table_is_the_value_of_the_cell(
    headless: Kernel, server: LoadServer
) -> None:
    shown = over(headless, "%%llm_map rows[:3]\nValue {{ text }}")

    (value,) = shown.of("execute_result")
    assert "_cached" in value["data"]["text/plain"]
