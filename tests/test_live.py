"""The widget's end in the kernel: what it sends puts the answer together, as the page would."""

import json
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_magic.testing import FAULTS, Reply, ScriptedServer
from llm_magic.views.base import News
from llm_magic.views.live import Column
from llm_magic.views.notebook import writable
from llm_magic.views.render import markdown_html
from tests.conftest import KEY, Kernel, Shown

TEXT = """# Title 🙂

Some *words* with $x^2$ and a [link](https://example.org), then more of them.

| a | b |
|---|---|
| 1 | 🙃 |

```python
def f(x):
    return x  # 😀
```

1. one
2. two

   still two

> the end 🎉
"""


class Page:
    """What stream.js does with the messages, in Python; lengths are JavaScript's."""

    def __init__(self) -> None:
        self.html = self.thoughts = b""
        self.final = self.turn = self.missed = self.changed = 0

    def take(self, message: dict[str, Any]) -> None:
        """A message of the kernel's."""
        keep, known = 2 * message["keep"], 2 * message.get("known", len(self.thoughts) // 2)
        whole = message["keep"] == message.get("known") == 0
        if not whole and message["turn"] != self.turn + 1:
            self.missed += 1
            return
        self.turn = message["turn"]
        final = self.html[: 2 * self.final]
        self.html = self.html[:keep] + _units(message["add"])
        self.thoughts = self.thoughts[:known] + _units(message.get("thoughts", ""))
        self.final = message["final"]
        self.changed += not self.html.startswith(final)

    def text(self) -> str:
        """The HTML so far."""
        return self.html.decode("utf-16-le")


def _units(text: str) -> bytes:
    return text.encode("utf-16-le")


class Wire:
    """Carries messages to a page, and loses some."""

    def __init__(self, lost: frozenset[int] = frozenset()) -> None:
        self.page = Page()
        self.bytes = self.sent = self.asked = 0
        self.seen = threading.Event()
        self._lost = lost

    def send(self, message: dict[str, Any]) -> None:
        """To the page, unless it is lost."""
        message = writable(message)
        self.sent += 1
        self.bytes += len(json.dumps(message))
        if self.sent not in self._lost:
            self.page.take(json.loads(json.dumps(message)))


def stream(text: str, cuts: list[int], wire: Wire) -> Column:
    column = Column(wire, 0, None)  # type: ignore[arg-type]
    edges = [0, *sorted(cuts), len(text)]
    for start, end in pairwise(edges):
        column.draw(News(text[start:end], thoughts=text[start:end]))
    return column


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, len(TEXT)), max_size=30))
def test_the_page_has_what_the_answer_renders_to(cuts: list[int]) -> None:
    wire = Wire()

    stream(TEXT, cuts, wire)

    assert wire.page.text() == markdown_html(TEXT)
    assert wire.page.thoughts.decode("utf-16-le") == TEXT
    assert wire.page.missed == wire.page.changed == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, len(TEXT)), min_size=20, max_size=40),
    st.frozensets(st.integers(1, 15)),
)
def test_lost_messages_are_made_up_for(cuts: list[int], lost: frozenset[int]) -> None:
    """All of it is sent again with the 16th message at the latest, here."""
    wire = Wire(lost)

    stream(TEXT, cuts, wire)

    assert wire.page.text() == markdown_html(TEXT)


@given(st.text(st.sampled_from("a🙂\ud83d\ude00\n #`$|"), max_size=60))
def test_any_characters(text: str) -> None:
    wire = Wire()
    column = Column(wire, 0, None)  # type: ignore[arg-type]

    for character in text:
        column.draw(News(character))

    assert wire.page.missed == 0


def test_what_is_sent_is_linear_in_the_answer() -> None:
    paragraph = "Some words of an answer that goes on and on. " * 10 + "\n\n"

    def sent(paragraphs: int) -> int:
        wire = Wire()
        text = paragraph * paragraphs
        stream(text, list(range(0, len(text), 90)), wire)
        return wire.bytes

    short, long = sent(20), sent(200)

    assert long < 11 * short


