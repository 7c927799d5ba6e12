"""Rates: how often calls start, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskiq.batch import FlushReason
from taskiq.receiver.batch_run import BatchRun
from taskiq.testing import ManualClock
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import BatchWorker, InProcessWorker


def starting(**limits: Any) -> tuple[BatchWorker, list[float]]:
    """Make a worker that notes the moment of each call, and calls take a while."""
    starts: list[float] = []

    async def body(_: list[Any]) -> None:
        starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.7)

    return BatchWorker(body, **{"batch_size": 5, **limits}), starts


@pytest.mark.parametrize(
    ("rate", "calls"),
    [("2/s", 120), ("100/m", 100), ("7/m", 7), ("25/s", 1500), ("360/h", 6)],
)
def test_in_a_minute_there_are_as_many_calls_as_the_rate_says(
    rate: str,
    calls: int,
) -> None:
    """Whatever waits: so many calls, not so many items, evenly."""
    worker, starts = starting(batch_rate=rate, batch_timeout=0, max_async_tasks=100)

    async def main() -> None:
        listening = worker.listen()
        for number in range(600):
            await worker.send(*[number] * 40)
            await asyncio.sleep(0.1)
        worker.finish.set()
        await listening

    run_virtual(main())
    for begin in (0.0, starts[0], starts[len(starts) // 2] - 30):
        within = sum(begin <= start < begin + 60 for start in starts)
        assert within == pytest.approx(calls, rel=0.05, abs=1)


def test_batches_go_on_filling_while_they_wait_for_their_rate() -> None:
    worker, _ = starting(batch_size=100, batch_timeout=1, batch_rate="6/m")

    async def main() -> None:
        listening = worker.listen()
        for second in range(30):
            await worker.send(second)
            await asyncio.sleep(1)
        worker.finish.set()
        await listening

    run_virtual(main())
    assert [len(items) for items in worker.calls] == [1, 10, 10, 9]


def test_a_stop_starts_what_is_left_at_its_rate_and_no_faster() -> None:
    worker, starts = starting(batch_size=1, batch_rate="1/s")
    run_virtual(_send_and_stop(worker))
    assert starts == [0, 1, 2, 3]
    assert len(worker.broker.acked) == 4


def test_what_has_not_started_when_the_time_to_stop_is_over_is_delivered_again() -> (
    None
):
    worker, starts = starting(batch_size=1, batch_rate="1/s", wait_tasks_timeout=1.9)
    run_virtual(_send_and_stop(worker))
    assert starts == [0, 1]
    assert len(worker.broker.acked) == 2


async def _send_and_stop(worker: BatchWorker) -> None:
    await worker.send(*"abcd")
    listening = worker.listen()
    await worker.until_held(4)
    worker.finish.set()
    await listening
    worker.assert_as_new()


@virtual
async def test_in_process_all_are_waited_for_at_their_rate() -> None:
    worker = InProcessWorker(batch_size=1, batch_rate="1/s")
    worker.broker.with_clock(None)
    begin = asyncio.get_running_loop().time()
    await worker.send(1, 2, 3)
    # Whoever else waits for them has the same end.
    await asyncio.gather(worker.broker.wait_all(), worker.broker.wait_all())
    assert worker.calls == [[1], [2], [3]]
    assert asyncio.get_running_loop().time() == begin + 2


@virtual
async def test_with_a_clock_of_ones_own_the_next_call_waits_until_it_is_moved() -> None:
    worker = InProcessWorker(batch_size=1, batch_rate="1/m")
    await worker.send(1, 2)
    await worker.advance(0)
    await worker.advance(59)
    assert worker.calls == [[1]]
    await worker.advance(1)
    assert worker.calls == [[1], [2]]


@virtual
async def test_a_task_can_wait_for_batches_that_wait_for_their_rate() -> None:
    worker = InProcessWorker(batch_size=1, batch_rate="1/s")
    worker.broker.with_clock(None)
    waiting: list[int] = []

    @worker.broker.task
    async def waits() -> None:
        await worker.broker.receiver.runtime.wait_idle(FlushReason.MANUAL)
        waiting.append(len(worker.calls))

    await worker.send(1, 2, 3)
    await waits.kiq()
    await worker.broker.wait_all()
    assert waiting == [3]


def test_what_is_called_again_to_find_a_culprit_is_counted_and_waits() -> None:
    """Before a batch that is due: its members have waited for longer."""
    starts: list[tuple[float, list[str]]] = []

    async def body(items: list[str]) -> None:
        starts.append((asyncio.get_running_loop().time(), items))
        if "bad" in items:
            raise ValueError

    worker = BatchWorker(
        body, batch_size=4, batch_rate="1/s", batch_isolate_errors=True
    )

    async def main() -> None:
        await worker.send("a", "b", "c", "bad", "e", "f", "g", "h")
        await worker.run()
        worker.assert_as_new()

    run_virtual(main())
    assert [moment for moment, _ in starts] == [0, 1, 2, 3, 4]
    assert starts[-1][1] == ["e", "f", "g", "h"]
    assert list(worker.errors) == ["3"]


@virtual
async def test_in_process_nobody_waits_by_hand_for_what_is_called_again() -> None:
    """`wait_running` returns, and the clock that is moved has the next call start."""
    worker = InProcessWorker(batch_size=2, batch_rate="1/m", batch_isolate_errors=True)
    tries: list[list[int]] = []

    @worker.broker.task(
        batch=True, batch_size=2, batch_rate="1/m", batch_isolate_errors=True
    )
    async def fails(items: list[int]) -> None:
        await asyncio.sleep(0)
        tries.append(items)
        raise ValueError

    for item in (1, 2):
        await fails.kiq(item)
    for count in (1, 2, 3):
        await worker.broker.wait_running()
        assert len(tries) == count
        worker.clock.advance(60)
    assert tries == [[1, 2], [1], [2]]
    await worker.broker.wait_running()
    assert worker.clock.armed == 0


def test_a_stop_gives_up_what_waits_to_be_called_again() -> None:
    async def body(items: list[str]) -> None:
        raise ValueError

    worker = BatchWorker(
        body,
        batch_size=2,
        batch_rate="1/h",
        batch_isolate_errors=True,
        wait_tasks_timeout=1,
    )

    async def main() -> None:
        await worker.send("a", "b")
        await worker.run()
        worker.assert_as_new()

    run_virtual(main())
    assert worker.calls == [["a", "b"]]
    assert worker.broker.acked == []


@pytest.mark.parametrize("is_first", [True, False])
@virtual
async def test_a_stop_in_the_moment_of_its_turn_gives_it_up_all_the_same(
    is_first: bool,
) -> None:
    async def body(items: list[str]) -> None:
        raise ValueError

    worker = BatchWorker(
        body, batch_size=2, batch_rate="1/h", batch_isolate_errors=True
    )
    clock = ManualClock()
    worker.receiver.use_clock(clock)
    await worker.send("a", "b")
    listening = worker.listen()
    await asyncio.sleep(1)
    runtime = worker.receiver.runtime
    [running] = runtime.tasks.of(lambda subject: isinstance(subject, BatchRun))
    if is_first:
        runtime.tasks.stop(running)
    clock.advance(3600)
    runtime.tasks.stop(running)
    worker.finish.set()
    await listening
    worker.assert_as_new()
    assert worker.calls == [["a", "b"]]
    assert worker.broker.acked == []
    assert clock.armed == 0
