"""Who cancelled what: an asyncio task, what it runs, or somebody in its cleanup."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

_T = TypeVar("_T")

if sys.version_info >= (3, 11):

    def guarded(work: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """Await `work` so that `is_from_outside` knows about its cancellation."""
        return work

    def is_from_outside(error: asyncio.CancelledError) -> bool:
        """Tell a cancellation of this asyncio task from one that guarded work raised.

        :param error: what awaiting the guarded work raised.
        """
        del error
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

else:

    class _CancelledFromOutside(asyncio.CancelledError):
        """The asyncio task that awaits the work was cancelled, not the work."""

    async def guarded(work: Coroutine[Any, Any, Any]) -> Any:
        """Await `work` so that `is_from_outside` knows about its cancellation.

        Python 3.10 does not count cancellations, so it costs an asyncio task there.
        """
        inner = asyncio.ensure_future(_without_exit(work))
        try:
            await asyncio.wait([inner])
        except asyncio.CancelledError as exc:
            inner.cancel()
            await asyncio.wait([inner])
            raise _CancelledFromOutside from exc
        value, exit_request = inner.result()
        if exit_request is not None:
            raise exit_request
        return value

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
        return isinstance(error, _CancelledFromOutside)


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
