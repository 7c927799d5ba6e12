"""A broker that runs its tasks in the process that sends them."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.result_backend import AsyncResultBackend, ResultHandle
from taskiq.aborts import InMemoryAborts
from taskiq.acks import AckableMessage
from taskiq.batch import FlushReason
from taskiq.dead_letters.store import InMemoryDeadLetters
from taskiq.events import TaskiqEvents
from taskiq.exceptions import TaskiqResultTimeoutError, UnknownTaskError
from taskiq.receiver import Receiver
from taskiq.receiver.tasks import subject_of
from taskiq.unique import InMemoryUniqueKeys

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

    from typing_extensions import Self

    from taskiq.clock import Clock
    from taskiq.message import BrokerMessage
    from taskiq.progress import TaskProgress
    from taskiq.result import TaskiqResult

_ReturnType = TypeVar("_ReturnType")
_Kept = TypeVar("_Kept")


class InmemoryResultBackend(AsyncResultBackend[_ReturnType]):
    """Keeps results in memory.

    A result whose handle, the object ``kiq`` returned, is alive is never dropped.

    :param max_stored_results: how many others are kept, the newest; -1 keeps all.
    """

    def __init__(self, max_stored_results: int = 100) -> None:
        self.max_stored_results = max_stored_results
        self.results: OrderedDict[str, TaskiqResult[_ReturnType]] = OrderedDict()
        self.progress: OrderedDict[str, TaskProgress[Any]] = OrderedDict()
        # How many handles of an id live: several when a message is sent again under its
        # id. Then what is stored without one, the oldest first.
        self._handles: dict[str, int] = {}
        self._refs: set[_HandleRef] = set()
        # Bound once: one more object for each handle is work for the garbage collector.
        self._on_death = self._handle_died
        self._droppable_results: OrderedDict[str, None] = OrderedDict()
        self._droppable_progress: OrderedDict[str, None] = OrderedDict()
        self._waiters = _Waiters[_ReturnType]()
        self.abort_store = InMemoryAborts()
        self.unique_store = InMemoryUniqueKeys()

    def watch_handle(self, handle: ResultHandle) -> None:
        """Keep what is stored for this handle while it lives."""
        task_id = handle.task_id
        ref = _HandleRef(handle, self._on_death)
        ref.task_id = task_id
        self._refs.add(ref)
        self._handles[task_id] = self._handles.get(task_id, 0) + 1
        self._droppable_results.pop(task_id, None)
        self._droppable_progress.pop(task_id, None)

    async def set_result(
        self,
        task_id: str,
        result: TaskiqResult[_ReturnType],
    ) -> None:
        """Store a result."""
        self._store(self.results, self._droppable_results, task_id, result)
        self._waiters.tell(task_id, result)

    async def is_result_ready(self, task_id: str) -> bool:
        """Say whether the result is stored."""
        return task_id in self.results

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[_ReturnType]:
        """Give a stored result.

        :param with_logs: has no effect, there are no logs.
        :raises KeyError: when there is none of this id.
        """
        del with_logs
        return self.results[task_id]

    async def set_results(
        self,
        results: Mapping[str, TaskiqResult[Any]],
    ) -> Mapping[str, Exception]:
        """Store many results; none of them fails."""
        for task_id, result in results.items():
            await self.set_result(task_id, result)
        return {}

    async def get_results(
        self,
        task_ids: Sequence[str],
        with_logs: bool = False,
    ) -> Mapping[str, TaskiqResult[_ReturnType]]:
        """Give those of many results that are stored.

        :param with_logs: has no effect, there are no logs.
        """
        del with_logs
        stored = self.results
        return {task_id: stored[task_id] for task_id in task_ids if task_id in stored}

    async def wait_for_result(
        self,
        task_id: str,
        timeout: float,
        with_logs: bool = False,
    ) -> TaskiqResult[_ReturnType]:
        """Wait until a result is stored, in whatever thread or event loop.

        :param timeout: seconds; zero or less waits forever.
        :param with_logs: has no effect, there are no logs.
        :raises TaskiqResultTimeoutError: when it is not stored in time.
        """
        del with_logs
        with self._waiters.waiting_for(task_id) as future:
            # After the waiter is known: a result stored in between is not missed.
            if task_id in self.results:
                return self.results[task_id]
            await asyncio.wait([future], timeout=timeout if timeout > 0 else None)
            if not future.done():
                raise TaskiqResultTimeoutError(timeout=timeout)
            return future.result()

    async def set_progress(self, task_id: str, progress: TaskProgress[Any]) -> None:
        """Store the progress of a task."""
        self._store(self.progress, self._droppable_progress, task_id, progress)

    async def get_progress(self, task_id: str) -> TaskProgress[Any] | None:
        """Give the stored progress of a task, `None` when there is none."""
        return self.progress.get(task_id)

    def _store(
        self,
        store: OrderedDict[str, _Kept],
        droppable: OrderedDict[str, None],
        task_id: str,
        value: _Kept,
    ) -> None:
        store[task_id] = value
        if task_id not in self._handles:
            droppable[task_id] = None
            self._drop_oldest(store, droppable)

    def _drop_oldest(
        self,
        store: OrderedDict[str, _Kept],
        droppable: OrderedDict[str, None],
    ) -> None:
        while 0 <= self.max_stored_results < len(droppable):
            oldest, _ = droppable.popitem(last=False)
            store.pop(oldest, None)

    def _handle_died(self, ref: _HandleRef) -> None:
        task_id = ref.task_id
        self._refs.discard(ref)
        self._handles[task_id] -= 1
        if self._handles[task_id]:
            return
        del self._handles[task_id]
        if task_id in self.results:
            self._droppable_results[task_id] = None
            self._drop_oldest(self.results, self._droppable_results)
        if task_id in self.progress:
            self._droppable_progress[task_id] = None
            self._drop_oldest(self.progress, self._droppable_progress)


class _Waiters(Generic[_ReturnType]):
    """Those who wait for results, in any thread or event loop."""

    def __init__(self) -> None:
        # Guards the dict, not the futures: each of those belongs to its event loop.
        self._lock = threading.Lock()
        self._futures: dict[str, set[asyncio.Future[TaskiqResult[_ReturnType]]]] = {}

    @contextmanager
    def waiting_for(
        self,
        task_id: str,
    ) -> Generator[asyncio.Future[TaskiqResult[_ReturnType]], None, None]:
        """Give a future that `tell` resolves with the result, until the block ends."""
        future: asyncio.Future[TaskiqResult[_ReturnType]] = (
            asyncio.get_running_loop().create_future()
        )
        with self._lock:
            self._futures.setdefault(task_id, set()).add(future)
        try:
            yield future
        finally:
            with self._lock:
                self._forget(task_id, future)

    def tell(self, task_id: str, result: TaskiqResult[_ReturnType]) -> None:
        """Resolve the futures of those who wait for this result.

        To be called in an event loop.
        """
        if not self._futures:
            return
        with self._lock:
            futures = self._futures.pop(task_id, ())
        here = asyncio.get_running_loop()
        for future in futures:
            if (loop := future.get_loop()) is here:
                _resolve(future, result)
                continue
            # A loop that is closed has nobody left to be told.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, future, result)

    def _forget(
        self,
        task_id: str,
        future: asyncio.Future[TaskiqResult[_ReturnType]],
    ) -> None:
        futures = self._futures.get(task_id)
        if futures is None:
            return
        futures.discard(future)
        if not futures:
            del self._futures[task_id]


def _resolve(future: asyncio.Future[_Kept], value: _Kept) -> None:
    if not future.done():
        future.set_result(value)


def _forget() -> None:
    """Acknowledge a message, which nobody else has."""


class _HandleRef(weakref.ref[ResultHandle]):
    """A weak reference to a handle that knows its id when the handle is gone."""

    __slots__ = ("task_id",)

    task_id: str


class InMemoryBroker(AsyncBroker):
    """Runs tasks in this process and event loop: for tests, and for small programs.

    Batch tasks are gathered as in a worker; a timer flushes them.

    :param sync_tasks_pool_size: threads for sync tasks.
    :param max_stored_results: results kept beside those whose handle is alive; -1 keeps
        all.
    :param cast_types: whether to cast arguments by type hints.
    :param max_async_tasks: has no effect: a limit would lock tasks that wait for tasks.
    :param max_async_tasks_jitter: has no effect either.
    :param propagate_exceptions: whether generator dependencies see a task's error.
    :param await_inplace: run each task inside ``kiq``; each batch has one item then.
    """

    #: For `taskiq.capabilities`.
    message_capabilities = ("nack", "delayed_nack", "deliveries")

    def __init__(
        self,
        sync_tasks_pool_size: int = 4,
        max_stored_results: int = 100,
        cast_types: bool = True,
        max_async_tasks: int = 30,
        max_async_tasks_jitter: int = 0,
        propagate_exceptions: bool = True,
        await_inplace: bool = False,
    ) -> None:
        super().__init__()
        self.result_backend = results = InmemoryResultBackend[Any](max_stored_results)
        self.abort_store = results.abort_store
        self.unique_store = results.unique_store
        self.dead_letter_store = InMemoryDeadLetters()
        self.executor = ThreadPoolExecutor(sync_tasks_pool_size)
        self.receiver = Receiver(
            broker=self,
            executor=self.executor,
            validate_params=cast_types,
            max_async_tasks=max_async_tasks,
            max_async_tasks_jitter=max_async_tasks_jitter,
            propagate_exceptions=propagate_exceptions,
        )
        self.await_inplace = await_inplace

    async def kick(self, message: BrokerMessage) -> None:
        """Run a task: now with `await_inplace`, else beside the caller.

        :raises UnknownTaskError: when there is no task of that name.
        """
        task = self.find_task(message.task_name)
        if task is None:
            raise UnknownTaskError(task_name=message.task_name)
        if self.await_inplace:
            await self.receiver.runtime.take_in_place(message.message)
        else:
            is_plain = task.batch is None
            self.receiver.runtime.enter(message.message, is_plain=is_plain)

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        """Run a task for each message as `kick` does, one after another."""
        outcomes: list[Exception | None] = []
        for message in messages:
            try:
                await self.kick(message)
            except Exception as exc:  # noqa: BLE001, PERF203 - each fails for itself
                outcomes.append(exc)
            else:
                outcomes.append(None)
        return outcomes

    def equip_message(self, message: bytes | AckableMessage) -> AckableMessage:
        """Fill in what can be done with a message, for `taskiq.capabilities`.

        What is given back runs again, beside the caller, after its delay by the clock
        that batches wait by; `wait_all` waits for that, too.
        """
        return message if isinstance(message, AckableMessage) else self._give(message)

    def _give(self, data: bytes, deliveries: int = 1) -> AckableMessage:
        def nack(delay: float | None) -> None:
            again = self._give(data, deliveries + 1)
            self.receiver.runtime.enter_again(again, delay or 0.0)

        return AckableMessage(
            data=data,
            ack=_forget,
            nack=nack,
            nack_delays=True,
            deliveries=deliveries,
        )

    @property
    def _running_tasks(self) -> set[asyncio.Task[Any]]:
        """What runs in this event loop; applications ask for it by this name."""
        return self.receiver.runtime.tasks.of(lambda _: True)

    def listen(self) -> AsyncGenerator[bytes, None]:
        """Refuse to listen: there is nothing to be received.

        :raises RuntimeError: always.
        """
        raise RuntimeError(
            "Inmemory brokers cannot listen: tasks run where they are sent."
        )

    async def wait_all(self) -> None:
        """Flush batches and wait until nothing is buffered or running.

        Tasks sent by tasks are waited for, too.

        :raises RuntimeError: in a task of this broker, which would wait for itself.
        """
        self._refuse_tasks()
        await self.receiver.runtime.wait_idle(FlushReason.MANUAL)

    async def wait_running(self) -> None:
        """Wait for what runs, and for batches that have a reason to leave.

        Nothing is flushed: batches that wait for company stay open. What waits for the
        rate of its task is not waited for.

        :raises RuntimeError: in a task of this broker, which would wait for itself.
        """
        self._refuse_tasks()
        await self.receiver.runtime.wait_running()

    def _refuse_tasks(self) -> None:
        if subject_of(self) is not None:
            raise RuntimeError("A task cannot wait for all tasks: it is one of them.")

    def with_clock(self, clock: Clock | None) -> Self:
        """Let batches wait by a clock of yours, such as a `ManualClock`.

        :param clock: `None` is the event loop's time, as without this.
        :returns: the broker.
        :raises RuntimeError: when messages are buffered already.
        """
        self.receiver.use_clock(clock)
        return self

    async def startup(self) -> None:
        """Run client and worker startup handlers, start middlewares and results."""
        await self._start(TaskiqEvents.CLIENT_STARTUP, TaskiqEvents.WORKER_STARTUP)

    async def shutdown(self) -> None:
        """Flush batches and wait for them, then stop what `startup` started.

        In a task of this broker it waits for all others.
        """
        await self.receiver.runtime.wait_idle(FlushReason.SHUTDOWN, is_batched=True)
        await self._stop(TaskiqEvents.CLIENT_SHUTDOWN, TaskiqEvents.WORKER_SHUTDOWN)
        self.executor.shutdown()
