from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise

import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from taskiq.cli.scheduler.agenda import Agenda
from taskiq.cli.scheduler.cron import (
    CronValueError,
    check_cron,
    cron_fires,
    slot_start,
    slots_since,
)
from taskiq.cli.scheduler.run import (
    is_cron_task_now,
    is_interval_task_now,
    is_time_task_now,
    to_tz_aware,
)

from .fakes import schedule

NOON = datetime(2024, 5, 7, 12, 0, tzinfo=timezone.utc)  # a Tuesday
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)

#: A zone, the day its clock was put forward and the day it was put back.
CHANGES = [
    ("US/Eastern", date(2024, 3, 10), date(2024, 11, 3)),  # at 2 o'clock
    ("Europe/Berlin", date(2024, 3, 31), date(2024, 10, 27)),  # at 2 and 3 o'clock
    ("Australia/Lord_Howe", date(2024, 10, 6), date(2024, 4, 7)),  # by half an hour
    ("Asia/Beirut", date(2024, 3, 31), date(2024, 10, 27)),  # at midnight
]


def minutes_of(zone_name: str, day: date) -> Iterator[datetime]:
    """List the minutes, in UTC, of a day and the days around it."""
    zone = pytz.timezone(zone_name)
    midnight = datetime(day.year, day.month, day.day)
    start = zone.localize(midnight).astimezone(timezone.utc) - DAY
    return (start + number * MINUTE for number in range(3 * 24 * 60))


def sendings(
    cron: str,
    offset: str | timedelta | None,
    minutes: Iterator[datetime],
) -> list[datetime]:
    """Run a schedule through minutes looked at one by one."""
    agenda = Agenda(lambda _task, reason: pytest.fail(reason))
    task = schedule(cron=cron, cron_offset=offset)
    return [minute for minute in minutes if agenda.is_ready(task, minute)]


def test_a_naive_time_is_taken_for_utc() -> None:
    aware = datetime(2024, 5, 7, tzinfo=timezone(timedelta(hours=2)))
    assert to_tz_aware(NOON.replace(tzinfo=None)) == NOON
    assert to_tz_aware(aware) is aware


@pytest.mark.parametrize(
    ("cron", "offset", "expected"),
    [
        ("* * * * *", None, True),
        ("0 12 * * *", None, True),
        ("0 12 * * *", "", True),
        ("0 8 * * *", "US/Eastern", True),
        ("0 8 * * *", None, False),
        ("0 14 * * *", timedelta(hours=2), True),
        ("0 10 * * *", timedelta(hours=-2), True),
        ("* * * * tue", None, True),
        ("* * * * 2", None, True),
        ("* * 1 * 2", None, True),  # either day field may match
        ("* * 1 * *", None, False),
        ("None * * * *", None, False),
    ],
)
def test_cron_matches_the_clock_of_the_schedule(
    cron: str,
    offset: str | timedelta | None,
    expected: bool,
) -> None:
    assert is_cron_task_now(cron, NOON, offset) is expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, False), (59.4, False), (59.5, True), (60, True)],
)
def test_cron_waits_a_minute_after_the_last_run(seconds: float, expected: bool) -> None:
    last_run = NOON - timedelta(seconds=seconds)
    assert is_cron_task_now("* * * * *", NOON, last_run=last_run) is expected


@pytest.mark.parametrize("cron", ["", "* * * *", "*  * * * *", "*/a * * * *", "@daily"])
def test_a_malformed_cron_is_a_cron_value_error(cron: str) -> None:
    with pytest.raises(CronValueError):
        is_cron_task_now(cron, NOON)


def test_a_step_of_zero_is_a_cron_value_error() -> None:
    with pytest.raises(CronValueError):
        is_cron_task_now("*/0 * * * *", NOON)


