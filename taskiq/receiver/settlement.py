"""What follows an outcome: hooks, the result backend and the acknowledgement.

Each message is settled by itself. Whatever goes wrong for one is logged with its name
and id and changes nothing for another.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from taskiq.acks import AcknowledgeType
from taskiq.exceptions import NoResultError
from taskiq.hooks import HookLists, hooks_of, run_hooks
from taskiq.models import maker_of
from taskiq.outcome import Failed, Outcome
from taskiq.receiver.cancellation import guarded, is_from_outside
from taskiq.receiver.delivery import describe
from taskiq.result import TaskiqResult

if TYPE_CHECKING:
    from collections.abc import Callable

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

    :param seconds: how long its call took, `as_stored`.
    """
    if isinstance(outcome, Failed):
        value, error = None, outcome.error
    else:
        value, error = outcome.value, None
    return _result_of_fields(
        {
            "is_err": error is not None,
            "log": None,
            "return_value": value,
            "execution_time": seconds,
            "labels": message.labels.copy(),
            "error": error,
        },
    )


_result_of_fields: Final[Callable[[dict[str, Any]], TaskiqResult[Any]]] = maker_of(
    TaskiqResult,
)


def as_stored(seconds: float) -> float:
    """Round how long a call took to what results tell of it."""
    return round(seconds, 2)


_WHEN_EXECUTED: Final = AcknowledgeType.WHEN_EXECUTED
_WHEN_SAVED: Final = AcknowledgeType.WHEN_SAVED


class Settlement:
    """Settles messages: hooks, result backend, acknowledgement, in this order."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker

    async def settle_failure(self, delivery: Delivery, error: BaseException) -> None:
        """Settle a message that failed before its task could run."""
        logger.error("Cannot run %s: %s", delivery, error, exc_info=error)
        result = result_of(Failed(error), 0.0, delivery.message)
        await guarded(self.settle(delivery, result, hooks_of(self._broker)))

    async def settle(
        self,
        delivery: Delivery,
        result: TaskiqResult[Any],
        hooks: HookLists,
        *,
        is_error_told: bool = False,
        raise_err: bool = False,
    ) -> None:
        """Take a message from its outcome to its end, each step in its order.

        To be awaited under `guarded`.

        :param hooks: those of the broker.
        :param is_error_told: whether the `on_error` hooks have run already.
        :param raise_err: raise what saving or a `post_save` hook raises.
        """
        broker, message = self._broker, delivery.message
        acked_at = delivery.ack_type if delivery.controller.is_ackable else None
        try:
            if acked_at is _WHEN_EXECUTED:
                await delivery.ack()
            if result.error is not None and not is_error_told:
                await self.report_error(message, result)
            if hooks.post_execute:
                await run_hooks(broker, "post_execute", delivery, message, result)
            if result.error is None or not isinstance(result.error, NoResultError):
                try:
                    await broker.result_backend.set_result(message.task_id, result)
                except Exception:
                    logger.exception("Cannot set the result of %s.", delivery)
                    if raise_err:
                        raise
                    return  # unacked if it had to be saved: the broker repeats it
                if hooks.post_save:
                    await run_hooks(
                        broker,
                        "post_save",
                        delivery,
                        message,
                        result,
                        raise_err=raise_err,
                    )
            if acked_at is _WHEN_SAVED:
                await delivery.ack()
        except asyncio.CancelledError as exc:
            if is_from_outside(exc):
                raise
            # A hook or the backend cancelled itself: no reason to end anybody else.
            logger.exception(
                "Settling %s cancelled itself; what was left of it is not done.",
                delivery,
            )

    async def report_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        """Tell the `on_error` hooks. They may replace the error of the result."""
        if hooks_of(self._broker).on_error:
            told = (message, result, result.error)
            await run_hooks(self._broker, "on_error", describe(message), *told)
