"""What the fuzzers share: how much they try, a server that sends any bytes, what must hold.

In ``make test`` a fuzzer tries the same examples every time, so that no run is flaky. With
``LLM_MAGIC_FUZZ=soak`` it tries many more, others each time. A failure prints its example and the
``@reproduce_failure`` line that repeats it; ``--hypothesis-seed=N`` repeats a whole run.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sqlite3
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, settings

import llm_magic
from llm_magic import session
from llm_magic.errors import LLMError, ReplayMissing, StoreWarning
from llm_magic.types import Response
from tests.conftest import KEY

SOAK = os.environ.get("LLM_MAGIC_FUZZ") == "soak"
TIMES = 20
"""How many times as much is tried in ``make soak``."""
HANGS = 60.0
"""Seconds after which an example is called hung; most take milliseconds."""


def fuzz(examples: int) -> settings:
    """How a fuzzer runs.

    Args:
        examples: How many it tries in ``make test``.
    """
    return settings(
        max_examples=examples * (TIMES if SOAK else 1),
        derandomize=not SOAK,
        # What is found is repeated by its printed line, not by a file in the working folder.
        database=None,
        print_blob=True,
        # Explaining takes longer than finding.
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        # A whole line over a real server: how long it takes is the machine's to say.
        deadline=None,
        suppress_health_check=[
            # The servers and sessions are meant to serve all examples of a test.
            HealthCheck.function_scoped_fixture,
            # Long streams are drawn byte by byte on purpose.
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
        ],
    )


@contextmanager
def not_hung() -> Iterator[None]:
    """Fails what never comes back, where pytest would wait with it."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"hung for {HANGS:g} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


End = Literal["whole", "cut", "reset"]


class Raw:
    """What a raw server sends.

    Args:
        pieces: The body, each piece in a chunk of its own.
        end: Whether the body comes to its end, or the connection is closed or reset before.
        status: HTTP status.
        headers: Further headers.
        kind: The content type.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        end: End = "whole",
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        kind: str = "text/event-stream",
    ) -> None:
        self.pieces = pieces
        self.end = end
        self.status = status
        self.headers = headers or {}
        self.kind = kind

    def __repr__(self) -> str:
        cut = list(itertools.accumulate(map(len, self.pieces)))
        return f"<{self.status} {self.kind} {dict(self.headers)} {self.body!r}, {cut=}, {self.end}>"

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    @property
    def head(self) -> bytes:
        """Status line and headers."""
        lines = [
            f"HTTP/1.1 {self.status} Any",
            f"Content-Type: {self.kind}",
            "Transfer-Encoding: chunked",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


_MODELS = Raw([b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'])


class RawServer:
    """A server on loopback that answers with whatever bytes it is given.

    Attributes:
        reply: Gives the answer to a request's body.
        bodies: The bodies of all chat requests.
    """

    def __init__(self) -> None:
        self.reply: Callable[[bytes], Raw] = lambda body: Raw([])
        self.bodies: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            stream = connection.makefile("rb")
            while request := _read(stream):
                first, body = request
                if first.startswith(b"GET"):
                    reply = _MODELS
                else:
                    self.bodies.append(body)
                    reply = self.reply(body)
                if not _play(connection, reply):
                    return


def _read(stream: Any) -> tuple[bytes, bytes] | None:
    first, length = stream.readline(), 0
    while (line := stream.readline()).strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return (first, stream.read(length)) if first else None


def _play(connection: socket.socket, reply: Raw) -> bool:
    """Sends a reply; returns whether the connection can be used again."""
    out = [reply.head]
    out += [b"%x\r\n%b\r\n" % (len(each), each) for each in reply.pieces if each]
    if reply.end == "whole":
        out.append(b"0\r\n\r\n")
    connection.sendall(b"".join(out))
    if reply.end == "reset":
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return reply.end == "whole"


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Attributes:
        response: The answer, or None.
        error: The error, or None.
        told: What was warned of.
    """

    response: Response | None
    error: LLMError | None
    told: Sequence[str]


def asked(prompt: str, **options: Any) -> Outcome:
    """Asks as a user does; fails on whatever is neither an answer nor an error of ours."""
    response, error = None, None
    with warnings.catch_warnings(record=True) as caught, not_hung():
        warnings.simplefilter("always")
        try:
            response = llm_magic.ask(prompt, model="m", **options)
        except LLMError as ours:
            error = ours
    for each in caught:
        assert each.category is StoreWarning, each
    told = [str(each.message) for each in caught]
    if error is not None:
        check_message(error)
    # The words of an answer are the server's, whatever they are.
    own = dict.fromkeys(("text", "value", "reasoning", "model", "finish_reason"), "")
    check_no_key(response and replace(response, **own), error, *told)
    return Outcome(response, error, told)


def check_message(error: LLMError) -> None:
    """An error says what happened, in few lines that drive no terminal."""
    assert str(error.args[0]).strip(), repr(error)
    lines = error._render_traceback_()
    # One that has no recorded answer shows the prompt that is most like it.
    assert 1 <= len(lines) <= (6 if isinstance(error, ReplayMissing) else 3), lines
    for line in lines:
        assert not any(ord(each) < 32 and each != "\t" for each in line), lines
    # A server that came to its end was never waited for in vain.
    assert "No new content" not in lines[0], lines
    assert " within " not in lines[0] or "No answer from" not in lines[0], lines


def check_no_key(*shown: Any) -> None:
    """Nowhere that a user, a log or a pickle could have it is the key."""
    for each in shown:
        assert KEY not in repr(each)
        assert KEY not in str(each)
        assert KEY not in repr(getattr(each, "__dict__", ""))
        chained = getattr(each, "__cause__", None) or getattr(each, "__context__", None)
        if chained is not None:
            check_no_key(chained)


def check_settled(ledger: Path) -> None:
    """No call is open in the ledger's file, once all is booked that was to be booked."""
    desk = session.current().desk
    desk.now(desk.quota.ledger.standing, [])
    with closing(sqlite3.connect(ledger / "ledger.db")) as db:
        found = db.execute("SELECT id, state FROM calls WHERE state IN ('held', 'sent')")
        assert found.fetchall() == []


def entries() -> int:
    """How many answers are kept."""
    here = session.current()
    here.settings.read_environment()
    return here.desk.cache.size().entries


RAN: list[str] = []
"""What was done by payloads that were unpickled, which none may be."""


def act(what: str) -> None:
    """What a payload does."""
    RAN.append(what)


class Payload:
    """A pickle that acts when it is read."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return act, ("unpickled",)
