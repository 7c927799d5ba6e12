"""What a broker handed over: one message, and the right to settle it once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from taskiq.receiver.cancellation import within

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Hashable, Sequence

    from taskiq.acks import AckController, AcknowledgeType
    from taskiq.message import TaskiqMessage
    from taskiq.receiver.grouping import BatchPlan, Rest
    from taskiq.receiver.prepared import PreparedTask
    from taskiq.receiver.running import Slots

logger = logging.getLogger("taskiq.receiver.receiver")

#: Seconds that an acknowledgement may take. A client may wait for ever on a connection
#: that is gone; nobody would get the capacity back that its message holds.
ACK_PATIENCE: Final = 30.0


def describe(message: TaskiqMessage) -> str:
    """Name a message in the log and in errors."""
    return f"task {message.task_name} with ID {message.task_id}"


class Delivery:
    """One message on its way through the receiver.

    :ivar message: the message, as the last `pre_execute` hook left it.
    :ivar function: the function of its task.
    :ivar controller: acknowledges it.
    :ivar ack_type: the moment it is acknowledged at.
    """

    __slots__ = ("ack_type", "controller", "function", "message")

    def __init__(
        self,
        message: TaskiqMessage,
        function: Callable[..., Any],
        controller: AckController,
        ack_type: AcknowledgeType,
    ) -> None:
        self.message = message
        self.function = function
        self.controller = controller
        self.ack_type = ack_type

    def is_acked_at(self, moment: AcknowledgeType) -> bool:
        """Whether this is the moment to acknowledge it."""
        return self.ack_type is moment and self.controller.is_ackable

    def ack(self) -> Coroutine[Any, Any, None]:
        """Acknowledge it, if its broker wants to know, whatever comes of it."""
        return acknowledge(self.controller, self)

    def __str__(self) -> str:
        return describe(self.message)


class Member(Delivery):
    """A message of a batch task, on its way through a batch.

    :ivar task: its task, prepared.
    :ivar plan: how messages of its task are placed.
    :ivar item: its item, cast to the element type of the list.
    :ivar rest: its other arguments.
    :ivar timeout: seconds its call may take, `None` for no limit.
    :ivar key: what else it is grouped by.
    :ivar weight: what it adds to its batch.
    :ivar same: equal for items that are passed to the function once.
    :ivar twins: the messages of equal items, if this one's is passed for all of them.
    :ivar fingerprint: equal for deliveries of the same bytes; `None` where nobody
        delivers again what is not acknowledged.
    :ivar is_held_twice: whether it came while an equal one was held.
    :ivar slots: the capacity it holds until it is admitted, `None` for none.
    :ivar settled: resolved when it is settled, where somebody waits for that; cancelled
        when they have given it up: it gets no result and no acknowledgement.
    """

    __slots__ = (
        "fingerprint",
        "is_held_twice",
        "item",
        "key",
        "plan",
        "rest",
        "same",
        "settled",
        "slots",
        "task",
        "timeout",
        "twins",
        "weight",
    )

    item: Any
    rest: Rest
    timeout: float | None

    def __init__(
        self,
        message: TaskiqMessage,
        task: PreparedTask,
        plan: BatchPlan,
        controller: AckController,
        ack_type: AcknowledgeType,
    ) -> None:
        # What `Delivery` sets, without a call: there is one of these per message.
        self.message = message
        self.function = task.function
        self.controller = controller
        self.ack_type = ack_type
        self.task = task
        self.plan = plan
        self.key: Hashable = None
        self.weight = 0.0
        self.same: Hashable = None
        self.twins: Sequence[Member] = ()
        self.fingerprint: int | None = None
        self.is_held_twice = False
        self.slots: Slots | None = None
        self.settled: asyncio.Future[None] | None = None

    def place(self, *, validate: bool) -> Exception | None:
        """Work out what it brings to a call, and whom it may share it with.

        :returns: what makes that impossible; it fails this message alone.
        """
        try:
            placed = self.plan.place(self.message, validate=validate)
            self.item, self.rest, self.timeout = placed
            if self.plan.is_measured:
                measured = self.plan.measure(self.item, self.rest)
                self.key, self.weight, self.same = measured
        except Exception as exc:  # noqa: BLE001 - becomes the message's error
            return exc
        return None

    @property
    def group(self) -> Hashable:
        """The key of the messages it may share a call with."""
        if self.timeout is None and self.key is None:
            return self.rest.key
        return (self.rest.key, self.timeout, self.key)

    def admitted(self) -> None:
        """Give the delivery slot back: a buffered message is no delivery any more."""
        if self.slots is not None:
            self.slots.release_delivery()

    def release(self) -> None:
        """Give back whatever capacity it holds."""
        if self.slots is not None:
            self.slots.release()

    def tell_settled(self) -> None:
        """Wake whoever waits for it to be settled."""
        if self.settled is not None and not self.settled.done():
            self.settled.set_result(None)


class Refused:
    """A delivery nobody can run: acknowledged, so that it does not come again."""

    __slots__ = ("controller",)

    def __init__(self, controller: AckController) -> None:
        self.controller = controller

    def ack(self) -> Coroutine[Any, Any, None]:
        """Acknowledge it, if its broker wants to know, whatever comes of it."""
        return acknowledge(self.controller, self)

    def __str__(self) -> str:
        return "a message that nobody can run"


async def acknowledge(controller: AckController, subject: object) -> None:
    """Acknowledge a message. A broker that cannot be reached harms nobody else.

    :param subject: names the message in the log, by its `str`.
    """
    if not controller.is_ackable:
        return
    try:
        await within(ACK_PATIENCE, controller.ack())
    except Exception:
        logger.exception("Cannot acknowledge %s.", subject)
