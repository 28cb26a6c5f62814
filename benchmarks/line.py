"""What a %%llm cell costs beside a bare openai streaming loop: one run, medians, ratios.

    python benchmarks/line.py          everything, about a minute
    python benchmarks/line.py quick    fewer repeats

Both sides ask the same scripted server in a process of its own on loopback and print to the same
kind of stdout. Seconds and CPU depend on the machine; the ratios and bounds are what is claimed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from report import QUICK, Report

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


# Name, tokens, seconds before the first token, which figure, repeats, bar.
PARTS: dict[str, tuple[str, int, float, int, int, str]] = {
    "first": ("first token, server thinks 200 ms", 20, 0.2, 0, 30, "first token"),
    "first0": ("first token, server thinks 0 ms", 20, 0.0, 0, 50, ""),
    "cpu500": ("CPU of 500 tokens at full speed", 500, 0.0, 1, 20, ""),
    "cpu2k": ("CPU of 2,000 tokens at full speed", 2000, 0.0, 1, 20, "stream CPU"),
    "cpu20k": ("CPU of 20,000 tokens at full speed", 20_000, 0.0, 1, 5, ""),
}


def in_this_process(part: str) -> None:
    """One comparison; a process of its own, so that no part warms another."""
    _, tokens, delay, figure, repeats, _ = PARTS[part]
    with server(tokens, delay):
        bare, magic = compared(max(3, repeats // 5) if QUICK else repeats)
    print(json.dumps([statistics.median(pair[figure] for pair in side) for side in (bare, magic)]))


def main() -> int:
    """Every part in turn."""
    report = Report("One streamed answer")
    for part, (name, tokens, _, figure, _, bar) in PARTS.items():
        options = ["quick"] if QUICK else []
        done = subprocess.run(
            [sys.executable, __file__, "part", part, *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        bare, magic = json.loads(done.stdout.splitlines()[-1])
        report.add(name, magic, "s", "bare openai loop", bare, bar)
        if figure:
            report.point("stream", "%%llm", tokens, magic)
            report.point("stream", "bare openai loop", tokens, bare)
    report.note(
        "Where the server takes no time at all, the 2 or 3 ms of a cell (IPython, two threads, the "
        "booking) stand beside the 3 ms of the bare loop. No model answers in 0 ms; the bar of the "
        "first token is held against a server that thinks for 200 ms."
    )
    return report.finish()


if __name__ == "__main__":
    in_this_process(sys.argv[2]) if "part" in sys.argv else sys.exit(main())
