"""The form of a line: a request and its answer as canonical JSON, which a person can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_magic.cassette.alike import prompt_of
from llm_magic.entries import VERSION, Entry, Fingerprint, normalised, sign
from llm_magic.errors import StoreError

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """A line of the file.

    Attributes:
        text: Itself, as it stands there.
        request: The canonical request: body, url, v.
        entry: The answer.
    """

    text: str
    request: Mapping[str, Any]
    entry: Entry

    @property
    def model(self) -> str:
        """The model that was asked."""
        return str(self.request["body"].get("model", ""))

    @property
    def server(self) -> str:
        """The server that was asked."""
        return normalised(self.request["url"])

    @cached_property
    def prompt(self) -> str:
        """The words of the prompt."""
        return prompt_of(self.request["body"])

    def same_as(self, other: Line | None) -> bool:
        """Whether the answers are the same; tokens and cost differ between two equal ones."""
        if other is None:
            return False
        names = ("text", "model", "finish_reason", "reasoning")
        return all(getattr(self.entry, name) == getattr(other.entry, name) for name in names)


def written(print_: Fingerprint, entry: Entry) -> str:
    """The line of an answer, without what differs from one recording to the next."""
    plain = entry.plain()
    usage = {name: count for name, count in sorted(plain["usage"].items()) if count}
    kept = {name: plain[name] for name in ("text", "model", "finish_reason")}
    kept |= {name: plain[name] for name in ("reasoning", "cost") if plain[name]}
    # The request is in its canonical order; sorting within it would make it another request.
    request = json.loads(print_.canonical)
    whole = {"request": request, "response": dict(sorted({**kept, "usage": usage}.items()))}
    text = json.dumps(whole, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # A server may send half of a surrogate pair, which has no UTF-8 and is escaped.
        text = json.dumps(whole)
    return text


def of_text(text: str) -> tuple[str, Line]:
    """The key and the line of a line's text.

    The key is worked out from the request as it stands there, so that a request which somebody
    has edited is simply another one.

    Raises:
        ValueError: It is no recorded answer; KeyError and TypeError likewise.
    """
    whole = json.loads(text)
    request = whole["request"]
    if not isinstance(request["body"], dict) or not isinstance(request["url"], str):
        raise ValueError("no request")
    key = sign(request["body"], request["url"]).key
    if request["v"] != VERSION:
        # Rests until it is pruned: no request of today has such a key.
        key = f"{request['v']} {key}"
    return key, Line(text, request, Entry.of(whole["response"]))


def read(data: bytes, name: str, before: Mapping[str, Line]) -> dict[str, Line]:
    """The lines of a file by key; of two for one request the later counts.

    Only a line feed ends a line, since an answer may have any other separator in it.

    Args:
        data: The file.
        name: Its name, for messages.
        before: What was read before, so that only other lines are worked out.

    Raises:
        StoreError: A line is no recorded answer.
    """
    known = {line.text: (key, line) for key, line in before.items()}
    lines: dict[str, Line] = {}
    for number, raw in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            text = raw.strip().decode()
            key, line = known.get(text) or of_text(text)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise StoreError(
                f"{name}, line {number}, is no recorded answer (a merge conflict, perhaps); the "
                "file was left as it is.",
                fix=f"Repair or delete line {number} of {name}.",
            ) from None
        lines[key] = line
    return lines
