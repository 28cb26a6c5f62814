"""A server's error answer, in words that say what to do: HTTP status and body to an LLMError."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
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
_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})


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
    said = message_of(body)
    marks = f"{_words(body)} {said}"
    told = f"{host} said{f' {status}' if status else ''}: {said or 'nothing more'}"
    wait = retry_after(headers or {})
    data: dict[str, Any] = {
        "status": status,
        "body": body,
        "model": model or None,
        "retryable": status in _RETRYABLE,
        "retry_after": wait,
        "retry_at": None if wait is None else time.time() + wait,
    }
    if status == 402 or (status in (400, 403, 429, None) and _CREDIT.search(marks)):
        data |= {"retryable": False}
        return OutOfCredit(
            f"The account has no credit left; {told}. Not asked again.",
            fix="Add credit or raise the limit on the provider's billing page, then run again.",
            **data,
        )
    if status == 429 or (status is None and "rate_limit" in marks.lower()):
        return RateLimited(
            f"Too many requests; {told}{_when(wait)}.",
            fix="Wait and run the cell again, or ask another model: %%llm -m NAME",
            **data,
        )
    if status in (400, 413, 500, None) and _CONTEXT.search(marks):
        return ContextTooLong(
            f"The prompt does not fit {model or 'the model'}; {told}.",
            fix="See what would be sent: %%llm --dry-run, then shorten it or choose -m NAME",
            **{**data, "retryable": False},
        )
    if status == 400 and _FILTER.search(marks):
        return Refused(
            f"The provider's content filter refused the prompt; {told}.",
            fix="Change the prompt and run the cell again.",
            reason="content_filter",
            model=model or None,
        )
    if status in (401, 403) or (status == 400 and _KEY.search(marks)):
        return AuthenticationFailed(
            f"{host} does not accept the API key; {told}.",
            fix="Set the right one: put OPENAI_API_KEY=... into a .env file beside the notebook.",
            **data,
        )
    if status in (400, 404, None) and _MODEL.search(marks):
        return UnknownModel(f"No model {model!r}; {told}.", fix="Name another: -m NAME", **data)
    if status in (None, 200) and _is_page(body):
        return ProviderError(
            f"{host} answered with {said}: a login page or a wrong address, perhaps.",
            fix="Sign in to the network, or check the address: %config LLMMagic.base_url",
            **data,
        )
    if status in (404, 405):
        return ProviderError(
            f"Found no chat API; {told}.",
            fix="Check the address, most end in /v1: %config LLMMagic.base_url = 'http://…/v1'",
            **data,
        )
    fix = "Run the cell again in a while." if data["retryable"] else "See it all: %%llm --dry-run"
    return ProviderError(f"The request failed; {told}.", fix=fix, **data)


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
