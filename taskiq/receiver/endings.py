"""How a message that failed ends: given back, put aside, or simply done with.

What is to be done is decided in `taskiq.policies`, of values; here it is asked, told to
hooks, and carried out. A message that nobody said anything of is acknowledged like one
that succeeded, and this module does nothing for it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from taskiq.acks import AckableMessage, AcknowledgeType
from taskiq.capabilities import (
    better_import,
    delay_label,
    deliveries_of,
    equip,
    resolve,
)
from taskiq.context import with_wire_labels
from taskiq.dead_letters import DeadLetter, store_of
from taskiq.dead_letters.origin import origin_of
from taskiq.exceptions import (
    DeadLetteredError,
    MaxDeliveriesError,
    MessageNackedError,
    NoResultError,
)
from taskiq.outage import brief
from taskiq.outcome import Failed
from taskiq.policies import (
    EARLIER_LABEL,
    Action,
    Ending,
    Reason,
    combined,
    count,
    decide,
    for_refused,
    is_last,
    is_sent_again,
)
from taskiq.receiver.containment import attempt, contain, in_context, run_hooks
from taskiq.receiver.delays import advice_on_delay
from taskiq.receiver.deliveries import asked_once
from taskiq.unsendable import dump_message
from taskiq.utils import maybe_awaitable

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker
    from taskiq.message import TaskiqMessage
    from taskiq.policies import FailurePolicy
    from taskiq.receiver.delivery import Delivery
    from taskiq.receiver.unique_keys import UniqueKeys

logger = logging.getLogger("taskiq.receiver.receiver")


class Endings:
    """Decides how failed messages of a broker end, and sees to it.

    :param broker: whose messages they are.
    :param seconds: how long each step may take; `None` is no limit.
    :param unique_keys: the keys that messages hold.
    """

    def __init__(
        self, broker: AsyncBroker, seconds: float | None, unique_keys: UniqueKeys
    ) -> None:
        self._unique_keys = unique_keys
        self._broker = broker
        self._seconds = seconds
        self._has_warned_of_delays = False

    def policy_of(self, delivery: Delivery) -> FailurePolicy | None:
        """Give the policy that a message is under."""
        task = delivery.task
        return self._broker.failure_policy if task is None else task.policy

    def may_keep(self, delivery: Delivery) -> bool:
        """Whether a failed message may end in another way than acknowledged."""
        if isinstance(delivery.result.error, (DeadLetteredError, MessageNackedError)):
            return True
        return self.policy_of(delivery) is not None

    async def count_of(self, delivery: Delivery) -> int | None:
        """Count how often a message was delivered; `None` if that is not known."""
        raw: Any = attempt(equip, self._broker, delivery.raw)
        told: Any = await asked_once(
            delivery, deliveries_of, raw, seconds=self._seconds
        )
        if isinstance(told, Failed):
            logger.warning("Cannot count deliveries of %s: %r", delivery, told.error)
            told = None
        labels = getattr(delivery, "message", None)
        return count(told, {} if labels is None else labels.labels)

    async def decide(self, delivery: Delivery) -> None:
        """Say how a message ends whose `on_error` hooks have run, and tell the hooks.

        A failure that is followed by another run is none: it leaves no result.
        """
        error = delivery.result.error
        assert error is not None  # noqa: S101 - else it has not failed
        ending = await self._ending_of(delivery, error)
        if ending is None:
            return
        if ending.action is Action.GIVE_BACK and not isinstance(error, NoResultError):
            delivery.result.error = MessageNackedError(delay=ending.delay)
        elif ending.action is Action.DEAD_LETTER and isinstance(error, NoResultError):
            delivery.result.error = ending.error
        if ending.action in {Action.GIVE_BACK, Action.DEAD_LETTER}:
            delivery.ending = ending
        hooks = delivery.hooks.on_ending
        if hooks:
            told = run_hooks(hooks, "on_ending", delivery, delivery.message, ending)
            await in_context(delivery.context, told)

    async def _ending_of(
        self,
        delivery: Delivery,
        error: BaseException,
    ) -> Ending | None:
        """Say how a message ends; `None` where it asked for no result, and no more."""
        reason = delivery.reason
        if is_sent_again(delivery.message):
            return Ending(Action.SENT_AGAIN, reason, error)
        if isinstance(error, MessageNackedError):
            return await self._ending_of_nacked(delivery, error)
        if isinstance(error, NoResultError):
            return None
        if isinstance(error, DeadLetteredError) and reason is Reason.ERROR:
            reason = Reason.REQUESTED
        policy = self.policy_of(delivery)
        if policy is None and reason is not Reason.REQUESTED:
            return Ending(Action.ACK, reason, error)
        deliveries = await self.count_of(delivery)
        return Ending(decide(policy, reason, deliveries), reason, error, deliveries)

    async def _ending_of_nacked(
        self,
        delivery: Delivery,
        error: MessageNackedError,
    ) -> Ending:
        policy = self.policy_of(delivery)
        deliveries = await self.count_of(delivery)
        if policy is None or not is_last(policy, deliveries):
            return Ending(
                Action.GIVE_BACK, delivery.reason, error, deliveries, error.delay
            )
        over = MaxDeliveriesError(deliveries=deliveries, most=policy.max_deliveries)
        reason = Reason.MAX_DELIVERIES
        return Ending(decide(policy, reason, deliveries), reason, over, deliveries)

    def settle_for(self, delivery: Delivery) -> None:
        """Let nobody else acknowledge a message that ends otherwise.

        To be called when the hooks have had their say: one that mended it has done so.
        """
        error = delivery.result.error
        ending = delivery.ending
        assert ending is not None  # noqa: S101 - else there is nothing to be seen to
        is_mended = error is None or (
            isinstance(error, NoResultError) and ending.action is Action.DEAD_LETTER
        )
        if is_mended or is_sent_again(delivery.message):
            delivery.ending = None
        else:
            delivery.ack_type = AcknowledgeType.MANUAL

    async def carry_out(self, delivery: Delivery) -> None:
        """End a message as decided; if that fails it is said, and not acknowledged."""
        ending = delivery.ending
        assert ending is not None  # noqa: S101 - else it is acknowledged, as ever
        if ending.action is Action.DEAD_LETTER:
            done: Any = await self._put_aside(delivery, ending)
        else:
            done = await contain(
                self._give_back, delivery, ending, seconds=self._seconds
            )
        if isinstance(done, Failed):
            logger.error(
                "Cannot end %s as %s, so it is not acknowledged: %s",
                delivery,
                ending.action.value,
                brief(done.error),
                exc_info=done.error,
            )

    async def refuse(self, delivery: Delivery) -> bool:
        """End a message that nobody can run, as the policy for it says.

        :returns: whether that is done, or was tried; else it is to be acknowledged.
        """
        refusal = delivery.refusal
        assert refusal is not None  # noqa: S101 - that is why it is refused
        reason, error, message = refusal
        task = None if message is None else self._broker.find_task(message.task_name)
        own = None if task is None else task.failure_policy
        policy = for_refused(own, self._broker.failure_policy)
        action = decide(policy, reason, None)
        if policy is None:
            return False
        if message is not None:
            delivery.message = message
        deliveries = await self.count_of(delivery)
        delivery.ending = ending = Ending(action, reason, error, deliveries)
        hooks = delivery.hooks.on_ending
        if hooks:
            await run_hooks(hooks, "on_ending", delivery, message, ending)
        if action is not Action.DEAD_LETTER:
            return False
        await self.carry_out(delivery)
        return True

    # -- Dead letters ------------------------------------------------------------------

    async def _put_aside(self, delivery: Delivery, ending: Ending) -> Failed | None:
        """Keep a dead letter, tell the hooks, then acknowledge the message."""
        letter = letter_for(self._broker, delivery, ending)
        store: Any = attempt(store_of, self._broker)
        if isinstance(store, Failed):
            return store
        if store is not None:
            kept: Any = await contain(store.put, letter, seconds=self._seconds)
            if isinstance(kept, Failed):
                return kept
            if isinstance(kept, str):
                letter = replace(letter, id=kept)
        logger.error(
            "Dead letter: %s (%s: %s), %s.",
            delivery,
            letter.reason,
            letter.error,
            "told to on_dead_letter hooks alone"
            if store is None
            else f"kept in {store.queue} as {letter.id}",
            extra={"reason": letter.reason, "letter_id": letter.id},
        )
        hooks = delivery.hooks.on_dead_letter
        if hooks:
            told = run_hooks(hooks, "on_dead_letter", delivery, letter)
            await in_context(delivery.context, told)
        if delivery.unique is not None:
            await self._unique_keys.release([delivery])
        elif delivery.refusal is not None and delivery.refusal[2] is not None:
            await self._unique_keys.release_of(delivery.refusal[2])
        if delivery.controller.is_ackable:
            acked: Any = await contain(delivery.controller.ack, seconds=self._seconds)
            return acked if isinstance(acked, Failed) else None
        return None

    # -- Giving back -------------------------------------------------------------------

    async def _give_back(self, delivery: Delivery, ending: Ending) -> None:
        """Let the broker deliver a message again, or send it again in place of that.

        :raises Exception: when that is not known to have happened.
        """
        controller, message = delivery.controller, equip(self._broker, delivery.raw)
        nack: Any = None
        # One that is not counted would come for ever.
        if message is not None and message.deliveries is not None:
            nack = None if controller.is_acked else message.nack
        is_kept = nack is not None and message is not None and message.nack_delays
        delay = ending.delay if is_kept else self._delay_of_sending(ending.delay)
        if nack is None or not (is_kept or delay is None):
            await self._send_again(delivery, ending.deliveries, delay)
            if controller.is_ackable:
                await controller.ack()
        elif not controller.is_ackable:
            await maybe_awaitable(nack(delay))
        elif controller.reserve():
            try:
                await maybe_awaitable(nack(delay))
                # Nobody is to acknowledge it, or to keep it, from now on.
                controller.is_acked = True
            finally:
                controller.release()

    def _delay_of_sending(self, delay: float | None) -> float | None:
        """Give the seconds that a message waits which is sent again.

        :returns: `None` for at once, which is said once where that was not asked for.
        """
        advice = None if delay is None else advice_on_delay(self._broker)
        if advice is None:
            return delay
        if not self._has_warned_of_delays:
            self._has_warned_of_delays = True
            logger.warning(
                "%s gives a message back at once, in spite of nack(delay=%g), as it "
                "keeps none for a time: %s.",
                type(self._broker).__name__,
                delay,
                advice,
            )
        return None

    async def _send_again(
        self,
        delivery: Delivery,
        deliveries: int | None,
        delay: float | None,
    ) -> None:
        """Send what was delivered once more, counted, as the broker counts it anew."""
        formatter = self._broker.formatter
        message = formatter.loads(_bytes_of(delivery))
        message.parse_labels()
        message.labels[EARLIER_LABEL] = str(deliveries or 1)
        if delay is not None:
            message.labels["delay"] = delay_label(self._broker, delay)
        else:
            # It came after its delay once, and is due.
            message.labels.pop("delay", None)
            (message.labels_types or {}).pop("delay", None)
        again = with_wire_labels(message)
        await self._broker.kick(dump_message(formatter, again))


def letter_for(broker: AsyncBroker, delivery: Delivery, ending: Ending) -> DeadLetter:
    """Make the dead letter of a message."""
    message: TaskiqMessage | None = getattr(delivery, "message", None)
    labels = {} if message is None else message.labels
    return DeadLetter(
        data=_bytes_of(delivery),
        reason=ending.reason.value,
        error=brief(ending.error),
        deliveries=ending.deliveries,
        queue=origin_of(broker, delivery.raw, labels),
        time=time.time(),
        task_name="" if message is None else message.task_name,
        task_id="" if message is None else message.task_id,
    )


def _bytes_of(delivery: Delivery) -> bytes:
    raw: Any = delivery.raw
    data = raw.data if isinstance(raw, AckableMessage) else raw
    return data.encode() if isinstance(data, str) else bytes(data)


def log_policies(broker: AsyncBroker) -> None:
    """Say where dead letters go, and what cannot be counted, if it matters."""
    tasks = broker.get_all_tasks()
    policies = {
        name: policy
        for name, task in tasks.items()
        if (policy := combined(task.failure_policy, broker.failure_policy))
    }
    if broker.failure_policy is None and not policies:
        return
    store: Any = attempt(store_of, broker)
    if store is None or isinstance(store, Failed):
        logger.warning(
            "%s has no queue for dead letters: they are told to on_dead_letter hooks "
            "and in error results, and are gone after that.",
            type(broker).__name__,
        )
    else:
        logger.info("Dead letters go to %s.", store.queue)
    limited = sorted(name for name, each in policies.items() if each.max_deliveries)
    if limited and resolve(broker).deliveries is None:
        better = better_import(broker)
        logger.warning(
            "%s does not count deliveries: max_deliveries of %s counts only those "
            "after a nack%s.",
            type(broker).__name__,
            ", ".join(limited),
            "" if better is None else f". It counts {better}",
        )
