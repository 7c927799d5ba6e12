"""The brokers of the fault runs, and what is left of each on its server."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import nats
import taskiq_aio_pika
import taskiq_nats
import taskiq_redis
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import NotFoundError
from redis.asyncio import Redis
from taskiq_aio_pika import Exchange, Queue

from taskiq import AsyncBroker, AsyncResultBackend
from taskiq.adapters import nats as adapted_nats
from taskiq.adapters import postgres as adapted_asyncpg
from taskiq.adapters import rabbitmq as adapted_rabbitmq
from taskiq.adapters import redis as adapted_redis
from tests.interop import lines as servers
from tests.plugins.servers import NATS, POSTGRES, sql_name

#: On those named adapted, brokers and result backends are adapters of the plugins.
Line: TypeAlias = Literal[
    "redis",
    "redis-adapted",
    "redis-list",
    "rabbitmq",
    "rabbitmq-adapted",
    "nats-push",
    "nats-pull",
    "nats-pull-adapted",
    "postgres-adapted",
]

LINES: Final[tuple[Line, ...]] = get_args(Line)
#: Those whose messages can be acknowledged; the others lose what a killed worker held.
ACKNOWLEDGING: Final = tuple(line for line in LINES if line != "redis-list")
URLS: Final[dict[Line, str]] = {
    "redis": servers.REDIS,
    "redis-adapted": servers.REDIS,
    "redis-list": servers.REDIS,
    "rabbitmq": servers.RABBITMQ,
    "rabbitmq-adapted": servers.RABBITMQ,
    "nats-push": NATS.url,
    "nats-pull": NATS.url,
    "nats-pull-adapted": NATS.url,
    "postgres-adapted": POSTGRES.url,
}
_VARIABLE: Final = "TASKIQ_FAULTS"

#: Seconds after which results that a killed run left behind are gone.
_EXPIRY: Final = 3600


@dataclass(frozen=True)
class Settings:
    """What the processes of one run are told.

    :ivar name: prefix of all that the run makes on the servers.
    :ivar url: of the server that carries the messages.
    :ivar results_url: of the Redis that keeps the results.
    :ivar counts_url: of the Redis that counts the executions; never cut off.
    :ivar redelivery: seconds after which an unacknowledged message comes again, where
        the server decides that by time.
    :ivar batch_size: most items of one call.
    :ivar batch_timeout: seconds that the first item of a call waits at most.
    :ivar max_buffered: most messages that wait or run in one worker process.
    :ivar call_seconds: how long one call takes.
    """

    line: Line
    name: str
    url: str
    results_url: str
    counts_url: str
    redelivery: float
    batch_size: int
    batch_timeout: float
    max_buffered: int
    call_seconds: float

    @classmethod
    def from_environment(cls) -> Settings:
        return cls(**json.loads(os.environ[_VARIABLE]))

    def to_environment(self) -> dict[str, str]:
        return {_VARIABLE: json.dumps(asdict(self))}

    @property
    def runs(self) -> str:
        """The key of the hash of executions by item."""
        return f"{self.name}:runs"

    @property
    def calls(self) -> str:
        """The key of the hash of calls by process and size."""
        return f"{self.name}:calls"


def make_broker(settings: Settings) -> AsyncBroker:
    """Make the broker of a line; nothing else differs between the lines."""
    name, url = settings.name, settings.url
    is_adapted = settings.line.endswith("adapted")
    redis: Any = adapted_redis if is_adapted else taskiq_redis
    results: AsyncResultBackend[Any] = redis.RedisAsyncResultBackend(
        settings.results_url,
        prefix_str=name,
        result_ex_time=_EXPIRY,
    )
    made: AsyncBroker
    if settings.line in {"redis", "redis-adapted"}:
        made = redis.RedisStreamBroker(
            url,
            queue_name=f"{name}-stream",
            consumer_group_name=f"{name}-group",
            # What was sent before the first worker made the group counts, too.
            consumer_id="0",
            xread_block=200,
            idle_timeout=int(settings.redelivery * 1000),
            # Who is killed while it reclaims keeps this lock for ever by default.
            unacknowledged_lock_timeout=settings.redelivery,
        )
    elif settings.line == "redis-list":
        made = redis.ListQueueBroker(url, queue_name=f"{name}-list")
    elif settings.line.startswith("rabbitmq"):
        pika: Any = adapted_rabbitmq if is_adapted else taskiq_aio_pika
        made = pika.AioPikaBroker(
            url,
            # Enough for full batches: the default of 10 lets none fill.
            qos=settings.max_buffered + 100,
            exchange=Exchange(name=f"{name}-exchange"),
            task_queues=[Queue(name=f"{name}-queue")],
            dead_letter_queue=Queue(name=f"{name}-dead"),
            delay_queue=Queue(name=f"{name}-delay"),
        )
    elif settings.line == "postgres-adapted":
        made = _make_postgres_broker(settings)
    else:
        made = _make_nats_broker(settings)
    return made.with_result_backend(results)


def _make_nats_broker(settings: Settings) -> AsyncBroker:
    name = settings.name
    kinds: dict[str, Any] = {
        "nats-push": taskiq_nats.PushBasedJetStreamBroker,
        "nats-pull": taskiq_nats.PullBasedJetStreamBroker,
        "nats-pull-adapted": adapted_nats.PullBasedJetStreamBroker,
    }
    broker: AsyncBroker = kinds[settings.line](
        settings.url,
        subject=f"{name}.tasks",
        stream_name=name,
        queue=f"{name}-queue",
        durable=f"{name}-durable",
        stream_config=StreamConfig(name=name, subjects=[f"{name}.tasks"]),
        consumer_config=ConsumerConfig(
            ack_wait=settings.redelivery,
            max_ack_pending=2 * (settings.max_buffered + 100),
        ),
        pull_consume_batch=100,
        pull_consume_timeout=0.2,
    )
    return broker


def _make_postgres_broker(settings: Settings) -> AsyncBroker:
    name = sql_name(settings.name)
    broker = adapted_asyncpg.AsyncpgBroker(
        settings.url, channel_name=f"{name}_channel", table_name=f"{name}_messages"
    )
    broker.idle_timeout = int(settings.redelivery * 1000)
    return broker


@functools.cache
def unavailable(line: Line) -> str | None:
    """Tell why there is no such line, or `None`."""
    if line.startswith("redis"):
        return servers.unavailable("redis")
    if line.startswith("rabbitmq"):
        return servers.unavailable("rabbitmq")
    server = POSTGRES if line.startswith("postgres") else NATS
    return server.unavailable() or servers.unavailable("redis")


async def remove(settings: Settings) -> None:
    """Remove all that a run has made on servers that outlive it."""
    for url in {settings.results_url, settings.counts_url}:
        async with Redis.from_url(url) as redis:
            keys = [key async for key in redis.scan_iter(f"*{settings.name}*", 10_000)]
            for start in range(0, len(keys), 1000):
                await redis.unlink(*keys[start : start + 1000])
    if settings.line.startswith("rabbitmq"):
        await servers.delete_queues(settings.name)
    elif settings.line.startswith("postgres"):
        await asyncio.to_thread(POSTGRES.remove, settings.name)
    elif settings.line.startswith("nats"):
        connection = await nats.connect(settings.url)
        try:
            await connection.jetstream().delete_stream(settings.name)
        except NotFoundError:
            pass  # nothing was sent
        finally:
            await connection.close()
