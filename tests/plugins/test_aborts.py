"""Aborting over Redis and PostgreSQL: by marks in the result backend's adapter."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from redis.asyncio import Redis

from taskiq.adapters import postgres as adapted_postgres
from taskiq.adapters import redis as adapted_redis
from taskiq.exceptions import TaskAbortedError
from taskiq.receiver import Receiver

from .servers import POSTGRES, REDIS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from taskiq import AsyncBroker


async def made(kind: str, name: str) -> AsyncBroker:
    """Make a broker with its results, as every process would."""
    if kind == "redis":
        return adapted_redis.RedisStreamBroker(
            REDIS.url,
            queue_name=name,
            consumer_group_name=name,
        ).with_result_backend(
            adapted_redis.RedisAsyncResultBackend(
                REDIS.url, prefix_str=name, result_ex_time=60
            ),
        )
    return adapted_postgres.AsyncpgBroker(
        POSTGRES.url,
        table_name=name,
        channel_name=name,
    ).with_result_backend(
        adapted_postgres.AsyncpgResultBackend(POSTGRES.url, table_name=f"{name}_r"),
    )


@pytest.fixture(params=["redis", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    if reason := (REDIS if kind == "redis" else POSTGRES).unavailable():
        pytest.skip(reason)
    return kind


@pytest.fixture
async def brokers(kind: str) -> AsyncIterator[list[AsyncBroker]]:
    name = f"aborts_{uuid.uuid4().hex[:12]}"
    both = [await made(kind, name) for _ in range(2)]
    both[1].is_worker_process = True
    for each in both:
        await each.startup()
    yield both
    for each in both:
        await each.shutdown()
    if kind == "redis":
        async with Redis.from_url(REDIS.url) as redis:
            await redis.delete(name, *await redis.keys(f"{name}:*"))
    else:
        connection = await asyncpg.connect(POSTGRES.url)
        await connection.execute(
            f"DROP TABLE IF EXISTS {name}, {name}_r, {name}_r_aborts",
        )
        await connection.close()


async def test_what_is_queued_never_runs_and_what_runs_is_told(
    brokers: list[AsyncBroker],
) -> None:
    client, worker = brokers
    runs: list[int] = []
    started, cancelled = asyncio.Event(), list[float]()

    async def note(number: int) -> None:
        runs.append(number)

    async def wait() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(time.monotonic())

    for each in brokers:
        each.register_task(note, "note")
        each.register_task(wait, "wait")
    notes: Any = client.find_task("note")
    handles = await notes.kiq_many(range(1001))
    assert all(await asyncio.gather(*(each.abort() for each in handles[:-1])))
    finish = asyncio.Event()
    receiver = Receiver(worker, max_async_tasks=10, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    results = [await each.wait_result(timeout=30) for each in handles]
    assert all(isinstance(each.error, TaskAbortedError) for each in results[:-1])
    assert results[-1].error is None
    assert runs == [1000]

    waits: Any = client.find_task("wait")
    handle = await waits.kiq()
    await started.wait()
    asked = time.monotonic()
    assert await handle.abort()
    result = await handle.wait_result(timeout=5)
    assert isinstance(result.error, TaskAbortedError)
    assert cancelled[0] - asked < 0.2
    assert not await handle.abort()
    finish.set()
    await listening
