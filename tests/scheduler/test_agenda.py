from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskiq.cli.scheduler.agenda import (
    MAX_DELAY_REFUSED,
    MAX_DELAY_UNKNOWN,
    Agenda,
    renamed,
    retry_delay,
)
from taskiq.scheduler.scheduled_task import ScheduledTask

from .fakes import schedule

NOON = datetime(2024, 5, 7, 12, 0, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


class Sheet:
    """An agenda with what it complained about."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.agenda = Agenda(lambda _task, reason: self.complaints.append(reason))

    def ready(self, task: ScheduledTask, *seconds: float) -> list[float]:
        """Look at a schedule at some seconds after noon; list when it was ready."""
        return [when for when in seconds if self.agenda.is_ready(task, at(when))]


@pytest.fixture
def sheet() -> Sheet:
    return Sheet()


def test_a_cron_fires_once_in_each_minute_it_matches(sheet: Sheet) -> None:
    every_minute = schedule(cron="* * * * *")
    assert sheet.ready(every_minute, 37, 38, 59, 60, 61, 97, 119, 120) == [37, 60, 120]


def test_a_late_look_at_the_end_of_a_minute_does_not_fire_twice(sheet: Sheet) -> None:
    assert sheet.ready(schedule(cron="0 12 * * *"), 0, 59.4, 59.6, 59.999) == [0]


@settings(deadline=None)
@given(
    st.lists(st.floats(0.1, 200), min_size=1, max_size=60),
    st.integers(0, 59),
)
def test_however_late_the_looks_are_an_hourly_slot_fires_once(
    pauses: list[float],
    minute: int,
) -> None:
    sheet = Sheet()
    task = schedule(cron=f"{minute} * * * *")
    looks = [0.0]
    for pause in pauses:
        looks.append(looks[-1] + pause)
    # The schedule is known from the first look on, in minute 0.
    slots = [s for s in range(minute * 60, int(looks[-1]) + 1, 3600) if s >= 0]
    fired = sheet.ready(task, *looks)
    assert len(fired) == len(slots)
    for when, slot in zip(fired, slots, strict=True):
        assert when == next(look for look in looks if look >= slot)


def test_looks_more_than_a_minute_apart_miss_no_slot(sheet: Sheet) -> None:
    assert sheet.ready(schedule(cron="3 12 * * *"), 0, 150, 300, 450) == [300]


def test_minutes_skipped_on_request_are_not_sent(sheet: Sheet) -> None:
    task = schedule(cron="* * * * *")
    sheet.agenda.skip_minute([task, schedule("other", interval=1)], at(20))
    assert sheet.agenda.cron_last_run == {"id": NOON}
    assert sheet.ready(task, 21, 59, 60, 61) == [60]


def test_a_changed_cron_is_looked_at_in_the_current_minute(sheet: Sheet) -> None:
    assert sheet.ready(schedule(cron="5 * * * *"), 0, 1) == []
    assert sheet.ready(schedule(cron="0 * * * *"), 2, 3) == [2]


def test_an_interval_fires_at_once_and_then_each_interval(sheet: Sheet) -> None:
    looks = [0, 1.001, 2.0, 2.999, 4.002, 5]
    assert sheet.ready(schedule(interval=3), *looks) == [0, 2.999]


def test_a_time_fires_once(sheet: Sheet) -> None:
    assert sheet.ready(schedule(time=at(2)), 0, 1, 2, 3, 4) == [2]
    assert sheet.ready(schedule("past", time=at(-900)), 0, 1) == [0]


def test_a_schedule_id_can_be_used_again_for_a_new_time(sheet: Sheet) -> None:
    assert sheet.ready(schedule(time=at(2)), 2, 3) == [2]
    assert sheet.ready(schedule(time=at(5)), 4, 5, 6) == [5]
    assert sheet.ready(schedule(time=at(1)), 7, 8) == [7]


def test_cron_comes_before_interval_before_time(sheet: Sheet) -> None:
    agenda = sheet.agenda
    task = schedule(cron="0 * * * *", interval=1, time=at(0))
    assert sheet.ready(task, 0) == [0]
    assert (len(agenda.cron_last_run), len(agenda.interval_last_run)) == (1, 0)
    assert sheet.ready(task, 0.1) == [0.1]
    assert (len(agenda.interval_last_run), len(agenda.time_last_run)) == (1, 0)
    assert sheet.ready(task, 0.2) == [0.2]
    assert agenda.time_last_run == {"id": at(0.2)}
    assert sheet.ready(task, 0.3) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"cron": "*/0 * * * *"},
        {"cron": "nonsense"},
        {"cron": "5 */a * * *"},
        {"cron": "* * * * *", "cron_offset": "Nowhere"},
        {"cron": "* * * jan *"},
    ],
)
def test_a_bad_schedule_is_complained_about_once(
    sheet: Sheet,
    fields: dict[str, Any],
) -> None:
    task = schedule(**fields)
    assert sheet.ready(task, *range(0, 600, 7)) == []
    assert len(sheet.complaints) == 1


def test_a_bad_cron_leaves_the_interval_of_the_schedule_alone(sheet: Sheet) -> None:
    assert sheet.ready(schedule(cron="bad", interval=2), 0, 1, 2, 3) == [0, 2]


def test_a_schedule_that_is_changed_and_still_bad_is_complained_about_anew(
    sheet: Sheet,
) -> None:
    sheet.ready(schedule(cron="bad"), 0, 1)
    sheet.ready(schedule(cron="worse"), 2, 3)
    assert len(sheet.complaints) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("cron", 5), ("interval", "soon"), ("time", "now"), ("time", 5)],
)
def test_a_field_spoilt_after_validation_is_complained_about(
    sheet: Sheet,
    field: str,
    value: object,
) -> None:
    task = schedule(cron="5 * * * *")
    setattr(task, field, value)
    assert sheet.ready(task, 0, 1, 2) in ([], [0])
    sheet.ready(task, 3, 4)
    assert len(sheet.complaints) == 1


def test_a_failed_sending_is_owed_after_1_2_4_seconds(sheet: Sheet) -> None:
    task = schedule(time=at(0))
    sent = []
    for when in range(20):
        if sheet.agenda.is_ready(task, at(when)):
            sheet.agenda.starts("id")
            sheet.agenda.failed("id", at(when), refused=True)
            sent.append(when)
    assert sent == [0, 1, 3, 7, 15]


def test_a_success_starts_the_delays_anew(sheet: Sheet) -> None:
    agenda = sheet.agenda
    assert [agenda.failed("id", at(0), refused=True) for _ in range(3)] == [1, 2, 4]
    agenda.succeeded("id")
    assert agenda.failed("id", at(0), refused=True) == 1


def test_delays_are_limited_by_what_is_known_of_the_failure() -> None:
    assert retry_delay(10**6, refused=True) == MAX_DELAY_REFUSED
    assert retry_delay(10**6, refused=False) == MAX_DELAY_UNKNOWN
    assert retry_delay(6, refused=False) == 32


def test_a_slot_that_finds_a_sending_under_way_is_owed_once(sheet: Sheet) -> None:
    agenda = sheet.agenda
    agenda.starts("id")
    assert agenda.hold_back("id", at(60))
    assert not agenda.hold_back("id", at(120))
    agenda.succeeded("id")
    task = schedule(cron="0 0 1 1 *")
    assert sheet.ready(task, 130) == [130]
    agenda.starts("id")
    assert sheet.ready(task, 131) == []


def test_the_next_slot_of_a_failing_schedule_does_not_wait(sheet: Sheet) -> None:
    task = schedule(interval=10)
    assert sheet.ready(task, 0) == [0]
    for _ in range(6):
        sheet.agenda.failed("id", at(0), refused=True)
    assert sheet.ready(task, 1, 9, 10) == [10]


def test_what_vanished_is_forgotten(sheet: Sheet) -> None:
    agenda = sheet.agenda
    tasks = [schedule(name, cron="* * * * *") for name in ("kept", "gone")]
    tasks += [schedule(f"{name} time", time=NOON) for name in ("kept", "gone")]
    for task in tasks:
        assert sheet.ready(task, 0) == [0]
        agenda.failed(task.schedule_id, at(0), refused=True)
    agenda.keep_only({"kept", "kept time"})
    assert set(agenda.cron_last_run) == {"kept"}
    assert set(agenda.time_last_run) == {"kept time"}
    assert [sheet.ready(task, 1) for task in tasks] == [[1], [1], [1], [1]]
    assert agenda.failed("gone", at(0), refused=True) == 1
    assert agenda.failed("kept", at(0), refused=True) == 2


def unnamed(**fields: Any) -> ScheduledTask:
    task = schedule(**fields)
    content = task.model_dump(exclude={"schedule_id"})
    return ScheduledTask(**content)


def test_a_schedule_without_an_id_is_recognised_by_its_content() -> None:
    old = [unnamed(interval=1), unnamed(interval=1), unnamed(interval=2)]
    new = [unnamed(interval=2), unnamed(interval=1), unnamed(interval=3)]
    assert renamed(old, new) == {
        old[2].schedule_id: new[0].schedule_id,
        old[0].schedule_id: new[1].schedule_id,
    }


def test_a_schedule_with_an_id_is_never_taken_for_another() -> None:
    same = unnamed(interval=1)
    named = [schedule(name, task_name="same", interval=1) for name in "ab"]
    assert renamed(named[:1], named[1:]) == {}
    assert renamed([same], [same]) == {}
    assert renamed([same, unnamed(interval=1)], [same]) == {}


def test_a_renamed_schedule_goes_on_where_it_was(sheet: Sheet) -> None:
    old, new = schedule("old", interval=10), schedule("new", interval=10)
    assert sheet.ready(old, 0) == [0]
    sheet.agenda.rename({"old": "new"})
    assert sheet.ready(new, 1, 9, 10) == [10]
