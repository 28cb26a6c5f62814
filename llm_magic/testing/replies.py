"""What the scripted server is told to say: a `Reply`, and the steps that one is played in."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, Literal, get_args

Fault = Literal[
    "close_before_headers", "cut", "reset", "end_early", "done_without_finish",
    "error_in_stream", "event_error", "old_vllm_error", "field_error", "raw_line",
    "stall", "stall_pings", "malformed_json", "invalid_utf8", "split_utf8",
    "empty", "hang_after_finish",
]  # fmt: skip
Finish = Literal["stop", "length", "content_filter", "tool_calls"]
ReasoningField = Literal["reasoning_content", "reasoning", "think"]
Usage = Literal["own_chunk", "finish_chunk", "every_chunk", "never"]
Role = Literal["first", "every", "never", "null", "with_text"]
Ids = Literal["same", "changing"]


class Signal(enum.Enum):
    """A step that is neither bytes nor a pause."""

    HANG = "keep the connection open, silently, until the client leaves"
    RESET = "reset the connection (TCP RST)"
    CLOSE = "close the connection (TCP FIN) in the middle of the body"


HANG: Final = Signal.HANG
RESET: Final = Signal.RESET
CLOSE: Final = Signal.CLOSE


class ContentBytes(bytes):
    """Bytes that complete one content chunk; the server counts these."""


@dataclass(frozen=True)
class Repeat:
    """Write `data` every `interval` seconds until the client leaves."""

    data: bytes
    interval: float


# bytes are written as they are (HTTP head and chunk framing included), a float is a pause in s.
Step = bytes | float | Signal | Repeat


@dataclass(frozen=True)
class Reply:
    """One answer of the scripted server: its text, its shape on the wire, its pace, its fault.

    A content chunk is one that carries a piece of the text, the reasoning or the refusal.

    Attributes:
        text: The answer.
        reasoning: Sent before the text, in `reasoning_field` ("think": as `<think>…</think>`
            at the start of the text).
        refusal: Sent as `refusal` instead of a text.
        finish: The finish_reason; None: the stream ends normally with a null one.
        model: The model name in the answer; None: the requested one.
        deltas: The exact pieces of the text; None: word-like pieces of about 4 characters.
        usage: Where the token counts are; "own_chunk" only if the request asks for them.
        prompt_tokens: None: 1 for each 4 characters of the messages.
        completion_tokens: None: 1 for each 4 characters of reasoning, refusal and text.
        cached_tokens: How many prompt tokens the usage calls cached.
        role: Which chunks have a `role` ("null": every one, with the value null).
        ids: Whether all chunks have the same `id`.
        empty_deltas: Add deltas whose content is "", null or missing.
        first_chunk_without_choices: Begin with a chunk with `choices: []`, as Azure does.
        null_choices: Add a chunk with `choices: null`.
        one_chunk: Send the whole text in one delta.
        last_text_on_finish: Put the last piece of text on the chunk with the finish_reason.
        done: Send `[DONE]`.
        content_type: Of the stream; "" for no such header.
        crlf: End the lines of the stream with CR LF.
        stream: False: ignore `"stream": true` and answer with one JSON body.
        delay: Seconds before the headers.
        first_token_delay: Seconds between the headers and the first content chunk.
        tokens_per_second: Content chunks in a second; None: as fast as the socket takes them.
        ping_interval: Seconds between the pings of "stall_pings".
        status: The HTTP status; another one than 200 sends `error` or a plain error body.
        error: JSON body sent, exactly as given, instead of an answer.
        raw: Body sent instead of an answer, with the content type `raw_type`.
        headers: More response headers.
        fault: What goes wrong.
        after: Content chunks before the fault; 0: the fault comes before any chunk.
        rejects: Request fields that are answered with 400 instead.
    """

    text: str = ""
    _: KW_ONLY
    reasoning: str = ""
    reasoning_field: ReasoningField = "reasoning_content"
    refusal: str = ""
    finish: Finish | None = "stop"
    model: str | None = None
    deltas: Sequence[str] | None = None
    usage: Usage = "own_chunk"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0
    role: Role = "first"
    ids: Ids = "same"
    empty_deltas: bool = False
    first_chunk_without_choices: bool = False
    null_choices: bool = False
    one_chunk: bool = False
    last_text_on_finish: bool = False
    done: bool = True
    content_type: str = "text/event-stream"
    crlf: bool = False
    stream: bool = True
    delay: float = 0.0
    first_token_delay: float = 0.0
    tokens_per_second: float | None = None
    ping_interval: float = 0.1
    status: int = 200
    error: Any = None
    raw: bytes | None = None
    raw_type: str = "text/html"
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    after: int = 2
    rejects: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check what a typing error would otherwise turn into a silently harmless reply."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {allowed}")
        if isinstance(self.rejects, str):
            raise ValueError(f"rejects must be a sequence of names: ({self.rejects!r},)")
        if self.deltas is not None:
            joined = "".join(self.deltas)
            if self.text not in ("", joined):
                raise ValueError(f"deltas give {joined!r}, but text is {self.text!r}")
            object.__setattr__(self, "text", joined)
        if self.fault == "split_utf8" and self.text.isascii():
            raise ValueError("split_utf8 needs a text with a character outside ASCII")
        if self.tokens_per_second is not None and self.tokens_per_second <= 0:
            raise ValueError(f"tokens_per_second must be above 0, not {self.tokens_per_second}")

    @property
    def line_end(self) -> bytes:
        """What ends a line of the stream."""
        return b"\r\n" if self.crlf else b"\n"

    def rejected(self, request: Mapping[str, Any]) -> str | None:
        """Return the first request field that this reply rejects, if there is one."""
        return next((name for name in self.rejects if name in request), None)


_CHOICES: Final[Mapping[str, tuple[object, ...]]] = {
    "fault": (*get_args(Fault), None),
    "finish": (*get_args(Finish), None),
    "reasoning_field": get_args(ReasoningField),
    "usage": get_args(Usage),
    "role": get_args(Role),
    "ids": get_args(Ids),
}
