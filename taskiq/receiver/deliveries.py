"""How often the messages of a batch were delivered, and what follows for its calls."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskiq.acks import AckableMessage
from taskiq.capabilities import equip, resolve
from taskiq.receiver import suspects
from taskiq.receiver.casualties import shared
from taskiq.receiver.containment import attempt, contain
from taskiq.receiver.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.outcome import Failed
    from taskiq.receiver.delivery import Delivery

logger = logging.getLogger("taskiq.receiver.receiver")


#: Calls at once of a worker without a limit.
_MANY: Final = 128
#: How often to look for news of a death, and seconds between two looks.
_LOOKS: Final = 20
_PAUSE: Final = 0.05
#: Seconds that a broker has to say how often it delivered a message.
_PATIENCE: Final = 5.0


class Part(NamedTuple):
    """Messages of a batch that share a call.

    :ivar members: the messages.
    :ivar turn: what they may run beside, `None` for anything.
    :ivar deliveries: of a suspect that has the call to itself; 0 for any other ones.
    """

    members: Sequence[Delivery]
    turn: Turn | None = None
    deliveries: int = 0


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

    async def runs(
        self, members: Sequence[Delivery], size: int
    ) -> Sequence[Sequence[Part]]:
        """Part the messages of a batch into calls, as `suspects.runs` gives them.

        :param size: most items of a batch of their task.
        """
        told: list[int] = []
        latest: object = None
        for member in members:
            # Those of a chunk came in one message: what fails is not asked for each.
            is_same = member.is_part and member.raw is latest
            told.append(told[-1] if is_same else await self._count(member))
            latest = member.raw
        if all(count <= 1 for count in told):
            return ((Part(members),),)
        counts = list(map(counted, members, told))
        task = members[0].task
        assert task is not None  # noqa: S101 - it has batches
        limit = None if task.policy is None else task.policy.max_deliveries

        def made(part: suspects.Part) -> Part:
            own = [members[index] for index in part.indexes]
            first = part.indexes[0]
            is_suspect = len(own) == 1 and counts[first] > 1
            deliveries = told[first] if is_suspect else 0
            if not part.is_exclusive:
                return Part(own, None, deliveries)
            last = limit is not None and counts[first] >= limit
            turn = Turn(1, is_alone=last and _has_died(own[0]))
            return Part(own, turn, deliveries)

        found = suspects.parts(counts, size, limit)
        return [[made(part) for part in run] for run in suspects.runs(found)]

    async def _count(self, member: Delivery) -> int:
        """Count one message; what cannot be counted was delivered once."""
        raw: Any = member.raw
        if not isinstance(raw, AckableMessage):
            return 1
        told: Any = raw.deliveries
        if told is None:
            told = getattr(attempt(equip, self._broker, raw), "deliveries", None)
        if callable(told):
            told = await asked_once(member, told, seconds=_PATIENCE)
        return told if isinstance(told, int) else 1


async def asked_once(
    delivery: Delivery, ask: Callable[..., Any], *args: Any, seconds: float | None
) -> int | Failed | None:
    """Ask how often a message was delivered, unless that has been told.

    The items of a chunk have one count, and each may be in another batch.

    :param ask: is called with `args`.
    :param seconds: that it may take, `None` for no limit.
    :returns: what it gives, or what it failed with: that is asked for again.
    """
    whole = delivery.whole
    told: int | Failed | None = getattr(whole, "deliveries", None)
    if told is None:
        told = await contain(ask, *args, seconds=seconds)
        if isinstance(told, int):
            whole.deliveries = told
    return told


def counted(delivery: Delivery, deliveries: int) -> int:
    """Count deliveries of a message in which it may have run.

    They are fewer than all where it is known what ran in processes that died.

    :param deliveries: all of them.
    """
    own = shared()
    if own is None or deliveries <= 1:
        return deliveries
    deaths = own.deaths.recent()
    return suspects.counted(deliveries, delivery.message.task_id, deaths)


def turn_of(
    delivery: Delivery, deliveries: int, limit: int, slots: int | None
) -> Turn | None:
    """Say what a message of a plain task may run beside, if it is a suspect.

    :param deliveries: all of them.
    :param limit: `max_deliveries` of its task.
    :param slots: how many calls run at once, `None` for any number.
    """
    if not _has_died(delivery):
        return None
    turn = suspects.turn_of(counted(delivery, deliveries), slots or _MANY, limit)
    if turn.is_alone:
        log_alone(deliveries, delivery)
    return turn


def _has_died(delivery: Delivery) -> bool:
    own = shared()
    if own is None:
        return False
    return suspects.has_died(delivery.message.task_id, own.deaths.recent())


def log_alone(deliveries: int, delivery: Delivery) -> None:
    """Name a suspect that has a call to itself."""
    logger.warning(
        "Runs alone, as it was delivered %d times: a process may have died of %s.",
        deliveries,
        delivery,
    )


async def hear_of_deaths(deliveries: int) -> None:
    """Wait a moment for news of deaths, before a message is judged by how many it saw.

    A broker may deliver again what a process held before its main process knows that it
    died.

    :param deliveries: of that message.
    """
    own = shared()
    if own is None:
        return
    for _ in range(_LOOKS):
        if len(own.deaths.recent()) >= deliveries - 1:
            return
        await asyncio.sleep(_PAUSE)
