"""What drawing an answer costs in a real kernel: bytes to the page and CPU; exit 1 past a bound.

    python benchmarks/views.py          everything, about a minute and a half
    python benchmarks/views.py quick    fewer rows and tokens

Every way to draw has a kernel of its own, whose cells ask the same scripted server, in a process of
its own, for the same Markdown. The page is played by the reader of the kernel's messages: it opens
another shell for a widget's messages and says that it shows the widget, as JupyterLab does. Bytes
are those of all messages from the start of the cell to its end, as a websocket carries them. CPU
is the kernel's, all threads; it depends on the machine, and is for print the client alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from report import QUICK, Report

PEERS = Path(__file__).parent.parent / ".venv" / "peers" / "bin" / "python"
WIDGET, UPDATES, MARKDOWN, PRINT, PEER = (
    "%%llm, widget",
    "%%llm, plain updates",
    "display(Markdown), each token",
    "print, 20 Hz",
    "jupyter-ai %%ai, no stream",
)
# Tokens, tokens a second (0: as fast as the server can), and the ways to draw beside ours.
GROWING = 2000
EVERY = (PRINT, UPDATES, MARKDOWN, PEER)
SPEEDS: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (500, GROWING, (PRINT, MARKDOWN)),
    (2000, 200, (PRINT, MARKDOWN, PEER)),
    (2000, 0, EVERY),
    (2000, GROWING, (PRINT, MARKDOWN)),
    (6000, GROWING, (PRINT,)),
    (20_000, GROWING, (PRINT,)),
)

# A kind of everything that is drawn: a twentieth of 2,000 tokens.
SECTION = r"""## @. What the columns say

