"""How often the messages of a batch were delivered, and what follows for its calls."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from taskiq.acks import AckableMessage
from taskiq.capabilities import deliveries_of, equip, resolve
from taskiq.receiver import suspects
from taskiq.receiver.containment import attempt, contain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.receiver.delivery import Delivery

logger = logging.getLogger("taskiq.receiver.receiver")


class Deliveries:
    """Counts the deliveries of messages of a broker that can.

    :param broker: whose messages they are.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker

    @staticmethod
    def of(broker: AsyncBroker) -> Deliveries | None:
        """Make it for a broker that counts."""
        return None if resolve(broker).deliveries is None else Deliveries(broker)

    async def parts(
        self,
        members: Sequence[Delivery],
        size: int,
    ) -> Sequence[Sequence[Delivery]]:
        """Part the messages of a batch into calls, to be made one after another.

        :param size: most items of a batch of their task.
        """
        counts: list[int] = []
        counted: Any = None
        for member in members:
            # Those of a chunk came in one message.
            is_same = member.is_part and member.raw is counted
            counts.append(counts[-1] if is_same else await self._count(member))
            counted = member.raw
        if all(count <= 1 for count in counts):
            return (members,)
        found = suspects.parts(counts, size)
        for indexes in found:
            if len(indexes) == 1 and counts[indexes[0]] > 1:
                logger.warning(
                    "Runs alone, as it was delivered %d times: a process may have "
                    "died of %s.",
                    counts[indexes[0]],
                    members[indexes[0]],
                )
        return [[members[index] for index in indexes] for indexes in found]

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
