"""From the bytes of a server's answer to events, and no fault of a stream passes unseen.

Our own reader, because the openai client passes over an HTML page, a JSON error, ``event: error``
and unlabelled lines in silence, and builds a pydantic object for each token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_magic.types import Usage

LONGEST_LINE = 64 * 1024 * 1024
"""Bytes of one line; a server that sends more without a line end is not streaming."""
# Characters held back for a tag; beyond it the server is in a whitespace loop.
_LONGEST_HELD = 1000
OPEN, CLOSE = "<think>", "</think>"


class BadStream(Exception):
    """The bytes are not a chat completion stream; the message says what they are.

    Attributes:
        body: The error object that the server put into the stream, if it was one.
    """

    def __init__(self, message: str, body: Any = None) -> None:
        super().__init__(message)
        self.body = body


@dataclass(frozen=True, slots=True)
class Piece:
    """New words of the answer.

    Attributes:
        kind: ``"text"``, ``"reasoning"`` or ``"refusal"``.
        text: Never empty.
    """

    kind: Literal["text", "reasoning", "refusal"]
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The server says that the answer is complete, and why it ended."""

    reason: str


@dataclass(frozen=True, slots=True)
class Model:
    """The model that the server says it uses."""

    name: str


@dataclass(frozen=True, slots=True)
class Done:
    """The stream's ``[DONE]`` mark. Alone it proves nothing: some servers send it when cut."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Something arrived that is no part of the answer: a ping, a role, an empty piece."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The server has taken the request.

    Attributes:
        body: The JSON body as it was sent.
        headers: Of the server's response.
    """

    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


Event = Sent | Piece | Finish | Model | Usage | Done | Alive

_ALIVE = Alive()


