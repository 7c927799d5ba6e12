"""Every error that taskiq itself raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskiq.error import Error

if TYPE_CHECKING:
    from taskiq.task import AsyncTaskiqTask


class TaskiqError(Error):
    """Base of all taskiq errors."""


class TaskiqResultTimeoutError(TaskiqError):
    """No result arrived within `timeout` seconds.

    Where `task_id` is given, the text names the task and says what to look at;
    `result_backend` is the name of the class that was asked. Where the last look for
    the result failed, `failure` says in one line with what.
    """

    __template__ = "Waiting for task results has timed out, timeout={timeout}"

    timeout: float | None = None
    task_id: str | None = None
    task_name: str | None = None
    result_backend: str | None = None
    failure: str | None = None

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if self.task_id is not None:
            name = "" if self.task_name is None else f"{self.task_name} "
            self.args = (
                f"{self.args[0]}: task {name}with ID {self.task_id} has no result "
                f"after {self.timeout} seconds. Is a worker running that knows the "
                "task (its log says so), and does it store results where this process "
                f"looks for them ({self.result_backend or 'its result backend'})?",
            )
        if self.failure:
            text = self.args[0]
            end = "" if text.endswith("?") else "."
            self.args = (f"{text}{end} The last look failed: {self.failure}",)


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


class SendManyError(SendTaskError):
    """Something went wrong for some of the items given to `kiq_many`.

    `errors` has, by the index of the item, what `kiq` would have raised for it.
    `handles` has the handles of what was sent, by index, too. An index in both was
    sent, and a `post_send` hook failed after that. `failed` is how many errors there
    are of `total` items, `first` names the first of them.

    Pickled, or stored as the error of a task, it comes back without errors and handles:
    those belong to the process that sent.
    """

    __template__ = (
        "Sending {total} messages of task {task_name} failed for {failed} of them, "
        "first for item {first}"
    )

    task_name: str
    total: int
    failed: int
    first: str
    errors: dict[int, Exception]
    handles: dict[int, AsyncTaskiqTask[Any]]

    @property
    def unsent(self) -> list[int]:
        """The indexes of the items that were not sent, to be sent again."""
        return sorted(self.errors.keys() - self.handles.keys())

    def as_kwargs(self) -> dict[str, Any]:
        """Return the fields without errors and handles, of which may be very many."""
        return {**super().as_kwargs(), "errors": {}, "handles": {}}

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}({self})"

    def __reduce__(self) -> tuple[Any, ...]:
        make, args, fields = super().__reduce__()
        return make, args, {**fields, "errors": {}, "handles": {}}


class UnsendableArgumentError(SendTaskError):
    """An argument or a label of a message cannot be serialised; nothing was sent.

    `path` says which part of it: `args[0]["rows"][3]`, `kwargs["handle"]`,
    `labels["tenant"]`. `kind` is the type of that part, `reason` what the serializer
    said. The cause is the serializer's own error.
    """

    __template__ = (
        "Cannot send task {task_name}: {path} is of type {kind}, "
        "which cannot be serialised: {reason}"
    )

    task_name: str
    path: str
    kind: str
    reason: str


class UnsendableBytesError(SendTaskError):
    """A broker sends only text, and the serializer writes bytes that are none.

    `broker` is the name of its class. The cause says which byte it was.
    """

    __template__ = (
        "Cannot send task {task_name}: {broker} sends text, and the message is none. "
        "Give the broker a serializer that writes text, such as JSONSerializer"
    )

    task_name: str
    broker: str


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
    """Base of all result backend errors.

    Where `failure` is given, it says in one line what the result backend failed with,
    and the text ends in it.
    """

    __template__ = "Base exception for all result backend errors"

    failure: str | None = None

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if self.failure:
            self.args = (f"{self.args[0]}: {self.failure}",)


class ResultGetError(ResultBackendError):
    """The result could not be fetched; the cause says why."""

    __template__ = "Cannot get result for the task"


class ResultSetError(ResultBackendError):
    """The result could not be stored; the cause says why."""

    __template__ = "Cannot set result for the task"


class UnstorableResultError(ResultSetError):
    """What the task gave cannot be stored; this error is stored in its place.

    `path` says which part of it: `return_value["rows"][3].handle`, or
    `error.exc_message[0]` for the first argument of an error.
    `kind` is the type of that part, `reason` why it was refused.
    """

    __template__ = (
        "The task ended, but its result cannot be stored: "
        "{path} is of type {kind}: {reason}"
    )

    path: str
    kind: str
    reason: str


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


class MessageNackedError(NoResultError):
    """Raised by `Context.nack`: the message is given back, to be delivered again.

    `delay` is in seconds, `None` for at once.
    """

    __template__ = "The message was given back"

    delay: float | None = None


class ChunkItemError(TaskiqError):
    """The task asked for what an item of a chunk cannot have; it has no other result.

    The item has no message of its own, which could be given back or sent again. `wish`
    says what was asked for, `index` is the place of the item in its chunk.
    """

    __template__ = (
        "The task asked {wish}, and item {index} of chunk {task_id} has no message of "
        "its own for that: send the item once more"
    )

    task_id: str
    index: int
    wish: str


class DeadLetteredError(TaskRejectedError):
    """The message was put aside as a dead letter. `reason` says why."""

    __template__ = "The message was dead-lettered: {reason}"

    reason: str


class DeadLetterNotFoundError(TaskiqError):
    """There is no dead letter of this id to read on behind, so nobody knows where."""

    __template__ = "There is no dead letter {letter_id} in {queue}, or no more"

    letter_id: str
    queue: str


class MaxDeliveriesError(DeadLetteredError):
    """The message was delivered more often than its task allows, and did not run.

    Each time before its process ended, or it was given back.
    """

    __template__ = "The message was delivered {deliveries} times, {most} are allowed"

    deliveries: int | None
    most: int | None
    reason: str = "max_deliveries"


class ScheduledTaskCancelledError(TaskiqError):
    """Raised by a schedule source's `pre_send` so that the task is not sent."""

    __template__ = "Cannot send scheduled task to the queue."


