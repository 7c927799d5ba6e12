"""Child script: how long it takes to send, with the taskiq that is installed.

`send TRANSPORT KIND CASE TIMES`: the transports are `redis` (a stream), `rabbitmq`,
`nats` (JetStream) and `postgres`, the kinds `adapter` and `plugin`. The cases:

* `many`: `kiq_many` of a thousand; only where the taskiq has it;
* `gather`: `asyncio.gather` of a thousand `kiq`; `hundred`: of a hundred;
* `lone`: a `kiq` that nothing else is sent with.

It is done as often as asked, and the median and the least of the seconds are reported.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import statistics
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import nats
import uvloop

from tests.benchmarks.children.clocks import report
from tests.benchmarks.children.drain import ITEM, REDIS
from tests.benchmarks.children.drain import clean as clean_queue
from tests.benchmarks.children.drain import make_broker as make_queue_broker

if TYPE_CHECKING:
    from taskiq import AsyncBroker

NATS = os.environ.get("TASKIQ_BENCHMARK_NATS", "nats://127.0.0.1:4222")
POSTGRES = os.environ.get(
    "TASKIQ_BENCHMARK_POSTGRES",
    "postgresql://postgres@127.0.0.1:5432/test",
)
SIZES = {"many": 1000, "gather": 1000, "hundred": 100, "lone": 1}


def make_broker(transport: str, kind: str, name: str) -> AsyncBroker:
    """A broker whose queue, stream or table has this name."""
    module: Any
    broker: AsyncBroker
    if transport == "redis":
        module = "taskiq.adapters.redis" if kind == "adapter" else "taskiq_redis"
        module = importlib.import_module(module)
        broker = module.RedisStreamBroker(REDIS, queue_name=name)
    elif transport == "nats":
        module = "taskiq.adapters.nats" if kind == "adapter" else "taskiq_nats"
        module = importlib.import_module(module)
        broker = module.PullBasedJetStreamBroker(
            servers=NATS, subject=name, stream_name=name, durable=name
        )
    elif transport == "postgres":
        module = (
            "taskiq.adapters.postgres" if kind == "adapter" else "taskiq_pg.asyncpg"
        )
        module = importlib.import_module(module)
        broker = module.AsyncpgBroker(POSTGRES, channel_name=name, table_name=name)
    elif kind == "adapter":
        module = importlib.import_module("taskiq.adapters.rabbitmq")
        broker = make_queue_broker(transport, name, module.AioPikaBroker)
    else:
        broker = make_queue_broker(transport, name)
    return broker


async def clean(transport: str, name: str) -> None:
    """Remove what the broker has made."""
    if transport == "nats":
        client = await nats.connect(NATS)
        await client.jetstream().delete_stream(name)
        await client.close()
    elif transport == "postgres":
        connection: Any = await asyncpg.connect(POSTGRES)
        await connection.execute(f"DROP TABLE IF EXISTS {name}")
        await connection.close()
    else:
        await clean_queue("redis-stream" if transport == "redis" else transport, name)


async def send(task: Any, case: str) -> None:
    """Do it once."""
    if case == "many":
        await task.kiq_many([{**ITEM, "id": number} for number in range(SIZES[case])])
    elif case == "lone":
        await task.kiq(ITEM)
    else:
        numbers = range(SIZES[case])
        await asyncio.gather(*(task.kiq({**ITEM, "id": n}) for n in numbers))


async def main(transport: str, kind: str, case: str, times: int) -> None:
    """Send as often as asked, and report."""
    name = f"benchmark_{uuid.uuid4().hex[:12]}"
    broker = make_broker(transport, kind, name)

    @broker.task(task_name="index")
    async def index(item: dict[str, Any]) -> None: ...

    await broker.startup()
    seconds: list[float] = []
    try:
        await send(index, case)  # connects
        for _ in range(times):
            began = time.perf_counter()
            await send(index, case)
            seconds.append(time.perf_counter() - began)
    finally:
        await broker.shutdown()
        await clean(transport, name)
    report({"median": statistics.median(seconds), "least": min(seconds)})


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
