"""How functions become tasks of a broker, and how a broker finds them again."""

from __future__ import annotations

import os
import sys
import uuid
from abc import ABC, abstractmethod
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Literal,
    ParamSpec,
    TypeVar,
    overload,
)

from taskiq.batch import item_return_type, read_batch_config, split_batch_arguments
from taskiq.callables import function_module, function_name, resolved_hints
from taskiq.decor import (
    AsyncTaskiqDecoratedTask,
    BatchDecorator,
    SharedBatchDecorator,
    TaskDecorator,
)
from taskiq.exceptions import TaskBrokerMismatchError
from taskiq.mistakes import SendCheck
from taskiq.options import check_labels
from taskiq.policies import split_policy
from taskiq.rates import split_rate
from taskiq.unique import split_unique

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

    from taskiq.decor import BatchTaskOf
    from taskiq.policies import OnFailure

_FuncParams = ParamSpec("_FuncParams")
_ReturnType = TypeVar("_ReturnType")
_Item = TypeVar("_Item")


class TaskRegistry(ABC):
    """The tasks of a broker: the base of :class:`~taskiq.abc.broker.AsyncBroker`."""

    #: Tasks that every broker finds: those of the shared broker.
    global_task_registry: ClassVar[dict[str, AsyncTaskiqDecoratedTask[Any, Any]]] = {}

    def __init__(self) -> None:
        self.local_task_registry: dict[str, AsyncTaskiqDecoratedTask[Any, Any]] = {}

    @abstractmethod
    def _new_task(
        self,
        function: Callable[..., Any],
        task_name: str,
        labels: dict[str, Any],
        return_type: Any,
    ) -> AsyncTaskiqDecoratedTask[Any, Any]:
        """Make a task that this broker sends; it is registered by the caller."""

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

    @overload
    def task(
        self,
        task_name: Callable[_FuncParams, _ReturnType],
        *,
        batch: Literal[False] | None = False,
        rate: str | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
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
        batch_rate: str | None = None,
        batch_priority: float | None = None,
        batch_max_buffered: int | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
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
        batch_rate: str | None = None,
        batch_priority: float | None = None,
        batch_max_buffered: int | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
        **labels: Any,
    ) -> BatchDecorator: ...

    @overload
    def task(
        self,
        task_name: str | None = None,
        *,
        batch: Literal[False] | None = False,
        rate: str | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
        **labels: Any,
    ) -> TaskDecorator: ...

    def task(self, task_name: Any = None, **labels: Any) -> Any:
        """Make a function a task of this broker.

        Used as ``@broker.task``, ``@broker.task()`` or ``@broker.task("name", ...)``.

        With ``batch=True`` the function takes a list of items: many messages with one
        item each become one call of it, and each message keeps its own result.

        :param task_name: name of the task, "module:function" by default.
        :param labels: sent with every message. With ``batch=True`` the ``batch_*``
            names are read as the fields of :class:`taskiq.batch.BatchConfig` instead.
            ``max_deliveries`` and ``on_failure`` say what becomes of messages that
            fail, see :class:`taskiq.policies.FailurePolicy`. ``unique`` and
            ``unique_ttl`` say that the same work is not queued twice, see
            :class:`taskiq.unique.Unique`. ``rate`` says how often a plain task may
            start in one worker process, such as ``"2/s"``.
        :raises TaskiqBatchConfigError: when a batch argument or function does not fit.
        :raises TaskiqFailurePolicyError: when it cannot be done with failed messages
            what is asked for.
        :raises TaskiqUniqueConfigError: when messages cannot be unique in this way.
        :raises TaskiqRateError: when ``rate`` is none.
        :raises TaskiqLabelError: when a label is one edit away from an option, or is a
            ``batch_*`` name without ``batch=True``.
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
        batch, policy, unique, rate = None, None, None, None
        given = keywords
        if isinstance(function, AsyncTaskiqDecoratedTask):
            # A task registered again stays what it was where nothing else is said.
            task_name = function.task_name if task_name is None else task_name
            batch = function.batch if keywords.get("batch") is None else None
            policy, unique = function.failure_policy, function.unique
            rate = function.rate
            keywords = {**function.labels, **keywords}
            function = function.original_func
        if not callable(function):
            raise TypeError(f"a task must be callable, got {function!r}")
        name = _default_task_name(function) if task_name is None else task_name
        check_labels(name, given)
        hints = resolved_hints(function, with_metadata=False)
        keywords, own_policy = split_policy(f"Cannot register task {name}", keywords)
        keywords, unique = split_unique(name, keywords, function, unique)
        keywords, rate = split_rate(name, keywords, rate)
        labels, arguments = split_batch_arguments(keywords)
        if arguments is not None:
            batch = read_batch_config(function, name, hints, arguments)
        return_type = hints.get("return")
        if batch is not None:
            return_type = item_return_type(batch, hints)
        task = self._new_task(function, name, labels, return_type)
        task.batch = batch
        task.failure_policy = policy if own_policy is None else own_policy
        task.unique = unique
        task.rate = rate
        if batch is not None:
            task.send_check = SendCheck(function, hints)
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
        batch_rate: str | None = None,
        batch_priority: float | None = None,
        batch_max_buffered: int | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
        **labels: Any,
    ) -> BatchTaskOf[_Item, _FuncParams, _ReturnType, _ReturnType]: ...

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
        batch_rate: str | None = None,
        batch_priority: float | None = None,
        batch_max_buffered: int | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
        **labels: Any,
    ) -> BatchTaskOf[
        _Item,
        _FuncParams,
        Coroutine[Any, Any, _ReturnType],
        Coroutine[Any, Any, list[_ReturnType | Exception]],
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
        batch_rate: str | None = None,
        batch_priority: float | None = None,
        batch_max_buffered: int | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
        **labels: Any,
    ) -> BatchTaskOf[
        _Item,
        _FuncParams,
        Coroutine[Any, Any, _ReturnType],
        Coroutine[Any, Any, list[_ReturnType]],
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
        batch_rate: str | None = None,
        batch_priority: float | None = None,
        batch_max_buffered: int | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
        **labels: Any,
    ) -> BatchTaskOf[
        _Item, _FuncParams, _ReturnType, list[_ReturnType | Exception]
    ]: ...

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
        batch_rate: str | None = None,
        batch_priority: float | None = None,
        batch_max_buffered: int | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
        **labels: Any,
    ) -> BatchTaskOf[_Item, _FuncParams, _ReturnType, list[_ReturnType]]: ...

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
        batch_rate: str | None = None,
        batch_priority: float | None = None,
        batch_max_buffered: int | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
        **labels: Any,
    ) -> BatchTaskOf[_Item, _FuncParams, _ReturnType, _ReturnType]: ...

    @overload
    def register_task(
        self,
        func: Callable[_FuncParams, _ReturnType],
        task_name: str | None = None,
        *,
        batch: Literal[False] | None = False,
        rate: str | None = None,
        max_deliveries: int | None = None,
        on_failure: OnFailure | None = None,
        unique: bool | Callable[..., object] | None = None,
        unique_ttl: float | None = None,
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


def _default_task_name(function: Callable[..., Any]) -> str:
    """Name a task after its function: "module:function"."""
    name = function_name(function)
    if name == "<lambda>":
        name = f"lambda_{uuid.uuid4().hex}"
    module = function_module(function)
    if module == "__main__":
        # A worker imports the file under its own name, not as the main module.
        module = _module_of_script(sys.argv[0])
    return f"{module}:{name}"


def _module_of_script(path: str) -> str:
    return os.path.normpath(path).removesuffix(".py").replace(os.path.sep, ".")
