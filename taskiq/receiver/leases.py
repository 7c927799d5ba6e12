"""Keeping what a receiver holds: each lease is renewed at half its length.

A broker that takes back what is not acknowledged in time waits for as long as a lease
is. Renewed while a message is held, waiting, running or being settled, leases can be
short: a batch that takes long is not delivered twice, and what a killed worker held
runs again soon.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from taskiq.acks import AckableMessage
from taskiq.bulk import run_bounded
from taskiq.capabilities import equip, lease_seconds, resolve
from taskiq.outcome import Failed
from taskiq.receiver.containment import attempt, contain
from taskiq.receiver.states import ENDED
from taskiq.utils import maybe_awaitable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.receiver.delivery import Delivery

logger = logging.getLogger("taskiq.receiver.receiver")

#: Seconds that a lease is long if nobody says it: what JetStream does by default.
_USUAL: Final = 30.0
#: Seconds between two renewals, at least.
_SHORTEST: Final = 0.05
#: How many leases are renewed at once where each is renewed alone.
_AT_ONCE: Final = 100
#: So many messages are kept in mind before those that have ended are looked for.
_FEW: Final = 1000


# -- Decisions ------------------------------------------------------------------------


def still_held(deliveries: Iterable[Delivery]) -> list[Delivery]:
    """Give those that are neither acknowledged nor given up."""
    return [
        delivery
        for delivery in deliveries
        if delivery.state not in ENDED and not delivery.controller.is_acked
    ]


def seconds_between(leases: Iterable[float | None], told: float | None) -> float:
    """Say how often to renew: at half the shortest lease.

    :param leases: seconds that the messages say their leases are long.
    :param told: what the broker says of those that do not.
    """
    usual = told or _USUAL
    lengths = [usual if lease is None else lease for lease in leases]
    return max(min(lengths, default=usual) / 2, _SHORTEST)


def by_group(
    messages: Iterable[AckableMessage],
) -> tuple[list[list[AckableMessage]], list[AckableMessage]]:
    """Part messages into those that are renewed together, and those that are alone.

    One that cannot be renewed is in neither.
    """
    together: dict[int, list[AckableMessage]] = {}
    alone: list[AckableMessage] = []
    for message in messages:
        if hasattr(message.ack_group, "extend"):
            together.setdefault(id(message.ack_group), []).append(message)
        elif message.extend is not None:
            alone.append(message)
    return list(together.values()), alone


# -- Renewing -------------------------------------------------------------------------


class Leases:
    """The leases of what is held in one event loop.

    One asyncio task renews them. It begins with the first message that has a lease and
    ends when none is held.

    :param broker: whose messages they are.
    :ivar are_given: whether every message of this broker has a lease.
    """

    __slots__ = ("_broker", "_held", "_limit", "_task", "_told", "are_given")

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        self.are_given = resolve(broker).extend is not None
        self._held: list[Delivery] = []
        # How many to keep in mind until those that have ended are forgotten.
        self._limit = _FEW
        self._told: float | None = None
        self._task: asyncio.Task[None] | None = None

    def hold(self, delivery: Delivery) -> None:
        """Renew the lease of a message until it has ended: nobody has to say so."""
        self._held.append(delivery)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep())
        elif len(self._held) > self._limit:
            self._forget_ended()

    def close(self) -> None:
        """Renew nothing more."""
        if self._task is not None:
            self._task.cancel()
        self._held = []

    def _forget_ended(self) -> None:
        self._held = still_held(self._held)
        # At each look half of them are new: it costs each message the same.
        self._limit = max(2 * len(self._held), _FEW)

    async def _keep(self) -> None:
        try:
            self._told = await self._ask()
            while self._held:
                await asyncio.sleep(self._pause())
                self._forget_ended()
                await self._renew([delivery.raw for delivery in self._held])
        finally:
            self._task = None

    async def _ask(self) -> float | None:
        told: Any = await contain(lease_seconds, self._broker, seconds=_USUAL / 6)
        return told if isinstance(told, (int, float)) else None

    def _pause(self) -> float:
        messages = [delivery.raw for delivery in self._held]
        leases = [each.lease for each in messages if isinstance(each, AckableMessage)]
        return seconds_between(leases, self._told)

    async def _renew(self, held: Sequence[bytes | AckableMessage]) -> None:
        """Renew leases, in bulk where the broker can."""
        equipped: list[Any] = [attempt(equip, self._broker, each) for each in held]
        messages = [each for each in equipped if isinstance(each, AckableMessage)]
        outcomes: list[Any] = [each for each in equipped if isinstance(each, Failed)]
        together, alone = by_group(messages)
        for members in together:
            group: Any = members[0].ack_group
            outcome: Any = await contain(group.extend, members, seconds=_USUAL)
            failed = [outcome] * len(members)
            outcomes += failed if isinstance(outcome, Failed) else outcome
        outcomes += await run_bounded(_extend, alone, _AT_ONCE)
        errors = [each for each in outcomes if each is not None]
        if errors:
            logger.warning(
                "Cannot renew the leases of messages that are held, which the broker "
                "may deliver again: %r (%d such errors).",
                errors[0],
                len(errors),
            )


async def _extend(message: AckableMessage) -> None:
    assert message.extend is not None  # noqa: S101 - they are those that have it
    await maybe_awaitable(message.extend())
