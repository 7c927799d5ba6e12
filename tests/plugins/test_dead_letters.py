"""Messages that fail, on real servers: nothing is lost, and delays are kept."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from taskiq import (
    AsyncBroker,
    BrokerMessage,
    Context,
    InMemoryBroker,
    TaskiqDepends,
)
from taskiq.capabilities import resolve
from taskiq.dead_letters import DeadLetter, DeadLetterStore, store_of
from taskiq.exceptions import DeadLetterNotFoundError
from taskiq.receiver import Receiver
from taskiq.receiver.delays import advice_on_delay
from tests.support.brokers import QueueBroker
from tests.support.environments import CHECKOUT as ROOT
from tests.support.hub import HANG

from .lines import ALL

LINE_NAMES = [
    "redis-list",
    "redis-stream",
    "adapted-redis-stream",
    "rabbitmq",
    "jetstream-pull",
    "adapted-jetstream-push",
]
#: Those that can keep a message for a time.
DELAYING = [
    "adapted-redis-stream",
    "rabbitmq",
    "jetstream-pull",
    "adapted-jetstream-push",
    "postgres",
    "adapted-postgres",
]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., AsyncBroker]]:
    line = ALL[request.param]
    if reason := line.unavailable():
        pytest.skip(reason)
    name = f"taskiq-dead-{uuid.uuid4().hex[:12]}"
    yield lambda sends=False: line.sender(name) if sends else line.make(name)
    line.server.remove(name)


@asynccontextmanager
async def working(broker: AsyncBroker) -> AsyncIterator[None]:
    broker.is_worker_process = True
    finish = asyncio.Event()
    listening = asyncio.create_task(Receiver(broker, max_async_tasks=5).listen(finish))
    yield
    finish.set()
    await asyncio.wait_for(listening, HANG)
    await broker.shutdown()


def store_for(broker: AsyncBroker) -> DeadLetterStore:
    store = store_of(broker)
    assert store is not None
    return store


async def letters_of(broker: AsyncBroker, count: int) -> list[DeadLetter]:
    """Wait until so many letters are there; more are a fault, too."""
    letters: list[DeadLetter] = []
    for _ in range(int(HANG / 0.2)):
        letters = [letter async for letter in store_for(broker).read()]
        if len(letters) >= count:
            break
        await asyncio.sleep(0.2)
    return letters


#: The rows of the guide, by the lines whose brokers they are about.
ROWS = {
    "RabbitMQ": ["rabbitmq"],
    "RabbitMQ without a delay queue": ["rabbitmq-undelayed"],
    "JetStream, pull or push": [
        "jetstream-pull",
        "jetstream-push",
        "adapted-jetstream-pull",
        "adapted-jetstream-push",
    ],
    "Redis stream, adapter": ["adapted-redis-stream"],
    "Redis stream, plugin": ["redis-stream"],
    "Redis list or pub/sub": [
        "redis-list",
        "redis-pubsub",
        "adapted-redis-list",
        "adapted-redis-pubsub",
    ],
    "PostgreSQL, adapter": ["adapted-postgres"],
    "PostgreSQL, plugin": ["postgres"],
    "NATS without JetStream": ["nats", "adapted-nats"],
}


def told_of(broker: AsyncBroker) -> tuple[str, ...]:
    """Say of a broker what a row of the table says, but for leases it has not."""
    can, store = resolve(broker), store_of(broker)
    is_at_once = advice_on_delay(broker) is not None
    sent_for_a_time = "at once" if is_at_once else "sent again"
    place = "" if store is None else type(store).__name__
    return (
        "given back" if can.nack and can.deliveries else "sent again",
        "kept" if can.delayed_nack else sent_for_a_time,
        "counted" if can.deliveries else "if given back",
        "renewed" if can.extend else "",
        next((each for name, each in PLACES.items() if name in place), "hooks"),
    )


PLACES = {
    "InMemory": "list",
    "Redis": "stream",
    "JetStream": "stream",
    "RabbitMQ": "queue",
}


def test_the_guide_says_what_each_broker_does_instead() -> None:
    """The very brokers are asked, not started: no server is needed."""
    page = (ROOT / "docs" / "guide" / "failures.md").read_text()
    table = page.partition("| leases | dead letters |")[2].partition("\n\n")[0]
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in table.split("\n")
    ]
    told = {row[0]: tuple(row[1:]) for row in rows[2:]}
    brokers = {
        title: [ALL[each].make("x") for each in lines] for title, lines in ROWS.items()
    }
    brokers["in memory"] = [InMemoryBroker()]
    brokers["any other"] = [QueueBroker()]
    assert told.keys() == brokers.keys()
    without = {"none": "", "not renewed": ""}
    for title, cells in told.items():
        seen = tuple(without.get(each, each) for each in cells)
        assert [told_of(each) for each in brokers[title]] == [seen] * len(
            brokers[title]
        )


@pytest.mark.parametrize("make", LINE_NAMES, indirect=True)
async def test_nothing_that_fails_is_lost(
    make: Callable[..., AsyncBroker], caplog: pytest.LogCaptureFixture
) -> None:
    """What failed, what nobody knows, what nobody can read, what has a bad label."""
    broker = make().with_dead_letters()

    @broker.task("fails")
    async def fails(number: int) -> None:
        raise ValueError(f"no {number}\nwith a second line, \u00fcber alles")

    bad = b'{"task_id":"3","task_name":"fails","args":[1],"kwargs":{},'
    bad += b'"labels":{"n":"x"},"labels_types":{"n":2}}'
    unknown = b'{"task_id":"2","task_name":"who","args":[],"kwargs":{},"labels":{}}'
    datas = {"unparsable": b"\xff\x00 nothing", "unknown_task": unknown}
    datas["bad_label"] = bad
    async with working(broker):
        await asyncio.sleep(1)
        sender = make(sends=True)
        await sender.startup()
        task: Any = sender.register_task(print, "fails")
        await task.kiq(7)
        for data in datas.values():
            await sender.kick(
                BrokerMessage(task_id="1", task_name="t", message=data, labels={})
            )
        await sender.shutdown()
        letters = {each.reason: each for each in await letters_of(broker, 4)}
    assert set(letters) == {"error", *datas}
    assert {reason: letters[reason].data for reason in datas} == datas
    [queue] = {each.queue for each in letters.values()}
    assert queue.startswith("taskiq-dead-"), "where it came from"
    error = letters["error"]
    assert broker.formatter.loads(error.data).args == [7]
    assert error.error == "ValueError: no 7 with a second line, \u00fcber alles"
    assert (error.task_name, len(error.task_id)) == ("fails", 32)
    assert abs(error.time - time.time()) < HANG
    store = store_for(broker)
    first, *others = await letters_of(broker, 4)
    for each in (first, *others):
        assert f"kept in {store.queue} as {each.id}" in caplog.text
    assert [letter async for letter in store.read(first.id)] == others
    assert await store.remove([first.id, others[1].id]) == 2
    assert [each async for each in store.read()] == [others[0], others[2]]
    with pytest.raises(DeadLetterNotFoundError):
        await anext(store.read("none"))
    if "rabbitmq" in type(store).__module__:
        with pytest.raises(DeadLetterNotFoundError):
            await anext(store.read(first.id))
    else:
        assert [letter async for letter in store.read(first.id)] == others[::2]


@pytest.mark.parametrize("make", DELAYING, indirect=True)
async def test_a_message_comes_again_after_its_delay(
    make: Callable[[], AsyncBroker],
) -> None:
    """Within a second, whether the broker keeps it or reads the label of a copy."""
    broker = make()
    moments: list[float] = []

    @broker.task("later", max_deliveries=3)
    async def later(ctx: Context = TaskiqDepends()) -> None:  # noqa: B008
        moments.append(time.monotonic())
        if len(moments) < 3:
            ctx.nack(delay=2)

    async with working(broker):
        await asyncio.sleep(1)
        await later.kiq()
        for _ in range(int(HANG / 0.1)):
            await asyncio.sleep(0.1)
            if len(moments) == 3:
                break
    first, second = (b - a for a, b in itertools.pairwise(moments))
    assert 2 <= first < 3
    assert 2 <= second < 3


@pytest.mark.parametrize(
    "make", ["redis-list", "redis-stream", "rabbitmq-undelayed"], indirect=True
)
async def test_a_delay_that_nobody_keeps_loses_nothing_and_is_told(
    make: Callable[[], AsyncBroker], caplog: pytest.LogCaptureFixture
) -> None:
    broker = make()
    again = asyncio.Event()
    runs: list[int] = []

    @broker.task("later", max_deliveries=3)
    async def later(ctx: Context = TaskiqDepends()) -> None:  # noqa: B008
        runs.append(1)
        if len(runs) == 2:
            again.set()
            return
        ctx.nack(delay=3600)

    async with working(broker):
        await asyncio.sleep(1)
        await later.kiq()
        await asyncio.wait_for(again.wait(), HANG)
    assert "in spite of nack(delay=3600)" in caplog.text


@pytest.mark.parametrize("make", LINE_NAMES, indirect=True)
async def test_what_fails_runs_again_up_to_the_limit(
    make: Callable[[], AsyncBroker],
) -> None:
    broker = make()
    runs: list[int] = []

    @broker.task("failing", max_deliveries=3, on_failure="requeue")
    async def failing() -> None:
        runs.append(1)
        raise ValueError

    async with working(broker):
        await asyncio.sleep(1)
        await failing.kiq()
        [letter] = await letters_of(broker, 1)
    assert (len(runs), letter.deliveries, letter.reason) == (3, 3, "error")
