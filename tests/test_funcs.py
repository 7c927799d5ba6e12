import asyncio
import itertools
from collections.abc import Callable
from typing import Any, NoReturn, cast

import pytest

from taskiq.exceptions import (
    ResultGetError,
    ResultIsReadyError,
    TaskiqResultTimeoutError,
)
from taskiq.funcs import gather
from taskiq.result import TaskiqResult
from taskiq.task import AsyncTaskiqTask


class Handle:
    """The handle of a task that is ready after some looks at it."""

    def __init__(
        self,
        task_id: str,
        ready_after: int = 0,
        on_look: Callable[[], None] = lambda: None,
        error: Exception | None = None,
    ) -> None:
        self.task_id = task_id
        self.ready_after = ready_after
        self.on_look = on_look
        self.error = error
        self.looks = 0
        self.reads: list[bool] = []

    async def is_ready(self) -> bool:
        self.on_look()
        self.looks += 1
        return self.looks > self.ready_after

    async def get_result(self, with_logs: bool = False) -> TaskiqResult[Any]:
        self.reads.append(with_logs)
        if self.error is not None:
            raise self.error
        return TaskiqResult(
            is_err=False,
            return_value=self.task_id,
            execution_time=0,
        )


async def values(*handles: Handle, **options: Any) -> list[str]:
    tasks = cast("tuple[AsyncTaskiqTask[str], ...]", handles)
    return [result.return_value for result in await gather(*tasks, **options)]


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seconds: float) -> NoReturn:
        pytest.fail(f"slept for {seconds} s")

    monkeypatch.setattr(asyncio, "sleep", fail)


async def test_results_come_in_the_order_of_the_tasks() -> None:
    slow, fast = Handle("slow", ready_after=2), Handle("fast")
    assert await values(slow, fast, periodicity=0) == ["slow", "fast"]


@pytest.mark.usefixtures("no_sleep")
async def test_gathering_nothing_is_done_at_once() -> None:
    assert await gather() == ()


@pytest.mark.usefixtures("no_sleep")
async def test_finished_tasks_are_gathered_without_any_sleep() -> None:
    handles = [Handle(str(number)) for number in range(100)]
    assert await values(*handles) == [handle.task_id for handle in handles]


async def test_there_is_no_sleep_after_the_last_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", nap)
    await values(Handle("a", ready_after=2), periodicity=7)
    assert naps == [7, 7]


async def test_a_result_is_looked_for_only_until_it_is_there_and_read_once() -> None:
    slow, fast = Handle("slow", ready_after=3), Handle("fast")
    await values(slow, fast, periodicity=0, with_logs=True)
    assert (slow.looks, fast.looks) == (4, 1)
    assert (slow.reads, fast.reads) == ([True], [True])


async def test_the_same_task_can_be_gathered_twice() -> None:
    handle = Handle("a", ready_after=1)
    assert await values(handle, handle, periodicity=0) == ["a", "a"]


@pytest.mark.parametrize(("failing", "error"), [({1, 2, 4}, None), ({2, 3, 4}, 4)])
async def test_three_failed_looks_in_a_row_end_it_and_two_do_not(
    failing: set[int], error: int | None
) -> None:
    looks = itertools.count(1)

    def look() -> None:
        if (number := next(looks)) in failing:
            raise ResultIsReadyError(failure=f"look {number}")

    flaky = Handle("flaky", ready_after=2, on_look=look)
    if error is None:
        assert await values(flaky, periodicity=0) == ["flaky"]
        return
    with pytest.raises(ResultIsReadyError, match=f"look {error}"):
        await values(flaky, periodicity=0)


class Clock:
    """Moves by one second with every look at a handle."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += 1


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock.time)
    return clock


async def test_missing_results_are_given_up_once_the_timeout_is_exceeded(
    clock: Clock,
) -> None:
    handle = Handle("a", ready_after=100, on_look=clock.tick)
    with pytest.raises(TaskiqResultTimeoutError) as caught:
        await values(handle, timeout=3, periodicity=0)
    assert caught.value.timeout == 3
    assert "has no result after 3 seconds" in str(caught.value)
    assert handle.looks == 4


@pytest.mark.parametrize("timeout", [0, -1])
async def test_a_timeout_of_zero_or_less_waits_for_all(
    timeout: float,
    clock: Clock,
) -> None:
    handle = Handle("a", ready_after=100, on_look=clock.tick)
    assert await values(handle, timeout=timeout, periodicity=0) == ["a"]


async def test_an_error_of_one_handle_is_the_error_of_the_gathering() -> None:
    unreadable = Handle("b", error=ResultGetError())
    with pytest.raises(ResultGetError):
        await values(Handle("a", ready_after=100), unreadable, periodicity=0)


async def test_handles_are_looked_at_together_not_one_after_another() -> None:
    asked: list[str] = []

    class Slow(Handle):
        async def is_ready(self) -> bool:
            asked.append(self.task_id)
            await asyncio.sleep(0)
            assert asked == ["a", "b"]
            return True

    await values(Slow("a"), Slow("b"))
