"""A worker for tests: it is sent messages, told to listen and to stop, and asked.

`Worker` has whatever tasks a test registers. The others bring one task of their own:
`BatchWorker` a batch task, `GatedWorker` a plain one whose calls last until they are
let go, `InProcessWorker` a batch task that runs in the process that sends.

All of them write down what happens; all but the last carry messages that are to be
acknowledged. Run them in virtual time: `tests.support.virtual_time`.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from taskiq import (
    BatchContext,
    BrokerMessage,
    Context,
    InMemoryBroker,
    TaskiqDepends,
    TaskiqMessage,
)
from taskiq.receiver import Receiver
from taskiq.testing import ManualClock
from tests.support.brokers import QueueBroker, message_bytes
from tests.support.recorders import (
    RecordingBackend,
    RecordingBatches,
    RecordingMiddleware,
)
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    import pytest

    from taskiq import (
        AckableMessage,
        AsyncTaskiqDecoratedTask,
        BatchInfo,
        TaskiqMiddleware,
        TaskiqResult,
    )
    from taskiq.batch import FlushReason

#: For a parameter of a task: what it is told about its message, or its batch.
CurrentContext: TypeAlias = Annotated[Context, TaskiqDepends()]
CurrentBatch: TypeAlias = Annotated[BatchContext, TaskiqDepends()]

#: Longer than any test, for batches that are not to leave by themselves.
FOREVER = 10_000.0


class Gate:
    """A place that says when somebody came, and lets him wait there."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def pass_through(self) -> None:
        self.reached.set()
        await self.opened.wait()


class GatedBackend(RecordingBackend):
    """Saves results once its gate is open.

    :ivar hanging: ids whose saving never ends.
    :ivar waiting: how many are being saved.
    :ivar most_waiting: how many were, at once.
    """

    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__()
        self.gate = gate
        self.hanging: set[str] = set()
        self.waiting = 0
        self.most_waiting = 0

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        if self.gate is not None:
            await self.gate.pass_through()
        if task_id in self.hanging:
            await asyncio.Event().wait()
        self.waiting -= 1
        await super().set_result(task_id, result)


