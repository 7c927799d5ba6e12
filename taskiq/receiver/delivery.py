"""What a broker handed over: one message, and the right to settle it once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from taskiq.chunks import sent_id
from taskiq.policies import Reason
from taskiq.receiver.diagnosis import describe, named
from taskiq.receiver.placing import read_priority, read_timeout
from taskiq.receiver.states import ENDED, IN_BATCH, JOINING, Holder, MessageState, Unit

if TYPE_CHECKING:
    import asyncio
    import contextvars
    from collections.abc import Callable, Hashable, Sequence
    from decimal import Decimal

    from taskiq.acks import AckableMessage, AckController, AcknowledgeType
    from taskiq.batch import BatchConfig
    from taskiq.hooks import HookLists
    from taskiq.message import TaskiqMessage
    from taskiq.outcome import Outcome
    from taskiq.policies import Ending
    from taskiq.receiver.batcher import Batch, Group
    from taskiq.receiver.placing import Rest, Same
    from taskiq.receiver.prepared import PreparedTask
    from taskiq.receiver.turns import Turn
    from taskiq.result import TaskiqResult

# By name: on Python 3.11 a member costs as much as a call each time it is asked for.
_READ: Final = MessageState.READ
_BUFFERED: Final = MessageState.BUFFERED
_SETTLING: Final = MessageState.SETTLING
_DONE: Final = MessageState.DONE
_PLACE: Final = Unit.PLACE
_ERROR: Final = Reason.ERROR
_NOTHING: Final[Any] = None


class Delivery(Holder):
    """One message on its way through the receiver.

    :param broker: whose message it is.
    :param raw: what the broker gave.
    :ivar controller: acknowledges it.
    :ivar hooks: the middlewares that take part in each hook.
    :ivar message: the message, as the last `pre_execute` hook left it.
    :ivar task: its task, prepared; `None` where that failed.
    :ivar function: the function of its task.
    :ivar refusal: why nobody can run it, with what error, and the message if it can be
        read; `None` for what can be run.
    :ivar is_batched: whether its task runs in batches.
    :ivar is_paced: whether it has to wait for the rate of its plain task.
    :ivar ack_type: the moment it is acknowledged at.
    :ivar context: the context variables its hooks left; `None` for none of its own.
    :ivar result: its result, from its outcome on.
    :ivar outcome: what its result is made of when it is saved, with the `seconds` of
        its call; `None` where it is made already.
    :ivar is_error_told: whether the `on_error` hooks have been called with it.
    :ivar reason: why it failed, if it does.
    :ivar ending: how it ends, if it failed and is not simply acknowledged.
    :ivar unique: the key that it holds, and the token; `None` if it holds none.
    :ivar turn: what it may run beside, where its plain task may kill the process.
    :ivar fingerprint: equal for deliveries of the same bytes; `None` where nobody
        delivers again what is not acknowledged.

    A message of a batch task has more, once it is placed:

    :ivar item: its item, cast to the element type of the list.
    :ivar rest: its other arguments.
    :ivar timeout: seconds its call may take, `None` for no limit.
    :ivar weight: what it adds to its batch.
    :ivar priority: of two batches that are due, that with the higher one starts first.
    :ivar same: equal for items that are passed to the function once.
    :ivar group: the messages it may share a call with.
    :ivar twins: the messages of equal items, if this one's is passed for all of them.
    :ivar is_held_twice: whether it came while an equal one was held.
    :ivar settled: resolved when it is settled, where somebody waits for that; cancelled
        when they have given it up: it gets no result and no acknowledgement.
    """

    __slots__ = (
        "__weakref__",
        "ack_type",
        "broker",
        "context",
        "controller",
        "deliveries",
        "ending",
        "fingerprint",
        "function",
        "group",
        "hooks",
        "is_batched",
        "is_error_told",
        "is_held_twice",
        "is_paced",
        "item",
        "message",
        "name",
        "outcome",
        "priority",
        "raw",
        "reason",
        "refusal",
        "rest",
        "result",
        "same",
        "seconds",
        "settled",
        "task",
        "task_id",
        "timeout",
        "turn",
        "twins",
        "unique",
        "weight",
    )
    #: Whether it is one item of a message with many.
    is_part = False
    #: Its other arguments, where another item of the message had them bound.
    bound: Rest | None = None

    message: TaskiqMessage
    # Of the message as hooks left it for its task: what is left of it when it is over.
    name: str
    task_id: str
    controller: AckController
    hooks: HookLists
    task: PreparedTask | None
    function: Callable[..., Any]
    ack_type: AcknowledgeType
    result: TaskiqResult[Any]
    seconds: float
    # How often it was delivered, once somebody has asked.
    deliveries: int
    item: Any
    rest: Rest
    timeout: float | None
    weight: int | Decimal
    priority: float
    same: Same | None
    group: Group[Delivery]

    def __init__(self, broker: object, raw: bytes | AckableMessage) -> None:
        # Written out, `Holder` included: this is made for each message.
        self.state = _READ
        self.unit = self.unit_2 = None
        self.source = self.source_2 = None
        self.broker = broker
        self.raw = raw
        self.is_batched = self.is_paced = False
        self.is_error_told = self.is_held_twice = False
        self.refusal: tuple[Reason, BaseException, TaskiqMessage | None] | None = None
        self.reason = _ERROR
        self.ending: Ending | None = None
        self.unique: tuple[str, str] | None = None
        self.turn: Turn | None = None
        self.context: contextvars.Context | None = None
        self.fingerprint: int | None = None
        self.twins: Sequence[Delivery] = ()
        self.outcome: Outcome | None = None
        self.settled: asyncio.Future[None] | None = None

    def place(
        self,
        find_group: Callable[[PreparedTask, BatchConfig, Hashable], Group[Delivery]],
        validate: bool,
    ) -> None:
        """Work out what it brings to a call, and whom it may share it with.

        :raises BaseException: whatever its arguments do.
        """
        task = self.task
        assert task is not None  # noqa: S101
        plan = task.plan
        assert plan is not None  # noqa: S101
        message = self.message
        item, rest = plan.place(
            message.args, message.kwargs, validate=validate, rest=self.bound
        )
        self.item, self.rest, self.weight = item, rest, 0
        self.timeout, self.priority = None, plan.priority
        key: Hashable = rest.key
        if labels := message.labels:
            timeout, priority = labels.get("timeout"), labels.get("priority")
            if timeout is not None:
                self.timeout = read_timeout(timeout)
                key = (key, self.timeout)
            if priority is not None:
                self.priority = read_priority(priority, plan.priority)
        if plan.is_measured:
            own_key, self.weight, self.same = plan.measure(item, rest)
            key = (key, own_key)
        self.group = find_group(task, plan.config, key)

    def joined(self, batch: Batch[Delivery]) -> None:
        """Go into a batch, with a place in what its task may hold."""
        self.move(_BUFFERED)
        self.unit, self.source = _PLACE, batch

    def moved(self, batch: Batch[Delivery]) -> None:
        """Have the place in another batch."""
        self.source = batch

    @property
    def batch(self) -> Batch[Delivery] | None:
        """The batch it is in, which it has its place from."""
        if self.state is not _BUFFERED:
            return None
        return cast("Batch[Delivery]", self.source)

    @property
    def sent_as(self) -> str:
        """The id that it was sent under; of an item that of its chunk."""
        return sent_id(self.message)

    @property
    def whole(self) -> Delivery:
        """What it came with: of an item the chunk."""
        return self

    def waits(self) -> None:
        """Wait until its task may hold one message more."""
        self.move(MessageState.WAITING)

    def parks(self) -> bool:
        """Wait on, and let others be read meanwhile."""
        self.move(MessageState.PARKED)
        return True

    def steps_aside(self) -> None:
        """Wait for the rate of its task, and let others be read meanwhile."""
        self.move(MessageState.PACED)

    def is_acked_at(self, moment: AcknowledgeType) -> bool:
        """Whether this is the moment to acknowledge it."""
        return self.ack_type is moment and self.controller.is_ackable

    @property
    def is_joining(self) -> bool:
        """Whether it is on its way to a batch."""
        return self.is_batched and self.state in JOINING

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state in ENDED

    @property
    def is_given_up(self) -> bool:
        """Whether nobody wants a result of it any more."""
        return self.settled is not None and self.settled.cancelled()

    def end(self, state: MessageState) -> None:
        """Be done or left, unless that is so already; wake whoever waits for it."""
        if self.state not in ENDED:
            self.move(state)
        if self.settled is not None and not self.settled.done():
            self.settled.set_result(None)

    def leave(self) -> None:
        """Give it up, unless it is done or its batch's."""
        if self.state is _DONE and self.settled is None:  # mostly
            return
        if self.state not in IN_BATCH:
            self.end(MessageState.LEFT)

    def __enter__(self) -> None:
        """Take it through its steps."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.state is _SETTLING:  # mostly
            self.move(_DONE)
            if self.refusal is None:
                # Nothing is kept of what it was but its name. Tasks that its function
                # has begun work for it, and may never end; and records of the log name
                # it when they are written.
                self.raw = self.message = self.result = _NOTHING
        elif self.state not in IN_BATCH:
            self.end(MessageState.DONE if kind is None else MessageState.LEFT)

    def __str__(self) -> str:
        if self.refusal is not None:
            return "a message that nobody can run"
        message = getattr(self, "message", None)
        if message is not None:
            return describe(message)
        # Somebody's own callback decodes it for itself.
        is_named = hasattr(self, "name")
        return named(self.name, self.task_id) if is_named else "a message"
