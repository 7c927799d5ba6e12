"""A worker goes on when what it reads from is gone, and connections do not pile up."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aio_pika
import pytest
from redis.asyncio import Redis
from taskiq_redis import RedisStreamBroker

from taskiq import AsyncBroker, TaskiqEvents
from taskiq.api import run_receiver_task
from taskiq.receiver.restart import reconnect
from tests.faults.servers import OwnRedis

from .lines import LINES, Line
from .servers import NATS, POSTGRES, RABBITMQ, jetstream, postgres, sql_name

#: Seconds until a worker must be back.
PATIENCE = 20.0
RECONNECTIONS = 20

Loss = Callable[[], Awaitable[None]]


class Application:
    """A broker with one task, and what its worker has run."""

    def __init__(self, worker: AsyncBroker, client: AsyncBroker) -> None:
        self.done: set[int] = set()
        self.starts = 0
        self.worker, self.client = worker, client
        for broker in (worker, client):
            broker.register_task(self._note, "note")
        worker.add_event_handler(TaskiqEvents.WORKER_STARTUP, self._start)

    async def _note(self, number: int) -> None:
        self.done.add(number)

    def _start(self, _: object) -> None:
        self.starts += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.client.startup()
        running = asyncio.ensure_future(
            run_receiver_task(self.worker, run_startup=True)
        )
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])
            await self.worker.shutdown()
            await self.client.shutdown()

    async def send(self, *numbers: int) -> None:
        task = self.client.find_task("note")
        assert task is not None
        for number in numbers:
            await task.kiq(number)

    async def wait_for(self, *numbers: int) -> None:
        while not self.done.issuperset(numbers):  # noqa: ASYNC110 - a poll is enough
            await asyncio.sleep(0.05)

    async def wait_until_it_listens(self) -> None:
        """Send until something is run: there may be nowhere to send to at first."""
        first = number = min(self.done, default=0)
        while not self.done.intersection(range(number, first)):
            number -= 1
            await asyncio.gather(self.send(number), return_exceptions=True)
            await asyncio.sleep(0.2)


async def check_that_it_goes_on_after(loss: Loss, application: Application) -> None:
    async with application.running():
        for numbers in (range(10), range(100, 200)):
            await asyncio.wait_for(application.wait_until_it_listens(), PATIENCE)
            await application.send(*numbers)
            await asyncio.wait_for(application.wait_for(*numbers), PATIENCE)
            await loss()
    assert application.starts == 1


@pytest.fixture
def name() -> str:
    return f"taskiq-lost-{uuid.uuid4().hex[:12]}"


def line_named(title: str) -> Line:
    line = LINES[title]
    if reason := line.unavailable():
        pytest.skip(reason)
    return line


# -- What it reads from is gone ----------------------------------------------------


async def test_a_redis_that_was_emptied(tmp_path: Path) -> None:
    if not OwnRedis.is_installed():
        pytest.skip("redis-server is not installed")
    server = OwnRedis(tmp_path / "redis")
    await server.start()

    async def empty() -> None:
        async with Redis.from_url(server.url) as redis:
            await redis.flushall()

    # A group that begins at the first message: what was sent before it is read, too.
    make = partial(RedisStreamBroker, server.url, consumer_id="0")
    try:
        await check_that_it_goes_on_after(empty, Application(make(), make()))
    finally:
        await server.stop()


async def delete_queue(name: str) -> None:
    async with await aio_pika.connect(RABBITMQ.url) as connection:
        await (await connection.channel()).queue_delete(f"{name}-queue")


async def delete_stream(name: str) -> None:
    async with jetstream(NATS.url) as context:
        await context.delete_stream(f"{name}-stream")


async def delete_consumers(name: str) -> None:
    async with jetstream(NATS.url) as context:
        for consumer in await context.consumers_info(f"{name}-stream"):
            await context.delete_consumer(f"{name}-stream", consumer.name)


async def end_connections(name: str) -> None:
    """End what PostgreSQL does in a restart, and for this broker only."""
    async with postgres(POSTGRES.url) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE $1 AND pid <> pg_backend_pid()",
            f"%{sql_name(name)}%",
        )


@pytest.mark.parametrize(
    ("title", "lose"),
    [
        ("rabbitmq", delete_queue),
        ("jetstream-pull", delete_stream),
        ("jetstream-pull", delete_consumers),
        ("jetstream-push", delete_stream),
        ("jetstream-push", delete_consumers),
        ("postgres", end_connections),
    ],
)
async def test_a_source_that_was_deleted(
    title: str,
    lose: Callable[[str], Awaitable[None]],
    name: str,
) -> None:
    line = await asyncio.to_thread(line_named, title)
    try:
        await check_that_it_goes_on_after(
            lambda: lose(name),
            Application(line.make(name), line.sender(name)),
        )
    finally:
        await asyncio.to_thread(line.server.remove, name)


# -- Connections -------------------------------------------------------------------


def open_sockets() -> int:
    return sum(
        os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
        for number in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{number}")
    )


@pytest.mark.skipif(sys.platform != "linux", reason="sockets are counted in /proc")
@pytest.mark.parametrize("title", LINES)
async def test_reconnecting_leaves_no_connection_behind(title: str, name: str) -> None:
    line = await asyncio.to_thread(line_named, title)
    broker = line.make(name)
    broker.is_worker_process = True
    try:
        await broker.startup()
        await reconnect(broker)
        before = open_sockets()
        for _ in range(RECONNECTIONS):
            await reconnect(broker)
        assert open_sockets() <= before
    finally:
        await broker.shutdown()
        await asyncio.to_thread(line.server.remove, name)
