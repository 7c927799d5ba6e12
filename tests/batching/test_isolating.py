"""Isolating: who is called again after an error, and who fails with it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from taskiq import (
    AcknowledgeType,
    BatchContext,
    InMemoryBroker,
    NoResultError,
    SimpleRetryMiddleware,
    TaskiqMiddleware,
)
from taskiq.exceptions import TaskRejectedError
from taskiq.receiver.isolation import most_extra_calls
from tests.support.poison import PoisonError, poisoned_by
from tests.support.recorders import alike
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import BatchWorker, results_of, run

# -- Isolation -------------------------------------------------------------------------


@virtual
async def test_the_time_of_an_isolated_message_is_that_of_all_calls_together(
    broker: InMemoryBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = asyncio.get_running_loop().time
    monkeypatch.setattr("time.perf_counter", clock)

    @broker.task(batch=True, batch_isolate_errors=True)
    async def failing(items: list[int]) -> None:
        await asyncio.sleep(1)
        raise ValueError("each of them")

    for result in await results_of(broker, failing, range(2)):
        assert result.execution_time == 3


def test_a_poison_item_fails_all_its_duplicates_and_nobody_else() -> None:
    worker = run(
        BatchWorker(
            poisoned_by("x"),
            batch_coalesce=str,
            batch_isolate_errors=True,
            batch_results="each",
        ),
        "a", "x", "b", "x", "a",
    )  # fmt: skip
    assert worker.values == {"0": "aa", "2": "bb", "4": "aa"}
    assert {i: str(error) for i, error in worker.errors.items()} == {"1": "x", "3": "x"}
    assert all(len(set(call)) == len(call) for call in worker.calls)
    worker.assert_settled_once(5)


def test_a_batch_of_duplicates_only_has_nobody_to_tell_apart() -> None:
    worker = run(
        BatchWorker(poisoned_by("x"), batch_coalesce=str, batch_isolate_errors=True),
        "x", "x", "x",
    )  # fmt: skip
    assert worker.calls == [["x"]]
    assert list(worker.errors) == ["0", "1", "2"]


def isolating(
    *poison: Any,
    isolate: bool | tuple[type[Exception], ...] = True,
    middlewares: Sequence[TaskiqMiddleware] = (),
    **limits: Any,
) -> BatchWorker:
    return BatchWorker(
        poisoned_by(*poison),
        *middlewares,
        batch_isolate_errors=isolate,
        batch_results="each",
        **limits,
    )


def test_one_bad_row_fails_alone_and_the_others_have_their_own_results() -> None:
    worker = run(isolating(37), *range(100))
    assert worker.values == {str(n): 2 * n for n in range(100) if n != 37}
    assert {i: repr(e) for i, e in worker.errors.items()} == {"37": "PoisonError(37)"}
    worker.assert_settled_once(100)
    assert worker.ids("on_error") == ["37"]
    assert sorted(worker.ids("post_execute")) == sorted(worker.ids("post_save"))
    [info] = worker.seen.ended
    assert info.isolation_calls == len(worker.calls) - 1 <= 9
    assert len(info.messages) == 100


def test_without_isolation_one_call_is_all_there_is() -> None:
    worker = run(isolating(1, isolate=False), 0, 1, 2)
    assert worker.calls == [[0, 1, 2]]
    assert list(worker.errors) == ["0", "1", "2"]
    assert worker.seen.ended[0].isolation_calls == 0


def test_a_call_of_one_item_is_not_repeated() -> None:
    worker = run(isolating(1), 1)
    assert worker.calls == [[1]]


def test_shared_results_are_those_of_the_call_that_succeeded() -> None:
    def body(items: list[int]) -> int:
        if 3 in items:
            raise PoisonError
        return sum(items)

    worker = run(BatchWorker(body, batch_isolate_errors=True), 1, 2, 3, 4)
    assert worker.calls == [[1, 2, 3, 4], [1, 2], [3], [4]]
    assert worker.values == {"0": 3, "1": 3, "3": 4}


def test_an_outage_costs_a_bounded_number_of_calls_and_fails_everybody() -> None:
    worker = run(isolating(*range(64)), *range(64))
    assert len(worker.calls) == 1 + most_extra_calls(64)
    assert len(worker.errors) == 64
    worker.assert_settled_once(64)


def test_a_list_of_the_wrong_length_is_no_error_to_isolate() -> None:
    worker = run(
        BatchWorker(lambda _: [1], batch_results="each", batch_isolate_errors=True),
        1, 2,
    )  # fmt: skip
    assert worker.calls == [[1, 2]]
    assert len(worker.errors) == 2


@pytest.mark.parametrize(
    ("error", "isolate", "is_isolated"),
    [
        (ValueError(), True, True),
        (ValueError(), (ValueError,), True),
        (UnicodeError(), (ValueError,), True),
        (KeyError(), (ValueError, OSError), False),
        (TimeoutError(), True, False),
        (asyncio.TimeoutError(), True, False),
        (TimeoutError(), (TimeoutError,), True),
        (NoResultError(), True, False),
        (NoResultError(), (Exception,), False),
        (TaskRejectedError(), True, False),
        (TaskRejectedError(), (Exception,), False),
        (SystemExit(), True, False),
        (asyncio.CancelledError(), True, False),
    ],
)
def test_only_the_errors_asked_for_are_isolated(
    error: BaseException,
    isolate: bool | tuple[type[Exception], ...],
    is_isolated: bool,
) -> None:
    def body(items: list[int]) -> list[int]:
        if 1 in items:
            raise error
        return items

    worker = run(
        BatchWorker(body, batch_results="each", batch_isolate_errors=isolate),
        0, 1, 2, 3,
    )  # fmt: skip
    assert (len(worker.calls) > 1) == is_isolated
    if is_isolated:
        assert worker.errors == {"1": error}
        assert worker.values == {"0": 0, "2": 2, "3": 3}
    elif isinstance(error, NoResultError):
        assert worker.backend.results == {}
    else:
        assert alike(worker.errors, dict.fromkeys("0123", error))
    assert sorted(worker.broker.acked) == list("0123")


def test_the_timeout_of_a_call_is_not_isolated_and_each_call_has_its_own() -> None:
    async def body(items: list[int]) -> list[int]:
        await asyncio.sleep(len(items))
        if items == [1]:
            raise PoisonError
        if 1 in items:
            raise PoisonError
        return items

    worker = BatchWorker(body, batch_results="each", batch_isolate_errors=True)
    run(worker, 0, 1, 2, 3, timeout=4.5)
    # Four, two, one... seconds: together more than one call may take.
    assert list(worker.errors) == ["1"]
    slow = BatchWorker(body, batch_results="each", batch_isolate_errors=True)
    run(slow, 0, 1, 2, 3, timeout=3.5)
    assert slow.calls == [[0, 1, 2, 3]]
    assert all(isinstance(e, TimeoutError) for e in slow.errors.values())
    assert len(slow.errors) == 4


def test_an_error_that_is_not_isolated_ends_the_search_among_its_items() -> None:
    def body(items: list[int]) -> list[int]:
        if len(items) == 4:
            raise ValueError
        if 0 in items:
            raise TimeoutError
        return items

    worker = run(
        BatchWorker(body, batch_results="each", batch_isolate_errors=True),
        0, 1, 2, 3,
    )  # fmt: skip
    assert worker.calls == [[0, 1, 2, 3], [0, 1], [2, 3]]
    assert {i: type(e) for i, e in worker.errors.items()} == {
        "0": TimeoutError,
        "1": TimeoutError,
    }
    assert worker.values == {"2": 2, "3": 3}


def test_a_request_for_no_result_in_a_later_call_is_granted_to_its_items() -> None:
    def body(items: list[int]) -> list[int]:
        if len(items) == 4:
            raise ValueError
        if 0 in items:
            raise NoResultError
        return items

    worker = run(
        BatchWorker(body, batch_results="each", batch_isolate_errors=True),
        0, 1, 2, 3,
    )  # fmt: skip
    assert worker.values == {"2": 2, "3": 3}
    assert worker.errors == {}
    assert sorted(worker.broker.acked) == list("0123")


def test_what_the_context_said_before_the_error_stays_and_is_not_called_again() -> None:
    async def act(context: BatchContext, items: list[Any]) -> list[Any]:
        for index, item in enumerate(items):
            if item == "done":
                context.set_result(index, "was done")
            if item == "failed":
                context.fail(index, KeyError("own"))
        if "bad" in items:
            raise PoisonError
        return [item.upper() for item in items]

    worker = BatchWorker(act=act, batch_isolate_errors=True, batch_results="each")
    run(worker, "done", "a", "bad", "failed", "b", "c")
    assert worker.calls[0] == ["done", "a", "bad", "failed", "b", "c"]
    assert worker.calls[1] == ["a", "bad"]
    assert sum("done" in call for call in worker.calls) == 1
    assert sum("failed" in call for call in worker.calls) == 1
    assert worker.values == {"0": "was done", "1": "A", "4": "B", "5": "C"}
    assert {i: type(e) for i, e in worker.errors.items()} == {
        "2": PoisonError,
        "3": KeyError,
    }
    worker.assert_settled_once(6)


def test_where_every_item_was_decided_before_the_error_nothing_is_looked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act(context: BatchContext, items: list[Any]) -> None:
        for index, item in enumerate(items):
            context.set_result(index, item)
        raise PoisonError

    worker = BatchWorker(act=act, batch_isolate_errors=True)
    run(worker, 1, 2)
    assert worker.calls == [[1, 2]]
    assert worker.values == {"0": 1, "1": 2}
    assert "looking for the culprits" not in caplog.text


def test_the_context_of_each_call_has_the_messages_of_that_call() -> None:
    seen: list[list[str]] = []

    async def act(context: BatchContext, items: list[Any]) -> None:
        seen.append([message.task_id for message in context.messages])
        assert context.size == len(items)
        if "x" in items:
            raise PoisonError

    run(BatchWorker(act=act, batch_isolate_errors=True), "a", "x", "c", "d")
    assert seen == [["0", "1", "2", "3"], ["0", "1"], ["0"], ["1"], ["2", "3"]]


# Of one item there is nothing to tell apart; the others have none, one, three, and
# nothing but culprits.
_SIZES_AND_CULPRITS = [
    (1, 0), (1, 1),
    (2, 0), (2, 1), (2, 2),
    (64, 0), (64, 1), (64, 3), (64, 64),
    (1000, 0), (1000, 1), (1000, 3), (1000, 1000),
]  # fmt: skip


def spread(count: int, size: int) -> set[int]:
    """Take items from all over a batch: its first one, its last, and between them."""
    if count == 1:
        return {size // 3}
    return {round(each * (size - 1) / max(count - 1, 1)) for each in range(count)}


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is logged: thousands of messages would take their time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("size", "culprits", "results"),
    [
        (size, culprits, results)
        for size, culprits in _SIZES_AND_CULPRITS
        for results in ("each", "shared")
        if size < 1000 or results == "each"  # what is large takes its time
    ],
)
@pytest.mark.parametrize("mix", ["", "context", "retry", "duplicates", "context retry"])
def test_exactly_the_poison_fails_and_the_rest_succeeds_once(
    size: int,
    culprits: int,
    results: str,
    mix: str,
) -> None:
    poison = spread(culprits, size)
    assert len(poison) == culprits
    succeeded: Counter[int] = Counter()

    def own_of(item: int) -> str | None:
        """What the function says through the context about an item, if anything."""
        if "context" not in mix or item in poison:
            return None
        return {3: "value", 5: "error"}.get(item % 7)

    async def act(context: BatchContext, items: list[int]) -> Any:
        for index, item in enumerate(items):
            if own_of(item) == "value":
                context.set_result(index, "own")
            elif own_of(item) == "error":
                context.fail(index, KeyError(item))
        if not poison.isdisjoint(items):
            raise PoisonError(items)
        succeeded.update(items)
        return list(items) if results == "each" else "shared"

    retry = SimpleRetryMiddleware(default_retry_count=2, default_retry_label=True)
    worker = BatchWorker(
        len,
        *([retry] if "retry" in mix else []),
        act=act,
        batch_size=2 * size,
        batch_results=results,
        batch_isolate_errors=True,
        batch_coalesce=str if "duplicates" in mix else None,
    )
    copies = 2 if "duplicates" in mix else 1
    sent = [*range(size)] * copies
    run(worker, *sent)

    extra_calls = len(worker.calls) - 1
    assert extra_calls <= (most_extra_calls(size) if size > 1 else 0)
    assert worker.seen.ended[0].isolation_calls == extra_calls
    decided = {item for item in range(size) if own_of(item)} if poison else set()
    assert succeeded == Counter(set(range(size)) - poison - decided)

    failed = {i for i, item in enumerate(sent) if item in poison}
    failed |= {i for i, item in enumerate(sent) if own_of(item) == "error"}
    if "retry" in mix:
        again = [worker.broker.queue.get_nowait() for _ in failed]
        assert worker.broker.queue.empty()
        assert sorted(int(m.task_id) for m in again if m) == sorted(failed)
        assert worker.errors == {}
    else:
        assert worker.errors.keys() == {str(number) for number in failed}
    for number, item in enumerate(sent):
        if number not in failed:
            value = item if results == "each" else "shared"
            expected = "own" if own_of(item) else value
            assert worker.values[str(number)] == expected
    assert sorted(worker.broker.acked, key=int) == [str(i) for i in range(len(sent))]
    assert len(worker.backend.saved) == len(set(worker.backend.saved))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("ack_type", list(AcknowledgeType))
@pytest.mark.parametrize("size", [64, 1000])
def test_messages_are_acknowledged_at_their_moment_around_all_calls_of_an_isolation(
    ack_type: AcknowledgeType,
    size: int,
) -> None:
    acked_in_calls: set[int] = set()

    async def act(context: BatchContext, items: list[int]) -> list[int]:
        acked_in_calls.add(len(worker.broker.acked))
        if size // 3 in items:
            raise PoisonError
        if ack_type is AcknowledgeType.MANUAL:
            await context.ack()
        return items

    worker = BatchWorker(
        act=act,
        batch_size=size,
        batch_results="each",
        batch_isolate_errors=True,
        ack_type=ack_type,
    )
    run(worker, *range(size))
    acked = {str(number) for number in range(size)}
    if ack_type is AcknowledgeType.MANUAL:
        # By the call each of them succeeded in.
        acked.remove(str(size // 3))
        assert len(acked_in_calls) > 2
    else:
        is_early = ack_type is AcknowledgeType.WHEN_RECEIVED
        assert acked_in_calls == {size if is_early else 0}
    assert sorted(worker.broker.acked) == sorted(acked)
    assert list(worker.errors) == [str(size // 3)]


class Blocking:
    """A function that fails for item 0, and waits in one call to be told to go on.

    :param blocks_at: the call that waits, of those after the first.
    """

    def __init__(self, blocks_at: int = 1) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.blocks_at = blocks_at
        self.calls = 0

    async def __call__(self, items: list[int]) -> list[int]:
        self.calls += 1
        if self.calls == 1 + self.blocks_at:
            self.reached.set()
            await self.go_on.wait()
        elif 0 in items:
            raise PoisonError
        return items


@pytest.mark.parametrize(
    ("size", "blocks_at"),
    [(2, 1), (4, 1), (64, 1), (64, 4), (64, 7), (1000, 1), (1000, 10)],
)
def test_a_stop_in_the_middle_of_isolation_leaves_all_unacked_and_nothing_behind(
    size: int,
    blocks_at: int,
) -> None:
    async def main() -> None:
        body = Blocking(blocks_at)
        worker = BatchWorker(
            body,
            batch_size=size,
            batch_isolate_errors=True,
            batch_results="each",
            wait_tasks_timeout=1,
            max_async_tasks=2,
        )
        await worker.send(*range(size))
        await worker.run()
        assert body.reached.is_set()
        assert len(worker.calls) == 1 + blocks_at
        assert worker.broker.acked == []
        assert worker.backend.results == {}
        worker.assert_as_new()

    run_virtual(main())


def test_isolation_holds_its_execution_slot_and_its_concurrency() -> None:
    async def main() -> None:
        body = Blocking()
        worker = BatchWorker(
            body,
            batch_size=2,
            batch_concurrency=1,
            batch_isolate_errors=True,
            batch_results="each",
            max_async_tasks=2,
        )
        await worker.send(0, 1, 2, 3)
        running = asyncio.ensure_future(worker.run())
        await body.reached.wait()
        await asyncio.sleep(1)
        statistics = worker.receiver.batch_statistics()
        assert statistics.running_calls == 1
        assert statistics.due_batches == 1
        # One for the call; one may be held by whoever starts the next batch.
        assert worker.free_slots <= 1
        assert worker.calls == [[0, 1], [0]]
        body.go_on.set()
        await running
        assert worker.calls == [[0, 1], [0], [1], [2, 3]]
        assert worker.free_slots == 2
        worker.assert_settled_once(4)

    run_virtual(main())


def test_isolation_is_told_in_the_log_and_names_the_culprits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(isolating(2), 0, 1, 2, 3)
    [told] = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert told.levelno == logging.ERROR
    assert "of task work: 1 of 4 messages failed alone, found with " in told.message
    assert told.message.endswith(": ID 2: PoisonError: 2")
    assert told.exc_info
    assert isinstance(told.exc_info[1], PoisonError)


def test_isolation_and_coalescing_work_for_sync_functions() -> None:
    broker = InMemoryBroker()
    calls: list[list[int]] = []

    @broker.task(batch=True, batch_isolate_errors=True, batch_coalesce=str)
    def work(items: list[int]) -> list[int]:
        calls.append(items)
        if 2 in items:
            raise PoisonError
        return items

    async def main() -> None:
        handles = [await work.kiq(item) for item in (1, 2, 3, 2)]
        await broker.wait_all()
        results = [await handle.get_result() for handle in handles]
        assert [result.is_err for result in results] == [False, True, False, True]
        await broker.shutdown()

    asyncio.run(main())
    assert calls[0] == [1, 2, 3]
