"""One notebook of mixed cells, run and shown by what runs notebooks without anybody watching.

Each answer is there exactly once, as ordinary output that needs no kernel, widget or script.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter, PythonExporter
from nbconvert.preprocessors import ExecutePreprocessor

from llm_magic.testing import ScriptedServer
from tests.conftest import KEY, Terminal

pytestmark = pytest.mark.kernel

SANITIZE = Path(__file__).parent.parent / "notebooks" / "nbval.cfg"
RUNNERS = ("nbclient", "papermill", "nbconvert")
NO_WIDGET = ("Loading widget", "Error displaying widget", "vnd.jupyter.widget")
REPORT = """\
## First report

| city | people |
|---|---|
| REPORTED | 2 |

```python
total = 1 + 1
```

$$\\int_0^1 x\\,dx$$
"""
ANSWERS = {
    "NameError": "MENDED: set the prices.\n\n```python\ntotal = 0\n```\n",
    "the report": REPORT,
    "the cities": '{"result": [{"name": "OSORNO", "people": 5}, {"name": "ARICA", "people": 7}]}',
    "nothing": "UNSEEN",
    "the picture": "A **RED** square.",
    "prime": "SEVENTEEN",
    "first": "ONE",
    "second": "TWO",
    "not streamed": "WHOLE",
    "the red one": "ANA",
    "the blue one": "BEN",
}
SETUP = """\
from PIL import Image
from pydantic import BaseModel

class City(BaseModel):
    name: str
    people: int

picture = Image.new("RGB", (2, 2), "red")
boxes = ["the red one", "the blue one", "the red one"]
%load_ext llm_magic"""
# A cell, and how the text of its one output begins; "" where it shows none.
CELLS = (
    (SETUP, ""),
    ("%%llm report <<\nWrite the report.", REPORT),
    ("%%llm cities << --schema list[City]\nList the cities.", "[City(name='OSORNO', people=5)"),
    ("%%llm unseen << --quiet\nSay nothing.", ""),
    ("%%llm\nWhat is in the picture? {{ picture }}", "A **RED** square."),
    ("prime = %llm Name a prime number.", "SEVENTEEN"),
    ("%%llm\nWrite the report.", REPORT),
    ("%%llm --dry-run\nWrite the report.", "POST http://127.0.0.1:"),
    ("%%llm -c talk\nThe first question.", "ONE"),
    ("%%llm -c talk\nThe second question.", "TWO"),
    ("%%llm --no-stream\nThis is not streamed.", "WHOLE"),
    ("%%llm_map boxes owners <<\nWhose is {{ text }}?", "3 rows: 2 asked, 1 equal"),
    ("%%llm_map boxes silent << --quiet\nWhose is {{ text }}?", ""),
    ("%%llm_map boxes --dry-run\nWho wants {{ text }}?", "\n─"),
    ("%llm_usage", "model"),
)
# Of these the value is what is shown.
RESULTS = ("%llm_usage", "%%llm_map boxes --dry-run\nWho wants {{ text }}?")
# papermill takes every error for the end, whatever the cell's tags.
FAILING = (
    ("total = prices", ""),
    ("%llm_fix", "MENDED: set the prices."),
)
# How often each of these is in the answers shown: the report is asked twice.
SHOWN = {"REPORTED": 2, "OSORNO": 1, "ARICA": 1, "RED": 1, "SEVENTEEN": 1, "ONE": 1, "TWO": 1}
SHOWN |= {"WHOLE": 1, "UNSEEN": 0, "MENDED": 1, "ANA": 1, "BEN": 1}


def notebook(*, failing: bool = True) -> Any:
    """The notebook as it is before any run."""
    cells = CELLS + (FAILING if failing else ())
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each, _ in cells])
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
        if cell.source == FAILING[0][0]:
            cell.metadata.tags = ["raises-exception"]
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    return book


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ScriptedServer]:
    with ScriptedServer(ANSWERS) as running:
        yield running


@pytest.fixture(scope="module")
def folder(shared_server: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runners")


@contextlib.contextmanager
def alone(folder: Path, name: str, server: ScriptedServer) -> Iterator[Path]:
    """A runner's own folder, and the environment of its kernels."""
    own = folder / name
    own.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for variable in list(os.environ):
            if variable.startswith(("OPENAI_", "LLM_MAGIC_", "JPY_")):
                patch.delenv(variable)
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("LLM_MAGIC_CACHE_DIR", str(own / "cache"))
        patch.setenv("LLM_MAGIC_LEDGER_DIR", str(own / "ledger"))
        patch.setenv("OPENAI_BASE_URL", server.url)
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.chdir(own)
        yield own


