"""Runs what a `QueueBroker` holds, retries included, until nothing is left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from taskiq.receiver import Receiver
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend

if TYPE_CHECKING:
    from taskiq import BrokerMessage, TaskiqMessage, TaskiqMiddleware


class RetryBroker(QueueBroker):
    """Keeps every message it was given.

    :ivar sent: the messages as they were sent, in order.
    :ivar unreachable: ids whose sending raises.
    """

    def __init__(self, *middlewares: TaskiqMiddleware) -> None:
        super().__init__()
        self.sent: list[TaskiqMessage] = []
        self.unreachable: set[str] = set()
        self.backend = RecordingBackend()
        self.with_result_backend(self.backend).with_middlewares(*middlewares)

    async def kick(self, message: BrokerMessage) -> None:
        if message.task_id in self.unreachable:
            raise ConnectionError(f"cannot send {message.task_id}")
        self.sent.append(self.formatter.loads(message.message))
        await super().kick(message)

    def sent_labels(self, name: str) -> list[str | None]:
        """What each message had in one of its labels, as it was on the wire."""
        return [message.labels.get(name) for message in self.sent]

    async def run_all(self) -> int:
        """Run all messages, in rounds of those that are there at the same time.

        :returns: how many were run.
        """
        receiver = Receiver(self, max_async_tasks=100)
        runs = 0
        while not self.queue.empty():
            waiting = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
            deliveries = [self.ackable(each) for each in waiting if each is not None]
            await asyncio.gather(*(receiver.callback(each) for each in deliveries))
            runs += len(deliveries)
        return runs
