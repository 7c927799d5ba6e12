"""What a broker handed over: one message, and the right to settle it once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskiq.acks import AckController, AcknowledgeType
    from taskiq.message import TaskiqMessage
    from taskiq.receiver.prepared import PreparedTask

logger = logging.getLogger("taskiq.receiver.receiver")


def describe(message: TaskiqMessage) -> str:
    """Name a message in the log and in errors."""
    return f"task {message.task_name} with ID {message.task_id}"


class Delivery:
    """One message on its way through the receiver.

    :ivar message: the message, as the last `pre_execute` hook left it.
    :ivar task: the task it is for.
    :ivar controller: acknowledges it.
    :ivar ack_type: the moment it is acknowledged at.
    """

    __slots__ = ("ack_type", "controller", "message", "task")

    def __init__(
        self,
        message: TaskiqMessage,
        task: PreparedTask,
        controller: AckController,
        ack_type: AcknowledgeType,
    ) -> None:
        self.message = message
        self.task = task
        self.controller = controller
        self.ack_type = ack_type

    async def ack(self) -> None:
        """Acknowledge it, if its broker wants to know, whatever comes of it."""
        await acknowledge(self.controller, self)

    def __str__(self) -> str:
        return describe(self.message)


class Refused:
    """A delivery nobody can run: acknowledged, so that it does not come again."""

    __slots__ = ("controller",)

    def __init__(self, controller: AckController) -> None:
        self.controller = controller

    async def ack(self) -> None:
        """Acknowledge it, if its broker wants to know, whatever comes of it."""
        await acknowledge(self.controller, self)

    def __str__(self) -> str:
        return "a message that nobody can run"


async def acknowledge(controller: AckController, subject: object) -> None:
    """Acknowledge a message. A broker that cannot be reached harms nobody else.

    :param subject: names the message in the log, by its `str`.
    """
    if not controller.is_ackable:
        return
    try:
        await controller.ack()
    except Exception:
        logger.exception("Cannot acknowledge %s.", subject)
