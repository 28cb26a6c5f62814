"""Front ends without the widget: no libraries, broken ones, VS Code, Colab, a notebook in another.

Each streams by plain updates or shows one display, and saves the same form.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, Kernel, Shown

pytestmark = pytest.mark.kernel

REPORT = Reply(
    "## Report\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n$$E = mc^2$$ yes.\n",
    tokens_per_second=100,
)
LONG = Reply("**Bold** and `code`. " * 100, tokens_per_second=300)
CITIES = Reply(
    '{"result": [{"name": "Osorno", "people": 5}, {"name": "Arica", "people": 7}]}',
    tokens_per_second=30,
)
WIDGET = "application/vnd.jupyter.widget-view+json"
# As where a package is not installed: no finder knows it.
HIDE = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {}:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
SETUP = """
%load_ext llm_magic
from typing import TypedDict
City = TypedDict("City", {"name": str, "people": int})
"""
CELLS = {
    "prose": "%%llm -m m\nWrite a report.",
    "a list of objects": "%%llm -m m --schema list[City]\nWhich cities?",
    "an error": "%%llm -m m\nFail.",
    "a cut answer": "%%llm -m m\nBreak.",
}
REPLIES = dict(zip(CELLS, (REPORT, CITIES, FAULTS["bad_key"], FAULTS["cut"]), strict=True))


def started(server: ScriptedServer, *first: str, watched: bool = True, **more: str) -> Kernel:
    """A kernel with the magics, after some first cells."""
    environment = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY} | more
    kernel = Kernel(watched=watched, environment=environment)
    for cell in (*first, SETUP):
        shown = kernel.run(cell)
        assert not shown.of("error"), shown.of("error")
    return kernel


@pytest.fixture
def server(shared_server: ScriptedServer) -> ScriptedServer:
    shared_server.reset()
    return shared_server


@pytest.fixture(scope="module")
def headless(shared_server: ScriptedServer) -> Iterator[Kernel]:
    kernel = started(shared_server, watched=False)
    yield kernel
    kernel.stop()


@pytest.fixture(scope="module")
def with_widget(shared_server: ScriptedServer) -> Iterator[Kernel]:
    kernel = started(shared_server, LLM_MAGIC_WIDGETS="True")
    yield kernel
    kernel.stop()


@pytest.fixture(scope="module", params=["anywidget", "ipywidgets"])
def without(shared_server: ScriptedServer, request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """A kernel in whose environment one of the two libraries is not installed."""
    hide = HIDE.replace("{}", repr({request.param}))
    kernel = started(shared_server, hide, LLM_MAGIC_WIDGETS="True")
    yield kernel
    kernel.stop()


@pytest.fixture(scope="module")
def broken(
    shared_server: ScriptedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kernel]:
    """A kernel whose anywidget cannot be imported, as where its parts do not fit together."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "anywidget").mkdir()
    (folder / "anywidget" / "__init__.py").write_text("raise AttributeError('no such part')")
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    kernel = started(shared_server, LLM_MAGIC_WIDGETS="True", PYTHONPATH=path)
    yield kernel
    kernel.stop()


@pytest.fixture(scope="module")
def vs_code(shared_server: ScriptedServer) -> Iterator[Kernel]:
    mark = "__vsc_ipynb_file__ = '/notebooks/x.ipynb'"
    kernel = started(shared_server, mark, watched=False, LLM_MAGIC_WIDGETS="True")
    yield kernel
    kernel.stop()


@pytest.fixture(scope="module")
def colab(shared_server: ScriptedServer) -> Iterator[Kernel]:
    mark = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')"
    kernel = started(shared_server, mark, watched=False, LLM_MAGIC_WIDGETS="True")
    yield kernel
    kernel.stop()


@pytest.fixture(params=["vs_code", "colab"])
def elsewhere(request: pytest.FixtureRequest) -> Kernel:
    """VS Code, and Colab."""
    return request.getfixturevalue(request.param)


