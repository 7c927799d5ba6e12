"""What a worker that was killed has held is taken over, and what one holds is not."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, cast

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from taskiq import AckableMessage, AsyncBroker
from taskiq.adapters import postgres as adapted_asyncpg
from taskiq.adapters import redis as adapted_redis
from taskiq.capabilities import equip
from taskiq.message import BrokerMessage
from tests.faults.servers import OwnRedis
from tests.support.hub import HANG, Hub

from .lines import HASTY, postgres, redis_list, redis_stream
from .servers import POSTGRES, REDIS, sql_name
from .servers import postgres as connected
from .stage import Stage, results_of, values_of

#: Seconds in which something would have happened if it ever did.
_A_WHILE = 1.5


@pytest.fixture(params=HASTY, ids=str)
def hasty(request: pytest.FixtureRequest, hub: Hub) -> Iterator[Stage]:
    if reason := request.param.unavailable():
        pytest.skip(reason)
    with Stage(request.param, hub).opened() as stage:
        yield stage


def test_what_a_killed_worker_held_is_run_by_the_next(hasty: Stage) -> None:
    """Nothing new has to arrive for that."""
    stage, hub = hasty, hasty.hub
    before = len(hub.all("held", task="hold"))
    with stage.worker():

        async def send_and_kill() -> list[object]:
            async with stage.client() as client:
                handles = await client.send_all("hold", range(3))
                first = await asyncio.to_thread(held, hub, before + 3)
                os.kill(first[-1]["pid"], SIGKILL)  # another is started
                again = await asyncio.to_thread(held, hub, before + 6)
                assert first[-1]["pid"] not in {each["pid"] for each in again[-3:]}
                hub.let_go()
                return values_of(await results_of(handles))

        assert asyncio.run(send_and_kill()) == [0, 1, 2]
    assert stage.line.unfinished is not None
    assert stage.line.unfinished(stage.name) == 0


def held(hub: Hub, count: int) -> list[dict[str, Any]]:
    """Wait until so many tasks have been held; give what they reported."""
    hub.wait(lambda: len(hub.all("held", task="hold")) >= count)
    return hub.all("held", task="hold")


# -- One by one -------------------------------------------------------------------


def message(number: int, **labels: Any) -> BrokerMessage:
    data = b"%d" % number
    return BrokerMessage(
        task_id=f"{number}", task_name="task", message=data, labels=labels
    )


@pytest.fixture
def name() -> Iterator[str]:
    name = f"taskiq-abandoned-{uuid.uuid4().hex[:12]}"
    yield name
    for server in (REDIS, POSTGRES):
        if server.unavailable() is None:
            server.remove(name)


@asynccontextmanager
async def listening(
    broker: AsyncBroker,
) -> AsyncIterator[AsyncGenerator[bytes | AckableMessage, None]]:
    broker.is_worker_process = True
    await broker.startup()
    listener = broker.listen()
    try:
        yield listener
    finally:
        await listener.aclose()
        await broker.shutdown()


async def receive(
    listener: AsyncGenerator[bytes | AckableMessage, None], count: int
) -> list[AckableMessage]:
    return [
        cast("AckableMessage", await asyncio.wait_for(anext(listener), HANG))
        for _ in range(count)
    ]


async def receive_all(
    listener: AsyncGenerator[bytes | AckableMessage, None], received: list[int]
) -> None:
    async for each in listener:
        number = int(cast("AckableMessage", each).data)
        received.append(number)  # each at once: this is cancelled


async def receives_nothing(
    listener: AsyncGenerator[bytes | AckableMessage, None],
) -> bool:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(listener), _A_WHILE)
    return True


def broker_of_postgres(name: str, idle_timeout: int = 600) -> AsyncBroker:
    broker = cast("adapted_asyncpg.AsyncpgBroker", postgres(name, adapted_asyncpg))
    broker.idle_timeout = idle_timeout
    return broker


@pytest.fixture
def server(request: pytest.FixtureRequest) -> None:
    if reason := request.param.unavailable():
        pytest.skip(reason)


on_postgres = pytest.mark.parametrize(
    "server", [POSTGRES], indirect=True, ids=["postgres"]
)
on_redis = pytest.mark.parametrize("server", [REDIS], indirect=True, ids=["redis"])


@on_redis
@pytest.mark.usefixtures("server")
async def test_all_that_was_held_is_taken_over_however_much_it_is(name: str) -> None:
    """Some that are young come first, more than one look sees."""
    young = redis_stream(name, adapted_redis, idle_timeout=1000)
    async with listening(young) as listener:
        await young.kick_many([message(number) for number in range(1500)])
        received = await receive(listener, 1500)
        assert [int(each.data) for each in received] == list(range(1500))

    other = redis_stream(name, adapted_redis, idle_timeout=1000)
    async with listening(other) as listener:
        again = await receive(listener, 1500)
        assert {each.data for each in again} == {each.data for each in received}


@on_redis
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("command", ["XREADGROUP", "EVAL", "XAUTOCLAIM"])
async def test_what_a_cancelled_reader_was_just_given_is_for_others_at_once(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when their `idle_timeout` is over, which is ten minutes."""
    broker = redis_stream(name, adapted_redis, xread_count=5)
    execute: Any = Redis.execute_command
    given: list[Any] = []

    async def execute_and_cancel(self: Any, *args: Any, **options: Any) -> Any:
        reply = await execute(self, *args, **options)
        if args[0] == command and not given and any(reply):
            given.append(reply)
            reading.cancel()
            await asyncio.sleep(0)  # where it would end
        return reply

    async with listening(broker) as listener:
        await broker.kick_many([message(number) for number in range(20)])
        if command == "XAUTOCLAIM":
            for each in await receive(listener, 20):
                equip(broker, each)
                await cast("Any", each.nack)(0)
        monkeypatch.setattr(Redis, "execute_command", execute_and_cancel)
        received: list[int] = []
        reading = asyncio.create_task(receive_all(listener, received))
        await asyncio.wait([reading], timeout=HANG)
        assert reading.cancelled()
        assert given
    async with listening(redis_stream(name, adapted_redis)) as other:
        others = await receive(other, 20 - len(received))
    received += [int(each.data) for each in others]
    assert sorted(received) == list(range(20))


