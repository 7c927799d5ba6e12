"""The broker that runs its tasks where they are sent, and the results it keeps."""

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import (
    AsyncBroker,
    AsyncTaskiqTask,
    BrokerMessage,
    Context,
    InMemoryBroker,
    TaskiqDepends,
    TaskiqEvents,
    TaskiqMessage,
    TaskiqResult,
    TaskiqState,
)
from taskiq.brokers.inmemory_broker import InmemoryResultBackend
from taskiq.depends.progress_tracker import TaskProgress, TaskState
from taskiq.exceptions import (
    ResultGetError,
    SendTaskError,
    UnknownTaskError,
)
from taskiq.kicker import AsyncKicker
from tests.support.recorders import (
    RecordingMiddleware,
    StartStopBackend,
    StartStopMiddleware,
)
from tests.support.virtual_time import run_virtual


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


def result_of(value: Any) -> TaskiqResult[Any]:
    return TaskiqResult(is_err=False, return_value=value, execution_time=0)


# -- Running tasks -----------------------------------------------------------------


async def test_a_task_runs_beside_its_caller(broker: InMemoryBroker) -> None:
    may_end = asyncio.Event()

    @broker.task
    async def wait(x: int) -> int:
        await may_end.wait()
        return x + 1

    handle = await wait.kiq(1)

    assert len(broker._running_tasks) == 1
    assert not await handle.is_ready()
    may_end.set()
    await broker.wait_all()
    assert broker._running_tasks == set()
    assert (await handle.get_result()).return_value == 2


def test_a_caller_may_wait_for_the_result_alone(broker: InMemoryBroker) -> None:
    @broker.task
    async def double(x: int) -> int:
        await asyncio.sleep(10)
        return 2 * x

    async def main() -> int:
        handle = await double.kiq(4)
        result: int = (await handle.wait_result(timeout=60)).return_value
        return result

    assert run_virtual(main()) == 8


async def test_a_failing_task_has_an_error_for_a_result(broker: InMemoryBroker) -> None:
    @broker.task
    async def fail() -> None:
        raise LookupError("nothing here")

    handle = await fail.kiq()
    await broker.wait_all()

    result = await handle.get_result()
    assert result.is_err
    assert repr(result.error) == "LookupError('nothing here')"


async def test_arguments_go_through_the_message_and_values_do_not(
    broker: InMemoryBroker,
) -> None:
    own = object()

    @broker.task
    async def look(raw, cast: set[int]):  # type: ignore[no-untyped-def]
        return own, raw, cast

    handle = await look.kiq((1, 2), {3})
    await broker.wait_all()

    returned = (await handle.get_result()).return_value
    assert returned[0] is own
    assert returned[1:] == ([1, 2], {3})


@pytest.mark.parametrize(("cast_types", "kind"), [(True, "int"), (False, "str")])
async def test_arguments_are_cast_unless_told_otherwise(
    cast_types: bool,
    kind: str,
) -> None:
    broker = InMemoryBroker(cast_types=cast_types)

    @broker.task
    async def kind_of(x: int) -> str:
        return type(x).__name__

    untyped: Any = kind_of
    handle = await untyped.kiq("1")
    await broker.wait_all()
    assert (await handle.get_result()).return_value == kind


async def test_a_sync_task_runs_in_a_thread_of_the_broker(
    broker: InMemoryBroker,
) -> None:
    @broker.task
    def thread() -> int:
        return threading.get_ident()

    handle = await thread.kiq()
    await broker.wait_all()

    ran_in = (await handle.get_result()).return_value
    assert ran_in in {each.ident for each in broker.executor._threads}
    assert ran_in != threading.get_ident()
    broker.executor.shutdown()


def test_the_number_of_threads_is_a_setting() -> None:
    assert InMemoryBroker().executor._max_workers == 4
    assert InMemoryBroker(sync_tasks_pool_size=9).executor._max_workers == 9


def test_settings_reach_the_receiver() -> None:
    broker = InMemoryBroker(
        cast_types=False,
        max_async_tasks=7,
        propagate_exceptions=False,
        await_inplace=True,
        max_stored_results=5,
    )

    assert broker.receiver.broker is broker
    assert broker.receiver.executor is broker.executor
    assert broker.receiver.validate_params is False
    assert broker.receiver.propagate_exceptions is False
    assert broker.receiver.sem is not None
    assert broker.receiver.sem._value == 7
    assert broker.await_inplace is True
    assert isinstance(broker.result_backend, InmemoryResultBackend)
    assert broker.result_backend.max_stored_results == 5


