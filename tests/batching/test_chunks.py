"""Chunks on a worker: one message whose items join batches, and one result of all."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator

from taskiq import (
    AckableMessage,
    BatchContext,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.aborts import Aborts, InMemoryAborts
from taskiq.batch import FlushReason
from taskiq.chunks import ITEMS
from taskiq.dead_letters.store import InMemoryDeadLetters
from taskiq.depends.progress_tracker import ProgressTracker
from taskiq.exceptions import (
    ChunkItemError,
    MaxDeliveriesError,
    TaskAbortedError,
    TaskRejectedError,
)
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import (
    FOREVER,
    BatchWorker,
    CurrentBatch,
    Gate,
    GatedBackend,
    complaints,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


def doubled(items: list[Any]) -> list[Any]:
    return [item if isinstance(item, Exception) else 2 * item for item in items]


def worker_of(*args: Any, **options: Any) -> BatchWorker:
    options.setdefault("batch_results", "each")
    return BatchWorker(*args, **options)


def parity(item: int, rest: str) -> int:
    return item % 2


def size_of(item: int) -> int:
    return item


def remainder(item: int) -> int:
    return item % 3


async def send_chunk(
    worker: BatchWorker,
    items: list[Any],
    task_id: str = "chunk",
    rest: str = "",
    **labels: Any,
) -> None:
    kicker: Any = worker.task.kicker().with_task_id(task_id).with_labels(**labels)
    await kicker.kiq_chunk(items, rest=rest)


def outcomes(worker: BatchWorker, task_id: str = "chunk") -> list[Any]:
    """For each item of a chunk what it returned, or the class of its error."""
    result = worker.backend.results[task_id]
    assert result.error is None
    for each in result.return_value:
        assert each.is_err is (each.error is not None)
        assert each.execution_time >= 0
        assert (each.labels, each.log) == ({}, None)
    return [
        each.return_value if each.error is None else type(each.error)
        for each in result.return_value
    ]


# -- Batches -------------------------------------------------------------------------


@virtual
async def test_items_join_batches_beside_single_ones_in_order_of_arrival() -> None:
    worker = worker_of(doubled, batch_size=3)
    await worker.send(10)
    await send_chunk(worker, [0, 1, 2])
    await worker.send(11)
    await worker.run()
    assert worker.calls == [[10, 0, 1], [2, 11]]
    assert outcomes(worker) == [0, 2, 4]
    assert worker.values["0"] == 20
    assert worker.values["1"] == 22
    worker.assert_as_new()


@virtual
async def test_batches_are_counted_in_items() -> None:
    worker = worker_of(doubled, batch_size=3)
    await send_chunk(worker, [0, 1, 2, 3])
    await worker.run()
    assert [len(batch.messages) for batch in worker.seen.ended] == [3, 1]
    assert [batch.flush_reason.value for batch in worker.seen.ended] == [
        "size",
        "shutdown",
    ]


@pytest.mark.parametrize("has_hooks", [True, False])
@virtual
async def test_there_is_one_result_one_round_of_hooks_and_one_ack_of_all(
    has_hooks: bool,
) -> None:
    worker = worker_of(doubled, batch_size=2, is_recording=has_hooks)
    await send_chunk(worker, [0, 1, 2, 3, 4], kind="whole")
    await worker.run()
    steps = ["pre_execute", "post_execute", "save", "post_save", "ack"]
    assert worker.steps("chunk") == (steps if has_hooks else ["save", "ack"])
    assert outcomes(worker) == [0, 2, 4, 6, 8]
    assert worker.backend.results["chunk"].labels["kind"] == "whole"


@virtual
async def test_items_of_equal_keys_and_arguments_share_calls() -> None:
    worker = worker_of(doubled, batch_size=3, batch_key=parity)
    await worker.send(7, rest="x")
    await send_chunk(worker, [0, 1, 2, 3], rest="x")
    await send_chunk(worker, [4, 5], "other", rest="y")
    await worker.run()
    assert sorted(worker.calls) == [[0, 2], [4], [5], [7, 1, 3]]
    assert outcomes(worker) == [0, 2, 4, 6]
    assert outcomes(worker, "other") == [8, 10]


@virtual
async def test_items_are_weighed_one_by_one() -> None:
    worker = worker_of(doubled, batch_size=9, batch_weight=size_of, batch_max_weight=4)
    await send_chunk(worker, [1, 3, 2, 5, 1])
    await worker.run()
    assert sorted(worker.calls) == [[1], [1, 3], [2], [5]]


@virtual
async def test_equal_items_of_a_chunk_and_of_messages_are_passed_once() -> None:
    worker = worker_of(doubled, batch_size=4, batch_coalesce=remainder)
    await worker.send(3)
    await send_chunk(worker, [0, 1, 4])
    await worker.run()
    assert worker.calls == [[3, 1]]
    assert outcomes(worker) == [6, 2, 2]


class Single:
    """There is one only."""

    def __init__(self, _: str) -> None:
        pass

    def __deepcopy__(self, _: object) -> Single:
        raise OSError(self.__doc__)


READ: list[str] = []


def note(value: str) -> str:
    READ.append(value)
    return value


OfOne: TypeAlias = Annotated[str, AfterValidator(Single)]
Once: TypeAlias = Annotated[str, AfterValidator(note)]


@virtual
async def test_each_call_has_the_other_arguments_as_they_were_sent() -> None:
    async def append(items: list[int], rest: list[str]) -> list[int]:
        rest.append("seen")
        return [len(rest) for _ in items]

    worker = BatchWorker()
    task = worker.broker.task(batch=True, batch_size=2)(append)
    await task.kicker().with_task_id("chunk").kiq_chunk([0, 1, 2, 3], [])
    await worker.run()
    assert outcomes(worker) == [1, 1, 1, 1]


@virtual
async def test_arguments_that_cannot_be_copied_for_a_call_fail_its_items() -> None:
    async def run(items: list[int], rest: OfOne) -> list[int]:
        raise AssertionError

    worker = BatchWorker()
    task = worker.broker.task(batch=True, batch_size=2)(run)
    await task.kicker().with_task_id("chunk").kiq_chunk([0, 1, 2], "x")
    await worker.run()
    assert outcomes(worker) == [OSError, OSError, OSError]
    worker.assert_as_new()


@virtual
async def test_the_other_arguments_are_read_once_for_all_items() -> None:
    async def run(items: list[int], rest: Once) -> list[int]:
        return items

    READ.clear()
    worker = BatchWorker()
    task = worker.broker.task(batch=True, batch_size=2)(run)
    await task.kicker().with_task_id("chunk").kiq_chunk([0, 1, 2], "x")
    await worker.run()
    assert outcomes(worker) == [0, 1, 2]
    assert READ == ["x"]


@virtual
async def test_the_timeout_label_limits_each_call() -> None:
    async def slow(items: list[int]) -> list[int]:
        await asyncio.sleep(items[0])
        return items

    worker = worker_of(slow, batch_size=1)
    await send_chunk(worker, [1, 9, 1], timeout=3)
    await worker.run()
    assert outcomes(worker) == [1, TimeoutError, 1]


@virtual
async def test_the_priority_label_counts_for_each_item() -> None:
    worker = worker_of(doubled, batch_size=1, max_async_tasks=1)
    worker.in_call = Gate()
    await worker.send(9)
    await send_chunk(worker, [0, 1], "low")
    await send_chunk(worker, [5, 6], "high", priority=3)
    worker.broker.end()
    listening = worker.listen()
    await worker.until_held(5)
    worker.in_call.opened.set()
    await listening
    assert worker.calls[0] == [9]
    assert worker.calls[1:3] == [[5], [6]]


@pytest.mark.parametrize(
    ("size", "buffered", "count"), [(1, 1, 50), (3, 3, 10), (4, 9, 100), (100, 100, 7)]
)
def test_a_chunk_larger_than_what_a_task_may_hold_runs_to_its_end(
    size: int, buffered: int, count: int
) -> None:
    async def main() -> None:
        worker = worker_of(
            doubled, batch_size=size, batch_max_buffered=buffered, max_async_tasks=1
        )
        await send_chunk(worker, [*range(count)])
        await send_chunk(worker, [*range(count)], "second")
        held: list[int] = []
        listening = asyncio.ensure_future(worker.run())
        while not listening.done():
            held.append(worker.receiver.batch_statistics().buffered)
            await asyncio.sleep(0)
        assert max(held) <= buffered
        assert outcomes(worker) == [2 * item for item in range(count)]
        assert outcomes(worker, "second") == outcomes(worker)
        worker.assert_as_new()

    run_virtual(main())


# -- What it holds -------------------------------------------------------------------


@virtual
async def test_it_holds_its_delivery_slot_until_each_item_has_a_place() -> None:
    worker = worker_of(doubled, batch_size=2, batch_max_buffered=4, max_async_tasks=2)
    worker.in_call = Gate()
    await send_chunk(worker, [*range(7)])
    listening = worker.listen()
    await worker.until_held(4)
    assert worker.receiver.batch_statistics().waiting == 3
    # One reads on.
    assert worker.free_deliveries == 2 - 1 - 1
    worker.in_call.opened.set()
    await asyncio.sleep(1)
    assert worker.free_deliveries == 2 - 1
    worker.finish.set()
    await listening
    assert outcomes(worker) == [2 * item for item in range(7)]
    worker.assert_as_new()


@virtual
async def test_it_holds_its_delivery_slot_until_the_last_item_has_one() -> None:
    """Also where some of its items fit in no batch."""
    ends = [asyncio.Event() for _ in range(4)]

    async def body(items: list[int]) -> list[int]:
        await ends[items[0]].wait()
        return items

    def none_of_nine(item: int, rest: str) -> int:
        return 1 // (9 - item)

    worker = worker_of(
        body,
        batch_size=1,
        batch_max_buffered=2,
        max_async_tasks=2,
        batch_key=none_of_nine,
    )
    await send_chunk(worker, [0, 1, 2, 9, 3])
    listening = worker.listen()
    await worker.until_held(2)
    free: list[int] = []
    for end in ends:
        await asyncio.sleep(1)
        free.append(worker.free_deliveries)  # one of two reads on
        end.set()
    worker.finish.set()
    await listening
    assert free == [0, 0, 1, 1]
    assert outcomes(worker) == [0, 1, 2, ZeroDivisionError, 3]
    worker.assert_as_new()


@virtual
async def test_its_time_is_that_of_the_calls_together_and_of_an_item_that_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = asyncio.get_running_loop().time
    monkeypatch.setattr("time.perf_counter", clock)

    async def body(items: list[int]) -> list[int]:
        await asyncio.sleep(items[0])
        return items

    worker = worker_of(body, batch_size=2)
    await send_chunk(worker, [1, 2, 3, 4])
    await worker.run()
    result = worker.backend.results["chunk"]
    assert result.execution_time == 1 + 3
    assert [each.execution_time for each in result.return_value] == [1, 1, 3, 3]


@pytest.mark.parametrize("is_recording", [True, False])
@virtual
async def test_its_hooks_may_wait_for_all_that_is_held(is_recording: bool) -> None:
    """But themselves."""

    class Waiting(TaskiqMiddleware):
        async def post_save(self, message: TaskiqMessage, result: Any) -> None:
            await worker.receiver.runtime.wait_idle(FlushReason.MANUAL)
            waited.append(message.task_id)

    waited: list[str] = []
    worker = worker_of(doubled, Waiting(), batch_size=2, is_recording=is_recording)
    await send_chunk(worker, [0, 1, 2])
    await worker.run()
    assert waited == ["chunk"]
    assert worker.broker.acked == ["chunk"]
    worker.assert_as_new()


def worker_with_one_place(**options: Any) -> tuple[BatchWorker, Gate, Any, list[float]]:
    """Make a worker whose batch task may hold one item, and one of a plain task.

    :returns: what its calls wait for, the plain task and when that was run, too.
    """
    worker = worker_of(
        doubled,
        **{
            "batch_size": 1,
            "batch_max_buffered": 1,
            "batch_timeout": 1,
            "max_async_tasks": 1,
            **options,
        },
    )
    worker.in_call = gate = Gate()
    done_at: list[float] = []

    @worker.broker.task
    async def plain() -> None:
        done_at.append(asyncio.get_running_loop().time())

    return worker, gate, plain, done_at


@virtual
async def test_others_are_read_while_its_items_wait_for_long() -> None:
    worker, gate, plain, done_at = worker_with_one_place()
    await send_chunk(worker, [0, 1])
    await plain.kiq()
    listening = asyncio.ensure_future(worker.run())
    await gate.reached.wait()
    await asyncio.sleep(0.5)
    assert worker.free_deliveries == 0
    await asyncio.sleep(1)
    assert worker.broker.delivered == ["chunk", worker.broker.delivered[-1]]
    gate.opened.set()
    await listening
    assert len(done_at) == 1
    assert outcomes(worker) == [0, 2]


@virtual
async def test_what_waits_behind_its_items_makes_way_in_its_turn() -> None:
    """One way for all of them: they hold one slot together."""
    options = {"batch_concurrency": 1, "max_async_tasks": 2}
    worker, gate, plain, done_at = worker_with_one_place(**options)
    await send_chunk(worker, [*range(10)])
    for item in (100, 101):
        await worker.send(item)
        await plain.kiq()
    listening = asyncio.ensure_future(worker.run())
    await asyncio.sleep(5)
    gate.opened.set()
    await listening
    assert done_at == [1, 2]
    assert outcomes(worker) == [2 * item for item in range(10)]


@virtual
async def test_each_chunk_that_waits_for_long_makes_way_in_one_timeout() -> None:
    worker, gate, *_ = worker_with_one_place()
    for number in range(3):
        await send_chunk(worker, [*range(9)], f"chunk {number}")
    await send_chunk(worker, [0], "last")
    listening = worker.listen()
    await gate.reached.wait()
    for read in (1, 2, 3, 4):
        await asyncio.sleep(0.5)
        assert len(worker.broker.delivered) == read
        await asyncio.sleep(0.5)
    gate.opened.set()
    worker.finish.set()
    await listening
    assert sorted(worker.broker.acked) == ["chunk 0", "chunk 1", "chunk 2", "last"]


@virtual
async def test_one_that_is_being_saved_keeps_the_place_of_one_item() -> None:
    gate = Gate()
    worker = worker_of(
        doubled, batch_size=2, batch_max_buffered=2, backend=GatedBackend(gate)
    )
    await send_chunk(worker, [0, 1, 2])
    await send_chunk(worker, [3, 4], "next")
    worker.broker.end()
    listening = worker.listen()
    await gate.reached.wait()
    await asyncio.sleep(1)
    assert worker.receiver.batch_statistics().buffered >= 1
    gate.opened.set()
    await listening
    worker.assert_as_new()


# -- Failures ------------------------------------------------------------------------


@virtual
async def test_an_item_that_fits_in_no_batch_fails_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = BatchWorker()
    seen: list[list[int]] = []

    @worker.broker.task(batch=True, batch_size=5)
    async def typed(items: list[int]) -> list[int]:
        seen.append(items)
        return items

    await typed.kicker().with_task_id("chunk").kiq_chunk([1, "no", 3, None])  # type: ignore[list-item]
    await worker.run()
    assert seen == [[1, 3]]
    assert [o if isinstance(o, int) else o.__name__ for o in outcomes(worker)] == [
        1,
        "ValidationError",
        3,
        "ValidationError",
    ]
    assert "Cannot run 2 of 4 items of task" in caplog.text
    assert "item 1: ValidationError" in caplog.text
    times = [
        each.execution_time for each in worker.backend.results["chunk"].return_value
    ]
    assert times[1] == times[3] == 0


@pytest.mark.parametrize("more", [0, 2])
@virtual
async def test_one_of_which_no_item_fits_is_settled_all_the_same(
    more: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = BatchWorker()
    count = 10 + more

    @worker.broker.task(batch=True)
    async def typed(items: list[int]) -> list[int]:
        raise AssertionError

    await typed.kicker().with_task_id("chunk").kiq_chunk(["no"] * count)  # type: ignore[list-item]
    await worker.run()
    assert len(outcomes(worker)) == count
    assert worker.broker.acked == ["chunk"]
    assert "item 9: " in caplog.text
    assert ("; and 2 more" in caplog.text) is bool(more)
    assert ("; and " in caplog.text) is bool(more)
    assert "item 10: " not in caplog.text
    worker.assert_as_new()


@virtual
async def test_one_without_items_has_a_result_without_items() -> None:
    worker = worker_of(doubled)
    await send_chunk(worker, [])
    await worker.run()
    assert outcomes(worker) == []
    assert worker.calls == []
    assert worker.broker.acked == ["chunk"]
    worker.assert_as_new()


@virtual
async def test_culprits_are_isolated_among_items_and_messages() -> None:
    def fragile(items: list[int]) -> list[int]:
        if 3 in items:
            raise ValueError(3)
        return items

    worker = worker_of(fragile, batch_size=8, batch_isolate_errors=True)
    await worker.send(7)
    await send_chunk(worker, [1, 2, 3, 4])
    await worker.run()
    assert outcomes(worker) == [1, 2, ValueError, 4]
    assert worker.values["0"] == 7


@virtual
async def test_failing_items_are_named_by_their_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = worker_of(doubled)
    await send_chunk(worker, [1])

    def body(items: list[Any]) -> list[Any]:
        return [ValueError("odd") if item % 2 else item for item in items]

    other = worker_of(body)
    await send_chunk(other, [0, 1, 2])
    await other.run()
    assert "1 of 3 messages failed alone: ID chunk:1: ValueError: odd" in (caplog.text)


@virtual
async def test_failed_items_are_neither_retried_nor_told_to_on_error() -> None:
    def body(items: list[Any]) -> list[Any]:
        return [ValueError(item) for item in items]

    worker = worker_of(
        body, SimpleRetryMiddleware(default_retry_label=True), batch_size=2
    )
    await send_chunk(worker, [0, 1])
    await worker.run()
    assert outcomes(worker) == [ValueError, ValueError]
    assert "on_error" not in worker.steps("chunk")
    assert not worker.broker.take_all()


class Refusing(TaskiqMiddleware):
    """Fails as often as it is told to, before the task."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self.times -= 1
        if self.times >= 0:
            raise ConnectionError("not now")
        return message


