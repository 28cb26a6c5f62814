"""Every error that a user can meet, as one tree.

    LLMError
    ├── PromptError             the cell, its options or its template are wrong; nothing was sent
    ├── QuotaExceeded           a limit of yours would be passed; nothing was sent
    ├── ReplayMissing           replayed, and the cassette has no answer to this prompt
    ├── StoreError              the ledger or a cassette cannot be used
    ├── Refused                 the model or the provider's content filter declined
    ├── Truncated               the answer was cut at the output limit
    ├── InvalidAnswer           the answer is not what ``--schema`` asks for
    ├── StreamBroken            the answer stopped before the server said that it was complete
    └── ProviderError           the server answered with an error, or not at all
        ├── RateLimited
        ├── OutOfCredit
        ├── AuthenticationFailed
        ├── UnknownModel
        ├── ContextTooLong
        └── ServerUnreachable
    Interrupted                 a KeyboardInterrupt that carries the partial answer

A notebook shows an error as its message and the next command to type, without a traceback, and
still publishes an ``error`` message: nbclient, papermill and nbval see the cell fail. (A
``UsageError`` would pass nbval unseen.)
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llm_magic import plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from llm_magic.types import Response, Usage


class LLMError(Exception):
    """The root of every error that llm_magic raises.

    Args:
        message: What was refused, the value, the limit, and what was not done.
        fix: The next command to type, shown on a line of its own.
        **data: Values for the attributes below.

    Attributes:
        text: What had arrived of the answer; empty when nothing had.
        usage: Tokens of the failed call (estimated when the server did not say), or None when
            nothing was sent.
        attempts: HTTP requests made for this call.
        model: The model asked, or None when none was chosen yet.
    """

    text: str = ""
    usage: Usage | None = None
    attempts: int = 0
    model: str | None = None

    def __init__(self, message: str = "", *, fix: str = "", **data: Any) -> None:
        # Only positional args reach BaseException.args, so that pickling (message, then the
        # instance's __dict__) gives back the same error in another process.
        super().__init__(message)
        self.fix = fix
        self.__dict__.update(data)

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n{self.fix}" if self.fix else message

    def _render_traceback_(self) -> list[str]:
        """Lines that IPython prints instead of a traceback: one to three."""
        # The words of a server are in it: they must not drive the terminal.
        return plain.lines(f"{type(self).__name__}: {self}").splitlines()


class PromptError(LLMError, ValueError):
    """The cell, its options or its template are wrong. Nothing was sent.

    Attributes:
        undefined: Whether the template names what is nowhere.
    """

    undefined: bool = False


class QuotaExceeded(LLMError):
    """A limit that you set would be passed. Nothing was sent.

    Attributes:
        scope: Whose limit: ``"kernel"``, ``"user"``, ``"team"``, or ``--max-cost`` of a ``"call"``
            or of a ``"run"`` over rows.
        metric: What it limits: ``"requests"``, ``"tokens"`` or ``"usd"``.
        cap: The limit: a number of requests or tokens, or USD as a Decimal.
        used: What counts against it now, holds of running calls included.
        asked: What this call can come to at most.
        retry_at: Unix time in seconds from which this call fits, or None when waiting alone does
            not help.
    """

    scope: str = "kernel"
    metric: str = "requests"
    cap: Any = 0
    used: Any = 0
    asked: Any = 0
    retry_at: float | None = None


class ReplayMissing(LLMError):
    """Only recorded answers are allowed, and there is none for this prompt. Nothing was sent.

    Attributes:
        prompt: The words of the prompt.
        nearest: The words of the recorded prompt that is most like it; empty when there is none.
        diff: The two as a unified diff.
    """

    prompt: str = ""
    nearest: str = ""
    diff: str = ""


class StoreError(LLMError):
    """A file that a promise depends on (the ledger, a cassette) cannot be used.

    Attributes:
        damaged: Whether nothing helps but to begin a new one.
        passing: Whether it may be over in a moment: a Redis that does not answer, or starts.
    """

    damaged: bool = False
    passing: bool = False


class StoreWarning(UserWarning):
    """A cache or ledger that is worked around: what happened, and how to mend it."""


class RowsWarning(UserWarning):
    """A run over rows that ended before all of them were done, and its table is not whole."""


class ChatWarning(UserWarning):
    """Turns of a conversation that went because a cell before theirs was run again."""


class Refused(LLMError):
    """The model declined, or the provider's content filter stopped prompt or answer.

    Attributes:
        text: The model's own words of refusal, or the part of the answer before the filter.
        reason: ``"refusal"`` or ``"content_filter"``.
    """

    reason: str = "refusal"


class Truncated(LLMError):
    """The answer was cut at the output limit; ``text`` holds what arrived."""


class InvalidAnswer(LLMError):
    """The answer is no value of the type, nor were those asked for with its errors shown.

    Attributes:
        errors: What is wrong with the last one: ``place: what is wanted (got input)``.
        text: The last answer.
        usage: Tokens of all attempts.
        cost: Price of all attempts in USD; None when it is not known.
    """

    errors: tuple[str, ...] = ()
    cost: Decimal | None = None


class StreamBroken(LLMError):
    """The answer ended, stalled or became unreadable before the server called it complete."""


class ProviderError(LLMError):
    """The server answered with an error, or did not answer.

    Attributes:
        status: HTTP status, or None when there was none.
        body: The server's error body as parsed, with any API key removed.
        retryable: Whether sending the same request again may help.
        retry_after: Seconds that the server asked to wait, or None.
        retry_at: Unix time in seconds from which the server takes requests again, or None.
        headers: What the server said of its limits, by names in lower case.
    """

    status: int | None = None
    body: Any = None
    headers: Mapping[str, str] = MappingProxyType({})
    retryable: bool = False
    retry_after: float | None = None
    retry_at: float | None = None


class RateLimited(ProviderError):
    """Too many requests or tokens in the provider's window."""


class OutOfCredit(ProviderError):
    """The account has no credit or has reached its own spending limit. Never retried."""


class AuthenticationFailed(ProviderError):
    """The API key is missing, wrong, or not allowed to do this."""


class UnknownModel(ProviderError):
    """The server does not have this model, or several, and none was named.

    Attributes:
        available: Model names that the server offers, as far as known.
    """

    available: tuple[str, ...] = ()


class ContextTooLong(ProviderError):
    """Prompt and answer do not fit the model's context window."""


class ServerUnreachable(ProviderError):
    """No connection, or no answer in time."""


class Interrupted(KeyboardInterrupt):
    """A Ctrl-C, kernel interrupt or Stop that reached a call on its way.

    A ``KeyboardInterrupt``, so that Run All stops and ``except Exception`` does not swallow it.

    Attributes:
        response: The partial answer, with ``finish_reason="interrupted"``.
        text: Its text.
        by_button: Whether it was a Stop button, which means this answer alone.
    """

    by_button: bool = False

    def __init__(self, message: str, response: Response) -> None:
        super().__init__(message, response)
        self.response = response
        self.text: str = response.text

    def __str__(self) -> str:
        return str(self.args[0])

    def _render_traceback_(self) -> list[str]:
        return plain.lines(f"Interrupted: {self}").splitlines()
