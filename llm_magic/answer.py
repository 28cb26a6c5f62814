"""An answer while it arrives, and the verdict on it when it ends."""

from __future__ import annotations

import time
from typing import Any

from llm_magic.decode import Event, Finish, Model, Piece, Sent
from llm_magic.errors import (
    InvalidAnswer,
    LLMError,
    ProviderError,
    Refused,
    StreamBroken,
    Truncated,
)
from llm_magic.types import Request, Response, Usage, text_of

_BROKEN_REASONS = frozenset({"error", "abort", "aborted", "cancelled", "canceled"})


class Answer:
    """What has arrived so far. Appending only: no work for a piece depends on those before.

    Args:
        request: What is asked.
        before: The answer that did not fit and is asked again.

    Attributes:
        request: What was asked.
        before: The error of the answer before this one, whose usage counts with it.
        body: The JSON body that was sent; empty before.
        model: The model that answers, as the server says.
        finish: The server's reason for the end; ``"interrupted"`` is ours.
        usage: The provider's count, once it has come.
        attempts: HTTP requests made.
        billable: Whether the provider may count the last of them.
        finished: Whether the server has said that the answer is at its end.
    """

    def __init__(self, request: Request, before: InvalidAnswer | None = None) -> None:
        self.request = request
        self.before = before
        self.body: dict[str, Any] = {}
        self.model = ""
        self.finish = ""
        self.usage: Usage | None = None
        self.attempts = before.attempts if before else 0
        self.billable = self.finished = False
        self.words: dict[str, list[str]] = {"text": [], "reasoning": [], "refusal": []}
        self._began = time.monotonic()

    def take(self, event: Event) -> None:
        """Keeps what an event says."""
        if type(event) is Piece:
            self.words[event.kind].append(event.text)
        elif type(event) is Usage:
            self.usage = event
        elif type(event) is Finish:
            self.finish, self.finished = event.reason, True
        elif type(event) is Model:
            self.model = event.name
        elif type(event) is Sent:
            self.body = event.body

    @property
    def begun(self) -> bool:
        """Whether anything of the answer or about it has come."""
        return self.usage is not None or bool(self.finish) or any(self.words.values())

    def text(self, kind: str = "text") -> str:
        """All words of a kind so far."""
        return "".join(self.words[kind])

    def judge(self) -> None:
        """Raises what is wrong with an answer that came to its end.

        Raises:
            StreamBroken: Nobody said that it is complete.
            Refused: By the model, or by the content filter.
            Truncated: At the output limit.
        """
        cap, refusal = self.request.max_tokens, self.text("refusal")
        model = self.model or self.request.model
        if not self.finish or self.finish in _BROKEN_REASONS:
            raise StreamBroken(_broken(self))
        if refusal:
            raise Refused(
                f"{model} declined: {' '.join(refusal.split())[:300]}",
                fix="Change the prompt and run the cell again.",
            )
        if self.finish == "content_filter":
            raise Refused(
                f"The provider's content filter stopped the answer of {model}.",
                fix="Change the prompt and run the cell again.",
                reason="content_filter",
            )
        if self.finish == "length":
            limit = f"max_tokens={cap}" if cap is not None else "the model's own output limit"
            raise Truncated(
                f"The answer of {model} was cut at {limit}; what came is in sys.last_value.text.",
                fix=f"Let it be longer: %%llm --max-tokens {max(256, 4 * (cap or 1024))}",
            )

    def stamp(self, error: LLMError) -> None:
        """Gives an error the data of its call, and the way to the partial text."""
        error.text = (
            self.text() or self.text("refusal") or (self.before.text if self.before else "")
        )
        error.attempts = self.attempts
        error.model = self.model or self.request.model or None
        if isinstance(error, StreamBroken) and not error.fix:
            error.fix = "Run the cell again to ask anew."
        if error.text and isinstance(error, StreamBroken | ProviderError):
            part = f"The {len(error.text):,} characters that came are in sys.last_value.text."
            error.fix = f"{part} {error.fix}"
        # A call that the server turned away used nothing.
        if self.billable:
            error.usage = self.total()
        elif self.before:
            error.usage = self.before.usage

    def received(self) -> int:
        """Bytes of the answer, its reasoning included."""
        return sum(_bytes(self.text(kind)) for kind in self.words)

    def counted(self) -> Usage:
        """The provider's own count, else an estimate of 4 bytes a token, marked as one."""
        if self.usage:
            return self.usage
        sent = sum(len(text_of(message).encode()) for message in self.request.messages)
        reasoning = _bytes(self.text("reasoning"))
        return Usage(
            input_tokens=-(-sent // 4),
            output_tokens=-(-self.received() // 4),
            reasoning_tokens=-(-reasoning // 4),
            estimated=True,
        )

    def total(self) -> Usage:
        """Tokens of this answer and of those before it."""
        before = self.before.usage if self.before else None
        return before + self.counted() if before else self.counted()

    def response(self) -> Response:
        """The answer as the caller gets it."""
        text = self.text()
        return Response(
            text=text,
            value=text,
            usage=self.total(),
            model=self.model or self.request.model,
            finish_reason=self.finish,
            reasoning=self.text("reasoning"),
            request=self.body,
            attempts=self.attempts,
            seconds=time.monotonic() - self._began,
        )


def _bytes(text: str) -> int:
    # Models do send half a surrogate pair.
    return len(text.encode(errors="surrogatepass"))


def _broken(answer: Answer) -> str:
    if answer.finish:
        return f"The server gave the answer up (finish_reason {answer.finish!r})."
    if not any(answer.words.values()):
        return "The server closed an empty answer; some do so when the prompt is too long for them."
    return "The answer ended without the server calling it complete (no finish_reason)."
