"""How many messages wait in the queues of a broker, as far as its server says so.

A broker of one's own says it with a method `queue_depths`. Those of the known plugins
are recognised by their classes, and their servers are asked with the plugins' own
settings. Nothing is started and nothing is declared: asking changes nothing.
"""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# The clients belong to the plugins, which may not be installed where types are checked.

from __future__ import annotations

import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

    from taskiq.abc.broker import AsyncBroker

    _Ask = Callable[[], Awaitable[list["QueueDepth"]]]

__all__ = ["QueueDepth", "queue_depths"]

#: What the messages of a queue are: to be run, to be run later, or given up.
TASKS: Final = "tasks"
DELAYED: Final = "delayed"
DEAD: Final = "dead letters"


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What is in one queue; `None` is what its server does not say.

    :ivar name: of the queue, stream, list or table.
    :ivar depth: messages that no worker has taken yet.
    :ivar unacknowledged: messages that workers have taken and not acknowledged.
    :ivar oldest_age: seconds that the oldest of all these is in the queue.
    :ivar role: what its messages are: `tasks`, `delayed` or `dead letters`.
    """

    name: str
    depth: int | None = None
    unacknowledged: int | None = None
    oldest_age: float | None = None
    role: str = TASKS


async def queue_depths(broker: AsyncBroker) -> list[QueueDepth]:
    """Ask the server of a broker how much waits.

    :returns: each queue of the broker; what is not known of it is `None`.
    :raises Exception: what the client raises when the server does not answer.
    """
    own: _Ask | None = getattr(broker, "queue_depths", None)
    if own is not None:
        return await own()
    for kind in type(broker).__mro__:
        ask = _KNOWN.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
        if ask is not None:
            found: list[QueueDepth] = await ask(broker)
            return found
    named = getattr(broker, "queue_name", None) or getattr(broker, "subject", None)
    return [QueueDepth(str(named or type(broker).__name__))]


def _age(moment: float) -> float:
    """Give the seconds since a moment of a server, whose clock may be ahead."""
    return max(time.time() - moment, 0.0)


# -- Redis ----------------------------------------------------------------------------


@asynccontextmanager
async def redis_client(broker: Any) -> AsyncGenerator[Any]:
    """Open a client of the server of a broker, and close it in the end."""
    acquire = getattr(broker, "_acquire_master_conn", None)
    if acquire is not None:  # by way of sentinels
        async with acquire() as client:
            yield client
        return
    pool = getattr(broker, "connection_pool", None)
    if pool is None:
        yield broker.redis  # of a cluster
        return
    from redis import asyncio as redis  # noqa: PLC0415 - of the plugin

    # Not one of the broker's own, which would stay open.
    own = redis.ConnectionPool(pool.connection_class, 1, **pool.connection_kwargs)
    async with redis.Redis.from_pool(own) as client:
        yield client


async def _list_depths(broker: Any) -> list[QueueDepth]:
    async with redis_client(broker) as client:
        length = await client.llen(broker.queue_name)
    return [QueueDepth(broker.queue_name, depth=length)]


async def _stream_depths(broker: Any) -> list[QueueDepth]:
    names = [broker.queue_name, *(broker.additional_streams or {})]
    group = broker.consumer_group_name
    async with redis_client(broker) as client:
        return [await _stream_depth(client, name, group) for name in names]


async def _stream_depth(client: Any, name: str, group: str) -> QueueDepth:
    if not await client.exists(name):
        return QueueDepth(name, depth=0, unacknowledged=0)
    for found in await client.xinfo_groups(name):
        if _text(found["name"]) == group:
            break
    else:
        return QueueDepth(name)  # no worker has ever listened
    ids = [
        _text(each)
        for each in (
            await _first_pending(client, name, group),
            await _first_after(client, name, _text(found["last-delivered-id"])),
        )
        if each is not None
    ]
    moments = [int(each.partition("-")[0]) / 1000 for each in ids]
    return QueueDepth(
        name,
        depth=found["lag"],  # unknown when messages were deleted from its middle
        unacknowledged=found["pending"],
        oldest_age=_age(min(moments)) if moments else None,
    )


async def _first_pending(client: Any, name: str, group: str) -> Any:
    return (await client.xpending(name, group))["min"]


async def _first_after(client: Any, name: str, last: str) -> Any:
    following = await client.xrange(name, min=f"({last}", count=1)
    return following[0][0] if following else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


# -- RabbitMQ -------------------------------------------------------------------------


async def _rabbitmq_depths(broker: Any) -> list[QueueDepth]:
    import aio_pika  # noqa: PLC0415 - of the plugin

    connection = await aio_pika.connect(broker.url, **broker._conn_kwargs)  # noqa: SLF001
    async with connection:
        return [
            await _rabbitmq_depth(connection, queue)
            for queue in _queues_of_rabbitmq(broker)
        ]


def _queues_of_rabbitmq(broker: Any) -> Iterable[QueueDepth]:
    named = [each.name for each in broker._task_queues]  # noqa: SLF001
    for name in named or ["taskiq"]:
        yield QueueDepth(name)
    for queue, role in (
        (broker._delay_queue, DELAYED),  # noqa: SLF001
        (broker._dead_letter_queue, DEAD),  # noqa: SLF001
    ):
        if queue is not None:
            yield QueueDepth(queue.name, role=role)


async def _rabbitmq_depth(connection: Any, queue: QueueDepth) -> QueueDepth:
    from aio_pika.exceptions import ChannelNotFoundEntity  # noqa: PLC0415

    async with connection.channel() as channel:
        try:
            found = await channel.declare_queue(queue.name, passive=True)
        except ChannelNotFoundEntity:
            return replace(queue, depth=0)  # not declared yet
        # AMQP tells how many are ready, and nothing of those that are not.
        return replace(queue, depth=found.declaration_result.message_count)


# -- NATS JetStream -------------------------------------------------------------------


async def _jetstream_depths(broker: Any) -> list[QueueDepth]:
    import nats  # noqa: PLC0415 - of the plugin

    client = await nats.connect(broker.servers, **broker.connection_kwargs)
    try:
        return [await _jetstream_depth(client.jetstream(), broker)]
    finally:
        await client.close()


async def _jetstream_depth(context: Any, broker: Any) -> QueueDepth:
    from nats.js.errors import NotFoundError  # noqa: PLC0415 - of the plugin

    name = broker.stream_name
    try:
        await context.stream_info(name)
    except NotFoundError:
        return QueueDepth(name, depth=0, unacknowledged=0)
    info: Any = None
    # What is pushed to a queue is consumed under the name of that.
    for consumer in (broker.queue, broker.durable):
        if info is None and consumer:
            with suppress(NotFoundError):
                info = await context.consumer_info(name, consumer)
    if info is None:
        return QueueDepth(name)  # no worker has ever listened
    held = info.num_pending + info.num_ack_pending
    return QueueDepth(
        name,
        depth=info.num_pending,
        unacknowledged=info.num_ack_pending,
        oldest_age=await _jetstream_age(context, name, info) if held else None,
    )


async def _jetstream_age(context: Any, name: str, info: Any) -> float | None:
    from nats.js.errors import NotFoundError  # noqa: PLC0415 - of the plugin

    first = info.ack_floor.stream_seq + 1
    try:
        message = await context.get_msg(name, seq=first)
    except NotFoundError:  # it was acknowledged meanwhile, or deleted
        return None
    return None if message.time is None else _age(message.time.timestamp())


# -- PostgreSQL -----------------------------------------------------------------------

_COUNT: Final = """
SELECT count(*) FILTER (WHERE status = 'pending') AS depth,
    count(*) FILTER (WHERE status = 'processing') AS held,
    extract(epoch FROM now() - min(created_at))::float8 AS age
