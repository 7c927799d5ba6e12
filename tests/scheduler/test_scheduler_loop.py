from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from taskiq.abc.schedule_source import ScheduleSource
from taskiq.cli.scheduler import run
from taskiq.cli.scheduler.run import (
    SchedulerLoop,
    get_all_schedules,
    get_schedules,
    next_pass,
    send,
    send_with_timeout,
)
from taskiq.exceptions import ScheduledTaskCancelledError, SendTaskError
from taskiq.scheduler.scheduled_task import ScheduledTask
from taskiq.scheduler.scheduler import TaskiqScheduler

from .fakes import (
    ListSource,
    RecordingBroker,
    RecordingScheduler,
    fail,
    hang,
    schedule,
)
from .virtual_time import START, World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(monkeypatch)
    yield world
    world.loop.close()


def follow(
    world: World,
    *sources: ScheduleSource,
    seconds: float,
    reactions: list[Callable[[], Any]] | None = None,
    **options: Any,
) -> RecordingScheduler:
    """Run a scheduler for some virtual seconds."""
    scheduler = RecordingScheduler(*sources, seconds=world.seconds)
    scheduler.reactions = [] if reactions is None else reactions
    world.run_for(seconds, SchedulerLoop(scheduler).run(**options))
    return scheduler


def messages(caplog: pytest.LogCaptureFixture, level: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == level]


async def refuse() -> None:
    raise SendTaskError


async def test_a_failing_source_has_no_schedules_and_the_failure_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ListSource(schedule(interval=1))
    source.answers.append(fail)
    assert await get_schedules(source) == []
    assert await get_schedules(source) == source.schedules
    [record] = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "taskiq.cli.scheduler.run")
    assert record.exc_info is not None


async def test_all_sources_are_asked_at_the_same_time_and_paired_in_order() -> None:
    first, second = ListSource(schedule("a", interval=1)), ListSource()
    second_is_asked = asyncio.Event()

    async def answer_late() -> list[ScheduledTask]:
        await second_is_asked.wait()
        return first.schedules

    async def answer() -> list[ScheduledTask]:
        second_is_asked.set()
        return []

    first.answers.append(answer_late)
    second.answers.append(answer)
    scheduler = RecordingScheduler(first, second)
    assert await get_all_schedules(scheduler) == [
        (first, first.schedules),
        (second, []),
    ]


async def test_a_sending_is_logged_with_task_and_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler = RecordingScheduler()
    await send(scheduler, ListSource(), schedule("an-id", interval=1))
    assert scheduler.sent == [(0, "an-id")]
    assert messages(caplog, "INFO") == ["Sending task an-id with schedule_id an-id."]


