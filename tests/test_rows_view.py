"""What is drawn of a run over rows: in the widget, in text, and in a terminal."""

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fcntl import ioctl
from itertools import pairwise

import pytest

from llm_magic.errors import Interrupted, RowsWarning
from llm_magic.progress import PREVIEW_ROWS, Plan, Standing, Summary
from llm_magic.testing import Reply, ScriptedServer
from llm_magic.views.base import News
from llm_magic.views.live import Column
from llm_magic.views.progress import Growing
from llm_magic.views.rows import (
    PlanReport,
    errors_table,
    first_rows,
    growing_rows,
    plan_html,
    saved_rows,
    standing_html,
)
from tests.conftest import KEY, Terminal, interrupted_when, plain
from tests.load import LoadServer
from tests.payloads import payloads
from tests.rows_driver import PLAN, standing, summary
from tests.test_live import Page, Wire

# A terminal may be driven by these; a line must not be reordered by those.
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
OVERRIDES = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


# --- the widget


def drawn(*standings: Standing) -> tuple[Page, list[int]]:
    """The page after these redraws, and the bytes of each of them."""
    wire = Wire()
    # A page that has said that it is there gets all of it but once.
    wire.seen.set()
    growing = Growing(PLAN)
    column = Column(wire, 0, None, lambda: growing)  # type: ignore[arg-type]
    sizes = []
    for each in standings:
        growing.standing = each
        before = wire.bytes
        column.draw(News(""), standing_html(each))
        sizes.append(wire.bytes - before)
    return wire.page, sizes


