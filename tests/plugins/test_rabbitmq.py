"""The adapter of RabbitMQ: fates of messages, and how many writes they take."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import aio_pika
import aiormq
import pytest
import taskiq_aio_pika
from aio_pika.exceptions import (
    ChannelInvalidStateError,
    DeliveryError,
    PublishError,
)

from taskiq import AckableMessage, AsyncBroker, SendManyError
from taskiq.adapters import rabbitmq as adapted
from taskiq.message import BrokerMessage
from tests.faults.proxy import Proxy
from tests.support.hub import HANG

from . import lines
from .servers import RABBITMQ


@pytest.fixture(autouse=True)
def server() -> None:
    if reason := RABBITMQ.unavailable():
        pytest.skip(reason)


@pytest.fixture
def name() -> Any:
    name = f"taskiq-rabbitmq-{uuid.uuid4().hex[:12]}"
    yield name
    for each in (name, f"{name}-too"):
        RABBITMQ.remove(each)


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    proxy = Proxy(RABBITMQ.url)
    await proxy.start()
    yield proxy
    await proxy.stop()


def message(number: int, data: bytes = b"", **labels: Any) -> BrokerMessage:
    return BrokerMessage(
        task_id=f"id-{number}",
        task_name="task",
        message=data or b"%d" % number,
        labels=labels,
    )


MESSAGES = [message(number) for number in range(1000)]


@asynccontextmanager
async def started(broker: AsyncBroker, *, reads: bool = False) -> AsyncIterator[Any]:
    """Give a broker, of whose channels mypy knows nothing."""
    broker.is_worker_process = reads
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()


def made(name: str, **options: Any) -> AsyncBroker:
    return lines.rabbitmq(name, adapted, **options)


@asynccontextmanager
async def channel_of_mine() -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(RABBITMQ.url) as connection:
        yield await connection.channel()


async def taken(name: str, queue: str = "queue") -> list[Any]:
    """Take what is in a queue."""
    async with channel_of_mine() as channel:
        source = await channel.get_queue(f"{name}-{queue}")
        found: list[Any] = []
        while (each := await source.get(fail=False, no_ack=True)) is not None:
            found.append(each)
        return found


async def bodies(name: str) -> list[bytes]:
    return [each.body for each in await taken(name)]


async def receive(
    listener: AsyncGenerator[AckableMessage, None], count: int
) -> list[AckableMessage]:
    return [await asyncio.wait_for(anext(listener), HANG) for _ in range(count)]


class Writes:
    """Counts what a connection is given to write, by the frames of each write."""

    def __init__(self, channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        put = channel.write_queue.put

        async def noted(frame: Any) -> None:
            self.sizes.append(len(frame.payload))
            await put(frame)

        monkeypatch.setattr(channel.write_queue, "put", noted)

    def __len__(self) -> int:
        return len(self.sizes)


async def publishing_channel(broker: Any) -> Any:
    return await broker.write_channel.get_underlay_channel()


# -- As the plugin ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "data"),
    [
        ({}, b""),
        ({"priority": 3}, b""),
        ({"priority": "high"}, b""),
        ({"delay": 600}, b""),
        ({"delay": 600, "priority": 1}, b""),
        ({"queue_name": "another"}, b""),
        ({"text": "ü \u2028", "list": [1, "two", None], "table": {"a": 1.5}}, b""),
        ({"small": -1, "large": 2**40, "yes": True, "none": None}, b""),
        ({}, b"x" * 131_064),  # just one frame
        ({}, b"x" * 300_000),
        ({}, b"x" * 5_000_000),  # on a channel of its own
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_message_arrives_as_that_of_the_plugin(
    name: str, labels: dict[str, Any], data: bytes
) -> None:
    """Alone, among others and by one call: body, properties, exchange and key."""
    sent = message(1, data, **labels)
    async with started(lines.rabbitmq(name, taskiq_aio_pika)) as plugin:
        await plugin.kick(sent)
    async with started(made(f"{name}-too")) as broker:
        await broker.kick(sent)
        await asyncio.gather(*(broker.kick(sent) for _ in range(3)))
        assert await broker.kick_many([sent] * 3) == [None] * 3
    place = "delay" if "delay" in labels else "queue"
    [expected] = [said_of(each, name) for each in await taken(name, place)]
    found = await taken(f"{name}-too", place)
    assert [said_of(each, f"{name}-too") for each in found] == [expected] * 7
    assert len({each.message_id for each in found}) == 7


def said_of(found: Any, name: str) -> dict[str, Any]:
    """Give all that is said of a message, but for its number and its own id."""
    said = found.info()
    for each in ("consumer_tag", "delivery_tag", "message_id", "cluster_id"):
        said.pop(each, None)
    said.update(
        body=found.body,
        exchange=found.exchange.removeprefix(name),
        routing_key=found.routing_key.removeprefix(name),
    )
    return cast("dict[str, Any]", said)


async def test_without_a_limit_of_frames_a_message_is_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server says with a `frame_max` of 0."""
    sent = [b"x" * 100_000, b"", b"text"]
    messages = [MESSAGES[1].model_copy(update={"message": data}) for data in sent]
    async with started(made(name)) as broker:
        channel = await publishing_channel(broker)
        monkeypatch.setattr(channel, "max_content_size", -channel.CONTENT_FRAME_SIZE)
        sending = broker.kick_many(messages)
        assert await asyncio.wait_for(sending, HANG) == [None] * 3
    assert await bodies(name) == sent


