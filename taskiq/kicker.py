"""Sending one task: labels, message, middlewares, broker."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import logging
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from pydantic import BaseModel

from taskiq.chunks import CHUNK_LABEL, chunk_kwargs, items_of
from taskiq.exceptions import SendManyError
from taskiq.hooks import hooks_of
from taskiq.labels import prepare_label
from taskiq.message import TaskiqMessage
from taskiq.scheduler.created_schedule import CreatedSchedule
from taskiq.scheduler.scheduled_task import CronSpec, ScheduledTask
from taskiq.sending import (
    ChunkSending,
    ManySender,
    Sending,
    TaskCall,
    handle_of,
    run_on_send_error,
    run_post_send,
    run_pre_send,
)
from taskiq.unique_sending import UniqueSending
from taskiq.unsendable import dump_message, refused_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime, timedelta

    from taskiq.abc.broker import AsyncBroker
    from taskiq.abc.schedule_source import ScheduleSource
    from taskiq.chunks import AsyncTaskiqChunk
    from taskiq.mistakes import SendCheck
    from taskiq.unique import Unique

_T = TypeVar("_T")  # noqa: PYI018 - a name of taskiq 0.13.0
_FuncParams = ParamSpec("_FuncParams")
_ReturnType = TypeVar("_ReturnType")

logger = logging.getLogger("taskiq")

#: Arguments of these types are sent as they are.
_PLAIN_TYPES: Final = frozenset({bool, dict, float, int, list, str, type(None)})

#: `TaskiqMessage(...)` in half the time: it goes straight to the validator.
_message_of: Final[Callable[[dict[str, Any]], TaskiqMessage]] = (
    TaskiqMessage.__pydantic_validator__.validate_python
)

#: Read from the registered task on the worker, never from a message.
_LOCAL_LABELS: Final = frozenset({"types_of_exceptions"})


class AsyncKicker(ManySender[_FuncParams, _ReturnType]):
    """Sends one task, with labels, an id or a broker of its own.

    :param task_name: the task to send.
    :param broker: where to; its middlewares, formatter and result backend are used.
    :param labels: what the message carries. The dict is kept, not copied.
    :param return_type: what the result is cast to, `None` to leave it alone.
    """

    def __init__(
        self,
        task_name: str,
        broker: AsyncBroker,
        labels: dict[str, Any],
        return_type: type[_ReturnType] | None = None,
    ) -> None:
        self.task_name = task_name
        self.broker = broker
        self.labels = labels
        self.custom_task_id: str | None = None
        self.custom_schedule_id: str | None = None
        self.return_type = return_type
        # Looks at the arguments of a message before it is sent.
        self.send_check: SendCheck | None = None
        # What makes messages the same work, where the task is unique.
        self.unique: Unique | None = None

    def with_labels(
        self,
        **labels: str | float,
    ) -> AsyncKicker[_FuncParams, _ReturnType]:
        """Add labels to the message, or replace the task's own.

        :returns: this kicker.
        """
        self.labels.update(labels)
        return self

    def with_task_id(
        self,
        task_id: str | None,
    ) -> AsyncKicker[_FuncParams, _ReturnType]:
        """Send under this id; `None` goes back to generated ids.

        :returns: this kicker.
        """
        self.custom_task_id = task_id
        return self

    def with_schedule_id(
        self,
        schedule_id: str,
    ) -> AsyncKicker[_FuncParams, _ReturnType]:
        """Store schedules under this id.

        :returns: this kicker.
        """
        self.custom_schedule_id = schedule_id
        return self

    def with_broker(
        self,
        broker: AsyncBroker,
    ) -> AsyncKicker[_FuncParams, _ReturnType]:
        """Send through another broker, its middlewares and its result backend.

        :returns: this kicker.
        """
        self.broker = broker
        return self

    if not TYPE_CHECKING:  # whose types of these are those of TaskSender

        async def kiq(self, *args: Any, **kwargs: Any) -> Any:
            """Send the task.

            :returns: a handle to wait for the result with.
            :raises TypeError: when the arguments do not fit a batch task's function.
            :raises UnsendableArgumentError: when an argument cannot be serialised.
            :raises UniqueError: when the key of a unique task cannot be claimed.
            :raises SendTaskError: when the message could not be sent, or a middleware
                gave none to send.
            :raises ValueError: when an argument is a dataclass type.
            """
            if self.unique is not None:
                return await self._kiq_unique(args, kwargs)
            broker = self.broker
            hooks = hooks_of(broker)
            message = self._noted_message(args, kwargs)
            if hooks.pre_send:
                message = await run_pre_send(hooks, message)
            try:
                # Made before the message leaves: the result may be there before we are
                # back, and a result backend keeps what a living handle can ask for.
                handle = handle_of(broker, message, self.return_type)
                dumped = dump_message(broker.formatter, message)
                try:
                    await broker.kick(dumped)
                except Exception as exc:
                    raise refused_by(broker, dumped, exc) from exc
            except (Exception, asyncio.CancelledError) as exc:
                await run_on_send_error(hooks.on_send_error, message, exc)
                raise
            if hooks.post_send:
                await run_post_send(hooks.post_send, message)
            return handle

        async def schedule_by_cron(
            self,
            source: ScheduleSource,
            cron: str | CronSpec,
            *args: _FuncParams.args,
            **kwargs: _FuncParams.kwargs,
        ) -> CreatedSchedule[_ReturnType]:
            """Store a schedule that sends the task whenever `cron` matches.

            :param cron: five fields of text (UTC), or a `CronSpec` with its own offset.
            :returns: the stored schedule.
            """
            if isinstance(cron, CronSpec):
                moment = {"cron": cron.to_cron(), "cron_offset": cron.offset}
            else:
                moment = {"cron": cron}
            return await self._schedule(source, moment, args, kwargs)

        async def schedule_by_interval(
            self,
            source: ScheduleSource,
            interval: int | timedelta,
            *args: _FuncParams.args,
            **kwargs: _FuncParams.kwargs,
        ) -> CreatedSchedule[_ReturnType]:
            """Store a schedule that sends the task every `interval`.

            :param interval: seconds, if an int.
            :returns: the stored schedule.
            :raises ValueError: when the interval is under or no multiple of a second.
            """
            return await self._schedule(source, {"interval": interval}, args, kwargs)

        async def schedule_by_time(
            self,
            source: ScheduleSource,
            time: datetime,
            *args: _FuncParams.args,
            **kwargs: _FuncParams.kwargs,
        ) -> CreatedSchedule[_ReturnType]:
            """Store a schedule that sends the task once, at `time`; naive means UTC.

            :returns: the stored schedule.
            """
            return await self._schedule(source, {"time": time}, args, kwargs)

    async def _send_many(
        self,
        items: Iterable[Any],
        on_progress: Callable[[int], object] | None,
    ) -> list[Any]:
        if self.custom_task_id is not None:
            raise ValueError(
                f"Cannot send many messages of {self.task_name} under the one id "
                f"{self.custom_task_id!r}: use kiq_many without with_task_id.",
            )
        return await self._sending().send(items, on_progress)

    async def _send_items(
        self,
        items: Iterable[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> AsyncTaskiqChunk[Any]:
        if self.unique is not None:
            raise TypeError(
                f"Items of the unique task {self.task_name} are each claimed by their "
                "own message: send them with kiq_many(items)",
            )
        task = self.broker.find_task(self.task_name)
        if task is not None and task.batch is None:
            raise TypeError(
                f"{self.task_name} is no batch task, whose function takes a list: "
                "declare it with batch=True, or send a message for each item with "
                "kiq_many(items)",
            )
        listed = items_of(self.task_name, items)
        if self.send_check is not None:
            self.send_check.check_items(listed, args, kwargs)
        sending = ChunkSending(
            self.broker, self.task_name, self.return_type, self._chunk_message
        )
        whole: TaskCall[..., Any] = TaskCall(listed, *args, **kwargs)
        try:
            [handle] = await sending.send([whole], None)
        except SendManyError as exc:
            error = exc.errors[0]
            raise error from error.__cause__
        return cast("AsyncTaskiqChunk[Any]", handle)

    def _chunk_message(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> TaskiqMessage:
        items, *others = args
        prepare = self._prepare_arg
        draft = copy.copy(self)
        draft.send_check = None
        draft.labels = {**self.labels, CHUNK_LABEL: len(items)}
        return draft._noted_message(  # noqa: SLF001 - a copy of self
            (),
            chunk_kwargs(
                [prepare(item) for item in items],
                tuple(prepare(each) for each in others),
                kwargs,
            ),
        )

    async def _kiq_unique(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Send one message, unless the same is queued or running.

        :returns: the handle of that one then.
        """
        try:
            [handle] = await self._sending().send([TaskCall(*args, **kwargs)], None)
        except SendManyError as exc:
            error = exc.errors[0]
            raise error from error.__cause__
        return handle

    def _sending(self) -> Sending:
        sent = (self.broker, self.task_name, self.return_type, self._noted_message)
        if self.unique is None:
            return Sending(*sent)
        is_named = self.custom_task_id is not None
        return UniqueSending(*sent, self.unique, is_named=is_named)

    def _noted_message(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> TaskiqMessage:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "Kicking %s with args=%s and kwargs=%s.",
                self.task_name,
                args,
                kwargs,
            )
        if self.send_check is not None:
            self.send_check(args, kwargs)
        return self._prepare_message(*args, **kwargs)

    async def _schedule(
        self,
        source: ScheduleSource,
        moment: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> CreatedSchedule[_ReturnType]:
        if self.send_check is not None:
            self.send_check(args, kwargs)
        schedule_id = self.custom_schedule_id
        if schedule_id is None:
            schedule_id = self.broker.id_generator()
        # A schedule has no message yet; no id is drawn for one.
        draft = copy.copy(self)
        if draft.custom_task_id is None:
            draft.custom_task_id = schedule_id
        message = draft._prepare_message(*args, **kwargs)  # noqa: SLF001 - a copy of self
        scheduled = ScheduledTask(
            task_name=message.task_name,
            labels=message.labels,
            args=message.args,
            kwargs=message.kwargs,
            task_id=self.custom_task_id,
            schedule_id=schedule_id,
            **moment,
        )
        await source.add_schedule(scheduled)
        return CreatedSchedule(self, source, scheduled)

    @classmethod
    def _prepare_arg(cls, arg: Any) -> Any:
        """Turn a model or a dataclass into plain data; anything else stays.

        So does one that cannot be: the serializer may know how to write it.
        """
        if type(arg) in _PLAIN_TYPES:
            return arg
        try:
            return _plain_data(arg)
        except Exception:
            # Not by `isinstance`, which asks the argument: a proxy of nothing raises.
            if issubclass(type(arg), type):
                raise
            # Its hooks raise anything; dumping it tells whether that matters.
            return arg

    def _prepare_message(self, *args: Any, **kwargs: Any) -> TaskiqMessage:
        """Build the message of one sending."""
        labels: dict[str, str] = {}
        labels_types: dict[str, int] = {}
        for name, value in self.labels.items():
            if name not in _LOCAL_LABELS:
                labels[name], labels_types[name] = prepare_label(value)
        task_id = self.custom_task_id
        if task_id is None:
            task_id = self.broker.id_generator()
        prepare = self._prepare_arg
        return _message_of(
            {
                "task_id": task_id,
                "task_name": self.task_name,
                "labels": labels,
                "labels_types": labels_types,
                "args": [prepare(arg) for arg in args],
                "kwargs": kwargs
                and {name: prepare(value) for name, value in kwargs.items()},
            },
        )


def _plain_data(arg: Any) -> Any:
    if isinstance(arg, BaseModel):
        arg = arg.model_dump(mode="json")
    if dataclasses.is_dataclass(arg):
        if isinstance(arg, type):
            raise ValueError(f"Cannot serialize types. The {arg} is not serializable.")
        return dataclasses.asdict(arg)
    return arg
