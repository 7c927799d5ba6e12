"""Waiting for results that somebody tells of."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from taskiq.bulk import cancel_all
from taskiq.waiting import FIRST_DELAY, LONGEST_DELAY, poll

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Iterable,
        Sequence,
    )

_Found = TypeVar("_Found")

logger = logging.getLogger("taskiq.adapters")

#: Seconds between looks of one who is told: for workers that do not tell.
_SAFETY: Final = 2.0
#: Seconds that the first look waits for the subscription.
_CONNECTING: Final = 0.1
#: Seconds before a lost subscription is made again, at first and at most.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0


class Waiters:
    """Who waits for results in one event loop, and the subscription that tells them.

    A waiter looks once when the subscription is there and once when it is told. All
    other looks are for what nobody tells of: each 2 s, or more often while there is no
    subscription.
    """

    def __init__(self) -> None:
        #: Whether results are told of.
        self.is_connected = False
        self.subscription: asyncio.Task[None] | None = None
        # Mostly one of each id, and a tuple of one is smaller than a list.
        self._by_id: dict[str, tuple[_Waiter[Any], ...]] = {}

    def connected(self) -> None:
        """Note that from now on results are told of; what came before was not."""
        self.is_connected = True
        self._wake_all(_SAFETY)

    def disconnected(self) -> None:
        """Note that results are no longer told of."""
        if self.is_connected:
            self.is_connected = False
            # Once soon, then seldom: the server may be away, and three failed looks in
            # a row end a wait.
            self._wake_all(LONGEST_DELAY)

    def tell(self, task_ids: Iterable[str]) -> None:
        """Tell that these results are stored."""
        if self._by_id:
            for task_id in task_ids:
                for waiter in self._by_id.get(task_id, ()):
                    waiter.wake(FIRST_DELAY)

    def tell_payload(self, payload: str | bytes) -> None:
        """Tell of results by what `payloads` made of their ids.

        Anyone can publish there: what is not understood is logged.
        """
        try:
            task_ids = json.loads(payload)
            if not isinstance(task_ids, list):
                raise TypeError("it must be a list of ids")  # noqa: TRY301 - as below
            self.tell(map(str, task_ids))  # pyright: ignore[reportUnknownArgumentType]
        except (TypeError, ValueError) as exc:
            logger.warning("Not a list of results that are ready: %s", exc)

    def add(self, waiter: _Waiter[Any]) -> None:
        """Let a waiter be told, until `remove`."""
        self._by_id[waiter.task_id] = (*self._by_id.get(waiter.task_id, ()), waiter)

    def remove(self, waiter: _Waiter[Any]) -> None:
        """Tell a waiter nothing more."""
        others = self._by_id.pop(waiter.task_id)
        if len(others) > 1:
            self._by_id[waiter.task_id] = tuple(w for w in others if w is not waiter)

    def _wake_all(self, delay: float) -> None:
        for waiters in self._by_id.values():
            for waiter in waiters:
                waiter.wake(delay)


class _Waiter(Generic[_Found]):
    """One who sleeps between looks, and may be woken.

    It is itself the iterator of the seconds between its looks, and neither its looks
    nor its sleeps are coroutines of its own: there may be thousands of waiters, and
    what each of them is made of is to be little.

    :param look: reads the result of an id.
    :param timeout: seconds from now, zero or less for no end.
    """

    __slots__ = (
        "_alarm",
        "_ends",
        "_future",
        "_is_woken",
        "_look",
        "_waiters",
        "delay",
        "task_id",
    )

    def __init__(
        self,
        waiters: Waiters,
        task_id: str,
        look: Callable[[str], Awaitable[_Found | None]],
        timeout: float,
    ) -> None:
        self._waiters = waiters
        self.task_id = task_id
        self._look = look
        #: Seconds to sleep after the next look.
        self.delay = FIRST_DELAY
        self._is_woken = False
        self._future: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        now = asyncio.get_running_loop().time()
        self._ends = now + timeout if timeout > 0 else math.inf

    def __iter__(self) -> _Waiter[_Found]:
        return self

    def __next__(self) -> float:
        left = self._ends - asyncio.get_running_loop().time()
        if left <= 0:
            raise StopIteration
        longest = _SAFETY if self._waiters.is_connected else LONGEST_DELAY
        delay = min(self.delay, longest)
        self.delay = 2 * delay
        return min(delay, left)

    def look(self) -> Awaitable[_Found | None]:
        """Read the result."""
        return self._look(self.task_id)

    def sleep(self, seconds: float) -> asyncio.Future[None]:
        """Give what is done after these seconds, or as soon as this one is woken.

        It is done already if this one was woken since the last sleep.
        """
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        if self._is_woken:
            self._future.set_result(None)
            self._is_woken = False
        else:
            self._alarm = loop.call_later(seconds, self._end)
        return self._future

    def wake(self, delay: float) -> None:
        """End this sleep, or the next one; sleep for `delay` seconds after the look."""
        self.delay = delay
        self._is_woken = not self._end()

    def close(self) -> None:
        """Leave nothing behind."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _end(self) -> bool:
        """End this sleep; tell whether there was one."""
        self.close()
        if self._future is None or self._future.done():
            return False
        self._future.set_result(None)
        return True