async def test_messages_arrive_in_their_order(name: str) -> None:
    async with started(made(name)) as broker:
        assert await broker.kick_many(MESSAGES) == [None] * 1000
        await asyncio.gather(*map(broker.kick, MESSAGES[:100]))
    expected = [each.message for each in (*MESSAGES, *MESSAGES[:100])]
    assert await bodies(name) == expected


# -- How many writes ----------------------------------------------------------------


async def test_many_messages_are_written_together(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(made(name)) as broker:
        writes = Writes(await publishing_channel(broker), monkeypatch)
        await broker.kick_many(MESSAGES)
        assert len(writes) < 30
        writes.sizes.clear()
        await asyncio.gather(*map(broker.kick, MESSAGES[:100]))
        assert len(writes) < 5
        writes.sizes.clear()
        for each in MESSAGES[:3]:
            await broker.kick(each)
        assert len(writes) == 3


async def test_a_write_has_four_megabytes_at_most(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = [message(number, b"x" * 1_000_000) for number in range(20)]
    async with started(made(name)) as broker:
        writes = Writes(await publishing_channel(broker), monkeypatch)
        assert await broker.kick_many(large) == [None] * 20
        await asyncio.gather(*map(broker.kick, large))
    assert max(writes.sizes) < 4_200_000
    assert len(await bodies(name)) == 40


async def test_a_batch_is_acknowledged_by_one_write_and_nothing_else_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(made(name), reads=True) as broker:
        await broker.kick_many(MESSAGES[:300])
        listener = broker.listen()
        received = await receive(listener, 300)
        writes = Writes(await broker.read_channel.get_underlay_channel(), monkeypatch)
        [group] = {each.ack_group for each in received}
        assert group is not None
        # Not those before and between them.
        assert await group.ack(received[100:200:2]) == [None] * 50
        assert len(writes) == 1
        await asyncio.gather(*(cast("Any", each.ack)() for each in received[200::2]))
        assert len(writes) < 5
        await listener.aclose()
    left = [*range(100), *range(101, 300, 2)]
    assert sorted(map(int, await bodies(name))) == left


# -- What becomes of each ---------------------------------------------------------


async def test_what_no_queue_takes_is_an_error(name: str) -> None:
    """The plugin says nothing, and the message is lost."""
    own = made(name)

    @own.task
    async def task(number: int) -> None: ...

    async with started(own) as broker:
        await broker.write_channel.queue_delete(f"{name}-queue")
        with pytest.raises(PublishError, match="NO_ROUTE"):
            await broker.kick(MESSAGES[0])
        outcomes = await broker.kick_many(MESSAGES)
        assert {type(each) for each in outcomes} == {PublishError}
        with pytest.raises(SendManyError, match="3 of them") as raised:
            await task.kiq_many(range(3))
        assert list(raised.value.errors) == [0, 1, 2]
        assert not (await publishing_channel(broker)).message_id_delivery_tag


async def test_what_no_queue_takes_fails_alone(name: str) -> None:
    broker = made(name)
    cast("Any", broker).with_queue(taskiq_aio_pika.Queue(name=f"{name}-delay"))
    messages = [
        message(number, queue_name="none" if number % 3 else f"{name}-queue")
        for number in range(300)
    ]
    async with started(broker):
        outcomes = await broker.kick_many(messages)
        singles = await asyncio.gather(
            *map(broker.kick, messages), return_exceptions=True
        )
    for got in (outcomes, singles):
        assert [type(each) for each in got] == [
            PublishError if number % 3 else type(None) for number in range(300)
        ]
    assert list(map(int, await bodies(name))) == [*range(0, 300, 3)] * 2


async def test_what_the_server_refuses_fails_alone(name: str) -> None:
    full = taskiq_aio_pika.Queue(
        name=f"{name}-queue",
        type=taskiq_aio_pika.QueueType.CLASSIC,
        arguments={"x-max-length": 5, "x-overflow": "reject-publish"},
    )
    broker = made(name)
    cast("Any", broker).with_queues(full)
    async with started(broker):
        outcomes = await broker.kick_many(MESSAGES[:50])
        singles = await asyncio.gather(
            *map(broker.kick, MESSAGES[:50]), return_exceptions=True
        )
    stored = set(map(int, await bodies(name)))
    sent = {number for number, each in enumerate(outcomes) if each is None}
    assert sent == stored
    refused = {type(each) for each in (*outcomes, *singles)} - {type(None)}
    assert refused == {DeliveryError}
    assert all(singles)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"what": object()}, "Unknown type"),
        ({"what": 2**70}, "Unsupported numeric value"),
        ({"queue_name": "x" * 300}, "Routing key too long"),
        # For these the server would close the channel, or the connection.
        ({"delay": 10**9}, "cannot be delayed"),
        ({"delay": -5}, "cannot be delayed"),
        ({"what": "x" * 200_000}, "labels of a message are sent in one frame"),
    ],
    ids=["label", "number", "key", "long", "past", "frame"],
)
async def test_what_cannot_be_sent_fails_alone(
    name: str, labels: dict[str, Any], reason: str
) -> None:
    broker = made(name)
    # With one queue the plugin asks for no key.
    cast("Any", broker).with_queue(taskiq_aio_pika.Queue(name=f"{name}-delay"))
    good = message(1, queue_name=f"{name}-queue")
    messages = [good, message(2, **{**good.labels, **labels}), good]
    async with started(broker):
        first, failed, last = await broker.kick_many(messages)
        assert first is last is None
        assert reason in str(failed)
    assert await bodies(name) == [b"1", b"1"]


