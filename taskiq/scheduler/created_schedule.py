"""Handle of a schedule that was stored in a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import CoroutineType

    from taskiq.scheduler.scheduled_task import ScheduledTask
    from taskiq.task import AsyncTaskiqTask

_T = TypeVar("_T")
_ReturnType = TypeVar("_ReturnType")
_ReturnType_co = TypeVar("_ReturnType_co", covariant=True)


class Sender(Protocol[_ReturnType_co]):
    """What sends the task of a schedule: a kicker."""

    @property
    def return_type(self) -> type[_ReturnType_co] | None:
        """What the result is cast to, `None` to leave it alone."""
        ...

    @property
    def kiq(self) -> Callable[..., Awaitable[Any]]:
        """Send the task with these arguments; awaited, a handle of its result."""
        ...


class Unscheduling(Protocol):
    """Where a schedule can be removed from: a schedule source."""

    async def delete_schedule(self, schedule_id: str) -> None:
        """Remove the schedule of this id."""


class CreatedSchedule(Generic[_ReturnType]):
    """A stored schedule: send its task at once, or remove it from its source.

    :param kicker: sends the task; keeps the labels and ids it was given.
    :param source: where the schedule is stored.
    :param task: the schedule itself.
    """

    def __init__(
        self,
        kicker: Sender[_ReturnType],
        source: Unscheduling,
        task: ScheduledTask,
    ) -> None:
        self.kicker = kicker
        self.source = source
        self.task = task
        self.schedule_id = task.schedule_id

    @overload
    async def kiq(
        self: CreatedSchedule[CoroutineType[Any, Any, _T]],
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: CreatedSchedule[Coroutine[Any, Any, _T]],
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(self) -> AsyncTaskiqTask[_ReturnType]: ...

    async def kiq(self) -> Any:
        """Send the task now, with the arguments of the schedule.

        :returns: a handle to wait for the result with.
        :raises SendTaskError: when the message could not be sent.
        """
        return await self.kicker.kiq(*self.task.args, **self.task.kwargs)

    async def unschedule(self) -> None:
        """Remove the schedule from its source."""
        await self.source.delete_schedule(self.schedule_id)

    def __str__(self) -> str:
        task = self.task
        return (
            f"CreatedSchedule<id={self.schedule_id}, time={task.time}, "
            f"interval={task.interval}, cron={task.cron}, "
            f"cron_offset={task.cron_offset or 'UTC'}, task_name={task.task_name}, "
            f"args={task.args}, kwargs={task.kwargs}>"
        )
