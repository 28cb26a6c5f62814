"""The engines that take chunks: a Dask client, or whatever has ``submit`` as an executor has it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from llm_magic.errors import LLMError, PromptError


class Pool(Protocol):
    """Workers, and the way to them.

    Attributes:
        processes: Processes that work, one for each window of requests.
        slots: Chunks that run at the same time.
    """

    @property
    def processes(self) -> int: ...  # noqa: D102
    @property
    def slots(self) -> int: ...  # noqa: D102

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Has something done; gives its future."""

    def cancel(self, future: Any) -> None:
        """It need not be done any more."""

    def release(self, future: Any) -> None:
        """Its result has been taken, or is not wanted."""


class ExecutorPool:
    """A pool of ``concurrent.futures``, or what has its form."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    @property
    def slots(self) -> int:
        """Its workers, as it says."""
        count = getattr(self._executor, "_max_workers", None)
        return count if isinstance(count, int) and count > 0 else os.cpu_count() or 1

    @property
    def processes(self) -> int:
        """One for each worker, unless they are threads of this one."""
        return 1 if isinstance(self._executor, ThreadPoolExecutor) else self.slots

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Has something done; gives its future."""
        return self._executor.submit(work, *arguments)

    def cancel(self, future: Any) -> None:
        """It is not begun, unless it is."""
        future.cancel()

    def release(self, future: Any) -> None:
        """Nothing: a future holds no memory but its own."""


class DaskPool:
    """The workers of a Dask client.

    Args:
        client: The client.
        **options: Of its ``submit``: ``workers``, ``resources`` and so on.
    """

    def __init__(self, client: Any, **options: Any) -> None:
        self._client = client
        self._options = {**options, "pure": False}

    @property
    def slots(self) -> int:
        """Threads of all workers that are there now."""
        return max(1, sum(map(int, self._client.nthreads().values())))

    @property
    def processes(self) -> int:
        """Workers that are there now."""
        return max(1, len(self._client.nthreads()))

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Has something done; gives its future."""
        return self._client.submit(work, *arguments, **self._options)

    def cancel(self, future: Any) -> None:
        """It is not begun; where it is, nobody waits for it."""
        with suppress(Exception):
            self._client.cancel([future], asynchronous=False)

    def release(self, future: Any) -> None:
        """Dask does the work of every future again that is held when its worker dies."""
        future.release()


def pool_for(on: Any) -> Pool:
    """The pool that a user names.

    Args:
        on: A Dask ``Client``, or an executor.

    Raises:
        PromptError: It is neither.
    """
    module = type(on).__module__.partition(".")[0]
    if module == "distributed" and hasattr(on, "submit") and hasattr(on, "nthreads"):
        return _dask(on)
    if module == "distributed" and hasattr(on, "_client"):
        # Its futures could not be let go one by one.
        return _dask(on._client, **on._kwargs)
    if callable(getattr(on, "submit", None)) and not isinstance(on, type):
        return ExecutorPool(on)
    fix = "Give a Dask Client or an executor: on=Client(), on=ProcessPoolExecutor()"
    if hasattr(on, "scheduler_address"):
        fix = "Give a client of it: on=Client(cluster)"
    raise PromptError(
        f"on={type(on).__name__} takes no work: it has no submit(); nothing was sent.", fix=fix
    )


def _dask(client: Any, **options: Any) -> Pool:
    if client.asynchronous:
        raise PromptError(
            "The Dask client is an asynchronous one, whose calls must be awaited; nothing was "
            "sent.",
            fix="Make an ordinary one: on=Client(address)",
        )
    if client.status != "running":
        raise PromptError(
            f"The Dask client is {client.status}; nothing was sent.", fix="Make a new one: Client()"
        )
    return DaskPool(client, **options)


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def result(future: Any) -> Any:
    """Waits for a future of any pool on this loop."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell(_: Any) -> None:
        # A loop that is closed has nobody left who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_set, done)

    future.add_done_callback(tell)
    await done
    return await asyncio.to_thread(_fetched, future)


def _fetched(future: Any) -> Any:
    """Its result; a Dask future fetches it now, from the worker that has it."""
    try:
        return future.result()
    except (KeyboardInterrupt, SystemExit) as error:
        # A worker's own, which must not end this process.
        raise LLMError(
            f"A worker was ended with {type(error).__name__}.", fix="See the workers' logs."
        ) from error


def failure(error: BaseException) -> LLMError:
    """Why a chunk did not come back, in words that say what to do."""
    if isinstance(error, LLMError):
        return error
    name = type(error).__name__
    if isinstance(error, BrokenExecutor):
        return LLMError(
            f"A worker of the {_pool_name(name)} died, and it takes no more work.",
            fix="Make a new pool.",
        )
    if name == "KilledWorker":
        return LLMError(
            "Dask gave up a chunk of rows: each worker that had it died, mostly for want of "
            "memory.",
            fix="See the workers' logs.",
        )
    if isinstance(error, CancelledError):
        return LLMError(
            "The workers' client cancelled a chunk of rows: it was closed, or has lost its "
            "scheduler.",
            fix="Make a new client.",
        )
    if isinstance(error, ImportError):
        return LLMError(
            f"A worker cannot import what it needs: {error}.",
            fix="Install llm-magic, of the same version, and the schema's modules on all workers.",
        )
    return LLMError(f"A worker failed with {name}: {error}", fix="See the workers' logs.")


def _pool_name(error: str) -> str:
    return {"BrokenProcessPool": "process pool", "BrokenThreadPool": "thread pool"}.get(
        error, "pool"
    )
