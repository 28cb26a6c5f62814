"""What a server's error answer is called, and that the server's own words stay in it."""

import copy
import email.utils
import inspect
import json
import pickle
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_magic import errors
from llm_magic.errors import (
    AuthenticationFailed,
    ContextTooLong,
    Interrupted,
    LLMError,
    OutOfCredit,
    ProviderError,
    RateLimited,
    Refused,
    UnknownModel,
)
from llm_magic.explain import explain, message_of, pruned, retry_after, scrub
from llm_magic.types import Response, Usage


def error(message: str, kind: str | None = None, code: Any = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code, **more}}


def litellm(message: str, kind: str = "invalid_request_error", code: str = "400") -> dict[str, Any]:
    return error(message, kind, code, param=None)


PAGE = (
    "<!DOCTYPE html>\n<html><head><title>\n502 Bad Gateway</title></head><body>nginx</body></html>"
)

# Name: status, body as the server sends it, class, words of the server that the user must read.
BODIES: dict[str, tuple[int | None, Any, type[LLMError], str]] = {
    "llama-server context": (
        400,
        error(
            "request (20019 tokens) exceeds the available context size (1024 tokens), try "
            "increasing it",
            "exceed_context_size_error",
            400,
            n_prompt_tokens=20019,
            n_ctx=1024,
        ),
        ContextTooLong,
        "request (20019 tokens) exceeds the available context size (1024 tokens)",
    ),
    "llama-server router model": (
        400,
        error("model 'nope' not found", "invalid_request_error", 400),
        UnknownModel,
        "model 'nope' not found",
    ),
    "llama-server bad JSON": (
        500,
        error("[json.exception.parse_error.101] parse error at line 1", "server_error", 500),
        ProviderError,
        "[json.exception.parse_error.101] parse error at line 1",
    ),
    "llama-server bad schema": (
        400,
        error(
            "Unable to generate parser for this template. Automatic parser generation failed: "
            "JSON schema error at #: unrecognized type foo",
            "invalid_request_error",
            400,
        ),
        ProviderError,
        "unrecognized type foo",
    ),
    "llama-server bad type": (
        400,
        error(
            "Field 'temperature': [json.exception.type_error.302] type must be number, but is "
            "string",
            "invalid_request_error",
            400,
        ),
        ProviderError,
        "type must be number, but is string",
    ),
    "llama-server key": (
        401,
        error("Invalid API Key", "authentication_error", 401),
        AuthenticationFailed,
        "Invalid API Key",
    ),
    "llama-server image": (
        500,
        error(
            "image input is not supported - hint: if this is unexpected, you may need to provide "
            "the mmproj",
            "server_error",
            500,
        ),
        ProviderError,
        "image input is not supported",
    ),
    "llama-server tool text": (
        500,
        error(
            "The model produced output that does not match the expected peg-native format",
            "server_error",
            500,
        ),
        ProviderError,
        "does not match the expected peg-native format",
    ),
    "llama-server path": (
        404,
        error("File Not Found", "not_found_error", 404),
        ProviderError,
        "File Not Found",
    ),
    "vLLM model": (
        404,
        error(
            "The model `nope-model` does not exist. Valid aliases: tiny.",
            "NotFoundError",
            404,
            param="model",
        ),
        UnknownModel,
        "The model `nope-model` does not exist. Valid aliases: tiny",
    ),
    "vLLM context": (
        400,
        error(
            "This model's maximum context length is 1024 tokens. However, your prompt contains "
            "120050 characters (more than 13312 characters, ...). Please reduce the length of "
            "the input prompt. (parameter=input_text, value=120050)",
            "BadRequestError",
            400,
            param="input_text",
        ),
        ContextTooLong,
        "maximum context length is 1024 tokens",
    ),
    "vLLM max_tokens": (
        400,
        error(
            "max_tokens=1000000000 cannot be greater than max_model_len=1024. Please request "
            "fewer output tokens. (parameter=max_tokens, value=1000000000)",
            "BadRequestError",
            400,
            param="max_tokens",
        ),
        ProviderError,
        "max_tokens=1000000000 cannot be greater than max_model_len=1024",
    ),
    "vLLM no messages": (
        400,
        error(
            "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field "
            "required'}",
            "Bad Request",
            400,
        ),
        ProviderError,
        "'msg': 'Field required'",
    ),
    "vLLM tools": (
        400,
        error(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be '
            "set",
            "BadRequestError",
            400,
        ),
        ProviderError,
        '"auto" tool choice requires --enable-auto-tool-choice',
    ),
    "vLLM schema": (
        400,
        error("The provided JSON schema contains features not supported by xgrammar."),
        ProviderError,
        "features not supported by xgrammar",
    ),
    "vLLM engine killed in the stream": (
        None,
        {
            "message": "EngineCore encountered an issue. See stack trace (above) for the root "
            "cause.",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        },
        ProviderError,
        "EngineCore encountered an issue",
    ),
    "old vLLM in the stream": (
        None,
        {"object": "error", "message": "The engine is dead.", "code": 500},
        ProviderError,
        "The engine is dead",
    ),
    "transformers model": (
        400,
        {"detail": "Server is pinned to '/models/tiny'; requested 'nope-model'."},
        UnknownModel,
        "Server is pinned to '/models/tiny'; requested 'nope-model'",
    ),
    "transformers field": (
        422,
        {"detail": "Unexpected fields in the request: {'frobnicate'}"},
        ProviderError,
        "Unexpected fields in the request: {'frobnicate'}",
    ),
    "FastAPI list": (
        422,
        {
            "detail": [
                {
                    "type": "json_invalid",
                    "loc": ["body", 15],
                    "msg": "JSON decode error",
                    "input": {},
                    "ctx": {"error": "Expecting value"},
                }
            ]
        },
        ProviderError,
        "JSON decode error",
    ),
    "FastAPI path": (404, {"detail": "Not Found"}, ProviderError, "Not Found"),
    "plain text": (500, "Internal Server Error", ProviderError, "Internal Server Error"),
    "llama-cpp-python context": (
        400,
        error(
            "This model's maximum context length is 1024 tokens. However, you requested 20023 "
            "tokens (20019 in the messages, 4 in the completion). Please reduce ...",
            "invalid_request_error",
            "context_length_exceeded",
            param="messages",
        ),
        ContextTooLong,
        "you requested 20023 tokens",
    ),
    "llama-cpp-python response_format": (
        500,
        error(
            "1 validation error:\n  {'type': 'literal_error', 'loc': ('body', 'response_format', "
            "'type'), 'msg': \"Input should be 'text' or 'json_object'\"}",
            "internal_server_error",
        ),
        ProviderError,
        "Input should be 'text' or 'json_object'",
    ),
    "llama-cpp-python content list": (
        500,
        error('can only concatenate str (not "list") to str', "internal_server_error"),
        ProviderError,
        'can only concatenate str (not "list") to str',
    ),
    "litellm model": (
        400,
        litellm(
            "/chat/completions: Invalid model name passed in model=nope-model. Call `/v1/models` "
            "to view available models for your key."
        ),
        UnknownModel,
        "Invalid model name passed in model=nope-model",
    ),
    "litellm context": (
        400,
        litellm(
            "litellm.ContextWindowExceededError: litellm.BadRequestError: "
            "ContextWindowExceededError: OpenAIException - request (20019 tokens) exceeds ..."
        ),
        ContextTooLong,
        "request (20019 tokens) exceeds",
    ),
    "litellm rate": (
        429,
        litellm(
            "litellm.RateLimitError: this is a mock rate limit error\n\n...",
            "throttling_error",
            "429",
        ),
        RateLimited,
        "litellm.RateLimitError: this is a mock rate limit error",
    ),
    "litellm key without a database": (
        400,
        litellm("No connected db.", "no_db_connection"),
        AuthenticationFailed,
        "No connected db",
    ),
    "litellm in the stream": (
        None,
        {
            "message": "litellm.APIConnectionError: APIConnectionError: OpenAIException - Response "
            "payload is not completed: <TransferEncodingError: 400, ...>",
            "type": None,
            "code": "500",
        },
        ProviderError,
        "Response payload is not completed",
    ),
    "openai-mock-api key": (
        401,
        error("Invalid API key provided", "invalid_request_error", "invalid_api_key"),
        AuthenticationFailed,
        "Invalid API key provided",
    ),
    "mock-openai-api model in the stream": (
        None,
        error("Model 'nope-model' does not exist", "invalid_request_error", "invalid_model"),
        UnknownModel,
        "Model 'nope-model' does not exist",
    ),
    "LM Studio": (
        400,
        {"error": "'response_format.type' must be 'json_schema' or 'text'"},
        ProviderError,
        "'response_format.type' must be 'json_schema' or 'text'",
    ),
    "LM Studio, unwrapped by the client": (
        400,
        "'response_format.type' must be 'json_schema' or 'text'",
        ProviderError,
        "'response_format.type' must be 'json_schema' or 'text'",
    ),
    "Gemini field": (
        400,
        [error('Invalid JSON payload received. Unknown name "x"', code=400, status="INVALID")],
        ProviderError,
        'Invalid JSON payload received. Unknown name "x"',
    ),
    "Gemini key": (
        400,
        [error("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT")],
        AuthenticationFailed,
        "API key not valid",
    ),
    "Gemini quota": (
        429,
        [error("Resource has been exhausted (e.g. check quota).", status="RESOURCE_EXHAUSTED")],
        RateLimited,
        "Resource has been exhausted",
    ),
    "Azure content filter": (
        400,
        error(
            "The response was filtered due to the prompt triggering content management policy.",
            code="content_filter",
            param="prompt",
            status=400,
            innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}},
        ),
        Refused,
        "triggering content management policy",
    ),
    "Azure format": (
        400,
        error(
            "response_format value as json_schema is enabled only for api versions "
            "2024-08-01-preview and later",
            code="BadRequest",
        ),
        ProviderError,
        "enabled only for api versions 2024-08-01-preview and later",
    ),
    "OpenAI rate": (
        429,
        error("Rate limit reached for requests.", "requests", "rate_limit_exceeded"),
        RateLimited,
        "Rate limit reached for requests",
    ),
    "OpenAI rate in the stream": (
        None,
        error("Slow down.", "requests", "rate_limit_exceeded"),
        RateLimited,
        "Slow down",
    ),
    "OpenAI credit": (
        429,
        error(
            "You exceeded your current quota, please check your plan and billing details.",
            "insufficient_quota",
            "insufficient_quota",
        ),
        OutOfCredit,
        "You exceeded your current quota",
    ),
    "OpenAI key": (
        401,
        error("Incorrect API key provided: [key].", "invalid_request_error", "invalid_api_key"),
        AuthenticationFailed,
        "Incorrect API key provided: [key]",
    ),
    "OpenAI country": (
        403,
        error("Country, region, or territory not supported", code="unsupported_country"),
        AuthenticationFailed,
        "Country, region, or territory not supported",
    ),
    "OpenAI model": (
        404,
        error("The model `gpt-9` does not exist or you do not have access to it.", code="x"),
        UnknownModel,
        "The model `gpt-9` does not exist or you do not have access to it",
    ),
    "DeepSeek format": (
        400,
        error("This response_format type is unavailable now", "invalid_request_error"),
        ProviderError,
        "This response_format type is unavailable now",
    ),
    "Groq format": (
        400,
        error("This model does not support response format `json_schema`", "invalid_request_error"),
        ProviderError,
        "This model does not support response format `json_schema`",
    ),
    "Anthropic overloaded": (
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        ProviderError,
        "Overloaded",
    ),
    "Anthropic spend limit": (
        400,
        {
            "type": "error",
            "error": {
                "type": "billing_error",
                "message": "You have reached your specified API usage limits.",
                "details": {"error_code": "workspace_spend_limit"},
            },
        },
        OutOfCredit,
        "You have reached your specified API usage limits",
    ),
    "Anthropic credit": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API.",
            },
        },
        OutOfCredit,
        "Your credit balance is too low",
    ),
    "Anthropic context": (
        400,
        error("prompt is too long: 208310 tokens > 200000 maximum", "invalid_request_error"),
        ContextTooLong,
        "prompt is too long: 208310 tokens > 200000 maximum",
    ),
    "OpenRouter credit": (
        402,
        error("This request requires more credits", code=402),
        OutOfCredit,
        "This request requires more credits",
    ),
    "proxy page": (502, PAGE, ProviderError, "an HTML page titled '502 Bad Gateway'"),
    "login page": (200, PAGE, ProviderError, "an HTML page titled '502 Bad Gateway'"),
    "page without a title": (503, "<html><p>no</html>", ProviderError, "an HTML page, no API"),
    "nothing": (503, None, ProviderError, "said 503: nothing more"),
    "empty text": (503, "", ProviderError, "said 503: nothing more"),
    "empty object": (503, {}, ProviderError, "said 503"),
    "empty list": (400, [], ProviderError, "said 400"),
    "unknown shape": (400, {"reason": "because"}, ProviderError, '{"reason": "because"}'),
}