def outputs(shown: Shown) -> list[dict[str, Any]]:
    """Everything displayed, in order."""
    kinds = ("display_data", "update_display_data")
    return [content for kind, content in shown.messages if kind in kinds]


def comms(shown: Shown) -> list[str]:
    return [kind for kind, _ in shown.messages if kind.startswith("comm_")]


def saved(shown: Shown) -> tuple[dict[str, Any], list[Any]]:
    """What a notebook's file has of a cell: the last form of its one output, and its errors."""
    shows = outputs(shown)
    assert len(shown.of("display_data")) == 1, shows
    assert len({each["transient"].get("display_id") for each in shows}) == 1
    last = shows[-1]
    data = {kind: re.sub(r"\d+\.\d s", "SECONDS", text) for kind, text in last["data"].items()}
    return {"data": data, "metadata": last["metadata"]}, shown.of("error")


def asked(kernel: Kernel, server: ScriptedServer, what: str) -> Shown:
    server.enqueue(REPLIES[what])
    return kernel.run(CELLS[what])


@pytest.mark.parametrize("what", ["prose", "a list of objects"])
def test_a_widget_leaves_what_a_headless_run_saves(
    headless: Kernel, with_widget: Kernel, server: ScriptedServer, what: str
) -> None:
    shown = asked(with_widget, server, what)

    assert WIDGET in shown.of("display_data")[0]["data"]
    assert saved(shown) == saved(asked(headless, server, what))
    assert set(outputs(shown)[-1]["data"]) == {"text/plain", "text/html"}


def test_a_widget_leaves_what_came_before_a_cut(
    headless: Kernel, with_widget: Kernel, server: ScriptedServer
) -> None:
    output, (error,) = saved(asked(with_widget, server, "a cut answer"))

    expected, (same,) = saved(asked(headless, server, "a cut answer"))
    assert output == expected
    assert error["evalue"] == same["evalue"]


def test_an_error_leaves_no_widget(with_widget: Kernel, server: ScriptedServer) -> None:
    output, (error,) = saved(asked(with_widget, server, "an error"))

    assert error["ename"] == "AuthenticationFailed"
    assert output["data"]["text/plain"] == "m · no answer"
    assert WIDGET not in output["data"]


def test_a_headless_run_has_one_display_and_nothing_else(
    headless: Kernel, server: ScriptedServer
) -> None:
    shown = asked(headless, server, "prose")

    kinds = [kind for kind, _ in shown.messages]
    assert kinds == ["status", "execute_input", "display_data", "status"]
    assert shown.of("display_data")[0]["transient"] == {}


@pytest.mark.parametrize("what", ["prose", "a list of objects"])
def test_without_the_libraries_it_streams_by_updates_and_saves_the_same(
    headless: Kernel, without: Kernel, server: ScriptedServer, what: str
) -> None:
    shown = asked(without, server, what)

    assert saved(shown) == saved(asked(headless, server, what))
    assert len(shown.of("update_display_data")) >= 2
    assert not any(WIDGET in each["data"] for each in outputs(shown))
    assert not comms(shown)


def test_a_widget_library_that_is_not_there_is_not_warned_of_twice(
    without: Kernel, server: ScriptedServer
) -> None:
    asked(without, server, "prose")

    assert asked(without, server, "prose").text == ""


@pytest.mark.parametrize("what", list(CELLS))
def test_a_broken_widget_library_costs_no_answer(
    headless: Kernel, broken: Kernel, server: ScriptedServer, what: str
) -> None:
    shown = asked(broken, server, what)

    if what == "an error":
        output, (error,) = saved(shown)
        assert error["ename"] == "AuthenticationFailed"
        assert output["data"]["text/plain"] == "m · no answer"
    else:
        output, errors = saved(shown)
        expected, same = saved(asked(headless, server, what))
        assert output == expected
        assert [each["evalue"] for each in errors] == [each["evalue"] for each in same]
    assert shown.of("update_display_data")
    assert not comms(shown)


