"""What a task is told about the message it runs for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence  # noqa: TC003 - see below
from typing import Protocol

# The dependency resolver evaluates the annotations of these constructors.
from taskiq.abc.broker import AsyncBroker  # noqa: TC001
from taskiq.aborts import aborts_of
from taskiq.acks import AckController  # noqa: TC001
from taskiq.batch import FlushReason  # noqa: TC001
from taskiq.chunks import INDEX_LABEL, sent_id
from taskiq.exceptions import (
    DeadLetteredError,
    MessageNackedError,
    NoResultError,
    TaskRejectedError,
)
from taskiq.labels import prepare_label
from taskiq.message import TaskiqMessage
from taskiq.outcome import Failed, Outcome, Succeeded
from taskiq.policies import mark_sent_again, read_delay
from taskiq.unsendable import dump_message

#: Counts how often a message was sent again by a task.
REQUEUE_LABEL = "X-Taskiq-requeue"


class Context:
    """The message a task runs for, and what may be done with it.

    :ivar message: the message.
    :ivar broker: the broker it came from.
    :ivar state: the state of that broker.
    """

    _is_requeued = False
    # Held by who sends it again; most messages need none.
    _requeueing: asyncio.Lock | None = None

    def __init__(
        self,
        message: TaskiqMessage,
        broker: AsyncBroker,
        ack_controller: AckController | None = None,
    ) -> None:
        self.message = message
        self.broker = broker
        self.state = broker.state
        self._ack_controller = ack_controller

    @property
    def messages(self) -> Sequence[TaskiqMessage]:
        """Every message of this call: one, unless the task runs in batches."""
        return (self.message,)

    @property
    def all_messages(self) -> Sequence[TaskiqMessage]:
        """Every message of this call, those of equal items included."""
        return self.messages

    @property
    def is_ackable(self) -> bool:
        """Whether the broker wants to be told that the message is done."""
        return self._ack_controller is not None and self._ack_controller.is_ackable

    @property
    def is_acked(self) -> bool:
        """Whether the message was acknowledged already."""
        return self._ack_controller is not None and self._ack_controller.is_acked

    async def ack(self) -> None:
        """Acknowledge the message now; a second time does nothing.

        :raises RuntimeError: when the broker knows no acknowledgement.
        """
        await _ack(self._ack_controller)

    async def requeue(self) -> None:
        """Send the message again under its id; this run leaves no result.

        However often it is asked for, also side by side, it is sent once, and whoever
        asks waits for that.

        :raises NoResultError: always, to end the task.
        :raises Exception: what sending fails with; the message stays what it was.
        :raises UnsendableArgumentError: when an argument was replaced by something
            that cannot be serialised.
        """
        if self._requeueing is None:
            self._requeueing = asyncio.Lock()
        # Who is second must not end the task before the message is sent.
        async with self._requeueing:
            if not self._is_requeued:
                await _send_again(self.broker, self.message)
                self._is_requeued = True
        raise NoResultError

    def aborted(self) -> bool:
        """Tell whether the message was aborted.

        A coroutine that waits sees a cancellation then. A function in a thread or
        process goes on: it may ask, and end early.
        """
        return self._are_aborted((self.message,))

    def _are_aborted(self, messages: Iterable[TaskiqMessage]) -> bool:
        aborts = aborts_of(self.broker)
        if not aborts:
            return False
        return all(sent_id(each) in aborts for each in messages)

    def reject(self) -> None:
        """Fail the message.

        :raises TaskRejectedError: always, to end the task.
        """
        raise TaskRejectedError

    def nack(self, *, delay: float | None = None) -> None:
        """Give the message back: it is delivered again, and this run leaves no result.

        At `max_deliveries` of its task it becomes a dead letter instead. A broker that
        cannot take messages back, or not for a time, gets it sent again with a label
        `delay`, and is told that it is done after that: at least once. Where it is
        known that nobody reads that label, it comes at once, and a warning says so.

        :param delay: seconds until it is delivered again, `None` for at once.
        :raises MessageNackedError: always, to end the task.
        :raises ValueError: when `delay` is no number of seconds from 0 to 49 days.
        """
        raise MessageNackedError(delay=read_delay(delay))

    def dead_letter(self, *, reason: str = "the task asked for it") -> None:
        """Put the message aside as a dead letter; its result is an error.

        :param reason: a text for whoever looks at it.
        :raises DeadLetteredError: always, to end the task.
        """
        raise DeadLetteredError(reason=reason)


class Recipient(Protocol):
    """A message of a batch, and those whose items are equal to its own."""

    message: TaskiqMessage
    controller: AckController

    @property
    def twins(self) -> Sequence[Recipient]:
        """The messages of equal items, which are not passed to the function."""
        ...


class BatchContext(Context):
    """The messages a batch runs for, each under the index of its item.

    Without an index `ack`, `requeue` and `reject` do for every message what they do on
    a :class:`Context`; `message` is the first one. With `batch_coalesce` an item may
    stand for several messages: what is done for its index is done for each of them.

    :param recipients: for each item the message it came with, and its twins.
    :ivar batch_id: unique id of this batch.
    :ivar flush_reason: why the batch left.
    """

    def __init__(
        self,
        recipients: Sequence[Recipient],
        broker: AsyncBroker,
        batch_id: str,
        flush_reason: FlushReason,
    ) -> None:
        first = recipients[0]
        super().__init__(first.message, broker, first.controller)
        self.batch_id = batch_id
        self.flush_reason = flush_reason
        self._recipients = recipients
        self._outcomes: list[Outcome | None] = [None] * len(recipients)
        # Those sent again, should the sending of one of their twins have failed.
        self._requeued: set[int] = set()
        # By index: those that are being sent again, until that has ended.
        self._sending: dict[int, asyncio.Future[None]] = {}
        self._is_open = True

    @property
    def messages(self) -> Sequence[TaskiqMessage]:
        """The message of each item, in the order of the items."""
        return tuple(recipient.message for recipient in self._recipients)

    @property
    def all_messages(self) -> Sequence[TaskiqMessage]:
        """Every message of this call, those of equal items included."""
        return tuple(
            each.message for first in self._recipients for each in (first, *first.twins)
        )

    @property
    def size(self) -> int:
        """How many items the call has."""
        return len(self._recipients)

    def set_result(self, index: int, value: object) -> None:
        """Give one message its result, whatever the function returns or raises.

        :raises IndexError: when the batch has no such index.
        :raises RuntimeError: when this message has an outcome already.
        """
        self._set_outcome(index, Succeeded(value))

    def fail(self, index: int, error: BaseException) -> None:
        """Fail one message with `error`, whatever the function returns or raises.

        :raises IndexError: when the batch has no such index.
        :raises RuntimeError: when this message has an outcome already.
        :raises TypeError: when `error` is not an exception instance.
        """
        if not isinstance(error, BaseException):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise TypeError(f"fail() takes an exception instance, got {error!r}")
        self._set_outcome(index, Failed(error))

    def aborted(self, index: int | None = None) -> bool:
        """Tell whether one item was aborted; without an index, whether all were.

        The message of an aborted item has its end, whatever the function returns for
        it. An item that stands for several messages is aborted when each of them is.

        :raises IndexError: when the batch has no such index.
        """
        if index is None:
            return self._are_aborted(self.all_messages)
        self._check_index(index)
        recipient = self._recipients[index]
        return self._are_aborted(each.message for each in (recipient, *recipient.twins))

    def reject(self, index: int | None = None) -> None:
        """Reject one message, or end the call and reject all without an outcome.

        :raises TaskRejectedError: without an index.
        :raises IndexError: when the batch has no such index.
        :raises RuntimeError: when this message has an outcome already.
        """
        if index is None:
            raise TaskRejectedError
        self._set_outcome(index, Failed(TaskRejectedError()))

    def nack(self, index: int | None = None, *, delay: float | None = None) -> None:
        """Give one message back, or end the call and give back all without an outcome.

        :param delay: seconds until it is delivered again, `None` for at once.
        :raises MessageNackedError: without an index.
        :raises IndexError: when the batch has no such index.
        :raises RuntimeError: when this message has an outcome already.
        :raises ValueError: when `delay` is no number of seconds from 0 to 49 days.
        """
        error = MessageNackedError(delay=read_delay(delay))
        if index is None:
            raise error
        self._set_outcome(index, Failed(error))

    def dead_letter(
        self,
        index: int | None = None,
        *,
        reason: str = "the task asked for it",
    ) -> None:
        """Put one message aside, or end the call and put aside all without an outcome.

        :param reason: a text for whoever looks at it.
        :raises DeadLetteredError: without an index.
        :raises IndexError: when the batch has no such index.
        :raises RuntimeError: when this message has an outcome already.
        """
        error = DeadLetteredError(reason=reason)
        if index is None:
            raise error
        self._set_outcome(index, Failed(error))

    async def requeue(self, index: int | None = None) -> None:
        """Send one message again, or all without an outcome and end the call.

        :raises NoResultError: without an index.
        :raises IndexError: when the batch has no such index.
        :raises RuntimeError: when this message has an outcome already.
        """
        if index is not None:
            await self._requeue_one(index)
            return
        while None in self._outcomes or self._sending:
            for each in range(self.size):
                if self._outcomes[each] is None:
                    await self._requeue_one(each)
            # Those that somebody else sends: not done before, and perhaps not at all.
            if self._sending:
                await asyncio.wait(tuple(self._sending.values()))
        raise NoResultError

    async def ack(self, index: int | None = None) -> None:
        """Acknowledge one message, or all of them; a second time does nothing.

        :raises IndexError: when the batch has no such index.
        :raises RuntimeError: when the broker knows no acknowledgement.
        """
        if index is not None:
            self._check_index(index)
            recipients = self._recipients[index : index + 1]
        else:
            recipients = self._recipients
        for recipient in recipients:
            for each in (recipient, *recipient.twins):
                await _ack(each.controller)

    def close(self) -> Sequence[Outcome | None]:
        """Take no more outcomes: the call has ended. For the receiver's use.

        :returns: the outcomes set so far, `None` for a message without one. One that
            is still being sent again has none: should that fail, it would be lost.
        """
        self._is_open = False
        if not self._sending:
            return self._outcomes
        return [
            None if index in self._sending else outcome
            for index, outcome in enumerate(self._outcomes)
        ]

    async def _requeue_one(self, index: int) -> None:
        # Before the first wait: who asks for another outcome meanwhile is told.
        self._set_outcome(index, Failed(NoResultError()))
        recipient = self._recipients[index]
        sending = asyncio.get_running_loop().create_future()
        self._sending[index] = sending
        try:
            for each in (recipient, *recipient.twins):
                # Of an item of a chunk nobody can send its message again.
                is_part = INDEX_LABEL in each.message.labels
                if not is_part and id(each) not in self._requeued:
                    await _send_again(self.broker, each.message)
                    self._requeued.add(id(each))
        except BaseException:
            self._outcomes[index] = None
            raise
        finally:
            del self._sending[index]
            sending.set_result(None)

    def _set_outcome(self, index: int, outcome: Outcome) -> None:
        self._check_settable(index)
        self._outcomes[index] = outcome

    def _check_settable(self, index: int) -> None:
        self._check_index(index)
        if not self._is_open:
            raise RuntimeError(f"batch {self.batch_id} has ended; its outcomes stay")
        if self._outcomes[index] is not None:
            raise RuntimeError(
                f"item {index} of batch {self.batch_id} has an outcome already",
            )

    def _check_index(self, index: int) -> None:
        # A negative index is a miscount here, not a wish for the last item.
        if not 0 <= index < self.size:
            raise IndexError(
                f"batch {self.batch_id} has items 0 to {self.size - 1}, not {index}",
            )


async def _ack(controller: AckController | None) -> None:
    if controller is None:
        raise RuntimeError("Current message is not ackable.")
    await controller.ack()


async def _send_again(broker: AsyncBroker, message: TaskiqMessage) -> None:
    """Send a received message again, counted by its requeue label.

    The message itself is counted up only when that has succeeded.
    """
    requeued = int(message.labels.get(REQUEUE_LABEL) or 0) + 1
    labels = message.labels | {REQUEUE_LABEL: str(requeued)}
    again = message.model_copy(update={"labels": labels})
    await broker.kick(dump_message(broker.formatter, with_wire_labels(again)))
    message.labels[REQUEUE_LABEL] = str(requeued)
    mark_sent_again(message)


def with_wire_labels(message: TaskiqMessage) -> TaskiqMessage:
    """Turn labels into text, as they were when the message was first sent.

    Brokers count on that, and some pass labels on as headers that take nothing else.
    What has no type of its own in a message stays as somebody has put it there.

    :returns: the message itself, or a copy when there was something to turn.
    """
    prepared = {
        name: prepare_label(value)
        for name, value in message.labels.items()
        if isinstance(value, (bool, bytes, float, int))
    }
    if not prepared:
        return message
    return TaskiqMessage(
        task_id=message.task_id,
        task_name=message.task_name,
        labels=message.labels | {name: text for name, (text, _) in prepared.items()},
        labels_types=(message.labels_types or {})
        | {name: code for name, (_, code) in prepared.items()},
        args=message.args,
        kwargs=message.kwargs,
    )