@virtual
async def test_one_that_fails_as_a_whole_is_retried_as_a_whole() -> None:
    worker = worker_of(
        doubled,
        Refusing(),
        SimpleRetryMiddleware(default_retry_label=True),
        batch_size=2,
    )
    await send_chunk(worker, [0, 1, 2])
    listening = worker.listen()
    await asyncio.sleep(1)
    worker.finish.set()
    await listening
    assert outcomes(worker) == [0, 2, 4]
    assert worker.broker.acked == ["chunk", "chunk"]


@virtual
async def test_a_hook_that_fails_fails_the_whole_of_it() -> None:
    worker = worker_of(doubled, Refusing())
    await send_chunk(worker, [0, 1, 2])
    await worker.run()
    assert isinstance(worker.errors["chunk"], ConnectionError)
    assert worker.calls == []
    worker.assert_as_new()


class Mangling(TaskiqMiddleware):
    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        message.kwargs[ITEMS] = "abc"
        return message


@virtual
async def test_what_a_hook_made_of_its_items_fails_the_whole_of_it() -> None:
    worker = worker_of(doubled, Mangling())
    await send_chunk(worker, [0])
    await worker.run()
    assert str(worker.errors["chunk"]) == f"{ITEMS} must be a list, got 'abc'"


@virtual
async def test_in_place_it_fails_the_whole_of_it_too() -> None:
    broker = InMemoryBroker(await_inplace=True).with_middlewares(Mangling())

    @broker.task(batch=True)
    async def work(items: list[int]) -> list[int]:
        raise AssertionError

    result = await (await work.kiq_chunk([0])).get_result()
    assert str(result.error) == f"{ITEMS} must be a list, got 'abc'"
    broker.executor.shutdown()


