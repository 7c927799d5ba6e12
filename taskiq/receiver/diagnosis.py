"""What is told of messages and batches, and what is noticed by watching them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from taskiq.advice import advise, batch_configs, settings_of
from taskiq.batch import BatchConfig, BatchInfo, FlushReason
from taskiq.chunks import INDEX_LABEL, sent_id
from taskiq.outage import messages
from taskiq.outcome import Failed
from taskiq.rates import SHARE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.clock import Alarm
    from taskiq.message import TaskiqMessage
    from taskiq.outcome import Outcome
    from taskiq.receiver.delivery import Delivery

logger = logging.getLogger("taskiq.receiver.receiver")

#: Equal short batches in a row before a limit of the broker is suspected.
_SUSPICIOUS: Final = 5

#: Part of `batch_timeout` within which the next message comes if it only waited for
#: the acks of the batch before.
_PROMPT: Final = 0.1


def describe(message: TaskiqMessage) -> str:
    """Name a message in the log and in errors."""
    name = named(message.task_name, sent_id(message))
    index = message.labels.get(INDEX_LABEL)
    return name if index is None else f"item {index} of {name}"


def named(task_name: str, task_id: str) -> str:
    """Name a message of which nothing else is left."""
    return f"task {task_name} with ID {task_id}"


def describe_batch(info: BatchInfo) -> str:
    """Name a batch in the log, with the ids of its messages."""
    ids = ", ".join([message.task_id for message in info.messages])
    return f"batch {info.batch_id} of task {info.task_name} ({ids})"


def fields_of(message: TaskiqMessage) -> dict[str, Any]:
    """Name a message in the fields of a record."""
    return {"task_name": message.task_name, "task_id": message.task_id}


def fields_of_batch(batch: BatchInfo) -> dict[str, Any]:
    """Name a batch in the fields of a record."""
    return {"task_name": batch.task_name, "batch_id": batch.batch_id}


def log_start(delivery: Delivery) -> None:
    """Say that a message is on its way, where that is logged.

    A batch has one line for all of its own.
    """
    logger.debug("Received message: %s", delivery.message)
    if not delivery.is_batched:
        logger.info("Executing %s", delivery, extra=fields_of(delivery.message))


def log_batch(
    info: BatchInfo,
    outcomes: Sequence[Outcome],
    seconds: float,
) -> None:
    """Say what became of a batch."""
    if not logger.isEnabledFor(logging.INFO):
        return
    failed = sum(isinstance(outcome, Failed) for outcome in outcomes)
    logger.info(
        "Batch %s of task %s: %s (%d failed), flushed by %s, "
        "waited %.3f s, took %.3f s.",
        info.batch_id,
        info.task_name,
        messages(len(outcomes)),
        failed,
        info.flush_reason.value,
        info.waited,
        seconds,
        extra={
            **fields_of_batch(info),
            "messages": len(outcomes),
            "failed": failed,
            "flush_reason": info.flush_reason.value,
            "waited": round(info.waited, 3),
            "seconds": round(seconds, 3),
        },
    )
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("Messages of %s.", describe_batch(info))


#: Brokers whose settings were judged: a lost connection is no reason to do it again.
_judged: Final[WeakSet[AsyncBroker]] = WeakSet()


def _advise_once(broker: AsyncBroker, configs: Mapping[str, BatchConfig]) -> None:
    """Warn of settings of the broker that do not go with its tasks."""
    if broker in _judged:
        return
    _judged.add(broker)
    for text in advise(settings_of(broker), configs):
        logger.warning(text)


def log_batch_tasks(
    broker: AsyncBroker,
    deliveries: asyncio.Semaphore | None,
) -> None:
    """Say how each batch task is gathered, and what the process may hold unacked.

    :param deliveries: the semaphore of deliveries, with nothing taken; `None` where
        plain tasks are not limited, and so nothing can be promised.
    """
    configs = batch_configs(broker)
    _advise_once(broker, configs)
    paced = [
        name
        for name, task in broker.get_all_tasks().items()
        if task.rate is not None and task.batch is None
    ]
    if not configs and not paced:
        return
    for name, config in configs.items():
        logger.info("Task %s runs in batches: %s", name, config)
    if deliveries is None:
        return
    most = deliveries._value + sum(  # noqa: SLF001 - there is no public way to ask
        config.max_buffered for config in configs.values()
    )
    most += SHARE * len(paced)
    logger.info("This process holds at most %d messages unacknowledged.", most)


class ShortBatchWatch:
    """Notices a broker that hands out fewer unacked messages than fill a batch.

    Then every batch waits its whole timeout with the same few messages, and the next
    ones come all at once, as soon as these are acknowledged. Traffic that is only slow
    looks different: counts vary, a batch is not begun right after the one before, or,
    where messages come at even intervals, it takes its messages one by one. A single
    message is no sign of either.
    """

    __slots__ = (
        "_alarm",
        "_count",
        "_early",
        "_in_a_row",
        "_is_warned",
        "_settled_at",
    )

    def __init__(self) -> None:
        self._count = 0
        self._in_a_row = 0
        self._is_warned = False
        self._settled_at: float | None = None
        self._early = 0
        self._alarm: Alarm | None = None

    def look_after(self, config: BatchConfig) -> float | None:
        """Say when to look how many messages have come after a batch was settled.

        :returns: seconds after that, or `None` if nothing is suspected.
        """
        is_suspected = self._in_a_row >= _SUSPICIOUS - 1 and not self._is_warned
        return 2 * _PROMPT * config.timeout if is_suspected else None

    def look_at(self, alarm: Alarm | None) -> None:
        """Keep what looks then, in the place of what was to look before."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = alarm

    def came_early(self, count: int) -> None:
        """Note how many messages the next batch had at that moment."""
        self._early = count

    def settled(self, moment: float) -> None:
        """Note when the last batch was settled, in seconds of the loop's clock."""
        self._settled_at = moment

    def started(
        self,
        info: BatchInfo,
        config: BatchConfig,
        opened_at: float,
        *,
        was_starved: bool,
    ) -> None:
        """Look at a batch that starts; warn once if the broker must be holding back.

        :param opened_at: when its first message arrived, on the loop's clock.
        :param was_starved: whether the broker was asked for more and gave nothing.
        """
        count = len(info.messages)
        is_prompt = (
            self._settled_at is not None
            and opened_at - self._settled_at <= _PROMPT * config.timeout
        )
        if (
            info.flush_reason is not FlushReason.TIMEOUT
            or count >= config.size
            or not was_starved
        ):
            self._in_a_row = 0
            return
        same = is_prompt and count == self._count
        self._in_a_row = self._in_a_row + 1 if same else 1
        self._count = count
        if self._in_a_row >= _SUSPICIOUS and not self._is_warned:
            if self._early == count > 1:
                self._is_warned = True
                self._warn(info.task_name, count, config)
            else:
                self._in_a_row = 0

    @staticmethod
    def _warn(task_name: str, count: int, config: BatchConfig) -> None:
        logger.warning(
            "Batches of task %s leave by timeout with %d messages again and again, "
            "fewer than batch_size=%d, though more arrive once they are acknowledged: "
            "the broker seems to hand out at most %d unacknowledged messages. Raise "
            "its prefetch limit (RabbitMQ: qos) to at least batch_size, lower "
            "batch_size, or set batch_idle_timeout so that short batches leave early.",
            task_name,
            count,
            config.size,
            count,
        )


