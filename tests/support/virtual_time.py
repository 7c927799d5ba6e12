"""An event loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import functools
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_T = TypeVar("_T")

#: Real seconds in which something outside the loop (a thread) must wake it.
_STUCK_AFTER = 5.0


class StuckError(AssertionError):
    """Everything waits and no timer is set: in real time this would hang."""


class _JumpingSelector(selectors.DefaultSelector):
    """Adds the time it would have waited to the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(
        self,
        timeout: float | None = None,
    ) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            ready = super().select(_STUCK_AFTER)
            if not ready:
                raise StuckError("nothing is scheduled and nothing can happen")
            return ready
        self.now += max(timeout, 0.0)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs timers in order and at their moments, in no real time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        # Timers are compared exactly: there is no tolerance to hide behind.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jumping.now


def run_virtual(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` in virtual time, and check that it leaves nothing behind.

    :raises StuckError: when everything waits for something that cannot happen.
    :raises AssertionError: when a task is pending or a timer armed at the end.
    """
    loop = VirtualTimeLoop()
    try:
        result = loop.run_until_complete(main)
        # Callbacks of what has just ended get their turn.
        loop.run_until_complete(asyncio.sleep(0))
        pending = asyncio.all_tasks(loop)
        assert not pending, f"left pending: {pending}"
        armed = [t for t in loop._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
        assert not armed, f"left armed: {armed}"
        return result
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test as `run_virtual` does; a decorator."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(test(*args, **kwargs))

    return run
