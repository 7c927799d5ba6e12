"""Stopping while batches wait, start, run and settle: the races, one by one.

`test_batch_schedules.py` finds such moments by itself; here are those worth a name.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from taskiq import AckableMessage, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.batch import BatchInfo, FlushReason
from taskiq.receiver import Receiver, running
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend, RecordingMiddleware
from tests.support.virtual_time import run_virtual

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

_FOREVER = 10_000.0


class Gate:
    """A place that says when somebody came, and lets him wait there."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def pass_through(self) -> None:
        self.reached.set()
        await self.opened.wait()


class GatedBackend(RecordingBackend):
    """Saves results once its gate is open."""

    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__()
        self.gate = gate

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        if self.gate is not None:
            await self.gate.pass_through()
        await super().set_result(task_id, result)


class GatedHooks(TaskiqMiddleware):
    """Holds messages up before they join a batch, and batches before they run."""

    def __init__(
        self,
        before_joining: Gate | None = None,
        before_running: Gate | None = None,
    ) -> None:
        super().__init__()
        self.before_joining = before_joining
        self.before_running = before_running

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        if self.before_joining is not None:
            await self.before_joining.pass_through()
        return message

    async def on_batch_start(self, batch: BatchInfo) -> None:
        if self.before_running is not None:
            await self.before_running.pass_through()


class Worker:
    """A worker with one batch task, whose calls wait at `in_call` if that is set."""

    def __init__(
        self,
        *,
        backend: RecordingBackend | None = None,
        receiver_class: type[Receiver] = Receiver,
        wait_tasks_timeout: float | None = None,
        **limits: Any,
    ) -> None:
        self.broker = QueueBroker()
        self.backend = backend or RecordingBackend()
        self.broker.with_result_backend(self.backend)
        self.seen = RecordingMiddleware()
        self.calls: list[list[int]] = []
        self.in_call: Gate | None = None

        async def work(items: list[int]) -> int:
            self.calls.append(items)
            if self.in_call is not None:
                await self.in_call.pass_through()
            return sum(items)

        limits.setdefault("batch_size", 2)
        limits.setdefault("batch_timeout", _FOREVER)
        self.task = self.broker.register_task(
            work,
            task_name="work",
            batch=True,
            **limits,
        )
        self.receiver = receiver_class(
            self.broker,
            run_startup=False,
            max_async_tasks=2,
            max_prefetch=1,
            wait_tasks_timeout=wait_tasks_timeout,
        )
        self.finish = asyncio.Event()

    async def send(self, *items: int) -> None:
        for item in items:
            await self.task.kicker().with_task_id(f"id {item}").kiq(item)

    def listen(self) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(
            self.receiver.listen(self.finish),
        )

    async def until_held(self, count: int) -> None:
        """Wait until so many messages are in batches, in whatever state."""
        while self.receiver.batching.statistics().buffered < count:  # noqa: ASYNC110
            await asyncio.sleep(0)

    def assert_as_new(self) -> None:
        assert self.receiver.sem is not None
        assert self.receiver.sem._value == 2
        assert self.receiver.sem_prefetch._value == 3
        assert len(self.receiver._running) == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def _ends(listening: asyncio.Task[None]) -> BaseException | None:
    """Wait for the end, look nothing up in between, say how it ended."""
    try:
        await listening
    except BaseException as exc:  # noqa: BLE001 - it is looked at
        return exc
    return None


# -- A graceful stop ----------------------------------------------------------------


def test_a_stop_flushes_open_batches_and_waits_for_them() -> None:
    async def main() -> None:
        worker = Worker(batch_size=10)
        worker.broker.add_middlewares(worker.seen)
        await worker.send(1, 2, 3)
        listening = worker.listen()
        await worker.until_held(3)
        worker.finish.set()
        await listening
        assert worker.calls == [[1, 2, 3]]
        assert worker.seen.batches[0].flush_reason is FlushReason.SHUTDOWN
        assert worker.broker.acked == ["id 1", "id 2", "id 3"]
        worker.assert_as_new()

    run_virtual(main())


