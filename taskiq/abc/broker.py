"""The base of all brokers: tasks, middlewares, events and where messages go."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from abc import abstractmethod
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.acks import AckableMessage
from taskiq.bulk import restore_fallbacks, run_bounded
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.events import TaskiqEvents
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.hooks import overriding
from taskiq.lifecycle import Lifecycle
from taskiq.message import BrokerMessage
from taskiq.policies import FailurePolicy, read_policy
from taskiq.registration import TaskRegistry
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.serializers.json_serializer import JSONSerializer
from taskiq.state import TaskiqState
from taskiq.utils import maybe_awaitable
from taskiq.warnings import TaskiqDeprecationWarning

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskiq.abc.formatter import TaskiqFormatter
    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.aborts import AbortStore
    from taskiq.batch import BatcherStatistics
    from taskiq.dead_letters.store import DeadLetterStore
    from taskiq.policies import OnFailure
    from taskiq.rates import RateStore
    from taskiq.unique import UniqueStore

__all__ = [
    "AckableMessage",
    "AsyncBroker",
    "AsyncTaskiqDecoratedTask",
    "BrokerMessage",
    "DummyResultBackend",
    "EventHandler",
    "JSONSerializer",
    "ProxyFormatter",
    "TaskiqEvents",
    "TaskiqMiddleware",
    "TaskiqSerializer",
    "TaskiqState",
    "default_id_generator",
    "logger",
    "maybe_awaitable",
]

_T = TypeVar("_T")

EventHandler: TypeAlias = Callable[[TaskiqState], Awaitable[None] | None]

logger = logging.getLogger("taskiq")


#: How many messages `kick_many` sends at once where a broker does no better.
_KICKS_AT_ONCE: Final = 100

#: A subclass that replaces the latter gets the fallback of the former.
_STANDS_FOR: Final = {"kick_many": ("kick",)}

#: What the digit with the variant of a UUID becomes, by the random digit there.
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def default_id_generator() -> str:
    """Make an id for a message: the 32 hexadecimal digits of a random UUID.

    What `uuid4().hex` gives (version 4, RFC 9562) in a third of its time.
    """
    digits = os.urandom(16).hex()
    return f"{digits[:12]}4{digits[13:16]}{_VARIANTS[digits[16]]}{digits[17:]}"


class AsyncBroker(TaskRegistry):
    """Carries messages from those who send tasks to those who run them.

    A subclass writes `kick` and `listen`; everything else is here. One that replaces
    `kick` but not `kick_many` gets the latter as it is here, made of its `kick`.

    :param result_backend: deprecated, use `with_result_backend`.
    :param task_id_generator: deprecated, use `with_id_generator`.
    """

    #: Counts what waits and runs in batches now, for middlewares that measure it. A
    #: receiver sets it for its broker; of several the latest one counts.
    batch_statistics: Callable[[], BatcherStatistics] | None = None
    #: What becomes of failed messages where their task does not say it; see
    #: `with_dead_letters`.
    failure_policy: FailurePolicy | None = None
    #: Keeps dead letters; found by the class of the broker if it is not set.
    dead_letter_store: DeadLetterStore | None = None
    #: What was found then; for `taskiq.dead_letters.store_of`.
    found_dead_letter_store: DeadLetterStore | None = None
    #: Names the queue of dead letters, `None` for one named after that of the broker.
    dead_letter_queue: str | None = None
    #: Where marks of aborted messages are kept; `None` leaves it to the result backend.
    abort_store: AbortStore | None = None
    #: Where keys of unique tasks are held; `None` leaves it to the result backend.
    unique_store: UniqueStore | None = None
    #: Counts the calls of tasks with a rate for all processes; `None` leaves it to the
    #: result backend.
    rate_store: RateStore | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        restore_fallbacks(cls, AsyncBroker, _STANDS_FOR)

    def __init__(
        self,
        result_backend: AsyncResultBackend[_T] | None = None,
        task_id_generator: Callable[[], str] | None = None,
    ) -> None:
        if result_backend is not None:
            _warn_deprecated("result_backend", "with_result_backend")
        if task_id_generator is not None:
            _warn_deprecated("task_id_generator", "with_id_generator")
        super().__init__()
        self.middlewares: list[TaskiqMiddleware] = []
        self.result_backend: AsyncResultBackend[Any] = (
            DummyResultBackend() if result_backend is None else result_backend
        )
        self.decorator_class: type[AsyncTaskiqDecoratedTask[..., Any]] = (
            AsyncTaskiqDecoratedTask
        )
        self.serializer: TaskiqSerializer = JSONSerializer()
        self.formatter: TaskiqFormatter = ProxyFormatter(self)
        self.id_generator = task_id_generator or default_id_generator
        self.event_handlers: defaultdict[TaskiqEvents, list[EventHandler]] = (
            defaultdict(list)
        )
        self.state = TaskiqState()
        # How far `startup` has come: see `taskiq.lifecycle`.
        self.lifecycle = Lifecycle()
        # What dependencies are resolved from, by type.
        self.custom_dependency_context: dict[Any, Any] = {}
        # What replaces a dependency, mostly in tests.
        self.dependency_overrides: dict[Any, Any] = {}
        self.is_worker_process = False
        self.is_scheduler_process = False

    @abstractmethod
    async def kick(self, message: BrokerMessage) -> None:
        """Send one message."""

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        """Send many messages; each fails for itself.

        :returns: for each message, in order, `None` if it was sent, else why not. A
            message whose fate is unknown counts as not sent.
        """
        return await run_bounded(self.kick, messages, _KICKS_AT_ONCE)

    @abstractmethod
    def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        """Receive messages until the generator is closed.

        Yield an `AckableMessage` where a message can be acknowledged.
        """

    async def startup(self) -> None:
        """Run the startup handlers, then start middlewares and the result backend.

        A subclass that opens connections calls this, and closes them in `shutdown`: a
        worker that has lost its broker calls both again, in the other order, and then
        nothing that has been run or started here is run or started once more.
        """
        await self._start(
            TaskiqEvents.WORKER_STARTUP
            if self.is_worker_process
            else TaskiqEvents.CLIENT_STARTUP,
        )

    async def shutdown(self) -> None:
        """Run the shutdown handlers, then stop middlewares and the result backend."""
        await self._stop(
            TaskiqEvents.WORKER_SHUTDOWN
            if self.is_worker_process
            else TaskiqEvents.CLIENT_SHUTDOWN,
        )

    async def _start(self, *events: TaskiqEvents) -> None:
        await self.lifecycle.start(self._hooks(events, "startup"), self._results)

    async def _stop(self, *events: TaskiqEvents) -> None:
        await self.lifecycle.stop(self._hooks(events, "shutdown"), self._results)

    def _results(self) -> AsyncResultBackend[Any]:
        # Asked for late: a handler may set another one.
        return self.result_backend

    def _hooks(
        self,
        events: Iterable[TaskiqEvents],
        name: Literal["startup", "shutdown"],
    ) -> Iterator[Callable[[], Any]]:
        """List what is called, in order and late: a handler may add a middleware."""
        for event in events:
            for handler in self.event_handlers[event]:
                yield functools.partial(handler, self.state)
        for middleware in overriding(name, self.middlewares):
            yield getattr(middleware, name)

    def add_dependency_context(self, new_ctx: dict[Any, Any]) -> None:
        """Let dependencies of these types be resolved to these values."""
        self.custom_dependency_context.update(new_ctx)

    def add_middlewares(self, *middlewares: TaskiqMiddleware) -> None:
        """Append middlewares; what is not an instance of one is skipped and said."""
        for middleware in middlewares:
            if not isinstance(middleware, TaskiqMiddleware):  # pyright: ignore[reportUnnecessaryIsInstance] - a class passed by mistake
                logger.warning(
                    "Middleware %s is skipped: it is not an instance of "
                    "TaskiqMiddleware.",
                    middleware,
                )
                continue
            middleware.set_broker(self)
            self.middlewares.append(middleware)

    def on_event(self, *events: TaskiqEvents) -> Callable[[EventHandler], EventHandler]:
        """Decorate a function that is called with the state on each of `events`."""

        def decorate(handler: EventHandler) -> EventHandler:
            for event in events:
                self.add_event_handler(event, handler)
            return handler

        return decorate

    def add_event_handler(self, event: TaskiqEvents, handler: EventHandler) -> None:
        """Call `handler` with the broker's state on `event`."""
        self.event_handlers[event].append(handler)

    def with_result_backend(self, result_backend: AsyncResultBackend[Any]) -> Self:
        """Store results there.

        :returns: this broker.
        """
        self.result_backend = result_backend
        return self

    def with_abort_store(self, abort_store: AbortStore) -> Self:
        """Keep marks of aborted messages there; before the first message is sent.

        Who aborts and who runs messages needs the same one. Without it the result
        backend's is taken, if that has one.

        :returns: this broker.
        """
        self.abort_store = abort_store
        return self

    def with_unique_store(self, unique_store: UniqueStore) -> Self:
        """Hold the keys of unique tasks there; before the first message is sent.

        Who sends and who runs messages needs the same one. Without it the result
        backend's is taken, if that has one.

        :returns: this broker.
        """
        self.unique_store = unique_store
        return self

    def with_rate_store(self, rate_store: RateStore) -> Self:
        """Count the calls of tasks with a rate there; before a worker starts.

        All who run messages need the same one. Without it the result backend's is
        taken, if that has one; else each process keeps rates by itself.

        :returns: this broker.
        """
        self.rate_store = rate_store
        return self

    def with_id_generator(self, task_id_generator: Callable[[], str]) -> Self:
        """Draw the ids of messages from there.

        :returns: this broker.
        """
        self.id_generator = task_id_generator
        return self

    def with_middlewares(self, *middlewares: TaskiqMiddleware) -> Self:
        """Append middlewares.

        :returns: this broker.
        """
        self.add_middlewares(*middlewares)
        return self

    def with_event_handlers(
        self,
        event: TaskiqEvents,
        *handlers: EventHandler,
    ) -> Self:
        """Call `handlers` with the broker's state on `event`.

        :returns: this broker.
        """
        self.event_handlers[event].extend(handlers)
        return self

    def with_dead_letters(
        self,
        queue: str | None = None,
        *,
        max_deliveries: int | None = None,
        on_failure: OnFailure = "dead_letter",
        store: DeadLetterStore | None = None,
    ) -> Self:
        """Put messages aside that failed for good, in place of dropping them.

        Those are messages of no known task, that cannot be read or have a bad label,
        and those whose task failed and is not retried, unless it says otherwise.

        :param queue: name of the dead queue; by default that of the broker's queue with
            an ending.
        :param max_deliveries: of tasks that do not say it; `None` for no limit.
        :param on_failure: of tasks that do not say it; with "ack" only what nobody can
            run is put aside.
        :param store: keeps the letters in place of a queue of the broker.
        :returns: this broker.
        :raises TaskiqFailurePolicyError: for an argument that cannot work.
        """
        policy = read_policy("Cannot set dead letters", max_deliveries, on_failure)
        self.failure_policy = policy or FailurePolicy()
        self.dead_letter_queue = queue
        self.found_dead_letter_store = None
        if store is not None:
            self.dead_letter_store = store
        return self

    def with_serializer(self, serializer: TaskiqSerializer) -> Self:
        """Serialise messages with it.

        :returns: this broker.
        """
        self.serializer = serializer
        return self

    def with_formatter(self, formatter: TaskiqFormatter) -> Self:
        """Turn messages into what is sent, and back, with it.

        :returns: this broker.
        """
        self.formatter = formatter
        return self

    def _new_task(
        self,
        function: Callable[..., Any],
        task_name: str,
        labels: dict[str, Any],
        return_type: Any,
    ) -> AsyncTaskiqDecoratedTask[Any, Any]:
        return self.decorator_class(
            broker=self,
            original_func=function,
            labels=labels,
            task_name=task_name,
            return_type=return_type,
        )

    async def __aenter__(self) -> None:
        await self.startup()

    async def __aexit__(self, *args: object, **kwargs: Any) -> None:
        await self.shutdown()


def _warn_deprecated(argument: str, method: str) -> None:
    warnings.warn(
        f"Setting {argument} in the constructor is deprecated; "
        f"use the method {method} of the broker.",
        TaskiqDeprecationWarning,
        stacklevel=3,
    )
