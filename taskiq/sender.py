"""What type checkers know of sending a task: nothing here is used at run time.

A sender gives the arguments of a message. The function takes those, and dependencies,
which the worker gives. So `kiq` and its like take the parameters of the function, or
those without a `Context`, where that is one of the first. Each of them is overloaded:

- first all parameters, which fits where every dependency has a default;
- then without one or two contexts, first of all, after the item, or after two others.

`TaskSender` is the base of tasks and of kickers. Any other
dependency is a parameter for them. What comes after a context is given by name: that
a call passes it so cannot be said in types.
"""

from __future__ import annotations

from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import datetime, timedelta

    from taskiq.abc.schedule_source import ScheduleSource
    from taskiq.context import BatchContext
    from taskiq.scheduler.created_schedule import CreatedSchedule
    from taskiq.scheduler.scheduled_task import CronSpec
    from taskiq.task import AsyncTaskiqTask

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Item = TypeVar("_Item")
_Second = TypeVar("_Second")
_Item_contra = TypeVar("_Item_contra", contravariant=True)
_Second_contra = TypeVar("_Second_contra", contravariant=True)
_FuncParams = ParamSpec("_FuncParams")
_Return_co = TypeVar("_Return_co", covariant=True)


class TakesContext(Protocol[_P, _Return_co]):
    """A sender of a function that takes a context first."""

    # A parameter that is a `Context` takes a `BatchContext`, too.
    def _function(
        self,
        context: BatchContext,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _Return_co: ...


class TakesItem(Protocol[_Item_contra, _P, _Return_co]):
    """A sender of a function that takes an item first."""

    def _function(
        self,
        item: _Item_contra,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _Return_co: ...


class TakesItemContext(Protocol[_Item_contra, _P, _Return_co]):
    """A sender of a function that takes a context after its item."""

    def _function(
        self,
        item: _Item_contra,
        context: BatchContext,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _Return_co: ...


class TakesItemContexts(Protocol[_Item_contra, _P, _Return_co]):
    """A sender of a function that takes two contexts after its item."""

    def _function(
        self,
        item: _Item_contra,
        context: BatchContext,
        other: BatchContext,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _Return_co: ...


class TakesTwoAndContext(Protocol[_Item_contra, _Second_contra, _P, _Return_co]):
    """A sender of a function that takes a context after two others."""

    def _function(
        self,
        item: _Item_contra,
        second: _Second_contra,
        context: BatchContext,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _Return_co: ...


class TakesOne(Protocol[_Item_contra, _Return_co]):
    """A sender that one argument is enough for."""

    def _function(self, item: _Item_contra, /) -> _Return_co: ...


class TakesOneAndContext(Protocol[_Item_contra, _Return_co]):
    """A sender that one argument is enough for: a context comes after it."""

    def _function(self, item: _Item_contra, context: BatchContext, /) -> _Return_co: ...


class TakesOneAndContexts(Protocol[_Item_contra, _Return_co]):
    """A sender that one argument is enough for: two contexts come after it."""

    def _function(
        self,
        item: _Item_contra,
        context: BatchContext,
        other: BatchContext,
        /,
    ) -> _Return_co: ...


class TaskSender(Generic[_FuncParams, _Return_co]):
    """What tasks and kickers have in common: they send and schedule one message."""

    def _function(
        self,
        *args: _FuncParams.args,
        **kwargs: _FuncParams.kwargs,
    ) -> _Return_co:
        """Stand for the function: what a sender takes is read off here."""
        raise NotImplementedError

    @overload
    async def kiq(
        self: TaskSender[_P, Coroutine[Any, Any, _T]],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: TakesItemContexts[_Item, _P, Coroutine[Any, Any, _T]],
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: TakesItemContext[_Item, _P, Coroutine[Any, Any, _T]],
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: TakesTwoAndContext[_Item, _Second, _P, Coroutine[Any, Any, _T]],
        item: _Item,
        second: _Second,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: TakesContext[_P, Coroutine[Any, Any, _T]],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: TaskSender[_P, _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: TakesItemContexts[_Item, _P, _T],
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: TakesItemContext[_Item, _P, _T],
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: TakesTwoAndContext[_Item, _Second, _P, _T],
        item: _Item,
        second: _Second,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    @overload
    async def kiq(
        self: TakesContext[_P, _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqTask[_T]: ...

    async def kiq(  # type: ignore[misc]  # mypy: an item is no *args
        self: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Send one message of the task.

        A batch task is given one item, and the other arguments of its function.

        :returns: a handle to wait for the result with; of a batch task, for the result
            of this item.
        :raises SendTaskError: when the message could not be sent.
        :raises TypeError: when the arguments do not fit the function of a batch task.
        :raises UnsendableArgumentError: when an argument cannot be serialised.
        """

    @overload
    async def schedule_by_cron(
        self: TaskSender[_P, _T],
        source: ScheduleSource,
        cron: str | CronSpec,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_cron(
        self: TakesItemContexts[_Item, _P, _T],
        source: ScheduleSource,
        cron: str | CronSpec,
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_cron(
        self: TakesItemContext[_Item, _P, _T],
        source: ScheduleSource,
        cron: str | CronSpec,
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_cron(
        self: TakesTwoAndContext[_Item, _Second, _P, _T],
        source: ScheduleSource,
        cron: str | CronSpec,
        item: _Item,
        second: _Second,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_cron(
        self: TakesContext[_P, _T],
        source: ScheduleSource,
        cron: str | CronSpec,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    async def schedule_by_cron(  # type: ignore[misc]  # mypy: an item is no *args
        self: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Store a schedule that sends the task whenever `cron` matches.

        :param cron: five fields of text (UTC), or a `CronSpec` with its own offset.
        :returns: the stored schedule.
        """

    @overload
    async def schedule_by_interval(
        self: TaskSender[_P, _T],
        source: ScheduleSource,
        interval: int | timedelta,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_interval(
        self: TakesItemContexts[_Item, _P, _T],
        source: ScheduleSource,
        interval: int | timedelta,
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_interval(
        self: TakesItemContext[_Item, _P, _T],
        source: ScheduleSource,
        interval: int | timedelta,
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_interval(
        self: TakesTwoAndContext[_Item, _Second, _P, _T],
        source: ScheduleSource,
        interval: int | timedelta,
        item: _Item,
        second: _Second,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_interval(
        self: TakesContext[_P, _T],
        source: ScheduleSource,
        interval: int | timedelta,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    async def schedule_by_interval(  # type: ignore[misc]  # mypy: an item is no *args
        self: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Store a schedule that sends the task every `interval` (seconds, if an int).

        :returns: the stored schedule.
        :raises ValueError: when the interval is under or no multiple of a second.
        """

    @overload
    async def schedule_by_time(
        self: TaskSender[_P, _T],
        source: ScheduleSource,
        time: datetime,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_time(
        self: TakesItemContexts[_Item, _P, _T],
        source: ScheduleSource,
        time: datetime,
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_time(
        self: TakesItemContext[_Item, _P, _T],
        source: ScheduleSource,
        time: datetime,
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_time(
        self: TakesTwoAndContext[_Item, _Second, _P, _T],
        source: ScheduleSource,
        time: datetime,
        item: _Item,
        second: _Second,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    @overload
    async def schedule_by_time(
        self: TakesContext[_P, _T],
        source: ScheduleSource,
        time: datetime,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> CreatedSchedule[_T]: ...

    async def schedule_by_time(  # type: ignore[misc]  # mypy: an item is no *args
        self: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Store a schedule that sends the task once, at `time`; naive means UTC.

        :returns: the stored schedule.
        """