def test_what_was_asked_anew_begins_anew() -> None:
    wire = Wire()
    column = stream("# Wrong", [2, 4], wire)

    column.again()
    column.draw(News("Right"))

    assert wire.page.text() == markdown_html("Right")


@pytest.fixture(scope="module")
def shared_kernel(shared_server: ScriptedServer) -> Iterator[Kernel]:
    environment = {
        "OPENAI_BASE_URL": shared_server.url,
        "OPENAI_API_KEY": KEY,
        "LLM_MAGIC_WIDGETS": "True",
    }
    kernel = Kernel(watched=True, environment=environment)
    kernel.run("%load_ext llm_magic")
    yield kernel
    kernel.stop()


@pytest.fixture
def kernel(shared_kernel: Kernel, shared_server: ScriptedServer) -> Kernel:
    shared_server.reset()
    return shared_kernel


@pytest.fixture
def server(shared_server: ScriptedServer) -> ScriptedServer:
    return shared_server


def final(shown: Shown) -> dict[str, Any]:
    """The one output that stays, ordinary and not a widget."""
    (display,) = shown.of("display_data")
    assert "application/vnd.jupyter.widget-view+json" in display["data"]
    last = shown.of("update_display_data")[-1]
    assert last["transient"] == display["transient"]
    assert set(last["data"]) == {"text/plain", "text/html"}
    return dict(last["data"])


@pytest.mark.kernel
def test_a_widget_while_it_streams_and_an_output_when_it_is_whole(
    kernel: Kernel, server: ScriptedServer
) -> None:
    server.enqueue(Reply("**Bold** and more words. " * 40, tokens_per_second=100))

    shown = kernel.run("%%llm -m m\nHello")

    assert final(shown)["text/plain"] == "**Bold** and more words. " * 40
    page = Page()
    for message in shown.of("comm_msg"):
        if message["data"].get("method") == "custom":
            page.take(message["data"]["content"])
    assert "<strong>Bold</strong>" in page.text()
    assert page.missed == 0
    opened = {message["comm_id"] for message in shown.of("comm_open")}
    assert {message["comm_id"] for message in shown.of("comm_close")} == opened
    kinds = [kind for kind, _ in shown.messages]
    assert kinds.index("display_data") < kinds.index("comm_close")


@pytest.mark.kernel
@pytest.mark.parametrize("fault", ["cut", "unknown_model", "error_in_stream"])
def test_no_widget_stays_after_an_error(kernel: Kernel, server: ScriptedServer, fault: str) -> None:
    server.enqueue(FAULTS[fault])

    shown = kernel.run("%%llm -m m\nHello")

    assert shown.of("error")
    assert final(shown)["text/html"]
    assert len(shown.of("comm_close")) == len(shown.of("comm_open"))


@pytest.mark.kernel
def test_an_object_streams_into_it_as_well(kernel: Kernel, server: ScriptedServer) -> None:
    rows = [{"name": f"n{number}", "size": number} for number in range(30)]
    server.enqueue(Reply(json.dumps({"result": rows}), tokens_per_second=150))
    kernel.run(
        "from pydantic import BaseModel\nclass Thing(BaseModel):\n    name: str\n    size: int"
    )

    shown = kernel.run("%%llm -m m --schema list[Thing]\nThings")

    sent = "".join(
        message["data"]["content"].get("add", "")
        for message in shown.of("comm_msg")
        if message["data"].get("method") == "custom"
    )
    assert "<table>" in sent
    assert "n29" in final(shown)["text/html"]


