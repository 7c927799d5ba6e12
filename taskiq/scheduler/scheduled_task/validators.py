"""Checks shared by the schedule models."""

from datetime import timedelta
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

_MIN_INTERVAL_SECONDS = 1


def validate_interval_value(value: int | timedelta | None) -> None:
    """Check that an interval is a whole number of seconds, at least one.

    :param value: seconds, or a duration, or None for "no interval".
    :raises ValueError: the interval has fractional seconds or is below one second.
    """
    if value is None:
        return
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds % 1:
        raise ValueError(
            f"Fractional intervals are not supported, got {seconds} seconds",
        )
    if seconds < _MIN_INTERVAL_SECONDS:
        raise ValueError(f"Interval must be at least 1 second, got {seconds} seconds")


@lru_cache(maxsize=1)
def _timedelta_adapter() -> TypeAdapter[timedelta]:
    return TypeAdapter(timedelta)


def discriminate_offset(value: Any) -> str:
    """Tell a fixed shift from UTC from the name of a time zone.

    :param value: a timedelta, or text such as ``PT1H``, ``-02:00``, ``US/Eastern``.
    :returns: ``timedelta`` or ``str``, the tag of the union member to validate with.
    """
    if isinstance(value, timedelta):
        return "timedelta"
    if not isinstance(value, str):
        return "str"
    try:
        _timedelta_adapter().validate_python(value)
    except ValidationError:
        return "str"
    return "timedelta"


CronOffset = Annotated[
    Annotated[str, Tag("str")] | Annotated[timedelta, Tag("timedelta")],
    Discriminator(discriminate_offset),
]
"""Shift of a cron schedule from UTC: a timedelta or the name of a time zone."""