def test_the_page_has_plan_and_rows_after_every_redraw() -> None:
    for end in (0, 20, 60, 100, 5_000, 50_000):
        last = standing(end)

        page, _ = drawn(*map(standing, range(0, end, max(1, end // 7))), last)

        assert page.text() == plan_html(PLAN) + growing_rows(last)
        assert page.missed == 0


def test_what_is_above_the_rows_is_sent_once_and_never_changed() -> None:
    page, _ = drawn(*map(standing, (0, 20, 60, 5_000)))

    assert page.changed == 0
    assert page.text()[: page.final] == plan_html(PLAN)


def test_a_redraw_sends_the_line_and_no_row_again() -> None:
    _, sizes = drawn(*map(standing, range(100, 50_000, 1_000)))

    assert max(sizes[4:]) < 1_000
    assert max(sizes[4:]) - min(sizes[4:]) < 60


def test_a_redraw_of_a_million_rows_is_as_long_as_one_of_a_hundred() -> None:
    short, long = (
        len(standing_html(each) + growing_rows(each))
        for each in (standing(5_000), standing(999_000, 1_000_000))
    )

    assert long < short + 60


# --- the first rows


def test_the_table_is_as_high_from_the_first_row_on() -> None:
    heights = {growing_rows(standing(done)).count("<tr>") for done in (20, 40, 100, 50_000)}

    assert heights == {1 + PREVIEW_ROWS}


def test_a_table_of_three_has_no_more_than_three() -> None:
    assert growing_rows(standing(20, total=3)).count("<tr>") == 1 + 3


def test_before_the_first_row_there_is_no_table() -> None:
    assert growing_rows(Standing(50)) == ""


def test_long_cells_are_cut() -> None:
    table = first_rows(["text"], [["x" * 10_000]])

    assert table.rows[0][0] == "x" * 59 + "…"


@pytest.mark.parametrize("width", [30, 40, 80, 120, 300])
def test_lines_are_no_wider_than_the_terminal(width: int) -> None:
    rows = [("1", "x" * 200, "y" * 45, "z" * 12)]

    lines = repr(first_rows(("id", "text", "more", "topic"), rows, width=width)).splitlines()

    assert max(map(len, lines)) <= max(width, 3 * 8 + 2 + 3 * 2)


def test_narrow_columns_leave_their_room_to_wide_ones() -> None:
    table = first_rows(("id", "text"), [("1", "x" * 50)], width=60)

    assert table.rows[0][1] == "x" * 50


@pytest.mark.parametrize("name", [" padded", "", "a\nb", "$x$", "<b>"])
def test_an_odd_name_of_a_column_is_a_heading(name: str) -> None:
    html = first_rows((name, "answer"), [("1", "2")])._repr_html_()

    assert html.count("<th ") == 2
    assert "text-align:right" not in html


# --- the errors


def test_errors_of_one_kind_are_one_line() -> None:
    table = errors_table(
        [("stars: at most 5", 1_200, (3, 17, 1_880, 2_000, 2_001)), ("cut", 1, (9,))]
    )

    assert table.rows == [
        ("stars: at most 5", "1,200", "3, 17, 1,880, 2,000, 2,001, …"),
        ("cut", "1", "9"),
    ]


def test_a_long_error_goes_on_in_a_second_line() -> None:
    html = errors_table([("too long " * 40, 1, (9,))])._repr_html_()

    assert '<td style="text-align:left">too long ' in html
    assert '<td style="text-align:right;white-space:nowrap">1</td>' in html


def test_more_kinds_than_ten_are_counted() -> None:
    table = errors_table([(f"error {number}", 2, (number,)) for number in range(13)])

    assert len(table.rows) == 10
    assert table.note == "and 3 other messages, of 6 rows"


# --- what is saved


def test_what_is_saved_says_the_same_as_text_and_as_html() -> None:
    saved = saved_rows(summary(standing(50_000)), PLAN)

    for form in saved.values():
        for word in ("50,000 rows", "stars", "The soles came off", "1,880", "content filter"):
            assert word in form
    assert "Classify this review" in saved["text/html"]
    assert saved["text/plain"].splitlines()[0].startswith("50,000 rows: ")


def test_of_nothing_only_the_headline_is_saved() -> None:
    saved = saved_rows(Summary("0 rows · free · 0 s"))

    assert saved["text/plain"] == "0 rows · free · 0 s"
    assert "<table" not in saved["text/html"]


@pytest.mark.parametrize("text", payloads(9).values(), ids=payloads(9))
def test_nothing_that_a_model_says_drives_a_terminal(text: str) -> None:
    told = Summary(text, ((text, 2, (1, 2)),), (text, "answer"), ((text, text),))
    report = PlanReport(Plan(9, looked_at=9, model=text, prompts=(text,), expected_from=text))

    for shown in (saved_rows(told)["text/plain"], repr(report)):
        assert not CONTROLS.search(shown)
        assert not OVERRIDES.search(shown)


# --- a dry run


def test_a_dry_run_tells_numbers_and_prompts() -> None:
    report = repr(PlanReport(replace(PLAN, budget=Decimal("0.5"))))

    for line in (
        r"rows +50,000",
        r"equal to an earlier row +about 7",
        r"in the cache +about 6,110",
        r"to ask +about 43,883",
        r"expected +\$1.30 \(from 20 answers in the cache\)",
        r"at most +\$4.10 \(12,400,000 tokens\)",
        r"limit of this run +\$0.50",
        r"The limit of \$0.50 ends it early, after about 16,878 of 43,883 asked\.",
        r"Nothing was sent\.",
        r"\[prompt 1\]\nClassify this review for a shoe shop:\nThe soles came off after a week\.",
    ):
        assert re.search(line, report), line


def test_a_dry_run_of_an_iterator_does_not_tell_what_nobody_knows() -> None:
    report = repr(PlanReport(Plan(None, model="m")))

    assert re.search(r"rows +not counted\n", report)
    assert "cache" not in report
    assert "price" not in report


def test_a_dry_run_without_a_cap_says_how_to_set_one() -> None:
    report = repr(PlanReport(Plan(5, looked_at=5, model="m", worst=None, worst_tokens=None)))

    assert re.search(r"at most +no cap on the answers; --max-tokens sets one", report)


# --- a terminal


@pytest.fixture
def rows(terminal: Terminal) -> Terminal:
    """A terminal IPython with a table of 40 rows."""
    terminal.run("rows = [{'text': f'review {n}'} for n in range(40)]")
    return terminal


def test_a_terminal_shows_plan_summary_and_first_rows(rows: Terminal) -> None:
    ran = rows.run("%%llm_map rows results <<\nWhat of {{ text }}?")

    lines = ran.out.splitlines()
    # No cap is set, and none needed: a server on this machine costs nothing.
    assert lines[0] == "40 rows · free"
    assert re.fullmatch(r"40 rows: 40 asked · free · [\d.]+ s", lines[1])
    assert re.fullmatch(r"text +answer", lines[3])
    assert re.fullmatch(r"review \d+ +This is a scripted answer\.", lines[5])
    assert len(lines) == 5 + PREVIEW_ROWS
    # Not a terminal: a bar would leave a line for each redraw.
    assert "rows/s" not in ran.out


def test_a_name_that_is_not_there_is_told_and_nothing_drawn(rows: Terminal) -> None:
    ran = rows.run("%%llm_map rows results <<\nWhat of {{ txt }}?")

    assert ran.out.splitlines()[0].startswith("PromptError: ")
    assert "rows:" not in ran.out


def test_without_a_name_the_table_itself_is_shown_and_no_row_twice(rows: Terminal) -> None:
    ran = rows.run("%%llm_map rows[:3]\nWhat of {{ text }}?")

    assert "3 rows: 3 asked" in ran.out
    assert ran.out.count("review 1") == 1
    assert len(ran.value) == 3


def test_a_limit_that_ends_a_run_does_not_say_that_nothing_was_sent(rows: Terminal) -> None:
    rows.run("%llm_quota --requests 10")

    ran = rows.run("%%llm_map rows results <<\nWhat of {{ text }}?")

    assert "Stopped at 10 of 40 rows: This kernel has used 10 of 10 requests in 1 h.\n" in ran.out
    assert "nothing was sent" not in ran.out


def test_quiet_shows_nothing(rows: Terminal) -> None:
    assert rows.run("%%llm_map rows results << --quiet\nWhat of {{ text }}?").out == ""
    assert len(rows["results"]) == 40


def test_ctrl_c_keeps_what_came_and_says_so_once(rows: Terminal, server: ScriptedServer) -> None:
    server.enqueue(*["Quick."] * 8, *[Reply("Too late.", delay=60)] * 32)

    ran, seconds = interrupted_when(
        lambda: len(server.requests) >= 12,
        lambda: rows.run("%%llm_map rows results << --concurrency 4\nWhat of {{ text }}?"),
    )

    assert type(ran.error) is Interrupted
    assert seconds < 5
    assert ran.out.count("Stopped at 8 of 40 rows") == 1
    assert "40 rows: 8 asked, 32 not sent" in ran.out
    answers = [row["answer"] for row in rows["results"]]
    assert sorted(answers, key=str) == [None] * 32 + ["Quick."] * 8


def test_ctrl_c_says_so_where_all_rows_so_far_are_done(
    rows: Terminal, server: ScriptedServer, keeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how many more an iterator has."""
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    rows.run("%%llm_map rows results << --quiet\nWhat of {{ text }}?")
    halfway, go = threading.Event(), threading.Event()

    def drip() -> Iterator[dict[str, str]]:
        # The first batch is one of 16.
        yield from rows["rows"][:16]
        halfway.set()
        go.wait(10)

    rows["drip"] = drip()
    ran, _ = interrupted_when(
        halfway.is_set, lambda: rows.run("%%llm_map drip part <<\nWhat of {{ text }}?")
    )
    go.set()

    assert type(ran.error) is Interrupted
    assert "Stopped at 16 rows." in ran.out
    assert len(rows["part"]) == 16


def test_ctrl_c_before_anything_came_says_so(rows: Terminal, server: ScriptedServer) -> None:
    server.enqueue(*[Reply("Too late.", delay=60)] * 40)

    ran, _ = interrupted_when(
        lambda: len(server.requests) >= 2,
        lambda: rows.run("%%llm_map rows results << --concurrency 4\nWhat of {{ text }}?"),
    )

    assert type(ran.error) is Interrupted
    assert "Stopped before the first row had come." in ran.out
    assert "_error" not in ran.out
    assert "results" not in rows.shell.user_ns


def test_ctrl_c_while_rows_are_asked_again_tells_the_whole_tables_rows(
    rows: Terminal, server: ScriptedServer
) -> None:
    bad, late = Reply(status=400, error={"message": "no"}), Reply("Too late.", delay=60)
    server.enqueue(*[bad] * 3)
    rows.run("%%llm_map rows results << --concurrency 1\nWhat of {{ text }}?")
    server.reset()
    server.enqueue("Well.", late)

    with pytest.warns(RowsWarning, match=r"Stopped at 38 of 40 rows\."):
        interrupted_when(
            lambda: len(server.requests) >= 2,
            lambda: rows.run("import llm_magic; x = llm_magic.totals(results).retry_failed()"),
        )

    assert sum(row["_error"] is not None for row in rows["x"]) == 2


# --- a script

SCRIPT = """
import llm_magic, sys
rows = [{"text": f"review {n}"} for n in range(300)]
print("before")
results = llm_magic.map_rows(rows, "What of {{ text }}?", concurrency=10)
print(len(results))
"""


@pytest.fixture
def slow_server() -> LoadServer:
    """One that takes half a second for 100 rows, and fails every 50th."""
    return LoadServer(latency=0.05, slots=10, fail_every=50, fail_status=400)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LLM_MAGIC_QUOTA_REQUESTS", "None")
    return [sys.executable, "-c", SCRIPT]


def on_a_terminal(command: list[str], columns: int = 100) -> tuple[str, str]:
    """What a command prints, and what it shows on a terminal of its stderr."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown, end = b"", time.monotonic() + 30
        while time.monotonic() < end and select.select([ours], [], [], 30)[0]:
            try:
                shown += os.read(ours, 10_000)
            except OSError:  # Linux's word for its end.
                break
        os.close(ours)
        assert process.stdout is not None
        printed = process.stdout.read()
    return printed, shown.decode()


def test_a_script_on_a_terminal_has_a_bar_and_a_summary_on_stderr(
    slow_server: LoadServer, script: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_server:
        monkeypatch.setenv("OPENAI_BASE_URL", slow_server.url)
        printed, shown = on_a_terminal(script)

    assert printed == "before\n300\n"
    bars = re.findall(r"\r[^\r\n]*\| *(\d+)/300 \[[\d:]+<([\d:?]+), +[\d.?]+ rows/s", shown)
    counts = [int(count) for count, _ in bars]
    assert len(counts) >= 3
    assert all(before <= after for before, after in pairwise(counts))
    assert any(0 < count < 300 for count in counts)
    # Each line stands in the place of the one before, and the last one is wiped away.
    first, *rest = plain(shown).split("300 rows: ")
    plan, bar = first.strip().split("\r\n")
    assert plan == "300 rows · free"
    assert "\n" not in bar
    assert re.match(r"294 asked, 6 failed · free · [\d.]+ s", rest[0])
    assert "said 400" in rest[0]


def test_a_script_whose_output_goes_elsewhere_prints_nothing(
    slow_server: LoadServer, script: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_server:
        monkeypatch.setenv("OPENAI_BASE_URL", slow_server.url)
        ran = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True)

    assert (ran.stdout, ran.stderr) == ("before\n300\n", "")


def test_the_name_of_a_model_drives_no_terminal(
    slow_server: LoadServer, script: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MAGIC_MODEL", "lo\x1b[2Jad\u202e\x07")
    with slow_server:
        monkeypatch.setenv("OPENAI_BASE_URL", slow_server.url)
        _, shown = on_a_terminal(script)

    assert "lo[2Jad: " in shown
    ours = plain(shown).replace("\r", "")
    assert not CONTROLS.search(ours)
    assert not OVERRIDES.search(ours)
