"""The table of brokers under test, and what of theirs is on the servers.

A line is a broker with the result backend and the schedule source that go with it. All
that it makes on a server has the name it is given in its own name, so that runs do not
meet and each can be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import taskiq_aio_pika
import taskiq_nats
import taskiq_pg.asyncpg as taskiq_asyncpg
import taskiq_redis
from nats.js.api import ConsumerConfig, StreamConfig
from taskiq_aio_pika import Exchange, Queue

from taskiq import AsyncBroker, AsyncResultBackend, ScheduleSource
from taskiq.adapters import nats as adapted_nats
from taskiq.adapters import postgres as adapted_asyncpg
from taskiq.adapters import rabbitmq as adapted_rabbitmq
from taskiq.adapters import redis as adapted_redis
from tests.interop.lines import unacknowledged

from .servers import (
    NATS,
    POSTGRES,
    RABBITMQ,
    REDIS,
    Server,
    sql_name,
    unfinished_in_jetstream,
    unfinished_in_postgres,
)

#: Seconds after which what a killed test run left in Redis is gone.
EXPIRY = 600
#: Milliseconds after which a message that is not acknowledged is taken over.
HASTE = 1000
#: More than the tests leave unacknowledged at any time.
PLENTY = 2000


@dataclass(frozen=True)
class Line:
    """A broker, and how it differs from the others.

    :ivar make: makes the broker, with its result backend, for a name.
    :ivar server: the server that carries the messages.
    :ivar unfinished: counts the messages of a stopped worker that would come again;
        `None` if the broker does not know.
    :ivar make_sender: makes the broker of a client or a scheduler, if it is not that of
        a worker.
    :ivar make_source: makes the plugin's own schedule source; `None` if it has none.
    :ivar keeps: messages wait in the broker while no worker listens. (PostgreSQL keeps
        them, too, but its broker tells of a message once, when it is sent.)
    :ivar delays: the broker understands the label `delay`.
    :ivar adapts: the name of the line with the plugin itself, if this is its adapter.
    """

    name: str
    make: Callable[..., AsyncBroker]
    server: Server
    unfinished: Callable[[str], int] | None = None
    make_sender: Callable[..., AsyncBroker] | None = None
    make_source: Callable[[AsyncBroker, str], ScheduleSource] | None = None
    keeps: bool = True
    delays: bool = False
    adapts: str | None = None

    def __str__(self) -> str:
        return self.name

    def sender(self, name: str) -> AsyncBroker:
        """Make the broker of a client or a scheduler."""
        return (self.make_sender or self.make)(name)

    def unavailable(self) -> str | None:
        """Tell why the line cannot be used, or `None`; results may be in Redis."""
        return self.server.unavailable() or REDIS.unavailable()


def redis_results(
    name: str, plugin: Any = taskiq_redis, url: str = REDIS.url, **options: Any
) -> AsyncResultBackend[Any]:
    results: AsyncResultBackend[Any] = plugin.RedisAsyncResultBackend(
        url, prefix_str=name, result_ex_time=EXPIRY, **options
    )
    return results


def redis_stream(
    name: str, plugin: Any = taskiq_redis, url: str = REDIS.url, **options: Any
) -> AsyncBroker:
    broker: AsyncBroker = plugin.RedisStreamBroker(
        url,
        queue_name=f"{name}-stream",
        consumer_group_name=f"{name}-group",
        **options,
    )
    return broker.with_result_backend(redis_results(name, plugin, url))


def redis_list(name: str, plugin: Any = taskiq_redis, **options: Any) -> AsyncBroker:
    broker: AsyncBroker = plugin.ListQueueBroker(
        REDIS.url, queue_name=f"{name}-list", **options
    )
    return broker.with_result_backend(redis_results(name, plugin))


def _redis_pubsub(name: str, plugin: Any = taskiq_redis) -> AsyncBroker:
    broker: AsyncBroker = plugin.PubSubBroker(REDIS.url, queue_name=f"{name}-channel")
    return broker.with_result_backend(redis_results(name, plugin))


def _redis_source(_: AsyncBroker, name: str) -> ScheduleSource:
    return taskiq_redis.ListRedisScheduleSource(REDIS.url, prefix=f"{name}-schedule")


def rabbitmq(
    name: str,
    plugin: Any = taskiq_aio_pika,
    url: str = RABBITMQ.url,
    *,
    qos: int = PLENTY,
    delays: bool = True,
) -> AsyncBroker:
    broker: AsyncBroker = plugin.AioPikaBroker(
        url,
        qos=qos,
        exchange=Exchange(name=f"{name}-exchange"),
        task_queues=[Queue(name=f"{name}-queue")],
        dead_letter_queue=Queue(name=f"{name}-dead"),
        delay_queue=Queue(name=f"{name}-delay") if delays else None,
    )
    return broker.with_result_backend(redis_results(name))


def nats_results(
    name: str, plugin: Any = taskiq_nats, url: str = NATS.url, **options: Any
) -> AsyncResultBackend[Any]:
    results: AsyncResultBackend[Any] = plugin.NATSObjectStoreResultBackend(
        url, bucket_name=f"{name}-results", **options
    )
    return results


def _nats_source(_: AsyncBroker, name: str) -> ScheduleSource:
    return taskiq_nats.NATSKeyValueScheduleSource(
        NATS.url, bucket_name=f"{name}-schedules"
    )


def _jetstream_names(name: str) -> dict[str, Any]:
    return {
        "subject": f"{name}-subject",
        "stream_name": f"{name}-stream",
        "durable": f"{name}-durable",
        "stream_config": StreamConfig(
            name=f"{name}-stream", subjects=[f"{name}-subject"]
        ),
        "consumer_config": ConsumerConfig(max_ack_pending=PLENTY),
    }


def _jetstream_push(name: str, plugin: Any = taskiq_nats) -> AsyncBroker:
    broker: AsyncBroker = plugin.PushBasedJetStreamBroker(
        NATS.url, queue=f"{name}-queue", **_jetstream_names(name)
    )
    return broker.with_result_backend(nats_results(name, plugin))


def jetstream_pull(
    name: str, plugin: Any = taskiq_nats, url: str = NATS.url
) -> AsyncBroker:
    broker: AsyncBroker = plugin.PullBasedJetStreamBroker(url, **_jetstream_names(name))
    return broker.with_result_backend(nats_results(name, plugin, url))


def nats(name: str, plugin: Any = taskiq_nats) -> AsyncBroker:
    broker: AsyncBroker = plugin.NatsBroker(
        NATS.url, subject=f"{name}-subject", queue=f"{name}-queue"
    )
    return broker.with_result_backend(nats_results(name, plugin))


def postgres_results(
    name: str, plugin: Any = taskiq_asyncpg, url: str = POSTGRES.url, **options: Any
) -> AsyncResultBackend[Any]:
    results: AsyncResultBackend[Any] = plugin.AsyncpgResultBackend(
        url, table_name=f"{sql_name(name)}_results", **options
    )
    return results


def postgres(
    name: str, plugin: Any = taskiq_asyncpg, url: str = POSTGRES.url
) -> AsyncBroker:
    broker: AsyncBroker = plugin.AsyncpgBroker(
        url,
        channel_name=f"{sql_name(name)}_channel",
        table_name=f"{sql_name(name)}_messages",
    )
    return broker.with_result_backend(postgres_results(name, plugin, url))


def _postgres_source(broker: AsyncBroker, name: str) -> ScheduleSource:
    table = f"{sql_name(name)}_schedules"
    return taskiq_asyncpg.AsyncpgScheduleSource(broker, POSTGRES.url, table_name=table)


def _adapted(line: Line, plugin: Any, **changes: Any) -> Line:
    """Give the same line with the adapter in place of the plugin, on both sides."""
    make_sender = line.make_sender and partial(line.make_sender, plugin=plugin)
    return replace(
        line,
        name=f"adapted-{line.name}",
        make=partial(line.make, plugin=plugin),
        make_sender=make_sender,
        adapts=line.name,
        **changes,
    )


def _by_name(lines: Iterable[Line]) -> Mapping[str, Line]:
    return MappingProxyType({line.name: line for line in lines})


_PLUGINS = _by_name(
    [
        Line(
            "redis-stream",
            redis_stream,
            REDIS,
            unfinished=partial(unacknowledged, "redis"),
            make_source=_redis_source,
        ),
        Line("redis-list", redis_list, REDIS, make_source=_redis_source),
        Line(
            "redis-pubsub", _redis_pubsub, REDIS, make_source=_redis_source, keeps=False
        ),
        Line(
            "rabbitmq",
            rabbitmq,
            RABBITMQ,
            unfinished=partial(unacknowledged, "rabbitmq"),
            delays=True,
        ),
        Line(
            "jetstream-push",
            _jetstream_push,
            NATS,
            unfinished=unfinished_in_jetstream,
            # The broker takes a share of the messages wherever it is started. What this
            # one publishes gets into the stream, too.
            make_sender=nats,
            make_source=_nats_source,
        ),
        Line(
            "jetstream-pull",
            jetstream_pull,
            NATS,
            unfinished=unfinished_in_jetstream,
            make_source=_nats_source,
        ),
        Line("nats", nats, NATS, make_source=_nats_source, keeps=False),
        Line(
            "postgres",
            postgres,
            POSTGRES,
            unfinished=unfinished_in_postgres,
            make_source=_postgres_source,
            keeps=False,
            delays=True,
        ),
    ]
)

#: Adapters, where there are any. That of PostgreSQL finds what nobody was told of.
_ADAPTERS = [
    _adapted(_PLUGINS["redis-stream"], adapted_redis),
    _adapted(_PLUGINS["redis-list"], adapted_redis),
    _adapted(_PLUGINS["redis-pubsub"], adapted_redis),
    _adapted(_PLUGINS["rabbitmq"], adapted_rabbitmq),
    _adapted(_PLUGINS["jetstream-push"], adapted_nats),
    _adapted(_PLUGINS["jetstream-pull"], adapted_nats),
    _adapted(_PLUGINS["nats"], adapted_nats),
    _adapted(_PLUGINS["postgres"], adapted_asyncpg, keeps=True),
]
LINES = _by_name([*_PLUGINS.values(), *_ADAPTERS])

#: RabbitMQ as its plugin is by default: ten messages at once, and no more.
SHORT_RABBITMQ = Line("rabbitmq-qos-10", partial(rabbitmq, qos=10), RABBITMQ)

#: RabbitMQ without a place for messages that have a delay.
UNDELAYED_RABBITMQ = Line(
    "rabbitmq-undelayed", partial(rabbitmq, delays=False), RABBITMQ
)


def _hasty_stream(name: str) -> AsyncBroker:
    return redis_stream(name, adapted_redis, idle_timeout=HASTE)


def _hasty_postgres(name: str) -> AsyncBroker:
    broker = postgres(name, adapted_asyncpg)
    vars(broker)["idle_timeout"] = HASTE
    return broker


#: Adapters that soon take over what a worker that was killed has held.
HASTY = [
    replace(LINES["adapted-redis-stream"], name="hasty-stream", make=_hasty_stream),
    replace(LINES["adapted-postgres"], name="hasty-postgres", make=_hasty_postgres),
]
ALL = _by_name([*LINES.values(), SHORT_RABBITMQ, UNDELAYED_RABBITMQ, *HASTY])