def test_a_broken_widget_library_is_said_once_with_what_to_do(server: ScriptedServer) -> None:
    """The libraries can be there and fail at the first widget, too."""
    fail = "import ipywidgets\ndef fail(*_, **__): raise TypeError('no comm')\n"
    kernel = started(server, f"{fail}ipywidgets.Widget.open = fail", LLM_MAGIC_WIDGETS="True")
    try:
        first = kernel.run("%%llm -m m\nHello")
        second = kernel.run("%%llm -m m\nHello")
    finally:
        kernel.stop()

    assert first.text.count("\n") <= 3
    assert "TypeError('no comm')" in first.text
    assert "pip install -U anywidget ipywidgets" in first.text
    assert second.text == ""
    for shown in (first, second):
        assert saved(shown)[0]["data"]["text/plain"] == "This is a scripted answer."


def test_elsewhere_updates_are_few_and_ever_fewer(
    elsewhere: Kernel, server: ScriptedServer
) -> None:
    server.enqueue(LONG)
    began = time.monotonic()

    shown = elsewhere.run("%%llm -m m\nHello")

    updates = shown.of("update_display_data")
    assert 5 <= len(updates) <= 15 * (time.monotonic() - began) + 2
    assert saved(shown)[0]["data"]["text/plain"] == LONG.text
    # All of the text so far is in each: with equal pauses it would be half of the number of them.
    sizes = [len(each["data"]["text/html"]) for each in updates]
    assert sum(sizes) < 13 * sizes[-1]


def test_elsewhere_there_is_no_widget_and_no_clearing(
    elsewhere: Kernel, server: ScriptedServer
) -> None:
    shown = asked(elsewhere, server, "prose")

    kinds = {kind for kind, _ in shown.messages}
    assert kinds == {"status", "execute_input", "display_data", "update_display_data"}
    assert not any(WIDGET in each["data"] for each in outputs(shown))
    assert "interrupt the kernel to stop" in shown.of("display_data")[0]["data"]["text/plain"]


def test_elsewhere_the_same_is_saved(
    headless: Kernel, elsewhere: Kernel, server: ScriptedServer
) -> None:
    expected = saved(asked(headless, server, "a list of objects"))

    assert saved(asked(elsewhere, server, "a list of objects")) == expected


def test_colab_gets_its_updates_from_the_main_thread(colab: Kernel, server: ScriptedServer) -> None:
    """It does not show those of other threads (googlecolab/colabtools#3373)."""
    colab.run(
        "import threading\nsend, senders = get_ipython().kernel.session.send, []\n"
        "def watched(stream, kind, *args, **more):\n"
        "    if 'display_data' in str(kind): senders.append(threading.current_thread().name)\n"
        "    return send(stream, kind, *args, **more)\n"
        "get_ipython().kernel.session.send = watched"
    )

    shown = asked(colab, server, "prose")

    senders = colab.value("senders")
    colab.run("get_ipython().kernel.session.send = send")
    assert senders == ["MainThread"] * len(outputs(shown))
    assert len(senders) > 2


@pytest.mark.skipif(sys.platform != "linux", reason="told by /proc")
def test_a_notebook_run_by_another_one_is_headless(
    server: ScriptedServer, with_widget: Kernel, tmp_path: Path
) -> None:
    """It inherits from the one that somebody watches the name of its session."""
    server.enqueue(REPORT)
    path = tmp_path / "inner.ipynb"
    cells = [nbformat.v4.new_code_cell(each) for each in ("%load_ext llm_magic", CELLS["prose"])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)

    with_widget.run(
        "import nbformat, nbclient\n"
        f"inner = nbformat.read({str(path)!r}, 4)\n"
        "done = await nbclient.NotebookClient(inner, kernel_name='python3').async_execute()"
    )

    done = json.loads(with_widget.value("nbformat.writes(done)"))
    (output,) = done["cells"][1]["outputs"]
    assert "".join(output["data"]["text/plain"]) == REPORT.text
    assert set(output["data"]) == {"text/plain", "text/html"}
    assert "widgets" not in done["metadata"]
