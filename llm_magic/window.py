"""How many requests a server works on at a time: as many as make it faster, and no more.

Nobody tells. What can be measured is how long answers take at one size of the window and at
another. Where a server has room, twice as many at a time take no longer; where it queues, twice as
many take twice as long and nothing is gained. So sizes are tried in pairs, and of each pair

    size = 1.25 * larger size * seconds at the smaller / seconds at the larger

within the two: all of the larger where it has room, and where it queues a quarter above what keeps
it busy. Sizes double while that pays, and are tried again later, less and less often.

Tried and dropped: the least latency as the baseline (Vegas, Gradient): answers of a model vary so
much that it throttles a server that has room. A baseline of one mean for the whole run: rows that
get longer look like a queue, and the window falls to one. Counting answers a second in each epoch:
right after a change they are those of the size before. Answers per epoch fixed in number: what is
enough for even latencies is a coin toss where they vary, hence the standard error below.
"""

from __future__ import annotations

import math

FIRST, MOST = 5, 256
_ROOM = 1.25  # A queue of a quarter keeps a server busy through the gaps between requests.
_SURE = 1.3  # Standard errors before a size is called too large.
_FULL = 0.75  # Share of the window in use on average, below which a trial says nothing about it.
_PATIENCE, _MOST_PATIENCE = 4, 64  # Trials before a settled size is tried anew.


class Trial:
    """Requests sent while the window had one size, and how long they took.

    Those still under way count with the time they have taken so far: at the beginning only the
    quickest have been answered, and their mean would be far too low.
    """

    __slots__ = ("area", "at", "begun", "done", "open", "size", "spent", "squares", "starts")

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self.begun = self.at = now
        self.open = self.done = 0
        self.starts = self.spent = self.squares = self.area = 0.0

    def seconds(self, now: float) -> float:
        """Mean of an answer: all time spent, for each answer that came."""
        under_way = self.open * now - self.starts
        return max(1e-9, (self.spent + under_way) / max(1, self.done))

    def variance(self) -> float:
        """Of the logarithm of that mean."""
        mean = self.spent / self.done
        return max(0.0, self.squares / self.done - mean**2) / mean**2 / self.done


class Window:
    """The size, moved by what trials say.

    Attributes:
        size: Requests that may be under way.
    """

    def __init__(self) -> None:
        self.size = FIRST
        self._trial: Trial | None = None
        self._other: Trial | None = None  # The trial that this one is compared with.
        self._known = 0  # A size at which the server had room.
        self._settled: Trial | None = None
        self._quiet, self._patience = 0, _PATIENCE
        self._down = False

    def sent(self, now: float, in_flight: int) -> Trial:
        """A request that goes; gives the trial that it belongs to."""
        trial = self._trial = self._trial or Trial(self.size, now)
        self.moved(now, in_flight - 1)
        trial.open += 1
        trial.starts += now
        return trial

    def moved(self, now: float, in_flight: int) -> None:
        """So many were under way until now."""
        if trial := self._trial:
            trial.area += in_flight * (now - trial.at)
            trial.at = now

    def left(self, trial: Trial, begun: float) -> None:
        """A request of a trial ended without an answer that says how long it takes."""
        trial.open -= 1
        trial.starts -= begun

    def answered(self, trial: Trial, begun: float, now: float, in_flight: int) -> None:
        """An answer came; the size may change."""
        self.moved(now, in_flight)
        self.left(trial, begun)
        trial.done += 1
        trial.spent += now - begun
        trial.squares += (now - begun) ** 2
        # Answers to a former trial come late and make it more exact.
        if trial is self._trial and trial.done >= max(6, trial.size):
            self._judge(trial, now)

    def again(self) -> None:
        """What was just measured is worthless: requests were turned away."""
        self._trial = None

    def _judge(self, trial: Trial, now: float) -> None:
        other, elapsed = self._other, now - trial.begun
        if trial.area < _FULL * trial.size * elapsed:
            # Nobody wanted more, or the rate was the limit.
            self._trial = None
        elif other is not None:
            low, high = sorted((trial, other), key=lambda each: each.size)
            gain = math.log(high.size / low.size * low.seconds(now) / high.seconds(now))
            middle = math.log(high.size / low.size) / 2
            error = math.sqrt(low.variance() + high.variance())
            enough = trial.done >= 4 * trial.size + 32
            if abs(gain - middle) > _SURE * error or enough or (gain > middle and trial is high):
                self._conclude(low, high, gain, middle)
        elif self._settled is None:
            self._try(self.size * 2, trial)
        elif trial.done >= 2 * trial.size + 16:
            self._watch(trial, self._settled, now)

    def _conclude(self, low: Trial, high: Trial, gain: float, middle: float) -> None:
        """What a pair of sizes says."""
        has_room = gain > middle
        grown, probe = high is self._trial, self._settled is not None
        if has_room:
            self._known = high.size
        if has_room and grown and high.size < MOST:
            self._patience = _PATIENCE
            self._settled = None
            self._try(high.size * 2, high)
        elif not has_room and self._known < low.size and low.size > 1:
            # It queued at the smaller size as well.
            self._try(low.size // 2, low)
        elif grown and probe and not has_room:
            # As before. A quarter above it at every such trial would be a ladder.
            self._settle(low.size)
        else:
            target = round(_ROOM * low.size * math.exp(gain))
            self._settle(min(high.size, max(low.size, target)))

    def _try(self, size: int, other: Trial) -> None:
        size = max(1, min(MOST, size))
        if size == other.size:
            self._settle(size)
            return
        self.size, self._other, self._trial = size, other, None

    def _settle(self, size: int) -> None:
        self.size = size
        self._other = self._trial = None
        self._settled = Trial(size, 0.0)
        self._quiet = 0

    def _watch(self, trial: Trial, settled: Trial, now: float) -> None:
        """A settled size: tried anew after a while, or when answers take longer or less long."""
        if not settled.done:
            self._settled = trial
        else:
            change = math.log(trial.seconds(now) / settled.seconds(now))
            error = math.sqrt(trial.variance() + settled.variance())
            if abs(change) > max(0.4, 3 * error):
                self._known = 0
                self._patience = _PATIENCE
                longer = change > 0 and self.size > 1
                self._try(self.size // 2 if longer else self.size * 2, trial)
                return
        self._quiet += 1
        self._trial = None
        if self._quiet >= self._patience and self.size < MOST:
            self._patience = min(_MOST_PATIENCE, 2 * self._patience)
            # Up and down in turn: up finds new room, down finds that the size is too large.
            self._down = not self._down and self.size > 1
            self._known = self.size
            self._try(self.size // 2 if self._down else self.size * 2, trial)
