"""What batches may hold of a worker and of its broker, and what is said about it."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from taskiq import AckableMessage, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.receiver import Receiver
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend, RecordingMiddleware
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import pytest

_LONG = 10_000.0


class LimitedBroker(QueueBroker):
    """Gives out at most so many messages that are not acknowledged."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = asyncio.Semaphore(limit)

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            await self.limit.acquire()
            yield message

    def _ackable(self, message: Any) -> AckableMessage:
        ackable = super()._ackable(message)
        acknowledge = ackable.ack

        async def ack() -> None:
            await acknowledge()  # type: ignore[misc]
            self.limit.release()

        return AckableMessage(data=ackable.data, ack=ack)


class SlowBackend(RecordingBackend):
    """Takes its time to save, each result another."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        await asyncio.sleep(0.001 * (len(self.saved) % 3 + 1))
        await super().set_result(task_id, result)


def _receiver(broker: QueueBroker, **limits: Any) -> Receiver:
    limits.setdefault("max_async_tasks", 2)
    return Receiver(broker, run_startup=False, **limits)


def _gather(
    broker: QueueBroker,
    calls: list[list[int]],
    seconds: float = 0,
    **limits: Any,
) -> Any:
    """Register a batch task that writes its calls down."""

    async def gather(items: list[int]) -> int:
        calls.append(items)
        await asyncio.sleep(seconds)
        return len(items)

    return broker.register_task(gather, task_name="gather", batch=True, **limits)


# -- Slots --------------------------------------------------------------------------


def test_waiting_messages_take_no_execution_slot() -> None:
    async def main() -> None:
        broker = QueueBroker()
        calls: list[list[int]] = []
        gather = _gather(broker, calls, batch_size=10, batch_timeout=5)
        done_at: list[float] = []

        @broker.task
        async def plain() -> None:
            done_at.append(asyncio.get_running_loop().time())

        for item in range(9):
            await gather.kiq(item)
        await plain.kiq()
        finish = asyncio.Event()
        asyncio.get_running_loop().call_later(5, finish.set)
        await _receiver(broker, max_async_tasks=1).listen(finish)
        assert done_at == [0]
        assert calls == [list(range(9))]

    run_virtual(main())


def test_what_a_hook_let_go_on_holds_its_delivery_slot_until_there_is_room() -> None:
    async def main() -> None:
        broker = QueueBroker()
        broker.add_middlewares(RecordingMiddleware())
        calls: list[list[int]] = []
        gather = _gather(
            broker,
            calls,
            seconds=5,
            batch_size=2,
            batch_timeout=_LONG,
            batch_max_buffered=2,
        )
        for item in range(10):
            await gather.kiq(item)
        broker.end()
        receiver = _receiver(broker, max_async_tasks=2, max_prefetch=1)
        listening = asyncio.ensure_future(receiver.listen(asyncio.Event()))
        await asyncio.sleep(1)
        assert calls == [[0, 1]]
        # Two are buffered, and three wait for their place with the three slots.
        assert len(broker.delivered) == 2 + 3
        await listening
        assert len(calls) == 5

    run_virtual(main())


def test_a_broker_that_always_has_more_is_read_one_batch_ahead_of_the_calls() -> None:
    async def main() -> None:
        broker = QueueBroker()
        delivered_at_calls: list[int] = []

        @broker.task(batch=True, batch_size=2, batch_timeout=_LONG)
        async def gather(items: list[int]) -> list[int]:
            delivered_at_calls.append(len(broker.delivered))
            return items

        for item in range(8):
            await gather.kiq(item)
        broker.end()
        await _receiver(broker).listen(asyncio.Event())
        assert delivered_at_calls == [4, 6, 8, 8]

    run_virtual(main())


def test_what_fits_in_no_batch_holds_its_delivery_slot_until_it_is_settled() -> None:
    class Endless(RecordingBackend):
        async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
            await saved.wait()
            await super().set_result(task_id, result)

    saved = asyncio.Event()

    async def main() -> None:
        broker = QueueBroker()
        backend = Endless()
        broker.with_result_backend(backend)
        gather = _gather(broker, [])
        for _ in range(10):
            await gather.kiq("no number")
        broker.end()
        receiver = _receiver(broker, max_async_tasks=2, max_prefetch=1)
        listening = asyncio.ensure_future(receiver.listen(asyncio.Event()))
        await asyncio.sleep(1)
        assert len(broker.delivered) == 3
        saved.set()
        await listening
        assert len(backend.saved) == len(broker.acked) == 10

    run_virtual(main())


def test_a_call_takes_one_execution_slot_however_many_items_it_has() -> None:
    async def main() -> None:
        broker = QueueBroker()
        calls: list[list[int]] = []
        gather = _gather(broker, calls, seconds=1, batch_size=50, batch_timeout=_LONG)
        for item in range(100):
            await gather.kiq(item)
        broker.end()
        await _receiver(broker, max_async_tasks=2).listen(asyncio.Event())
        assert [len(items) for items in calls] == [50, 50]
        assert asyncio.get_running_loop().time() == 1

    run_virtual(main())


def test_a_slot_is_free_again_while_the_messages_of_a_call_are_settled() -> None:
    async def main() -> None:
        broker = QueueBroker()
        calls: list[list[int]] = []
        opened = asyncio.Event()

        class Backend(RecordingBackend):
            async def set_result(
                self,
                task_id: str,
                result: TaskiqResult[Any],
            ) -> None:
                await opened.wait()
                await super().set_result(task_id, result)

        broker.with_result_backend(Backend())
        gather = _gather(
            broker,
            calls,
            batch_size=1,
            batch_timeout=_LONG,
            batch_concurrency=1,
        )
        await gather.kiq(1)
        await gather.kiq(2)
        broker.end()
        asyncio.get_running_loop().call_later(1, opened.set)
        listening = asyncio.ensure_future(
            _receiver(broker, max_async_tasks=1).listen(asyncio.Event()),
        )
        await asyncio.sleep(0.5)
        assert calls == [[1], [2]]
        await listening

    run_virtual(main())


def test_at_the_bound_the_broker_keeps_the_rest() -> None:
    async def main() -> None:
        broker = QueueBroker()
        calls: list[list[int]] = []
        gather = _gather(
            broker,
            calls,
            seconds=1,
            batch_size=2,
            batch_timeout=_LONG,
            batch_concurrency=1,
            batch_max_buffered=4,
        )
        for item in range(20):
            await gather.kiq(item)
        broker.end()
        receiver = _receiver(broker, max_async_tasks=2, max_prefetch=1)
        listening = asyncio.ensure_future(receiver.listen(asyncio.Event()))
        await asyncio.sleep(0.5)
        # Four buffered, and each delivery slot holds one that waits to be admitted.
        assert len(broker.delivered) == 4 + 2 + 1
        await listening
        assert [item for call in calls for item in call] == list(range(20))

    run_virtual(main())


def test_under_the_highest_load_batches_leave_full() -> None:
    """Messages leave one by one as they are settled; the next batch waits for all."""

    async def main() -> None:
        broker = QueueBroker()
        broker.with_result_backend(SlowBackend())
        calls: list[list[int]] = []
        gather = _gather(
            broker,
            calls,
            seconds=0.05,
            batch_size=20,
            batch_timeout=1,
            batch_max_buffered=60,
        )
        for item in range(2000):
            await gather.kiq(item)
        broker.end()
        await _receiver(broker, max_async_tasks=100).listen(asyncio.Event())
        assert sum(len(call) for call in calls) == 2000
        assert sum(len(call) == 20 for call in calls) >= 95

    run_virtual(main())


# -- What is said -------------------------------------------------------------------


def test_the_most_messages_a_process_holds_are_told_at_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = QueueBroker()
    _gather(broker, [], batch_size=10, batch_max_buffered=70)

    @broker.task(batch=True, batch_size=5, batch_max_buffered=30)
    async def other(items: list[int]) -> None:
        raise NotImplementedError

    broker.end()
    run_virtual(
        _receiver(broker, max_async_tasks=4, max_prefetch=3).listen(asyncio.Event()),
    )
    assert "at most 107 messages" in caplog.text


def test_each_batch_task_has_one_line_with_the_arguments_that_are_in_effect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = QueueBroker()
    _gather(broker, [], batch_size=10, batch_timeout=2)

    def tenant_of(item: int) -> int:
        raise NotImplementedError

    @broker.task(
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
        batch_results="shared",
        batch_isolate_errors=(ValueError, KeyError),
        batch_max_buffered=30,
    )
    async def everything(items: list[int]) -> None:
        raise NotImplementedError

    @broker.task
    async def plain(item: int) -> None:
        raise NotImplementedError

    broker.end()
    run_virtual(_receiver(broker, max_async_tasks=4).listen(asyncio.Event()))
    lines = [
        record.getMessage()
        for record in caplog.records
        if "runs in batches" in record.getMessage()
    ]
    assert lines == [
        "Task gather runs in batches: batch_size=10, batch_timeout=2.0, "
        "batch_results=shared, batch_max_buffered=1000",
        "Task all runs in batches: batch_size=5, batch_timeout=0.5, "
        "batch_idle_timeout=0.1, batch_key=tenant_of, batch_weight=<lambda>, "
        "batch_max_weight=8.0, batch_coalesce=str, batch_concurrency=2, "
        "batch_results=shared, batch_isolate_errors=(ValueError, KeyError), "
        "batch_max_buffered=30",
    ]


def test_without_a_limit_of_tasks_no_bound_is_promised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = QueueBroker()
    _gather(broker, [])
    broker.end()
    run_virtual(_receiver(broker, max_async_tasks=None).listen(asyncio.Event()))
    assert "Task gather runs in batches" in caplog.text
    assert "at most" not in caplog.text


def test_a_worker_without_batch_tasks_says_nothing_about_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = QueueBroker()
    broker.end()
    run_virtual(_receiver(broker).listen(asyncio.Event()))
    assert "batch" not in caplog.text
    assert "at most" not in caplog.text


def _listen_with_limit(
    limit: int,
    messages: int,
    *,
    gap: float = 0,
    **limits: Any,
) -> float:
    """Send messages to a broker that holds back; say when all were settled."""

    async def main() -> float:
        broker = LimitedBroker(limit)
        gather = _gather(broker, [], batch_size=10, batch_timeout=1, **limits)
        receiver = _receiver(broker, max_prefetch=100)
        listening = asyncio.ensure_future(receiver.listen(asyncio.Event()))
        for item in range(messages):
            await gather.kiq(item)
            await asyncio.sleep(gap)
        broker.end()
        await listening
        return asyncio.get_running_loop().time()

    return run_virtual(main())


def test_a_broker_that_lets_no_batch_fill_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _listen_with_limit(4, 80)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    (warning,) = [text for text in warnings if "again and again" in text]
    for named in ("task gather", "4 messages", "batch_size=10", "batch_idle_timeout"):
        assert named in warning


def test_a_batch_that_fills_is_nothing_to_warn_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _listen_with_limit(10, 80)
    assert "again and again" not in caplog.text


def test_slow_traffic_is_nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> None:
    """Every batch leaves with one message, but the broker holds none back."""
    _listen_with_limit(100, 20, gap=2)
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
        broker = QueueBroker().with_middlewares(SlowToAdmit())
        calls: list[list[int]] = []
        gather = _gather(broker, calls, batch_size=10, batch_timeout=1)

        @broker.task(task_name="other", batch=True, batch_size=1)
        async def other(items: list[int]) -> None: ...

        for item in range(20):
            await gather.kiq(item)
            if item % 2:
                await other.kiq(item)
                await other.kiq(item)
        broker.end()
        await _receiver(broker, max_prefetch=0).listen(asyncio.Event())
        assert calls == [[item, item + 1] for item in range(0, 20, 2)]

    run_virtual(main())
    assert "again and again" not in caplog.text


def test_an_idle_timeout_keeps_a_worker_fast_whose_broker_holds_back() -> None:
    assert _listen_with_limit(4, 80) >= 19
    assert _listen_with_limit(4, 80, batch_idle_timeout=0.05) <= 2