async def test_what_is_larger_than_the_server_takes_fails_alone(name: str) -> None:
    """It closes the channel for it; others of the same call and moment are sent."""
    size = 128 * 1024 * 1024 + 1
    async with started(made(name)) as broker:
        channel = await publishing_channel(broker)
        singles = asyncio.gather(*map(broker.kick, MESSAGES[6:100]))
        many = await broker.kick_many(
            [*MESSAGES[:3], message(3, b"x" * size), *MESSAGES[4:6]]
        )
        assert [type(each) for each in many] == [
            ValueError if number == 3 else type(None) for number in range(6)
        ]
        assert f"no message of {size} bytes; its max_message_size" in str(many[3])
        assert await singles == [None] * 94
        assert list(channel.connection.channels.values()) == [channel]
    stored = set(map(int, await bodies(name)))
    assert stored == set(range(100)) - {3}


@pytest.mark.parametrize(
    ("reason", "largest"),
    [
        # RabbitMQ from 3.8 on, and before.
        ("message size 2000001 is larger than configured max size 2000000", 2_000_000),
        ("message size 9 larger than max size 8", 8),
        ("message size 134217729 is larger than configured max size 134217728", None),
        ("invalid expiration '-1'", None),
    ],
)
def test_a_limit_of_the_server_is_known_once_it_cost_a_channel(
    reason: str, largest: int | None
) -> None:
    """If what is larger shared the channel with others."""
    sizes = adapted._Sizes()
    before = sizes.largest_shared
    error = aiormq.exceptions.ChannelPreconditionFailed(
        f"PRECONDITION_FAILED - {reason}"
    )
    assert sizes.learn(error) == ("max size" in reason)
    assert not sizes.learn(ChannelInvalidStateError("max size 1"))
    assert sizes.largest_shared == (largest or before)


async def eventually(condition: Callable[[], Any]) -> None:
    ends = asyncio.get_running_loop().time() + HANG
    while not await condition():
        assert asyncio.get_running_loop().time() < ends
        await asyncio.sleep(0.05)


async def publishes_together(broker: AsyncBroker) -> bool:
    return "basic_publish" in vars(await publishing_channel(broker))


async def is_sent(broker: AsyncBroker, sent: BrokerMessage) -> bool:
    return await broker.kick_many([sent]) == [None]


