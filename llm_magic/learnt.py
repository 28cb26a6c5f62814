"""The rate of a server that does not tell it, from what it turns away.

A rejection says that the bucket was empty. Between two of them it was empty at both ends, so that
what was let in between is what flowed in: rate = count / seconds. Three things spoil that:

- before the first one the bucket was full, so the rate that follows is a guess. It is doubled
  until the next rejection, by smaller and smaller steps until a count is to be believed;
- where the rate grew meanwhile, the bucket ran over at first: then the last step was too much;
- where requests paused, for a Retry-After or because nobody wanted more, it was full again at
  most, and count = burst + rate * (seconds - pause), with the burst from the first count.

Later the rate grows slowly, so that rejections cost two requests in a hundred and a tenth of
the time, and faster the longer nothing is refused.

Tried and dropped: fixed steps down and up alone. A server that asks for whole seconds loses a
second of rows for each step, so that the steps have to be few and right.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort

_SOME, _MANY = 15, 40  # Requests in a count that is believed, and that is counted on no longer.
_GUESS = 0.4  # Share that is kept to of what was let in before the first rejection,
_BELOW = 0.97  # and of a measured rate.
_LEAST = 0.02  # Requests a second,
_CLOSED = 1.0  # and where nothing was let in.
_SOON = 50.0  # Requests a second that are guessed at most where next to nothing is known.
_DOUBLED = 0.25  # Seconds in which a guess is doubled, at least,
_COUNTED = 8  # and requests.
_STEP = 0.1  # Logarithm of the growth behind which a count is too low.
_RISE = 0.1  # The growth of a measured rate, twice that which is expected between two rejections:
_FEW = 60  # requests for each one that is turned away then,
_SELDOM = 10  # and seconds for each second that the server asks to wait.
_LONGEST = 30.0  # Seconds of the former, and a quarter of the latter.
_FULL = 4  # Requests that flow in while nothing is sent, which may fill a bucket.
_GAP = 1.0  # Seconds without requests after which the first count begins anew.
_REMEMBERED = 1000  # Rejections; a count is shorter than so many.


class Learnt:
    """The rate that rejections teach. Without any, there is none.

    Attributes:
        rate: Requests a second, or None while nothing is known.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._sent = 0
        self._last = -math.inf
        # Where the count begins: a number and a time at which the bucket was empty.
        self._since, self._from = 0, 0.0
        self._paused = 0.0  # Seconds since then in which less was sent than might have been.
        # Of the count up to the first rejection: its two numbers, and its seconds.
        self._began = 0, 0, 0.0
        self._burst: float | None = None
        self._refused: list[int] = []
        self._cut = -1  # The last request that was sent before the rate was last changed.
        self._slowed = 0.0  # The rate after that,
        self._quiet_since = 0.0  # when it was,
        self._together, self._hold = 1, 0.0  # how many were turned away, and seconds held for it.
        self._stride = math.log(2)  # Of the growth of a guess; then 0.
        self._level, self._at = 0.0, 0.0
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

    def sent(self, now: float, in_flight: int) -> int:
        """A request goes beside so many others; gives its number."""
        if self.rate is not None:
            self._level -= 1
        elif not in_flight and now - self._last > _GAP:
            self._since, self._from = self._sent, now
        self._last = now
        self._sent += 1
        return self._sent

    def unsent(self) -> None:
        """It did not go after all."""
        if self.rate is not None:
            self._level += 1

    def change(self, factor: float, now: float) -> None:
        """The rate is so many times what it was: others share it, or do no more."""
        if self.rate is None:
            return
        self._fill(now)
        self.rate *= factor
        self._slowed *= factor
        # What is counted so far was let in at the former rate.
        self._since, self._from, self._paused = self._sent, now, 0.0

    def held(self, now: float, until: float) -> None:
        """Nothing goes until then, and then one after the other."""
        if self.rate is None:
            return
        self._hold = max(self._hold, until - now)
        self._paused += max(0.0, until - max(now, self._at))
        self._at = max(self._at, until)
        self._level = min(self._level, 1.0)

    def rejected(self, number: int, sent: float, now: float, pause: float = 1.0) -> None:
        """The request with this number was turned away.

        Args:
            number: What ``sent`` gave.
            sent: When it was sent.
            now: The time.
            pause: Seconds after which a request may be tried again.
        """
        insort(self._refused, number)
        del self._refused[:-_REMEMBERED]
        self._together += 1
        if number <= self._cut:
            return
        count, seconds = self._let_in(self._since, number - 1), max(1e-3, sent - self._from)
        if self.rate is None:
            self._began = self._since, number - 1, seconds
            # Of few requests a rejection says little. One at the beginning, where others have used
            # a limit up, must not bring a run to a crawl: after the pause, one is let in.
            soon = min(_SOON, 1 / max(1e-3, pause)) if count < _COUNTED else 0.0
            rate, again = max(1.0, soon, _GUESS * count / seconds), True
        else:
            paused = min(self._paused, 0.999 * seconds)
            rate, again = self._slower(self.rate, max(1, count), seconds, paused)
            if count <= 0:
                # Nothing at all: it may be closed, which says nothing of its rate.
                rate = self.rate if paused > seconds / 2 else max(rate, min(self.rate, _CLOSED))
        self.rate = self._slowed = max(_LEAST, rate)
        self._cut = self._sent
        if again:
            # What was sent after this one met an empty bucket as well.
            self._since, self._from, self._paused = self._cut, now, 0.0
        self._quiet_since, self._together, self._hold, self._binding = now, 1, 0.0, False
        self._level, self._at = 0.0, max(now, self._at)

    def _let_in(self, since: int, until: int) -> int:
        refused = bisect_right(self._refused, until) - bisect_right(self._refused, since)
        return until - since - refused

    def _slower(self, rate: float, count: int, seconds: float, paused: float) -> tuple[float, bool]:
        """The rate by a new count, and whether the next one begins here."""
        least, step = count / seconds, self._stride or _STEP
        # Where it was slower most of the time, the bucket was full, and the last step too much.
        before = rate * math.exp(-step) if rate > self._slowed * math.exp(step) else 0.0
        if paused * least > _SOME or self._hold * least > _FULL:
            self._stride = 0.0 if count >= _MANY else min(self._stride, 2 * _STEP)
            most = min(rate, count / (seconds - paused))
            return _BELOW * max(before, self._filled(count, seconds - paused, least, most)), True
        if before:
            self._stride = self._stride / 2 if self._stride > 2 * _STEP else 0.0
            return max(least, before), True
        if count >= _SOME:
            self._stride = 0.0
            return _BELOW * min(rate, least), count >= _MANY
        return min(0.8 * rate, math.sqrt(rate * least)), False

    def _filled(self, count: int, active: float, least: float, most: float) -> float:
        """The rate between these two, where the bucket may have filled in a pause."""
        if self._burst is None:
            # The first rejection is the last, as yet. Of those sent before it all are known now.
            since, last, until = self._began
            full = self._let_in(since, last)
            if count - full < _SOME or active < 1.3 * until:
                # The two counts are too much alike.
                return math.sqrt(least * most)
            found = min(most, (count - full) / (active - until))
            self._burst = max(1.0, full - found * until)
        return min(most, max(least, (count - self._burst) / active))

    def _growth(self, rate: float, quiet: float) -> float:
        """Logarithm of the growth in a second, after so many without a rejection."""
        if self._stride:
            return self._stride / max(_DOUBLED, self._hold, _COUNTED / rate)
        few = min(_LONGEST, _FEW * self._together / rate)
        seldom = max(few, min(4 * _LONGEST, _SELDOM * self._hold))
        return min(0.5, _RISE * quiet / seldom**2)

    def _fill(self, now: float) -> None:
        if self.rate is None or now <= self._at:
            return
        elapsed = now - self._at
        self._at = now
        # What a late timer missed is made up for, but no more than that.
        most = 1 + 0.01 * self.rate
        self._level += self.rate * elapsed
        if self._level > most:
            # Nobody wanted more.
            self._paused += (self._level - most) / self.rate
            self._level, self._binding = most, False
        elif self._binding:
            growth = self._growth(self.rate, now - self._quiet_since) * elapsed
            # A request is tried before the next step.
            self.rate *= math.exp(min(growth, math.log(2)))
