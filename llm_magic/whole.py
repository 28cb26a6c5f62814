"""One request, one whole answer, over one kept session: the way of rows, which do not stream.

aiohttp, because the openai client's own work for each request is what limits how many fit into a
second: 680 requests a second on one core where aiohttp makes 5,000. The address and the headers are
those that the client would send.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import ClientSession

LARGEST = 64 * 1024 * 1024
"""Bytes of an answer that are read."""


class Whole(NamedTuple):
    """What a server sent back.

    Attributes:
        status: HTTP status.
        headers: By name, in whatever case is looked up.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Lost(Exception):
    """No answer, or not all of it.

    Attributes:
        begun: Whether the answer had begun, so that the request may have been counted.
    """

    def __init__(self, reason: str, *, begun: bool) -> None:
        super().__init__(reason)
        self.begun = begun


class Posting:
    """Posts to one server.

    Args:
        base_url: Up to and including ``/v1``.
        api_key: Key, or empty for a local server that wants none.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        parts = urlsplit(base_url)
        # aiohttp refuses a name and password in the address beside a key.
        place = parts.netloc.rpartition("@")[2]
        path = f"{parts.path.rstrip('/')}/chat/completions"
        self._url = urlunsplit((parts.scheme, place, path, parts.query, ""))
        self._headers = {
            "Accept": "application/json",
            "Authorization": f"Bearer {api_key or 'not-needed'}",
            "Content-Type": "application/json",
        }
        self._proxy: str | None = None
        self._session: ClientSession | None = None
        self._making = asyncio.Lock()

    async def ready(self) -> ClientSession:
        """The session, made when it is first needed."""
        if self._session is None:
            async with self._making:
                if self._session is None:
                    # A tenth of a second of importing, so not on the loop's thread.
                    context = await asyncio.to_thread(self._prepare)
                    self._session = _session(context, self._headers)
        return self._session

    def _prepare(self) -> ssl.SSLContext | None:
        import urllib.request

        import aiohttp  # noqa: F401

        parts = urlsplit(self._url)
        # Looked up once. aiohttp's trust_env would look into ~/.netrc for each request, and let a
        # password there take the key's place.
        proxies = urllib.request.getproxies()
        if not urllib.request.proxy_bypass(parts.hostname or ""):
            self._proxy = proxies.get(parts.scheme) or proxies.get("all")
        return trusted() if parts.scheme == "https" else None

    async def post(self, body: bytes) -> Whole:
        """Sends a body, and waits for the whole answer.

        Raises:
            Lost: No answer, or only a part of it.
        """
        import aiohttp

        session = await self.ready()
        begun, received = False, bytearray()
        try:
            async with session.post(self._url, data=body, proxy=self._proxy) as answer:
                begun = True
                async for piece in answer.content.iter_any():
                    received += piece
                    if len(received) > LARGEST:
                        raise Lost(f"more than {LARGEST:,} bytes of answer", begun=True)
                return Whole(answer.status, answer.headers, bytes(received))
        except (aiohttp.ClientError, OSError) as error:
            lost = Lost(_reason(error), begun=begun)
        raise lost

    async def close(self) -> None:
        """Closes the kept connections."""
        if self._session:
            await self._session.close()


def _session(context: ssl.SSLContext | None, headers: Mapping[str, str]) -> ClientSession:
    import aiohttp

    return aiohttp.ClientSession(
        # How many at once is the gate's to say, and how long is the engine's.
        connector=aiohttp.TCPConnector(limit=0, ssl=context or True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _reason(error: BaseException) -> str:
    """What happened, without the words that only aiohttp's own users know."""
    import aiohttp

    if isinstance(error, aiohttp.ClientPayloadError):
        return "it ended before the answer was whole"
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and isinstance(number, int) and number > 0:
        # "Cannot connect to host 127.0.0.1:8000 ssl:default [Connect call failed (...)]"
        return os.strerror(number)
    return str(error) or type(error).__name__


def trusted() -> ssl.SSLContext:
    """The system's certificates, or those that the environment names; read once for all servers."""
    return _read(os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None)


@lru_cache(maxsize=4)
def _read(file: str | None, folder: str | None) -> ssl.SSLContext:
    # As the openai client does; but a file that is not there vouches for nobody, and leaves local
    # servers alone.
    if file or folder:
        with suppress(OSError):
            return ssl.create_default_context(cafile=file, capath=None if file else folder)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if sys.platform in ("win32", "darwin"):
        with suppress(ImportError):
            import truststore

            found: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            return found
    context = ssl.create_default_context()
    # Containers often have none of their own.
    with suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
