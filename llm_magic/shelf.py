"""Where an answer may be found instead of asked for, and where it is kept."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from decimal import Decimal

from llm_magic.cache import (
    Cache,
    Entry,
    Fingerprint,
    fingerprint,
    normalised,
    pack,
    seal,
    unpack,
    unseal,
)
from llm_magic.cassette import Cassette
from llm_magic.errors import ReplayMissing
from llm_magic.types import Request, Response

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class Shelf:
    """The stores as one call may use them.

    Attributes:
        cache: The kernel's cache.
        cassette: The cassette that is in, if one is.
        ttl: Seconds after which a cached answer is asked anew; None never.
        reads: Whether what is there counts; not with ``--fresh``.
        writes: Whether a new answer is kept; neither with ``--no-cache``.
        records: Whether the cassette only takes down and is not read (``--record``).
        replays: Whether nothing is ever asked.
    """

    cache: Cache
    cassette: Cassette | None = None
    ttl: float | None = None
    reads: bool = True
    writes: bool = True
    records: bool = False
    replays: bool = False

    @property
    def shared(self) -> bool:
        """Whether equal calls at the same time are one call."""
        return self.reads and self.writes

    def find(self, print_: Fingerprint) -> Response | None:
        """The kept answer of a request, or None.

        Raises:
            StoreError: The cassette cannot be read.
            ReplayMissing: Nothing may be asked, and there is no answer.
        """
        entry = self._find(print_) if self.reads or self.replays else None
        if entry:
            return _response(print_, entry)
        if self.replays:
            raise self._missing(print_)
        return None

    def _find(self, print_: Fingerprint) -> Entry | None:
        cassette = self.cassette
        if cassette and (self.replays or not self.records):
            recorded = cassette.get(print_.key)
            if recorded or self.replays:
                return recorded
        row = self.cache.get(print_.key)
        entry = unpack(print_, row) if row else None
        if entry is None or (self.ttl is not None and time.time() - entry.time > self.ttl):
            return None
        if cassette and self.writes:
            cassette.record(print_, entry)
        return entry

    def _missing(self, print_: Fingerprint) -> ReplayMissing:
        if self.cassette:
            return self.cassette.missing(print_)
        return ReplayMissing(
            "There is no stored answer to this prompt, no cassette is in, and mode is replay; "
            "nothing was sent.",
            fix="Put a cassette in: %llm_cassette FILE. Or ask: %config LLMMagic.mode = 'live'",
        )

    def find_replayed(self, request: Request) -> Response | None:
        """The recorded answer to a request that names no model, whichever model it was.

        Raises:
            ReplayMissing: There is none.
        """
        models = self.cassette.models(request.base_url) if self.cassette else []
        for model in models:
            print_ = fingerprint(replace(request, model=model))
            if entry := self._find(print_):
                return _response(print_, entry)
        return self.find(fingerprint(request))

    def keep(self, print_: Fingerprint, response: Response) -> None:
        """Keeps a whole answer.

        Raises:
            StoreError: The cassette cannot be written; the cache never is a reason.
        """
        if not self.writes:
            return
        entry = Entry(
            text=response.text,
            reasoning=response.reasoning,
            model=response.model,
            finish_reason=response.finish_reason,
            usage=response.usage,
            cost=response.cost,
            seconds=response.seconds,
            time=time.time(),
        )
        self.cache.put(print_.key, pack(print_, entry))
        if self.cassette:
            self.cassette.record(print_, entry)

    def last_model(self, base_url: str) -> str | None:
        """The model that a server with only one had when it was last asked."""
        row = self.cache.get(_model_key(base_url)) if self.reads else None
        return unseal(_model_key(base_url), row) if row else None

    def note_model(self, base_url: str, model: str) -> None:
        """Remembers the only model of a server."""
        if self.writes and self.last_model(base_url) != model:
            key = _model_key(base_url)
            self.cache.put(key, seal(key, model))


def _model_key(base_url: str) -> str:
    return hashlib.sha256(b"only model\n" + normalised(base_url).encode()).hexdigest()


def _response(print_: Fingerprint, entry: Entry) -> Response:
    return Response(
        text=entry.text,
        value=entry.text,
        usage=entry.usage,
        model=entry.model,
        finish_reason=entry.finish_reason,
        reasoning=entry.reasoning,
        cost=_NOTHING,
        cached=True,
        request=print_.body,
        attempts=0,
        saved=entry.cost,
        age=max(0.0, time.time() - entry.time) if entry.time else None,
    )
