"""A kernel that somebody works in all day: after hundreds of cells it holds what it held at first.

In a kernel of its own, with the widget of the answers; a cell is added by a line in CELLS.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_magic.testing import FAULTS, Reply, ScriptedServer
from tests.conftest import KEY, Kernel

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        not Path("/proc/self/fd").exists(), reason="counts what Linux lists in /proc"
    ),
]

ROUNDS = 6
PROSE = Reply("Some **words**. " * 20)
CODE = Reply("```python\nx = 1\n```\n")
CITIES = Reply('{"result": [{"name": "Osorno", "people": 5}, {"name": "Arica", "people": 7}]}')
WRONG = Reply('{"result": [{"name": "Osorno", "people": "many"}]}')
LATE = Reply("At last.", delay=0.2)
SLOW = Reply("One two three four. " * 200, tokens_per_second=400)


@dataclass(frozen=True)
class Cell:
    """A cell to run, again and again.

    Attributes:
        source: The cell.
        replies: What the server answers, in order; none where it is not asked.
        error: The class of the error that it ends with.
        stop: Whether it is interrupted while it streams.
        pieces: So many of the first answer have come before it is.
    """

    source: str
    replies: tuple[Reply, ...] = ()
    error: str = ""
    stop: bool = False
    pieces: int = 5


CELLS = (
    Cell("%reload_ext llm_magic"),
    Cell("%%llm --fresh\nHello", (PROSE,)),
    Cell("%%llm --fresh\nStop here", (SLOW,), "Interrupted", stop=True),
    Cell("%%llm --wrong\nHello", (), "PromptError"),
    Cell("%%llm answer << --no-cache\nHello", (PROSE,)),
    Cell("%%llm --fresh --schema list[City]\nWhich cities?", (CITIES,)),
    Cell("%%llm --fresh --schema list[City]\nWhich others?", (WRONG, CITIES)),
    Cell("%%llm --fresh --schema list[City] --repairs 0\nWhich?", (WRONG,), "InvalidAnswer"),
    Cell("%%llm --fresh --schema list[City]\nStop", (SLOW,), "Interrupted", stop=True),
    Cell("%%llm --fresh --quiet\nHello", (PROSE,)),
    Cell("%%llm --fresh --quiet\nStop", (SLOW,), "Interrupted", stop=True),
    Cell("%%llm --fresh --no-stream\nHello", (PROSE,)),
    Cell("%%llm --fresh --no-stream\nStop", (SLOW,), "Interrupted", stop=True),
    Cell("%%llm --fresh -c talk\nHello", (PROSE,)),
    Cell("%%llm --no-cache -c talk\nAnd then?", (PROSE,)),
    Cell("%llm_chat reset talk"),
    Cell("%%llm\nHello"),  # Kept by the first cell.
    Cell("x = %llm Hello"),
    Cell("%llm --fresh How are you?", (PROSE,)),
    Cell("%%llm --fresh --code\nWrite code.", (CODE,)),
    Cell("%%llm --fresh --compare one,two\nHello", (PROSE, PROSE)),
    Cell("%%llm --fresh --compare one,two\nStop", (SLOW, SLOW), "Interrupted", stop=True),
    Cell("%%llm late << --no-cache --bg\nHello", (PROSE,)),
    Cell("late.result()"),
    Cell("%%llm broken << --no-cache --bg\nHello", (FAULTS["cut"],)),
    Cell("broken.result()", (), "StreamBroken"),
    Cell("%%llm --dry-run\nHello"),
    Cell("%%llm_map rows out << --no-cache\nOf {{ text }}", (PROSE,) * 6),
    Cell("%%llm_map rows out << --no-cache --quiet\nOf {{ text }}", (PROSE,) * 6),
    Cell("%%llm_map rows --no-cache --schema list[City] --repairs 0\n{{ text }}", (WRONG,) * 6),
    Cell("%%llm_map rows out << --no-cache\nOf {{ nothing }}", (), "PromptError"),
    Cell("%%llm_map rows --dry-run\nOf {{ text }}"),
    Cell(
        "%%llm_map rows out << --no-cache --concurrency 2\nStop {{ text }}",
        (PROSE, PROSE, LATE, LATE),
        "Interrupted",
        stop=True,
        pieces=0,
    ),
    Cell("%%llm --fresh\nWhat is in {{ picture }}?", (PROSE,)),
    Cell("%%llm\n{{ nobody }}", (), "PromptError"),
    Cell("%%llm --no-cache\nHello", (FAULTS["bad_key"],), "AuthenticationFailed"),
    Cell("%%llm --no-cache\nHello", (FAULTS["cut"],), "StreamBroken"),
    Cell("%%llm --no-cache\nHello", (FAULTS["reset"],), "StreamBroken"),
    Cell("%%llm --no-cache\nHello", (Reply("Cut", finish="length"),), "Truncated"),
    Cell("%%llm --no-cache\nHello", (Reply("Well", reasoning="Hm. " * 50),)),
    Cell("%%capture\n%%llm --fresh\nHello", (PROSE,)),
    Cell("import llm_magic; answer = llm_magic.ask('Hello', fresh=True)", (PROSE,)),
    Cell("answer = await llm_magic.aask('Hello', fresh=True)", (PROSE,)),
    Cell("1 / 0", (), "ZeroDivisionError"),
    Cell("%llm_fix --fresh", (CODE,)),
    Cell("%llm_usage"),
    Cell("%llm_quota"),
    Cell("%llm_cache"),
)
SETUP = """
%load_ext llm_magic
from typing import TypedDict
from PIL import Image
City = TypedDict("City", {"name": str, "people": int})
picture = Image.new("RGB", (2, 2))
rows = [{"text": f"review {n}"} for n in range(6)]
"""
COUNT = """
import asyncio, gc, os, threading
import comm
from ipywidgets.widgets import widget as _widgets
from llm_magic import session as _sessions

