"""--compare: several models at once, side by side, each with its cost and its seconds."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest

from llm_magic.errors import Interrupted, UnknownModel
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, SOON, Kernel, Terminal, interrupted_when

Serve = Callable[..., ScriptedServer]


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts a server of models with an answer each; the terminal, where there is one, uses it."""
    running = []

    def serve(**models: Reply) -> ScriptedServer:
        server = ScriptedServer(models=models)
        server.start()
        running.append(server)
        if "terminal" in request.fixturenames:
            terminal = request.getfixturevalue("terminal")
            terminal.run(f"%config LLMMagic.base_url = {server.url!r}")
        return server

    yield serve
    for server in running:
        server.stop()


@pytest.fixture
def two(serve: Serve) -> ScriptedServer:
    return serve(a=Reply("Alpha."), b=Reply("**Beta**."))


def test_each_model_is_asked_the_same(terminal: Terminal, two: ScriptedServer) -> None:
    ran = terminal.run("%%llm both << --compare a,b --max-tokens 50\nHello")

    assert {request.body["model"] for request in two.requests} == {"a", "b"}
    bodies = [{**request.body, "model": ""} for request in two.requests]
    assert bodies[0] == bodies[1]
    assert terminal["both"] == {"a": "Alpha.", "b": "**Beta**."}
    assert "── a" in ran.out
    assert "Alpha." in ran.out
    assert "── b" in ran.out
    assert ran.out.count(" in / ") == 2


def test_underscore_holds_the_answers(terminal: Terminal, two: ScriptedServer) -> None:
    terminal.run("%%llm --compare a,b\nHello")

    comparison = terminal.shell.user_ns["_"]

    assert type(comparison).__name__ == "Comparison"
    assert comparison["b"].text == "**Beta**."
    assert comparison.cost == Decimal(0)
    assert list(comparison.frame().model) == ["a", "b"]
    assert list(comparison.frame().value) == ["Alpha.", "**Beta**."]


def test_they_are_asked_at_the_same_time(terminal: Terminal, serve: Serve) -> None:
    server = serve(**{name: Reply(name, delay=2) for name in "abc"})

    terminal.run("%%llm --compare a,b,c\nHello")

    arrived = [request.at for request in server.requests]
    assert max(arrived) - min(arrived) < 2


def test_a_name_twice_is_asked_once(terminal: Terminal, two: ScriptedServer) -> None:
    terminal.run("%%llm --compare a,b,a\nHello")

    assert len(two.requests) == 2


def test_each_is_kept(terminal: Terminal, two: ScriptedServer, keeping: None) -> None:
    terminal.run("%%llm -m a\nHello")
    terminal.run("%%llm --compare a,b\nHello")
    again = terminal.run("%%llm --compare b,a\nHello")

    assert len(two.requests) == 2
    assert again.out.count("cached") == 2


def test_objects_as_well(terminal: Terminal, serve: Serve) -> None:
    serve(a=Reply("[1, 2]"), b=Reply("[3]"))

    terminal.run("%%llm both << --compare a,b --schema list[int]\nNumbers")

    assert terminal["both"] == {"a": [1, 2], "b": [3]}


def test_one_that_fails_fails_the_cell_and_the_others_are_shown(
    terminal: Terminal, serve: Serve, keeping: None
) -> None:
    serve(a=Reply("Alpha."), b=FAULTS["unknown_model"])

    ran = terminal.run("%%llm both << --compare a,b\nHello")

    assert type(ran.error) is UnknownModel
    assert "Alpha." in ran.out
    assert "both" not in terminal.shell.user_ns
    assert "cached" in terminal.run("%llm -m a Hello").out


def test_an_interrupt_ends_all(terminal: Terminal, serve: Serve) -> None:
    slow = Reply("One two three. " * 200, tokens_per_second=50)
    server = serve(a=slow, b=slow)

    ran, seconds = interrupted_when(
        lambda: len(server.requests) == 2 and all(r.sent_chunks > 25 for r in server.requests),
        lambda: terminal.run("%%llm --compare a,b\nHello"),
    )

    assert type(ran.error) is Interrupted
    assert seconds < SOON
    assert all(request.closed.wait(10) for request in server.requests)
    assert ran.out.count("stopped, incomplete") == 2


def test_a_limit_is_held_for_all_of_them(terminal: Terminal, two: ScriptedServer) -> None:
    terminal.run("%llm_quota --requests 1")

    ran = terminal.run("%%llm --compare a,b\nHello")

    assert type(ran.error).__name__ == "QuotaExceeded"
    assert len(two.requests) == 1


def test_a_dry_run_shows_each(terminal: Terminal, two: ScriptedServer) -> None:
    ran = terminal.run("%%llm --compare a,b --dry-run\nHello")

    assert '"model": "a"' in ran.out
    assert '"model": "b"' in ran.out
    assert two.requests == []


@pytest.fixture(scope="module", params=["headless", "plain", "widget"])
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    environment = {"OPENAI_API_KEY": KEY}
    if request.param == "widget":
        environment["LLM_MAGIC_WIDGETS"] = "True"
    kernel = Kernel(watched=request.param != "headless", environment=environment)
    kernel.run("%load_ext llm_magic")
    yield kernel
    kernel.stop()


@pytest.mark.kernel
def test_one_output_with_a_column_for_each(kernel: Kernel, serve: Serve) -> None:
    server = serve(a=Reply("Alpha <script>."), b=Reply("**Beta** . " * 20, tokens_per_second=30))
    kernel.run(f"%config LLMMagic.base_url = {server.url!r}")

    shown = kernel.run("%%llm --compare a,b\nHello")

    displays, changes = shown.of("display_data"), shown.of("update_display_data")
    assert len(displays) == 1
    final = (changes or displays)[-1]["data"]
    assert final["text/plain"].startswith("a:\n\nAlpha <script>.")
    assert final["text/html"].count("<th ") == 2
    assert "Alpha &lt;script&gt;." in final["text/html"]
    assert "<strong>Beta</strong>" in final["text/html"]
    assert final["text/html"].count(" in / ") == 2
    assert "application/vnd.jupyter.widget-view+json" not in final
    assert shown.of("execute_result") == []
    opened = [json.dumps(content) for content in shown.of("comm_open")]
    assert len(shown.of("comm_close")) == len(opened)


@pytest.mark.kernel
def test_a_later_cell_shows_it_again(kernel: Kernel, two: ScriptedServer) -> None:
    kernel.run(f"%config LLMMagic.base_url = {two.url!r}")
    kernel.run("%%llm --compare a,b --quiet\nHello")

    shown = kernel.run("_")

    (display,) = shown.of("display_data")
    assert "Alpha." in display["data"]["text/html"]
