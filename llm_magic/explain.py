"""A server's error answer, in words that say what to do: HTTP status and body to an LLMError."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_magic.errors import (
    AuthenticationFailed,
    ContextTooLong,
    LLMError,
    OutOfCredit,
    ProviderError,
    RateLimited,
    Refused,
    UnknownModel,
)

# Which words mean what, where the status alone does not say it. The bodies behind these were
# recorded from llama-server, vLLM, llama-cpp-python, LiteLLM, OpenAI, Azure and Anthropic.
_CONTEXT = re.compile(
    r"context[ _](length|size|window)|exceed_context|maximum context|contextwindowexceeded"
    r"|prompt is too long|too many (input )?tokens",
    re.IGNORECASE,
)
_CREDIT = re.compile(
    r"insufficient_quota|credit_balance|credit balance|spend_limit|spending limit|billing"
    r"|insufficient (credits|balance)",
    re.IGNORECASE,
)
_FILTER = re.compile(r"content_filter|content_policy|responsibleai", re.IGNORECASE)
_MODEL = re.compile(
    r"model[^.\n]{0,80}(does not exist|not found|not exist)|invalid model|model_not_found"
    r"|no such model|unknown model|pinned to",
    re.IGNORECASE,
)
_KEY = re.compile(r"api[ _-]?key|no_db_connection|authentication", re.IGNORECASE)
_DEEPEST = 30
_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server said when it did not answer the question.

    Attributes:
        status: HTTP status, or None for an error inside a stream.
        told: Who said what, for the message.
        marks: Codes, types and words of the body, to be searched.
        data: Attributes of the error.
    """

    status: int | None
    body: Any
    model: str
    host: str
    said: str
    told: str
    marks: str
    data: dict[str, Any]


def explain(
    status: int | None,
    body: Any,
    *,
    headers: Mapping[str, str] | None = None,
    model: str = "",
    host: str = "the server",
) -> LLMError:
    """The error that a status and body stand for.

    Args:
        status: HTTP status, or None for an error inside a stream.
        body: The parsed body, of whatever shape; an API key in it must be gone already.
        headers: Response headers, for Retry-After.
        model: The model that was asked.
        host: Host and port of the server, for the message.

    Returns:
        The most specific class; never raises.
    """
    said, wait = message_of(body), retry_after(headers or {})
    told = f"{host} said{f' {status}' if status else ''}: {said or 'nothing more'}"
    data = {
        "status": status,
        "body": body,
        "model": model or None,
        "retryable": status in _RETRYABLE,
        "retry_after": wait,
        "retry_at": None if wait is None else time.time() + wait,
        "headers": headers or {},
    }
    answer = _Answer(status, body, model, host, said, told, f"{_words(body)} {said}", data)
    # In this order: an empty account also says 429, and a filter's code also says 400.
    found = (judge(answer) for judge in (_credit, _rate, _context, _filter, _key, _model, _address))
    return next((error for error in found if error), None) or _other(answer)


def _credit(answer: _Answer) -> LLMError | None:
    named = answer.status in (400, 403, 429, None) and _CREDIT.search(answer.marks)
    if answer.status != 402 and not named:
        return None
    return OutOfCredit(
        f"The account has no credit left; {answer.told}. Not asked again.",
        fix="Add credit or raise the limit on the provider's billing page, then run again.",
        **{**answer.data, "retryable": False},
    )


def _rate(answer: _Answer) -> LLMError | None:
    in_stream = answer.status is None and "rate_limit" in answer.marks.lower()
    if answer.status != 429 and not in_stream:
        return None
    return RateLimited(
        f"Too many requests; {answer.told}{_when(answer.data['retry_after'])}.",
        fix="Wait and run the cell again, or ask another model: %%llm -m NAME",
        **answer.data,
    )


def _context(answer: _Answer) -> LLMError | None:
    if answer.status not in (400, 413, 500, None) or not _CONTEXT.search(answer.marks):
        return None
    return ContextTooLong(
        f"The prompt does not fit {answer.model or 'the model'}; {answer.told}.",
        fix="See what would be sent: %%llm --dry-run, then shorten it or choose -m NAME",
        **{**answer.data, "retryable": False},
    )


def _filter(answer: _Answer) -> LLMError | None:
    if answer.status != 400 or not _FILTER.search(answer.marks):
        return None
    return Refused(
        f"The provider's content filter refused the prompt; {answer.told}.",
        fix="Change the prompt and run the cell again.",
        reason="content_filter",
        model=answer.model or None,
    )