FROM {table}
WHERE status IN ('pending', 'processing')
"""


async def _postgres_depths(broker: Any) -> list[QueueDepth]:
    import asyncpg  # noqa: PLC0415 - of the plugin

    table = broker.table_name
    connection = await asyncpg.connect(broker.dsn, **broker.read_kwargs)
    try:
        row = await connection.fetchrow(_COUNT.format(table=table))
    except asyncpg.UndefinedTableError:
        return [QueueDepth(table, depth=0, unacknowledged=0)]
    finally:
        await connection.close()
    return [QueueDepth(table, row["depth"], row["held"], row["age"])]


#: By the package and the name of a class; adapters are subclasses of it.
_KNOWN: Final[dict[str, Callable[[Any], Awaitable[list[QueueDepth]]]]] = {
    **dict.fromkeys(
        (
            "taskiq_redis.ListQueueBroker",
            "taskiq_redis.ListQueueClusterBroker",
            "taskiq_redis.ListQueueSentinelBroker",
        ),
        _list_depths,
    ),
    **dict.fromkeys(
        (
            "taskiq_redis.RedisStreamBroker",
            "taskiq_redis.RedisStreamClusterBroker",
            "taskiq_redis.RedisStreamSentinelBroker",
        ),
        _stream_depths,
    ),
    "taskiq_aio_pika.AioPikaBroker": _rabbitmq_depths,
    **dict.fromkeys(
        (
            "taskiq_nats.PullBasedJetStreamBroker",
            "taskiq_nats.PushBasedJetStreamBroker",
        ),
        _jetstream_depths,
    ),
    "taskiq_pg.AsyncpgBroker": _postgres_depths,
}
