"""What the servers of real brokers say of their queues, without being changed by it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from taskiq import AckableMessage, AsyncBroker
from taskiq.message import BrokerMessage
from taskiq.queues import QueueDepth, queue_depths
from tests.support.hub import HANG, Hub

from .lines import LINES, Line
from .stage import Stage

_SENT = 5

#: Lines whose server knows how much waits; those also know what is held and how old
#: the oldest is. The others are named by what they read, and by nothing else.
_COUNTED = {
    name
    for name in LINES
    if name.removeprefix("adapted-")
    in {
        "redis-stream",
        "redis-list",
        "rabbitmq",
        "jetstream-push",
        "jetstream-pull",
        "postgres",
    }
}
_KNOWS_ALL = {each for each in _COUNTED if not re.search("list|rabbitmq", each)}
#: PostgreSQL tells of a message only once, when it is sent.
_TELLS_AGAIN = [
    line
    for name, line in LINES.items()
    if name in _KNOWS_ALL and "postgres" not in name
]


@pytest.fixture(params=LINES.values(), ids=str)
def stage(request: pytest.FixtureRequest, hub: Hub) -> Iterator[Stage]:
    line: Line = request.param
    if reason := line.unavailable():
        pytest.skip(reason)
    with Stage(line, hub).opened() as stage:
        yield stage


async def asked(broker: AsyncBroker) -> QueueDepth:
    """Ask for the queue of tasks; delayed ones and dead letters stay empty."""
    first, *others = await queue_depths(broker)
    assert all(each.depth == 0 for each in others), others
    return first


async def send(stage: Stage) -> None:
    sender = stage.line.sender(stage.name)
    await sender.startup()
    try:
        for number in range(_SENT):
            message = BrokerMessage(
                task_id=str(number), task_name="any", message=b"any", labels={}
            )
            await sender.kick(message)
    finally:
        await sender.shutdown()


async def take_one(broker: AsyncBroker) -> AckableMessage:
    listening: Any = broker.listen()
    async with aclosing(listening):
        message: AckableMessage = await asyncio.wait_for(anext(listening), HANG)
        return message


def test_what_waits_is_counted_and_nothing_is_started_for_it(stage: Stage) -> None:
    async def main() -> None:
        asker = stage.line.make(stage.name)
        empty = await asked(asker)
        if stage.line.name not in _COUNTED:
            assert empty == QueueDepth(empty.name)
            assert stage.name in empty.name
            return
        await send(stage)
        waiting = await asked(asker)
        held = 0 if stage.line.name in _KNOWS_ALL else None
        assert (empty.depth, empty.unacknowledged, empty.oldest_age) == (0, held, None)
        assert (waiting.depth, waiting.unacknowledged) == (_SENT, held)
        if held is not None:
            assert waiting.oldest_age is not None
            assert 0 <= waiting.oldest_age < HANG
        again = await asked(asker)
        assert (again.depth, again.unacknowledged) == (_SENT, held)

    asyncio.run(main())


@pytest.mark.parametrize("stage", _TELLS_AGAIN, indirect=True, ids=str)
def test_what_is_held_is_counted_until_it_is_acknowledged(stage: Stage) -> None:
    async def main() -> None:
        await send(stage)
        broker = stage.line.make(stage.name)
        broker.is_worker_process = True
        await broker.startup()
        try:
            message = await take_one(broker)
            held = await asked(broker)
            assert held.unacknowledged is not None
            assert held.depth is not None
            assert held.unacknowledged >= 1
            assert held.depth + held.unacknowledged == _SENT
            assert held.oldest_age is not None
            ack: Any = message.ack
            await ack()
            for _ in range(100):  # the server is told, and does not answer
                after = await asked(broker)
                if (after.depth or 0) + (after.unacknowledged or 0) == _SENT - 1:
                    return
                await asyncio.sleep(0.05)
            pytest.fail(f"it is still counted: {after}")
        finally:
            await broker.shutdown()

    asyncio.run(main())


def test_a_queue_that_was_never_made_is_empty_or_not_known(stage: Stage) -> None:
    async def main() -> None:
        found = await asked(stage.line.make(f"{stage.name}-never"))
        assert found.depth == (0 if stage.line.name in _COUNTED else None)
        assert found.oldest_age is None

    asyncio.run(main())