@virtual
async def test_the_label_alone_makes_no_chunk() -> None:
    worker = worker_of(doubled)
    await worker.send(4, batch_chunk="7")
    await worker.run()
    assert worker.values == {"0": 8}


@virtual
async def test_a_result_that_cannot_be_saved_is_not_acknowledged() -> None:
    backend = RecordingBackend()
    backend.failing.add("chunk")
    worker = worker_of(doubled, backend=backend)
    await send_chunk(worker, [0, 1])
    await worker.run()
    assert worker.broker.acked == []
    worker.assert_as_new()


# -- What the task says of an item ---------------------------------------------------


async def decide(context: BatchContext, items: list[Any]) -> list[Any]:
    for index, item in enumerate(items):
        match item:
            case "set":
                context.set_result(index, "was set")
            case "fail":
                context.fail(index, ValueError(item))
            case "reject":
                context.reject(index)
            case "nack":
                context.nack(index)
            case "dead":
                context.dead_letter(index, reason="odd")
            case "requeue":
                await context.requeue(index)
            case _:
                pass
    return items


@virtual
async def test_what_the_task_says_of_an_item_is_its_outcome_and_no_other_ones() -> None:
    worker = worker_of(act=decide)
    words = ["ok", "set", "fail", "reject", "nack", "dead", "requeue"]
    await send_chunk(worker, words)
    await worker.send("single")
    await worker.run()
    ok, was_set, *errors = outcomes(worker)
    assert (ok, was_set) == ("ok", "was set")
    assert [each.__name__ for each in errors] == [
        "ValueError",
        "TaskRejectedError",
        "ChunkItemError",
        "DeadLetteredError",
        "ChunkItemError",
    ]
    assert worker.values["0"] == "single"
    assert not worker.broker.take_all()  # nothing was sent again
    items = worker.backend.results["chunk"].return_value
    for index, wish in (
        (4, "to give it back"),
        (6, "for no result, or for another run"),
    ):
        assert str(items[index].error) == (
            f"The task asked {wish}, and item {index} of chunk chunk has no message of "
            "its own for that: send the item once more"
        )


