"""What a type checker says of tasks that are given a `Context`, pinned.

Neither needs a plugin, and the one for mypy changes nothing here. `tests/checkers` runs
mypy, without it and with it, and pyright over this file.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from typing_extensions import assert_type

from taskiq import (
    AsyncTaskiqChunk,
    AsyncTaskiqTask,
    BatchContext,
    Context,
    InMemoryBroker,
    ScheduleSource,
    TaskiqDepends,
)
from taskiq.scheduler.created_schedule import CreatedSchedule

broker = InMemoryBroker()

Ctx = Annotated[Context, TaskiqDepends()]
BatchCtx = Annotated[BatchContext, TaskiqDepends()]


@broker.task
async def after_item(number: int, context: Ctx) -> float:
    return 1.0


@broker.task(queue="slow")
def sync_after_item(number: int, context: Ctx, *, dry: bool = False) -> float:
    return 1.0


@broker.task
async def after_two(number: int, text: str, context: Ctx, more: int = 0) -> float:
    return 1.0


@broker.task
async def before_item(context: Ctx, number: int) -> float:
    return 1.0


@broker.task
async def alone(context: Ctx) -> float:
    return 1.0


@broker.task
async def defaulted(number: int, context: Context = TaskiqDepends()) -> float:  # noqa: B008
    return 1.0


@broker.task
async def with_any(number: int, other: Any) -> float:
    return 1.0


@broker.task(batch=True)
async def batch(numbers: list[int], context: BatchCtx) -> list[str]:
    return []


@broker.task(batch=True)
async def batch_plain_context(numbers: list[int], context: Ctx) -> list[str]:
    return []


@broker.task(batch=True)
def sync_batch(numbers: list[int], context: BatchCtx, tenant: str = "") -> list[str]:
    return []


@broker.task(batch=True)
async def batch_errors(numbers: list[int], c: BatchCtx) -> list[str | Exception]:
    return []


@broker.task(batch=True)
async def batch_both(
    numbers: list[int],
    batch: BatchCtx,
    context: Ctx,
    tenant: str = "",
) -> list[str]:
    return []


@broker.task(batch=True)
async def batch_tenant(numbers: list[int], tenant: str, context: BatchCtx) -> list[str]:
    return []


@broker.task(batch=True, batch_results="shared")
async def batch_shared(numbers: list[int], context: BatchCtx) -> list[str]:
    return []


@broker.task(batch=True)
async def batch_defaulted(
    numbers: list[int],
    tenant: str,
    context: BatchContext = TaskiqDepends(),  # noqa: B008
    other: Context = TaskiqDepends(),  # noqa: B008
) -> list[str]:
    return []


async def a_plain_task_is_sent_without_its_context() -> None:
    assert_type(await after_item.kiq(1), AsyncTaskiqTask[float])
    assert_type(await sync_after_item.kiq(1), AsyncTaskiqTask[float])
    assert_type(await sync_after_item.kiq(1, dry=True), AsyncTaskiqTask[float])
    assert_type(await after_two.kiq(1, "a"), AsyncTaskiqTask[float])
    assert_type(await after_two.kiq(1, "a", more=3), AsyncTaskiqTask[float])
    assert_type(await before_item.kiq(number=1), AsyncTaskiqTask[float])
    assert_type(await alone.kiq(), AsyncTaskiqTask[float])
    assert_type(await defaulted.kiq(1), AsyncTaskiqTask[float])
    assert_type(await defaulted.kiq(number=1), AsyncTaskiqTask[float])
    assert_type(await with_any.kiq(1, object()), AsyncTaskiqTask[float])


async def a_chunk_is_sent_without_a_context() -> None:
    assert_type(await batch.kiq_chunk([1]), AsyncTaskiqChunk[str])
    assert_type(await batch_plain_context.kiq_chunk([1]), AsyncTaskiqChunk[str])
    assert_type(await sync_batch.kiq_chunk([1]), AsyncTaskiqChunk[str])
    assert_type(await sync_batch.kiq_chunk([1], tenant="a"), AsyncTaskiqChunk[str])
    assert_type(await batch_errors.kiq_chunk([1]), AsyncTaskiqChunk[str])
    assert_type(await batch_both.kiq_chunk([1], tenant="a"), AsyncTaskiqChunk[str])
    assert_type(await batch_tenant.kiq_chunk([1], "a"), AsyncTaskiqChunk[str])
    assert_type(await batch_shared.kiq_chunk([1]), AsyncTaskiqChunk[list[str]])
    assert_type(await batch_defaulted.kiq_chunk([1], "a"), AsyncTaskiqChunk[str])


async def a_batch_task_is_sent_without_its_context() -> None:
    assert_type(await batch.kiq(1), AsyncTaskiqTask[str])
    assert_type(await batch_plain_context.kiq(1), AsyncTaskiqTask[str])
    assert_type(await sync_batch.kiq(1), AsyncTaskiqTask[str])
    assert_type(await sync_batch.kiq(1, tenant="a"), AsyncTaskiqTask[str])
    assert_type(await batch_errors.kiq(1), AsyncTaskiqTask[str])
    assert_type(await batch_both.kiq(1), AsyncTaskiqTask[str])
    assert_type(await batch_both.kiq(1, tenant="a"), AsyncTaskiqTask[str])
    assert_type(await batch_tenant.kiq(1, "a"), AsyncTaskiqTask[str])
    assert_type(await batch_shared.kiq(1), AsyncTaskiqTask[list[str]])
    assert_type(await batch_defaulted.kiq(1, "a"), AsyncTaskiqTask[str])


async def many_are_sent_without_their_context() -> None:
    assert_type(await after_item.kiq_many([1]), list[AsyncTaskiqTask[float]])
    calls = [before_item.call(number=1)]
    assert_type(await before_item.kiq_many(calls), list[AsyncTaskiqTask[float]])
    assert_type(await sync_after_item.kiq_many([1]), list[AsyncTaskiqTask[float]])
    assert_type(await batch.kiq_many([1]), list[AsyncTaskiqTask[str]])
    assert_type(await sync_batch.kiq_many([1]), list[AsyncTaskiqTask[str]])
    assert_type(await batch_both.kiq_many([1]), list[AsyncTaskiqTask[str]])
    others = [batch_tenant.call(1, "a"), batch_tenant.call(2, "b")]
    assert_type(await batch_tenant.kiq_many(others), list[AsyncTaskiqTask[str]])
    sent = await sync_after_item.kiq_many([sync_after_item.call(1, dry=True)])
    assert_type(sent, list[AsyncTaskiqTask[float]])


async def schedules_and_kickers_do_without_it(source: ScheduleSource) -> None:
    now, second = datetime.now().astimezone(), timedelta(seconds=1)
    by_cron = await after_item.schedule_by_cron(source, "* * * * *", 1)
    assert_type(await by_cron.kiq(), AsyncTaskiqTask[float])
    by_interval = await sync_after_item.schedule_by_interval(source, second, 1)
    assert_type(by_interval, CreatedSchedule[float])
    by_time = await batch_tenant.kicker().schedule_by_time(source, now, 1, "a")
    assert_type(await by_time.kiq(), AsyncTaskiqTask[str])
    kicker = batch.kicker().with_labels(queue="slow").with_task_id("id")
    assert_type(await kicker.kiq(1), AsyncTaskiqTask[str])
    assert_type(await batch.kicker().kiq_many([1]), list[AsyncTaskiqTask[str]])


async def what_is_wrong_is_refused(source: ScheduleSource) -> None:
    await after_item.kiq("a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await after_item.kiq()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await after_item.kiq(1, 2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await batch.kiq([1])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await batch_tenant.kiq(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await batch_both.kiq(1, tenant=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await batch.kiq_many(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await batch.kicker().kiq("a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    # With the plugin there are no overloads left, and the error has another code.
    await batch.schedule_by_cron(source, "* * * * *", "a")  # type: ignore  # pyright: ignore[reportArgumentType]
