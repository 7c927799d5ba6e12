"""Keys, weights, duplicates and isolation, as a worker and a caller see them."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from taskiq import (
    BatchContext,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.acks import AcknowledgeType
from taskiq.batch import BatchInfo, FlushReason
from taskiq.depends.progress_tracker import ProgressTracker, TaskState
from taskiq.exceptions import (
    NoResultError,
    TaskiqBatchResultError,
    TaskRejectedError,
)
from taskiq.receiver import Receiver
from taskiq.receiver.isolation import most_extra_calls
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend, RecordingMiddleware
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from taskiq import AsyncTaskiqDecoratedTask, AsyncTaskiqTask

_FOREVER = 10_000.0


class BatchEnds(TaskiqMiddleware):
    """Keeps what the hooks are told when batches end."""

    def __init__(self) -> None:
        super().__init__()
        self.infos: list[BatchInfo] = []
        self.results: list[list[TaskiqResult[Any]]] = []

    def on_batch_end(
        self,
        batch: BatchInfo,
        results: Sequence[TaskiqResult[Any]],
    ) -> None:
        self.infos.append(batch)
        self.results.append(list(results))


class Worker:
    """A worker over a queue, one batch task, and all that happens to its messages.

    :param body: what the function does with its items, after writing them down.
    """

    def __init__(
        self,
        body: Callable[[list[Any]], Any] = lambda _: None,
        *middlewares: TaskiqMiddleware,
        receiver: dict[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        self.calls: list[list[Any]] = []
        self.backend = RecordingBackend()
        self.seen = RecordingMiddleware()
        self.ends = BatchEnds()
        self.broker = QueueBroker()
        self.broker.with_result_backend(self.backend)
        self.broker.add_middlewares(self.seen, self.ends, *middlewares)

        async def work(items: list[Any], rest: str = "") -> Any:
            self.calls.append(items)
            returned = body(items)
            return await returned if asyncio.iscoroutine(returned) else returned

        limits.setdefault("batch_timeout", _FOREVER)
        task: Any = self.broker.task("work", batch=True, **limits)(work)
        self.task: AsyncTaskiqDecoratedTask[..., Any] = task
        self.receiver = Receiver(
            self.broker,
            run_startup=False,
            **{"max_async_tasks": 4, **(receiver or {})},
        )

    async def send(self, *items: Any, rest: str = "", **labels: Any) -> None:
        """Send each item under its own text as id; a second "a" is "a'"."""
        for item in items:
            sent = self.broker.queue.qsize()
            kicker = self.task.kicker().with_labels(**labels)
            await kicker.with_task_id(f"{sent}").kiq(item, rest)

    async def run(self) -> None:
        """Listen until what was sent is done."""
        self.broker.end()
        await self.receiver.listen(asyncio.Event())

    @property
    def values(self) -> dict[str, Any]:
        """The value of each message that succeeded."""
        results = self.backend.results
        return {i: r.return_value for i, r in results.items() if not r.is_err}

    @property
    def errors(self) -> dict[str, BaseException | None]:
        """The error of each message that failed."""
        return {i: r.error for i, r in self.backend.results.items() if r.is_err}

    def ids(self, *hooks: str) -> list[str]:
        """Whom some hooks ran for."""
        return sorted(i for hook, i in self.seen.events if hook in hooks)

    def assert_settled_once(self, count: int) -> None:
        ids = [str(number) for number in range(count)]
        assert sorted(self.backend.saved, key=int) == ids
        assert sorted(self.broker.acked, key=int) == ids


def run(worker: Worker, *items: Any, **labels: Any) -> Worker:
    """Take items through a worker, in virtual time."""

    async def main() -> None:
        await worker.send(*items, **labels)
        await worker.run()

    run_virtual(main())
    return worker


class PoisonError(Exception):
    """What an item makes its call fail with."""


def poisoned_by(*poison: Any) -> Callable[[list[Any]], list[Any]]:
    """Make a function that doubles its items, and fails where one is poison."""

    def body(items: list[Any]) -> list[Any]:
        for item in items:
            if item in poison:
                raise PoisonError(item)
        return [item * 2 for item in items]

    return body


# -- Keys ---------------------------------------------------------------------------


def test_items_share_a_call_only_with_those_of_their_tenant() -> None:
    worker = run(
        Worker(batch_key=lambda item, _: item["tenant"]),
        *({"tenant": "ab"[n % 2], "n": n} for n in range(6)),
    )
    assert [[item["n"] for item in call] for call in worker.calls] == [
        [0, 2, 4],
        [1, 3, 5],
    ]
    worker.assert_settled_once(6)


def test_each_tenant_fills_a_batch_of_its_own() -> None:
    worker = run(
        Worker(batch_key=lambda item, _: item[0], batch_size=2),
        "a1", "b1", "a2", "b2", "a3",
    )  # fmt: skip
    assert sorted(worker.calls) == [["a1", "a2"], ["a3"], ["b1", "b2"]]
    reasons = [info.flush_reason for info in worker.ends.infos]
    assert reasons == [FlushReason.SIZE, FlushReason.SIZE, FlushReason.SHUTDOWN]


def test_a_key_sees_the_other_arguments_as_the_function_does() -> None:
    seen: list[tuple[Any, ...]] = []
    broker = InMemoryBroker()

    def key(item: int, *rest: Any, **named: Any) -> None:
        seen.append((item, rest, named))

    @broker.task(batch=True, batch_key=key)
    async def work(
        items: list[int],
        text: str,
        context: Annotated[BatchContext, TaskiqDepends()],
        *,
        urgent: bool = False,
    ) -> None: ...

    async def main() -> None:
        await work.kiq(1, "hello")  # type: ignore[call-overload] # the rest is injected
        await work.kiq(2, text="hello", urgent=True)  # type: ignore[call-overload] # so
        await broker.wait_all()

    run_virtual(main())
    assert seen == [
        (1, ("hello",), {"urgent": False}),
        (2, ("hello",), {"urgent": True}),
    ]


def test_a_key_is_of_the_item_as_it_was_cast() -> None:
    broker = InMemoryBroker()
    calls: list[list[int]] = []

    @broker.task(batch=True, batch_key=lambda item: item % 2)
    async def work(items: list[int]) -> None:
        calls.append(items)

    async def main() -> None:
        for item in (1, "2", 3, "4"):
            await work.kiq(item)  # type: ignore[arg-type] # as an old client sends it
        await broker.wait_all()

    run_virtual(main())
    assert calls == [[1, 3], [2, 4]]


def test_equal_arguments_are_still_asked_for_beside_equal_keys() -> None:
    worker = Worker(batch_key=lambda *_: "same")

    async def main() -> None:
        await worker.send(1, 2, rest="x")
        await worker.send(3, rest="y")
        await worker.send(4, rest="x", timeout=5)
        await worker.run()

    run_virtual(main())
    assert worker.calls == [[1, 2], [3], [4]]


def test_a_key_of_none_is_a_key_like_any_other() -> None:
    worker = run(Worker(batch_key=lambda item, _: item or None), 0, 1, 0, 1)
    assert worker.calls == [[0, 0], [1, 1]]


# -- Weights ------------------------------------------------------------------------


def tokens(**limits: Any) -> Worker:
    return Worker(batch_weight=len, batch_max_weight=10, **limits)


def test_an_item_that_would_overflow_starts_the_next_batch() -> None:
    worker = run(tokens(), "a" * 4, "b" * 4, "c" * 4, "d" * 2)
    assert worker.calls == [["aaaa", "bbbb"], ["cccc", "dd"]]
    reasons = [info.flush_reason for info in worker.ends.infos]
    assert reasons == [FlushReason.WEIGHT, FlushReason.SHUTDOWN]
    worker.assert_settled_once(4)


def test_a_batch_of_exactly_the_limit_leaves_at_once() -> None:
    worker = run(tokens(), "a" * 5, "b" * 5, "c")
    assert worker.calls == [["aaaaa", "bbbbb"], ["c"]]
    assert worker.ends.infos[0].flush_reason is FlushReason.WEIGHT


def test_an_item_heavier_than_the_limit_runs_alone() -> None:
    worker = run(tokens(), "a", "b" * 11, "c")
    assert worker.calls == [["a"], ["b" * 11], ["c"]]
    assert set(worker.values) == {"0", "1", "2"}


def test_size_bounds_a_batch_of_light_items() -> None:
    worker = run(tokens(batch_size=2), "", "", "")
    assert worker.calls == [["", ""], [""]]


def test_each_key_has_its_own_weight() -> None:
    worker = run(
        tokens(batch_key=lambda item, _: item[0]),
        "a" * 6, "b" * 6, "a" * 4, "b" * 4,
    )  # fmt: skip
    assert worker.calls == [["a" * 6, "a" * 4], ["b" * 6, "b" * 4]]


# -- What the task's own functions may do wrong -------------------------------------


async def coroutine() -> int:
    return 1


def raising(item: Any, *rest: Any) -> Any:
    if item == "bad":
        raise KeyError("tenant")
    return 1


def returning(value: object) -> Callable[..., Any]:
    """Make a function that gives `value` for the bad item."""

    def function(item: Any, *rest: Any) -> Any:
        return value if item == "bad" else 1

    return function


_HASHABLE = [
    (raising, KeyError, "'tenant'"),
    (
        returning([1]),
        TypeError,
        "{name} must return something hashable: unhashable type: 'list'",
    ),
    (
        lambda item, *_: coroutine() if item == "bad" else 1,
        TypeError,
        "{name} must return a plain value, not a coroutine",
    ),
]

_WEIGHING = [
    (raising, KeyError, "'tenant'"),
    (returning(None), TypeError, "batch_weight must return a number, got None"),
    (returning("3"), TypeError, "batch_weight must return a number, got '3'"),
    (returning(True), TypeError, "batch_weight must return a number, got True"),
    *(
        (
            returning(weight),
            ValueError,
            f"batch_weight must return a finite number, 0 or more, got {weight}",
        )
        for weight in (-1, float("nan"), float("inf"))
    ),
]


def _of_item(function: Callable[..., Any], item: Any) -> Any:
    return function(item)


@pytest.mark.parametrize(
    ("argument", "function", "kind", "text"),
    [
        *(("batch_key", *each) for each in _HASHABLE),
        *(("batch_coalesce", *each) for each in _HASHABLE),
        *(("batch_weight", *each) for each in _WEIGHING),
    ],
)
def test_an_item_that_cannot_be_placed_fails_alone(
    argument: str,
    function: Callable[..., Any],
    kind: type[Exception],
    text: str,
) -> None:
    limits: dict[str, Any] = {argument: function}
    if argument != "batch_key":
        limits[argument] = functools.partial(_of_item, function)
    if argument == "batch_weight":
        limits["batch_max_weight"] = 10
    retried: list[str] = []

    class OnError(TaskiqMiddleware):
        def on_error(self, message: TaskiqMessage, *_: Any) -> None:
            retried.append(message.task_id)

    worker = run(
        Worker(len, OnError(), batch_size=5, **limits),
        1, "bad", 3,
    )  # fmt: skip
    # Coalescing passes the equal good ones once.
    assert len(worker.calls) == 1
    assert "bad" not in worker.calls[0]
    assert list(worker.errors) == ["1"]
    assert type(worker.errors["1"]) is kind
    assert str(worker.errors["1"]) == text.format(name=argument)
    assert retried == ["1"]
    assert list(worker.values) == ["0", "2"]
    worker.assert_settled_once(3)


# -- Duplicates ---------------------------------------------------------------------


def test_equal_items_run_once_and_each_message_has_its_result_and_its_ack() -> None:
    worker = run(
        Worker(poisoned_by(), batch_coalesce=str, batch_results="each"),
        "a", "b", "a", "c", "a",
    )  # fmt: skip
    assert worker.calls == [["a", "b", "c"]]
    assert worker.values == {"0": "aa", "1": "bb", "2": "aa", "3": "cc", "4": "aa"}
    worker.assert_settled_once(5)
    assert worker.ids("post_save") == ["0", "1", "2", "3", "4"]
    [info] = worker.ends.infos
    assert [message.task_id for message in info.messages] == ["0", "1", "2", "3", "4"]


def test_every_duplicate_has_a_result_object_of_its_own() -> None:
    worker = run(Worker(batch_coalesce=str), "a", "a")
    first, second = worker.ends.results[0]
    assert first is not second
    assert first.labels is not second.labels


def test_the_first_of_equal_items_stands_for_them() -> None:
    worker = run(
        Worker(batch_coalesce=lambda item: item["id"]),
        {"id": 1, "n": 0}, {"id": 2, "n": 1}, {"id": 1, "n": 2},
    )  # fmt: skip
    assert [[item["n"] for item in call] for call in worker.calls] == [[0, 1]]


def test_an_entry_that_is_an_error_fails_all_duplicates_and_nobody_else() -> None:
    error = ValueError("no")
    worker = run(
        Worker(
            lambda items: [error if item == "a" else item for item in items],
            batch_coalesce=str,
            batch_results="each",
        ),
        "a", "b", "a",
    )  # fmt: skip
    assert worker.errors == {"0": error, "2": error}
    assert worker.values == {"1": "b"}
    assert worker.ids("on_error") == ["0", "2"]


def test_a_poison_item_fails_all_its_duplicates_and_nobody_else() -> None:
    worker = run(
        Worker(
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
        Worker(poisoned_by("x"), batch_coalesce=str, batch_isolate_errors=True),
        "x", "x", "x",
    )  # fmt: skip
    assert worker.calls == [["x"]]
    assert list(worker.errors) == ["0", "1", "2"]


def test_the_entries_of_a_list_are_counted_by_items_not_by_messages() -> None:
    worker = run(
        Worker(lambda _: [1, 2, 3], batch_coalesce=str, batch_results="each"),
        "a", "b", "a",
    )  # fmt: skip
    assert len(worker.errors) == 3
    assert all(
        isinstance(e, TaskiqBatchResultError) and e.expected == 2
        for e in worker.errors.values()
    )


def test_batch_size_counts_messages_duplicates_included() -> None:
    worker = run(Worker(batch_coalesce=str, batch_size=2), "a", "a", "a")
    assert worker.calls == [["a"], ["a"]]


def test_equal_items_of_different_groups_are_not_equal() -> None:
    worker = Worker(batch_coalesce=str)

    async def main() -> None:
        await worker.send("a", rest="x")
        await worker.send("a", rest="y")
        await worker.run()

    run_virtual(main())
    assert worker.calls == [["a"], ["a"]]


def contextual(
    broker: QueueBroker | InMemoryBroker,
    act: Callable[[BatchContext, list[Any]], Coroutine[Any, Any, Any]],
    **limits: Any,
) -> AsyncTaskiqDecoratedTask[..., Any]:
    """Register a batch task that acts on its context."""

    async def work(
        items: list[Any],
        context: Annotated[BatchContext, TaskiqDepends()],
    ) -> Any:
        return await act(context, items)

    task: Any = broker.task(batch=True, **limits)(work)
    registered: AsyncTaskiqDecoratedTask[..., Any] = task
    return registered


class ContextWorker(Worker):
    """A worker whose function is given the context of its batch."""

    def __init__(
        self,
        act: Callable[[BatchContext, list[Any]], Coroutine[Any, Any, Any]],
        *middlewares: TaskiqMiddleware,
        receiver: dict[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        super().__init__(len, *middlewares, receiver=receiver)
        limits.setdefault("batch_timeout", _FOREVER)

        async def written_down(context: BatchContext, items: list[Any]) -> Any:
            self.calls.append(items)
            return await act(context, items)

        self.task = contextual(self.broker, written_down, **limits)

    async def send(self, *items: Any, rest: str = "", **labels: Any) -> None:
        for item in items:
            sent = self.broker.queue.qsize()
            kicker = self.task.kicker().with_labels(**labels)
            await kicker.with_task_id(f"{sent}").kiq(item)


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

    worker = ContextWorker(act, batch_coalesce=str)
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

    worker = ContextWorker(act, batch_coalesce=str)
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


# -- Isolation ----------------------------------------------------------------------


def isolating(
    *poison: Any,
    isolate: bool | tuple[type[Exception], ...] = True,
    middlewares: Sequence[TaskiqMiddleware] = (),
    **limits: Any,
) -> Worker:
    return Worker(
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
    assert worker.ids("post_execute") == worker.ids("post_save")
    [info] = worker.ends.infos
    assert info.isolation_calls == len(worker.calls) - 1 <= 9
    assert len(info.messages) == 100


def test_without_isolation_one_call_is_all_there_is() -> None:
    worker = run(isolating(1, isolate=False), 0, 1, 2)
    assert worker.calls == [[0, 1, 2]]
    assert list(worker.errors) == ["0", "1", "2"]
    assert worker.ends.infos[0].isolation_calls == 0


def test_a_call_of_one_item_is_not_repeated() -> None:
    worker = run(isolating(1), 1)
    assert worker.calls == [[1]]


def test_shared_results_are_those_of_the_call_that_succeeded() -> None:
    def body(items: list[int]) -> int:
        if 3 in items:
            raise PoisonError
        return sum(items)

    worker = run(Worker(body, batch_isolate_errors=True), 1, 2, 3, 4)
    assert worker.calls == [[1, 2, 3, 4], [1, 2], [3], [4]]
    assert worker.values == {"0": 3, "1": 3, "3": 4}


def test_an_outage_costs_a_bounded_number_of_calls_and_fails_everybody() -> None:
    worker = run(isolating(*range(64)), *range(64))
    assert len(worker.calls) == 1 + most_extra_calls(64)
    assert len(worker.errors) == 64
    worker.assert_settled_once(64)


def test_a_list_of_the_wrong_length_is_no_error_to_isolate() -> None:
    worker = run(
        Worker(lambda _: [1], batch_results="each", batch_isolate_errors=True),
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
        Worker(body, batch_results="each", batch_isolate_errors=isolate),
        0, 1, 2, 3,
    )  # fmt: skip
    assert (len(worker.calls) > 1) == is_isolated
    if is_isolated:
        assert worker.errors == {"1": error}
        assert worker.values == {"0": 0, "2": 2, "3": 3}
    elif isinstance(error, NoResultError):
        assert worker.backend.results == {}
    else:
        assert worker.errors == dict.fromkeys("0123", error)
    assert sorted(worker.broker.acked) == list("0123")


def test_the_timeout_of_a_call_is_not_isolated_and_each_call_has_its_own() -> None:
    async def body(items: list[int]) -> list[int]:
        await asyncio.sleep(len(items))
        if items == [1]:
            raise PoisonError
        if 1 in items:
            raise PoisonError
        return items

    worker = Worker(body, batch_results="each", batch_isolate_errors=True)
    run(worker, 0, 1, 2, 3, timeout=4.5)
    # Four, two, one... seconds: together more than one call may take.
    assert list(worker.errors) == ["1"]
    slow = Worker(body, batch_results="each", batch_isolate_errors=True)
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
        Worker(body, batch_results="each", batch_isolate_errors=True),
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
        Worker(body, batch_results="each", batch_isolate_errors=True),
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

    worker = ContextWorker(act, batch_isolate_errors=True, batch_results="each")
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

    worker = ContextWorker(act, batch_isolate_errors=True)
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

    run(ContextWorker(act, batch_isolate_errors=True), "a", "x", "c", "d")
    assert seen == [["0", "1", "2", "3"], ["0", "1"], ["0"], ["1"], ["2", "3"]]


def test_a_retry_sends_exactly_the_culprits_again() -> None:
    retry = SimpleRetryMiddleware(default_retry_count=2, default_retry_label=True)
    worker = isolating(1, 6, middlewares=[retry])
    run(worker, *range(8))
    again = [worker.broker.queue.get_nowait() for _ in range(2)]
    assert worker.broker.queue.empty()
    assert sorted(message.task_id for message in again if message) == ["1", "6"]
    assert set(worker.values) == {"0", "2", "3", "4", "5", "7"}


@pytest.mark.parametrize("ack_type", list(AcknowledgeType))
def test_every_message_is_acknowledged_once_whatever_the_moment(
    ack_type: AcknowledgeType,
) -> None:
    worker = isolating(1, batch_coalesce=str, receiver={"ack_type": ack_type})
    run(worker, 0, 1, 2, 1, 0)
    assert list(worker.errors) == ["1", "3"]
    assert len(worker.values) == 3
    # By hand means by the function, which has not done so.
    by_worker = [] if ack_type is AcknowledgeType.MANUAL else list("01234")
    assert sorted(worker.broker.acked) == by_worker


def test_a_result_that_cannot_be_saved_leaves_only_its_own_message_unacked() -> None:
    worker = isolating(1)
    worker.backend.failing.add("2")
    run(worker, 0, 1, 2, 3)
    assert sorted(worker.broker.acked) == ["0", "1", "3"]
    assert set(worker.values) == {"0", "3"}


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
    worker = ContextWorker(
        act,
        *([retry] if "retry" in mix else []),
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
    assert worker.ends.infos[0].isolation_calls == extra_calls
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

    worker = ContextWorker(
        act,
        batch_size=size,
        batch_results="each",
        batch_isolate_errors=True,
        receiver={"ack_type": ack_type},
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
        worker = Worker(
            body,
            batch_size=size,
            batch_isolate_errors=True,
            batch_results="each",
            receiver={"wait_tasks_timeout": 1, "max_async_tasks": 2},
        )
        await worker.send(*range(size))
        await worker.run()
        assert body.reached.is_set()
        assert len(worker.calls) == 1 + blocks_at
        assert worker.broker.acked == []
        assert worker.backend.results == {}
        assert worker.receiver.sem is not None
        assert worker.receiver.sem._value == 2
        assert worker.receiver.batching.statistics().is_idle

    run_virtual(main())


def test_isolation_holds_its_execution_slot_and_its_concurrency() -> None:
    async def main() -> None:
        body = Blocking()
        worker = Worker(
            body,
            batch_size=2,
            batch_concurrency=1,
            batch_isolate_errors=True,
            batch_results="each",
            receiver={"max_async_tasks": 2},
        )
        await worker.send(0, 1, 2, 3)
        running = asyncio.ensure_future(worker.run())
        await body.reached.wait()
        await asyncio.sleep(1)
        statistics = worker.receiver.batching.statistics()
        assert statistics.running_calls == 1
        assert statistics.due_batches == 1
        assert worker.receiver.sem is not None
        # One for the call; one may be held by whoever starts the next batch.
        assert worker.receiver.sem._value <= 1
        assert worker.calls == [[0, 1], [0]]
        body.go_on.set()
        await running
        assert worker.calls == [[0, 1], [0], [1], [2, 3]]
        assert worker.receiver.sem._value == 2
        worker.assert_settled_once(4)

    run_virtual(main())


def test_isolation_is_told_in_the_log_and_names_the_culprits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(isolating(2), 0, 1, 2, 3)
    [told] = [r for r in caplog.records if "looking for the culprits" in r.message]
    assert told.levelno == logging.WARNING
    assert "of task work failed with PoisonError(2)" in told.message
    assert "among 4 items" in told.message
    named = [r.message for r in caplog.records if "task work with ID" in r.message]
    assert len(named) == 1
    assert "ID 2" in named[0]


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


async def _values(handles: list[AsyncTaskiqTask[Any]]) -> list[Any]:
    return [(await handle.get_result()).return_value for handle in handles]


def test_everything_together_in_memory() -> None:
    broker = InMemoryBroker()
    calls: list[list[str]] = []

    @broker.task(
        batch=True,
        batch_key=lambda item: item[0],
        batch_weight=len,
        batch_max_weight=6,
        batch_coalesce=lambda item: item.lower(),
        batch_isolate_errors=True,
    )
    async def work(items: list[str]) -> list[str]:
        calls.append(items)
        if "a!" in items:
            raise PoisonError
        return [item * 2 for item in items]

    async def main() -> None:
        sent = ["a1", "b1", "a!", "A1", "a1", "b2", "a3", "b1"]
        handles = [await work.kiq(item) for item in sent]
        await broker.wait_all()
        expected = ["a1a1", "b1b1", None, "A1A1", "a1a1", "b2b2", "a3a3", "b1b1"]
        assert await _values(handles) == expected

    run_virtual(main())
    # Equal items of group "a" share their weight's batch: a1 a! a1 is full.
    assert calls[0] == ["a1", "a!"]


def test_a_direct_call_is_a_batch_of_one_whatever_the_controls() -> None:
    broker = InMemoryBroker(await_inplace=True)

    @broker.task(
        batch=True,
        batch_key=lambda item: item,
        batch_coalesce=lambda item: item,
        batch_weight=lambda _: 100,
        batch_max_weight=1,
        batch_isolate_errors=True,
    )
    async def work(items: list[int]) -> list[int]:
        assert len(items) == 1
        return [2 * item for item in items]

    async def main() -> None:
        assert await work(3) == 6
        handle = await work.kiq(4)
        assert (await handle.get_result()).return_value == 8

    run_virtual(main())


# -- Many keys ----------------------------------------------------------------------


def test_ten_thousand_keys_seen_once_leave_nothing_behind() -> None:
    worker = Worker(
        batch_key=lambda item, _: item,
        batch_timeout=1,
        batch_max_buffered=500,
        receiver={"max_prefetch": 100},
    )

    async def main() -> None:
        await worker.send(*range(10_000))
        held: list[int] = []
        receiver = worker.receiver

        async def watch() -> None:
            while len(worker.broker.acked) < 10_000:
                held.append(receiver.batching.statistics().open_groups)
                await asyncio.sleep(0.1)

        watching = asyncio.ensure_future(watch())
        finish = asyncio.Event()
        listening = asyncio.ensure_future(receiver.listen(finish))
        await watching
        batching = receiver.batching
        assert batching.statistics().is_idle
        assert batching._batcher._lanes == {}
        assert batching._starter is None
        assert max(held) <= 500
        finish.set()
        await listening

    logging.disable(logging.INFO)
    try:
        run_virtual(main())
    finally:
        logging.disable(logging.NOTSET)
    assert len(worker.calls) == 10_000
    assert len(set(worker.broker.acked)) == 10_000


@pytest.mark.parametrize("is_bounded_by", ["batch_concurrency", "max_async_tasks"])
@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(1.0, 0.5), (0.5, 0.5), (0.1, 0.5), (0.0, 2.0)],
)
def test_a_key_with_99_percent_of_the_traffic_delays_the_others_by_one_running_batch(
    timeout: float,
    seconds: float,
    is_bounded_by: str,
) -> None:
    sent_at: dict[str, float] = {}
    called_at: dict[str, float] = {}

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def body(items: list[str]) -> None:
            for item in items:
                called_at[item] = loop.time()
            await asyncio.sleep(seconds)

        is_by_task = is_bounded_by == "batch_concurrency"
        worker = Worker(
            body,
            batch_key=lambda item, _: item.split()[0],
            batch_size=10,
            batch_timeout=timeout,
            batch_concurrency=1 if is_by_task else None,
            batch_max_buffered=5000,
            receiver={"max_async_tasks": 4 if is_by_task else 1},
        )
        finish = asyncio.Event()
        listening = asyncio.ensure_future(worker.receiver.listen(finish))
        for tick in range(20):
            # 99 busy messages a tick are more than one call at a time can do; and each
            # tick comes at another moment of a call than the one before.
            sent = [f"busy {tick} {n}" for n in range(99)] + [f"quiet{tick} {tick}"]
            for item in sent:
                sent_at[item] = loop.time()
            await worker.send(*sent)
            await asyncio.sleep(2.6 * seconds)
        finish.set()
        await listening
        assert set(called_at) == set(sent_at)

    run_virtual(main())
    waits = [
        called_at[item] - sent
        for item, sent in sent_at.items()
        if item.startswith("quiet")
    ]
    assert len(waits) == 20
    assert max(waits) <= timeout + seconds + 1e-6