@pytest.mark.parametrize("name", BODIES)
def test_recorded_bodies(name: str) -> None:
    """The class says what happened, and the message what the server said, in three lines."""
    status, body, kind, words = BODIES[name]

    found = explain(status, body, model="my-model", host="localhost:8000")

    assert type(found) is kind
    assert words in str(found)
    assert "localhost:8000" in str(found)
    assert 1 <= len(found._render_traceback_()) <= 3
    assert found.fix
    if isinstance(found, ProviderError):
        assert found.status == status
        assert found.body == body


@pytest.mark.parametrize("name", BODIES)
def test_the_body_as_the_client_unwraps_it(name: str) -> None:
    """The openai client hands over the inside of {"error": ...}: it must not change the class."""
    status, body, kind, words = BODIES[name]
    if isinstance(body, dict) and "error" in body:
        body = body["error"]

    found = explain(status, body, model="my-model")

    assert type(found) is kind
    assert words in str(found)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529])
def test_what_may_be_asked_again(status: int) -> None:
    found = explain(status, error("Later."))

    assert isinstance(found, ProviderError)
    assert found.retryable


@pytest.mark.parametrize("status", [None, 200, 301, 400, 401, 402, 403, 404, 405, 413, 422, 501])
def test_what_would_fail_again(status: int | None) -> None:
    found = explain(status, error("No."))

    assert isinstance(found, ProviderError)
    assert not found.retryable


