"""Aborting: what waits never runs, what runs is told, and each message has its end."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncGenerator  # dependencies are resolved by it
from typing import TYPE_CHECKING, Any, Final

import pytest

from taskiq import TaskiqDepends
from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.aborts import InMemoryAborts
from taskiq.acks import AckableMessage, AcknowledgeType
from taskiq.batch import BatchInfo
from taskiq.brokers.inmemory_broker import InMemoryBroker
from taskiq.context import BatchContext, Context
from taskiq.exceptions import TaskAbortedError
from taskiq.receiver import Receiver
from taskiq.testing import ManualClock
from tests.support.virtual_time import virtual
from tests.support.work import Work
from tests.support.worker import BatchWorker, Gate, GatedBackend, complaints

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from taskiq.message import BrokerMessage, TaskiqMessage
    from taskiq.task import AsyncTaskiqTask


async def is_aborted(handle: AsyncTaskiqTask[Any]) -> bool:
    result = await handle.wait_result(timeout=5)
    error = result.error
    return isinstance(error, TaskAbortedError) and error.task_id == handle.task_id


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


async def test_what_waits_never_runs(broker: InMemoryBroker) -> None:
    runs: list[int] = []

    @broker.task
    async def note(number: int) -> None:
        runs.append(number)

    handles = [await note.kiq(number) for number in range(1001)]
    assert [await each.abort() for each in handles[:-1]] == [True] * 1000
    assert all([await is_aborted(each) for each in handles[:-1]])
    await handles[-1].wait_result()
    assert runs == [1000]


async def test_what_runs_sees_a_cancellation_and_the_rest_goes_on(
    broker: InMemoryBroker,
) -> None:
    started, seen, steps = asyncio.Event(), list[float](), list[str]()

    async def resource() -> AsyncGenerator[int, None]:
        try:
            yield 1
        except TaskAbortedError:
            steps.append("dependency told")
        finally:
            await asyncio.sleep(0)
            steps.append("dependency closed")

    @broker.task
    async def wait(resource: int = TaskiqDepends(resource)) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(time.monotonic())
        await asyncio.sleep(0)  # its cleanup is not cancelled once more
        return "too late"

    handle = await wait.kiq()
    await started.wait()
    asked = time.monotonic()
    assert await handle.abort()
    assert await is_aborted(handle)
    assert seen[0] - asked < 0.2
    assert steps == ["dependency told", "dependency closed"]
    assert not await handle.abort()
    await broker.wait_all()


async def test_a_function_in_a_thread_may_ask(broker: InMemoryBroker) -> None:
    started, over = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @broker.task
    def work(context: Context = TaskiqDepends()) -> None:  # noqa: B008
        loop.call_soon_threadsafe(started.set)
        while not context.aborted():
            time.sleep(0.001)
        over.set()

    handle = await work.kiq()
    await started.wait()
    await handle.abort()
    assert await is_aborted(handle)
    assert await asyncio.to_thread(over.wait, 5)


async def test_a_message_leaves_the_batch_it_waits_in(broker: InMemoryBroker) -> None:
    broker.with_clock(ManualClock())
    calls: list[list[int]] = []

    @broker.task(batch=True, batch_size=3, batch_max_buffered=3, batch_timeout=60)
    async def double(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        return [2 * number for number in numbers]

    handles = [await double.kiq(number) for number in range(2)]
    await asyncio.sleep(0)
    await handles[0].abort()
    assert await is_aborted(handles[0])
    assert calls == []
    more = [await double.kiq(number) for number in (2, 3)]
    results = [await each.wait_result(timeout=5) for each in (handles[1], *more)]
    assert [each.return_value for each in results] == [2, 4, 6]
    assert calls == [[1, 2, 3]]
    await broker.wait_all()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_member_of_a_running_batch_is_aborted_whatever_is_returned(
    broker: InMemoryBroker,
    fails: bool,
) -> None:
    go_on, told = asyncio.Event(), list[list[bool]]()
    started = asyncio.Event()

    @broker.task(batch=True, batch_size=3, batch_isolate_errors=True)
    async def double(
        numbers: list[int],
        context: BatchContext = TaskiqDepends(),  # noqa: B008
    ) -> list[int]:
        started.set()
        await go_on.wait()
        told.append([context.aborted(each) for each in range(len(numbers))])
        if fails and 2 in numbers:
            raise ValueError("two")
        return [2 * number for number in numbers]

    handles = [await double.kiq(number) for number in range(3)]
    await started.wait()
    assert await handles[1].abort()
    await asyncio.sleep(0)
    go_on.set()
    assert await is_aborted(handles[1])
    assert (await handles[0].wait_result()).return_value == 0
    last = await handles[2].wait_result()
    assert isinstance(last.error, ValueError) if fails else last.return_value == 4
    assert told[0] == [False, True, False]
    # When culprits are looked for, who was aborted is not called again.
    assert not any(each for call in told[1:] for each in call)


@pytest.mark.parametrize("turns", [0, 1], ids=["together", "one by one"])
async def test_a_batch_that_nobody_wants_is_cancelled(
    broker: InMemoryBroker,
    turns: int,
) -> None:
    started = asyncio.Event()

    @broker.task(batch=True, batch_size=2)
    async def wait(numbers: list[int]) -> list[int]:
        started.set()
        await asyncio.Event().wait()
        return numbers

    handles = [await wait.kiq(number) for number in range(2)]
    await started.wait()
    for each in handles:
        assert await each.abort()
        for _ in range(turns):
            await asyncio.sleep(0)
    assert all([await is_aborted(each) for each in handles])


async def test_an_item_that_stands_for_several_is_aborted_with_the_last(
    broker: InMemoryBroker,
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()
    told: list[bool] = []

    @broker.task(batch=True, batch_size=3, batch_coalesce=lambda each: each)
    async def double(
        numbers: list[int],
        context: BatchContext = TaskiqDepends(),  # noqa: B008
    ) -> list[int]:
        started.set()
        await go_on.wait()
        told.extend(context.aborted(each) for each in range(len(numbers)))
        return [2 * number for number in numbers]

    handles = [await double.kiq(number) for number in (1, 1, 2)]
    await started.wait()
    await handles[0].abort()
    go_on.set()
    assert await is_aborted(handles[0])
    assert (await handles[1].wait_result()).return_value == 2
    assert told == [False, False]


def test_a_message_is_aborted_from_another_event_loop(broker: InMemoryBroker) -> None:
    started = threading.Event()
    handles: list[AsyncTaskiqTask[None]] = []

    @broker.task
    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    async def send() -> bool:
        handles.append(await wait.kiq())
        return await is_aborted(handles[0])

    outcomes: list[bool] = []
    sender = threading.Thread(target=lambda: outcomes.append(asyncio.run(send())))
    sender.start()
    assert started.wait(5)
    assert asyncio.run(handles[0].abort())
    sender.join(5)
    assert outcomes == [True]


def test_a_loop_that_is_closed_need_not_hear(broker: InMemoryBroker) -> None:
    @broker.task
    async def nothing() -> None: ...

    async def run() -> None:
        await (await nothing.kiq()).wait_result(timeout=5)

    asyncio.run(run())
    assert broker.abort_store is not None
    broker.abort_store.aborts.hear(["another"])
    broker.abort_store.aborts.hear(["one more"])
    asyncio.run(run())


class Holding(TaskiqMiddleware):
    """Keeps a batch that has left from being called."""

    def __init__(self) -> None:
        super().__init__()
        self.has_left, self.go_on = asyncio.Event(), asyncio.Event()

    async def on_batch_start(self, batch: BatchInfo) -> None:
        self.has_left.set()
        await self.go_on.wait()


@pytest.mark.parametrize("aborted", [{1}, {*range(10)}, {*range(12)}])
async def test_what_waits_in_a_sealed_batch_is_left_out_of_its_call_and_named(
    aborted: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Also all of it: then there is no call. One line names ten."""
    holding = Holding()
    broker = QueueBroker().with_middlewares(holding)
    calls: list[list[int]] = []

    @broker.task("double", batch=True, batch_size=12, batch_timeout=60)
    async def double(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        return [2 * number for number in numbers]

    handles = await double.kiq_many(range(12))
    finish = asyncio.Event()
    receiver = Receiver(broker, max_async_tasks=1, max_prefetch=12, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    await holding.has_left.wait()
    for each in aborted:
        await handles[each].abort()
    holding.go_on.set()
    assert all([await is_aborted(handles[each]) for each in aborted])
    others = sorted(set(range(12)) - aborted)
    results = [await handles[each].wait_result(timeout=5) for each in others]
    assert [each.return_value for each in results] == [2 * each for each in others]
    finish.set()
    await listening
    assert calls == [others] * bool(others)
    assert len(broker.acked) == 12
    ids = [f"task double with ID {handles[each].task_id}" for each in sorted(aborted)]
    more = " and 2 more" if len(aborted) == 12 else ""
    assert f"Aborted: {', '.join(ids[:10])}{more}." in caplog.messages


_HELD: Final[dict[str, dict[str, Any]]] = {
    "in an open batch": {"batch": True, "batch_size": 1000},
    "in batches of many keys": {"batch": True, "batch_key": lambda item: item},
    "outside of what a task may hold": {
        "batch": True,
        "batch_size": 1,
        "batch_max_buffered": 1,
    },
    "in plain calls that run": {},
    "in batches that run": {"batch": True, "batch_size": 1},
}


@pytest.mark.parametrize("options", _HELD.values(), ids=list(_HELD))
@virtual
async def test_aborting_one_costs_the_same_however_many_are_held(
    options: dict[str, Any],
) -> None:
    lines: list[float] = []
    for count in (50, 400):
        broker = InMemoryBroker()

        async def wait(item: Any) -> None:
            await asyncio.Event().wait()

        task: Any = broker.register_task(wait, "wait", **options)
        handles = [await task.kiq(number) for number in range(count)]
        await asyncio.sleep(0.01)
        assert broker.abort_store is not None
        work = Work()
        with work:
            # The last first, and each by itself: others would begin to run.
            for handle in reversed(handles):
                broker.abort_store.aborts.hear([handle.task_id])
                await asyncio.sleep(0)
            await broker.wait_all()
        lines.append(work.lines / count)
        assert all([await is_aborted(handle) for handle in handles])
        broker.executor.shutdown()
    few, many = lines
    assert many <= few * 1.1


@virtual
async def test_a_slot_that_comes_when_nothing_waits_for_it_any_more_is_given_back() -> (
    None
):
    worker = BatchWorker(batch_size=1)
    worker.broker.with_abort_store(InMemoryAborts())
    listening = worker.listen()
    await worker.occupy()
    handle = await worker.task.kiq("aborted")
    await worker.until_held(1)
    assert await handle.abort()
    assert await is_aborted(handle)
    worker.vacate()
    await asyncio.sleep(1)
    await worker.send("called")
    await asyncio.sleep(1)
    assert worker.calls == [["called"]]
    worker.finish.set()
    await listening
    worker.assert_as_new()


class Following(TaskiqMiddleware):
    """Notes who asked for what is saved."""

    def __init__(self, caller: contextvars.ContextVar[str]) -> None:
        super().__init__()
        self.caller = caller
        self.callers: list[str] = []

    async def post_save(self, message: TaskiqMessage, result: Any) -> None:
        self.callers.append(self.caller.get("nobody"))


@pytest.mark.parametrize("is_saved", [True, False])
@virtual
async def test_what_is_aborted_in_a_batch_is_a_message_like_others(
    is_saved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its callback returns, its hooks know nothing of who aborted it, and a stop names
    it that comes before its result is saved."""
    gate = Gate()
    caller = contextvars.ContextVar[str]("caller")
    following = Following(caller)
    backend = GatedBackend(gate)
    worker = BatchWorker(
        len,
        following,
        backend=backend,
        is_recording=False,  # or it has a context of its own, from the time it came
        batch_size=2,
        wait_tasks_timeout=5,
    )
    store = InMemoryAborts()
    worker.broker.with_abort_store(store)
    await worker.send("aborted")
    listening = worker.listen()
    await worker.until_held(1)
    caller.set("who aborts")
    await store.mark("0")
    await gate.reached.wait()
    worker.finish.set()
    if is_saved:
        gate.opened.set()
    await listening
    assert worker.broker.acked == ["0"] * is_saved
    assert following.callers == ["nobody"] * is_saved
    told = ["Stopped before it was done, not acknowledged: task work with ID 0."]
    assert complaints(caplog) == told * (not is_saved)
    assert all(each.execution_time == 0 for each in worker.backend.results.values())
    assert worker.calls == []
    worker.assert_as_new()


@virtual
async def test_a_callback_returns_when_its_message_is_aborted_in_a_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = BatchWorker(batch_size=2)
    store = InMemoryAborts()
    worker.broker.with_abort_store(store)
    await worker.send("aborted")
    [message] = worker.broker.take_all()
    delivery = worker.ackable(message.message, "0")
    callback = asyncio.ensure_future(worker.receiver.callback(delivery))
    await worker.until_held(1)
    await store.mark("0")
    await callback
    assert worker.broker.acked == ["0"]
    assert isinstance(worker.errors["0"], TaskAbortedError)
    assert complaints(caplog) == []
    worker.assert_as_new()


@virtual
async def test_a_lost_subscription_is_made_again_soon_after_one_that_held(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pauses double for as long as none of them holds."""
    held = iter([False, False, True, False])
    over = asyncio.Event()

    class Losing(Remote):
        async def follow(self) -> None:
            try:
                self.aborts.is_current = next(held)
            except StopIteration:
                over.set()
                await asyncio.Event().wait()

    broker = QueueBroker()
    broker.with_abort_store(Losing(set()))
    finish = asyncio.Event()
    receiver = Receiver(broker, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    await over.wait()
    finish.set()
    await listening
    told = [each for each in caplog.messages if "No longer told" in each]
    pauses = [each.rpartition("trying in ")[2] for each in told]
    assert pauses == ["0.05 s.", "0.1 s.", "0.05 s.", "0.1 s."]
    assert all("messages: it ended." in each for each in told)
    assert asyncio.get_running_loop().time() == pytest.approx(0.3)


class Remote(InMemoryAborts):
    """A store that is elsewhere: it is followed, or looked at."""

    is_local = False

    def __init__(self, marked: set[str]) -> None:
        super().__init__()
        self.aborts.is_current = False
        self.marked = marked
        self.looks: list[Sequence[str]] = []
        self.is_followed = asyncio.Event()
        self.may_follow = asyncio.Event()

    async def mark(self, task_id: str) -> None:
        self.marked.add(task_id)
        if self.aborts.is_current:
            self.aborts.hear([task_id])

    async def look(self, task_ids: Sequence[str]) -> Collection[str]:
        self.looks.append(task_ids)
        for _ in range(50):  # as long as a round trip
            await asyncio.sleep(0)
        return self.marked & set(task_ids)

    async def follow(self) -> None:
        await self.may_follow.wait()
        self.aborts.hear(self.marked)
        self.aborts.is_current = True
        self.is_followed.set()
        await asyncio.Event().wait()


class QueueBroker(InMemoryBroker):
    """Delivers in this process what was sent, and counts what is acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[AckableMessage] = asyncio.Queue()
        self.acked: list[bytes] = []

    async def kick(self, message: BrokerMessage) -> None:
        data = message.message
        await self.queue.put(
            AckableMessage(data=data, ack=lambda: self.acked.append(data)),
        )

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:  # type: ignore[override]
        while True:
            yield await self.queue.get()


@pytest.mark.parametrize(
    ("ack_type", "is_followed"),
    [(AcknowledgeType.WHEN_SAVED, False), *((each, True) for each in AcknowledgeType)],
)
async def test_a_worker_acknowledges_what_is_aborted_and_looks_in_bulk(
    ack_type: AcknowledgeType,
    is_followed: bool,
) -> None:
    broker = QueueBroker()
    store = Remote(set())
    broker.with_abort_store(store)
    runs: list[int] = []

    @broker.task
    async def note(number: int) -> None:
        runs.append(number)

    handles = await note.kiq_many(range(100))
    for each in handles[1:]:
        await each.abort()
    finish = asyncio.Event()
    receiver = Receiver(broker, ack_type=ack_type, run_startup=False)
    if is_followed:
        store.may_follow.set()
    listening = asyncio.create_task(receiver.listen(finish))
    if is_followed:
        await store.is_followed.wait()
    assert all([await is_aborted(each) for each in handles[1:]])
    await handles[0].wait_result(timeout=5)
    finish.set()
    await listening
    assert runs == [0]
    is_manual = ack_type is AcknowledgeType.MANUAL
    assert len(broker.acked) == (99 if is_manual else 100)
    assert len(store.looks) < 20
    assert not store.aborts.is_current


class Failing(Remote):
    """A store whose second look fails, and which cannot be followed."""

    def __init__(self, *, hangs: bool) -> None:
        super().__init__({"3", "5"})
        self.hangs = hangs
        self.moments: list[float] = []

    async def look(self, task_ids: Sequence[str]) -> Collection[str]:
        self.looks.append(task_ids)
        self.moments.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1)
        if len(self.looks) == 2:
            if self.hangs:
                await asyncio.Event().wait()
            raise OSError("away")
        return self.marked & set(task_ids)

    async def follow(self) -> None:
        raise OSError("lost")


@pytest.mark.parametrize(
    ("hangs", "error", "fails_at"),
    [(False, "OSError('away')", 2), (True, "TimeoutError('no end within 5 s')", 6)],
)
@virtual
async def test_a_worker_whose_store_is_away_says_so_and_runs(
    hangs: bool, error: str, fails_at: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A look has five seconds, and no other one follows within five seconds."""
    broker, store = QueueBroker(), Failing(hangs=hangs)
    broker.with_abort_store(store)
    loop = asyncio.get_running_loop()
    runs: list[tuple[float, int]] = []

    @broker.task
    async def note(number: int) -> None:
        runs.append((loop.time(), number))

    finish = asyncio.Event()
    receiver = Receiver(broker, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    # 2 asks while a look goes on, 3 while the next one does, which fails.
    moments = [0, 0.5, 1.5, fails_at + 4.9, fails_at + 5]
    for number, moment in enumerate(moments, 1):
        await asyncio.sleep(moment - loop.time())
        await note.kicker().with_task_id(str(number)).kiq(number)
    await asyncio.sleep(2)
    finish.set()
    await listening
    assert store.looks == [["1"], ["2"], ["5"]]
    assert store.moments == [0, 1, fails_at + 5]
    assert runs == [(1, 1), (fails_at, 2), (fails_at, 3), (fails_at + 4.9, 4)]
    assert len(broker.acked) == 5
    said = [each for each in caplog.messages if "Cannot look" in each]
    assert said == [
        f"Cannot look whether messages were aborted: {error}. Those of the next "
        "5 seconds run unless they are told of."
    ]
    told = [each for each in caplog.messages if "No longer told" in each]
    assert all("aborted messages: OSError('lost'). " in each for each in told)
    pauses = [each.rpartition("trying in ")[2] for each in told]
    ever_longer = [f"{0.05 * 2**number:g} s." for number in range(7)]
    assert pauses[:9] == [*ever_longer, "5 s.", "5 s."][: len(pauses)]
    assert len(pauses) > 7