class Worker:
    """A broker, a result backend and a receiver, and all that happens to messages.

    :param middlewares: behind the one that writes down.
    :param is_recording: whether there is one that writes down.
    :param options: of the receiver; it is built at its first use, with the tasks that
        are registered then.
    :ivar journal: what happened, and the id of the message it happened to.
    """

    def __init__(
        self,
        *middlewares: TaskiqMiddleware,
        broker: QueueBroker | None = None,
        backend: RecordingBackend | None = None,
        receiver_class: type[Receiver] = Receiver,
        is_recording: bool = True,
        **options: Any,
    ) -> None:
        self.journal: list[tuple[str, str]] = []
        self.broker = broker or QueueBroker()
        self.broker.steps = self.journal
        self.backend = backend or RecordingBackend()
        self.backend.steps = self.journal
        self.broker.with_result_backend(self.backend)
        self.seen = RecordingMiddleware(events=self.journal)
        recording = [self.seen] if is_recording else []
        self.broker.add_middlewares(*recording, *middlewares)
        self.options = {"max_async_tasks": 10, "run_startup": False, **options}
        self._receiver_class = receiver_class
        self.finish = asyncio.Event()

    @cached_property
    def receiver(self) -> Receiver:
        return self._receiver_class(self.broker, **self.options)

    # -- One message, without listening --

    def ackable(self, data: bytes, task_id: str = "id") -> AckableMessage:
        """Make a delivery whose acknowledgement is written down."""
        return self.broker.ackable(
            BrokerMessage(task_id=task_id, task_name="", message=data, labels={}),
        )

    async def deliver(
        self,
        task: AsyncTaskiqDecoratedTask[..., Any],
        *args: Any,
        task_id: str = "id",
        labels: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> TaskiqResult[Any] | None:
        """Take one message through the callback.

        :returns: its result, `None` when none was saved.
        """
        data = message_bytes(task, *args, task_id=task_id, labels=labels, **kwargs)
        await self.receiver.callback(self.ackable(data, task_id))
        return self.backend.results.get(task_id)

    # -- Listening --

    async def send_to(self, task: Any, *items: Any) -> None:
        """Send each item under its own text as id."""
        for item in items:
            await task.kicker().with_task_id(str(item)).kiq(item)

    def listen(self) -> asyncio.Task[None]:
        """Begin to listen, until `finish` is set or the broker has ended."""
        return asyncio.ensure_future(self.receiver.listen(self.finish))

    async def run(self) -> None:
        """Listen until what was sent is done."""
        self.broker.end()
        await self.listen()

    async def until_held(self, count: int) -> None:
        """Wait until so many messages are in batches, in whatever state."""
        while self.receiver.batch_statistics().buffered < count:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def occupy(self) -> None:
        """Take every execution slot, as calls of other tasks would."""
        assert self.receiver.sem is not None
        for _ in range(self.options["max_async_tasks"]):
            await self.receiver.sem.acquire()

    def vacate(self) -> None:
        """Give back what was occupied."""
        assert self.receiver.sem is not None
        for _ in range(self.options["max_async_tasks"]):
            self.receiver.sem.release()

    @property
    def free_slots(self) -> int:
        """How many calls may start."""
        assert self.receiver.sem is not None
        return self.receiver.sem._value

    @property
    def free_deliveries(self) -> int:
        """How many messages may be read."""
        return self.receiver.sem_prefetch._value

    def assert_capacity_is_restored(self, executions: int, deliveries: int) -> None:
        if self.receiver.sem is not None:
            assert self.free_slots == executions
        assert self.free_deliveries == deliveries

    def assert_as_new(self) -> None:
        """Nothing is held and nothing runs, but whoever asks."""
        executions = self.options["max_async_tasks"]
        deliveries = executions + self.options.get("max_prefetch", 0)
        self.assert_capacity_is_restored(executions, deliveries)
        assert self.receiver.batch_statistics().is_idle
        chunks = self.receiver.runtime.chunks
        assert (chunks.count, vars(chunks)["_held"]) == (0, {})
        assert asyncio.all_tasks() == {asyncio.current_task()}

    # -- What became of messages --

    def steps(self, task_id: str = "id") -> list[str]:
        """List what happened to one message."""
        return [step for step, of in self.journal if of == task_id]

    def ids(self, *steps: str) -> list[str]:
        """Whom some steps were taken for, in order."""
        return [of for step, of in self.journal if step in steps]

    @property
    def values(self) -> dict[str, Any]:
        """The value of each message that succeeded."""
        results = self.backend.results
        return {i: r.return_value for i, r in results.items() if not r.is_err}

    @property
    def errors(self) -> dict[str, BaseException | None]:
        """The error of each message that failed."""
        return {i: r.error for i, r in self.backend.results.items() if r.is_err}

    @property
    def reasons(self) -> list[FlushReason]:
        """Why each batch left, in the order they ended."""
        return [batch.flush_reason for batch in self.seen.ended]

    def assert_settled_once(self, count: int) -> None:
        """All of so many messages, which are counted from 0, are done and acked."""
        ids = [str(number) for number in range(count)]
        assert sorted(self.backend.saved, key=int) == ids
        assert sorted(self.broker.acked, key=int) == ids


class BatchWorker(Worker):
    """A worker with one batch task, `work`, that writes its calls down.

    :param body: what the function does with its items.
    :param act: what it does, if it is to know its context.
    :param task_id: makes the id of an item's message; else messages are counted.
    :param options: those that begin with ``batch_`` are of the task, and no batch
        leaves by its timeout unless they say when; the others are of the receiver.
    :ivar calls: the items of each call, in the order they began.
    :ivar in_call: where each call waits, if it is set.
    """

    def __init__(
        self,
        body: Callable[[list[Any]], Any] = len,
        *middlewares: TaskiqMiddleware,
        act: Callable[[BatchContext, list[Any]], Coroutine[Any, Any, Any]]
        | None = None,
        task_id: Callable[[Any], str] | None = None,
        **options: Any,
    ) -> None:
        limits = {key: options.pop(key) for key in [*options] if key[:6] == "batch_"}
        super().__init__(*middlewares, **{"max_async_tasks": 4, **options})
        self.calls: list[list[Any]] = []
        self.in_call: Gate | None = None
        self._body = body
        self._task_id = task_id
        self._sent = 0
        function = self._function() if act is None else self._function_of(act)
        limits.setdefault("batch_timeout", FOREVER)
        task: Any = self.broker.task("work", batch=True, **limits)(function)
        self.task: AsyncTaskiqDecoratedTask[..., Any] = task

    def _function(self) -> Callable[..., Any]:
        async def work(items: list[Any], rest: str = "") -> Any:
            await self._begin(items)
            returned = self._body(items)
            return await returned if asyncio.iscoroutine(returned) else returned

        return work

    def _function_of(self, act: Callable[..., Any]) -> Callable[..., Any]:
        async def work(items: list[Any], context: CurrentBatch, rest: str = "") -> Any:
            await self._begin(items)
            return await act(context, items)

        # What annotations mean is looked up where the function is from, not here.
        work.__annotations__["context"] = CurrentBatch
        return work

    async def _begin(self, items: list[Any]) -> None:
        self.calls.append(items)
        if self.in_call is not None:
            await self.in_call.pass_through()

    async def send(self, *items: Any, rest: str = "", **labels: Any) -> None:
        for item in items:
            task_id = str(self._sent) if self._task_id is None else self._task_id(item)
            self._sent += 1
            kicker = self.task.kicker().with_task_id(task_id).with_labels(**labels)
            await kicker.kiq(item, rest=rest)


class GatedWorker(Worker):
    """A worker with one plain task, `work`, whose calls last until they are let go.

    A message, its id and its call go by one name.
    """

    def __init__(self, *, broker: QueueBroker | None = None, **options: Any) -> None:
        self.exits: list[Receiver] = []
        options = {"max_async_tasks": 1, "on_exit": self.exits.append, **options}
        super().__init__(broker=broker, **{"run_startup": True, **options})
        self.started: list[str] = []
        self.running: set[str] = set()
        self.most_running = 0
        self.cancelled: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}

        async def work(name: str) -> str:
            await self._work(name)
            return name

        self.task = self.broker.register_task(work, task_name="work")

    async def _work(self, name: str) -> None:
        self.started.append(name)
        self.running.add(name)
        self.most_running = max(self.most_running, len(self.running))
        try:
            await self._gate(name).wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        finally:
            self.running.remove(name)

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    def data(self, name: str) -> bytes:
        return message_bytes(self.task, name, task_id=name)

    def put(self, *names: str) -> None:
        """Put messages into the broker at once, in order."""
        for name in names:
            self.broker.put(self.data(name), name)

    def let_go(self, *names: str) -> None:
        """Let calls end, now or as soon as they start."""
        for name in names:
            self._gate(name).set()

    def let_go_at(self, moment: float, *names: str) -> None:
        asyncio.get_running_loop().call_at(moment, self.let_go, *names)

    @property
    def saved(self) -> list[str]:
        return self.backend.saved


