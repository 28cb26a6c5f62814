"""One prompt over a table, beside other clients on the same rows: one run, medians, ratios.

    python benchmarks/rows.py          everything, about six minutes
    python benchmarks/rows.py quick    fewer rows, one round

A load server in a process of its own answers after 20 ms. Everybody asks for 5,000 rows with the
same schema, 128 at once, in a process of its own, in turn, three times. Ours has the cache and the
quota on and gives typed columns. Ends with 1 where a bound is passed.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from load import LoadServer  # noqa: E402
from peer_rows import ANSWER, PACKAGES, Review, peak, texts  # noqa: E402

QUICK = "quick" in sys.argv
PEERS = HERE.parent / ".venv" / "peers" / "bin" / "python"
ROWS, AT_ONCE, ROUNDS = (1_000, 128, 1) if QUICK else (5_000, 128, 3)
CACHED_ROWS = 5_000 if QUICK else 50_000
MANY_ROWS = 100_000 if QUICK else 1_000_000
# What is claimed: rows a second in multiples of theirs, and a peak of memory below theirs.
BOUNDS = {"async_openai": 3.0, "instructor": 6.0, "litellm": 6.0, "langchain": 6.0}
FLOOR = "aiohttp_bare"
CACHED_RATE = 5_000
MANY_GROWTH = 60
PROMPT = "Classify this review for a shoe shop: {{ text }}"


def ours(_: str, count: int, at_once: int) -> dict[str, Any]:
    """Rows by map_rows, in this process."""
    import llm_magic

    def run(rows: list[dict[str, str]]) -> Any:
        return llm_magic.map_rows(rows, PROMPT, schema=Review, concurrency=at_once)

    run([{"text": text} for text in texts(at_once, 10**6)])
    rows = [{"text": text} for text in texts(count)]
    before, began, cpu = peak(), time.perf_counter(), time.process_time()
    found = run(rows)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert len(found) == count
    assert all((row["stars"], row["topic"], row["positive"]) == (4, "fit", True) for row in found)
    assert not any(row["_cached"] or row["_error"] for row in found)
    assert llm_magic.totals(found).cost > 0
    return {"rate": count / seconds, "cpu": cpu, "peak": peak(), "before": before}


def cached(_: str, count: int, at_once: int) -> dict[str, Any]:
    """The same rows again, in a kernel that has not asked them."""
    import llm_magic

    llm_magic.map_rows(["warm"], PROMPT, schema=Review)
    rows = [{"text": text} for text in texts(count)]
    began = time.perf_counter()
    found = llm_magic.map_rows(rows, PROMPT, schema=Review, concurrency=at_once)
    seconds = time.perf_counter() - began
    assert all(row["_cached"] for row in found)
    return {"rate": count / seconds, "peak": peak()}


def many(_: str, count: int, at_once: int) -> dict[str, Any]:
    """A million rows from a generator, answered in this process: nothing but our own memory."""
    import llm_magic
    from llm_magic.decode import Finish, Model, Piece, Sent
    from llm_magic.session import current
    from llm_magic.types import Usage
    from llm_magic.wire import OpenAIWire

    class Wire(OpenAIWire):
        async def whole(self, request: Any) -> Any:
            # A server would have the loop take turns.
            await asyncio.sleep(0)
            text = Piece("text", ANSWER)
            return [Sent({}), Model("bench"), text, Finish("stop"), Usage(100, 20)]

    current().wire = lambda request: Wire(request.base_url, "bench")
    llm_magic.map_rows((text for text in texts(1000)), PROMPT, schema=Review)
    before, began = resident(), time.perf_counter()
    rows = (f"Review {number}: the shoes fit." for number in range(count))
    found = llm_magic.map_rows(rows, PROMPT, schema=Review, concurrency=at_once)
    seconds, grown = time.perf_counter() - began, peak() - before
    columns = found.memory_usage(index=False, deep=True).sum() / 1024**2
    assert len(found) == count
    assert found["stars"].eq(4).all()
    return {"rate": count / seconds, "grown": grown, "columns": columns}


def resident() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


def measured(python: str | Path, program: list[str], folder: str, **more: str) -> dict[str, Any]:
    """What a contender's process prints."""
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": program[2] if program[0].endswith("rows.py") else "",
        "OPENAI_API_KEY": "bench",
        "LLM_MAGIC_MODEL": "bench",
        "LLM_MAGIC_CACHE_DIR": f"{folder}/cache",
        "LLM_MAGIC_LEDGER_DIR": f"{folder}/ledger",
        # Limits that are checked with every row and not reached.
        "LLM_MAGIC_QUOTA_REQUESTS": "100000000",
        "LLM_MAGIC_QUOTA_TOKENS": "1000000000000",
        "LLM_MAGIC_QUOTA_USD": "1000000",
        "LLM_MAGIC_PRICES": '{"bench": {"input": 0.25, "output": 2}}',
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        **more,
    }
    done = subprocess.run(
        [str(python), *program], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{program[1]} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def of_ours(what: str, url: str, count: int, folder: str, **more: str) -> dict[str, Any]:
    """One of the functions above, in a process of its own."""
    program = [__file__, what, url, str(count), str(AT_ONCE)]
    return measured(sys.executable, program, folder, **more)


def compared(url: str) -> bool:
    """Everybody in turn; whether all bounds hold."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", *PACKAGES)}
    for _ in range(ROUNDS):
        for name in runs:
            if name == "ours":
                with tempfile.TemporaryDirectory() as folder:
                    runs[name].append(of_ours("ours", url, ROWS, folder))
            elif PEERS.exists():
                program = [str(HERE / "peer_rows.py"), name, url, str(ROWS), str(AT_ONCE)]
                runs[name].append(measured(PEERS, program, ""))
    middle = {
        name: {key: statistics.median(run[key] for run in each) for key in ("rate", "cpu", "peak")}
        for name, each in runs.items()
        if each
    }
    own, good = middle["ours"], True
    print(f"{ROWS:,} rows, {AT_ONCE} at once, 20 ms; medians of {ROUNDS}")
    print(f"{'':24}{'rows/s':>9}{'ours is':>10}{'CPU s':>8}{'peak MB':>9}  bound")
    for name, each in middle.items():
        ratio = own["rate"] / each["rate"]
        bound = BOUNDS.get(name)
        holds = bound is None or (ratio >= bound and own["peak"] < each["peak"])
        good &= holds
        told = "" if bound is None else f">= {bound:g}, less memory: {'yes' if holds else 'NO'}"
        label = f"{name} {runs[name][0].get('version', '')}"
        print(
            f"{label:24}{each['rate']:9,.0f}{ratio:9.2f}x{each['cpu']:8.2f}{each['peak']:9.0f}"
            f"  {told}"
        )
    return good


def main() -> None:
    """All of it, as a table."""
    with LoadServer(latency=0.02, answer=ANSWER) as server:
        good = compared(server.url)
        with tempfile.TemporaryDirectory() as folder:
            of_ours("ours", server.url, CACHED_ROWS, folder)
            again = of_ours("cached", server.url, CACHED_ROWS, folder)
        good &= again["rate"] >= CACHED_RATE
        print(
            f"{CACHED_ROWS:,} cached rows again: {again['rate']:,.0f} rows/s (bound "
            f"{CACHED_RATE:,}), peak {again['peak']:.0f} MB"
        )
        with tempfile.TemporaryDirectory() as folder:
            lots = of_ours("many", server.url, MANY_ROWS, folder, LLM_MAGIC_CACHE_SIZE="0")
        beyond = lots["grown"] - lots["columns"]
        good &= beyond < MANY_GROWTH
        print(
            f"{MANY_ROWS:,} rows of a generator, no network: {lots['rate']:,.0f} rows/s, memory "
            f"+{lots['grown']:.0f} MB, {lots['columns']:.0f} of them the result's columns; "
            f"{beyond:.0f} beyond (bound {MANY_GROWTH})"
        )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        print(json.dumps(globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
