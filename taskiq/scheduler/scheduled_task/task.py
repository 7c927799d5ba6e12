"""A task with the moments it is to be sent at."""

import uuid
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, Field, model_validator

from taskiq.scheduler.scheduled_task.validators import (
    CronOffset,
    validate_interval_value,
)


def _new_schedule_id() -> str:
    return uuid.uuid4().hex


class ScheduledTask(BaseModel):
    """One schedule: which task to send, with what, and when.

    At least one of `cron` (text of five fields), `interval` (seconds or a duration)
    and `time` (naive means UTC) must be given; construction raises a ValueError
    otherwise. `schedule_id` must stay the same each time a source returns the schedule.
    """

    task_name: str
    labels: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    task_id: str | None = None
    schedule_id: str = Field(default_factory=_new_schedule_id)
    cron: str | None = None
    cron_offset: CronOffset | None = None
    time: datetime | None = None
    interval: int | timedelta | None = None

    @model_validator(mode="after")
    def _has_a_moment(self) -> "ScheduledTask":
        if self.cron is None and self.interval is None and self.time is None:
            raise ValueError("Either cron, interval, or datetime must be present.")
        validate_interval_value(self.interval)
        return self
