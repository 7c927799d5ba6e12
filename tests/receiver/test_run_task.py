"""Calling the function of a plain task: dependencies, timeout, threads, errors."""

# Dependencies are read from the annotations at run time.
import asyncio
import contextvars
import functools
import itertools
import os
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Annotated, Any

import pytest
from taskiq_dependencies import DependencyGraph

from taskiq import Context, TaskiqDepends, TaskiqState
from taskiq.brokers.inmemory_broker import InMemoryBroker
from taskiq.exceptions import NoResultError, TaskRejectedError
from taskiq.receiver import Receiver
from tests.receiver import process_tasks
from tests.support.brokers import QueueBroker, message_bytes
from tests.support.virtual_time import run_virtual
from tests.support.worker import CurrentContext, Worker, complaints, message_of

# Python 3.12 and later: the dependency package throws errors into generators so.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the \(type, exc, tb\) signature of a?throw\(\):DeprecationWarning",
)


# -- What the function is called with ----------------------------------------------


async def test_a_result_holds_the_value_and_the_labels_of_its_message() -> None:
    worker = Worker()

    @worker.broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    result = await worker.deliver(add, 1, b=2, labels={"colour": "red"})

    assert result is not None
    assert result.return_value == 3
    assert result.error is None
    assert not result.is_err
    assert result.log is None
    assert result.labels == {"colour": "red"}


def test_the_time_of_a_call_covers_its_dependencies_but_not_their_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        monkeypatch.setattr("taskiq.receiver.execution.time.perf_counter", clock)
        worker = Worker()

        async def slow() -> AsyncGenerator[int, None]:
            await asyncio.sleep(1)
            yield 1
            await asyncio.sleep(10)

        @worker.broker.task
        async def task(value: int = TaskiqDepends(slow)) -> None:
            await asyncio.sleep(0.3333)

        result = await worker.deliver(task)

        assert result is not None
        assert result.execution_time == 1.33

    run_virtual(main())


async def test_run_task_prepares_a_task_it_does_not_know() -> None:
    broker = QueueBroker()
    receiver = Receiver(broker, max_async_tasks=1)

    async def double(number: int, context: CurrentContext) -> str:
        return f"{context.message.task_id}: {number * 2}"

    result = await receiver.run_task(target=double, message=message_of("double", "4"))

    assert result.return_value == "id: 8"
    assert "double" in receiver.known_tasks
    assert set(receiver.task_hints["double"]) >= {"number", "context"}
    assert "double" in receiver.task_signatures
    assert "double" in receiver.dependency_graphs


async def test_run_task_calls_its_target_whatever_is_registered() -> None:
    worker = Worker()

    @worker.broker.task
    async def registered(number: int) -> int:
        raise NotImplementedError

    async def wrapper(number: int) -> int:
        return number + 1

    result = await worker.receiver.run_task(
        wrapper,
        message_of(registered.task_name, "1"),
    )

    assert result.return_value == 2


async def test_run_task_calls_a_sync_wrapper_of_an_async_task_in_the_pool() -> None:
    worker = Worker()

    @worker.broker.task
    async def registered() -> str:
        return threading.current_thread().name

    def wrapper() -> tuple[str, Coroutine[Any, Any, str]]:
        return threading.current_thread().name, registered.original_func()

    result = await worker.receiver.run_task(
        wrapper,
        message_of(registered.task_name),
    )

    thread, coroutine = result.return_value
    assert thread != threading.main_thread().name
    assert await coroutine == threading.main_thread().name


# -- Dependencies ------------------------------------------------------------------


async def test_a_value_sent_wins_over_the_dependency_which_is_still_evaluated() -> None:
    worker = Worker()
    evaluated: list[str] = []

    def dependency() -> str:
        evaluated.append("yes")
        return "injected"

    @worker.broker.task
    async def task(value: str = TaskiqDepends(dependency)) -> str:
        return value

    sent = await worker.deliver(task, value="sent", task_id="1")
    injected = await worker.deliver(task, task_id="2")

    assert sent is not None
    assert sent.return_value == "sent"
    assert injected is not None
    assert injected.return_value == "injected"
    assert evaluated == ["yes", "yes"]