@pytest.fixture(scope="module")
def by_nbclient(folder: Path, shared_server: ScriptedServer) -> Path:
    with alone(folder, "nbclient", shared_server) as own:
        nbformat.write(NotebookClient(notebook()).execute(), own / "done.ipynb")
    return own / "done.ipynb"


@pytest.fixture(scope="module")
def by_papermill(folder: Path, shared_server: ScriptedServer) -> Path:
    with alone(folder, "papermill", shared_server) as own:
        nbformat.write(notebook(failing=False), own / "in.ipynb")
        papermill.execute_notebook(own / "in.ipynb", own / "done.ipynb", progress_bar=False)
    return own / "done.ipynb"


@pytest.fixture(scope="module")
def by_nbconvert(folder: Path, shared_server: ScriptedServer) -> Path:
    """As ``nbconvert --execute --to html`` does it, and the notebook that it rendered."""
    with alone(folder, "nbconvert", shared_server) as own:
        done, _ = ExecutePreprocessor().preprocess(notebook())
        nbformat.write(done, own / "done.ipynb")
    return own / "done.ipynb"


@pytest.fixture(params=RUNNERS)
def saved(request: pytest.FixtureRequest) -> Any:
    """What each runner has saved."""
    return nbformat.read(request.getfixturevalue(f"by_{request.param}"), 4)


@pytest.fixture(scope="module")
def by_voila(folder: Path, shared_server: ScriptedServer) -> str:
    """The page that Voilà makes of the notebook."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with alone(folder, "voila", shared_server) as own, (own / "log").open("wb") as log:
        nbformat.write(notebook(), own / "in.ipynb")
        command = [sys.executable, "-m", "voila", "in.ipynb", "--no-browser"]
        process = subprocess.Popen(
            [*command, f"--port={port}", "--Voila.ip=127.0.0.1"],
            env=os.environ | {"JUPYTER_RUNTIME_DIR": str(own)},
            stdout=log,
            stderr=log,
        )
        try:
            return fetched(f"http://127.0.0.1:{port}/", process)
        finally:
            process.terminate()
            process.wait(20)


def fetched(url: str, process: "subprocess.Popen[bytes]") -> str:
    """A page, as soon as its server answers; it ends when the last cell has run."""
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=60) as page:
            return str(page.read().decode("utf-8"))
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer")


class Texts(HTMLParser):
    """The words of a page as they are without JavaScript: what is in no script and no style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.hidden = 0
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


def answers(words: str) -> dict[str, int]:
    """How often each answer is in a text."""
    return {each: len(re.findall(rf"\b{each}\b", words)) for each in SHOWN}


def outputs(book: Any) -> list[tuple[str, Any]]:
    """Each code cell, and its outputs."""
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    return [(cell.source, cell.outputs) for cell in cells]


def shown_in(book: Any) -> dict[str, int]:
    """How often each answer is to be in a notebook."""
    fixes = "%llm_fix" in [source for source, _ in outputs(book)]
    return SHOWN if fixes else SHOWN | {"MENDED": 0}


def test_every_cell_has_its_one_output(saved: Any) -> None:
    expected = dict([*CELLS, *FAILING])
    for source, shown in outputs(saved):
        if source == FAILING[0][0]:
            assert [each.output_type for each in shown] == ["error"]
        elif not expected[source]:
            assert shown == []
        else:
            (output,) = shown
            kind = "execute_result" if source in RESULTS else "display_data"
            assert output.output_type == kind, source
            assert output.data["text/plain"].startswith(expected[source])


def test_every_answer_is_there_once_in_each_form(saved: Any) -> None:
    shows = [each for _, shown in outputs(saved) for each in shown if "data" in each]

    for kind in ("text/plain", "text/html"):
        assert answers(" ".join(each.data[kind] for each in shows)) == shown_in(saved)


