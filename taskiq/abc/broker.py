"""The base of all brokers: tasks, middlewares, events and where messages go."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Hashable,
)
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Final,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    overload,
)

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.acks import AckableMessage
from taskiq.batch import item_return_type, read_batch_config, split_batch_arguments
from taskiq.callables import function_module, function_name, resolved_hints
from taskiq.decor import AsyncTaskiqDecoratedTask, BatchDecorator, SharedBatchDecorator
from taskiq.events import TaskiqEvents
from taskiq.exceptions import TaskBrokerMismatchError
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.hooks import overriding
from taskiq.message import BrokerMessage
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.serializers.json_serializer import JSONSerializer
from taskiq.state import TaskiqState
from taskiq.utils import maybe_awaitable
from taskiq.warnings import TaskiqDeprecationWarning

if TYPE_CHECKING:
    from typing_extensions import Self

    from taskiq.abc.formatter import TaskiqFormatter
    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.receiver.batcher import BatcherStatistics

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
_FuncParams = ParamSpec("_FuncParams")
_ReturnType = TypeVar("_ReturnType")
_Item = TypeVar("_Item")

EventHandler: TypeAlias = Callable[[TaskiqState], Awaitable[None] | None]

logger = logging.getLogger("taskiq")


#: What the digit with the variant of a UUID becomes, by the random digit there.
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def default_id_generator() -> str:
    """Make an id for a message: the 32 hexadecimal digits of a random UUID.

    What `uuid4().hex` gives (version 4, RFC 9562) in a third of its time.
    """
    digits = os.urandom(16).hex()
    return f"{digits[:12]}4{digits[13:16]}{_VARIANTS[digits[16]]}{digits[17:]}"


class AsyncBroker(ABC):
    """Carries messages from those who send tasks to those who run them.

    A subclass writes `kick` and `listen`; everything else is here.

    :param result_backend: deprecated, use `with_result_backend`.
    :param task_id_generator: deprecated, use `with_id_generator`.
    """

    #: Tasks that every broker finds: those of the shared broker.
    global_task_registry: ClassVar[dict[str, AsyncTaskiqDecoratedTask[Any, Any]]] = {}

    #: Counts what waits and runs in batches now, for middlewares that measure it. A
    #: receiver sets it for its broker; of several the latest one counts.
    batch_statistics: Callable[[], BatcherStatistics] | None = None

    def __init__(
        self,
        result_backend: AsyncResultBackend[_T] | None = None,
        task_id_generator: Callable[[], str] | None = None,
    ) -> None:
        if result_backend is not None:
            _warn_deprecated("result_backend", "with_result_backend")
        if task_id_generator is not None:
            _warn_deprecated("task_id_generator", "with_id_generator")
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
        self.local_task_registry: dict[str, AsyncTaskiqDecoratedTask[Any, Any]] = {}
        self.event_handlers: defaultdict[TaskiqEvents, list[EventHandler]] = (
            defaultdict(list)
        )
        self.state = TaskiqState()
        # What dependencies are resolved from, by type.
        self.custom_dependency_context: dict[Any, Any] = {}
        # What replaces a dependency, mostly in tests.
        self.dependency_overrides: dict[Any, Any] = {}
        self.is_worker_process = False
        self.is_scheduler_process = False

    @abstractmethod
    async def kick(self, message: BrokerMessage) -> None:
        """Send one message."""

    @abstractmethod
    def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        """Receive messages until the generator is closed.

        Yield an `AckableMessage` where a message can be acknowledged.
        """

    async def startup(self) -> None:
        """Run the startup handlers, then start middlewares and the result backend."""
        await self._run_handlers(
            TaskiqEvents.WORKER_STARTUP
            if self.is_worker_process
            else TaskiqEvents.CLIENT_STARTUP,
        )
        await self._start_parts()

    async def shutdown(self) -> None:
        """Run the shutdown handlers, then stop middlewares and the result backend."""
        await self._run_handlers(
            TaskiqEvents.WORKER_SHUTDOWN
            if self.is_worker_process
            else TaskiqEvents.CLIENT_SHUTDOWN,
        )
        await self._stop_parts()

    async def _run_handlers(self, event: TaskiqEvents) -> None:
        for handler in self.event_handlers[event]:
            await maybe_awaitable(handler(self.state))

    async def _start_parts(self) -> None:
        for middleware in overriding("startup", self.middlewares):
            await maybe_awaitable(middleware.startup())
        await self.result_backend.startup()

    async def _stop_parts(self) -> None:
        for middleware in overriding("shutdown", self.middlewares):
            await maybe_awaitable(middleware.shutdown())
        await self.result_backend.shutdown()

    def find_task(self, task_name: str) -> AsyncTaskiqDecoratedTask[Any, Any] | None:
        """Find a task by name, this broker's own before the shared ones.

        :returns: the task, `None` when there is none of that name.
        """
        return self.local_task_registry.get(
            task_name,
        ) or self.global_task_registry.get(task_name)

    def get_all_tasks(self) -> dict[str, AsyncTaskiqDecoratedTask[Any, Any]]:
        """Give all tasks this broker finds, by name, in a dict of its own."""
        return {**self.global_task_registry, **self.local_task_registry}

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

    @overload
    def task(
        self,
        task_name: Callable[_FuncParams, _ReturnType],
        *,
        batch: Literal[False] | None = False,
        **labels: Any,
    ) -> AsyncTaskiqDecoratedTask[_FuncParams, _ReturnType]: ...

    @overload
    def task(
        self,
        task_name: str | None = None,
        *,
        batch: Literal[True],
        batch_results: Literal["shared"],
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        batch_idle_timeout: float | None = None,
        batch_key: Callable[..., Hashable] | None = None,
        batch_weight: Callable[[Any], float] | None = None,
        batch_max_weight: float | None = None,
        batch_coalesce: Callable[[Any], Hashable] | None = None,
        batch_isolate_errors: bool | tuple[type[Exception], ...] | None = None,
        batch_concurrency: int | None = None,
        batch_max_buffered: int | None = None,
        **labels: Any,
    ) -> SharedBatchDecorator: ...

    @overload
    def task(
        self,
        task_name: str | None = None,
        *,
        batch: Literal[True],
        batch_results: Literal["each"] | None = None,
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        batch_idle_timeout: float | None = None,
        batch_key: Callable[..., Hashable] | None = None,
        batch_weight: Callable[[Any], float] | None = None,
        batch_max_weight: float | None = None,
        batch_coalesce: Callable[[Any], Hashable] | None = None,
        batch_isolate_errors: bool | tuple[type[Exception], ...] | None = None,
        batch_concurrency: int | None = None,
        batch_max_buffered: int | None = None,
        **labels: Any,
    ) -> BatchDecorator: ...

    @overload
    def task(
        self,
        task_name: str | None = None,
        *,
        batch: Literal[False] | None = False,
        **labels: Any,
    ) -> Callable[
        [Callable[_FuncParams, _ReturnType]],
        AsyncTaskiqDecoratedTask[_FuncParams, _ReturnType],
    ]: ...

    def task(self, task_name: Any = None, **labels: Any) -> Any:
        """Make a function a task of this broker.

        Used as ``@broker.task``, ``@broker.task()`` or ``@broker.task("name", ...)``.

        With ``batch=True`` the function takes a list of items: many messages with one
        item each become one call of it, and each message keeps its own result.

        :param task_name: name of the task, "module:function" by default.
        :param labels: sent with every message. With ``batch=True`` the ``batch_*``
            names are read as the fields of :class:`taskiq.batch.BatchConfig` instead.
        :raises TaskiqBatchConfigError: when a batch argument or function does not fit.
        :raises NameError: when a type hint of the function cannot be resolved.
        """
        if callable(task_name):
            return self._decorate(task_name, None, labels)

        def decorate(function: Callable[..., Any]) -> Any:
            return self._decorate(function, task_name, labels)

        return decorate

    def _decorate(
        self,
        function: Callable[..., Any],
        task_name: str | None,
        keywords: dict[str, Any],
    ) -> AsyncTaskiqDecoratedTask[Any, Any]:
        batch = None
        if isinstance(function, AsyncTaskiqDecoratedTask):
            # A task registered again stays what it was where nothing else is said.
            task_name = function.task_name if task_name is None else task_name
            batch = function.batch if keywords.get("batch") is None else None
            keywords = {**function.labels, **keywords}
            function = function.original_func
        if not callable(function):
            raise TypeError(f"a task must be callable, got {function!r}")
        name = _default_task_name(function) if task_name is None else task_name
        hints = resolved_hints(function, with_metadata=False)
        labels, arguments = split_batch_arguments(keywords)
        if arguments is not None:
            batch = read_batch_config(function, name, hints, arguments)
        return_type = hints.get("return")
        if batch is not None:
            return_type = item_return_type(batch, return_type)
        task = self.decorator_class(
            broker=self,
            original_func=function,
            labels=labels,
            task_name=name,
            return_type=return_type,
        )
        task.batch = batch
        task.adopt_metadata()
        self._register_task(task.task_name, task)
        return task

    @overload
    def register_task(
        self,
        func: Callable[Concatenate[list[_Item], _FuncParams], _ReturnType],
        task_name: str | None = None,
        *,
        batch: Literal[True],
        batch_results: Literal["shared"],
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        batch_idle_timeout: float | None = None,
        batch_key: Callable[..., Hashable] | None = None,
        batch_weight: Callable[[Any], float] | None = None,
        batch_max_weight: float | None = None,
        batch_coalesce: Callable[[Any], Hashable] | None = None,
        batch_isolate_errors: bool | tuple[type[Exception], ...] | None = None,
        batch_concurrency: int | None = None,
        batch_max_buffered: int | None = None,
        **labels: Any,
    ) -> AsyncTaskiqDecoratedTask[Concatenate[_Item, _FuncParams], _ReturnType]: ...

    @overload
    def register_task(
        self,
        func: Callable[
            Concatenate[list[_Item], _FuncParams],
            Coroutine[Any, Any, list[_ReturnType | Exception]],
        ],
        task_name: str | None = None,
        *,
        batch: Literal[True],
        batch_results: Literal["each"] | None = None,
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        batch_idle_timeout: float | None = None,
        batch_key: Callable[..., Hashable] | None = None,
        batch_weight: Callable[[Any], float] | None = None,
        batch_max_weight: float | None = None,
        batch_coalesce: Callable[[Any], Hashable] | None = None,
        batch_isolate_errors: bool | tuple[type[Exception], ...] | None = None,
        batch_concurrency: int | None = None,
        batch_max_buffered: int | None = None,
        **labels: Any,
    ) -> AsyncTaskiqDecoratedTask[
        Concatenate[_Item, _FuncParams],
        Coroutine[Any, Any, _ReturnType],
    ]: ...

    @overload
    def register_task(
        self,
        func: Callable[
            Concatenate[list[_Item], _FuncParams],
            Coroutine[Any, Any, list[_ReturnType]],
        ],
        task_name: str | None = None,
        *,
        batch: Literal[True],
        batch_results: Literal["each"] | None = None,
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        batch_idle_timeout: float | None = None,
        batch_key: Callable[..., Hashable] | None = None,
        batch_weight: Callable[[Any], float] | None = None,
        batch_max_weight: float | None = None,
        batch_coalesce: Callable[[Any], Hashable] | None = None,
        batch_isolate_errors: bool | tuple[type[Exception], ...] | None = None,
        batch_concurrency: int | None = None,
        batch_max_buffered: int | None = None,
        **labels: Any,
    ) -> AsyncTaskiqDecoratedTask[
        Concatenate[_Item, _FuncParams],
        Coroutine[Any, Any, _ReturnType],
    ]: ...

    @overload
    def register_task(
        self,
        func: Callable[
            Concatenate[list[_Item], _FuncParams],
            list[_ReturnType | Exception],
        ],
        task_name: str | None = None,
        *,
        batch: Literal[True],
        batch_results: Literal["each"] | None = None,
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        batch_idle_timeout: float | None = None,
        batch_key: Callable[..., Hashable] | None = None,
        batch_weight: Callable[[Any], float] | None = None,
        batch_max_weight: float | None = None,
        batch_coalesce: Callable[[Any], Hashable] | None = None,
        batch_isolate_errors: bool | tuple[type[Exception], ...] | None = None,
        batch_concurrency: int | None = None,
        batch_max_buffered: int | None = None,
        **labels: Any,
    ) -> AsyncTaskiqDecoratedTask[Concatenate[_Item, _FuncParams], _ReturnType]: ...

    @overload
    def register_task(
        self,
        func: Callable[Concatenate[list[_Item], _FuncParams], list[_ReturnType]],
        task_name: str | None = None,
        *,
        batch: Literal[True],
        batch_results: Literal["each"] | None = None,
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        batch_idle_timeout: float | None = None,
        batch_key: Callable[..., Hashable] | None = None,
        batch_weight: Callable[[Any], float] | None = None,
        batch_max_weight: float | None = None,
        batch_coalesce: Callable[[Any], Hashable] | None = None,
        batch_isolate_errors: bool | tuple[type[Exception], ...] | None = None,
        batch_concurrency: int | None = None,
        batch_max_buffered: int | None = None,
        **labels: Any,
    ) -> AsyncTaskiqDecoratedTask[Concatenate[_Item, _FuncParams], _ReturnType]: ...

    @overload
    def register_task(
        self,
        func: Callable[Concatenate[list[_Item], _FuncParams], _ReturnType],
        task_name: str | None = None,
        *,
        batch: Literal[True],
        batch_results: Literal["each"] | None = None,
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        batch_idle_timeout: float | None = None,
        batch_key: Callable[..., Hashable] | None = None,
        batch_weight: Callable[[Any], float] | None = None,
        batch_max_weight: float | None = None,
        batch_coalesce: Callable[[Any], Hashable] | None = None,
        batch_isolate_errors: bool | tuple[type[Exception], ...] | None = None,
        batch_concurrency: int | None = None,
        batch_max_buffered: int | None = None,
        **labels: Any,
    ) -> AsyncTaskiqDecoratedTask[Concatenate[_Item, _FuncParams], _ReturnType]: ...

    @overload
    def register_task(
        self,
        func: Callable[_FuncParams, _ReturnType],
        task_name: str | None = None,
        *,
        batch: Literal[False] | None = False,
        **labels: Any,
    ) -> AsyncTaskiqDecoratedTask[_FuncParams, _ReturnType]: ...

    def register_task(
        self,
        func: Callable[..., Any],
        task_name: str | None = None,
        **labels: Any,
    ) -> Any:
        """Make a function a task without a decorator; the same as `task`.

        :returns: the task.
        """
        task: Any = self.task
        return task(task_name=task_name, **labels)(func)

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

    def _register_task(
        self,
        task_name: str,
        task: AsyncTaskiqDecoratedTask[Any, Any],
    ) -> None:
        """Make a task known to this broker; a later one of the same name wins.

        :raises TaskBrokerMismatchError: when the task belongs to another broker.
        """
        if task.broker is not self:
            raise TaskBrokerMismatchError(broker=task.broker)
        self.local_task_registry[task_name] = task

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


def _default_task_name(function: Callable[..., Any]) -> str:
    """Name a task after its function: "module:function"."""
    name = function_name(function)
    if name == "<lambda>":
        name = f"lambda_{default_id_generator()}"
    module = function_module(function)
    if module == "__main__":
        # A worker imports the file under its own name, not as the main module.
        module = _module_of_script(sys.argv[0])
    return f"{module}:{name}"


def _module_of_script(path: str) -> str:
    return os.path.normpath(path).removesuffix(".py").replace(os.path.sep, ".")