@pytest.mark.parametrize("name", ["OpenAI credit", "llama-server context"])
def test_no_credit_and_no_room_are_never_asked_again(name: str) -> None:
    _, body, kind, _ = BODIES[name]
    found = explain(429 if kind is OutOfCredit else 500, body)

    assert type(found) is kind
    assert not found.retryable


def test_a_wrong_path_names_the_setting() -> None:
    assert "LLMMagic.base_url" in explain(404, {"detail": "Not Found"}).fix
    assert "LLMMagic.base_url" in explain(405, "").fix
    assert "LLMMagic.base_url" in explain(200, PAGE).fix


@pytest.mark.parametrize(
    "body",
    [
        "word " * 5000,
        {"error": {"message": "x" * 5000}},
        {"detail": [{"msg": "line\n" * 5000}]},
        {"unknown": "y" * 5000},
        "<html><title>" + "long\n" * 1000 + "</title>",
    ],
)
def test_a_long_body_is_cut(body: Any) -> None:
    found = explain(500, body)

    assert len(str(found)) < 600
    assert 1 <= len(found._render_traceback_()) <= 3


KEYS = st.sampled_from(["error", "message", "detail", "msg", "code", "type", "details"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | KEYS, inner),
    max_leaves=8,
)


@given(st.none() | st.integers(100, 599), JSON | st.dictionaries(KEYS, JSON))
def test_any_body_gives_an_error_of_one_to_three_lines(status: int | None, body: Any) -> None:
    found = explain(status, body, headers={"retry-after": "1"}, model="m")

    assert 1 <= len(found._render_traceback_()) <= 3
    assert len(str(found)) < 1000
    assert isinstance(message_of(body), str)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "300"}, 0.3),
        ({"retry-after-ms": "300", "retry-after": "7"}, 0.3),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "1.2.3"}, None),
        ({"retry-after-ms": "soon"}, None),
        ({"retry-after-ms": "-5"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_an_unreadable_retry_after_ms_leaves_the_other_header() -> None:
    assert retry_after({"retry-after-ms": "soon", "retry-after": "7"}) == 7.0


@pytest.mark.parametrize("word", ["inf", "nan", "infinity"])
def test_a_wait_is_a_number_one_can_wait(word: str) -> None:
    assert retry_after({"retry-after-ms": word}) is None


def test_an_absurd_wait_is_explained_all_the_same() -> None:
    found = explain(429, error("Slow down."), headers={"retry-after": "9" * 30})

    assert type(found) is RateLimited
    assert 1 <= len(found._render_traceback_()) <= 3


def test_retry_after_as_a_date() -> None:
    in_an_hour = email.utils.formatdate(time.time() + 3600, usegmt=True)

    assert retry_after({"retry-after": in_an_hour}) == pytest.approx(3600, abs=5)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [("0", ""), ("0.2", "asks to wait 0.2 s"), ("7", "asks to wait 7 s"), ("999", "17 min, until")],
)
def test_the_message_says_how_long_to_wait(seconds: str, words: str) -> None:
    found = explain(429, error("Slow down."), headers={"retry-after": seconds})

    assert isinstance(found, RateLimited)
    assert words in str(found)
    assert ("asks to wait" in str(found)) == bool(words)
    assert found.retry_after == float(seconds)
    assert found.retry_at == pytest.approx(time.time() + float(seconds), abs=5)


KEY = "sk-5ecret"


def test_scrub_takes_the_key_out_of_everything() -> None:
    body = {
        "error": {"message": f"wrong key {KEY}, really {KEY}", KEY: [f"Bearer {KEY}", 1, None]},
        "list": [{"deep": [KEY]}],
        "number": 4.5,
    }
    before = copy.deepcopy(body)

    clean = scrub(body, KEY)

    assert KEY not in repr(clean)
    assert clean["error"]["message"] == "wrong key [key], really [key]"
    assert clean["list"] == [{"deep": ["[key]"]}]
    assert clean["number"] == 4.5
    assert body == before


@pytest.mark.parametrize("value", [None, 3, "text", ["a"], {"a": "b"}])
def test_scrub_without_a_key_changes_nothing(value: Any) -> None:
    assert scrub(value, "") is value
    assert scrub(value, KEY) == value


@given(JSON)
def test_scrub_leaves_no_key_anywhere(value: Any) -> None:
    clean = scrub({"a": [value, f"{value}{KEY}"], KEY: KEY}, KEY)

    assert KEY not in str(clean)
    assert clean["[key]"] == "[key]"


@pytest.mark.parametrize("inner", ['{"error":', "["], ids=["objects", "lists"])
def test_a_body_that_is_nested_deeper_than_the_stack_is_explained(inner: str) -> None:
    """Some 900 levels can be read as JSON, and not all of them be gone through."""
    body = json.loads(inner * 900 + '"x"' + {"[": "]"}.get(inner, "}") * 900)

    found = explain(500, scrub(pruned(body), KEY))

    assert type(found) is ProviderError
    assert "…" in str(found)
    assert pruned({"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}


CLASSES = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, LLMError) and each.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_travel_between_processes(kind: type[LLMError]) -> None:
    """As concurrent.futures and Dask send them: nothing is lost."""
    sent = kind(
        "What happened.",
        fix="What to type.",
        text="So far",
        usage=Usage(3, 4, estimated=True),
        attempts=2,
        model="m",
        status=429,
        body={"error": ["a"]},
        retryable=True,
        retry_after=1.5,
        retry_at=1e9,
        available=("a", "b"),
    )

    came = pickle.loads(pickle.dumps(sent))

    assert type(came) is kind
    assert came.args == sent.args
    assert vars(came) == vars(sent)
    assert str(came) == "What happened.\nWhat to type."
    assert came._render_traceback_() == [f"{kind.__name__}: What happened.", "What to type."]


def test_an_interruption_travels_with_its_answer() -> None:
    response = Response("So far", Usage(1, 2), "m", "interrupted", reasoning="Hm.")

    came = pickle.loads(pickle.dumps(Interrupted("Stopped.", response)))

    assert type(came) is Interrupted
    assert isinstance(came, KeyboardInterrupt)
    assert str(came) == "Stopped."
    assert came.text == "So far"
    assert vars(came.response) == vars(response)
    assert came._render_traceback_() == ["Interrupted: Stopped."]


def test_an_error_has_its_attributes_without_being_told() -> None:
    bare = ProviderError("Broken.")

    assert (bare.text, bare.usage, bare.attempts, bare.model) == ("", None, 0, None)
    assert (bare.status, bare.body, bare.retryable, bare.retry_after) == (None, None, False, None)
    assert str(bare) == "Broken."
    assert bare._render_traceback_() == ["ProviderError: Broken."]
