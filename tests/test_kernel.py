"""%%llm in a real Jupyter kernel, as notebooks and their runners use it."""

import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, SOON, Kernel

pytestmark = pytest.mark.kernel

LONG = Reply("**Bold** and `code`. " * 60, tokens_per_second=100)
HEAVY = ("openai", "pydantic", "ipywidgets", "jinja2", "diskcache", "redis", "dask", "narwhals")
HEAVY += ("genai_prices", "tenacity", "markdown_it", "httpx2", "dotenv")


@pytest.fixture(scope="module")
def environment(shared_server: ScriptedServer) -> dict[str, str]:
    return {"OPENAI_BASE_URL": shared_server.url, "OPENAI_API_KEY": KEY}


@pytest.fixture(scope="module")
def shared_kernel(environment: dict[str, str]) -> Iterator[Kernel]:
    kernel = Kernel(watched=True, environment=environment)
    assert kernel.run("%load_ext llm_magic").messages[2:-1] == []
    yield kernel
    kernel.stop()


@pytest.fixture
def server(shared_server: ScriptedServer) -> ScriptedServer:
    shared_server.reset()
    return shared_server


@pytest.fixture
def kernel(shared_kernel: Kernel, server: ScriptedServer) -> Kernel:
    return shared_kernel


def test_loading_is_quiet_and_imports_nothing_heavy(environment: dict[str, str]) -> None:
    kernel = Kernel(watched=True, environment=environment)
    try:
        kernel.run("import sys; before = set(sys.modules)")
        shown = kernel.run("%load_ext llm_magic")
        loaded = kernel.value("sorted(set(sys.modules) - before)")
    finally:
        kernel.stop()

    assert [kind for kind, _ in shown.messages] == ["status", "execute_input", "status"]
    assert "llm_magic.magics" in loaded
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []


def test_streams_into_one_display_that_is_saved_in_its_final_form(
    kernel: Kernel, server: ScriptedServer
) -> None:
    server.enqueue(LONG)

    shown = kernel.run("%%llm\nHello")

    displays, updates = shown.of("display_data"), shown.of("update_display_data")
    assert len(displays) == 1
    assert len(updates) >= 10
    identity = displays[0]["transient"]["display_id"]
    assert {update["transient"]["display_id"] for update in updates} == {identity}
    lengths = [len(update["data"]["text/html"]) for update in updates]
    assert lengths[0] < lengths[-1] / 5
    final = updates[-1]["data"]
    assert final["text/plain"] == LONG.text
    assert "</p><p><strong>Bold</strong> and <code>code</code>" in final["text/html"]
    assert "scripted-model · " in final["text/html"]
    assert shown.of("execute_result") == []


def test_updates_send_bytes_in_proportion_to_the_answer(
    kernel: Kernel, server: ScriptedServer
) -> None:
    """Per-token updates of 4,000 pieces would send 40 MB and more; the throttle sends a few."""
    sent = {}
    for pieces in (1000, 4000):
        server.enqueue(Reply("word " * pieces, deltas=["word "] * pieces))
        shown = kernel.run("%%llm\nHello")
        updates = [*shown.of("display_data"), *shown.of("update_display_data")]
        sent[pieces] = sum(len(text) for each in updates for text in each["data"].values())

    assert sent[4000] < 6 * 4000 * len("word ")


def test_underscore_holds_the_response_without_a_second_rendering(kernel: Kernel) -> None:
    kernel.run("%%llm\nHello")

    assert kernel.value("(type(_).__name__, _.text)") == ("Response", "This is a scripted answer.")


def test_response_shows_itself_in_a_later_cell(kernel: Kernel) -> None:
    kernel.run("answer = %llm Hello")

    shown = kernel.run("answer")

    assert shown.of("display_data")[0]["data"]["text/plain"] == "This is a scripted answer."


def test_line_magic_assigns_a_question(kernel: Kernel, server: ScriptedServer) -> None:
    shown = kernel.run('x = %llm --max-tokens 50 What\'s "up", {{ 6 * 7 }}?')

    assert not shown.of("error")
    assert kernel.value("str(x)") == "This is a scripted answer."
    assert server.requests[0].body["messages"][0]["content"] == 'What\'s "up", 42?'
    assert server.requests[0].body["max_tokens"] == 50


def test_time_above_the_cell_magic(kernel: Kernel) -> None:
    shown = kernel.run("%%time\n%%llm answer <<\nHello")

    assert "Wall time" in shown.text
    assert kernel.value("answer") == "This is a scripted answer."


def test_capture_above_the_cell_magic(kernel: Kernel) -> None:
    shown = kernel.run("%%capture out\n%%llm\nHello")

    assert shown.of("display_data") == []
    # (IPython adds an empty output for a returned value that displayed itself.)
    captured = kernel.value("[o.data.get('text/plain') for o in out.outputs if o.data]")
    assert captured == ["This is a scripted answer."]


def test_alias_with_options(kernel: Kernel, server: ScriptedServer) -> None:
    kernel.run("%alias_magic ask llm -p '-m opus --max-tokens 7'")

    assert not kernel.run("%%ask answer <<\nHello").of("error")
    assert not kernel.run("%ask Hello again").of("error")

    assert [request.body["model"] for request in server.requests] == ["opus", "opus"]
    assert [request.body["max_tokens"] for request in server.requests] == [7, 7]


