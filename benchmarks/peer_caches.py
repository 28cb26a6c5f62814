"""Cached calls of other libraries, each as its documentation shows it; runs in .venv/peers.

    python peer_caches.py URL REPEATS FOLDER

Prints a line of JSON for each: name, version, median seconds of a hit.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

URL, REPEATS, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PROMPTS = [f"Question {n}: " + "which of these columns looks wrong? " * 10 for n in range(20)]


def measured(name: str, package: str, ask: Callable[[str], object]) -> None:
    """Asks everything once, then again and again, and tells the median of the repeats."""
    for prompt in PROMPTS:
        ask(prompt)
    taken = []
    for turn in range(REPEATS):
        began = time.perf_counter()
        ask(PROMPTS[turn % len(PROMPTS)])
        taken.append(time.perf_counter() - began)
    line = {"name": name, "version": version(package), "seconds": statistics.median(taken)}
    print(json.dumps(line), flush=True)


def langchain() -> None:
    """ChatOpenAI with SQLiteCache."""
    from langchain_community.cache import SQLiteCache
    from langchain_core.globals import set_llm_cache
    from langchain_openai import ChatOpenAI

    set_llm_cache(SQLiteCache(database_path=f"{FOLDER}/langchain.db"))
    model = ChatOpenAI(model="bench", base_url=URL, api_key="bench")
    measured("LangChain SQLiteCache", "langchain-community", model.invoke)


def instructor() -> None:
    """A patched client with DiskCache."""
    import instructor
    import openai
    from instructor.cache import DiskCache
    from pydantic import BaseModel

    class Answer(BaseModel):
        text: str

    client = instructor.from_openai(
        openai.OpenAI(base_url=URL, api_key="bench"),
        mode=instructor.Mode.JSON,
        cache=DiskCache(directory=f"{FOLDER}/instructor"),
    )

    def ask(prompt: str) -> object:
        return client.chat.completions.create(
            model="bench", response_model=Answer, messages=[{"role": "user", "content": prompt}]
        )

    measured("instructor DiskCache", "instructor", ask)


def litellm() -> None:
    """litellm.completion with its cache in memory: it has none on disk any more."""
    import litellm

    litellm.cache = litellm.Cache(type="local")

    def ask(prompt: str) -> object:
        return litellm.completion(
            model="openai/bench",
            api_base=URL,
            api_key="bench",
            messages=[{"role": "user", "content": prompt}],
            caching=True,
        )

    measured("litellm Cache (memory)", "litellm", ask)


def file_growth() -> None:
    """Bytes of file for each entry in diskcache as it comes."""
    import random
    from pathlib import Path

    import diskcache

    words = json.loads((Path(FOLDER) / "words.json").read_text())
    cache = diskcache.Cache(f"{FOLDER}/diskcache")
    for n in range(2000):
        random.seed(n)
        cache[f"{n:064}"] = " ".join(random.choices(words, k=300))
    grown = sum(path.stat().st_size for path in Path(f"{FOLDER}/diskcache").rglob("*"))
    line = {"name": "diskcache", "version": version("diskcache"), "bytes": grown / 2000}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    for part in (langchain, instructor, litellm, file_growth):
        try:
            part()
        except Exception as error:  # noqa: BLE001
            print(json.dumps({"name": part.__name__, "failed": f"{type(error).__name__}: {error}"}))
