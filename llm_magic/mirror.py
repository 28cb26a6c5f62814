"""A server's own bucket, as its ``x-ratelimit-*`` headers tell of it, kept up between answers.

An answer says what was left at some moment between its request and itself; others were sent and
others were counted meanwhile. So the mirror is corrected only as far as the header cannot be
explained by any moment of that time. The rate at which the bucket fills is (limit - remaining) /
reset, known as closely as the three numbers are written, and more closely with every answer.
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
        self._fresh = (0.0, math.inf)
        self._older = (0.0, math.inf)
        self._born = -math.inf
        self._trim = 1.0
        self._fixed = 0  # Above 0: it does not fill, but is full again at a moment.
        self._full_at = math.inf
        self._last: tuple[float, float] | None = None  # missing and reset, to tell which it is

    def delay(self, now: float) -> float:
        """Seconds until it has enough for a request."""
        self._fill(now)
        missing = self._cost + self._reserve() - self._level
        if missing <= 1e-6 or self.pace is None:
            return 0.0
        if self._fixed > 0:
            return max(1e-3, self._full_at - now)
        return missing / (self.pace * self._cost * self._trim)

    def sent(self, now: float) -> float:
        """A request goes; gives what should be left after it."""
        self._fill(now)
        self._level -= self._cost
        return self._level - self._moved

    def give_back(self) -> None:
        """A request took nothing."""
        self._level += self._cost

    def answered(self, tokens: int) -> None:
        """A success; what it took, if that is what counts."""
        self._trim = min(1.0, self._trim + 2e-4)
        if self._counts_tokens and tokens > 0:
            self._cost = tokens if self._cost == 1.0 else self._cost + (tokens - self._cost) / 16

    def rejected(self, heard: bool) -> bool:
        """A request was turned away; gives whether it was for this bucket, as far as is known."""
        if not heard:
            self.give_back()
        if self._level > 2 * self._cost + self._reserve():
            return False
        self._trim = max(0.5, self._trim - 0.02)
        return True

    def heard(self, reading: Reading, mark: float | None, now: float) -> None:
        """What a response said; mark is what ``sent`` gave for its request."""
        if reading.limit != self._limit:
            self._limit, self._level, self._at = reading.limit, reading.remaining, now
            self._fresh = self._older = (0.0, math.inf)
            self._fixed = 1 if reading.generic else 0
            self._last, mark = None, None
        self._kind(reading, now)
        self._bound(reading, now)
        self._fill(now)
        then = self._level if mark is None else mark + self._moved
        low, high = min(then, self._level), max(then, self._level)
        # What is written as 3 may be 3.9.
        move = 0.0
        if low > reading.remaining + 1:
            move = reading.remaining + 1 - low
        elif high < reading.remaining:
            move = reading.remaining - high
        self._level += move
        self._moved += move

    def _reserve(self) -> float:
        """What is never taken: requests do not arrive as evenly as they are sent."""
        return min(0.1 * self._limit, 3 * self._cost) if self._limit >= 5 * self._cost else 0.0

    def _fill(self, now: float) -> None:
        elapsed = now - self._at
        self._at = now
        if self._fixed > 0:
            if now >= self._full_at:
                self._level, self._full_at = self._limit, math.inf
        elif self.pace is not None:
            more = elapsed * self.pace * self._cost * self._trim
            self._level = min(self._limit, self._level + more)

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
        if high < math.inf:
            each = math.sqrt(low * high) if low > 0.8 * high else high
            self.pace = each / self._cost
        elif low > 0:
            self.pace = low / self._cost


def _both(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float] | None:
    low, high = max(one[0], other[0]), min(one[1], other[1])
    return (low, high) if low <= high else None