def test_a_message_that_is_admitted_after_the_stop_waits_for_nobody() -> None:
    async def main() -> None:
        worker = Worker(batch_size=10)
        gate = Gate()
        worker.broker.add_middlewares(GatedHooks(before_joining=gate))
        await worker.send(1)
        listening = worker.listen()
        await gate.reached.wait()
        worker.finish.set()
        gate.opened.set()
        await listening
        assert worker.calls == [[1]]
        assert worker.broker.acked == ["id 1"]
        worker.assert_as_new()

    run_virtual(main())


def test_the_limit_of_tasks_counts_messages_not_calls() -> None:
    async def main() -> None:
        worker = Worker(batch_size=2)
        worker.receiver.max_tasks_to_execute = 3
        await worker.send(1, 2, 3, 4)
        await worker.listen()
        assert worker.calls == [[1, 2], [3]]
        assert worker.broker.queue.qsize() == 1

    run_virtual(main())


def test_what_is_not_done_in_time_stays_unacknowledged_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = Worker(wait_tasks_timeout=5)
        worker.in_call = Gate()
        await worker.send(1, 2)
        listening = worker.listen()
        await worker.in_call.reached.wait()
        worker.finish.set()
        await listening
        assert asyncio.get_running_loop().time() == 5
        assert worker.broker.acked == []
        assert worker.backend.saved == []
        worker.assert_as_new()

    run_virtual(main())
    (error,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "not acknowledged" in error.getMessage()
    for named in ("work", "id 1", "id 2"):
        assert named in error.getMessage()


def test_time_to_stop_is_shared_by_batches_that_wait_for_a_slot() -> None:
    async def main() -> None:
        worker = Worker(batch_size=1, wait_tasks_timeout=5, batch_concurrency=1)
        worker.in_call = Gate()
        await worker.send(1, 2)
        listening = worker.listen()
        await worker.until_held(2)
        worker.finish.set()
        await listening
        assert asyncio.get_running_loop().time() == 5
        assert worker.calls == [[1]]
        assert worker.broker.acked == []
        worker.assert_as_new()

    run_virtual(main())


# -- A stop in every state of a batch, in every way ---------------------------------

_STATES = ("joining", "open", "due", "starting", "running", "settling")


class _Lost(Exception):  # noqa: N818 - the name of what happened
    """The broker is gone."""


class _LosableBroker(QueueBroker):
    """Its generator can be told to raise."""

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            yield message
        raise _Lost


async def _reach(state: str) -> tuple[Worker, asyncio.Task[None], Gate | None]:
    """Bring two messages of a worker into a state, and hold them there."""
    gate = None if state in {"open", "due"} else Gate()
    worker = Worker(
        backend=GatedBackend(gate if state == "settling" else None),
        batch_size=10 if state == "open" else 2,
        wait_tasks_timeout=5,
    )
    worker.broker.__class__ = _LosableBroker
    worker.broker.add_middlewares(
        GatedHooks(
            before_joining=gate if state == "joining" else None,
            before_running=gate if state == "starting" else None,
        ),
    )
    if state == "running":
        worker.in_call = gate
    if state == "due":
        assert worker.receiver.sem is not None
        await worker.receiver.sem.acquire()
        await worker.receiver.sem.acquire()
    await worker.send(1, 2)
    listening = worker.listen()
    if gate is None:
        await worker.until_held(2)
        await asyncio.sleep(0)
    else:
        await gate.reached.wait()
    return worker, listening, gate


def _end_by_cancelling(worker: Worker, listening: asyncio.Task[None]) -> None:
    listening.cancel()


def _end_by_finishing(worker: Worker, listening: asyncio.Task[None]) -> None:
    worker.finish.set()


def _end_by_a_failure(worker: Worker, listening: asyncio.Task[None]) -> None:
    worker.broker.end()


@pytest.mark.parametrize("state", _STATES)
@pytest.mark.parametrize(
    "end",
    [_end_by_cancelling, _end_by_finishing, _end_by_a_failure],
)
def test_a_batch_stopped_in_any_state_leaves_nothing_and_can_be_delivered_again(
    state: str,
    end: Callable[[Worker, asyncio.Task[None]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker, listening, gate = await _reach(state)
        end(worker, listening)
        error = await _ends(listening)
        if end is _end_by_cancelling:
            assert isinstance(error, asyncio.CancelledError)
        if end is _end_by_a_failure:
            assert isinstance(error, BaseExceptionGroup)
        is_done = state == "open" and end is _end_by_finishing
        assert worker.broker.acked == (["id 1", "id 2"] if is_done else [])
        told = [line for line in caplog.messages if "not acknowledged: " in line]
        for task_id in ("id 1", "id 2"):
            assert any(task_id in line for line in told) is not is_done
        await _deliver_again(worker, gate, is_due=state == "due")

    run_virtual(main())
    assert "unexpected error" not in caplog.text


async def _deliver_again(worker: Worker, gate: Gate | None, *, is_due: bool) -> None:
    """The broker gives out what was not acknowledged; the same receiver listens."""
    if is_due:
        assert worker.receiver.sem is not None
        worker.receiver.sem.release()
        worker.receiver.sem.release()
    worker.assert_as_new()
    if gate is not None:
        gate.opened.set()
    worker.broker.__class__ = QueueBroker
    while not worker.broker.queue.empty():
        worker.broker.queue.get_nowait()
    await worker.send(1, 2)
    worker.broker.end()
    await worker.receiver.listen(asyncio.Event())
    assert worker.calls[-1] == [1, 2]
    assert worker.broker.acked[-2:] == ["id 1", "id 2"]
    worker.assert_as_new()


def test_a_scope_that_is_over_leaves_a_call_the_time_for_its_cleanup() -> None:
    async def main() -> None:
        worker = Worker()
        steps: list[str] = []

        async def careful(items: list[int]) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(2)
                steps.append("cleaned up")

        task = worker.broker.register_task(careful, "careful", batch=True, batch_size=1)
        await task.kiq(1)
        with anyio.move_on_after(1):
            await worker.receiver.listen(worker.finish)
        assert steps == ["cleaned up"]
        assert asyncio.get_running_loop().time() == 3
        worker.assert_as_new()

    run_virtual(main())


@pytest.mark.parametrize("state", _STATES)
@pytest.mark.parametrize("turns", range(6))
def test_a_second_cancellation_cuts_the_grace_but_not_the_cleanup(
    state: str,
    turns: int,
) -> None:
    async def main() -> None:
        worker, listening, gate = await _reach(state)
        listening.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        listening.cancel()
        assert isinstance(await _ends(listening), asyncio.CancelledError)
        # At once, they are one cancellation.
        if turns:
            assert asyncio.get_running_loop().time() == 0
        await _deliver_again(worker, gate, is_due=state == "due")

    run_virtual(main())


def test_a_message_held_up_by_a_hook_is_let_go_when_the_broker_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would join a batch after everybody was sent home, and stay there."""

    async def main() -> None:
        worker, listening, gate = await _reach("joining")
        assert gate is not None
        worker.broker.end()
        await asyncio.sleep(1)  # of its grace of five
        gate.opened.set()
        assert isinstance(await _ends(listening), BaseExceptionGroup)
        assert worker.calls == []
        assert worker.broker.acked == []
        worker.assert_as_new()

    run_virtual(main())
    told = [r.getMessage() for r in caplog.records if "Discarding" in r.getMessage()]
    assert [line.partition("not acknowledged: ")[2] for line in told] == [
        "task work with ID id 1.",
        "task work with ID id 2.",
    ]


def test_a_call_that_takes_its_time_to_clean_up_is_waited_for_so_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = Worker()
        released = asyncio.Event()
        started = asyncio.Event()

        async def stubborn(items: list[int]) -> None:
            started.set()
            with suppress(asyncio.CancelledError):
                await released.wait()
            await released.wait()

        worker.broker.register_task(
            stubborn,
            task_name="stubborn",
            batch=True,
            batch_size=1,
        )
        task = worker.broker.find_task("stubborn")
        assert task is not None
        await task.kiq(1)
        listening = worker.listen()
        await started.wait()
        listening.cancel()
        assert isinstance(await _ends(listening), asyncio.CancelledError)
        assert asyncio.get_running_loop().time() == running.CANCEL_GRACE
        released.set()
        await asyncio.wait(worker.receiver._running.tasks)
        worker.assert_as_new()

    run_virtual(main())
    assert "Does not end after its cancellation" in caplog.text


# -- Cancelled callbacks ------------------------------------------------------------


class _KeepsCallbacks(Receiver):
    """Overrides `callback` and keeps the asyncio tasks that run it, by item."""

    callbacks: list[asyncio.Task[Any]]

    async def callback(
        self,
        message: bytes | AckableMessage,
        raise_err: bool = False,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.callbacks = [*getattr(self, "callbacks", []), task]
        await super().callback(message=message, raise_err=raise_err)


async def _cancel_first_callback(worker: Worker) -> None:
    receiver = worker.receiver
    assert isinstance(receiver, _KeepsCallbacks)
    receiver.callbacks[0].cancel()
    await asyncio.wait(receiver.callbacks[:1])


def test_a_callback_cancelled_while_its_batch_waits_leaves_the_batch() -> None:
    async def main() -> None:
        worker = Worker(receiver_class=_KeepsCallbacks, batch_size=3)
        await worker.send(1, 2)
        listening = worker.listen()
        await worker.until_held(2)
        await _cancel_first_callback(worker)
        await worker.send(3, 4)
        worker.broker.end()
        await listening
        assert worker.calls == [[2, 3, 4]]
        assert worker.broker.acked == ["id 2", "id 3", "id 4"]
        worker.assert_as_new()

    run_virtual(main())


def test_a_callback_cancelled_while_its_batch_waits_takes_its_weight_along() -> None:
    async def main() -> None:
        worker = Worker(
            receiver_class=_KeepsCallbacks,
            batch_size=10,
            batch_max_weight=10,
            batch_weight=float,
        )
        await worker.send(7, 1)
        listening = worker.listen()
        await worker.until_held(2)
        await _cancel_first_callback(worker)
        await worker.send(8)
        worker.broker.end()
        await listening
        assert worker.calls == [[1, 8]]
        worker.assert_as_new()

    run_virtual(main())


def test_a_callback_of_ones_own_that_is_cancelled_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = Worker(receiver_class=_KeepsCallbacks, batch_size=3)
        await worker.send(1)
        listening = worker.listen()
        await worker.until_held(1)
        await _cancel_first_callback(worker)
        worker.broker.end()
        await listening

    run_virtual(main())
    assert "Left for redelivery, as it cancelled itself: a message." in caplog.messages


def test_a_callback_cancelled_while_its_batch_runs_gets_no_result_and_no_ack() -> None:
    async def main() -> None:
        worker = Worker(receiver_class=_KeepsCallbacks)
        worker.in_call = Gate()
        await worker.send(1, 2)
        listening = worker.listen()
        await worker.in_call.reached.wait()
        await _cancel_first_callback(worker)
        worker.in_call.opened.set()
        worker.broker.end()
        await listening
        assert worker.calls == [[1, 2]]
        assert worker.backend.saved == ["id 2"]
        assert worker.broker.acked == ["id 2"]
        worker.assert_as_new()

    run_virtual(main())


def test_a_callback_cancelled_while_its_batch_settles_harms_no_other() -> None:
    async def main() -> None:
        gate = Gate()
        worker = Worker(
            backend=GatedBackend(gate),
            receiver_class=_KeepsCallbacks,
        )
        await worker.send(1, 2)
        listening = worker.listen()
        await gate.reached.wait()
        await _cancel_first_callback(worker)
        gate.opened.set()
        worker.broker.end()
        await listening
        assert "id 2" in worker.broker.acked
        worker.assert_as_new()

    run_virtual(main())


class _WaitsInATaskOfItsOwn(Receiver):
    """Overrides `callback` in the way most wrappers do: with a limit of its own."""

    async def callback(
        self,
        message: bytes | AckableMessage,
        raise_err: bool = False,
    ) -> None:
        inner = asyncio.ensure_future(
            super().callback(message=message, raise_err=raise_err),
        )
        await asyncio.wait([inner])


def test_a_callback_that_waits_in_a_task_of_its_own_takes_no_slot_from_its_batch() -> (
    None
):
    async def main() -> None:
        worker = Worker(receiver_class=_WaitsInATaskOfItsOwn, batch_size=4)
        await worker.send(1, 2, 3, 4)
        listening = worker.listen()
        await asyncio.sleep(1)
        assert worker.calls == [[1, 2, 3, 4]]
        worker.finish.set()
        await listening
        worker.assert_as_new()

    run_virtual(main())


# -- Somebody cancels himself -------------------------------------------------------


class _SelfCancellingBackend(RecordingBackend):
    """Cancels itself while it saves some results, as a broken client does."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        if task_id in self.failing:
            raise asyncio.CancelledError
        await super().set_result(task_id, result)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_backend_that_cancels_itself_for_one_message_harms_no_other(
    size: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        backend = _SelfCancellingBackend()
        backend.failing = {"id 0"}
        worker = Worker(backend=backend, batch_size=size)
        await worker.send(*range(size))
        worker.broker.end()
        await worker.listen()
        others = {f"id {item}" for item in range(1, size)}
        assert set(backend.saved) == set(worker.broker.acked) == others
        worker.assert_as_new()

    run_virtual(main())
    assert "Settling task work with ID id 0 cancelled itself" in caplog.text


def test_a_backend_that_cancels_itself_for_all_is_told_for_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        backend = _SelfCancellingBackend()
        backend.failing = {f"id {item}" for item in range(40)}
        worker = Worker(backend=backend, batch_size=40)
        await worker.send(*range(40))
        worker.broker.end()
        await worker.listen()
        worker.assert_as_new()

    run_virtual(main())
    assert caplog.text.count("cancelled itself") == 40


# -- Waiting for batches ------------------------------------------------------------


def test_two_who_wait_for_all_batches_both_get_their_wish() -> None:
    """The first to be done may begin the next batch before the second has looked."""

    async def main() -> None:
        worker = Worker(batch_size=10)
        receiver = worker.receiver

        async def wait_and_go_on(*items: int) -> None:
            await receiver.wait_batches()
            for item in items:
                await _hand_over(worker, item)

        await _hand_over(worker, 1)
        await asyncio.gather(wait_and_go_on(2), wait_and_go_on(), wait_and_go_on(3))
        assert worker.calls[0] == [1]
        await receiver.wait_batches()
        assert [item for call in worker.calls for item in call] == [1, 2, 3]

    run_virtual(main())


def test_one_who_stops_waiting_for_all_batches_stops_no_other() -> None:
    async def main() -> None:
        worker = Worker(batch_size=10)
        worker.in_call = Gate()
        await _hand_over(worker, 1)
        waiting = asyncio.ensure_future(worker.receiver.wait_batches())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(worker.receiver.wait_batches(), 5)
        await _hand_over(worker, 2)
        worker.in_call.opened.set()
        await waiting
        assert worker.calls == [[1], [2]]
        assert asyncio.get_running_loop().time() == 5

    run_virtual(main())


def test_a_message_that_runs_alone_counts_against_the_limits_of_its_task() -> None:
    async def main() -> None:
        worker = Worker(batch_size=1, batch_concurrency=1)
        worker.in_call = Gate()
        await worker.send(1)
        message = worker.broker.queue.get_nowait()
        assert message is not None
        alone = asyncio.ensure_future(worker.receiver.run_in_place(message.message))
        await worker.in_call.reached.wait()
        await _hand_over(worker, 2)
        await asyncio.sleep(1)
        assert worker.calls == [[1]]
        worker.in_call.opened.set()
        await alone
        await worker.receiver.wait_batches()
        assert worker.calls == [[1], [2]]

    run_virtual(main())


async def _hand_over(worker: Worker, item: int) -> None:
    """Let a message join its batch, as a broker does that runs tasks in process."""
    await worker.send(item)
    message = worker.broker.queue.get_nowait()
    assert message is not None
    work: Awaitable[None] | None = worker.receiver.buffer(message.message)
    assert work is None
