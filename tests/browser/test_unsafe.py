"""Nothing that a model or a server says acts on the page: live, saved, reopened, not trusted."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import nbformat
import pytest
from playwright.sync_api import expect

from llm_magic.testing import Reply, ScriptedServer
from tests.browser.page import Desk, Notebook
from tests.payloads import payloads

pytestmark = pytest.mark.browser

GROUPS = 9
SINGLE = (
    *("script", "img onerror", "details ontoggle", "style import", "overlay", "iframe srcdoc"),
    *("refresh", "raw text elements", "open fence", "maths that defines", "comment"),
)
"""Payloads that could change what comes after them: each has an answer of its own as well."""
LOAD = """%load_ext llm_magic
from IPython.display import HTML, display
from pydantic import BaseModel
class Row(BaseModel):
    words: str
turn = iter(["", BAD, ""])"""
ASK = "%%llm --no-cache\nHello"
ROWS = "%%llm rows << --no-cache --schema list[Row]\nHello"
# Each error and each name of a model as a cell of its own would show it.
MANY = """for _ in range({}):
    get_ipython().run_cell("%llm --no-cache Hello")"""
# Shows nothing, then what acts, then nothing.
CONTROL = "display(HTML(next(turn)))"
BAD = "<img src=x onerror='window.PWNED=1'><img src='LEAK'><img src='http://192.0.2.1/'>"

# Does to every element what a user can: points at it, focuses it, clicks it. Where a click would
# open another tab, it is only noted.
PROVOKE = """() => {
    if (window.provoke) return;
    window.followed = [];
    document.addEventListener('click', event => {
        const link = event.target.closest?.('.jp-OutputArea-output a');
        if (!link || link.target !== '_blank' || !/noopener/.test(link.rel)) return;
        if (!/^(https?|mailto):/.test(link.href)) return;
        window.followed.push(link.href);
        event.preventDefault();
    });
    const events = ['pointerover', 'pointerenter', 'mouseover', 'mouseenter', 'mousemove',
        'pointerdown', 'mousedown', 'pointerup', 'mouseup'];
    window.provoke = root => {
        for (const element of root.querySelectorAll('*')) {
            if (element.closest('button')) continue;
            for (const each of events) {
                const Kind = each.startsWith('p') ? PointerEvent : MouseEvent;
                element.dispatchEvent(new Kind(each, {bubbles: true, cancelable: true}));
            }
            element.focus?.({preventScroll: true});
            if (element.click) element.click();
            else element.dispatchEvent(new MouseEvent('click', {bubbles: true}));
        }
    };
    window.rounds = 0;
    let frame = 0;
    const look = () => {
        const live = document.querySelectorAll('.llm-magic');
        if (live.length && ++frame % 10 === 0) {
            live.forEach(window.provoke);
            window.rounds += 1;
        }
        requestAnimationFrame(look);
    };
    look();
}"""
# What a broken image of the outputs does, it has done when one of our own is found to be broken.
PROVOKE_ALL = """() => new Promise(done => {
    document.querySelectorAll('.jp-OutputArea-output').forEach(window.provoke);
    const image = new Image();
    image.onerror = done;
    image.src = 'no-such-image';
})"""

OUTPUTS = ".jp-OutputArea-output"
TRUSTED = """() => {
    const cells = window.jupyterapp.shell.currentWidget.content.model.cells;
    return [...cells].map(each => each.trusted);
}"""
# What only something that acts would have put into the outputs.
FOUND = """() => {
    const elements = [...document.querySelectorAll('.jp-OutputArea-output *')];
    const acting = 'script,style,link,base,meta,iframe,object,embed,img,video,audio,form,input,'
        + 'textarea,select,template,marquee';
    return elements.filter(each => {
        const {position, backgroundImage} = getComputedStyle(each);
        const maths = each.closest('mjx-container');
        return each.matches(acting)
            || [...each.attributes].some(({name}) => /^on|^data-command|^popover/.test(name))
            || position === 'fixed' || position === 'sticky'
            || (position === 'absolute' && !maths)
            || /url/.test(backgroundImage)
            || (maths && (each.matches('a, [href]') || each.id === 'main'));
    }).map(each => each.outerHTML.slice(0, 200));
}"""


@dataclass
class Leaks:
    """A server that is not to be asked.

    Attributes:
        port: Where on 127.0.0.1 it listens.
        asked: What it was asked.
    """

    port: int
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def leaks() -> Iterator[Leaks]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            leaks.asked.append(self.path)
            self.send_error(404)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        leaks = Leaks(listening.server_address[1])
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield leaks
        listening.shutdown()
        thread.join()


@dataclass
class Corpus:
    """Hostile words, and the answers that they come in.

    Attributes:
        texts: Each payload.
        prose: As answers: many together, some alone.
        rows: All of them as the rows of a table.
        errors: Some of those that have elements or formulas, on one line each.
        names: The others of these.
    """

    texts: list[str]
    prose: list[Reply] = field(default_factory=list)
    rows: Reply = field(default_factory=Reply)
    errors: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def corpus(leaks: Leaks) -> Corpus:
    named = {
        # A server cannot send half a surrogate pair.
        name: text.encode("utf-8", "ignore").decode()
        for name, text in payloads(leaks.port).items()
    }
    texts = list(named.values())
    groups = ["\n\n".join(texts[first::GROUPS]) for first in range(GROUPS)]
    fast, thoughts = 1000, "\n\n".join(texts)
    prose = [Reply(group, tokens_per_second=fast) for group in groups]
    prose[0] = Reply(groups[0], reasoning=thoughts, tokens_per_second=2 * fast)
    prose += [Reply(f"{named[name]}\n\nafter", tokens_per_second=fast) for name in SINGLE]
    rows = Reply(json.dumps([{"words": each} for each in texts]), tokens_per_second=2 * fast)
    lines = [
        " ".join(each.split()) for each in texts if "<" in each or "$" in each or "\x1b" in each
    ]
    return Corpus(texts, prose, rows, lines[::2], lines[1::2])


@pytest.fixture(scope="module")
def opened(desk: Desk, leaks: Leaks, corpus: Corpus) -> Iterator[Notebook]:
    bad = BAD.replace("LEAK", f"http://127.0.0.1:{leaks.port}/leak")
    cells = [
        LOAD.replace("BAD", repr(bad)),
        *[ASK] * len(corpus.prose),
        ROWS,
        MANY.format(len(corpus.errors)),
        MANY.format(len(corpus.names)),
        "%llm_usage",
        CONTROL,
    ]
    with desk.opened(*cells) as notebook:
        notebook.page.evaluate(PROVOKE)
        yield notebook


@pytest.fixture(scope="module")
def said(
    opened: Notebook, shared_server: ScriptedServer, corpus: Corpus, asked_elsewhere: list[str]
) -> list[str]:
    """All of it has been said in the notebook; what was asked for elsewhere meanwhile."""
    shared_server.reset()
    shared_server.enqueue(*corpus.prose, corpus.rows)
    for each in corpus.errors:
        error = {"error": {"message": each, "type": each, "code": each}}
        shared_server.enqueue(Reply(status=400, error=error))
    shared_server.enqueue(*(Reply("Hello.", model=each) for each in corpus.names))
    opened.start_all()
    opened.wait(seconds=90)
    assert len(shared_server.requests) == 1 + sum(
        map(len, (corpus.prose, corpus.errors, corpus.names))
    )
    return list(asked_elsewhere)


@pytest.fixture
def notebook(opened: Notebook, said: list[str], leaks: Leaks) -> Iterator[Notebook]:
    """The notebook in which all of it was said, poked at while it came."""
    yield opened
    assert leaks.asked == []


def harmless(notebook: Notebook) -> None:
    """Nothing ran, nothing covers the page, and it is still the notebook."""
    page = notebook.page
    assert [frame.url for frame in page.frames] == [page.main_frame.url]
    assert page.evaluate("window.PWNED") is None
    assert page.evaluate(FOUND) == []
    assert notebook.path.stem in page.title()


def provoke(notebook: Notebook) -> None:
    """Does to what the cells show all that a user can."""
    pages, address = notebook.page.context.pages, notebook.page.url
    cells = notebook.cells.count()
    notebook.page.evaluate(PROVOKE)
    notebook.page.evaluate(PROVOKE_ALL)
    harmless(notebook)
    assert (notebook.page.context.pages, notebook.page.url) == (pages, address)
    assert notebook.cells.count() == cells


def test_while_it_came(notebook: Notebook, said: list[str], corpus: Corpus) -> None:
    rounds = notebook.page.evaluate("window.rounds")

    assert rounds > len(corpus.prose)
    harmless(notebook)
    assert said == []


def test_when_it_is_there(notebook: Notebook, corpus: Corpus) -> None:
    notebook.page.evaluate("window.followed.length = 0")
    provoke(notebook)

    assert len(notebook.page.evaluate("window.followed")) > 10
    least = sum(map(len, (corpus.prose, corpus.errors, corpus.names)))
    assert notebook.page.locator(OUTPUTS).count() >= least
    shown = notebook.page.locator(".jp-Notebook").text_content() or ""
    assert shown.count("<script>window.PWNED=1</script>") > 5


@pytest.mark.parametrize("trust", [True, False], ids=["trusted", "not trusted"])
def test_saved_and_reopened(desk: Desk, notebook: Notebook, trust: bool) -> None:
    notebook.save()
    saved, outputs = notebook.path, notebook.page.locator(OUTPUTS).count()
    if not trust:
        # A file that differs from the one that was signed.
        book: Any = nbformat.read(saved, as_version=4)
        book.metadata["title"] = "from somebody else"
        saved = saved.with_name("strange.ipynb")
        nbformat.write(book, saved)

    with desk.opened_without_kernel(saved) as reopened:
        expect(reopened.cells).to_have_count(notebook.cells.count())
        expect(reopened.page.locator(OUTPUTS)).to_have_count(outputs)
        code = set(reopened.page.evaluate(TRUSTED))
        provoke(reopened)

    assert code == {trust}


def test_these_checks_can_fail(notebook: Notebook, leaks: Leaks, elsewhere: list[str]) -> None:
    last = notebook.cells.count() - 1
    notebook.run(last)

    notebook.page.wait_for_function("window.PWNED")
    notebook.until(lambda: bool(leaks.asked and elsewhere), "the page asks elsewhere")
    assert len(notebook.page.evaluate(FOUND)) == 3

    notebook.run(last)
    notebook.page.evaluate("delete window.PWNED")
    leaks.asked.clear()
    elsewhere.clear()
