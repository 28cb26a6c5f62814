"""The two ways in: rows of a kernel to workers, and a Dask frame that asks as it is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llm_magic.distributed.pools import pool_for
from llm_magic.distributed.shipped import Team
from llm_magic.distributed.spec import packed, run_name, spec_for
from llm_magic.distributed.worker import run_partition
from llm_magic.errors import PromptError
from llm_magic.outcome import Outcome
from llm_magic.table.cells import TEXT

if TYPE_CHECKING:
    from llm_magic.job import Job
    from llm_magic.session import Session


def spread(session: Session, job: Job, on: Any, *, unshared: bool) -> Job:
    """The job with the workers that are to ask its rows.

    Args:
        session: The kernel's.
        job: What is to be done.
        on: A Dask ``Client`` or an executor.
        unshared: Whether each worker may have a cache and limits of its own.

    Raises:
        PromptError: There is no shared store, and nobody has said that none is needed; or it
            cannot be done there.
    """
    _check_shared(session, job, unshared=unshared)
    return replace(job, team=Team(pool_for(on), shared=not unshared))


def lazy_frame(session: Session, frame: Any, make: Callable[[Any], Job], *, unshared: bool) -> Any:
    """A Dask frame whose partitions ask for their rows when they are computed.

    Args:
        session: The kernel's.
        frame: The Dask frame or series.
        make: Makes the job of a pandas frame.
        unshared: Whether each worker may have a cache and limits of its own.

    Raises:
        PromptError: There is no shared store, and nobody has said that none is needed; or the
            prompt makes no sense.
    """
    if frame.ndim == 1:
        frame = frame.to_frame(TEXT if frame.name in (None, "") else frame.name)
    job = make(frame._meta)
    _check_shared(session, job, unshared=unshared)
    data = packed(spec_for(session, job, run_name(), shared=not unshared, template=True))
    empty = Outcome(job.source, job.base.schema)
    return frame.map_partitions(run_partition, data, meta=empty.frame(None))


def _check_shared(session: Session, job: Job, *, unshared: bool) -> None:
    if unshared:
        if job.wish.max_cost is not None:
            raise PromptError(
                f"max_cost={job.wish.max_cost} cannot be kept by workers that share nothing: each "
                "would spend it; nothing was sent.",
                fix="Set store = redis://... and leave unshared away, or leave max_cost away.",
            )
        return
    if session.settings.store != "disk":
        return
    raise PromptError(
        "Rows on workers need a shared store: without one, limits, budget and rate would be kept "
        "by each worker for itself, and a row that is done again would be paid again; nothing was "
        "sent.",
        fix="Set one, here and on the workers: LLM_MAGIC_STORE=redis://HOST:6379/0. Or let each "
        "worker have its own: unshared=True (--unshared)",
    )
