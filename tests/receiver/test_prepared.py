"""What a receiver works out at its construction, and keeps for each task."""

# Dependencies are read from the annotations at run time.
import asyncio
import inspect
import logging
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskiq_dependencies import DependencyGraph

from taskiq import AsyncBroker, Context, InMemoryBroker, TaskiqDepends
from taskiq.acks import AcknowledgeType
from taskiq.receiver import Receiver
from taskiq.receiver.prepared import PreparedTask
from tests.support.brokers import QueueBroker
from tests.support.worker import CurrentContext, Worker, complaints

RANDINT = "taskiq.receiver.receiver.random.randint"


class Draws:
    """Stands in for `random.randint`, and gives the highest number."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, low: int, high: int) -> int:
        self.asked.append((low, high))
        return high


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    drawing = Draws()
    monkeypatch.setattr(RANDINT, drawing)
    return drawing


# -- The constructor ---------------------------------------------------------------


def test_options_can_be_read_back() -> None:
    def on_exit(receiver: Receiver) -> None:
        raise NotImplementedError

    broker = QueueBroker()

    receiver = Receiver(
        broker,
        validate_params=False,
        max_async_tasks=3,
        propagate_exceptions=False,
        run_startup=False,
        ack_type=AcknowledgeType.MANUAL,
        on_exit=on_exit,
        max_tasks_to_execute=4,
        wait_tasks_timeout=5.0,
    )

    assert receiver.broker is broker
    assert receiver.executor is None
    assert not receiver.validate_params
    assert not receiver.propagate_exceptions
    assert not receiver.run_startup
    assert receiver.ack_time is AcknowledgeType.MANUAL
    assert receiver.on_exit is on_exit
    assert receiver.max_tasks_to_execute == 4
    assert receiver.wait_tasks_timeout == 5.0
    assert not receiver.is_process_pool


def test_defaults_are_those_of_a_worker_without_options() -> None:
    receiver = Receiver(QueueBroker())

    assert receiver.validate_params
    assert receiver.propagate_exceptions
    assert receiver.run_startup
    assert receiver.ack_time is AcknowledgeType.WHEN_SAVED
    assert receiver.on_exit is None
    assert receiver.max_tasks_to_execute is None
    assert receiver.wait_tasks_timeout is None


def test_a_receiver_needs_no_running_loop_to_be_built() -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()

    Receiver(QueueBroker(), max_async_tasks=1)
    InMemoryBroker()


def test_a_negative_prefetch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_prefetch cannot be negative.*-1"):
        Receiver(QueueBroker(), max_prefetch=-1)


# -- Capacity ----------------------------------------------------------------------


@given(limit=st.integers(1, 50), prefetch=st.integers(0, 50))
def test_a_limit_bounds_executions_and_with_the_prefetch_deliveries(
    limit: int,
    prefetch: int,
) -> None:
    receiver = Receiver(QueueBroker(), max_async_tasks=limit, max_prefetch=prefetch)

    assert receiver.sem is not None
    assert receiver.sem._value == limit
    assert receiver.sem_prefetch._value == limit + prefetch


@pytest.mark.parametrize("limit", [None, 0, -1])
def test_an_unlimited_receiver_has_no_semaphore_of_executions_and_warns(
    limit: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = Receiver(QueueBroker(), max_async_tasks=limit, max_prefetch=4)

    assert receiver.sem is None
    assert receiver.sem_prefetch._value == 5
    assert len(complaints(caplog)) == 1
    assert "unlimited" in complaints(caplog)[0].lower()


def test_a_limited_receiver_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    Receiver(QueueBroker(), max_async_tasks=1)

    assert complaints(caplog) == []


@pytest.mark.parametrize("jitter", [1, 4])
def test_the_jitter_is_drawn_once_and_added_to_both_limits(
    draws: Draws,
    jitter: int,
) -> None:
    receiver = Receiver(
        QueueBroker(),
        max_async_tasks=3,
        max_async_tasks_jitter=jitter,
        max_prefetch=2,
    )

    assert draws.asked == [(0, jitter)]
    assert receiver.sem is not None
    assert receiver.sem._value == 3 + jitter
    assert receiver.sem_prefetch._value == 5 + jitter


@pytest.mark.parametrize(("limit", "jitter"), [(3, 0), (None, 4), (0, 4), (-1, 4)])
def test_no_jitter_is_drawn_where_there_is_none_or_no_limit(
    limit: int | None,
    jitter: int,
    draws: Draws,
) -> None:
    Receiver(QueueBroker(), max_async_tasks=limit, max_async_tasks_jitter=jitter)

    assert draws.asked == []


# -- Prepared tasks ----------------------------------------------------------------


def test_every_task_of_the_broker_is_prepared_at_construction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AsyncBroker, "global_task_registry", {})
    broker, other = QueueBroker(), QueueBroker()

    async def function(x: int, *, context: CurrentContext) -> str:
        raise NotImplementedError

    broker.register_task(function, task_name="local")
    AsyncBroker.global_task_registry["global"] = other.register_task(
        function,
        task_name="global",
    )

    receiver = Receiver(broker, max_async_tasks=1)

    assert receiver.known_tasks == {"local", "global"}
    for name in receiver.known_tasks:
        assert receiver.task_signatures[name] == inspect.signature(function)
        assert receiver.task_hints[name]["x"] is int
        assert receiver.task_hints[name]["return"] is str
        assert isinstance(receiver.dependency_graphs[name], DependencyGraph)
        assert not receiver.dependency_graphs[name].is_empty()


async def unresolvable(x: "NoSuchName") -> None:  # type: ignore[name-defined] # noqa: F821 - the mistake under test
    raise NotImplementedError


def test_a_hint_that_cannot_be_resolved_raises_from_the_constructor() -> None:
    broker = QueueBroker()

    async def replaced() -> None: ...

    task = broker.register_task(replaced, task_name="task")
    task.original_func = unresolvable  # type: ignore[assignment] # as a subclass may do

    with pytest.raises(NameError, match="NoSuchName"):
        Receiver(broker, max_async_tasks=1)


def test_a_graph_that_cannot_be_built_raises_from_the_constructor() -> None:
    broker = QueueBroker()
    nothing: Any = TaskiqDepends()

    async def task(dependency=nothing) -> None:  # type: ignore[no-untyped-def] # untyped
        raise NotImplementedError

    broker.register_task(task, task_name="task")

    with pytest.raises(ValueError, match="dependency"):
        Receiver(broker, max_async_tasks=1)


async def test_a_task_registered_later_is_prepared_at_its_first_message() -> None:
    worker = Worker()
    assert worker.receiver.known_tasks == set()

    @worker.broker.task(task_name="late")
    async def late(x: int, *, context: CurrentContext) -> str:
        return f"{context.message.task_id} {x + 1}"

    result = await worker.deliver(late, "1")

    assert result is not None
    assert result.return_value == "id 2"
    assert worker.receiver.known_tasks == {"late"}
    assert worker.receiver.task_hints["late"]["x"] is int
    assert "late" in worker.receiver.task_signatures
    assert "late" in worker.receiver.dependency_graphs


@pytest.mark.parametrize("is_used_before", [False, True])
async def test_a_task_whose_entries_were_removed_is_prepared_again(
    is_used_before: bool,
) -> None:
    worker = Worker()

    @worker.broker.task(task_name="task")
    async def task(x: int) -> int:
        return x + 1

    receiver = worker.receiver
    if is_used_before:
        await worker.deliver(task, "1")
    receiver.known_tasks.remove("task")
    del receiver.dependency_graphs["task"]
    del receiver.task_signatures["task"]
    del receiver.task_hints["task"]

    result = await worker.deliver(task, "1", task_id="again")

    assert result is not None
    assert result.return_value == 2
    assert receiver.known_tasks == {"task"}
    assert set(receiver.dependency_graphs) == {"task"}
    assert set(receiver.task_signatures) == {"task"}
    assert set(receiver.task_hints) == {"task"}


async def test_prepared_data_follow_the_function_registered_now() -> None:
    worker = Worker()

    def dependency() -> str:
        return "injected"

    async def old(x: int) -> None:
        raise NotImplementedError

    async def new(
        x: str,
        y: Annotated[str, TaskiqDepends(dependency)],
    ) -> tuple[str, str]:
        return x, y

    worker.broker.register_task(old, task_name="task")
    receiver = worker.receiver
    task = worker.broker.register_task(new, task_name="task")

    result = await worker.deliver(task, "1")

    assert result is not None
    assert result.return_value == ("1", "injected")
    assert receiver.task_hints["task"]["x"] is str
    assert list(receiver.task_signatures["task"].parameters) == ["x", "y"]
    assert not receiver.dependency_graphs["task"].is_empty()


async def test_whether_a_task_runs_in_batches_follows_what_is_registered_now() -> None:
    worker = Worker()

    async def echo(items: list[int]) -> list[int]:
        return items

    worker.broker.register_task(echo, task_name="task", batch=True, batch_size=1)
    assert "task" in worker.receiver.known_tasks
    task = worker.broker.register_task(echo, task_name="task")

    result = await worker.deliver(task, [1, 2])

    assert result is not None
    assert result.return_value == [1, 2]


async def test_a_function_that_cannot_be_prepared_does_not_run_as_its_predecessor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()
    nothing: Any = TaskiqDepends()

    async def old() -> None:
        raise NotImplementedError

    async def new(dependency=nothing) -> None:  # type: ignore[no-untyped-def] # untyped
        raise NotImplementedError

    worker.broker.register_task(old, task_name="task")
    _ = worker.receiver
    task = worker.broker.register_task(new, task_name="task")

    for task_id in ("1", "2"):
        result = await worker.deliver(task, task_id=task_id)
        assert result is not None
        assert isinstance(result.error, ValueError)
        assert result.execution_time == 0
        assert worker.steps(task_id)[-1] == "ack"
    assert len(complaints(caplog)) == 2


async def test_a_task_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    built: list[Any] = []

    def counting(target: Any) -> DependencyGraph:
        built.append(target)
        return DependencyGraph(target)

    monkeypatch.setattr("taskiq.receiver.prepared.DependencyGraph", counting)

    @worker.broker.task
    async def task(context: CurrentContext) -> str:
        return context.message.task_id

    for number in range(3):
        await worker.deliver(task, task_id=str(number))

    assert built == [task.original_func]


def test_a_task_is_one_and_the_same_for_threads_that_prepare_it_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its messages shared no call otherwise, nor its limits."""
    broker = QueueBroker()
    tasks = Receiver(broker, max_async_tasks=1).prepared_tasks

    @broker.task(batch=True)
    async def task(items: list[int]) -> None: ...

    faster: list[PreparedTask | None] = []

    class InBetween:
        """As if another thread came to it first."""

        def __enter__(self) -> None:
            monkeypatch.undo()
            faster.append(tasks.of(task))

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(tasks, "_change", InBetween())

    slower = tasks.of(task)

    assert faster == [slower]
    assert tasks.of(task) is slower is not None


def test_logging_at_construction_names_the_receiver(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Receiver(QueueBroker())

    assert {record.name for record in caplog.records} == {"taskiq.receiver.receiver"}
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_two_receivers_of_one_broker_keep_their_own_data() -> None:
    worker = Worker()

    @worker.broker.task
    async def task(context: Annotated[Context, TaskiqDepends()]) -> None: ...

    other = Receiver(worker.broker, max_async_tasks=1)
    other.known_tasks.clear()

    assert worker.receiver.known_tasks == {task.task_name}


def test_a_receiver_that_has_held_nothing_counts_nothing() -> None:
    assert Receiver(QueueBroker()).batch_statistics().is_idle