def test_nothing_saved_needs_a_widget(saved: Any) -> None:
    """No widget, and no state of one, is in the file."""
    kinds = {kind for _, shown in outputs(saved) for each in shown for kind in each.get("data", ())}

    assert kinds == {"text/plain", "text/html"}
    assert "widgets" not in saved.metadata
    assert not any(words in nbformat.writes(saved) for words in NO_WIDGET)


def test_the_plain_text_is_the_raw_markdown(saved: Any) -> None:
    """For readers that know no HTML, such as a diff or another model."""
    report = next(shown for source, shown in outputs(saved) if "report <<" in source)

    assert report[0].data["text/plain"] == REPORT
    for tag in ("<h2>", "<table>", "<pre", "$$\\int_0^1 x\\,dx$$"):
        assert tag in report[0].data["text/html"]


def test_the_runners_save_the_same(
    by_nbclient: Path, by_papermill: Path, by_nbconvert: Path
) -> None:
    def comparable(path: Path) -> list[Any]:
        shown = dict(outputs(nbformat.read(path, 4)))
        # How long each took, what was spent, and which port the server has, differ.
        return [
            re.sub(r" · [\d.]+ s", "", str(shown[source]))
            for source, _ in CELLS
            if source != "%llm_usage"
        ]

    assert comparable(by_papermill) == comparable(by_nbclient) == comparable(by_nbconvert)


def test_a_page_without_javascript_has_every_answer_once(saved: Any) -> None:
    page, _ = HTMLExporter(exclude_input=True).from_notebook_node(saved)

    assert answers(" ".join(Texts(page).words)) == shown_in(saved)
    assert not any(each in page for each in NO_WIDGET[:2])


def test_a_page_of_the_saved_file_has_its_tables_code_and_formulas(by_nbclient: Path) -> None:
    page, _ = HTMLExporter().from_filename(str(by_nbclient))

    assert page.count('<td style="text-align:left">REPORTED</td>') == 2
    assert page.count("$$\\int_0^1 x\\,dx$$") == 2
    assert "<strong>RED</strong>" in page


def test_voila_shows_every_answer_once(by_voila: str) -> None:
    """Its page has the outputs as JSON, which its own script draws."""
    found = re.findall(
        r"<script type=.application/vnd.voila.cell-output.json.>(.*?)</script>", by_voila, re.DOTALL
    )
    shows = [output for output in map(json.loads, found) if "data" in output]

    assert len(shows) == sum(bool(begins) for _, begins in CELLS + FAILING)
    for kind in ("text/plain", "text/html"):
        assert answers(" ".join(each["data"][kind] for each in shows)) == SHOWN
    assert not any(words in by_voila for words in NO_WIDGET)


def test_nbval_finds_no_difference(
    by_nbclient: Path, folder: Path, shared_server: ScriptedServer
) -> None:
    """Asked anew, with no answer kept, and strictly."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval"]
    with alone(folder, "nbval", shared_server) as own:
        done = subprocess.run(
            [*command, f"--nbval-sanitize-with={SANITIZE}", str(by_nbclient)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=own,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CELLS + FAILING)} passed" in done.stdout


def test_a_script_keeps_the_cells(by_nbclient: Path) -> None:
    script, _ = PythonExporter().from_filename(str(by_nbclient))

    for source, _ in CELLS[1:]:
        if source.startswith("%%llm"):
            line, body = source.split("\n", 1)
            name, _, options = line.removeprefix("%%").partition(" ")
            assert f"run_cell_magic({name!r}, {options!r}, {body + chr(10)!r})" in script
    assert "prime = get_ipython().run_line_magic('llm', 'Name a prime number.')" in script
    assert "get_ipython().run_line_magic('llm_usage', '')" in script


def test_the_script_runs_in_a_terminal(
    terminal: Terminal, shared_server: ScriptedServer, tmp_path: Path
) -> None:
    script, _ = PythonExporter().from_notebook_node(notebook(failing=False))
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    terminal.run(f"%config LLMMagic.base_url = {shared_server.url!r}")

    ran = terminal.run("%run -i script.py")

    assert ran.error is None
    assert answers(ran.out) == SHOWN | {"MENDED": 0}
    assert terminal["unseen"] == "UNSEEN"
    for name in ("owners", "silent"):
        assert [each["answer"] for each in terminal[name]] == ["ANA", "BEN", "ANA"]
