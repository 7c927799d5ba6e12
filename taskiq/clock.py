"""Where time comes from: an event loop, or a clock that a test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Alarm(Protocol):
    """A call that was asked for at a moment and can be called off."""

    def cancel(self) -> None:
        """Call it off; harmless when it has rung already."""


class Clock(Protocol):
    """The only source of time: monotonic seconds. A running event loop is one."""

    def time(self) -> float:
        """Return the present moment in seconds."""
        ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Alarm:
        """Call `callback` at the moment `when`."""
        ...
