"""What the ledger's scripts are told, and how they are run."""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from llm_magic.errors import StoreError
from llm_magic.ledger import Amount, Limit, Metric, Scope, Used
from llm_magic.stores.ledger_rows import bounded, kept, plain
from llm_magic.stores.ledger_sums import KEEP, day
from llm_magic.stores.redis.keys import Keys, text
from llm_magic.stores.redis.server import Server

AT_ONCE = 64
"""Calls of one script: Redis does nothing else meanwhile."""

METRICS: tuple[Metric, ...] = ("requests", "tokens", "usd")
_SECOND = 1_000_000
_MOST = 2**52
_MINUTE = 60 * 10**9
_LONGEST = 100 * 366 * 86_400.0

T = TypeVar("T")
Script = Callable[[Sequence[bytes], Sequence[str]], Any]
_json = json.JSONEncoder(separators=(",", ":")).encode


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
        self._known: dict[tuple[str, ...], Script] = {}
        self._limited: tuple[tuple[Limit, ...], str] = (), told(limits=())
        self._today: tuple[int, str] = 0, ""

    def run(
        self,
        name: str,
        header: str = "",
        asked: Any = "",
        *,
        of: Keys | None = None,
        scopes: Sequence[Scope] | None = None,
        keys: Sequence[bytes] = (),
        before: Sequence[str] = (),
    ) -> Any:
        """Runs a script behind what all begin with (``common.lua``).

        Args:
            name: The script's.
            header: What it is told once (`told`).
            asked: What it is to do.
            of: Whose calls these are, where not this kernel's.
            scopes: Those whose counts it looks at; all by default.
            keys: Further keys.
            before: Scripts that it needs.

        Raises:
            StoreError: Redis cannot be used.
        """
        of = of or self.keys
        counted = of.counted if scopes is None else of.counts(scopes)
        whole = of.header if scopes is None else of.header_of(scopes)
        if self._clock:
            whole += f',"clock":{self._clock() // 1000}'
        whole = f"{{{whole},{header}}}" if header else f"{{{whole}}}"
        words = asked if type(asked) is str else _json(asked)
        script = self.plain(name, "common", *before)
        return script([*of.common, *counted, *keys], [whole, words])

    def of_calls(
        self,
        name: str,
        header: str,
        calls: Sequence[tuple[Any, ...]],
        *,
        of: Keys | None = None,
        keys: Sequence[bytes] = (),
        before: Sequence[str] = (),
    ) -> Any:
        """Runs a script over calls: each begins with its id, and is told the place of its key.

        Raises:
            StoreError: Redis cannot be used.
        """
        of = of or self.keys
        first = len(of.common) + len(of.counted) + len(keys) + 1
        asked = [(*call, first + place) for place, call in enumerate(calls)]
        keys = [*keys, *(of.call(call[0]) for call in calls)]
        return self.run(name, header, asked, of=of, keys=keys, before=before)

    def plain(self, *names: str) -> Script:
        """A script that takes keys and arguments, by its name and those that it needs."""
        if names not in self._known:
            script = self._server.script(text(*names))

            def run(keys: Sequence[Any], args: Sequence[str]) -> Any:
                try:
                    return script(keys, args)
                except StoreError as error:
                    raise self._harm_in(error) from None

            self._known[names] = run
        return self._known[names]

    @contextmanager
    def harm(self) -> Iterator[None]:
        """Tells of what is stored and cannot be understood as damage."""
        try:
            yield
        except StoreError as error:
            raise self._harm_in(error) from None
        except (ValueError, LookupError, TypeError, struct.error):
            raise self._damage() from None

    def _harm_in(self, error: StoreError) -> StoreError:
        """The error, or what it is where a script met what it cannot understand."""
        words = str(error.args[0])
        # One that was stopped has met nothing.
        harmed = re.search(r"WRONGTYPE|user_script", words) and "killed" not in words
        return self._damage() if harmed else error

    def _damage(self) -> StoreError:
        return StoreError(
            f"What Redis at {self._server.place} has of the quota is damaged; nothing was sent.",
            fix="Start to count anew: %llm_quota --reset",
            damaged=True,
        )

    def limited(self, limits: Sequence[Limit]) -> str:
        """What a script is told of limits, beside those that were set for all kernels.

        Raises:
            StoreError: Nothing is counted in the scope of one.
        """
        asked = tuple(limits)
        if asked != self._limited[0]:
            self._limited = asked, told(limits=[self.limit(each) for each in asked])
        return self._limited[1]

    def limit(self, limit: Limit) -> tuple[int, int, int, int]:
        """A limit as scripts have it.

        Raises:
            StoreError: Nothing is counted in its scope.
        """
        metric = METRICS.index(limit.metric) + 1
        cap = max(0, min(limit.cap, _MOST))
        return self.keys.place(limit.scope), metric, micros(limit.window), cap

    def limit_of(self, scope: Any, metric: Any, length: Any, cap: Any) -> Limit:
        """A limit from what a script says."""
        window = int(length) / _SECOND if int(length) else None
        name = self.keys.scopes[int(scope) - 1]
        return Limit(name, METRICS[int(metric) - 1], int(cap), window)

    def today(self) -> str:
        """The local day."""
        if self._clock:
            return day(self._clock())
        now = time.time_ns()
        # It begins with a minute.
        if self._today[0] != now // _MINUTE:
            self._today = now // _MINUTE, day(now)
        return self._today[1]

    def oldest(self) -> str:
        """The first local day of which usage is kept."""
        return day((self._clock() if self._clock else time.time_ns()) - KEEP)


def told(**parts: Any) -> str:
    """What a script is told, as members of its header."""
    return _json(parts)[1:-1]


def micros(seconds: float | None) -> int:
    """Seconds as whole microseconds; 0 for None."""
    return 0 if seconds is None else max(1, round(min(seconds, _LONGEST) * _SECOND))


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
