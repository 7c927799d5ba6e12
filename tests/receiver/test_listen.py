"""Listening to a broker: capacity, order, and every way to stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskiq import AckableMessage, BrokerMessage, TaskiqMessage, TaskiqMiddleware
from taskiq.receiver import Receiver
from taskiq.receiver.cancellation import within
from tests.receiver.journal import Worker, complaints
from tests.support.brokers import QueueBroker, message_bytes
from tests.support.virtual_time import run_virtual, virtual

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

    from taskiq import AsyncTaskiqDecoratedTask

DISCARDING = "Discarding {} prefetched deliveries during Receiver cleanup"


async def idle() -> None:
    """Let everything happen that can happen before time passes."""
    await asyncio.sleep(1)


def now() -> float:
    return asyncio.get_running_loop().time()


class Bench:
    """A receiver with one task, `work`, whose calls last until they are let go.

    :param options: of the receiver.
    """

    def __init__(
        self,
        receiver_class: type[Receiver] = Receiver,
        broker: QueueBroker | None = None,
        **options: Any,
    ) -> None:
        self.worker = Worker()
        self.broker = self.worker.broker
        if broker is not None:
            broker.with_result_backend(self.worker.backend)
            self.broker = broker
        self.started: list[str] = []
        self.running: set[str] = set()
        self.most_running = 0
        self.cancelled: list[str] = []
        self.finish = asyncio.Event()
        self.exits: list[Receiver] = []
        self._gates: dict[str, asyncio.Event] = {}
        self.task: AsyncTaskiqDecoratedTask[..., Any] = self.broker.register_task(
            self._work(),
            task_name="work",
        )
        self.receiver = receiver_class(
            self.broker,
            **{"max_async_tasks": 1, "on_exit": self.exits.append, **options},
        )

    def _work(self) -> Callable[[str], Coroutine[Any, Any, str]]:
        async def work(name: str) -> str:
            self.started.append(name)
            self.running.add(name)
            self.most_running = max(self.most_running, len(self.running))
            try:
                await self._gate(name).wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise
            finally:
                self.running.remove(name)
            return name

        return work

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    def data(self, name: str) -> bytes:
        return message_bytes(self.task, name, task_id=name)

    def send(self, *names: str) -> None:
        """Put messages into the broker, in order."""
        for name in names:
            self.broker.queue.put_nowait(
                BrokerMessage(
                    task_id=name,
                    task_name="work",
                    message=self.data(name),
                    labels={},
                ),
            )

    def let_go(self, *names: str) -> None:
        """Let calls end, now or as soon as they start."""
        for name in names:
            self._gate(name).set()

    def let_go_at(self, moment: float, *names: str) -> None:
        asyncio.get_running_loop().call_at(moment, self.let_go, *names)

    def listen(self) -> asyncio.Task[None]:
        return asyncio.ensure_future(self.receiver.listen(self.finish))

    @property
    def saved(self) -> list[str]:
        return self.worker.backend.saved

    def assert_capacity_is_restored(self, executions: int, deliveries: int) -> None:
        if self.receiver.sem is not None:
            assert self.receiver.sem._value == executions
        assert self.receiver.sem_prefetch._value == deliveries


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
    bench = Bench(max_async_tasks=2)
    bench.send("a", "b", "c", "d")
    listening = bench.listen()
    await idle()

    assert bench.started == ["a", "b"]
    assert bench.broker.delivered == ["a", "b"]

    bench.let_go("a")
    await idle()

    assert bench.broker.delivered == ["a", "b", "c"]
    assert bench.running == {"b", "c"}
    bench.let_go("b", "c", "d")
    bench.broker.end()
    await listening
    assert bench.saved == ["a", "b", "c", "d"]
    bench.assert_capacity_is_restored(2, 2)


@virtual
async def test_the_prefetch_is_read_beyond_what_runs() -> None:
    bench = Bench(max_async_tasks=1, max_prefetch=2)
    bench.send("a", "b", "c", "d")
    listening = bench.listen()
    await idle()

    assert bench.started == ["a"]
    assert bench.broker.delivered == ["a", "b", "c"]

    bench.let_go("a")
    await idle()

    assert bench.started == ["a", "b"]
    assert bench.broker.delivered == ["a", "b", "c", "d"]
    bench.let_go("b", "c", "d")
    bench.broker.end()
    await listening
    bench.assert_capacity_is_restored(1, 3)


@virtual
async def test_without_a_limit_every_message_starts_at_once() -> None:
    bench = Bench(max_async_tasks=None)
    names = [str(number) for number in range(20)]
    bench.send(*names)
    listening = bench.listen()
    await idle()

    assert bench.started == names
    bench.let_go(*names)
    bench.broker.end()
    await listening
    assert bench.broker.acked == names
    bench.assert_capacity_is_restored(0, 1)


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
        bench = Bench(max_async_tasks=limit, max_prefetch=prefetch)
        sent: list[str] = []
        listening = bench.listen()
        for step in steps:
            if step == "send":
                sent.append(str(len(sent)))
                bench.send(sent[-1])
            elif step == "end one" and bench.running:
                bench.let_go(min(bench.running, key=int))
            else:
                bench.let_go(*bench.running)
            await idle()
            admitted = len(bench.broker.delivered) - len(bench.broker.acked)
            assert admitted <= limit + prefetch
            assert len(bench.running) <= limit
            # Nobody waits while there is capacity.
            unfinished = len(sent) - len(bench.broker.acked)
            assert admitted == min(limit + prefetch, unfinished)
            assert len(bench.running) == min(limit, unfinished)
        bench.let_go(*sent)
        bench.broker.end()
        await listening

        assert bench.most_running <= limit
        assert bench.started == bench.broker.delivered == sent
        assert sorted(bench.broker.acked) == sorted(sent)
        bench.assert_capacity_is_restored(limit, limit + prefetch)

    run_virtual(main())


@pytest.mark.parametrize("prefetch", [0, 2])
@virtual
async def test_each_semaphore_is_acquired_once_per_admission(prefetch: int) -> None:
    bench = Bench()
    executions = bench.receiver.sem = CountingSemaphore(2)
    deliveries = bench.receiver.sem_prefetch = CountingSemaphore(2 + prefetch)
    names = [str(number) for number in range(7)]
    bench.send(*names)
    listening = bench.listen()
    await idle()
    bench.let_go(*names)
    await idle()
    # An idle receiver waits for one more message, and asks no more than once for it.
    assert deliveries.asked == 8
    assert executions.asked == 7
    bench.finish.set()
    await listening

    assert bench.most_running == 2
    assert (deliveries.asked, deliveries.released) == (8, 8)
    assert (executions.asked, executions.released) == (7, 7)


@virtual
async def test_an_unlimited_receiver_gives_the_slot_back_when_a_callback_starts() -> (
    None
):
    bench = Bench(max_async_tasks=0)
    deliveries = bench.receiver.sem_prefetch = CountingSemaphore(1)
    bench.send("a", "b")
    listening = bench.listen()
    await idle()

    assert bench.running == {"a", "b"}
    assert deliveries.released == 2
    bench.let_go("a", "b")
    bench.broker.end()
    await listening
    assert deliveries.asked == deliveries.released == 3


@virtual
async def test_a_refused_message_takes_its_slots_and_gives_them_back() -> None:
    bench = Bench()
    executions = bench.receiver.sem = CountingSemaphore(1)
    bench.broker.queue.put_nowait(
        BrokerMessage(task_id="bad", task_name="any", message=b"?", labels={}),
    )
    bench.send("a")
    bench.let_go("a")
    bench.broker.end()

    await bench.listen()

    assert bench.broker.acked == ["bad", "a"]
    assert executions.asked == executions.released == 2
    bench.assert_capacity_is_restored(1, 1)


@virtual
async def test_an_idle_receiver_has_no_more_tasks_and_timers_than_at_its_start() -> (
    None
):
    bench = Bench(max_async_tasks=3)
    listening = bench.listen()
    await idle()
    at_start = len(asyncio.all_tasks())
    names = [str(number) for number in range(10)]
    bench.send(*names)
    bench.let_go(*names)
    await idle()

    loop: Any = asyncio.get_running_loop()
    assert bench.broker.acked == names
    assert len(asyncio.all_tasks()) == at_start
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
    bench.finish.set()
    await listening


@virtual
async def test_running_callbacks_are_not_collected_as_garbage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    waiting: list[weakref.ref[Any]] = []

    async def wait_for_nobody() -> None:
        # Nothing but this call knows the future, nothing but the future this call.
        future = asyncio.get_running_loop().create_future()
        waiting.append(weakref.ref(future))
        await future

    task = bench.broker.register_task(wait_for_nobody, task_name="lonely")
    callback = bench.receiver.callback

    async def own_callback(**given: Any) -> None:
        await callback(**given)

    monkeypatch.setattr(bench.receiver, "callback", own_callback)
    bench.broker.queue.put_nowait(
        BrokerMessage(
            task_id="id",
            task_name="lonely",
            message=message_bytes(task),
            labels={},
        ),
    )
    listening = bench.listen()
    await idle()

    gc.collect()

    future = waiting[0]()
    assert future is not None
    future.set_result(None)
    bench.broker.end()
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
    bench = Bench(broker=broker, run_startup=run_startup)
    broker.end()

    await bench.listen()

    assert broker.events == ["startup", "listen"][not run_startup :]


@virtual
async def test_an_error_of_the_start_is_raised_as_it_is() -> None:
    error = ConnectionError("no broker")
    broker = StartedBroker(error)
    bench = Bench(broker=broker)

    with pytest.raises(ConnectionError) as caught:
        await bench.listen()

    assert caught.value is error
    assert broker.events == ["startup"]
    assert bench.exits == []


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
        return kind(bench.data("a"), bench.data("b"))

    def direct() -> Any:
        return kind(bench.data("a"), bench.data("b"))

    bench = Bench(broker=OwnListen(opened if is_awaited else direct))
    bench.let_go("a", "b")

    await bench.listen()

    assert bench.saved == ["a", "b"]
    assert len(bench.exits) == 1


@virtual
async def test_an_iterator_that_cannot_be_closed_can_be_stopped() -> None:
    class Endless(Messages):
        async def __anext__(self) -> bytes:
            await asyncio.Event().wait()
            raise NotImplementedError

    bench = Bench(broker=OwnListen(Endless))
    listening = bench.listen()
    await idle()

    bench.finish.set()
    await listening

    assert len(bench.exits) == 1


@virtual
async def test_an_error_of_calling_listen_arrives_in_a_group() -> None:
    error = ConnectionError("no broker")

    def refuse() -> Any:
        raise error

    bench = Bench(broker=OwnListen(refuse))

    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.listen()

    assert caught.value.exceptions == (error,)
    bench.assert_capacity_is_restored(1, 1)


# -- Clean ends --------------------------------------------------------------------


@virtual
async def test_a_finish_event_set_before_means_nothing_is_read() -> None:
    bench = Bench()
    bench.send("a")
    bench.finish.set()

    await bench.listen()

    assert bench.broker.delivered == []
    assert bench.broker.queue.qsize() == 1
    assert bench.exits == [bench.receiver]
    bench.assert_capacity_is_restored(1, 1)


@virtual
async def test_the_finish_event_ends_a_wait_for_a_message_at_once() -> None:
    bench = Bench()
    listening = bench.listen()
    await idle()
    moment = now()

    bench.finish.set()
    await listening

    assert now() == moment
    assert bench.broker.is_closed
    assert bench.exits == [bench.receiver]
    bench.assert_capacity_is_restored(1, 1)


@virtual
async def test_the_finish_event_ends_a_wait_for_a_slot() -> None:
    bench = Bench()
    bench.send("a", "b")
    listening = bench.listen()
    await idle()

    bench.finish.set()
    await idle()
    assert bench.broker.is_closed
    assert not listening.done()
    bench.let_go("a")
    await listening

    assert bench.broker.acked == ["a"]
    assert bench.broker.delivered == ["a"]
    assert bench.exits == [bench.receiver]
    bench.assert_capacity_is_restored(1, 1)


@pytest.mark.parametrize("signal_first", [False, True])
@virtual
async def test_a_slot_granted_with_the_finish_event_is_given_back_once(
    signal_first: bool,
) -> None:
    bench = Bench()
    deliveries = bench.receiver.sem_prefetch = CountingSemaphore(1)
    bench.send("a")
    listening = bench.listen()
    await idle()
    assert deliveries.asked == 2

    steps: list[Callable[[], None]] = [
        bench.finish.set,
        functools.partial(bench.let_go, "a"),
    ]
    for step in steps if signal_first else steps[::-1]:
        step()
    await listening

    assert deliveries._value == 1
    assert bench.broker.acked == ["a"]


@pytest.mark.parametrize("signal_first", [False, True])
@virtual
async def test_a_message_that_comes_with_the_finish_event_is_executed(
    signal_first: bool,
) -> None:
    bench = Bench()
    bench.let_go("a")
    listening = bench.listen()
    await idle()

    steps: list[Callable[[], None]] = [
        bench.finish.set,
        functools.partial(bench.send, "a"),
    ]
    for step in steps if signal_first else steps[::-1]:
        step()
    await listening

    assert bench.broker.acked == ["a"]
    bench.assert_capacity_is_restored(1, 1)


@virtual
async def test_a_message_given_in_answer_to_the_interruption_is_executed() -> None:
    async def listen() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield bench.data("last")
        raise NotImplementedError

    bench = Bench(broker=OwnListen(listen))
    bench.let_go("last")
    listening = bench.listen()
    await idle()

    bench.finish.set()
    await listening

    assert bench.saved == ["last"]
    assert len(bench.exits) == 1
    bench.assert_capacity_is_restored(1, 1)


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
        return Listening(bench.data("a"))

    bench = Bench(broker=OwnListen(opened))
    listening = bench.listen()
    await idle()

    bench.finish.set()
    await listening

    assert is_closed
    assert bench.started == []
    assert len(bench.exits) == 1


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

    bench = Bench(broker=OwnListen(listen))
    listening = bench.listen()
    await idle()
    moment = now()

    bench.finish.set()
    await listening

    assert now() - moment <= 2 * lost
    assert len(bench.exits) == 1
    bench.assert_capacity_is_restored(1, 1)


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

    bench = Bench(broker=OwnListen(listen))
    listening = bench.listen()
    await idle()

    bench.finish.set()
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
                await within(5, asyncio.Event().wait())
            except TimeoutError:
                self.is_overdue = True

    messages = Tidy()
    bench = Bench(broker=OwnListen(lambda: messages))
    listening = bench.listen()
    await idle()

    bench.finish.set()
    await listening

    assert messages.is_overdue
    bench.assert_capacity_is_restored(1, 1)


@virtual
async def test_what_was_read_before_the_finish_event_is_executed_in_order() -> None:
    bench = Bench(max_prefetch=2)
    bench.send("a", "b", "c", "d")
    listening = bench.listen()
    await idle()

    bench.finish.set()
    await idle()
    bench.let_go("a", "b", "c", "d")
    await listening

    assert bench.started == ["a", "b", "c"]
    assert bench.broker.acked == ["a", "b", "c"]
    assert bench.broker.queue.qsize() == 1
    bench.assert_capacity_is_restored(1, 3)


@pytest.mark.parametrize("prefetch", [0, 5])
@virtual
async def test_after_the_last_task_to_execute_the_next_stays_in_the_broker(
    prefetch: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(max_tasks_to_execute=2, max_prefetch=prefetch)
    bench.send("a", "b", "c")
    bench.let_go("a", "b", "c")

    await bench.listen()

    assert bench.broker.acked == ["a", "b"]
    assert bench.broker.queue.qsize() == 1
    assert bench.broker.is_closed
    assert bench.exits == [bench.receiver]
    assert any("Max number of tasks" in record.message for record in caplog.records)
    bench.assert_capacity_is_restored(1, 1 + prefetch)


@pytest.mark.parametrize("limit", [None, 0])
@virtual
async def test_no_number_of_tasks_to_execute_is_no_limit(limit: int | None) -> None:
    bench = Bench(max_tasks_to_execute=limit)
    names = [str(number) for number in range(5)]
    bench.send(*names)
    bench.let_go(*names)
    bench.broker.end()

    await bench.listen()

    assert bench.broker.acked == names


@virtual
async def test_the_end_of_the_brokers_messages_ends_listening(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(max_prefetch=5)
    bench.send("a", "b")
    bench.broker.end()
    listening = bench.listen()
    await idle()
    assert bench.exits == []
    bench.let_go("a", "b")

    await listening

    assert bench.broker.acked == ["a", "b"]
    assert bench.exits == [bench.receiver]
    assert complaints(caplog) == []
    bench.assert_capacity_is_restored(1, 6)


@virtual
async def test_with_all_slots_busy_and_nothing_queued_the_final_wait_begins_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.send("a")
    listening = bench.listen()
    await idle()

    bench.finish.set()
    await idle()

    lines = [record.message for record in caplog.records]
    assert any("Waiting for 1 running task" in line for line in lines)
    bench.let_go("a")
    await listening


@virtual
async def test_each_stop_is_told_at_info_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.finish.set()

    await bench.listen()

    lines = [r.message for r in caplog.records if r.levelno == logging.INFO]
    assert lines[0] == "Listening started."
    assert any("prefetching" in line for line in lines)
    assert any("runner" in line for line in lines)


@virtual
async def test_an_error_of_on_exit_is_raised() -> None:
    def broken(receiver: Receiver) -> None:
        raise LookupError("on_exit")

    bench = Bench(on_exit=broken)
    bench.finish.set()

    with pytest.raises(LookupError, match="on_exit"):
        await bench.listen()


@virtual
async def test_a_receiver_can_listen_again() -> None:
    bench = Bench(max_async_tasks=2, max_prefetch=1)
    for names in (["a", "b"], ["c", "d"]):
        bench.send(*names)
        bench.let_go(*names)
        bench.broker.end()
        await bench.listen()

    assert bench.broker.acked == ["a", "b", "c", "d"]
    assert bench.exits == [bench.receiver] * 2
    bench.assert_capacity_is_restored(2, 3)


# -- The final wait ----------------------------------------------------------------


@virtual
async def test_running_tasks_are_waited_for_without_limit_by_default() -> None:
    bench = Bench()
    bench.send("a")
    listening = bench.listen()
    await idle()

    bench.finish.set()
    bench.let_go_at(1_000_000, "a")
    await listening

    assert now() == 1_000_000
    assert bench.broker.acked == ["a"]


@pytest.mark.parametrize("seconds", [0, 5])
@virtual
async def test_what_runs_after_the_wait_is_cancelled_and_left_for_redelivery(
    seconds: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(wait_tasks_timeout=seconds)
    bench.send("a")
    listening = bench.listen()
    await idle()
    moment = now()

    bench.finish.set()
    await listening

    assert now() == moment + seconds
    assert bench.cancelled == ["a"]
    assert bench.broker.acked == []
    assert bench.saved == []
    [line] = complaints(caplog)
    assert "task work with ID a" in line
    assert bench.exits == [bench.receiver]
    bench.assert_capacity_is_restored(1, 1)


@virtual
async def test_what_ends_within_the_wait_is_settled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(wait_tasks_timeout=5)
    bench.send("a")
    listening = bench.listen()
    await idle()

    bench.finish.set()
    bench.let_go_at(now() + 4, "a")
    await listening

    assert bench.broker.acked == ["a"]
    assert complaints(caplog) == []


@virtual
async def test_the_wait_covers_what_is_still_queued(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(max_prefetch=3, wait_tasks_timeout=5)
    bench.send("a", "b", "c", "d")
    listening = bench.listen()
    await idle()
    moment = now()

    bench.finish.set()
    bench.let_go_at(moment + 3, "a")
    await listening

    assert now() == moment + 5
    assert bench.started == ["a", "b"]
    assert bench.broker.acked == ["a"]
    assert bench.cancelled == ["b"]
    discarded, stopped = complaints(caplog)
    assert DISCARDING.format(2) in discarded
    assert "task work with ID b" in stopped
    bench.assert_capacity_is_restored(1, 4)


@virtual
async def test_a_task_that_resists_its_cancellation_is_told_and_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(wait_tasks_timeout=1)
    stubborn = asyncio.Event()

    async def resist() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await stubborn.wait()
        await stubborn.wait()

    task = bench.broker.register_task(resist, task_name="resist")
    bench.broker.queue.put_nowait(
        BrokerMessage(
            task_id="id",
            task_name="resist",
            message=message_bytes(task),
            labels={},
        ),
    )
    listening = bench.listen()
    await idle()

    bench.finish.set()
    await listening

    assert len(complaints(caplog)) == 2
    assert "resist with ID id" in complaints(caplog)[0]
    # Its slots come back when it ends, though nobody listens any more.
    stubborn.set()
    await idle()
    bench.assert_capacity_is_restored(1, 1)


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
async def test_an_error_of_the_broker_arrives_in_a_group_after_what_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ConnectionError("lost the broker")
    bench = Bench(broker=FailingBroker(error), max_prefetch=3)
    bench.send("a", "b", "c")
    bench.broker.end()
    listening = bench.listen()
    await idle()
    assert not listening.done()
    bench.let_go("a", "b", "c")

    with pytest.raises(BaseExceptionGroup) as caught:
        await listening

    assert caught.value.exceptions == (error,)
    assert bench.broker.acked == ["a"]
    assert bench.started == ["a"]
    [line] = complaints(caplog)
    assert DISCARDING.format(2) in line
    assert bench.exits == []
    bench.assert_capacity_is_restored(1, 4)


@virtual
async def test_after_an_error_of_the_broker_the_wait_is_limited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ConnectionError("lost the broker")
    bench = Bench(broker=FailingBroker(error), max_prefetch=1, wait_tasks_timeout=5)
    bench.send("a")
    bench.broker.end()

    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.listen()

    assert caught.value.exceptions == (error,)
    assert now() == 5
    assert bench.cancelled == ["a"]
    assert bench.broker.acked == []
    assert any("task work with ID a" in line for line in complaints(caplog))
    bench.assert_capacity_is_restored(1, 2)


@virtual
async def test_a_callback_that_cannot_be_started_ends_listening(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = LookupError("no callback")

    class Unstartable(Receiver):
        def callback(self, **given: Any) -> Any:  # type: ignore[override] # keywords only
            raise error

    bench = Bench(Unstartable, max_async_tasks=1, max_prefetch=2)
    bench.send("a", "b", "c")

    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.listen()

    assert caught.value.exceptions == (error,)
    assert bench.broker.acked == []
    lines = complaints(caplog)
    assert any(
        "Discarding 1 prefetched delivery during Receiver cleanup" in line
        for line in lines
    )
    assert bench.broker.is_closed
    bench.assert_capacity_is_restored(1, 3)


@virtual
async def test_a_broker_that_cancels_itself_ends_listening() -> None:
    bench = Bench(broker=FailingBroker(asyncio.CancelledError()))
    bench.send("a")
    bench.let_go("a")
    bench.broker.end()

    await bench.listen()

    assert bench.broker.acked == ["a"]
    assert bench.exits == [bench.receiver]
    bench.assert_capacity_is_restored(1, 1)


# -- Ends by cancellation ----------------------------------------------------------


@virtual
async def test_a_cancelled_listener_discards_what_waits_and_cancels_what_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(max_prefetch=3)
    bench.send("a", "b", "c", "d")
    listening = bench.listen()
    await idle()
    moment = now()

    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert now() == moment
    assert bench.started == ["a"]
    assert bench.cancelled == ["a"]
    assert bench.broker.acked == []
    assert bench.broker.is_closed
    discarded, stopped = complaints(caplog)
    assert DISCARDING.format(3) in discarded
    assert "task work with ID a" in stopped
    assert bench.exits == []
    bench.assert_capacity_is_restored(1, 4)


@virtual
async def test_a_cancelled_listener_gives_what_runs_the_time_it_was_told_to() -> None:
    bench = Bench(max_async_tasks=2, wait_tasks_timeout=5)
    bench.send("a", "b")
    listening = bench.listen()
    await idle()
    moment = now()

    listening.cancel()
    bench.let_go_at(moment + 2, "a")
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert now() == moment + 5
    assert bench.broker.acked == ["a"]
    assert bench.cancelled == ["b"]
    bench.assert_capacity_is_restored(2, 2)


@pytest.mark.parametrize("turns", range(6))
@virtual
async def test_a_listener_cancelled_twice_waits_no_longer_and_forgets_nothing(
    turns: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(max_prefetch=3, wait_tasks_timeout=1000)
    bench.send("a", "b", "c", "d")
    listening = bench.listen()
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
    assert bench.cancelled == ["a"]
    assert bench.broker.is_closed
    assert any(DISCARDING.format(3) in line for line in complaints(caplog))
    bench.assert_capacity_is_restored(1, 4)


@virtual
async def test_a_listener_cancelled_in_its_final_wait_leaves_nothing_behind() -> None:
    bench = Bench(max_prefetch=1)
    bench.send("a", "b")
    listening = bench.listen()
    await idle()
    bench.finish.set()
    await idle()

    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert bench.cancelled == ["a"]
    assert bench.started == ["a"]
    assert bench.broker.acked == []
    assert bench.exits == []
    bench.assert_capacity_is_restored(1, 2)


@pytest.mark.parametrize("turns", range(8))
@virtual
async def test_a_listener_cancelled_while_it_begins_leaves_nothing_behind(
    turns: int,
) -> None:
    bench = Bench(max_prefetch=1)
    bench.send("a", "b")
    listening = bench.listen()
    for _ in range(turns):
        await asyncio.sleep(0)

    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    assert bench.cancelled == bench.started
    assert bench.broker.is_closed == bool(bench.broker.delivered)
    assert bench.broker.acked == []
    bench.assert_capacity_is_restored(1, 2)


@virtual
async def test_a_receiver_can_listen_again_after_a_cancellation() -> None:
    bench = Bench(max_prefetch=1)
    bench.send("a", "b", "c")
    listening = bench.listen()
    await idle()
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening

    bench.let_go("c")
    bench.broker.end()
    await bench.listen()

    assert bench.broker.acked == ["c"]
    bench.assert_capacity_is_restored(1, 2)


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
    bench = Bench(
        broker=OwnListen(
            lambda: Sore(bench.data("a"), bench.data("b"), **{place: error}),
        ),
        max_prefetch=2,
    )
    listening = bench.listen()
    await idle()

    bench.finish.set()
    await idle()
    assert not listening.done()
    bench.let_go("a", "b")
    with pytest.raises(ConnectionError) as caught:
        await listening

    assert caught.value is error
    assert bench.saved == ["a", "b"]
    assert bench.exits == []
    bench.assert_capacity_is_restored(1, 3)


@virtual
async def test_of_two_errors_of_stopping_the_first_is_raised_and_the_other_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = ConnectionError("interrupted"), ConnectionError("closed")
    bench = Bench(broker=OwnListen(lambda: Sore(interrupted=first, closed=second)))
    listening = bench.listen()
    await idle()

    bench.finish.set()
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

    bench = Bench(broker=OwnListen(lambda: Short(closed=error)))

    with pytest.raises(ConnectionError) as caught:
        await bench.listen()

    assert caught.value is error
    assert bench.exits == []


@virtual
async def test_an_error_of_stopping_does_not_hide_a_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ConnectionError("closed")
    bench = Bench(broker=OwnListen(lambda: Sore(closed=error)))
    listening = bench.listen()
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

    bench = Bench(broker=OwnListen(lambda: Failing(closed=error)))

    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.listen()

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
    bench = Bench(broker=OwnListen(lambda: Sore(closed=errors.pop(0))))
    bench.finish.set()
    await bench.listen()  # nothing was opened
    bench.finish.clear()
    listening = bench.listen()
    await idle()
    bench.finish.set()
    with pytest.raises(ConnectionError):
        await listening
    bench.finish.clear()

    listening = bench.listen()
    await idle()
    bench.finish.set()
    await listening

    assert bench.exits == [bench.receiver] * 2


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

    bench = Bench(Receiver if on_the_instance else Own)
    if on_the_instance:
        original = bench.receiver.callback

        async def own(**given: Any) -> None:
            calls.append(given)
            await original(**given)

        monkeypatch.setattr(bench.receiver, "callback", own)
    bench.send("a")
    bench.let_go("a")
    bench.broker.end()

    await bench.listen()

    [call] = calls
    assert set(call) == {"message", "raise_err"}
    assert isinstance(call["message"], AckableMessage)
    assert call["message"].data == bench.data("a")
    assert call["raise_err"] is False
    assert bench.broker.acked == ["a"]
    bench.assert_capacity_is_restored(1, 1)


@virtual
async def test_a_replaced_callback_that_raises_is_told_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Own(Receiver):
        async def callback(self, **given: Any) -> None:  # type: ignore[override] # keywords only
            raise LookupError("my own mistake")

    bench = Bench(Own)
    bench.send("a", "b")
    bench.broker.end()

    await bench.listen()

    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 2
    for record in errors:
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], LookupError)
    assert bench.broker.delivered == ["a", "b"]
    assert bench.broker.acked == []
    bench.assert_capacity_is_restored(1, 1)


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

    bench = Bench()
    bench.broker.add_middlewares(CancelsItself())
    bench.send("a", "b")
    bench.let_go("a", "b")
    bench.broker.end()

    await bench.listen()

    assert bench.broker.acked[-1] == "b"
    assert any("task work with ID a" in line for line in complaints(caplog))
    bench.assert_capacity_is_restored(1, 1)
