import asyncio
import logging
import time
import weakref
from typing import Any

import pytest

from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.depends.progress_tracker import TaskProgress, TaskState
from taskiq.exceptions import (
    ResultGetError,
    ResultIsReadyError,
    TaskiqResultTimeoutError,
)
from taskiq.result import TaskiqResult
from taskiq.task import AsyncTaskiqTask


class Backend(AsyncResultBackend[Any]):
    """Has one result, which is there after some looks at it."""

    def __init__(self, value: Any = None, ready_after: int = 0) -> None:
        self.result: TaskiqResult[Any] = TaskiqResult(
            is_err=False,
            return_value=value,
            execution_time=0,
        )
        self.ready_after = ready_after
        self.looks: list[str] = []
        self.reads: list[tuple[str, bool]] = []

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        raise NotImplementedError

    async def is_result_ready(self, task_id: str) -> bool:
        self.looks.append(task_id)
        return len(self.looks) > self.ready_after

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        self.reads.append((task_id, with_logs))
        return self.result

    async def get_progress(self, task_id: str) -> TaskProgress[Any] | None:
        return TaskProgress(state=TaskState.STARTED, meta=task_id)


class BrokenBackend(Backend):
    """Cannot be reached."""

    async def is_result_ready(self, task_id: str) -> bool:
        raise ValueError(f"no connection for {task_id}")

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        raise ValueError(f"no connection for {task_id}, {with_logs=}")

    async def get_progress(self, task_id: str) -> TaskProgress[Any] | None:
        raise ValueError(f"no connection for {task_id}")


class VirtualTime:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
async def virtual_time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    virtual = VirtualTime()
    monkeypatch.setattr(asyncio, "sleep", virtual.sleep)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", virtual.time)
    return virtual


async def test_a_finished_task_is_read_without_any_sleep(
    virtual_time: VirtualTime,
) -> None:
    backend = Backend(5)
    assert (await AsyncTaskiqTask("id", backend).wait_result()).return_value == 5
    assert virtual_time.naps == []
    assert backend.looks == ["id"]


async def test_waiting_looks_at_every_interval_and_not_after_the_result_is_there(
    virtual_time: VirtualTime,
) -> None:
    backend = Backend(5, ready_after=2)
    await AsyncTaskiqTask("id", backend).wait_result(check_interval=0.5)
    assert virtual_time.naps == [0.5, 0.5]
    assert backend.looks == ["id"] * 3
    assert backend.reads == [("id", False)]


async def test_waiting_ends_with_an_error_once_the_timeout_is_exceeded(
    virtual_time: VirtualTime,
) -> None:
    backend = Backend(ready_after=100)
    with pytest.raises(TaskiqResultTimeoutError) as caught:
        await AsyncTaskiqTask("id", backend).wait_result(0.5, timeout=1)
    assert caught.value.timeout == 1
    assert virtual_time.now == 1.5
    assert backend.reads == []


async def test_a_result_that_is_there_at_the_last_look_is_in_time(
    virtual_time: VirtualTime,
) -> None:
    backend = Backend(5, ready_after=1)
    await AsyncTaskiqTask("id", backend).wait_result(check_interval=10, timeout=1)
    assert virtual_time.now == 10


@pytest.mark.parametrize("timeout", [0, -1, -0.5])
async def test_a_timeout_of_zero_or_less_waits_forever(
    timeout: float,
    virtual_time: VirtualTime,
) -> None:
    task = AsyncTaskiqTask("id", Backend(ready_after=1000))
    await task.wait_result(check_interval=60, timeout=timeout)
    assert virtual_time.now == 60_000


