"""A broker that runs its tasks in the process that sends them."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.batch import FlushReason

# At run time: applications reach the module as an attribute after `import taskiq`.
from taskiq.depends.progress_tracker import TaskProgress  # noqa: TC001
from taskiq.events import TaskiqEvents
from taskiq.exceptions import UnknownTaskError
from taskiq.receiver import Receiver
from taskiq.receiver.running import (
    is_working_for,
    mark_as_working_for,
    start_for,
    wait_for_all,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from typing_extensions import Self

    from taskiq.message import BrokerMessage
    from taskiq.receiver.batcher import Clock
    from taskiq.result import TaskiqResult
    from taskiq.task import AsyncTaskiqTask

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

    def watch_handle(self, handle: AsyncTaskiqTask[Any]) -> None:
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


class _HandleRef(weakref.ref["AsyncTaskiqTask[Any]"]):
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
        self.result_backend = InmemoryResultBackend(max_stored_results)
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
        self._running_tasks: set[asyncio.Task[None]] = set()
        self._on_end = self._ended  # bound once, as each task keeps it
        # Those of them that take a message of a batch task to its batch.
        self._joining_tasks: set[asyncio.Task[None]] = set()

    async def kick(self, message: BrokerMessage) -> None:
        """Run a task: now with `await_inplace`, else beside the caller.

        :raises UnknownTaskError: when there is no task of that name.
        """
        target = self.find_task(message.task_name)
        if target is None:
            raise UnknownTaskError(task_name=message.task_name)
        if target.batch is None:
            if self.await_inplace:
                await self.receiver.callback(message=message.message)
            else:
                work = self._work(message.message)
                self._keep(asyncio.get_running_loop().create_task(work))
        elif self.await_inplace:
            await self.receiver.run_in_place(message.message)
        else:
            left_to_do = self.receiver.buffer(message.message)
            if left_to_do is not None:
                create_task = asyncio.get_running_loop().create_task
                joining = self._keep(start_for(self, create_task, left_to_do))
                self._joining_tasks.add(joining)

    async def _work(self, message: bytes) -> None:
        # Here and not before it starts, which would copy the context of each message.
        mark_as_working_for(self)
        await self.receiver.callback(message=message)

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._running_tasks.add(task)
        task.add_done_callback(self._on_end)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running_tasks.discard(task)
        self._joining_tasks.discard(task)

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
        while self._running_tasks or not self.receiver.batching.is_idle:
            await self.receiver.wait_batches(FlushReason.MANUAL)
            await wait_for_all(self._running_tasks, None)

    async def wait_running(self) -> None:
        """Wait for what runs, and for batches that have a reason to leave.

        Nothing is flushed: batches that wait for company stay open.

        :raises RuntimeError: in a task of this broker, which would wait for itself.
        """
        self._refuse_tasks()
        await self.receiver.wait_running()
        while self._running_tasks:
            await wait_for_all(self._running_tasks, None)
            await self.receiver.wait_running()

    def _refuse_tasks(self) -> None:
        if is_working_for(self):
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
        await self._run_handlers(TaskiqEvents.CLIENT_STARTUP)
        await self._run_handlers(TaskiqEvents.WORKER_STARTUP)
        await self._start_parts()

    async def shutdown(self) -> None:
        """Flush batches and wait for them, then stop what `startup` started."""
        while self._joining_tasks or not self.receiver.batching.is_idle:
            await self.receiver.wait_batches(FlushReason.SHUTDOWN)
            await wait_for_all(self._joining_tasks, None)
        await self._run_handlers(TaskiqEvents.CLIENT_SHUTDOWN)
        await self._run_handlers(TaskiqEvents.WORKER_SHUTDOWN)
        await self._stop_parts()
        self.executor.shutdown()
