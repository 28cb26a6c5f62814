"""The connection to a Redis or Valkey server, or to a Cluster of them, and what becomes of faults.

Nothing waits long for it: a server that does not answer is given up after a fraction of a second,
and not asked again for a second. The library's own defaults would hold a cell for 5 s when the
server is down and for more than 40 s when it is frozen.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from llm_magic.secret import Secret
from llm_magic.stores.redis import faults
from llm_magic.stores.redis.faults import Fault
from llm_magic.stores.redis.line import Lines
from llm_magic.stores.redis.many import primaries

RETRY = 1.0
"""Seconds after which a server that could not be used is tried again."""

LOOK = 60.0
"""Seconds after which it is looked again whether it evicts."""

_PORT = 6379
_SCANNED = 1000
_NO_EVICTION = ("", "noeviction")

T = TypeVar("T")


class Server:
    """A server, to which nothing connects before it is needed. Threads and forks may share it.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with a user where there is one.
        password: The user's, or the server's.
        patience: Most seconds to wait for a connection, and for an answer.

    Attributes:
        place: Host, port and database, or the path, as messages name it.
        patience: The seconds.
    """

    def __init__(self, url: str, password: str = "", patience: float = 0.3) -> None:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        self._password = Secret(
            password or unquote(parts.password or "") or query.pop("password", "")
        )
        self._user = unquote(parts.username or "") or query.pop("username", "")
        self.patience = patience
        # Options of a URL would come before ours: no other one than these may stand in it.
        self._tls, self._unix = parts.scheme == "rediss", parts.scheme == "unix"
        allowed = ("db", "ssl_") if self._tls else ("db",)
        query = {name: query[name] for name in query if name.startswith(allowed)}
        self._host, self._port = parts.hostname or "localhost", parts.port or _PORT
        shown = f"[{self._host}]" if ":" in self._host else self._host
        netloc = "" if self._unix else f"{shown}:{self._port}"
        # Not by urlunsplit: it takes the // from a path on this machine.
        rest = urlunsplit(("", "", parts.path, urlencode(query), ""))
        self._url = f"{parts.scheme}://{netloc}{rest}"
        self._login = self._url, self._user, self._password
        db = query.get("db") or (not self._unix and parts.path.strip("/")) or "0"
        self._path = unquote(parts.path)
        path = self._path if db == "0" else f"{self._path} db {db}"
        self.place = path if self._unix else f"{netloc}/{db}"
        self._begin()
        _all.add(self)

    def __repr__(self) -> str:
        return f"Server({self.place!r})"

    def __reduce__(self) -> Any:
        raise TypeError("a connection to Redis is not to be pickled: it has a password")

    def _begin(self) -> None:
        """Starts unconnected, as a forked process does."""
        self._lock = threading.RLock()
        self._client: Any = None
        self._lines: tuple[Any, Lines] | None = None
        self._cluster = False
        self._nodes: list[tuple[str, int]] = []
        self._evicts: tuple[float, str] | None = None

    def do(self, work: Callable[[Any], T]) -> T:
        """Runs something with the library's client.

        Args:
            work: Is given the client, which sends a command twice where a connection broke.

        Raises:
            StoreError: It cannot be done, which has taken ``patience`` or little more. Where that
                was waited for in vain, it is raised at once within the next second.
        """
        known = _down.get(self._login)
        if known and time.monotonic() < known[1]:
            raise known[0].error(self.place)
        library, began = _library(), time.monotonic()
        done, fault = self._try(library, work)
        if fault:
            self._take(fault, time.monotonic() - began)
            raise fault.error(self.place)
        if known:
            _down.pop(self._login, None)
        return cast("T", done)

    def _try(self, library: Any, work: Callable[[Any], T]) -> tuple[T | None, Fault | None]:
        # No error is raised where the library's is caught: it would have that one for a context,
        # whose frames hold the password.
        try:
            try:
                client = self._connected(library)
            except (TypeError, ValueError) as error:
                if isinstance(error, (OSError, UnicodeError)):
                    raise
                return None, faults.of_address(error)
            return work(client), None
        except _errors(library) as error:
            return None, self._fault_of(error)

    def script(self, text: str) -> Callable[[Sequence[str], Sequence[Any]], Any]:
        """A Lua script as a function of keys and arguments, which raises StoreError as `do`."""
        name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

        def run(keys: Sequence[str], args: Sequence[Any]) -> Any:
            def work(client: Any) -> Any:
                ask = client.execute_command if self._cluster else self._lines_of(client).ask
                try:
                    return ask("EVALSHA", name, len(keys), *keys, *args)
                except _library().exceptions.NoScriptError:
                    return ask("EVAL", text, len(keys), *keys, *args)

            return self.do(work)

        return run

    def evicts(self) -> str:
        """The policy by which the server takes keys away when it is full; empty where it does not.

        Raises:
            StoreError: It cannot be used, or does not say.
        """
        now = time.monotonic()
        if self._evicts is None or now > self._evicts[0]:
            found = [
                str(each.get("maxmemory_policy", ""))
                for each in self.memory()
                if int(each.get("maxmemory", 0))
            ]
            policy = next((each for each in found if each not in _NO_EVICTION), "")
            self._evicts = now + LOOK, policy
        return self._evicts[1]

    def memory(self) -> list[dict[str, Any]]:
        """What each server that holds keys says of its memory.

        Raises:
            StoreError: It cannot be used, or does not say.
        """
        return self.do(lambda client: [each.info("memory") for each in primaries(client)])

    def scan(self, prefix: str) -> Iterator[list[bytes]]:
        """The keys that begin so, some hundred at a time; one may come twice.

        Raises:
            StoreError: It cannot be used.
        """
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", prefix) + "*"
        number = cursor = 0

        def work(client: Any) -> tuple[int, list[bytes], int]:
            nodes = primaries(client)
            if number >= len(nodes):
                return 0, [], 0
            after, keys = nodes[number].scan(cursor, pattern, _SCANNED)
            return after, keys, len(nodes)

        while True:
            cursor, keys, count = self.do(work)
            if keys:
                yield keys
            number += cursor == 0
            if number >= count:
                return

    def drop(self) -> None:
        """Lets go of all connections; the next use makes new ones."""
        with self._lock:
            client, self._client = self._client, None
            lines, self._lines = self._lines, None
        if lines is not None:
            lines[1].close()
        if client is not None:
            for each in primaries(client):
                # Not what other threads are at, which would fail in the middle of a word.
                each.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Lets go of all connections, and of what was wrong with them."""
        _down.pop(self._login, None)
        self.drop()

    def _lines_of(self, client: Any) -> Lines:
        lines = self._lines
        if lines is None or lines[0] is not client:
            self._lines = lines = client, Lines(_library(), client)
        return lines[1]

    def _connected(self, library: Any) -> Any:
        client = self._client
        if client is None:
            self._resolve()
            began = time.monotonic()
            with self._lock:
                if self._client is None:
                    if time.monotonic() - began > self.patience / 2:
                        # So long another thread has tried, in vain.
                        raise TimeoutError
                    self._client = self._open(library)
                client = self._client
        return client

    def _open(self, library: Any) -> Any:
        from redis.backoff import NoBackoff
        from redis.credentials import UsernamePasswordCredentialProvider
        from redis.retry import Retry

        options: dict[str, Any] = {
            "socket_timeout": self.patience,
            "socket_connect_timeout": self.patience,
            "protocol": 2,  # The newer one begins with further questions.
        }
        if self._user or self._password:
            # Not as plain options, which the repr of a pool shows in some versions.
            login = UsernamePasswordCredentialProvider(self._user or None, self._password)
            options["credential_provider"] = login
        # A server that was started again has closed what is in the pool. What came too late was
        # perhaps done: it is not asked for again.
        again = Retry(NoBackoff(), 1, supported_errors=(library.ConnectionError,))
        if not self._cluster:
            client = library.Redis.from_url(self._url, retry=again, **options)
            if self._unix or not _of_cluster(library, client):
                return client
            client.close()
        # The one of the address may be the one that is down, and so may the one that is asked
        # first what commands there are.
        known = [library.cluster.ClusterNode(*each) for each in self._nodes]
        once = Retry(NoBackoff(), 1)
        made = library.RedisCluster(url=self._url, startup_nodes=known, retry=once, **options)
        made.retry = Retry(NoBackoff(), 0)
        self._cluster = True
        self._nodes = [(node.host, node.port) for node in made.get_nodes()]
        return made

    def _resolve(self) -> None:
        """Looks the name up, which the system itself would do for many seconds."""
        if self._unix:
            return
        looked = threading.Event()
        thread = threading.Thread(
            target=_look_up, args=(self._host, self._port, looked), daemon=True
        )
        thread.start()
        if not looked.wait(self.patience):
            raise socket.gaierror(socket.EAI_AGAIN, "the name was not found in time")

    def _fault_of(self, error: Exception) -> Fault:
        words = str(error)
        if self._password:
            words = words.replace(self._password, "[password]")
        return faults.of_error(error, words, self.patience, self._cli(), self._user)

    def _cli(self) -> str:
        if self._unix:
            return f"redis-cli -s {shlex.quote(self._path)}"
        return f"redis-cli -h {self._host} -p {self._port}" + (" --tls" if self._tls else "")

    def _take(self, fault: Fault, seconds: float) -> None:
        # What is refused at once is asked again at once: a restart may be over.
        if fault.lasting and (fault.kind == "refused" or seconds > self.patience / 4):
            _down[self._login] = fault, time.monotonic() + RETRY
        # What is a replica now was the primary: the address may lead elsewhere by now.
        if fault.lasting or fault.kind == "replica":
            self.drop()


def _library() -> Any:
    try:
        import redis
    except ImportError as error:
        why = str(error)
    else:
        return redis
    raise faults.missing(why)


def _errors(library: Any) -> tuple[type[Exception], ...]:
    # UnicodeError: a host name that cannot be one.
    kinds = (library.RedisError, library.exceptions.RedisClusterException)
    return (*kinds, OSError, UnicodeError)


def _of_cluster(library: Any, client: Any) -> bool:
    try:
        said = client.execute_command("HELLO")
    except library.ResponseError:
        # Every user may ask; something in between may not know it.
        return False
    return b"cluster" in said


def _look_up(host: str, port: int, looked: threading.Event) -> None:
    with suppress(OSError, UnicodeError):  # The connection will say so.
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    looked.set()


# Servers that failed, and when they are tried again: a kernel's cache and ledger have a connection
# each, and are not to wait one after the other.
_down: dict[tuple[str, str, Secret], tuple[Fault, float]] = {}

_all: weakref.WeakSet[Server] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_all):
        each._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