async def test_a_cut_fails_what_is_under_way_and_the_next_are_sent_together(
    name: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(made(name, url=proxy.url)) as broker:
        before = await publishing_channel(broker)
        single = [asyncio.create_task(broker.kick(each)) for each in MESSAGES]
        await asyncio.sleep(0)
        proxy.cut()
        await asyncio.wait(single, timeout=HANG)
        outcomes = [each.exception() for each in single]
        assert all(each is None or isinstance(each, Exception) for each in outcomes)
        assert any(outcomes)

        await eventually(partial(is_sent, broker, message(1000)))
        await eventually(partial(publishes_together, broker))
        after = await publishing_channel(broker)
        assert after is not before
        writes = Writes(after, monkeypatch)
        assert await broker.kick_many(MESSAGES) == [None] * 1000
        assert len(writes) < 30
    stored = list(map(int, await bodies(name)))
    sent = {number for number, each in enumerate(outcomes) if each is None}
    assert sent <= set(stored[: -len(MESSAGES)])


async def test_a_channel_that_the_server_closes_fails_what_is_under_way(
    name: str,
) -> None:
    async with started(made(name)) as broker:
        async with channel_of_mine() as channel:
            await channel.exchange_delete(f"{name}-exchange")
        outcomes = await asyncio.wait_for(broker.kick_many(MESSAGES), HANG)
        assert all(isinstance(each, Exception) for each in outcomes)
        assert "NOT_FOUND" in str(outcomes[0])


async def test_messages_under_way_when_the_broker_stops_fail(name: str) -> None:
    async with started(made(name)) as broker:
        sending = asyncio.create_task(broker.kick_many(MESSAGES))
        single = asyncio.create_task(broker.kick(message(1000)))
        await asyncio.sleep(0)
    outcomes = await asyncio.wait_for(sending, HANG)
    outcomes += await asyncio.gather(single, return_exceptions=True)
    stored = set(map(int, await bodies(name)))
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, Exception) or (outcome is None and number in stored)


async def test_a_large_message_fails_if_the_broker_stops_before_it_has_a_channel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender is not taken for cancelled."""
    async with started(made(name)) as broker:
        connection = (await publishing_channel(broker)).connection
        opens = connection.channel

        async def stop_and_open(**options: Any) -> Any:
            channel = asyncio.ensure_future(opens(**options))
            await asyncio.sleep(0)
            await connection.close()
            return await channel

        monkeypatch.setattr(connection, "channel", stop_and_open)
        sending = asyncio.create_task(broker.kick(message(1, b"x" * 5_000_000)))
        await asyncio.wait([sending], timeout=HANG)
    assert not sending.cancelled()
    assert isinstance(sending.exception(), Exception)


@pytest.mark.parametrize("turns", range(8))
async def test_a_sender_that_is_cancelled_harms_no_other(name: str, turns: int) -> None:
    """Whether its message has left or not."""
    async with started(made(name)) as broker:
        channel = await publishing_channel(broker)
        senders = [asyncio.create_task(broker.kick(each)) for each in MESSAGES[:50]]
        for _ in range(turns):
            await asyncio.sleep(0)
        for each in senders[::2]:
            each.cancel()
        outcomes = await asyncio.gather(*senders, return_exceptions=True)
        assert outcomes[1::2] == [None] * 25
        assert await broker.kick_many(MESSAGES[50:100]) == [None] * 50
        assert_nothing_is_kept(channel)
    stored = set(map(int, await bodies(name)))
    assert stored >= {*range(1, 50, 2), *range(50, 100)}
    assert {n for n in range(0, 50, 2) if outcomes[n] is None} <= stored


async def test_a_sender_that_is_cancelled_while_its_message_returns_harms_no_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of who reads the channel would let all others wait for ever."""
    async with started(made(name)) as broker:
        channel = await publishing_channel(broker)
        cast("Any", broker).with_queue(taskiq_aio_pika.Queue(name=f"{name}-delay"))
        sender = asyncio.create_task(broker.kick(message(1, queue_name="none")))
        read = channel._read_content

        async def read_and_cancel(*args: Any) -> Any:
            returned = await read(*args)
            sender.cancel()
            return returned

        monkeypatch.setattr(channel, "_read_content", read_and_cancel)
        await asyncio.wait([sender])
        assert sender.cancelled()
        sending = broker.kick(message(2, queue_name=f"{name}-queue"))
        await asyncio.wait_for(sending, HANG)
        assert await publishing_channel(broker) is channel
    assert await bodies(name) == [b"2"]


