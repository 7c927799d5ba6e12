"""Settling a batch in few calls, where its backend and its broker can."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import AckableMessage, AsyncResultBackend, TaskiqResult
from taskiq.receiver import Receiver
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence


class BulkBackend(AsyncResultBackend[Any]):
    """Saves many results in one call, and refuses those it is told to."""

    def __init__(
        self, refused: Mapping[str, Exception], error: Exception | None
    ) -> None:
        self.refused = refused
        self.error = error
        self.calls: list[list[str]] = []

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.calls.append([task_id])

    async def set_results(
        self,
        results: Mapping[str, TaskiqResult[Any]],
    ) -> Mapping[str, Exception]:
        self.calls.append(list(results))
        if self.error is not None:
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


def settle(group: Group, backend: BulkBackend) -> None:
    async def main() -> None:
        broker = GroupBroker(group)
        broker.with_result_backend(backend)

        @broker.task("work", batch=True, batch_size=3)
        async def work(items: list[int]) -> list[int]:
            return items

        for item in range(3):
            await work.kicker().with_task_id(str(item)).kiq(item)
        broker.end()
        await Receiver(broker, run_startup=False, max_async_tasks=2).listen(
            asyncio.Event(),
        )

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
