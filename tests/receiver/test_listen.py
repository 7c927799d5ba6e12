"""Listening to a broker: capacity, order, and every way to stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskiq import AckableMessage, TaskiqMessage, TaskiqMiddleware
from taskiq.receiver import Receiver
from taskiq.receiver.stop import Stop
from tests.support.brokers import QueueBroker, message_bytes
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import GatedWorker, complaints

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable


DISCARDING = "Discarding {} prefetched deliveries during Receiver cleanup"


async def idle() -> None:
    """Let everything happen that can happen before time passes."""
    await asyncio.sleep(1)


def now() -> float:
    return asyncio.get_running_loop().time()


class CountingSemaphore(asyncio.Semaphore):
    """Counts how often it was acquired and released."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.asked = 0
        self.released = 0

    async def acquire(self) -> Any:
        self.asked += 1
        return await super().acquire()

    def release(self) -> None:
        self.released += 1
        super().release()


# -- Capacity and order ------------------------------------------------------------


@virtual
async def test_without_prefetch_no_message_is_read_that_cannot_start() -> None:
    worker = GatedWorker(max_async_tasks=2)
    worker.put("a", "b", "c", "d")
    listening = worker.listen()
    await idle()

    assert worker.started == ["a", "b"]
    assert worker.broker.delivered == ["a", "b"]

    worker.let_go("a")
    await idle()

    assert worker.broker.delivered == ["a", "b", "c"]
    assert worker.running == {"b", "c"}
    worker.let_go("b", "c", "d")
    worker.broker.end()
    await listening
    assert worker.saved == ["a", "b", "c", "d"]
    worker.assert_capacity_is_restored(2, 2)


@virtual
async def test_the_prefetch_is_read_beyond_what_runs() -> None:
    worker = GatedWorker(max_async_tasks=1, max_prefetch=2)
    worker.put("a", "b", "c", "d")
    listening = worker.listen()
    await idle()

    assert worker.started == ["a"]
    assert worker.broker.delivered == ["a", "b", "c"]

    worker.let_go("a")
    await idle()

    assert worker.started == ["a", "b"]
    assert worker.broker.delivered == ["a", "b", "c", "d"]
    worker.let_go("b", "c", "d")
    worker.broker.end()
    await listening
    worker.assert_capacity_is_restored(1, 3)


@virtual
async def test_without_a_limit_every_message_starts_at_once() -> None:
    worker = GatedWorker(max_async_tasks=None)
    names = [str(number) for number in range(20)]
    worker.put(*names)
    listening = worker.listen()
    await idle()

    assert worker.started == names
    worker.let_go(*names)
    worker.broker.end()
    await listening
    assert worker.broker.acked == names
    worker.assert_capacity_is_restored(0, 1)