@pytest.mark.parametrize("zone", ["Nowhere", "US", "Europe", "/etc/passwd", "../UTC"])
def test_an_unknown_zone_is_a_cron_value_error_whatever_its_text(zone: str) -> None:
    with pytest.raises(CronValueError, match="there is no time zone"):
        is_cron_task_now("* * * * *", NOON, zone)


@settings(deadline=None)
@given(st.text(alphabet="0123456789*/-, ajnLW?", max_size=20))
def test_no_cron_text_ends_in_another_error(cron: str) -> None:
    with suppress(CronValueError):
        is_cron_task_now(cron, NOON)
    with suppress(CronValueError):
        check_cron(cron, None)


@pytest.mark.parametrize(
    ("cron", "reason"),
    [
        ("* * * *", "has 4 fields; five"),
        ("*  * * * *", "has 6 fields; five"),
        ("60 * * * *", "the minute '60' of .* matches none of 0 to 59"),
        ("* * * jan *", "the month 'jan' of .* matches none of 1 to 12"),
        ("* * * * 7", "the day of week '7' of .* matches none of 0 to 6"),
        ("* */0 * * *", "the hour .* cannot be read: .* by zero"),
        ("* * */x * *", "the day of month .* cannot be read"),
    ],
)
def test_the_check_tells_what_can_never_match(cron: str, reason: str) -> None:
    with pytest.raises(CronValueError, match=reason):
        check_cron(cron, None)


@pytest.mark.parametrize(
    "cron",
    ["* * * * *", "0 0 31 12 0", "*/5 1-3 1,15 * mon-fri", "59 23 * 1 Sunday"],
)
def test_the_check_passes_what_can_match(cron: str) -> None:
    check_cron(cron, "US/Eastern")
    check_cron(cron, timedelta(hours=1))


def test_a_time_is_due_once() -> None:
    assert is_time_task_now(NOON, NOON)
    assert is_time_task_now(NOON.replace(tzinfo=None), NOON)
    assert not is_time_task_now(NOON, NOON - MINUTE)
    assert not is_time_task_now(NOON, NOON, last_run=NOON - DAY)


def test_an_interval_is_due_when_it_has_passed_to_the_nearest_second() -> None:
    assert is_interval_task_now(10, NOON)
    last_run = NOON - timedelta(seconds=9.6)
    assert is_interval_task_now(10, NOON, last_run)
    assert is_interval_task_now(timedelta(seconds=10), NOON, last_run)
    assert not is_interval_task_now(10, NOON, NOON - timedelta(seconds=9.4))


def half_hours_of(zone_name: str, day: date) -> list[datetime]:
    """List the half hours, in UTC, of a day and the days around it."""
    return list(minutes_of(zone_name, day))[::30]


@pytest.mark.parametrize(("zone", "spring", "_autumn"), CHANGES)
def test_a_daily_slot_fires_once_on_the_day_the_clock_is_put_forward(
    zone: str,
    spring: date,
    _autumn: date,
) -> None:
    slots = half_hours_of(zone, spring)
    for hour in range(24):
        for minute in (0, 30):
            cron = f"{minute} {hour} * * *"
            fired = [slot for slot in slots if cron_fires(cron, slot, zone)]
            gaps = [later - earlier for earlier, later in pairwise(fired)]
            assert all(timedelta(hours=23) <= gap <= DAY for gap in gaps), cron
            assert fired[0] - slots[0] < DAY, cron
            assert slots[-1] - fired[-1] < DAY, cron


@pytest.mark.parametrize(("zone", "_spring", "autumn"), CHANGES)
def test_a_daily_slot_fires_once_on_the_day_the_clock_is_put_back(
    zone: str,
    _spring: date,
    autumn: date,
) -> None:
    slots = half_hours_of(zone, autumn)
    for hour in range(24):
        for minute in (0, 30):
            cron = f"{minute} {hour} * * *"
            fired = [slot for slot in slots if cron_fires(cron, slot, zone)]
            local = [slot.astimezone(pytz.timezone(zone)) for slot in fired]
            days = [moment.date() for moment in local]
            assert autumn in days, cron
            assert len(set(days)) == len(days), cron
            assert {(at.hour, at.minute) for at in local} == {(hour, minute)}


