"""Who cancelled what: an asyncio task, what it runs, or somebody in its cleanup."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

_T = TypeVar("_T")

if sys.version_info >= (3, 11):

    def start_task(
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, _T],
    ) -> asyncio.Task[_T]:
        """Run `work` as a task that counts its cancellations."""
        return loop.create_task(work)

    def guarded(work: Coroutine[Any, Any, _T]) -> Coroutine[Any, Any, _T]:
        """Await `work` so that `is_from_outside` knows about its cancellation."""
        return work

    def is_from_outside(error: asyncio.CancelledError) -> bool:
        """Tell a cancellation of this asyncio task from one that guarded work raised.

        :param error: what awaiting the guarded work raised.
        """
        del error
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    def _forget_cancellation(task: asyncio.Task[Any]) -> bool:
        """Count one cancellation less; say whether there is another."""
        return task.uncancel() > 0

else:  # pragma: no cover - Python 3.10

    class _CountingTask(asyncio.Task[Any]):
        """Counts its cancellations, as every task does from Python 3.11 on."""

        cancels = 0

        def cancel(self, msg: Any = None) -> bool:
            self.cancels += 1
            return super().cancel(msg)

    class _CancelledFromOutside(asyncio.CancelledError):
        """The asyncio task that awaits the work was cancelled, not the work."""

    def start_task(
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, _T],
    ) -> asyncio.Task[_T]:
        """Run `work` as a task that counts its cancellations."""
        return _CountingTask(work, loop=loop)

    async def guarded(work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work` so that `is_from_outside` knows about its cancellation.

        In a task that does not count its cancellations it costs one that does. What is
        to share its context variables belongs under one guard, then.
        """
        if isinstance(asyncio.current_task(), _CountingTask):
            return await work
        inner = start_task(asyncio.get_running_loop(), _without_exit(work))
        try:
            await asyncio.wait([inner])
        except asyncio.CancelledError as exc:
            inner.cancel()
            await asyncio.wait([inner])
            raise _CancelledFromOutside from exc
        value, exit_request = inner.result()
        if exit_request is not None:
            raise exit_request
        return cast("_T", value)

    async def _without_exit(
        work: Coroutine[Any, Any, _T],
    ) -> tuple[_T | None, BaseException | None]:
        """Give what `work` gives, or what would end the loop if a task raised it."""
        try:
            return await work, None
        except (SystemExit, KeyboardInterrupt) as exc:
            return None, exc

    def is_from_outside(error: asyncio.CancelledError) -> bool:
        """Tell a cancellation of this asyncio task from one that guarded work raised.

        :param error: what awaiting the guarded work raised.
        """
        task = asyncio.current_task()
        if isinstance(task, _CountingTask):
            return task.cancels > 0
        return isinstance(error, _CancelledFromOutside)

    def _forget_cancellation(task: asyncio.Task[Any]) -> bool:
        """Count one cancellation less; say whether there is another."""
        if not isinstance(task, _CountingTask):
            return False
        task.cancels -= 1
        return task.cancels > 0


async def within(seconds: float, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work`, but not for longer than this.

    What ends without waiting for anything costs no timer, and what waits half of
    `asyncio.timeout`: every acknowledged message comes by here.

    :raises TimeoutError: it took longer, and was cancelled.
    """
    try:
        first = work.send(None)
    except StopIteration as done:
        return cast("_T", done.value)
    steps = work.__await__()
    task = asyncio.current_task()
    if task is None:  # nothing to cancel
        return await _Begun(first, steps)
    is_overdue = False

    def interrupt() -> None:
        nonlocal is_overdue
        is_overdue = True
        task.cancel()

    alarm = task.get_loop().call_later(seconds, interrupt)
    try:
        return await _Begun(first, steps)
    except asyncio.CancelledError as exc:
        if not is_overdue:
            raise
        is_overdue = False
        if _forget_cancellation(task):
            raise
        raise TimeoutError(f"no end within {seconds:g} s") from exc
    finally:
        alarm.cancel()
        if is_overdue:  # it ended in spite of its cancellation
            # Tested, but the tracer loses a coroutine that an error was thrown into.
            _forget_cancellation(task)  # pragma: no cover


class _Begun(Generic[_T]):
    """What is left of a coroutine whose first step was taken by hand.

    :param first: what that step gave: what the asyncio task is to wait for.
    :param steps: the others.
    """

    __slots__ = ("_first", "_steps")

    def __init__(self, first: Any, steps: Generator[Any, Any, _T]) -> None:
        self._first = first
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, _T]:
        try:
            yield self._first
        except BaseException as exc:  # noqa: BLE001 - it is for the coroutine
            try:
                self._first = self._steps.throw(exc)
            except StopIteration as done:
                return cast("_T", done.value)
            return (yield from self.__await__())
        return (yield from self._steps)


async def uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` to its end, and raise a cancellation that came meanwhile after it.

    For a cleanup that is short by itself and must not be left half done.
    """
    inner = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not inner.done():
        try:
            await asyncio.wait([inner])
        except asyncio.CancelledError as exc:  # noqa: PERF203 - at most a few
            cancellation = exc
    if cancellation is not None:
        raise cancellation
    return inner.result()