async def test_a_task_gets_the_state_of_its_broker() -> None:
    worker = Worker()
    worker.broker.state.pool = "the pool"

    @worker.broker.task
    async def task(state: Annotated[TaskiqState, TaskiqDepends()]) -> str:
        return str(state.pool)

    result = await worker.deliver(task)

    assert result is not None
    assert result.return_value == "the pool"


class Service:
    """Something an application offers to its tasks."""


async def test_a_task_gets_what_the_application_put_into_the_context() -> None:
    worker = Worker()
    service = Service()
    worker.broker.add_dependency_context({Service: service})

    @worker.broker.task
    async def task(given: Annotated[Service, TaskiqDepends()]) -> bool:
        return given is service

    result = await worker.deliver(task)

    assert result is not None
    assert result.return_value is True


async def test_the_context_of_the_last_message_can_be_read_from_the_broker() -> None:
    worker = Worker()

    @worker.broker.task
    async def plain() -> None: ...

    for task_id in ("1", "2"):
        await worker.deliver(plain, task_id=task_id)

        context = worker.broker.custom_dependency_context[Context]
        assert context.message.task_id == task_id
        state = worker.broker.custom_dependency_context[TaskiqState]
        assert state is worker.broker.state


async def test_a_context_resolved_late_is_the_one_of_its_own_message() -> None:
    worker = Worker()
    started: list[str] = []
    all_started = asyncio.Event()

    async def wait_for_the_other() -> None:
        started.append("one more")
        if len(started) == 2:
            all_started.set()
        await all_started.wait()

    def own_id(context: CurrentContext) -> str:
        return context.message.task_id

    @worker.broker.task
    async def task(
        first: Annotated[None, TaskiqDepends(wait_for_the_other)],
        task_id: Annotated[str, TaskiqDepends(own_id, use_cache=False)],
    ) -> str:
        return task_id

    await asyncio.gather(
        worker.deliver(task, task_id="1"),
        worker.deliver(task, task_id="2"),
    )

    assert worker.backend.results["1"].return_value == "1"
    assert worker.backend.results["2"].return_value == "2"


async def test_an_override_is_honoured_from_the_moment_it_is_set() -> None:
    worker = Worker()

    def real() -> str:
        return "real"

    def fake() -> str:
        return "fake"

    def other_fake() -> str:
        return "other fake"

    @worker.broker.task
    async def task(value: Annotated[str, TaskiqDepends(real)]) -> str:
        return value

    seen: list[Any] = []
    overrides: list[dict[Any, Any]] = [
        {},
        {real: fake},
        {real: fake},
        {real: other_fake},
        {},
    ]
    for number, override in enumerate(overrides):
        worker.broker.dependency_overrides.clear()
        worker.broker.dependency_overrides.update(override)
        await worker.deliver(task, task_id=str(number))
        seen.append(worker.backend.results[str(number)].return_value)

    assert seen == ["real", "fake", "fake", "other fake", "real"]


async def test_the_graph_with_overrides_is_built_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker()

    def real() -> str:
        raise NotImplementedError

    @worker.broker.task
    async def task(value: Annotated[str, TaskiqDepends(real)]) -> str:
        return value

    _ = worker.receiver
    built: list[dict[Any, Any]] = []

    def counting(target: Any, replaced_deps: Any = None) -> DependencyGraph:
        built.append(replaced_deps)
        return DependencyGraph(target, replaced_deps)

    monkeypatch.setattr("taskiq.receiver.prepared.DependencyGraph", counting)
    overrides = {real: str}
    worker.broker.dependency_overrides = overrides

    for number in range(3):
        await worker.deliver(task, task_id=str(number))

    assert built == [overrides]


