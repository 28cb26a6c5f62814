"""The Stop button's message on its way through a real kernel, as a front end sends it."""

from collections.abc import Iterator
from typing import Any

import ipykernel
import pytest

from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import KEY, Kernel

pytestmark = pytest.mark.skipif(
    ipykernel.version_info < (7,), reason="older kernels hear nothing while a cell blocks"
)
NEVER = Reply("Too late.", delay=60)
ASK = "%llm --no-cache Hello"
HOOKS = "hasattr(__import__('comm').create_comm(target_name='x'), '_reply_subshell_for')"


@pytest.fixture
def kernel(server: ScriptedServer) -> Iterator[Kernel]:
    """A kernel of a front end with widgets."""
    given = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, "LLM_MAGIC_WIDGETS": "True"}
    running = Kernel(watched=True, environment=given)
    running.run("%load_ext llm_magic")
    yield running
    running.stop()


def second_shell(kernel: Kernel) -> str:
    """Opens one more shell for messages, as a page does; gives its name."""
    client = kernel.client
    request = client.session.msg("create_subshell_request")
    client.control_channel.send(request)
    while True:
        reply = client.get_control_msg(timeout=10)
        if reply["parent_header"].get("msg_id") == request["header"]["msg_id"]:
            return str(reply["content"]["subshell_id"])


def opened_widget(kernel: Kernel, cell: str) -> str:
    """The name of the widget that a cell shows, once it is shown."""
    while True:
        message = kernel.client.get_iopub_msg(timeout=10)
        if message["parent_header"].get("msg_id") == cell and message["msg_type"] == "display_data":
            view = message["content"]["data"]["application/vnd.jupyter.widget-view+json"]
            return str(view["model_id"])


def say(kernel: Kernel, widget: str, message: dict[str, Any], shell: str) -> None:
    """Sends a widget's message to one of the kernel's shells."""
    data = {"method": "custom", "content": message}
    request = kernel.client.session.msg("comm_msg", {"comm_id": widget, "data": data})
    request["header"]["subshell_id"] = shell
    kernel.client.shell_channel.send(request)


def hears(kernel: Kernel, widget: str) -> None:
    """Waits until the kernel has told the page that it hears it."""
    while True:
        message = kernel.client.get_iopub_msg(timeout=10)
        content = message["content"]
        if message["msg_type"] != "comm_msg" or content["comm_id"] != widget:
            continue
        if content["data"].get("content") == {"heard": True}:
            return


def begin(kernel: Kernel, server: ScriptedServer) -> tuple[str, str]:
    """Starts a cell whose answer does not come; gives its name and its widget's."""
    server.enqueue(NEVER)
    cell = kernel.start(ASK)
    widget = opened_widget(kernel, cell)
    server.wait_for_requests(1)
    return cell, widget


def test_stop_is_heard_while_the_cell_blocks(kernel: Kernel, server: ScriptedServer) -> None:
    shell = second_shell(kernel)
    cell, widget = begin(kernel, server)

    say(kernel, widget, {"stop": True}, shell)

    assert kernel.finish(cell, timeout=10).reply["ename"] == "Interrupted"
    assert server.requests[0].closed.wait(10)


def test_a_page_learns_that_it_is_heard(kernel: Kernel, server: ScriptedServer) -> None:
    """By that it knows that it need not interrupt the kernel."""
    shell = second_shell(kernel)
    cell, widget = begin(kernel, server)

    say(kernel, widget, {"seen": True}, shell)

    hears(kernel, widget)
    say(kernel, widget, {"stop": True}, shell)
    kernel.finish(cell, timeout=10)


def test_a_stop_for_an_answer_that_is_whole_does_nothing(
    kernel: Kernel, server: ScriptedServer
) -> None:
    shell = second_shell(kernel)
    cell = kernel.start(ASK)
    widget = opened_widget(kernel, cell)
    assert kernel.finish(cell).reply["status"] == "ok"

    say(kernel, widget, {"stop": True}, shell)

    assert kernel.value("1 + 1") == 2


@pytest.mark.skipif(ipykernel.version_info < (7, 4), reason="has the hook since 7.4")
def test_the_hook_that_is_set_aside_is_there(kernel: Kernel) -> None:
    """A private name of ipykernel: if it goes, see whether stop is still heard, and then take the
    workaround out of views.live."""
    assert kernel.value(HOOKS) is True