async def test_a_message_is_never_to_be_acknowledged(broker: InMemoryBroker) -> None:
    @broker.task
    async def look(context: Context = TaskiqDepends()) -> bool:  # noqa: B008 - how it is declared
        return context.is_ackable

    handle = await look.kiq()
    await broker.wait_all()
    assert (await handle.get_result()).return_value is False


async def test_a_shared_task_is_found(
    broker: InMemoryBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def one() -> int:
        return 1

    task = InMemoryBroker().register_task(one, "shared")
    monkeypatch.setattr(AsyncBroker, "global_task_registry", {"shared": task})

    handle = await task.kicker().with_broker(broker).kiq()
    await broker.wait_all()
    assert (await handle.get_result()).return_value == 1


async def test_an_unknown_task_is_refused_by_name(broker: InMemoryBroker) -> None:
    with pytest.raises(SendTaskError) as caught:
        await AsyncKicker("unknown", broker, {}).kiq()
    cause = caught.value.__cause__
    assert isinstance(cause, UnknownTaskError)
    assert cause.task_name == "unknown"

    message = BrokerMessage(task_id="", task_name="unknown", message=b"", labels={})
    with pytest.raises(UnknownTaskError, match="unknown"):
        await broker.kick(message)


async def test_a_message_nobody_can_read_is_dropped_with_a_warning(
    broker: InMemoryBroker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @broker.task("name")
    async def f() -> None:
        raise NotImplementedError

    await broker.kick(
        BrokerMessage(task_id="id", task_name="name", message=b"{", labels={}),
    )
    await broker.wait_all()
    assert "Cannot parse message" in caplog.text


def test_tasks_that_wait_for_tasks_are_not_locked_by_a_limit() -> None:
    broker = InMemoryBroker(max_async_tasks=1)

    @broker.task
    async def factorial(n: int) -> int:
        if n == 0:
            return 1
        smaller = await (await factorial.kiq(n - 1)).wait_result(timeout=60)
        return n * int(smaller.return_value)

    async def main() -> int:
        handle = await factorial.kiq(5)
        await broker.wait_all()
        value: int = (await handle.get_result()).return_value
        return value

    assert run_virtual(main()) == 120


def test_one_broker_serves_one_event_loop_after_another(broker: InMemoryBroker) -> None:
    @broker.task
    async def double(x: int) -> int:
        return 2 * x

    async def main(x: int) -> int:
        handle = await double.kiq(x)
        await broker.wait_all()
        value: int = (await handle.get_result()).return_value
        return value

    assert [asyncio.run(main(x)) for x in (1, 2)] == [2, 4]


def test_there_is_nothing_to_listen_to(broker: InMemoryBroker) -> None:
    with pytest.raises(RuntimeError, match="cannot listen"):
        broker.listen()


# -- In place ----------------------------------------------------------------------


class ClientMiddleware(RecordingMiddleware):
    """Notes the hooks of the client as well."""

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self.events.append(("pre_send", message.task_id))
        return message

    def post_send(self, message: TaskiqMessage) -> None:
        self.events.append(("post_send", message.task_id))


async def test_in_place_a_task_is_done_when_it_was_sent() -> None:
    broker = InMemoryBroker(await_inplace=True)
    middleware = ClientMiddleware()
    broker.add_middlewares(middleware)

    @broker.task
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    handle = await double.kiq(1)

    assert broker._running_tasks == set()
    assert (await handle.get_result()).return_value == 2
    assert [hook for hook, _ in middleware.events] == [
        "pre_send",
        "pre_execute",
        "post_execute",
        "post_save",
        "post_send",
    ]


async def test_in_place_a_failing_task_is_no_failure_to_send() -> None:
    broker = InMemoryBroker(await_inplace=True)

    @broker.task
    async def fail() -> None:
        raise LookupError("nothing here")

    assert (await (await fail.kiq()).get_result()).is_err


async def test_in_place_what_escapes_the_receiver_is_a_failure_to_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = InMemoryBroker(await_inplace=True)

    @broker.task
    async def f() -> None:
        raise NotImplementedError

    async def callback(message: bytes) -> None:
        raise LookupError("escaped")

    monkeypatch.setattr(broker.receiver, "callback", callback)
    with pytest.raises(SendTaskError) as caught:
        await f.kiq()
    assert repr(caught.value.__cause__) == "LookupError('escaped')"


async def test_a_replaced_callback_runs_the_tasks(
    broker: InMemoryBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bytes] = []

    async def callback(message: bytes) -> None:
        seen.append(message)

    monkeypatch.setattr(broker.receiver, "callback", callback)
    task = broker.register_task(print, "name")

    await task.kiq()
    await broker.wait_all()
    assert len(seen) == 1


# -- Waiting for everything --------------------------------------------------------


async def test_with_nothing_to_do_the_wait_is_over_at_once(
    broker: InMemoryBroker,
) -> None:
    await broker.wait_all()


def test_tasks_sent_by_tasks_are_waited_for(broker: InMemoryBroker) -> None:
    done: list[int] = []

    @broker.task
    async def count_down(n: int) -> None:
        await asyncio.sleep(1)
        if n:
            await count_down.kiq(n - 1)
        done.append(n)

    async def main() -> None:
        await count_down.kiq(3)
        await broker.wait_all()
        assert done == [3, 2, 1, 0]
        assert broker._running_tasks == set()

    run_virtual(main())


async def test_a_failing_task_does_not_end_the_wait_for_others(
    broker: InMemoryBroker,
) -> None:
    may_end = asyncio.Event()
    done: list[str] = []

    @broker.task
    async def fail() -> None:
        may_end.set()
        raise LookupError

    @broker.task
    async def work() -> None:
        await may_end.wait()
        await asyncio.sleep(0)
        done.append("work")

    await work.kiq()
    await fail.kiq()
    await broker.wait_all()
    assert done == ["work"]


def test_a_task_cannot_wait_for_itself_among_all(broker: InMemoryBroker) -> None:
    @broker.task
    async def wait() -> None:
        await broker.wait_all()

    async def main() -> TaskiqResult[None]:
        return await (await wait.kiq()).wait_result(timeout=60)

    result = run_virtual(main())
    assert isinstance(result.error, RuntimeError)
    assert "cannot wait for all tasks" in str(result.error)


# -- Start and stop ----------------------------------------------------------------


async def test_it_is_client_and_worker_at_once_when_it_starts_and_stops(
    broker: InMemoryBroker,
) -> None:
    journal: list[str] = []
    broker.add_middlewares(StartStopMiddleware("middleware", journal))
    broker.with_result_backend(StartStopBackend(journal))

    def note(event: TaskiqEvents) -> None:
        def handler(state: TaskiqState) -> None:
            assert state is broker.state
            journal.append(f"{event.value}, {broker.is_worker_process}")

        broker.add_event_handler(event, handler)

    for event in reversed(TaskiqEvents):
        note(event)

    await broker.startup()
    await broker.shutdown()

    assert journal == [
        "CLIENT_STARTUP, False",
        "WORKER_STARTUP, False",
        "middleware starts",
        "backend starts",
        "CLIENT_SHUTDOWN, False",
        "WORKER_SHUTDOWN, False",
        "middleware stops",
        "backend stops",
    ]


async def test_sync_tasks_fail_after_the_shutdown(broker: InMemoryBroker) -> None:
    @broker.task
    def f() -> None:
        raise NotImplementedError

    await broker.startup()
    await broker.shutdown()
    handle = await f.kiq()
    await broker.wait_all()

    error = (await handle.get_result()).error
    assert isinstance(error, RuntimeError)
    assert "shutdown" in str(error)


async def test_the_shutdown_does_not_wait_for_running_async_tasks(
    broker: InMemoryBroker,
) -> None:
    may_end = asyncio.Event()

    @broker.task
    async def wait() -> None:
        await may_end.wait()

    handle = await wait.kiq()
    await broker.shutdown()
    assert not await handle.is_ready()

    may_end.set()
    await broker.wait_all()
    assert await handle.is_ready()


# -- Results -----------------------------------------------------------------------


async def test_results_are_kept_by_reference_and_after_they_were_read() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend()
    result = result_of(1)
    assert not await backend.is_result_ready("id")

    await backend.set_result("id", result)

    assert await backend.is_result_ready("id")
    assert await backend.get_result("id") is result
    assert await backend.get_result("id", with_logs=True) is result
    assert backend.results == {"id": result}


async def test_an_unknown_result_is_a_get_error_through_its_handle() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend()
    with pytest.raises(KeyError, match="unknown"):
        await backend.get_result("unknown")
    with pytest.raises(ResultGetError) as caught:
        await AsyncTaskiqTask("unknown", backend).get_result()
    assert isinstance(caught.value.__cause__, KeyError)


async def save(backend: InmemoryResultBackend[Any], *task_ids: str) -> None:
    for task_id in task_ids:
        await backend.set_result(task_id, result_of(task_id))
        progress: TaskProgress[Any] = TaskProgress(
            state=TaskState.STARTED, meta=task_id
        )
        await backend.set_progress(task_id, progress)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(0, []), (1, ["c"]), (2, ["b", "c"]), (3, ["a", "b", "c"]), (-1, ["a", "b", "c"])],
)
async def test_the_newest_results_are_kept_up_to_the_limit(
    limit: int,
    kept: list[str],
) -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend(limit)

    await save(backend, "a", "b", "c")

    assert list(backend.results) == kept
    assert list(backend.progress) == kept


