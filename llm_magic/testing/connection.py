"""One connection of the scripted server: HTTP requests read from it, steps played to it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llm_magic.testing.replies import CLOSE, RESET, ContentBytes, Repeat, Signal, Step

# Bytes: short writes are joined up to here, since a system call for each token costs more
# than making the token.
_JOINED_WRITE: Final = 65_536


@dataclass(eq=False)
class Received:
    """A chat request as the server got it, and what has become of the reply to it.

    Attributes:
        path: The requested path, with the query.
        headers: The request headers, names in lower case. Not shown by `repr`: they hold the key.
        body: The parsed JSON body; empty if the body was not a JSON object.
        raw: The body as it came.
        connection: The number of the connection, counted from 1.
        at: When the request was complete, in seconds of `time.monotonic`.
        sent_chunks: Content chunks given to the socket so far.
        closed: Set when the client has left before the reply was complete.
        finished: Set when the reply has been played to its end.
    """

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: dict[str, Any]
    raw: bytes = field(repr=False)
    connection: int
    at: float = field(default_factory=time.monotonic)
    sent_chunks: int = 0
    closed: threading.Event = field(default_factory=threading.Event, repr=False)
    finished: threading.Event = field(default_factory=threading.Event, repr=False)


@dataclass(frozen=True)
class Request:
    """An HTTP request; without a method if it was not one."""

    method: str = ""
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes = b""
    keep_alive: bool = False

    def json_object(self) -> dict[str, Any] | None:
        """The body as a JSON object, or None if it is no such thing."""
        try:
            body = json.loads(self.raw)
        except ValueError:
            return None
        return body if isinstance(body, dict) else None


async def read_requests(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    inbox: asyncio.Queue[Request | None],
) -> None:
    """Put the requests of a connection into the inbox until the client leaves, then None."""
    try:
        while True:
            await inbox.put(await _read_request(reader, writer))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    except (ValueError, asyncio.LimitOverrunError):
        await inbox.put(Request())
        while await reader.read(_JOINED_WRITE):
            pass  # The rest means nothing, but the client's leaving does.
    finally:
        inbox.put_nowait(None)


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    """Read one request. Raises ValueError if it is not HTTP."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, version = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        raw = await _read_chunked(reader)
    else:
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
    keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return Request(method, path, headers, raw, keep_alive)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readuntil(b"\r\n")
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # a trailer
    return bytes(body)


async def play(steps: list[Step], writer: asyncio.StreamWriter, received: Received) -> bool:
    """Do the steps of a reply; return whether the connection is still usable after it.

    Pauses add up to absolute times, so that late wake-ups do not slow a paced stream down.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    waiting = bytearray()
    chunks = 0
    for step in [*steps, 0.0]:
        if isinstance(step, bytes):
            waiting += step
            chunks += isinstance(step, ContentBytes)
            if len(waiting) < _JOINED_WRITE:
                continue
        if waiting:
            writer.write(bytes(waiting))
            await writer.drain()
            waiting.clear()
            received.sent_chunks += chunks
            chunks = 0
        if isinstance(step, int | float) and step:
            due += step
            await asyncio.sleep(max(0.0, due - loop.time()))
        elif isinstance(step, Repeat):
            while True:
                writer.write(step.data)
                await writer.drain()
                await asyncio.sleep(step.interval)
        elif isinstance(step, Signal):
            if step is RESET:
                _reset(writer)
            if step in (RESET, CLOSE):
                return False
            await asyncio.Event().wait()  # HANG
    return True


def _reset(writer: asyncio.StreamWriter) -> None:
    """Make the system answer the client with RST: close without lingering."""
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
