"""From what a broker handed over to a message that may run."""

from __future__ import annotations

import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final

from taskiq.acks import AckableMessage, AckController, AcknowledgeType
from taskiq.exceptions import MaxDeliveriesError, UnknownTaskError
from taskiq.hooks import hooks_of
from taskiq.message import TaskiqMessage
from taskiq.outcome import Failed
from taskiq.policies import Reason, is_over
from taskiq.receiver.containment import attempt, call_hook, in_context
from taskiq.receiver.deliveries import counted, hear_of_deaths, turn_of
from taskiq.receiver.failures import log_unparsable

if TYPE_CHECKING:
    from taskiq.abc.middleware import TaskiqMiddleware
    from taskiq.decor import AsyncTaskiqDecoratedTask
    from taskiq.receiver.aborting import Aborting
    from taskiq.receiver.delivery import Delivery
    from taskiq.receiver.leases import Leases
    from taskiq.receiver.receiver import Receiver
    from taskiq.receiver.settlement import Settlement

logger = logging.getLogger("taskiq.receiver.receiver")

_WHEN_RECEIVED: Final = AcknowledgeType.WHEN_RECEIVED
#: Of every message whose broker wants no acknowledgement.
_NOT_ACKABLE: Final = AckController(None)


class Admission:
    """Decodes deliveries, finds their tasks, and runs what comes before these.

    :param receiver: what prepares tasks, and knows when a message is acknowledged.
    """

    def __init__(
        self,
        receiver: Receiver,
        settlement: Settlement,
        leases: Leases,
    ) -> None:
        #: What knows of aborted messages, where the broker has a store for that.
        self.aborting: Aborting | None = None
        #: How many calls run at once, `None` for any number.
        self.slots: int | None = None
        self._receiver = receiver
        self._broker = receiver.broker
        self._tasks = receiver.prepared_tasks
        # Of the receiver: a subclass may have its own.
        self._get_ack_time = receiver._get_ack_time  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        self._settlement = settlement
        self._leases = leases
        self._hooks = hooks_of(receiver.broker)

    def read(self, delivery: Delivery) -> None:
        """Decode what a broker gave, and find its task."""
        hooks = self._hooks
        if hooks.middlewares != self._broker.middlewares:
            hooks = self._hooks = hooks_of(self._broker)
        delivery.hooks = hooks
        # What a broker gives is not checked by anybody: a formatter may want text.
        given: Any = delivery.raw
        # Asking a pydantic class is ten times slower than asking a built-in one.
        if given.__class__ is AckableMessage or (
            not isinstance(given, bytes) and isinstance(given, AckableMessage)
        ):
            data, delivery.controller = given.data, AckController(given.ack)
            if given.ack_group is not None:
                delivery.controller.message = given
            if self._leases.are_given or given.extend is not None:
                self._leases.hold(delivery)
        else:
            data, delivery.controller = given, _NOT_ACKABLE
        task: Any = attempt(self._decode, delivery, data)
        if task is None or task.__class__ is Failed:
            self._refuse(delivery, data, task)
            return
        delivery.function = task.original_func
        delivery.ack_type = self._receiver.ack_time
        delivery.task = prepared = self._tasks.of(task)
        if prepared is not None and prepared.is_special:
            if prepared.unique_ttl is not None:
                self._settlement.unique_keys.hold(delivery, prepared.unique_ttl)
            delivery.is_paced = prepared.rate is not None
            delivery.is_batched = prepared.plan is not None
            if not delivery.is_batched:
                return
            if delivery.controller is not _NOT_ACKABLE and isinstance(data, bytes):
                delivery.fingerprint = hash(data)

    def _decode(
        self,
        delivery: Delivery,
        data: Any,
    ) -> AsyncTaskiqDecoratedTask[Any, Any] | None:
        decoded = self._broker.formatter.loads(message=data)
        if decoded.labels_types:
            decoded.parse_labels()
        delivery.message = decoded
        delivery.task_id, delivery.name = decoded.task_id, decoded.task_name
        return self._broker.find_task(delivery.name)

    def _refuse(self, delivery: Delivery, data: Any, failed: Failed | None) -> None:
        """Say why nobody can run what was read.

        :param failed: what reading it failed with; `None` for an unknown task.
        """
        if failed is None:
            message = delivery.message
            logger.warning(
                "task %r is not found. Maybe you forgot to import it? "
                "Message with ID %s is dropped.",
                message.task_name,
                message.task_id,
            )
            unknown = UnknownTaskError(task_name=message.task_name)
            delivery.refusal = Reason.UNKNOWN_TASK, unknown, message
            return
        log_unparsable(data, failed.error)
        # What can be read without its labels has a bad one among them.
        read: Any = attempt(self._broker.formatter.loads, data)
        if isinstance(read, Failed):
            delivery.refusal = Reason.UNPARSABLE, failed.error, None
        else:
            delivery.refusal = Reason.BAD_LABEL, failed.error, read

    def waits(self, delivery: Delivery) -> bool:
        """Whether something comes before its task that has to be awaited."""
        task, aborting = delivery.task, self.aborting
        if delivery.hooks.pre_execute or task is None or task.is_limited:
            return True
        message, controller = delivery.message, delivery.controller
        if "ack_type" in message.labels and isinstance(
            attempt(self._resolve_ack_type, delivery),
            Failed,
        ):
            return True
        if delivery.ack_type is _WHEN_RECEIVED and controller.is_ackable:
            return True
        return aborting is not None and aborting.concerns(message.task_id)

    async def admit(self, delivery: Delivery) -> Failed | None:
        """Run what comes before a task: hooks, and the ack of a received message.

        :returns: what keeps the message from being run, if there is something.
        """
        hooks = delivery.hooks.pre_execute
        failed: Failed | None = None
        if hooks and delivery.is_batched:
            # What they set has to be there when it is settled, by its batch.
            delivery.context = contextvars.copy_context()
            work = self._pre_execute(hooks, delivery)
            failed = await in_context(delivery.context, work)
        elif hooks:
            failed = await self._pre_execute(hooks, delivery)
        if hooks:
            message = delivery.message
            delivery.name, delivery.task_id = message.task_name, message.task_id
        bad_label = attempt(self._resolve_ack_type, delivery)
        policy = self._settlement.endings.policy_of(delivery)
        if failed is None and bad_label is not None:
            delivery.reason = Reason.BAD_LABEL
        elif failed is None and policy is not None and policy.max_deliveries:
            failed = await self._check_limit(delivery, policy.max_deliveries)
        if delivery.is_acked_at(_WHEN_RECEIVED):
            await self._settlement.ack_received(delivery)
        failed = failed or bad_label
        # Last: a message may be aborted while hooks run.
        if failed is None and self.aborting is not None:
            failed = await self.aborting.before(delivery)
        return failed

    async def _check_limit(self, delivery: Delivery, limit: int) -> Failed | None:
        """Keep a message from being run that was delivered too often."""
        deliveries = await self._settlement.endings.count_of(delivery)
        if deliveries is None or deliveries <= 1:
            return None
        if deliveries >= limit:
            await hear_of_deaths(deliveries)
        if is_over(limit, counted(delivery, deliveries)):
            delivery.reason = Reason.MAX_DELIVERIES
            return Failed(MaxDeliveriesError(deliveries=deliveries, most=limit))
        if not delivery.is_batched:
            delivery.turn = turn_of(delivery, deliveries, limit, self.slots)
        return None

    def _resolve_ack_type(self, delivery: Delivery) -> None:
        delivery.ack_type = self._get_ack_time(delivery.message)

    async def _pre_execute(
        self,
        middlewares: tuple[TaskiqMiddleware, ...],
        delivery: Delivery,
    ) -> Failed | None:
        """Run the hooks before a task; each may replace the message.

        :returns: the error of the hook that failed, which becomes the message's.
        """
        for middleware in middlewares:
            returned = await call_hook(
                middleware,
                "pre_execute",
                delivery.message,
            )
            if isinstance(returned, Failed):
                return returned
            # Asking a pydantic class is ten times slower than looking at the class.
            if returned.__class__ is not TaskiqMessage and not isinstance(
                returned,
                TaskiqMessage,
            ):
                return Failed(
                    TypeError(
                        f"pre_execute of {type(middleware).__name__} returned "
                        f"{type(returned).__name__ if returned is not None else None}; "
                        "it must return the message to execute",
                    ),
                )
            delivery.message = returned
        return None