@pytest.mark.parametrize("wish", ["nack", "requeue", "reject"])
def test_what_the_task_says_of_all_is_done_for_messages_and_told_of_items(
    wish: str,
) -> None:
    async def act(context: BatchContext, items: list[Any]) -> Any:
        if len(items) > 1:
            returned = getattr(context, wish)()
            if returned is not None:
                await returned
        return items

    async def main() -> None:
        worker = worker_of(act=act, batch_size=3)
        await worker.send(7)
        await send_chunk(worker, [0, 1])
        listening = worker.listen()
        await asyncio.sleep(1)
        worker.finish.set()
        await listening
        error = TaskRejectedError if wish == "reject" else ChunkItemError
        assert outcomes(worker) == [error, error]
        if wish == "reject":
            assert isinstance(worker.errors["0"], TaskRejectedError)
        else:
            # It came again, by itself, and left with the stop.
            assert worker.calls == [[7, 0, 1], [7]]
            assert worker.values["0"] == 7

    run_virtual(main())


@virtual
async def test_the_message_of_an_item_is_what_kiq_would_have_sent() -> None:
    seen: list[TaskiqMessage] = []

    async def act(context: BatchContext, items: list[Any]) -> list[Any]:
        seen.extend(context.messages)
        return items

    worker = worker_of(act=act, batch_size=2)
    await send_chunk(worker, [5, 6], rest="x", tenant="a")
    await worker.run()
    assert [(m.task_id, m.args, m.kwargs) for m in seen] == [
        ("chunk:0", [5], {"rest": "x"}),
        ("chunk:1", [6], {"rest": "x"}),
    ]
    assert [m.labels for m in seen] == [
        {"tenant": "a", "batch_chunk": 2, "batch_chunk_index": 0},
        {"tenant": "a", "batch_chunk": 2, "batch_chunk_index": 1},
    ]


