"""What a type checker refuses to send many of, pinned; see `refused.py`."""

from __future__ import annotations

from taskiq import InMemoryBroker, gather_results

broker = InMemoryBroker()


@broker.task
async def one(number: int) -> float:
    return 1.0


@broker.task
def sync_one(number: int) -> float:
    return 1.0


@broker.task
async def two(number: int, text: str) -> bool:
    return True


@broker.task
async def with_defaults(number: int, text: str = "") -> bool:
    return True


@broker.task
async def of_nothing() -> int:
    return 1


@broker.task(batch=True)
async def of_tenant(numbers: list[int], tenant: str) -> list[str]:
    return []


@broker.task(batch=True)
async def each(numbers: list[int]) -> list[str]:
    return []


async def items_are_checked() -> None:
    await one.kiq_many(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await one.kiq_many(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await one.kiq_many([[1]])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await sync_one.kiq_many(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await with_defaults.kiq_many(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await with_defaults.kiq_many([(1, "a")])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await of_nothing.kiq_many([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await each.kicker().kiq_many(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def tasks_of_several_arguments_need_calls() -> None:
    await two.kiq_many([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await two.kiq_many([(1, "a")])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await two.kicker().kiq_many([(1, "a")])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await of_tenant.kiq_many([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def calls_are_checked() -> None:
    await two.kiq_many([two.call(1)])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue, reportUnknownArgumentType]
    await two.kiq_many([two.call("a", 1)])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await two.kiq_many([one.call(1)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await two.kiq_many([two.call(1, "a"), 3])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def items_of_batch_tasks_are_checked() -> None:
    await each.kiq_many(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await each.kiq_many([[1]])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def chunks_are_checked() -> None:
    await each.kiq_chunk(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await each.kiq_chunk(1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await each.kiq_chunk([1], "a")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await of_tenant.kiq_chunk([1])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await of_tenant.kiq_chunk([1], 2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def what_else_is_given_is_checked() -> None:
    await one.kiq_many([1], on_progress="print")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await gather_results([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await gather_results(await one.kiq_many([1]), timeout="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