def test_a_skipped_time_fires_when_the_clock_would_have_shown_it() -> None:
    fired = sendings(
        "30 2 * * *",
        "US/Eastern",
        minutes_of("US/Eastern", date(2024, 3, 10)),
    )
    assert datetime(2024, 3, 10, 7, 30, tzinfo=timezone.utc) in fired  # 03:30 EDT


def test_a_repeated_time_fires_the_first_time() -> None:
    fired = sendings(
        "30 1 * * *",
        "US/Eastern",
        minutes_of("US/Eastern", date(2024, 11, 3)),
    )
    assert datetime(2024, 11, 3, 5, 30, tzinfo=timezone.utc) in fired  # 01:30 EDT
    assert datetime(2024, 11, 3, 6, 30, tzinfo=timezone.utc) not in fired  # EST


@pytest.mark.parametrize("hours", ["*", "*/1", "0-23"])
@pytest.mark.parametrize(("zone", "spring", "autumn"), CHANGES)
def test_an_hourly_schedule_goes_on_every_hour_through_both_changes(
    zone: str,
    spring: date,
    autumn: date,
    hours: str,
) -> None:
    for day in (spring, autumn):
        slots = half_hours_of(zone, day)
        assert all(cron_fires(f"*/30 {hours} * * *", slot, zone) for slot in slots)


@settings(deadline=None)
@given(
    offset=st.integers(-86_399, 86_399).map(lambda value: timedelta(seconds=value)),
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
    pause=st.integers(1, 59),
)
def test_a_daily_slot_fires_once_a_day_on_a_shifted_clock(
    offset: timedelta,
    hour: int,
    minute: int,
    pause: int,
) -> None:
    agenda = Agenda(lambda _task, reason: pytest.fail(reason))
    task = schedule(cron=f"{minute} {hour} * * *", cron_offset=offset)
    slot = datetime(2024, 3, 10, hour, minute, tzinfo=timezone.utc) - offset
    now = slot - timedelta(minutes=2)
    fired = 0
    while now < slot + timedelta(minutes=3):
        ready = agenda.is_ready(task, now)
        fired += ready
        if ready:
            assert timedelta() <= now - slot < timedelta(seconds=60)
        now += timedelta(seconds=pause)
    assert fired == 1


def test_cron_fires_tells_a_bad_zone_and_a_shift_out_of_range() -> None:
    with pytest.raises(CronValueError):
        cron_fires("* * * * *", NOON, "Nowhere")
    with pytest.raises(CronValueError):
        cron_fires("* * * * *", NOON, timedelta.max)


def test_slots_begin_where_the_minutes_of_the_clock_do() -> None:
    moment = NOON + timedelta(seconds=50)
    assert slot_start(moment, None) == NOON
    assert slot_start(moment, "US/Eastern") == NOON
    assert slot_start(moment, timedelta(seconds=20)) == NOON + timedelta(seconds=40)


def test_only_the_current_minute_counts_for_a_new_schedule() -> None:
    assert list(slots_since(None, NOON + timedelta(seconds=5), None)) == [NOON]


def test_all_minutes_since_the_last_look_count() -> None:
    seen_until = NOON + timedelta(seconds=5)
    assert list(slots_since(seen_until, NOON + timedelta(seconds=59), None)) == []
    assert list(slots_since(seen_until, NOON + 2 * MINUTE, None)) == [
        NOON + 2 * MINUTE,
        NOON + MINUTE,
    ]


def test_a_clock_that_was_set_brings_no_more_than_three_hours_of_slots() -> None:
    slots = list(slots_since(NOON, NOON + 30 * DAY, None))
    assert slots[0] == NOON + 30 * DAY
    assert len(slots) == 3 * 60
    assert list(slots_since(NOON, NOON - DAY, None)) == []
