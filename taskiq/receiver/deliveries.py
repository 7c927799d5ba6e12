"""How often the messages of a batch were delivered, and what follows for its calls."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from taskiq.acks import AckableMessage
from taskiq.capabilities import deliveries_of, equip, resolve
from taskiq.receiver import suspects
from taskiq.receiver.casualties import shared
from taskiq.receiver.containment import attempt, contain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from taskiq.abc.broker import AsyncBroker
    from taskiq.receiver.delivery import Delivery

logger = logging.getLogger("taskiq.receiver.receiver")


class Part(NamedTuple):
    """Messages of a batch that share a call.

    :ivar members: the messages.
    :ivar turn: to be had while they run.
    """

    members: Sequence[Delivery]
    turn: AbstractAsyncContextManager[None] = nullcontext()


class Deliveries:
    """Counts the deliveries of messages of a broker that can.

    :param broker: whose messages they are.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        self._turns = asyncio.Lock()

    @staticmethod
    def of(broker: AsyncBroker) -> Deliveries | None:
        """Make it for a broker that counts."""
        return None if resolve(broker).deliveries is None else Deliveries(broker)

    async def runs(
        self, members: Sequence[Delivery], size: int
    ) -> Sequence[Sequence[Part]]:
        """Part the messages of a batch into calls, as `suspects.runs` gives them.

        :param size: most items of a batch of their task.
        """
        told: list[int] = []
        latest: object = None
        for member in members:
            # Those of a chunk came in one message.
            is_same = member.is_part and member.raw is latest
            told.append(told[-1] if is_same else await self._count(member))
            latest = member.raw
        if all(count <= 1 for count in told):
            return ((Part(members),),)
        counts = [
            counted(member, count) for member, count in zip(members, told, strict=True)
        ]
        policy = None if members[0].task is None else members[0].task.policy
        limit = None if policy is None else policy.max_deliveries
        found = suspects.parts(counts, size, limit)
        for indexes, _ in found:
            if len(indexes) == 1 and counts[indexes[0]] > 1:
                logger.warning(
                    "Runs alone, as it was delivered %d times: a process may have "
                    "died of %s.",
                    told[indexes[0]],
                    members[indexes[0]],
                )
        return [
            [
                Part(
                    [members[index] for index in part.indexes],
                    self._turns if part.is_exclusive else nullcontext(),
                )
                for part in run
            ]
            for run in suspects.runs(found)
        ]

    async def _count(self, member: Delivery) -> int:
        """Count one message; what cannot be counted was delivered once."""
        raw: Any = member.raw
        if not isinstance(raw, AckableMessage):
            return 1
        told: Any = raw.deliveries
        if told is None:
            told = getattr(attempt(equip, self._broker, raw), "deliveries", None)
        if callable(told):
            told = await contain(deliveries_of, raw, seconds=5.0)
        return told if isinstance(told, int) else 1


def counted(delivery: Delivery, deliveries: int) -> int:
    """Count deliveries of a message in which it may have run.

    They are fewer than all where it is known what ran in processes that died: that of
    batches is.

    :param deliveries: all of them.
    """
    own = shared()
    if own is None or deliveries <= 1 or not delivery.is_batched:
        return deliveries
    deaths = own.deaths.recent()
    return suspects.counted(deliveries, delivery.message.task_id, deaths)
