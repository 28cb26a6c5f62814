"""One prompt over a table, beside other clients on the same rows: one run, medians, ratios.

    python benchmarks/rows.py          everything, about four minutes
    python benchmarks/rows.py full     all rows for everybody: about fifteen minutes
    python benchmarks/rows.py quick    fewer rows, one round

A load server in a process of its own answers after 20 ms. Everybody asks for the same rows with the
same schema, 128 at once, in a process of its own, in turn, three times: ours and the bare ones for
5,000, the slower clients for the first 1,000 of them, unless `full`. Ours has the cache and the
quota on and gives typed columns.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from load import LoadServer  # noqa: E402
from peer_rows import ANSWER, PACKAGES, Review, peak, texts  # noqa: E402
from report import FULL, QUICK, Report  # noqa: E402

PEERS = HERE.parent / ".venv" / "peers" / "bin" / "python"
ROWS, AT_ONCE, ROUNDS = (1_000, 128, 1) if QUICK else (5_000, 128, 3)
# Rates of the slower ones are the same over fewer rows, once they are warm.
FEWER = ROWS if FULL else min(ROWS, 1_000)
CACHED_ROWS = 5_000 if QUICK else 50_000
MANY_ROWS = 100_000 if QUICK else 1_000_000 if FULL else 400_000
SIZES = (500, 2_000)
BARS_BESIDE = {"aiohttp_bare": "rows beside aiohttp", "async_openai": "rows beside openai"}
LABELS = {
    "ours": "llm_magic.map_rows",
    "aiohttp_bare": "bare aiohttp",
    "async_openai": "AsyncOpenAI, 128 at once",
    "instructor": "instructor, 128 at once",
    "litellm": "litellm.acompletion, 128 at once",
    "langchain": "LangChain abatch",
    "pydantic_ai": "pydantic-ai, 128 at once",
}
PROMPT = "Classify this review for a shoe shop: {{ text }}"


def ours(_: str, count: int, at_once: int | str) -> dict[str, Any]:
    """Rows by map_rows, in this process."""
    import llm_magic

    def run(rows: list[dict[str, str]]) -> Any:
        return llm_magic.map_rows(rows, PROMPT, schema=Review, concurrency=at_once)

    run([{"text": text} for text in texts(AT_ONCE, 10**6)])
    rows = [{"text": text} for text in texts(count)]
    before, began, cpu = peak(), time.perf_counter(), time.process_time()
    found = run(rows)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert len(found) == count
    assert all((row["stars"], row["topic"], row["positive"]) == (4, "fit", True) for row in found)
    assert not any(row["_cached"] or row["_error"] for row in found)
    assert llm_magic.totals(found).cost > 0
    return {"rate": count / seconds, "cpu": cpu, "peak": peak(), "before": before}


def auto(_: str, count: int, __: int) -> dict[str, Any]:
    """The same, with as many at once as it finds to be right."""
    return ours(_, count, "auto")


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
    curve: list[tuple[int, float]] = []

    def rows() -> Iterator[str]:
        for number in range(1, count + 1):
            if number % (count // 8) == 0:
                curve.append((number, resident() - before))
            yield f"Review {number}: the shoes fit."

    found = llm_magic.map_rows(rows(), PROMPT, schema=Review, concurrency=at_once)
    seconds, grown = time.perf_counter() - began, peak() - before
    columns = found.memory_usage(index=False, deep=True).sum() / 1024**2
    assert len(found) == count
    assert found["stars"].eq(4).all()
    return {"rate": count / seconds, "grown": grown, "columns": columns, "curve": curve}


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


def contender(name: str, url: str, count: int) -> dict[str, Any]:
    """One run of ours or of another client."""
    if name != "ours":
        program = [str(HERE / "peer_rows.py"), name, url, str(count), str(AT_ONCE)]
        return measured(PEERS, program, "")
    with tempfile.TemporaryDirectory() as folder:
        return of_ours("ours", url, count, folder)


def compared(report: Report, url: str) -> None:
    """Everybody in turn."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": []}
    if PEERS.exists():
        runs |= {name: [] for name in PACKAGES}
    else:
        report.note("Peers: .venv/peers is missing (make bench installs it).")
    few = {"ours", *BARS_BESIDE}
    for _ in range(ROUNDS):
        for name, each in runs.items():
            each.append(contender(name, url, ROWS if name in few else FEWER))
    middle = {
        name: {key: statistics.median(run[key] for run in each) for key in ("rate", "cpu", "peak")}
        for name, each in runs.items()
    }
    for name in ("ours", *BARS_BESIDE):
        if name in middle:
            report.point("rows", LABELS[name], ROWS, ROWS / middle[name]["rate"])
    own = middle.pop("ours")
    for name, each in middle.items():
        count, peer = ROWS if name in few else FEWER, LABELS[name]
        bar = BARS_BESIDE.get(name, "rows")
        report.add(f"{count:,} rows", own["rate"], "rows/s", peer, each["rate"], bar)
        bar = "" if name == "aiohttp_bare" else "rows memory"
        report.add("  peak memory of the process", own["peak"], "MB", peer, each["peak"], bar)
        ours, theirs = own["cpu"] / ROWS, each["cpu"] / count
        report.add("  CPU of a row", ours, "s", peer, theirs)
    if FEWER < ROWS and middle:
        report.note(
            f"Ours, bare aiohttp and AsyncOpenAI are asked for {ROWS:,} rows, the slower clients "
            f"for the first {FEWER:,} of them; `python benchmarks/rows.py full` asks everybody for "
            "all. A row costs them the same CPU however many there are, and their memory grows."
        )


def growing(report: Report, url: str) -> None:
    """Smaller tables, which show what a run costs at its start."""
    for count in SIZES:
        for name in ("ours", *BARS_BESIDE):
            if name == "ours" or PEERS.exists():
                found = contender(name, url, count)
                report.point("rows", LABELS[name], count, count / found["rate"])


def by_itself(report: Report, url: str) -> None:
    """As many at once as it finds to be right, beside a number that is."""
    count = 2 * ROWS
    fixed = contender("ours", url, count)["rate"]
    with tempfile.TemporaryDirectory() as folder:
        free = of_ours("auto", url, count, folder)["rate"]
    work = f"{count:,} rows, --concurrency auto"
    report.add(work, free, "rows/s", f"--concurrency {AT_ONCE}", fixed, "auto")


def kept(report: Report, url: str) -> None:
    """The same rows again, from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        of_ours("ours", url, CACHED_ROWS, folder)
        again = of_ours("cached", url, CACHED_ROWS, folder)
    report.add(f"{CACHED_ROWS:,} cached rows again", again["rate"], "rows/s", bar="cached rows")


def main() -> int:
    """All but the memory of very many rows, which `many.py` asks for."""
    report = Report("One prompt over a table")
    with LoadServer(latency=0.02, answer=ANSWER) as server:
        compared(report, server.url)
        growing(report, server.url)
        by_itself(report, server.url)
        kept(report, server.url)
    return report.finish()


if __name__ == "__main__":
    if len(sys.argv) > 3:
        print(json.dumps(globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        sys.exit(main())
