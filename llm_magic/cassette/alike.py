"""How a request differs from recorded ones, for the person who wonders why it has no answer."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from itertools import islice, takewhile
from typing import Any

_HEADLINE = 80
_COMPARED = 4000
_CANDIDATES = 500
_FINALISTS = 10
_MUCH_ALIKE = 0.4
_BY_LETTERS = 300
_WORD = re.compile(r"[A-Za-z0-9_]+|\S")


def prompt_of(body: Mapping[str, Any]) -> str:
    """The words of a body's last user message, with ``[image]`` where it has one."""
    message = _asked(body)
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "[image]")) for part in _parts(message))


def headline(text: str) -> str:
    """The first line of a text that has words in it, cut."""
    first = next((line for line in text.split("\n") if line.strip()), "").strip()
    return _cut(first, _HEADLINE)


def most_alike(asked: str, texts: set[str]) -> str | None:
    """The one of some texts that is most like another; None where none is much like it.

    Bounded: of many or long texts, the ones of a like length and their beginnings are compared.
    """
    # Words are quicker than letters, and as good where there are many of them.
    split = list if len(asked) <= _BY_LETTERS else _WORD.findall
    near = sorted(texts, key=lambda text: (abs(len(text) - len(asked)), text))[:_CANDIDATES]
    matcher: difflib.SequenceMatcher[str] = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(split(asked[:_COMPARED]))
    ranked = []
    for text in near:
        matcher.set_seq1(split(text[:_COMPARED]))
        ranked.append((matcher.quick_ratio(), text))
    best: tuple[float, str | None] = (_MUCH_ALIKE, None)
    for bound, text in sorted(ranked, reverse=True)[:_FINALISTS]:
        if bound > best[0]:
            matcher.set_seq1(split(text[:_COMPARED]))
            ratio = matcher.ratio()
            best = (ratio, text) if ratio > best[0] else best
    return best[1]


def diff(recorded: str, asked: str) -> str:
    """A unified diff of at most 20 lines."""
    # Not splitlines, which would also split within a line of the file.
    before, after = recorded.split("\n"), asked.split("\n")
    lines = difflib.unified_diff(before, after, "recorded", "asked", n=1, lineterm="")
    return "\n".join(islice(lines, 20))


def first_change(diff_text: str) -> str:
    """The first lines that differ in a diff, each cut to where it does."""
    lines = diff_text.split("\n")[2:]
    old = next((line[1:] for line in lines if line.startswith("-")), None)
    new = next((line[1:] for line in lines if line.startswith("+")), None)
    common = takewhile(lambda pair: pair[0] == pair[1], zip(old or "", new or "", strict=False))
    start = max(0, sum(1 for _ in common) - _HEADLINE // 2)
    dots = "…" if start else ""
    return "\n".join(
        f"{sign} {dots}{_cut(line[start:], _HEADLINE)}"
        for sign, line in (("-", old), ("+", new))
        if line is not None
    )


def fields_apart(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> Apart:
    """What differs between two requests with the same prompt."""
    old, new = _fields(recorded), _fields(asked)
    if not asked["body"].get("model"):
        # The caller takes whichever model is recorded.
        old.pop("model", None)
        new.pop("model", None)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return Apart({name: (old.get(name), new.get(name)) for name in names})


class Apart(dict[str, tuple[str | None, str | None]]):
    """Fields that differ: name to recorded and asked value as JSON, None where not set."""

    def hint(self) -> str:
        """One line."""
        if not self:
            return "The same prompt is recorded in a request of another form."
        told = [
            f"{name} {_value(old)} (asked: {_value(new)})"
            for name, (old, new) in islice(self.items(), 3)
        ]
        more = f" and {len(self) - 3} more fields" if len(self) > 3 else ""
        return f"The same prompt is recorded with {', '.join(told)}{more}."

    def diff(self) -> str:
        """As a unified diff of at most 20 lines."""
        lines = ["--- recorded", "+++ asked"]
        for name, (old, new) in self.items():
            lines += [f"-{name} = {old}"] if old is not None else []
            lines += [f"+{name} = {new}"] if new is not None else []
        return "\n".join(lines[:20])


def _fields(request: Mapping[str, Any]) -> dict[str, str]:
    """All of a request but the words of its last user message."""
    body = request["body"]
    fields = {name: _json(value) for name, value in body.items() if name != "messages"}
    fields["server"] = str(request["url"])
    asked = _asked(body)
    for message in _messages(body):
        if message is not asked:
            name = "system" if message.get("role") == "system" else "earlier messages"
            fields[name] = fields.get(name, "") + _json(message.get("content"))
    images = [part for part in _parts(asked) if "text" not in part]
    return fields | ({"images": _json(images)} if images else {})


def _asked(body: Mapping[str, Any]) -> Mapping[str, Any]:
    messages = _messages(body)
    users = [each for each in messages if each.get("role") == "user"]
    return (users or messages or [{}])[-1]


def _messages(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # Somebody may have edited the file, so that nothing is sure.
    return [each for each in _list(body.get("messages")) if isinstance(each, dict)]


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [part for part in _list(message.get("content")) if isinstance(part, dict)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _value(text: str | None) -> str:
    return "not set" if text is None else _cut(text, 40)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
