"""The views of one and of several answers in this process: what they publish, step by step."""

import sys
import types
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher

from llm_magic import views
from llm_magic.background import Pending
from llm_magic.types import Comparison, Response, Usage
from llm_magic.views import columns, live
from llm_magic.views.base import News
from llm_magic.views.notebook import HeadlessView, NotebookView
from tests.conftest import Terminal

WIDGET = "application/vnd.jupyter.widget-view+json"


class Screen:
    """What a notebook would show of what is published."""

    def __init__(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pub = CapturingDisplayPublisher(parent=terminal.shell)
        monkeypatch.setattr(terminal.shell, "display_pub", self._pub)

    @property
    def data(self) -> list[dict[str, Any]]:
        """The bundles of all displays and updates."""
        return [each["data"] for each in self._pub.outputs]


@pytest.fixture
def screen(bare_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(bare_terminal, monkeypatch)


def nothing() -> None:
    """Stops nothing."""


def go_through(several: columns.Columns) -> None:
    """Two answers that come in turns."""
    several.start(nothing)
    one, two = several.column(0), several.column(1)
    for view in (one, two):
        view.start("ignored", nothing)
    one.draw(News("# Al"))
    two.draw(News("wrong"))
    two.again()
    two.draw(News("**Be"))
    one.draw(News("pha"))
    one.finish("# Alpha", "a · 1 in / 2 out")
    two.draw(News("ta**"))
    two.finish("**Beta**", "b · 1 in / 2 out", "thoughts")
    several.finish()


@pytest.mark.parametrize(
    "kind", [columns.LiveColumns, columns.PlainColumns, columns.HeadlessColumns]
)
def test_several_end_as_the_same_table(screen: Screen, kind: Any) -> None:
    labels = ["a", "b"]
    several = kind(labels) if kind is columns.HeadlessColumns else kind(labels, None)

    go_through(several)

    last = screen.data[-1]
    assert last["text/plain"] == "a:\n\n# Alpha\n\nb:\n\n**Beta**"
    assert "<h1>Alpha</h1>" in last["text/html"]
    assert "<strong>Beta</strong>" in last["text/html"]
    assert "<details>" in last["text/html"]
    assert WIDGET not in last


def test_plain_columns_grow(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_REDRAWS_PER_SECOND", 1e6)
    monkeypatch.setattr(columns, "BYTES_PER_SECOND", 1e12)

    go_through(columns.PlainColumns(["a", "b"], None))

    shown = [each["text/html"] for each in screen.data]
    assert "interrupt the kernel" in shown[0]
    assert any("Al</h1>" in each for each in shown)
    assert any("wrong" in each for each in shown)
    assert "wrong" not in shown[-1]


def test_quiet_columns_publish_nothing(screen: Screen) -> None:
    several = columns.Columns(["a", "b"])

    go_through(several)

    assert screen.data == []
    assert [part.answer for part in several.parts] == ["# Alpha", "**Beta**"]


def test_columns_in_a_terminal_come_one_below_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    go_through(columns.TerminalColumns(["a", "b"]))

    said = capsys.readouterr().out
    assert said.index("── a") < said.index("# Alpha") < said.index("── b") < said.index("**Beta**")


@pytest.mark.parametrize("broken", ["start", "page"])
def test_columns_go_on_without_the_widget(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "start":
        monkeypatch.setattr(live, "_warned", live.threading.Event())
        monkeypatch.setattr(live, "_widget_class", lambda: 1 / 0)
        with pytest.warns(UserWarning, match="without a Stop button"):
            go_through(columns.LiveColumns(["a", "b"], None))
    else:
        monkeypatch.setattr(live.Stream, "unseen", lambda _: True)
        go_through(columns.LiveColumns(["a", "b"], None))

    assert any("interrupt the kernel" in each.get("text/html", "") for each in screen.data)
    assert "<h1>Alpha</h1>" in screen.data[-1]["text/html"]


@pytest.mark.parametrize("broken", ["", "start", "page"])
def test_one_answer_ends_the_same(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "start":
        live._warned.set()
        monkeypatch.setattr(live, "_widget_class", lambda: 1 / 0)
    if broken == "page":
        monkeypatch.setattr(live.Stream, "unseen", lambda _: True)
    view = live.LiveView()

    view.start("m", nothing)
    view.draw(News("wrong", "hm", "retrying"))
    view.again()
    view.draw(News("# Al"))
    view.draw(News("pha"))
    view.finish("# Alpha", "m · 1 in / 2 out", "hm")

    assert (WIDGET in screen.data[0]) == (broken != "start")
    assert screen.data[-1]["text/plain"] == "# Alpha"
    assert set(screen.data[-1]) == {"text/plain", "text/html"}


@pytest.mark.parametrize("kind", [live.LiveView, NotebookView, HeadlessView])
def test_half_a_surrogate_pair_ends_as_a_replacement(screen: Screen, kind: Any) -> None:
    view = kind()
    view.start("m", nothing)
    view.finish("a\ud83db", "m")

    assert screen.data[-1]["text/plain"] == "a\ufffdb"
    assert "a\ufffdb" in screen.data[-1]["text/html"]


def test_the_page_is_heard() -> None:
    stopped: list[bool] = []
    stream = live.Stream(["m"], lambda: stopped.append(True), interrupts=True)

    stream._hear(None, {"seen": True}, [])
    stream._hear(None, {"missed": True}, [])
    stream._hear(None, {"stop": True}, [])
    stream.close()

    assert stream.seen.is_set()
    assert stream.asked == 2
    assert stopped == [True]
    assert not stream.unseen()


def test_an_answer_that_is_there_is_shown_without_a_widget(screen: Screen) -> None:
    live.LiveView().finish("Kept.", "m · cached")

    assert [each["text/plain"] for each in screen.data] == ["Kept."]


def test_each_kind_of_answer_is_displayed(screen: Screen) -> None:
    response = Response("Seven.", Usage(1, 2), "m", "stop", value="Seven.")

    columns.display_answer(response)
    columns.display_answer(Comparison(a=response, b=response))
    columns.display_answer(Pending("m", nothing))

    one, two, pending = (each["text/plain"] for each in screen.data)
    assert one == "Seven."
    assert two == "a:\n\nSeven.\n\nb:\n\nSeven."
    assert ".result() waits" in pending


class Kernel:
    """The shell of a kernel, as far as a view is chosen by it."""

    def __init__(self, **names: Any) -> None:
        self.kernel = object()
        self.display_pub = object()
        self.user_ns = names


def test_the_view_fits_the_front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(views.choose(Kernel())) is HeadlessView
    assert type(views.choose(Kernel(__vsc_ipynb_file__="x.ipynb"))) is NotebookView
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert type(views.choose(Kernel())) is live.LiveView
    assert type(views.choose(Kernel(), live=False)) is HeadlessView
    assert type(views.choose(Kernel(), live=False, blocks=False)) is live.LiveView
    assert type(views.choose(Kernel(), widgets=False)) is NotebookView
    assert type(views.choose(Kernel(), quiet=True)) is views.Silent
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert type(views.choose(Kernel())) is NotebookView


def test_so_do_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a", "b"]
    assert type(views.choose_columns(None, names)) is columns.Columns
    assert type(views.choose_columns(object(), names)) is columns.TerminalColumns
    assert type(views.choose_columns(Kernel(), names)) is columns.HeadlessColumns
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert type(views.choose_columns(Kernel(), names)) is columns.LiveColumns
    assert type(views.choose_columns(Kernel(), names, widgets=False)) is columns.PlainColumns