def test_await_aask_in_the_kernel_s_own_loop(kernel: Kernel, server: ScriptedServer) -> None:
    shown = kernel.run(
        "import asyncio, llm_magic\n"
        "both = await asyncio.gather(llm_magic.aask('One'), llm_magic.aask('Two'))"
    )

    assert not shown.of("error")
    assert kernel.value("[r.text for r in both]") == ["This is a scripted answer."] * 2
    assert len(server.requests) == 2


def test_ask_works_inside_the_running_loop(kernel: Kernel) -> None:
    shown = kernel.run("import llm_magic\nllm_magic.ask('Hello')")

    assert shown.of("display_data")[0]["data"]["text/plain"] == "This is a scripted answer."


def test_error_is_published_as_one_and_ends_run_all(kernel: Kernel, server: ScriptedServer) -> None:
    server.enqueue(FAULTS["bad_key"])

    shown = kernel.run("%%llm\nHello")

    (error,) = shown.of("error")
    assert shown.reply["status"] == "error"
    assert error["ename"] == "AuthenticationFailed"
    assert 1 <= len(error["traceback"]) <= 3
    assert "OPENAI_API_KEY" in "\n".join(error["traceback"])
    (final,) = shown.of("update_display_data")
    assert final["data"]["text/plain"] == "the server's model · no answer"


def test_partial_answer_stays_on_screen(kernel: Kernel, server: ScriptedServer) -> None:
    server.enqueue(FAULTS["cut"])

    shown = kernel.run("%%llm\nHello")

    final = [*shown.of("display_data"), *shown.of("update_display_data")][-1]["data"]
    assert FAULTS["cut"].text.startswith(final["text/plain"])
    assert "incomplete" in final["text/html"]
    assert kernel.value("__import__('sys').last_value.text") == final["text/plain"]


def test_kernel_interrupt_while_streaming(kernel: Kernel, server: ScriptedServer) -> None:
    server.enqueue(LONG)
    request = kernel.start("%%llm answer <<\nHello")
    server.wait_for_requests(1)
    while server.requests[0].sent_chunks < 20:
        time.sleep(0.01)

    began = time.monotonic()
    kernel.manager.interrupt_kernel()
    shown = kernel.finish(request)

    assert time.monotonic() - began < SOON
    assert server.requests[0].closed.wait(10)
    assert shown.of("error")[0]["ename"] == "Interrupted"
    final = shown.of("update_display_data")[-1]["data"]
    assert LONG.text.startswith(final["text/plain"])
    assert "stopped, incomplete" in final["text/html"]
    assert not kernel.run("%%llm\nStill there?").of("error")


def test_quiet_and_no_stream(kernel: Kernel, server: ScriptedServer) -> None:
    server.enqueue(LONG, LONG)

    quiet = kernel.run("%%llm --quiet\nHello")
    whole = kernel.run("%%llm --no-stream\nHello")

    assert quiet.of("display_data") == quiet.of("execute_result") == []
    assert len(whole.of("display_data")) == 1
    assert whole.of("update_display_data") == []


def test_dry_run_sends_nothing(kernel: Kernel, server: ScriptedServer) -> None:
    kernel.run("word = 'fish'")

    shown = kernel.run("%%llm --dry-run -m some-model --max-tokens 9\nHello {{ word }}")

    report = shown.of("display_data")[0]["data"]["text/plain"]
    assert '"content": "Hello fish"' in report
    assert '"max_tokens": 9' in report
    assert "Nothing was sent." in report
    assert server.requests == []


def test_config_lists_and_sets(kernel: Kernel, server: ScriptedServer) -> None:
    assert "stall_timeout" in kernel.run("%config LLMMagic").text
    kernel.run("%config LLMMagic.system = 'Be brief.'")

    kernel.run("%%llm\nHello")
    kernel.run("%config LLMMagic.system = ''")

    assert server.requests[0].body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_reload_and_help(kernel: Kernel) -> None:
    assert not kernel.run("%reload_ext llm_magic").of("error")
    shown = kernel.run("%%llm?")

    (page,) = shown.reply["payload"]
    for option in ("--model", "--max-tokens", "--dry-run", "--param", "NAME <<"):
        assert option in page["data"]["text/plain"]
    assert not kernel.run("%%llm\nHello").of("error")


def notebook(*cells: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])


def test_nbclient_saves_one_output(
    environment: dict[str, str], server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server.enqueue(LONG)

    done = NotebookClient(notebook("%load_ext llm_magic", "%%llm\nHello", "_.usage")).execute()

    (output,) = done.cells[1].outputs
    assert output.output_type == "display_data"
    assert output.data["text/plain"] == LONG.text
    assert "<strong>Bold</strong>" in output.data["text/html"]
    assert "Usage(input_tokens=" in done.cells[2].outputs[0].data["text/plain"]


def test_nbclient_stops_at_an_error(
    environment: dict[str, str],
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cells = notebook("%load_ext llm_magic", "%%llm\n{{ nothing }}", "open('ran', 'w')")

    with pytest.raises(CellExecutionError, match="there is no nothing in the notebook"):
        NotebookClient(cells, resources={"metadata": {"path": str(tmp_path)}}).execute()

    assert not (tmp_path / "ran").exists()
    assert server.requests == []


def test_kernels_of_the_tests_cannot_leave_the_machine(kernel: Kernel) -> None:
    shown = kernel.run("import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=1)")

    assert shown.of("error")[0]["ename"] == "PermissionError"
