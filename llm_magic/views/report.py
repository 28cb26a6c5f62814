"""What a dry run tells: exactly what would be sent, and how much that can come to."""

from __future__ import annotations

import json
from typing import Any

from llm_magic.types import Request, text_of


def dry_run(request: Request, body: dict[str, Any], address: str, outlook: str) -> str:
    """The report of a request that is not sent.

    Args:
        request: What would be asked.
        body: The exact JSON body that the server would be sent.
        address: The server's URL, without a password in it.
        outlook: What it would come to.
    """
    sent = json.dumps(body, ensure_ascii=False, indent=2)
    if not request.model:
        sent = sent.replace('"model": ""', '"model": "" (the server\'s only one)', 1)
    prompt = "\n\n".join(f"[{each['role']}]\n{text_of(each)}" for each in request.messages)
    return f"POST {address}/chat/completions\n{sent}\n\n{prompt}\n\n{outlook} Nothing was sent."
