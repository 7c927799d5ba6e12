"""A receiver whose every step with a message is written down, in order."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from taskiq import AckableMessage, Context, TaskiqDepends, TaskiqMessage
from taskiq.receiver import Receiver
from tests.support.brokers import QueueBroker, message_bytes
from tests.support.recorders import RecordingBackend, RecordingMiddleware

if TYPE_CHECKING:
    import pytest

    from taskiq import AsyncTaskiqDecoratedTask, TaskiqMiddleware, TaskiqResult

#: For a parameter of a task: what it is told about its message.
CurrentContext: TypeAlias = Annotated[Context, TaskiqDepends()]

#: What happened, and the id of the message it happened to.
Journal: TypeAlias = "list[tuple[str, str]]"


class JournalBackend(RecordingBackend):
    """Writes down when a result is saved."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        await super().set_result(task_id, result)
        self.journal.append(("save", task_id))


class Worker:
    """A broker with one recording middleware, a result backend and a receiver.

    :param middlewares: stand in for the recording middleware.
    :param options: of the receiver; it is built at its first use, with the tasks that
        are registered then.
    """

    def __init__(self, *middlewares: TaskiqMiddleware, **options: Any) -> None:
        self.journal: Journal = []
        self.broker = QueueBroker()
        self.backend = JournalBackend(self.journal)
        self.broker.with_result_backend(self.backend)
        self.broker.add_middlewares(
            *middlewares or [RecordingMiddleware(events=self.journal)],
        )
        self.options = {"max_async_tasks": 10, **options}

    @cached_property
    def receiver(self) -> Receiver:
        return Receiver(self.broker, **self.options)

    def ackable(self, data: bytes, task_id: str = "id") -> AckableMessage:
        """Make a delivery whose acknowledgement is written down."""

        async def ack() -> None:
            self.journal.append(("ack", task_id))

        return AckableMessage(data=data, ack=ack)

    async def deliver(
        self,
        task: AsyncTaskiqDecoratedTask[..., Any],
        *args: Any,
        task_id: str = "id",
        labels: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> TaskiqResult[Any] | None:
        """Take one message through the callback.

        :returns: its result, `None` when none was saved.
        """
        data = message_bytes(task, *args, task_id=task_id, labels=labels, **kwargs)
        await self.receiver.callback(self.ackable(data, task_id))
        return self.backend.results.get(task_id)

    def steps(self, task_id: str = "id") -> list[str]:
        """List what happened to one message."""
        return [step for step, of in self.journal if of == task_id]


def message_of(task_name: str, *args: Any, **labels: Any) -> TaskiqMessage:
    """Make a message as it is after parsing."""
    return TaskiqMessage(
        task_id="id",
        task_name=task_name,
        labels=labels,
        args=list(args),
        kwargs={},
    )


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List what was logged at WARNING or above."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING
    ]