@virtual
async def test_each_item_may_be_acknowledged_and_the_message_is_with_the_last() -> None:
    acked: list[list[str]] = []

    async def act(context: BatchContext, items: list[Any]) -> list[Any]:
        for index in range(context.size):
            await context.ack(index)
            acked.append(list(worker.broker.acked))
        return items

    worker = worker_of(act=act, batch_size=2)
    await send_chunk(worker, [0, 1, 2, 3], ack_type="manual")
    await worker.run()
    assert acked == [[], [], [], ["chunk"]]
    assert worker.broker.acked == ["chunk"]


@virtual
async def test_by_hand_is_not_acknowledged_what_the_task_has_not() -> None:
    async def act(context: BatchContext, items: list[Any]) -> list[Any]:
        await context.ack(0)
        return items

    worker = worker_of(act=act, batch_size=2)
    await send_chunk(worker, [0, 1], ack_type="manual")
    await worker.run()
    assert worker.broker.acked == []
    assert outcomes(worker) == [0, 1]


@virtual
async def test_by_hand_an_item_that_never_runs_needs_no_acknowledgement() -> None:
    worker = BatchWorker()

    @worker.broker.task(batch=True, batch_size=2)
    async def typed(items: list[int], context: CurrentBatch) -> list[int]:
        await context.ack()
        return items

    kicker: Any = typed.kicker().with_labels(ack_type="manual")
    await kicker.with_task_id("some").kiq_chunk([1, "no"])
    await kicker.with_task_id("none").kiq_chunk(["a", "b"])
    await worker.run()
    assert sorted(worker.broker.acked) == ["none", "some"]
    assert worker.steps("none")[-2:] == ["post_save", "ack"]


@pytest.mark.parametrize(
    ("ack_type", "before"),
    [
        ("when_received", ["pre_execute"]),
        ("when_executed", ["pre_execute"]),
        ("when_saved", ["pre_execute", "post_execute", "save", "post_save"]),
    ],
)
def test_it_is_acknowledged_once_at_its_moment(
    ack_type: str, before: list[str]
) -> None:
    async def main() -> None:
        worker = worker_of(doubled, batch_size=2)
        await send_chunk(worker, [0, 1, 2], ack_type=ack_type)
        await worker.run()
        steps = worker.steps("chunk")
        assert steps[: steps.index("ack")] == before
        assert steps.count("ack") == 1

    run_virtual(main())


# -- Stop, abort, redelivery -----------------------------------------------------------


@virtual
async def test_a_stop_lets_it_end_within_its_time() -> None:
    worker = worker_of(doubled, batch_size=4)
    await send_chunk(worker, [0, 1, 2])
    listening = worker.listen()
    await worker.until_held(3)
    worker.finish.set()
    await listening
    assert worker.calls == [[0, 1, 2]]
    assert worker.broker.acked == ["chunk"]


@virtual
async def test_one_that_is_done_in_part_is_left_as_a_whole() -> None:
    async def body(items: list[int]) -> list[int]:
        if items[0] == 2:
            await asyncio.sleep(FOREVER)
        return items

    worker = worker_of(body, batch_size=2, wait_tasks_timeout=5)
    await send_chunk(worker, [0, 1, 2, 3, 4])
    listening = worker.listen()
    await worker.until_held(3)
    await asyncio.sleep(1)
    worker.finish.set()
    await listening
    assert worker.calls[:2] == [[0, 1], [2, 3]]
    assert worker.broker.acked == []
    assert worker.backend.saved == []
    worker.assert_as_new()


@virtual
async def test_delivered_again_all_of_its_items_run_again() -> None:
    worker = worker_of(doubled, batch_size=2)
    await send_chunk(worker, [0, 1])
    [message] = worker.broker.take_all()
    for _ in range(2):
        worker.broker.queue.put_nowait(message)
    await worker.run()
    assert worker.calls == [[0, 1], [0, 1]]
    assert worker.broker.acked == ["chunk", "chunk"]


