"""Rules that choose the size of a batch, for :mod:`tests.support.batch_simulation`.

All work in constant time for a message and for a call, and none asks again and again.
"""

from __future__ import annotations

import math
from typing import Final

from tests.support.batch_simulation import SIZE

#: Calls and messages that an estimate remembers: after 50 the old share is 8 %.
_MEMORY: Final = 20
#: Sizes that lie apart by less than this part of their mean say nothing of the slope.
_SAME_SIZE: Final = 0.02


class Gap:
    """The mean seconds from one arrival to the next, later ones weighing more."""

    def __init__(self) -> None:
        self.mean = math.inf
        self.last = math.nan

    def arrived(self, now: float) -> None:
        gap, self.last = now - self.last, now
        if self.mean < math.inf:
            self.mean += (gap - self.mean) / _MEMORY
        elif gap >= 0:
            self.mean = gap


class Fit:
    """What a call takes: a line through the last ones, and how far above it they lie.

    While all calls had the same size their time is taken to be that of their items.

    :ivar item: seconds that each item adds; `fixed`: those of any call.
    :ivar above: seconds that 95 of 100 calls lie above the line at most.
    """

    def __init__(self) -> None:
        self.item = 0.0
        self.fixed = 0.0
        self.above = 0.0
        self._calls = 0
        self._size = self._seconds = self._variance = self._covariance = 0.0
        self._off = 0.0

    @property
    def is_known(self) -> bool:
        return self._calls > 0

    def of(self, messages: int) -> float:
        return self.fixed + self.item * messages

    def ended(self, messages: int, seconds: float) -> None:
        if self._calls:
            seconds = self._note_residual(messages, seconds)
        self._calls += 1
        weight = 1 / min(self._calls, _MEMORY)
        size, took = messages - self._size, seconds - self._seconds
        self._size += weight * size
        self._seconds += weight * took
        keep = 1 - weight
        self._variance = keep * (self._variance + weight * size * size)
        self._covariance = keep * (self._covariance + weight * size * took)
        doubt = (_SAME_SIZE * self._size) ** 2
        slope = (self._covariance + doubt * self._seconds / self._size) / (
            self._variance + doubt
        )
        self.item = min(max(slope, 0.0), self._seconds / self._size)
        self.fixed = self._seconds - self.item * self._size

    def _note_residual(self, messages: int, seconds: float) -> float:
        """Move the percentile; one slow call counts for no more than the double."""
        expected = self.of(messages)
        seconds = min(seconds, 2 * expected + 4 * self.above)
        off = seconds - expected
        self._off += (abs(off) - self._off) / _MEMORY
        step = self._off / 4
        self.above = max(self.above + step * (0.95 if off > self.above else -0.05), 0.0)
        return seconds


class Paced:
    """Waits for as long as the target leaves time, unless nobody is likely to come.

    * A batch leaves when its oldest message has just the time left that the call takes,
      and a margin. The margin grows while more than one message in a hundred is late,
      and shrinks while fewer are: that takes in all that the fit does not see.
    * It leaves at once where less than a tenth of a gap is left: that costs at most a
      tenth more calls, and a message that comes alone does not wait.
    * A call alone takes no longer than the target. While batches start later than the
      target allows there is too much to do, and calls grow by half until they are full.
    """

    #: Messages that may be late; a hundredth, less what comes of measuring by batches.
    _LATE: Final = 0.008
    #: How fast the margin moves, as a part of the target.
    _GAIN: Final = 0.01

    def __init__(self, target: float) -> None:
        self.target = target
        self.gap = Gap()
        self.fit = Fit()
        self.margin = 0.0
        self.stretch = 1.0

    def arrived(self, now: float, /) -> None:
        self.gap.arrived(now)

    def most(self) -> int:
        fit = self.fit
        if not fit.item:
            return SIZE
        room = (self.target - fit.fixed - fit.above) / fit.item
        return max(int(min(max(room, 1.0) * self.stretch, SIZE)), 1)

    def leaves_at(self, opened: float, messages: int, now: float, /) -> float:
        fit, gap = self.fit, self.gap.mean
        if not fit.is_known:
            return opened
        left = opened + self.target - self.margin - fit.of(messages) - now
        if left < max(0.1 * gap, 0.001 * self.target):
            return now
        # Those that join meanwhile make the call longer.
        return now + left / (1 + fit.item / gap)

    def ended(self, messages: int, started: float, ended: float, opened: float) -> None:
        self.fit.ended(messages, ended - started)
        waited, excess = started - opened, ended - opened - self.target
        if waited > self.target:
            self.stretch = min(1.5 * self.stretch, SIZE)
        else:
            self.stretch = 1.0
        # Messages arrive evenly, so those late are that part of the wait.
        late = min(excess / waited, 1.0) if waited > excess > 0 else float(excess > 0)
        if messages == 1:
            late = float(excess > 0)
        margin = self.margin + self._GAIN * self.target * (late - self._LATE)
        self.margin = min(max(margin, 0.0), self.target / 2)


class Sketch:
    """Leaves as soon as one more arrival cannot pay: the rule as it was proposed."""

    def __init__(self, target: float) -> None:
        self.target = target
        self.gap = Gap()
        self.fit = Fit()
        self.is_overdue = False
        self.cap = float(SIZE)
        self._under = 0

    def arrived(self, now: float, /) -> None:
        self.gap.arrived(now)

    def most(self) -> int:
        if self.is_overdue:
            return SIZE
        cap = self.cap
        if self.fit.item:
            room = self.target - self.fit.fixed - self.fit.above
            cap = min(cap, room / self.fit.item)
        return max(int(cap), 1)

    def leaves_at(self, opened: float, messages: int, now: float, /) -> float:
        gap, fit = self.gap.mean, self.fit
        if not fit.is_known or messages * (gap + fit.item) > fit.fixed:
            return now
        # Nobody came for so long that the wait no longer pays.
        return self.gap.last + max(fit.fixed / messages - fit.item, 0.0)

    def ended(self, messages: int, started: float, ended: float, opened: float) -> None:
        self.fit.ended(messages, ended - started)
        self.is_overdue = started - opened > self.target
        if ended - opened > self.target:
            self.cap, self._under = max(0.8 * min(self.cap, messages), 1.0), 0
            return
        self._under += 1
        if self._under >= 20:
            self.cap, self._under = min(self.cap + 1, SIZE), 0


class ByMeanWait:
    """Waits while that adds less than the mean wait: BentoML's rule, as described.

    BentoML sheds messages that would be late. Here none may be dropped: they stay, and
    are late. What bounds a wait for nobody is not described; here the target does.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.gap = Gap()
        self.fit = Fit()
        self.wait = 0.0

    def arrived(self, now: float, /) -> None:
        self.gap.arrived(now)

    def most(self) -> int:
        return SIZE

    def leaves_at(self, opened: float, messages: int, now: float, /) -> float:
        fit = self.fit
        if messages * (self.gap.mean + fit.item) > 0.95 * self.wait:
            return now
        return opened + self.target - fit.of(messages)

    def ended(self, messages: int, started: float, ended: float, opened: float) -> None:
        self.fit.ended(messages, ended - started)
        self.wait += (started - opened - self.wait) / _MEMORY
