"""What the retry middlewares share: whether a failed message runs once more.

The decisions are functions over labels and values; `RetryMiddleware` asks them in
order and leaves the sending to its subclasses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, TypeVar

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.exceptions import DeadLetteredError, NoResultError, TaskAbortedError
from taskiq.kicker import AsyncKicker
from taskiq.outage import brief
from taskiq.policies import MOST_DELAY, mark_sent_again

if TYPE_CHECKING:
    import logging

    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

_Number = TypeVar("_Number", int, float)

#: What users may say which exceptions are retried with; one class is allowed, too.
ExceptionTypes: TypeAlias = "Iterable[type[BaseException]] | type[BaseException]"

#: What is an ending on purpose, and no failure that another run could mend.
_NOT_RETRIED: Final = (NoResultError, DeadLetteredError, TaskAbortedError)

_TYPES_LABEL: Final = "types_of_exceptions"

#: The delay that computed ones start from, where they have taken the place of it in
#: the `delay` label, which brokers read.
BASE_DELAY_LABEL: Final = "_base_delay"

#: Most runs that a label may ask for on its own. Anybody who can send a message can
#: write one, and a message must not make itself run for ever.
MOST_RUNS_BY_LABEL: Final = 1000

#: Doubling stops here: any real limit is reached before, and a larger power of two
#: would be no float.
_MOST_DOUBLINGS: Final = 1000


@dataclass(frozen=True, slots=True)
class Attempt:
    """Where a message is in its row of runs.

    :ivar number: how many of its runs failed, this one included.
    :ivar limit: how many runs it may have.
    """

    number: int
    limit: int

    @property
    def may_retry(self) -> bool:
        """Whether one more run is allowed."""
        return self.number < self.limit


def attempt_of(
    labels: Mapping[str, Any],
    default_limit: int,
    own_limit: int = 0,
) -> Attempt:
    """Count the run that has just failed.

    A message is given at most as many runs as `MOST_RUNS_BY_LABEL`, `default_limit` or
    `own_limit` allow, whichever is most.

    :param default_limit: what the middleware says.
    :param own_limit: what the task says where it is registered, if it does.
    :raises ValueError: when a label that should be a number is none, counts less than
        no retries, or asks for a delay that is none.
    """
    _check_delay(labels)
    retries = _number(labels, "_retries", 0, int)
    if retries < 0:
        raise ValueError(f"Label _retries must not be negative, got {retries}")
    allowed = max(MOST_RUNS_BY_LABEL, default_limit, own_limit)
    asked_for = _number(labels, "max_retries", default_limit, int)
    return Attempt(number=retries + 1, limit=min(asked_for, allowed))


def _check_delay(labels: Mapping[str, Any]) -> None:
    """Refuse a delay that a server would refuse, closing the channel of all others.

    What is no number is left to whoever gave the label a meaning of its own.
    """
    try:
        delay = float(labels.get("delay", 0))
    except (OverflowError, TypeError, ValueError):
        return
    if not 0 <= delay <= MOST_DELAY:
        raise ValueError(
            f"Label delay must be a number of seconds from 0 to {MOST_DELAY}, "
            f"got {labels['delay']!r}",
        )


def is_enabled(labels: Mapping[str, Any], default: bool) -> bool:
    """Whether a message wants to be retried. As text, only "true" means yes."""
    wanted = labels.get("retry_on_error")
    if wanted is None:
        return default
    return wanted.lower() == "true" if isinstance(wanted, str) else bool(wanted)


def base_delay(labels: Mapping[str, Any], default: float) -> float:
    """Say how many seconds the first retry waits.

    :raises ValueError: when a label that should be a number is none.
    """
    name = BASE_DELAY_LABEL if BASE_DELAY_LABEL in labels else "delay"
    return _number(labels, name, default, float)


def exponential_delay(base: float, attempt: int, longest: float) -> float:
    """Double the delay with each attempt, up to a limit.

    ``base * 2 ** (attempt - 1)`` (M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015).

    :param base: seconds before the first retry.
    :param attempt: the number of the retry, from 1.
    :param longest: most seconds to wait.
    """
    return min(base * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS), longest)


def exception_types(
    types: ExceptionTypes,
    owner: str,
) -> tuple[type[BaseException], ...]:
    """Make what `isinstance` takes out of what the user gave.

    :param types: one class or several.
    :param owner: names in the error whose they are.
    :raises TypeError: when something in it is no exception class.
    """
    classes = (types,) if isinstance(types, type) else tuple(types)
    try:
        isinstance(None, classes)  # pyright: ignore[reportUnnecessaryIsInstance] - asks about the classes
    except TypeError as exc:
        raise TypeError(
            f"{_TYPES_LABEL} of {owner} must be exception classes, got {types!r}",
        ) from exc
    return classes


def _number(
    labels: Mapping[str, Any],
    name: str,
    default: _Number,
    convert: Callable[[Any], _Number],
) -> _Number:
    value = labels.get(name)
    if value is None:
        return convert(default)
    try:
        return convert(value)
    except (OverflowError, TypeError, ValueError) as exc:
        raise ValueError(
            f"Label {name} must be a number that {convert.__name__}() reads, "
            f"got {value!r}",
        ) from exc


class RetryMiddleware(TaskiqMiddleware):
    """Sends failed messages again; how, its subclasses say."""

    _logger: ClassVar[logging.Logger]

    def __init__(
        self,
        default_retry_count: int = 3,
        default_retry_label: bool = False,
        no_result_on_retry: bool = True,
        types_of_exceptions: ExceptionTypes | None = None,
    ) -> None:
        super().__init__()
        self.default_retry_count = default_retry_count
        self.default_retry_label = default_retry_label
        self.no_result_on_retry = no_result_on_retry
        self.types_of_exceptions: ExceptionTypes | None = (
            None
            if types_of_exceptions is None
            else exception_types(types_of_exceptions, type(self).__name__)
        )

    def is_retry_on_error(self, message: TaskiqMessage) -> bool:
        """Whether a message is retried when it fails."""
        return is_enabled(message.labels, self.default_retry_label)

    async def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
        exception: BaseException,
    ) -> None:
        """Send a failed message again, if that is wanted and left.

        A retry that cannot be sent is logged and the error stays the result.

        :raises ValueError: when a label that should be a number is none.
        """
        attempt = self.planned_retry(message, exception)
        if attempt is None:
            return
        if not attempt.may_retry:
            # Said by the receiver, in the line that has the error.
            self._logger.debug(
                "Task %s with ID %s failed. Its limit of %d runs is reached.",
                message.task_name,
                message.task_id,
                attempt.limit,
            )
            return
        if await self._is_sent(message, attempt, exception):
            mark_sent_again(message)
            if self.no_result_on_retry:
                result.error = NoResultError()

    def planned_retry(
        self,
        message: TaskiqMessage,
        exception: BaseException,
    ) -> Attempt | None:
        """Say what `on_error` makes of a failure, without doing it.

        :returns: the run that failed; `None` where this middleware leaves it alone.
        :raises ValueError: when a label that should be a number is none.
        """
        if isinstance(exception, _NOT_RETRIED):
            return None
        types = self._types_for(message)
        if types and not isinstance(exception, types):
            return None
        if not self.is_retry_on_error(message):
            return None
        return attempt_of(
            message.labels,
            self.default_retry_count,
            self._own_limit(message),
        )

    async def _is_sent(
        self,
        message: TaskiqMessage,
        attempt: Attempt,
        exception: BaseException,
    ) -> bool:
        """Send a message again.

        :param exception: what its run failed with.
        :returns: whether that was possible.
        """
        # The labels are shared: hooks that come later see the count in the message.
        kicker: AsyncKicker[Any, Any] = AsyncKicker(
            task_name=message.task_name,
            broker=self.broker,
            labels=message.labels,
        )
        kicker.with_task_id(message.task_id).with_labels(_retries=attempt.number)
        try:
            await self._send(kicker, message, attempt)
        except Exception as exc:
            self._logger.error(  # noqa: TRY400 - the task's own
                "Cannot send retry %d of task %s with ID %s (%s): "
                "its error is its result.",
                attempt.number,
                message.task_name,
                message.task_id,
                brief(exc),
                # Nobody else has told where it comes from: a retry was to follow.
                exc_info=exception,
            )
            return False
        return True

    async def _send(
        self,
        kicker: AsyncKicker[Any, Any],
        message: TaskiqMessage,
        attempt: Attempt,
    ) -> None:
        raise NotImplementedError

    def _own_limit(self, message: TaskiqMessage) -> int:
        """Say how many runs the task allows here, whatever its messages ask for."""
        task = self.broker.find_task(message.task_name)
        labels: Mapping[str, Any] = {} if task is None else task.labels
        return _number(labels, "max_retries", 0, int)

    def _types_for(self, message: TaskiqMessage) -> tuple[type[BaseException], ...]:
        """Say which exceptions are retried: none given means any."""
        task = self.broker.find_task(message.task_name)
        own = None if task is None else task.labels.get(_TYPES_LABEL)
        if task is None or own is None:
            return exception_types(self.types_of_exceptions or (), type(self).__name__)
        types = exception_types(own, f"task {message.task_name}")
        if isinstance(own, Iterator):
            task.labels[_TYPES_LABEL] = types  # it gives its classes only once
        return types
