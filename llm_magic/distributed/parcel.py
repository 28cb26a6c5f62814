"""What comes back from a worker: answers and errors as plain data, whatever classes they had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from llm_magic import errors
from llm_magic.errors import LLMError
from llm_magic.types import Response, Usage

_PLAIN = (str, int, float, bool, type(None), Decimal)

Plain = tuple[Any, ...]
"""An answer or an error as a tuple of plain values."""


@dataclass
class Parcel:
    """What came of a chunk.

    Attributes:
        rows: What came of each, in that order: place, whether it is an answer, answer or error.
        ended: Why not all rows were done; None where they were, or the run was stopped.
        spent: Nano-dollars that the chunk came to.
        seconds: How long it took.
        who: The worker.
        window: Requests that it may have under way.
        rate: Requests a second that it keeps to; None where it knows no limit.
        troubles: What it worked around, and how to mend it.
        aside: Whether answers may be kept where only this worker finds them.
    """

    rows: list[tuple[int, bool, Plain]] = field(default_factory=list)
    ended: Plain | None = None
    spent: int = 0
    seconds: float = 0.0
    who: str = ""
    window: int = 0
    rate: float | None = None
    troubles: Sequence[tuple[str, str]] = ()
    aside: bool = False


def plain_response(response: Response) -> Plain:
    """A response without its value, which is read from the text again where it is needed."""
    usage = response.usage
    counts = tuple(getattr(usage, name) for name in Usage.__slots__)
    return (
        response.text,
        counts,
        response.model,
        response.finish_reason,
        response.reasoning,
        response.cost,
        response.cached,
        response.attempts,
        response.seconds,
        response.saved,
        response.age,
    )


def response_of(plain: Plain) -> Response:
    """The response; its value is the text."""
    text, counts, model, finish, reasoning, cost, cached, attempts, seconds, saved, age = plain
    return Response(
        text=text,
        value=text,
        usage=Usage(*counts),
        model=model,
        finish_reason=finish,
        reasoning=reasoning,
        cost=cost,
        cached=cached,
        attempts=attempts,
        seconds=seconds,
        saved=saved,
        age=age,
    )


def plain_error(error: LLMError) -> Plain:
    """An error: its class by name, its words, and what of its data is plain."""
    data: dict[str, Any] = {
        name: value for name, value in vars(error).items() if isinstance(value, _PLAIN)
    }
    if error.usage is not None:
        data["usage"] = tuple(getattr(error.usage, name) for name in Usage.__slots__)
    words = str(error.args[0]) if error.args else ""
    return type(error).__name__, words, data


def error_of(plain: Plain) -> LLMError:
    """The error."""
    name, words, data = plain
    if "usage" in data and data["usage"] is not None:
        data = {**data, "usage": Usage(*data["usage"])}
    kind = getattr(errors, name, LLMError)
    made = kind(words) if isinstance(kind, type) and issubclass(kind, LLMError) else LLMError(words)
    made.__dict__.update(data)
    return made
