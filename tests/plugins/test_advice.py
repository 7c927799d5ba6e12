"""What is said of settings is true of real brokers, and only said where it is."""

from __future__ import annotations

import asyncio
import importlib
import re
from typing import Any
from uuid import uuid4

import pytest
from nats.js.api import ConsumerConfig
from taskiq_aio_pika import AioPikaBroker
from taskiq_nats import PullBasedJetStreamBroker
from taskiq_pg.asyncpg import AsyncpgBroker as PluginsAsyncpgBroker
from taskiq_redis import (
    ListQueueBroker,
    RedisStreamBroker,
    RedisStreamSentinelBroker,
)

from taskiq import AsyncBroker
from taskiq.adapters import nats as adapted_nats
from taskiq.adapters import redis as adapted_redis
from taskiq.adapters.postgres import AsyncpgBroker
from taskiq.advice import advise, settings_of
from taskiq.api import run_receiver_task
from taskiq.batch import BatchConfig
from taskiq.receiver import Receiver

from .servers import NATS, RABBITMQ, REDIS

LARGE = {"large": BatchConfig(size=100, timeout=2)}
ANY = "nats://localhost"
SENTINELS = [("localhost", 26379)]
#: By the default of redis-py from 8 on.
READ_IS_GIVEN_UP = "after socket_timeout=5 s"


def low_idle_timeout(broker: AsyncpgBroker) -> AsyncpgBroker:
    broker.idle_timeout = 1000
    return broker


@pytest.mark.parametrize(
    ("broker", "told"),
    [
        (AioPikaBroker(RABBITMQ.url), ["Set qos=1000"]),
        (AioPikaBroker(RABBITMQ.url, qos=100), []),
        (PullBasedJetStreamBroker(ANY), []),
        (
            PullBasedJetStreamBroker(ANY, pull_consume_batch=100),
            ["Set pull_consume_timeout=5"],
        ),
        (
            adapted_nats.PullBasedJetStreamBroker(
                ANY,
                pull_consume_batch=50,
                pull_consume_timeout=1,
                consumer_config=ConsumerConfig(max_ack_pending=50),
            ),
            ["Set max_ack_pending=1000"],
        ),
        (RedisStreamBroker(REDIS.url), []),
        (RedisStreamBroker(REDIS.url, xread_block=6000), [READ_IS_GIVEN_UP]),
        (RedisStreamBroker(REDIS.url, xread_block=6000, socket_timeout=7), []),
        (RedisStreamSentinelBroker(SENTINELS, "any"), [READ_IS_GIVEN_UP]),
        (ListQueueBroker(REDIS.url), [READ_IS_GIVEN_UP]),
        (ListQueueBroker(REDIS.url, socket_timeout=None), []),
        (RedisStreamBroker(REDIS.url, idle_timeout=2000), ["Raise idle_timeout"]),
        # These renew what they hold, and end a read in time.
        (
            adapted_redis.RedisStreamBroker(
                REDIS.url, idle_timeout=2000, xread_block=6000
            ),
            [],
        ),
        (adapted_redis.ListQueueBroker(REDIS.url), []),
        (low_idle_timeout(AsyncpgBroker()), []),
    ],
)
def test_the_settings_of_plugins_are_judged(broker: Any, told: list[str]) -> None:
    advice = advise(settings_of(broker), LARGE)
    assert len(advice) == len(told), advice
    for text, part in zip(advice, told, strict=True):
        assert part in text


@pytest.fixture
def jetstream() -> str:
    if reason := NATS.unavailable():
        pytest.skip(reason)
    return NATS.url


async def a_request_waits(broker: PullBasedJetStreamBroker) -> None:
    """Return once the worker has asked the server, which had nothing to give."""
    while not (await broker.consumer.consumer_info()).num_waiting:  # noqa: ASYNC110 - a server
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("timeout", [None, 5])
async def test_a_few_messages_of_jetstream_wait_for_a_full_request_without_a_timeout(
    jetstream: str,
    timeout: float | None,
) -> None:
    """This is why it is warned of, and that the advice helps."""
    name = f"taskiq-plugins-{uuid4().hex}"
    broker = PullBasedJetStreamBroker(
        jetstream,
        subject=name,
        stream_name=name,
        durable=name,
        pull_consume_batch=20,
        pull_consume_timeout=timeout,
    )
    ran: asyncio.Queue[int] = asyncio.Queue()

    @broker.task("note")
    async def note(number: int) -> None:
        ran.put_nowait(number)

    await broker.startup()
    worker = asyncio.create_task(run_receiver_task(broker, run_startup=False))
    try:
        await asyncio.wait_for(a_request_waits(broker), 10)
        await note.kiq(0)
        if timeout is None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(ran.get(), 1)
            for number in range(1, 20):
                await note.kiq(number)
        assert await asyncio.wait_for(ran.get(), 10) == 0
    finally:
        worker.cancel()
        await asyncio.wait([worker])
        await broker.js.delete_stream(name)
        await broker.shutdown()


class OwnStreamBroker(RedisStreamBroker):
    """Of an application."""


@pytest.mark.parametrize(
    ("broker", "line"),
    [
        (RedisStreamBroker(REDIS.url), ("taskiq.adapters.redis", "taskiq_redis")),
        (OwnStreamBroker(REDIS.url), ("taskiq.adapters.redis", "taskiq_redis")),
        (PluginsAsyncpgBroker(), ("taskiq.adapters.postgres", "taskiq_pg.asyncpg")),
        (adapted_redis.RedisStreamBroker(REDIS.url), None),
        (AsyncpgBroker(), None),
        (ListQueueBroker(REDIS.url), None),
        (AioPikaBroker(RABBITMQ.url), None),
    ],
    ids=lambda each: type(each).__qualname__,
)
def test_the_import_to_change_is_named_and_works(
    broker: AsyncBroker,
    line: tuple[str, str] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the start, and where `max_deliveries` counts less than it seems to."""
    broker.register_task(print, "limited", max_deliveries=3)
    caplog.set_level("INFO")
    Receiver(broker)._log_start()
    told = [each for each in caplog.messages if " in place of " in each]
    assert len(told) == (0 if line is None else 2)
    for text in told:
        assert line is not None
        new, old = re.findall(r"`from ([a-z_.]+) import \w+`", text)
        name = re.findall(r"import (\w+)`", text)[0]
        assert (new, old) == line
        assert issubclass(
            getattr(importlib.import_module(new), name),
            getattr(importlib.import_module(old), name),
        )
