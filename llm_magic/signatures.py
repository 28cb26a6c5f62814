"""What the functions of ``api`` take, for type checkers alone: no program loads this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol, TypedDict

from typing_extensions import TypeVar


class CallOptions(TypedDict, total=False):
    """What ``ask``, ``aask`` and ``map_rows`` share; ``ask`` says what each means."""

    model: str | None
    system: str | None
    temperature: float | None
    max_tokens: int | None
    seed: int | None
    effort: str | None
    params: Mapping[str, Any] | None
    fresh: bool
    no_cache: bool
    max_cost: float | Decimal | None
    repairs: int


class AskOptions(CallOptions, total=False):
    """The options of ``ask`` and ``aask`` but ``schema``, which decides about the answer's type."""

    images: Sequence[Any]
    chat: str | None


class MapOptions(CallOptions, total=False):
    """The options of ``map_rows``."""

    schema: Any
    concurrency: int | Literal["auto"]
    sample: int | None
    quiet: bool
    on: Any
    unshared: bool


class DataFrame(Protocol):
    """A frame of pandas, polars, pyarrow or Dask, of which ours has the same type."""

    @property
    def columns(self) -> Any:
        """Names of its columns, or the columns."""
        ...


FrameT_co = TypeVar("FrameT_co", bound=DataFrame, covariant=True)


class Series(Protocol[FrameT_co]):
    """A column of pandas or polars: the answers stand beside it in a frame."""

    def to_frame(self) -> FrameT_co:
        """The frame that has it alone."""
        ...
