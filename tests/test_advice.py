"""What is said of a broker's settings that do not go with its tasks."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from taskiq import InMemoryBroker
from taskiq.advice import BrokerSettings, advise, settings_of
from taskiq.batch import BatchConfig
from taskiq.receiver import Receiver

BLOCKS_FOR_TEN_SECONDS = BrokerSettings(
    read=10, read_name="xread_block (in milliseconds)", read_timeout=5
)
HUNDRED = BatchConfig(size=100, timeout=1)


def pulls(batch: int, timeout: float | None, limit: int | None = 1000) -> Any:
    return BrokerSettings(limit, "max_ack_pending", True, batch, timeout)


@pytest.mark.parametrize(
    ("settings", "tasks", "told"),
    [
        # Nothing is known, or everything is right, to the last message.
        (BrokerSettings(), {"a": HUNDRED}, []),
        (BrokerSettings(100, "qos"), {"a": HUNDRED}, []),
        (BrokerSettings(200, "qos"), {"a": HUNDRED, "b": HUNDRED}, []),
        (BrokerSettings(1, "qos"), {}, []),
        (pulls(1, None), {}, []),
        (pulls(100, 0.5), {}, []),
        (pulls(100, 5, None), {}, []),
        (BrokerSettings(lease=1.1), {"a": HUNDRED}, []),
        (BrokerSettings(read=2, read_timeout=5), {}, []),
        (BrokerSettings(read=math.inf, read_timeout=None), {}, []),
        # One task cannot fill, two cannot, all cannot at once.
        (
            BrokerSettings(99, "qos"),
            {"a": HUNDRED},
            ["Task a: batch_size=100, .*qos=99 .* Set qos=1000, .*at least 100"],
        ),
        (
            BrokerSettings(20, "qos"),
            {"a": HUNDRED, "b": BatchConfig(size=20), "c": BatchConfig(size=21)},
            [
                "Task a: .*batch_size=100.* Set qos=3000",
                "Task c: .*batch_size=21.* Set qos=3000",
            ],
        ),
        (
            BrokerSettings(199, "qos"),
            {"a": HUNDRED, "b": HUNDRED},
            ["Tasks a, b: .*together take 200 .*qos=199.* Set qos=2000.*at least 200"],
        ),
        (
            pulls(1, None, 50),
            {"a": HUNDRED},
            ["max_ack_pending=50.* Set max_ack_pending=1000 for each process"],
        ),
        # Requests that wait for company, are too short, or ask for what is not given.
        (pulls(100, None), {}, ["nothing runs until 100 .*pull_consume_timeout=5 "]),
        (pulls(10, 0.1), {}, ["pull_consume_timeout=0.1 s is so short"]),
        (pulls(100, 5, 50), {}, ["Set pull_consume_batch to at most 50"]),
        # A lease that ends before the batch is called.
        (
            BrokerSettings(lease=1, lease_name="idle_timeout"),
            {"a": HUNDRED},
            ["Task a: .*batch_timeout=1 s.*again after 1 s.*Raise idle_timeout"],
        ),
        # A read that its client gives up before anything came.
        (
            BrokerSettings(read=math.inf, read_timeout=5),
            {},
            ["waits for a message, .*socket_timeout=5 s.* Set socket_timeout=None\\.$"],
        ),
        (
            BrokerSettings(read=5, read_name="xread_block", read_timeout=5),
            {},
            ["waits 5 s .*Set socket_timeout=None, or xread_block below 5000\\.$"],
        ),
    ],
)
def test_what_does_not_go_together_is_said_with_what_to_set(
    settings: BrokerSettings, tasks: dict[str, BatchConfig], told: list[str]
) -> None:
    advice = advise(settings, tasks)
    assert len(advice) == len(told), advice
    for text, pattern in zip(advice, told, strict=True):
        assert re.search(pattern, text), text


class RabbitBroker(InMemoryBroker):
    _qos = 10


class PullBasedJetStreamBroker(InMemoryBroker):
    """As the plugin's own, by its name and attributes."""

    pull_consume_batch = 100
    pull_consume_timeout = None
    consumer_config: Any = SimpleNamespace(max_ack_pending=-1)


class PushBasedJetStreamBroker(InMemoryBroker):
    consumer_config: Any = None


class RedisStreamBroker(InMemoryBroker):
    idle_timeout = 1500
    block = 10_000
    connection_pool: Any = SimpleNamespace(
        make_connection=lambda: SimpleNamespace(socket_timeout=5)
    )


def redis_of(master: str) -> Any:
    del master
    return SimpleNamespace(connection_pool=RedisStreamBroker.connection_pool)


class ListQueueSentinelBroker(InMemoryBroker):
    sentinel: Any = SimpleNamespace(master_for=redis_of)


class ListQueueClusterBroker(InMemoryBroker):
    """It does not say how long its clients wait."""


class RenewingBroker(RedisStreamBroker):
    message_capabilities: Any = ("extend",)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (InMemoryBroker, BrokerSettings()),
        (RabbitBroker, BrokerSettings(10, "qos")),
        (PullBasedJetStreamBroker, pulls(100, None, None)),
        (
            PushBasedJetStreamBroker,
            BrokerSettings(1000, "max_ack_pending", is_shared=True),
        ),
        (
            RedisStreamBroker,
            replace(
                BLOCKS_FOR_TEN_SECONDS,
                lease=1.5,
                lease_name="idle_timeout (in milliseconds)",
            ),
        ),
        (RenewingBroker, BLOCKS_FOR_TEN_SECONDS),
        (ListQueueSentinelBroker, BrokerSettings(read=math.inf, read_timeout=5)),
        (ListQueueClusterBroker, BrokerSettings(read=math.inf)),
    ],
)
def test_settings_are_read_off_the_broker(
    kind: type[InMemoryBroker], settings: BrokerSettings
) -> None:
    assert settings_of(kind()) == settings


def test_a_worker_says_it_at_its_start_and_not_again_when_it_listens_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        broker = RabbitBroker()

        @broker.task("insert", batch=True, batch_size=50)
        async def insert(rows: list[int]) -> None:
            raise NotImplementedError

        for _ in range(2):
            finish = asyncio.Event()
            finish.set()
            await Receiver(broker, run_startup=False).listen(finish)

    asyncio.run(main())
    [told] = [each for each in caplog.records if "qos=" in each.getMessage()]
    assert told.levelname == "WARNING"
    assert told.getMessage().startswith("Task insert: batch_size=50, but the broker")
