"""The servers: whether they answer, and removing what a run has made there."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import nats
from nats.js import JetStreamContext

from tests.interop import lines

#: Seconds that a server has to answer.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Server:
    """A server, and how to clean up there.

    :ivar remove: removes all whose name begins with this name.
    """

    title: str
    url: str
    remove: Callable[[str], None]

    def unavailable(self) -> str | None:
        """Tell why there is no such server, or `None`."""
        return _unavailable(self.title, self.url)


@functools.cache
def _unavailable(title: str, url: str) -> str | None:
    try:
        asyncio.run(asyncio.wait_for(_connect(url), _PATIENCE))
    except (OSError, asyncio.TimeoutError) as error:
        return f"{title} does not answer at {url}: {error!r}"
    return None


async def _connect(url: str) -> None:
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def jetstream(url: str) -> AsyncIterator[JetStreamContext]:
    connection = await nats.connect(url, connect_timeout=int(_PATIENCE))
    try:
        yield connection.jetstream()
    finally:
        await connection.close()


@asynccontextmanager
async def postgres(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(url, timeout=_PATIENCE)
    try:
        yield connection
    finally:
        await connection.close()


def sql_name(name: str) -> str:
    """Give the form of a name that PostgreSQL takes without quotes."""
    return name.replace("-", "_")


async def _remove_from_nats(name: str) -> None:
    """Remove streams, those behind buckets of keys and of objects included."""
    async with jetstream(NATS.url) as context:
        for stream in await context.streams_info():
            stream_name = stream.config.name or ""
            if stream_name.removeprefix("KV_").removeprefix("OBJ_").startswith(name):
                await context.delete_stream(stream_name)


async def _remove_from_postgres(name: str) -> None:
    async with postgres(POSTGRES.url) as connection:
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE starts_with(tablename, $1)",
            sql_name(name),
        )
        for (table,) in tables:
            await connection.execute(f'DROP TABLE "{table}"')


def unfinished_in_jetstream(name: str) -> int:
    """Count what is in the stream, or was delivered and not acknowledged."""

    async def count() -> int:
        async with jetstream(NATS.url) as context:
            return sum(
                (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
                for consumer in await context.consumers_info(f"{name}-stream")
                # The others are made by clients, which never read.
                if consumer.config.durable_name
            )

    return asyncio.run(count())


def unfinished_in_postgres(name: str) -> int:
    """Count the rows that a worker took and did not delete, as acknowledging does."""

    async def count() -> int:
        async with postgres(POSTGRES.url) as connection:
            rows: int = await connection.fetchval(
                f"SELECT count(*) FROM {sql_name(name)}_messages"  # noqa: S608 - ours
                " WHERE status <> 'pending'"
            )
            return rows

    return asyncio.run(count())


def _url(variable: str, default: str) -> str:
    return os.environ.get(f"TASKIQ_TEST_{variable}_URL") or default


REDIS = Server("Redis", lines.REDIS, functools.partial(lines.remove, "redis"))
RABBITMQ = Server(
    "RabbitMQ", lines.RABBITMQ, functools.partial(lines.remove, "rabbitmq")
)
NATS = Server(
    "NATS",
    _url("NATS", "nats://127.0.0.1:4222"),
    lambda name: asyncio.run(_remove_from_nats(name)),
)
POSTGRES = Server(
    "PostgreSQL",
    _url("POSTGRES", "postgresql://root@127.0.0.1:5432/test"),
    lambda name: asyncio.run(_remove_from_postgres(name)),
)