class StreamDecoder:
    """Server-sent events to our events, fed with whatever pieces the network gives.

    Lines are cut as bytes and decoded whole, so that a character split across packets is one
    character, and the work for a byte does not depend on how much came before.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._data: list[bytes] = []
        self._event = b""
        self._message = MessageReader()

    def feed(self, data: bytes) -> Iterator[Event]:
        """Events that these bytes complete.

        Raises:
            BadStream: For an error object, a line that is not UTF-8 JSON, or one that is no SSE.
        """
        self._parts.append(data)
        self._size += len(data)
        if self._size > LONGEST_LINE:
            raise BadStream(f"a line of more than {LONGEST_LINE:,} bytes")
        # Joined only when a line is complete: one long line in many packets stays linear. (A CR
        # before this data may be a whole line end.)
        if not (b"\n" in data or b"\r" in data or self._after_cr):
            return
        buffer = b"".join(self._parts)
        # A CR at the end may be the first half of CRLF, so it waits for the next bytes.
        self._after_cr = buffer.endswith(b"\r")
        if self._after_cr:
            buffer = buffer[:-1]
        lines = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = lines.pop() + (b"\r" if self._after_cr else b"")
        self._parts, self._size = [rest], len(rest)
        for line in lines:
            yield from self._line(line)

    def close(self) -> Iterator[Event]:
        """Events of a last line without a line end, and of a block without its blank line."""
        line = b"".join(self._parts).rstrip(b"\r")
        self._parts = []
        if line:
            yield from self._line(line)
        yield from self._dispatch()
        yield from self._message.close()

    def _line(self, line: bytes) -> Iterator[Event]:
        if not line:
            yield from self._dispatch()
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"error":
            raise BadStream("the server reported an error in the stream", read_json(value))
        elif name in (b"", b"id", b"retry"):
            yield _ALIVE
        else:
            raise BadStream(f"a line that is no part of a stream: {_excerpt(line)}")

    def _dispatch(self) -> Iterator[Event]:
        if not self._data:
            self._event = b""
            return
        data, event = b"\n".join(self._data), self._event
        self._data, self._event = [], b""
        if data.strip() == b"[DONE]":
            yield Done()
            return
        chunk = read_json(data)
        if event == b"error":
            raise BadStream(
                "the server reported an error in the stream", _inner_error(chunk) or chunk
            )
        yield from self._message.chunk(chunk)


class MessageReader:
    """Chunks, or one whole completion, to events."""

    def __init__(self) -> None:
        self._think = ThinkSplitter()
        self._model = ""
        self._index: Any = None

    def chunk(self, chunk: Any) -> Iterator[Event]:
        """Events of one parsed chunk of a stream.

        Raises:
            BadStream: When the chunk is, or holds, an error object.
        """
        yield from self._read(chunk, "delta")

    def completion(self, body: Any) -> Iterator[Event]:
        """Events of a whole completion, from a server that does not stream.

        Raises:
            BadStream: When the body is an error or no chat completion.
        """
        if isinstance(body, dict) and "choices" not in body and not _inner_error(body):
            raise BadStream(f"JSON that is no chat completion: {_shown(body)}")
        yield from self._read(body, "message")
        yield from self.close()

    def close(self) -> Iterator[Event]:
        """What was held back because it might have become a ``</think>`` tag."""
        yield from self._think.close()

    def _read(self, chunk: Any, part: str) -> Iterator[Event]:
        if not isinstance(chunk, dict):
            raise BadStream(f"JSON that is no chat completion: {_shown(chunk)}")
        if chunk.get("error") or chunk.get("object") == "error":
            raise BadStream("the server reported an error in the stream", _inner_error(chunk))
        model = chunk.get("model")
        if isinstance(model, str) and model and model != self._model:
            self._model = model
            yield Model(model)
        nothing = True
        for choice in _known(chunk, "choices", list) or ():
            if not isinstance(choice, dict):
                raise BadStream(f"a choice that is no object: {_shown(choice)}")
            # With n > 1 several answers come interleaved: the first one to speak is heard.
            # (Not simply index 0, because some servers count from 1 and some not at all.)
            index = choice.get("index")
            if self._index is None:
                self._index = index
            if index != self._index:
                continue
            for event in self._choice(choice, part):
                nothing = False
                yield event
            break
        if usage := read_usage(chunk.get("usage")):
            nothing = False
            yield usage
        if nothing:
            yield _ALIVE

    def _choice(self, choice: dict[str, Any], part: str) -> Iterator[Event]:
        delta = _known(choice, part, dict) or {}
        for name in ("reasoning_content", "reasoning"):
            if isinstance(words := delta.get(name), str) and words:
                yield Piece("reasoning", words)
                break
        if content := _text_of(delta):
            yield from self._think.feed(content)
        if isinstance(refusal := delta.get("refusal"), str) and refusal:
            yield Piece("refusal", refusal)
        if reason := choice.get("finish_reason"):
            yield from self._think.close()
            yield Finish(str(reason))


class ThinkSplitter:
    """Keeps ``<think>...</think>`` at the start of an answer apart from the answer.

    Only at the start: an answer that talks about the tag keeps it.
    """

    def __init__(self) -> None:
        self._held = ""
        self._state: Literal["start", "thinking", "after", "text"] = "start"

    def feed(self, piece: str) -> Iterator[Piece]:
        """The pieces that are certain now; a possible half tag is held back."""
        if self._state == "text":
            yield Piece("text", piece)
            return
        held = self._held + piece
        self._held = ""
        if self._state == "thinking":
            yield from self._thinking(held)
            return
        opening = held.lstrip()
        if opening.startswith(OPEN):
            self._state = "thinking"
            yield from self._thinking(opening.removeprefix(OPEN))
        elif OPEN.startswith(opening) and len(held) < _LONGEST_HELD:
            self._held = held
        else:
            # Blank lines between the reasoning and the answer belong to neither.
            words = opening if self._state == "after" else held
            self._state = "text"
            yield Piece("text", words)

    def close(self) -> Iterator[Piece]:
        """Gives back what was held."""
        held, self._held = self._held, ""
        if self._state == "after":
            held = held.lstrip()
        if held:
            yield Piece("reasoning" if self._state == "thinking" else "text", held)

    def _thinking(self, words: str) -> Iterator[Piece]:
        before, closed, after = words.partition(CLOSE)
        if closed:
            self._state = "after"
            if before:
                yield Piece("reasoning", before)
            yield from self.feed(after) if after else ()
            return
        keep = next(n for n in range(len(CLOSE) - 1, -1, -1) if words.endswith(CLOSE[:n]))
        self._held = words[len(words) - keep :]
        if sure := words[: len(words) - keep]:
            yield Piece("reasoning", sure)


def read_usage(usage: Any) -> Usage | None:
    """A provider's usage object as ours, or None where there is none."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    return Usage(
        input_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
        # DeepSeek has a field of its own for what it read from its cache.
        cached_tokens=_count(details, "cached_tokens") or _count(usage, "prompt_cache_hit_tokens"),
        cache_write_tokens=_count(details, "cache_write_tokens"),
        reasoning_tokens=_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e15 else 0


def _text_of(delta: dict[str, Any]) -> str:
    """Content as text: a string, or a list of parts as some gateways send."""
    content = _known(delta, "content", (str, list))
    if isinstance(content, list):
        parts = (_known(part, "text", str) for part in content if isinstance(part, dict))
        return "".join(part for part in parts if part)
    return content or ""


def _known(holder: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a kind, or None.

    Raises:
        BadStream: It is something else. An answer that lacks these words would pass for whole.
    """
    value = holder.get(name)
    if value is not None and not isinstance(value, kind):
        raise BadStream(f"a {name!r} that no answer has: {_shown(value)}")
    return value


def _inner_error(chunk: Any) -> Any:
    if isinstance(chunk, dict):
        return chunk.get("error") or (chunk if chunk.get("object") == "error" else None)
    return chunk


def read_json(data: bytes) -> Any:
    """The value of one JSON text.

    Raises:
        BadStream: When the bytes are not UTF-8 or not JSON.
    """
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise BadStream(f"bytes that are not UTF-8: {_excerpt(data)}") from error
    except (ValueError, RecursionError) as error:
        raise BadStream(f"a line that is not JSON: {_excerpt(data)}") from error


def _shown(value: Any) -> str:
    try:
        return _excerpt(json.dumps(value))
    except RecursionError:
        # Writing takes a little deeper a stack than reading did.
        return "[[[…"


def _excerpt(data: bytes | str, limit: int = 80) -> str:
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