async def test_an_error_of_a_dependency_is_the_error_of_its_message() -> None:
    worker = Worker()
    ended: list[str] = []

    def opened() -> Generator[int, None, None]:
        try:
            yield 1
        finally:
            ended.append("opened")

    def broken(opened: Annotated[int, TaskiqDepends(opened)]) -> None:
        raise ConnectionError("no database")

    @worker.broker.task
    async def task(value: Annotated[None, TaskiqDepends(broken)]) -> None:
        raise NotImplementedError

    result = await worker.deliver(task)

    assert result is not None
    assert isinstance(result.error, ConnectionError)
    assert ended == ["opened"]
    assert worker.steps()[-1] == "ack"


@pytest.mark.parametrize("error", [NoResultError(), TaskRejectedError()])
async def test_a_dependency_may_end_the_task_before_it_starts(error: Exception) -> None:
    worker = Worker()

    def refuse() -> None:
        raise error

    @worker.broker.task
    async def task(value: Annotated[None, TaskiqDepends(refuse)]) -> None:
        raise NotImplementedError

    result = await worker.deliver(task)

    assert (result is None) == isinstance(error, NoResultError)
    assert worker.steps()[-1] == "ack"


# -- Teardown ----------------------------------------------------------------------


def kind_of(error: BaseException) -> str:
    """Name an error; a cancellation may be of a subclass."""
    kinds = (asyncio.CancelledError, KeyError)
    return next(kind.__name__ for kind in kinds if isinstance(error, kind))


def recording_dependencies(seen: list[str]) -> tuple[Any, Any]:
    """Give a sync and an async dependency that write down how they are ended."""

    def sync() -> Generator[str, None, None]:
        try:
            yield "sync"
        except BaseException as exc:
            seen.append(f"sync {kind_of(exc)}")
            raise
        seen.append("sync end")

    async def asynchronous() -> AsyncGenerator[str, None]:
        try:
            yield "async"
        except BaseException as exc:
            seen.append(f"async {kind_of(exc)}")
            raise
        seen.append("async end")

    return sync, asynchronous


@pytest.mark.parametrize(
    ("propagates", "fails", "endings"),
    [
        (True, True, {"sync KeyError", "async KeyError"}),
        (False, True, {"sync end", "async end"}),
        (True, False, {"sync end", "async end"}),
    ],
)
async def test_dependencies_see_the_error_of_their_task_if_it_is_propagated(
    propagates: bool,
    fails: bool,
    endings: set[str],
) -> None:
    worker = Worker(propagate_exceptions=propagates)
    seen: list[str] = []
    sync, asynchronous = recording_dependencies(seen)

    @worker.broker.task
    async def task(
        a: Annotated[str, TaskiqDepends(sync)],
        b: Annotated[str, TaskiqDepends(asynchronous)],
    ) -> str:
        assert seen == []
        if fails:
            raise KeyError("the task")
        return a + b

    result = await worker.deliver(task)

    assert result is not None
    assert result.is_err == fails
    assert isinstance(result.error, KeyError) == fails
    assert len(seen) == 2
    assert set(seen) == endings


