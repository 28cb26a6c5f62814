"""What makes two requests one, and the form in which an answer is kept.

The stores hold opaque bytes under a key; what they mean is decided here, so that disk, memory and
every later store keep the same inert thing: compressed JSON with a checksum, never a pickle.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from llm_magic.types import Request, Usage

if TYPE_CHECKING:
    from llm_magic.structured import Schema

VERSION = 1
"""Of the key and of the stored form: another number lets all that was stored before rest."""

NOT_IN_KEY = frozenset(
    {
        "stream",
        "stream_options",
        "user",
        "safety_identifier",
        "metadata",
        "store",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
"""Fields of a body that change neither the answer nor its price: how it travels, who asks."""

WHOLE = frozenset({"stop", "tool_calls"})
"""A server's reasons for the end of an answer that is kept."""

_CHECK_BYTES = 16
_MOST = 1e15
_COUNTS = sorted(Usage.__slots__, key="estimated".__eq__)
_PORTS = {"http": 80, "https": 443}


class Fingerprint(NamedTuple):
    """A request's identity.

    Attributes:
        key: sha256 of the canonical form, in hex.
        canonical: The request as canonical JSON; images by the sha256 of their bytes.
        body: The body in it.
    """

    key: str
    canonical: bytes
    body: Mapping[str, Any]


def fingerprint(request: Request) -> Fingerprint:
    """The identity of a request: of the whole body that it becomes, not of chosen fields.

    The cap on the answer counts under one name, however the server wants it spelt. What is absent
    differs from every value, a default included.
    """
    body = _body(request)
    if "messages" in body:
        return sign(body, request.base_url)
    body["messages"] = messages = _messages(request)
    try:
        # Calls that share all but their messages, as a table's do, have the rest written once. By
        # marshal's bytes, since dict's equality does not tell 1, 1.0 and True apart. What is no
        # plain value it refuses, or gives back as bytes, which JSON refuses.
        rest: Any = (request.model, request.max_tokens, dict(request.fields))
        plain = marshal.dumps(rest, 2)
        before, after = _around_messages(plain, request.schema, request.base_url)
    except (TypeError, ValueError):
        return sign(body, request.base_url)
    canonical = f"{before}{_encode(messages)}{after}".encode(errors="surrogatepass")
    return Fingerprint(_sum(canonical), canonical, dict(sorted(body.items())))


def _body(request: Request) -> dict[str, Any]:
    """The body, but for its messages."""
    body: dict[str, Any] = {"model": request.model}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    body |= {name: value for name, value in request.fields.items() if name not in NOT_IN_KEY}
    if request.schema:
        body["response_format"] = _form(request.schema)
    return body


@lru_cache(maxsize=64)
def _form(schema: Schema) -> dict[str, Any]:
    # The whole schema, in one form, however much of it a server takes.
    form = {"name": schema.name, "schema": schema.plain}
    return {"type": "json_schema", "json_schema": form}


@lru_cache(maxsize=64)
def _around_messages(rest: bytes, schema: Schema | None, base_url: str) -> tuple[str, str]:
    """The canonical form before and after the value of a body's messages."""
    model, max_tokens, fields = marshal.loads(rest)  # noqa: S302
    body = _body(Request((), model, base_url, max_tokens, fields, schema))
    whole = _canonical({**body, "messages": []}, base_url)
    head = _encode({name: body[name] for name in sorted(body) if name < "messages"})[1:-1]
    cut = len('{"body":{') + len(head) + bool(head) + len('"messages":')
    return whole[:cut], whole[cut + len("[]") :]


def sign(body: Mapping[str, Any], base_url: str) -> Fingerprint:
    """The identity of a body whose images are sums already, as a cassette has it.

    The order of the body's fields does not count. Within them it does: the properties of a schema
    are answered in their order, so that two classes with the same fields are two questions.
    """
    body = dict(sorted(body.items()))
    canonical = _canonical(body, base_url).encode(errors="surrogatepass")
    return Fingerprint(_sum(canonical), canonical, body)


def _canonical(body: Mapping[str, Any], base_url: str) -> str:
    body = dict(sorted(body.items()))
    return _encode({"body": body, "url": normalised(base_url), "v": VERSION})


def _sum(canonical: bytes) -> str:
    return hashlib.sha256(canonical).hexdigest()


def dumps(value: Any) -> bytes:
    """Compact JSON: the same value in the same order gives the same bytes."""
    # Models do send half a surrogate pair; an answer that is paid for is kept as it is.
    return _encode(value).encode(errors="surrogatepass")


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


@lru_cache(maxsize=64)
def normalised(base_url: str) -> str:
    """A server's address in one spelling, without name and password."""
    parts = urlsplit(base_url.strip())
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = parts.port
    place = host if port is None or port == _PORTS.get(parts.scheme) else f"{host}:{port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}{query}"


def _messages(request: Request) -> list[Mapping[str, Any]]:
    return [
        message if isinstance(message["content"], str) else _without_bytes(message)
        for message in request.messages
    ]


