"""The keys that messages of unique tasks hold: renewed, and released at their end.

A message holds its key for as long as it is somebody's: the sender claims it for
`unique_ttl`, and a worker that has read the message renews it in half of that time, as
often as it takes. Messages without a key do not come by here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from taskiq.bulk import run_bounded
from taskiq.outage import brief
from taskiq.policies import is_sent_again
from taskiq.receiver.states import ENDED
from taskiq.unique import Claim, held_by, store_of
from taskiq.unique_release import release

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.clock import Alarm, Clock
    from taskiq.message import TaskiqMessage
    from taskiq.receiver.delivery import Delivery

logger = logging.getLogger("taskiq.unique")

#: How many keys are renewed at once: a store may make one round trip of them.
_AT_ONCE: Final = 1000

#: Seconds between two renewals, at least.
_SHORTEST: Final = 0.05


def is_free(delivery: Delivery, *, is_saved: bool) -> bool:
    """Whether the key of a message is free: the message does not run again.

    :param is_saved: whether its result is, or it has none on purpose.
    """
    if is_sent_again(delivery.message):
        return False
    # It is given back, or put aside: `Endings` knows what came of that.
    if delivery.ending is not None and delivery.result.error is not None:
        return False
    # It is delivered again where it is not acknowledged.
    controller = delivery.controller
    return is_saved or controller.is_acked or not controller.is_ackable


class UniqueKeys:
    """The keys that the messages of one event loop hold.

    :param clock: source of time and of alarms.
    :param begin: begins an asyncio task, which is stopped with the receiver.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        clock: Clock,
        begin: Callable[[Coroutine[Any, Any, None]], asyncio.Task[Any]],
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._begin = begin
        # What is renewed, with the seconds that its key is held for.
        self._held: dict[Delivery, float] = {}
        # Armed while there is something, but for the moment of renewing it.
        self._alarm: Alarm | None = None
        self._rings_at = 0.0

    def hold(self, delivery: Delivery, seconds: float) -> None:
        """Renew the key of a message that was read, if it holds one.

        :param seconds: for how long keys of its task are held.
        """
        message = delivery.message
        delivery.unique = held_by(message.task_id, message.labels)
        if delivery.unique is not None:
            self._held[delivery] = seconds
            self._arm(self._clock.time() + max(seconds / 2, _SHORTEST))

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Release the keys of those messages that hold one."""
        held: list[tuple[str, str]] = []
        for delivery in deliveries:
            self._held.pop(delivery, None)
            if delivery.unique is not None:
                held.append(delivery.unique)
                delivery.unique = None
        if not self._held:
            self.close()
        store = store_of(self._broker)
        if held and store is not None:
            await release(store, held)

    async def release_of(self, message: TaskiqMessage) -> None:
        """Release the key of a message that nobody can run, if it holds one."""
        held = held_by(message.task_id, message.labels)
        store = store_of(self._broker)
        if held is not None and store is not None:
            await release(store, [held])

    def close(self) -> None:
        """Renew nothing more."""
        self._held.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _arm(self, moment: float) -> None:
        if self._alarm is not None:
            if self._rings_at <= moment:
                return
            self._alarm.cancel()
        self._rings_at = moment
        self._alarm = self._clock.call_at(moment, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        for delivery in [each for each in self._held if each.state in ENDED]:
            del self._held[delivery]
        if self._held:
            self._arm(self._clock.time() + max(min(self._held.values()) / 2, _SHORTEST))
            self._begin(self._renew())

    async def _renew(self) -> None:
        store = store_of(self._broker)
        if store is None:
            return
        claims = [
            Claim(*delivery.unique, seconds)
            for delivery, seconds in self._held.items()
            if delivery.unique is not None
        ]
        outcomes = await run_bounded(store.renew, claims, _AT_ONCE)
        errors = [each for each in outcomes if isinstance(each, Exception)]
        if errors:
            logger.warning(
                "Cannot renew unique keys of messages that are held: %s (%d such "
                "errors). Who has one holds it until its unique_ttl is over.",
                brief(errors[0]),
                len(errors),
            )