class InProcessWorker:
    """A batch task in the process that sends, by a clock that is moved by hand.

    :param seconds: how long each call takes, by the event loop's time.
    :param limits: arguments of the task that begin with ``batch_``.
    :ivar calls: the items of each call that has ended.
    """

    def __init__(self, seconds: float = 0, **limits: Any) -> None:
        self.clock = ManualClock()
        self.broker = InMemoryBroker().with_clock(self.clock)
        self.seen = RecordingBatches()
        self.broker.add_middlewares(self.seen)
        self.calls: list[list[Any]] = []

        async def double(items: list[Any]) -> list[Any]:
            await asyncio.sleep(seconds)
            self.calls.append(items)
            return [2 * item for item in items]

        self.task: Any = self.broker.task(batch=True, **limits)(double)

    async def send(self, *items: Any) -> None:
        for item in items:
            await self.task.kiq(item)

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.broker.wait_running()

    @property
    def batches(self) -> list[BatchInfo]:
        """The batches that were begun."""
        return self.seen.batches

    @property
    def open_groups(self) -> int:
        return self.broker.receiver.batch_statistics().open_groups


def run(worker: BatchWorker, *items: Any, **labels: Any) -> BatchWorker:
    """Take items through a worker, in virtual time."""

    async def main() -> None:
        await worker.send(*items, **labels)
        await worker.run()

    run_virtual(main())
    return worker


async def results_of(
    broker: InMemoryBroker,
    task: Any,
    items: Iterable[Any],
) -> list[TaskiqResult[Any]]:
    """Send each item in this process, flush, and give the results in their order."""
    handles = [await task.kiq(item) for item in items]
    await broker.wait_all()
    return [await handle.get_result() for handle in handles]


def outcomes(results: Sequence[TaskiqResult[Any]]) -> list[Any]:
    """The value of each that succeeded, the error of each that failed."""
    assert all(result.is_err == (result.error is not None) for result in results)
    return [each.return_value if each.error is None else each.error for each in results]


def message_of(task_name: str, *args: Any, **labels: Any) -> TaskiqMessage:
    """Make a message as it is after parsing."""
    return TaskiqMessage(
        task_id="id",
        task_name=task_name,
        labels=labels,
        args=list(args),
        kwargs={},
    )


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List what was logged at WARNING or above."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING
    ]
