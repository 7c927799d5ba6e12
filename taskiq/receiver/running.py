"""The asyncio tasks a receiver has started, and the capacity each of them holds."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any

from taskiq.receiver.cancellation import start_task, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

logger = logging.getLogger("taskiq.receiver.receiver")

#: The slots of the work this code belongs to, also in asyncio tasks it has begun.
_lent: contextvars.ContextVar[tuple[RunningTasks, Slots] | None] = (
    contextvars.ContextVar("taskiq_lent_slots", default=None)
)

#: The broker whose message this code works for, also in asyncio tasks it has begun.
_working_for: contextvars.ContextVar[object] = contextvars.ContextVar(
    "taskiq_working_for",
    default=None,
)

#: Seconds a cancelled task has for its cleanup before it is left behind.
CANCEL_GRACE = 5.0


class Slots:
    """Units of capacity held for one delivery; each is given back exactly once.

    :param delivery: the semaphore of deliveries, if one unit of it was acquired.
    """

    __slots__ = ("_delivery", "_execution")

    def __init__(self, delivery: asyncio.Semaphore | None = None) -> None:
        self._delivery = delivery
        self._execution: asyncio.Semaphore | None = None

    def hold_execution(self, execution: asyncio.Semaphore) -> None:
        """Hold one more unit, which the caller has acquired."""
        self._execution = execution

    def release_delivery(self) -> None:
        """Let the broker be asked for one more message."""
        if self._delivery is not None:
            self._delivery.release()
            self._delivery = None

    def release_execution(self) -> None:
        """Let one more call start."""
        if self._execution is not None:
            self._execution.release()
            self._execution = None

    def release(self) -> None:
        """Give back whatever is still held."""
        if self._execution is not None:
            self.release_execution()
        if self._delivery is not None:
            self.release_delivery()


class RunningTasks:
    """Strong references to started asyncio tasks, until each has ended."""

    def __init__(self) -> None:
        self._started: dict[asyncio.Task[Any], tuple[Slots, object]] = {}

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, Any],
        slots: Slots,
        subject: object,
        *,
        is_lending: bool = False,
    ) -> asyncio.Task[Any]:
        """Run `work` as a task that holds `slots` until it ends.

        :param loop: the running loop; asking for it costs a system call in places.
        :param subject: names the work in the log, by its `str`; `None` for work whose
            cancellation is nothing to tell.
        :param is_lending: whether the work may give slots back early: `lent_slots`.
        """
        if is_lending:
            context = contextvars.copy_context()
            context.run(_lent.set, (self, slots))
            task = context.run(start_task, loop, work)
        else:
            task = start_task(loop, work)
        self._started[task] = (slots, subject)
        task.add_done_callback(self._ended)
        return task

    def lent_slots(self) -> Slots | None:
        """Give the slots of the work that asks, if it was started here to lend them.

        It may ask from an asyncio task of its own, as under `asyncio.wait_for`.
        """
        lent = _lent.get()
        return lent[1] if lent is not None and lent[0] is self else None

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """The tasks that have not ended."""
        return set(self._started)

    def __len__(self) -> int:
        return len(self._started)

    async def cancel(self) -> None:
        """Cancel what still runs and wait until it has cleaned up after itself."""
        if not self._started:
            return
        for task, (slots, subject) in self._started.items():
            if subject is not None:
                logger.error(
                    "Stopped before it was done, not acknowledged: %s.",
                    subject,
                )
                self._started[task] = (slots, None)  # it is told
            task.cancel()
        _, left = await uninterrupted(asyncio.wait(self.tasks, timeout=CANCEL_GRACE))
        for task in left:
            logger.error("Does not end after its cancellation: %s.", task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        slots, subject = self._started.pop(task)
        slots.release()
        if task.cancelled():
            if subject is not None:
                logger.error(
                    "Left for redelivery, as it cancelled itself: %s.",
                    subject,
                )
        elif (error := task.exception()) is not None:
            logger.error(
                "Left for redelivery by an unexpected error, not acknowledged: %s.",
                subject,
                exc_info=error,
            )


def start_for(
    broker: object,
    start: Callable[..., asyncio.Task[Any]],
    *args: Any,
) -> asyncio.Task[Any]:
    """Start work for a message of `broker`, by calling `start`."""
    context = contextvars.copy_context()
    context.run(_working_for.set, broker)
    return context.run(start, *args)


def mark_as_working_for(broker: object) -> None:
    """Let the asyncio task that calls, and those it begins, work for `broker`."""
    _working_for.set(broker)


def is_working_for(broker: object) -> bool:
    """Whether whoever asks works for a message of `broker`."""
    return _working_for.get() is broker


async def wait_for_all(
    tasks: Iterable[asyncio.Task[Any]],
    timeout: float | None,
) -> None:
    """Wait for tasks without taking their errors.

    :param timeout: seconds, `None` for no limit.
    """
    waited_for = set(tasks)
    if waited_for:
        await asyncio.wait(waited_for, timeout=timeout)
