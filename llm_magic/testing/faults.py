"""Ready-made replies for what providers and local servers really do: `FAULTS` and `QUIRKS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from llm_magic.testing.chunks import BAD_KEY, ERRORS, openai_error
from llm_magic.testing.replies import Reply

_TEXT: Final = "The answer is forty-two, and the rest of this sentence makes it long enough."
_PAGE: Final = b"<!doctype html><html><head><title>%b</title></head><body>%b</body></html>"
FAULTS: Final[Mapping[str, Reply]] = MappingProxyType({
    "rate_limited": Reply(
        status=429,
        error=openai_error("Rate limit reached.", "requests", code="rate_limit_exceeded"),
        headers={"Retry-After": "1"},
    ),
    "rate_limited_long": Reply(
        status=429,
        error=openai_error("Daily limit reached.", "requests", code="rate_limit_exceeded"),
        headers={"Retry-After": "999"},
    ),
    "rate_limited_no_header": Reply(
        status=429,
        error=openai_error("Rate limit reached.", "requests", code="rate_limit_exceeded"),
    ),
    "out_of_credit": Reply(
        status=429,
        error=openai_error(
            "Your account has no credit left.", "insufficient_quota", code="insufficient_quota"
        ),
    ),
    "bad_key": Reply(status=401, error=BAD_KEY),
    "unknown_model": Reply(
        status=404,
        error=openai_error(
            "There is no model of this name.", "invalid_request_error", "model", "model_not_found"
        ),
    ),
    "context_too_long": Reply(
        status=400,
        error=openai_error(
            "This model's maximum context length is 1024 tokens, the messages have 20019.",
            "invalid_request_error",
            "messages",
            "context_length_exceeded",
        ),
    ),
    "content_filter_prompt": Reply(
        status=400,
        error={
            "error": {
                "message": "The prompt was stopped by the content filter.",
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {"violence": {"filtered": True, "severity": "high"}},
                },
            }
        },
    ),
    "server_error": Reply(status=500, headers={"x-request-id": "req_scripted"}),
    "bad_gateway_html": Reply(status=502, raw=_PAGE % (b"502 Bad Gateway", b"nginx")),
    "unavailable": Reply(status=503),
    "overloaded": Reply(status=529, error=ERRORS["event_error"]),
    "rejects_response_format": Reply(
        status=400,
        error=openai_error(
            "'response_format' is not supported with this model.",
            "invalid_request_error",
            "response_format",
        ),
    ),
    "html_200": Reply(raw=_PAGE % (b"Sign in", b"Sign in to use this network.")),
    "json_error_200": Reply(error=openai_error("The upstream server is gone.", "server_error")),
    "close_before_headers": Reply(_TEXT, fault="close_before_headers"),
    "cut": Reply(_TEXT, fault="cut"),
    "reset": Reply(_TEXT, fault="reset"),
    "end_early": Reply(_TEXT, fault="end_early"),
    "done_without_finish": Reply(_TEXT, fault="done_without_finish"),
    "error_in_stream": Reply(_TEXT, fault="error_in_stream"),
    "error_first_in_stream": Reply(_TEXT, fault="error_in_stream", after=0),
    "event_error": Reply(_TEXT, fault="event_error"),
    "old_vllm_error": Reply(_TEXT, fault="old_vllm_error"),
    "field_error": Reply(_TEXT, fault="field_error"),
    "raw_line": Reply(_TEXT, fault="raw_line"),
    "stall": Reply(_TEXT, fault="stall"),
    "stall_pings": Reply(_TEXT, fault="stall_pings"),
    "stall_before_headers": Reply(_TEXT, delay=3600.0),
    "malformed_json": Reply(_TEXT, fault="malformed_json"),
    "invalid_utf8": Reply(_TEXT, fault="invalid_utf8"),
    "empty_stream": Reply(_TEXT, fault="empty"),
    "finish_length": Reply(_TEXT, finish="length"),
    "finish_content_filter": Reply(_TEXT, finish="content_filter"),
    "refusal": Reply(refusal="I cannot help with that."),
    "null_finish": Reply(_TEXT, finish=None),
})  # fmt: skip
# Harmless: each gives its whole text.
QUIRKS: Final[Mapping[str, Reply]] = MappingProxyType({
    "split_utf8": Reply("Zwölf Äpfel kosten 3 €, and 🍏 is one of them.", fault="split_utf8"),
    "choices_empty_first": Reply(_TEXT, first_chunk_without_choices=True),
    "choices_null": Reply(_TEXT, null_choices=True),
    "usage_never": Reply(_TEXT, usage="never"),
    "usage_finish_chunk": Reply(_TEXT, usage="finish_chunk"),
    "usage_every_chunk": Reply(_TEXT, usage="every_chunk"),
    "role_every": Reply(_TEXT, role="every"),
    "role_never": Reply(_TEXT, role="never"),
    "role_null": Reply(_TEXT, role="null"),
    "role_with_text": Reply(_TEXT, role="with_text"),
    "changing_ids": Reply(_TEXT, ids="changing"),
    "empty_deltas": Reply(_TEXT, empty_deltas=True),
    "one_chunk": Reply(_TEXT, one_chunk=True),
    "last_text_on_finish": Reply(_TEXT, last_text_on_finish=True),
    "no_done": Reply(_TEXT, done=False),
    "think_tags": Reply(_TEXT, reasoning="Six times seven.", reasoning_field="think"),
    "reasoning_content": Reply(_TEXT, reasoning="Six times seven."),
    "reasoning": Reply(_TEXT, reasoning="Six times seven.", reasoning_field="reasoning"),
    "not_streaming": Reply(_TEXT, stream=False),
    "text_plain_type": Reply(_TEXT, content_type="text/plain; charset=utf-8"),
    "crlf": Reply(_TEXT, crlf=True),
    "hang_after_finish": Reply(_TEXT, fault="hang_after_finish"),
    "ignored_response_format": Reply("Sure! Ada Lovelace was 36 years old."),
})  # fmt: skip
