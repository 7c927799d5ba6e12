"""Joins a broker with the sources of schedules."""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING, Any

from taskiq.exceptions import ScheduledTaskCancelledError
from taskiq.kicker import AsyncKicker
from taskiq.utils import maybe_awaitable

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker
    from taskiq.abc.schedule_source import ScheduleSource
    from taskiq.scheduler.scheduled_task import ScheduledTask

logger = getLogger(__name__)


class TaskiqScheduler:
    """Sends scheduled tasks through a broker.

    :param broker: where the tasks are sent.
    :param sources: where the schedules are read from.
    """

    def __init__(self, broker: AsyncBroker, sources: list[ScheduleSource]) -> None:
        self.broker = broker
        self.sources = sources

    async def startup(self) -> None:
        """Start the broker."""
        await self.broker.startup()

    async def shutdown(self) -> None:
        """Shut the broker down."""
        await self.broker.shutdown()

    async def on_ready(self, source: ScheduleSource, task: ScheduledTask) -> None:
        """Send a schedule whose moment has come.

        A failing `post_send` of the source is logged and not raised: the task is on
        its way then, and an error would have it sent a second time.

        :param source: the source the schedule came from; its hooks are called.
        :param task: the schedule to send.
        :raises SendTaskError: the broker did not take the task.
        """
        try:
            await maybe_awaitable(source.pre_send(task))
        except ScheduledTaskCancelledError:
            logger.info("Scheduled task %s has been cancelled.", task.task_name)
            return
        await self._kick(task)
        try:
            await maybe_awaitable(source.post_send(task))
        except Exception:
            logger.exception(
                "post_send of %s failed for task %s with schedule_id %s. "
                "The task itself was sent.",
                type(source).__name__,
                task.task_name,
                task.schedule_id,
            )

    async def _kick(self, task: ScheduledTask) -> None:
        # The kicker works on a copy, so the stored schedule keeps its own labels.
        labels = {**task.labels, "schedule_id": task.schedule_id}
        kicker: AsyncKicker[Any, Any] = AsyncKicker(
            task.task_name,
            self.broker,
            labels,
        )
        known = self.broker.find_task(task.task_name)
        kicker.unique = None if known is None else known.unique
        await kicker.with_task_id(task.task_id).kiq(*task.args, **task.kwargs)
