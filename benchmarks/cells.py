"""What must be quick whatever the peers do: Ctrl-C, and a large table in a prompt.

    python benchmarks/cells.py          everything, about twenty seconds
    python benchmarks/cells.py quick    fewer repeats

A kernel is interrupted as the page does it, while its cell waits, streams, stalls and backs off;
what counts is from the signal to the end of the cell.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from typing import Any

from jupyter_client.manager import start_new_kernel
from report import QUICK, Report

from llm_magic.testing import FAULTS, Reply, ScriptedServer

REPEATS = 2 if QUICK else 5
STREAM = Reply("One two three four five six. " * 200, tokens_per_second=50)
PHASES = {
    "waiting for the answer": Reply("Too late.", delay=60),
    "streaming": STREAM,
    "stalling": FAULTS["stall"],
    "backing off": FAULTS["rate_limited"],
}
FRAME = """
import numpy, pandas, time
rows = 1_000_000
frame = pandas.DataFrame({f"number {n}": numpy.arange(rows) * n for n in range(10)})
frame["word"] = pandas.Series(numpy.arange(rows) % 1000).astype(str)
ip = get_ipython()
ip.run_cell_magic("llm", "--dry-run --quiet", "Hello")
def dry():
    began = time.perf_counter()
    ip.run_cell_magic("llm", "--dry-run --quiet", "What is odd here? {{ frame }}")
    return time.perf_counter() - began
"""


class Kernel:
    """A kernel with the extension, and what its cells took."""

    def __init__(self) -> None:
        self.manager, self._client = start_new_kernel()
        self.error = ""

    def begin(self, code: str) -> str:
        """Starts a cell."""
        return str(self._client.execute(code))

    def end(self, request: str) -> str:
        """Waits for its end; what it printed."""
        printed = ""
        while True:
            message = self._client.get_iopub_msg(timeout=120)
            content: dict[str, Any] = message["content"]
            if message["parent_header"].get("msg_id") == request:
                printed += content.get("text", "") if message["msg_type"] == "stream" else ""
                self.error = content.get("ename", self.error)
                if content.get("execution_state") == "idle":
                    return printed

    def run(self, code: str) -> str:
        """A whole cell."""
        return self.end(self.begin(code))

    def close(self) -> None:
        """Ends the kernel."""
        self._client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def interrupted(kernel: Kernel, server: ScriptedServer, reply: Reply) -> float:
    """Seconds from an interrupt in the middle of a cell to its end."""
    server.reset()
    server.enqueue(*[reply] * 5)
    request = kernel.begin("%%llm --fresh\nGo on.")
    while not server.requests:
        time.sleep(0.01)
    # In the middle of it, whatever it is.
    time.sleep(0.4)
    began = time.perf_counter()
    kernel.manager.interrupt_kernel()
    kernel.end(request)
    taken = time.perf_counter() - began
    assert kernel.error == "Interrupted", kernel.error
    kernel.error = ""
    return taken


def main() -> int:
    """Every part in turn."""
    report = Report("What a cell makes one wait for")
    with (
        ScriptedServer(default="Hello.", models=["bench"]) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        os.environ |= {
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": "bench",
            "LLM_MAGIC_MODEL": "bench",
            "LLM_MAGIC_CACHE_DIR": f"{folder}/cache",
            "LLM_MAGIC_LEDGER_DIR": f"{folder}/ledger",
            "LLM_MAGIC_QUOTA_REQUESTS": "None",
        }
        kernel = Kernel()
        try:
            kernel.run("%load_ext llm_magic")
            kernel.run("%%llm\nHello")
            for phase, reply in PHASES.items():
                taken = [interrupted(kernel, server, reply) for _ in range(REPEATS)]
                report.add(f"Ctrl-C while {phase}", max(taken), "s", bar="interrupt")
            kernel.run(FRAME)
            dry = [float(kernel.run("print(dry())").split()[-1]) for _ in range(REPEATS)]
        finally:
            kernel.close()
    report.add("cell with a frame of 1,000,000 x 11", statistics.median(dry), "s", bar="frame")
    report.note("Of each phase the slowest of five is shown; the frame's cell is a dry run.")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
