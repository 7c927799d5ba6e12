"""How long to wait before a listener that failed is started again."""

from __future__ import annotations

import random
from typing import Final

#: Seconds before the first restart; each further one waits twice as long.
_FIRST_DELAY: Final = 0.1

#: Most seconds between two restarts.
_LONGEST_DELAY: Final = 30.0

#: A listener that ran for this many seconds was healthy: its failures are forgotten.
_HEALTHY_AFTER: Final = 60.0


class RestartDelays:
    """Exponential back-off with full jitter on its upper half.

    The doubling keeps a broken broker from being hammered, the jitter keeps many
    workers from coming back in step (M. Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015).
    """

    def __init__(self) -> None:
        self._failures = 0

    def after_failure(self, ran_for: float) -> float:
        """Say how many seconds to wait after a failure.

        :param ran_for: seconds the listener had run before it failed.
        """
        if ran_for >= _HEALTHY_AFTER:
            self._failures = 0
        # The exponent is bounded: past the cap a larger one would only overflow.
        longest = min(_FIRST_DELAY * 2.0 ** min(self._failures, 16), _LONGEST_DELAY)
        self._failures += 1
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load only
