"""The only module that knows openai: a request out, events back, every fault as our error."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llm_magic.decode import BadStream, Done, Event, MessageReader, Sent, StreamDecoder, read_json
from llm_magic.errors import (
    AuthenticationFailed,
    LLMError,
    ProviderError,
    ServerUnreachable,
    StreamBroken,
)
from llm_magic.explain import explain, scrub
from llm_magic.ladder import Rung, formatted, is_openai, step_down
from llm_magic.pace import paced
from llm_magic.types import Request

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI

# OpenAI and Azure want the cap on the answer as `max_completion_tokens`, which their newest models
# alone accept. Everybody else understands `max_tokens`; some (DeepSeek, older Ollama) accept the
# new name and silently ignore it, which would make the cap no cap.
_CAP_NAMES = frozenset({"max_tokens", "max_completion_tokens"})
# Names under .localhost are this machine by RFC 6761.
_LOCAL_HOSTS = re.compile(r"^((.+\.)?localhost|127\.[\d.]+|::1|0\.0\.0\.0|host\.docker\.internal)$")
_UNWANTED = re.compile(
    r"unsupported|unrecognized|unexpected|unknown|not support|not permitted|not allowed|extra"
    r"|not implemented|invalid (field|parameter|argument)",
    re.IGNORECASE,
)
_DRAIN_SECONDS = 0.1
_LISTED_SECONDS = 10.0
_LARGEST_BODY = 64 * 1024 * 1024


def is_local(base_url: str) -> bool:
    """Whether a server is on this machine, where none needs a key."""
    return bool(_LOCAL_HOSTS.match(urlsplit(base_url).hostname or ""))


class OpenAIWire:
    """One server, spoken to through the openai client.

    Args:
        base_url: Up to and including ``/v1``.
        api_key: Key, or empty for a local server that wants none.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        parts = urlsplit(base_url)
        # For messages: a name and password in the address stay out of every output.
        self.host = parts.netloc.rpartition("@")[2]
        self.base_url = base_url
        self._key = api_key
        self._local = is_local(base_url)
        self._client: AsyncOpenAI | None = None
        self._making = asyncio.Lock()
        self._listed: tuple[float, list[str]] | None = None
        # What this server has refused so far, so that it is asked in its own way from then on.
        self._usage_on_request = True
        self._hostname = parts.hostname or ""
        new = is_openai(self._hostname)
        self._cap_field = "max_completion_tokens" if new else "max_tokens"
        self._rungs: dict[str, Rung] = {}

    def __repr__(self) -> str:
        return f"OpenAIWire({self.host!r})"

    async def ready(self) -> None:
        """Makes the client.

        Raises:
            AuthenticationFailed: No key, and the server is not a local one.
        """
        await self._connected()

    def body(self, request: Request) -> dict[str, Any]:
        """The exact JSON body that this server is sent."""
        body: dict[str, Any] = {"model": request.model, "messages": list(request.messages)}
        if request.max_tokens is not None:
            body[self._cap_field] = request.max_tokens
        body |= request.fields
        if request.schema:
            body |= formatted(body, request.schema, self._rung(request), self._hostname)
        body["stream"] = True
        if self._usage_on_request:
            body.setdefault("stream_options", {"include_usage": True})
        return body

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """The events of one answer; closing the iterator closes the connection.

        Raises:
            LLMError: The class that says what happened; its ``retryable`` says whether the same
                request may be sent again.
        """
        body, answer = await self._open(request)
        yield Sent(body)
        fault: LLMError | None = None
        try:
            async with aclosing(self._events(paced(answer.response.aiter_bytes()))) as events:
                async for event in events:
                    yield event
        except BadStream as error:
            fault = self._unreadable(error)
        finally:
            await answer.close()
        # Raised out here, because what was unreadable may hold the key, and an error raised in
        # an except clause carries the first one as its context.
        if fault:
            raise fault

    async def models(self) -> list[str]:
        """Names of the models that the server offers, in its order.

        Raises:
            LLMError: When the server does not say.
        """
        if self._listed and time.monotonic() < self._listed[0]:
            return self._listed[1]
        client = await self._connected()
        listed: Any = await self._guarded(client.get("/models", cast_to=object))
        data = listed.get("data") if isinstance(listed, dict) else None
        names = [str(item["id"]) for item in data or [] if isinstance(item, dict) and "id" in item]
        # Loading another model takes a server longer than this; a loop over prompts does not.
        self._listed = time.monotonic() + _LISTED_SECONDS, names
        return names

    async def close(self) -> None:
        """Closes the kept connections."""
        if self._client:
            await self._client.close()

    async def _connected(self) -> AsyncOpenAI:
        async with self._making:
            if self._client is None:
                self._check_key()
                self._client = await asyncio.to_thread(_make_client, self.base_url, self._key)
        return self._client

    def _check_key(self) -> None:
        if not self._key and not self._local:
            raise AuthenticationFailed(
                f"No API key for {self.host}: nothing was sent.",
                fix="Put OPENAI_API_KEY=... into a .env file beside the notebook, or use a "
                "local server: %config LLMMagic.base_url = 'http://localhost:11434/v1'",
            )
        if odd := re.search(r"[^!-~]", self._key):
            raise AuthenticationFailed(
                f"The API key has a character that no key has, at position {odd.start()} (a "
                "blank or a typographic quote, perhaps): nothing was sent.",
                fix="Set it again: OPENAI_API_KEY=... in the environment or a .env file.",
            )

    async def _open(self, request: Request) -> tuple[dict[str, Any], Any]:
        """The body that the server took, and the answer's open stream.

        A field of ours that the server refuses is given up, once.
        """
        client = await self._connected()
        given_up: set[str] = set()
        while True:
            body = self.body(request)
            try:
                return body, await self._guarded(_posted(client, body), request.model)
            except ProviderError as error:
                if self._step_down(error, body, request):
                    continue
                field = self._unwanted_field(error, body, request)
                # The cap has two names; a server that takes neither has said so when the second
                # one is refused.
                if field is None or field in given_up:
                    raise
                given_up |= {field} if field == "stream_options" else set(_CAP_NAMES)
                self._do_without(field)

    def _rung(self, request: Request) -> Rung:
        return self._rungs.get(request.model, "json_schema")

    def _step_down(self, error: ProviderError, body: dict[str, Any], request: Request) -> bool:
        """Asks for JSON in a weaker form from now on, if it was the form that was refused."""
        lower = step_down(body, error) if request.schema else None
        if lower is None:
            return False
        # By what this body had: of several requests on their way each finds its way.
        self._rungs[request.model] = lower
        return True

    def _unwanted_field(
        self, error: ProviderError, body: dict[str, Any], request: Request
    ) -> str | None:
        """The field that the server refuses, if it is one that we put there ourselves."""
        said = str(error.body)
        if error.status not in (400, 422, 500) or not _UNWANTED.search(said):
            return None
        # By what this body had, not by what is known now: of several requests on their way at
        # once each is refused, and each must find its way.
        ours = {"stream_options", *_CAP_NAMES} & body.keys() - request.fields.keys()
        return next((field for field in sorted(ours) if field in said), None)

    def _do_without(self, field: str) -> None:
        if field == "stream_options":
            self._usage_on_request = False
        else:
            (self._cap_field,) = _CAP_NAMES - {field}

    async def _guarded(self, sending: Any, model: str = "") -> Any:
        """The result of a client's call, its errors turned into ours.

        The vendor's exception is not chained: its text and its request can hold the key.
        """
        import openai

        try:
            return await sending
        except openai.APIStatusError as error:
            ours = self._refused(error, model)
        except openai.APIConnectionError as error:
            ours = self._unreachable(error)
        except openai.OpenAIError as error:
            ours = LLMError(scrub(f"The request could not be made: {error}.", self._key))
        raise ours

    def _refused(self, error: APIStatusError, model: str) -> LLMError:
        body = error.body
        if body is None or body == "":
            body = error.response.text
        body = scrub(body, self._key)
        headers = dict(error.response.headers)
        return explain(error.status_code, body, headers=headers, model=model, host=self.host)

    def _unreachable(self, error: APIConnectionError) -> ServerUnreachable:
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        reason = scrub(str(cause) or type(cause).__name__, self._key)
        fix = "Check the network and the address: %config LLMMagic.base_url"
        if self._local:
            fix = f"Is the server at {self.host} running? Start it, then run the cell again."
        return ServerUnreachable(
            f"Cannot reach {self.host}: {reason}. No answer was received.", fix=fix, retryable=True
        )

    async def _events(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Event]:
        """The body as events, whether it is a stream, one JSON object, or no answer at all.

        Told by the first byte, not by the content type: servers label streams as text/plain or
        not at all.
        """
        first = await self._first(chunks)
        if first[:1] in (b"{", b"[", b"<"):
            body = await self._whole(first, chunks)
            if first[:1] == b"<":
                raise BadStream("an HTML page", body.decode(errors="replace"))
            for event in MessageReader().completion(read_json(body)):
                yield event
            return
        decoder = StreamDecoder()
        data: bytes | None = first
        while data is not None:
            for event in decoder.feed(data):
                if type(event) is Done:
                    await self._drain(chunks)
                    return
                yield event
            data = await self._next(chunks)
        for event in decoder.close():
            if type(event) is not Done:
                yield event

    async def _first(self, chunks: AsyncIterator[bytes]) -> bytes:
        data: bytes | None = b""
        start = b""
        while data is not None and not start:
            data = await self._next(chunks)
            start += (data or b"").removeprefix(b"\xef\xbb\xbf").lstrip()
        return start

    async def _whole(self, first: bytes, chunks: AsyncIterator[bytes]) -> bytes:
        body = bytearray(first)
        while len(body) < _LARGEST_BODY and (data := await self._next(chunks)) is not None:
            body += data
        return bytes(body)

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        try:
            return await anext(chunks, None)
        except Exception as error:  # noqa: BLE001
            # Whatever the transport raises in mid-body (openai 3 gives httpx2's errors, openai 2
            # httpx's) is a lost connection.
            reason = scrub(str(error) or type(error).__name__, self._key)
            lost = StreamBroken(f"The connection to {self.host} was lost: {reason}.")
        raise lost

    async def _drain(self, chunks: AsyncIterator[bytes]) -> None:
        """Reads to the end behind ``[DONE]``, so that the connection can serve the next call."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while await self._next(chunks) is not None:
                    pass
        except (TimeoutError, StreamBroken):
            return

    def _unreadable(self, error: BadStream) -> LLMError:
        body = scrub(error.body, self._key)
        if body is None:
            return StreamBroken(f"{self.host} sent {scrub(str(error), self._key)}.")
        code = body.get("code") if isinstance(body, dict) else None
        inner = code if isinstance(code, int) and 400 <= code < 600 else None
        ours = explain(inner, body, host=self.host)
        if isinstance(ours, ProviderError):
            # The answer had begun, so it may have been counted: never asked twice.
            ours.retryable = False
        return ours


def _posted(client: AsyncOpenAI, body: dict[str, Any]) -> Any:
    """Sends a body as it is.

    Not by ``chat.completions.create``, which looks through every message and schema for what it
    might have to convert: there is nothing.
    """
    from openai import AsyncStream

    return client.post(
        "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=AsyncStream[object]
    )


def _make_client(base_url: str, api_key: str) -> AsyncOpenAI:
    """The vendor's client; half a second of importing, so not on the loop's thread.

    Retries and time limits are the engine's: the client would retry an empty account, and its
    read timeout is reset by keep-alive pings.
    """
    from openai import AsyncOpenAI

    client = AsyncOpenAI(
        base_url=base_url, api_key=api_key or "not-needed", max_retries=0, timeout=None
    )
    # Imports what openai itself puts off until the first request.
    _ = client.chat.completions
    return client