class UniqueError(SendTaskError):
    """The key of a unique task could not be claimed, so nothing was sent.

    The cause says why.
    """

    __template__ = (
        "Cannot claim the key of unique task {task_name}, so it was not sent; "
        "the cause says why"
    )

    task_name: str


class UniqueKeyError(UniqueError):
    """No key can be made of the arguments of a unique task; nothing was sent."""

    __template__ = (
        "Cannot make the key of unique task {task_name}, so it was not sent: {reason}. "
        "unique= may be a function of the arguments, as they are sent, that returns "
        "text, a number or a list of those"
    )

    reason: str


class UniqueNotSupportedError(UniqueError):
    """There is no place to hold the keys of unique tasks."""

    __template__ = (
        "Cannot send unique task {task_name}: neither {broker} nor {result_backend} "
        "holds the keys of unique tasks. Give the broker a store, on the side of the "
        "sender and of the worker: broker.with_unique_store(...), or a result backend "
        "that has one, such as those of taskiq.adapters.redis, .postgres and .nats"
    )

    broker: str
    result_backend: str


class AbortError(TaskiqError):
    """A message could not be aborted; the cause says why."""

    __template__ = "Cannot abort task {task_id}"

    task_id: str


class AbortNotSupportedError(AbortError):
    """There is no place to keep the mark that a message is aborted."""

    __template__ = (
        "Cannot abort task {task_id}: neither its broker nor {result_backend} keeps "
        "marks of aborted messages. Give the broker a store, on the side of the "
        "sender and of the worker: broker.with_abort_store(...), or a result backend "
        "that has one, such as those of taskiq.adapters.redis and "
        "taskiq.adapters.postgres"
    )

    result_backend: str


class TaskAbortedError(TaskiqError):
    """The message was aborted; the error of its result."""

    __template__ = "Task {task_id} was aborted"

    task_id: str


class TaskBrokerMismatchError(TaskRejectedError):
    """A task that belongs to `broker` was registered with another one."""

    __template__ = "Task already has a different broker ({broker})"

    broker: Any


class TaskiqLabelError(TaskiqError):
    """A keyword of a decorator looks like an option, and would be none."""

    __template__ = (
        "Cannot register task {task_name}: {label}= would be a label that nothing "
        "reads; {advice}"
    )

    task_name: str
    label: str
    advice: str


class TaskiqFailurePolicyError(TaskiqError):
    """What is to become of failed messages was said in a way that cannot work.

    `who` names what said it, `allowed` says what the argument may be instead.
    """

    __template__ = "{who}: {argument}={value!r} is not allowed: {allowed}"

    who: str
    argument: str
    value: Any
    allowed: str


class TaskiqUniqueConfigError(TaskiqError):
    """A task was registered as unique in a way that cannot work.

    `allowed` says what the argument may be instead.
    """

    __template__ = (
        "Cannot register task {task_name}: "
        "{argument}={value!r} is not allowed: {allowed}"
    )

    task_name: str
    argument: str
    value: Any
    allowed: str


class TaskiqRateError(TaskiqError):
    """A plain task was registered with a rate that is none.

    `allowed` says what it may be instead.
    """

    __template__ = (
        "Cannot register task {task_name}: rate={value!r} is not allowed: {allowed}"
    )

    task_name: str
    value: Any
    allowed: str


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
