"""What a dry run tells: exactly what would be sent, and how much that can come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llm_magic.images import about, image_of
from llm_magic.types import Message, Request, text_of
from llm_magic.units import size


def dry_run(request: Request, body: dict[str, Any], address: str, outlook: str) -> str:
    """The report of a request that is not sent; the bytes of images stand there as their size.

    Args:
        request: What would be asked.
        body: The exact JSON body that the server would be sent.
        address: The server's URL, without a password in it.
        outlook: What it would come to.
    """
    sent = json.dumps(_with_sizes(body), ensure_ascii=False, indent=2)
    if not request.model:
        sent = sent.replace('"model": ""', '"model": "" (the server\'s only one)', 1)
    prompt = "\n\n".join(f"[{each['role']}]\n{_words(each)}" for each in request.messages)
    return f"POST {address}/chat/completions\n{sent}\n\n{prompt}\n\n{outlook} Nothing was sent."


def _words(message: Message) -> str:
    """The words of a message, and a mark for each of its images."""
    if isinstance(message["content"], str):
        return text_of(message)
    return "".join(
        f"[image_url: {about(picture)}]"
        if (picture := image_of(part))
        else text_of({"content": [part]})
        for part in message["content"]
    )


def _with_sizes(value: Any) -> Any:
    """A body to look at: a megabyte of base64 says nothing to anybody."""
    if isinstance(value, Mapping):
        return {name: _with_sizes(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_sizes(each) for each in value]
    if isinstance(value, str) and value.startswith("data:image/"):
        head, _, data = value.partition(",")
        return f"{head},… ({size(len(data))} of it)"
    return value