async def _tasks():
    return len(asyncio.all_tasks())

def held():
    gc.collect()
    shell, running = get_ipython(), _sessions.current()
    descriptors = {}
    for each in os.listdir("/proc/self/fd"):
        try:
            kind = os.path.basename(os.readlink(f"/proc/self/fd/{each}").partition(":")[0])
        except OSError:
            continue
        if kind.startswith("history.sqlite"):
            continue  # IPython's own, written by a thread of its own.
        descriptors[kind] = descriptors.get(kind, 0) + 1
    return {
        "widgets": len(_widgets._instances),
        "comms": len(comm.get_comm_manager().comms),
        # Those of asyncio's own pool come as they are needed, to a limit.
        "threads": len(
            [each for each in threading.enumerate() if not each.name.startswith("asyncio_")]
        ),
        **descriptors,
        "tasks": asyncio.run_coroutine_threadsafe(_tasks(), running._loop).result(10),
        "callbacks": sum(map(len, shell.events.callbacks.values())),
        "transformers": len(
            shell.input_transformers_cleanup
            + shell.input_transformers_post
            + shell.ast_transformers
            + shell.input_transformer_manager.line_transforms
            + shell.input_transformer_manager.token_transformers
        ),
        "settings": len(shell.configurables),
        "formatters": sum(
            len(each.type_printers) for each in shell.display_formatter.formatters.values()
        ),
        "connections": len(running._wires),
    }
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(default="Not scripted.") as running:
        yield running


@pytest.fixture(scope="module")
def kernel(server: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    environment = {
        "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")),
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": KEY,
        "LLM_MAGIC_WIDGETS": "True",
        "LLM_MAGIC_RETRIES": "0",
        "LLM_MAGIC_CACHE_SIZE": "1 GB",
    }
    running = Kernel(watched=True, environment=environment)
    for cell in (SETUP, COUNT):
        assert not running.run(cell).of("error")
    yield running
    running.stop()


def go_through(kernel: Kernel, server: ScriptedServer) -> None:
    """Runs every cell once, and sees that each did what it is there for."""
    for cell in CELLS:
        server.reset()
        server.enqueue(*cell.replies)
        request = kernel.start(cell.source)
        if cell.stop:
            server.wait_for_requests(len(cell.replies))
            while server.requests[0].sent_chunks < cell.pieces:
                time.sleep(0.002)
            kernel.manager.interrupt_kernel()
        shown = kernel.finish(request)
        errors = [each["ename"] for each in shown.of("error")]
        assert errors == ([cell.error] if cell.error else []), (cell.source, shown.of("error"))
        server.wait_for_requests(len(cell.replies))  # One in the background may be on its way.
        assert len(server.requests) == len(cell.replies), cell.source


def grown(kernel: Kernel, before: dict[str, int]) -> dict[str, int]:
    """What the kernel has more of than before, once sockets have had the time that they need.

    ipykernel closes those of threads that have ended every 10 s.
    """
    end = time.monotonic() + 25
    while True:
        now = kernel.value("held()")
        more = {name: count for name, count in now.items() if count > before.get(name, 0)}
        if not more or time.monotonic() > end:
            return more


def test_nothing_grows(kernel: Kernel, server: ScriptedServer) -> None:
    go_through(kernel, server)
    go_through(kernel, server)
    before = kernel.value("held()")

    for _ in range(ROUNDS):
        go_through(kernel, server)

    assert grown(kernel, before) == {}
    assert before["widgets"] == before["comms"] == 0
