"""Stopping in every state of a batch, and what is delivered again afterwards."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from taskiq import (
    AckableMessage,
    BatchContext,
    BrokerMessage,
    TaskiqMessage,
    TaskiqMiddleware,
)
from taskiq.batch import BatchInfo, FlushReason
from taskiq.receiver import Receiver
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import run_virtual
from tests.support.worker import BatchWorker, Gate, GatedBackend, Worker

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


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


def stopping(**options: Any) -> BatchWorker:
    """Make a worker of two calls at once, of two items each if not told otherwise."""
    given = {
        "is_recording": False,
        "batch_size": 2,
        "max_async_tasks": 2,
        "max_prefetch": 1,
        **options,
    }
    return BatchWorker(sum, task_id=lambda item: f"id {item}", **given)


async def _ends(listening: asyncio.Task[None]) -> BaseException | None:
    """Wait for the end, look nothing up in between, say how it ended."""
    try:
        await listening
    except BaseException as exc:  # noqa: BLE001 - it is looked at
        return exc
    return None


# -- A graceful stop -------------------------------------------------------------------


def test_a_stop_flushes_open_batches_and_waits_for_them() -> None:
    async def main() -> None:
        worker = stopping(batch_size=10, is_recording=True)
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
        worker = stopping(batch_size=10)
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
        worker = stopping(max_tasks_to_execute=3)
        await worker.send(1, 2, 3, 4)
        await worker.listen()
        assert worker.calls == [[1, 2], [3]]
        assert worker.broker.queue.qsize() == 1

    run_virtual(main())


def test_what_is_not_done_in_time_stays_unacknowledged_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = stopping(wait_tasks_timeout=5)
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
        worker = stopping(batch_size=1, wait_tasks_timeout=5, batch_concurrency=1)
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


class RedeliveringBroker(QueueBroker):
    """Says of each message that it was delivered once before: each runs alone.

    :param deliveries: what it says.
    """

    message_capabilities = ("deliveries",)

    def __init__(self, deliveries: int | Callable[[], Any] = 2) -> None:
        super().__init__()
        self.deliveries = deliveries

    def ackable(self, message: BrokerMessage) -> AckableMessage:
        told = {"deliveries": self.deliveries}
        return super().ackable(message).model_copy(update=told)


@pytest.mark.parametrize("kind", ["plain", "batch", "suspects"])
def test_no_call_begins_once_the_time_to_stop_is_over(
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A function that held the loop up was the last one: no timer rang meanwhile."""
    seconds = [0.0]
    monkeypatch.setattr("taskiq.receiver.stop.time.monotonic", lambda: seconds[0])
    calls: list[Any] = []

    async def main() -> None:
        broker = RedeliveringBroker() if kind == "suspects" else QueueBroker()
        worker = Worker(broker=broker, wait_tasks_timeout=5)

        async def work(items: Any) -> None:
            calls.append(items)
            worker.receiver.stop.ask()
            worker.finish.set()
            seconds[0] += 6

        size = 2 if kind == "suspects" else 1
        limits: dict[str, Any] = {"batch": True, "batch_size": size}
        own = {} if kind == "plain" else limits
        task: Any = worker.broker.register_task(work, "work", **own)
        await worker.send_to(task, 1, 2)
        await worker.listen()
        worker.assert_as_new()
        assert len(worker.broker.acked) == 1

    run_virtual(main())
    assert len(calls) == 1
    assert "was over before 1 call began, not acknowledged" in caplog.text


# -- A stop in every state of a batch, in every way ------------------------------------


#: Seconds a cancelled call has, and no longer.
_CLEANUP = 5.0

_STATES = ("joining", "open", "due", "starting", "running", "settling")


class _Lost(Exception):  # noqa: N818 - the name of what happened
    """The broker is gone."""


class _LosableBroker(QueueBroker):
    """Its generator can be told to raise."""

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            yield message
        raise _Lost