@pytest.mark.kernel
def test_what_is_kept_needs_no_widget(kernel: Kernel, server: ScriptedServer) -> None:
    kernel.run("%config LLMMagic.cache_size = 1_000_000")
    kernel.run("%%llm -m m\nKept")

    shown = kernel.run("%%llm -m m\nKept")
    kernel.run("%config LLMMagic.cache_size = 0")

    assert shown.of("comm_open") == []
    assert len(shown.of("display_data")) == 1
    assert shown.of("update_display_data") == []


@pytest.mark.kernel
def test_reasoning_is_folded_away(kernel: Kernel, server: ScriptedServer) -> None:
    server.enqueue(Reply("Seven.", reasoning="It is <b>odd</b> and prime."))

    shown = kernel.run("%%llm -m m\nA prime")

    html = final(shown)["text/html"]
    assert "<details>" in html
    assert "It is &lt;b&gt;odd&lt;/b&gt; and prime." in html
    assert final(shown)["text/plain"] == "Seven."


@pytest.mark.kernel
def test_a_page_that_never_shows_it_gets_plain_updates(
    kernel: Kernel, server: ScriptedServer
) -> None:
    """As where the server's side has no widgets: nobody opens a second shell."""
    if not kernel.value("hasattr(get_ipython().kernel, '_supports_kernel_subshells')"):
        pytest.skip("this ipykernel has no second shell, and cannot know")
    kernel.run("from llm_magic.views import live; live.OPENS = 0.1")
    server.enqueue(Reply("Some words. " * 80, tokens_per_second=50))

    shown = kernel.run("%%llm -m m\nHello")

    assert len(shown.of("update_display_data")) >= 5
    assert final(shown)["text/plain"] == "Some words. " * 80
    kernel.run("live.OPENS = 2.5")


@pytest.mark.kernel
@pytest.mark.parametrize(
    "cell",
    ["%%llm -m m\nHello", "%%llm --compare a,b\nHello", "%%llm_map rows -m m\nHello {{ n }}"],
)
def test_an_interrupt_while_the_widget_is_made_leaves_none(
    cell: str, kernel: Kernel, server: ScriptedServer
) -> None:
    kernel.run("%%llm -m m\nMade once.")
    kernel.run("rows = [{'n': 1}, {'n': 2}]")
    kernel.run(
        "import os, signal, comm\n"
        "from ipywidgets import Widget\n"
        "opened = Widget.open\n"
        "def interrupted(widget):\n"
        "    opened(widget)\n"
        "    Widget.open = opened\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "Widget.open = interrupted"
    )
    server.reset()
    server.enqueue(Reply("Late.", delay=60), Reply("Late.", delay=60))

    shown = kernel.run(cell)

    (error,) = shown.of("error")
    assert error["ename"] in ("Interrupted", "KeyboardInterrupt")
    assert kernel.value("len(comm.get_comm_manager().comms)") == 0


@pytest.mark.kernel
@pytest.mark.parametrize("fault", ["", "event_error"])
@pytest.mark.parametrize("cell", ["%%llm -m m\nHello", "%%llm --compare a,b\nHello"])
def test_an_interrupt_while_the_end_of_an_answer_is_drawn_leaves_no_widget(
    cell: str, fault: str, kernel: Kernel, server: ScriptedServer
) -> None:
    kernel.run("%%llm -m m\nMade once.")
    kernel.run(
        "import os, signal, comm\n"
        "from ipywidgets import Widget\n"
        "closed = Widget.close\n"
        # A widget that is closed already is closed again when it is collected, at any time.
        "def interrupted(widget):\n"
        "    if widget.comm is not None:\n"
        "        Widget.close = closed\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    closed(widget)\n"
        "Widget.close = interrupted"
    )
    server.reset()
    if fault:
        server.enqueue(FAULTS[fault], FAULTS[fault])

    shown = kernel.run(cell)

    # Where it comes before the answer is through, it is told as an interrupt of it.
    (error,) = shown.of("error")
    assert error["ename"] in ("KeyboardInterrupt", "Interrupted")
    assert kernel.value("len(comm.get_comm_manager().comms)") == 0
