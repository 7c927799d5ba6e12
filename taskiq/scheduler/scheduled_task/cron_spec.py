"""Cron schedule given field by field."""

from pydantic import BaseModel

from taskiq.scheduler.scheduled_task.validators import CronOffset


class CronSpec(BaseModel):
    """The five fields of a cron schedule and the clock they are read on.

    A field set to None means the same as ``*``: any value.
    `offset` is a fixed shift from UTC or the name of a time zone; None means UTC.
    """

    minutes: str | int | None = "*"
    hours: str | int | None = "*"
    days: str | int | None = "*"
    months: str | int | None = "*"
    weekdays: str | int | None = "*"

    offset: CronOffset | None = None

    def to_cron(self) -> str:
        """Return the cron text: minutes, hours, days, months, weekdays."""
        fields = (self.minutes, self.hours, self.days, self.months, self.weekdays)
        return " ".join("*" if field is None else str(field) for field in fields)
