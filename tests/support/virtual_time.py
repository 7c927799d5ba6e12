"""An event loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import functools
import math
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_T = TypeVar("_T")

#: Real seconds in which something outside the loop (a thread) must wake it.
_STUCK_AFTER = 5.0

#: Turns of a loop at one moment, after which nothing more is expected of it.
_MOST_TURNS = 50_000

#: How often what is left in a loop is cancelled at its end.
_MOST_ROUNDS = 20


class StuckError(AssertionError):
    """In real time this would hang: nothing can happen, or nothing comes of it."""


class _JumpingSelector(selectors.DefaultSelector):
    """Adds the time it would have waited to the clock instead."""

    now = 0.0
    #: How often it was asked since the clock was moved.
    turns = 0

    def select(
        self,
        timeout: float | None = None,
    ) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        if self.turns > _MOST_TURNS:
            self.turns = 0
            raise StuckError("it goes round in circles, and no time passes")
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            ready = super().select(_STUCK_AFTER)
            if not ready:
                raise StuckError("nothing is scheduled and nothing can happen")
            return ready
        if timeout > 0:
            self.now += timeout
            self.turns = 0
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

    def take_turn(self) -> bool:
        """Run what is ready, and no more.

        :returns: whether something is ready again.
        """
        self.call_soon(self.stop)
        self.run_forever()
        return bool(self._ready)  # type: ignore[attr-defined]

    def next_timer(self) -> float:
        """When the next timer rings, in seconds of the loop's time; or never."""
        moments = [t.when() for t in self.armed_timers]
        return min(moments, default=math.inf)

    @property
    def armed_timers(self) -> list[asyncio.TimerHandle]:
        """The timers that have neither rung nor been cancelled."""
        return [t for t in self._scheduled if not t.cancelled()]  # type: ignore[attr-defined]

    def jump_to(self, moment: float) -> None:
        """Set the clock; what is due by then runs at the next turn."""
        self._jumping.now = max(self._jumping.now, moment)
        self._jumping.turns = 0

    def end(self) -> None:
        """Cancel what is left, and what begins meanwhile, and close the loop."""
        for _ in range(_MOST_ROUNDS):
            left = asyncio.all_tasks(self)
            if not left:
                break
            for task in left:
                task.cancel()
            self.run_until_complete(_some_turns())
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()


async def _some_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run_side_by_side(*mains: Coroutine[Any, Any, object]) -> None:
    """Run each of `mains` in a loop of its own, all by one virtual clock.

    The loops take turns in one thread, so that a run is the same each time. A loop ends
    with its main, whatever is left in it; the others go on.

    :raises StuckError: when everything waits for something that cannot happen.
    """
    running = [VirtualTimeLoop() for _ in mains]
    tasks = {
        loop: loop.create_task(main) for loop, main in zip(running, mains, strict=True)
    }
    try:
        while running:
            ready = [loop for loop in running if loop.take_turn()]
            for loop in [each for each in running if tasks[each].done()]:
                running.remove(loop)
                loop.end()
                tasks[loop].result()
            if not ready and running:
                moment = min(loop.next_timer() for loop in running)
                if moment == math.inf:
                    raise StuckError("nothing is scheduled and nothing can happen")
                for loop in running:
                    loop.jump_to(moment)
    finally:
        for loop in running:
            loop.end()


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
        armed = loop.armed_timers
        assert not armed, f"left armed: {armed}"
        return result
    finally:
        loop.end()


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test as `run_virtual` does; a decorator."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(test(*args, **kwargs))

    return run