@virtual
async def test_one_that_comes_again_is_told_of_until_the_first_is_settled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = worker_of(doubled, batch_size=10, batch_timeout=3)
    await send_chunk(worker, [0, 1])
    [message] = worker.broker.take_all()
    listening = worker.listen()
    told: list[int] = []
    for _ in range(3):
        worker.broker.queue.put_nowait(message)
        await asyncio.sleep(2)
        told.append(len(complaints(caplog)))
    worker.finish.set()
    await listening
    assert worker.calls == [[0, 1, 0, 1], [0, 1]]
    assert told == [0, 1, 1]
    [complaint] = complaints(caplog)
    assert "1 messages of task work were delivered again while" in complaint
    assert "more than once: chunk." in complaint


@virtual
async def test_only_one_that_fails_as_a_whole_is_put_aside() -> None:
    broker = InMemoryBroker().with_dead_letters()
    hook = Refusing(0)
    broker.add_middlewares(hook)

    @broker.task(batch=True, on_failure="dead_letter")
    async def work(items: list[int]) -> list[int | Exception]:
        return [ValueError(item) for item in items]

    in_part = await work.kiq_chunk([0, 1])
    await broker.wait_all()
    assert not (await in_part.wait_result(timeout=5)).is_err
    assert not letters_of(broker)
    hook.times = 1
    whole = await work.kiq_chunk([2, 3])
    await broker.wait_all()
    assert isinstance((await whole.wait_result(timeout=5)).error, ConnectionError)
    assert letters_of(broker) == [whole.task_id]
    broker.executor.shutdown()


def letters_of(broker: InMemoryBroker) -> list[str]:
    store = broker.dead_letter_store
    assert isinstance(store, InMemoryDeadLetters)
    return [letter.task_id for letter in store.letters]


class Leased(QueueBroker):
    """Takes messages back after two seconds, unless their lease is renewed."""

    def __init__(self) -> None:
        super().__init__()
        self.renewed: list[float] = []

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            assert isinstance(message, AckableMessage)
            message.lease = 2.0
            message.extend = self.renew
            yield message

    def renew(self) -> None:
        self.renewed.append(asyncio.get_running_loop().time())


@virtual
async def test_its_lease_is_renewed_once_for_all_until_it_is_settled() -> None:
    async def slow(items: list[int]) -> list[int]:
        await asyncio.sleep(2.5)
        return items

    broker = Leased()
    worker = worker_of(slow, broker=broker, batch_size=2, batch_concurrency=1)
    await send_chunk(worker, [0, 1, 2, 3])
    await worker.run()
    assert broker.renewed == [1, 2, 3, 4, 5]
    assert broker.acked == ["chunk"]


class Counted(QueueBroker):
    """Says of each message that it was delivered so often."""

    deliveries = 1

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            assert isinstance(message, AckableMessage)
            message.deliveries = self.deliveries
            yield message


@virtual
async def test_one_that_was_delivered_too_often_runs_none_of_its_items() -> None:
    broker = Counted()
    broker.deliveries = 4
    worker = worker_of(doubled, broker=broker)

    @worker.broker.task(batch=True, max_deliveries=3)
    async def limited(items: list[int]) -> list[int]:
        raise AssertionError

    await limited.kicker().with_task_id("chunk").kiq_chunk([0, 1])
    await worker.run()
    assert isinstance(worker.errors["chunk"], MaxDeliveriesError)


@virtual
async def test_a_suspect_runs_in_smaller_parts_until_its_killer_is_alone() -> None:
    broker = Counted()
    broker.message_capabilities = ("deliveries",)  # type: ignore[attr-defined]
    broker.deliveries = 3
    worker = worker_of(doubled, broker=broker, batch_size=4)
    await send_chunk(worker, [0, 1, 2, 3])
    await worker.run()
    assert sorted(worker.calls) == [[0], [1], [2], [3]]
    assert outcomes(worker) == [0, 2, 4, 6]


@pytest.mark.parametrize("room", [4, 2])
@virtual
async def test_an_aborted_one_runs_no_more_items_and_ends_as_aborted(room: int) -> None:
    """Whether there is room for more items than those that run, or not."""
    calls: list[list[int]] = []
    first = Gate()
    broker = InMemoryBroker()

    @broker.task(batch=True, batch_size=2, batch_concurrency=1, batch_max_buffered=room)
    async def work(items: list[int]) -> list[int]:
        calls.append(items)
        await first.pass_through()
        return items

    handle = await work.kiq_chunk([*range(7)])
    single = await work.kiq(100)
    await first.reached.wait()
    assert await handle.abort()
    await asyncio.sleep(1)
    first.opened.set()
    result = await handle.wait_result(timeout=5)
    assert isinstance(result.error, TaskAbortedError)
    await broker.wait_all()
    assert (await single.wait_result(timeout=5)).return_value == 100
    assert calls == [[0, 1], [100]]
    assert broker.batch_statistics is not None
    assert broker.batch_statistics().is_idle
    broker.executor.shutdown()


