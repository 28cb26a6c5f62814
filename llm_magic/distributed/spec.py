"""What a worker must know of a run, as bytes: plain values and the user's own types, no secret."""

from __future__ import annotations

import os
import pickle
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, replace
from functools import cached_property
from io import BytesIO
from typing import Any

from traitlets.config import Config

from llm_magic.desk import Desk
from llm_magic.errors import LLMError, PromptError, StoreError
from llm_magic.job import Job
from llm_magic.ledger import Limit, nanos
from llm_magic.session import Session
from llm_magic.settings import LLMMagic
from llm_magic.structured import schema_for
from llm_magic.types import Request, Wish

_OF_A_MACHINE = {"cache_dir", "ledger_dir", "widgets", "feedback"}
_STORE = "LLM_MAGIC_STORE"


@dataclass(frozen=True)
class Spec:
    """What a worker must know of a run.

    Attributes:
        run: The run's name, which no other one has.
        kernel: The kernel that it belongs to, whose limits hold for it.
        user: Whose budget it is.
        cell: The cell that asks.
        settings: The kernel's settings that are no machine's own.
        changed: The limits that were set for the kernel by ``%llm_quota``.
        routes: Addresses of servers that have a name of their own.
        base: The request of a row but for its prompt, and without its schema.
        type_: What an answer must be.
        wish: How calls are made; ``max_cost`` is that of the whole run.
        at_once: Rows of a partition on their way at the same time; None lets the gate find out.
        since: When the run began, in seconds since 1970.
        shared: Whether workers share cache, limits and pace through Redis.
        group: The kernel's machine and group of processes, which gets its interrupts.
        prompt: The template, where the worker has the rows' cells; else empty.
        names: The names of the notebook that it takes.
    """

    run: str
    kernel: str
    user: str
    cell: str
    settings: Mapping[str, Any]
    changed: Mapping[Any, Any]
    routes: Mapping[str, str]
    base: Request
    type_: Any
    wish: Wish
    at_once: int | None
    since: float
    shared: bool
    group: tuple[str, int]
    prompt: str = ""
    names: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def request(self) -> Request:
        """The request of a row but for its prompt."""
        return replace(self.base, schema=None if self.type_ is str else schema_for(self.type_))

    @property
    def limits(self) -> list[Limit]:
        """The limits that the run itself has."""
        most = self.wish.max_cost
        return (
            []
            if most is None
            else [Limit("run", "usd", nanos(most), None, command="--max-cost {}")]
        )


def run_name() -> str:
    """A name for a run."""
    return uuid.uuid4().hex


def process_group() -> tuple[str, int]:
    """This machine and group of processes; Windows has none."""
    return socket.gethostname(), os.getpgrp() if hasattr(os, "getpgrp") else os.getpid()


def plain_settings(settings: LLMMagic, *, shared: bool) -> dict[str, Any]:
    """The settings that are no machine's own, as plain values."""
    values = {
        name: str(value) if isinstance(value, str) else value
        for name, value in settings.trait_values(config=True).items()
        if name not in _OF_A_MACHINE
    }
    # What no cassette has is asked on the worker; what is replayed never gets there.
    values["mode"] = "live"
    if not shared:
        values["store"] = "disk"
    return values


def spec_for(
    session: Session,
    job: Job,
    run: str,
    *,
    shared: bool,
    cell: str | None = None,
    template: bool = False,
) -> Spec:
    """What workers must know of a job.

    Args:
        session: The kernel's.
        job: What is to be done.
        run: The run's name.
        shared: Whether the workers share a store.
        cell: The cell that asks; None for the one that runs.
        template: Whether they have the rows' cells, and write the prompts.
    """
    desk, names = session.desk, job.template.names if template else {}
    uses = job.template.uses - set(job.source.names)
    return Spec(
        run=run,
        kernel=desk.kernel,
        user=desk.user,
        cell=session.cell if cell is None else cell,
        settings=plain_settings(session.settings, shared=shared),
        changed=dict(desk.changed),
        routes=dict(session.routes),
        base=replace(job.base, schema=None),
        type_=job.type_,
        wish=job.wish,
        at_once=job.at_once,
        since=time.time(),
        shared=shared,
        group=process_group(),
        prompt=job.template.source if template else "",
        names={name: names[name] for name in uses if name in names},
    )


def packed(spec: Spec) -> bytes:
    """A spec as bytes: classes of the notebook go by value where cloudpickle is installed.

    Raises:
        PromptError: Something of it cannot be sent to another process.
    """
    try:
        return _bytes(spec)
    except Exception as error:
        raise PromptError(
            f"What the run needs cannot be sent to workers: {type(error).__name__}: {error}; "
            "nothing was sent.",
            fix="The schema and the notebook's names in the prompt must be what pickle or "
            "cloudpickle takes (pip install cloudpickle). Or render the prompt into a column.",
        ) from error


def _bytes(spec: Spec) -> bytes:
    try:
        from cloudpickle import Pickler
    except ImportError:
        return pickle.dumps(spec)

    class ByValue(Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            # A dataclass of the notebook would come with another one, which then is a default.
            return "MISSING" if value is MISSING else super().reducer_override(value)

    file = BytesIO()
    ByValue(file).dump(spec)
    return file.getvalue()


def unpacked(data: bytes) -> Spec:
    """The spec in bytes, on a worker.

    Raises:
        LLMError: It takes what is not here.
    """
    try:
        spec: Spec = pickle.loads(data)  # noqa: S301
        _ = spec.request
    except LLMError:
        raise
    except Exception as error:
        raise LLMError(
            f"A worker ({socket.gethostname()}) cannot read what it is to do: "
            f"{type(error).__name__}: {error}; nothing was sent.",
            fix="Workers need the same versions of Python and llm_magic, and the modules that the "
            "schema comes from. A class that is written in the notebook travels by itself.",
        ) from error
    return spec


def session_for(spec: Spec) -> Session:
    """A session that asks for the spec's kernel, on a worker.

    Raises:
        StoreError: The worker is to share what it cannot.
    """
    values = dict(spec.settings)
    if spec.shared and os.environ.get(_STORE):
        # With the password, or by the name that Redis has from here.
        del values["store"]
    settings = LLMMagic(config=Config({"LLMMagic": values}))
    settings.read_environment()
    if spec.shared and settings.store == "disk":
        raise StoreError(
            f"{_STORE} is disk on a worker ({socket.gethostname()}), so that it would share "
            "nothing with the others; nothing was sent.",
            fix=f"Unset {_STORE} there, or give it the address of the notebook's Redis.",
        )
    desk = Desk(settings, kernel=spec.kernel, user=spec.user, run=spec.run)
    desk.changed.update(spec.changed)
    session = Session(settings=settings, desk=desk)
    session.routes.update(spec.routes)
    return session