async def test_the_default_limit_is_100_results() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend()
    await save(backend, *map(str, range(150)))
    assert list(backend.results) == [str(number) for number in range(50, 150)]


async def test_saving_a_result_again_drops_no_other() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend(2)
    await save(backend, "a", "b", "a", "b", "b")
    assert set(backend.results) == set(backend.progress) == {"a", "b"}


async def test_progress_of_an_unknown_task_is_none() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend()
    await save(backend, "known")
    assert await backend.get_progress("unknown") is None
    assert (await backend.get_progress("known")) is backend.progress["known"]


async def gather_all(handles: list[AsyncTaskiqTask[int]]) -> list[int]:
    return [(await handle.wait_result(timeout=60)).return_value for handle in handles]


def test_whoever_holds_a_handle_gets_the_result(broker: InMemoryBroker) -> None:
    @broker.task
    async def same(x: int) -> int:
        return x

    async def main() -> list[int]:
        handles = [await same.kiq(x) for x in range(400)]
        await broker.wait_all()
        return await gather_all(handles)

    assert run_virtual(main()) == list(range(400))
    backend: Any = broker.result_backend
    assert len(backend.results) == 100


async def test_a_handle_that_is_gone_lets_go_of_its_result() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend(0)
    handle = AsyncTaskiqTask("id", backend)
    backend.watch_handle(handle)
    await save(backend, "id")
    assert set(backend.results) == set(backend.progress) == {"id"}

    del handle

    assert backend.results == backend.progress == {}


