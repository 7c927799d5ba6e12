"""Reading the results of many handles: order, round trips, waiting, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from taskiq import AsyncTaskiqTask, InMemoryBroker, TaskiqResult, gather_results
from taskiq.bulk import GroupCommit
from taskiq.exceptions import (
    ResultGetError,
    ResultIsReadyError,
    TaskiqResultTimeoutError,
)
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import virtual


def result_of(value: Any) -> TaskiqResult[Any]:
    return TaskiqResult(is_err=False, return_value=value, execution_time=0)


def handles_of(backend: Any, count: int) -> list[AsyncTaskiqTask[Any]]:
    return [AsyncTaskiqTask(str(n), backend) for n in range(count)]


class BulkBackend(RecordingBackend):
    """Reads many results in one round trip of 10 ms, and forgets what was read.

    :ivar trips: how many results each round trip asked for.
    """

    def __init__(self, ready: int = 0) -> None:
        super().__init__()
        self.results = {str(n): result_of(n) for n in range(ready)}
        self.trips: list[int] = []
        self.failing_trips: set[int] = set()

    async def get_results(
        self,
        task_ids: Sequence[str],
        with_logs: bool = False,
    ) -> Mapping[str, TaskiqResult[Any]]:
        self.trips.append(len(task_ids))
        await asyncio.sleep(0.01)
        if len(self.trips) in self.failing_trips:
            raise ConnectionError(f"trip {len(self.trips)}")
        return {
            task_id: self.results.pop(task_id)
            for task_id in task_ids
            if task_id in self.results
        }


class ToldBackend(BulkBackend):
    """Is told when a result is stored; looks and reads share round trips."""

    def __init__(self, ready: int = 0) -> None:
        super().__init__(ready)
        self.reads: GroupCommit[str, TaskiqResult[Any] | None] = GroupCommit(self.read)
        self.stored = asyncio.Event()
        self.most_waiters = self.waiters = 0

    async def read(self, task_ids: Sequence[str]) -> list[TaskiqResult[Any] | None]:
        found = await self.get_results(task_ids)
        return [found.get(task_id) for task_id in task_ids]

    async def wait_for_result(
        self,
        task_id: str,
        timeout: float,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        self.waiters += 1
        self.most_waiters = max(self.most_waiters, self.waiters)
        try:
            while (found := await self.reads.submit(task_id)) is None:
                limit = timeout if timeout > 0 else None
                await asyncio.wait_for(self.stored.wait(), limit)
        except asyncio.TimeoutError:
            raise TaskiqResultTimeoutError(timeout=timeout) from None
        else:
            return found
        finally:
            self.waiters -= 1


@virtual
async def test_a_thousand_results_that_are_there_are_one_round_trip() -> None:
    for cls in (BulkBackend, ToldBackend):
        backend = cls(ready=1000)
        handles = handles_of(backend, 1000)[::-1]
        results = await gather_results(handles)
        assert [result.return_value for result in results] == list(range(999, -1, -1))
        assert backend.trips == [1000]


@virtual
async def test_a_thousand_results_that_are_told_of_are_few_round_trips() -> None:
    backend = ToldBackend()
    gathering = asyncio.create_task(gather_results(handles_of(backend, 1000)))
    await asyncio.sleep(0.5)
    # Before the results come: who waits looks once, most of them together.
    assert backend.trips == [1000, 1, 999]
    backend.results = {str(n): result_of(n) for n in range(1000)}
    backend.stored.set()
    results = await gathering
    assert [result.return_value for result in results] == list(range(1000))
    assert len(backend.trips) == 5


@virtual
async def test_no_more_than_a_thousand_wait_at_once() -> None:
    backend = ToldBackend()
    gathering = asyncio.create_task(gather_results(handles_of(backend, 2500)))
    await asyncio.sleep(0.5)
    assert backend.most_waiters == 1000
    assert max(backend.trips) == 1000
    backend.results = {str(n): result_of(n) for n in range(2500)}
    backend.stored.set()
    assert len(await gathering) == 2500


@virtual
async def test_a_backend_that_is_not_told_is_asked_for_all_that_are_missing() -> None:
    backend = BulkBackend(ready=3)

    async def store() -> None:
        for n in range(3, 6):
            await asyncio.sleep(1)
            await backend.set_result(str(n), result_of(n))

    results, _ = await asyncio.gather(gather_results(handles_of(backend, 6)), store())

    assert [result.return_value for result in results] == list(range(6))
    assert backend.trips[0] == 6
    assert sorted(set(backend.trips)) == [1, 2, 3, 6]
    # 5 ms between the first two looks, 200 ms at last: some twenty looks in 3 seconds.
    assert len(backend.trips) < 25


async def test_the_same_handle_may_be_given_twice_and_backends_mixed() -> None:
    first, second = BulkBackend(ready=2), BulkBackend(ready=2)
    a, b = AsyncTaskiqTask("0", first), AsyncTaskiqTask("0", second)
    second.results["0"] = result_of("of the second")

    results = await gather_results(iter([a, b, a]))

    assert [result.return_value for result in results] == [0, "of the second", 0]
    assert (first.trips, second.trips) == ([1], [1])
    assert await gather_results([]) == []


async def test_results_get_the_types_of_their_tasks_and_errors_are_results() -> None:
    broker = InMemoryBroker()

    @broker.task
    async def divide(a: int, b: int) -> tuple[int, int]:
        return divmod(a, b)

    handles = await divide.kiq_many([divide.call(7, 2), divide.call(1, 0)])
    good, bad = await gather_results(handles, timeout=10)

    assert good.return_value == (3, 1)
    assert isinstance(bad.error, ZeroDivisionError)


@virtual
@pytest.mark.parametrize("cls", [BulkBackend, ToldBackend])
async def test_missing_results_are_given_up_in_time(cls: type[BulkBackend]) -> None:
    backend = cls(ready=1)
    with pytest.raises(TaskiqResultTimeoutError) as caught:
        await gather_results(handles_of(backend, 3), timeout=7)
    assert caught.value.timeout == 7
    # A round trip may be on its way at that moment.
    assert asyncio.get_running_loop().time() == pytest.approx(7, abs=0.05)


class GenerousBackend(BulkBackend):
    """Gives more results than it is asked for."""

    async def get_results(
        self,
        task_ids: Sequence[str],
        with_logs: bool = False,
    ) -> Mapping[str, TaskiqResult[Any]]:
        found = await super().get_results(task_ids, with_logs)
        return {**found, "other": result_of("of another message")}


@virtual
async def test_a_result_nobody_asked_for_takes_the_place_of_none() -> None:
    backend = GenerousBackend(ready=1)
    gathering = asyncio.create_task(gather_results(handles_of(backend, 2), timeout=9))
    await asyncio.sleep(1)
    assert not gathering.done()
    await backend.set_result("1", result_of(1))
    assert [result.return_value for result in await gathering] == [0, 1]


class SlowBackend(ToldBackend):
    """Takes so long to look that the time is over when it knows."""

    async def get_results(
        self,
        task_ids: Sequence[str],
        with_logs: bool = False,
    ) -> Mapping[str, TaskiqResult[Any]]:
        await asyncio.sleep(10)
        return await super().get_results(task_ids, with_logs)


@virtual
async def test_a_look_that_outlasts_the_timeout_is_the_last_one() -> None:
    backend = SlowBackend(ready=1)
    with pytest.raises(TaskiqResultTimeoutError) as caught:
        await gather_results(handles_of(backend, 2), timeout=7)
    assert caught.value.timeout == 7
    assert backend.trips == [2]


@virtual
async def test_a_failed_round_trip_is_not_the_end_and_loses_nothing() -> None:
    polled, told = BulkBackend(ready=2), ToldBackend(ready=2)
    polled.failing_trips, told.failing_trips = {1, 2}, {1}
    for backend in (polled, told):
        results = await gather_results(handles_of(backend, 2), timeout=5)
        assert [result.return_value for result in results] == [0, 1]


@virtual
async def test_three_failed_round_trips_in_a_row_end_the_wait() -> None:
    backend = BulkBackend()
    backend.failing_trips = {2, 3, 4}
    with pytest.raises(ResultIsReadyError) as caught:
        await gather_results(handles_of(backend, 2))
    assert str(caught.value.__cause__) == "trip 4"
    assert "trip 4" in str(caught.value)


class Unreadable(ToldBackend):
    """Loses its connection while somebody waits."""

    async def wait_for_result(
        self,
        task_id: str,
        timeout: float,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        if task_id == "1":
            raise ConnectionError("gone")
        return await super().wait_for_result(task_id, timeout, with_logs)


@virtual
async def test_an_error_while_waiting_ends_all_waits() -> None:
    backend = Unreadable()
    with pytest.raises(ResultGetError) as caught:
        await gather_results(handles_of(backend, 3))
    assert str(caught.value.__cause__) == "gone"
    await asyncio.sleep(1)  # what is left of a round trip
    assert backend.waiters == 0


@virtual
async def test_cancelling_the_gathering_ends_all_waits() -> None:
    backend = ToldBackend()
    gathering = asyncio.create_task(gather_results(handles_of(backend, 3)))
    await asyncio.sleep(1)
    assert backend.waiters == 3
    gathering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathering
    assert backend.waiters == 0
