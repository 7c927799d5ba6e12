"""What tests of tasks need: time that does not pass by itself, and contexts."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskiq.acks import AckController
from taskiq.batch import FlushReason
from taskiq.context import BatchContext, Context
from taskiq.message import TaskiqMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskiq.context import Recipient
    from taskiq.decor import AsyncTaskiqDecoratedTask

__all__ = ["ManualAlarm", "ManualClock", "context_for"]


class ManualAlarm:
    """A call that a `ManualClock` makes when its moment comes.

    :ivar when: the moment, in seconds of the clock.
    """

    __slots__ = ("_callback", "_is_cancelled", "_loop", "when")

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self._callback = callback
        self._is_cancelled = False
        self._loop = _running_loop()

    def cancel(self) -> None:
        """Call it off; harmless when it has rung already."""
        self._is_cancelled = True

    @property
    def is_armed(self) -> bool:
        """Whether it can ring: not when the event loop it was set in is closed."""
        is_orphaned = self._loop is not None and self._loop.is_closed()
        return not self._is_cancelled and not is_orphaned

    def ring(self) -> None:
        """Make the call, unless it was called off."""
        if self.is_armed:
            self._is_cancelled = True
            self._callback()


class ManualClock:
    """A clock that moves when it is told to, for `InMemoryBroker.with_clock`.

    Batches wait by this clock: one leaves by its `batch_timeout` or
    `batch_idle_timeout` when `advance` reaches that moment, and never by itself. What
    task functions do, `asyncio.sleep` included, takes the time it takes.
    """

    def __init__(self) -> None:
        self._now = 0.0
        # Alarms of one moment ring in the order they were set.
        self._order = itertools.count()
        self._alarms: list[tuple[float, int, ManualAlarm]] = []

    def time(self) -> float:
        """Return how far the clock was moved, in seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> ManualAlarm:
        """Set an alarm.

        :param when: the moment in seconds of this clock; `advance` rings one in the
            past, too.
        """
        alarm = ManualAlarm(when, callback)
        heapq.heappush(self._alarms, (when, next(self._order), alarm))
        return alarm

    def advance(self, seconds: float) -> None:
        """Move on, ringing each alarm at its own moment, in order.

        A batch that falls due starts when the event loop gets its turn: await
        ``broker.wait_running()`` to wait for its end.

        :param seconds: how far, 0 or more.
        :raises ValueError: when that is no finite number, or less than 0.
        """
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"a clock moves 0 or more seconds on, got {seconds!r}")
        end = self._now + seconds
        while self._alarms and self._alarms[0][0] <= end:
            when, _, alarm = heapq.heappop(self._alarms)
            if alarm.is_armed:
                self._now = max(self._now, when)
                alarm.ring()
        self._now = end

    @property
    def armed(self) -> int:
        """How many alarms may still ring."""
        return sum(alarm.is_armed for _, _, alarm in self._alarms)

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now} s, {self.armed} alarms armed>"


@dataclass
class _Recipient:
    message: TaskiqMessage
    controller: AckController
    twins: Sequence[Recipient] = ()


def context_for(
    task: AsyncTaskiqDecoratedTask[..., Any],
    *args: Any,
    labels: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Make the context that a worker would give a task, to call it in a test.

    ``await pay(5, context=context_for(pay, 5))`` for a plain task; for the function of
    a batch task ``await pay.original_func([1, 2], context_for(pay, [1, 2]))``.

    :param args: what the function is called with; of a batch task first the list of its
        items, each of which has a message of its own, with the ids "0", "1" and on.
    :param labels: what its messages carry beside the task's own labels.
    :param kwargs: what it is called with by name.
    :returns: a `Context`, with the id "0" for its message; of a batch task a
        `BatchContext`. Their messages can be acknowledged, which does nothing.
    :raises TypeError: when a batch task is given no list.
    """
    if task.batch is None:
        message = _message(task, 0, args, kwargs, labels)
        return Context(message, task.broker, AckController(_do_nothing))
    items: Any = args[0] if args else None
    if items.__class__ is not list or not items:
        raise TypeError(
            f"context_for({task.task_name}, ...) takes the list of items that the "
            f"function of this batch task is called with, got {items!r}",
        )
    recipients = [
        _Recipient(
            _message(task, number, (item, *args[1:]), kwargs, labels),
            AckController(_do_nothing),
        )
        for number, item in enumerate(items)
    ]
    return BatchContext(recipients, task.broker, "test", FlushReason.MANUAL)


def _message(
    task: AsyncTaskiqDecoratedTask[..., Any],
    number: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    labels: dict[str, Any] | None,
) -> TaskiqMessage:
    return TaskiqMessage(
        task_id=str(number),
        task_name=task.task_name,
        labels={**task.labels, **(labels or {})},
        args=list(args),
        kwargs=kwargs,
    )


async def _do_nothing() -> None:
    """Stand in for a broker that is told of an acknowledgement."""


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
