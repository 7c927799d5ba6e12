"""What a type checker refuses, pinned: each line here is an error to mypy and pyright.

`tests/checkers` runs both with the rule that a comment which ignores nothing is an
error itself, so each of these lines fails the check as soon as it is accepted.
"""

from __future__ import annotations

from datetime import datetime

from taskiq import (
    AsyncTaskiqTask,
    BatchContext,
    Context,
    InMemoryBroker,
    ScheduleSource,
    async_shared_broker,
)

broker = InMemoryBroker()

#: True to mypy with the plugin: `tests/checkers/plugin/mypy.ini` says so.
WITH_PLUGIN = False


@broker.task(batch=True)
async def each(numbers: list[int], tenant: str, *, dry: bool = False) -> list[str]:
    return []


@broker.task(batch=True)
def sync_shared(numbers: list[int]) -> bool:
    return True


@broker.task
async def plain(number: int, tenant: str = "") -> float:
    return 1.0


async def function(numbers: list[int]) -> list[str]:
    return []


async def of_str(text: str) -> str:
    return text


def sync_of_str(text: str) -> str:
    return text


async def of_dict(numbers: dict[str, int]) -> None: ...


async def of_tuple(numbers: tuple[int, ...]) -> None: ...


async def of_nothing() -> None: ...


def sync_of_nothing() -> None: ...


async def of_keyword(*, numbers: list[int]) -> None: ...


async def arguments_are_checked() -> None:
    await each.kiq("1", "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await each.kiq([1], "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await each.kiq(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await each.kiq()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await each.kiq(1, "a", 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await each.kiq(1, 2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await each.kiq(1, "a", dry="no")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await each.kiq(1, "a", wet=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await each.kiq(1, tenant="a", number=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await each.kiq(number=1, tenant="a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    if not WITH_PLUGIN:  # which accepts the first of these two
        await each.kiq(numbers=1, tenant="a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
        await each.original_func(numbers=[1], tenant="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await each.original_func(1, "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await sync_shared.kiq("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await sync_shared.kiq([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await sync_shared.kiq()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await sync_shared.kiq(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def arguments_of_plain_tasks_are_checked() -> None:
    await plain.kiq("1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await plain.kiq()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await plain.kiq(1, "a", 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await plain.kicker().kiq(1, wet=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def arguments_of_a_direct_call_are_checked() -> None:
    await each("1", "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await each([1], "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await each(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await each(1, "a", 3)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    sync_shared([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync_shared()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def arguments_of_a_kicker_are_checked() -> None:
    kicker = (
        each.kicker().with_labels(priority=1).with_task_id("id").with_broker(broker)
    )
    await kicker.kiq([1], "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await kicker.kiq(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await kicker.kiq(1, "a", 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await kicker.kiq(1, "a", wet=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def arguments_of_a_schedule_are_checked(source: ScheduleSource) -> None:
    now = datetime.now().astimezone()
    await each.schedule_by_cron(source, "* * * * *", [1], "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await each.schedule_by_interval(source, 5, 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await each.schedule_by_time(source, now, 1, "a", 3)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    await each.kicker().schedule_by_cron(source, "* * * * *", "1", "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await each.kicker().schedule_by_interval(source, 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await each.kicker().schedule_by_time(source, now, 1, "a", wet=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def functions_without_a_list_are_refused() -> None:
    broker.task(batch=True)(of_str)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True)(sync_of_str)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task("name", batch=True, batch_size=3)(of_str)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_results="shared")(of_str)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    broker.task(batch=True)(of_dict)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True)(of_tuple)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True)(of_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True)(sync_of_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_results="shared")(of_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    broker.task(batch=True)(of_keyword)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(of_str, batch=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(sync_of_str, "name", batch=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(of_str, batch=True, batch_results="shared")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(of_nothing, batch=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    async_shared_broker.task(batch=True)(of_str)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    async_shared_broker.task(batch=True)(of_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def policies_of_failures_are_checked(
    context: Context, batch: BatchContext, handle: AsyncTaskiqTask[int]
) -> None:
    broker.task(on_failure="drop")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    broker.task(max_deliveries="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    broker.task(batch=True, on_failure="drop")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, max_deliveries=1.5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, on_failure="drop")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    async_shared_broker.task(on_failure=None, max_deliveries=[5])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    broker.with_dead_letters(on_failure="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    broker.with_dead_letters(max_deliveries="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    context.nack(0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    context.nack(delay="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    context.dead_letter("why")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    batch.nack("0")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    batch.nack(0, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    batch.dead_letter(0, "why")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    batch.dead_letter(0, reason=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    batch.aborted("0")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await handle.abort(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def arguments_of_the_decorator_are_checked() -> None:
    broker.task(batch="yes")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_size="10")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_size=1.5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_timeout="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_idle_timeout="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_concurrency="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(rate=2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    broker.task(batch=True, batch_rate=2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_priority="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_results="all")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_results=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_max_buffered="100")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task("name", batch=True, batch_size="10")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(task_name="name", batch=True, batch_size="10")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(function, batch=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(3, batch=True)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    async_shared_broker.task(batch=True, batch_size="10")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


def arguments_of_register_task_are_checked() -> None:
    broker.register_task(function, batch="yes")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_size="10")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_timeout="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_idle_timeout="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_concurrency="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_rate=2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_priority="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_results="all")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_max_buffered="100")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
