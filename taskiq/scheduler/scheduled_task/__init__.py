"""What a schedule is made of."""

from taskiq.scheduler.scheduled_task.cron_spec import CronSpec
from taskiq.scheduler.scheduled_task.task import ScheduledTask

__all__ = ["CronSpec", "ScheduledTask"]
