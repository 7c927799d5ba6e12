"""When a message is acknowledged, and the means to do it."""

import enum
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel


@enum.unique
class AcknowledgeType(str, enum.Enum):
    """The moment at which the worker acknowledges a message."""

    #: Before the task runs: a crash loses the message.
    WHEN_RECEIVED = "when_received"
    #: After the task function ended, whether it failed or not.
    WHEN_EXECUTED = "when_executed"
    #: After the result was stored.
    WHEN_SAVED = "when_saved"
    #: Only when the task itself calls `Context.ack`.
    MANUAL = "manual"


def parse_acknowledge_type(value: Any) -> AcknowledgeType:
    """Read an acknowledge type from a label or an argument.

    :param value: a member of `AcknowledgeType`, or its value in any letter case.
    :returns: the member.
    :raises ValueError: if there is no such type.
    """
    if isinstance(value, AcknowledgeType):
        return value
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - a bad label is a bad value
            f"Unsupported acknowledge type: {value!r}, use str or AcknowledgeType",
        )
    # taskiq 0.13.0 sends a member used as a label as "AcknowledgeType.MANUAL".
    name = value.lower().removeprefix("acknowledgetype.")
    try:
        return AcknowledgeType(name)
    except ValueError as exc:
        allowed = ", ".join(member.value for member in AcknowledgeType)
        raise ValueError(
            f"Unknown acknowledge type value: {value}, use one of: {allowed}",
        ) from exc


class AckableMessage(BaseModel):
    """What a broker's `listen` yields when its messages can be acknowledged."""

    #: The serialised message.
    data: bytes
    #: Acknowledges the message; sync or async.
    ack: Callable[[], Awaitable[None] | None]


class AckController:
    """The right to acknowledge one message, once.

    :param ack: the broker's acknowledgement, or `None` if it has none.
    """

    __slots__ = ("_ack", "is_acked")

    def __init__(self, ack: Callable[[], Awaitable[None] | None] | None) -> None:
        self._ack = ack
        self.is_acked = False

    @property
    def is_ackable(self) -> bool:
        """Whether the broker lets this message be acknowledged."""
        return self._ack is not None

    async def ack(self) -> None:
        """Acknowledge the message, unless that has already happened.

        :raises RuntimeError: if the message cannot be acknowledged.
        """
        if self._ack is None:
            raise RuntimeError("Current message is not ackable.")
        if self.is_acked:
            return
        returned = self._ack()
        if inspect.isawaitable(returned):
            await returned
        self.is_acked = True
