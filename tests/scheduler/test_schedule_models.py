from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from taskiq.abc.schedule_source import ScheduleSource
from taskiq.exceptions import ScheduledTaskCancelledError
from taskiq.kicker import AsyncKicker
from taskiq.message import BrokerMessage
from taskiq.scheduler import merge_functions
from taskiq.scheduler.created_schedule import CreatedSchedule
from taskiq.scheduler.scheduled_task import CronSpec, ScheduledTask
from taskiq.scheduler.scheduled_task.validators import (
    discriminate_offset,
    validate_interval_value,
)
from taskiq.scheduler.scheduler import TaskiqScheduler

from .fakes import ListSource, RecordingBroker, schedule

CONTENT: dict[str, Any] = {"task_name": "a", "labels": {}, "args": [], "kwargs": {}}


def test_a_schedule_needs_a_moment() -> None:
    with pytest.raises(ValueError, match="Either cron, interval, or datetime must be"):
        ScheduledTask(**CONTENT)


def test_a_schedule_may_have_several_moments_and_an_empty_cron() -> None:
    both = ScheduledTask(**CONTENT, cron="", interval=1)
    assert (both.cron, both.interval) == ("", 1)


def test_a_schedule_gets_a_random_id() -> None:
    first, second = (ScheduledTask(**CONTENT, interval=1) for _ in range(2))
    assert first.schedule_id != second.schedule_id
    assert len(first.schedule_id) == 32
    assert first.task_id is None


@pytest.mark.parametrize(
    "interval",
    [0, -1, timedelta(0), timedelta(seconds=-3), timedelta(milliseconds=999)],
)
def test_an_interval_below_a_second_is_refused(interval: int | timedelta) -> None:
    with pytest.raises(ValidationError):
        ScheduledTask(**CONTENT, interval=interval)


def test_fractions_are_checked_before_the_minimum() -> None:
    with pytest.raises(ValueError, match="Fractional intervals are not supported"):
        validate_interval_value(timedelta(milliseconds=500))
    with pytest.raises(ValueError, match="at least 1 second"):
        validate_interval_value(0)
    validate_interval_value(None)
    validate_interval_value(timedelta(seconds=1))


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        ("10", 10),
        (5.0, 5),
        (True, 1),
        ("PT10S", timedelta(seconds=10)),
        ("00:00:10", timedelta(seconds=10)),
        ("1 day", timedelta(days=1)),
    ],
)
def test_intervals_are_coerced(given_value: Any, expected: int | timedelta) -> None:
    interval = ScheduledTask(**CONTENT, interval=given_value).interval
    assert interval == expected
    assert type(interval) is type(expected)


@pytest.mark.parametrize(
    "text",
    ["PT1H", "02:00", "02:00:00", "-02:00", "+02:00", "1 day", "P1D"],
)
def test_durations_are_told_from_zone_names(text: str) -> None:
    assert discriminate_offset(text) == "timedelta"
    offset = ScheduledTask(**CONTENT, cron="*", cron_offset=text).cron_offset
    assert isinstance(offset, timedelta)


@pytest.mark.parametrize("text", ["US/Eastern", "UTC", "3600", "1:30", ""])
def test_other_texts_stay_zone_names(text: str) -> None:
    assert discriminate_offset(text) == "str"
    assert ScheduledTask(**CONTENT, cron="*", cron_offset=text).cron_offset == text


@pytest.mark.parametrize("number", [3600, 1.5])
def test_a_number_is_no_offset(number: float) -> None:
    assert discriminate_offset(number) == "str"
    with pytest.raises(ValidationError):
        ScheduledTask(**CONTENT, cron="*", cron_offset=number)  # type: ignore[arg-type] # that is the point


def test_validation_happens_once_and_copies() -> None:
    args: list[Any] = [1]
    fields = {**CONTENT, "args": args, "interval": 1, "unknown": "ignored"}
    task = ScheduledTask(**fields)
    args.append(2)
    task.interval = None
    assert (task.args, task.interval) == ([1], None)


def test_a_number_is_a_time_in_utc() -> None:
    task = ScheduledTask.model_validate({**CONTENT, "time": 5})
    assert task.time == datetime(1970, 1, 1, 0, 0, 5, tzinfo=timezone.utc)


whole_seconds = st.integers(1, 10**8).map(lambda value: timedelta(seconds=value))


@settings(deadline=None)
@given(
    interval=st.integers(1, 10**9) | whole_seconds,
    cron_offset=st.none()
    | st.sampled_from(["US/Eastern", "UTC", ""])
    | st.integers(-86_399, 86_399).map(lambda value: timedelta(seconds=value)),
    time=st.none() | st.datetimes(timezones=st.just(timezone.utc)),
)
def test_a_stored_schedule_comes_back_with_its_types(
    interval: int | timedelta,
    cron_offset: str | timedelta | None,
    time: datetime | None,
) -> None:
    task = schedule(cron="* * * * *", interval=interval, time=time, args=[1, "a"])
    task.cron_offset = cron_offset
    stored = json.loads(json.dumps(task.model_dump(mode="json")))
    for restored in (ScheduledTask(**stored), ScheduledTask.model_validate(stored)):
        assert restored == task
        assert type(restored.interval) is type(interval)
        assert type(restored.cron_offset) is type(cron_offset)


