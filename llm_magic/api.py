"""ask and aask: the same line as %%llm, for Python code in cells, modules and scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from llm_magic.prompt import Content, check_text
from llm_magic.session import Session, current
from llm_magic.types import Request, Response
from llm_magic.values import ImageValue, to_prompt
from llm_magic.views import Feed


def ask(
    prompt: str,
    *,
    model: str | None = None,
    system: str | None = None,
    images: Sequence[Any] = (),
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    effort: str | None = None,
    params: Mapping[str, Any] | None = None,
) -> Response:
    """Asks a model and waits for the whole answer. Shows nothing; works in a running event loop.

    Args:
        prompt: The text, taken as it is (no template).
        model: Model name; None takes the setting.
        system: System message; None takes the setting, empty sends none.
        images: matplotlib figures or PIL images to attach.
        temperature: Sampling temperature.
        max_tokens: Cap on the answer, in tokens.
        seed: Seed, for servers that take one.
        effort: Reasoning effort: ``"low"``, ``"medium"`` or ``"high"``.
        params: Further fields of the request.

    Returns:
        The answer; ``str(response)`` is its text.

    Raises:
        LLMError: The class that says what went wrong, with the partial ``text``.
        Interrupted: On Ctrl-C (a ``KeyboardInterrupt``).
    """
    session, request = _prepared(
        prompt,
        images,
        model=model,
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        effort=effort,
        params=params,
    )
    return session.ask(request)


async def aask(prompt: str, *, images: Sequence[Any] = (), **options: Any) -> Response:
    """The same as :func:`ask`, awaitable; cancelling the task stops the call.

    Args:
        prompt: The text, taken as it is (no template).
        images: matplotlib figures or PIL images to attach.
        **options: As for :func:`ask`.

    Raises:
        LLMError: The class that says what went wrong, with the partial ``text``.
    """
    session, request = _prepared(prompt, images, **options)
    return await asyncio.wrap_future(session.submit(request, Feed()))


def _prepared(prompt: str, images: Sequence[Any], **options: Any) -> tuple[Session, Request]:
    check_text(prompt)
    content: Content = prompt
    if images:
        pictures = [_picture(image).part() for image in images]
        content = [{"type": "text", "text": prompt}, *pictures]
    session = current()
    return session, session.request(content, **options)


def _picture(image: Any) -> ImageValue:
    picture = to_prompt(image)
    if not isinstance(picture, ImageValue):
        raise TypeError(f"images takes matplotlib figures and PIL images, not {type(image)!r}")
    return picture
