"""Many operations as few: bounded concurrency, and round trips that are shared.

A class may do many operations in one call (`kick_many`) beside doing one (`kick`).
Where it does not, `run_bounded` does them one by one, some at once; where single
operations arrive together, `GroupCommit` makes one call of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

_Item = TypeVar("_Item")
_Entry = TypeVar("_Entry")
_Outcome = TypeVar("_Outcome")

#: Entries of one call at most, unless told otherwise.
CHUNK_SIZE: Final = 1000
#: Operations that begin before anything else happens in the event loop.
_BEGUN_AT_ONCE: Final = 100
#: Seconds a cancelled task has for its clean-up before it is cancelled once more.
CANCELLED_AGAIN_AFTER: Final = 2.0


def is_outdated(cls: type, bulk: str, single: str) -> bool:
    """Tell whether a subclass has replaced what the bulk method does many times.

    :param bulk: the method that does many, such as "kick_many".
    :param single: the method that does one, such as "kick".
    :returns: `False` if the class that defines `single` is the one that defines `bulk`
        or an ancestor of it; else `bulk` knows nothing of this `single`.
    """
    for owner in cls.__mro__:
        if bulk in vars(owner):
            return False
        if single in vars(owner):
            return True
    raise TypeError(f"{cls.__qualname__} has neither {bulk} nor {single}")


def restore_fallbacks(
    cls: type,
    base: type,
    rules: Mapping[str, Sequence[str]],
) -> None:
    """Give a class the bulk methods of `base` in place of its outdated ones.

    :param cls: a new subclass of `base`, which defines each method in question.
    :param rules: for each bulk method the single ones it stands for.
    """
    for bulk, singles in rules.items():
        if any(is_outdated(cls, bulk, single) for single in singles):
            setattr(cls, bulk, vars(base)[bulk])


async def run_bounded(
    operation: Callable[[_Item], Awaitable[_Outcome]],
    items: Sequence[_Item],
    at_once: int,
) -> list[_Outcome | Exception]:
    """Run an operation for each item, for at most `at_once` of them at a time.

    :returns: what it returned or raised, in the order of the items. One that cancelled
        itself counts as failed, with a `RuntimeError`.
    """
    outcomes: list[Any] = [None] * len(items)
    left = deque(range(len(items)))

    async def work() -> None:
        while left:
            number = left.popleft()
            try:
                outcomes[number] = await operation(items[number])
            except Exception as exc:  # noqa: BLE001 - each fails for itself
                outcomes[number] = exc
            except asyncio.CancelledError as exc:
                # It did so itself, or nothing is left to do.
                outcomes[number] = _failed_by(exc)

    loop = asyncio.get_running_loop()
    workers: list[asyncio.Task[None]] = []
    try:
        for begun in range(min(at_once, len(items))):
            if begun and begun % _BEGUN_AT_ONCE == 0:
                # What the first ones have begun goes on while the others begin.
                await asyncio.sleep(0)
            workers.append(loop.create_task(work()))
        if workers:
            await asyncio.wait(workers)
    finally:
        left.clear()
        await cancel_all(workers)
    return outcomes


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel those of the tasks that have not ended, and wait until they have.

    One that loses a cancellation is cancelled again every few seconds: `wait_for`
    loses some before Python 3.12. Cancelling this cancels them again, too, and still
    waits for them.
    """
    running = [task for task in tasks if not task.done()]
    cancellation: asyncio.CancelledError | None = None
    while running:
        for task in running:
            task.cancel()
        try:
            await asyncio.wait(running, timeout=CANCELLED_AGAIN_AFTER)
        except asyncio.CancelledError as exc:
            cancellation = exc
        running = [task for task in running if not task.done()]
    if cancellation is not None:
        raise cancellation


def _failed_by(cancellation: asyncio.CancelledError) -> RuntimeError:
    error = RuntimeError("the operation cancelled itself")
    error.__cause__ = cancellation
    return error


