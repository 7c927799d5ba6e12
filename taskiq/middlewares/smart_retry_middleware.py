"""Retries with delays."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from logging import getLogger
from typing import TYPE_CHECKING, Any

from taskiq.abc.schedule_source import ScheduleSource
from taskiq.capabilities import delay_label
from taskiq.middlewares._retry import (
    BASE_DELAY_LABEL,
    RetryMiddleware,
    base_delay,
    exponential_delay,
)

if TYPE_CHECKING:
    from taskiq.kicker import AsyncKicker
    from taskiq.message import TaskiqMessage
    from taskiq.middlewares._retry import Attempt, ExceptionTypes

logger = getLogger("taskiq.smart_retry_middleware")


class SmartRetryMiddleware(RetryMiddleware):
    """Sends a failed message again after a delay, under its own id.

    The labels `retry_on_error`, `max_retries` and `delay` of a message take precedence
    over the defaults here, and the label `types_of_exceptions` of a task over those
    here. Without a schedule source the broker delays, by the label `delay`.

    :param default_retry_count: how many times a message is run, the first included.
    :param default_retry_label: whether messages are retried that do not say.
    :param no_result_on_retry: whether a run that is retried stores no result.
    :param default_delay: seconds before a retry.
    :param use_jitter: whether to add a random part of a second to each delay.
    :param use_delay_exponent: whether each delay is twice the one before.
    :param max_delay_exponent: most seconds that doubling leads to.
    :param schedule_source: where retries are scheduled, instead of sent.
    :param types_of_exceptions: what is retried, anything by default.
    :raises TypeError: when `schedule_source` is none, or `types_of_exceptions` has
        anything but exception classes.
    """

    _logger = logger

    def __init__(
        self,
        default_retry_count: int = 3,
        default_retry_label: bool = False,
        no_result_on_retry: bool = True,
        default_delay: float = 5,
        use_jitter: bool = False,
        use_delay_exponent: bool = False,
        max_delay_exponent: float = 60,
        schedule_source: ScheduleSource | None = None,
        types_of_exceptions: ExceptionTypes | None = None,
    ) -> None:
        super().__init__(
            default_retry_count,
            default_retry_label,
            no_result_on_retry,
            types_of_exceptions,
        )
        if schedule_source is not None and not isinstance(
            schedule_source,
            ScheduleSource,
        ):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise TypeError(
                "schedule_source must be an instance of ScheduleSource or None, "
                f"got {schedule_source!r}",
            )
        self.default_delay = default_delay
        self.use_jitter = use_jitter
        self.use_delay_exponent = use_delay_exponent
        self.max_delay_exponent = max_delay_exponent
        self.schedule_source = schedule_source

    def make_delay(self, message: TaskiqMessage, retries: int) -> float:
        """Say how many seconds a retry waits.

        :param retries: the number of the retry, from 1.
        :raises ValueError: when the delay label of the message is no number.
        """
        delay = base_delay(message.labels, self.default_delay)
        if self.use_delay_exponent:
            delay = exponential_delay(delay, retries, self.max_delay_exponent)
        if self.use_jitter:
            delay += random.random()  # noqa: S311 - spreads load, keeps no secret
        return delay

    async def on_send(
        self,
        kicker: AsyncKicker[Any, Any],
        message: TaskiqMessage,
        delay: float,
    ) -> None:
        """Send a retry, or schedule it where there is a schedule source.

        :param kicker: sends it, with the id and the labels of the message.
        :param delay: seconds it has to wait.
        """
        if self.schedule_source is None:
            kicker.with_labels(delay=delay_label(kicker.broker, float(delay)))
            await kicker.kiq(*message.args, **message.kwargs)
        else:
            await kicker.schedule_by_time(
                self.schedule_source,
                datetime.now(timezone.utc) + timedelta(seconds=delay),
                *message.args,
                **message.kwargs,
            )

    async def _send(
        self,
        kicker: AsyncKicker[Any, Any],
        message: TaskiqMessage,
        attempt: Attempt,
    ) -> None:
        delay = self.make_delay(message, attempt.number)
        logger.debug(
            "Task %s with ID %s failed. Retrying %d/%d in %.2f seconds.",
            message.task_name,
            message.task_id,
            attempt.number,
            attempt.limit,
            delay,
        )
        base = base_delay(message.labels, self.default_delay)
        if self.schedule_source is None and delay != base:
            # The label `delay` is about to hold what was computed: without a note of
            # the base each delay would be computed from the last one.
            kicker.with_labels(**{BASE_DELAY_LABEL: base})
        await self.on_send(kicker, message, delay)
