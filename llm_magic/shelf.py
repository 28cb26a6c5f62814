"""Where an answer may be found instead of asked for, and where it is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from llm_magic.cassette import Cassette
from llm_magic.entries import (
    WHOLE,
    Cache,
    Entry,
    Fingerprint,
    Trouble,
    describe,
    fingerprint,
    normalised,
    pack,
    unpack,
    unpack_once,
)
from llm_magic.errors import ReplayMissing, StoreError
from llm_magic.types import Request, Response

_NOTHING = Decimal(0)
_LOOKED_AT = 200


@dataclass(frozen=True, slots=True)
class Shelf:
    """The stores as one call may use them.

    Attributes:
        cache: The kernel's cache.
        trouble: Told what is worked around.
        cassette: The cassette that is in, if one is.
        ttl: Seconds after which a cached answer is asked anew; None never.
        reads: Whether what is there counts; not with ``--fresh``.
        writes: Whether a new answer is kept; neither with ``--no-cache``.
        records: Whether the cassette only takes down and is not read (``--record``).
        replays: Whether nothing is ever asked.
    """

    cache: Cache
    trouble: Trouble
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
            raise self.missing(print_)
        return None

    def find_many(self, prints: Sequence[Fingerprint]) -> list[Response | None]:
        """The kept answers of requests, in their order; None where there is none.

        So it is with ``replays`` as well: whether to go on without an answer, or to raise
        ``missing``, is the caller's to decide.

        Raises:
            StoreError: The cassette cannot be read.
        """
        if not (self.reads or self.replays):
            return [None] * len(prints)
        entries = self._find_many(prints)
        return [
            _response(print_, entry) if entry else None
            for print_, entry in zip(prints, entries, strict=True)
        ]

    def _find_many(self, prints: Sequence[Fingerprint]) -> list[Entry | None]:
        cassette = self.cassette if self.replays or not self.records else None
        found = [cassette.get(print_.key) if cassette else None for print_ in prints]
        if cassette and self.replays:
            return found
        open_ = [place for place, entry in enumerate(found) if entry is None]
        rows = self.cache.get_many([prints[place].key for place in open_])
        oldest = -math.inf if self.ttl is None else time.time() - self.ttl
        cached: list[tuple[Fingerprint, Entry]] = []
        for place in open_:
            row = rows.get(prints[place].key)
            entry = unpack_once(prints[place], row) if row else None
            if entry and entry.time >= oldest:
                found[place] = entry
                cached.append((prints[place], entry))
        if self.writes:
            self._record(cached)
        return found

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
        if self.writes:
            self._record([(print_, entry)])
        return entry

    def missing(self, print_: Fingerprint) -> ReplayMissing:
        """The error for a request that may not be asked and has no kept answer."""
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
        for model in self.replayed_models(request):
            print_ = fingerprint(replace(request, model=model))
            if entry := self._find(print_):
                return _response(print_, entry)
        return self.find(fingerprint(request))

    def replayed_models(self, request: Request) -> list[str]:
        """The models of this server that the cassette has answers of."""
        return self.cassette.models(request.base_url) if self.cassette else []

    def keep_many(self, answers: Sequence[tuple[Fingerprint, Response]]) -> None:
        """Keeps whole answers, as if one after the other.

        They are paid for, so no fault of a store may take them away. One that ended for a reason
        of the server's own is not kept.
        """
        if self.writes:
            entries = [
                (print_, _entry(response))
                for print_, response in answers
                if response.finish_reason in WHOLE
            ]
            self.cache.put_many([(print_.key, pack(print_, entry)) for print_, entry in entries])
            self._record(entries)

    def _record(self, answers: Sequence[tuple[Fingerprint, Entry]]) -> None:
        if self.cassette is None or not answers:
            return
        try:
            self.cassette.record_many(answers)
        except StoreError as error:
            what = "The answer is" if len(answers) == 1 else f"{len(answers):,} answers are"
            self.trouble(f"{error.args[0]} {what} not recorded.", error.fix)

    def last_model(self, request: Request) -> str | None:
        """A model that this server has answered with, for a request that names none.

        Of several the one that has answered this request; else the one that was used last.
        """
        here = normalised(request.base_url)
        models: dict[str, None] = {}
        for row in self.cache.rows(_LOOKED_AT) if self.reads else ():
            found = describe(row.key, row.value)
            if found and found[0]["url"] == here:
                models[found[0]["body"]["model"]] = None
        for model in models:
            if self.cache.get(fingerprint(replace(request, model=model)).key):
                return model
        return next(iter(models), None)


def _entry(response: Response) -> Entry:
    return Entry(
        text=response.text,
        reasoning=response.reasoning,
        model=response.model,
        finish_reason=response.finish_reason,
        usage=response.usage,
        cost=response.cost,
        seconds=response.seconds,
        time=time.time(),
    )


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
