"""What a worker process may hold, and what a broker's limits do to batches."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from taskiq.batch import BatchConfig, BatchInfo, FlushReason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from taskiq.abc.broker import AsyncBroker
    from taskiq.receiver.delivery import Member

logger = logging.getLogger("taskiq.receiver.receiver")

#: Equal short batches in a row before a limit of the broker is suspected.
_SUSPICIOUS: Final = 5

#: Part of `batch_timeout` within which the next message comes if it only waited for
#: the acks of the batch before.
_PROMPT: Final = 0.1


def log_batch_tasks(
    broker: AsyncBroker,
    deliveries: asyncio.Semaphore | None,
) -> None:
    """Say how each batch task is gathered, and what the process may hold unacked.

    :param deliveries: the semaphore of deliveries, with nothing taken; `None` where
        plain tasks are not limited, and so nothing can be promised.
    """
    configs = {
        name: task.batch
        for name, task in broker.get_all_tasks().items()
        if task.batch is not None
    }
    if not configs:
        return
    for name, config in configs.items():
        logger.info("Task %s runs in batches: %s", name, config)
    if deliveries is None:
        return
    most = deliveries._value + sum(  # noqa: SLF001 - there is no public way to ask
        config.max_buffered for config in configs.values()
    )
    logger.info("This process holds at most %d messages unacknowledged.", most)


class ShortBatchWatch:
    """Notices a broker that hands out fewer unacked messages than fill a batch.

    Then every batch waits its whole timeout with the same few messages, and the next
    ones come as soon as these are acknowledged. Traffic that is only slow looks
    different: counts vary, and a batch is not begun right after the one before.
    """

    __slots__ = ("_count", "_in_a_row", "_is_warned", "_settled_at")

    def __init__(self) -> None:
        self._count = 0
        self._in_a_row = 0
        self._is_warned = False
        self._settled_at: float | None = None

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
            self._is_warned = True
            self._warn(info.task_name, count, config)

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
        self._held: dict[int, Member] = {}

    def took(self, member: Member) -> None:
        """Note that a message is held from now on."""
        fingerprint = member.fingerprint
        if fingerprint is not None:
            first = self._held.setdefault(fingerprint, member)
            member.is_held_twice = first is not member

    def let_go(self, members: Iterable[Member]) -> None:
        """Note that messages are not held any more; more than once is no harm."""
        for member in members:
            fingerprint = member.fingerprint
            if fingerprint is not None and self._held.get(fingerprint) is member:
                del self._held[fingerprint]

    @staticmethod
    def report(members: Iterable[Member]) -> None:
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
