"""Tasks that do not know yet which broker will send them."""

from __future__ import annotations

from typing import Any

import pytest

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, BrokerMessage, InMemoryBroker
from taskiq.brokers.shared_broker import (
    AsyncSharedBroker,
    SharedDecoratedTask,
    async_shared_broker,
    shared_task,
)
from taskiq.exceptions import (
    SendTaskError,
    SharedBrokerListenError,
    SharedBrokerSendTaskError,
)
from tests.support.brokers import QueueBroker


@pytest.fixture(autouse=True)
def no_tasks_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncBroker, "global_task_registry", {})


@pytest.fixture
def shared() -> AsyncSharedBroker:
    return AsyncSharedBroker()


@pytest.fixture
def task(shared: AsyncSharedBroker) -> AsyncTaskiqDecoratedTask[..., Any]:
    async def double(x: int) -> int:
        return 2 * x

    return shared.register_task(double, "double", priority=1)


def test_the_package_has_one_shared_broker_and_its_decorator() -> None:
    assert type(async_shared_broker) is AsyncSharedBroker
    decorator: Any = shared_task
    assert decorator.__self__ is async_shared_broker
    assert decorator.__func__ is AsyncBroker.task


def test_its_tasks_are_of_a_class_of_their_own(
    task: AsyncTaskiqDecoratedTask[..., Any],
    shared: AsyncSharedBroker,
) -> None:
    assert type(task) is SharedDecoratedTask
    assert isinstance(task, AsyncTaskiqDecoratedTask)
    assert task.broker is shared
    assert task.labels == {"priority": 1}


def test_every_broker_finds_a_shared_task(
    task: AsyncTaskiqDecoratedTask[..., Any],
    shared: AsyncSharedBroker,
) -> None:
    for broker in (shared, QueueBroker(), AsyncSharedBroker()):
        assert broker.find_task("double") is task
        assert broker.get_all_tasks() == {"double": task}
        assert broker.local_task_registry == {}
    assert AsyncBroker.global_task_registry == {"double": task}


async def test_without_a_default_broker_a_task_cannot_be_sent(
    task: AsyncTaskiqDecoratedTask[..., Any],
    shared: AsyncSharedBroker,
) -> None:
    assert task.kicker().broker is shared
    with pytest.raises(SendTaskError) as caught:
        await task.kiq(1)
    assert type(caught.value) is SendTaskError
    assert isinstance(caught.value.__cause__, SharedBrokerSendTaskError)


async def test_sending_by_the_shared_broker_itself_is_refused(
    shared: AsyncSharedBroker,
) -> None:
    message = BrokerMessage(task_id="id", task_name="name", message=b"", labels={})
    with pytest.raises(SharedBrokerSendTaskError, match="default_broker"):
        await shared.kick(message)


async def test_there_is_nothing_to_listen_to(shared: AsyncSharedBroker) -> None:
    untyped: Any = shared
    with pytest.raises(SharedBrokerListenError):
        await untyped.listen()


async def test_a_task_is_sent_by_the_default_broker_of_the_moment(
    task: AsyncTaskiqDecoratedTask[..., Any],
    shared: AsyncSharedBroker,
) -> None:
    first, second = QueueBroker(), QueueBroker()

    shared.default_broker(first)
    handle = await task.kiq(1)
    shared.default_broker(second)
    await task.kiq(2)

    [one], [two] = first.take_all(), second.take_all()
    assert first.formatter.loads(one.message).args == [1]
    assert first.formatter.loads(two.message).args == [2]
    assert one.labels == {"priority": "1"}
    assert handle.result_backend is first.result_backend
    assert handle.return_type is int


async def test_another_broker_sends_a_task_without_a_default_one(
    task: AsyncTaskiqDecoratedTask[..., Any],
) -> None:
    broker = QueueBroker()
    await task.kicker().with_broker(broker).kiq(1)
    assert [message.task_name for message in broker.take_all()] == ["double"]


async def test_a_shared_task_runs_where_it_is_sent(
    task: AsyncTaskiqDecoratedTask[..., Any],
    shared: AsyncSharedBroker,
) -> None:
    broker = InMemoryBroker()
    shared.default_broker(broker)

    handle = await task.kiq(21)
    await broker.wait_all()

    assert (await handle.get_result()).return_value == 42
    assert await task(1) == 2


async def test_labels_of_one_message_of_a_shared_task_do_not_leak_into_the_next(
    task: AsyncTaskiqDecoratedTask[..., Any],
    shared: AsyncSharedBroker,
) -> None:
    broker = QueueBroker()
    shared.default_broker(broker)

    await task.kicker().with_labels(priority=9, more="x").kiq(1)
    await task.kiq(2)

    assert task.labels == {"priority": 1}
    assert [message.labels for message in broker.take_all()] == [
        {"priority": "9", "more": "x"},
        {"priority": "1"},
    ]


def test_a_shared_task_class_serves_any_broker() -> None:
    broker = QueueBroker()
    broker.decorator_class = SharedDecoratedTask
    task = broker.register_task(print, "name")
    assert task.kicker().broker is broker


def test_a_broker_may_have_a_default_broker_by_name_alone() -> None:
    broker: Any = QueueBroker()
    broker.decorator_class = SharedDecoratedTask
    broker._default_broker = QueueBroker()
    task = broker.register_task(print, "name")
    assert task.kicker().broker is broker._default_broker
