"""What a type checker says about plain tasks, pinned: batches change nothing for them.

`tests/checkers` runs mypy and pyright over this file; `test_types.py` registers its
tasks.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from typing_extensions import assert_type

from taskiq import (
    AsyncTaskiqTask,
    Context,
    InMemoryBroker,
    ScheduleSource,
    TaskiqDepends,
    TaskiqResult,
    async_shared_broker,
    gather,
)
from taskiq.scheduler.created_schedule import CreatedSchedule

broker = InMemoryBroker()
other_broker = InMemoryBroker()


@broker.task
async def bare(x: int, y: str = "") -> float:
    return 1.0


@broker.task
def sync_bare(x: int, *, y: str = "") -> float:
    return 1.0


@broker.task()
async def called(x: int) -> bool:
    return True


@broker.task("named")
async def named(x: int) -> bool:
    return True


@broker.task(task_name="named_by_keyword", queue="fast", timeout=3)
def labelled(x: int) -> bool:
    return True


@broker.task(batch=False)
async def told_not_to_batch(numbers: list[int]) -> list[str]:
    return []


@broker.task(batch=None)
def told_nothing_about_batches(numbers: list[int]) -> list[str]:
    return []


@broker.task
async def with_dependency(
    x: int,
    context: Context = TaskiqDepends(),  # noqa: B008 - how it is declared
) -> None:
    await context.ack()
    assert_type(context.aborted(), bool)


@async_shared_broker.task
async def of_any_broker(x: int) -> bool:
    return True


@async_shared_broker.task("sync_plain_task_of_any_broker", queue="fast")
def sync_of_any_broker(x: int) -> bool:
    return True


async def function(x: int) -> list[str]:
    return []


def sync_function(numbers: list[int]) -> list[str]:
    return []


registered = broker.register_task(function)
registered_with_name = broker.register_task(sync_function, "registered", queue="fast")
registered_in_words = broker.register_task(
    sync_function,
    task_name="registered_in_words",
    batch=False,
)


def key_of(x: int) -> int:
    return x


@broker.task(unique=True)
async def unique(x: int) -> bool:
    return True


@broker.task("unique_by_key", unique=key_of, unique_ttl=60)
async def unique_by_key(x: int) -> bool:
    return True


@broker.task("limited", rate="2/s")
async def limited(x: int) -> bool:
    return True


@broker.task(max_deliveries=5, on_failure="requeue")
async def given_back(
    x: int,
    context: Context = TaskiqDepends(),  # noqa: B008 - how it is declared
) -> bool:
    if x == 1:
        context.nack()
    if x == 2:
        context.nack(delay=1.5)
    context.dead_letter(reason="no such customer")
    return True


@broker.task("put_aside", on_failure="dead_letter")
def put_aside(x: int) -> bool:
    return True


@async_shared_broker.task(max_deliveries=3, on_failure="ack")
async def of_any_broker_limited(x: int) -> bool:
    return True


registered_with_policy = broker.register_task(
    function,
    "registered_with_policy",
    max_deliveries=2,
    on_failure="dead_letter",
)


registered_with_rate = broker.register_task(function, "slow", rate="10/h")


registered_as_unique = broker.register_task(
    function,
    "registered_as_unique",
    unique=True,
    unique_ttl=1.5,
)


async def sending_gives_a_handle_of_what_the_function_returns() -> None:
    assert_type(await bare.kiq(1), AsyncTaskiqTask[float])
    assert_type(await bare.kiq(1, y="a"), AsyncTaskiqTask[float])
    assert_type(await sync_bare.kiq(x=1, y="a"), AsyncTaskiqTask[float])
    assert_type(await called.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await named.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await labelled.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await told_not_to_batch.kiq([1]), AsyncTaskiqTask[list[str]])
    assert_type(await told_nothing_about_batches.kiq([1]), AsyncTaskiqTask[list[str]])
    assert_type(await with_dependency.kiq(1), AsyncTaskiqTask[None])
    assert_type(await of_any_broker.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await sync_of_any_broker.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await registered.kiq(1), AsyncTaskiqTask[list[str]])
    assert_type(await registered_with_name.kiq([1]), AsyncTaskiqTask[list[str]])
    assert_type(await registered_in_words.kiq([1]), AsyncTaskiqTask[list[str]])
    assert_type(await limited.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await registered_with_rate.kiq(1), AsyncTaskiqTask[list[str]])
    assert_type(await given_back.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await put_aside.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await of_any_broker_limited.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await registered_with_policy.kiq(1), AsyncTaskiqTask[list[str]])
    assert_type(await unique.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await unique_by_key.kiq(1), AsyncTaskiqTask[bool])
    assert_type(await registered_as_unique.kiq(1), AsyncTaskiqTask[list[str]])


async def results_have_the_type_the_function_returns() -> None:
    assert_type(await (await bare.kiq(1)).abort(), bool)
    result = await (await bare.kiq(1)).wait_result()
    assert_type(result, TaskiqResult[float])
    assert_type(result.return_value, float)
    handles = (await bare.kiq(1), await labelled.kiq(1))
    assert_type(await gather(*handles), tuple[TaskiqResult[Any], ...])


async def calling_a_task_is_calling_its_function() -> None:
    assert_type(await bare(1, "a"), float)
    assert_type(sync_bare(1, y="a"), float)
    assert_type(await told_not_to_batch([1]), list[str])
    assert_type(registered_with_name([1]), list[str])


async def a_kicker_keeps_the_types(source: ScheduleSource, time: datetime) -> None:
    kicker = bare.kicker().with_labels(queue="slow", priority=3)
    kicker = kicker.with_task_id("id").with_broker(other_broker)
    assert_type(await kicker.kiq(1, "a"), AsyncTaskiqTask[float])
    by_cron = await labelled.schedule_by_cron(source, "* * * * *", 1)
    assert_type(by_cron, CreatedSchedule[bool])
    assert_type(await by_cron.kiq(), AsyncTaskiqTask[bool])
    of_async = await bare.schedule_by_cron(source, "* * * * *", 1)
    assert_type(await of_async.kiq(), AsyncTaskiqTask[float])
    every = timedelta(seconds=1)
    by_interval = await sync_bare.schedule_by_interval(source, every, 1, y="a")
    assert_type(by_interval, CreatedSchedule[float])
    by_time = await sync_bare.kicker().schedule_by_time(source, time, 1)
    assert_type(by_time, CreatedSchedule[float])
