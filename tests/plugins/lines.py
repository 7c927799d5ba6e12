"""The table of brokers under test, and what of theirs is on the servers.

A line is a broker with the result backend and the schedule source that go with it. All
that it makes on a server has the name it is given in its own name, so that runs do not
meet and each can be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from nats.js.api import ConsumerConfig, StreamConfig
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue
from taskiq_nats import (
    NatsBroker,
    NATSKeyValueScheduleSource,
    NATSObjectStoreResultBackend,
    PullBasedJetStreamBroker,
    PushBasedJetStreamBroker,
)
from taskiq_pg.asyncpg import (
    AsyncpgBroker,
    AsyncpgResultBackend,
    AsyncpgScheduleSource,
)
from taskiq_redis import (
    ListQueueBroker,
    ListRedisScheduleSource,
    PubSubBroker,
    RedisAsyncResultBackend,
    RedisStreamBroker,
)

from taskiq import AsyncBroker, AsyncResultBackend, ScheduleSource
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
    """

    name: str
    make: Callable[[str], AsyncBroker]
    server: Server
    unfinished: Callable[[str], int] | None = None
    make_sender: Callable[[str], AsyncBroker] | None = None
    make_source: Callable[[AsyncBroker, str], ScheduleSource] | None = None
    keeps: bool = True
    delays: bool = False

    def __str__(self) -> str:
        return self.name

    def sender(self, name: str) -> AsyncBroker:
        """Make the broker of a client or a scheduler."""
        return (self.make_sender or self.make)(name)

    def unavailable(self) -> str | None:
        """Tell why the line cannot be used, or `None`; results may be in Redis."""
        return self.server.unavailable() or REDIS.unavailable()


def _redis_results(name: str) -> AsyncResultBackend[Any]:
    return RedisAsyncResultBackend(REDIS.url, prefix_str=name, result_ex_time=EXPIRY)


def _redis_stream(name: str) -> AsyncBroker:
    return RedisStreamBroker(
        REDIS.url, queue_name=f"{name}-stream", consumer_group_name=f"{name}-group"
    ).with_result_backend(_redis_results(name))


def _redis_list(name: str) -> AsyncBroker:
    broker = ListQueueBroker(REDIS.url, queue_name=f"{name}-list")
    return broker.with_result_backend(_redis_results(name))


def _redis_pubsub(name: str) -> AsyncBroker:
    broker = PubSubBroker(REDIS.url, queue_name=f"{name}-channel")
    return broker.with_result_backend(_redis_results(name))


def _redis_source(_: AsyncBroker, name: str) -> ScheduleSource:
    return ListRedisScheduleSource(REDIS.url, prefix=f"{name}-schedule")


def rabbitmq(name: str, qos: int = PLENTY) -> AsyncBroker:
    return AioPikaBroker(
        RABBITMQ.url,
        qos=qos,
        exchange=Exchange(name=f"{name}-exchange"),
        task_queues=[Queue(name=f"{name}-queue")],
        dead_letter_queue=Queue(name=f"{name}-dead"),
        delay_queue=Queue(name=f"{name}-delay"),
    ).with_result_backend(_redis_results(name))


def _nats_results(name: str) -> AsyncResultBackend[Any]:
    return NATSObjectStoreResultBackend(NATS.url, bucket_name=f"{name}-results")


def _nats_source(_: AsyncBroker, name: str) -> ScheduleSource:
    return NATSKeyValueScheduleSource(NATS.url, bucket_name=f"{name}-schedules")


def _jetstream_names(name: str) -> dict[str, Any]:
    return {
        "subject": f"{name}-subject",
        "stream_name": f"{name}-stream",
        "durable": f"{name}-durable",
        "stream_config": StreamConfig(
            name=f"{name}-stream", subjects=[f"{name}-subject"]
        ),
    }


def _jetstream_push(name: str) -> AsyncBroker:
    return PushBasedJetStreamBroker(
        NATS.url,
        queue=f"{name}-queue",
        consumer_config=ConsumerConfig(max_ack_pending=PLENTY),
        **_jetstream_names(name),
    ).with_result_backend(_nats_results(name))


def _jetstream_pull(name: str) -> AsyncBroker:
    return PullBasedJetStreamBroker(
        NATS.url,
        consumer_config=ConsumerConfig(max_ack_pending=PLENTY),
        **_jetstream_names(name),
    ).with_result_backend(_nats_results(name))


def _nats(name: str) -> AsyncBroker:
    broker = NatsBroker(NATS.url, subject=f"{name}-subject", queue=f"{name}-queue")
    return broker.with_result_backend(_nats_results(name))


def _postgres(name: str) -> AsyncBroker:
    return AsyncpgBroker(
        POSTGRES.url,
        channel_name=f"{sql_name(name)}_channel",
        table_name=f"{sql_name(name)}_messages",
    ).with_result_backend(
        AsyncpgResultBackend(POSTGRES.url, table_name=f"{sql_name(name)}_results")
    )


def _postgres_source(broker: AsyncBroker, name: str) -> ScheduleSource:
    table = f"{sql_name(name)}_schedules"
    return AsyncpgScheduleSource(broker, POSTGRES.url, table_name=table)


def _by_name(lines: Iterable[Line]) -> Mapping[str, Line]:
    return MappingProxyType({line.name: line for line in lines})


LINES = _by_name(
    [
        Line(
            "redis-stream",
            _redis_stream,
            REDIS,
            unfinished=partial(unacknowledged, "redis"),
            make_source=_redis_source,
        ),
        Line("redis-list", _redis_list, REDIS, make_source=_redis_source),
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
            make_sender=_nats,
            make_source=_nats_source,
        ),
        Line(
            "jetstream-pull",
            _jetstream_pull,
            NATS,
            unfinished=unfinished_in_jetstream,
            make_source=_nats_source,
        ),
        Line("nats", _nats, NATS, make_source=_nats_source, keeps=False),
        Line(
            "postgres",
            _postgres,
            POSTGRES,
            unfinished=unfinished_in_postgres,
            make_source=_postgres_source,
            keeps=False,
            delays=True,
        ),
    ]
)

#: RabbitMQ as its plugin is by default: ten messages at once, and no more.
SHORT_RABBITMQ = Line("rabbitmq-qos-10", partial(rabbitmq, qos=10), RABBITMQ)
ALL = _by_name([*LINES.values(), SHORT_RABBITMQ])