async def until_a_read_waits(redis: Any, name: str) -> None:
    """Wait until one does on the server, of a connection with this name."""
    while not any(  # noqa: ASYNC110 - nobody tells us
        each["name"] == name and "b" in each["flags"] for each in redis.client_list()
    ):
        await asyncio.sleep(0)


@on_redis
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("is_replaced", [False, True], ids=["first", "replaced"])
async def test_a_stop_does_not_wait_for_a_read_that_waits(
    name: str, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    """Whichever connection it waits on: the client replaces one that was cut."""
    for longest in ("_LONGEST_BLOCK", "_LONGEST_PAUSE", "_LONGEST_STOP"):
        monkeypatch.setattr(adapted_redis, longest, 1_000_000)
    connections: dict[str, Any] = {"client_name": name, "socket_timeout": None}
    if is_replaced:
        connections |= {
            "retry": Retry(NoBackoff(), 1),
            "retry_on_error": [RedisConnectionError],
        }
    broker = redis_stream(name, adapted_redis, xread_block=0, **connections)
    async with listening(broker) as listener:
        reading = asyncio.create_task(receive(listener, 1))
        with SyncRedis.from_url(REDIS.url) as redis:
            await until_a_read_waits(redis, name)
            if is_replaced:
                for each in redis.client_list():
                    if each["name"] == name:
                        redis.client_kill_filter(_id=each["id"])
                await until_a_read_waits(redis, name)
        reading.cancel()
        await asyncio.wait([reading], timeout=HANG)
        assert reading.cancelled()


@on_redis
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("turns", range(1, 25))
async def test_a_reader_that_is_cancelled_as_it_begins_ends(
    name: str, turns: int
) -> None:
    """The client connects then, and takes a cancellation for its own."""
    async with listening(redis_stream(name, adapted_redis)) as listener:
        reading = asyncio.create_task(receive_all(listener, []))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading], timeout=HANG)
        assert reading.cancelled()


