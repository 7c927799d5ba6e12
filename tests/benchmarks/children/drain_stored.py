"""Child script: drain a queue whose results are stored, with the taskiq that is there.

`drain_stored URL KIND CASE MESSAGES`: sends the messages, then runs a worker
(`run_receiver_task`, its defaults) in this process until all are handled and settled.
URL is that of a Redis nobody else uses, or of PostgreSQL.

The kinds are `adapter` and `plugin` (a Redis stream, and results in Redis), and
`pg-adapter` and `pg-plugin`. The cases are `batch`, `plain` and, of `plugin`, `bare`:
no taskiq in the worker, the client library alone does the same in bulk.

The adapters run with the garbage collector as `taskiq worker` sets it; released taskiq
and the bare clients leave it as it is.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import pickle
import sys
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import redis.asyncio
import uvloop

from taskiq.api import run_receiver_task
from tests.benchmarks.children.clocks import DrainClock, report
from tests.benchmarks.children.commands import CommandCount
from tests.benchmarks.children.drain import (
    BATCH_SIZE,
    GROUP,
    cancel,
    entries_of,
    fill,
    register,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from taskiq import AsyncBroker

#: Where the broker and the result backend of each kind are.
MODULES = {
    "adapter": "taskiq.adapters.redis",
    "plugin": "taskiq_redis",
    "pg-adapter": "taskiq.adapters.postgres",
    "pg-plugin": "taskiq_pg.asyncpg",
}
#: Seconds that what was handled has to be settled.
PATIENCE = 10.0

Left = tuple[int, int]


def make_broker(kind: str, url: str, name: str) -> AsyncBroker:
    """A broker and a result backend whose keys or tables have this name."""
    module = importlib.import_module(MODULES[kind])
    if kind.startswith("pg-"):
        results = module.AsyncpgResultBackend(url, table_name=f"{name}_results")
        broker = module.AsyncpgBroker(url, channel_name=name, table_name=name)
        made: AsyncBroker = broker.with_result_backend(results)
        return made
    broker = module.RedisStreamBroker(
        url,
        queue_name=name,
        consumer_group_name=GROUP,
        consumer_id="0",
        xread_count=BATCH_SIZE,
    )
    results = module.RedisAsyncResultBackend(url, prefix_str=f"{name}-results")
    return broker.with_result_backend(results)  # type: ignore[no-any-return]


@asynccontextmanager
async def redis_server(
    url: str,
    name: str,
) -> AsyncGenerator[Callable[[], Awaitable[Left]]]:
    """Give what tells how many results there are, and messages not acknowledged."""
    async with redis.asyncio.from_url(url) as client:

        async def look() -> Left:
            pending = await client.xpending(name, GROUP)
            # All other keys are results: nobody else uses this server.
            return await client.dbsize() - 1, pending["pending"]

        try:
            yield look
        finally:
            await client.flushall()


@asynccontextmanager
async def postgres_server(
    url: str,
    name: str,
) -> AsyncGenerator[Callable[[], Awaitable[Left]]]:
    """Give what tells how many results there are, and messages not acknowledged."""
    client: Any = await asyncpg.connect(url)

    async def look() -> Left:
        results = await client.fetchval(f"SELECT count(*) FROM {name}_results")  # noqa: S608 - the name is made below
        return results, await client.fetchval(f"SELECT count(*) FROM {name}")  # noqa: S608 - as above

    try:
        yield look
    finally:
        await client.execute(f"DROP TABLE IF EXISTS {name}, {name}_results")
        await client.close()


async def settled(
    worker: asyncio.Task[None],
    messages: int,
    look: Callable[[], Awaitable[Left]],
) -> None:
    """Let a worker end what it has begun, and check that all of it was done."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while (left := await look()) != (messages, 0):
        assert asyncio.get_running_loop().time() < deadline, f"results, unacked: {left}"
        await asyncio.sleep(0.05)
    await cancel(worker)


async def bare(url: str, name: str, clock: DrainClock) -> None:
    """Do what a worker does, a hundred messages at a time, none acknowledged early."""
    async with redis.asyncio.from_url(url) as client:
        while not clock.done.is_set():
            read = await client.xreadgroup(GROUP, "bare", {name: ">"}, count=BATCH_SIZE)
            entries = [entry for _, found in entries_of(read) for entry in found]
            messages = [json.loads(fields[b"data"]) for _, fields in entries]
            clock.called(len(messages))
            results = {
                f"{name}-results:{each['task_id']}": pickle.dumps(
                    {
                        "is_err": False,
                        "log": None,
                        "return_value": None,
                        "execution_time": 0.0,
                        "labels": each["labels"],
                        "error": None,
                    },
                )
                for each in messages
            }
            ids = json.dumps([each["task_id"] for each in messages])
            pipeline = client.pipeline(transaction=False)
            pipeline.mset(results)
            pipeline.publish(f"{name}-results:taskiq-results", ids)
            await pipeline.execute()
            await client.xack(name, GROUP, *(entry_id for entry_id, _ in entries))


async def main(url: str, kind: str, case: str, messages: int) -> None:
    """Fill a queue, drain it, remove it, and report."""
    name = f"benchmark_{uuid.uuid4().hex[:12]}"
    clock = DrainClock(messages)
    broker = make_broker(kind, url, name)
    broker.is_worker_process = True
    register(broker, case, clock)
    await broker.startup()
    is_postgres = kind.startswith("pg-")
    server = postgres_server if is_postgres else redis_server
    async with server(url, name) as look:
        await fill(broker, messages)
        count = CommandCount(None if is_postgres else url)
        await count.begin()
        if kind.endswith("adapter"):
            garbage = importlib.import_module("taskiq.cli.worker.garbage")
            garbage.spare_collections()
        if case == "bare":
            worker = asyncio.create_task(bare(url, name, clock))
        else:
            worker = asyncio.create_task(run_receiver_task(broker))
        await clock.done.wait()
        await settled(worker, messages, look)
        commands = await count.end()
        await broker.shutdown()
    assert clock.total == messages, f"{clock.total} messages handled"
    report({**clock.measured, "commands": commands, "sent": messages})
    sys.stdout.flush()
    os._exit(0)  # a worker that was left behind would keep the loop from closing


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
