"""The scripted server itself: a thread, a listener, and which reply a request gets."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from llm_magic.testing.chunks import BAD_KEY, message_text, openai_error
from llm_magic.testing.connection import Received, Request, play, read_requests
from llm_magic.testing.playback import json_response, steps
from llm_magic.testing.replies import Reply, Step

_T = TypeVar("_T")
_LONGEST_HEAD: Final = 1_048_576


class ScriptedServer:
    """An OpenAI-compatible chat server on loopback whose every answer and fault is scripted.

    Example:
        >>> with ScriptedServer({"capital of France": "Paris."}) as server:
        ...     client = openai.OpenAI(base_url=server.url, api_key="any")
        ...     server.enqueue(FAULTS["rate_limited"])
    """

    def __init__(
        self,
        answers: Mapping[str, str | Reply] | None = None,
        *,
        default: str | Reply = "This is a scripted answer.",
        models: Sequence[str] | Mapping[str, str | Reply | Mapping[str, str | Reply]] = (
            "scripted-model",
        ),
        api_key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Describe a server; `start` or `with` starts it.

        Args:
            answers: The answer for each piece of text that the last user message may contain;
                the first match counts.
            default: The answer when nothing else fits.
            models: What `GET /v1/models` lists; as a mapping, what each of them answers where
                nothing in `answers` fits: one answer, or some by pieces of text as in `answers`.
                Chat requests may name any model.
            api_key: The only key that is let in; None: no key is needed.
            host: The address to listen on.
            port: The port to listen on; 0: a free one, the same one after a restart.
        """
        self._answers = _by_part(answers or {})
        self._default = _as_reply(default)
        self._models = tuple(models)
        named = models if isinstance(models, Mapping) else {}
        self._by_model = {model: _by_part(answer) for model, answer in named.items()}
        self._api_key = api_key
        self._address = (host, port)
        self._queue: deque[Reply] = deque()
        self._requests: list[Received] = []
        self._arrived = threading.Condition()  # guards the two above
        self._numbers = itertools.count(1)
        self._thread: threading.Thread | None = None
        # The rest belongs to the thread of the loop.
        self._loop: asyncio.AbstractEventLoop
        self._listening: socket.socket | None = None
        self._held_port: socket.socket | None = None
        self._connections: dict[asyncio.Task[None], socket.socket] = {}

    @property
    def url(self) -> str:
        """The base URL for clients, ending in `/v1`; known once the server was started."""
        host, port = self._address
        if port == 0:
            raise RuntimeError("the server has no port yet: start it first")
        return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"

    @property
    def requests(self) -> list[Received]:
        """The chat requests so far, in order (a new list every time)."""
        with self._arrived:
            return list(self._requests)

    def enqueue(self, *replies: str | Reply) -> None:
        """Say what the next answers are, in order, before `answers` and `default` count."""
        with self._arrived:
            self._queue.extend(map(_as_reply, replies))

    def reset(self) -> None:
        """Forget the enqueued answers and the recorded requests."""
        with self._arrived:
            self._queue.clear()
            self._requests.clear()

    def wait_for_requests(self, count: int, timeout: float = 30.0) -> None:
        """Wait until `count` chat requests have arrived since the start or the last `reset`.

        Args:
            count: How many requests.
            timeout: Seconds to wait at most.

        Raises:
            TimeoutError: There were fewer; the message lists them.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._requests) >= count, timeout):
                seen = [_last_user_text(request.body)[:60] for request in self._requests]
                raise TimeoutError(
                    f"expected {count} chat requests within {timeout} s, got {len(seen)}: {seen}"
                )

    def start(self) -> None:
        """Listen and serve in a daemon thread; does nothing when it runs already."""
        if self._thread is not None:
            return
        # A selector's loop on every system, for add_reader.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="llm_magic scripted server", daemon=True
        )
        self._thread.start()
        try:
            self._call(self._listen())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Close every connection and end the thread; does nothing when it is stopped already."""
        if self._thread is None:
            return
        self._call(self._shut(hold_port=False))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._thread = None

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server."""
        self.stop()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Be gone for a while: open connections are closed and new ones refused."""
        self._call(self._shut(hold_port=True))
        try:
            yield
        finally:
            self._call(self._listen())

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do something in the thread of the loop, and wait for it."""
        if self._thread is None:
            work.close()
            raise RuntimeError("the server is not running")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        listening = self._held_port or _bound_socket(self._address)
        self._held_port = None
        self._address = (self._address[0], listening.getsockname()[1])
        listening.listen(128)
        listening.setblocking(False)
        self._listening = listening
        self._loop.add_reader(listening, self._accept, listening)

    async def _shut(self, *, hold_port: bool) -> None:
        """Stop listening and drop all connections."""
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        if self._held_port is not None:
            self._held_port.close()
            self._held_port = None
        if hold_port:
            # Bound but not listening: refuses connections, and nobody else can take the port.
            self._held_port = _bound_socket(self._address)
        for task in (dropped := list(self._connections)):
            task.cancel()
        await asyncio.gather(*dropped, return_exceptions=True)
        await asyncio.sleep(0)  # An aborted transport closes its socket in the next round.

    def _accept(self, listening: socket.socket) -> None:
        # Not asyncio.start_server, nor sock_accept: when they are stopped, a connection accepted
        # a moment before belongs to nobody, stays open, and its client waits for ever.
        try:
            connection, _ = listening.accept()
        except OSError:
            return  # The client has left already.
        task = self._loop.create_task(self._converse(connection))
        self._connections[task] = connection
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        connection = self._connections.pop(task)
        if task.cancelled():
            connection.close()  # It may have been cancelled before its first step.

    async def _converse(self, connection: socket.socket) -> None:
        """Serve one connection and close it."""
        connection.setblocking(False)
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=_LONGEST_HEAD)
        except OSError:
            connection.close()
            return
        # No high-water mark: `drain` then returns when the system has taken everything.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        number = next(self._numbers)
        inbox: asyncio.Queue[Request | None] = asyncio.Queue()
        # Reading goes on during a reply, and its end is how we know that the client has left.
        reading = asyncio.create_task(read_requests(reader, writer, inbox))
        try:
            while (request := await inbox.get()) is not None:
                received, steps = self._handle(request, number)
                playing = asyncio.create_task(play(steps, writer, received))
                try:
                    await asyncio.wait({playing, reading}, return_when=asyncio.FIRST_COMPLETED)
                    if not playing.done() or isinstance(playing.exception(), ConnectionError):
                        received.closed.set()
                        return
                    usable = playing.result()
                    received.finished.set()
                    if not usable or not request.keep_alive:
                        return
                finally:
                    playing.cancel()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _handle(self, request: Request, number: int) -> tuple[Received, list[Step]]:
        """Record a request if it is for a chat answer, and decide what to answer."""
        path = request.path.partition("?")[0]
        body = request.json_object()
        received = Received(request.path, request.headers, body or {}, request.raw, number)
        is_chat = request.method == "POST" and path.endswith("/chat/completions")
        if is_chat:
            with self._arrived:
                self._requests.append(received)
                self._arrived.notify_all()
        authorization = request.headers.get("authorization", "")
        if self._api_key is not None and authorization != f"Bearer {self._api_key}":
            return received, [json_response(401, BAD_KEY)]
        if request.method == "GET" and path.endswith("/models"):
            return received, [json_response(200, self._model_list())]
        if not request.method or (is_chat and body is None):
            message = "The request is not HTTP with a JSON object in its body."
            return received, [json_response(400, openai_error(message, "invalid_request_error"))]
        if not is_chat:
            error = openai_error(f"No route {request.method} {path}.", "not_found_error")
            return received, [json_response(404, error)]
        return received, steps(self._choose(received.body), received.body)

    def _choose(self, body: dict[str, Any]) -> Reply:
        """Return the reply for a chat request, and take it out of the queue if it is from there."""
        with self._arrived:
            if self._queue:
                # A rejected request leaves its reply for the client's next attempt.
                return self._queue[0] if self._queue[0].rejected(body) else self._queue.popleft()
        asked = _last_user_text(body)
        known = itertools.chain(
            self._answers.items(), self._by_model.get(body.get("model", ""), {}).items()
        )
        return next((reply for part, reply in known if part in asked), self._default)

    def _model_list(self) -> dict[str, Any]:
        models = [
            {"id": name, "object": "model", "created": 1_764_000_000, "owned_by": "llm_magic"}
            for name in self._models
        ]
        return {"object": "list", "data": models}


def _bound_socket(address: tuple[str, int]) -> socket.socket:
    """Return a socket that has the address but does not listen yet."""
    bound = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        if os.name == "posix":
            # The port may still be busy with closed connections of the server before.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _by_part(answers: str | Reply | Mapping[str, str | Reply]) -> dict[str, Reply]:
    """Return replies by the text that asks for them; one answer alone is given to any text."""
    if not isinstance(answers, Mapping):
        return {"": _as_reply(answers)}
    return {part: _as_reply(answer) for part, answer in answers.items()}


def _as_reply(answer: str | Reply) -> Reply:
    return Reply(answer) if isinstance(answer, str) else answer


def _last_user_text(body: Mapping[str, Any]) -> str:
    """Return the text of the last user message of a chat request."""
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return message_text(message)
    return ""
