"""Processes that ask a prompt, each as if on a machine of its own. Run as a program.

Each line of the input is a list of askers as JSON; they are forked here, since starting Python
sixteen times takes longer than all that they do, and ask at once when all are ready. Each line of
the output is one asker's: when it is ready, and when it has its answer.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from typing import Any

import llm_magic
from llm_magic import owner, session
from llm_magic.errors import LLMError
from llm_magic.stores.redis import ledger
from llm_magic.wire import _make_client

SLOW = (
    *("anyio._backends._asyncio", "diskcache", "dotenv", "genai_prices", "redis", "stringprep"),
    *("llm_magic.api", "llm_magic.calls", "llm_magic.run", "llm_magic.stores.disk"),
    *("llm_magic.stores.redis.cache", "llm_magic.views.render"),
)


def pretend(machine: str) -> None:
    """Takes this process for one of another machine: nobody else can see whether it lives."""
    mine = owner.current()._replace(boot=f"boot of {machine}", host=machine)
    owner._owner = lambda pid: mine  # type: ignore[assignment]


def shorten(lease: float) -> None:
    """Has the leases of this process run out sooner."""
    ledger.LEASE = lease
    ledger.RedisLedger.lease = lease


def say(**words: Any) -> None:
    """One line, in one piece even where others write as well."""
    os.write(1, json.dumps(words).encode() + b"\n")


def ask(asker: dict[str, Any], go: int) -> None:
    """What one process does.

    Args:
        asker: Its ``name`` and ``environment``; the ``prompt``; where it is to be pretended, its
            ``machine``; its ``lease`` in seconds, where it is not the usual one.
        go: Closed at the other end when it is to begin.
    """
    os.environ.update(asker["environment"])
    if "machine" in asker:
        pretend(asker["machine"])
    if "lease" in asker:
        shorten(asker["lease"])
    say(name=asker["name"], ready=os.getpid())
    os.read(go, 1)
    try:
        response = llm_magic.ask(asker["prompt"], model="m", max_tokens=500)
    except LLMError as error:
        said: dict[str, Any] = {"error": type(error).__name__, "words": str(error)}
    else:
        cost, saved = str(response.cost), str(response.saved)
        said = {"text": response.text, "cached": response.cached, "cost": cost, "saved": saved}
    session.current().close()
    say(name=asker["name"], **said, at=time.time())


def start(askers: list[dict[str, Any]], children: set[int]) -> None:
    """Forks askers and lets them begin."""
    go, begin = os.pipe()
    for asker in askers:
        if child := os.fork():
            children.add(child)
            continue
        try:
            os.close(begin)
            ask(asker, go)
        finally:
            os._exit(0)
    # They say that they are ready while they still wait: whoever reads it sends the next line.
    sys.stdin.readline()
    os.close(begin)
    os.close(go)


def main() -> None:
    """Starts askers until the input ends, and then ends them."""
    # The slow imports, once for all.
    _make_client("http://127.0.0.1:9/v1", "warm")
    for name in SLOW:
        importlib.import_module(name)
    children: set[int] = set()
    try:
        while line := sys.stdin.readline():
            start(json.loads(line), children)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
