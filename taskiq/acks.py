"""When a message is acknowledged, and the means to do it."""

import asyncio
import enum
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, Field, GetPydanticSchema
from pydantic_core import core_schema


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


_Value = TypeVar("_Value")


def _taken_as_it_is(source: Any, handler: Any) -> core_schema.CoreSchema:
    """Validate nothing: looking for a method costs more than the other fields."""
    del source, handler
    return core_schema.any_schema()


class AckGroup(Protocol):
    """Acknowledges messages of one broker together, such as those of one queue."""

    async def ack(
        self,
        messages: "Sequence[AckableMessage]",
    ) -> Sequence[Exception | None]:
        """Acknowledge messages that have this group, instead of calling their `ack`.

        :param messages: the very objects `listen` yielded, at least one, none twice and
            none that is acknowledged already. To know which is which a broker makes
            them of a subclass with fields of its own.
        :returns: for each message, in order, `None` if it is acknowledged, else why it
            is not; the broker will deliver that one again.
        :raises Exception: when none of them is known to be acknowledged.
        """
        ...


class LeaseGroup(AckGroup, Protocol):
    """A group that also renews the leases of many messages together."""

    async def extend(
        self,
        messages: "Sequence[AckableMessage]",
    ) -> Sequence[Exception | None]:
        """Renew the leases of messages of this group, instead of calling `extend`.

        :param messages: as `ack` is given them.
        :returns: for each message, in order, `None` if its lease is renewed, else why
            it is not; the broker may deliver that one again.
        :raises Exception: when none of them is known to be renewed.
        """
        ...


#: How often a message was delivered, 1 for the first time, or what asks the broker. It
#: is at least that often where the broker only knows that it was delivered again.
Deliveries: TypeAlias = int | Callable[[], Awaitable[int | None]]

_Unchecked = Annotated[_Value | None, GetPydanticSchema(_taken_as_it_is)]


class AckableMessage(BaseModel):
    """What a broker's `listen` yields when its messages can be acknowledged.

    What is optional is `None` where the broker cannot do it, or leaves it to
    `taskiq.capabilities`, which knows some clients by their classes.
    """

    #: The serialised message.
    data: bytes
    #: Acknowledges the message; sync or async.
    ack: Callable[[], Awaitable[None] | None]
    #: Acknowledges it together with others that have the same group object. `ack` still
    #: has to work: a task may acknowledge its message itself. A group with a method
    #: `extend` renews leases together, too.
    ack_group: _Unchecked[AckGroup] = Field(default=None, exclude=True, repr=False)
    #: Gives the message back, to be delivered again: after so many seconds, or now if
    #: that is `None`. Only where `nack_delays` is set it is given seconds.
    nack: _Unchecked[Callable[[float | None], Awaitable[None] | None]] = Field(
        default=None,
        exclude=True,
        repr=False,
    )
    #: Whether `nack` can delay: the broker keeps the message for that time.
    nack_delays: bool = Field(default=False, exclude=True, repr=False)
    #: Ends the message for the reason given, in the broker's own place for dead letters
    #: if it has one.
    reject: _Unchecked[Callable[[str], Awaitable[None] | None]] = Field(
        default=None,
        exclude=True,
        repr=False,
    )
    #: Renews the lease: the broker waits once more as long as at first before it
    #: delivers the message again.
    extend: _Unchecked[Callable[[], Awaitable[None] | None]] = Field(
        default=None,
        exclude=True,
        repr=False,
    )
    #: Seconds that a lease is long, where there are leases and that is known.
    lease: _Unchecked[float] = Field(default=None, exclude=True, repr=False)
    #: How often it was delivered; `None` if that is not known.
    deliveries: _Unchecked[Deliveries] = Field(default=None, exclude=True, repr=False)


class AckController:
    """The right to acknowledge one message, once.

    :param ack: the broker's acknowledgement, or `None` if it has none.
    :ivar message: what the broker yielded, where it can be acknowledged with others.
    """

    __slots__ = (
        "_ack",
        "_is_reserved",
        "_released",
        "is_acked",
        "message",
    )

    def __init__(self, ack: Callable[[], Awaitable[None] | None] | None) -> None:
        self._ack = ack
        self.message: AckableMessage | None = None
        self.is_acked = False
        # Whether somebody is at it, and what others wait for meanwhile.
        self._is_reserved = False
        self._released: asyncio.Future[None] | None = None

    @property
    def is_ackable(self) -> bool:
        """Whether the broker lets this message be acknowledged."""
        return self._ack is not None

    async def ack(self) -> None:
        """Acknowledge the message, unless that has already happened.

        Who asks while another is at it waits for that one.

        :raises RuntimeError: if the message cannot be acknowledged.
        """
        if self._ack is None:
            raise RuntimeError("Current message is not ackable.")
        while not self.reserve():
            if self.is_acked:
                return
            if self._released is None:
                self._released = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._released])
        try:
            returned = self._ack()
            if inspect.isawaitable(returned):
                await returned
            self.is_acked = True
        finally:
            self.release()

    def reserve(self) -> bool:
        """Take the right to acknowledge the message; `release` gives it back.

        :returns: whether nobody has done so, or is at it.
        """
        if self._is_reserved or self.is_acked:
            return False
        self._is_reserved = True
        return True

    def release(self) -> None:
        """Give back what `reserve` took, after setting `is_acked` if it is done."""
        self._is_reserved = False
        if self._released is not None:
            if not self._released.done():
                self._released.set_result(None)
            self._released = None