async def test_setting_the_wall_clock_does_not_end_the_wait(
    virtual_time: VirtualTime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Waiting(Backend):
        async def is_result_ready(self, task_id: str) -> bool:
            monkeypatch.setattr(time, "time", lambda: 1e12)
            return await super().is_result_ready(task_id)

    task = AsyncTaskiqTask("id", Waiting(5, ready_after=3))
    assert (await task.wait_result(timeout=10)).return_value == 5


class Telling(Backend):
    """Is told when a result is stored."""

    async def wait_for_result(
        self,
        task_id: str,
        timeout: float,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        self.reads.append((f"{task_id} within {timeout}", with_logs))
        return self.result


async def test_without_an_interval_the_backend_decides_how_to_wait() -> None:
    backend = Telling("5")
    task = AsyncTaskiqTask("id", backend, int)
    result = await task.wait_result(timeout=3, with_logs=True)
    assert result.return_value == 5
    assert (backend.reads, backend.looks) == ([("id within 3", True)], [])


async def test_with_an_interval_any_backend_is_looked_at(
    virtual_time: VirtualTime,
) -> None:
    backend = Telling(5, ready_after=1)
    await AsyncTaskiqTask("id", backend).wait_result(check_interval=0.2)
    assert (virtual_time.naps, backend.looks) == ([0.2], ["id", "id"])


class Foreign:
    """A result backend with the three methods that matter, and no base class."""

    def __init__(self) -> None:
        self.backend = Backend(5, ready_after=2)
        self.is_result_ready = self.backend.is_result_ready
        self.get_result = self.backend.get_result


async def test_a_backend_of_no_base_class_is_looked_at_more_and_more_seldom(
    virtual_time: VirtualTime,
) -> None:
    backend: Any = Foreign()
    assert (await AsyncTaskiqTask("id", backend).wait_result()).return_value == 5
    assert virtual_time.naps == [0.005, 0.01]


async def test_one_failed_look_does_not_end_the_wait_and_the_third_does(
    virtual_time: VirtualTime,
) -> None:
    class Flaky(Backend):
        async def is_result_ready(self, task_id: str) -> bool:
            if await super().is_result_ready(task_id):
                raise ConnectionError(f"look {len(self.looks)}")
            return False

    with pytest.raises(ResultIsReadyError) as caught:
        await AsyncTaskiqTask("id", Flaky(ready_after=2)).wait_result(0.5)
    assert str(caught.value.__cause__) == "look 5"
    assert str(caught.value) == (
        "Cannot find out if the task is ready: ConnectionError: look 5"
    )
    assert virtual_time.naps == [0.5] * 4


async def test_the_log_is_read_when_asked_for() -> None:
    backend = Backend()
    await AsyncTaskiqTask("id", backend).wait_result(with_logs=True)
    assert backend.reads == [("id", True)]


async def test_the_return_value_gets_the_type_of_the_task() -> None:
    backend = Backend(["1", "2"])
    result = await AsyncTaskiqTask("id", backend, list[int]).get_result()
    assert result.return_value == [1, 2]
    assert result is backend.result


async def test_without_a_return_type_the_value_stays_as_it_was_stored() -> None:
    assert (await AsyncTaskiqTask("id", Backend("1")).get_result()).return_value == "1"


async def test_a_value_of_another_type_is_kept_with_a_warning_that_names_the_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = await AsyncTaskiqTask("some-id", Backend("one"), int).get_result()
    assert result.return_value == "one"
    [record] = caplog.records
    assert (record.name, record.levelno) == ("taskiq.task", logging.WARNING)
    assert "some-id" in record.message
    assert "int" in record.message


@pytest.mark.parametrize(
    ("value", "is_err", "return_type"),
    [(None, True, int), ("set by the context", False, type(None))],
    ids=["a failed task", "a task that returns nothing"],
)
async def test_a_value_that_nobody_promised_is_kept_without_a_warning(
    value: Any,
    is_err: bool,
    return_type: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Backend(value)
    backend.result.is_err = is_err
    result = await AsyncTaskiqTask("id", backend, return_type).get_result()
    assert result.return_value == value
    assert caplog.records == []


async def test_a_timeout_names_the_task_and_says_what_to_look_at(
    virtual_time: VirtualTime,
) -> None:
    task = AsyncTaskiqTask("some-id", Backend(ready_after=100))
    with pytest.raises(TaskiqResultTimeoutError) as unnamed:
        await task.wait_result(timeout=1)
    task.task_name = "pkg.mod:func"
    with pytest.raises(TaskiqResultTimeoutError) as named:
        await task.wait_result(timeout=1)
    assert "task with ID some-id has no result after 1 seconds" in str(unnamed.value)
    assert str(named.value) == (
        "Waiting for task results has timed out, timeout=1: task pkg.mod:func with ID "
        "some-id has no result after 1 seconds. Is a worker running that knows the "
        "task (its log says so), and does it store results where this process looks "
        "for them (Backend)?"
    )
    assert named.value.task_name == "pkg.mod:func"


async def test_errors_of_the_result_backend_are_told_apart_and_keep_their_cause() -> (
    None
):
    task = AsyncTaskiqTask("id", BrokenBackend())
    with pytest.raises(ResultIsReadyError) as not_ready:
        await task.is_ready()
    with pytest.raises(ResultGetError) as not_read:
        await task.get_result()
    with pytest.raises(ResultIsReadyError):
        await task.wait_result()
    assert str(not_ready.value.__cause__) == "no connection for id"
    assert str(not_read.value.__cause__) == "no connection for id, with_logs=False"
    assert "ready: ValueError: no connection for id" in str(not_ready.value)
    assert "get result for the task: ValueError: no conne" in str(not_read.value)


async def test_a_return_type_that_cannot_be_parsed_is_a_get_error() -> None:
    class Unknown:
        """Nothing that pydantic knows."""

    task = AsyncTaskiqTask("id", Backend(1), Unknown)
    with pytest.raises(ResultGetError):
        await task.get_result()


async def test_progress_is_read_from_the_result_backend() -> None:
    progress = await AsyncTaskiqTask("id", Backend()).get_progress()
    assert progress == TaskProgress(state=TaskState.STARTED, meta="id")
    with pytest.raises(ValueError, match="no connection"):
        await AsyncTaskiqTask("id", BrokenBackend()).get_progress()


async def test_a_handle_can_be_pointed_at_another_task() -> None:
    backend = Backend()
    task: AsyncTaskiqTask[Any] = AsyncTaskiqTask("id", backend)
    task.task_id = "other"
    await task.get_result()
    assert backend.reads == [("other", False)]


def test_a_handle_can_be_watched_without_keeping_it_alive() -> None:
    task = AsyncTaskiqTask("id", Backend())
    watched = weakref.ref(task)
    assert watched() is task
    del task
    assert watched() is None
