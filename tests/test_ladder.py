"""How servers are asked for JSON: which form, which words, and when a weaker one is tried."""

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, StringConstraints

from llm_magic.errors import ProviderError
from llm_magic.ladder import Rung, formatted, is_openai, step_down
from llm_magic.structured import Schema, schema_for


class Review(BaseModel):
    product: str
    rating: int


class Short(BaseModel):
    name: Annotated[str, StringConstraints(max_length=9)]


def schema(type_: Any) -> Schema:
    made = schema_for(type_)
    assert made
    return made


USER = {"role": "user", "content": "Review?"}


def fields(
    hostname: str, rung: Rung = "json_schema", type_: Any = Review, **body: Any
) -> dict[str, Any]:
    return formatted({"messages": [USER], **body}, schema(type_), rung, hostname)


@pytest.mark.parametrize(
    ("hostname", "openai"),
    [
        ("api.openai.com", True),
        ("eu.api.openai.com", True),
        ("team.openai.azure.com", True),
        ("team.services.ai.azure.com", True),
        ("openrouter.ai", False),
        ("notopenai.com", False),
        ("openai.com.example.org", False),
        ("localhost", False),
    ],
)
def test_openai_alone_shows_the_schema_to_the_model(hostname: str, openai: bool) -> None:
    assert is_openai(hostname) is openai
    assert ("messages" in fields(hostname)) is not openai
    assert "messages" in fields(hostname, "json_object")


def test_rungs() -> None:
    forms = [
        fields("localhost", rung).get("response_format", {}).get("type")
        for rung in ("json_schema", "json_object", "text")
    ]
    assert forms == ["json_schema", "json_object", None]


def test_limits_of_length_are_strict_at_openai_only() -> None:
    def strict(hostname: str) -> bool:
        return fields(hostname, type_=Short)["response_format"]["json_schema"]["strict"]

    assert strict("api.openai.com")
    assert not strict("team.openai.azure.com")
    assert not strict("localhost")


def test_openrouter_must_choose_an_upstream_that_can() -> None:
    assert fields("openrouter.ai")["provider"] == {"require_parameters": True}
    mine = {"order": ["mistral"], "require_parameters": False}
    assert fields("openrouter.ai", provider=mine)["provider"] == mine
    assert "provider" not in fields("openrouter.ai", "text")
    assert "provider" not in fields("localhost")


def test_the_instruction_joins_the_system_message() -> None:
    parts = [{"type": "text", "text": "Terse."}]
    for content in ("Terse.", parts):
        system = {"role": "system", "content": content}
        first, last = fields("localhost", messages=[system, USER])["messages"]
        assert last == USER
        assert "Terse." in str(first["content"])
        assert "JSON schema" in str(first["content"])
        assert system["content"] == content
    assert [each["role"] for each in fields("localhost")["messages"]] == ["system", "user"]


SCHEMA_BODY = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 1}}}}


def refused(body: Any, status: int = 400) -> str | None:
    return step_down(SCHEMA_BODY, ProviderError("no", status=status, body=body))


@pytest.mark.parametrize(
    "body",
    [
        "'response_format.type' must be 'json_schema' or 'text'",
        {"message": "This response_format type is unavailable now"},
        {"message": "This model does not support response format `json_schema`"},
        {"message": "minItems is not supported"},
        {"message": "Failed to generate JSON.", "code": "json_validate_failed"},
        {"message": "The provided JSON schema contains features not supported by xgrammar."},
        {"object": "error", "message": "Grammar error: Unknown format: uri", "code": 400},
        {"message": "No endpoints found that can handle the requested parameters."},
        {"detail": [{"loc": ["body", "response_format"], "msg": "Extra inputs"}]},
        [{"error": {"message": "Invalid JSON payload received. Unknown name …"}}],
    ],
    ids=str,
)
def test_a_step_down_where_the_form_is_named(body: Any) -> None:
    assert refused(body) == "json_object"
    again = {"response_format": {"type": "json_object"}}
    assert step_down(again, ProviderError("no", status=400, body=body)) == "text"
    assert step_down({}, ProviderError("no", status=400, body=body)) is None
    assert refused(body, status=429) is None
    assert refused(body, status=401) is None


def test_a_word_that_gemini_does_not_know_counts_if_the_schema_has_it() -> None:
    message = 'Invalid JSON payload received. Unknown name "const": Cannot find field.'
    body = [{"error": {"message": message}}]
    assert refused(body) == "json_object"
    again = {"response_format": {"type": "json_object"}}
    assert step_down(again, ProviderError("no", status=400, body=body)) is None


@pytest.mark.parametrize(
    "body",
    [
        {"message": "temperature must be below 2"},
        {"message": "Invalid image format"},
        {"message": "maximum context length is 8192 tokens"},
        [{"error": {"message": 'Invalid JSON payload received. Unknown name "seed"'}}],
        "",
        None,
    ],
    ids=str,
)
def test_no_step_down_for_anything_else(body: Any) -> None:
    assert refused(body) is None
