"""The object a decorated function becomes."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

from taskiq.callables import ORIGINAL_SUFFIX
from taskiq.kicker import AsyncKicker
from taskiq.mistakes import call_here
from taskiq.outcome import Failed, outcomes_of_return
from taskiq.sending import ManySender

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from datetime import datetime, timedelta

    from taskiq.abc.broker import AsyncBroker
    from taskiq.abc.schedule_source import ScheduleSource
    from taskiq.batch import BatchConfig
    from taskiq.chunks import AsyncTaskiqChunk
    from taskiq.mistakes import SendCheck
    from taskiq.policies import FailurePolicy
    from taskiq.scheduler.created_schedule import CreatedSchedule
    from taskiq.scheduler.scheduled_task import CronSpec
    from taskiq.unique import Unique

_T = TypeVar("_T")  # noqa: PYI018 - a name of taskiq 0.13.0
_FuncParams = ParamSpec("_FuncParams")
_ReturnType = TypeVar("_ReturnType")
_Item = TypeVar("_Item")
_P = ParamSpec("_P")
_R = TypeVar("_R")

#: From Python 3.14 on the annotations are not among them, but only what makes them,
#: and those of the class would be found instead.
_ADOPTED: Final = (*functools.WRAPPER_ASSIGNMENTS, "__annotations__")


class AsyncTaskiqDecoratedTask(ManySender[_FuncParams, _ReturnType]):
    """A function that can be called here or sent to a worker.

    :param broker: where messages of this task are sent.
    :param task_name: the name workers know it by.
    :param original_func: the function itself.
    :param labels: what every message of it carries.
    :param return_type: what results are cast to, `None` to leave them alone.
    :ivar batch: how its messages are gathered into calls, `None` for a plain task.
    :ivar failure_policy: what becomes of its messages that fail, `None` if the
        decorator does not say so.
    :ivar send_check: refuses messages that cannot be run, `None` for a plain task.
    :ivar unique: what makes messages the same work, `None` if they never are.
    :ivar rate: how often it may start in one worker process, `None` for a batch task.
    """

    batch: BatchConfig | None = None
    failure_policy: FailurePolicy | None = None
    send_check: SendCheck | None = None
    unique: Unique | None = None
    rate: str | None = None

    def __init__(
        self,
        broker: AsyncBroker,
        task_name: str,
        original_func: Callable[_FuncParams, _ReturnType],
        labels: dict[str, Any],
        return_type: type[_ReturnType] | None = None,
    ) -> None:
        self.broker = broker
        self.task_name = task_name
        self.original_func = original_func
        self.labels = labels
        self.return_type = return_type
        _make_picklable(original_func)

    def __call__(
        self,
        *args: _FuncParams.args,
        **kwargs: _FuncParams.kwargs,
    ) -> _ReturnType:
        """Run the function here and now; a batch task runs a batch of one item.

        :returns: what the function returns, an awaitable of it for an async one.
        :raises Exception: whatever the function raises, or the item's own error.
        """
        if self.batch is None:
            plain: Any = call_here(self.original_func, args, kwargs)
            return cast("_ReturnType", plain)
        returned: Any = _call_with_one_item(self.original_func, args, kwargs)
        if inspect.isawaitable(returned):
            own: Any = self._awaited_outcome(returned)
        else:
            own = self._outcome_of_one(returned)
        return cast("_ReturnType", own)

    if not TYPE_CHECKING:  # whose types of these are those of TaskSender

        async def kiq(self, *args: Any, **kwargs: Any) -> Any:
            """Send the task to its broker.

            :returns: a handle to wait for the result with.
            :raises SendTaskError: when the message could not be sent.
            """
            return await self.kicker().kiq(*args, **kwargs)

        async def schedule_by_cron(
            self,
            source: ScheduleSource,
            cron: str | CronSpec,
            *args: _FuncParams.args,
            **kwargs: _FuncParams.kwargs,
        ) -> CreatedSchedule[_ReturnType]:
            """Store a schedule that sends the task whenever `cron` matches.

            :returns: the stored schedule.
            """
            return await self.kicker().schedule_by_cron(source, cron, *args, **kwargs)

        async def schedule_by_interval(
            self,
            source: ScheduleSource,
            interval: int | timedelta,
            *args: _FuncParams.args,
            **kwargs: _FuncParams.kwargs,
        ) -> CreatedSchedule[_ReturnType]:
            """Store a schedule that sends the task every `interval`.

            :returns: the stored schedule.
            """
            return await self.kicker().schedule_by_interval(
                source,
                interval,
                *args,
                **kwargs,
            )

        async def schedule_by_time(
            self,
            source: ScheduleSource,
            time: datetime,
            *args: _FuncParams.args,
            **kwargs: _FuncParams.kwargs,
        ) -> CreatedSchedule[_ReturnType]:
            """Store a schedule that sends the task once, at `time`.

            :returns: the stored schedule.
            """
            return await self.kicker().schedule_by_time(source, time, *args, **kwargs)

    def kicker(self) -> AsyncKicker[_FuncParams, _ReturnType]:
        """Give a sender whose labels, id and broker can be changed for one message."""
        kicker: AsyncKicker[_FuncParams, _ReturnType] = AsyncKicker(
            task_name=self.task_name,
            broker=self.broker,
            labels=self.labels.copy(),
            return_type=self.return_type,
        )
        kicker.send_check = self.send_check
        kicker.unique = self.unique
        return kicker

    async def _send_many(
        self,
        items: Iterable[Any],
        on_progress: Callable[[int], object] | None,
    ) -> list[Any]:
        kicker: Any = self.kicker()
        sent: list[Any] = await kicker.kiq_many(items, on_progress=on_progress)
        return sent

    async def _send_items(
        self,
        items: Iterable[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> AsyncTaskiqChunk[Any]:
        kicker: Any = self.kicker()
        sent: AsyncTaskiqChunk[Any] = await kicker.kiq_chunk(items, *args, **kwargs)
        return sent

    def __repr__(self) -> str:
        return f"AsyncTaskiqDecoratedTask({self.task_name})"

    def adopt_metadata(self) -> None:
        """Look like the function from outside: name, docstring, signature.

        An attribute of the function never overwrites one of the task's own.
        """
        functools.update_wrapper(self, self.original_func, _ADOPTED, updated=())
        for name, value in vars_of(self.original_func).items():
            if not hasattr(self, name):
                setattr(self, name, value)

    async def _awaited_outcome(self, returned: Awaitable[Any]) -> Any:
        return self._outcome_of_one(await returned)

    def _outcome_of_one(self, returned: Any) -> Any:
        if self.batch is None:
            return returned
        outcome = outcomes_of_return(self.batch.results, returned, 1, self.task_name)[0]
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome.value


def vars_of(function: Any) -> dict[str, Any]:
    """Give the attributes somebody hung on a function."""
    return getattr(function, "__dict__", {})


def _call_with_one_item(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if args:
        return call_here(function, ([args[0]], *args[1:]), kwargs)
    name = next(iter(inspect.signature(function).parameters))
    if name in kwargs:
        kwargs = {**kwargs, name: [kwargs[name]]}
    return call_here(function, (), kwargs)


def _make_picklable(function: Any) -> None:
    """Let a process pool find the function behind the task that took its place.

    Pickle stores a function as its module and qualified name, and under its own name
    the module holds the task. So the function gets another name, and is stored there.
    """
    name = getattr(function, "__name__", "")
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or not inspect.isfunction(function):
        return
    # A name with the suffix may be another function's: `functools.wraps` copies names.
    if ORIGINAL_SUFFIX in name and getattr(module, name, None) is function:
        return
    name += ORIGINAL_SUFFIX
    scope, dot, _ = function.__qualname__.rpartition(".")
    function.__name__ = name
    function.__qualname__ = f"{scope}{dot}{name}"
    setattr(module, name, function)


if TYPE_CHECKING:
    _Sent = ParamSpec("_Sent")
    _Called = ParamSpec("_Called")
    _Returned = TypeVar("_Returned")
    _Own = ParamSpec("_Own")

    class BatchTask(
        AsyncTaskiqDecoratedTask[_Sent, _ReturnType],
        Generic[_Sent, _ReturnType, _Own, _Returned],
    ):
        """What a batch task is to type checkers: they know its function, too.

        It is sent and called with one item. There are no such objects.
        """

        original_func: Callable[_Own, _Returned]  # type: ignore[assignment]

    class TaskWithDependencies(
        AsyncTaskiqDecoratedTask[_Sent, _ReturnType],
        Generic[_Sent, _ReturnType, _Called],
    ):
        """What a task with dependencies is to mypy with the plugin `taskiq.mypy`.

        It is sent without them, and called with them. There are no such objects.
        """

        original_func: Callable[_Called, _ReturnType]  # type: ignore[assignment]

        def __call__(  # type: ignore[override]
            self,
            *args: _Called.args,
            **kwargs: _Called.kwargs,
        ) -> _ReturnType:
            """Run the function here and now."""
            ...

    class BatchTaskWithDependencies(
        TaskWithDependencies[_Sent, _ReturnType, _Called],
        Generic[_Sent, _ReturnType, _Called, _Own, _Returned],
    ):
        """A `BatchTask` that is a `TaskWithDependencies`, too."""

        original_func: Callable[_Own, _Returned]  # type: ignore[assignment]

    #: A batch task of a function that takes the list first: what it is called with
    #: besides, what a call of it for one item gives, and what the function returns.
    BatchTaskOf: TypeAlias = BatchTask[
        Concatenate[_Item, _P],
        _ReturnType,
        Concatenate[list[_Item], _P],
        _Returned,
    ]


class TaskDecorator(Protocol):
    """What ``broker.task()`` gives: it makes a function a task."""

    def __call__(
        self,
        func: Callable[_P, _R],
    ) -> AsyncTaskiqDecoratedTask[_P, _R]:
        """Make `func` a task."""
        ...


class BatchDecorator(Protocol):
    """What ``broker.task(batch=True)`` gives: it takes a function of a list of items.

    A returned list is one result per item, anything else belongs to all of them.
    """

    @overload
    def __call__(
        self,
        func: Callable[
            Concatenate[list[_Item], _P],
            Coroutine[Any, Any, list[_R | Exception]],
        ],
    ) -> BatchTaskOf[
        _Item,
        _P,
        Coroutine[Any, Any, _R],
        Coroutine[Any, Any, list[_R | Exception]],
    ]: ...

    @overload
    def __call__(
        self,
        func: Callable[Concatenate[list[_Item], _P], Coroutine[Any, Any, list[_R]]],
    ) -> BatchTaskOf[
        _Item, _P, Coroutine[Any, Any, _R], Coroutine[Any, Any, list[_R]]
    ]: ...

    @overload
    def __call__(
        self,
        func: Callable[Concatenate[list[_Item], _P], list[_R | Exception]],
    ) -> BatchTaskOf[_Item, _P, _R, list[_R | Exception]]: ...

    @overload
    def __call__(
        self,
        func: Callable[Concatenate[list[_Item], _P], list[_R]],
    ) -> BatchTaskOf[_Item, _P, _R, list[_R]]: ...

    @overload
    def __call__(
        self,
        func: Callable[Concatenate[list[_Item], _P], _R],
    ) -> BatchTaskOf[_Item, _P, _R, _R]: ...


class SharedBatchDecorator(Protocol):
    """What ``broker.task(batch=True, batch_results="shared")`` gives.

    Whatever the function returns belongs to every item, a list too.
    """

    def __call__(
        self,
        func: Callable[Concatenate[list[_Item], _P], _R],
    ) -> BatchTaskOf[_Item, _P, _R, _R]:
        """Make `func` a batch task."""
        ...