The mean of **group @** is above that of the others, which has *two* reasons: the outliers of the
last week, and the rows without a `price`. Both go away with the median; the
[manual](https://example.org/@) says how it is computed.

1. Drop the rows where `price` is missing, and say how many there were.
2. Compare the medians:
   - by group, with an interval from 1,000 resamples;
   - by week, since the prices changed in week @.

| group | rows | median | change |
|---|---|---|---|
| north | 1,20@ | 18.5 | +2.1% |
| south | 98@ | 17.9 | -0.4% |

```python
def interval(values, level=0.95):
    # A bootstrap interval of the median, as in section @.
    draws = [statistics.median(random.choices(values, k=len(values))) for _ in range(1000)]
    return numpy.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
```

With $n$ rows the error falls as $1/\sqrt{n}$, so that for the difference

$$\Delta = m_1 - m_2, \qquad \operatorname{se}(\Delta) \approx 1.25\,\sigma\sqrt{2/n}$$

is what to look at: a change below it is noise.

"""

CLIENT = """
import time
import openai
from IPython.display import Markdown, display
client = openai.OpenAI()

def pieces(prompt):
    messages = [{"role": "user", "content": prompt}]
    for chunk in client.chat.completions.create(model="bench", messages=messages, stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content

def printed(prompt):
    held, last = "", 0.0
    for piece in pieces(prompt):
        held += piece
        if time.monotonic() - last >= 0.05:
            print(held, end="", flush=True)
            held, last = "", time.monotonic()
    print(held, flush=True)

def updated(prompt):
    text = ""
    handle = display(Markdown(text), display_id=True)
    for piece in pieces(prompt):
        text += piece
        handle.update(Markdown(text))
"""
CELLS = {
    WIDGET: ("%load_ext llm_magic", "%%llm\n{}"),
    UPDATES: ("%load_ext llm_magic", "%%llm\n{}"),
    MARKDOWN: (CLIENT, "updated({!r})"),
    PRINT: (CLIENT, "printed({!r})"),
    PEER: (
        "%load_ext jupyter_ai_magic_commands\n"
        "%ai alias bench openai/bench --api-base {url} --api-key-name OPENAI_API_KEY",
        "%%ai bench\n{}",
    ),
}


def prompt(tokens: int, rate: int, turn: int) -> str:
    """What the server is asked for."""
    return f"Go on for {tokens} tokens, {rate} a second; go {turn}."


def reply(tokens: int, rate: int, turn: int) -> Any:
    """So many tokens of Markdown, in each turn of other sections: what is drawn may be kept."""
    from llm_magic.testing import Reply

    sizes = itertools.islice(itertools.cycle((4, 5, 4, 5, 5)), tokens)
    first = 1 + turn * 1000
    numbers = range(first, first + tokens // 100 - 1)
    text = "".join(SECTION.replace("@", str(number)) for number in numbers)
    ends = itertools.accumulate(sizes, initial=0)
    deltas = [text[start:end] for start, end in itertools.pairwise(ends)]
    return Reply("".join(deltas), deltas=deltas, tokens_per_second=rate or None)


def turns(rate: int) -> int:
    """How often an answer is measured: at full speed it takes a few hundredths of a second."""
    return 1 if rate else 5


def serve() -> None:
    """Answers until the input ends."""
    from llm_magic.testing import ScriptedServer

    asked = [(*each[:2], turn) for each in SPEEDS for turn in range(turns(each[1]))]
    answers = {prompt(*each): reply(*each) for each in asked}
    with ScriptedServer({"Warm up.": SECTION, **answers}, models=["bench"]) as running:
        print(running.url, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A scripted server in a process of its own; gives its URL."""
    with subprocess.Popen(
        [sys.executable, __file__, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().strip()
        process.stdin.close()


@dataclass(frozen=True)
class Cost:
    """Of one cell.

    Attributes:
        size: Bytes of its messages.
        messages: Their number.
        cpu: Seconds, of all threads of the kernel.
        seconds: From its start to its end.
        kinds: The bytes by type of message.
    """

    size: int
    messages: int
    cpu: float
    seconds: float
    kinds: dict[str, int]

    @property
    def core(self) -> float:
        """Percent of one core while it ran."""
        return 100 * self.cpu / self.seconds


class Page:
    """A kernel and the page in front of it.

    Args:
        python: The interpreter that runs the kernel.
        environment: Of the kernel.
    """

    def __init__(self, python: Path, environment: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        spec = Path(self._folder.name) / "kernels" / "bench"
        spec.mkdir(parents=True)
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        about = {"argv": argv, "display_name": "bench", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(about))
        kernels = KernelSpecManager(kernel_dirs=[str(spec.parent)])
        self._manager = KernelManager(kernel_name="bench", kernel_spec_manager=kernels)
        own = {
            "LLM_MAGIC_CACHE_DIR": f"{self._folder.name}/cache",
            "LLM_MAGIC_LEDGER_DIR": f"{self._folder.name}/ledger",
        }
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._manager.start_kernel(
            env={**os.environ, **own, **environment}, cwd=self._folder.name, **quiet
        )
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)
        self._process = psutil.Process(self._manager.provisioner.pid)
        self._shell = ""

    def run(self, code: str) -> Cost:
        """Runs a cell, playing the page meanwhile."""
        client, kinds, count = self._client, dict[str, int](), 0
        before, began = self._cpu(), time.monotonic()
        request = client.execute(code)
        while True:
            if not client.iopub_channel.socket.poll(120_000):
                raise SystemExit(f"nothing came for two minutes from the cell {code!r}")
            # Behind the topic: a signature, and what a websocket carries.
            _, (_, *parts) = client.session.feed_identities(
                client.iopub_channel.socket.recv_multipart()
            )
            header, parent, _, content = map(json.loads, parts[:4])
            kind = header["msg_type"]
            kinds[kind] = kinds.get(kind, 0) + sum(map(len, parts))
            count += 1
            self._play(kind, content)
            if kind == "error":
                raise SystemExit(f"{code!r} failed: {content['ename']}: {content['evalue']}")
            if parent.get("msg_id") == request and content.get("execution_state") == "idle":
                seconds = time.monotonic() - began
                return Cost(sum(kinds.values()), count, self._cpu() - before, seconds, kinds)

    def close(self) -> None:
        """Ends the kernel."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._folder.cleanup()

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _play(self, kind: str, content: dict[str, Any]) -> None:
        """What JupyterLab does on a message of the kernel."""
        client = self._client
        if kind == "comm_open" and not self._shell:
            client.control_channel.send(client.session.msg("create_subshell_request", {}))
            self._shell = client.get_control_msg(timeout=10)["content"]["subshell_id"]
        view = content.get("data", {}).get("application/vnd.jupyter.widget-view+json")
        if kind == "display_data" and view:
            said = {"method": "custom", "content": {"seen": True}}
            message = client.session.msg("comm_msg", {"comm_id": view["model_id"], "data": said})
            message["header"]["subshell_id"] = self._shell
            client.shell_channel.send(message)


def costs(row: str, url: str, speeds: list[tuple[int, int]]) -> dict[tuple[int, int], Cost]:
    """One way to draw: a kernel, a short answer that loads what is needed, and the answers."""
    environment = {
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": "bench",
        "LLM_MAGIC_MODEL": "bench",
        "LLM_MAGIC_CACHE_SIZE": "0",
        "LLM_MAGIC_QUOTA_REQUESTS": "None",
        "LLM_MAGIC_WIDGETS": str(row == WIDGET),
        "JPY_SESSION_NAME": "bench.ipynb",
        # litellm would fetch its prices at import.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    page = Page(PEERS if row == PEER else Path(sys.executable), environment)
    load, cell = CELLS[row]
    found = {}
    try:
        for line in load.format(url=url).splitlines() if row == PEER else [load]:
            page.run(line)
        page.run(cell.format("Warm up."))
        for each in speeds:
            count = turns(each[1])
            ran = [page.run(cell.format(prompt(*each, turn))) for turn in range(count)]
            found[each] = sorted(ran, key=lambda one: one.cpu)[count // 2]
            if found[each].size < len(reply(*each, 0).text.encode()):
                raise SystemExit(f"{row} showed no answer")
    finally:
        page.close()
    return found


def measured(report: Report, url: str) -> dict[str, dict[tuple[int, int], Cost]]:
    """Every way to draw, in turn."""
    found = {}
    for row in (PRINT, WIDGET, UPDATES, MARKDOWN, PEER):
        speeds = [each[:2] for each in SPEEDS if row == WIDGET or row in each[2]]
        if QUICK:
            speeds = [each for each in speeds if each[0] <= 2000]
        if row == PEER and not PEERS.exists():
            report.note("Peers: .venv/peers is missing (make bench installs it).")
            continue
        try:
            found[row] = costs(row, url, speeds)
        except SystemExit as error:
            # A peer that cannot be loaded or pointed at the server is told, and no failure.
            if row != PEER:
                raise
            report.note(f"{row} could not be measured: {error}")
    return found


def whereto(costs: Cost) -> str:
    """What the bytes of the widget's cell are for."""
    final = costs.kinds["update_display_data"]
    live = costs.kinds["comm_msg"]
    rest = costs.size - final - live
    parts = {"final form": final, "words as they come": live, "rest": rest}
    return ", ".join(f"{name} {size / 1e3:.0f} kB" for name, size in parts.items())


def beside(report: Report, found: dict[str, dict[tuple[int, int], Cost]], rate: int) -> None:
    """2,000 tokens at one speed."""
    each = (2000, rate)
    speed = f"{rate} tokens/s" if rate else "full speed"
    own = found[WIDGET][each]
    for row in (PRINT, UPDATES, MARKDOWN, PEER):
        if each in found.get(row, {}):
            other = found[row][each]
            bar = "" if row != PRINT else "bytes" if rate else "bytes at full speed"
            report.add(f"2,000 tokens at {speed}, to the page", own.size, "B", row, other.size, bar)
            report.add("  CPU of the kernel", own.cpu, "s", row, other.cpu)
    report.note(f"Of the bytes at {speed}: {whereto(own)}.")


def main() -> int:
    """Every part in turn."""
    report = Report("A cell that streams")
    with server() as url:
        found = measured(report, url)
    own = found[WIDGET]
    beside(report, found, 200)
    report.add("2,000 tokens at 200 tokens/s, of a core", own[2000, 200].core, "%", bar="core")
    beside(report, found, 0)
    short, many = own[2000, GROWING], max(tokens for tokens, rate in own if rate == GROWING)
    times = many / 2000
    if times > 1:
        long = own[many, GROWING]
        report.add(
            f"bytes of a token of {many:,}",
            long.size / many,
            "B",
            "a token of 2,000",
            short.size / 2000,
            "linear bytes",
        )
        report.add(
            f"CPU of a token of {many:,}",
            long.cpu / many,
            "s",
            "a token of 2,000",
            short.cpu / 2000,
            "linear CPU",
        )
    for row, each in found.items():
        for (tokens, rate), one in each.items():
            if rate == GROWING:
                report.point("page", row, tokens, one.size)
    return report.finish()


if __name__ == "__main__":
    serve() if sys.argv[1:2] == ["serve"] else sys.exit(main())
