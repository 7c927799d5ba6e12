"""Measure what the guide advises for Redis and PostgreSQL, at a low and a high rate.

    python -m tests.plugins.measure_advice

Prints a table. At a low rate nothing may be left or wait much longer than its
`batch_timeout`; at a high rate the settings are compared with each other. The numbers
are for people: a test of them would be one of the machine.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import taskiq_redis
from taskiq_pg import asyncpg as plugin_pg

from taskiq import AsyncBroker
from taskiq.adapters import postgres, redis
from taskiq.receiver import Receiver

from .servers import POSTGRES, REDIS, sql_name

#: Messages a second at the low rate, and how many; messages at once at the high one.
LOW, FEW, MANY = 2, 30, 3000
TIMEOUT = 0.5


@dataclass
class Case:
    """One setting, measured at both rates."""

    title: str
    make: Callable[[str], AsyncBroker]
    size: int = 100
    max_async_tasks: int = 100
    max_prefetch: int = 0
    waits: list[float] = field(default_factory=list[float])
    sizes: list[int] = field(default_factory=list[int])


def stream(kind: Any = redis, **settings: Any) -> Callable[[str], AsyncBroker]:
    return lambda name: kind.RedisStreamBroker(
        REDIS.url, queue_name=name, consumer_id="0", **settings
    )


def from_list(kind: Any = redis, **settings: Any) -> Callable[[str], AsyncBroker]:
    return lambda name: kind.ListQueueBroker(REDIS.url, queue_name=name, **settings)


def rows(kind: Any = postgres) -> Callable[[str], AsyncBroker]:
    return lambda name: kind.AsyncpgBroker(
        POSTGRES.url,
        table_name=f"{sql_name(name)}_messages",
        channel_name=sql_name(name),
    )


PREFETCH: dict[str, Any] = {"max_prefetch": 100}
PLAIN: dict[str, Any] = {"size": 0}
#: What is measured: how the broker is made, and what else differs from the defaults.
CASES: dict[str, tuple[Callable[[str], AsyncBroker], dict[str, Any]]] = {
    "stream, adapter": (stream(), {}),
    "stream, adapter, xread_count=1": (stream(xread_count=1), {}),
    "stream, adapter, xread_count=10": (stream(xread_count=10), {}),
    "stream, adapter, xread_count=1000": (stream(xread_count=1000), {}),
    "stream, adapter, xread_block=200": (stream(xread_block=200), {}),
    "stream, plugin": (stream(taskiq_redis), {}),
    "stream, plugin, xread_count=1": (stream(taskiq_redis, xread_count=1), {}),
    "stream, plugin, xread_block=4000": (stream(taskiq_redis, xread_block=4000), {}),
    "stream, adapter, --max-async-tasks 1": (stream(), {"max_async_tasks": 1}),
    "stream, adapter, --max-prefetch 100": (stream(), PREFETCH),
    "list, adapter": (from_list(), {}),
    "list, plugin, socket_timeout=None": (
        from_list(taskiq_redis, socket_timeout=None),
        {},
    ),
    "PostgreSQL, adapter": (rows(), {}),
    "PostgreSQL, plugin": (rows(plugin_pg), {}),
    "plain task, stream, adapter": (stream(), PLAIN),
    "plain task, stream, adapter, --max-prefetch 100": (stream(), PLAIN | PREFETCH),
    "plain task, stream, adapter, --max-async-tasks 10": (
        stream(),
        PLAIN | {"max_async_tasks": 10},
    ),
    "plain task, PostgreSQL, adapter": (rows(), PLAIN),
    "plain task, PostgreSQL, adapter, --max-prefetch 100": (rows(), PLAIN | PREFETCH),
}


def task_of(case: Case, broker: AsyncBroker) -> Any:
    """Register what notes how long each message waited for its call."""

    async def batch(sent: list[float]) -> None:
        case.sizes.append(len(sent))
        case.waits += [time.time() - each for each in sent]
        await asyncio.sleep(0.005)

    async def plain(sent: float) -> None:
        case.sizes.append(1)
        case.waits.append(time.time() - sent)

    if not case.size:
        return broker.task(plain)
    options: Any = {"batch": True, "batch_size": case.size, "batch_timeout": TIMEOUT}
    return cast("Any", broker).task(**options)(batch)


async def send(task: Any, count: int, rate: float | None) -> None:
    if rate is None:
        await task.kiq_many([time.time() for _ in range(count)])
        return
    for _ in range(count):
        await task.kiq(time.time())
        await asyncio.sleep(1 / rate)


async def run(case: Case, count: int, rate: float | None, patience: float) -> float:
    """Send messages to a worker of this process.

    :returns: seconds until all were run, or `patience` after the last one was sent.
    """
    name = f"taskiq-plugins-{uuid.uuid4().hex}"
    broker = case.make(name)
    broker.is_worker_process = True
    task = task_of(case, broker)
    receiver = Receiver(
        broker,
        max_async_tasks=case.max_async_tasks,
        max_prefetch=case.max_prefetch,
        run_startup=True,
    )
    finish = asyncio.Event()
    worker = asyncio.create_task(receiver.listen(finish))
    try:
        while not receiver.has_started_broker:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        began = time.time()
        await send(task, count, rate)
        end = time.time() + patience
        while sum(case.sizes) < count and time.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return time.time() - began
    finally:
        finish.set()
        await asyncio.wait([worker], timeout=10)
        await broker.shutdown()
        await asyncio.to_thread(
            (POSTGRES if isinstance(broker, plugin_pg.AsyncpgBroker) else REDIS).remove,
            name,
        )


async def low(case: Case) -> str:
    await run(case, FEW, LOW, 5)
    middle, most = statistics.median(case.waits), max(case.waits)
    return f"{len(case.waits)} of {FEW}, {middle:.2f} s, {most:.2f} s"


async def high(case: Case) -> str:
    seconds = await run(case, MANY, None, 60)
    done = len(case.waits)
    fill = statistics.mean(case.sizes)
    return f"{done} of {MANY}, {done / seconds:,.0f}, {fill:.0f}"


async def main() -> None:
    print(  # noqa: T201 - as below
        "| settings | 2 messages/s: run, median wait, longest | 3000 at once: run, "
        "messages/s, mean fill |",
    )

    def cases() -> list[Case]:
        return [
            Case(title, make, **settings) for title, (make, settings) in CASES.items()
        ]

    # All at the same time: they mostly wait.
    few = await asyncio.gather(*map(low, cases()))
    for case, at_low in zip(cases(), few, strict=True):
        print(f"| {case.title} | {at_low} | {await high(case)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