def test_a_sending_in_time_warns_of_nothing(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler = RecordingScheduler()
    scheduler.reactions.append(lambda: asyncio.sleep(4))
    task = schedule(interval=1)
    world.run(send_with_timeout(scheduler, ListSource(), task, timeout=5))
    assert (world.seconds(), messages(caplog, "WARNING")) == (4, [])


def test_a_sending_that_takes_too_long_is_cancelled_with_one_warning(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cancelled: list[float] = []

    async def hang_until_cancelled() -> None:
        try:
            await hang()
        finally:
            cancelled.append(world.seconds())

    scheduler = RecordingScheduler()
    scheduler.reactions.append(hang_until_cancelled)
    task = schedule("an-id", interval=1, task_name="a-task")
    world.run(send_with_timeout(scheduler, ListSource(), task, timeout=5))
    assert cancelled == [5]
    [warning] = messages(caplog, "WARNING")
    assert "timed out" in warning
    assert "a-task" in warning
    assert "an-id" in warning


async def test_a_timeout_of_the_broker_itself_is_not_taken_for_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def time_out() -> None:
        raise TimeoutError("the broker gave up")

    scheduler = RecordingScheduler()
    scheduler.reactions.append(time_out)
    task = schedule(interval=1)
    with pytest.raises(TimeoutError, match="the broker gave up"):
        await send_with_timeout(scheduler, ListSource(), task, timeout=5)
    assert messages(caplog, "WARNING") == []


def test_cancelling_a_limited_sending_cancels_what_it_waits_for(world: World) -> None:
    ended: list[bool] = []

    async def note_end() -> None:
        try:
            await hang()
        finally:
            ended.append(True)

    scheduler = RecordingScheduler()
    scheduler.reactions.append(note_end)
    task = schedule(interval=1)
    sending = send_with_timeout(scheduler, ListSource(), task, timeout=50)
    world.run_for(1, sending)
    assert ended == [True]


def test_a_loop_can_be_built_before_there_is_an_event_loop() -> None:
    scheduler = RecordingScheduler(ListSource())
    loop = SchedulerLoop(scheduler)
    assert loop.scheduler is scheduler
    assert loop.scheduled_tasks == []
    assert loop.scheduled_tasks_updated_at is None


@pytest.mark.parametrize("send_timeout", [0, -1.5])
async def test_a_timeout_must_be_positive(send_timeout: float) -> None:
    source = ListSource()
    loop = SchedulerLoop(RecordingScheduler(source))
    with pytest.raises(ValueError, match="send_timeout must be > 0 when provided"):
        await loop.run(send_timeout=send_timeout)
    assert source.questions == 0


def test_passes_are_on_whole_seconds_when_the_pause_allows() -> None:
    late = START + timedelta(seconds=0.4)
    assert next_pass(late, timedelta(seconds=1)) == START + timedelta(seconds=1)
    assert next_pass(late, timedelta(seconds=90)) == START + timedelta(seconds=90)
    assert next_pass(late, timedelta(seconds=0.2)) == START + timedelta(seconds=0.6)


def test_the_first_pass_is_at_the_next_whole_second(world: World) -> None:
    world.start += timedelta(seconds=37.25)
    source = ListSource(
        schedule("interval", interval=7),
        schedule("past", time=START - timedelta(days=1)),
        schedule("cron", cron="* * * * *"),
        schedule("future", time=START + timedelta(seconds=41)),
    )
    scheduler = follow(world, source, seconds=100)
    assert scheduler.times_of("interval")[:3] == [0.75, 7.75, 14.75]
    assert scheduler.times_of("past") == [0.75]
    assert scheduler.times_of("future") == [3.75]


def test_a_cron_moves_to_the_start_of_the_minute_after_its_first_run(
    world: World,
) -> None:
    world.start += timedelta(seconds=37)
    scheduler = follow(world, ListSource(schedule(cron="* * * * *")), seconds=150)
    assert scheduler.times_of("id") == [1, 23, 83, 143]


def test_a_cron_can_skip_the_minute_of_the_start(world: World) -> None:
    world.start += timedelta(seconds=37)
    source = ListSource(
        schedule("cron", cron="* * * * *"),
        schedule("interval", interval=60),
        schedule("past", time=START),
    )
    scheduler = follow(world, source, seconds=90, skip_first_run=True)
    assert scheduler.times_of("cron") == [23, 83]
    assert scheduler.times_of("interval") == [1, 61]
    assert scheduler.times_of("past") == [1]


def test_a_cron_source_that_answers_late_skips_its_first_minute_too(
    world: World,
) -> None:
    source = ListSource(schedule(cron="* * * * *"))

    async def answer_late() -> list[ScheduledTask]:
        await asyncio.sleep(10)
        return source.schedules

    source.answers.append(answer_late)
    scheduler = follow(world, source, seconds=65, skip_first_run=True)
    assert scheduler.times_of("id") == [60]


def test_consumers_can_replace_sleep_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = START
    pauses: list[float] = []
    real_sleep = asyncio.sleep

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            assert tz is timezone.utc
            return now

    async def sleep(delay: float) -> None:
        nonlocal now
        pauses.append(delay)
        now += timedelta(seconds=delay)
        for _ in range(10):
            await real_sleep(0)
        if len(pauses) == 30:
            raise asyncio.CancelledError

    monkeypatch.setattr(run, "datetime", Clock)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    scheduler = RecordingScheduler(ListSource(schedule(interval=10)))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(SchedulerLoop(scheduler).run())
    assert pauses == [1] * 30
    assert len(scheduler.sent) == 3


def test_a_pause_of_zero_does_not_spin(world: World) -> None:
    source = ListSource()
    nothing = timedelta(0)
    follow(world, source, seconds=3.05, loop_interval=nothing, update_interval=nothing)
    passes = 21  # from second 1 to second 3, both included
    assert source.questions == 1 + passes


def test_a_pause_of_minutes_misses_no_cron_minute(world: World) -> None:
    source = ListSource(
        schedule(cron="3 12 * * *"), schedule("every", cron="* * * * *")
    )
    pause = timedelta(minutes=5)
    scheduler = follow(world, source, seconds=1000, loop_interval=pause)
    assert scheduler.times_of("id") == [301]
    assert scheduler.times_of("every") == [1, 301, 601, 901]


def test_a_pause_of_many_hours_misses_no_cron_minute_either(world: World) -> None:
    pause = timedelta(hours=5)
    source = ListSource(schedule(cron="30 12 * * *"))
    scheduler = follow(world, source, seconds=20_000, loop_interval=pause)
    assert scheduler.times_of("id") == [18_001]


def test_sources_are_asked_again_at_each_update(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    source = ListSource()

    async def add() -> None:
        await asyncio.sleep(15)
        source.schedules.append(schedule("new", interval=100))

    async def both(loop: SchedulerLoop) -> None:
        await asyncio.gather(loop.run(update_interval=timedelta(seconds=10)), add())

    scheduler = RecordingScheduler(source, seconds=world.seconds)
    loop = SchedulerLoop(scheduler)
    world.run_for(35, both(loop))
    assert source.questions == 4
    assert scheduler.times_of("new") == [21]
    assert loop.scheduled_tasks == [(source, source.schedules)]
    assert loop.scheduled_tasks_updated_at == START + timedelta(seconds=30)
    debug = [text for text in messages(caplog, "DEBUG") if text.startswith("Got ")]
    assert [text.split()[1] for text in debug] == ["0", "0", "1", "1"]


def test_the_default_update_interval_is_a_minute(world: World) -> None:
    source = ListSource()
    follow(world, source, seconds=200)
    assert source.questions == 4


def test_a_source_added_while_running_is_followed_from_the_next_update_on(
    world: World,
) -> None:
    first, second = ListSource(), ListSource(schedule("second", interval=100))
    scheduler = RecordingScheduler(first, seconds=world.seconds)

    async def replace() -> None:
        await asyncio.sleep(15)
        scheduler.sources[:] = [second]

    async def both(loop: SchedulerLoop) -> None:
        await asyncio.gather(loop.run(update_interval=timedelta(seconds=10)), replace())

    loop = SchedulerLoop(scheduler)
    world.run_for(45, both(loop))
    assert scheduler.sent == [(21, "second")]
    assert (first.questions, second.questions) == (2, 3)
    assert loop.scheduled_tasks == [(second, second.schedules)]


def test_a_source_that_is_taken_away_is_not_waited_for(world: World) -> None:
    source = ListSource()
    source.answers.append(hang)
    scheduler = RecordingScheduler(source)

    async def take_away() -> None:
        await asyncio.sleep(5)
        scheduler.sources.clear()

    async def both(loop: SchedulerLoop) -> None:
        update = timedelta(seconds=10)
        await asyncio.gather(loop.run(update_interval=update), take_away())

    world.run_for(15, both(SchedulerLoop(scheduler)))
    assert asyncio.all_tasks(world.loop) == set()


def test_a_slow_source_delays_neither_the_first_pass_nor_the_updates_of_others(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow, quick = ListSource(schedule("slow", interval=100)), ListSource()
    quick.schedules.append(schedule("quick", interval=100))

    async def answer_late() -> list[ScheduledTask]:
        await asyncio.sleep(24.5)
        return slow.schedules

    slow.answers.append(answer_late)
    update = timedelta(seconds=10)
    scheduler = follow(world, slow, quick, seconds=35, update_interval=update)
    assert scheduler.sent == [(1, "quick"), (25, "slow")]
    assert (slow.questions, quick.questions) == (2, 4)
    assert len(messages(caplog, "WARNING")) == 2  # at the updates after 10 and 20 s


def test_a_source_that_fails_at_an_update_keeps_its_schedules_and_last_runs(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ListSource(
        schedule("interval", interval=1000),
        schedule("past", time=START),
        schedule("cron", cron="0 12 * * *"),
    )

    async def answer() -> list[ScheduledTask]:
        return source.schedules

    source.answers += [answer, fail, fail]
    update = timedelta(seconds=10)
    loop_time = 55
    scheduler = follow(world, source, seconds=loop_time, update_interval=update)
    assert [when for when, _ in scheduler.sent] == [1, 1, 1]
    assert source.questions == 6
    assert len(messages(caplog, "ERROR")) == 2


def test_a_source_that_fails_at_the_start_is_asked_again_before_the_next_update(
    world: World,
) -> None:
    source = ListSource(schedule(interval=1000))
    source.answers += [fail, fail]
    scheduler = follow(world, source, seconds=50)
    assert source.questions == 3
    assert scheduler.times_of("id") == [4]


def test_a_source_that_returns_garbage_counts_as_failing(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ListSource(schedule(interval=1000))

    async def garble() -> Any:
        return None

    source.answers += [garble]
    scheduler = follow(world, source, seconds=10)
    assert len(scheduler.sent) == 1
    assert "Cannot get schedules from source" in messages(caplog, "ERROR")[0]


def test_a_source_that_names_no_schedules_does_not_send_them_at_each_update(
    world: World,
) -> None:
    class Unnamed(ListSource):
        async def get_schedules(self) -> list[ScheduledTask]:
            content: dict[str, Any] = {"labels": {}, "args": [], "kwargs": {}}
            return [
                ScheduledTask(task_name="interval", interval=25, **content),
                ScheduledTask(task_name="past", time=START, **content),
            ]

    class NamingScheduler(RecordingScheduler):
        async def on_ready(self, source: ScheduleSource, task: ScheduledTask) -> None:
            self.sent.append((self.seconds(), task.task_name))

    scheduler = NamingScheduler(Unnamed(), seconds=world.seconds)
    loop = SchedulerLoop(scheduler)
    world.run_for(60, loop.run(update_interval=timedelta(seconds=10)))
    assert scheduler.times_of("interval") == [1, 26, 51]
    assert scheduler.times_of("past") == [1]


def test_a_sending_under_way_is_recognised_though_its_schedule_is_named_anew(
    world: World,
) -> None:
    class Unnamed(ListSource):
        async def get_schedules(self) -> list[ScheduledTask]:
            return [
                ScheduledTask(task_name="a", interval=5, labels={}, args=[], kwargs={}),
            ]

    scheduler = RecordingScheduler(Unnamed(), seconds=world.seconds)
    scheduler.reactions.append(lambda: asyncio.sleep(12))
    loop = SchedulerLoop(scheduler)
    world.run_for(20, loop.run(update_interval=timedelta(seconds=3)))
    assert [when for when, _ in scheduler.sent] == [1, 14, 16]


def test_what_vanished_from_its_source_is_forgotten(world: World) -> None:
    source = ListSource(schedule("kept", interval=100), schedule("gone", interval=100))
    scheduler = RecordingScheduler(source, seconds=world.seconds)
    loop = SchedulerLoop(scheduler)

    async def delete() -> None:
        await asyncio.sleep(5)
        del source.schedules[1]

    async def both() -> None:
        await asyncio.gather(loop.run(update_interval=timedelta(seconds=10)), delete())

    world.run_for(15, both())
    assert loop.interval_tasks_last_run == {"kept": START + timedelta(seconds=1)}


def test_last_runs_are_kept_by_kind(world: World) -> None:
    scheduler = RecordingScheduler(
        ListSource(
            schedule("cron", cron="* * * * *"),
            schedule("interval", interval=100),
            schedule("time", time=START),
        ),
    )
    loop = SchedulerLoop(scheduler)
    world.run_for(5, loop.run())
    first_pass = START + timedelta(seconds=1)
    assert loop.cron_tasks_last_run == {"cron": first_pass}
    assert loop.interval_tasks_last_run == {"interval": first_pass}
    assert loop.time_tasks_last_run == {"time": first_pass}


@pytest.mark.parametrize("moment", [{"time": START}, {"interval": 1000}])
@pytest.mark.parametrize("failure", [fail, refuse])
def test_a_failing_send_is_said_and_repeated_until_it_succeeds_and_then_no_more(
    world: World,
    caplog: pytest.LogCaptureFixture,
    moment: dict[str, Any],
    failure: Callable[[], Any],
) -> None:
    source = ListSource(schedule("an-id", **moment))
    scheduler = follow(world, source, seconds=100, reactions=[failure] * 3)
    assert scheduler.times_of("an-id") == [1, 2, 4, 8]
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 3
    assert all("schedule_id an-id failed" in error.getMessage() for error in errors)
    assert all(error.exc_info for error in errors)


def test_a_success_ends_the_growing_of_the_delays(world: World) -> None:
    async def succeed() -> None:
        pass

    source = ListSource(schedule(interval=20))
    reactions = [fail, fail, succeed, fail]
    scheduler = follow(world, source, seconds=30, reactions=reactions)
    assert scheduler.times_of("id") == [1, 2, 4, 21, 22]


def test_a_failing_send_of_a_cron_slot_is_repeated_and_the_slot_not_doubled(
    world: World,
) -> None:
    source = ListSource(schedule(cron="0 12 * * *"))
    scheduler = follow(world, source, seconds=100, reactions=[fail])
    assert scheduler.times_of("id") == [1, 2]


def test_a_send_that_cancels_itself_is_repeated(world: World) -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    source = ListSource(schedule(time=START))
    scheduler = follow(world, source, seconds=10, reactions=[cancel])
    assert scheduler.times_of("id") == [1, 2]


def test_a_send_that_is_cancelled_by_its_source_is_not_repeated(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def veto() -> None:
        raise ScheduledTaskCancelledError

    source = ListSource(schedule(time=START))
    scheduler = follow(world, source, seconds=10, reactions=[veto])
    assert len(scheduler.sent) == 1
    assert messages(caplog, "ERROR") == []


def test_a_broker_that_is_down_gets_the_message_when_it_is_back(world: World) -> None:
    broker = RecordingBroker()
    broker.reactions += [fail, fail]
    source = ListSource(schedule(time=START))
    scheduler = TaskiqScheduler(broker, [source])
    world.run_for(20, SchedulerLoop(scheduler).run())
    assert len(broker.messages) == 1


def test_a_hung_send_is_given_up_after_the_timeout_and_repeated(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ListSource(schedule("an-id", time=START))
    scheduler = follow(world, source, seconds=60, reactions=[hang], send_timeout=5)
    assert scheduler.times_of("an-id") == [1, 7]
    [warning] = messages(caplog, "WARNING")
    assert "timed out" in warning
    assert messages(caplog, "ERROR") == []


def test_a_send_that_ignores_its_cancellation_does_not_block_its_schedule(
    world: World,
) -> None:
    released = asyncio.Event()

    async def ignore_cancellation() -> None:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()

    source = ListSource(schedule(interval=20))
    scheduler = RecordingScheduler(source, seconds=world.seconds)
    scheduler.reactions.append(ignore_cancellation)

    async def scenario() -> None:
        job = asyncio.ensure_future(SchedulerLoop(scheduler).run(send_timeout=5))
        await asyncio.wait({job}, timeout=30)
        released.set()
        job.cancel()
        await asyncio.wait({job})

    world.run(scenario())
    assert scheduler.times_of("id") == [1, 8, 21]


def test_a_send_that_ends_well_while_it_is_cancelled_is_not_repeated(
    world: World,
) -> None:
    async def end_well() -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            return

    source = ListSource(schedule(time=START))
    scheduler = follow(world, source, seconds=60, reactions=[end_well], send_timeout=5)
    assert len(scheduler.sent) == 1


def test_a_slot_that_finds_a_sending_under_way_is_sent_after_it(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ListSource(schedule("an-id", cron="* * * * *"))
    slow: list[Callable[[], Any]] = [lambda: asyncio.sleep(149.5)]
    scheduler = follow(world, source, seconds=170, reactions=slow)
    assert scheduler.times_of("an-id") == [1, 151]
    [warning] = messages(caplog, "WARNING")
    assert "an-id is due, but its last sending is still going on" in warning


def test_a_hung_send_holds_back_only_its_own_schedule(world: World) -> None:
    source = ListSource(schedule("hung", interval=10), schedule("other", interval=10))
    scheduler = follow(world, source, seconds=35, reactions=[hang])
    assert scheduler.times_of("hung") == [1]
    assert scheduler.times_of("other") == [1, 11, 21, 31]


def test_a_bad_schedule_is_warned_of_once_and_stops_nothing(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ListSource(
        schedule("step", cron="*/0 * * * *"),
        schedule("zone", cron="* * * * *", cron_offset="US"),
        schedule("escape", cron="* * * * *", cron_offset="../UTC"),
        schedule("good", cron="* * * * *"),
    )
    scheduler = follow(world, source, seconds=185)
    assert scheduler.times_of("good") == [1, 60, 120, 180]
    warnings = messages(caplog, "WARNING")
    assert len(warnings) == 3
    for name, warning in zip(("step", "zone", "escape"), warnings, strict=True):
        assert f"task {name}, schedule_id {name}" in warning


def test_a_sending_is_a_background_task_named_after_its_schedule(world: World) -> None:
    names: list[str] = []

    async def note_name() -> None:
        task = asyncio.current_task()
        assert task is not None
        names.append(task.get_name())

    source = ListSource(schedule("an-id", interval=100))
    follow(world, source, seconds=5, reactions=[note_name])
    assert names == ["schedule_an-id"]


def test_sendings_under_way_may_end_when_the_loop_does(world: World) -> None:
    ended: list[float] = []

    async def take_some_time() -> None:
        await asyncio.sleep(3)
        ended.append(world.seconds())

    source = ListSource(schedule(interval=100))
    follow(world, source, seconds=2, reactions=[take_some_time])
    assert ended == [4]


def test_a_hung_sending_and_a_hung_source_do_not_keep_the_loop_from_ending(
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, hung_source = ListSource(schedule("hung", interval=100)), ListSource()
    hung_source.answers.append(hang)
    follow(world, source, hung_source, seconds=2, reactions=[hang])
    assert world.seconds() == 2 + run.DRAIN_TIMEOUT
    [error] = messages(caplog, "ERROR")
    assert "schedule_id hung failed" in error
    assert asyncio.all_tasks(world.loop) == set()
