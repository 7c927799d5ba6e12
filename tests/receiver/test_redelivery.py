"""A message that a broker delivers again while it is still held is told of."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from taskiq import BatchContext, TaskiqDepends
from taskiq.kicker import AsyncKicker
from taskiq.receiver import Receiver
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from taskiq import AckableMessage

_REPORT = "were delivered again while this process still holds them"


class Worker:
    """A worker with a batch task, two items at a time.

    :param seconds: how long each call takes.
    """

    def __init__(
        self,
        broker: QueueBroker | None = None,
        seconds: tuple[float, ...] = (1, 1, 1),
        **limits: Any,
    ) -> None:
        self.broker = broker or QueueBroker()
        self.broker.with_result_backend(RecordingBackend())
        self.calls: list[list[int]] = []
        self.requeued: set[int] = set()

        async def work(
            items: list[int],
            context: Annotated[BatchContext, TaskiqDepends()],
        ) -> int:
            self.calls.append(items)
            if items[0] in self.requeued:
                self.requeued.remove(items[0])
                await context.requeue(0)
            await asyncio.sleep(seconds[len(self.calls) - 1])
            return sum(items)

        limits = {"batch_size": 2, "batch_timeout": 3, **limits}
        self.broker.register_task(work, task_name="work", batch=True, **limits)
        self.receiver = Receiver(self.broker, run_startup=False, max_async_tasks=2)
        self.finish = asyncio.Event()

    async def deliver(self, item: int) -> None:
        """Hand out a message; it is the same one for the same item."""
        kicker: AsyncKicker[Any, Any] = AsyncKicker("work", self.broker, {})
        await kicker.with_task_id(f"id {item}").kiq(item)

    def listen(self) -> asyncio.Task[None]:
        return asyncio.ensure_future(self.receiver.listen(self.finish))

    @property
    def held(self) -> object:
        return self.receiver.batching._redeliveries._held


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
        worker = Worker(batch_size=5)
        listening = worker.listen()
        for item in (1, 2, 1, 3, 3):
            await worker.deliver(item)
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
        worker = Worker()
        listening = worker.listen()
        await worker.deliver(1)
        await asyncio.sleep(after)
        await worker.deliver(1)
        await asyncio.sleep(5)
        # Settled twice by now: another delivery is not held twice.
        await worker.deliver(1)
        await asyncio.sleep(5)
        assert worker.held == {}
        worker.finish.set()
        await listening

    run_virtual(main())
    (report,) = reports(caplog)
    assert "id 1." in report


def test_the_first_delivery_is_remembered_though_the_second_is_settled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = Worker(seconds=(20, 1, 1), batch_size=1)
        listening = worker.listen()
        for _ in range(3):
            await worker.deliver(1)
            await asyncio.sleep(5)
        worker.finish.set()
        await listening

    run_virtual(main())
    assert len(reports(caplog)) == 2


def test_a_requeued_message_is_another_one(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        worker = Worker(batch_size=1)
        worker.requeued = {1}
        listening = worker.listen()
        await worker.deliver(1)
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
        worker = Worker(SilentBroker())
        listening = worker.listen()
        await worker.deliver(1)
        await worker.deliver(1)
        await asyncio.sleep(2)
        worker.finish.set()
        await listening
        assert worker.calls == [[1, 1]]

    run_virtual(main())
    assert reports(caplog) == []


def test_nothing_is_remembered_of_what_is_let_go_at_a_stop() -> None:
    async def main() -> None:
        worker = Worker(batch_size=5)
        listening = worker.listen()
        await worker.deliver(1)
        await asyncio.sleep(1)
        held = worker.held
        assert held
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening
        assert held == {}

    run_virtual(main())


@pytest.mark.parametrize("after", [1, 3.5], ids=["waiting", "running"])
def test_nothing_is_remembered_of_a_callback_that_is_cancelled(after: float) -> None:
    async def main() -> None:
        worker = Worker()
        await worker.deliver(1)
        message = await anext(worker.broker.listen())
        callback = asyncio.ensure_future(worker.receiver.callback(message))
        await asyncio.sleep(after)
        assert worker.held
        callback.cancel()
        with pytest.raises(asyncio.CancelledError):
            await callback
        await asyncio.sleep(5)
        assert worker.held == {}

    run_virtual(main())
