"""Where schedules come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from taskiq.scheduler.scheduled_task import ScheduledTask


class ScheduleSource(ABC):
    """A store of schedules that a scheduler reads.

    A schedule must keep its `schedule_id` between calls of `get_schedules`:
    what was already sent is remembered under it.
    """

    async def startup(self) -> None:  # noqa: B027 - optional for subclasses
        """Prepare the source; called once before the first `get_schedules`."""

    async def shutdown(self) -> None:  # noqa: B027 - optional for subclasses
        """Release what `startup` acquired."""

    @abstractmethod
    async def get_schedules(self) -> list[ScheduledTask]:
        """Return all schedules the source holds now."""

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        """Store a schedule.

        :param schedule: the schedule to store.
        :raises NotImplementedError: the source cannot be written to.
        """
        raise NotImplementedError(
            f"The source {self.__class__.__name__} does not support adding schedules.",
        )

    async def delete_schedule(self, schedule_id: str) -> None:
        """Remove a schedule.

        :param schedule_id: id of the schedule to remove.
        :raises NotImplementedError: the source cannot be written to.
        """
        raise NotImplementedError(
            f"The source {self.__class__.__name__} "
            "does not support deleting schedules.",
        )

    def pre_send(  # noqa: B027 - optional for subclasses
        self,
        task: ScheduledTask,
    ) -> Coroutine[Any, Any, None] | None:
        """Act before a schedule is sent; may be sync or async.

        :param task: the schedule about to be sent.
        :raises ScheduledTaskCancelledError: to skip this sending.
        """

    def post_send(  # noqa: B027 - optional for subclasses
        self,
        task: ScheduledTask,
    ) -> Coroutine[Any, Any, None] | None:
        """Act after a schedule was sent; may be sync or async.

        :param task: the schedule that was sent.
        """
