"""What a structured answer costs: one run, medians, ratios; exit 1 where a bar is missed.

    python benchmarks/structured.py          everything, about three quarters of a minute
    python benchmarks/structured.py quick    fewer repeats

Four parts: a call beside those of instructor and pydantic-ai in `.venv/peers`, what is imported
and when, the table that grows, and the reading of the whole answer. Each side of the first part
has a process of its own and asks the same scripted server; they take turns in short blocks, so
that other load hits all of them alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from report import QUICK, Report

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv" / "peers" / "bin" / "python"
CALLS, ROUNDS = 10, 8 if QUICK else 25
OURS, PEER_NAMES = "llm_magic", ("instructor", "pydantic_ai")

SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from peer_structured import answer
from llm_magic.testing import ScriptedServer
with ScriptedServer(default=answer().model_dump_json(), models=["bench"]) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""

LOADED = """
import sys, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.history_manager.enabled = False
shell.run_cell("%load_ext llm_magic").raise_error()
heavy = [name for name in ("pydantic", "openai", "llm_magic.structured") if name in sys.modules]
began = time.perf_counter()
import llm_magic.structured
print("|".join([", ".join(heavy), str(time.perf_counter() - began)]))
"""


def ours(url: str) -> None:
    """Our side of the calls: an object, and prose for what the object adds."""
    import httpx
    from peer_structured import PROMPT, Review, bare, serve

    import llm_magic

    os.environ["LLM_MAGIC_BASE_URL"] = url

    def ask() -> Review:
        return llm_magic.ask(PROMPT, schema=Review, fresh=True).value

    def prose() -> Review:
        return Review.model_validate_json(llm_magic.ask(PROMPT, fresh=True).value)

    def least() -> Review:
        """What a stream costs without openai's classes."""
        body = {"model": "bench", "messages": [{"role": "user", "content": PROMPT}], "stream": True}
        text = ""
        with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {") and (choices := json.loads(line[6:])["choices"]):
                    text += choices[0]["delta"].get("content") or ""
        return Review.model_validate_json(text)

    client = httpx.Client()
    forms = {**bare(url), "bare httpx streamed": least, "ask": ask, "ask prose": prose}
    serve(forms, ("openai", "httpx", "pydantic"))


@contextlib.contextmanager
def side(command: list[Any]) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A process that answers a line with a line of JSON; the first is asked for with none."""
    with subprocess.Popen(
        [str(each) for each in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:

        def tell(line: str) -> dict[str, Any]:
            assert process.stdin
            assert process.stdout
            if line:
                process.stdin.write(f"{line}\n")
                process.stdin.flush()
            while said := process.stdout.readline():
                if said.startswith("{"):
                    return dict(json.loads(said))
            raise SystemExit(f"{command[1]} {command[2]} ended: run it alone to see why")

        yield tell
        assert process.stdin
        process.stdin.close()


def calls(report: Report) -> None:
    """Every form of call in turn."""
    if not PEERS.exists():
        report.note("Peers: .venv/peers is missing (make bench installs it).")
        return
    folder = tempfile.mkdtemp()
    os.environ |= {
        "LLM_MAGIC_CACHE_DIR": f"{folder}/cache",
        "LLM_MAGIC_LEDGER_DIR": f"{folder}/ledger",
        "LLM_MAGIC_CACHE_SIZE": "0",
        "LLM_MAGIC_QUOTA_REQUESTS": "None",
        "LLM_MAGIC_MODEL": "bench",
        "OPENAI_API_KEY": "bench",
    }
    wall: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", SERVER, str(HERE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert server.stdout
        url = server.stdout.readline().strip()
        script = HERE / "peer_structured.py"
        sides = {OURS: stack.enter_context(side([sys.executable, __file__, "ours", url]))}
        for name in PEER_NAMES:
            sides[name] = stack.enter_context(side([PEERS, script, name, url]))
        turns = []
        for name, tell in sides.items():
            about = tell("")
            turns += [(name, form) for form in about["forms"]]
        for _ in range(ROUNDS):
            random.shuffle(turns)
            for name, form in turns:
                said = sides[name](f"{form} {CALLS}")
                wall.setdefault((name, form), []).extend(said["wall"])
                cpu.setdefault((name, form), []).append(said["cpu"])
        assert server.stdin
        server.stdin.close()
    walls = {key: statistics.median(each) for key, each in wall.items()}
    cpus = {key: statistics.median(each) for key, each in cpu.items()}
    compared(report, walls, cpus)


def compared(
    report: Report, walls: dict[tuple[str, str], float], cpus: dict[tuple[str, str], float]
) -> None:
    """The whole calls, and what each has above a bare call of its kind."""
    for name in PEER_NAMES:
        peer = name.replace("_", "-")
        for form, kind in (("plain", "bare plain"), ("streamed", "bare streamed")):
            for what, each in (("seconds", walls), ("CPU", cpus)):
                mine, other = each[OURS, "ask"], each[name, form]
                bar = "structured" if form == "streamed" else ""
                report.add(f"structured call, {what}", mine, "s", f"{peer}, {form}", other, bar)
                mine, other = mine - each[OURS, "bare streamed"], other - each[name, kind]
                work = f"  {what} above the bare openai call"
                report.add(work, mine, "s", f"{peer}, {form}", other, "structured")
    report.note(
        "Our call always streams and returns the whole object. As a whole it is compared with "
        "their streamed call, which sends and reads the same but gives partial objects besides. "
        "Their plain call returns what ours does but reads one body instead of a stream: there "
        "only what is above the bare openai call of the same kind, in the same process, is "
        "comparable. Below zero means less than the openai client alone."
    )


def imports(report: Report) -> None:
    """What `%load_ext` imports of what only a schema needs, and what the first schema costs."""
    loaded, seconds = "", []
    for _ in range(3 if QUICK else 5):
        done = subprocess.run(
            [sys.executable, "-c", LOADED], stdout=subprocess.PIPE, text=True, check=True
        )
        loaded, _, taken = done.stdout.strip().splitlines()[-1].partition("|")
        seconds.append(float(taken))
    count = len(loaded.split(", ")) if loaded else 0
    report.add(
        "pydantic, openai, our schemas: by %load_ext", count, "modules", bar="structured import"
    )
    report.add("first import of our schemas", statistics.median(seconds), "s")


def cpu_of(work: Callable[[], object]) -> float:
    """CPU seconds of one go; what it gives is freed outside."""
    began = time.process_time()
    kept = work()
    taken = time.process_time() - began
    del kept
    return taken


def growing(report: Report) -> None:
    """CPU of the live view and of the final reading, beside parsing and validating once."""
    from peer_structured import Review, answer

    from llm_magic.structured import Growth, schema_for
    from llm_magic.structured.reading import LARGEST, read
    from llm_magic.views.growing import GrowingValue

    schema = schema_for(list[Review])
    assert schema

    def feed(pieces: list[str]) -> Growth:
        growth = Growth()
        for piece in pieces:
            growth.feed(piece)
        return growth

    def redraw(pieces: list[str]) -> GrowingValue:
        value = GrowingValue(schema)
        for piece in pieces:
            value.add(piece)
            value.html()
        return value

    for rows in (1_000, 10_000) if QUICK else (100, 1_000, 10_000, 100_000):
        listed = ",".join(answer(n).model_dump_json() for n in range(rows))
        text = f'{{"result":[{listed}]}}'
        works: dict[str, Callable[[], object]] = {
            "parsing": lambda text=text: json.loads(text),
            "parsing + validating": lambda text=text: schema.adapter.validate_json(text),
        }
        # A stream of 5 s and of 20 s for 10,000 rows, 10 redraws a second, in proportion.
        redrawn = f"{max(rows // 200, 1):,} redraws"
        for count in (max(rows // 200, 1), rows // 50):
            size = -(-len(text) // count)
            pieces = [text[place : place + size] for place in range(0, len(text), size)]
            works[f"{count:,} pieces read"] = lambda pieces=pieces: feed(pieces)
            works[f"{count:,} redraws"] = lambda pieces=pieces: redraw(pieces)
            assert feed(pieces).root == json.loads(text)
        if len(text) <= LARGEST:
            works["reading the whole answer"] = lambda text=text: read(schema, text)
        best = dict.fromkeys(works, float("inf"))
        for _ in range(3 if QUICK or rows > 50_000 else 9):
            for name, work in works.items():
                best[name] = min(best[name], cpu_of(work))
        if rows == 10_000:
            shown(report, best)
        report.point("list", "live view, a redraw each 200 rows", rows, best[redrawn])
        report.point("list", "json.loads once", rows, best["parsing"])


def shown(report: Report, best: dict[str, float]) -> None:
    """The list of which the bar speaks; the others are in the plot."""
    for name, taken in best.items():
        work = f"list of 10,000, {name}, CPU"
        if name.endswith(("redraws", "pieces read")):
            report.add(work, taken, "s", "json.loads once", best["parsing"], "live view")
        elif name.startswith("reading"):
            both = best["parsing + validating"]
            report.add(work, taken, "s", "parsing and validating once", both)


def main() -> int:
    """Every part in turn."""
    report = Report("Structured answers")
    calls(report)
    imports(report)
    growing(report)
    return report.finish()


if __name__ == "__main__":
    ours(sys.argv[2]) if sys.argv[1:2] == ["ours"] else sys.exit(main())
