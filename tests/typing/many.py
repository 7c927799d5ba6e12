"""What a type checker says about sending many and gathering results, pinned.

`tests/checkers` runs mypy and pyright over this file; `test_types.py` registers its
tasks.
"""

from __future__ import annotations

from typing_extensions import assert_type

from taskiq import (
    AsyncTaskiqChunk,
    AsyncTaskiqTask,
    Context,
    InMemoryBroker,
    TaskiqDepends,
    TaskiqResult,
    gather_results,
)

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
def sync_two(number: int, text: str) -> bool:
    return True


@broker.task
async def with_defaults(
    number: int,
    text: str = "",
    context: Context = TaskiqDepends(),  # noqa: B008 - how it is declared
) -> bool:
    return True


@broker.task
async def of_tuple(pair: tuple[int, str]) -> None: ...


@broker.task
async def of_nothing() -> int:
    return 1


@broker.task(batch=True)
async def each(numbers: list[int]) -> list[str]:
    return []


@broker.task(batch=True)
async def each_with_errors(numbers: list[int]) -> list[str | Exception]:
    return []


@broker.task(batch=True)
def sync_each(numbers: list[int]) -> list[str]:
    return []


@broker.task(batch=True, batch_results="shared")
async def shared(numbers: list[int]) -> list[str]:
    return []


@broker.task(batch=True)
async def of_tenant(numbers: list[int], tenant: str) -> list[str]:
    return []


def progress(done: int) -> None: ...


async def items_are_the_only_argument() -> None:
    assert_type(await one.kiq_many([1, 2]), list[AsyncTaskiqTask[float]])
    assert_type(await one.kiq_many(range(3)), list[AsyncTaskiqTask[float]])
    assert_type(await one.kiq_many({1: "a"}), list[AsyncTaskiqTask[float]])
    assert_type(await one.kiq_many(n for n in (1, 2)), list[AsyncTaskiqTask[float]])
    assert_type(await sync_one.kiq_many([1]), list[AsyncTaskiqTask[float]])
    assert_type(await with_defaults.kiq_many([1]), list[AsyncTaskiqTask[bool]])
    assert_type(await of_tuple.kiq_many([(1, "a")]), list[AsyncTaskiqTask[None]])
    sent = await one.kiq_many([1], on_progress=progress)
    assert_type(sent, list[AsyncTaskiqTask[float]])


async def items_of_batch_tasks_are_those_of_their_lists() -> None:
    assert_type(await each.kiq_many([1, 2]), list[AsyncTaskiqTask[str]])
    assert_type(await each_with_errors.kiq_many([1]), list[AsyncTaskiqTask[str]])
    assert_type(await sync_each.kiq_many([1]), list[AsyncTaskiqTask[str]])
    assert_type(await shared.kiq_many([1]), list[AsyncTaskiqTask[list[str]]])
    sent = await of_tenant.kiq_many([of_tenant.call(1, "a")])
    assert_type(sent, list[AsyncTaskiqTask[str]])


async def calls_take_what_kiq_takes() -> None:
    sent = await two.kiq_many([two.call(1, "a"), two.call(2, text="b")])
    assert_type(sent, list[AsyncTaskiqTask[bool]])
    sent = await two.kiq_many(two.call(n, text="b") for n in range(3))
    assert_type(sent, list[AsyncTaskiqTask[bool]])
    sent = await sync_two.kiq_many([sync_two.call(1, "a")])
    assert_type(sent, list[AsyncTaskiqTask[bool]])
    sent = await with_defaults.kiq_many([with_defaults.call(1, text="b")])
    assert_type(sent, list[AsyncTaskiqTask[bool]])
    calls = [of_nothing.call()] * 3
    assert_type(await of_nothing.kiq_many(calls), list[AsyncTaskiqTask[int]])


async def a_kicker_keeps_the_types() -> None:
    kicker = one.kicker().with_labels(queue="slow")
    assert_type(await kicker.kiq_many([1]), list[AsyncTaskiqTask[float]])
    batch_kicker = each.kicker().with_broker(broker)
    assert_type(await batch_kicker.kiq_many([1]), list[AsyncTaskiqTask[str]])
    sent = await two.kicker().kiq_many([two.call(1, "a")])
    assert_type(sent, list[AsyncTaskiqTask[bool]])


async def a_chunk_takes_items_and_what_follows_an_item() -> None:
    assert_type(await each.kiq_chunk([1, 2]), AsyncTaskiqChunk[str])
    assert_type(await each.kiq_chunk(range(3)), AsyncTaskiqChunk[str])
    assert_type(await each_with_errors.kiq_chunk([1]), AsyncTaskiqChunk[str])
    assert_type(await sync_each.kiq_chunk([1]), AsyncTaskiqChunk[str])
    assert_type(await shared.kiq_chunk([1]), AsyncTaskiqChunk[list[str]])
    assert_type(await of_tenant.kiq_chunk([1], "a"), AsyncTaskiqChunk[str])
    assert_type(await of_tenant.kiq_chunk([1], tenant="a"), AsyncTaskiqChunk[str])
    kicker = of_tenant.kicker().with_labels(queue="slow")
    assert_type(await kicker.kiq_chunk([1], "a"), AsyncTaskiqChunk[str])


async def the_result_of_a_chunk_is_a_list_of_results() -> None:
    result = await (await each.kiq_chunk([1])).wait_result(timeout=3)
    assert_type(result, TaskiqResult[list[TaskiqResult[str]]])
    assert_type(result.return_value[0].return_value, str)
    gathered = await gather_results([await each.kiq_chunk([1])])
    assert_type(gathered, list[TaskiqResult[list[TaskiqResult[str]]]])


async def results_have_the_type_of_the_handles() -> None:
    results = await gather_results(await each.kiq_many([1]), timeout=3)
    assert_type(results, list[TaskiqResult[str]])
    mixed = await gather_results([await one.kiq(1), await sync_one.kiq(2)])
    assert_type(mixed, list[TaskiqResult[float]])
