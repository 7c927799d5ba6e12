"""Calling: what the function is given, and what each message gets of what it does."""

import asyncio
import contextvars
import dataclasses
import logging
import os
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated, Any

import pytest

from taskiq import (
    AcknowledgeType,
    BatchContext,
    BatchInfo,
    Context,
    InMemoryBroker,
    NoResultError,
    TaskiqDepends,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.batch import FlushReason
from taskiq.depends.progress_tracker import ProgressTracker, TaskProgress, TaskState
from taskiq.exceptions import TaskiqBatchResultError, TaskRejectedError
from tests.batching import process_tasks
from tests.support.recorders import alike
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import (
    BatchWorker,
    CurrentBatch,
    CurrentContext,
    Worker,
    outcomes,
    results_of,
    run,
)

# -- Shared, each, raise ---------------------------------------------------------------


@virtual
async def test_a_shared_value_is_the_result_of_every_message(
    broker: InMemoryBroker,
) -> None:
    value = {"rows": [1, 2, 3]}

    @broker.task(batch=True)
    async def insert(items: list[int]) -> dict[str, list[int]]:
        return value

    results = await results_of(broker, insert, range(3))
    assert outcomes(results) == [value] * 3
    assert len({id(result) for result in results}) == 3


@virtual
async def test_a_list_gives_each_message_its_entry_in_order(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def square(items: list[int]) -> list[int]:
        return [item * item for item in items]

    assert outcomes(await results_of(broker, square, range(100))) == [
        number * number for number in range(100)
    ]


@virtual
async def test_an_exception_in_the_list_fails_its_message_only() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def halve(items: list[int]) -> list[float | Exception]:
        return [ValueError(item) if item % 2 else item / 2 for item in items]

    await worker.send_to(halve, 0, 1, 2, 3)
    await worker.run()
    results = worker.backend.results
    assert [results[name].return_value for name in "0123"] == [0, None, 1, None]
    assert [results[name].is_err for name in "0123"] == [False, True, False, True]
    assert repr(results["1"].error) == "ValueError(1)"
    assert repr(results["3"].error) == "ValueError(3)"
    assert worker.ids("on_error") == ["1", "3"]
    assert sorted(worker.broker.acked) == ["0", "1", "2", "3"]


@virtual
async def test_falsy_entries_and_exception_classes_are_values(
    broker: InMemoryBroker,
) -> None:
    values: list[Any] = [None, 0, 0.0, "", [], {}, False, b"", ValueError]

    @broker.task(batch=True)
    async def entries(items: list[int]) -> list[Any]:
        return [values[item] for item in items]

    results = outcomes(await results_of(broker, entries, range(len(values))))
    assert [(type(each), each) for each in results] == [
        (type(each), each) for each in values
    ]


@pytest.mark.parametrize(
    ("returned", "actual"),
    [
        ([1, 2], "a list of 2"),
        ([1, 2, 3, 4], "a list of 4"),
        ([], "a list of 0"),
        (None, "NoneType, which is no list"),
        ((1, 2, 3), "tuple, which is no list"),
        ("abc", "str, which is no list"),
        ({1: 1, 2: 2, 3: 3}, "dict, which is no list"),
        (iter([1, 2, 3]), "list_iterator, which is no list"),
    ],
)
def test_what_fits_no_item_fails_every_message_and_says_what_was_expected(
    broker: InMemoryBroker,
    returned: object,
    actual: str,
) -> None:
    async def wrong(items: list[int]) -> Any:
        return returned

    task: Any = broker.task("wrong", batch=True, batch_results="each")(wrong)
    results = run_virtual(results_of(broker, task, range(3)))
    for error in outcomes(results):
        assert isinstance(error, TaskiqBatchResultError)
        assert str(error) == (
            "Batch task wrong must return a list of 3 results, "
            f"one per item in order; it returned {actual}"
        )


@virtual
async def test_what_a_batch_raises_is_the_error_of_every_message() -> None:
    worker = Worker()
    error = ConnectionError("no database")

    @worker.broker.task(batch=True)
    async def insert(items: list[int]) -> list[int]:
        raise error

    await worker.send_to(insert, 0, 1, 2)
    await worker.run()
    assert alike(worker.errors, {"0": error, "1": error, "2": error})
    assert sorted(worker.ids("on_error")) == ["0", "1", "2"]
    assert len({id(result) for result in worker.backend.results.values()}) == 3


@virtual
async def test_without_a_result_nothing_is_saved_and_all_is_acknowledged() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def nothing(items: list[int]) -> None:
        raise NoResultError

    await worker.send_to(nothing, 0, 1)
    await worker.run()
    assert worker.backend.results == {}
    assert sorted(worker.broker.acked) == ["0", "1"]
    assert sorted(worker.ids("on_error")) == ["0", "1"]
    assert sorted(worker.ids("post_execute")) == ["0", "1"]
    assert worker.ids("post_save") == []


@virtual
async def test_no_result_and_rejection_can_be_the_entry_of_one_message() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def entries(items: list[int]) -> list[int | Exception]:
        return [1, NoResultError(), TaskRejectedError()]

    await worker.send_to(entries, 0, 1, 2)
    await worker.run()
    assert worker.values == {"0": 1}
    assert list(worker.errors) == ["2"]
    assert isinstance(worker.errors["2"], TaskRejectedError)
    assert sorted(worker.broker.acked) == ["0", "1", "2"]


@virtual
async def test_rejecting_a_batch_is_an_error_of_every_message_without_an_outcome(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def rejecting(items: list[int], batch: CurrentBatch) -> None:
        batch.set_result(0, "accepted")
        batch.reject()

    accepted, *rejected = outcomes(await results_of(broker, rejecting, range(3)))
    assert accepted == "accepted"
    for error in rejected:
        assert isinstance(error, TaskRejectedError)


@virtual
async def test_a_timeout_label_limits_the_call_and_its_expiry_fails_every_message(
    broker: InMemoryBroker,
) -> None:
    cancelled: list[list[int]] = []

    @broker.task(batch=True, timeout=2)
    async def slow(items: list[int]) -> None:
        try:
            await asyncio.sleep(3)
        except asyncio.CancelledError:
            cancelled.append(items)
            raise

    for error in outcomes(await results_of(broker, slow, range(3))):
        assert isinstance(error, TimeoutError)
    assert cancelled == [[0, 1, 2]]
    assert asyncio.get_running_loop().time() == 2


@virtual
async def test_a_cancellation_raised_by_the_function_is_the_error_of_every_message(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def cancelling(items: list[int]) -> None:
        raise asyncio.CancelledError

    for error in outcomes(await results_of(broker, cancelling, range(3))):
        assert isinstance(error, asyncio.CancelledError)


# -- The context of a batch ------------------------------------------------------------


@virtual
async def test_the_context_tells_everything_about_the_batch(
    broker: InMemoryBroker,
) -> None:
    contexts: list[BatchContext] = []

    @broker.task(batch=True, batch_size=3, queue="numbers")
    async def function(items: list[int], batch: CurrentBatch) -> None:
        assert [message.args for message in batch.messages] == [
            [each] for each in items
        ]
        contexts.append(batch)

    task: Any = function
    handles = [await task.kiq(number) for number in range(4)]
    await broker.wait_all()
    full, rest = contexts
    assert [message.task_id for message in full.messages] == [
        handle.task_id for handle in handles[:3]
    ]
    assert full.message is full.messages[0]
    assert rest.message.task_id == handles[3].task_id
    assert [(each.size, each.flush_reason) for each in contexts] == [
        (3, FlushReason.SIZE),
        (1, FlushReason.MANUAL),
    ]
    assert full.batch_id != rest.batch_id
    assert len(full.batch_id) == 32
    assert full.broker is broker
    assert full.state is broker.state


@virtual
async def test_a_batch_is_injected_as_a_context_and_as_a_batch_context(
    broker: InMemoryBroker,
) -> None:
    def nested(context: CurrentContext, batch: CurrentBatch) -> tuple[Context, Context]:
        return context, batch

    @broker.task(batch=True)
    async def function(
        items: list[int],
        context: CurrentContext,
        batch: CurrentBatch,
        both: Annotated[tuple[Context, Context], TaskiqDepends(nested)],
    ) -> bool:
        return context is batch is both[0] is both[1]

    assert outcomes(await results_of(broker, function, [1, 2])) == [True, True]


@virtual
async def test_the_context_of_a_plain_task_has_one_message(
    broker: InMemoryBroker,
) -> None:
    @broker.task
    async def function(context: CurrentContext) -> bool:
        assert not isinstance(context, BatchContext)
        return tuple(context.messages) == (context.message,)

    task: Any = function
    handle = await task.kiq()
    await broker.wait_all()
    assert (await handle.get_result()).return_value is True


@pytest.mark.parametrize("end", ["return", "raise", "wrong length"])
def test_outcomes_set_through_the_context_win_over_what_the_function_does(
    broker: InMemoryBroker,
    end: str,
) -> None:
    @broker.task("task", batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[str]:
        batch.set_result(0, None)
        batch.fail(1, KeyError("one"))
        batch.reject(2)
        if end == "raise":
            raise ValueError("the others")
        return ["returned"] * (4 if end == "return" else 5)

    none, one, two, three = outcomes(
        run_virtual(results_of(broker, function, range(4))),
    )
    assert none is None
    assert repr(one) == "KeyError('one')"
    assert isinstance(two, TaskRejectedError)
    if end == "return":
        assert three == "returned"
    elif end == "raise":
        assert repr(three) == "ValueError('the others')"
    else:
        assert isinstance(three, TaskiqBatchResultError)


@virtual
async def test_outcomes_can_be_set_for_some_messages_of_a_shared_batch(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> str:
        batch.set_result(1, "own")
        return "shared"

    assert outcomes(await results_of(broker, function, range(3))) == [
        "shared",
        "own",
        "shared",
    ]


@virtual
async def test_an_index_outside_the_batch_is_an_error_and_a_negative_one_too(
    broker: InMemoryBroker,
) -> None:
    refused: list[str] = []

    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        for index in (2, -1, 100):
            with pytest.raises(IndexError) as caught:
                batch.set_result(index, 1)
            refused.append(str(caught.value).replace(batch.batch_id, "ID"))
            with pytest.raises(IndexError):
                batch.fail(index, ValueError())
            with pytest.raises(IndexError):
                batch.reject(index)
            with pytest.raises(IndexError):
                await batch.requeue(index)
            with pytest.raises(IndexError):
                await batch.ack(index)
        return items

    assert outcomes(await results_of(broker, function, range(2))) == [0, 1]
    assert refused == [
        f"batch ID has items 0 to 1, not {each}" for each in (2, -1, 100)
    ]


@virtual
async def test_an_outcome_is_set_once(broker: InMemoryBroker) -> None:
    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        batch.set_result(0, "first")
        already = f"item 0 of batch {batch.batch_id} has an outcome already"
        with pytest.raises(RuntimeError, match=already):
            batch.set_result(0, "second")
        with pytest.raises(RuntimeError, match=already):
            batch.fail(0, ValueError())
        with pytest.raises(RuntimeError, match=already):
            batch.reject(0)
        with pytest.raises(RuntimeError, match=already):
            await batch.requeue(0)
        return items

    assert outcomes(await results_of(broker, function, range(2))) == ["first", 1]


@virtual
async def test_after_the_call_no_outcome_can_be_set(broker: InMemoryBroker) -> None:
    contexts: list[BatchContext] = []

    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        contexts.append(batch)
        return items

    results = await results_of(broker, function, range(2))
    (batch,) = contexts
    with pytest.raises(RuntimeError, match="has ended; its outcomes stay"):
        batch.set_result(0, "late")
    with pytest.raises(RuntimeError, match="has ended"):
        batch.fail(0, ValueError())
    with pytest.raises(RuntimeError, match="has ended"):
        await batch.requeue(0)
    assert outcomes(results) == [0, 1]
    assert broker.receiver.batch_statistics().is_idle


@virtual
async def test_a_message_fails_with_an_exception_and_nothing_else(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        wrong: Any = "no exception"
        with pytest.raises(TypeError, match="exception instance, got 'no exception'"):
            batch.fail(0, wrong)
        return items

    assert outcomes(await results_of(broker, function, range(1))) == [0]


@virtual
async def test_requeueing_some_messages_sends_them_again_and_settles_the_others() -> (
    None
):
    worker = Worker()

    @worker.broker.task(batch=True, queue="numbers")
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        if "X-Taskiq-requeue" not in batch.message.labels:
            await batch.requeue(1)
        return items

    await worker.send_to(function, 0, 1, 2)
    await worker.run()
    assert worker.backend.saved == ["0", "2"]
    assert sorted(worker.broker.acked) == ["0", "1", "2"]
    assert worker.ids("post_save") == ["0", "2"]
    (again,) = worker.broker.take_all()
    assert again.task_id == "1"
    message = worker.broker.formatter.loads(again.message)
    assert message.args == [1]
    assert message.labels == {"queue": "numbers", "X-Taskiq-requeue": "1"}


@virtual
async def test_requeueing_the_batch_sends_every_message_that_has_no_outcome() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        batch.set_result(1, "done")
        await batch.requeue()
        raise AssertionError("the call goes on")

    await worker.send_to(function, 0, 1, 2)
    await worker.run()
    assert worker.backend.saved == ["1"]
    assert worker.backend.results["1"].return_value == "done"
    assert [each.task_id for each in worker.broker.take_all()] == ["0", "2"]
    assert sorted(worker.broker.acked) == ["0", "1", "2"]


@virtual
async def test_one_message_is_acknowledged_at_once_and_once() -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> None:
        await batch.ack(1)
        await batch.ack(1)
        assert worker.broker.acked == ["1"]
        await asyncio.sleep(1)
        assert worker.broker.acked == ["1"]

    await worker.send_to(function, 0, 1, 2)
    await worker.run()
    assert worker.broker.acked == ["1", "0", "2"]
    assert worker.errors == {}


@virtual
async def test_all_messages_are_acknowledged_without_an_index() -> None:
    worker = Worker(ack_type=AcknowledgeType.MANUAL)

    @worker.broker.task(batch=True)
    async def function(items: list[int], context: CurrentContext) -> None:
        assert context.is_ackable
        assert not context.is_acked
        await context.ack()
        assert context.is_acked
        assert worker.broker.acked == ["0", "1", "2"]

    await worker.send_to(function, 0, 1, 2)
    await worker.run()
    assert worker.broker.acked == ["0", "1", "2"]
    assert worker.errors == {}


@virtual
async def test_what_cannot_be_acknowledged_says_so(broker: InMemoryBroker) -> None:
    @broker.task(batch=True)
    async def function(items: list[int], batch: CurrentBatch) -> list[int]:
        assert not batch.is_ackable
        for index in (None, 0):
            with pytest.raises(RuntimeError, match="Current message is not ackable"):
                await batch.ack(index)
        return items

    assert outcomes(await results_of(broker, function, range(2))) == [0, 1]


# -- Dependencies and progress ---------------------------------------------------------


@virtual
async def test_dependencies_are_resolved_and_closed_once_per_call() -> None:
    worker = Worker()
    steps: list[str] = []

    async def transaction() -> AsyncIterator[str]:
        steps.append("open")
        yield "transaction"
        steps.append("commit")

    @worker.broker.task(batch=True)
    async def insert(
        items: list[int],
        session: Annotated[str, TaskiqDepends(transaction)],
    ) -> None:
        steps.append(f"{session} {items}")

    await worker.send_to(insert, 0, 1, 2)
    await worker.run()
    assert steps == ["open", "transaction [0, 1, 2]", "commit"]
    assert worker.errors == {}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_dependency_that_fails_fails_every_message(moment: str) -> None:
    worker = Worker()
    error = ConnectionError(moment)
    calls: list[list[int]] = []

    async def transaction() -> AsyncIterator[None]:
        if moment == "before":
            raise error
        yield
        raise error

    @worker.broker.task(batch=True)
    async def insert(
        items: list[int],
        session: Annotated[None, TaskiqDepends(transaction)],
    ) -> list[int]:
        calls.append(items)
        return items

    async def main() -> None:
        await worker.send_to(insert, 0, 1)
        await worker.run()

    run_virtual(main())
    assert calls == ([] if moment == "before" else [[0, 1]])
    assert alike(worker.errors, {"0": error, "1": error})
    assert sorted(worker.ids("on_error")) == ["0", "1"]


@virtual
async def test_an_argument_sent_by_the_client_wins_over_its_dependency(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def function(
        items: list[int],
        tenant: Annotated[str, TaskiqDepends(lambda: "dependency")],
    ) -> Any:
        return tenant, items

    task: Any = function
    handles = [
        await task.kiq(0),
        await task.kiq(1, tenant="sent"),
        await task.kiq(2),
        await task.kiq(3, "sent"),
    ]
    await broker.wait_all()
    assert outcomes([await handle.get_result() for handle in handles]) == [
        ("dependency", [0, 2]),
        ("sent", [1, 3]),
        ("dependency", [0, 2]),
        ("sent", [1, 3]),
    ]


def resolved() -> str:
    return "resolved"


@virtual
async def test_a_dependency_may_stand_anywhere_among_the_arguments(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def function(
        items: list[int],
        /,
        first: Annotated[str, TaskiqDepends(resolved)],
        tenant: str = "a",
        second: Annotated[str, TaskiqDepends(resolved)] = "",
        *more: int,
        count: int = 0,
        **names: str,
    ) -> Any:
        return items, first, tenant, second, more, count, names

    task: Any = function
    handles = [
        await task.kiq(0),
        await task.kiq(1, tenant="a", count="0"),
        await task.kiq(2, tenant="b"),
        await task.kiq(3, second="sent"),
        await task.kiq(4, "sent", "c"),
        await task.kiq(5, count=1, name="x"),
        await task.kiq(6, "sent", "a", "sent", 1),
    ]
    await broker.wait_all()
    *good, bad = outcomes([await handle.get_result() for handle in handles])
    assert good == [
        ([0, 1], "resolved", "a", "resolved", (), 0, {}),
        ([0, 1], "resolved", "a", "resolved", (), 0, {}),
        ([2], "resolved", "b", "resolved", (), 0, {}),
        ([3], "resolved", "a", "sent", (), 0, {}),
        ([4], "sent", "c", "resolved", (), 0, {}),
        ([5], "resolved", "a", "resolved", (), 1, {"name": "x"}),
    ]
    # As for a plain task: by position, a dependency is given twice.
    assert isinstance(bad, TypeError)
    assert "multiple values for argument 'first'" in str(bad)


@virtual
async def test_progress_is_reported_for_every_message(broker: InMemoryBroker) -> None:
    seen: list[TaskProgress[Any] | None] = []

    @broker.task(batch=True)
    async def function(
        items: list[int],
        tracker: Annotated[ProgressTracker[int], TaskiqDepends()],
    ) -> None:
        await tracker.set_progress(TaskState.STARTED, len(items))
        seen.append(await tracker.get_progress())
        await tracker.set_progress("nearly done")

    task: Any = function
    handles = [await task.kiq(number) for number in range(70)]
    await broker.wait_all()
    assert seen == [TaskProgress(state=TaskState.STARTED, meta=70)]
    assert [await handle.get_progress() for handle in handles] == [
        TaskProgress(state="nearly done", meta=70),
    ] * 70


# -- Sync functions --------------------------------------------------------------------


@virtual
async def test_a_sync_function_runs_in_a_thread_with_the_context_of_its_call(
    broker: InMemoryBroker,
) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    class Setting(TaskiqMiddleware):
        def on_batch_start(self, batch: BatchInfo) -> None:
            variable.set(batch.batch_id)

    def function(items: list[int], batch: CurrentBatch) -> list[int | Exception]:
        assert threading.current_thread() is not threading.main_thread()
        assert variable.get() == batch.batch_id
        batch.set_result(0, "set in a thread")
        return [ValueError(item) if item == 1 else item for item in items]

    task: Any = broker.with_middlewares(Setting()).register_task(function, batch=True)
    zero, one, two = outcomes(await results_of(broker, task, range(3)))
    assert (zero, two) == ("set in a thread", 2)
    assert repr(one) == "ValueError(1)"
    assert variable.get() == "unset"


async def test_a_sync_function_runs_in_a_process_that_finds_it_by_name() -> None:
    worker = Worker()
    tasks = process_tasks.broker.local_task_registry
    worker.broker.local_task_registry.update(tasks)
    double: Any = process_tasks.double_in_process
    fail: Any = process_tasks.fail_in_process
    for number in range(3):
        kicker = double.kicker().with_broker(worker.broker)
        await kicker.with_task_id(f"double {number}").kiq(number)
        await kicker.with_task_id(f"triple {number}").kiq(number, factor="3")
        kicker = fail.kicker().with_broker(worker.broker)
        await kicker.with_task_id(f"fail {number}").kiq(number)
    with ProcessPoolExecutor(1) as executor:
        worker.options["executor"] = executor
        await worker.run()
    results = worker.backend.results
    for number in range(3):
        value, process = results[f"double {number}"].return_value
        assert value == 2 * number
        assert process != os.getpid()
        assert results[f"triple {number}"].return_value[0] == 3 * number
        assert repr(results[f"fail {number}"].error) == "LookupError(3)"
    assert len(worker.seen.batches) == 3


# -- Hooks of a batch ------------------------------------------------------------------


class BatchHooks(TaskiqMiddleware):
    """Writes down the hooks of batches, and raises in those it is told to."""

    def __init__(self, *raising: str) -> None:
        super().__init__()
        self.raising = raising
        self.started: list[BatchInfo] = []
        self.ended: list[tuple[BatchInfo, list[TaskiqResult[Any]]]] = []

    async def on_batch_start(self, batch: BatchInfo) -> None:
        self.started.append(batch)
        if "on_batch_start" in self.raising:
            raise RuntimeError("hook of the start")

    def on_batch_end(
        self, batch: BatchInfo, results: Sequence[TaskiqResult[Any]]
    ) -> None:
        self.ended.append((batch, list(results)))
        if "on_batch_end" in self.raising:
            raise RuntimeError("hook of the end")


@virtual
async def test_the_hooks_of_a_batch_run_once_with_results_aligned_to_messages() -> None:
    hooks = BatchHooks()
    worker = Worker(hooks)

    @worker.broker.task("halve", batch=True, batch_size=4)
    async def halve(items: list[int]) -> list[float | Exception]:
        assert len(hooks.started) == len(hooks.ended) + 1
        return [ValueError(item) if item % 2 else item / 2 for item in items]

    await worker.send_to(halve, 0, 1, 2, 3, 4)
    await worker.run()
    assert hooks.started == [batch for batch, _ in hooks.ended]
    assert [len(batch.messages) for batch in hooks.started] == [4, 1]
    assert [batch.flush_reason for batch in hooks.started] == [
        FlushReason.SIZE,
        FlushReason.SHUTDOWN,
    ]
    for batch, results in hooks.ended:
        assert batch.task_name == "halve"
        assert len(batch.batch_id) == 32
        assert batch.waited == 0
        assert len(results) == len(batch.messages)
        for message, result in zip(batch.messages, results, strict=True):
            assert result is worker.backend.results[message.task_id]
    with pytest.raises(dataclasses.FrozenInstanceError):
        hooks.started[0].waited = 1.0  # type: ignore[misc] # the point of this test


@pytest.mark.parametrize("raising", ["on_batch_start", "on_batch_end"])
def test_a_batch_hook_that_raises_is_logged_and_harms_nothing(
    raising: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    after = BatchHooks()
    worker = Worker(BatchHooks(raising), after)

    @worker.broker.task("task", batch=True)
    async def function(items: list[int]) -> list[int]:
        return items

    async def main() -> None:
        await worker.send_to(function, 0, 1)
        await worker.run()

    run_virtual(main())
    assert [each.return_value for each in worker.backend.results.values()] == [0, 1]
    assert worker.broker.acked == ["0", "1"]
    assert len(after.started) == len(after.ended) == 1
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert f"The {raising} hook of BatchHooks failed for batch" in record.getMessage()
    assert "task (0, 1)" in record.getMessage()


@virtual
async def test_plain_tasks_have_no_batch_hooks() -> None:
    hooks = BatchHooks()
    worker = Worker(hooks)

    @worker.broker.task
    async def function(item: int) -> None: ...

    await worker.send_to(function, 0)
    await worker.run()
    assert (hooks.started, hooks.ended) == ([], [])
    assert worker.ids("post_save") == ["0"]


# -- Equal items that are passed once --------------------------------------------------


def test_an_index_of_the_context_stands_for_all_duplicates_of_its_item() -> None:
    shape: list[Any] = []

    async def act(context: BatchContext, items: list[Any]) -> None:
        shape.append(context.size)
        shape.append([message.task_id for message in context.messages])
        shape.append([message.task_id for message in context.all_messages])
        context.set_result(0, "set")
        context.fail(1, ValueError("failed"))
        context.reject(2)
        await context.requeue(3)
        with pytest.raises(IndexError):
            context.set_result(4, "beyond")

    worker = BatchWorker(act=act, batch_coalesce=str)
    run(worker, *"abcdabcd")
    assert shape == [4, ["0", "1", "2", "3"], ["0", "4", "1", "5", "2", "6", "3", "7"]]
    assert worker.values == {"0": "set", "4": "set"}
    kinds = {i: type(error) for i, error in worker.errors.items()}
    assert kinds == {
        "1": ValueError,
        "5": ValueError,
        "2": TaskRejectedError,
        "6": TaskRejectedError,
    }
    again = [worker.broker.queue.get_nowait() for _ in range(2)]
    assert [message.task_id for message in again if message] == ["3", "7"]
    assert sorted(worker.broker.acked) == list("01234567")


def test_an_ack_by_index_is_one_for_each_duplicate() -> None:
    acked: list[list[str]] = []

    async def act(context: BatchContext, items: list[Any]) -> None:
        await context.ack(0)
        acked.append(list(worker.broker.acked))

    worker = BatchWorker(act=act, batch_coalesce=str)
    run(worker, "a", "b", "a")
    assert acked == [["0", "2"]]
    assert sorted(worker.broker.acked) == ["0", "1", "2"]


def test_progress_reaches_every_duplicate() -> None:
    broker = InMemoryBroker()

    @broker.task(batch=True, batch_coalesce=str)
    async def work(
        items: list[str],
        tracker: Annotated[ProgressTracker[int], TaskiqDepends()],
    ) -> None:
        await tracker.set_progress(TaskState.STARTED, len(items))

    async def main() -> None:
        handles = [await work.kiq(item) for item in "aba"]  # type: ignore[call-overload] # injected
        await broker.wait_all()
        for handle in handles:
            progress = await handle.get_progress()
            assert progress is not None
            assert progress.meta == 2

    run_virtual(main())