async def test_dependencies_see_the_very_error_and_where_it_was_raised() -> None:
    worker = Worker()
    seen: list[BaseException] = []
    frames: list[str] = []

    async def session() -> AsyncGenerator[None, None]:
        try:
            yield
        except KeyError as exc:
            seen.append(exc)
            stack = traceback.extract_tb(exc.__traceback__)
            frames.extend(frame.name for frame in stack)
            raise

    def deep_inside() -> None:
        raise KeyError("the task")

    @worker.broker.task
    async def task(session: Annotated[None, TaskiqDepends(session)]) -> None:
        deep_inside()

    result = await worker.deliver(task)

    assert result is not None
    assert result.error is not None
    assert seen == [result.error]
    assert "deep_inside" in frames


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_teardown_that_fails_after_a_success_fails_the_task(
    is_async: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    def sync() -> Generator[None, None, None]:
        yield
        raise ConnectionError("cannot commit")

    async def asynchronous() -> AsyncGenerator[None, None]:
        yield
        raise ConnectionError("cannot commit")

    dependency: Callable[[], Any] = asynchronous if is_async else sync

    @worker.broker.task
    async def task(session: Annotated[None, TaskiqDepends(dependency)]) -> str:
        return "done"

    result = await worker.deliver(task)

    assert result is not None
    assert isinstance(result.error, ConnectionError)
    assert result.return_value is None
    assert worker.steps() == [
        "pre_execute",
        "on_error",
        "post_execute",
        "save",
        "post_save",
        "ack",
    ]
    [line] = complaints(caplog)
    assert "task with ID id" in line


async def test_a_teardown_that_fails_after_an_error_leaves_the_first_error() -> None:
    worker = Worker(propagate_exceptions=False)

    def dependency() -> Generator[None, None, None]:
        yield
        raise ConnectionError("cannot roll back")

    @worker.broker.task
    async def task(session: Annotated[None, TaskiqDepends(dependency)]) -> str:
        raise ValueError("the task")

    result = await worker.deliver(task)

    assert result is not None
    assert isinstance(result.error, ValueError)
    assert worker.steps()[-1] == "ack"


@pytest.mark.parametrize("kind", [asyncio.CancelledError, SystemExit])
async def test_whatever_a_teardown_raises_by_itself_fails_the_task(
    kind: type[BaseException],
) -> None:
    worker = Worker()

    async def dependency() -> AsyncGenerator[None, None]:
        yield
        raise kind("by itself")

    @worker.broker.task
    async def task(session: Annotated[None, TaskiqDepends(dependency)]) -> str:
        return "done"

    result = await worker.deliver(task)

    assert result is not None
    assert isinstance(result.error, kind)
    assert worker.steps()[-1] == "ack"


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


async def test_a_dependency_can_reset_the_context_variable_it_set() -> None:
    worker = Worker()

    async def set_tenant() -> AsyncGenerator[None, None]:
        token = tenant.set("of the message")
        yield
        tenant.reset(token)

    @worker.broker.task
    async def task(given: Annotated[None, TaskiqDepends(set_tenant)]) -> str:
        return tenant.get()

    result = await worker.deliver(task)

    assert result is not None
    assert result.error is None
    assert result.return_value == "of the message"


# -- Timeout -----------------------------------------------------------------------


@pytest.mark.parametrize("label", [2, 2.0, "2", " 2.0 "])
def test_an_async_task_is_cancelled_at_its_timeout(label: Any) -> None:
    async def main() -> None:
        worker = Worker()
        moments: list[float] = []
        clock = asyncio.get_running_loop().time

        @worker.broker.task
        async def task() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                moments.append(clock())

        result = await worker.receiver.run_task(
            task.original_func,
            message_of(task.task_name, timeout=label),
        )

        assert isinstance(result.error, TimeoutError)
        assert moments == [2.0]

    run_virtual(main())


@pytest.mark.parametrize("label", [0, -1])
def test_a_timeout_that_is_over_at_once_is_a_timeout(label: float) -> None:
    async def main() -> None:
        worker = Worker()

        @worker.broker.task
        async def task() -> None:
            await asyncio.Event().wait()

        result = await worker.deliver(task, labels={"timeout": label})

        assert result is not None
        assert isinstance(result.error, TimeoutError)

    run_virtual(main())


def test_a_timeout_limits_the_function_and_not_its_dependencies() -> None:
    async def main() -> None:
        worker = Worker()

        async def slow() -> AsyncGenerator[str, None]:
            await asyncio.sleep(5)
            yield "value"
            await asyncio.sleep(5)

        @worker.broker.task
        async def task(value: Annotated[str, TaskiqDepends(slow)]) -> str:
            await asyncio.sleep(0.5)
            return value

        result = await worker.deliver(task, labels={"timeout": 1})

        assert result is not None
        assert result.return_value == "value"

    run_virtual(main())


@pytest.mark.parametrize("label", ["soon", "nan", float("nan"), ""])
async def test_a_timeout_that_is_no_number_is_the_error_of_its_message(
    label: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    @worker.broker.task
    async def task() -> None:
        raise NotImplementedError

    result = await worker.receiver.run_task(
        task.original_func,
        message_of(task.task_name, timeout=label),
    )

    assert isinstance(result.error, ValueError)
    assert str(label) in str(result.error)
    [line] = complaints(caplog)
    assert "task with ID id" in line


async def test_an_infinite_timeout_never_ends_a_task() -> None:
    worker = Worker()

    @worker.broker.task
    async def task() -> str:
        await asyncio.sleep(0)
        return "done"

    result = await worker.deliver(task, labels={"timeout": "inf"})

    assert result is not None
    assert result.return_value == "done"


async def test_a_timeout_error_of_the_task_itself_is_its_error() -> None:
    worker = Worker()

    @worker.broker.task
    async def task() -> None:
        raise TimeoutError("my own")

    result = await worker.deliver(task, labels={"timeout": 100})

    assert result is not None
    assert isinstance(result.error, TimeoutError)
    assert str(result.error) == "my own"


async def test_a_sync_task_is_given_up_at_its_timeout_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = threading.Event()
    ended = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        worker = Worker(executor=executor)

        @worker.broker.task
        def task() -> None:
            go_on.wait(10)
            ended.set()

        result = await worker.deliver(task, labels={"timeout": 0.001})
        go_on.set()

    assert result is not None
    assert isinstance(result.error, TimeoutError)
    assert ended.is_set()
    [warning] = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "task with ID id" in warning.getMessage()


async def test_a_sync_task_within_its_timeout_is_warned_about_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    @worker.broker.task
    def task() -> str:
        return "done"

    for number in range(2):
        result = await worker.deliver(
            task,
            labels={"timeout": 100},
            task_id=str(number),
        )
        assert result is not None
        assert result.return_value == "done"

    assert len(complaints(caplog)) == 2


# -- Sync tasks --------------------------------------------------------------------

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


async def test_a_sync_task_runs_in_a_pool_thread_with_context_variables() -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="workers") as executor:
        worker = Worker(executor=executor)

        @worker.broker.task
        def task() -> tuple[str, str]:
            seen = request_id.get()
            request_id.set("changed in the thread")
            return threading.current_thread().name, seen

        request_id.set("of the caller")
        result = await worker.deliver(task)

    assert result is not None
    thread, seen = result.return_value
    assert thread.startswith("workers")
    assert seen == "of the caller"
    assert request_id.get() == "of the caller"


async def test_a_sync_task_gets_its_dependencies() -> None:
    worker = Worker()

    @worker.broker.task
    def task(x: int, *, context: CurrentContext) -> str:
        return f"{context.message.task_id} {x}"

    result = await worker.deliver(task, "1")

    assert result is not None
    assert result.return_value == "id 1"


@pytest.mark.parametrize("kind", [LookupError, SystemExit, KeyboardInterrupt])
async def test_what_a_sync_task_raises_is_its_error(kind: type[BaseException]) -> None:
    worker = Worker()

    @worker.broker.task
    def task() -> None:
        raise kind("from the thread")

    result = await worker.deliver(task)

    assert result is not None
    assert isinstance(result.error, kind)
    assert worker.steps()[-1] == "ack"


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_task_that_raises_stop_iteration_ends_with_an_error(
    is_async: bool,
) -> None:
    worker = Worker()

    def sync() -> int:
        return next(iter([]))

    async def asynchronous() -> int:
        return next(iter([]))

    task = worker.broker.register_task(
        asynchronous if is_async else sync,
        task_name="next",
    )

    result = await asyncio.wait_for(worker.deliver(task), 5)

    assert result is not None
    assert isinstance(result.error, RuntimeError)
    assert "StopIteration" in str(result.error)


async def test_a_sync_task_that_raises_generator_exit_ends_with_an_error() -> None:
    """No future can hold it: it would close who waits for the call."""
    worker = Worker()

    def leave() -> None:
        raise GeneratorExit

    task = worker.broker.register_task(leave, task_name="leave")
    result = await asyncio.wait_for(worker.deliver(task), 5)
    assert result is not None
    assert isinstance(result.error, RuntimeError)
    assert "GeneratorExit" in str(result.error)


class UnspeakableError(Exception):
    """Says nothing of itself, and fails at that."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


@pytest.mark.parametrize("kind", ["plain", "batch", "given", "isolated"])
async def test_an_error_that_cannot_be_shown_is_an_error_like_any_other(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It was raised again by the line of the log, and its message came for ever."""
    broker = InMemoryBroker()

    async def plain(item: int) -> None:
        raise UnspeakableError

    async def batch(items: list[int]) -> list[Any]:
        if kind == "given":
            return [UnspeakableError() for _ in items]
        raise UnspeakableError

    if kind == "plain":
        task: Any = broker.register_task(plain, "task", on_failure="dead_letter")
    else:
        task = broker.register_task(
            batch,
            "task",
            batch=True,
            batch_size=2,
            batch_isolate_errors=kind == "isolated",
            on_failure="dead_letter",
        )
    handles = [await task.kiq(each) for each in range(2)]
    await broker.wait_all()
    for handle in handles:
        assert isinstance((await handle.get_result()).error, UnspeakableError)
    store: Any = broker.dead_letter_store
    assert len(store.letters) == 2
    assert "UnspeakableError: <its str() failed>" in caplog.text


async def test_a_sync_wrapper_around_an_async_function_is_awaited_in_the_loop() -> None:
    worker = Worker()

    async def inner(x: int) -> tuple[int, str]:
        await asyncio.sleep(0)
        return x, threading.current_thread().name

    @functools.wraps(inner)
    def wrapper(x: int) -> Coroutine[Any, Any, tuple[int, str]]:
        return inner(x)

    task = worker.broker.register_task(wrapper, task_name="wrapper")

    result = await worker.deliver(task, "3")

    assert result is not None
    assert result.return_value == (3, threading.main_thread().name)


async def test_a_process_pool_runs_tasks_it_finds_by_name() -> None:
    worker = Worker()
    worker.broker.local_task_registry.update(process_tasks.broker.local_task_registry)
    with ProcessPoolExecutor(1) as executor:
        receiver = Receiver(worker.broker, executor=executor, max_async_tasks=1)
        await receiver.callback(
            message_bytes(process_tasks.add_in_process, "1", b="2", task_id="add"),
        )
        await receiver.callback(
            message_bytes(process_tasks.fail_in_process, task_id="fail"),
        )

    assert receiver.is_process_pool
    total, process = worker.backend.results["add"].return_value
    assert total == 3
    assert process != os.getpid()
    assert isinstance(worker.backend.results["fail"].error, LookupError)


async def test_what_a_process_pool_cannot_pickle_is_the_error_of_its_message() -> None:
    worker = Worker()

    @worker.broker.task
    def task(context: CurrentContext) -> None:
        raise NotImplementedError

    with ProcessPoolExecutor(1) as executor:
        receiver = Receiver(worker.broker, executor=executor, max_async_tasks=1)
        await receiver.callback(message_bytes(task))

    assert worker.backend.results["id"].is_err


def test_a_thread_pool_is_no_process_pool() -> None:
    with ThreadPoolExecutor(1) as executor:
        receiver = Receiver(QueueBroker(), executor=executor, max_async_tasks=1)
        assert not receiver.is_process_pool
        assert receiver.executor is executor


# -- Errors and cancellation -------------------------------------------------------


@pytest.mark.parametrize("with_timeout", [False, True])
@pytest.mark.parametrize(
    "kind",
    [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError],
)
async def test_whatever_an_async_task_raises_by_itself_is_its_error(
    kind: type[BaseException],
    with_timeout: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    @worker.broker.task
    async def task() -> None:
        await asyncio.sleep(0)
        raise kind("by itself")

    labels = {"timeout": 100} if with_timeout else {}
    result = await worker.deliver(task, labels=labels)

    assert result is not None
    assert isinstance(result.error, kind)
    assert result.is_err
    assert result.return_value is None
    assert worker.steps() == [
        "pre_execute",
        "on_error",
        "post_execute",
        "save",
        "post_save",
        "ack",
    ]
    [record] = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "task with ID id" in record.getMessage()
    assert record.exc_info is not None


async def test_a_task_that_awaits_something_cancelled_fails_by_itself() -> None:
    worker = Worker()

    @worker.broker.task
    async def task() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    result = await worker.deliver(task)

    assert result is not None
    assert isinstance(result.error, asyncio.CancelledError)


@pytest.mark.parametrize("with_timeout", [False, True])
async def test_cancelling_the_callback_ends_it_after_teardown_without_result_and_ack(
    with_timeout: bool,
) -> None:
    worker = Worker()
    started = asyncio.Event()
    seen: list[str] = []
    sync, asynchronous = recording_dependencies(seen)

    @worker.broker.task
    async def task(
        a: Annotated[str, TaskiqDepends(sync)],
        b: Annotated[str, TaskiqDepends(asynchronous)],
    ) -> None:
        started.set()
        await asyncio.Event().wait()

    labels = {"timeout": 100} if with_timeout else {}
    callback = asyncio.create_task(worker.deliver(task, labels=labels))
    await started.wait()
    callback.cancel()

    with pytest.raises(asyncio.CancelledError):
        await callback
    assert set(seen) == {"sync CancelledError", "async CancelledError"}
    assert worker.steps() == ["pre_execute"]
    assert worker.backend.results == {}


async def test_a_teardown_that_fails_after_a_cancellation_is_told_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(propagate_exceptions=False)
    started = asyncio.Event()

    async def broken() -> AsyncGenerator[int, None]:
        yield 1
        raise OSError("not closed")

    @worker.broker.task
    async def task(value: Annotated[int, TaskiqDepends(broken)]) -> None:
        started.set()
        await asyncio.Event().wait()

    callback = asyncio.create_task(worker.deliver(task))
    await started.wait()
    callback.cancel()

    with pytest.raises(asyncio.CancelledError):
        await callback
    [line] = complaints(caplog)
    assert "task with ID id" in line
    assert worker.steps() == ["pre_execute"]


async def test_cancelling_the_callback_of_a_sync_task_ends_it_at_once() -> None:
    go_on = threading.Event()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as executor:
        worker = Worker(executor=executor)

        @worker.broker.task
        def task() -> None:
            loop.call_soon_threadsafe(started.set)
            go_on.wait(10)

        callback = asyncio.create_task(worker.deliver(task))
        await started.wait()
        callback.cancel()
        with pytest.raises(asyncio.CancelledError):
            await callback
        go_on.set()

    assert worker.steps() == ["pre_execute"]


async def test_cancelling_while_dependencies_are_resolved_ends_the_callback() -> None:
    worker = Worker()
    started = asyncio.Event()
    seen: list[str] = []
    _, asynchronous = recording_dependencies(seen)

    async def endless(before: Annotated[str, TaskiqDepends(asynchronous)]) -> None:
        started.set()
        await asyncio.Event().wait()

    @worker.broker.task
    async def task(value: Annotated[None, TaskiqDepends(endless)]) -> None:
        raise NotImplementedError

    callback = asyncio.create_task(worker.deliver(task))
    await started.wait()
    callback.cancel()

    with pytest.raises(asyncio.CancelledError):
        await callback
    assert seen == ["async CancelledError"]
    assert worker.steps() == ["pre_execute"]


async def test_messages_do_not_share_what_their_dependencies_made() -> None:
    worker = Worker()
    numbers = itertools.count()

    def number() -> int:
        return next(numbers)

    @worker.broker.task
    async def task(
        one: Annotated[int, TaskiqDepends(number)],
        same: Annotated[int, TaskiqDepends(number)],
        other: Annotated[int, TaskiqDepends(number, use_cache=False)],
    ) -> tuple[bool, bool]:
        return one == same, one == other

    for task_id in ("1", "2"):
        result = await worker.deliver(task, task_id=task_id)
        assert result is not None
        assert result.return_value == (True, False)
    assert next(numbers) == 4
