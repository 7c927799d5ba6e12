"""What makes tests of batch tasks independent of real time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ManualAlarm", "ManualClock"]


class ManualAlarm:
    """A call that a `ManualClock` makes when its moment comes.

    :ivar when: the moment, in seconds of the clock.
    """

    __slots__ = ("_callback", "_is_cancelled", "_loop", "when")

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self._callback = callback
        self._is_cancelled = False
        self._loop = _running_loop()

    def cancel(self) -> None:
        """Call it off; harmless when it has rung already."""
        self._is_cancelled = True

    @property
    def is_armed(self) -> bool:
        """Whether it can ring: not when the event loop it was set in is closed."""
        is_orphaned = self._loop is not None and self._loop.is_closed()
        return not self._is_cancelled and not is_orphaned

    def ring(self) -> None:
        """Make the call, unless it was called off."""
        if self.is_armed:
            self._is_cancelled = True
            self._callback()


class ManualClock:
    """A clock that moves when it is told to, for `InMemoryBroker.with_clock`.

    Batches wait by this clock: one leaves by its `batch_timeout` or
    `batch_idle_timeout` when `advance` reaches that moment, and never by itself. What
    task functions do, `asyncio.sleep` included, takes the time it takes.
    """

    def __init__(self) -> None:
        self._now = 0.0
        # Alarms of one moment ring in the order they were set.
        self._order = itertools.count()
        self._alarms: list[tuple[float, int, ManualAlarm]] = []

    def time(self) -> float:
        """Return how far the clock was moved, in seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> ManualAlarm:
        """Set an alarm.

        :param when: the moment in seconds of this clock; `advance` rings one in the
            past, too.
        """
        alarm = ManualAlarm(when, callback)
        heapq.heappush(self._alarms, (when, next(self._order), alarm))
        return alarm

    def advance(self, seconds: float) -> None:
        """Move on, ringing each alarm at its own moment, in order.

        A batch that falls due starts when the event loop gets its turn: await
        ``broker.wait_running()`` to wait for its end.

        :param seconds: how far, 0 or more.
        :raises ValueError: when that is no finite number, or less than 0.
        """
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"a clock moves 0 or more seconds on, got {seconds!r}")
        end = self._now + seconds
        while self._alarms and self._alarms[0][0] <= end:
            when, _, alarm = heapq.heappop(self._alarms)
            if alarm.is_armed:
                self._now = max(self._now, when)
                alarm.ring()
        self._now = end

    @property
    def armed(self) -> int:
        """How many alarms may still ring."""
        return sum(alarm.is_armed for _, _, alarm in self._alarms)

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now} s, {self.armed} alarms armed>"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
