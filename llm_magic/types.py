"""The plain data that passes between the layers: Message, Request, Response, Usage, Wish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Generic

from llm_magic.frames import frame
from llm_magic.units import ago, usd

if TYPE_CHECKING:
    # Type checkers have this module always; a program does not need it.
    from typing_extensions import TypeVar

    from llm_magic.structured import Schema

    # A bare Response is one of any value.
    T_co = TypeVar("T_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    T_co = TypeVar("T_co", covariant=True)

Message = dict[str, Any]
"""A chat message as the wire wants it: ``{"role": ..., "content": str or list of parts}``."""


def text_of(message: Message) -> str:
    """The words of a message, with ``[image_url]`` where it has an image."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", f"[{part['type']}]")) for part in content)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, as the provider counted them.

    Attributes:
        input_tokens: Tokens of the prompt, those read from the provider's cache included.
        output_tokens: Tokens of the answer, those of its reasoning included.
        cached_tokens: The part of ``input_tokens`` that the provider read from its own cache.
        reasoning_tokens: The part of ``output_tokens`` spent on reasoning.
        cache_write_tokens: The part of ``input_tokens`` that the provider wrote to its cache, which
            some price higher.
        estimated: True when the server sent no usage and the counts are 4 bytes a token.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        counts = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__slots__
            if name != "estimated"
        }
        return Usage(**counts, estimated=self.estimated or other.estimated)

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def __str__(self) -> str:
        about = "≈ " if self.estimated else ""
        return f"{about}{self.input_tokens:,} in / {self.output_tokens:,} out"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, before a server's own spelling of it.

    Attributes:
        messages: System message, the former turns of a conversation, and the prompt.
        model: Model name, or empty for the only model of a local server.
        base_url: URL of the server up to and including ``/v1``.
        max_tokens: Cap on the answer in tokens, reasoning included; None sends no cap.
        fields: Further fields of the JSON body, sent as they are.
        schema: What the answer must be; None for prose.
    """

    messages: tuple[Message, ...]
    model: str
    base_url: str
    max_tokens: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    schema: Schema | None = None


@dataclass(frozen=True, eq=False)
class Response(Generic[T_co]):
    """A model's answer and what it took to get it.

    In annotations the type of ``value`` may stand behind it: ``Response[list[Review]]``.

    Attributes:
        text: The answer, without reasoning.
        value: What a caller computes with: ``text``, or with a schema the object read from it.
        usage: Tokens in and out.
        cost: Price of this call in USD: 0 when nothing was sent, None when it is not known.
        cached: True when the answer was there already (cache, cassette, or an equal call at the
            same time) and nothing was sent.
        model: The model that the server says it used.
        finish_reason: Why the answer ended: ``"stop"``, ``"tool_calls"``, or ``"interrupted"``.
        reasoning: The model's reasoning, where the server shows it.
        request: The JSON body that was sent.
        attempts: HTTP requests made.
        seconds: From the call to the end of the answer.
        saved: What a cached answer had cost, in USD; None when that is not known.
        age: Seconds since a cached answer came; None for one from a cassette.
    """

    text: str
    usage: Usage
    model: str
    finish_reason: str
    reasoning: str = ""
    value: T_co = None  # type: ignore[assignment]
    cost: Decimal | None = None
    cached: bool = False
    request: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 1
    seconds: float = 0.0
    saved: Decimal | None = None
    age: float | None = None

    def __str__(self) -> str:
        return self.text

    def frame(self) -> Any:
        """The value as a data frame: a row for each item of a list, a column for each field.

        Returns:
            A pandas frame; a polars one where only polars is imported or installed.

        Raises:
            TypeError: The value is neither a list of items nor an object with fields.
            ImportError: Neither pandas nor polars is installed.
        """
        return frame(self.value)

    def __repr__(self) -> str:
        return f"<Response {self.status()}; see .text, .value, .usage, .model>"

    def status(self) -> str:
        """One line: model, tokens, price, seconds; or what a cached answer saved."""
        parts = [self.model or "unknown model", str(self.usage)]
        if self.usage.cached_tokens:
            parts[-1] += f" ({self.usage.cached_tokens:,} read from the provider's cache)"
        if self.cached:
            parts.append("recorded" if self.age is None else f"cached {ago(self.age)}")
            if self.saved != 0:
                parts.append(f"saved {usd(self.saved)}" if self.saved else usd(None))
            return " · ".join(parts)
        if self.finish_reason != "interrupted":
            about = "≈ " if self.usage.estimated and self.cost else ""
            parts.append("free" if self.cost == 0 else about + usd(self.cost))
        if self.attempts > 1:
            parts.append(f"{self.attempts} attempts")
        return " · ".join([*parts, f"{self.seconds:.1f} s"])


class Comparison(dict[str, Response[Any]]):
    """The answers of several models to one prompt, by the model that was asked."""

    @property
    def value(self) -> dict[str, Any]:
        """What a caller computes with: each model's ``value``."""
        return {model: response.value for model, response in self.items()}

    @property
    def cost(self) -> Decimal | None:
        """Price of all calls in USD; None when one of them is not known."""
        costs = [response.cost for response in self.values()]
        return None if None in costs else sum(filter(None, costs), Decimal(0))

    def frame(self) -> Any:
        """A data frame with a row for each model: value, tokens, cost in USD, seconds.

        Raises:
            ImportError: Neither pandas nor polars is installed.
        """
        return frame(
            [
                {
                    "model": model,
                    "value": each.value,
                    "input_tokens": each.usage.input_tokens,
                    "output_tokens": each.usage.output_tokens,
                    "cost": None if each.cost is None else float(each.cost),
                    "seconds": each.seconds,
                }
                for model, each in self.items()
            ]
        )

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self)}; see [model].text, .value, .frame()>"

    # Unlike a dict it can be looked up by what it is: the kernel remembers which are on screen.
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


@dataclass(frozen=True, slots=True)
class Wish:
    """How the user wants one call to be made.

    Attributes:
        fresh: Ask, whatever is stored, and store the new answer.
        no_cache: Neither look up nor store.
        max_cost: The most that it may come to, in USD.
        repairs: How often an answer that does not fit the schema is asked again.
    """

    fresh: bool = False
    no_cache: bool = False
    max_cost: Decimal | None = None
    repairs: int = 1
