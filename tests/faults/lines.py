"""The brokers of the fault runs, and what is left of each on its server."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import nats
from nats.errors import NoServersError
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import NotFoundError
from redis.asyncio import Redis
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue
from taskiq_nats import PullBasedJetStreamBroker, PushBasedJetStreamBroker
from taskiq_redis import (
    ListQueueBroker,
    RedisAsyncResultBackend,
    RedisStreamBroker,
)

from taskiq import AsyncBroker
from tests.interop import lines as servers

Line: TypeAlias = Literal["redis", "redis-list", "rabbitmq", "nats-push", "nats-pull"]

LINES: Final[tuple[Line, ...]] = get_args(Line)
#: Those whose messages can be acknowledged; the others lose what a killed worker held.
ACKNOWLEDGING: Final = tuple(line for line in LINES if line != "redis-list")
NATS = os.environ.get("TASKIQ_TEST_NATS_URL") or "nats://127.0.0.1:4222"
URLS: Final[dict[Line, str]] = {
    "redis": servers.REDIS,
    "redis-list": servers.REDIS,
    "rabbitmq": servers.RABBITMQ,
    "nats-push": NATS,
    "nats-pull": NATS,
}
_VARIABLE: Final = "TASKIQ_FAULTS"
_PATIENCE: Final = 5.0

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
    results: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(
        settings.results_url,
        prefix_str=name,
        result_ex_time=_EXPIRY,
    )
    made: AsyncBroker
    if settings.line == "redis":
        made = RedisStreamBroker(
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
        made = ListQueueBroker(url, queue_name=f"{name}-list")
    elif settings.line == "rabbitmq":
        made = AioPikaBroker(
            url,
            # Enough for full batches: the default of 10 lets none fill.
            qos=settings.max_buffered + 100,
            exchange=Exchange(name=f"{name}-exchange"),
            task_queues=[Queue(name=f"{name}-queue")],
            dead_letter_queue=Queue(name=f"{name}-dead"),
            delay_queue=Queue(name=f"{name}-delay"),
        )
    else:
        made = _make_nats_broker(settings)
    return made.with_result_backend(results)


def _make_nats_broker(settings: Settings) -> AsyncBroker:
    name = settings.name
    kind = (
        PushBasedJetStreamBroker
        if settings.line == "nats-push"
        else PullBasedJetStreamBroker
    )
    return kind(
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


@functools.cache
def unavailable(line: Line) -> str | None:
    """Tell why there is no such line, or `None`."""
    if line.startswith("redis"):
        return servers.unavailable("redis")
    if line == "rabbitmq":
        return servers.unavailable("rabbitmq")
    try:
        asyncio.run(_open_and_close())
    except (OSError, NoServersError) as error:
        return f"NATS does not answer at {NATS}: {error!r}"
    return servers.unavailable("redis")


async def _open_and_close() -> None:
    connection = await nats.connect(
        NATS,
        allow_reconnect=False,
        connect_timeout=int(_PATIENCE),
    )
    await connection.close()


async def remove(settings: Settings) -> None:
    """Remove all that a run has made on servers that outlive it."""
    for url in {settings.results_url, settings.counts_url}:
        async with Redis.from_url(url) as redis:
            keys = [key async for key in redis.scan_iter(f"*{settings.name}*", 10_000)]
            for start in range(0, len(keys), 1000):
                await redis.unlink(*keys[start : start + 1000])
    if settings.line == "rabbitmq":
        await servers.delete_queues(settings.name)
    elif settings.line.startswith("nats"):
        connection = await nats.connect(settings.url)
        try:
            await connection.jetstream().delete_stream(settings.name)
        except NotFoundError:
            pass  # nothing was sent
        finally:
            await connection.close()
