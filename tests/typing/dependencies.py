"""What a type checker says of dependencies that are given as defaults, pinned.

No plugin is needed, and the one for mypy changes nothing here.
"""

from __future__ import annotations

from datetime import datetime

from typing_extensions import assert_type

from taskiq import (
    AsyncTaskiqTask,
    BatchContext,
    Context,
    InMemoryBroker,
    ScheduleSource,
    TaskiqDepends,
    async_shared_broker,
)
from taskiq.scheduler.created_schedule import CreatedSchedule

broker = InMemoryBroker()


class Db:
    """Stands for what a dependency gives."""


async def get_db() -> Db:
    return Db()


@broker.task
async def plain(number: int, text: str = "", db: Db = TaskiqDepends(get_db)) -> float:  # noqa: B008
    return 1.0


@broker.task()
def by_name(
    number: int,
    *,
    db: Db = TaskiqDepends(get_db),  # noqa: B008
    text: str,
    context: Context = TaskiqDepends(),  # noqa: B008
) -> float:
    return 1.0


@broker.task(batch=True)
async def batch(
    numbers: list[int],
    tenant: str,
    db: Db = TaskiqDepends(get_db),  # noqa: B008
    context: BatchContext = TaskiqDepends(),  # noqa: B008
) -> list[str]:
    return ["" for _ in numbers]


@async_shared_broker.task(batch=True, batch_results="shared")
def shared(numbers: list[int], db: Db = TaskiqDepends(get_db)) -> list[str]:  # noqa: B008
    return []


class Runner:
    """Has a method, and is called, with dependencies."""

    def __init__(self, number: int, db: Db = TaskiqDepends(get_db)) -> None:  # noqa: B008
        self.db = db

    def method(self, number: int, db: Db = TaskiqDepends(get_db)) -> float:  # noqa: B008
        return 1.0

    def __call__(self, number: int, db: Db = TaskiqDepends(get_db)) -> float:  # noqa: B008
        return 1.0


method = broker.register_task(Runner(1).method, "method")
instance = broker.register_task(Runner(1), "instance")
made = broker.register_task(Runner, "made")


async def no_sender_needs_them(source: ScheduleSource) -> None:
    assert_type(await plain.kiq(1), AsyncTaskiqTask[float])
    assert_type(await plain.kiq(1, "a"), AsyncTaskiqTask[float])
    assert_type(await by_name.kiq(1, text="a"), AsyncTaskiqTask[float])
    assert_type(await batch.kiq(1, "a"), AsyncTaskiqTask[str])
    assert_type(await shared.kiq(1), AsyncTaskiqTask[list[str]])
    assert_type(await method.kiq(1), AsyncTaskiqTask[float])
    assert_type(await instance.kiq(1), AsyncTaskiqTask[float])
    assert_type(await made.kiq(1), AsyncTaskiqTask[Runner])
    assert_type(await plain.kiq_many([1]), list[AsyncTaskiqTask[float]])
    calls = [batch.call(1, "a")]
    assert_type(await batch.kicker().kiq_many(calls), list[AsyncTaskiqTask[str]])
    by_cron = await shared.schedule_by_cron(source, "* * * * *", 1)
    assert_type(by_cron, CreatedSchedule[list[str]])
    by_interval = await by_name.schedule_by_interval(source, 5, 1, text="a")
    assert_type(by_interval, CreatedSchedule[float])
    by_time = await batch.kicker().schedule_by_time(source, datetime.now(), 1, "a")
    assert_type(await by_time.kiq(), AsyncTaskiqTask[str])


async def a_direct_call_may_give_them(db: Db) -> None:
    assert_type(await plain(1, "a", db), float)
    assert_type(by_name(1, db=db, text="a"), float)
    assert_type(await batch(1, "a", db=db), str)


async def what_is_wrong_is_refused() -> None:
    await plain.kiq("a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await by_name.kiq(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await batch.kiq(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await batch.kiq([1], "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await method.kiq("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await plain.kiq_many(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
