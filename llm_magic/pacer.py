"""How many requests a second a server takes: by its headers, else by what it refuses.

A provider's limit is a bucket of requests (and one of tokens) that fills at a rate. Where the
``x-ratelimit-*`` headers come, a `Mirror` of the bucket is kept and no request goes that the bucket
has not. Where they do not, nothing is known until the first rejection (429). Between two rejections
that follow each other the bucket was empty at both ends: what was let in between, divided by the
time, is the rate; how large the bucket is does not matter.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping

from llm_magic.mirror import Mirror, readings

_LONGEST = (
    60.0  # Seconds after which one request goes whatever the headers said: they may be wrong.
)
_FIRST_HOLD, _LONGEST_HOLD = 0.05, 30.0  # Seconds, after a rejection that does not say how many.


class Learnt:
    """The rate that rejections teach. Without any, there is none.

    Attributes:
        rate: Requests a second, or None while nothing is known.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._sent = 0
        self._began: float | None = None
        self._cut = -1  # The last request that was sent before the rate was last changed.
        # (number, time) of the rejections that changed it, in a row without a pause between.
        self._row: list[tuple[int, float]] = []
        self._refused: list[int] = []
        self._level, self._at = 0.0, 0.0
        self._quiet_since = 0.0
        self._binding = False

    def delay(self, now: float) -> float:
        """Seconds until the next request may go."""
        if self.rate is None:
            return 0.0
        self._fill(now)
        if self._level >= 1 - 1e-6:
            return 0.0
        self._binding = True
        return (1 - self._level) / self.rate

    def sent(self, now: float) -> int:
        """A request goes; gives its number."""
        if self._began is None:
            self._began = now
        if self.rate is not None:
            self._level -= 1
        self._sent += 1
        return self._sent

    def held(self, until: float) -> None:
        """Nothing goes until then, and then one after the other."""
        self._fill(until)
        self._level = 0.0 if self.rate is None else min(self._level, 1.0)

    def rejected(self, number: int, sent: float, now: float, hold: float) -> None:
        """The request with this number was turned away."""
        insort(self._refused, number)
        del self._refused[:-1000]
        if number <= self._cut:
            return
        paused = bool(self._row) and sent - self._row[-1][1] > max(1.0, 30 / (self.rate or 1.0))
        if paused or hold > 0.5:
            self._row.clear()
        self._row.append((number, sent))
        self._cut = self._sent
        self._learn(paused, number, sent)
        self._quiet_since, self._binding = now, False
        self._level, self._at = 0.0, now

    def _learn(self, paused: bool, number: int, sent: float) -> None:
        if self.rate is None:
            elapsed = max(1e-3, sent - (self._began or 0.0))
            self.rate = max(1.0, 0.7 * (number - len(self._refused)) / elapsed)
        elif len(self._row) < 2:
            # How much it had left after a pause or a long hold is not known.
            self.rate *= 0.9 if paused else 0.75
        else:
            measured, count = self._measured()
            lower = 0.97 * measured
            self.rate = (
                lower if count >= 15 else min(0.8 * self.rate, (count + 1) / count * measured)
            )
        self.rate = max(0.02, self.rate)

    def _measured(self) -> tuple[float, int]:
        """Requests a second that were let in since a rejection some time ago, and how many."""
        last_number, last_sent = self._row[-1]
        count, elapsed = 1, 1e-3
        for number, sent in reversed(self._row[:-1]):
            refused = bisect_left(self._refused, last_number) - bisect_left(self._refused, number)
            count = max(1, last_number - number - refused)
            elapsed = max(1e-3, last_sent - sent)
            if count >= 40:
                break
        return count / elapsed, count

    def _fill(self, now: float) -> None:
        if self.rate is None or now <= self._at:
            return
        elapsed = now - self._at
        self._at = now
        quiet = now - self._quiet_since
        if self._binding and quiet > 1:
            # Faster the longer nothing is refused: the limit may have been raised.
            self.rate *= 1 + min(0.5, 0.01 * quiet) * min(elapsed, 1.0)
        # What a late timer missed is made up for, but no more than that.
        self._level = min(1 + 0.01 * self.rate, self._level + self.rate * elapsed)


class Pacer:
    """When the next request may go.

    Attributes:
        held_until: Time until which the server asked everybody to wait.
    """

    def __init__(self) -> None:
        self.held_until = -math.inf
        self._mirrors: dict[str, Mirror] = {}
        self._learnt = Learnt()
        self._in_a_row = 0
        self._last = -math.inf

    def rate(self) -> float | None:
        """Requests a second that are kept to, or None."""
        rates = [mirror.pace for mirror in self._mirrors.values()]
        known = [rate for rate in [self._learnt.rate, *rates] if rate is not None]
        return min(known, default=None)

    def delay(self, now: float) -> float:
        """Seconds until the next request may go; 0 for now."""
        if now < self.held_until:
            return self.held_until - now
        wait = self._learnt.delay(now)
        for mirror in self._mirrors.values():
            wait = max(wait, min(mirror.delay(now), self._last + _LONGEST - now))
        return wait

    def sent(self, now: float) -> tuple[int, dict[str, float]]:
        """A request goes; gives its number and what the mirrors said."""
        self._last = now
        marks = {kind: mirror.sent(now) for kind, mirror in self._mirrors.items()}
        return self._learnt.sent(now), marks

    def unsent(self) -> None:
        """It did not go after all."""
        for mirror in self._mirrors.values():
            mirror.give_back()

    def heard(self, marks: dict[str, float], headers: Mapping[str, str], now: float) -> bool:
        """Reads what a response says of the limits; gives whether it said anything."""
        found = readings(headers)
        for kind, reading in found.items():
            mirror = self._mirrors.get(kind)
            if mirror is None:
                mirror = self._mirrors[kind] = Mirror(kind)
            mirror.heard(reading, marks.get(kind), now)
        return bool(found)

    def answered(self, tokens: int) -> None:
        """A success."""
        self._in_a_row = 0
        for mirror in self._mirrors.values():
            mirror.answered(tokens)

    def rejected(
        self, number: int, sent: float, retry_after: float | None, heard: bool, now: float
    ) -> None:
        """A request was turned away: all wait, once, and go slower."""
        if now >= self.held_until:
            self._in_a_row += 1
        if retry_after is None or not 0 < retry_after < math.inf:
            pause = min(_LONGEST_HOLD, _FIRST_HOLD * 2 ** min(20, self._in_a_row - 1))
        else:
            pause = retry_after
        self.held_until = max(self.held_until, now + pause)
        explained = False
        for mirror in self._mirrors.values():
            explained |= mirror.rejected(heard)
        if not (heard and explained):
            self._learnt.rejected(number, sent, now, pause)
        self._learnt.held(self.held_until)