def _without_bytes(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose images are named by their sums: megabytes need no second home."""
    parts = [_part(part) for part in message["content"]]
    return {**message, "content": parts}


def _part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    image = part.get("image_url")
    if not isinstance(image, Mapping) or not str(image.get("url")).startswith("data:"):
        return part
    total = hashlib.sha256(image["url"].encode()).hexdigest()
    return {**part, "image_url": {**image, "url": f"sha256:{total}"}}


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole answer as it is stored.

    Attributes:
        text: The answer.
        reasoning: The model's reasoning, where it was shown.
        model: The model that the server said it used.
        finish_reason: ``"stop"`` or ``"tool_calls"``.
        usage: Tokens as the provider counted them.
        cost: What it cost, in USD; None where the price was not known.
        seconds: How long it took.
        time: Unix time in seconds when it came; 0 where that is not kept (cassettes).
    """

    text: str
    model: str
    finish_reason: str
    usage: Usage
    reasoning: str = ""
    cost: Decimal | None = None
    seconds: float = 0.0
    time: float = 0.0

    def plain(self) -> dict[str, Any]:
        """The entry as JSON values."""
        usage = self.usage
        return {
            "text": self.text,
            "reasoning": self.reasoning,
            "model": self.model,
            "finish_reason": self.finish_reason,
            "usage": {name: getattr(usage, name) for name in Usage.__slots__},
            "cost": None if self.cost is None else str(self.cost),
            "seconds": round(self.seconds, 3),
            "time": round(self.time, 3),
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Entry:
        """The entry of JSON values.

        Raises:
            ValueError: They are not those of an entry.
        """
        try:
            cost, text, finish = plain.get("cost"), plain["text"], plain["finish_reason"]
            model, reasoning = plain["model"], plain.get("reasoning", "")
            usage = Usage(**plain["usage"])
            price = None if cost is None else Decimal(cost)
            seconds, time = float(plain.get("seconds", 0.0)), float(plain.get("time", 0.0))
            *counts, estimated = (getattr(usage, name) for name in _COUNTS)
            sound = all(type(each) is int and 0 <= each < _MOST for each in counts)
            sound &= all(0 <= each < _MOST for each in (price or 0, seconds, time))
            sound &= type(estimated) is bool and finish in WHOLE
        except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"no stored answer: {error}") from None
        if not (type(text) is type(reasoning) is type(model) is str and sound):
            raise ValueError("no whole answer")
        return cls(text, model, finish, usage, reasoning, price, seconds, time)


def pack(print_: Fingerprint, entry: Entry) -> bytes:
    """A request and its answer as the bytes of one row."""
    payload = _compressed(print_.canonical + b"\n" + dumps(entry.plain()))
    return _check(print_.key, payload) + payload


def _compressed(data: bytes) -> bytes:
    # Most of the time for a kilobyte goes into making zlib's tables, which a window of 8 KB has a
    # quarter of: 9 us for 43. (Level 1 in the place of 6 gains nothing beside that.)
    bits = 13 if len(data) <= 8192 else zlib.MAX_WBITS
    deflate = zlib.compressobj(6, zlib.DEFLATED, bits, bits - 7)
    return deflate.compress(data) + deflate.flush()


def unpack(print_: Fingerprint, row: bytes) -> Entry | None:
    """The answer in a row; None where the row is damaged or of another request."""
    return _remembered(print_.key, print_.canonical, row)


def unpack_once(print_: Fingerprint, row: bytes) -> Entry | None:
    """The same for one of many rows, none of which is looked at again soon."""
    return _unpacked(print_.key, print_.canonical, row)


def _unpacked(key: str, expected: bytes, row: bytes) -> Entry | None:
    try:
        canonical, entry = _opened(key, row)
        # As text: json would first look in which Unicode the bytes are.
        return (
            Entry.of(json.loads(entry.decode(errors="surrogatepass")))
            if canonical == expected
            else None
        )
    except ValueError:
        return None


# By the bytes of the row, so that what was read once is never older than what is stored.
_remembered = lru_cache(maxsize=128)(_unpacked)


def describe(key: str, row: bytes) -> tuple[dict[str, Any], Entry] | None:
    """The canonical request and the answer of a row, for a listing; None where it is damaged."""
    try:
        canonical, entry = _opened(key, row)
        request, answer = (each.decode(errors="surrogatepass") for each in (canonical, entry))
        return json.loads(request), Entry.of(json.loads(answer))
    except ValueError:
        return None


def _opened(key: str, row: bytes) -> tuple[bytes, bytes]:
    payload = row[_CHECK_BYTES:]
    if row[:_CHECK_BYTES] != _check(key, payload):
        raise ValueError("wrong checksum")
    try:
        canonical, _, entry = zlib.decompress(payload).partition(b"\n")
    except zlib.error as error:
        raise ValueError(str(error)) from None
    return canonical, entry


def _check(key: str, payload: bytes) -> bytes:
    # With the key in it, so that a row that was moved under another key is a damaged row.
    return hashlib.blake2b(payload, digest_size=_CHECK_BYTES, key=key.encode()).digest()


Trouble = Callable[[str, str], None]
"""Told what is worked around, and how to mend it."""


class Row(NamedTuple):
    """A stored row, as a listing sees it.

    Attributes:
        key: Its key.
        value: Its bytes.
        used: Unix time in seconds when it was last read or written.
    """

    key: str
    value: bytes
    used: float


class Size(NamedTuple):
    """How much a store holds.

    Attributes:
        entries: Number of answers.
        bytes: Bytes on disk or in memory.
        limit: Most bytes that it may hold.
        place: Folder or other name of the place.
    """

    entries: int
    bytes: int
    limit: int
    place: str


class Cache(Protocol):
    """A store of rows. No method raises for a fault of the storage; ``trouble`` is told once."""

    def get(self, key: str) -> bytes | None:
        """The row of a key."""

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The rows of these keys, as far as they are there."""

    def put(self, key: str, value: bytes) -> None:
        """Keeps a row, in place of an older one."""

    def put_many(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Keeps rows, each in place of an older one, as if one after the other."""

    def delete(self, key: str) -> None:
        """Forgets a row."""

    def rows(self, limit: int | None = None) -> Iterator[Row]:
        """Rows, the last used first."""

    def drop(self, unused_since: float | None = None) -> int:
        """Forgets rows not used since a Unix time in seconds (None: all); returns how many."""

    def size(self) -> Size:
        """How much there is."""

    def close(self) -> None:
        """Writes what is pending and lets go of the files."""
