"""The Stop button's message on its way through a real kernel, as a front end sends it."""

from collections.abc import Iterator
from typing import Any

import pytest

from llm_magic.testing import Reply, ScriptedServer
from tests.conftest import KEY, Kernel, Shown

NEVER = Reply("Too late.", delay=60)
HOOK = """
from comm import create_comm
comm = create_comm(target_name="x")
hooks = hasattr(comm, "_reply_subshell_for")
comm.close()
"""


@pytest.fixture
def kernel(server: ScriptedServer) -> Iterator[Kernel]:
    """A kernel of a front end with widgets."""
    given = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, "LLM_MAGIC_WIDGETS": "True"}
    running = Kernel(watched=True, environment=given)
    running.run("%load_ext llm_magic")
    yield running
    running.stop()


def second_shell(kernel: Kernel) -> str:
    """Opens one more shell for messages, as a page does; its name."""
    client = kernel.client
    request = client.session.msg("create_subshell_request")
    client.control_channel.send(request)
    while True:
        reply = client.get_control_msg(timeout=10)
        if reply["parent_header"].get("msg_id") == request["header"]["msg_id"]:
            return str(reply["content"]["subshell_id"])


def opened_widget(kernel: Kernel, cell: str) -> str:
    """The name of the widget that a cell shows, once the cell has shown it."""
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


def ended(kernel: Kernel, cell: str) -> Shown:
    return kernel.finish(cell, timeout=10)


def test_stop_is_heard_while_the_cell_blocks(kernel: Kernel, server: ScriptedServer) -> None:
    server.enqueue(NEVER)
    shell = second_shell(kernel)
    cell = kernel.start("%llm --no-cache Hello")
    widget = opened_widget(kernel, cell)
    server.wait_for_requests(1)

    say(kernel, widget, {"stop": True}, shell)

    shown = ended(kernel, cell)
    assert shown.reply["ename"] == "Interrupted"
    assert server.requests[0].closed.wait(1)
