from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from taskiq.schedule_sources import LabelScheduleSource
from taskiq.scheduler.scheduled_task import ScheduledTask

from .fakes import RecordingBroker

PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)


async def work() -> None:
    """Be registered as a task."""


async def started(broker: RecordingBroker) -> LabelScheduleSource:
    source = LabelScheduleSource(broker)
    await source.startup()
    return source


async def read(*entries: dict[str, Any], **labels: Any) -> list[ScheduledTask]:
    broker = RecordingBroker()
    broker.register_task(work, "work", schedule=list(entries), **labels)
    return await (await started(broker)).get_schedules()


async def test_an_entry_becomes_a_schedule() -> None:
    entry = {
        "cron": "1 * * * *",
        "cron_offset": "US/Eastern",
        "time": PAST,
        "interval": timedelta(seconds=3),
        "args": [1],
        "kwargs": {"a": 2},
        "labels": {"theirs": "1", "both": "entry"},
        "schedule_id": "an-id",
    }
    [task] = await read(entry, both="task")
    assert task.model_dump() == {
        "task_name": "work",
        "task_id": None,
        "cron": "1 * * * *",
        "cron_offset": "US/Eastern",
        "time": PAST,
        "interval": timedelta(seconds=3),
        "args": [1],
        "kwargs": {"a": 2},
        "labels": {"theirs": "1", "both": "task"},
        "schedule_id": "an-id",
    }


async def test_reading_leaves_the_labels_of_the_task_alone() -> None:
    labels = {"theirs": "1"}
    entry = {"interval": 1, "labels": labels}
    broker = RecordingBroker()
    task = broker.register_task(work, "work", schedule=[entry], own="2")
    await started(broker)
    assert labels == {"theirs": "1"}
    assert task.labels == {"schedule": [entry], "own": "2"}


async def test_entries_without_a_moment_and_tasks_without_label_are_passed_over() -> (
    None
):
    assert await read({"args": [1]}) == []
    broker = RecordingBroker()
    broker.register_task(work, "work")
    assert await (await started(broker)).get_schedules() == []


async def test_none_for_args_kwargs_and_labels_means_none_given() -> None:
    [task] = await read({"cron": "x", "args": None, "kwargs": None, "labels": None})
    assert (task.args, task.kwargs, task.labels) == ([], {}, {})


async def test_an_invalid_entry_is_refused_naming_its_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ValueError, match="at least 1 second"):
        await read({"interval": 0})
    assert "Task work has an invalid schedule: {'interval': 0}" in caplog.text


async def test_ids_stay_the_same_until_the_next_startup() -> None:
    broker = RecordingBroker()
    broker.register_task(work, "work", schedule=[{"interval": 1}])
    source = await started(broker)
    [first], [again] = [await source.get_schedules() for _ in range(2)]
    await source.startup()
    [restarted] = await source.get_schedules()
    assert first.schedule_id == again.schedule_id != restarted.schedule_id


async def test_of_equal_ids_the_later_one_wins() -> None:
    [task] = await read(
        {"interval": 1, "schedule_id": "x"},
        {"interval": 2, "schedule_id": "x"},
    )
    assert task.interval == 2


async def test_a_task_of_another_broker_is_skipped_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = RecordingBroker()
    foreign = RecordingBroker().register_task(work, "w", schedule=[{"interval": 1}])
    broker.local_task_registry["w"] = foreign
    source = await started(broker)
    assert [await source.get_schedules() for _ in range(2)] == [[], []]
    assert caplog.text.count("Task w belongs to another broker") == 1


async def test_tasks_registered_after_startup_are_seen() -> None:
    broker = RecordingBroker()
    source = await started(broker)
    broker.register_task(work, "late", schedule=[{"interval": 1}])
    [task] = await source.get_schedules()
    assert task.task_name == "late"


async def test_a_task_registered_anew_brings_its_own_schedules() -> None:
    broker = RecordingBroker()
    broker.register_task(work, "work", schedule=[{"interval": 1}])
    source = await started(broker)
    broker.register_task(work, "work", schedule=[{"interval": 2}])
    assert [task.interval for task in await source.get_schedules()] == [2]


async def test_nothing_is_read_before_startup() -> None:
    broker = RecordingBroker()
    broker.register_task(work, "work", schedule=[{"interval": 1}])
    assert await LabelScheduleSource(broker).get_schedules() == []


async def test_a_schedule_for_one_moment_is_dropped_once_sent() -> None:
    broker = RecordingBroker()
    broker.register_task(work, "work", schedule=[{"time": PAST}])
    source = await started(broker)
    [task] = await source.get_schedules()
    source.post_send(task)
    source.post_send(task)
    assert await source.get_schedules() == []


@pytest.mark.parametrize("other", [{"interval": 1}, {"cron": "* * * * *"}])
async def test_a_schedule_with_further_moments_stays_after_a_sending(
    other: dict[str, Any],
) -> None:
    broker = RecordingBroker()
    broker.register_task(work, "work", schedule=[{"time": PAST, **other}])
    source = await started(broker)
    [task] = await source.get_schedules()
    source.post_send(task)
    assert await source.get_schedules() == [task]
