"""What an answer says by the standard alone: a slow reader to compare with, that shares no code."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple


class Said(NamedTuple):
    """What a body says.

    Attributes:
        text: The answer.
        finish: The last reason for its end; empty where there is none.
    """

    text: str
    finish: str


def of_stream(body: bytes) -> Said:
    """What a stream of events says, as far as it can be read.

    Raises:
        ValueError: It cannot, before it has said that the answer is complete.
    """
    said, chunks, data = Said("", ""), [], []
    # Blanks and byte order marks in front of it all take nothing away from an answer.
    body = re.sub(rb"^(?:\xef\xbb\xbf|\s)+", b"", body)
    for line in [*re.split(b"\r\n|\n|\r", body), b""]:
        try:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif line == b"data":
                data.append(b"")
            elif not line and data:
                whole, data = b"\n".join(data), []
                if whole.strip() == b"[DONE]":
                    break
                chunks.append(json.loads(whole.decode()))
                said = of_chunks(chunks, "delta")
            elif line and line.split(b":")[0] not in (b"", b"event", b"id", b"retry"):
                # The standard passes over it. What was data until something happened to it has
                # words that the answer would lack.
                raise ValueError(line)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            if not said.finish:
                raise ValueError(body) from error
            # Behind the end of an answer anything may come.
            break
    return said


def of_chunks(chunks: list[Any], part: str) -> Said:
    """What parsed chunks say: the words of whichever choice speaks first.

    Raises:
        ValueError: One is an error.
    """
    words, finish, first = "", "", None
    for chunk in chunks:
        if chunk.get("error") or chunk.get("object") == "error":
            raise ValueError(chunk)
        for choice in _known(chunk, "choices", list) or []:
            # A choice without a number is that of the first that has one.
            first = choice.get("index") if first is None else first
            if choice.get("index") != first:
                continue
            content = _known(_known(choice, part, dict) or {}, "content", str | list)
            if isinstance(content, list):
                parts = (each for each in content if isinstance(each, dict))
                content = "".join(_known(each, "text", str) or "" for each in parts)
            words += content or ""
            finish = str(choice.get("finish_reason") or finish)
            break
    return Said(without_thinking(words), finish)


def _known(holder: Any, name: str, kind: Any) -> Any:
    """A field of a kind, or None; whatever else it is has words that the answer would lack."""
    value = holder.get(name)
    if value is not None and not isinstance(value, kind):
        raise ValueError(value)
    return value


def without_thinking(text: str) -> str:
    """An answer without the reasoning before it."""
    inside = False
    while text.lstrip().startswith("<think>"):
        _, closed, text = text.partition("</think>")
        inside = True
        if not closed:
            return ""
    return text.lstrip() if inside else text
