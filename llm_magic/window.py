"""How many requests a server works on at a time: as many as make it faster, and no more.

Nobody tells. What can be measured is how long answers take at one size of the window and at
another. Where a server has room, twice as many at a time take no longer; where it queues, twice as
many take twice as long and nothing is gained. So sizes are tried in pairs, and of each pair

    size = 1.4 * larger size * seconds at the smaller / seconds at the larger

within the two: all of the larger where it has room, and where it queues somewhat more than keeps it
busy. Sizes double while that pays, and are tried again later, less and less often. Where the rate
that a server lets in is known, the first step goes to what that rate needs.

Tried and dropped: the least latency as the baseline (Vegas, Gradient): answers of a model vary so
much that it throttles a server that has room. A baseline of one mean for the whole run: rows that
get longer look like a queue, and the window falls to one. Counting answers a second in each epoch:
right after a change they are those of the size before. Answers per epoch fixed in number: what is
enough for even latencies is a coin toss where they vary, hence the standard error below.
"""

from __future__ import annotations

import math

FIRST, MOST = 8, 256
MOST_BY_RATE = 1024  # Where the rate is known, which then is what limits.
_AMPLE = 1.5  # Of what the rate and the time of an answer come to, since times vary.
_ROOM = 1.4  # A short queue keeps a server busy through the gaps between requests.
_SURE = 2.0  # Standard errors before a size is called too large.
_FULL = 0.75  # Share of the window in use on average, below which a trial says nothing about it.
_LEAST, _RIPE = 8, 0.67  # Requests of a trial, and the share of them that is waited for.
_ROUNDS, _ENOUGH = 3, 4  # Times the size: a trial of a settled size, and the longest of a new one.
_ALIKE = 0.3  # Coefficient of variation that is assumed at least.
_PATIENCE, _MOST_PATIENCE = 1, 64  # Trials before a settled size is tried anew.


class Trial:
    """The first requests sent while the window had one size, and how long the quicker ones took.

    Two of three are waited for: the slowest would hold up what is found out, and say little. More
    of the same is another round, not a longer one: of a longer one other requests would count.

    Args:
        size: Of the window.
        now: When it began.
        rounds: How much longer than one round it is, where nothing else is waited for.
        skip: Requests that do not count, at the beginning.
        former: Rounds with the same size before this one.
    """

    def __init__(
        self, size: int, now: float, rounds: int = 1, skip: int = 0, former: Trial | None = None
    ) -> None:
        self.size, self.skip, self.former = size, skip, former
        self.quota = rounds * max(_LEAST, size)
        self.begun = self.at = now
        self.open = self.done = 0
        self.spent = self.squares = self.area = self.last = 0.0

    def add(self, seconds: float) -> None:
        """One was answered."""
        self.done += 1
        self.last = max(self.last, seconds)
        self.spent += seconds
        self.squares += seconds**2

    def ripe(self) -> bool:
        """Whether enough of them were answered."""
        return self.done >= _RIPE * self.quota

    def count(self) -> int:
        """Those that were answered, in all rounds."""
        return self.done + (self.former.count() if self.former else 0)

    def seconds(self) -> float:
        """Mean of an answer, of those that came."""
        return max(1e-9, self._sum() / self.count())

    def variance(self) -> float:
        """Of the logarithm of that mean."""
        return self._deviation() / self.count() ** 2 / self.seconds() ** 2

    def _sum(self) -> float:
        return self.spent + (self.former._sum() if self.former else 0.0)

    def _deviation(self) -> float:
        # Of a trimmed sum, by the winsorized variance; and few that are alike are no proof.
        count = max(self.quota, self.done)
        missing, mean = count - self.done, self.spent / self.done
        middle = (self.spent + missing * self.last) / count
        squares = (self.squares + missing * self.last**2) / count - middle**2
        own = max(squares * count, _ALIKE**2 * mean**2 * self.done)
        return own + (self.former._deviation() if self.former else 0.0)


