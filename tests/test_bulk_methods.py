"""Methods for many on brokers and result backends that have only those for one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pytest

from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend, TaskiqResult
from taskiq.brokers.inmemory_broker import InMemoryBroker, InmemoryResultBackend
from taskiq.exceptions import ResultIsReadyError, TaskiqResultTimeoutError
from taskiq.message import BrokerMessage
from taskiq.result_backends.dummy import DummyResultBackend
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import virtual

_T = TypeVar("_T")


def result_of(value: Any) -> TaskiqResult[Any]:
    return TaskiqResult(is_err=False, return_value=value, execution_time=0)


def message(task_id: str) -> BrokerMessage:
    return BrokerMessage(task_id=task_id, task_name="name", message=b"", labels={})


# -- Brokers -----------------------------------------------------------------------


class SlowBroker(QueueBroker):
    """Takes a second for a message, and refuses those whose id is no number."""

    most_at_once = at_once = 0

    async def kick(self, message: BrokerMessage) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(1)
        self.at_once -= 1
        if not message.task_id.isdecimal():
            raise ConnectionError(message.task_id)
        await super().kick(message)


@virtual
async def test_a_broker_that_only_kicks_kicks_many_a_hundred_at_once() -> None:
    broker = SlowBroker()
    ids = [str(number) for number in range(250)]
    ids[7] = "seven"

    outcomes = await broker.kick_many([message(task_id) for task_id in ids])

    assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == [7]
    assert repr(outcomes[7]) == "ConnectionError('seven')"
    assert {sent.task_id for sent in broker.take_all()} == {*ids} - {"seven"}
    assert broker.most_at_once == 100
    assert asyncio.get_running_loop().time() == 3


class BulkBroker(QueueBroker):
    """Sends many at once."""

    calls = 0

    async def kick_many(
        self,
        messages: Sequence[BrokerMessage],
    ) -> list[Exception | None]:
        self.calls += 1
        for each in messages:
            self.queue.put_nowait(each)
        return [None] * len(messages)


class CountingMixin(AsyncBroker):
    """Replaces `kick` where it stands before a broker."""

    kicks = 0

    async def kick(self, message: BrokerMessage) -> None:
        self.kicks += 1


class CountingBroker(CountingMixin, BulkBroker): ...


class NamedBroker(BulkBroker):
    """Changes nothing about sending."""


async def test_a_broker_whose_kick_a_subclass_replaced_uses_that_for_many() -> None:
    counting, named = CountingBroker(), NamedBroker()
    await counting.kick_many([message("1"), message("2")])
    await named.kick_many([message("1"), message("2")])
    assert (counting.kicks, counting.calls) == (2, 0)
    assert named.calls == 1


async def test_the_in_memory_broker_kicks_many_one_after_another() -> None:
    broker = InMemoryBroker(await_inplace=True)
    journal: list[str] = []

    @broker.task("known")
    async def known(name: str) -> None:
        journal.append(f"{name} starts")
        await asyncio.sleep(0)
        journal.append(f"{name} ends")

    dumped = [
        broker.formatter.dumps(known.kicker()._prepare_message(name)) for name in "ab"
    ]
    outcomes = await broker.kick_many([dumped[0], message("unknown"), dumped[1]])

    assert outcomes[::2] == [None, None]
    assert "unknown task" in str(outcomes[1])
    assert journal == ["a starts", "a ends", "b starts", "b ends"]


# -- Result backends ---------------------------------------------------------------


class SlowBackend(RecordingBackend):
    """Takes a second for everything."""

    most_at_once = at_once = 0

    async def _take_time(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(1)
        self.at_once -= 1

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        await self._take_time()
        await super().set_result(task_id, result)

    async def is_result_ready(self, task_id: str) -> bool:
        await self._take_time()
        return await super().is_result_ready(task_id)


@virtual
async def test_a_backend_stores_many_sixteen_at_once_and_tells_which_failed() -> None:
    backend = SlowBackend()
    backend.failing = {"3", "20"}
    results = {str(number): result_of(number) for number in range(32)}

    failed = await backend.set_results(results)

    assert {task_id: str(error) for task_id, error in failed.items()} == {
        "3": "cannot save 3",
        "20": "cannot save 20",
    }
    assert backend.results == {
        task_id: result
        for task_id, result in results.items()
        if task_id not in {"3", "20"}
    }
    assert backend.most_at_once == 16
    assert asyncio.get_running_loop().time() == 2


@virtual
async def test_a_backend_reads_those_of_many_results_that_are_there() -> None:
    backend = SlowBackend()
    backend.results = {str(number): result_of(number) for number in range(0, 40, 2)}
    ids = [str(number) for number in (*range(32), 0)]

    found = await backend.get_results(ids)

    assert found == {str(n): backend.results[str(n)] for n in range(0, 32, 2)}
    assert backend.most_at_once == 16
    assert asyncio.get_running_loop().time() == 2


class UnreadableBackend(RecordingBackend):
    """Forgets results when they are read, and cannot read that of "bad"."""

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        if task_id == "bad":
            raise ValueError("no result at all")
        assert with_logs
        return self.results.pop(task_id)


async def test_a_result_that_cannot_be_read_costs_nobody_else_his() -> None:
    backend = UnreadableBackend()
    backend.results = {task_id: result_of(task_id) for task_id in ("a", "bad", "b")}

    found = await backend.get_results(["a", "bad", "b"], with_logs=True)
    assert {task_id: each.return_value for task_id, each in found.items()} == {
        "a": "a",
        "b": "b",
    }
    with pytest.raises(ValueError, match="no result at all"):
        await backend.get_results(["a", "bad", "b"], with_logs=True)


class BulkBackend(RecordingBackend):
    """Has methods of its own for many, and for waiting."""

    async def set_results(
        self,
        results: Mapping[str, TaskiqResult[Any]],
    ) -> Mapping[str, Exception]:
        raise NotImplementedError

    async def get_results(
        self,
        task_ids: Sequence[str],
        with_logs: bool = False,
    ) -> Mapping[str, TaskiqResult[Any]]:
        raise NotImplementedError

    async def wait_for_result(
        self,
        task_id: str,
        timeout: float,
        with_logs: bool = False,
    ) -> TaskiqResult[Any]:
        raise NotImplementedError


class OwnSetting(BulkBackend):
    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None: ...


class OwnReading(BulkBackend):
    async def get_result(
        self, task_id: str, with_logs: bool = False
    ) -> TaskiqResult[Any]:
        raise NotImplementedError


class OwnLooking(BulkBackend):
    async def is_result_ready(self, task_id: str) -> bool:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("cls", "replaced"),
    [
        (BulkBackend, set()),
        (OwnSetting, {"set_results", "wait_for_result"}),
        (OwnReading, {"get_results", "wait_for_result"}),
        (OwnLooking, {"get_results", "wait_for_result"}),
    ],
)
def test_a_backend_whose_subclass_replaced_a_method_uses_that_for_many(
    cls: type[AsyncResultBackend[Any]],
    replaced: set[str],
) -> None:
    base: Any = AsyncResultBackend
    for name in ("set_results", "get_results", "wait_for_result"):
        assert (getattr(cls, name) is getattr(base, name)) == (name in replaced)


async def test_in_memory_many_results_are_stored_and_read_as_one_by_one() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend(2)
    results = {str(number): result_of(number) for number in range(3)}
    wait = asyncio.create_task(backend.wait_for_result("0", 30))
    await asyncio.sleep(0)
    assert await backend.set_results(results) == {}
    assert await wait is results["0"]  # and dropped: there is room for two
    assert await backend.get_results(["0", "2", "1"]) == {
        "2": results["2"],
        "1": results["1"],
    }


async def test_without_a_result_backend_many_results_are_forgotten() -> None:
    backend: DummyResultBackend[Any] = DummyResultBackend()
    assert await backend.set_results({"id": result_of(1)}) == {}


# -- Waiting for a result ----------------------------------------------------------


class Polled(RecordingBackend):
    """Notes when it is looked at; some looks fail."""

    def __init__(self, ready_at: float, failing_looks: Sequence[int] = ()) -> None:
        super().__init__()
        self.results["id"] = result_of(5)
        self.ready_at = ready_at
        self.failing_looks = failing_looks
        self.looks: list[float] = []

    async def is_result_ready(self, task_id: str) -> bool:
        now = asyncio.get_running_loop().time()
        self.looks.append(now)
        if len(self.looks) in self.failing_looks:
            raise ConnectionError(f"look {len(self.looks)}")
        return now >= self.ready_at


@virtual
async def test_polling_begins_at_5_ms_and_doubles_up_to_200_ms() -> None:
    backend = Polled(ready_at=1.0)
    assert (await backend.wait_for_result("id", -1)).return_value == 5
    expected = [0, 5, 15, 35, 75, 155, 315, 515, 715, 915, 1115]
    assert [round(1000 * moment, 6) for moment in backend.looks] == expected


@virtual
async def test_polling_looks_a_last_time_when_the_time_is_over() -> None:
    late, in_time = Polled(ready_at=0.51), Polled(ready_at=0.5)
    with pytest.raises(TaskiqResultTimeoutError) as caught:
        await late.wait_for_result("id", timeout=0.5)
    assert caught.value.timeout == 0.5
    assert late.looks[-1] == 0.5

    started = asyncio.get_running_loop().time()
    in_time.ready_at = started + 0.5
    await in_time.wait_for_result("id", timeout=0.5)
    assert in_time.looks[-1] == started + 0.5


@virtual
async def test_three_failed_looks_in_a_row_end_the_wait_and_two_do_not() -> None:
    flaky = Polled(ready_at=10, failing_looks=[1, 2, 4, 6, 7])
    await flaky.wait_for_result("id", timeout=-1)

    broken = Polled(ready_at=100, failing_looks=[2, 4, 5, 6])
    with pytest.raises(ResultIsReadyError) as caught:
        await broken.wait_for_result("id", timeout=-1)
    assert str(caught.value.__cause__) == "look 6"
    assert "look 6" in str(caught.value)


@virtual
async def test_a_wait_whose_last_looks_failed_says_so_when_it_times_out() -> None:
    backend = Polled(ready_at=10, failing_looks=[2])
    with pytest.raises(TaskiqResultTimeoutError) as caught:
        await backend.wait_for_result("id", timeout=0.005)
    assert str(caught.value.__cause__) == "look 2"
    assert str(caught.value) == (
        "Waiting for task results has timed out, timeout=0.005. "
        "The last look failed: ConnectionError: look 2"
    )


@virtual
async def test_waiting_in_memory_ends_the_moment_the_result_is_stored() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend(0)
    waits = [asyncio.create_task(backend.wait_for_result("id", 60)) for _ in range(2)]
    await asyncio.sleep(1.23)
    stored = result_of(1)
    await backend.set_result("id", stored)

    # Nobody holds a handle, so the result is forgotten at once, but those who wait.
    assert backend.results == {}
    assert [await wait is stored for wait in waits] == [True, True]
    assert asyncio.get_running_loop().time() == 1.23
    assert backend._waiters._futures == {}


@virtual
async def test_waiting_in_memory_for_what_is_there_or_never_comes() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend()
    await backend.set_result("id", result_of(1))
    assert (await backend.wait_for_result("id", 0)).return_value == 1
    with pytest.raises(TaskiqResultTimeoutError) as caught:
        await backend.wait_for_result("other", 30)
    assert caught.value.timeout == 30
    assert asyncio.get_running_loop().time() == 30
    assert backend._waiters._futures == {}


async def test_waiting_in_memory_works_across_threads_and_event_loops() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend()
    is_waiting = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def wait_elsewhere() -> TaskiqResult[Any]:
        wait = asyncio.create_task(backend.wait_for_result("id", 30))
        await asyncio.sleep(0)
        loop.call_soon_threadsafe(is_waiting.set)
        return await wait

    elsewhere = asyncio.create_task(asyncio.to_thread(asyncio.run, wait_elsewhere()))
    await is_waiting.wait()
    await backend.set_result("id", result_of(7))
    assert (await elsewhere).return_value == 7


def test_a_waiter_whose_event_loop_is_closed_harms_nobody() -> None:
    backend: InmemoryResultBackend[Any] = InmemoryResultBackend()
    gone = asyncio.new_event_loop()
    wait = gone.create_task(backend.wait_for_result("id", 0))
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()

    asyncio.run(backend.set_result("id", result_of(7)))

    assert backend.results["id"].return_value == 7
    wait._log_destroy_pending = False  # type: ignore[attr-defined] # it is, on purpose


class Replacing(InmemoryResultBackend[_T]):
    """Stores results in its own way."""

    async def set_result(self, task_id: str, result: TaskiqResult[_T]) -> None:
        self.results[task_id] = result


@virtual
async def test_a_subclass_that_stores_in_its_own_way_is_polled() -> None:
    backend: Replacing[Any] = Replacing()
    wait = asyncio.create_task(backend.wait_for_result("id", 60))
    await asyncio.sleep(1)
    await backend.set_result("id", result_of(1))
    assert (await wait).return_value == 1


# -- Acknowledging -----------------------------------------------------------------


class Group:
    async def ack(
        self,
        messages: Sequence[AckableMessage],
    ) -> Sequence[Exception | None]:
        return [None] * len(messages)


def test_a_message_may_have_a_group_to_be_acknowledged_with() -> None:
    group = Group()
    plain = AckableMessage(data=b"x", ack=print)
    grouped = AckableMessage(data=b"x", ack=print, ack_group=group)

    assert plain.ack_group is None
    assert grouped.ack_group is group
    assert plain == AckableMessage(data=b"x", ack=print)
    assert set(plain.model_dump()) == set(grouped.model_dump()) == {"data", "ack"}
    assert "group" not in repr(grouped)
