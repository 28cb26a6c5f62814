"""One prompt over many rows by other clients, each as its documentation shows it.

    python peer_rows.py NAME URL ROWS AT_ONCE

Runs in .venv/peers, the bare ones also elsewhere. Warms up, asks for all rows once, checks what
came, and prints one line of JSON: rows a second, CPU seconds, the peak of memory in MB, versions.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel


class Review(BaseModel):
    """What everybody asks for."""

    stars: int
    topic: Literal["fit", "price", "quality"]
    positive: bool


ANSWER = '{"stars": 4, "topic": "fit", "positive": true}'
EXPECTED = {"stars": 4, "topic": "fit", "positive": True}
SCHEMA = {"name": "Review", "schema": Review.model_json_schema()}
FORM = {"type": "json_schema", "json_schema": SCHEMA}
Ask = Callable[[str], Awaitable[Review]]


def texts(count: int, start: int = 0) -> list[str]:
    """Reviews of some 100 characters, each another one."""
    words = "The shoes fit well, though the left one squeaks a little when it rains."
    return [f"Review {start + number}: {words}" for number in range(count)]


def prompt(text: str) -> str:
    """The same for everybody."""
    return f"Classify this review for a shoe shop: {text}"


def messages(text: str) -> list[dict[str, str]]:
    """Of one row."""
    return [{"role": "user", "content": prompt(text)}]


async def by_workers(ask: Ask, rows: list[str], at_once: int) -> list[Review]:
    """So many at once, from one iterator: a task for each row would cost more."""
    found: list[Any] = [None] * len(rows)
    waiting = iter(enumerate(rows))

    async def work() -> None:
        for place, text in waiting:
            found[place] = await ask(text)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return found


async def aiohttp_bare(url: str, rows: list[str], at_once: int) -> list[Review]:
    """The floor: a session, JSON, and pydantic on the content."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": "Bearer bench"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(text: str) -> Review:
            body = {"model": "bench", "messages": messages(text), "response_format": FORM}
            async with session.post(f"{url}/chat/completions", json=body) as answer:
                choice = json.loads(await answer.read())["choices"][0]
            assert choice["finish_reason"] == "stop"
            return Review.model_validate_json(choice["message"]["content"])

        return await by_workers(ask, rows, at_once)


async def async_openai(url: str, rows: list[str], at_once: int) -> list[Review]:
    """The client with its own transport."""
    import openai

    async with openai.AsyncOpenAI(base_url=url, api_key="bench") as client:

        async def ask(text: str) -> Review:
            answer = await client.chat.completions.create(
                model="bench", messages=messages(text), response_format=FORM
            )
            return Review.model_validate_json(answer.choices[0].message.content)

        return await by_workers(ask, rows, at_once)


async def instructor(url: str, rows: list[str], at_once: int) -> list[Review]:
    """A patched client, by JSON schema."""
    import httpx2
    import instructor
    import openai

    # With the client's own 100 kept connections, some of 128 calls at once wait for ever (httpx2
    # 2.16.2, instructor 1.17.0).
    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=1000)
    transport = openai.DefaultAsyncHttpxClient(limits=limits)
    client = instructor.from_openai(
        openai.AsyncOpenAI(base_url=url, api_key="bench", http_client=transport),
        mode=instructor.Mode.JSON_SCHEMA,
    )

    async def ask(text: str) -> Review:
        return await client.chat.completions.create(
            model="bench", messages=messages(text), response_model=Review
        )

    return await by_workers(ask, rows, at_once)


async def litellm(url: str, rows: list[str], at_once: int) -> list[Review]:
    """acompletion, as its documentation runs many."""
    import litellm

    litellm.suppress_debug_info = True

    async def ask(text: str) -> Review:
        answer = await litellm.acompletion(
            model="openai/bench",
            api_base=url,
            api_key="bench",
            messages=messages(text),
            response_format=Review,
        )
        return Review.model_validate_json(answer.choices[0].message.content)

    return await by_workers(ask, rows, at_once)


async def langchain(url: str, rows: list[str], at_once: int) -> list[Review]:
    """Abatch of a model with structured output."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="bench", base_url=url, api_key="bench")
    chain = model.with_structured_output(Review, method="json_schema")
    asked = [prompt(text) for text in rows]
    return await chain.abatch(asked, {"max_concurrency": at_once})


async def pydantic_ai(url: str, rows: list[str], at_once: int) -> list[Review]:
    """An agent with the server's own structured output."""
    import httpx2
    import openai
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=1000)
    transport = openai.DefaultAsyncHttpxClient(limits=limits)
    client = openai.AsyncOpenAI(base_url=url, api_key="bench", http_client=transport)
    provider = OpenAIProvider(openai_client=client)
    agent = Agent(OpenAIChatModel("bench", provider=provider), output_type=NativeOutput(Review))

    async def ask(text: str) -> Review:
        return (await agent.run(prompt(text))).output

    return await by_workers(ask, rows, at_once)


PACKAGES = {
    "aiohttp_bare": "aiohttp",
    "async_openai": "openai",
    "instructor": "instructor",
    "litellm": "litellm",
    "langchain": "langchain-openai",
    "pydantic_ai": "pydantic-ai-slim",
}


def peak() -> float:
    """The most memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def main(name: str, url: str, count: int, at_once: int) -> None:
    """Once warm, once timed."""
    contender = globals()[name]
    # One first: 128 at once are more than some clients' imports on first use bear.
    for count_warm in (1, at_once):
        await contender(url, texts(count_warm, 10**6), count_warm)
    rows = texts(count)
    before, began, cpu = peak(), time.perf_counter(), time.process_time()
    found = await contender(url, rows, at_once)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert len(found) == count, len(found)
    assert all(each.model_dump() == EXPECTED for each in found)
    told = {"rate": count / seconds, "cpu": cpu, "peak": peak(), "before": before}
    print(json.dumps({**told, "version": version(PACKAGES[name])}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
