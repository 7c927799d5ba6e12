"""How long calls may still begin once a stop was asked for.

A function that never awaits holds the event loop up: meanwhile no timer rings, and
whoever waits for its turn would begin after the time to stop is long over. So the time
is looked at before each call, whether the loop knows of it or not.
"""

from __future__ import annotations

import time


class Stop:
    """A stop that was asked for, or not yet.

    :ivar is_asked: whether somebody has.
    """

    def __init__(self) -> None:
        self.is_asked = False
        # Of the process, not of the event loop: that one stands still meanwhile.
        self._asked_at: float | None = None

    def ask(self) -> None:
        """Note that a stop is asked for; more than once is no harm.

        It may be called from a signal handler.
        """
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self.is_asked = True

    def forget(self) -> None:
        """Begin anew: nobody has asked."""
        self._asked_at = None
        self.is_asked = False

    def left(self, limit: float | None) -> float | None:
        """Say how many seconds of a limit are left; `None` for no limit."""
        if limit is None or self._asked_at is None:
            return limit
        return max(self._asked_at + limit - time.monotonic(), 0.0)

    def is_over(self, limit: float | None) -> bool:
        """Tell whether the time to stop is over: no call begins any more.

        :param limit: seconds that what was read has to end; `None` for any time.
        """
        return self._asked_at is not None and self.left(limit) == 0