@pytest.mark.parametrize("room", [4, 2])
@virtual
async def test_of_an_aborted_one_only_what_runs_with_others_goes_on(room: int) -> None:
    """Others are read as soon as nothing of it waits, in a batch or for a place; what
    was aborted stays so when its mark has ended."""
    worker = worker_of(
        doubled,
        batch_size=2,
        batch_max_buffered=room,
        batch_concurrency=1,
        max_async_tasks=2,
    )
    gate = worker.in_call = Gate()
    store = InMemoryAborts()
    store.aborts = Aborts(10, asyncio.get_running_loop().time)
    store.aborts.is_current = True
    worker.broker.with_abort_store(store)
    await worker.send(100)
    await send_chunk(worker, [*range(6)])
    listening = worker.listen()
    await worker.until_held(room)
    await gate.reached.wait()
    free = [worker.free_deliveries]
    await store.mark("chunk")
    await asyncio.sleep(1)
    free.append(worker.free_deliveries)
    assert free == [0, 1]
    await asyncio.sleep(10)
    gate.opened.set()
    worker.finish.set()
    await listening
    assert worker.calls == [[100, 0]]
    assert worker.values["0"] == 200
    assert outcomes(worker) == [0, *[TaskAbortedError] * 5]
    items = worker.backend.results["chunk"].return_value[1:]
    assert {(each.error.task_id, each.execution_time) for each in items} == {
        ("chunk", 0)
    }
    worker.assert_as_new()


@virtual
async def test_an_aborted_one_ends_at_once_whatever_its_items_wait_for() -> None:
    broker = InMemoryBroker()

    @broker.task(batch=True, batch_size=10, batch_timeout=60)
    async def work(items: list[int]) -> list[int]:
        raise NotImplementedError

    handle = await work.kiq_chunk([*range(3)])
    await asyncio.sleep(1)
    assert await handle.abort()
    result = await handle.wait_result(timeout=5)
    assert isinstance(result.error, TaskAbortedError)
    assert asyncio.get_running_loop().time() == 1
    broker.executor.shutdown()


# -- Other entrances -------------------------------------------------------------------


@virtual
async def test_a_callback_returns_when_it_is_settled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = worker_of(doubled, batch_size=2)
    await send_chunk(worker, [0, 1])
    [message] = worker.broker.take_all()
    await worker.receiver.callback(worker.ackable(message.message, "chunk"))
    assert outcomes(worker) == [0, 2]
    assert worker.broker.acked == ["chunk"]
    assert complaints(caplog) == []
    await asyncio.sleep(0)
    worker.assert_as_new()


@virtual
async def test_a_callback_that_is_cancelled_gives_its_items_up() -> None:
    worker = worker_of(doubled, batch_size=3)
    worker.in_call = Gate()
    await send_chunk(worker, [0, 1, 2, 3, 4])
    [message] = worker.broker.take_all()
    delivery = worker.ackable(message.message, "chunk")
    callback = asyncio.ensure_future(worker.receiver.callback(delivery))
    await worker.in_call.reached.wait()
    callback.cancel()
    await asyncio.wait([callback])
    assert callback.cancelled()
    worker.in_call.opened.set()
    await asyncio.sleep(1)
    assert worker.calls == [[0, 1, 2]]
    assert worker.broker.acked == []
    assert worker.backend.saved == []
    worker.assert_as_new()


@virtual
async def test_a_callback_that_is_cancelled_with_its_last_item_gives_it_up() -> None:
    callbacks: list[asyncio.Future[None]] = []

    async def act(context: BatchContext, items: list[int]) -> list[int]:
        callbacks[0].cancel()
        return items

    worker = worker_of(act=act, batch_size=2)
    await send_chunk(worker, [0, 1])
    [message] = worker.broker.take_all()
    delivery = worker.ackable(message.message, "chunk")
    callbacks.append(asyncio.ensure_future(worker.receiver.callback(delivery)))
    await asyncio.wait(callbacks)
    await asyncio.sleep(1)
    assert worker.calls == [[0, 1]]
    assert worker.broker.acked == worker.backend.saved == []
    worker.assert_as_new()


class SlowBackend(RecordingBackend):
    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        await asyncio.sleep(1)
        await super().set_result(task_id, result)


@virtual
async def test_in_place_each_item_is_a_batch_of_its_own() -> None:
    broker = InMemoryBroker(await_inplace=True)
    backend = SlowBackend()
    broker.with_result_backend(backend)
    calls: list[list[int]] = []

    @broker.task(batch=True, batch_timeout=FOREVER)
    async def work(items: list[int]) -> list[int]:
        with pytest.raises(RuntimeError, match="it is one of them"):
            await broker.wait_all()
        calls.append(items)
        return items

    handle = await work.kiq_chunk([0, 1, 2])
    assert await handle.is_ready()
    assert backend.saved == [handle.task_id]
    assert calls == [[0], [1], [2]]
    empty = await work.kiq_chunk([])
    assert await empty.is_ready()
    broker.executor.shutdown()


