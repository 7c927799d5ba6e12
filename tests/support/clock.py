"""A clock that moves when it is told to."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class ManualAlarm:
    """One call a `ManualClock` will make, unless it is cancelled."""

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualClock:
    """Satisfies `taskiq.receiver.batcher.Clock`; `advance` rings what falls due."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._alarms: list[tuple[float, int, ManualAlarm]] = []

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> ManualAlarm:
        alarm = ManualAlarm(when, callback)
        heapq.heappush(self._alarms, (when, next(self._order), alarm))
        return alarm

    def advance(self, seconds: float) -> None:
        """Move on, ringing each alarm at its own moment, in order."""
        end = self._now + seconds
        while self._alarms and self._alarms[0][0] <= end:
            when, _, alarm = heapq.heappop(self._alarms)
            if not alarm.is_cancelled:
                self._now = max(self._now, when)
                alarm.callback()
        self._now = end

    @property
    def armed(self) -> int:
        """How many alarms have neither rung nor been cancelled."""
        return sum(not alarm.is_cancelled for _, _, alarm in self._alarms)
