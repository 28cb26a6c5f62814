"""What a %%llm cell costs beside a bare openai streaming loop: one run, medians, ratios.

    python benchmarks/line.py          everything, about three minutes
    python benchmarks/line.py quick    fewer repeats

Both sides ask the same scripted server in a process of its own on loopback and print to the same
kind of stdout. Seconds and CPU depend on the machine; the ratios and bounds are what is claimed.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

SERVER = """
import sys, time
from llm_magic.testing import Reply, ScriptedServer
text = "word " * int(sys.argv[1])
deltas = ["word "] * int(sys.argv[1])
rate = float(sys.argv[3]) or None
reply = Reply(text, deltas=deltas, first_token_delay=float(sys.argv[2]), tokens_per_second=rate)
with ScriptedServer(default=reply, models=["bench"]) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
QUICK = "quick" in sys.argv
LEDGER = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


@contextlib.contextmanager
def server(tokens: int, delay: float = 0.0, rate: float = 0.0) -> Iterator[str]:
    """A scripted server in a process of its own; gives its URL."""
    command = [sys.executable, "-c", SERVER, str(tokens), str(delay), str(rate)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        os.environ |= {
            "OPENAI_BASE_URL": url,
            "OPENAI_API_KEY": "bench",
            "LLM_MAGIC_MODEL": "bench",
            # The same question each time, asked each time, booked each time.
            "LLM_MAGIC_CACHE_SIZE": "0",
            "LLM_MAGIC_QUOTA_REQUESTS": "1000000",
            "LLM_MAGIC_LEDGER_DIR": LEDGER.name,
        }
        yield url


class FirstWrite(io.StringIO):
    """A stdout that notes when the first word came."""

    first = 0.0

    def write(self, text: str) -> int:
        if not self.first and "word" in text:
            self.first = time.perf_counter()
        return super().write(text)


def bare_loop() -> Callable[[], None]:
    """A streaming loop as the client's documentation shows it."""
    import openai

    client = openai.OpenAI()

    def run() -> None:
        stream = client.chat.completions.create(
            model="bench", messages=[{"role": "user", "content": "Go on."}], stream=True
        )
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)

    return run


def magic_cell() -> Callable[[], None]:
    """The same as a %%llm cell in a terminal IPython."""
    from IPython.terminal.interactiveshell import TerminalInteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = TerminalInteractiveShell.instance(config=config)
    shell.run_cell("%load_ext llm_magic")

    def run() -> None:
        shell.run_cell("%%llm\nGo on.")

    return run


def measured(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds to the first word on stdout, and CPU seconds of the whole call."""
    out = FirstWrite()
    with contextlib.redirect_stdout(out):
        began, cpu = time.perf_counter(), time.process_time()
        run()
        cpu = time.process_time() - cpu
    assert out.first, out.getvalue()
    return out.first - began, cpu


def compared(repeats: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Both sides in turn, after one warm-up each."""
    bare, magic = bare_loop(), magic_cell()
    for run in (bare, magic):
        measured(run)
    pairs = [(measured(bare), measured(magic)) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def show(name: str, bare: list[float], magic: list[float], bound: float | None) -> None:
    """One line of the table."""
    one, other = statistics.median(bare), statistics.median(magic)
    limit = f"at most {bound}" if bound else "for information"
    print(f"{name:46} {one * 1e3:9.1f} ms {other * 1e3:9.1f} ms {other / one:7.2f}  {limit}")


def in_this_process(part: str) -> None:
    """One comparison; a process of its own, so that no part warms another."""
    repeats = 10 if QUICK else 50
    name, tokens, delay, figure, bound = {
        "first": ("first token, server thinks 200 ms", 20, 0.2, 0, 1.1),
        "first0": ("first token, server thinks 0 ms", 20, 0.0, 0, None),
        "cpu": ("CPU of 2,000 tokens at full speed", 2000, 0.0, 1, 1.5),
        "cpu20k": ("CPU of 20,000 tokens at full speed", 20000, 0.0, 1, None),
    }[part]
    with server(tokens, delay):
        bare, magic = compared(repeats if tokens < 5000 else repeats // 5)
    show(name, [each[figure] for each in bare], [each[figure] for each in magic], bound)


def kernel_part() -> None:
    """%load_ext in fresh kernels."""
    from jupyter_client.manager import start_new_kernel

    timing = "import time; t = time.perf_counter()\n{}\nprint(time.perf_counter() - t)"
    seconds: dict[str, list[float]] = {"%load_ext llm_magic": [], "import json": []}
    for cell, taken in seconds.items():
        for _ in range(3 if QUICK else 10):
            manager, client = start_new_kernel()
            taken.append(float(run_in_kernel(client, timing.format(cell))))
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    loaded, nothing = (statistics.median(each) for each in seconds.values())
    print(f"%load_ext in a fresh kernel: {(loaded - nothing) * 1e3:.0f} ms (bound 150 ms)")


def run_in_kernel(client: object, code: str) -> str:
    """What a cell printed."""
    request = client.execute(code)  # type: ignore[attr-defined]
    printed = ""
    while True:
        message = client.get_iopub_msg(timeout=120)  # type: ignore[attr-defined]
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        printed += content.get("text", "") if message["msg_type"] == "stream" else ""
        assert message["msg_type"] != "error", content
        if content.get("execution_state") == "idle":
            return printed


def main() -> None:
    """Every part in turn."""
    print(f"{'':46} {'bare loop':>12} {'%%llm':>12} {'ratio':>7}")
    for part in ("first", "first0", "cpu", "cpu20k"):
        options = ["quick"] if QUICK else []
        subprocess.run([sys.executable, __file__, "part", part, *options], check=True)
    kernel_part()


if __name__ == "__main__":
    in_this_process(sys.argv[2]) if "part" in sys.argv else main()
