"""What follows an outcome: hooks, the result backend and the acknowledgement.

Each message is settled by itself. Whatever goes wrong for one is logged with its name
and id and changes nothing for another.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from taskiq.acks import AcknowledgeType
from taskiq.exceptions import NoResultError
from taskiq.hooks import hooks_of, run_hooks
from taskiq.outcome import Failed, Outcome
from taskiq.receiver.delivery import describe
from taskiq.result import TaskiqResult

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker
    from taskiq.message import TaskiqMessage
    from taskiq.receiver.delivery import Delivery

logger = logging.getLogger("taskiq.receiver.receiver")


def result_of(
    outcome: Outcome,
    seconds: float,
    message: TaskiqMessage,
) -> TaskiqResult[Any]:
    """Make the result object of one message.

    :param seconds: how long its call took.
    """
    failed = isinstance(outcome, Failed)
    return TaskiqResult(
        is_err=failed,
        log=None,
        return_value=None if isinstance(outcome, Failed) else outcome.value,
        execution_time=round(seconds, 2),
        error=outcome.error if isinstance(outcome, Failed) else None,
        labels=message.labels,
    )


class Settlement:
    """Settles messages: hooks, result backend, acknowledgement, in this order."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker

    async def settle_failure(self, delivery: Delivery, error: BaseException) -> None:
        """Settle a message that failed before its task could run."""
        logger.error("Cannot run %s: %s", delivery, error, exc_info=error)
        result = result_of(Failed(error), 0, delivery.message)
        await self.settle(delivery, result)

    async def settle(self, delivery: Delivery, result: TaskiqResult[Any]) -> None:
        """Settle a message whose error, if any, no hook has been told yet."""
        if delivery.is_acked_at(AcknowledgeType.WHEN_EXECUTED):
            await delivery.ack()
        if result.error is not None:
            await self.report_error(delivery.message, result)
        await self.store(delivery, result)

    async def settle_executed(
        self,
        delivery: Delivery,
        result: TaskiqResult[Any],
        *,
        raise_err: bool,
    ) -> None:
        """Settle a message whose error hooks ran as part of its execution.

        :param raise_err: raise what storing the result raises.
        """
        if delivery.is_acked_at(AcknowledgeType.WHEN_EXECUTED):
            await delivery.ack()
        await self.store(delivery, result, raise_err=raise_err)

    async def report_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        """Tell the `on_error` hooks. They may replace the error of the result."""
        if hooks_of(self._broker).on_error:
            told = (message, result, result.error)
            await run_hooks(self._broker, "on_error", describe(message), *told)

    async def store(
        self,
        delivery: Delivery,
        result: TaskiqResult[Any],
        *,
        raise_err: bool = False,
    ) -> None:
        """Run `post_execute`, save the result, run `post_save`, acknowledge.

        :param raise_err: raise what saving or a `post_save` hook raises.
        """
        message = delivery.message
        hooks = hooks_of(self._broker)
        told = (message, result)
        if hooks.post_execute:
            await run_hooks(self._broker, "post_execute", delivery, *told)
        if not isinstance(result.error, NoResultError):
            try:
                await self._broker.result_backend.set_result(message.task_id, result)
            except Exception:
                logger.exception("Cannot set the result of %s.", delivery)
                if raise_err:
                    raise
                return  # unacknowledged if it had to be saved: the broker repeats it
            if hooks.post_save:
                await run_hooks(
                    self._broker,
                    "post_save",
                    delivery,
                    *told,
                    raise_err=raise_err,
                )
        if delivery.is_acked_at(AcknowledgeType.WHEN_SAVED):
            await delivery.ack()
