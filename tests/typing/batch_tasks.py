"""What a type checker says about batch tasks, pinned: each row of the table of types.

`tests/checkers` runs mypy and pyright over this file; `test_types.py` registers its
tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

from typing_extensions import assert_type

from taskiq import (
    AsyncTaskiqTask,
    BatchConfig,
    BatchContext,
    Context,
    InMemoryBroker,
    ScheduleSource,
    TaskiqDepends,
    TaskiqResult,
    async_shared_broker,
    gather,
)
from taskiq.scheduler.created_schedule import CreatedSchedule
from taskiq.scheduler.scheduled_task import CronSpec


class Doc:
    """Stands for a class of the application."""


broker = InMemoryBroker()
other_broker = InMemoryBroker()


# -- The table, async and sync ----------------------------------------------------


@broker.task(batch=True)
async def to_one(docs: list[Doc]) -> bool:
    return bool(docs)


@broker.task(batch=True)
def sync_to_one(docs: list[Doc]) -> bool:
    return bool(docs)


@broker.task(batch=True)
async def to_one_with_rest(docs: list[Doc], tenant: str, *, dry: bool = False) -> float:
    return 1.0


@broker.task(batch=True)
def sync_to_one_with_rest(
    docs: list[Doc],
    tenant: str,
    *,
    dry: bool = False,
) -> float:
    return 1.0


@broker.task(batch=True)
async def to_each(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True)
def sync_to_each(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True)
async def to_each_with_rest(
    docs: list[Doc],
    tenant: str,
    *,
    dry: bool = False,
) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True)
def sync_to_each_with_rest(
    docs: list[Doc],
    tenant: str,
    *,
    dry: bool = False,
) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True)
async def to_each_or_error(docs: list[Doc]) -> list[int | Exception]:
    return [ValueError() for _ in docs]


@broker.task(batch=True)
def sync_to_each_or_error(docs: list[Doc]) -> list[int | Exception]:
    return [ValueError() for _ in docs]


@broker.task(batch=True)
async def to_nothing(docs: list[Doc]) -> None: ...


@broker.task(batch=True)
def sync_to_nothing(docs: list[Doc]) -> None: ...


@broker.task(batch=True)
async def to_one_or_none(docs: list[Doc]) -> str | None:
    return None


@broker.task(batch=True)
async def to_each_or_none(docs: list[Doc]) -> list[str | None]:
    return [None for _ in docs]


@broker.task(batch=True)
async def to_each_list(docs: list[Doc]) -> list[list[int]]:
    return [[1] for _ in docs]


@broker.task(batch=True)
async def to_one_dict(docs: list[Doc]) -> dict[str, list[int]]:
    return {}


async def the_handle_of_one_item_gives_what_the_function_promises_for_it() -> None:
    doc = Doc()
    assert_type(await to_one.kiq(doc), AsyncTaskiqTask[bool])
    assert_type(await sync_to_one.kiq(doc), AsyncTaskiqTask[bool])
    assert_type(await to_one_with_rest.kiq(doc, "a"), AsyncTaskiqTask[float])
    assert_type(await sync_to_one_with_rest.kiq(doc, "a"), AsyncTaskiqTask[float])
    assert_type(await to_each.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await sync_to_each.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await to_each_with_rest.kiq(doc, "a"), AsyncTaskiqTask[int])
    assert_type(await sync_to_each_with_rest.kiq(doc, "a"), AsyncTaskiqTask[int])
    assert_type(await to_each_or_error.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await sync_to_each_or_error.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await to_nothing.kiq(doc), AsyncTaskiqTask[None])
    assert_type(await sync_to_nothing.kiq(doc), AsyncTaskiqTask[None])
    assert_type(await to_one_or_none.kiq(doc), AsyncTaskiqTask[str | None])
    assert_type(await to_each_or_none.kiq(doc), AsyncTaskiqTask[str | None])
    assert_type(await to_each_list.kiq(doc), AsyncTaskiqTask[list[int]])
    assert_type(await to_one_dict.kiq(doc), AsyncTaskiqTask[dict[str, list[int]]])


async def the_rest_is_given_by_position_or_by_name_as_the_function_says() -> None:
    doc = Doc()
    by_name = await to_one_with_rest.kiq(doc, tenant="a", dry=True)
    assert_type(by_name, AsyncTaskiqTask[float])
    assert_type(await to_one_with_rest.kiq(doc, "a", dry=True), AsyncTaskiqTask[float])
    assert_type(
        await sync_to_each_with_rest.kiq(doc, dry=True, tenant="a"),
        AsyncTaskiqTask[int],
    )


async def results_have_the_type_of_one_item() -> None:
    doc = Doc()
    one = await (await to_one.kiq(doc)).wait_result(timeout=1)
    assert_type(one, TaskiqResult[bool])
    assert_type(one.return_value, bool)
    each = await (await sync_to_each.kiq(doc)).wait_result()
    assert_type(each, TaskiqResult[int])
    assert_type(each.return_value, int)
    assert_type(each.raise_for_error().return_value, int)
    ready = await (await to_each_or_error.kiq(doc)).get_result()
    assert_type(ready.return_value, int)
    assert_type(ready.error, BaseException | None)
    handles = [await to_each.kiq(Doc()) for _ in range(3)]
    assert_type(handles, list[AsyncTaskiqTask[int]])
    assert_type(await gather(*handles, timeout=1), tuple[TaskiqResult[Any], ...])


async def calling_the_task_directly_gives_the_outcome_of_one_item() -> None:
    doc = Doc()
    assert_type(await to_one(doc), bool)
    assert_type(sync_to_one(doc), bool)
    assert_type(await to_one_with_rest(doc, "a", dry=True), float)
    assert_type(sync_to_one_with_rest(doc, tenant="a"), float)
    assert_type(await to_each(doc), int)
    assert_type(sync_to_each(doc), int)
    assert_type(await to_each_with_rest(doc, tenant="a"), int)
    assert_type(sync_to_each_with_rest(doc, "a"), int)
    assert_type(await to_each_or_error(doc), int)
    assert_type(sync_to_each_or_error(doc), int)
    assert_type(await whole_list(doc), list[int])
    assert_type(sync_whole_list(doc), list[int])
    assert_type(to_each.batch, BatchConfig | None)


async def the_function_itself_takes_the_list_and_gives_what_it_returns() -> None:
    docs = [Doc()]
    assert_type(await to_one.original_func(docs), bool)
    assert_type(sync_to_one.original_func(docs), bool)
    assert_type(await to_one_with_rest.original_func(docs, "a", dry=True), float)
    assert_type(await to_each.original_func(docs), list[int])
    assert_type(sync_to_each.original_func(docs), list[int])
    assert_type(sync_to_each_with_rest.original_func(docs, tenant="a"), list[int])
    assert_type(await to_each_or_error.original_func(docs), list[int | Exception])
    assert_type(sync_to_each_or_error.original_func(docs), list[int | Exception])
    assert_type(await whole_list.original_func(docs), list[int])
    assert_type(sync_of_sequence.original_func(docs), list[int | Exception])
    assert_type(await registered_to_one.original_func(docs), bool)
    assert_type(await registered_to_each.original_func(docs, "a"), list[int])
    assert_type(registered_sync_to_each.original_func(docs), list[int])
    either = await registered_to_each_or_error.original_func(docs)
    assert_type(either, list[int | Exception])
    assert_type(await registered_whole_list.original_func(docs, "a"), list[int])


# -- A list that belongs to the whole batch ---------------------------------------


@broker.task(batch=True, batch_results="shared")
async def whole_list(docs: list[Doc]) -> list[int]:
    return [1]


@broker.task(batch=True, batch_results="shared")
def sync_whole_list(docs: list[Doc]) -> list[int]:
    return [1]


@broker.task("whole_list_with_rest", batch=True, batch_results="shared", batch_size=3)
async def whole_list_with_rest(docs: list[Doc], tenant: str = "a") -> list[int]:
    return [1]


@broker.task(batch=True, batch_results="shared")
async def shared_anyway(docs: list[Doc]) -> bool:
    return True


async def shared_results_are_what_the_function_returns() -> None:
    doc = Doc()
    assert_type(await whole_list.kiq(doc), AsyncTaskiqTask[list[int]])
    assert_type(await sync_whole_list.kiq(doc), AsyncTaskiqTask[list[int]])
    assert_type(await whole_list_with_rest.kiq(doc, "b"), AsyncTaskiqTask[list[int]])
    assert_type(await shared_anyway.kiq(doc), AsyncTaskiqTask[bool])
    result = await (await whole_list.kiq(doc)).wait_result()
    assert_type(result.return_value, list[int])


# -- Other types a list fits ------------------------------------------------------


@broker.task(batch=True)
async def of_sequence(docs: Sequence[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True)
def sync_of_sequence(docs: Sequence[Doc], tenant: str = "a") -> list[int | Exception]:
    return [1 for _ in docs]


@broker.task(batch=True)
async def of_collection(docs: Collection[Doc]) -> bool:
    return bool(docs)


@broker.task(batch=True)
def sync_of_collection(docs: Collection[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True)
async def of_iterable(docs: Iterable[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True, batch_results="shared")
def sync_of_iterable(docs: Iterable[Doc]) -> list[int]:
    return [1]


@broker.task(batch=True)
async def of_annotated(docs: Annotated[list[Doc], "documents"]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True)
async def of_lists(rows: list[list[int]]) -> list[int]:
    return [sum(row) for row in rows]


@broker.task(batch=True)
async def of_optional(names: list[str | None]) -> list[str]:
    return [name or "" for name in names]


@broker.task(batch=True)
async def with_more(docs: list[Doc], *more: int, dry: bool = False) -> list[int]:
    return [1 for _ in docs]


# mypy wants the list positional-only here: any name could be among the others.
@broker.task(batch=True)
async def with_names(docs: list[Doc], /, **names: str) -> list[int]:
    return [1 for _ in docs]


async def the_rest_may_be_variadic() -> None:
    doc = Doc()
    assert_type(await with_more.kiq(doc, 1, 2, dry=True), AsyncTaskiqTask[int])
    assert_type(await with_names.kiq(doc, tenant="a"), AsyncTaskiqTask[int])


async def any_parameter_a_list_fits_takes_its_element() -> None:
    doc = Doc()
    assert_type(await of_sequence.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await sync_of_sequence.kiq(doc, "b"), AsyncTaskiqTask[int])
    assert_type(await of_collection.kiq(doc), AsyncTaskiqTask[bool])
    assert_type(await sync_of_collection.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await of_iterable.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await sync_of_iterable.kiq(doc), AsyncTaskiqTask[list[int]])
    assert_type(await of_annotated.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await of_lists.kiq([1, 2]), AsyncTaskiqTask[int])
    assert_type(await of_optional.kiq(None), AsyncTaskiqTask[str])


# -- Dependencies are no arguments a sender has to give ---------------------------


@broker.task(batch=True)
async def with_dependencies(
    docs: list[Doc],
    tenant: str,
    batch: BatchContext = TaskiqDepends(),  # noqa: B008 - how it is declared
    context: Context = TaskiqDepends(),  # noqa: B008 - how it is declared
) -> list[int]:
    batch.set_result(0, 1)
    return [1 for _ in docs]


async def dependencies_are_left_out() -> None:
    assert_type(await with_dependencies.kiq(Doc(), "a"), AsyncTaskiqTask[int])


# -- What becomes of messages that fail -------------------------------------------


@broker.task(batch=True, max_deliveries=5, on_failure="requeue")
async def given_back(
    docs: list[Doc],
    batch: BatchContext = TaskiqDepends(),  # noqa: B008 - how it is declared
) -> list[int]:
    batch.nack(0)
    batch.nack(1, delay=1.5)
    batch.nack(delay=3)
    batch.dead_letter(2, reason="no such customer")
    batch.dead_letter()
    assert_type(batch.aborted(), bool)
    assert_type(batch.aborted(3), bool)
    return [1 for _ in docs]


@broker.task("put_aside", batch=True, on_failure="dead_letter")
def put_aside(docs: list[Doc]) -> bool:
    return bool(docs)


@async_shared_broker.task(batch=True, max_deliveries=3, on_failure="ack")
async def of_any_broker_limited(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


broker_with_dead_letters = InMemoryBroker().with_dead_letters(
    "dead", max_deliveries=5, on_failure="requeue"
)


async def a_policy_changes_no_type() -> None:
    handle = await given_back.kiq(Doc())
    assert_type(handle, AsyncTaskiqTask[int])
    assert_type(await handle.abort(), bool)
    assert_type(await put_aside.kiq(Doc()), AsyncTaskiqTask[bool])
    assert_type(await of_any_broker_limited.kiq(Doc()), AsyncTaskiqTask[int])
    assert_type(broker_with_dead_letters, InMemoryBroker)


# -- The name by position and by keyword, and each argument -----------------------


@broker.task("by_position", batch=True)
async def by_position(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(task_name="by_keyword", batch=True)
async def by_keyword(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(None, batch=True)
async def without_name(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True, batch_size=10)
async def with_size(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True, batch_timeout=0)
async def with_timeout(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True, batch_idle_timeout=0.5)
async def with_idle_timeout(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True, batch_concurrency=1)
async def with_concurrency(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True, batch_max_buffered=100)
async def with_max_buffered(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(batch=True, batch_results="each")
async def with_each(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(
    "every_argument",
    batch=True,
    batch_size=10,
    batch_timeout=1.5,
    batch_idle_timeout=0.5,
    batch_concurrency=2,
    batch_rate="2/s",
    batch_priority=1.5,
    batch_results="each",
    batch_max_buffered=100,
    queue="documents",
    timeout=3,
)
async def with_every_argument(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


@broker.task(
    task_name="every_argument_left_out",
    batch=True,
    batch_size=None,
    batch_timeout=None,
    batch_idle_timeout=None,
    batch_concurrency=None,
    batch_rate=None,
    batch_priority=None,
    batch_results=None,
    batch_max_buffered=None,
)
async def with_every_argument_left_out(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


async def no_argument_of_the_decorator_changes_the_types_but_batch_results() -> None:
    doc = Doc()
    assert_type(await by_position.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await by_keyword.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await without_name.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await with_size.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await with_timeout.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await with_idle_timeout.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await with_concurrency.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await with_max_buffered.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await with_each.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await with_every_argument.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await with_every_argument_left_out.kiq(doc), AsyncTaskiqTask[int])


# -- The other ways to register ---------------------------------------------------


async def function_to_one(docs: list[Doc]) -> bool:
    return bool(docs)


def sync_function_to_one(docs: list[Doc], tenant: str = "a") -> bool:
    return bool(docs)


async def function_to_each(
    docs: list[Doc], tenant: str, *, dry: bool = False
) -> list[int]:
    return [1 for _ in docs]


def sync_function_to_each(docs: Sequence[Doc]) -> list[int]:
    return [1 for _ in docs]


async def function_to_each_or_error(docs: Iterable[Doc]) -> list[int | Exception]:
    return [1 for _ in docs]


def sync_function_to_each_or_error(docs: Collection[Doc]) -> list[int | Exception]:
    return [1 for _ in docs]


registered_to_one = broker.register_task(function_to_one, batch=True)
registered_sync_to_one = broker.register_task(
    sync_function_to_one,
    "registered_sync_to_one",
    batch=True,
    batch_size=10,
    batch_timeout=1.5,
    batch_idle_timeout=0.5,
    batch_concurrency=2,
    batch_rate="2/s",
    batch_priority=1.5,
    batch_max_buffered=100,
    queue="documents",
)
registered_to_each = broker.register_task(
    function_to_each,
    task_name="registered_to_each",
    batch=True,
    batch_results="each",
)
registered_sync_to_each = broker.register_task(
    sync_function_to_each,
    batch=True,
    batch_size=None,
    batch_results=None,
)
registered_to_each_or_error = broker.register_task(
    function_to_each_or_error,
    batch=True,
)
registered_sync_to_each_or_error = broker.register_task(
    sync_function_to_each_or_error,
    batch=True,
)
registered_whole_list = broker.register_task(
    function_to_each,
    "registered_whole_list",
    batch=True,
    batch_results="shared",
)
registered_sync_whole_list = broker.register_task(
    sync_function_to_each,
    "registered_sync_whole_list",
    batch=True,
    batch_results="shared",
    batch_size=10,
)


async def registering_a_function_gives_the_types_of_the_decorator() -> None:
    doc = Doc()
    assert_type(await registered_to_one.kiq(doc), AsyncTaskiqTask[bool])
    assert_type(await registered_sync_to_one.kiq(doc, "b"), AsyncTaskiqTask[bool])
    assert_type(await registered_to_each.kiq(doc, "a", dry=True), AsyncTaskiqTask[int])
    assert_type(await registered_sync_to_each.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await registered_to_each_or_error.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await registered_sync_to_each_or_error.kiq(doc), AsyncTaskiqTask[int])
    assert_type(await registered_whole_list.kiq(doc, "a"), AsyncTaskiqTask[list[int]])
    assert_type(await registered_sync_whole_list.kiq(doc), AsyncTaskiqTask[list[int]])
    assert_type(await registered_to_each(doc, "a"), int)
    assert_type(registered_sync_to_each(doc), int)


@async_shared_broker.task(batch=True, batch_size=10)
async def of_any_broker(docs: list[Doc], tenant: str = "a") -> list[int]:
    return [1 for _ in docs]


@async_shared_broker.task("sync_of_any_broker", batch=True, batch_results="shared")
def sync_of_any_broker(docs: list[Doc]) -> list[int]:
    return [1 for _ in docs]


async def shared_tasks_have_the_types_of_a_brokers_own() -> None:
    doc = Doc()
    assert_type(await of_any_broker.kiq(doc, tenant="b"), AsyncTaskiqTask[int])
    assert_type(await sync_of_any_broker.kiq(doc), AsyncTaskiqTask[list[int]])
    sent = await of_any_broker.kicker().with_broker(other_broker).kiq(doc, "b")
    assert_type(sent, AsyncTaskiqTask[int])


# -- What is made of a task -------------------------------------------------------


async def a_kicker_keeps_the_types() -> None:
    doc = Doc()
    assert_type(await to_one.kicker().kiq(doc), AsyncTaskiqTask[bool])
    assert_type(await sync_whole_list.kicker().kiq(doc), AsyncTaskiqTask[list[int]])
    kicker = to_each_with_rest.kicker()
    assert_type(await kicker.kiq(doc, "a", dry=True), AsyncTaskiqTask[int])
    labelled = kicker.with_labels(priority=3, queue="documents")
    assert_type(await labelled.kiq(doc, "a"), AsyncTaskiqTask[int])
    named = labelled.with_task_id("id")
    assert_type(await named.kiq(doc, tenant="a"), AsyncTaskiqTask[int])
    moved = named.with_broker(other_broker).with_schedule_id("id")
    assert_type(await moved.kiq(doc, "a"), AsyncTaskiqTask[int])
    sync_kicker = sync_to_each.kicker().with_labels(priority=3)
    assert_type(await sync_kicker.kiq(doc), AsyncTaskiqTask[int])


async def schedules_take_one_item(source: ScheduleSource, time: datetime) -> None:
    doc = Doc()
    by_cron = await sync_to_each.schedule_by_cron(source, "* * * * *", doc)
    assert_type(by_cron, CreatedSchedule[int])
    assert_type(await by_cron.kiq(), AsyncTaskiqTask[int])
    spec = CronSpec(minutes=5)
    by_spec = await sync_to_each_with_rest.schedule_by_cron(source, spec, doc, "a")
    assert_type(by_spec, CreatedSchedule[int])
    by_interval = await sync_whole_list.schedule_by_interval(source, 5, doc)
    assert_type(by_interval, CreatedSchedule[list[int]])
    every = timedelta(seconds=5)
    await to_each_with_rest.schedule_by_interval(source, every, doc, "a", dry=True)
    of_async = await to_each.schedule_by_cron(source, "* * * * *", doc)
    assert_type(await of_async.kiq(), AsyncTaskiqTask[int])
    of_async_rest = await to_one_with_rest.schedule_by_interval(source, 5, doc, "a")
    assert_type(await of_async_rest.kiq(), AsyncTaskiqTask[float])
    of_async_kicker = await whole_list.kicker().schedule_by_time(source, time, doc)
    assert_type(await of_async_kicker.kiq(), AsyncTaskiqTask[list[int]])
    by_time = await sync_to_one.schedule_by_time(source, time, doc)
    assert_type(by_time, CreatedSchedule[bool])
    await to_one_with_rest.schedule_by_time(source, time, doc, tenant="a")
    kicker = sync_to_each.kicker().with_schedule_id("id")
    assert_type(
        await kicker.schedule_by_cron(source, "* * * * *", doc), CreatedSchedule[int]
    )
    assert_type(await kicker.schedule_by_interval(source, 5, doc), CreatedSchedule[int])
    assert_type(await kicker.schedule_by_time(source, time, doc), CreatedSchedule[int])
