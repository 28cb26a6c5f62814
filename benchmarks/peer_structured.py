"""Structured calls of other libraries, each as its documentation shows it; runs in .venv/peers.

    python peer_structured.py NAME URL

NAME is instructor or pydantic_ai. Tells its versions and forms of call in a line of JSON, then
makes the calls that standard input asks for: a form and a count in each line, answered by a line
of JSON with the seconds of each call and the CPU seconds of one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, Field

PROMPT = "What does this review say? " + "The kettle boils fast, but its lid sticks. " * 8


class Review(BaseModel):
    """What both sides ask for."""

    product: str
    rating: int = Field(ge=1, le=5)
    mood: Literal["good", "bad", "mixed"]
    summary: str
    recommends: bool


def answer(number: int = 0) -> Review:
    """A review of some 90 bytes of JSON."""
    return Review(
        product=f"Kettle {number}",
        rating=number % 5 + 1,
        mood="mixed",
        summary="Fast, lid sticks",
        recommends=number % 2 == 0,
    )


def serve(forms: Mapping[str, Callable[[], BaseModel]], packages: tuple[str, ...]) -> None:
    """Warms each form up, then times what is asked for until the input ends."""
    for form in forms.values():
        for _ in range(10):
            # instructor gives a class of its own with the same fields.
            assert form().model_dump() == answer().model_dump(), form()
    about = {"versions": {name: version(name) for name in packages}, "forms": list(forms)}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        name, count = line.rsplit(maxsplit=1)
        form, taken, cpu = forms[name], [], time.process_time()
        for _ in range(int(count)):
            began = time.perf_counter()
            form()
            taken.append(time.perf_counter() - began)
        # Of the whole block: threads may finish a call's work after it has returned.
        each = (time.process_time() - cpu) / int(count)
        print(json.dumps({"wall": taken, "cpu": each}), flush=True)


def bare(url: str) -> dict[str, Callable[[], BaseModel]]:
    """The openai client alone, plain and streaming, and pydantic on what it says."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="bench", max_retries=0)
    schema = {"name": "Review", "schema": Review.model_json_schema()}

    def create(*, stream: bool) -> Any:
        return client.chat.completions.create(
            model="bench",
            messages=[{"role": "user", "content": PROMPT}],
            response_format={"type": "json_schema", "json_schema": schema},
            stream=stream,
        )

    def plain() -> BaseModel:
        return Review.model_validate_json(create(stream=False).choices[0].message.content)

    def streamed() -> BaseModel:
        chunks = [each for each in create(stream=True) if each.choices]
        text = "".join(each.choices[0].delta.content or "" for each in chunks)
        return Review.model_validate_json(text)

    return {"bare plain": plain, "bare streamed": streamed}


def instructor(url: str) -> None:
    """A patched client: the whole answer, and the partial objects of a stream."""
    import instructor
    import openai

    client = instructor.from_openai(
        openai.OpenAI(base_url=url, api_key="bench", max_retries=0),
        mode=instructor.Mode.JSON_SCHEMA,
    )
    options = {
        "model": "bench",
        "messages": [{"role": "user", "content": PROMPT}],
        "response_model": Review,
        "max_retries": 0,
    }

    def plain() -> BaseModel:
        return client.chat.completions.create(**options)

    def streamed() -> BaseModel:
        *_, last = client.chat.completions.create_partial(**options)
        return last

    forms = {**bare(url), "plain": plain, "streamed": streamed}
    serve(forms, ("instructor", "openai", "pydantic"))


def pydantic_ai(url: str) -> None:
    """An agent with the server's own structured output: run_sync, and run_stream to its end."""
    import asyncio

    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url, api_key="bench")
    agent = Agent(
        OpenAIChatModel("bench", provider=provider), output_type=NativeOutput(Review), retries=0
    )
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    def plain() -> BaseModel:
        return agent.run_sync(PROMPT).output

    async def stream() -> BaseModel:
        async with agent.run_stream(PROMPT) as result:
            async for each in result.stream_output():
                last = each
        return last

    def streamed() -> BaseModel:
        return loop.run_until_complete(stream())

    forms = {**bare(url), "plain": plain, "streamed": streamed}
    serve(forms, ("pydantic-ai-slim", "openai", "pydantic"))


if __name__ == "__main__":
    {"instructor": instructor, "pydantic_ai": pydantic_ai}[sys.argv[1]](sys.argv[2])
