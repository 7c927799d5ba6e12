"""Capacity: what batches hold of a worker and its broker, and what is said of it."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import (
    AckableMessage,
    BrokerMessage,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import run_virtual
from tests.support.worker import BatchWorker, Gate, GatedBackend, Worker, complaints

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine


def taking(seconds: float) -> Callable[[list[Any]], Coroutine[Any, Any, int]]:
    """Make a function whose calls take their time."""

    async def body(items: list[Any]) -> int:
        await asyncio.sleep(seconds)
        return len(items)

    return body


# -- Slots --------------------------------------------------------------------------


def test_waiting_messages_take_no_execution_slot() -> None:
    async def main() -> None:
        worker = BatchWorker(batch_size=10, batch_timeout=5, max_async_tasks=1)
        done_at: list[float] = []

        @worker.broker.task
        async def plain() -> None:
            done_at.append(asyncio.get_running_loop().time())

        await worker.send(*range(9))
        await plain.kiq()
        asyncio.get_running_loop().call_later(5, worker.finish.set)
        await worker.listen()
        assert done_at == [0]
        assert worker.calls == [list(range(9))]

    run_virtual(main())


def test_what_a_hook_let_go_on_holds_its_delivery_slot_until_there_is_room() -> None:
    async def main() -> None:
        worker = BatchWorker(
            taking(5),
            batch_size=2,
            batch_max_buffered=2,
            max_async_tasks=2,
            max_prefetch=1,
        )
        await worker.send(*range(10))
        running = asyncio.ensure_future(worker.run())
        await asyncio.sleep(1)
        assert worker.calls == [[0, 1]]
        # Two are buffered, and three wait for their place with the three slots.
        assert len(worker.broker.delivered) == 2 + 3
        await running
        assert len(worker.calls) == 5

    run_virtual(main())


def test_a_broker_that_always_has_more_is_read_one_batch_ahead_of_the_calls() -> None:
    async def main() -> None:
        delivered_at_calls: list[int] = []

        def body(items: list[int]) -> None:
            delivered_at_calls.append(len(worker.broker.delivered))

        worker = BatchWorker(
            body,
            is_recording=False,
            batch_size=2,
            max_async_tasks=2,
        )
        await worker.send(*range(8))
        await worker.run()
        assert delivered_at_calls == [4, 6, 8, 8]

    run_virtual(main())


def test_what_fits_in_no_batch_holds_its_delivery_slot_until_it_is_settled() -> None:
    async def main() -> None:
        gate = Gate()
        worker = Worker(backend=GatedBackend(gate), max_async_tasks=2, max_prefetch=1)

        @worker.broker.task(batch=True)
        async def add(items: list[int]) -> int:
            return sum(items)

        await worker.send_to(add, *(f"no number {n}" for n in range(10)))
        running = asyncio.ensure_future(worker.run())
        await asyncio.sleep(1)
        assert len(worker.broker.delivered) == 3
        gate.opened.set()
        await running
        assert len(worker.errors) == len(worker.broker.acked) == 10

    run_virtual(main())


def test_a_call_takes_one_execution_slot_however_many_items_it_has() -> None:
    async def main() -> None:
        worker = BatchWorker(taking(1), batch_size=50, max_async_tasks=2)
        await worker.send(*range(100))
        await worker.run()
        assert [len(items) for items in worker.calls] == [50, 50]
        assert asyncio.get_running_loop().time() == 1

    run_virtual(main())


def test_a_slot_is_free_again_while_the_messages_of_a_call_are_settled() -> None:
    async def main() -> None:
        gate = Gate()
        worker = BatchWorker(
            backend=GatedBackend(gate),
            batch_size=1,
            batch_concurrency=1,
            max_async_tasks=1,
        )
        await worker.send(1, 2)
        running = asyncio.ensure_future(worker.run())
        await asyncio.sleep(0.5)
        assert worker.calls == [[1], [2]]
        assert worker.backend.saved == []
        gate.opened.set()
        await running

    run_virtual(main())


def test_at_the_bound_the_broker_keeps_the_rest() -> None:
    async def main() -> None:
        worker = BatchWorker(
            taking(1),
            is_recording=False,
            batch_size=2,
            batch_concurrency=1,
            batch_max_buffered=4,
            max_async_tasks=2,
            max_prefetch=1,
        )
        await worker.send(*range(20))
        running = asyncio.ensure_future(worker.run())
        await asyncio.sleep(0.5)
        # Four buffered, and each delivery slot holds one that waits to be admitted.
        assert len(worker.broker.delivered) == 4 + 2 + 1
        await running
        assert [item for call in worker.calls for item in call] == list(range(20))

    run_virtual(main())


class UnevenBackend(RecordingBackend):
    """Takes its time to save, each result another."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        await asyncio.sleep(0.001 * (len(self.saved) % 3 + 1))
        await super().set_result(task_id, result)


def test_under_the_highest_load_batches_leave_full() -> None:
    """Messages leave one by one as they are settled; the next batch waits for all."""

    async def main() -> None:
        worker = BatchWorker(
            taking(0.05),
            backend=UnevenBackend(),
            is_recording=False,
            batch_size=20,
            batch_timeout=1,
            batch_max_buffered=60,
            max_async_tasks=100,
        )
        await worker.send(*range(2000))
        await worker.run()
        assert sum(len(call) for call in worker.calls) == 2000
        assert sum(len(call) == 20 for call in worker.calls) >= 95

    run_virtual(main())


# -- What is said -------------------------------------------------------------------


