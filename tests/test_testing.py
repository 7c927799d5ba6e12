"""What tests of applications use: a clock moved by hand, waiting without a flush."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from taskiq import InMemoryBroker
from taskiq.batch import FlushReason
from taskiq.clock import Clock
from taskiq.receiver import Receiver
from taskiq.testing import ManualClock
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import virtual
from tests.support.worker import InProcessWorker


def test_a_manual_clock_is_a_clock_to_the_type_checker() -> None:
    clock: Clock = ManualClock()
    assert clock.time() == 0


@virtual
async def test_a_batch_leaves_when_the_clock_reaches_its_timeout_and_not_before() -> (
    None
):
    worker = InProcessWorker(batch_timeout=3)
    await worker.send(1, 2)
    await worker.advance(2)
    await worker.send(3)
    await worker.advance(0.75)
    assert worker.calls == []
    assert worker.clock.armed == 1
    await worker.advance(0.25)
    assert worker.calls == [[1, 2, 3]]
    assert worker.clock.armed == 0


@virtual
async def test_however_long_a_test_takes_nothing_leaves_by_itself() -> None:
    worker = InProcessWorker(batch_timeout=3)
    await worker.send(1)
    await asyncio.sleep(1000)
    await worker.broker.wait_running()
    assert worker.calls == []
    await worker.broker.wait_all()
    assert worker.calls == [[1]]
    assert worker.clock.armed == 0


@virtual
async def test_the_idle_timeout_goes_by_the_manual_clock() -> None:
    worker = InProcessWorker(batch_timeout=10, batch_idle_timeout=2)
    await worker.send(1)
    await worker.advance(1.5)
    await worker.send(2)
    await worker.advance(1.5)
    assert worker.calls == []
    await worker.advance(0.5)
    assert worker.calls == [[1, 2]]


@virtual
async def test_a_full_batch_is_waited_for_while_the_next_one_stays_open() -> None:
    worker = InProcessWorker(batch_size=2, batch_timeout=10)
    await worker.send(1, 2, 3)
    await worker.broker.wait_running()
    assert worker.calls == [[1, 2]]
    assert worker.open_groups == 1
    await worker.broker.wait_all()
    assert worker.calls == [[1, 2], [3]]


@virtual
async def test_the_wait_of_a_batch_is_told_in_the_time_of_the_clock() -> None:
    worker = InProcessWorker(batch_timeout=60)
    await worker.send(1)
    await worker.broker.wait_running()
    await worker.advance(60)
    assert [(info.waited, info.flush_reason) for info in worker.batches] == [
        (60, FlushReason.TIMEOUT),
    ]


@virtual
async def test_waiting_without_a_flush_waits_for_plain_tasks_and_what_they_send() -> (
    None
):
    worker = InProcessWorker(seconds=1, batch_size=2, batch_timeout=10)

    @worker.broker.task
    async def fan_out() -> None:
        await asyncio.sleep(1)
        await worker.send(1, 2, 3)

    await fan_out.kiq()
    await worker.broker.wait_running()
    assert worker.calls == [[1, 2]]
    await worker.broker.wait_all()


@virtual
async def test_waiting_without_a_flush_waits_for_batches_that_wait_for_their_turn() -> (
    None
):
    worker = InProcessWorker(seconds=1, batch_size=1, batch_concurrency=1)
    await worker.send(1, 2, 3)
    await worker.broker.wait_running()
    assert worker.calls == [[1], [2], [3]]


async def test_a_worker_takes_the_clock_as_well() -> None:
    clock = ManualClock()
    broker = QueueBroker()
    done = asyncio.Event()

    @broker.task(batch=True, batch_timeout=3600)
    async def work(items: list[int]) -> None:
        done.set()

    receiver = Receiver(broker, run_startup=False, max_async_tasks=1)
    receiver.use_clock(clock)
    listening = asyncio.create_task(receiver.listen(finish := asyncio.Event()))
    await work.kiq(1)
    while not clock.armed:  # noqa: ASYNC110 - the message is on its way
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="cannot be changed while"):
        receiver.use_clock(None)
    clock.advance(3600)
    await done.wait()
    await receiver.runtime.tasks.wait_until(lambda: True)
    with pytest.raises(RuntimeError, match="cannot be changed while"):
        receiver.use_clock(None)
    finish.set()
    await listening


def test_an_alarm_of_a_loop_that_is_closed_rings_no_more() -> None:
    worker = InProcessWorker(batch_timeout=3)
    asyncio.run(worker.send(1))
    assert worker.clock.armed == 0

    async def next_test() -> None:
        await worker.send(2)
        await worker.advance(3)

    asyncio.run(next_test())
    assert worker.calls == [[2]]


@virtual
async def test_the_clock_is_not_changed_under_messages_that_wait_by_it() -> None:
    worker = InProcessWorker(batch_timeout=3)
    await worker.send(1)
    with pytest.raises(RuntimeError, match="cannot be changed while messages"):
        worker.broker.with_clock(None)
    await worker.broker.wait_all()
    worker.broker.with_clock(None)
    await worker.send(2)
    await asyncio.sleep(4)
    assert worker.calls == [[1], [2]]


@virtual
async def test_a_task_cannot_wait_for_what_runs_as_it_runs_itself() -> None:
    broker = InMemoryBroker()

    @broker.task(batch=True, batch_size=1)
    async def wait(items: list[int]) -> None:
        await broker.wait_running()

    handle = await wait.kiq(1)
    await broker.wait_running()
    with pytest.raises(RuntimeError, match="A task cannot wait for all tasks"):
        (await handle.get_result()).raise_for_error()


def test_a_broker_whose_last_loop_is_gone_takes_another_clock() -> None:
    worker = InProcessWorker(batch_timeout=3)
    asyncio.run(worker.send(1))
    worker.clock = ManualClock()
    worker.broker.with_clock(worker.clock)

    async def next_test() -> None:
        await worker.send(2)
        await worker.advance(3)

    asyncio.run(next_test())
    assert worker.calls == [[2]]


# -- The clock by itself ------------------------------------------------------------


def test_alarms_ring_at_their_own_moments_in_order() -> None:
    clock = ManualClock()
    rung: list[tuple[str, float]] = []

    def alarm(name: str, when: float) -> Any:
        return clock.call_at(when, lambda: rung.append((name, clock.time())))

    alarm("late", 3)
    alarm("early", 1)
    alarm("second at 1", 1)
    alarm("cancelled", 2).cancel()
    alarm("never", 9)
    assert clock.armed == 4
    clock.advance(5)
    assert rung == [("early", 1), ("second at 1", 1), ("late", 3)]
    assert clock.time() == 5
    assert repr(clock) == "<ManualClock at 5.0 s, 1 alarms armed>"


def test_an_alarm_that_is_set_while_another_rings_rings_in_the_same_advance() -> None:
    clock = ManualClock()
    rung: list[float] = []
    clock.call_at(1, lambda: clock.call_at(2, lambda: rung.append(clock.time())))
    clock.call_at(4, lambda: clock.call_at(3, lambda: rung.append(clock.time())))
    clock.advance(5)
    assert rung == [2, 4]


def test_an_alarm_rings_once_and_may_be_cancelled_afterwards() -> None:
    clock = ManualClock()
    rung: list[int] = []
    alarm = clock.call_at(1, lambda: rung.append(1))
    clock.advance(1)
    alarm.ring()
    alarm.cancel()
    assert rung == [1]


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf, -math.inf])
def test_a_clock_moves_on_by_a_number_of_seconds(seconds: float) -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="a clock moves 0 or more seconds on, got"):
        clock.advance(seconds)
    assert clock.time() == 0
