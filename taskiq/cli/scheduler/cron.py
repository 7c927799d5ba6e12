"""Cron: which minutes a schedule falls in, on which clock.

Fields are matched by `pycron`, named time zones come from `pytz`.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import pycron  # pyright: ignore[reportMissingTypeStubs] - typed, without a marker
import pytz

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

MINUTE: Final = timedelta(minutes=1)

#: How far back missed minutes are made up for. A clock that moves on by more was set,
#: not late: the rule, and the three hours, are those of Vixie cron.
CATCH_UP: Final = timedelta(hours=3)


class _Field(NamedTuple):
    """One of the five fields of a cron text."""

    position: int
    name: str
    allowed: str
    #: One moment for each value the field can have.
    moments: tuple[datetime, ...]


# October 2023 has all days of a month and starts with day 0 of the week, a Sunday.
_START: Final = datetime(2023, 10, 1, tzinfo=timezone.utc)
_DAYS: Final = tuple(_START + timedelta(days=day) for day in range(31))
_HOURS: Final = tuple(_START.replace(hour=hour) for hour in range(24))
_MINUTES: Final = tuple(_START.replace(minute=minute) for minute in range(60))
_MONTHS: Final = tuple(_START.replace(month=month) for month in range(1, 13))

_MINUTE: Final = _Field(0, "minute", "0 to 59", _MINUTES)
_HOUR: Final = _Field(1, "hour", "0 to 23", _HOURS)
_DAY: Final = _Field(2, "day of month", "1 to 31", _DAYS)
_MONTH: Final = _Field(3, "month", "1 to 12", _MONTHS)
_WEEKDAY: Final = _Field(
    4,
    "day of week",
    "0 to 6 from Sunday on, or English names",
    _DAYS[:7],
)
_FIELDS: Final = (_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY)


class CronValueError(Exception):
    """A cron text, or the clock it is read on, cannot be understood."""


def cron_matches(cron_value: str, wall_time: datetime) -> bool:
    """Tell whether a cron text matches a minute.

    :param cron_value: five fields separated by single blanks.
    :param wall_time: any moment of the minute, as the clock on the wall shows it.
    :raises CronValueError: the text is malformed.
    """
    try:
        return bool(pycron.is_now(cron_value, wall_time))
    except (ValueError, ZeroDivisionError) as exc:
        raise CronValueError(f"{cron_value!r} is not a cron text: {exc}") from exc


def to_wall_time(moment: datetime, offset: str | timedelta | None) -> datetime:
    """Give what the clock of a schedule shows at a moment.

    :param moment: aware datetime in UTC.
    :param offset: shift from UTC, or name of a time zone; none or empty is UTC.
    :raises CronValueError: there is no such time zone, or no such moment.
    """
    if not offset:
        return moment
    if isinstance(offset, timedelta):
        try:
            return moment + offset
        except OverflowError as exc:
            raise CronValueError(f"the offset {offset} is out of range") from exc
    return moment.astimezone(_zone(offset))


def check_cron(cron_value: str, offset: str | timedelta | None) -> None:
    """Check that a cron schedule can be read, and that it can match at all.

    :param cron_value: five fields separated by single blanks.
    :param offset: shift from UTC, or name of a time zone.
    :raises CronValueError: telling what is wrong.
    """
    if isinstance(offset, str) and offset:
        _zone(offset)
    for field, text in zip(_FIELDS, _split(cron_value), strict=True):
        try:
            matches = _count_matches(field, text)
        except CronValueError as exc:
            raise CronValueError(
                f"the {field.name} {text!r} of {cron_value!r} cannot be read: "
                f"{exc.__cause__}",
            ) from exc
        if not matches:
            raise CronValueError(
                f"the {field.name} {text!r} of {cron_value!r} matches none of "
                f"{field.allowed}",
            )


def cron_fires(cron_value: str, slot: datetime, offset: str | timedelta | None) -> bool:
    """Tell whether a cron schedule is to be sent in a minute.

    This is `cron_matches`, save for the hours a named time zone skips or repeats. A
    schedule bound to hours of the clock runs once then as well: for a skipped time
    when the clock would have shown it, for a repeated one the first time. One that
    matches every hour goes on running every hour.

    :param cron_value: five fields separated by single blanks.
    :param slot: start of the minute, in UTC.
    :param offset: shift from UTC, or name of a time zone.
    :raises CronValueError: the text is malformed or there is no such time zone.
    """
    if isinstance(offset, timedelta) or not offset or _runs_every_hour(cron_value):
        return cron_matches(cron_value, to_wall_time(slot, offset))
    clock_times = _clock_times_due(slot, offset)
    return any(cron_matches(cron_value, clock_time) for clock_time in clock_times)


def slots_since(
    seen_until: datetime | None,
    now: datetime,
    offset: str | timedelta | None,
    catch_up: timedelta = CATCH_UP,
) -> Iterator[datetime]:
    """List the minutes that began since a schedule was looked at, latest first.

    :param seen_until: the last look; `None` for a schedule not looked at yet, of
        which only the current minute counts.
    :param now: aware datetime in UTC.
    :param offset: shift from UTC, or name of a time zone.
    :param catch_up: how far back missed minutes are listed.
    """
    slot = slot_start(now, offset)
    if seen_until is None:
        yield slot
        return
    oldest = max(seen_until, now - catch_up)
    while slot > oldest:
        yield slot
        slot -= MINUTE


def slot_start(moment: datetime, offset: str | timedelta | None) -> datetime:
    """Give the moment the cron minute began that another moment lies in.

    :param moment: aware datetime in UTC.
    :param offset: shift from UTC, or name of a time zone. Minutes of a clock shifted
        by odd seconds begin at odd seconds.
    """
    shift = offset % MINUTE if isinstance(offset, timedelta) else timedelta()
    return (moment + shift).replace(second=0, microsecond=0) - shift


@lru_cache(maxsize=256)
def _clock_times_due(slot: datetime, zone_name: str) -> tuple[datetime, ...]:
    """List the times on the clock of a zone that fall due in a minute.

    One as a rule; none while the clock repeats an hour; two in the hour after it was
    put forward: the time it shows and the skipped one it would have shown.
    """
    zone = _zone(zone_name)
    clock_time = slot.astimezone(zone)
    offset_before = _utc_offset(slot - timedelta(days=1), zone)
    change = _utc_offset(slot, zone) - offset_before
    if not change or _utc_offset(slot - abs(change), zone) != offset_before:
        return (clock_time,)
    if change < timedelta():
        return ()
    return (clock_time, clock_time - change)


def _utc_offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _zone(name: str) -> tzinfo:
    try:
        return pytz.timezone(name)
    except pytz.UnknownTimeZoneError as exc:
        raise CronValueError(f"there is no time zone {name!r}") from exc


def _split(cron_value: str) -> list[str]:
    fields = cron_value.split(" ")
    if len(fields) != len(_FIELDS):
        raise CronValueError(
            f"{cron_value!r} has {len(fields)} fields; five, separated by single "
            "blanks, are needed",
        )
    return fields


def _runs_every_hour(cron_value: str) -> bool:
    return _count_matches(_HOUR, _split(cron_value)[_HOUR.position]) == len(_HOURS)


@lru_cache(maxsize=1024)
def _count_matches(field: _Field, text: str) -> int:
    """Count the values a field matches, by trying them all."""
    fields = ["*"] * len(_FIELDS)
    fields[field.position] = text
    cron_value = " ".join(fields)
    return sum(cron_matches(cron_value, moment) for moment in field.moments)
