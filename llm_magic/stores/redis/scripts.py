"""What the ledger's scripts are told, and how they are run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from llm_magic.stores.redis.server import Server

from llm_magic.ledger import Amount, Limit, Metric, Scope, Used
from llm_magic.stores.ledger_rows import bounded, kept, plain
from llm_magic.stores.ledger_sums import day
from llm_magic.stores.redis.keys import SHARED, Keys, text

AT_ONCE = 64
"""Calls of one script: Redis does nothing else meanwhile."""

METRICS: tuple[Metric, ...] = ("requests", "tokens", "usd")
_SECOND = 1_000_000
_MOST = 2**52

T = TypeVar("T")


class Scripts:
    """The scripts of one kernel's ledger.

    Args:
        server: Where they run.
        keys: The keys that they use.
        clock: The time in nanoseconds since 1970; None for the server's.
    """

    def __init__(self, server: Server, keys: Keys, clock: Callable[[], int] | None) -> None:
        self.keys = keys
        self._server = server
        self._clock = clock
        self._known: dict[str, Callable[[Sequence[str], Sequence[str]], Any]] = {}

    def run(
        self,
        name: str,
        header: dict[str, Any],
        asked: Any = "",
        *,
        of: Keys | None = None,
        scopes: Sequence[Scope] | None = None,
        keys: Sequence[str] = (),
        before: Sequence[str] = (),
    ) -> Any:
        """Runs a script behind what all begin with (``common.lua``).

        Args:
            name: The script's.
            header: What it is told once.
            asked: What it is to do.
            of: Whose calls these are, where not this kernel's.
            scopes: Those whose counts it looks at; all by default.
            keys: Further keys.
            before: Scripts that it needs.

        Raises:
            StoreError: Redis cannot be used.
        """
        of = of or self.keys
        scopes = of.scopes if scopes is None else scopes
        header = {**header, "scopes": len(scopes), "lasting": [each in SHARED for each in scopes]}
        if self._clock:
            header["clock"] = self._clock() // 1000
        all_keys = [*of.common, *of.counts(scopes), *keys]
        script = self.plain(name, "common", *before)
        return script(
            all_keys, [json.dumps(header), asked if type(asked) is str else json.dumps(asked)]
        )

    def of_calls(
        self,
        name: str,
        header: dict[str, Any],
        calls: Sequence[tuple[Any, ...]],
        *,
        of: Keys | None = None,
        keys: Sequence[str] = (),
        before: Sequence[str] = (),
    ) -> Any:
        """Runs a script over calls: each begins with its id, and is told the place of its key.

        Raises:
            StoreError: Redis cannot be used.
        """
        of = of or self.keys
        first = len(of.common) + len(of.counts(of.scopes)) + len(keys) + 1
        asked = [(*call, first + place) for place, call in enumerate(calls)]
        keys = [*keys, *(of.call(call[0]) for call in calls)]
        return self.run(name, header, asked, of=of, keys=keys, before=before)

    def plain(self, name: str, *before: str) -> Callable[[Sequence[str], Sequence[str]], Any]:
        """A script that takes keys and arguments."""
        if name not in self._known:
            self._known[name] = self._server.script(text(name, *before))
        return self._known[name]

    def limited(self, limits: Sequence[Limit]) -> tuple[dict[str, Any], list[str]]:
        """The header of a script that looks at limits, and the keys of the shared ones."""
        keys = self.keys
        first = len(keys.common) + len(keys.counts(keys.scopes)) + 1
        header = {
            "limits": [self.limit(each) for each in limits],
            "shared": [(keys.place(each), first + n) for n, each in enumerate(keys.shared)],
        }
        return header, [keys.of(scope, "limits") for scope in keys.shared]

    def limit(self, limit: Limit) -> tuple[int, int, int, int]:
        """A limit as scripts have it."""
        metric = METRICS.index(limit.metric) + 1
        return self.keys.place(limit.scope), metric, micros(limit.window), min(limit.cap, _MOST)

    def limit_of(self, scope: Any, metric: Any, length: Any, cap: Any) -> Limit:
        """A limit from what a script says."""
        window = int(length) / _SECOND if int(length) else None
        name = self.keys.scopes[int(scope) - 1]
        return Limit(name, METRICS[int(metric) - 1], int(cap), window)

    def today(self) -> str:
        """The local day."""
        return day(self._clock() if self._clock else time.time_ns())


def micros(seconds: float | None) -> int:
    """Seconds as whole microseconds; 0 for None."""
    return 0 if seconds is None else max(1, round(seconds * _SECOND))


def numbers(amount: Amount) -> tuple[int, int, int]:
    """An amount as scripts have it."""
    amount = kept(amount)
    return amount.requests, amount.tokens, amount.nanos


def booked(used: Used | None) -> Any:
    """What a call used, as scripts have it."""
    if used is None:
        return False
    tokens = map(bounded, (used.input_tokens, used.output_tokens, used.cached_tokens))
    amount = numbers(used.amount)
    return amount, name(used.model), *tokens, 0 if used.priced else amount[0]


def name(text_: str) -> str:
    """A name as a field can have it."""
    return plain(text_).replace("\x1f", " ")


def parts(many: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many at a time as one script takes."""
    for first in range(0, len(many), AT_ONCE):
        yield many[first : first + AT_ONCE]
