"""Schedules that tasks carry in their labels."""

from __future__ import annotations

import uuid
from logging import getLogger
from typing import TYPE_CHECKING, Any, Final

from taskiq.abc.schedule_source import ScheduleSource
from taskiq.scheduler.scheduled_task import ScheduledTask

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker
    from taskiq.decor import AsyncTaskiqDecoratedTask

logger = getLogger(__name__)

_MOMENTS: Final = ("cron", "interval", "time")


class LabelScheduleSource(ScheduleSource):
    """Reads the label `schedule` of the tasks of a broker.

    The label is a list of dicts with at least one of `cron`, `interval` and `time`,
    and as wanted `cron_offset`, `args`, `kwargs`, `labels` and `schedule_id`.

    :param broker: whose tasks are read.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self.broker = broker
        self.schedules: dict[str, ScheduledTask] = {}
        #: Tasks whose label was read, by name; `None` before startup.
        self._read: dict[str, AsyncTaskiqDecoratedTask[Any, Any]] | None = None

    async def startup(self) -> None:
        """Read the labels of all tasks anew.

        :raises ValueError: a schedule of a label is invalid.
        """
        self.schedules.clear()
        self._read = {}
        self._read_new_tasks(self._read)

    async def get_schedules(self) -> list[ScheduledTask]:
        """Return the schedules, with those of tasks that were registered meanwhile.

        :raises ValueError: a schedule of a label is invalid.
        """
        if self._read is not None:
            self._read_new_tasks(self._read)
        return list(self.schedules.values())

    def post_send(self, task: ScheduledTask) -> None:
        """Drop a schedule that had only one moment to be sent at.

        :param task: the schedule that was sent.
        """
        if task.time is not None and task.cron is None and task.interval is None:
            self.schedules.pop(task.schedule_id, None)

    def _read_new_tasks(
        self, read: dict[str, AsyncTaskiqDecoratedTask[Any, Any]]
    ) -> None:
        for name, task in self.broker.get_all_tasks().items():
            if read.get(name) is task:
                continue
            if name in read:
                self._drop_schedules_of(name)
            read[name] = task
            if task.broker is not self.broker:
                logger.warning(
                    "Task %s belongs to another broker; its schedules are left alone.",
                    name,
                )
                continue
            for schedule in _schedules_of(task):
                self.schedules[schedule.schedule_id] = schedule

    def _drop_schedules_of(self, task_name: str) -> None:
        for schedule in list(self.schedules.values()):
            if schedule.task_name == task_name:
                del self.schedules[schedule.schedule_id]


def _schedules_of(task: AsyncTaskiqDecoratedTask[Any, Any]) -> list[ScheduledTask]:
    return [
        _schedule(task, entry)
        for entry in task.labels.get("schedule", [])
        if any(moment in entry for moment in _MOMENTS)
    ]


def _schedule(
    task: AsyncTaskiqDecoratedTask[Any, Any],
    entry: dict[str, Any],
) -> ScheduledTask:
    given = {key: value for key, value in entry.items() if value is not None}
    own_labels = {key: value for key, value in task.labels.items() if key != "schedule"}
    try:
        return ScheduledTask(
            task_name=task.task_name,
            labels={**given.get("labels", {}), **own_labels},
            args=given.get("args", []),
            kwargs=given.get("kwargs", {}),
            cron=given.get("cron"),
            cron_offset=given.get("cron_offset"),
            time=given.get("time"),
            interval=given.get("interval"),
            schedule_id=given.get("schedule_id", uuid.uuid4().hex),
        )
    except ValueError:
        logger.error("Task %s has an invalid schedule: %r", task.task_name, entry)  # noqa: TRY400 - raised on
        raise
