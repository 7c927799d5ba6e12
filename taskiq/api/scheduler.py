"""Running a scheduler inside an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskiq.cli.scheduler.lifecycle import shut_down, start_up
from taskiq.cli.scheduler.run import SchedulerLoop

if TYPE_CHECKING:
    from datetime import timedelta

    from taskiq.scheduler.scheduler import TaskiqScheduler


async def run_scheduler_task(
    scheduler: TaskiqScheduler,
    run_startup: bool = False,
    interval: timedelta | None = None,
    loop_interval: timedelta | None = None,
) -> None:
    """Run a scheduler until the task this runs in is cancelled.

    The sources are started first. What was started is shut down in the end.

    :param scheduler: the scheduler to run.
    :param run_startup: whether to start the scheduler with its broker too; leave it
        off if the application has done so.
    :param interval: time between two questions to a source, 1 minute if not given.
    :param loop_interval: time between two passes, 1 second if not given.
    """
    await start_up(scheduler, with_broker=run_startup)
    try:
        await SchedulerLoop(scheduler).run(
            update_interval=interval,
            loop_interval=loop_interval,
        )
    finally:
        await shut_down(scheduler, with_broker=run_startup)