async def test_a_sender_that_is_cancelled_while_its_message_leaves(name: str) -> None:
    async with started(made(name)) as broker:
        channel = await publishing_channel(broker)
        async with channel.lock:
            senders = [asyncio.create_task(broker.kick(each)) for each in MESSAGES[:2]]
            await asyncio.sleep(0)
            for each in senders:
                each.cancel()
        await asyncio.wait(senders)
        assert await broker.kick_many(MESSAGES[:10]) == [None] * 10
        assert_nothing_is_kept(channel)


async def test_a_sender_that_is_cancelled_when_its_message_has_left(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled, and not told that the channel was closed."""
    async with started(made(name)) as broker:
        channel = await publishing_channel(broker)
        put = channel.write_queue.put

        async def put_and_cancel(frame: Any) -> None:
            frame.drain_future.add_done_callback(lambda _: sender.cancel())
            await put(frame)

        monkeypatch.setattr(channel.write_queue, "put", put_and_cancel)
        sender = asyncio.create_task(broker.kick(MESSAGES[0]))
        await asyncio.wait([sender])
        assert sender.cancelled()
        monkeypatch.undo()
        assert await broker.kick_many(MESSAGES[:10]) == [None] * 10
        assert_nothing_is_kept(channel)


def assert_nothing_is_kept(channel: Any) -> None:
    assert not channel.confirmations
    assert not channel.message_id_delivery_tag
    assert not channel.basic_publish.__self__._open


async def test_sending_many_can_be_cancelled(name: str) -> None:
    async with started(made(name)) as broker:
        sending = asyncio.create_task(broker.kick_many(MESSAGES))
        await asyncio.sleep(0.005)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert await broker.kick_many(MESSAGES[:10]) == [None] * 10


# -- Acknowledging -------------------------------------------------------------------


async def test_what_is_acknowledged_already_is_said_for_it_alone(name: str) -> None:
    async with started(made(name), reads=True) as broker:
        await broker.kick_many(MESSAGES[:10])
        listener = broker.listen()
        received = await receive(listener, 10)
        await cast("Any", received[3].ack)()
        group = received[0].ack_group
        assert group is not None
        outcomes = await group.ack(received)
        assert [type(each).__name__ for each in outcomes] == [
            "MessageProcessError" if number == 3 else "NoneType" for number in range(10)
        ]
        await listener.aclose()
    assert await bodies(name) == []


async def test_nothing_is_written_for_a_channel_that_the_server_has_closed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection knows it sooner than the channel."""
    async with started(made(name), reads=True) as broker:
        await broker.kick_many(MESSAGES[:2])
        listener = broker.listen()
        received = await receive(listener, 2)
        channel = await broker.read_channel.get_underlay_channel()
        writes = Writes(channel, monkeypatch)
        monkeypatch.delitem(channel.connection.channels, channel.number)
        group = received[0].ack_group
        assert group is not None
        assert "closed" in str((await group.ack(received[:1]))[0])
        with pytest.raises(ChannelInvalidStateError, match="closed"):
            await cast("Any", received[1].ack)()
        assert len(writes) == 0
        monkeypatch.undo()
        await listener.aclose()
    assert await bodies(name) == [b"0", b"1"]


async def test_what_was_received_before_a_cut_is_not_acknowledged(
    name: str, proxy: Proxy
) -> None:
    async with started(made(name, url=proxy.url), reads=True) as broker:
        await broker.kick_many(MESSAGES[:100])
        listener = broker.listen()
        received = await receive(listener, 100)
        old = received[0].ack_group
        assert old is not None
        proxy.cut()
        again = await receive(listener, 100)
        assert all(isinstance(each, Exception) for each in await old.ack(received))
        [new] = {each.ack_group for each in again}
        assert new is not None
        assert new is not old
        assert await new.ack(again) == [None] * 100
        await listener.aclose()
    assert await bodies(name) == []


# -- An aiormq of another kind ------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.delattr(aiormq.abc, "ChannelFrame"),
        lambda patch: patch.setattr(adapted, "_NEEDED", {"of another version"}),
    ],
    ids=["no frames", "another channel"],
)
async def test_with_an_aiormq_that_is_not_known_all_is_as_with_the_plugin(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    change(monkeypatch)
    async with started(made(name), reads=True) as broker:
        assert not await publishes_together(broker)
        assert await broker.kick_many(MESSAGES[:300]) == [None] * 300
        listener = broker.listen()
        received: Sequence[AckableMessage] = await receive(listener, 300)
        assert {each.ack_group for each in received} == {None}
        await asyncio.gather(*(cast("Any", each.ack)() for each in received[1:]))
        await listener.aclose()
    assert await bodies(name) == [b"0"]