@on_redis
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("make", [redis_stream, redis_list], ids=["stream", "list"])
async def test_a_message_that_comes_while_a_waiting_reader_is_cancelled_is_for_others(
    name: str, make: Callable[..., AsyncBroker]
) -> None:
    """The server has given it to the read, and the reply is on its way."""
    broker = make(name, adapted_redis, client_name=name)
    async with listening(broker) as listener:
        reading = asyncio.create_task(receive_all(listener, []))
        with SyncRedis.from_url(REDIS.url) as redis:
            await until_a_read_waits(redis, name)
            redis.xadd(f"{name}-stream", {"data": b"7"})
            redis.lpush(f"{name}-list", b"7")
            # Nothing else happens in the event loop meanwhile.
            while not was_given(redis, name, make):
                pass
        reading.cancel()
        await asyncio.sleep(0)
        reading.cancel()  # as who stops it does if it takes long
        await asyncio.wait([reading], timeout=HANG)
        assert reading.cancelled()
    async with listening(make(name, adapted_redis)) as other:
        received: Any = await asyncio.wait_for(anext(other), HANG)
    assert getattr(received, "data", received) == b"7"


def was_given(redis: Any, name: str, make: Callable[..., AsyncBroker]) -> bool:
    if make is redis_list:
        return not redis.llen(f"{name}-list")
    return bool(redis.xpending(f"{name}-stream", f"{name}-group")["pending"])


@on_redis
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("start", ["0", 0, "after the first"])
async def test_what_a_consumer_was_given_before_comes_once_then_what_is_new(
    name: str, start: Any
) -> None:
    """With the plugin it comes again and again, and nothing new ever."""
    other, fixed = f"{name}-other", {"consumer_name": "a-pod", "client_name": name}
    streams = {other: ">"}
    before = redis_stream(name, adapted_redis, additional_streams=streams, **fixed)
    async with listening(before) as listener:
        messages = [message(number, queue_name=other) for number in range(6)]
        assert await before.kick_many(messages[:5]) == [None] * 5
        first, second, *_ = cast("list[Any]", await receive(listener, 5))
        await second.ack()

    streams[other] = first.id.decode() if start == "after the first" else start
    expected = [2, 3, 4, 5] if start == "after the first" else [0, 2, 3, 4, 5]
    again = redis_stream(
        name, adapted_redis, additional_streams=streams, xread_count=2, **fixed
    )
    async with listening(again) as listener:
        received = await receive(listener, len(expected) - 1)
        assert {each.deliveries for each in received} == {2}
        await again.kick(messages[5])
        received += await receive(listener, 1)
        assert [int(each.data) for each in received] == expected
    async with listening(again) as listener:
        reading = asyncio.create_task(receive(listener, 1))
        with SyncRedis.from_url(REDIS.url) as redis:
            await asyncio.wait_for(until_a_read_waits(redis, name), HANG)
        assert not reading.done()
        reading.cancel()
        await asyncio.wait([reading])


