"""The conformance kit on every plugin, with its adapter and without."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from nats.js.api import ConsumerConfig

from taskiq import AsyncBroker, AsyncResultBackend, BrokerMessage
from taskiq.testing.conformance import BrokerConformance, ResultBackendConformance

from . import lines
from .lines import LINES

#: Seconds that leases are long here.
LEASE = 2


def short(broker: Any) -> AsyncBroker:
    """Let a broker have short leases."""
    if hasattr(broker, "idle_timeout"):
        broker.idle_timeout = LEASE * 1000
    if hasattr(broker, "consumer_config"):
        broker.consumer_config = ConsumerConfig(
            max_ack_pending=lines.PLENTY, ack_wait=LEASE
        )
    made: AsyncBroker = broker
    return made


class OfLine(BrokerConformance):
    """The kit for one line.

    :cvar line: its name.
    """

    line: ClassVar[str]
    name: str
    redelivered_within = 5.0

    @pytest.fixture
    def make_broker(self) -> Iterator[Callable[[], AsyncBroker]]:
        line = LINES[self.line]
        if reason := line.unavailable():
            pytest.skip(reason)
        self.name = name = f"taskiq-conformance-{uuid.uuid4().hex[:12]}"
        yield lambda: short(line.make(name))
        line.server.remove(name)

    def make_sender(self, make_broker: Callable[[], AsyncBroker]) -> AsyncBroker:
        return LINES[self.line].sender(self.name)


def refused(**labels: Any) -> BrokerMessage:
    data = b"x" * 2_000_000 if not labels else b"{}"
    return BrokerMessage(task_id="id", task_name="task", message=data, labels=labels)


class TestRedisStream(OfLine):
    line = "redis-stream"

    @pytest.mark.xfail(reason="it looks when a new message arrives", strict=True)
    def test_what_is_not_acknowledged_comes_again(
        self, make_broker: Callable[[], AsyncBroker]
    ) -> None:
        super().test_what_is_not_acknowledged_comes_again(make_broker)


class TestAdaptedRedisStream(OfLine):
    line = "adapted-redis-stream"
    refused = refused(queue_name=[1])


class TestRedisList(OfLine):
    line = "redis-list"


class TestAdaptedRedisList(OfLine):
    line = "adapted-redis-list"
    refused = refused(queue_name=[1])


class TestRedisPubSub(OfLine):
    line = "redis-pubsub"
    keeps = False


class TestAdaptedRedisPubSub(OfLine):
    line = "adapted-redis-pubsub"
    keeps = False


class TestRabbitMQ(OfLine):
    line = "rabbitmq"


class TestNats(OfLine):
    line = "nats"
    keeps = False
    refused = refused()


class TestAdaptedNats(OfLine):
    line = "adapted-nats"
    keeps = False
    refused = refused()


class TestJetStreamPull(OfLine):
    line = "jetstream-pull"
    refused = refused()


class TestAdaptedJetStreamPull(OfLine):
    line = "adapted-jetstream-pull"
    refused = refused()


class TestJetStreamPush(OfLine):
    line = "jetstream-push"
    refused = refused()


class TestAdaptedJetStreamPush(OfLine):
    line = "adapted-jetstream-push"
    refused = refused()


class TestPostgres(OfLine):
    line = "postgres"
    keeps = False


class TestAdaptedPostgres(OfLine):
    line = "adapted-postgres"
    refused = refused(text="\x00")


class ResultsOfLine(ResultBackendConformance):
    line: ClassVar[str]

    @pytest.fixture
    def make_result_backend(self) -> Iterator[Callable[[], AsyncResultBackend[Any]]]:
        line = LINES[self.line]
        if reason := line.unavailable():
            pytest.skip(reason)
        name = f"taskiq-conformance-{uuid.uuid4().hex[:12]}"
        yield lambda: line.make(name).result_backend
        line.server.remove(name)


class TestRedisResults(ResultsOfLine):
    line = "redis-stream"


class TestAdaptedRedisResults(ResultsOfLine):
    line = "adapted-redis-stream"


class TestNatsResults(ResultsOfLine):
    line = "jetstream-pull"


class TestAdaptedNatsResults(ResultsOfLine):
    line = "adapted-jetstream-pull"


class TestPostgresResults(ResultsOfLine):
    line = "postgres"


class TestAdaptedPostgresResults(ResultsOfLine):
    line = "adapted-postgres"
