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
from taskiq.hooks import hooks_of, run_hooks
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

    :param seconds: how long its call took.
    """
    error = outcome.error if isinstance(outcome, Failed) else None
    result = _build_result(
        {
            "is_err": error is not None,
            "log": None,
            "return_value": None if isinstance(outcome, Failed) else outcome.value,
            "execution_time": round(seconds, 2),
            "error": error,
            "labels": message.labels,
        },
    )
    object.__setattr__(result, "__pydantic_fields_set__", _FIELDS)
    return result


#: `TaskiqResult(**fields)` without unpacking and packing them again.
_build_result: Final[Callable[[dict[str, Any]], TaskiqResult[Any]]] = (
    TaskiqResult.__pydantic_validator__.validate_python
)
#: One set for all, as every field is given: one of its own takes more memory than the
#: rest of a small result.
_FIELDS: Final = set(TaskiqResult.model_fields)

_WHEN_EXECUTED: Final = AcknowledgeType.WHEN_EXECUTED
_WHEN_SAVED: Final = AcknowledgeType.WHEN_SAVED


class Settlement:
    """Settles messages: hooks, result backend, acknowledgement, in this order."""

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker

    async def settle_failure(self, delivery: Delivery, error: BaseException) -> None:
        """Settle a message that failed before its task could run."""
        logger.error("Cannot run %s: %s", delivery, error, exc_info=error)
        await self.settle(delivery, result_of(Failed(error), 0, delivery.message))

    async def settle(
        self,
        delivery: Delivery,
        result: TaskiqResult[Any],
        *,
        is_error_told: bool = False,
        raise_err: bool = False,
    ) -> None:
        """Take a message from its outcome to its end, each step in its order.

        :param is_error_told: whether the `on_error` hooks have run already.
        :param raise_err: raise what saving or a `post_save` hook raises.
        """
        try:
            await guarded(
                self._take_to_its_end(
                    delivery,
                    result,
                    is_error_told=is_error_told,
                    raise_err=raise_err,
                ),
            )
        except asyncio.CancelledError as exc:
            if is_from_outside(exc):
                raise
            # A hook or the backend cancelled itself: no reason to end anybody else.
            logger.exception(
                "Settling %s cancelled itself; what was left of it is not done.",
                delivery,
            )

    async def _take_to_its_end(
        self,
        delivery: Delivery,
        result: TaskiqResult[Any],
        *,
        is_error_told: bool,
        raise_err: bool,
    ) -> None:
        broker, message = self._broker, delivery.message
        hooks = hooks_of(broker)
        if delivery.is_acked_at(_WHEN_EXECUTED):
            await delivery.ack()
        if result.error is not None and not is_error_told:
            await self.report_error(message, result)
        if hooks.post_execute:
            await run_hooks(broker, "post_execute", delivery, message, result)
        if not isinstance(result.error, NoResultError):
            try:
                await broker.result_backend.set_result(message.task_id, result)
            except Exception:
                logger.exception("Cannot set the result of %s.", delivery)
                if raise_err:
                    raise
                return  # unacknowledged if it had to be saved: the broker repeats it
            if hooks.post_save:
                await run_hooks(
                    broker,
                    "post_save",
                    delivery,
                    message,
                    result,
                    raise_err=raise_err,
                )
        if delivery.is_acked_at(_WHEN_SAVED):
            await delivery.ack()

    async def report_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        """Tell the `on_error` hooks. They may replace the error of the result."""
        if hooks_of(self._broker).on_error:
            told = (message, result, result.error)
            await run_hooks(self._broker, "on_error", describe(message), *told)
