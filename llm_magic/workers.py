"""Where the rows of a table are asked: here, on workers, or as a Dask frame is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_magic.errors import PromptError
from llm_magic.job import Job
from llm_magic.session import Session


def staffed(session: Session, job: Job, on: Any, *, unshared: bool) -> Job:
    """The job with the workers that are to ask its rows, where the user names some.

    Raises:
        PromptError: They cannot.
    """
    if on is None:
        if unshared:
            raise PromptError(
                "unshared is for rows on workers, and none are named; nothing was sent.",
                fix="Name them: on=client (--on client)",
            )
        return job
    from llm_magic.distributed import spread

    return spread(session, job, on, unshared=unshared)


def is_lazy(frame: Any) -> bool:
    """Whether a table is a frame of Dask, whose rows are asked when it is computed."""
    return type(frame).__module__.partition(".")[0] == "dask" and hasattr(frame, "map_partitions")


def lazily(
    session: Session,
    frame: Any,
    make: Callable[[Any], Job],
    *,
    on: Any,
    unshared: bool,
    sample: int | None = None,
    plan: bool = False,
) -> Any:
    """The Dask frame with its new columns; nothing is asked before it is computed.

    Args:
        session: The kernel's.
        frame: The Dask frame.
        make: Makes the job of a pandas frame.
        on: Must be None.
        unshared: Whether each worker may have a cache and limits of its own.
        sample: Must be None.
        plan: Must be false.

    Raises:
        PromptError: It cannot be asked there, or the prompt makes no sense.
    """
    if on is not None:
        raise PromptError(
            "The rows of a Dask frame are asked by the workers that compute it, and on= names "
            "others; nothing was sent.",
            fix="Leave on= away (--on): the frame is computed by the client that is there.",
        )
    if plan or sample is not None:
        raise PromptError(
            "The rows of a Dask frame are not there before it is computed, for a sample or a "
            "dry run; nothing was sent.",
            fix=f"Take some of its rows: frame.head({sample or 100})",
        )
    from llm_magic.distributed import lazy_frame

    return lazy_frame(session, frame, make, unshared=unshared)