@pytest.mark.parametrize("read", [1, 3], ids=["unread", "reading"])
async def test_a_stop_ends_while_redis_says_nothing(
    read: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits neither for a read nor to give back what was read."""
    if not OwnRedis.is_installed():
        pytest.skip("redis-server is not installed")
    monkeypatch.setattr(adapted_redis, "_LONGEST_STOP", 0.1)
    server = OwnRedis(tmp_path / "redis")
    await server.start()
    try:
        broker = redis_stream(name, adapted_redis, server.url, socket_timeout=None)
        async with listening(broker) as listener:
            await broker.kick_many([message(number) for number in range(3)])
            await receive(listener, read)
            server.signal(SIGSTOP)
            if read == 3:
                reading = asyncio.create_task(receive(listener, 1))
                await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait([reading], timeout=HANG)
                assert reading.cancelled()
            await asyncio.wait_for(listener.aclose(), HANG)
    finally:
        server.signal(SIGCONT)
        await server.stop()


@on_postgres
@pytest.mark.usefixtures("server")
async def test_what_can_still_be_acknowledged_is_not_taken_over(name: str) -> None:
    """However long it is held; what its holder drops is."""
    holder, other = broker_of_postgres(name), broker_of_postgres(name)
    async with listening(holder) as listener:
        await holder.kick_many([message(number) for number in range(2)])
        kept, dropped = await receive(listener, 2)
        async with listening(other) as other_listener:
            late = dropped.data
            del dropped
            (taken,) = await receive(other_listener, 1)
            assert taken.data == late
            assert await receives_nothing(other_listener)
        await cast("Any", kept.ack)()


@on_postgres
@pytest.mark.usefixtures("server")
async def test_messages_that_nobody_was_told_of_are_received(name: str) -> None:
    """Sent while nobody listened; one whose delay is not over is left alone."""
    sender = broker_of_postgres(name)
    await sender.startup()
    await sender.kick_many([message(number) for number in range(250)])
    await sender.kick(message(250, delay="600"))
    await sender.kick(message(251, delay="1"))
    await sender.shutdown()
    async with listening(broker_of_postgres(name)) as listener:
        received = await receive(listener, 251)
        numbers = [int(each.data) for each in received]
        assert numbers == [*range(250), 251]
        assert await receives_nothing(listener)


@on_postgres
@pytest.mark.usefixtures("server")
async def test_what_was_taken_and_not_asked_for_is_given_back(name: str) -> None:
    async with listening(broker_of_postgres(name, 600_000)) as listener:
        sender = broker_of_postgres(name)
        await sender.startup()
        await sender.kick_many([message(number) for number in range(20)])
        await receive(listener, 4)
    async with connected(POSTGRES.url) as connection:
        statuses = await connection.fetch(
            "SELECT status, count(*) FROM"  # noqa: S608 - ours
            f" {sql_name(name)}_messages GROUP BY status ORDER BY status"
        )
    assert [tuple(row) for row in statuses] == [("pending", 16), ("processing", 4)]
    await sender.shutdown()


@on_postgres
@pytest.mark.usefixtures("server")
async def test_a_busy_worker_takes_one_message_at_a_time(name: str) -> None:
    """So that others have theirs; one that is not takes more and more at once."""
    slow, fast = broker_of_postgres(name, 600_000), broker_of_postgres(name, 600_000)
    async with listening(slow) as slow_listener, listening(fast) as fast_listener:
        await slow.kick_many([message(number) for number in range(100)])
        for _ in range(3):
            await receive(slow_listener, 1)
            await asyncio.sleep(0.1)
        await receive(fast_listener, 97)


@on_postgres
@pytest.mark.usefixtures("server")
async def test_a_lost_connection_for_notifications_is_replaced(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who is not notified of a message does not come to look for it in time.
    monkeypatch.setattr("taskiq.adapters.postgres._LONGEST_PAUSE", 10 * HANG)
    broker = cast("Any", broker_of_postgres(name, 10_000_000))
    async with listening(broker) as listener:
        await broker._read_conn.close()
        await broker.kick(message(1))
        (received,) = await receive(listener, 1)
        assert received.data == b"1"
        waiting = asyncio.ensure_future(receive(listener, 1))
        while broker._read_conn.is_closed():
            assert not waiting.done()
            await asyncio.sleep(0.05)
        await broker.kick(message(2))
        (received,) = await waiting
        assert received.data == b"2"
