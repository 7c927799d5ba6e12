"""Retries without delay."""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING, Any

from taskiq.middlewares._retry import RetryMiddleware

if TYPE_CHECKING:
    from taskiq.kicker import AsyncKicker
    from taskiq.message import TaskiqMessage
    from taskiq.middlewares._retry import Attempt

logger = getLogger("taskiq.retry_middleware")


class SimpleRetryMiddleware(RetryMiddleware):
    """Sends a failed message again at once, under its own id.

    The labels `retry_on_error` and `max_retries` of a message take precedence over
    the defaults here, and the label `types_of_exceptions` of a task over those here.

    :param default_retry_count: how many times a message is run, the first included.
    :param default_retry_label: whether messages are retried that do not say.
    :param no_result_on_retry: whether a run that is retried stores no result.
    :param types_of_exceptions: what is retried, anything by default.
    :raises TypeError: when `types_of_exceptions` has anything but exception classes.
    """

    _logger = logger

    async def _send(
        self,
        kicker: AsyncKicker[Any, Any],
        message: TaskiqMessage,
        attempt: Attempt,
    ) -> None:
        logger.debug(
            "Task %s with ID %s failed. Retrying: run %d of %d.",
            message.task_name,
            message.task_id,
            attempt.number + 1,
            attempt.limit,
        )
        await kicker.kiq(*message.args, **message.kwargs)
