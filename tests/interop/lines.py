"""The servers that carry the messages: whether they answer, and what is left there."""

from __future__ import annotations

import asyncio
import functools
import os
from typing import Literal, TypeAlias

import aio_pika
from redis import Redis
from redis.exceptions import RedisError

#: On an adapted one our side uses the adapter of the plugin that the other side has.
Line: TypeAlias = Literal["redis", "rabbitmq", "adapted-redis", "adapted-rabbitmq"]

REDIS = os.environ.get("TASKIQ_TEST_REDIS_URL") or "redis://127.0.0.1:6379"
RABBITMQ = (
    os.environ.get("TASKIQ_TEST_RABBITMQ_URL") or "amqp://guest:guest@127.0.0.1:5672"
)
#: Seconds that a server has to answer.
_PATIENCE = 5.0


@functools.cache
def unavailable(line: Line) -> str | None:
    """Tell why there is no such line, or `None`.

    Results are kept in Redis, so without it there is no line at all.
    """
    try:
        with Redis.from_url(REDIS, socket_timeout=_PATIENCE) as redis:
            redis.ping()
    except RedisError as error:
        return f"Redis does not answer at {REDIS}: {error}"
    try:
        if line.endswith("rabbitmq"):
            asyncio.run(_open_and_close())
    except OSError as error:
        return f"RabbitMQ does not answer at {RABBITMQ}: {error}"
    return None


def unacknowledged(line: Line, name: str) -> int:
    """Count the messages of a stopped worker that it would be given again."""
    if line.endswith("rabbitmq"):
        return asyncio.run(_count_messages(f"{name}-queue"))
    with Redis.from_url(REDIS, decode_responses=True) as redis:
        (group,) = redis.xinfo_groups(f"{name}-stream")
        return int(group["pending"])


def remove(line: Line, name: str) -> None:
    """Remove all that a broker and a result backend of this name have made."""
    with Redis.from_url(REDIS) as redis:
        for key in redis.scan_iter(f"*{name}*", count=1000):
            redis.delete(key)
    if line.endswith("rabbitmq"):
        asyncio.run(delete_queues(name))


async def _open_and_close() -> None:
    async with await aio_pika.connect(RABBITMQ, timeout=_PATIENCE):
        pass


async def _count_messages(queue_name: str) -> int:
    """Count by taking them: the count that a queue declares may lag behind."""
    async with await aio_pika.connect(RABBITMQ) as connection:
        queue = await (await connection.channel()).get_queue(queue_name)
        count = 0
        while await queue.get(fail=False) is not None:
            count += 1
        return count


async def delete_queues(name: str) -> None:
    async with await aio_pika.connect(RABBITMQ) as connection:
        channel = await connection.channel()
        for queue in ("queue", "dead", "delay"):
            await channel.queue_delete(f"{name}-{queue}")
        await channel.exchange_delete(f"{name}-exchange")
