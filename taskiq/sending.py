"""Sending many messages of one task: what goes in, and what comes out of it."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from itertools import islice
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    ParamSpec,
    TypeVar,
    overload,
)

from taskiq.bulk import CHUNK_SIZE, cancel_all
from taskiq.chunks import AsyncTaskiqChunk
from taskiq.exceptions import (
    SendManyError,
    SendTaskError,
    UnsendableArgumentError,
    UnsendableBytesError,
)
from taskiq.hooks import hooks_of
from taskiq.task import AsyncTaskiqTask
from taskiq.unsendable import check_id, dump_message, refused_by
from taskiq.utils import maybe_awaitable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from taskiq.abc.broker import AsyncBroker
    from taskiq.abc.middleware import TaskiqMiddleware
    from taskiq.hooks import HookLists
    from taskiq.message import BrokerMessage, TaskiqMessage
    from taskiq.sender import (
        TakesContext,
        TakesItem,
        TakesItemContext,
        TakesItemContexts,
        TakesOne,
        TakesOneAndContext,
        TakesOneAndContexts,
        TakesTwoAndContext,
        TaskSender,
    )
else:
    TaskSender = Generic

logger = logging.getLogger("taskiq")

_T = TypeVar("_T")
_Item = TypeVar("_Item")
_Second = TypeVar("_Second")
_P = ParamSpec("_P")
_FuncParams = ParamSpec("_FuncParams")
_ReturnType = TypeVar("_ReturnType")
_ReturnType_co = TypeVar("_ReturnType_co", covariant=True)


class TaskCall(Generic[_FuncParams, _ReturnType_co]):
    """The arguments of one message, for `kiq_many`; made by `task.call(...)`."""

    __slots__ = ("args", "kwargs")

    def __init__(self, *args: _FuncParams.args, **kwargs: _FuncParams.kwargs) -> None:
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs

    def __repr__(self) -> str:
        given = [repr(arg) for arg in self.args]
        given += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"call({', '.join(given)})"


class ManySender(TaskSender[_FuncParams, _ReturnType]):
    """What tasks and kickers have in common: they send many messages in one go."""

    @overload
    def call(
        self: TaskSender[_P, Any],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> TaskCall[_FuncParams, _ReturnType]: ...

    @overload
    def call(
        self: TakesItemContexts[_Item, _P, Any],
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> TaskCall[_FuncParams, _ReturnType]: ...

    @overload
    def call(
        self: TakesItemContext[_Item, _P, Any],
        item: _Item,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> TaskCall[_FuncParams, _ReturnType]: ...

    @overload
    def call(
        self: TakesTwoAndContext[_Item, _Second, _P, Any],
        item: _Item,
        second: _Second,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> TaskCall[_FuncParams, _ReturnType]: ...

    @overload
    def call(
        self: TakesContext[_P, Any],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> TaskCall[_FuncParams, _ReturnType]: ...

    def call(  # type: ignore[misc]  # mypy: an item is no *args
        self: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Note the arguments of one message down, for `kiq_many`; nothing is sent."""
        noted: TaskCall[..., Any] = TaskCall(*args, **kwargs)
        return noted

    @overload
    async def kiq_many(
        self: TakesOne[_Item, Coroutine[Any, Any, _T]],
        items: Iterable[_Item],
        *,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[AsyncTaskiqTask[_T]]: ...

    @overload
    async def kiq_many(
        self: TakesOneAndContext[_Item, Coroutine[Any, Any, _T]],
        items: Iterable[_Item],
        *,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[AsyncTaskiqTask[_T]]: ...

    @overload
    async def kiq_many(
        self: TakesOneAndContexts[_Item, Coroutine[Any, Any, _T]],
        items: Iterable[_Item],
        *,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[AsyncTaskiqTask[_T]]: ...

    @overload
    async def kiq_many(
        self: TaskSender[_P, Coroutine[Any, Any, _T]],
        items: Iterable[TaskCall[_P, Any]],
        *,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[AsyncTaskiqTask[_T]]: ...

    @overload
    async def kiq_many(
        self: TaskSender[_P, _T],
        items: Iterable[TaskCall[_P, Any]],
        *,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[AsyncTaskiqTask[_T]]: ...

    @overload
    async def kiq_many(
        self: TakesOne[_Item, _T],
        items: Iterable[_Item],
        *,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[AsyncTaskiqTask[_T]]: ...

    @overload
    async def kiq_many(
        self: TakesOneAndContext[_Item, _T],
        items: Iterable[_Item],
        *,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[AsyncTaskiqTask[_T]]: ...

    @overload
    async def kiq_many(
        self: TakesOneAndContexts[_Item, _T],
        items: Iterable[_Item],
        *,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[AsyncTaskiqTask[_T]]: ...

    async def kiq_many(
        self: Any,
        items: Iterable[Any],
        *,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[Any]:
        """Send a message for each item; a broker that can does so in few round trips.

        Each message is the one `kiq` would send, and each fails for itself. A thousand
        of them leave at once, so `items` may be a long iterator.

        :param items: for each message its only argument, or `task.call(...)` with
            whatever `kiq` would be given.
        :param on_progress: called after each thousand and at the end with how many
            items have been dealt with so far; sync or async. What it raises ends the
            sending.
        :returns: the handles, in the order of the items.
        :raises SendManyError: when something went wrong for any item. It has the
            errors, and the handles of what was sent.
        :raises ValueError: when an id is set, which only one message can have.
        :raises Exception: what `items` raises; whole thousands before that were sent.
        """
        sent: list[Any] = await self._send_many(items, on_progress)
        return sent

    @overload
    async def kiq_chunk(
        self: TakesItem[_Item, _P, Coroutine[Any, Any, _T]],
        items: Iterable[_Item],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqChunk[_T]: ...

    @overload
    async def kiq_chunk(
        self: TakesItemContexts[_Item, _P, Coroutine[Any, Any, _T]],
        items: Iterable[_Item],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqChunk[_T]: ...

    @overload
    async def kiq_chunk(
        self: TakesItemContext[_Item, _P, Coroutine[Any, Any, _T]],
        items: Iterable[_Item],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqChunk[_T]: ...

    @overload
    async def kiq_chunk(
        self: TakesTwoAndContext[_Item, _Second, _P, Coroutine[Any, Any, _T]],
        items: Iterable[_Item],
        second: _Second,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqChunk[_T]: ...

    @overload
    async def kiq_chunk(
        self: TakesItem[_Item, _P, _T],
        items: Iterable[_Item],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqChunk[_T]: ...

    @overload
    async def kiq_chunk(
        self: TakesItemContexts[_Item, _P, _T],
        items: Iterable[_Item],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqChunk[_T]: ...

    @overload
    async def kiq_chunk(
        self: TakesItemContext[_Item, _P, _T],
        items: Iterable[_Item],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqChunk[_T]: ...

    @overload
    async def kiq_chunk(
        self: TakesTwoAndContext[_Item, _Second, _P, _T],
        items: Iterable[_Item],
        second: _Second,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> AsyncTaskiqChunk[_T]: ...

    async def kiq_chunk(
        self: Any,
        items: Iterable[Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Send one message with many items of a batch task.

        On the worker each item joins a batch beside other messages, and fails for
        itself. When all have their outcome there is one result: a list with a
        `TaskiqResult` for each item, in order.

        :param items: the items, 10,000 at most; there may be none.
        :param args: what `kiq` is given after an item, the same for all of them.
        :returns: a handle to wait for that result with.
        :raises TypeError: when the task is no batch task or is unique, or the arguments
            do not fit its function.
        :raises ValueError: when there are too many items.
        :raises UnsendableArgumentError: when an item cannot be serialised; its path
            has the index.
        :raises SendTaskError: when the message could not be sent.
        """
        return await self._send_items(items, args, kwargs)

    @abstractmethod
    async def _send_items(
        self,
        items: Iterable[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> AsyncTaskiqChunk[Any]:
        """Do what `kiq_chunk` says."""

    @abstractmethod
    async def _send_many(
        self,
        items: Iterable[Any],
        on_progress: Callable[[int], object] | None,
    ) -> list[Any]:
        """Do what `kiq_many` says."""


async def run_pre_send(hooks: HookLists, message: TaskiqMessage) -> TaskiqMessage:
    """Give the message that `pre_send` hooks make of this one.

    :raises SendTaskError: when one of them returns none.
    :raises Exception: what one of them raises, after `on_send_error` was told.
    """
    try:
        for middleware in hooks.pre_send:
            sent: Any = await maybe_awaitable(middleware.pre_send(message))
            message = _message_from(middleware, sent)
    except (Exception, asyncio.CancelledError) as exc:
        await run_on_send_error(hooks.on_send_error, message, exc)
        raise
    return message


def _message_from(
    middleware: TaskiqMiddleware,
    sent: TaskiqMessage | None,
) -> TaskiqMessage:
    if sent is None:
        raise SendTaskError from TypeError(
            f"pre_send of {type(middleware).__name__} returned None; "
            "it must return the message to send",
        )
    return sent


async def run_post_send(
    middlewares: Iterable[TaskiqMiddleware],
    message: TaskiqMessage,
) -> None:
    """Run `post_send` hooks."""
    for middleware in middlewares:
        await maybe_awaitable(middleware.post_send(message))


async def run_on_send_error(
    middlewares: Iterable[TaskiqMiddleware],
    message: TaskiqMessage,
    error: BaseException,
) -> None:
    """Run `on_send_error` hooks; one that fails does not stop the next."""
    for middleware in middlewares:
        try:
            await maybe_awaitable(middleware.on_send_error(message, error))
        except Exception:  # noqa: PERF203 - each hook fails for itself
            logger.exception(
                "The on_send_error hook of %s failed for sending task %s with ID %s.",
                type(middleware).__name__,
                message.task_name,
                message.task_id,
            )


def handle_of(
    broker: AsyncBroker,
    message: TaskiqMessage,
    return_type: type[_T] | None,
) -> AsyncTaskiqTask[_T]:
    """Make the handle of a message, and let the result backend know of it.

    :raises UnsendableArgumentError: if nobody could store a result under its id.
    """
    check_id(message)
    handle = AsyncTaskiqTask(message.task_id, broker.result_backend, return_type)
    introduce(broker, message, handle)
    return handle


def introduce(
    broker: AsyncBroker,
    message: TaskiqMessage,
    handle: AsyncTaskiqTask[Any],
) -> None:
    """Let a handle know whose it is, and the result backend of the handle."""
    backend = broker.result_backend
    handle.task_name = message.task_name
    # Of a stand-in for a broker, too, which need not know of it.
    abort_store = getattr(broker, "abort_store", None)
    if abort_store is not None:
        handle.abort_store = abort_store
    watch = getattr(type(backend), "watch_handle", None)
    if watch is not None:
        watch(backend, handle)


class Sending:
    """One call of `kiq_many`: what was sent so far, and what was not.

    :param return_type: what the results are cast to, `None` to leave them alone.
    :param make: makes a message of its arguments.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        task_name: str,
        return_type: type[Any] | None,
        make: Callable[[tuple[Any, ...], dict[str, Any]], TaskiqMessage],
    ) -> None:
        self._broker = broker
        self._task_name = task_name
        self._return_type = return_type
        self._make = make
        self._total = 0
        self._handles: dict[int, AsyncTaskiqTask[Any]] = {}
        self._errors: dict[int, Exception] = {}

    async def send(
        self,
        items: Iterable[Any],
        on_progress: Callable[[int], object] | None,
    ) -> list[AsyncTaskiqTask[Any]]:
        """Send all; the parameters are those of `kiq_many`."""
        for chunk in _chunks(items):
            await self._send_chunk(chunk)
            self._total += len(chunk)
            if on_progress is not None:
                await maybe_awaitable(on_progress(self._total))
            # A broker that sends without waiting would let nobody else run.
            await asyncio.sleep(0)
        if self._errors:
            raise self._error()
        return [self._handles[number] for number in range(self._total)]

    async def _send_chunk(self, chunk: list[Any]) -> None:
        await self._send_numbered(enumerate(chunk, start=self._total))

    async def _send_numbered(self, numbered: Iterable[tuple[int, Any]]) -> None:
        """Send items under the numbers they have in the whole call."""
        hooks = hooks_of(self._broker)
        if hooks.pre_send or hooks.post_send or hooks.on_send_error:
            await self._send_with_hooks(numbered, hooks)
        else:
            await self._send_without_hooks(numbered)

    async def _send_without_hooks(self, chunk: Iterable[tuple[int, Any]]) -> None:
        ready: list[tuple[int, AsyncTaskiqTask[Any]]] = []
        dumped: list[BrokerMessage] = []
        for number, item in chunk:
            try:
                message = self._message(item)
                handle = self._handle(message)
                dumped.append(dump_message(self._broker.formatter, message))
            except Exception as exc:  # noqa: BLE001, PERF203 - each fails for itself
                self._errors[number] = exc
            else:
                ready.append((number, handle))
        outcomes = await _kick_many(self._broker, dumped)
        for each, sent, outcome in zip(ready, dumped, outcomes, strict=True):
            self._note(*each, sent, outcome)

    async def _send_with_hooks(
        self,
        chunk: Iterable[tuple[int, Any]],
        hooks: HookLists,
    ) -> None:
        """Run the hooks of each message in an asyncio task of its own.

        What they do is to be seen by each other and not by those of another message: a
        span that `pre_send` made current, and what ends it if there is no `post_send`.
        """
        departure = _Departure()
        tasks = {
            number: asyncio.create_task(self._send_one(number, item, hooks, departure))
            for number, item in chunk
        }
        departure.wait_for(tasks.values())
        try:
            await departure.is_due
            departure.tell(await _kick_many(self._broker, departure.messages))
            await asyncio.wait(tasks.values())
        finally:
            await cancel_all(tasks.values())
        for number, task in tasks.items():
            if task.cancelled():
                self._errors[number] = RuntimeError("a hook cancelled the sending")

    async def _send_one(
        self,
        number: int,
        item: Any,
        hooks: HookLists,
        departure: _Departure,
    ) -> None:
        try:
            message = await run_pre_send(hooks, self._message(item))
            outcome = await self._leave(number, message, hooks, departure)
            if outcome is None:
                await run_post_send(hooks.post_send, message)
        except Exception as exc:  # noqa: BLE001 - each item fails for itself
            self._errors[number] = exc

    async def _leave(
        self,
        number: int,
        message: TaskiqMessage,
        hooks: HookLists,
        departure: _Departure,
    ) -> Exception | None:
        """Send one message with the others.

        :returns: why it was not sent, `None` if it was.
        """
        try:
            handle = self._handle(message)
            dumped = dump_message(self._broker.formatter, message)
            outcome = await departure.join(number, dumped)
        except (Exception, asyncio.CancelledError) as exc:
            await run_on_send_error(hooks.on_send_error, message, exc)
            raise
        self._note(number, handle, dumped, outcome)
        if outcome is not None:
            error = self._errors[number]
            await run_on_send_error(hooks.on_send_error, message, error)
        return outcome

    def _message(self, item: Any) -> TaskiqMessage:
        if isinstance(item, TaskCall):
            return self._make(item.args, item.kwargs)
        return self._make((item,), {})

    def _handle(self, message: TaskiqMessage) -> AsyncTaskiqTask[Any]:
        return handle_of(self._broker, message, self._return_type)

    def _note(
        self,
        number: int,
        handle: AsyncTaskiqTask[Any],
        sent: BrokerMessage,
        outcome: Exception | None,
    ) -> None:
        if outcome is None:
            self._handles[number] = handle
        else:
            self._errors[number] = refused_by(self._broker, sent, outcome)

    def _error(self) -> SendManyError:
        first = min(self._errors)
        return SendManyError(
            task_name=self._task_name,
            total=self._total,
            failed=len(self._errors),
            first=f"{first}: {_reason(self._errors[first])}",
            errors=dict(sorted(self._errors.items())),
            handles=dict(sorted(self._handles.items())),
        )


class ChunkSending(Sending):
    """Sends one message with many items."""

    def _handle(self, message: TaskiqMessage) -> AsyncTaskiqTask[Any]:
        backend = self._broker.result_backend
        handle = AsyncTaskiqChunk(message.task_id, backend, self._return_type)
        introduce(self._broker, message, handle)
        return handle


class _Departure:
    """Where the messages of a chunk meet: they leave once no other can come."""

    def __init__(self) -> None:
        #: Done when all have come who will.
        self.is_due: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected: set[asyncio.Task[None] | None] = set()
        self._joined: dict[
            int,
            tuple[BrokerMessage, asyncio.Future[Exception | None]],
        ] = {}

    def wait_for(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Expect each of these tasks to join, or to end without."""
        self._expected.update(tasks)
        for task in tasks:
            task.add_done_callback(self._expect_no_more)

    async def join(self, number: int, message: BrokerMessage) -> Exception | None:
        """Leave with the others.

        :param number: the place of the message among them.
        :returns: why this message was not sent, `None` if it was.
        """
        future: asyncio.Future[Exception | None] = (
            asyncio.get_running_loop().create_future()
        )
        self._joined[number] = (message, future)
        self._expect_no_more(asyncio.current_task())
        return await future

    @property
    def messages(self) -> list[BrokerMessage]:
        """The messages that leave, in the order of their numbers."""
        return [self._joined[number][0] for number in sorted(self._joined)]

    def tell(self, outcomes: Iterable[Exception | None]) -> None:
        """Tell each of those who joined what became of its message."""
        for number, outcome in zip(sorted(self._joined), outcomes, strict=True):
            future = self._joined[number][1]
            if not future.done():
                future.set_result(outcome)

    def _expect_no_more(self, task: asyncio.Task[None] | None) -> None:
        self._expected.discard(task)
        if not self._expected and not self.is_due.done():
            self.is_due.set_result(None)


def _chunks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    try:
        iterator = iter(items)
    except TypeError:
        raise TypeError(
            f"kiq_many() takes an iterable of items, and was given {items!r} of type "
            f"{type(items).__name__}: for one item, use kiq(item)",
        ) from None
    while chunk := list(islice(iterator, CHUNK_SIZE)):
        yield chunk


async def _kick_many(
    broker: AsyncBroker,
    messages: list[BrokerMessage],
) -> list[Exception | None]:
    """Send messages; when the broker fails as a whole, none of them counts as sent."""
    if not messages:
        return []
    try:
        outcomes = await broker.kick_many(messages)
    except Exception as exc:  # noqa: BLE001 - told for each message
        return [exc] * len(messages)
    if len(outcomes) != len(messages):
        error = RuntimeError(
            f"kick_many of {type(broker).__name__} must return a list of "
            f"{len(messages)} outcomes, one per message in order; "
            f"it returned {len(outcomes)}",
        )
        return [error] * len(messages)
    return outcomes


def _reason(error: Exception) -> str:
    """Say why: an error that names the argument does, of others their cause."""
    is_named = isinstance(error, (UnsendableArgumentError, UnsendableBytesError))
    return str(error) if is_named else repr(error.__cause__ or error)
