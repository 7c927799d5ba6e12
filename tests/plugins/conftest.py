"""One worker for all the rules of a line."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from nats.js.errors import NotFoundError
from redis.asyncio import Redis

from taskiq import AsyncBroker
from taskiq.adapters import nats as adapted_nats
from taskiq.adapters import postgres as adapted_postgres
from taskiq.adapters import redis as adapted_redis
from tests.support.hub import Hub

from .lines import LINES, Line
from .servers import NATS, POSTGRES, REDIS, Server, jetstream
from .stage import Client, Stage

#: What plugins and their libraries do where it is not for us to say.
FOREIGN = (
    "ignore:unclosed:ResourceWarning",
    "ignore:loop is closed:ResourceWarning",
    "ignore:(open|read)_text is deprecated:DeprecationWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for warning in FOREIGN:
        config.addinivalue_line("filterwarnings", warning)


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="session", params=LINES.values(), ids=str)
def line(request: pytest.FixtureRequest) -> Line:
    """Every line whose server answers."""
    asked: Line = request.param
    if reason := asked.unavailable():
        pytest.skip(reason)
    return asked


@pytest.fixture(scope="session")
def stage(line: Line, hub: Hub) -> Iterator[Stage]:
    """A line with a worker."""
    with Stage(line, hub).opened() as stage, stage.worker():
        yield stage


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[Client]:
    async with stage.client() as client:
        yield client


SERVERS: dict[str, Server] = {"redis": REDIS, "postgres": POSTGRES, "nats": NATS}


def _made(kind: str, name: str) -> AsyncBroker:
    """Make a broker with its results, as every process would."""
    if kind == "redis":
        return adapted_redis.RedisStreamBroker(
            REDIS.url, queue_name=name, consumer_group_name=name
        ).with_result_backend(
            adapted_redis.RedisAsyncResultBackend(
                REDIS.url, prefix_str=name, result_ex_time=60
            ),
        )
    if kind == "nats":
        results: Any = adapted_nats.NATSObjectStoreResultBackend(
            [NATS.url], bucket_name=name
        )
        return adapted_nats.PullBasedJetStreamBroker(
            [NATS.url], subject=name, stream_name=name, durable=name
        ).with_result_backend(results)
    return adapted_postgres.AsyncpgBroker(
        POSTGRES.url, table_name=name, channel_name=name
    ).with_result_backend(
        adapted_postgres.AsyncpgResultBackend(POSTGRES.url, table_name=f"{name}_r"),
    )


@pytest.fixture(params=["redis", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each server that has an adapter with stores, if it answers."""
    kind: str = request.param
    if reason := SERVERS[kind].unavailable():
        pytest.skip(reason)
    return kind


@pytest.fixture
async def brokers(kind: str) -> AsyncIterator[list[AsyncBroker]]:
    """A client and a worker over the adapters, as two processes have them."""
    name = f"two_{uuid.uuid4().hex[:12]}"
    both = [_made(kind, name) for _ in range(2)]
    both[1].is_worker_process = True
    for each in both:
        await each.startup()
    yield both
    for each in both:
        await each.shutdown()
    if kind == "redis":
        async with Redis.from_url(REDIS.url) as redis:
            await redis.delete(name, *await redis.keys(f"{name}:*"))
    elif kind == "nats":
        async with jetstream(NATS.url) as context:
            for stream in (name, f"OBJ_{name}", f"KV_{name}-unique"):
                with suppress(NotFoundError):
                    await context.delete_stream(stream)
    else:
        connection = await asyncpg.connect(POSTGRES.url)
        tables = ", ".join(name + each for each in ("", "_r", "_r_aborts", "_r_unique"))
        await connection.execute(f"DROP TABLE IF EXISTS {tables}")
        await connection.close()
