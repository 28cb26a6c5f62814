"""Which model a request is for: the only one that a server has; and names near a wrong one."""

from __future__ import annotations

import asyncio
import difflib
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_magic.errors import LLMError, ServerUnreachable, UnknownModel
from llm_magic.shelf import Shelf
from llm_magic.types import Request
from llm_magic.watch import Limits

if TYPE_CHECKING:
    from llm_magic.engine import Wire


async def with_model(request: Request, wire: Wire, limits: Limits, shelf: Shelf) -> Request:
    """The request with a model: on a server that has exactly one, none needs to be named.

    The server is asked for its name, because another model's stored answer would be a wrong one. If
    it cannot be reached, it is taken to have the one that it had: what is stored is found still.
    """
    if request.model:
        return request
    try:
        names = await _models(wire, limits)
    except ServerUnreachable:
        if (last := shelf.last_model(request)) is None:
            raise
        return replace(request, model=last)
    if len(names) == 1:
        return replace(request, model=names[0])
    offered = f"offers {len(names)}: {', '.join(names[:5])}" if names else "lists none"
    raise UnknownModel(
        f"No model was named, and {wire.host} {offered}. The prompt was not sent.",
        fix=f"Name one: %config LLMMagic.model = {(names or ['NAME'])[0]!r}",
        available=tuple(names),
    )


async def name_models(error: UnknownModel, asked: str, wire: Wire) -> None:
    """Adds the nearest names that the server does have; a courtesy that may fail."""
    try:
        async with asyncio.timeout(2):
            names = await wire.models()
    except (LLMError, TimeoutError):
        return
    error.available = tuple(names)
    near = difflib.get_close_matches(asked, names, n=3, cutoff=0.4) or names[:3]
    if near:
        error.fix = f"It offers {', '.join(near)}. Name one: -m {near[0]}"


async def _models(wire: Wire, limits: Limits) -> list[str]:
    try:
        async with asyncio.timeout(limits.timeout or None):
            return await wire.models()
    except TimeoutError:
        raise ServerUnreachable(
            f"No answer from {wire.host} within {limits.timeout:g} s. The prompt was not sent.",
            fix="Is the server well? Wait longer with: %config LLMMagic.timeout = 600",
        ) from None