class ShortBatchWatches:
    """A watch for each batch task."""

    __slots__ = ("_watches",)

    def __init__(self) -> None:
        self._watches: dict[str, ShortBatchWatch] = {}

    def of(self, task_name: str) -> ShortBatchWatch:
        """Give the watch of one task."""
        watch = self._watches.get(task_name)
        if watch is None:
            watch = self._watches[task_name] = ShortBatchWatch()
        return watch

    def close(self) -> None:
        """Look no more."""
        for watch in self._watches.values():
            watch.look_at(None)


class SlotWatch:
    """Notices that every execution slot is held by a call that waits for a result.

    If the task that is waited for is to run here, it never begins.

    :param slots: the execution slots, with nothing taken; `None` for any number.
    :param is_call: whether who asks is a call of this worker.
    :param on_wait: called when a call begins to wait.
    :ivar most: how many slots there are, `None` for any number.
    """

    def __init__(
        self,
        slots: asyncio.Semaphore | None,
        is_call: Callable[[], bool],
        on_wait: Callable[[], object],
    ) -> None:
        self._slots = slots
        self._is_call = is_call
        self._on_wait = on_wait
        self.most = None if slots is None else slots._value  # noqa: SLF001 - nothing public tells
        self._waiting = 0
        self._is_warned = False

    def entered(self, what: str) -> bool:
        """Note that a result is waited for; warn once if nothing can run any more."""
        if not self._is_call():
            return False
        self._waiting += 1
        self._on_wait()
        if (
            self.most is not None
            and self._waiting >= self.most
            and self._slots is not None
            and self._slots.locked()
            and not self._is_warned
        ):
            self._is_warned = True
            is_one = self.most == 1
            held = "The only execution slot" if is_one else "All execution slots"
            count = "" if is_one else f" for {self.most} calls at once"
            logger.warning(
                "%s of this process%s %s held by calls that wait for results: what "
                "they wait for, such as %s, cannot run here until one of them ends. "
                "Raise --max-async-tasks, run the task that is waited for in a worker "
                "of another queue, or call its function instead of sending it.",
                held,
                count,
                "is" if is_one else "are",
                what,
            )
        return True

    @property
    def is_any(self) -> bool:
        """Whether a call waits for a result."""
        return self._waiting > 0

    def left(self) -> None:
        """Note that a call waits no more."""
        self._waiting -= 1


class RedeliveryWatch:
    """Notices messages that the broker delivers again while they are still held.

    It does so when one is held for longer than it waits for the acknowledgement, or
    when the connection was lost. Another delivery of the same bytes is the same
    message: requeues and retries change a label. It is run all the same, as it may be
    one that somebody sent twice.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        # By the hash of what was delivered, of which nothing else is kept.
        self._held: dict[int, Delivery] = {}

    def took(self, member: Delivery) -> None:
        """Note that a message is held from now on."""
        fingerprint = member.fingerprint
        assert fingerprint is not None  # noqa: S101 - or it could not be told again
        member.is_held_twice = self._held.setdefault(fingerprint, member) is not member

    def let_go(self, members: Iterable[Delivery]) -> None:
        """Note that messages are not held any more; more than once is no harm."""
        if not self._held:
            return
        for member in members:
            fingerprint = member.fingerprint
            if fingerprint is not None and self._held.get(fingerprint) is member:
                del self._held[fingerprint]

    @staticmethod
    def report(members: Iterable[Delivery]) -> None:
        """Warn of those among the messages of one batch that are held twice."""
        twice = [member.message for member in members if member.is_held_twice]
        if twice:
            logger.warning(
                "%d messages of task %s were delivered again while this process still "
                "holds them, and run more than once: %s. They are held for longer than "
                "the broker waits for an acknowledgement, or the connection was lost. "
                "Raise the broker's redelivery time (Redis streams: idle_timeout, "
                "JetStream: ack_wait), or hold them for less time: lower "
                "batch_timeout, batch_max_buffered or the time of a call.",
                len(twice),
                twice[0].task_name,
                ", ".join(message.task_id for message in twice),
            )
