"""A worker inside the running event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import AckableMessage, TaskiqEvents
from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq.receiver import Receiver
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import virtual
from tests.support.worker import complaints

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


async def idle() -> None:
    """Let everything happen that can happen before a millisecond passes."""
    await asyncio.sleep(0.001)


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Broker(QueueBroker):
    """Listens as a script says: each entry is one time it is listened to.

    :param script: seconds to listen before failing; when it has ended, messages are
        given out for ever.
    """

    def __init__(self, *script: float) -> None:
        super().__init__()
        self.script = list(script)
        self.events: list[tuple[str, float]] = []
        self.failing_starts = 0

    def _note(self, event: str) -> None:
        self.events.append((event, asyncio.get_running_loop().time()))

    def moments(self, event: str) -> list[float]:
        return [moment for each, moment in self.events if each == event]

    async def startup(self) -> None:
        self._note("startup")
        if self.failing_starts:
            self.failing_starts -= 1
            raise ConnectionError("no broker")
        await super().startup()

    async def shutdown(self) -> None:
        self._note("shutdown")
        await super().shutdown()

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        self._note("listen")
        if self.script:
            await asyncio.sleep(self.script.pop(0))
            self._note("fail")
            raise ConnectionError("lost the broker")
        async for message in super().listen():
            yield message


# -- What it does ------------------------------------------------------------------


@virtual
async def test_tasks_are_run_until_the_worker_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker()
    backend = RecordingBackend()
    broker.with_result_backend(backend)

    @broker.task
    async def double(number: int) -> int:
        return number * 2

    worker = asyncio.ensure_future(run_receiver_task(broker))
    for number in range(3):
        sent = await double.kicker().with_task_id(str(number)).kiq(number)
        await idle()
        assert (await sent.get_result()).return_value == number * 2
    assert broker.is_worker_process
    assert complaints(caplog) == []

    await cancel(worker)

    assert broker.acked == ["0", "1", "2"]
    assert len(complaints(caplog)) == 1
    assert "cancelled" in complaints(caplog)[0]
    assert broker.is_closed
    assert broker.moments("startup") == broker.moments("shutdown") == []


@virtual
async def test_the_end_of_the_brokers_messages_ends_it_as_a_cancellation_does() -> None:
    broker = Broker()
    done: list[str] = []

    @broker.task
    async def task() -> None:
        done.append("task")

    await task.kiq()
    broker.end()

    with pytest.raises(asyncio.CancelledError):
        await run_receiver_task(broker)

    assert done == ["task"]
    assert len(broker.moments("listen")) == 1


@virtual
async def test_cancelling_it_cancels_what_runs_and_discards_what_waits() -> None:
    broker = Broker()
    broker.with_result_backend(RecordingBackend())
    events: list[str] = []

    @broker.task
    async def endless(name: str) -> None:
        events.append(f"{name} starts")
        try:
            await asyncio.Event().wait()
        finally:
            events.append(f"{name} ends")

    worker = asyncio.ensure_future(
        run_receiver_task(broker, max_async_tasks=1, max_prefetch=1),
    )
    await endless.kiq("first")
    await endless.kiq("second")
    await idle()
    assert len(broker.delivered) == 2

    await cancel(worker)

    assert events == ["first starts", "first ends"]
    assert broker.acked == []


async def test_sync_tasks_that_run_do_not_keep_the_loop_waiting() -> None:
    broker = Broker()
    started = asyncio.Event()
    go_on, ended = threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @broker.task
    def blocking() -> None:
        loop.call_soon_threadsafe(started.set)
        go_on.wait(10)
        ended.set()

    worker = asyncio.ensure_future(run_receiver_task(broker, sync_workers=1))
    await blocking.kiq()
    await started.wait()

    await cancel(worker)

    assert not ended.is_set()
    go_on.set()
    assert ended.wait(10)


# -- What the receiver is built with -----------------------------------------------


class Recorded(Receiver):
    """Keeps what each of it was built with."""

    built: list[dict[str, Any]]

    def __init__(self, **options: Any) -> None:
        self.built.append(options)
        super().__init__(**options)


@pytest.fixture
def recorded() -> type[Recorded]:
    class Own(Recorded):
        built: list[dict[str, Any]] = []  # noqa: RUF012 - one list for each test

    return Own


@virtual
async def test_the_receiver_is_built_with_keywords(recorded: type[Recorded]) -> None:
    broker = Broker()

    worker = asyncio.ensure_future(
        run_receiver_task(
            broker,
            recorded,
            sync_workers=3,
            validate_params=False,
            max_async_tasks=4,
            max_async_tasks_jitter=5,
            max_prefetch=6,
            propagate_exceptions=False,
            run_startup=True,
            ack_time=AcknowledgeType.MANUAL,
        ),
    )
    await idle()
    await cancel(worker)

    [options] = recorded.built
    executor, on_exit = options.pop("executor"), options.pop("on_exit")
    assert isinstance(executor, ThreadPoolExecutor)
    assert executor._max_workers == 3
    with pytest.raises(asyncio.CancelledError):
        on_exit(None)
    assert options == {
        "broker": broker,
        "validate_params": False,
        "max_async_tasks": 4,
        "max_async_tasks_jitter": 5,
        "max_prefetch": 6,
        "propagate_exceptions": False,
        "run_startup": True,
        "ack_type": AcknowledgeType.MANUAL,
    }


@pytest.mark.parametrize(
    ("use_process_pool", "kind"),
    [(False, ThreadPoolExecutor), (True, ProcessPoolExecutor)],
)
@virtual
async def test_sync_tasks_run_in_threads_or_processes(
    use_process_pool: bool,
    kind: type[Executor],
    recorded: type[Recorded],
) -> None:
    worker = asyncio.ensure_future(
        run_receiver_task(
            Broker(),
            recorded,
            sync_workers=1,
            use_process_pool=use_process_pool,
        ),
    )
    await idle()
    await cancel(worker)

    [options] = recorded.built
    assert isinstance(options["executor"], kind)
    assert options["max_async_tasks"] == 100
    assert options["run_startup"] is False


@virtual
async def test_a_negative_prefetch_is_refused_before_anything_is_touched(
    recorded: type[Recorded],
) -> None:
    broker = Broker()

    with pytest.raises(ValueError, match="max_prefetch cannot be negative"):
        await run_receiver_task(broker, recorded, max_prefetch=-1, run_startup=True)

    assert recorded.built == []
    assert broker.events == []
    assert not broker.is_worker_process


# -- Restarts ----------------------------------------------------------------------


@pytest.mark.usefixtures("without_jitter")
@virtual
async def test_a_listener_that_fails_is_restarted_later_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker(*[0] * 11)

    worker = asyncio.ensure_future(run_receiver_task(broker))
    await asyncio.sleep(200)
    await cancel(worker)

    listened = broker.moments("listen")
    pauses = [b - a for a, b in itertools.pairwise(listened)]
    doubled = [0.1 * 2**power for power in range(6)]
    assert pauses == pytest.approx([*doubled, 5, 5, 5, 5, 5])
    warning, *others = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(others) <= 200 / 60
    assert warning.getMessage() == (
        "The listener failed, it is started again in 0.1 s: "
        "ConnectionError: lost the broker"
    )


@pytest.mark.usefixtures("without_jitter")
@virtual
async def test_a_few_seconds_of_health_let_the_next_restart_be_soon() -> None:
    broker = Broker(0, 0, 0, 3, 0)

    worker = asyncio.ensure_future(run_receiver_task(broker))
    await asyncio.sleep(100)
    await cancel(worker)

    pauses = [
        again - failed
        for failed, again in zip(
            broker.moments("fail"),
            broker.moments("listen")[1:],
            strict=True,
        )
    ]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.1, 0.2])


@virtual
async def test_a_restarted_worker_runs_tasks(recorded: type[Recorded]) -> None:
    broker = Broker(0, 1)
    done: list[int] = []

    @broker.task
    async def task(number: int) -> None:
        done.append(number)

    worker = asyncio.ensure_future(run_receiver_task(broker, recorded))
    await task.kiq(1)
    await asyncio.sleep(10)
    await cancel(worker)

    assert done == [1]
    assert len(recorded.built) == 3
    assert len({id(options["executor"]) for options in recorded.built}) == 1


@virtual
async def test_a_started_broker_is_reconnected_but_its_hooks_run_once() -> None:
    broker = Broker(0, 1, 0)
    hooks: list[str] = []
    for event in (TaskiqEvents.WORKER_STARTUP, TaskiqEvents.WORKER_SHUTDOWN):
        broker.add_event_handler(event, lambda _, event=event: hooks.append(event.name))  # type: ignore[misc]  # bound now

    worker = asyncio.ensure_future(run_receiver_task(broker, run_startup=True))
    await asyncio.sleep(10)
    await cancel(worker)

    once = ["shutdown", "startup", "listen", "fail"]
    assert [event for event, _ in broker.events] == [
        *once[1:],
        *once,
        *once,
        *once[:-1],
    ]
    assert hooks == ["WORKER_STARTUP"]


@virtual
async def test_a_broker_that_its_owner_has_started_is_reconnected_too() -> None:
    broker = Broker(0)
    broker.is_worker_process = True
    await broker.startup()

    worker = asyncio.ensure_future(run_receiver_task(broker))
    await asyncio.sleep(10)
    await cancel(worker)

    assert len(broker.moments("startup")) == 2


@virtual
async def test_a_broker_that_nobody_has_started_is_not_started() -> None:
    broker = Broker(0, 0)

    worker = asyncio.ensure_future(run_receiver_task(broker))
    await asyncio.sleep(10)
    await cancel(worker)

    assert len(broker.moments("listen")) == 3
    assert broker.moments("startup") == broker.moments("shutdown") == []


@virtual
async def test_a_start_that_failed_is_repeated() -> None:
    broker = Broker()
    broker.failing_starts = 2

    worker = asyncio.ensure_future(run_receiver_task(broker, run_startup=True))
    await asyncio.sleep(10)
    await cancel(worker)

    assert len(broker.moments("startup")) == 3
    assert len(broker.moments("listen")) == 1


@virtual
async def test_a_constructor_that_fails_is_called_again() -> None:
    attempts: list[float] = []

    class Fragile(Receiver):
        def __init__(self, **options: Any) -> None:
            attempts.append(asyncio.get_running_loop().time())
            if len(attempts) < 3:
                raise LookupError("not yet")
            super().__init__(**options)

    broker = Broker()
    worker = asyncio.ensure_future(run_receiver_task(broker, Fragile, run_startup=True))
    await asyncio.sleep(10)
    await cancel(worker)

    assert len(attempts) == 3
    assert attempts[1] >= 0.05
    assert len(broker.moments("startup")) == 1


@virtual
async def test_a_receiver_class_of_ones_own_need_not_be_a_receiver() -> None:
    class Own:
        def __init__(self, **options: Any) -> None:
            built.append(self)

        async def listen(self, finish_event: asyncio.Event) -> None:
            if len(built) == 1:
                raise LookupError("not yet")
            if len(built) == 2:
                return  # without having called `on_exit`
            await finish_event.wait()

    built: list[Own] = []
    own_class: Any = Own

    worker = asyncio.ensure_future(run_receiver_task(Broker(), own_class))
    await asyncio.sleep(10)
    await cancel(worker)

    assert len(built) == 3


# -- Cancellation always wins ------------------------------------------------------


@pytest.mark.parametrize("turns", range(25))
@virtual
async def test_a_cancellation_wins_whatever_fails_at_that_moment(turns: int) -> None:
    broker = Broker(*[0] * 1000)

    worker = asyncio.ensure_future(run_receiver_task(broker))
    for _ in range(turns):
        await asyncio.sleep(0)
    listened = len(broker.events)
    await cancel(worker)

    assert len(broker.events) - listened <= 2  # it ends what it is at, no more


@pytest.mark.parametrize("seconds", [0.01, 0.2, 3, 100])
@virtual
async def test_a_cancellation_ends_the_pause_before_a_restart(seconds: float) -> None:
    broker = Broker(*[0] * 1000)

    worker = asyncio.ensure_future(run_receiver_task(broker))
    await asyncio.sleep(seconds)
    moment = asyncio.get_running_loop().time()
    await cancel(worker)

    assert asyncio.get_running_loop().time() == moment


@virtual
async def test_a_cancellation_wins_over_the_error_it_is_answered_with() -> None:
    class Stubborn(Broker):
        async def startup(self) -> None:
            self._note("startup")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as exc:
                raise ConnectionError("gave up connecting") from exc

    broker = Stubborn()
    worker = asyncio.ensure_future(run_receiver_task(broker, run_startup=True))
    await idle()

    worker.cancel()
    done, _ = await asyncio.wait([worker], timeout=100)

    assert done == {worker}
    assert worker.cancelled()
    assert len(broker.moments("startup")) == 1
