"""How many requests a second a server takes: by its headers, else by what it refuses.

A provider's limit is a bucket of requests (and one of tokens) that fills at a rate. Where the
``x-ratelimit-*`` headers come, a `Mirror` of the bucket is kept and no request goes that the bucket
has not. Where they do not, a rate is learnt from rejections (429).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from llm_magic.learnt import Learnt
from llm_magic.mirror import Mark, Mirror, readings

_LONGEST = (
    60.0  # Seconds after which one request goes whatever the headers said: they may be wrong.
)
_FIRST_HOLD, _LONGEST_HOLD = 0.05, 30.0  # Seconds, after a rejection that does not say how many.
_BELIEVED = 5  # Pauses that the server asks for, one after the other, without any success.


class Pacer:
    """When the next request may go.

    Attributes:
        held_until: Time until which the server asked everybody to wait.
        told_until: The same, where it asked here and not another one.
        share: How many keep to the same limits, this one included.
    """

    def __init__(self) -> None:
        self.held_until = self.told_until = -math.inf
        self.share = 1
        self._mirrors: dict[str, Mirror] = {}
        self._learnt = Learnt()
        self._in_a_row = 0
        self._last = -math.inf

    def rate(self) -> float | None:
        """Requests a second that are kept to, or None."""
        rates = [mirror.rate() for mirror in self._mirrors.values()]
        shares = [rate / self.share for rate in rates if rate is not None]
        known = shares if self._learnt.rate is None else [self._learnt.rate, *shares]
        return min(known, default=None)

    def divide(self, count: int, now: float) -> None:
        """So many keep to the same limits from now on, this one included.

        What a server says of its bucket is said to all of them: with each request here, the others
        are taken to send one as well. A learnt rate is what came through here.
        """
        self._learnt.change(self.share / count, now)
        self.share = count

    def hold(self, now: float, until: float) -> None:
        """Nothing goes until then, since another one was told to wait."""
        if until > self.held_until:
            self.held_until = until
            self._learnt.held(now, until)

    def delay(self, now: float) -> float:
        """Seconds until the next request may go; 0 for now."""
        if now < self.held_until:
            return self.held_until - now
        wait = self._learnt.delay(now)
        for mirror in self._mirrors.values():
            wait = max(wait, min(mirror.delay(now), self._last + _LONGEST - now))
        return wait

    def sent(self, now: float, in_flight: int) -> tuple[int, dict[str, Mark]]:
        """A request goes beside so many others; gives its number and what the mirrors said."""
        self._last = now
        marks = {}
        for kind, mirror in self._mirrors.items():
            for _ in range(self.share):
                marks[kind] = mirror.sent(now, in_flight * self.share)
        return self._learnt.sent(now, in_flight), marks

    def unsent(self) -> None:
        """It did not go after all."""
        self._learnt.unsent()
        for mirror in self._mirrors.values():
            for _ in range(self.share):
                mirror.give_back()

    def heard(
        self, marks: dict[str, Mark], headers: Mapping[str, str], now: float, in_flight: int
    ) -> bool:
        """Reads what a response says of the limits; gives whether it said anything."""
        found = readings(headers)
        for kind, reading in found.items():
            mirror = self._mirrors.get(kind)
            if mirror is None:
                mirror = self._mirrors[kind] = Mirror(kind)
            mirror.heard(reading, marks.get(kind), now, in_flight * self.share)
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
        pause = retry_after if retry_after and 0 < retry_after < math.inf else 0.0
        # Longer and longer, where the server does not say how long, or it did not help.
        tries = self._in_a_row - (_BELIEVED if pause else 0)
        if tries > 0:
            pause = max(pause, min(_LONGEST_HOLD, _FIRST_HOLD * 2 ** min(20, tries - 1)))
        self.held_until = max(self.held_until, now + pause)
        self.told_until = max(self.told_until, now + pause)
        explained = False
        for mirror in self._mirrors.values():
            for _ in range(self.share - 1):
                mirror.give_back()
            explained |= mirror.rejected(sent, heard, now, pause)
        if not explained:
            self._learnt.rejected(number, sent, now, pause)
        self._learnt.held(now, self.held_until)
