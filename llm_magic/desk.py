"""The kernel's stores and limits, built from the settings when they are first needed."""

from __future__ import annotations

import threading
import uuid
import warnings
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from functools import cached_property
from typing import Any

from llm_magic import limits as spoken
from llm_magic import sharing
from llm_magic.booking import Quota
from llm_magic.bounds import Terms, Worst, in_the_way, refusal, worst_case
from llm_magic.cassette import Cassette
from llm_magic.entries import Cache, fingerprint
from llm_magic.errors import (
    InvalidAnswer,
    QuotaExceeded,
    ReplayMissing,
    StoreError,
    StoreWarning,
)
from llm_magic.flight import Flights
from llm_magic.ledger import Limit, Metric, Saved, dollars, nanos
from llm_magic.prices import Prices
from llm_magic.settings import LLMMagic
from llm_magic.shelf import Shelf
from llm_magic.storage import open_cache, open_ledger
from llm_magic.types import Request, Response, Wish
from llm_magic.units import seconds, usd

_SAVED_AT_ONCE = 64
_DAY = 86_400.0


class Desk:
    """What one kernel remembers and may spend.

    Args:
        settings: Read at every call, so that a change counts from the next one on.
        kernel: The id of the kernel that a worker asks for; empty for a kernel's own.
        user: Whose budget it is; empty for the person who is logged in, or is set.
        run: The run over rows that a worker asks for; empty in a kernel.
    """

    def __init__(
        self, settings: LLMMagic, *, kernel: str = "", user: str = "", run: str = ""
    ) -> None:
        self.settings = settings
        self.kernel = kernel or uuid.uuid4().hex
        self._user = user
        self.run = run
        self.flights = Flights()
        self.cassette: Cassette | None = None
        self.records = self.replays = False
        self.changed: dict[Metric, tuple[int | None, float | None]] = {}
        self._cache: tuple[Any, Cache] | None = None
        self._quota: tuple[Any, Quota] | None = None
        self._prices: tuple[Any, Prices] | None = None
        self._executor: Executor | None = None
        self._saved: list[Saved] = []
        self._troubles: list[str] = []
        self._told: set[str] = set()
        self._lock = threading.RLock()

    @property
    def user(self) -> str:
        """Whose budget it is."""
        return self._user or sharing.person(user=self.settings.user, login=self._login)

    @cached_property
    def _login(self) -> str:
        # Every call needs it, and the system takes a third of a cached one to tell.
        return sharing.login_name()

    def shelf(self, wish: Wish) -> Shelf:
        """The stores as a call may use them.

        Raises:
            PromptError: What is shared has no server, or no team.
        """
        settings = self.settings
        sharing.check(settings)
        return Shelf(
            cache=self.cache,
            trouble=self.trouble,
            cassette=self.cassette,
            ttl=settings.cache_ttl,
            reads=not (wish.fresh or wish.no_cache),
            writes=not wish.no_cache,
            records=self.records,
            replays=self.replays or settings.mode == "replay",
        )

    def terms(self, wish: Wish, cell: str) -> Terms:
        """What a call may spend.

        Raises:
            PromptError: The table of prices is not one; or a team's limit has no server.
        """
        settings = self.settings
        sharing.check(settings)
        return Terms(
            self.limits(),
            self.prices,
            wish.max_cost,
            settings.quota_strict,
            cell,
            team=settings.team,
        )

    def find(self, request: Request, wish: Wish, cell: str) -> Response | None:
        """The stored answer of a request, before anything is built to ask with.

        Raises:
            ReplayMissing: Nothing may be asked, and there is none.
            StoreError: The cassette cannot be used.
        """
        shelf = self.shelf(wish)
        if request.model:
            found = shelf.find(fingerprint(request))
        elif shelf.replays:
            found = shelf.find_replayed(request)
        else:
            return None
        if found := _fitting(request, found, replays=shelf.replays):
            self.saved(found, cell)
        return found

    def outlook(
        self, request: Request, body: Mapping[str, Any], wish: Wish
    ) -> tuple[int | None, str]:
        """The cap that a request would be sent with, and what it can come to, in words."""
        shelf = replace(self.shelf(wish), replays=False)
        if not request.model:
            request = replace(request, model=shelf.last_model(request) or "")
        found = shelf.find(fingerprint(request)) if request.model else None
        if found := _fitting(request, found):
            words = f"Answered already ({found.status()}): running it costs nothing."
            return request.max_tokens, words
        terms = self.terms(wish, "")
        try:
            standing = self.now(self.quota.ledger.standing, terms.limits)
            worst = worst_case(request, body, terms, standing)
            if full := in_the_way(worst, standing):
                raise refusal(full, terms.team)
        except (QuotaExceeded, StoreError) as error:
            return request.max_tokens, f"Not in the cache, and it would be refused: {error}"
        return worst.request.max_tokens, f"{_most(worst)} Not in the cache."

    def saved(self, response: Response, cell: str) -> None:
        """Notes an answer that was not paid again."""
        cost = nanos(response.saved) if response.saved else 0
        noted = Saved(response.model, cell, response.usage.total_tokens, cost)
        with self._lock:
            self._saved.append(noted)
            due = len(self._saved) >= _SAVED_AT_ONCE
        if due:
            self._write_saved()

    def _write_saved(self) -> None:
        with self._lock:
            saved, self._saved = self._saved, []
        # Handed over many at a time: waking the ledger's thread takes longer than a hit.
        if saved:
            with suppress(StoreError):
                self.quota.later(self.quota.ledger.saved_many, saved)

    @property
    def cache(self) -> Cache:
        """The cache that is set."""
        settings = self.settings
        made_for = (settings.cache_dir, settings.cache_size, *self.place, settings.cache_ttl)
        if self._cache is None or self._cache[0] != made_for:
            with self._lock:
                if self._cache is None or self._cache[0] != made_for:
                    if self._cache:
                        self._cache[1].close()
                    self._cache = made_for, open_cache(settings, self.user, self.trouble)
        return self._cache[1]

    @property
    def quota(self) -> Quota:
        """The ledger that is set.

        Raises:
            StoreError: It cannot be used, and the settings are strict.
        """
        made_for = (self.settings.ledger_dir, self.settings.quota_strict, *self.place)
        with self._lock:
            if self._quota is None or self._quota[0] != made_for:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(1, "llm_magic ledger")
                ledger = open_ledger(
                    self.settings,
                    kernel=self.kernel,
                    user=self.user,
                    run=self.run,
                    trouble=self.trouble,
                )
                self._quota = made_for, Quota(ledger, self._executor, self.trouble)
            return self._quota[1]

    @property
    def place(self) -> tuple[Any, ...]:
        """What says where the stores are, and whose; with another, they are opened anew."""
        settings = self.settings
        password = "" if settings.store == "disk" else settings.store_password(files=False)
        return settings.store, password, settings.store_scope, settings.team, self.user

    @property
    def prices(self) -> Prices:
        """The prices with the table that is set.

        Raises:
            PromptError: It is no table of prices.
        """
        own = self.settings.prices
        if self._prices is None or self._prices[0] != own:
            self._prices = dict(own), Prices(own)
        return self._prices[1]

    def limits(self) -> list[Limit]:
        """The limits that are settings, or were set for this kernel."""
        settings = self.settings
        text = settings.quota_window
        window = None if text == "kernel" else seconds(text)
        usd_ = settings.quota_usd
        set_: dict[Metric, tuple[int | None, float | None]] = {
            "requests": (settings.quota_requests, window),
            "tokens": (settings.quota_tokens, window),
            "usd": (None if usd_ is None else nanos(Decimal(str(usd_))), window),
        }
        set_ |= self.changed
        limits = [
            Limit("kernel", name, cap, span)
            for name, (cap, span) in set_.items()
            if cap is not None
        ]
        if settings.user_usd_per_day is not None:
            cap = nanos(Decimal(str(settings.user_usd_per_day)))
            command = "%config LLMMagic.user_usd_per_day = {}"
            limits.append(Limit("user", "usd", cap, _DAY, command=command))
        return [*limits, *spoken.read(settings.limits)]

    @property
    def in_usd(self) -> bool:
        """Whether a limit in USD is known, be it a setting or one that is shared."""
        if self._quota is not None and self._quota[1].in_usd:
            return True
        return any(limit.metric == "usd" for limit in self.limits())

    def budget(self) -> str:
        """``session $0.31 of $2.00`` where a limit in USD is set; else empty."""
        try:
            quota = self.quota
            limits = self.limits()
            standing = self.now(quota.ledger.standing, limits)
        except StoreError:
            return ""
        parts = [
            f"{_name_of(limit)} {usd(dollars(used))} of {usd(dollars(limit.cap))}"
            for limit, used in standing
            if limit.metric == "usd"
        ]
        return " · ".join(parts)

    def now(self, work: Any, *arguments: Any) -> Any:
        """Runs something on the ledger's thread, behind all that was booked so far, and waits."""
        self._write_saved()
        return self.quota.wait(work, *arguments)

    def trouble(self, message: str, fix: str) -> None:
        """Takes down what is worked around; told once, in the next cell that ends."""
        if message not in self._told:
            self._told.add(message)
            self._troubles.append(f"{message} {fix}".strip())

    def take_troubles(self) -> list[tuple[str, str]]:
        """What was taken down and not told yet, to be told elsewhere: what, and how to mend it."""
        taken = [(each, "") for each in self._troubles]
        self._troubles.clear()
        return taken

    def warn(self) -> None:
        """Tells what was taken down, on the caller's thread."""
        while self._troubles:
            # No file and line: the place in our source says nothing to the user.
            warnings.warn_explicit(self._troubles.pop(0), StoreWarning, "llm_magic", 1)

    def close(self) -> None:
        """Writes what is pending and closes the files."""
        self._write_saved()
        if self._executor:
            self._executor.shutdown(wait=True)
            self._executor = None
        if self._quota:
            # What it could not write stays held, and is booked in full.
            with suppress(StoreError):
                self._quota[1].ledger.close()
            self._quota = None
        if self._cache:
            self._cache[1].close()
            self._cache = None


def _fitting(request: Request, found: Response | None, *, replays: bool = False) -> Response | None:
    """A stored answer as the schema has it; one that no longer fits is none.

    Raises:
        ReplayMissing: It does not fit, and nothing may be asked.
    """
    if found is None or request.schema is None:
        return found
    try:
        return request.schema.fit(found)
    except InvalidAnswer as error:
        if not replays:
            return None
        raise ReplayMissing(
            f"The recorded answer no longer fits: {error.args[0]} Nothing was sent.",
            fix="Record it anew: run the cell with LLM_MAGIC_MODE=live",
            text=found.text,
        ) from None


def _most(worst: Worst) -> str:
    out = worst.output_tokens
    if out is None:
        return (
            f"At most {worst.input_tokens:,} tokens in, no cap on the answer (set one: "
            "--max-tokens N)."
        )
    price = "free" if worst.cost == 0 else f"at most {usd(worst.cost)}"
    if worst.cost is None:
        price = "at a price that is not known"
    return f"At most {worst.input_tokens:,} tokens in, {out:,} out, {price}."


def _name_of(limit: Limit) -> str:
    if limit.scope != "user":
        return "session" if limit.scope == "kernel" else limit.scope
    return "today" if limit.window == _DAY else "you"
