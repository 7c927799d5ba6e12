"""taskiq-aio-kafka: importing it and registering tasks; there is no server for more."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

from taskiq_aio_kafka import AioKafkaBroker

from taskiq import AsyncBroker


def make_broker() -> AsyncBroker:
    """Make the broker with a stand-in for what connects in its constructor."""
    broker: AsyncBroker = AioKafkaBroker("127.0.0.1:1", kafka_admin_client=Mock())
    return broker


def test_tasks_can_be_registered_and_keep_their_labels() -> None:
    broker = make_broker()

    @broker.task("plain", number=3)
    async def plain(number: int) -> int:
        return number + 1

    assert broker.find_task("plain") is plain
    assert plain.labels["number"] == 3
    assert asyncio.run(plain(1)) == 2
    assert plain.kicker().with_labels(other=4).labels["other"] == 4


def test_batch_tasks_can_be_registered_and_called() -> None:
    broker = make_broker()

    @broker.task("batch", batch=True, batch_size=7)
    async def batch(numbers: list[int]) -> list[int]:
        return [number + len(numbers) for number in numbers]

    found = broker.find_task("batch")
    assert found is not None
    assert found.batch is not None
    assert found.batch.size == 7
    assert asyncio.run(batch(1)) == 2
    function: Any = batch.original_func
    assert asyncio.run(function([1, 2])) == [3, 4]


def test_tasks_can_be_given_a_topic() -> None:
    broker = make_broker()

    @broker.task
    async def plain() -> None: ...

    kicker: Any = plain.kicker()
    assert "elsewhere" in str(kicker.with_topic("elsewhere").labels)
