"""The body of an answer as events, whether it is a stream, one JSON object, or no answer at all.

Told by the first byte, not by the content type: servers label streams as text/plain or not at all,
stream to who asked for one answer, and answer at once who asked for a stream.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator

from llm_magic.decode import BadStream, Done, Event, MessageReader, StreamDecoder, read_json
from llm_magic.errors import StreamBroken
from llm_magic.whole import LARGEST

_MARK = b"\xef\xbb\xbf"
_FRONT = re.compile(rb"(?:\xef\xbb\xbf|\s)+")
_DRAIN_SECONDS = 0.1


async def body_events(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[Event]:
    """The events of a body that comes in pieces.

    Raises:
        BadStream: It is no answer.
    """
    first = await _first(pieces)
    if first[:1] in (b"{", b"[", b"<"):
        for event in whole_events(await _rest(first, pieces)):
            yield event
        return
    decoder = StreamDecoder()
    data: bytes | None = first
    while data is not None:
        for event in decoder.feed(data):
            if type(event) is Done:
                await _drain(pieces)
                return
            yield event
        data = await anext(pieces, None)
    for event in decoder.close():
        if type(event) is not Done:
            yield event


def whole_events(body: bytes) -> Iterator[Event]:
    """The events of a body that is there.

    Raises:
        BadStream: It is no answer.
    """
    start = _bare(body)
    if start[:1] == b"<":
        raise BadStream("an HTML page", start.decode(errors="replace"))
    if start[:1] in (b"{", b"["):
        yield from MessageReader().completion(read_json(start))
        return
    decoder = StreamDecoder()
    for events in (decoder.feed(start), decoder.close()):
        for event in events:
            if type(event) is Done:
                return
            yield event


async def _first(pieces: AsyncGenerator[bytes]) -> bytes:
    """What the body begins with, however that is cut."""
    start = b""
    async for data in pieces:
        start = _bare(start + data)
        if start and not _MARK.startswith(start):
            break
    return start


def _bare(body: bytes) -> bytes:
    """A body without the blanks and byte order marks in front of it."""
    front = _FRONT.match(body)
    return body[front.end() :] if front else body


async def _rest(first: bytes, pieces: AsyncGenerator[bytes]) -> bytes:
    body = bytearray(first)
    while len(body) < LARGEST and (data := await anext(pieces, None)) is not None:
        body += data
    return bytes(body)


async def _drain(pieces: AsyncGenerator[bytes]) -> None:
    """Reads to the end behind ``[DONE]``, so that the connection can serve the next call."""
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in pieces:
                pass
    except (TimeoutError, StreamBroken):
        return