def _key(answer: _Answer) -> LLMError | None:
    named = answer.status == 400 and _KEY.search(answer.marks)
    if answer.status not in (401, 403) and not named:
        return None
    return AuthenticationFailed(
        f"{answer.host} does not accept the API key; {answer.told}.",
        fix="Set the right one: put OPENAI_API_KEY=... into a .env file beside the notebook.",
        **answer.data,
    )


def _model(answer: _Answer) -> LLMError | None:
    if answer.status not in (400, 404, None) or not _MODEL.search(answer.marks):
        return None
    return UnknownModel(
        f"No model {answer.model!r}; {answer.told}.", fix="Name another: -m NAME", **answer.data
    )


def _address(answer: _Answer) -> LLMError | None:
    if answer.status in (None, 200) and _is_page(answer.body):
        return ProviderError(
            f"{answer.host} answered with {answer.said}: a login page or a wrong address, perhaps.",
            fix="Sign in to the network, or check the address: %config LLMMagic.base_url",
            **answer.data,
        )
    if answer.status in (404, 405):
        return ProviderError(
            f"Found no chat API; {answer.told}.",
            fix="Check the address, most end in /v1: %config LLMMagic.base_url = 'http://…/v1'",
            **answer.data,
        )
    return None


def _other(answer: _Answer) -> LLMError:
    again = answer.data["retryable"]
    fix = "Run the cell again in a while." if again else "See what was sent: %%llm --dry-run"
    return ProviderError(f"The request failed; {answer.told}.", fix=fix, **answer.data)


def message_of(body: Any) -> str:
    """The human sentence in an error body: OpenAI, FastAPI, LM Studio, Gemini and plain text."""
    if isinstance(body, list):
        body = body[0] if body else ""
    if isinstance(body, dict):
        for key in ("error", "message", "detail", "msg"):
            if body.get(key):
                return message_of(body[key])
        return json.dumps(body, ensure_ascii=False, default=str)[:300]
    text = str(body or "")
    if _is_page(text):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        name = " ".join(title[1].split())[:80] if title else ""
        return f"an HTML page{f' titled {name!r}' if name else ''}, no API answer"
    text = " ".join(text.split())
    return (text if len(text) <= 300 else text[:299] + "…").rstrip(".")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, from seconds, milliseconds or an HTTP date."""
    milliseconds, value = _number(headers.get("retry-after-ms")), headers.get("retry-after")
    if milliseconds is not None:
        return milliseconds / 1000
    if value is None or _number(value) is not None:
        return _number(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    """A number of seconds or milliseconds that somebody could mean: finite, below 30 years."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


def scrub(value: Any, secret: str) -> Any:
    """The same value with every occurrence of the secret replaced by ``[key]``."""
    if not secret:
        return value
    if isinstance(value, str):
        return value.replace(secret, "[key]")
    if isinstance(value, dict):
        return {scrub(key, secret): scrub(item, secret) for key, item in value.items()}
    if isinstance(value, list):
        return [scrub(item, secret) for item in value]
    return value


def pruned(value: Any, levels: int = _DEEPEST) -> Any:
    """The same value as deep as anybody reads it: what goes deeper would exhaust the stack."""
    if isinstance(value, dict):
        return {name: pruned(each, levels - 1) for name, each in value.items()} if levels else "…"
    if isinstance(value, list):
        return [pruned(each, levels - 1) for each in value] if levels else "…"
    return value


def _is_page(body: Any) -> bool:
    start = body[:500].lower() if isinstance(body, str) else ""
    return "<html" in start or "<!doctype" in start


def _words(body: Any) -> str:
    """Codes and types of an error body, where providers put what the sentence does not say."""
    if isinstance(body, list):
        return " ".join(_words(item) for item in body)
    if not isinstance(body, dict):
        return ""
    words = (str(body.get(key) or "") for key in ("code", "type", "status", "error_code"))
    inner = (_words(body.get(key)) for key in ("error", "details", "innererror"))
    return " ".join([*words, *inner])


def _when(wait: float | None) -> str:
    if not wait:
        return ""
    if wait < 90:
        return f" (asks to wait {wait:.0f} s)" if wait >= 1 else f" (asks to wait {wait:.1f} s)"
    until = time.strftime("%H:%M", time.localtime(time.time() + wait))
    return f" (asks to wait {wait / 60:.0f} min, until {until})"
