"""Telling what nobody works on any longer by its version."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Versions:
    """Remembers when the versions of things were first seen.

    Whoever works on a thing changes its version now and then. A version that does not
    change for long belongs to somebody who was killed or has given up.

    :param patience: seconds after which a version that has not changed is abandoned.
    """

    def __init__(self, patience: float) -> None:
        #: Seconds between two changes by whoever works on a thing.
        self.interval = patience / 3
        #: Seconds between two looks. A thing is seen up to one of them after its last
        #: change, and found up to one of them after it is abandoned.
        self.pause = patience / 15
        self._patience = patience
        self._seen: dict[int, tuple[str, float]] = {}
        self._is_due_at = 0.0

    def is_due(self, now: float) -> bool:
        """Tell whether it is time for the next look.

        :param now: seconds by a monotonic clock.
        """
        return now >= self._is_due_at

    def unchanged(self, versions: Mapping[int, str], now: float) -> list[int]:
        """Look: give the things that are abandoned.

        :param versions: the present versions of all things, without those that are
            worked on here.
        :param now: seconds by a monotonic clock.
        """
        before = self._seen
        self._is_due_at = now + self.pause
        self._seen = {
            thing: before[thing]
            if thing in before and before[thing][0] == version
            else (version, now)
            for thing, version in versions.items()
        }
        return [
            thing
            for thing, (_, since) in self._seen.items()
            if now - since >= self._patience
        ]
