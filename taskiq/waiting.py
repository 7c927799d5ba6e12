"""Waiting for a result by looking again and again."""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import WeakSet

from taskiq.exceptions import ResultIsReadyError, TaskiqResultTimeoutError
from taskiq.outage import brief

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator
    from contextlib import AbstractContextManager

    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.result import TaskiqResult

_Found = TypeVar("_Found")

#: Seconds between the first two looks and, after doubling each time, between any two.
FIRST_DELAY: Final = 0.005
LONGEST_DELAY: Final = 0.2

#: How many looks in a row have to fail to end the wait.
FAILURES_THAT_END_IT: Final = 3


class WaitWatch(Protocol):
    """A worker in this process, whose calls may wait for results."""

    def entered(self, what: str) -> bool:
        """Note that somebody waits from now on.

        :returns: whether it is a call of this worker.
        """
        ...

    def left(self) -> None:
        """Note that a call waits no more."""


#: The workers that listen in this process: mostly one, and none where it only sends.
wait_watches: Final[WeakSet[WaitWatch]] = WeakSet()


_UNWATCHED: Final = nullcontext()


def watched_wait(name: Callable[[], str]) -> AbstractContextManager[None]:
    """Tell the workers of this process that a result is waited for meanwhile.

    :param name: names the result.
    """
    # A process that waits seldom has a worker: it is not to pay for one.
    return _watched(name()) if wait_watches else _UNWATCHED


@contextmanager
def _watched(what: str) -> Generator[None, None, None]:
    told = [watch for watch in tuple(wait_watches) if watch.entered(what)]
    try:
        yield
    finally:
        for watch in told:
            watch.left()


def growing_delays(timeout: float) -> Iterator[float]:
    """Give the seconds between looks: 5 ms at first, doubling up to 200 ms.

    The last look is at the end of the timeout, which begins now.

    :param timeout: seconds; zero or less means no end.
    """
    now = asyncio.get_running_loop().time
    ends = now() + timeout if timeout > 0 else math.inf

    def delays() -> Iterator[float]:
        delay = FIRST_DELAY
        while (left := ends - now()) > 0:
            yield min(delay, left)
            delay = min(2 * delay, LONGEST_DELAY)

    return delays()


def equal_delays(interval: float, timeout: float) -> Iterator[float]:
    """Give the seconds between looks, always the same, until after the timeout.

    :param timeout: seconds from now; zero or less means no end.
    """
    now = asyncio.get_running_loop().time
    ends = now() + timeout if timeout > 0 else math.inf

    def delays() -> Iterator[float]:
        while now() <= ends:
            yield interval

    return delays()


async def poll(
    look: Callable[[], Awaitable[_Found | None]],
    delays: Iterator[float],
    timeout: float,
    sleep: Callable[[float], Awaitable[None]] | None = None,
) -> _Found:
    """Look until something is found.

    :param look: gives what it found, `None` for nothing.
    :param delays: seconds to wait after each look; its end is the timeout's.
    :param timeout: for the error.
    :param sleep: waits for a delay, `asyncio.sleep` by default; it may end early.
    :raises ResultIsReadyError: from the last error, when three looks in a row failed.
    :raises TaskiqResultTimeoutError: when nothing was found in time.
    """
    failures, error = 0, None
    while True:
        try:
            found = await look()
        except Exception as exc:
            failures, error = failures + 1, exc
            if failures == FAILURES_THAT_END_IT:
                raise ResultIsReadyError(failure=brief(exc)) from exc
        else:
            if found is not None:
                return found
            failures, error = 0, None
        delay = next(delays, None)
        if delay is None:
            failure = None if error is None else brief(error)
            raise TaskiqResultTimeoutError(timeout=timeout, failure=failure) from error
        await (sleep or asyncio.sleep)(delay)


async def poll_for_result(
    backend: AsyncResultBackend[Any],
    task_id: str,
    delays: Iterator[float],
    timeout: float,
    with_logs: bool,
) -> TaskiqResult[Any]:
    """Look whether a result is there until it is, and read it.

    :raises ResultIsReadyError: from the last error, when three looks in a row failed.
    :raises TaskiqResultTimeoutError: when the result is not there in time.
    :raises Exception: what the backend raises when the result is read.
    """

    async def look() -> bool | None:
        return await backend.is_result_ready(task_id) or None

    await poll(look, delays, timeout)
    return await backend.get_result(task_id, with_logs=with_logs)