async def test_sending_an_id_again_leaves_the_first_handle_its_result() -> None:
    broker = InMemoryBroker(max_stored_results=0)

    @broker.task
    async def one() -> int:
        return 1

    handle = await one.kicker().with_task_id("id").kiq()
    await one.kicker().with_task_id("id").kiq()
    await broker.wait_all()

    assert (await handle.get_result()).return_value == 1


async def test_a_requeued_task_runs_again(broker: InMemoryBroker) -> None:
    @broker.task
    async def requeue_once(current: Context = TaskiqDepends()) -> str:  # noqa: B008 - how it is declared
        if not current.message.labels:
            await current.requeue()
        return "second"

    handle = await requeue_once.kiq()
    await broker.wait_all()
    assert (await handle.get_result()).return_value == "second"
    backend: Any = broker.result_backend
    assert list(backend.results) == [handle.task_id]


actions = st.lists(
    st.tuples(st.sampled_from(["hold", "let go", "save"]), st.integers(0, 5)),
    max_size=40,
)


@given(actions=actions, limit=st.integers(0, 3))
def test_held_results_stay_and_no_more_others_than_the_limit(
    actions: list[tuple[str, int]],
    limit: int,
) -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend(limit)
    handles: dict[str, list[AsyncTaskiqTask[Any]]] = {str(n): [] for n in range(6)}
    to_stay: set[str] = set()

    async def act() -> None:
        for action, number in actions:
            task_id = str(number)
            held = handles[task_id]
            if action == "hold":
                held.append(AsyncTaskiqTask(task_id, backend))
                backend.watch_handle(held[-1])
            elif action == "save":
                await save(backend, task_id)
            elif held:
                held.pop()
            if held and task_id in backend.results:
                to_stay.add(task_id)
            elif not held:
                to_stay.discard(task_id)
            for store in (backend.results, backend.progress):
                assert to_stay <= set(store)
                assert len(store) - len(to_stay) <= limit

    asyncio.run(act())
