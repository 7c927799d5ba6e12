"""Every error that taskiq itself raises."""

from __future__ import annotations

from typing import Any

from taskiq.error import Error


class TaskiqError(Error):
    """Base of all taskiq errors."""


class TaskiqResultTimeoutError(TaskiqError):
    """No result arrived within `timeout` seconds."""

    __template__ = "Waiting for task results has timed out, timeout={timeout}"

    timeout: float | None = None


class BrokerError(TaskiqError):
    """Base of all broker errors."""

    __template__ = "Base exception for all broker errors"


class ListenError(TaskiqError):
    """The broker cannot listen for messages."""


class SharedBrokerListenError(ListenError):
    """A shared broker was asked to listen; a real broker has to."""

    __template__ = "Shared broker cannot listen"


class SendTaskError(BrokerError):
    """The task could not be sent; the cause says why."""

    __template__ = "Cannot send task to the queue"


class SharedBrokerSendTaskError(SendTaskError):
    """A shared task was sent before a default broker was set."""

    __template__ = (
        "You cannot use kiq directly on shared task without setting the default_broker."
    )


class UnknownTaskError(SendTaskError):
    """No task is registered under `task_name`."""

    __template__ = "Cannot send unknown task to the queue, task name - {task_name}"

    task_name: str


class ResultBackendError(TaskiqError):
    """Base of all result backend errors."""

    __template__ = "Base exception for all result backend errors"


class ResultGetError(ResultBackendError):
    """The result could not be fetched; the cause says why."""

    __template__ = "Cannot get result for the task"


class ResultSetError(ResultBackendError):
    """The result could not be stored; the cause says why."""

    __template__ = "Cannot set result for the task"


class ResultIsReadyError(ResultBackendError):
    """The result backend could not say whether a result is there."""

    __template__ = "Cannot find out if the task is ready"


class SecurityError(TaskiqError):
    """Received data asks for something that must not be done."""

    __template__ = "Security exception occurred: {description}"

    description: str


class NoResultError(TaskiqError):
    """Raised by a task (or for it) so that no result is stored."""

    __template__ = "User doesn't want to set result"


class TaskRejectedError(TaskiqError):
    """Raised by a task that refuses its message."""

    __template__ = "Task was rejected"


class ScheduledTaskCancelledError(TaskiqError):
    """Raised by a schedule source's `pre_send` so that the task is not sent."""

    __template__ = "Cannot send scheduled task to the queue."


class TaskBrokerMismatchError(TaskRejectedError):
    """A task that belongs to `broker` was registered with another one."""

    __template__ = "Task already has a different broker ({broker})"

    broker: Any


class TaskiqBatchConfigError(TaskiqError):
    """A batch task was registered with an argument that cannot work.

    `allowed` says what the argument may be instead.
    """

    __template__ = (
        "Cannot register batch task {task_name}: "
        "{argument}={value!r} is not allowed: {allowed}"
    )

    task_name: str
    argument: str
    value: Any
    allowed: str


class TaskiqBatchResultError(TaskiqError):
    """A batch task returned something that gives its items no result of their own.

    Return a list with one entry per item, in the order of the items, or register the
    task with `batch_results="shared"`. `actual` says what was returned instead.
    """

    __template__ = (
        "Batch task {task_name} must return a list of {expected} results, "
        "one per item in order; it returned {actual}"
    )

    task_name: str
    expected: int
    actual: str
