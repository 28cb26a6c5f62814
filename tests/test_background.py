"""--bg: several answers at once, each in its own cell; interrupts and shutdown end them."""

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llm_magic.background import Pending
from llm_magic.errors import Interrupted, Truncated
from llm_magic.testing import FAULTS, Reply, ScriptedServer
from llm_magic.types import Response
from tests.conftest import KEY, SOON, Kernel, Shown, Terminal, interrupted_when

SLOW = Reply("One two three four five six. " * 200, tokens_per_second=50)


def test_the_cell_returns_at_once_and_the_answer_comes(
    terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue(Reply("Seven.", delay=1))

    ran = terminal.run("%%llm prime << --bg\nA prime")
    pending = terminal["prime"]

    assert not pending.done()
    assert ".result() waits" in repr(pending)
    assert ran.out.count("Seven.") == 0
    assert pending.result(10).text == "Seven."
    assert pending.done()
    assert terminal.run("prime").out.strip().endswith("Seven.")


def test_its_attributes_wait_for_the_answer(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply("Seven.", delay=0.2))

    terminal.run("%%llm prime << --bg\nA prime")

    assert terminal["prime"].text == "Seven."
    assert str(terminal["prime"]) == "Seven."
    with pytest.raises(AttributeError, match="no attribute 'txt'"):
        _ = terminal["prime"].txt


def test_a_type_checker_knows_the_attributes_of_the_answer() -> None:
    fields = {field.name for field in dataclasses.fields(Response)}

    assert set(Pending.__annotations__) == fields | {"frame", "status"}


def test_a_template_waits_for_it(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply("Seven.", delay=0.2), Reply("Yes."))

    terminal.run("%%llm prime << --bg\nA prime")
    terminal.run("%%llm\nIs this one: {{ prime }}")

    assert server.requests[1].body["messages"][0]["content"] == "Is this one: Seven."


def test_it_can_be_awaited(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply("Seven.", delay=0.1))
    terminal.run("%%llm prime << --bg\nA prime")

    async def waited() -> Any:
        return await terminal["prime"]

    assert asyncio.run(waited()).text == "Seven."


def test_several_come_at_the_same_time(terminal: Terminal, server: ScriptedServer) -> None:
    for text in ("A", "B", "C"):
        server.enqueue(Reply(text, delay=3))

    for name in "abc":
        terminal.run(f"%%llm {name} << --bg\nPrompt {name}")
    texts = {terminal[name].text for name in "abc"}

    assert texts == {"A", "B", "C"}
    # The last was sent before the first had its answer.
    assert server.requests[-1].at - server.requests[0].at < 3


def test_a_timeout_leaves_it_going(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply("Seven.", delay=1))
    terminal.run("%%llm prime << --bg\nA prime")

    with pytest.raises(TimeoutError, match="still coming"):
        terminal["prime"].result(0.05)

    assert terminal["prime"].text == "Seven."


def test_what_goes_wrong_is_told_by_result(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(Reply("Cut", finish="length"))
    terminal.run("%%llm prime << --bg\nA prime")

    with pytest.raises(Truncated):
        terminal["prime"].result(10)


def test_what_cannot_even_be_started_fails_the_cell(
    terminal: Terminal, server: ScriptedServer
) -> None:
    terminal.run("%config LLMMagic.quota_requests = 0")

    ran = terminal.run("%%llm prime << --bg\nA prime")
    failed = ran.error or terminal["prime"]._future.exception(5)

    assert type(failed).__name__ == "QuotaExceeded"
    assert server.requests == []


def test_stop_closes_the_connection_and_keeps_what_came(
    terminal: Terminal, server: ScriptedServer
) -> None:
    server.enqueue(SLOW)
    terminal.run("%%llm words << --bg\nMany words")
    server.wait_for_requests(1)
    while server.requests[0].sent_chunks < 25:
        time.sleep(0.005)

    terminal["words"].stop()

    with pytest.raises(Interrupted) as stopped:
        terminal["words"].result(10)
    assert stopped.value.by_button
    assert server.requests[0].closed.wait(10)
    assert SLOW.text.startswith(stopped.value.text)
    assert len(stopped.value.text) > 5


def test_an_interrupted_wait_ends_all(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(SLOW, SLOW)
    terminal.run("%%llm words << --bg\nMany words")
    terminal.run("%%llm others << --bg\nMany others")

    ran, seconds = interrupted_when(
        lambda: len(server.requests) == 2 and all(r.sent_chunks > 5 for r in server.requests),
        lambda: terminal.run("words.result()"),
    )

    assert type(ran.error) is Interrupted
    assert seconds < SOON
    assert all(request.closed.wait(10) for request in server.requests)
    with pytest.raises(Interrupted):
        terminal["others"].result(10)


def test_the_interrupt_of_another_cell_ends_it(terminal: Terminal, server: ScriptedServer) -> None:
    server.enqueue(SLOW)
    terminal.run("%%llm words << --bg\nMany words")

    interrupted_when(
        lambda: bool(server.requests) and server.requests[0].sent_chunks > 5,
        lambda: terminal.run("import time; time.sleep(20)"),
    )

    assert server.requests[0].closed.wait(10)
    with pytest.raises(Interrupted):
        terminal["words"].result(10)


def test_the_interrupt_before_the_first_line_of_a_cell_ends_it_without_a_word(
    terminal: Terminal,
    server: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """IPython has no result to hand over then."""

    def early(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    server.enqueue(SLOW)
    terminal.run("%%llm words << --bg\nMany words")
    monkeypatch.setattr(terminal.shell, "_run_cell", early)
    with pytest.raises(KeyboardInterrupt):
        terminal.shell.run_cell("pass")

    assert "Error" not in "".join(capsys.readouterr())
    with pytest.raises(Interrupted):
        terminal["words"].result(10)


def test_an_answer_that_is_kept_is_there_at_once(
    terminal: Terminal, server: ScriptedServer, keeping: None
) -> None:
    terminal.run("%llm -m m Hello")

    terminal.run("%%llm hello << -m m --bg\nHello")

    assert terminal["hello"].done()
    assert terminal["hello"].cached
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--bg --code", "--code and --bg exclude"),
        ("--bg --compare a,b", "--compare and --bg exclude"),
        ("--compare a,b -m c", "--compare and --model c exclude"),
        ("--compare a,b -c chat", "--compare and --chat chat exclude"),
        ("--compare ,", "--compare names no model"),
    ],
)
def test_what_does_not_go_together_is_refused(
    terminal: Terminal, server: ScriptedServer, options: str, message: str
) -> None:
    ran = terminal.run(f"%%llm {options}\nHello")

    assert message in str(ran.error)
    assert server.requests == []


@pytest.fixture
def watched(shared_server: ScriptedServer) -> Iterator[Kernel]:
    shared_server.reset()
    kernel = Kernel(
        watched=True,
        environment={"OPENAI_BASE_URL": shared_server.url, "OPENAI_API_KEY": KEY},
    )
    kernel.run("%load_ext llm_magic")
    yield kernel
    kernel.stop()


def updates(kernel: Kernel, identity: str, until: str) -> list[dict[str, Any]]:
    """The updates of one display, in whatever cell they come, up to the one with this text."""
    found = []
    while True:
        message = kernel.client.get_iopub_msg(timeout=10)
        if message["msg_type"] != "update_display_data":
            continue
        if message["content"]["transient"]["display_id"] == identity:
            found.append(message["content"])
            if until in str(message["content"]["data"].get("text/html")):
                return found


def display(shown: Shown) -> str:
    (content,) = shown.of("display_data")
    return str(content["transient"]["display_id"])


@pytest.mark.kernel
def test_it_streams_into_its_own_cell_while_others_run(
    watched: Kernel, shared_server: ScriptedServer
) -> None:
    shared_server.enqueue(Reply("One two three. " * 40, tokens_per_second=60))

    identity = display(watched.run("%%llm words << --bg\nMany words"))
    watched.start("import time; time.sleep(1); print('other')")
    came = updates(watched, identity, "scripted-model · ")

    assert len(came) >= 5
    assert came[-1]["data"]["text/plain"] == "One two three. " * 40
    assert watched.client.get_shell_msg(timeout=10)["content"]["status"] == "ok"


@pytest.mark.kernel
def test_an_error_is_told_in_its_own_cell(watched: Kernel, shared_server: ScriptedServer) -> None:
    shared_server.enqueue(FAULTS["cut"])

    shown = watched.run("%%llm words << --bg\nMany words")
    told = updates(watched, display(shown), "StreamBroken")[-1]["data"]["text/html"]

    assert "incomplete" in told


@pytest.mark.kernel
def test_the_interrupt_of_an_idle_kernel_ends_all(
    watched: Kernel, shared_server: ScriptedServer
) -> None:
    shared_server.enqueue(SLOW, SLOW)
    identities = [display(watched.run(f"%%llm --bg\nMany words {n}")) for n in range(2)]
    shared_server.wait_for_requests(2)

    watched.manager.interrupt_kernel()

    assert all(request.closed.wait(10) for request in shared_server.requests)
    assert updates(watched, identities[1], "stopped, incomplete")
    assert watched.value("6 * 7") == 42


@pytest.mark.kernel
def test_shutdown_ends_them(watched: Kernel, shared_server: ScriptedServer) -> None:
    shared_server.enqueue(SLOW)
    watched.run("%%llm --bg\nMany words")
    shared_server.wait_for_requests(1)

    watched.manager.shutdown_kernel()

    assert shared_server.requests[0].closed.wait(10)


@pytest.mark.kernel
def test_headless_the_cell_waits_and_shows_the_answer_once(shared_server: ScriptedServer) -> None:
    shared_server.reset()
    kernel = Kernel(
        watched=False,
        environment={"OPENAI_BASE_URL": shared_server.url, "OPENAI_API_KEY": KEY},
    )
    try:
        kernel.run("%load_ext llm_magic")
        shown = kernel.run("%%llm words << --bg\nMany words")

        assert shown.of("display_data")[0]["data"]["text/plain"] == "This is a scripted answer."
        assert len(shown.of("display_data")) == 1
        assert shown.of("execute_result") == []
        assert kernel.value("(words.done(), words.text)") == (True, "This is a scripted answer.")
    finally:
        kernel.stop()