class _Lane(Generic[_Entry, _Outcome]):
    """What one event loop has going."""

    __slots__ = ("drain", "is_busy", "waiting")

    def __init__(self) -> None:
        #: Whether a flush is in flight. Entries wait only while one is.
        self.is_busy = False
        self.waiting: deque[tuple[_Entry, asyncio.Future[_Outcome]]] = deque()
        # Kept here, as a loop does not keep its tasks alive.
        self.drain: asyncio.Task[None] | None = None


class GroupCommit(Generic[_Entry, _Outcome]):
    """Lets single operations that arrive together share a round trip.

    One flush is in flight in an event loop; what arrives meanwhile is the next group.
    There is no timer: who is alone is flushed at once, in the task that submits, and
    pays nothing extra. Event loops, and so threads, never share a flush.

    :param flush: does a group in one round trip. It gives an outcome for each entry, in
        order; an exception among them fails its own entry, one it raises fails all. It
        must not submit to the same object, which would wait for itself.
    :param max_size: how many entries a group has at most.
    :param awaits_turn: whether who is alone waits a turn of the event loop for others.
        It is for what many begin at the same moment, such as those who are told by the
        same message: their first one would have a round trip of its own.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[_Entry]], Awaitable[Sequence[_Outcome | Exception]]],
        max_size: int = CHUNK_SIZE,
        *,
        awaits_turn: bool = False,
    ) -> None:
        self._flush = flush
        self._max_size = max_size
        self._awaits_turn = awaits_turn
        self._lanes: WeakKeyDictionary[
            asyncio.AbstractEventLoop,
            _Lane[_Entry, _Outcome],
        ] = WeakKeyDictionary()

    async def submit(self, entry: _Entry) -> _Outcome:
        """Do one operation, together with others if a flush is in flight.

        Cancelling the caller withdraws the entry if it has not left.

        :returns: the outcome of this entry.
        :raises Exception: what the flush gave for this entry, or raised.
        """
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            lane = self._lanes[loop] = _Lane()
        if lane.is_busy or self._awaits_turn:
            future: asyncio.Future[_Outcome] = loop.create_future()
            lane.waiting.append((entry, future))
            if not lane.is_busy:
                lane.is_busy = True
                lane.drain = loop.create_task(self._drain(lane))
            return await future
        lane.is_busy = True
        try:
            [outcome] = await self._outcomes([entry])
        finally:
            if lane.waiting:
                lane.drain = loop.create_task(self._drain(lane))
            else:
                lane.is_busy = False
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _drain(self, lane: _Lane[_Entry, _Outcome]) -> None:
        """Flush group after group until nobody waits."""
        group: list[tuple[_Entry, asyncio.Future[_Outcome]]] = []
        try:
            while group := self._next_group(lane):
                outcomes: Sequence[_Outcome | Exception]
                try:
                    outcomes = await self._outcomes([entry for entry, _ in group])
                except Exception as exc:  # noqa: BLE001 - raised by each submitter
                    outcomes = [exc] * len(group)
                for (_, future), outcome in zip(group, outcomes, strict=True):
                    _settle(future, outcome)
        finally:
            # Empty, unless this task was cancelled: then nobody is left to wait for it.
            for _, future in (*group, *lane.waiting):
                future.cancel()
            lane.waiting.clear()
            lane.is_busy = False
            lane.drain = None

    def _next_group(
        self,
        lane: _Lane[_Entry, _Outcome],
    ) -> list[tuple[_Entry, asyncio.Future[_Outcome]]]:
        group: list[tuple[_Entry, asyncio.Future[_Outcome]]] = []
        while lane.waiting and len(group) < self._max_size:
            entry, future = lane.waiting.popleft()
            if not future.done():  # else its submitter was cancelled
                group.append((entry, future))
        return group

    async def _outcomes(
        self,
        entries: Sequence[_Entry],
    ) -> Sequence[_Outcome | Exception]:
        outcomes = await self._flush(entries)
        if len(outcomes) != len(entries):
            raise RuntimeError(
                f"{self._flush!r} must give {len(entries)} outcomes, one per entry in "
                f"order; it gave {len(outcomes)}",
            )
        return outcomes


def _settle(
    future: asyncio.Future[_Outcome],
    outcome: _Outcome | Exception,
) -> None:
    if future.done():
        return  # its submitter was cancelled after the entry had left
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