class Window:
    """The size, moved by what trials say.

    Attributes:
        size: Requests that may be under way.
        rate: Requests a second that the server lets in, or None where that is not known.
    """

    def __init__(self) -> None:
        self.size = FIRST
        self.rate: float | None = None
        self._trial: Trial | None = None
        self._other: Trial | None = None  # The trial that this one is compared with.
        self._former: Trial | None = None  # Earlier rounds of the trial under way.
        self._growing = False
        self._known = 0  # A size at which the server had room.
        self._settled: Trial | None = None
        self._quiet, self._patience = 0, _PATIENCE
        self._down = self._soon = False

    def sent(self, now: float, in_flight: int) -> Trial | None:
        """A request that goes; gives the trial that it is part of."""
        trial = self._trial = self._trial or self._begin(now)
        self.moved(now, in_flight - 1)
        if trial.skip > 0:
            trial.skip -= 1
            return None
        if trial.open + trial.done >= trial.quota:
            return None
        trial.open += 1
        return trial

    def _begin(self, now: float) -> Trial:
        other = self._other
        if not self._settled:
            return Trial(self.size, now, former=self._former)
        if other is None:
            return Trial(self.size, now, 1 if self._soon else _ROUNDS)
        # Those that are sent at once, when the size grows, do not queue behind each other yet.
        skip = max(0, self.size - other.size)
        return Trial(self.size, now, skip=skip, former=self._former)

    def moved(self, now: float, in_flight: int) -> None:
        """So many were under way until now."""
        if trial := self._trial:
            trial.area += in_flight * (now - trial.at)
            trial.at = now

    def left(self, trial: Trial) -> None:
        """A request of a trial ended without an answer that says how long it takes."""
        trial.open -= 1

    def answered(self, trial: Trial, begun: float, now: float, in_flight: int) -> None:
        """An answer came; the size may change."""
        self.moved(now, in_flight)
        self.left(trial)
        if trial is not self._trial:
            return
        trial.add(now - begun)
        if trial.ripe():
            self._judge(trial, now)

    def again(self) -> None:
        """What was just measured is worthless: requests were turned away."""
        self._trial = None

    def _judge(self, trial: Trial, now: float) -> None:
        other, elapsed = self._other, now - trial.begun
        if other is None and self._settled is None and self._enough(trial) > trial.size:
            self._try(self._enough(trial), trial)
        elif trial.area < _FULL * trial.size * elapsed:
            # Nobody wanted more, or the rate was the limit.
            self._trial = None
        elif other is not None:
            low, high = sorted((trial, other), key=lambda each: each.size)
            gain = math.log(high.size / low.size * low.seconds() / high.seconds())
            middle = math.log(high.size / low.size) / 2
            error = math.sqrt(low.variance() + high.variance())
            fewer = min(low, high, key=lambda each: each.count() / each.size)
            enough = fewer.count() >= _ENOUGH * _RIPE * max(_LEAST, fewer.size)
            if (gain > middle and self._growing) or abs(gain - middle) > _SURE * error or enough:
                self._conclude(low, high, gain, middle)
            else:
                # More of the one of which less is known.
                self._other, self._former = (high, low) if fewer is low else (low, high)
                self._trial, self.size = None, fewer.size
        elif self._settled is None:
            self._try(trial.size * 2, trial)
        else:
            self._watch(trial, self._settled)

    def _conclude(self, low: Trial, high: Trial, gain: float, middle: float) -> None:
        """What a pair of sizes says."""
        has_room = gain > middle
        grown, probe = self._growing, self._settled is not None
        if has_room:
            self._known = high.size
        if has_room and grown and high.size < self._most():
            self._patience = _PATIENCE
            self._settled = None
            self._try(max(high.size * 2, self._enough(high)), high)
        elif not has_room and self._known < low.size and low.size > 1:
            # It queued at the smaller size as well, which is measured anew: the first requests of
            # all met an idle server.
            if grown:
                self._settle(low.size, down=True)
            else:
                self._try(low.size // 2, low)
        elif grown and probe and not has_room:
            # As before. A little above it at every such trial would be a ladder.
            self._settle(low.size)
        else:
            target = round(_ROOM * low.size * math.exp(gain))
            self._settle(min(high.size, max(low.size, target)))

    def _most(self) -> int:
        return MOST if self.rate is None else MOST_BY_RATE

    def _enough(self, trial: Trial) -> int:
        """What the server's rate needs, by the time that answers take."""
        return math.ceil(_AMPLE * (self.rate or 0.0) * trial.seconds())

    def _try(self, size: int, other: Trial) -> None:
        size = max(1, min(self._most(), size))
        if size == other.size:
            self._settle(size)
            return
        self._growing = size > other.size
        self.size, self._other, self._trial, self._former = size, other, None, None

    def _settle(self, size: int, down: bool = False) -> None:
        self.size = size
        self._other = self._trial = self._former = None
        self._settled = Trial(size, 0.0, 1)
        self._quiet, self._soon = 0, down

    def _watch(self, trial: Trial, settled: Trial) -> None:
        """A settled size: tried anew after a while, or when answers take longer or less long."""
        if not settled.done:
            self._settled = trial
        else:
            change = math.log(trial.seconds() / settled.seconds())
            error = math.sqrt(trial.variance() + settled.variance())
            if abs(change) > max(0.4, 3 * error):
                self._known = 0
                self._patience = _PATIENCE
                longer = change > 0 and self.size > 1
                self._try(self.size // 2 if longer else self.size * 2, trial)
                return
        self._quiet += 1
        self._trial = None
        if self._soon:
            self._soon = False
            self._try(self.size // 2, trial)
        elif self._quiet >= self._patience and self.size < self._most():
            self._patience = min(_MOST_PATIENCE, 2 * self._patience)
            # Up and down in turn: up finds new room, down finds that the size is too large. Down
            # costs, so it is not the first.
            self._down = not self._down and self.size > 1 and self._patience > 4
            self._known = self.size
            self._try(self.size // 2 if self._down else self.size * 2, trial)
