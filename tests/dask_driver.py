"""Two Dask workers of their own, a Redis with a password, and a server for load, for tests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from tests.conftest import KEY
from tests.redis_servers import RedisServer

PASSWORD = "MARKER-redis-passw0rd"


class Workers:
    """Two Dask workers of one thread each, and the client.

    Args:
        redis: What they share.
        folder: Where they keep what is a machine's own.
        **environment: Further variables of theirs; None takes one away.
    """

    def __init__(self, redis: RedisServer, folder: Path, **environment: str | None) -> None:
        chosen: dict[str, str | None] = {
            "OPENAI_API_KEY": KEY,
            "LLM_MAGIC_STORE_PASSWORD": PASSWORD,
            "LLM_MAGIC_CACHE_DIR": str(folder / "cache"),
            "LLM_MAGIC_LEDGER_DIR": str(folder / "ledger"),
            **environment,
        }
        # Of the tests' own process they have what it has now.
        theirs = {name: value for name, value in chosen.items() if value is not None}
        self.cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, env=theirs
        )
        self.client = Client(self.cluster)
        self.redis = redis

    def kill_one(self) -> None:
        """Ends a worker's process as the kernel's memory killer would."""
        os.kill(next(iter(self.cluster.workers.values())).pid, signal.SIGKILL)

    def both(self) -> None:
        """Waits until both are there."""
        self.client.wait_for_workers(2, timeout=30)

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


class Executor:
    """A pool as only its form says: one thread for each piece of work.

    Args:
        times: How often it does each piece; the last result counts, as with Dask where a worker
            dies that has done it.

    Attributes:
        sent: What was submitted, as pickled.
    """

    def __init__(self, times: int = 1) -> None:
        self.sent: list[bytes] = []
        self._times = times

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        import cloudpickle

        self.sent.append(cloudpickle.dumps((work, arguments)))
        future: Future[Any] = Future()

        def do() -> None:
            try:
                for _ in range(self._times):
                    result = work(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=do).start()
        return future


def when(ready: Callable[[], bool], do: Callable[[], Any], patience: float = 30.0) -> Any:
    """Does something on another thread as soon as it is time; returns that thread."""

    def watch() -> None:
        end = time.monotonic() + patience
        while not ready() and time.monotonic() < end:
            time.sleep(0.005)
        do()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
