"""What a structured answer costs: one run, medians, ratios; exit 1 where a peer is cheaper.

    python benchmarks/structured.py          everything, about a minute
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

QUICK = "quick" in sys.argv
HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv" / "peers" / "bin" / "python"
CALLS, ROUNDS = 10, 8 if QUICK else 40
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


def calls() -> bool:
    """Every form of call in turn; whether ours costs less than theirs."""
    if not PEERS.exists():
        print("peers: .venv/peers is missing (make bench installs it)")
        return False
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
            print(f"{name}: {', '.join(' '.join(each) for each in about['versions'].items())}")
            turns += [(name, form) for form in about["forms"]]
        for _ in range(ROUNDS):
            random.shuffle(turns)
            for name, form in turns:
                said = sides[name](f"{form} {CALLS}")
                wall.setdefault((name, form), []).extend(said["wall"])
                cpu.setdefault((name, form), []).append(said["cpu"])
        assert server.stdin
        server.stdin.close()
    walls = {key: statistics.median(each) * 1e3 for key, each in wall.items()}
    cpus = {key: statistics.median(each) * 1e3 for key, each in cpu.items()}
    return compared(walls, cpus)


def compared(walls: dict[tuple[str, str], float], cpus: dict[tuple[str, str], float]) -> bool:
    """Prints the medians, the overheads and the ratios; whether ours is lower in all of them."""
    print(f"\n{'median of a call, ms':34} {'wall':>8} {'CPU':>8}   above the bare call of its kind")
    for key in sorted(walls):
        kind = "bare plain" if key[1] == "plain" else "bare streamed"
        more = [each[key] - each[key[0], kind] for each in (walls, cpus)]
        above = "" if "bare" in key[1] else f"   {more[0]:+8.2f} {more[1]:+8.2f}"
        print(f"{' '.join(key):34} {walls[key]:8.2f} {cpus[key]:8.2f}{above}")
    print(
        "\nOurs always streams and returns the whole object. As a whole it is comparable with "
        "their streamed\ncall, which sends and reads the same but gives partial objects besides; "
        "their plain call returns\nwhat ours does but has one body to read instead of a stream, so "
        "that there only what is above the\nbare openai call of the same kind, in the same process,"
        " is comparable. What must be lower is so\nmarked: 'yes' or 'NO'; 'information' binds "
        "nothing."
    )
    print(f"{'ours, theirs':34} {'ms':>8} {'ms':>8} {'ratio':>7}  lower")
    lower = True
    for name in PEER_NAMES:
        for form, kind in (("plain", "bare plain"), ("streamed", "bare streamed")):
            for what, each in (("wall", walls), ("CPU", cpus)):
                mine, other = each[OURS, "ask"], each[name, form]
                said = verdict(mine, other, binds=form == "streamed")
                lower = lower and said != "NO"
                first = f"{name} {form}, {what}"
                print(f"{first:34} {mine:8.2f} {other:8.2f} {mine / other:7.2f}  {said}")
                mine, other = mine - each[OURS, "bare streamed"], other - each[name, kind]
                said = verdict(mine, other, binds=True)
                lower = lower and said != "NO"
                print(f"{'  above the bare call':34} {mine:8.2f} {other:8.2f} {'':7}  {said}")
    return lower


def verdict(mine: float, other: float, *, binds: bool) -> str:
    """Whether ours is lower; in a comparison that binds nothing, with that word."""
    if binds:
        return "yes" if mine < other else "NO"
    return f"{'yes' if mine < other else 'no'} (information)"


def imports() -> bool:
    """What `%load_ext` imports of what only a schema needs, and what the first schema costs."""
    loaded, seconds = "", []
    for _ in range(3 if QUICK else 10):
        done = subprocess.run(
            [sys.executable, "-c", LOADED], stdout=subprocess.PIPE, text=True, check=True
        )
        loaded, _, taken = done.stdout.strip().splitlines()[-1].partition("|")
        seconds.append(float(taken))
    first = statistics.median(seconds) * 1e3
    print(f"\nimported by %load_ext, of pydantic, openai, llm_magic.structured: {loaded or 'none'}")
    print(f"first import of llm_magic.structured: {first:.0f} ms")
    return not loaded


def cpu_of(work: Callable[[], object]) -> float:
    """CPU seconds of one go; what it gives is freed outside."""
    began = time.process_time()
    kept = work()
    taken = time.process_time() - began
    del kept
    return taken


def growing() -> None:
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

    header = f"{'rows':>7} {'bytes':>9}  {'what':34} {'CPU ms':>8} {'us a row':>9}"
    print(f"\n{header} {'/ parsing':>9} {'/ parsing + validating':>23}  at most 3 x parsing")
    for rows in (1_000, 10_000) if QUICK else (1_000, 10_000, 100_000):
        listed = ",".join(answer(n).model_dump_json() for n in range(rows))
        text = f'{{"result":[{listed}]}}'
        works: dict[str, Callable[[], object]] = {
            "parsing": lambda text=text: json.loads(text),
            "parsing + validating": lambda text=text: schema.adapter.validate_json(text),
        }
        # A stream of 5 s and of 20 s for 10,000 rows, 10 redraws a second, in proportion.
        for count in (rows // 200, rows // 50):
            size = -(-len(text) // count)
            pieces = [text[place : place + size] for place in range(0, len(text), size)]
            works[f"feed, {count:,} pieces"] = lambda pieces=pieces: feed(pieces)
            works[f"feed + html, {count:,} redraws"] = lambda pieces=pieces: redraw(pieces)
            assert feed(pieces).root == json.loads(text)
        if len(text) <= LARGEST:
            works["final reading"] = lambda text=text: read(schema, text)
        best = dict.fromkeys(works, float("inf"))
        for _ in range((3 if rows > 50_000 else 7) if QUICK else (5 if rows > 50_000 else 21)):
            for name, work in works.items():
                best[name] = min(best[name], cpu_of(work))
        for name, taken in best.items():
            once, both = taken / best["parsing"], taken / best["parsing + validating"]
            live = name.startswith("feed")
            held = ("holds" if once <= 3 else "exceeded") if live else ""
            print(
                f"{rows:7,} {len(text):9,}  {name:34} {taken * 1e3:8.2f} {taken / rows * 1e6:9.2f} "
                f"{once:9.2f} {both:23.2f}  {held}"
            )
        if "final reading" not in works:
            print(f"{rows:7,} {len(text):9,}  final reading: refused above {LARGEST:,} characters")


def main() -> None:
    """Every part in turn."""
    lower = calls()
    light = imports()
    growing()
    if not lower:
        print("\nFAILED: a structured call of ours is not lower where it must be (NO above)")
    if not light:
        print("\nFAILED: %load_ext imports what only a schema needs")
    sys.exit(0 if lower and light else 1)


if __name__ == "__main__":
    ours(sys.argv[2]) if sys.argv[1:2] == ["ours"] else main()