@virtual
async def test_a_task_may_send_one_and_wait_for_it() -> None:
    broker = InMemoryBroker()

    @broker.task(batch=True, batch_size=2)
    async def double(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    @broker.task
    async def total() -> int:
        handle = await double.kiq_chunk(range(4))
        result = await handle.wait_result(timeout=5)
        return sum(each.return_value for each in result.return_value)

    assert (await (await total.kiq()).wait_result(timeout=5)).return_value == 12
    broker.executor.shutdown()


@virtual
async def test_progress_is_reported_once_under_the_id_of_the_chunk() -> None:
    reported: list[str] = []

    async def set_progress(task_id: str, progress: Any) -> None:
        reported.append(task_id)

    async def get_progress(task_id: str) -> None: ...

    async def report(context: BatchContext, items: list[Any]) -> list[Any]:
        await ProgressTracker[Any](context).set_progress("HALF")
        return items

    worker = worker_of(act=report)
    worker.backend.set_progress = set_progress  # type: ignore[method-assign]
    worker.backend.get_progress = get_progress  # type: ignore[method-assign]
    await send_chunk(worker, [0, 1, 2])
    await worker.run()
    assert reported == ["chunk"]


# -- Random mixes --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Item:
    """What becomes of one item.

    :ivar seconds: how long a call takes whose first item it is.
    """

    key: int = 0
    fails: bool = False
    is_misfit: bool = False
    seconds: float = 0


@dataclasses.dataclass(frozen=True)
class Mix:
    """What is sent: a message for a tuple of one that is `single`, else a chunk.

    :ivar stop_at: seconds to the stop, `None` to run all of it.
    :ivar is_cut: whether the stop is a cancellation.
    :ivar grace: seconds that what runs has after a stop.
    """

    sent: tuple[tuple[bool, tuple[Item, ...]], ...]
    size: int
    spare: int
    timeout: float
    concurrency: int | None
    max_async_tasks: int
    prefetch: int
    stop_at: float | None
    is_cut: bool
    grace: float | None
    ack_type: str


ITEMS_DRAWN: Final = st.builds(
    Item,
    key=st.integers(0, 1),
    fails=st.booleans(),
    is_misfit=st.sampled_from([False, False, True]),
    seconds=st.sampled_from([0, 0, 0.5, 3]),
)
MIXES: Final = st.builds(
    Mix,
    sent=st.lists(
        st.one_of(
            st.tuples(st.just(True), st.tuples(ITEMS_DRAWN)),
            st.tuples(
                st.just(False),
                st.lists(ITEMS_DRAWN, max_size=8).map(tuple),
            ),
        ),
        max_size=6,
    ).map(tuple),
    size=st.integers(1, 4),
    spare=st.integers(0, 4),
    timeout=st.sampled_from([0, 0.2, 2.0]),
    concurrency=st.sampled_from([None, 1]),
    max_async_tasks=st.integers(1, 3),
    prefetch=st.integers(0, 2),
    stop_at=st.one_of(st.none(), st.floats(0, 6)),
    is_cut=st.booleans(),
    grace=st.sampled_from([None, 0.1, 2]),
    ack_type=st.sampled_from(["when_received", "when_executed", "when_saved"]),
)


class Playing:
    """One mix on a worker."""

    def __init__(self, mix: Mix) -> None:
        self.mix = mix
        self.items = [item for _, sent in mix.sent for item in sent]
        self.numbers: list[tuple[int, ...]] = []
        first = 0
        for _, sent in mix.sent:
            self.numbers.append(tuple(range(first, first + len(sent))))
            first += len(sent)
        self.worker = worker_of(
            self.call,
            batch_size=mix.size,
            batch_max_buffered=mix.size + mix.spare,
            batch_timeout=mix.timeout,
            batch_concurrency=mix.concurrency,
            batch_key=self.key,
            max_async_tasks=mix.max_async_tasks,
            max_prefetch=mix.prefetch,
            wait_tasks_timeout=None if mix.stop_at is None else mix.grace,
        )

    def key(self, number: int, rest: str) -> int:
        if self.items[number].is_misfit:
            raise LookupError(number)
        return self.items[number].key

    async def call(self, numbers: list[int]) -> list[Any]:
        await asyncio.sleep(self.items[numbers[0]].seconds)
        return [self.entry(number) for number in numbers]

    def entry(self, number: int) -> Any:
        return ValueError(number) if self.items[number].fails else number

    def expected(self, number: int) -> Any:
        if self.items[number].is_misfit:
            return LookupError
        return ValueError if self.items[number].fails else number

    async def run(self) -> None:
        worker, mix = self.worker, self.mix
        for place, (is_single, _) in enumerate(mix.sent):
            kicker: Any = worker.task.kicker().with_task_id(f"m{place}")
            kicker = kicker.with_labels(ack_type=mix.ack_type)
            if is_single:
                await kicker.kiq(self.numbers[place][0])
            else:
                await kicker.kiq_chunk(self.numbers[place])
        if mix.stop_at is None:
            await worker.run()
        else:
            loop = asyncio.get_running_loop()
            listening = worker.listen()
            stop = listening.cancel if mix.is_cut else worker.finish.set
            alarm = loop.call_later(mix.stop_at, stop)
            await asyncio.wait([listening])
            alarm.cancel()
        worker.assert_as_new()
        self.check()

    def check(self) -> None:
        worker = self.worker
        called = [number for call in worker.calls for number in call]
        assert len(called) == len(set(called)), "at most once in one delivery"
        calls: list[list[int]] = worker.calls
        for call in calls:
            assert 1 <= len(call) <= self.mix.size
            keys = {self.items[number].key for number in call}
            assert len(keys) == 1
            assert call == sorted(call), "in order of arrival"
        for place, (is_single, _) in enumerate(self.mix.sent):
            self.check_message(f"m{place}", self.numbers[place], is_single=is_single)

    def check_message(
        self, task_id: str, numbers: tuple[int, ...], *, is_single: bool
    ) -> None:
        steps = self.worker.steps(task_id)
        result = self.worker.backend.results.get(task_id)
        if result is None:
            assert self.mix.stop_at is not None
            assert "ack" not in steps or self.mix.ack_type == "when_received"
            return
        assert steps.count("save") == steps.count("ack") == 1
        if self.mix.ack_type == "when_saved":
            assert steps[-1] == "ack"
        entries: list[TaskiqResult[Any]] = (
            [result] if is_single else result.return_value
        )
        told = [
            each.return_value if each.error is None else type(each.error)
            for each in entries
        ]
        assert told == [self.expected(number) for number in numbers]


@given(MIXES)
def test_in_every_mix_each_item_has_one_outcome_and_each_message_one_end(
    mix: Mix,
) -> None:
    logging.disable(logging.CRITICAL)
    try:
        run_virtual(Playing(mix).run())
    finally:
        logging.disable(logging.NOTSET)
