"""Brokers for tests: they really carry messages, and tell what became of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from taskiq import AckableMessage, AsyncBroker, BrokerMessage, TaskiqMessage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from taskiq import AsyncTaskiqDecoratedTask


class QueueBroker(AsyncBroker):
    """Keeps what was sent in a queue and gives it out, acknowledgeable, in order.

    :ivar acked: ids of acknowledged messages, one entry per acknowledgement.
    :ivar delivered: ids of messages that `listen` gave out.
    :ivar failing_acks: ids whose acknowledgement raises.
    :ivar ack_takes: seconds of an acknowledgement.
    :ivar steps: where each acknowledgement is written, too, as ``("ack", task id)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[BrokerMessage | None] = asyncio.Queue()
        self.acked: list[str] = []
        self.delivered: list[str] = []
        self.failing_acks: set[str] = set()
        self.ack_takes = 0.0
        self.steps: list[tuple[str, str]] = []
        self.is_closed = False

    async def kick(self, message: BrokerMessage) -> None:
        self.queue.put_nowait(message)

    def put(self, data: bytes, task_id: str) -> None:
        """Put in what nobody has sent."""
        self.queue.put_nowait(
            BrokerMessage(task_id=task_id, task_name="", message=data, labels={}),
        )

    def take_all(self) -> list[BrokerMessage]:
        """Take out what was sent and not given out so far."""
        waiting = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        return [message for message in waiting if message is not None]

    def end(self) -> None:
        """Let `listen` end by itself once everything before was given out."""
        self.queue.put_nowait(None)

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        try:
            while (message := await self.queue.get()) is not None:
                self.delivered.append(message.task_id)
                yield self.ackable(message)
        finally:
            self.is_closed = True

    def ackable(self, message: BrokerMessage) -> AckableMessage:
        """Make a delivery of a message."""

        async def ack() -> None:
            if self.ack_takes:
                await asyncio.sleep(self.ack_takes)
            if message.task_id in self.failing_acks:
                raise ConnectionError(f"cannot ack {message.task_id}")
            self.acked.append(message.task_id)
            self.steps.append(("ack", message.task_id))

        return AckableMessage(data=message.message, ack=ack)


def message_bytes(
    task: AsyncTaskiqDecoratedTask[..., Any],
    *args: Any,
    task_id: str = "id",
    labels: dict[str, Any] | None = None,
    **kwargs: Any,
) -> bytes:
    """Dump a message of `task` as a client would."""
    message = TaskiqMessage(
        task_id=task_id,
        task_name=task.task_name,
        labels=labels or {},
        args=list(args),
        kwargs=kwargs,
    )
    return task.broker.formatter.dumps(message).message