@settings(max_examples=settings().max_examples * 3 // 5, deadline=None)
@given(
    limit=st.integers(1, 3),
    prefetch=st.integers(0, 2),
    steps=st.lists(st.sampled_from(["send", "end one", "end all"]), max_size=20),
)
def test_capacity_is_kept_and_given_back_whatever_comes(
    limit: int,
    prefetch: int,
    steps: list[str],
) -> None:
    async def main() -> None:
        worker = GatedWorker(max_async_tasks=limit, max_prefetch=prefetch)
        sent: list[str] = []
        listening = worker.listen()
        for step in steps:
            if step == "send":
                sent.append(str(len(sent)))
                worker.put(sent[-1])
            elif step == "end one" and worker.running:
                worker.let_go(min(worker.running, key=int))
            else:
                worker.let_go(*worker.running)
            await idle()
            admitted = len(worker.broker.delivered) - len(worker.broker.acked)
            assert admitted <= limit + prefetch
            assert len(worker.running) <= limit
            # Nobody waits while there is capacity.
            unfinished = len(sent) - len(worker.broker.acked)
            assert admitted == min(limit + prefetch, unfinished)
            assert len(worker.running) == min(limit, unfinished)
        worker.let_go(*sent)
        worker.broker.end()
        await listening

        assert worker.most_running <= limit
        assert worker.started == worker.broker.delivered == sent
        assert sorted(worker.broker.acked) == sorted(sent)
        worker.assert_capacity_is_restored(limit, limit + prefetch)

    run_virtual(main())


@pytest.mark.parametrize("prefetch", [0, 2])
@virtual
async def test_each_semaphore_is_acquired_once_per_admission(prefetch: int) -> None:
    worker = GatedWorker()
    executions = worker.receiver.sem = CountingSemaphore(2)
    deliveries = worker.receiver.sem_prefetch = CountingSemaphore(2 + prefetch)
    names = [str(number) for number in range(7)]
    worker.put(*names)
    listening = worker.listen()
    await idle()
    worker.let_go(*names)
    await idle()
    # An idle receiver waits for one more message, and asks no more than once for it.
    assert deliveries.asked == 8
    assert executions.asked == 7
    worker.finish.set()
    await listening

    assert worker.most_running == 2
    assert (deliveries.asked, deliveries.released) == (8, 8)
    assert (executions.asked, executions.released) == (7, 7)


@virtual
async def test_an_unlimited_receiver_gives_the_slot_back_when_a_callback_starts() -> (
    None
):
    worker = GatedWorker(max_async_tasks=0)
    deliveries = worker.receiver.sem_prefetch = CountingSemaphore(1)
    worker.put("a", "b")
    listening = worker.listen()
    await idle()

    assert worker.running == {"a", "b"}
    assert deliveries.released == 2
    worker.let_go("a", "b")
    worker.broker.end()
    await listening
    assert deliveries.asked == deliveries.released == 3


@virtual
async def test_a_refused_message_takes_its_slots_and_gives_them_back() -> None:
    worker = GatedWorker()
    executions = worker.receiver.sem = CountingSemaphore(1)
    worker.broker.put(b"?", "bad")
    worker.put("a")
    worker.let_go("a")
    worker.broker.end()

    await worker.listen()

    assert worker.broker.acked == ["bad", "a"]
    assert executions.asked == executions.released == 2
    worker.assert_capacity_is_restored(1, 1)


@virtual
async def test_an_idle_receiver_has_no_more_tasks_and_timers_than_at_its_start() -> (
    None
):
    worker = GatedWorker(max_async_tasks=3)
    listening = worker.listen()
    await idle()
    at_start = len(asyncio.all_tasks())
    names = [str(number) for number in range(10)]
    worker.put(*names)
    worker.let_go(*names)
    await idle()

    loop: Any = asyncio.get_running_loop()
    assert worker.broker.acked == names
    assert len(asyncio.all_tasks()) == at_start
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
    worker.finish.set()
    await listening


@virtual
async def test_running_callbacks_are_not_collected_as_garbage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = GatedWorker()
    waiting: list[weakref.ref[Any]] = []

    async def wait_for_nobody() -> None:
        # Nothing but this call knows the future, nothing but the future this call.
        future = asyncio.get_running_loop().create_future()
        waiting.append(weakref.ref(future))
        await future

    task = worker.broker.register_task(wait_for_nobody, task_name="lonely")
    callback = worker.receiver.callback

    async def own_callback(**given: Any) -> None:
        await callback(**given)

    monkeypatch.setattr(worker.receiver, "callback", own_callback)
    worker.broker.put(message_bytes(task), "id")
    listening = worker.listen()
    await idle()

    gc.collect()

    future = waiting[0]()
    assert future is not None
    future.set_result(None)
    worker.broker.end()
    await listening


# -- Starting ----------------------------------------------------------------------


class StartedBroker(QueueBroker):
    """Counts its starts, and fails them on request."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.events: list[str] = []

    async def startup(self) -> None:
        self.events.append("startup")
        if self.error is not None:
            raise self.error
        await super().startup()

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        self.events.append("listen")
        async for message in super().listen():
            yield message


@pytest.mark.parametrize("run_startup", [False, True])
@virtual
async def test_the_broker_is_started_before_it_is_listened_to(
    run_startup: bool,
) -> None:
    broker = StartedBroker()
    worker = GatedWorker(broker=broker, run_startup=run_startup)
    broker.end()

    await worker.listen()

    assert broker.events == ["startup", "listen"][not run_startup :]


@virtual
async def test_an_error_of_the_start_is_raised_as_it_is() -> None:
    error = ConnectionError("no broker")
    broker = StartedBroker(error)
    worker = GatedWorker(broker=broker)

    with pytest.raises(ConnectionError) as caught:
        await worker.listen()

    assert caught.value is error
    assert broker.events == ["startup"]
    assert worker.exits == []


# -- What a broker may listen with -------------------------------------------------


class Messages:
    """An async iterator that is no generator."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = list(messages)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.messages:
            raise StopAsyncIteration
        return self.messages.pop(0)


class OnlyIterable:
    """An async iterable that is no iterator."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = messages

    def __aiter__(self) -> AsyncIterator[bytes]:
        return Messages(*self.messages)


class OwnListen(QueueBroker):
    """Listens with whatever it is given."""

    def __init__(self, listen: Callable[[], Any]) -> None:
        super().__init__()
        self.listen = listen  # type: ignore[method-assign] # that is the point


@pytest.mark.parametrize("kind", [Messages, OnlyIterable])
@pytest.mark.parametrize("is_awaited", [False, True])
@virtual
async def test_any_async_iterable_can_be_listened_to(
    kind: type[Messages | OnlyIterable],
    is_awaited: bool,
) -> None:
    async def opened() -> Any:
        return kind(worker.data("a"), worker.data("b"))

    def direct() -> Any:
        return kind(worker.data("a"), worker.data("b"))

    worker = GatedWorker(broker=OwnListen(opened if is_awaited else direct))
    worker.let_go("a", "b")

    await worker.listen()

    assert worker.saved == ["a", "b"]
    assert len(worker.exits) == 1


@virtual
async def test_an_iterator_that_cannot_be_closed_can_be_stopped() -> None:
    class Endless(Messages):
        async def __anext__(self) -> bytes:
            await asyncio.Event().wait()
            raise NotImplementedError

    worker = GatedWorker(broker=OwnListen(Endless))
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await listening

    assert len(worker.exits) == 1


@virtual
async def test_an_error_of_calling_listen_arrives_in_a_group() -> None:
    error = ConnectionError("no broker")

    def refuse() -> Any:
        raise error

    worker = GatedWorker(broker=OwnListen(refuse))

    with pytest.raises(BaseExceptionGroup) as caught:
        await worker.listen()

    assert caught.value.exceptions == (error,)
    worker.assert_capacity_is_restored(1, 1)


# -- Clean ends --------------------------------------------------------------------


@virtual
async def test_a_finish_event_set_before_means_nothing_is_read() -> None:
    worker = GatedWorker()
    worker.put("a")
    worker.finish.set()

    await worker.listen()

    assert worker.broker.delivered == []
    assert worker.broker.queue.qsize() == 1
    assert worker.exits == [worker.receiver]
    worker.assert_capacity_is_restored(1, 1)


@virtual
async def test_the_finish_event_ends_a_wait_for_a_message_at_once() -> None:
    worker = GatedWorker()
    listening = worker.listen()
    await idle()
    moment = now()

    worker.finish.set()
    await listening

    assert now() == moment
    assert worker.broker.is_closed
    assert worker.exits == [worker.receiver]
    worker.assert_capacity_is_restored(1, 1)


@virtual
async def test_the_finish_event_ends_a_wait_for_a_slot() -> None:
    worker = GatedWorker()
    worker.put("a", "b")
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await idle()
    assert worker.broker.is_closed
    assert not listening.done()
    worker.let_go("a")
    await listening

    assert worker.broker.acked == ["a"]
    assert worker.broker.delivered == ["a"]
    assert worker.exits == [worker.receiver]
    worker.assert_capacity_is_restored(1, 1)


@pytest.mark.parametrize("signal_first", [False, True])
@virtual
async def test_a_slot_granted_with_the_finish_event_is_given_back_once(
    signal_first: bool,
) -> None:
    worker = GatedWorker()
    deliveries = worker.receiver.sem_prefetch = CountingSemaphore(1)
    worker.put("a")
    listening = worker.listen()
    await idle()
    assert deliveries.asked == 2

    steps: list[Callable[[], None]] = [
        worker.finish.set,
        functools.partial(worker.let_go, "a"),
    ]
    for step in steps if signal_first else steps[::-1]:
        step()
    await listening

    assert deliveries._value == 1
    assert worker.broker.acked == ["a"]


@pytest.mark.parametrize("signal_first", [False, True])
@virtual
async def test_a_message_that_comes_with_the_finish_event_is_executed(
    signal_first: bool,
) -> None:
    worker = GatedWorker()
    worker.let_go("a")
    listening = worker.listen()
    await idle()

    steps: list[Callable[[], None]] = [
        worker.finish.set,
        functools.partial(worker.put, "a"),
    ]
    for step in steps if signal_first else steps[::-1]:
        step()
    await listening

    assert worker.broker.acked == ["a"]
    worker.assert_capacity_is_restored(1, 1)


@virtual
async def test_a_message_given_in_answer_to_the_interruption_is_executed() -> None:
    async def listen() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield worker.data("last")
        raise NotImplementedError

    worker = GatedWorker(broker=OwnListen(listen))
    worker.let_go("last")
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await listening

    assert worker.saved == ["last"]
    assert len(worker.exits) == 1
    worker.assert_capacity_is_restored(1, 1)


@virtual
async def test_opening_and_closing_a_broker_are_not_interrupted() -> None:
    """Only waiting for a message is: what is opened to its end can be closed."""
    is_closed = False

    class Listening(Sore):
        async def aclose(self) -> None:
            nonlocal is_closed
            await asyncio.sleep(5)
            is_closed = True

    async def opened() -> Listening:
        await asyncio.sleep(5)
        return Listening(worker.data("a"))

    worker = GatedWorker(broker=OwnListen(opened))
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await listening

    assert is_closed
    assert worker.started == []
    assert len(worker.exits) == 1


@pytest.mark.parametrize("lost", [0, 1, 5])
@virtual
async def test_a_broker_that_loses_interruptions_is_stopped_nevertheless(
    lost: int,
) -> None:
    """Some do, in their clean-up, and wait for the next message."""

    async def listen() -> AsyncGenerator[bytes, None]:
        for _ in range(lost):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()
        yield b""

    worker = GatedWorker(broker=OwnListen(listen))
    listening = worker.listen()
    await idle()
    moment = now()

    worker.finish.set()
    await listening

    assert now() - moment <= 2 * lost
    assert len(worker.exits) == 1
    worker.assert_capacity_is_restored(1, 1)


@virtual
async def test_an_interrupted_broker_has_time_to_clean_up() -> None:
    is_clean = False

    async def listen() -> AsyncGenerator[bytes, None]:
        nonlocal is_clean
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            await asyncio.sleep(1.5)
            is_clean = True

    worker = GatedWorker(broker=OwnListen(listen))
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await listening

    assert is_clean


@pytest.mark.parametrize("lost", [0, 1, 3])
@virtual
async def test_a_clean_up_may_limit_its_time_however_often_it_was_interrupted(
    lost: int,
) -> None:
    """An interruption that was answered is over: it cancels no limit set later."""

    class Tidy(Sore):
        is_overdue = False

        async def __anext__(self) -> bytes:
            for _ in range(lost):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            await asyncio.Event().wait()
            raise NotImplementedError

        async def aclose(self) -> None:
            try:
                # Longer than the reader waits before it interrupts once more.
                await asyncio.wait_for(asyncio.Event().wait(), 5)
            except asyncio.TimeoutError:
                self.is_overdue = True

    messages = Tidy()
    worker = GatedWorker(broker=OwnListen(lambda: messages))
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await listening

    assert messages.is_overdue
    worker.assert_capacity_is_restored(1, 1)


@virtual
async def test_what_was_read_before_the_finish_event_is_executed_in_order() -> None:
    worker = GatedWorker(max_prefetch=2)
    worker.put("a", "b", "c", "d")
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await idle()
    worker.let_go("a", "b", "c", "d")
    await listening

    assert worker.started == ["a", "b", "c"]
    assert worker.broker.acked == ["a", "b", "c"]
    assert worker.broker.queue.qsize() == 1
    worker.assert_capacity_is_restored(1, 3)


@pytest.mark.parametrize("prefetch", [0, 5])
@virtual
async def test_after_the_last_task_to_execute_the_next_stays_in_the_broker(
    prefetch: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker(max_tasks_to_execute=2, max_prefetch=prefetch)
    worker.put("a", "b", "c")
    worker.let_go("a", "b", "c")

    await worker.listen()

    assert worker.broker.acked == ["a", "b"]
    assert worker.broker.queue.qsize() == 1
    assert worker.broker.is_closed
    assert worker.exits == [worker.receiver]
    assert any("Max number of tasks" in record.message for record in caplog.records)
    worker.assert_capacity_is_restored(1, 1 + prefetch)


@pytest.mark.parametrize("limit", [None, 0])
@virtual
async def test_no_number_of_tasks_to_execute_is_no_limit(limit: int | None) -> None:
    worker = GatedWorker(max_tasks_to_execute=limit)
    names = [str(number) for number in range(5)]
    worker.put(*names)
    worker.let_go(*names)
    worker.broker.end()

    await worker.listen()

    assert worker.broker.acked == names


@virtual
async def test_the_end_of_the_brokers_messages_ends_listening(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker(max_prefetch=5)
    worker.put("a", "b")
    worker.broker.end()
    listening = worker.listen()
    await idle()
    assert worker.exits == []
    worker.let_go("a", "b")

    await listening

    assert worker.broker.acked == ["a", "b"]
    assert worker.exits == [worker.receiver]
    assert complaints(caplog) == []
    worker.assert_capacity_is_restored(1, 6)


@virtual
async def test_with_all_slots_busy_and_nothing_queued_the_final_wait_begins_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker()
    worker.put("a")
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await idle()

    lines = [record.message for record in caplog.records]
    assert any("Waiting for 1 running task" in line for line in lines)
    worker.let_go("a")
    await listening


@virtual
async def test_each_step_of_a_stop_is_told_at_debug_level_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker()
    worker.finish.set()
    caplog.set_level(logging.DEBUG, "taskiq")

    await worker.listen()

    told = [r.message for r in caplog.records if r.levelno == logging.INFO]
    assert told[0] == "Listening started."
    assert [line.partition(",")[0] for line in told[1:]] == ["The broker"]
    lines = [r.message for r in caplog.records if r.levelno == logging.DEBUG]
    assert any("prefetching" in line for line in lines)
    assert any("runner" in line for line in lines)


@virtual
async def test_an_error_of_on_exit_is_raised() -> None:
    def broken(receiver: Receiver) -> None:
        raise LookupError("on_exit")

    worker = GatedWorker(on_exit=broken)
    worker.finish.set()

    with pytest.raises(LookupError, match="on_exit"):
        await worker.listen()


@virtual
async def test_a_receiver_can_listen_again() -> None:
    worker = GatedWorker(max_async_tasks=2, max_prefetch=1)
    for names in (["a", "b"], ["c", "d"]):
        worker.put(*names)
        worker.let_go(*names)
        worker.broker.end()
        await worker.listen()

    assert worker.broker.acked == ["a", "b", "c", "d"]
    assert worker.exits == [worker.receiver] * 2
    worker.assert_capacity_is_restored(2, 3)


@virtual
async def test_a_message_given_to_the_callback_after_a_stop_is_executed() -> None:
    worker = GatedWorker(wait_tasks_timeout=0)
    worker.let_go("a")
    worker.finish.set()
    await worker.listen()

    await worker.receiver.callback(worker.data("a"))

    assert worker.saved == ["a"]


# -- The final wait ----------------------------------------------------------------


@virtual
async def test_running_tasks_are_waited_for_without_limit_by_default() -> None:
    worker = GatedWorker()
    worker.put("a")
    listening = worker.listen()
    await idle()

    worker.finish.set()
    worker.let_go_at(1_000_000, "a")
    await listening

    assert now() == 1_000_000
    assert worker.broker.acked == ["a"]


@pytest.mark.parametrize("seconds", [0, 5])
@virtual
async def test_what_runs_after_the_wait_is_cancelled_and_left_for_redelivery(
    seconds: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker(wait_tasks_timeout=seconds)
    worker.put("a")
    listening = worker.listen()
    await idle()
    moment = now()

    worker.finish.set()
    await listening

    assert now() == moment + seconds
    assert worker.cancelled == ["a"]
    assert worker.broker.acked == []
    assert worker.saved == []
    [line] = complaints(caplog)
    assert "task work with ID a" in line
    assert worker.exits == [worker.receiver]
    worker.assert_capacity_is_restored(1, 1)


@virtual
async def test_what_ends_within_the_wait_is_settled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker(wait_tasks_timeout=5)
    worker.put("a")
    listening = worker.listen()
    await idle()

    worker.finish.set()
    worker.let_go_at(now() + 4, "a")
    await listening

    assert worker.broker.acked == ["a"]
    assert complaints(caplog) == []


@virtual
async def test_the_wait_covers_what_is_still_queued(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker(max_prefetch=3, wait_tasks_timeout=5)
    worker.put("a", "b", "c", "d")
    listening = worker.listen()
    await idle()
    moment = now()

    worker.finish.set()
    worker.let_go_at(moment + 3, "a")
    await listening

    assert now() == moment + 5
    assert worker.started == ["a", "b"]
    assert worker.broker.acked == ["a"]
    assert worker.cancelled == ["b"]
    discarded, stopped = complaints(caplog)
    assert DISCARDING.format(2) in discarded
    assert "task work with ID b" in stopped
    worker.assert_capacity_is_restored(1, 4)


@virtual
async def test_a_task_that_resists_its_cancellation_is_told_and_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker(wait_tasks_timeout=1)
    stubborn = asyncio.Event()

    async def resist() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await stubborn.wait()
        await stubborn.wait()

    task = worker.broker.register_task(resist, task_name="resist")
    worker.broker.put(message_bytes(task), "id")
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await listening

    assert len(complaints(caplog)) == 2
    assert "resist with ID id" in complaints(caplog)[0]
    # Its slots come back when it ends, though nobody listens any more.
    stubborn.set()
    await idle()
    worker.assert_capacity_is_restored(1, 1)


# -- Ends by an error --------------------------------------------------------------


class FailingBroker(QueueBroker):
    """Raises from its generator when it is told to."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            yield message
        raise self.error


@virtual
async def test_an_error_of_the_broker_arrives_in_a_group_while_tasks_run_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ConnectionError("lost the broker")
    worker = GatedWorker(
        broker=FailingBroker(error), max_prefetch=3, wait_tasks_timeout=5
    )
    worker.put("a", "b", "c")
    worker.broker.end()

    with pytest.raises(BaseExceptionGroup) as caught:
        await worker.listen()

    assert now() == 0
    assert caught.value.exceptions == (error,)
    assert worker.broker.acked == []
    assert worker.started == ["a"]
    [line] = complaints(caplog)
    assert DISCARDING.format(2) in line
    assert worker.exits == []
    await asyncio.sleep(10)
    assert worker.cancelled == []
    worker.let_go("a")
    await idle()
    assert worker.broker.acked == ["a"]
    worker.assert_capacity_is_restored(1, 4)


@virtual
async def test_a_callback_that_cannot_be_started_ends_listening(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = LookupError("no callback")

    class Unstartable(Receiver):
        def callback(self, **given: Any) -> Any:  # type: ignore[override] # keywords only
            raise error

    worker = GatedWorker(receiver_class=Unstartable, max_async_tasks=1, max_prefetch=2)
    worker.put("a", "b", "c")

    with pytest.raises(BaseExceptionGroup) as caught:
        await worker.listen()

    assert caught.value.exceptions == (error,)
    assert worker.broker.acked == []
    lines = complaints(caplog)
    assert any(
        "Discarding 1 prefetched delivery during Receiver cleanup" in line
        for line in lines
    )
    assert worker.broker.is_closed
    worker.assert_capacity_is_restored(1, 3)


@virtual
async def test_a_broker_that_cancels_itself_ends_listening() -> None:
    worker = GatedWorker(broker=FailingBroker(asyncio.CancelledError()))
    worker.put("a")
    worker.let_go("a")
    worker.broker.end()

    await worker.listen()

    assert worker.broker.acked == ["a"]
    assert worker.exits == [worker.receiver]
    worker.assert_capacity_is_restored(1, 1)


# -- Ends by cancellation ----------------------------------------------------------


@virtual
async def test_a_cancelled_listener_discards_what_waits_and_cancels_what_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker(max_prefetch=3)
    worker.put("a", "b", "c", "d")
    listening = worker.listen()
    await idle()
    moment = now()

    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert now() == moment
    assert worker.started == ["a"]
    assert worker.cancelled == ["a"]
    assert worker.broker.acked == []
    assert worker.broker.is_closed
    discarded, stopped = complaints(caplog)
    assert DISCARDING.format(3) in discarded
    assert "task work with ID a" in stopped
    assert worker.exits == []
    worker.assert_capacity_is_restored(1, 4)


@virtual
async def test_a_cancelled_listener_gives_what_runs_the_time_it_was_told_to() -> None:
    worker = GatedWorker(max_async_tasks=2, wait_tasks_timeout=5)
    worker.put("a", "b")
    listening = worker.listen()
    await idle()
    moment = now()

    listening.cancel()
    worker.let_go_at(moment + 2, "a")
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert now() == moment + 5
    assert worker.broker.acked == ["a"]
    assert worker.cancelled == ["b"]
    worker.assert_capacity_is_restored(2, 2)


@pytest.mark.parametrize("turns", range(6))
@virtual
async def test_a_listener_cancelled_twice_waits_no_longer_and_forgets_nothing(
    turns: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = GatedWorker(max_prefetch=3, wait_tasks_timeout=1000)
    worker.put("a", "b", "c", "d")
    listening = worker.listen()
    await idle()
    moment = now()

    listening.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    listening.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    listening.cancel()  # two in one turn of the loop count as one
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert now() == moment
    assert worker.cancelled == ["a"]
    assert worker.broker.is_closed
    assert any(DISCARDING.format(3) in line for line in complaints(caplog))
    worker.assert_capacity_is_restored(1, 4)


@virtual
async def test_a_listener_cancelled_in_its_final_wait_leaves_nothing_behind() -> None:
    worker = GatedWorker(max_prefetch=1)
    worker.put("a", "b")
    listening = worker.listen()
    await idle()
    worker.finish.set()
    await idle()

    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert worker.cancelled == ["a"]
    assert worker.started == ["a"]
    assert worker.broker.acked == []
    assert worker.exits == []
    worker.assert_capacity_is_restored(1, 2)


@pytest.mark.parametrize("turns", range(8))
@virtual
async def test_a_listener_cancelled_while_it_begins_leaves_nothing_behind(
    turns: int,
) -> None:
    worker = GatedWorker(max_prefetch=1)
    worker.put("a", "b")
    listening = worker.listen()
    for _ in range(turns):
        await asyncio.sleep(0)

    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert worker.cancelled == worker.started
    assert worker.broker.is_closed == bool(worker.broker.delivered)
    assert worker.broker.acked == []
    worker.assert_capacity_is_restored(1, 2)


@virtual
async def test_a_receiver_can_listen_again_after_a_cancellation() -> None:
    worker = GatedWorker(max_prefetch=1)
    worker.put("a", "b", "c")
    listening = worker.listen()
    await idle()
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    worker.let_go("c")
    worker.broker.end()
    await worker.listen()

    assert worker.broker.acked == ["c"]
    worker.assert_capacity_is_restored(1, 2)


# -- Lifecycle errors --------------------------------------------------------------


class Sore:
    """An iterator that raises when it is interrupted, and when it is closed."""

    def __init__(
        self,
        *messages: bytes,
        interrupted: Exception | None = None,
        closed: Exception | None = None,
    ) -> None:
        self.messages = list(messages)
        self.interrupted = interrupted
        self.closed = closed

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.messages:
            return self.messages.pop(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as exc:
            if self.interrupted is not None:
                raise self.interrupted from exc
            raise
        raise NotImplementedError

    async def aclose(self) -> None:
        if self.closed is not None:
            raise self.closed


@pytest.mark.parametrize("place", ["interrupted", "closed"])
@virtual
async def test_an_error_of_stopping_the_broker_is_raised_after_what_was_read(
    place: str,
) -> None:
    error = ConnectionError(place)
    worker = GatedWorker(
        broker=OwnListen(
            lambda: Sore(worker.data("a"), worker.data("b"), **{place: error}),
        ),
        max_prefetch=2,
    )
    listening = worker.listen()
    await idle()

    worker.finish.set()
    await idle()
    assert not listening.done()
    worker.let_go("a", "b")
    with pytest.raises(ConnectionError) as caught:
        await listening

    assert caught.value is error
    assert worker.saved == ["a", "b"]
    assert worker.exits == []
    worker.assert_capacity_is_restored(1, 3)


@virtual
async def test_of_two_errors_of_stopping_the_first_is_raised_and_the_other_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = ConnectionError("interrupted"), ConnectionError("closed")
    worker = GatedWorker(
        broker=OwnListen(lambda: Sore(interrupted=first, closed=second))
    )
    listening = worker.listen()
    await idle()

    worker.finish.set()
    with pytest.raises(ConnectionError) as caught:
        await listening

    assert caught.value is first
    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "additional" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is second


@virtual
async def test_an_error_of_closing_an_exhausted_broker_is_raised() -> None:
    error = ConnectionError("closed")

    class Short(Sore):
        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

    worker = GatedWorker(broker=OwnListen(lambda: Short(closed=error)))

    with pytest.raises(ConnectionError) as caught:
        await worker.listen()

    assert caught.value is error
    assert worker.exits == []


@virtual
async def test_an_error_of_stopping_does_not_hide_a_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ConnectionError("closed")
    worker = GatedWorker(broker=OwnListen(lambda: Sore(closed=error)))
    listening = worker.listen()
    await idle()

    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert_lifecycle_error_logged(caplog, error)


@virtual
async def test_an_error_of_stopping_does_not_hide_an_error_of_the_broker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    original, error = ConnectionError("lost"), ConnectionError("closed")

    class Failing(Sore):
        async def __anext__(self) -> bytes:
            raise original

    worker = GatedWorker(broker=OwnListen(lambda: Failing(closed=error)))

    with pytest.raises(BaseExceptionGroup) as caught:
        await worker.listen()

    assert caught.value.exceptions == (original,)
    assert_lifecycle_error_logged(caplog, error)


def assert_lifecycle_error_logged(
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    [record] = [
        record
        for record in caplog.records
        if "A Receiver listener lifecycle error was recorded" in record.getMessage()
    ]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@virtual
async def test_an_error_of_stopping_is_forgotten_when_listening_again() -> None:
    error = ConnectionError("closed")
    errors: list[Exception | None] = [error, None]
    worker = GatedWorker(broker=OwnListen(lambda: Sore(closed=errors.pop(0))))
    worker.finish.set()
    await worker.listen()  # nothing was opened
    worker.finish.clear()
    listening = worker.listen()
    await idle()
    worker.finish.set()
    with pytest.raises(ConnectionError):
        await listening
    worker.finish.clear()

    listening = worker.listen()
    await idle()
    worker.finish.set()
    await listening

    assert worker.exits == [worker.receiver] * 2


# -- A callback of one's own -------------------------------------------------------


@pytest.mark.parametrize("on_the_instance", [False, True])
@virtual
async def test_a_replaced_callback_is_called_with_keywords_only(
    on_the_instance: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[dict[str, Any]] = []

    class Own(Receiver):
        async def callback(self, **given: Any) -> None:  # type: ignore[override] # keywords only
            calls.append(given)
            await super().callback(**given)

    worker = GatedWorker(receiver_class=Receiver if on_the_instance else Own)
    if on_the_instance:
        original = worker.receiver.callback

        async def own(**given: Any) -> None:
            calls.append(given)
            await original(**given)

        monkeypatch.setattr(worker.receiver, "callback", own)
    worker.put("a")
    worker.let_go("a")
    worker.broker.end()

    await worker.listen()

    [call] = calls
    assert set(call) == {"message", "raise_err"}
    assert isinstance(call["message"], AckableMessage)
    assert call["message"].data == worker.data("a")
    assert call["raise_err"] is False
    assert worker.broker.acked == ["a"]
    worker.assert_capacity_is_restored(1, 1)


@virtual
async def test_a_replaced_callback_that_raises_is_told_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Own(Receiver):
        async def callback(self, **given: Any) -> None:  # type: ignore[override] # keywords only
            raise LookupError("my own mistake")

    worker = GatedWorker(receiver_class=Own)
    worker.put("a", "b")
    worker.broker.end()

    await worker.listen()

    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 2
    for record in errors:
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], LookupError)
    assert worker.broker.delivered == ["a", "b"]
    assert worker.broker.acked == []
    worker.assert_capacity_is_restored(1, 1)


# -- Silent ends -------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["pre_execute", "post_execute"])
@virtual
async def test_a_hook_that_cancels_itself_is_told_and_ends_nobody_else(
    hook: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class CancelsItself(TaskiqMiddleware):
        def _reached(self, at: str, message: TaskiqMessage) -> None:
            if at == hook and message.task_id == "a":
                raise asyncio.CancelledError

        async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            self._reached("pre_execute", message)
            return message

        async def post_execute(self, message: TaskiqMessage, result: Any) -> None:
            self._reached("post_execute", message)

    worker = GatedWorker()
    worker.broker.add_middlewares(CancelsItself())
    worker.put("a", "b")
    worker.let_go("a", "b")
    worker.broker.end()

    await worker.listen()

    assert worker.broker.acked[-1] == "b"
    assert any("task work with ID a" in line for line in complaints(caplog))
    worker.assert_capacity_is_restored(1, 1)


def test_only_the_first_moment_at_which_a_stop_is_asked_for_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter([10.0, 13.0, 16.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    stop = Stop()
    stop.ask()
    stop.ask()
    assert (stop.left(5), stop.is_over(5)) == (2.0, True)


@pytest.mark.parametrize("stage", ["prefetcher", "runner"])
async def test_the_stages_of_a_listen_run_nowhere_else(stage: str) -> None:
    receiver = Receiver(QueueBroker(), run_startup=False)
    queue: asyncio.Queue[Any] = asyncio.Queue()
    given = {"prefetcher": (queue, asyncio.Event()), "runner": (queue,)}
    with pytest.raises(RuntimeError, match=r"inside its listen\(\)"):
        await getattr(receiver, stage)(*given[stage])
