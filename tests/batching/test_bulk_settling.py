"""Settling a batch in few calls, where its backend and its broker can."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import AckableMessage, AsyncResultBackend, BatchContext, TaskiqResult
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import run_virtual
from tests.support.worker import BatchWorker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence


class BulkBackend(AsyncResultBackend[Any]):
    """Saves many results in one call, and refuses those it is told to."""

    def __init__(
        self, refused: Mapping[str, Exception], error: Exception | None
    ) -> None:
        self.refused = refused
        #: What the first call fails with.
        self.error = error
        self.calls: list[list[str]] = []

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.calls.append([task_id])

    async def set_results(
        self,
        results: Mapping[str, TaskiqResult[Any]],
    ) -> Mapping[str, Exception]:
        self.calls.append(list(results))
        if self.error is not None and len(self.calls) == 1:
            raise self.error
        return {name: self.refused[name] for name in results if name in self.refused}

    async def is_result_ready(self, task_id: str) -> bool:
        raise NotImplementedError

    async def get_result(self, task_id: str, with_logs: bool = False) -> Any:
        raise NotImplementedError


class Group:
    """Acknowledges together, and fails as it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.acked: list[list[AckableMessage]] = []

    async def ack(
        self,
        messages: Sequence[AckableMessage],
    ) -> Sequence[Exception | None]:
        self.acked.append(list(messages))
        if isinstance(self.answer, BaseException):
            raise self.answer
        if isinstance(self.answer, asyncio.Event):
            await self.answer.wait()
        answers: list[Exception | None] = self.answer or [None] * len(messages)
        return answers


class GroupBroker(QueueBroker):
    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            assert isinstance(message, AckableMessage)
            yield message.model_copy(update={"ack_group": self.group})


def worker_of(group: Group, backend: BulkBackend, **options: Any) -> BatchWorker:
    """Make a worker of batches of three, which acknowledges and saves by these."""
    worker = BatchWorker(
        broker=GroupBroker(group), is_recording=False, batch_size=3, **options
    )
    worker.broker.with_result_backend(backend)
    return worker


def settle(group: Group, backend: BulkBackend, count: int = 3) -> None:
    worker = worker_of(group, backend, max_async_tasks=1)

    async def main() -> None:
        await worker.send(*range(count))
        await worker.run()

    run_virtual(main())


def test_a_batch_is_saved_in_one_call_and_acknowledged_in_one() -> None:
    group, backend = Group(None), BulkBackend({}, None)
    settle(group, backend)
    assert backend.calls == [["0", "1", "2"]]
    assert [len(messages) for messages in group.acked] == [3]


def test_what_was_not_saved_is_not_acknowledged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group, backend = Group(None), BulkBackend({"1": ConnectionError("no")}, None)
    settle(group, backend)
    assert [len(messages) for messages in group.acked] == [2]
    assert (
        "Cannot set the result of task work with ID 1: ConnectionError: no."
        in caplog.text
    )


def test_nothing_is_saved_and_acknowledged_where_the_backend_is_away() -> None:
    group, backend = Group(None), BulkBackend({}, ConnectionError("away"))
    settle(group, backend)
    assert backend.calls == [["0", "1", "2"]]
    assert group.acked == []


def test_the_first_batch_that_is_saved_again_ends_the_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group, backend = Group(None), BulkBackend({}, ConnectionError("away"))
    settle(group, backend, 6)
    assert len(backend.calls) == 2
    assert [len(messages) for messages in group.acked] == [3]
    assert caplog.messages[-1].startswith("The broker is back after")
    assert "3 messages could not be settled" in caplog.messages[-1]


def test_what_the_function_is_acknowledging_is_not_acknowledged_with_the_others() -> (
    None
):
    acking: list[asyncio.Future[None]] = []

    async def act(context: BatchContext, items: list[int]) -> None:
        acking.append(asyncio.ensure_future(context.ack(0)))
        await asyncio.sleep(0)

    group = Group(None)
    worker = worker_of(group, BulkBackend({}, None), act=act)
    worker.broker.ack_takes = 5

    async def main() -> None:
        await worker.send(0, 1, 2)
        await worker.run()
        worker.assert_as_new()

    run_virtual(main())
    assert [len(messages) for messages in group.acked] == [2]
    assert worker.broker.acked == ["0"]


def test_who_waits_for_an_ack_of_a_group_that_is_given_up_tries_alone() -> None:
    group, acking = Group(asyncio.Event()), list[asyncio.Future[None]]()

    async def act(context: BatchContext, items: list[int]) -> None:
        async def ack_late() -> None:
            await asyncio.sleep(1)
            await context.ack(0)

        acking.append(asyncio.ensure_future(ack_late()))

    worker = worker_of(group, BulkBackend({}, None), act=act, wait_tasks_timeout=0)

    async def main() -> None:
        await worker.send(0, 1, 2)
        listening = worker.listen()
        await asyncio.sleep(2)
        worker.finish.set()
        await listening
        await acking[0]
        worker.assert_as_new()

    run_virtual(main())
    assert [len(messages) for messages in group.acked] == [3]
    assert worker.broker.acked == ["0"]


def test_what_one_result_makes_the_whole_call_raise_harms_no_other() -> None:
    group, backend = Group(None), BulkBackend({}, TypeError("cannot store 1"))
    settle(group, backend)
    assert backend.calls == [["0", "1", "2"], ["0"], ["1"], ["2"]]
    assert [len(messages) for messages in group.acked] == [3]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ValueError("no"), ["0", "1", "2"]),
        ([None, ValueError("no"), None], ["1"]),
        ([None], ["0", "1", "2"]),
    ],
)
def test_each_message_that_is_not_acknowledged_with_its_group_is_named(
    answer: Any,
    told: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    settle(Group(answer), BulkBackend({}, None))
    lines = [line for line in caplog.messages if line.startswith("Cannot acknow")]
    assert lines == [f"Cannot acknowledge task work with ID {each}." for each in told]
