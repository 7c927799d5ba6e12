"""In process: batches of the broker that runs tasks where they are sent."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from taskiq import (
    AsyncBroker,
    AsyncTaskiqTask,
    BatchContext,
    Context,
    InMemoryBroker,
    TaskiqDepends,
    TaskiqEvents,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
    async_shared_broker,
    gather,
)
from taskiq.batch import FlushReason
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.depends.progress_tracker import ProgressTracker, TaskProgress, TaskState
from taskiq.exceptions import TaskiqBatchResultError
from taskiq.receiver.tasks import UNSTARTED
from tests.support.brokers import message_bytes
from tests.support.poison import PoisonError
from tests.support.recorders import RecordingMiddleware
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import FOREVER, Gate


def now() -> float:
    return asyncio.get_running_loop().time()


class Slow(TaskiqMiddleware):
    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        await asyncio.sleep(5)
        return message


def doubling(
    broker: AsyncBroker,
    calls: list[list[int]],
    **arguments: Any,
) -> Any:
    """A batch task that doubles each number and writes down its calls."""

    async def double(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        return [2 * number for number in numbers]

    return broker.register_task(double, "double", batch=True, **arguments)


async def values(handles: list[AsyncTaskiqTask[Any]]) -> list[Any]:
    """What the results are, which must be there."""
    return [(await handle.get_result()).return_value for handle in handles]


# -- Many messages ---------------------------------------------------------------------


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
        assert await values([*handles]) == expected

    run_virtual(main())
    # Equal items of group "a" share their weight's batch: a1 a! a1 is full.
    assert calls[0] == ["a1", "a!"]


@virtual
async def test_400_items_sent_at_once_are_run_in_batches_of_60_and_wait_all_flushes(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []
    task = doubling(broker, calls, batch_size=60, batch_timeout=3)
    handles = await asyncio.gather(*[task.kiq(number) for number in range(400)])
    await broker.wait_all()
    assert now() == 0
    assert [len(call) for call in calls] == [60] * 6 + [40]
    assert list(itertools.chain(*calls)) == list(range(400))
    results = await gather(*handles, timeout=1)
    assert [result.return_value for result in results] == [2 * n for n in range(400)]
    assert len({id(result) for result in results}) == 400


@virtual
async def test_without_wait_all_a_timer_flushes_what_fills_no_batch(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []
    recorder = RecordingMiddleware()
    broker.add_middlewares(recorder)
    task = doubling(broker, calls, batch_size=60, batch_timeout=3)
    handles = await asyncio.gather(*[task.kiq(number) for number in range(400)])
    results = await gather(*handles, timeout=4)
    assert [result.return_value for result in results] == [2 * n for n in range(400)]
    assert 3 <= now() < 4
    assert [(len(each.messages), each.flush_reason) for each in recorder.batches] == [
        *[(60, FlushReason.SIZE)] * 6,
        (40, FlushReason.TIMEOUT),
    ]
    assert recorder.batches[-1].waited == 3


@virtual
async def test_5000_items_all_have_their_results(broker: InMemoryBroker) -> None:
    calls: list[list[int]] = []
    task = doubling(broker, calls)
    handles = [await task.kiq(number) for number in range(5000)]
    await broker.wait_all()
    assert await values(handles) == [2 * number for number in range(5000)]
    assert max(len(call) for call in calls) == 100
    assert list(itertools.chain(*calls)) == list(range(5000))


@pytest.mark.parametrize("messages", [400, 5000])
def test_every_plain_task_whose_handle_is_kept_has_its_result(
    broker: InMemoryBroker,
    messages: int,
) -> None:
    @broker.task
    async def double(number: int) -> int:
        return 2 * number

    async def main() -> None:
        sent = [double.kiq(number) for number in range(messages)]
        handles = await asyncio.gather(*sent)
        results = await gather(*handles, timeout=1)
        assert [result.return_value for result in results] == [
            2 * number for number in range(messages)
        ]

    run_virtual(main())


async def test_of_thousands_sent_at_once_a_hundred_wait_for_their_first_step(
    broker: InMemoryBroker,
) -> None:
    """Others have no asyncio task yet, and lose neither their turn nor their context.

    What waits in a task of its own holds back nobody.
    """
    number: contextvars.ContextVar[int] = contextvars.ContextVar("number")
    ran: list[tuple[int, int]] = []
    tasks_at_first: set[asyncio.Task[Any]] = set()
    all_run, release = asyncio.Event(), asyncio.Event()

    @broker.task
    async def note(sent: int) -> None:
        if not ran:
            tasks_at_first.update(asyncio.all_tasks())
        ran.append((sent, number.get()))
        if len(ran) == 2_000:
            all_run.set()
        if sent % 2:
            await release.wait()

    async def send(each: int) -> None:
        number.set(each)
        await note.kiq(each)

    await asyncio.gather(*map(send, range(1_000)))
    assert 0 < len(ran) < 1_000  # others are sent when some have begun
    await asyncio.gather(*map(send, range(1_000, 2_000)))
    await all_run.wait()
    release.set()
    await broker.wait_all()
    assert ran == [(each, each) for each in range(2_000)]
    assert len(tasks_at_first) == UNSTARTED + 2  # and that first one, and the test


# -- Waiting for all -------------------------------------------------------------------


@virtual
async def test_wait_all_waits_for_tasks_sent_by_tasks(broker: InMemoryBroker) -> None:
    done: list[str] = []
    batched_again: list[list[int]] = []

    @broker.task(batch=True, batch_timeout=60)
    async def last(numbers: list[int]) -> None:
        await asyncio.sleep(1)
        batched_again.append(numbers)

    @broker.task
    async def third(number: int) -> None:
        await asyncio.sleep(1)
        done.append(f"third {number}")
        await last.kiq(number)

    @broker.task(batch=True, batch_timeout=60)
    async def second(numbers: list[int]) -> None:
        await asyncio.sleep(1)
        done.append(f"second {numbers}")
        for number in numbers:
            await third.kiq(number)

    @broker.task
    async def first(number: int) -> None:
        await asyncio.sleep(1)
        await second.kiq(number)

    await first.kiq(1)
    await first.kiq(2)
    await broker.wait_all()
    assert done == ["second [1, 2]", "third 1", "third 2"]
    assert batched_again == [[1, 2]]
    assert now() == 4


@virtual
async def test_wait_all_waits_for_messages_that_a_hook_holds_up(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []
    broker.add_middlewares(Slow())
    task = doubling(broker, calls, batch_timeout=60)
    await task.kiq(1)
    await task.kiq(2)
    await broker.wait_all()
    assert calls == [[1, 2]]
    assert now() == 5


@virtual
async def test_wait_all_with_nothing_to_wait_for_returns(
    broker: InMemoryBroker,
) -> None:
    await broker.wait_all()
    calls: list[list[int]] = []
    await doubling(broker, calls).kiq(1)
    await broker.wait_all()
    await broker.wait_all()
    assert calls == [[1]]


@virtual
async def test_batches_wait_for_company_again_after_wait_all(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []
    task = doubling(broker, calls, batch_timeout=3)
    await task.kiq(1)
    await broker.wait_all()
    await task.kiq(2)
    await asyncio.sleep(2)
    await task.kiq(3)
    await asyncio.sleep(2)
    assert calls == [[1], [2, 3]]


@pytest.mark.parametrize("await_inplace", [False, True])
def test_a_batch_cannot_wait_for_itself_among_all(await_inplace: bool) -> None:
    broker = InMemoryBroker(await_inplace=await_inplace)

    @broker.task(batch=True, batch_size=1)
    async def wait(numbers: list[int]) -> None:
        await asyncio.wait_for(broker.wait_all(), 60)

    async def main() -> TaskiqResult[None]:
        return await (await wait.kiq(1)).wait_result()

    error = run_virtual(main()).error
    assert isinstance(error, RuntimeError)
    assert "A task cannot wait for all tasks" in str(error)


@virtual
async def test_a_task_can_wait_for_all_of_another_broker(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []
    other = InMemoryBroker()
    task = doubling(other, calls, batch_timeout=60)

    @broker.task(batch=True)
    async def wait(numbers: list[int]) -> None:
        await task.kiq(1)
        await other.wait_all()
        calls.append([0])

    await wait.kiq(1)
    await broker.wait_all()
    assert calls == [[1], [0]]


@virtual
async def test_two_who_wait_for_all_both_get_their_wish(
    broker: InMemoryBroker,
) -> None:
    """The first to be done may begin the next batch before the second has looked."""
    calls: list[list[int]] = []
    task = doubling(broker, calls, batch_timeout=FOREVER)

    async def wait_and_go_on(*numbers: int) -> None:
        await broker.wait_all()
        for number in numbers:
            await task.kiq(number)

    await task.kiq(1)
    await asyncio.gather(wait_and_go_on(2), wait_and_go_on(), wait_and_go_on(3))
    assert calls[0] == [1]
    await broker.wait_all()
    assert [number for call in calls for number in call] == [1, 2, 3]
    assert now() == 0


@virtual
async def test_one_who_stops_waiting_for_all_stops_no_other(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []
    gate = Gate()

    @broker.task(batch=True, batch_timeout=FOREVER)
    async def wait(numbers: list[int]) -> None:
        calls.append(numbers)
        await gate.pass_through()

    await wait.kiq(1)
    waiting = asyncio.ensure_future(broker.wait_all())
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(broker.wait_all(), 5)
    await wait.kiq(2)
    gate.opened.set()
    await waiting
    assert calls == [[1], [2]]
    assert now() == 5


# -- In place --------------------------------------------------------------------------


@virtual
async def test_in_place_each_item_is_a_batch_of_one_and_done_on_return() -> None:
    broker = InMemoryBroker(await_inplace=True)
    calls: list[list[int]] = []
    recorder = RecordingMiddleware()
    broker.add_middlewares(recorder)
    task = doubling(broker, calls, batch_size=60, batch_timeout=3)
    for number in range(3):
        handle = await task.kiq(number)
        assert await handle.is_ready()
        assert (await handle.get_result()).return_value == 2 * number
    assert calls == [[0], [1], [2]]
    assert [each.flush_reason for each in recorder.batches] == [FlushReason.MANUAL] * 3
    assert now() == 0


@virtual
async def test_in_place_items_sent_at_once_do_not_meet() -> None:
    broker = InMemoryBroker(await_inplace=True)
    calls: list[list[int]] = []
    task = doubling(broker, calls, batch_concurrency=1, batch_max_buffered=100)
    handles = await asyncio.gather(*[task.kiq(number) for number in range(400)])
    assert await values(handles) == [2 * number for number in range(400)]
    assert calls == [[number] for number in range(400)]
    assert now() == 0


@virtual
async def test_in_place_a_batch_task_can_send_itself_whatever_its_concurrency() -> None:
    broker = InMemoryBroker(await_inplace=True)
    calls: list[list[int]] = []

    async def count_down(numbers: list[int]) -> None:
        calls.append(numbers)
        if numbers[0]:
            await task.kiq(numbers[0] - 1)

    task: Any = broker.task(batch=True, batch_concurrency=1)(count_down)
    await task.kiq(3)
    assert calls == [[3], [2], [1], [0]]


@virtual
async def test_in_place_an_error_is_in_the_result_and_not_raised_by_the_sender() -> (
    None
):
    broker = InMemoryBroker(await_inplace=True)

    @broker.task(batch=True)
    async def fail(numbers: list[int]) -> None:
        raise ValueError(numbers)

    failed = await (await fail.kiq(1)).get_result()
    wrong: Any = fail
    refused = await (await wrong.kiq("one")).get_result()
    assert isinstance(failed.error, ValueError)
    assert failed.error.args == ([1],)
    assert "valid integer" in str(refused.error)


@virtual
async def test_in_place_what_is_rejected_before_its_batch_is_settled_too() -> None:
    class Closed(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            raise PermissionError(message.task_name)

    broker = InMemoryBroker(await_inplace=True).with_middlewares(Closed())

    @broker.task(batch=True)
    async def work(numbers: list[int]) -> None:
        raise AssertionError

    for sent in (await work.kiq(1), await work.kiq_chunk([1])):
        assert await sent.is_ready()
        assert isinstance((await sent.get_result()).error, PermissionError)


@virtual
async def test_all_waits_for_what_runs_in_place_elsewhere() -> None:
    broker = InMemoryBroker(await_inplace=True)
    done: list[int] = []

    @broker.task(batch=True)
    async def slow(numbers: list[int]) -> None:
        await asyncio.sleep(5)
        done.extend(numbers)

    sending = asyncio.create_task(slow.kiq(1))
    await asyncio.sleep(1)
    await broker.wait_all()
    assert done == [1]
    assert now() == 5
    await sending


@virtual
async def test_in_place_a_sender_that_gives_up_ends_its_batch_without_a_result() -> (
    None
):
    broker = InMemoryBroker(await_inplace=True)
    cancelled: list[int] = []

    @broker.task(batch=True)
    async def slow(numbers: list[int]) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            cancelled.extend(numbers)
            raise

    sending = asyncio.create_task(slow.kicker().with_task_id("id").kiq(1))
    await asyncio.sleep(1)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert cancelled == [1]
    assert not await broker.result_backend.is_result_ready("id")
    assert broker.receiver.batch_statistics().is_idle


@virtual
async def test_in_place_a_message_counts_against_the_limits_of_its_task() -> None:
    broker = InMemoryBroker(await_inplace=True)
    calls: list[list[int]] = []
    gate = Gate()

    @broker.task(batch=True, batch_size=1, batch_concurrency=1)
    async def wait(numbers: list[int]) -> None:
        calls.append(numbers)
        await gate.pass_through()

    alone = asyncio.ensure_future(wait.kiq(1))
    await gate.reached.wait()
    broker.await_inplace = False
    await wait.kiq(2)
    await asyncio.sleep(1)
    assert calls == [[1]]
    gate.opened.set()
    await alone
    await broker.wait_all()
    assert calls == [[1], [2]]


# -- Shutting down ---------------------------------------------------------------------


@virtual
async def test_shutdown_flushes_and_waits_before_anything_is_stopped(
    broker: InMemoryBroker,
) -> None:
    done: list[str] = []
    recorder = RecordingMiddleware()
    broker.add_middlewares(recorder)
    broker.add_event_handler(
        TaskiqEvents.CLIENT_SHUTDOWN,
        lambda _: done.append("shutdown"),
    )

    @broker.task(batch=True, batch_timeout=60)
    async def slow(numbers: list[int]) -> None:
        await asyncio.sleep(1)
        done.append(f"called with {numbers}")

    @broker.task(batch=True, batch_timeout=60)
    def in_thread(numbers: list[int]) -> None:
        done.append(f"thread called with {numbers}")

    await slow.kiq(1)
    await slow.kiq(2)
    await in_thread.kiq(3)
    await broker.shutdown()
    assert sorted(done[:-1]) == ["called with [1, 2]", "thread called with [3]"]
    assert done[-1] == "shutdown"
    assert [each.flush_reason for each in recorder.batches] == [
        FlushReason.SHUTDOWN
    ] * 2


@virtual
async def test_shutdown_waits_for_messages_on_their_way_to_their_batch(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []
    broker.add_middlewares(Slow())
    task = doubling(broker, calls, batch_timeout=60)
    await task.kiq(1)
    await task.kiq(2)
    await broker.shutdown()
    assert calls == [[1, 2]]
    assert now() == 5


def test_a_broker_serves_one_event_loop_after_another(broker: InMemoryBroker) -> None:
    calls: list[list[int]] = []
    task = doubling(broker, calls)

    async def send(*numbers: int) -> list[Any]:
        handles = [await task.kiq(number) for number in numbers]
        await broker.wait_all()
        return await values(handles)

    assert run_virtual(send(1, 2)) == [2, 4]
    assert asyncio.run(send(3)) == [6]
    assert run_virtual(send(4, 5)) == [8, 10]
    assert calls == [[1, 2], [3], [4, 5]]


def test_what_one_event_loop_left_behind_does_not_hold_up_the_next(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []
    task = doubling(broker, calls)

    @broker.task(batch=True, batch_size=1)
    async def never_ends(numbers: list[int]) -> None:
        await asyncio.Event().wait()

    async def leave() -> None:
        await task.kiq(1)
        await never_ends.kiq(2)
        await asyncio.sleep(0)

    async def send() -> None:
        await task.kiq(3)
        await broker.wait_all()
        await broker.shutdown()

    asyncio.run(leave())
    run_virtual(send())
    assert calls == [[3]]


# -- What the result store keeps -------------------------------------------------------


def result_of(value: int) -> TaskiqResult[int]:
    return TaskiqResult(is_err=False, return_value=value, execution_time=0)


def progress_of(value: int) -> TaskProgress[Any]:
    return TaskProgress(state=TaskState.STARTED, meta=value)


class Store:
    """A result backend that is written and read one way for results and progress."""

    def __init__(self, max_stored_results: int, *, is_of_progress: bool) -> None:
        self.backend: InmemoryResultBackend[Any]
        self.backend = InmemoryResultBackend(max_stored_results)
        self.is_of_progress = is_of_progress

    async def write(self, task_id: str, value: int) -> None:
        if self.is_of_progress:
            await self.backend.set_progress(task_id, progress_of(value))
        else:
            await self.backend.set_result(task_id, result_of(value))

    def handle(self, task_id: str) -> AsyncTaskiqTask[Any]:
        handle: AsyncTaskiqTask[Any] = AsyncTaskiqTask(task_id, self.backend)
        self.backend.watch_handle(handle)
        return handle

    @property
    def kept(self) -> dict[str, Any]:
        backend = self.backend
        if self.is_of_progress:
            return {task_id: each.meta for task_id, each in backend.progress.items()}
        return {task_id: each.return_value for task_id, each in backend.results.items()}


@pytest.fixture(params=[False, True], ids=["results", "progress"])
def store(request: pytest.FixtureRequest) -> Callable[[int], Store]:
    return lambda most: Store(most, is_of_progress=request.param)


async def test_the_newest_results_without_a_handle_are_kept(
    store: Callable[[int], Store],
) -> None:
    few = store(3)
    for number in range(5):
        await few.write(f"id {number}", number)
    assert few.kept == {"id 2": 2, "id 3": 3, "id 4": 4}


async def test_a_store_of_0_keeps_what_has_a_handle_and_nothing_else(
    store: Callable[[int], Store],
) -> None:
    none = store(0)
    handle = none.handle("asked for")
    await none.write("asked for", 1)
    await none.write("other", 2)
    assert none.kept == {"asked for": 1}
    del handle
    gc.collect()
    assert none.kept == {}


async def test_a_store_of_minus_1_keeps_everything(
    store: Callable[[int], Store],
) -> None:
    everything = store(-1)
    for number in range(1000):
        await everything.write(str(number), number)
    assert len(everything.kept) == 1000


async def test_writing_an_id_again_drops_nothing_else(
    store: Callable[[int], Store],
) -> None:
    two = store(2)
    await two.write("a", 1)
    await two.write("b", 2)
    await two.write("b", 3)
    await two.write("a", 4)
    assert two.kept == {"a": 4, "b": 3}


async def test_what_has_a_living_handle_does_not_count(
    store: Callable[[int], Store],
) -> None:
    two = store(2)
    handles = [two.handle(f"handle {number}") for number in range(10)]
    for number in range(10):
        await two.write(f"handle {number}", number)
        await two.write(f"other {number}", number)
    assert two.kept == {
        **{handle.task_id: number for number, handle in enumerate(handles)},
        "other 8": 8,
        "other 9": 9,
    }


async def test_what_loses_its_handle_is_dropped_when_its_turn_comes(
    store: Callable[[int], Store],
) -> None:
    two = store(2)
    handles = {name: two.handle(name) for name in "abc"}
    for name in handles:
        await two.write(name, 1)
    for name in "bca":
        del handles[name]
        gc.collect()
    assert two.kept == {"a": 1, "c": 1}


async def test_a_handle_made_before_the_result_is_there_keeps_it_all_the_same(
    store: Callable[[int], Store],
) -> None:
    one = store(1)
    await one.write("a", 1)
    handle = one.handle("a")
    await one.write("b", 2)
    await one.write("c", 3)
    assert one.kept == {handle.task_id: 1, "c": 3}


@pytest.mark.parametrize("dying", ["older", "younger"])
async def test_two_handles_of_one_id_keep_it_until_both_are_gone(
    store: Callable[[int], Store],
    dying: str,
) -> None:
    none = store(0)
    handles = {"older": none.handle("a"), "younger": none.handle("a")}
    await none.write("a", 1)
    del handles[dying]
    gc.collect()
    assert none.kept == {"a": 1}
    handles.clear()
    gc.collect()
    assert none.kept == {}


async def test_a_handle_that_dies_before_its_result_comes_leaves_nothing_behind(
    store: Callable[[int], Store],
) -> None:
    none = store(0)
    handle = none.handle("a")
    gone = weakref.ref(handle)
    del handle
    gc.collect()
    assert gone() is None
    await none.write("a", 1)
    assert none.kept == {}
    assert not none.backend._handles


@virtual
async def test_each_result_whose_handle_is_alive_is_kept_and_few_others() -> None:
    broker = InMemoryBroker(max_stored_results=10)
    calls: list[list[int]] = []
    task = doubling(broker, calls)
    handles = [await task.kiq(number) for number in range(500)]
    await broker.wait_all()
    del handles[100:]
    gc.collect()
    assert isinstance(broker.result_backend, InmemoryResultBackend)
    assert len(broker.result_backend.results) == 110
    assert await values(handles) == [2 * number for number in range(100)]


@virtual
async def test_sending_and_forgetting_keeps_as_many_results_as_the_broker_is_told() -> (
    None
):
    broker = InMemoryBroker(max_stored_results=0)
    task = doubling(broker, [])
    for number in range(300):
        await task.kiq(number)
    await broker.wait_all()
    gc.collect()
    assert isinstance(broker.result_backend, InmemoryResultBackend)
    assert not broker.result_backend.results


@virtual
async def test_progress_of_each_message_is_there_while_its_handle_lives(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True, batch_size=150)
    async def report(
        numbers: list[int],
        tracker: ProgressTracker[int] = TaskiqDepends(),  # noqa: B008 - how it is declared
    ) -> None:
        await tracker.set_progress("halfway", len(numbers))

    handles = [await report.kiq(number) for number in range(300)]
    await broker.wait_all()
    assert [await handle.get_progress() for handle in handles] == [
        TaskProgress(state="halfway", meta=150),
    ] * 300


# -- Calling the task directly ---------------------------------------------------------


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


@virtual
async def test_calling_a_task_runs_a_batch_of_one_here_and_gives_its_outcome(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []
    task = doubling(broker, calls)
    assert await task(3) == 6
    assert await task(numbers=4) == 8
    assert calls == [[3], [4]]
    assert await task.original_func([5, 6]) == [10, 12]
    assert broker.receiver.batch_statistics().is_idle


async def test_calling_a_sync_task_gives_its_outcome_at_once(
    broker: InMemoryBroker,
) -> None:
    def each(numbers: list[int], factor: int, *, offset: int = 0) -> list[int]:
        return [factor * number + offset for number in numbers]

    def shared(numbers: list[int]) -> int:
        return sum(numbers)

    scale: Any = broker.register_task(each, batch=True)
    total: Any = broker.register_task(shared, batch=True)
    assert scale(3, 2) == 6
    assert scale(3, factor=2, offset=1) == 7
    assert scale.original_func([1, 2], 3) == [3, 6]
    assert total(3) == 3
    assert total.original_func([1, 2]) == 3


async def test_calling_a_task_raises_the_error_of_the_item(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True)
    async def entry(numbers: list[int]) -> list[int | Exception]:
        return [ValueError(number) for number in numbers]

    @broker.task(batch=True)
    async def raised(numbers: list[int]) -> list[int]:
        raise KeyError(numbers[0])

    @broker.task(batch=True)
    def too_many(numbers: list[int]) -> list[int]:
        return [1, 2]

    with pytest.raises(ValueError, match="3"):
        await entry(3)
    with pytest.raises(KeyError, match="3"):
        await raised(3)
    with pytest.raises(TaskiqBatchResultError, match=r"1 results.*list of 2"):
        too_many(3)


@virtual
async def test_a_list_that_is_shared_is_given_as_a_whole(
    broker: InMemoryBroker,
) -> None:
    @broker.task(batch=True, batch_results="shared")
    async def evens(numbers: list[int]) -> list[int]:
        return [number for number in numbers if number % 2 == 0]

    assert await evens(2) == [2]
    handles = [await evens.kiq(number) for number in range(4)]
    await broker.wait_all()
    assert await values([*handles]) == [[0, 2]] * 4


# -- What works as for plain tasks -----------------------------------------------------


class Labels(TaskiqMiddleware):
    """Writes down id and labels of what is executed."""

    def __init__(self) -> None:
        super().__init__()
        self.executed: dict[str, dict[str, Any]] = {}

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self.executed[message.task_id] = message.labels
        return message


@virtual
async def test_ids_and_labels_belong_to_one_message_of_a_batch(
    broker: InMemoryBroker,
) -> None:
    labels = Labels()
    broker.add_middlewares(labels)
    calls: list[list[int]] = []
    task = doubling(broker, calls, queue="numbers")
    first = await task.kicker().with_task_id("first").with_labels(user="a").kiq(1)
    second = await task.kicker().with_task_id("second").with_labels(user="b").kiq(2)
    third = await task.kiq(3)
    await broker.wait_all()
    assert calls == [[1, 2, 3]]
    assert (first.task_id, second.task_id) == ("first", "second")
    expected = {
        "first": {"queue": "numbers", "user": "a"},
        "second": {"queue": "numbers", "user": "b"},
        third.task_id: {"queue": "numbers"},
    }
    assert labels.executed == expected
    for handle in (first, second, third):
        assert (await handle.get_result()).labels == expected[handle.task_id]


@virtual
async def test_a_batch_task_can_be_sent_by_another_broker() -> None:
    broker, other = InMemoryBroker(), InMemoryBroker()
    calls: list[list[int]] = []
    others_calls: list[list[int]] = []
    task = doubling(broker, calls)
    doubling(other, others_calls)
    here = await task.kiq(1)
    there = await task.kicker().with_broker(other).kiq(2)
    await broker.wait_all()
    await other.wait_all()
    assert (calls, others_calls) == ([[1]], [[2]])
    assert await values([here, there]) == [2, 4]
    assert there.result_backend is other.result_backend


@virtual
async def test_a_shared_batch_task_runs_in_the_broker_that_sends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AsyncBroker, "global_task_registry", {})
    monkeypatch.setattr(async_shared_broker, "_default_broker", None)
    default, other = InMemoryBroker(), InMemoryBroker()
    calls: list[list[int]] = []
    task = doubling(async_shared_broker, calls, batch_size=3)
    async_shared_broker.default_broker(default)
    handles = [await task.kiq(number) for number in range(4)]
    handles.append(await task.kicker().with_broker(other).kiq(4))
    await default.wait_all()
    await other.wait_all()
    assert calls == [[0, 1, 2], [3], [4]]
    assert await values(handles) == [0, 2, 4, 6, 8]


@virtual
async def test_a_requeued_batch_comes_again_message_by_message(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []

    @broker.task(batch=True)
    async def twice(
        numbers: list[int],
        context: Context = TaskiqDepends(),  # noqa: B008 - how it is declared
    ) -> list[int]:
        calls.append(numbers)
        if len(calls) == 1:
            await context.requeue()
        assert [each.labels["X-Taskiq-requeue"] for each in context.messages] == [
            "1"
        ] * 3
        return [2 * number for number in numbers]

    handles = [await twice.kiq(number) for number in range(3)]
    await broker.wait_all()
    assert calls == [[0, 1, 2]] * 2
    assert await values([*handles]) == [0, 2, 4]


@virtual
async def test_one_message_of_a_batch_can_be_requeued(broker: InMemoryBroker) -> None:
    calls: list[list[int]] = []

    @broker.task(batch=True)
    async def odd_again(
        numbers: list[int],
        batch: BatchContext = TaskiqDepends(),  # noqa: B008 - how it is declared
    ) -> list[int]:
        calls.append(numbers)
        for index, message in enumerate(batch.messages):
            if numbers[index] % 2 and "X-Taskiq-requeue" not in message.labels:
                await batch.requeue(index)
        return [2 * number for number in numbers]

    handles = [await odd_again.kiq(number) for number in range(4)]
    await broker.wait_all()
    assert calls == [[0, 1, 2, 3], [1, 3]]
    assert await values([*handles]) == [0, 2, 4, 6]


# -- Receivers and formatters of an application ----------------------------------------


@pytest.mark.parametrize("await_inplace", [False, True])
async def test_a_receiver_with_a_callback_of_its_own_gets_every_message(
    await_inplace: bool,
) -> None:
    broker = InMemoryBroker(await_inplace=await_inplace)
    double = doubling(broker, [], batch_size=2)
    seen: list[bytes] = []
    original = broker.receiver.callback

    async def callback(message: bytes, raise_err: bool = False) -> None:
        seen.append(message)
        await original(message, raise_err=raise_err)

    broker.receiver.callback = callback  # type: ignore[method-assign, assignment]
    handles = [await double.kiq(number) for number in (1, 2)]
    await broker.wait_all()

    assert await values(handles) == [2, 4]
    assert len(seen) == 2
    await broker.shutdown()


async def test_a_message_that_cannot_be_read_is_said_and_holds_up_nobody(
    broker: InMemoryBroker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    double = doubling(broker, [])
    dumps = broker.serializer.dumpb
    broker.serializer.dumpb = lambda _: b"garbage"  # type: ignore[method-assign, assignment]
    await double.kiq(1)
    broker.serializer.dumpb = dumps  # type: ignore[method-assign]
    readable = await double.kiq(2)
    await broker.wait_all()

    assert "Cannot parse message: b'garbage'" in caplog.text
    assert await values([readable]) == [4]


async def test_each_message_and_batch_is_named_at_debug_level(
    broker: InMemoryBroker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    double = doubling(broker, [])
    handle = await double.kiq(1)
    await broker.wait_all()

    assert f"Received message: task_id='{handle.task_id}'" in caplog.text
    assert f"of task {double.task_name} ({handle.task_id})." in caplog.text


async def test_a_broker_may_hand_out_text(broker: InMemoryBroker) -> None:
    calls: list[list[int]] = []
    double = doubling(broker, calls, batch_size=1)
    text: Any = message_bytes(double, 1).decode()
    await broker.receiver.callback(text)
    assert calls == [[1]]


@virtual
async def test_a_value_set_by_the_context_may_have_a_type_of_its_own(
    broker: InMemoryBroker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @broker.task(batch=True, batch_size=2)
    async def count(
        words: list[str],
        context: BatchContext = TaskiqDepends(),  # noqa: B008 - how it is declared
    ) -> list[int]:
        context.set_result(0, "too long")
        return [len(word) for word in words]

    handles = [await count.kiq("a" * 100), await count.kiq("ab")]
    assert "int" in str(handles[0].return_type)
    await broker.wait_all()
    assert await values(handles) == ["too long", 2]
    assert [each.message for each in caplog.records if each.levelname != "INFO"] == []


def test_two_batches_that_shut_their_broker_down_do_not_wait_for_each_other() -> None:
    async def main() -> None:
        broker = InMemoryBroker()
        both_run = asyncio.Event()

        @broker.task(batch=True, batch_size=1)
        async def ends(items: list[int]) -> None:
            if items == [2]:
                both_run.set()
            await both_run.wait()
            await broker.shutdown()

        handles = [await ends.kiq(1), await ends.kiq(2)]
        results = [await handle.wait_result(timeout=60) for handle in handles]
        assert not any(result.is_err for result in results)

    run_virtual(main())