async def _reach(state: str) -> tuple[BatchWorker, asyncio.Task[None], Gate | None]:
    """Bring two messages of a worker into a state, and hold them there."""
    gate = None if state in {"open", "due"} else Gate()
    worker = stopping(
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
        await worker.occupy()
    await worker.send(1, 2)
    listening = worker.listen()
    if gate is None:
        await worker.until_held(2)
        await asyncio.sleep(0)
    else:
        await gate.reached.wait()
    return worker, listening, gate


def _end_by_cancelling(worker: BatchWorker, listening: asyncio.Task[None]) -> None:
    listening.cancel()


def _end_by_finishing(worker: BatchWorker, listening: asyncio.Task[None]) -> None:
    worker.finish.set()


def _end_by_a_failure(worker: BatchWorker, listening: asyncio.Task[None]) -> None:
    worker.broker.end()


@pytest.mark.parametrize("state", _STATES)
@pytest.mark.parametrize("end", [_end_by_cancelling, _end_by_finishing])
def test_a_batch_stopped_in_any_state_leaves_nothing_and_can_be_delivered_again(
    state: str,
    end: Callable[[BatchWorker, asyncio.Task[None]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker, listening, gate = await _reach(state)
        end(worker, listening)
        error = await _ends(listening)
        if end is _end_by_cancelling:
            assert isinstance(error, asyncio.CancelledError)
        is_done = state == "open" and end is _end_by_finishing
        assert worker.broker.acked == (["id 1", "id 2"] if is_done else [])
        told = [line for line in caplog.messages if "not acknowledged: " in line]
        for task_id in ("id 1", "id 2"):
            assert any(task_id in line for line in told) is not is_done
        await _deliver_again(worker, gate, is_due=state == "due")

    run_virtual(main())
    assert "unexpected error" not in caplog.text


@pytest.mark.parametrize("state", _STATES)
def test_after_a_failure_of_the_broker_what_has_started_runs_on(
    state: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker, listening, gate = await _reach(state)
        _end_by_a_failure(worker, listening)
        assert isinstance(await _ends(listening), BaseExceptionGroup)
        assert asyncio.get_running_loop().time() == 0
        if gate is not None:
            gate.opened.set()
        await worker.receiver.runtime.wait_idle(FlushReason.MANUAL)
        told = [line for line in caplog.messages if "not acknowledged: " in line]
        is_left = state in {"open", "due"}
        assert sorted(worker.broker.acked) == ([] if is_left else ["id 1", "id 2"])
        for task_id in ("id 1", "id 2"):
            assert any(task_id in line for line in told) is is_left
        await _deliver_again(worker, None, is_due=state == "due")

    run_virtual(main())
    assert "unexpected error" not in caplog.text


async def _deliver_again(
    worker: BatchWorker, gate: Gate | None, *, is_due: bool
) -> None:
    """The broker gives out what was not acknowledged; the same receiver listens."""
    if is_due:
        worker.vacate()
    worker.assert_as_new()
    if gate is not None:
        gate.opened.set()
    worker.broker.__class__ = QueueBroker
    worker.broker.take_all()
    await worker.send(1, 2)
    worker.finish.clear()
    await worker.run()
    assert worker.calls[-1] == [1, 2]
    assert worker.broker.acked[-2:] == ["id 1", "id 2"]
    worker.assert_as_new()


def test_a_scope_that_is_over_leaves_a_call_the_time_for_its_cleanup() -> None:
    async def main() -> None:
        worker = stopping()
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


def test_a_message_held_up_by_a_hook_is_let_go_when_listening_was_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would join a batch after everybody was sent home, and stay there."""

    async def main() -> None:
        worker, listening, gate = await _reach("joining")
        assert gate is not None
        listening.cancel()
        await asyncio.sleep(1)  # of its grace of five
        gate.opened.set()
        assert isinstance(await _ends(listening), asyncio.CancelledError)
        assert worker.calls == []
        assert worker.broker.acked == []
        worker.assert_as_new()

    run_virtual(main())
    told = [r.getMessage() for r in caplog.records if "Discarding" in r.getMessage()]
    assert [line.partition("not acknowledged: ")[2] for line in told] == [
        "task work with ID id 1.",
        "task work with ID id 2.",
    ]


def test_suspects_that_are_counted_when_listening_is_cancelled_begin_nothing_new(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Their batch has begun and makes its own call; the others need one each."""

    async def main() -> None:
        gate = Gate()

        async def count() -> int:
            await gate.pass_through()
            return 2

        worker = stopping(broker=RedeliveringBroker(count), wait_tasks_timeout=5)
        await worker.send(1, 2)
        listening = worker.listen()
        await gate.reached.wait()
        listening.cancel()
        await asyncio.sleep(1)  # of its grace of five
        gate.opened.set()
        assert isinstance(await _ends(listening), asyncio.CancelledError)
        [[called]] = worker.calls
        assert worker.broker.acked == [f"id {called}"]
        told = [line for line in caplog.messages if "Discarding 1 buffered" in line]
        assert [line.rpartition(" ")[2] for line in told] == [f"{3 - called}."]
        worker.assert_as_new()

    run_virtual(main())


def test_a_call_that_takes_its_time_to_clean_up_is_waited_for_so_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = stopping()
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
        assert asyncio.get_running_loop().time() == _CLEANUP
        released.set()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
        worker.assert_as_new()

    run_virtual(main())
    assert "Does not end after its cancellation" in caplog.text


# -- Cancelled callbacks ---------------------------------------------------------------


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


async def _cancel_first_callback(worker: BatchWorker) -> None:
    receiver = worker.receiver
    assert isinstance(receiver, _KeepsCallbacks)
    receiver.callbacks[0].cancel()
    await asyncio.wait(receiver.callbacks[:1])


def test_a_callback_cancelled_while_its_batch_waits_leaves_the_batch() -> None:
    async def main() -> None:
        worker = stopping(receiver_class=_KeepsCallbacks, batch_size=3)
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
        worker = stopping(
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
        worker = stopping(receiver_class=_KeepsCallbacks, batch_size=3)
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
        worker = stopping(receiver_class=_KeepsCallbacks)
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
        worker = stopping(
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
        worker = stopping(receiver_class=_WaitsInATaskOfItsOwn, batch_size=4)
        await worker.send(1, 2, 3, 4)
        listening = worker.listen()
        await asyncio.sleep(1)
        assert worker.calls == [[1, 2, 3, 4]]
        worker.finish.set()
        await listening
        worker.assert_as_new()

    run_virtual(main())


# -- Delivered again while it is held --------------------------------------------------


_REPORT = "were delivered again while this process still holds them"


def redelivered(
    broker: QueueBroker | None = None,
    seconds: Iterable[float] = (1, 1, 1),
    requeued: Collection[int] = (),
    **limits: Any,
) -> BatchWorker:
    """Make a worker that is handed one message more than once: the same is its id.

    :param seconds: how long each call takes.
    :param requeued: items that are sent again by the first call they are in.
    """
    durations = iter(seconds)
    to_requeue = set(requeued)

    async def act(context: BatchContext, items: list[int]) -> int:
        if items[0] in to_requeue:
            to_requeue.remove(items[0])
            await context.requeue(0)
        await asyncio.sleep(next(durations))
        return sum(items)

    return BatchWorker(
        act=act,
        broker=broker,
        is_recording=False,
        task_id=lambda item: f"id {item}",
        max_async_tasks=2,
        **{"batch_size": 2, "batch_timeout": 3, **limits},
    )


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and _REPORT in record.getMessage()
    ]


def test_one_that_waits_is_told_of_by_task_and_id_and_run_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = redelivered(batch_size=5)
        listening = worker.listen()
        for item in (1, 2, 1, 3, 3):
            await worker.send(item)
        await asyncio.sleep(4)
        worker.finish.set()
        await listening
        assert worker.calls == [[1, 2, 1, 3, 3]]

    run_virtual(main())
    (report,) = reports(caplog)
    assert report.startswith(f"2 messages of task work {_REPORT}")
    assert "more than once: id 1, id 3." in report


@pytest.mark.parametrize("after", [0.5, 3.5], ids=["waiting", "running"])
def test_it_is_told_of_until_the_first_delivery_is_settled(
    after: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = redelivered()
        listening = worker.listen()
        await worker.send(1)
        await asyncio.sleep(after)
        await worker.send(1)
        await asyncio.sleep(5)
        # Settled twice by now: another delivery is not held twice.
        await worker.send(1)
        await asyncio.sleep(5)
        worker.finish.set()
        await listening

    run_virtual(main())
    (report,) = reports(caplog)
    assert "id 1." in report


def test_the_first_delivery_is_remembered_though_the_second_is_settled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = redelivered(seconds=(20, 1, 1), batch_size=1)
        listening = worker.listen()
        for _ in range(3):
            await worker.send(1)
            await asyncio.sleep(5)
        worker.finish.set()
        await listening

    run_virtual(main())
    assert len(reports(caplog)) == 2


def test_a_requeued_message_is_another_one(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        worker = redelivered(batch_size=1, requeued={1})
        listening = worker.listen()
        await worker.send(1)
        await asyncio.sleep(5)
        worker.finish.set()
        await listening
        assert worker.calls == [[1], [1]]

    run_virtual(main())
    assert reports(caplog) == []


class SilentBroker(QueueBroker):
    """Takes no acknowledgements, and so delivers nothing again."""

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            yield message if isinstance(message, bytes) else message.data


def test_without_acknowledgements_nothing_is_delivered_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = redelivered(SilentBroker())
        listening = worker.listen()
        await worker.send(1)
        await worker.send(1)
        await asyncio.sleep(2)
        worker.finish.set()
        await listening
        assert worker.calls == [[1, 1]]

    run_virtual(main())
    assert reports(caplog) == []


def test_nothing_is_remembered_of_what_is_let_go_at_a_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = redelivered(batch_size=5)
        listening = worker.listen()
        await worker.send(1)
        await worker.until_held(1)
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening
        await worker.send(1)
        await worker.run()
        assert worker.calls == [[1]]

    run_virtual(main())
    assert reports(caplog) == []


@pytest.mark.parametrize("after", [1, 3.5], ids=["waiting", "running"])
def test_nothing_is_remembered_of_a_callback_that_is_cancelled(
    after: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = redelivered()
        await worker.send(1, 1)
        messages = worker.broker.listen()
        callback = asyncio.ensure_future(
            worker.receiver.callback(await anext(messages))
        )
        await asyncio.sleep(after)
        assert worker.receiver.batch_statistics().buffered == 1
        callback.cancel()
        with pytest.raises(asyncio.CancelledError):
            await callback
        await asyncio.sleep(5)
        await worker.receiver.callback(await anext(messages))
        assert worker.broker.acked == ["id 1"]
        await messages.aclose()

    run_virtual(main())
    assert reports(caplog) == []
