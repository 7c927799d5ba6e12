"""Acknowledging takes its time, and not for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import AckableMessage, BrokerMessage
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import run_virtual
from tests.support.worker import BatchWorker, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds an acknowledgement may take.
_PATIENCE = 30.0


class AwayBroker(QueueBroker):
    """Acknowledges once its server answers.

    :ivar answers: set while it does.
    :ivar asked: ids whose acknowledgement was begun.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.asked: list[str] = []

    def ackable(self, message: BrokerMessage) -> AckableMessage:
        async def ack() -> None:
            self.asked.append(message.task_id)
            await self.answers.wait()
            self.acked.append(message.task_id)

        return AckableMessage(data=message.message, ack=ack)


def noting(broker: AwayBroker) -> tuple[Worker, Any, list[int]]:
    """Make a worker of one plain task at a time that notes its numbers."""
    worker = Worker(broker=broker, max_async_tasks=1)
    noted: list[int] = []

    @worker.broker.task("note")
    async def note(number: int) -> None:
        noted.append(number)

    return worker, note, noted


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):  # turns of the event loop
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


def test_the_messages_of_a_batch_are_acknowledged_side_by_side() -> None:
    async def main() -> None:
        broker = AwayBroker()
        worker = BatchWorker(broker=broker, batch_size=10)
        await worker.send(*range(10))
        running = asyncio.ensure_future(worker.run())
        await until(lambda: len(broker.asked) == 10)
        assert broker.acked == []
        broker.answers.set()
        await running
        worker.assert_settled_once(10)

    run_virtual(main())


def test_acknowledgements_that_hang_are_given_up_and_one_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = BatchWorker(
            broker=AwayBroker(),
            batch_size=2,
            batch_max_buffered=2,
            max_async_tasks=1,
        )
        await worker.send(*range(6))
        await worker.run()
        # There is room for one batch at a time, and its acknowledgements wait together.
        assert asyncio.get_running_loop().time() == pytest.approx(3 * _PATIENCE)

    run_virtual(main())
    first, *later = [r for r in caplog.records if r.levelname == "WARNING"]
    assert (
        "Cannot acknowledge task work with ID 0: TimeoutError: " in first.getMessage()
    )
    # They hang for three times half a minute: one more line, for all until then.
    assert [r.getMessage()[-30:] for r in later] == [
        "it is since 60 s, for 5 messages."[-30:]
    ]


def test_a_plain_task_gives_its_slot_back_though_its_acknowledgement_hangs() -> None:
    async def main() -> None:
        worker, note, noted = noting(AwayBroker())
        await worker.send_to(note, 0, 1, 2)
        await worker.run()
        assert noted == [0, 1, 2]
        worker.assert_as_new()

    run_virtual(main())


def test_an_acknowledgement_in_time_is_left_alone() -> None:
    async def main() -> None:
        broker = AwayBroker()
        worker, note, _ = noting(broker)
        await worker.send_to(note, 0)
        running = asyncio.ensure_future(worker.run())
        await asyncio.sleep(_PATIENCE - 1)
        broker.answers.set()
        await running
        assert broker.acked == ["0"]

    run_virtual(main())