class ResultFeed(Generic[_Found]):
    """Waits for results; one subscription tells all who wait in an event loop.

    :param follow: subscribes, says so with `connected`, tells of results with `tell`,
        and returns or raises when the subscription is lost. It is called again then.
    :param look: reads the result of an id, `None` if it is not there.
    """

    def __init__(
        self,
        follow: Callable[[Waiters], Awaitable[None]],
        look: Callable[[str], Awaitable[_Found | None]],
    ) -> None:
        self._follow = follow
        self._look = look
        self._waiters: WeakKeyDictionary[asyncio.AbstractEventLoop, Waiters] = (
            WeakKeyDictionary()
        )

    async def wait(self, task_id: str, timeout: float) -> _Found:
        """Wait for a result.

        :param timeout: seconds; zero or less waits forever.
        :raises ResultIsReadyError: from the last error, if three looks in a row failed.
        :raises TaskiqResultTimeoutError: if it is not there in time.
        """
        waiters = self._subscribed()
        waiter = _Waiter(waiters, task_id, self._look, timeout)
        waiters.add(waiter)
        try:
            if waiters.is_connected:
                waiter.delay = _SAFETY
            else:
                await waiter.sleep(min(_CONNECTING, timeout if timeout > 0 else 1))
            return await poll(waiter.look, waiter, timeout, waiter.sleep)
        finally:
            waiters.remove(waiter)
            waiter.close()

    async def close(self) -> None:
        """End the subscription of this event loop."""
        waiters = self._waiters.get(asyncio.get_running_loop())
        if waiters is not None and waiters.subscription is not None:
            await cancel_all([waiters.subscription])

    def _subscribed(self) -> Waiters:
        loop = asyncio.get_running_loop()
        waiters = self._waiters.get(loop)
        if waiters is None:
            waiters = self._waiters[loop] = Waiters()
            waiters.subscription = loop.create_task(self._keep_following(waiters))
        return waiters

    async def _keep_following(self, waiters: Waiters) -> None:
        try:
            pause = _FIRST_PAUSE
            while True:
                error = await self._follow_once(waiters)
                pause = _FIRST_PAUSE if waiters.is_connected else pause
                waiters.disconnected()
                logger.warning(
                    "No longer told of results: %r. Those who wait look for them until "
                    "there is a subscription again; trying in %s s.",
                    error,
                    pause,
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            # A task keeps its event loop alive, which is the key of the entry.
            self._waiters.pop(asyncio.get_running_loop(), None)
            waiters.disconnected()

    async def _follow_once(self, waiters: Waiters) -> Exception | None:
        try:
            await self._follow(waiters)
        except Exception as exc:  # noqa: BLE001 - logged; results still come
            return exc
        return None


def payloads(task_ids: Sequence[str], max_size: int) -> list[str]:
    """Make texts that tell of results, to be read by `Waiters.tell_payload`.

    :param max_size: bytes of a text at most. An id longer than that is left out: who
        waits for it finds it anyway, if a little later.
    """
    if not task_ids:
        return []
    text = json.dumps(task_ids, separators=(",", ":"))
    if len(text) <= max_size:
        return [text]
    if len(task_ids) == 1:
        return []
    middle = len(task_ids) // 2
    return [
        *payloads(task_ids[:middle], max_size),
        *payloads(task_ids[middle:], max_size),
    ]