def test_a_cron_spec_renders_its_fields_in_order() -> None:
    spec = CronSpec(minutes=1, hours="2", days=3, months="4-5", weekdays="mon")
    assert spec.to_cron() == "1 2 3 4-5 mon"
    assert CronSpec().to_cron() == "* * * * *"


def test_none_in_a_cron_spec_means_any_value() -> None:
    assert CronSpec(minutes=None, hours=1).to_cron() == "* 1 * * *"


def test_a_cron_spec_reads_its_offset_like_a_schedule() -> None:
    assert CronSpec(offset="PT1H").offset == timedelta(hours=1)
    assert CronSpec(offset="US/Eastern").offset == "US/Eastern"


async def test_a_created_schedule_sends_and_unschedules() -> None:
    class Source(ListSource):
        async def delete_schedule(self, schedule_id: str) -> None:
            self.log.append(schedule_id)

    broker, source = RecordingBroker(), Source()
    task = schedule("an-id", cron="* * * * *", args=[1], kwargs={"b": 2})
    kicker: AsyncKicker[Any, Any] = AsyncKicker("a", broker, {})
    created: CreatedSchedule[Any] = CreatedSchedule(kicker, source, task)
    handle = await created.kiq()
    await created.unschedule()

    sent = broker.formatter.loads(broker.messages[0].message)
    assert (sent.task_id, sent.args, sent.kwargs) == (handle.task_id, [1], {"b": 2})
    assert source.log == [created.schedule_id] == ["an-id"]
    assert str(created) == (
        "CreatedSchedule<id=an-id, time=None, interval=None, cron=* * * * *, "
        "cron_offset=UTC, task_name=an-id, args=[1], kwargs={'b': 2}>"
    )


def test_merge_functions_keep_what_their_names_say() -> None:
    old, new = [1, 2], [2, 3, 3]
    assert merge_functions.preserve_all(old, new) == [1, 2, 2, 3, 3]
    assert merge_functions.only_unique(old, new) == [1, 2, 3]
    assert merge_functions.only_new(old, new) == [2, 3, 3]
    assert (old, new) == ([1, 2], [2, 3, 3])


async def test_a_source_names_itself_when_it_cannot_be_written_to() -> None:
    source = ListSource()
    with pytest.raises(NotImplementedError, match=r"ListSource .* adding"):
        await source.add_schedule(schedule(interval=1))
    with pytest.raises(NotImplementedError, match=r"ListSource .* deleting"):
        await source.delete_schedule("id")


class HookedSource(ListSource):
    """Notes its hooks; one of them may fail."""

    pre_error: Exception | None = None
    post_error: Exception | None = None

    async def pre_send(self, task: ScheduledTask) -> None:
        self.log.append("pre_send")
        if self.pre_error is not None:
            raise self.pre_error

    async def post_send(self, task: ScheduledTask) -> None:
        self.log.append("post_send")
        if self.post_error is not None:
            raise self.post_error


def sent_message(broker: RecordingBroker) -> tuple[str, dict[str, Any], BrokerMessage]:
    [message] = broker.messages
    content = broker.formatter.loads(message.message)
    return content.task_id, content.labels, message


async def test_a_ready_schedule_is_sent_between_the_hooks_of_its_source() -> None:
    broker, source = RecordingBroker(), HookedSource()

    async def note() -> None:
        source.log.append("kick")

    broker.reactions.append(note)
    task = schedule("an-id", interval=1, task_id="mine", labels={"a": "b"})
    await TaskiqScheduler(broker, [source]).on_ready(source, task)

    task_id, labels, message = sent_message(broker)
    assert source.log == ["pre_send", "kick", "post_send"]
    assert (task_id, message.task_name) == ("mine", "an-id")
    assert labels == {"a": "b", "schedule_id": "an-id"}


async def test_sending_leaves_the_labels_of_the_schedule_alone() -> None:
    broker, source = RecordingBroker(), ListSource()
    task = schedule(interval=1, labels={"a": "b"})
    await TaskiqScheduler(broker, [source]).on_ready(source, task)
    assert task.labels == {"a": "b"}


async def test_each_sending_gets_a_fresh_task_id_unless_one_is_stored() -> None:
    broker, source = RecordingBroker(), ListSource()
    scheduler = TaskiqScheduler(broker, [source])
    for _ in range(2):
        await scheduler.on_ready(source, schedule(interval=1))
    first, second = broker.messages
    assert first.task_id != second.task_id


async def test_a_source_can_cancel_a_sending() -> None:
    broker, source = RecordingBroker(), HookedSource()
    source.pre_error = ScheduledTaskCancelledError()
    await TaskiqScheduler(broker, [source]).on_ready(source, schedule(interval=1))
    assert (broker.messages, source.log) == ([], ["pre_send"])


async def test_a_failing_post_send_is_said_and_does_not_undo_the_sending(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker, source = RecordingBroker(), HookedSource()
    source.post_error = ConnectionError("no storage")
    await TaskiqScheduler(broker, [source]).on_ready(source, schedule("x", interval=1))
    assert len(broker.messages) == 1
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "post_send of HookedSource failed for task x" in record.getMessage()
    assert record.exc_info is not None


def test_a_source_needs_no_constructor() -> None:
    class Mixin:
        pass

    class Bare(ScheduleSource, Mixin):
        def __init__(self) -> None:
            super().__init__()

        async def get_schedules(self) -> list[ScheduledTask]:
            return []

    assert isinstance(Bare(), ScheduleSource)
