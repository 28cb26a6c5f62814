"""A server's own bucket, as its ``x-ratelimit-*`` headers tell of it, kept up between answers.

An answer says what was left when its request was counted, and requests are not counted in the order
in which they were sent: of a burst of fifty, the first may say what the last one left. So what no
order explains is corrected at once, and the rest by a little with each answer, which is right on
average. The rate at which the bucket fills is (limit - remaining) / reset, known as closely as the
three numbers are written, and more closely with every answer. Between its two bounds it goes up
with the corrections upwards and down with those downwards: where they all go one way it is wrong.

Tried and dropped for the rate: the middle of the bounds. Of a small bucket they are far apart, and
where the middle was too low the bucket stayed full, and its numbers said less and less.

Tried and dropped: a share of the difference with each answer (in a burst the differences are large,
and each one that is too high is spent at once); no correction within what may have been left at any
moment since the request was sent (a burst in another order looks as if the server had more).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

_NUMBER = re.compile(r"\s*(\d+(?:\.(\d+))?)")
_PART = re.compile(r"(\d+(?:\.(\d+))?)\s*(ms|us|µs|ns|[dhms])")
_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_UNITS["ns"] = 1e-9
_EPOCH = 1e9  # Seconds; above it a reset is a moment, not a time.
# Requests by which one answer corrects what may be a matter of order. Less upwards: a request that
# was long on its way finds more in the bucket than the next one will.
_UP, _DOWN = 0.005, 0.1
_LEAN = 0.3  # Of a correction by one request: how far the rate goes from one bound to the other.
_RESERVE, _UNEVEN = 0.15, 0.05  # Share of the limit, and seconds by which requests may bunch.
_SLOWER = 0.02  # Share of the rate that a rejection costs,
_SELDOM = 0.01  # given back so slowly that this share of requests is turned away,
_LOST = 0.02  # and so much is lost by waiting, where the server asks for that.
_SOON = 120.0  # Seconds in which a bucket fills whose rate matters.
_GENERATION = 2.0  # Seconds for which a bound of the rate is believed, at least; at most twice.


class Reading(NamedTuple):
    """What one response says of one limit; reset in seconds, grain the unit it is written in."""

    limit: float
    remaining: float
    reset: float
    grain: float
    generic: bool


def duration(text: str) -> tuple[float, float] | None:
    """Seconds in ``6m0s``, ``120ms``, ``1.5`` or a moment since 1970, and how exact that is."""
    text = text.strip().lower()
    number = _NUMBER.match(text)
    if number is None:
        return None
    if number.end() == len(text):
        value = float(text)
        grain = 10.0 ** -len(number[2] or "")
        if value < _EPOCH:
            return value, grain
        scale = 1e-3 if value > 1000 * _EPOCH else 1.0
        return max(0.0, value * scale - time.time()), max(grain, 1.0)
    total, grain, end = 0.0, 1.0, 0
    for part in _PART.finditer(text):
        if text[end : part.start()].strip():
            return None
        total += float(part[1]) * _UNITS[part[3]]
        grain = _UNITS[part[3]] * 10.0 ** -len(part[2] or "")
        end = part.end()
    # Nothing is written more exactly than it is measured.
    return (total, max(grain, 1e-3)) if end == len(text) else None


def readings(headers: Mapping[str, str]) -> dict[str, Reading]:
    """What a response says of the limits on requests and on tokens; nothing where it is unclear."""
    parts: dict[str, dict[str, str]] = {}
    for name in headers:
        if "atelimit" not in name and "ATELIMIT" not in name.upper():
            continue
        words = name.lower().removeprefix("x-").split("-")
        if words[0] != "ratelimit" or len(words) not in (2, 3):
            continue
        kind = words[2] if len(words) == 3 else "any"
        if kind in ("requests", "tokens", "any"):
            parts.setdefault(kind, {})[words[1]] = headers[name]
    found = {}
    for kind, values in parts.items():
        limit = _NUMBER.match(values.get("limit", ""))
        remaining = _NUMBER.match(values.get("remaining", ""))
        reset = duration(values.get("reset", ""))
        if limit and remaining and reset and float(limit[1]) > 0:
            most = float(limit[1])
            left = min(most, float(remaining[1]))
            found[kind] = Reading(most, left, *reset, generic=kind == "any")
    return found


class Mark(NamedTuple):
    """What a mirror showed when a request went.

    Attributes:
        level: What should be left after it, without corrections.
        before: What requests took that were sent before it and perhaps not counted yet.
        taken: What all requests took so far.
        full: How often the bucket had been full.
        at: The time.
    """

    level: float
    before: float
    taken: float
    full: int
    at: float


class Mirror:
    """One bucket.

    Attributes:
        pace: Requests a second at which it fills, or None while that is not known.
    """

    def __init__(self, kind: str) -> None:
        self.pace: float | None = None
        self._counts_tokens = kind == "tokens"
        self._cost = 1.0  # What a request takes, on average.
        self._limit = 0.0
        self._level, self._at = math.inf, 0.0
        self._moved = 0.0  # The sum of all corrections.
        self._lean = 0.5  # Where the rate is between its bounds.
        self._taken, self._full = 0.0, 0
        self._said = 0.0  # What was left by the last response.
        self._usual: float | None = None  # The rate by the numbers as they are written.
        self._fresh = (0.0, math.inf)
        self._older = (0.0, math.inf)
        self._born = -math.inf
        self._trim, self._step, self._slower_at = 1.0, 0.0, -math.inf
        self._fixed = 0  # Above 0: it does not fill, but is full again at a moment.
        self._full_at = math.inf
        self._last: tuple[float, float] | None = None  # missing and reset, to tell which it is

    def rate(self) -> float | None:
        """Requests a second that it comes to; None where it says nothing of the next minutes."""
        if self.pace is None or self._fixed > 0:
            return None
        # Of a day's requests there may be thousands left.
        slow = self._limit > _SOON * self.pace * self._cost
        return None if slow and self._level > 0.1 * self._limit else self.pace

    def delay(self, now: float) -> float:
        """Seconds until it has enough for a request."""
        self._fill(now)
        missing = min(self._limit, self._cost + self._reserve()) - self._level
        if missing <= 1e-6 or self.pace is None:
            return 0.0
        if self._fixed > 0:
            return max(1e-3, self._full_at - now)
        return missing / (self.pace * self._cost * self._trim)

    def sent(self, now: float, in_flight: int) -> Mark:
        """A request goes beside so many others."""
        self._fill(now)
        self._level -= self._cost
        self._taken += self._cost
        before = in_flight * self._cost
        return Mark(self._level - self._moved, before, self._taken, self._full, now)

    def give_back(self) -> None:
        """A request took nothing."""
        self._level += self._cost

    def answered(self, tokens: int) -> None:
        """A success; what it took, if that is what counts."""
        self._trim = min(1.0, self._trim + self._step)
        if self._counts_tokens and tokens > 0:
            self._cost = tokens if self._cost == 1.0 else self._cost + (tokens - self._cost) / 16

    def rejected(self, sent: float, heard: bool, now: float, pause: float) -> bool:
        """A request was turned away; gives whether it was for this bucket, as far as is known.

        Args:
            sent: When it was sent.
            heard: Whether its response said what is left.
            now: The time.
            pause: Seconds for which nothing is sent now.
        """
        self._fill(now)
        since = self._cost * (1 + (self.pace or 0.0) * (now - sent))
        self.give_back()
        left = self._said if heard else self._level - since - self._reserve()
        if left > self._cost:
            return False
        self._move(min(0.0, since - self._level))
        self._step = _SLOWER * min(_SELDOM, _LOST / (pause * (self.pace or 1.0)))
        if now >= self._slower_at:
            self._trim = max(0.5, self._trim - _SLOWER)
            self._slower_at = now + pause
        return True

    def heard(self, reading: Reading, mark: Mark | None, now: float, in_flight: int) -> None:
        """What a response said; mark is what ``sent`` gave for its request."""
        if reading.limit != self._limit:
            self._limit, self._at = reading.limit, now
            # Those that are under way are perhaps not yet counted.
            self._level = reading.remaining - max(0, in_flight - 1) * self._cost
            self._fresh = self._older = (0.0, math.inf)
            self._fixed = 1 if reading.generic else 0
            self._last, mark = None, None
        self._said = reading.remaining
        self._kind(reading, now)
        self._bound(reading, now)
        self._fill(now)
        if mark is None:
            return
        # What is written as 3 may be 3.9.
        said, then = reading.remaining + 0.5, mark.level + self._moved
        # In whatever order they came and however late, it can be no less and no more than this.
        least = then - (self._taken - mark.taken)
        most = then + mark.before + (self.pace or 0.0) * self._cost * (now - mark.at)
        # Where the bucket was full meanwhile, an older difference is none.
        up, down = _UP * self._cost, _DOWN * self._cost
        move = max(-down, min(up, said - then)) if mark.full == self._full else 0.0
        if said < least - 0.5:
            move = min(move, said + 0.5 - least)
        elif said > most + 0.5 and mark.full == self._full:
            move = max(move, said - 0.5 - most)
        self._move(move)
        self._lean = max(0.0, min(1.0, self._lean + _LEAN * move / self._cost))

    def _move(self, by: float) -> None:
        self._level += by
        self._moved += by

    def _reserve(self) -> float:
        """What is never taken: requests do not arrive as evenly as they are sent."""
        least = 3 + _UNEVEN * (self.pace or 0.0)
        return min(_RESERVE * self._limit, least * self._cost)

    def _fill(self, now: float) -> None:
        elapsed = now - self._at
        self._at = now
        if self._fixed > 0:
            if now >= self._full_at:
                self._level, self._full_at = self._limit, math.inf
        elif self.pace is not None:
            self._level += elapsed * self.pace * self._cost * self._trim
            if self._level >= self._limit:
                self._level = self._limit
                self._full += 1

    def _kind(self, reading: Reading, now: float) -> None:
        """A bucket that fills takes the longer the emptier it is; a window ends when it ends."""
        missing = reading.limit - reading.remaining
        if self._fixed > 0 and reading.remaining < reading.limit:
            self._full_at = now + reading.reset + min(1.0, reading.grain) / 2
        if self._last is None or missing < self._last[0]:
            self._last = (missing, reading.reset)
            return
        was, reset = self._last
        if missing - was < max(3, 0.2 * was) or reset < 4 * reading.grain:
            return
        grew = reading.reset > reset + reading.grain / 2
        self._fixed = max(-3, min(3, self._fixed + (-1 if grew else 1)))
        self._last = (missing, reading.reset)

    def _bound(self, reading: Reading, now: float) -> None:
        """Takes what a reading says of the rate."""
        missing = reading.limit - reading.remaining
        if missing <= 0:
            return
        low = max(0.0, missing - 1) / (reading.reset + reading.grain)
        over = reading.reset - reading.grain
        high = missing / over if over > 0 else math.inf
        if now - self._born > _GENERATION:
            self._older, self._fresh, self._born = self._fresh, (0.0, math.inf), now
        self._fresh = _both(self._fresh, (low, high)) or (low, high)
        low, high = _both(self._fresh, self._older) or self._fresh
        usual = missing / max(reading.reset, reading.grain)
        self._usual = usual if self._usual is None else self._usual + (usual - self._usual) / 16
        each = low * (high / low) ** self._lean if low > 0.8 * high else self._usual
        self.pace = max(low, min(high, each)) / self._cost


def _both(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float] | None:
    low, high = max(one[0], other[0]), min(one[1], other[1])
    return (low, high) if low <= high else None
