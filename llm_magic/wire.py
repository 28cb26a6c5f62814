"""The only module that knows openai: a request out, events back, every fault as our error."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llm_magic.body import body_events, whole_events
from llm_magic.decode import BadStream, Event, Sent
from llm_magic.entries import dumps
from llm_magic.errors import (
    AuthenticationFailed,
    LLMError,
    ProviderError,
    ServerUnreachable,
    StreamBroken,
)
from llm_magic.explain import explain, pruned, scrub
from llm_magic.ladder import Rung, formatted, is_openai, step_down
from llm_magic.pace import paced
from llm_magic.types import Request
from llm_magic.whole import Lost, Posting, Whole, trusted

if TYPE_CHECKING:
    from openai import AsyncOpenAI

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
_LISTED_SECONDS = 10.0


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
        self._posting = Posting(base_url, api_key)
        self._listed: tuple[float, list[str]] | None = None
        # What this server has refused so far, so that it is asked in its own way from then on.
        self._usage_on_request = True
        self._hostname = parts.hostname or ""
        new = is_openai(self._hostname)
        self._cap_field = "max_completion_tokens" if new else "max_tokens"
        self._rungs: dict[str, Rung] = {}

    def __repr__(self) -> str:
        return f"OpenAIWire({self.host!r})"

    async def ready(self, *, whole: bool = False) -> None:
        """Makes the client, or what sends for whole answers.

        Raises:
            AuthenticationFailed: No key, and the server is not a local one.
        """
        if whole:
            self._check_key()
            await self._posting.ready()
        else:
            await self._connected()

    def body(self, request: Request, *, whole: bool = False) -> dict[str, Any]:
        """The exact JSON body that this server is sent, for a stream or for a whole answer."""
        body: dict[str, Any] = {"model": request.model, "messages": list(request.messages)}
        if request.max_tokens is not None:
            body[self._cap_field] = request.max_tokens
        body |= request.fields
        if request.schema:
            body |= formatted(body, request.schema, self._rung(request), self._hostname)
        if whole:
            return body
        body["stream"] = True
        if self._usage_on_request:
            body.setdefault("stream_options", {"include_usage": True})
        return body

    async def whole(self, request: Request) -> list[Event]:
        """The events of one answer that is not streamed.

        Raises:
            LLMError: As ``stream``.
        """
        body, answer = await self._taken(request, self._post, whole=True)
        try:
            return [Sent(body, answer.headers), *whole_events(answer.body)]
        except BadStream as error:
            fault = self._unreadable(error)
            del answer
        raise fault

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """The events of one answer; closing the iterator closes the connection.

        Raises:
            LLMError: The class that says what happened; its ``retryable`` says whether the same
                request may be sent again.
        """
        body, answer = await self._taken(request, self._stream)
        yield Sent(body, answer.response.headers)
        fault: LLMError | None = None
        try:
            # Each closed here: one that was left to the collector could be closed by it on
            # another thread, in the midst of what the loop still does with it.
            read = answer.response.aiter_bytes()
            slowly = paced(read)
            pieces = self._pieces(slowly)
            async with (
                aclosing(read),
                aclosing(slowly),
                aclosing(pieces),
                aclosing(body_events(pieces)) as events,
            ):
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
        await self._posting.close()
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

    async def _taken(
        self, request: Request, send: Callable[[dict[str, Any], str], Any], *, whole: bool = False
    ) -> tuple[dict[str, Any], Any]:
        """The body that the server took, and its answer.

        A field of ours that the server refuses is given up, once.
        """
        given_up: set[str] = set()
        while True:
            body = self.body(request, whole=whole)
            try:
                return body, await send(body, request.model)
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

    async def _stream(self, body: dict[str, Any], model: str) -> Any:
        """An open stream."""
        return await self._guarded(_posted(await self._connected(), body), model)

    async def _post(self, body: dict[str, Any], model: str) -> Whole:
        """A whole answer."""
        try:
            answer = await self._posting.post(dumps(body))
        except Lost as error:
            reason = scrub(str(error), self._key)
            ours: LLMError = self._broken(reason) if error.begun else self._unreachable(reason)
        else:
            if answer.status < 400:
                return answer
            ours = self._refused(answer.status, _parsed(answer.body), answer.headers, model)
            # A server may send the key back, and some tracebacks show what a function holds.
            del answer
        raise ours

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
            answer = error.response
            ours = self._refused(
                answer.status_code, error.body or answer.text, answer.headers, model
            )
        except openai.APIConnectionError as error:
            ours = self._unreachable(scrub(_root(error), self._key))
        except openai.OpenAIError as error:
            ours = LLMError(scrub(f"The request could not be made: {error}.", self._key))
        raise ours

    def _refused(self, status: int, body: Any, headers: Mapping[str, str], model: str) -> LLMError:
        # Of the headers only what says when to come again: a server may send the key back.
        told = {
            name.lower(): scrub(value, self._key)
            for name, value in headers.items()
            if re.match(r"retry-after|(x-)?ratelimit", name, re.IGNORECASE)
        }
        body = scrub(pruned(body), self._key)
        return explain(status, body, headers=told, model=model, host=self.host)

    def _unreachable(self, reason: str) -> ServerUnreachable:
        fix = "Check the network and the address: %config LLMMagic.base_url"
        if self._local:
            fix = f"Is the server at {self.host} running? Start it, then run the cell again."
        return ServerUnreachable(
            f"Cannot reach {self.host}: {reason}. No answer was received.", fix=fix, retryable=True
        )

    async def _pieces(self, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """The body as it comes, its faults as ours."""
        try:
            async for piece in body:
                yield piece
        except Exception as error:  # noqa: BLE001
            # Whatever the transport raises in mid-body (openai 3 gives httpx2's errors, openai 2
            # httpx's) is a lost connection.
            lost = self._broken(scrub(str(error) or type(error).__name__, self._key))
        else:
            return
        raise lost

    def _broken(self, reason: str) -> StreamBroken:
        return StreamBroken(f"The connection to {self.host} was lost: {reason}.")

    def _unreadable(self, error: BadStream) -> LLMError:
        body = scrub(pruned(error.body), self._key)
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


def _root(error: BaseException) -> str:
    """Why a connection failed, which the client wraps in its own words."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return str(error) or type(error).__name__


def _parsed(body: bytes) -> Any:
    """An error's body as JSON, or as its words."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")


def _make_client(base_url: str, api_key: str) -> AsyncOpenAI:
    """The vendor's client; half a second of importing, so not on the loop's thread.

    Retries and time limits are the engine's: the client would retry an empty account, and its
    read timeout is reset by keep-alive pings.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    client = AsyncOpenAI(
        base_url=base_url,
        api_key=api_key or "not-needed",
        max_retries=0,
        timeout=None,
        # With one of its own, each client would read all certificates again: 25 ms.
        http_client=DefaultAsyncHttpxClient(verify=trusted()),
    )
    # Imports what openai itself puts off until the first request.
    _ = client.chat.completions
    return client