def test_the_most_messages_a_process_holds_are_told_at_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = BatchWorker(
        batch_size=10,
        batch_max_buffered=70,
        max_async_tasks=4,
        max_prefetch=3,
    )

    @worker.broker.task(batch=True, batch_size=5, batch_max_buffered=30)
    async def other(items: list[int]) -> None:
        raise NotImplementedError

    run_virtual(worker.run())
    assert "at most 107 messages" in caplog.text


def test_each_batch_task_has_one_line_with_the_arguments_that_are_in_effect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = BatchWorker(batch_size=10, batch_timeout=2)

    def tenant_of(item: int) -> int:
        raise NotImplementedError

    @worker.broker.task(
        "all",
        batch=True,
        batch_size=5,
        batch_timeout=0.5,
        batch_idle_timeout=0.1,
        batch_key=tenant_of,
        batch_weight=lambda item: item,
        batch_max_weight=8,
        batch_coalesce=functools.partial(str),
        batch_concurrency=2,
        batch_rate="100/m",
        batch_priority=3,
        batch_results="shared",
        batch_isolate_errors=(ValueError, KeyError),
        batch_max_buffered=30,
    )
    async def everything(items: list[int]) -> None:
        raise NotImplementedError

    @worker.broker.task
    async def plain(item: int) -> None:
        raise NotImplementedError

    run_virtual(worker.run())
    lines = [line for line in caplog.messages if "runs in batches" in line]
    assert lines == [
        "Task work runs in batches: batch_size=10, batch_timeout=2.0, "
        "batch_results=shared, batch_max_buffered=1000",
        "Task all runs in batches: batch_size=5, batch_timeout=0.5, "
        "batch_idle_timeout=0.1, batch_key=tenant_of, batch_weight=<lambda>, "
        "batch_max_weight=8.0, batch_coalesce=str, batch_concurrency=2, "
        "batch_rate=100/m, batch_priority=3, batch_results=shared, "
        "batch_isolate_errors=(ValueError, KeyError), batch_max_buffered=30",
    ]


def test_without_a_limit_of_tasks_no_bound_is_promised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_virtual(BatchWorker(max_async_tasks=None).run())
    assert "Task work runs in batches" in caplog.text
    assert "at most" not in caplog.text


def test_a_worker_without_batch_tasks_says_nothing_about_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_virtual(Worker().run())
    assert "batch" not in caplog.text
    assert "at most" not in caplog.text


# -- A broker that holds messages back ----------------------------------------------


class LimitedBroker(QueueBroker):
    """Gives out at most so many messages that are not acknowledged."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = asyncio.Semaphore(limit)

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            await self.limit.acquire()
            yield message

    def ackable(self, message: BrokerMessage) -> AckableMessage:
        ackable = super().ackable(message)
        acknowledge = ackable.ack

        async def ack() -> None:
            await acknowledge()  # type: ignore[misc]
            self.limit.release()

        return AckableMessage(data=ackable.data, ack=ack)


def _listen_with_limit(
    limit: int,
    messages: int,
    *,
    gap: float = 0,
    **limits: Any,
) -> float:
    """Send messages to a broker that holds back; say when all were settled."""

    async def main() -> float:
        worker = BatchWorker(
            broker=LimitedBroker(limit),
            is_recording=False,
            batch_size=10,
            batch_timeout=1,
            max_async_tasks=2,
            max_prefetch=100,
            **limits,
        )
        listening = worker.listen()
        for item in range(messages):
            await worker.send(item)
            await asyncio.sleep(gap)
        worker.broker.end()
        await listening
        return asyncio.get_running_loop().time()

    return run_virtual(main())


def test_a_broker_that_lets_no_batch_fill_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _listen_with_limit(4, 80)
    (warning,) = [text for text in complaints(caplog) if "again and again" in text]
    for named in ("task work", "4 messages", "batch_size=10", "batch_idle_timeout"):
        assert named in warning


def test_a_batch_that_fills_is_nothing_to_warn_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _listen_with_limit(10, 80)
    assert "again and again" not in caplog.text


@pytest.mark.parametrize("gap", [2, 1.001, 0.501, 0.334, 0.251])
def test_slow_traffic_is_nothing_to_warn_of(
    caplog: pytest.LogCaptureFixture, gap: float
) -> None:
    """Every batch leaves with the same few messages, but the broker holds none back.

    With most of these gaps the next batch begins right after the one before.
    """
    _listen_with_limit(100, 40, gap=gap)
    assert "again and again" not in caplog.text


def test_a_broker_that_is_not_asked_for_more_holds_nothing_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each batch waits in vain, as all delivery slots are taken meanwhile."""

    class SlowToAdmit(TaskiqMiddleware):
        async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            if message.task_name == "other":
                await asyncio.sleep(1.05)
            return message

    async def main() -> None:
        worker = BatchWorker(
            len,
            SlowToAdmit(),
            is_recording=False,
            batch_size=10,
            batch_timeout=1,
            max_async_tasks=2,
        )

        @worker.broker.task(task_name="other", batch=True, batch_size=1)
        async def other(items: list[int]) -> None: ...

        for item in range(20):
            await worker.send(item)
            if item % 2:
                await other.kiq(item)
                await other.kiq(item)
        await worker.run()
        assert worker.calls == [[item, item + 1] for item in range(0, 20, 2)]

    run_virtual(main())
    assert "again and again" not in caplog.text


def test_an_idle_timeout_keeps_a_worker_fast_whose_broker_holds_back() -> None:
    assert _listen_with_limit(4, 80) >= 19
    assert _listen_with_limit(4, 80, batch_idle_timeout=0.05) <= 2
