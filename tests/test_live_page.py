"""What the widget of an answer sends to a page, and what the page can make of it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llm_magic.testing import Reply, ScriptedServer
from llm_magic.views.render import markdown_html
from tests.conftest import KEY, Kernel, Shown

pytestmark = pytest.mark.kernel

TEXT = "".join(
    f"## Part {n} 🎉\n\nSome *words* and `code`:\n\n```python\nx = {n} + len('é')\n```\n\n"
    f"- one\n- two\n\n{'Plain words, of which there are some. ' * 8}\n\n"
    for n in range(4)
)
ANSWER = Reply(TEXT, tokens_per_second=200)


class Page:
    """A page in front of a kernel: does with the widget's messages what stream.js does.

    Args:
        kernel: What it talks to.
        shows: Whether it says that it shows the widget.
        misses: How many messages that are not all of it are lost on the way.
        reloads: Whether it is loaded anew when some of the answer has come.
    """

    def __init__(
        self, kernel: Kernel, *, shows: bool = True, misses: int = 0, reloads: bool = False
    ) -> None:
        self._kernel = kernel
        self._shows, self._misses, self._reloads = shows, misses, reloads
        self._comm = self._shell = ""
        self.sent: list[dict[str, Any]] = []
        self.asked = 0
        self._load()

    def _load(self) -> None:
        self.html, self.thoughts, self._turn = "", "", 0

    def run(self, cell: str) -> Shown:
        """Runs a cell, answering the widget meanwhile."""
        client = self._kernel.client
        request, messages = self._kernel.start(cell), []
        while True:
            message = client.get_iopub_msg(timeout=30)
            kind, content = message["msg_type"], message["content"]
            self._hear(kind, content)
            if message["parent_header"].get("msg_id") == request:
                messages.append((kind, content))
                if content.get("execution_state") == "idle":
                    self._end()
                    return Shown(messages, {})

    def _hear(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "comm_open" and not self._shell:
            self._shell = self._control("create_subshell_request", {})["subshell_id"]
        view = content.get("data", {}).get("application/vnd.jupyter.widget-view+json")
        if kind == "display_data" and view:
            self._comm = view["model_id"]
            if self._shows:
                self.say({"seen": True})
        data = content.get("data", {})
        ours = kind == "comm_msg" and content["comm_id"] == self._comm
        if ours and data["method"] == "custom":
            self._take(data["content"])

    def _take(self, message: dict[str, Any]) -> None:
        if message == {"heard": True}:
            return
        self.sent.append(message)
        whole = message["keep"] == 0 and message.get("known") == 0
        if self._reloads and len(self.html) > 500:
            self._reloads = False
            self._load()
            self.say({"seen": True})
        if self._misses and len(self.sent) > 8 and not whole:
            self._misses -= 1
            return
        if not whole and message["turn"] != self._turn + 1:
            self.asked += 1
            self.say({"missed": True})
            return
        self._turn = message["turn"]
        # JavaScript counts in units of UTF-16.
        kept = self.html.encode("utf-16-le")[: 2 * message["keep"]].decode("utf-16-le")
        self.html = kept + message["add"]
        known = message.get("known", len(self.thoughts))
        self.thoughts = self.thoughts[:known] + message.get("thoughts", "")

    def say(self, content: dict[str, Any]) -> None:
        """A message to the widget in the kernel, on the shell that is not busy."""
        client = self._kernel.client
        data = {"method": "custom", "content": content}
        message = client.session.msg("comm_msg", {"comm_id": self._comm, "data": data})
        message["header"]["subshell_id"] = self._shell
        client.shell_channel.send(message)

    def _control(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        client = self._kernel.client
        client.control_channel.send(client.session.msg(kind, content))
        return client.get_control_msg(timeout=10)["content"]

    def _end(self) -> None:
        if self._shell:
            self._control("delete_subshell_request", {"subshell_id": self._shell})
            self._shell = ""


@pytest.fixture
def server(shared_server: ScriptedServer) -> ScriptedServer:
    shared_server.reset()
    return shared_server


@pytest.fixture(scope="module")
def shared_kernel(shared_server: ScriptedServer) -> Iterator[Kernel]:
    environment = {
        "OPENAI_BASE_URL": shared_server.url,
        "OPENAI_API_KEY": KEY,
        "LLM_MAGIC_WIDGETS": "True",
    }
    kernel = Kernel(watched=True, environment=environment)
    kernel.run("%load_ext llm_magic")
    if not kernel.value("hasattr(get_ipython().kernel, '_supports_kernel_subshells')"):
        kernel.stop()
        pytest.skip("this ipykernel has no subshells")
    yield kernel
    kernel.stop()


@pytest.fixture
def kernel(shared_kernel: Kernel, server: ScriptedServer) -> Kernel:
    server.enqueue(ANSWER)
    return shared_kernel


def wholes(page: Page) -> list[dict[str, Any]]:
    """The messages that are all of it, and have some of it."""
    return [each for each in page.sent if each["keep"] == 0 and each.get("known") == 0]


def is_up_to_date(page: Page) -> bool:
    """Whether the page has nearly all: the last words come with the final form, not by message."""
    final = markdown_html(TEXT)
    return final.startswith(page.html[:-80]) and len(page.html) > 0.8 * len(final)


def test_differences_make_up_the_answer(kernel: Kernel) -> None:
    page = Page(kernel)

    page.run("%%llm\nHello")

    assert is_up_to_date(page)
    assert page.asked == 0


def test_a_page_that_shows_it_is_sent_all_of_it_at_the_beginning_only(kernel: Kernel) -> None:
    page = Page(kernel)

    page.run("%%llm\nHello")

    assert len(page.sent) > 20
    assert len(wholes(page)) <= 5
    assert all(each["turn"] < 10 for each in wholes(page))


def test_what_is_sent_is_little_more_than_the_answer(kernel: Kernel) -> None:
    page = Page(kernel)

    page.run("%%llm\nHello")

    assert sum(len(each["add"]) for each in page.sent) < 1.5 * len(page.html)


def test_a_message_leaves_out_what_it_has_nothing_to_say_about(kernel: Kernel) -> None:
    page = Page(kernel)

    page.run("%%llm\nHello")

    assert set(page.sent[-1]) == {"keep", "add", "final", "tokens", "turn"}


@pytest.mark.parametrize("lost", [1, 3])
def test_a_page_that_missed_messages_asks_for_all_of_it(kernel: Kernel, lost: int) -> None:
    page = Page(kernel, misses=lost)

    page.run("%%llm\nHello")

    assert page.asked >= 1
    assert is_up_to_date(page)


def test_a_page_that_is_loaded_anew_is_sent_all_of_it(kernel: Kernel) -> None:
    page = Page(kernel, reloads=True)

    page.run("%%llm\nHello")

    assert is_up_to_date(page)


def test_all_of_it_is_sent_again_and_again_until_a_page_shows_it(kernel: Kernel) -> None:
    page = Page(kernel, shows=False)

    page.run("%%llm\nHello")

    turns = [each["turn"] for each in wholes(page)]
    assert turns[:4] == [1, 2, 4, 8]
    assert all(each & (each - 1) == 0 for each in turns)


def test_reasoning_is_sent_once(kernel: Kernel, server: ScriptedServer) -> None:
    server.reset()
    thoughts = "".join(f"Step {n}. " for n in range(60))
    server.enqueue(Reply("The answer. " * 20, reasoning=thoughts, tokens_per_second=200))
    page = Page(kernel)

    page.run("%%llm\nHello")

    assert page.thoughts == thoughts
    assert sum(len(each.get("thoughts", "")) for each in page.sent) < 1.5 * len(thoughts)


def test_a_retry_is_told_and_then_no_longer(kernel: Kernel, server: ScriptedServer) -> None:
    server.reset()
    limited = Reply(status=429, headers={"retry-after": "0.05"})
    server.enqueue(limited, ANSWER)
    page = Page(kernel)

    page.run("%%llm\nHello")

    told = [each["notice"] for each in page.sent if "notice" in each]
    assert len(told) == 1
    assert is_up_to_date(page)


def test_a_table_is_sent_anew_in_proportion_to_its_rows_on_screen(
    kernel: Kernel, server: ScriptedServer
) -> None:
    server.reset()
    rows = [{"name": f"row {n}", "size": n} for n in range(300)]
    server.enqueue(Reply(json.dumps({"result": rows}), tokens_per_second=1500))
    kernel.run("from typing import TypedDict\nclass Row(TypedDict):\n    name: str\n    size: int")
    page = Page(kernel)

    shown = page.run("%%llm --schema list[Row]\nHello")

    assert not shown.of("error")
    assert "more rows" in page.html
    assert page.html.count("<tr>") < 20
    assert page.asked == 0
