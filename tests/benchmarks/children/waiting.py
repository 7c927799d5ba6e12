"""Child script: results that arrive, over the Redis adapter: `waiting URL WAITERS`.

The Redis is one that nobody else uses. Results are stored and waited for in one process
and one event loop, by two result backends: both sides are in the figures.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import sys
import time
import tracemalloc
import uuid
from typing import TYPE_CHECKING, Any

import redis.asyncio
import uvloop

from taskiq import AsyncTaskiqTask, TaskiqResult, gather_results
from taskiq.adapters.redis import RedisAsyncResultBackend
from tests.benchmarks.children.clocks import report
from tests.benchmarks.children.commands import CommandCount

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

RESULT = TaskiqResult[Any](is_err=False, return_value=1, execution_time=0.0)
#: Seconds between two results that are stored.
PAUSE = 0.002
TIMEOUT = 120.0

Backend = RedisAsyncResultBackend[Any]


async def latency(saver: Backend, reader: Backend, ids: list[str]) -> dict[str, float]:
    """Store the results one by one, and see when each of those who wait has its own."""
    seconds: list[float] = []
    began: dict[str, float] = {}

    async def wait(task_id: str) -> None:
        await AsyncTaskiqTask(task_id, reader).wait_result(timeout=TIMEOUT)
        seconds.append(time.perf_counter() - began[task_id])

    waiters = [asyncio.create_task(wait(task_id)) for task_id in ids]
    await asyncio.sleep(1)  # until all have looked once
    for task_id in ids:
        began[task_id] = time.perf_counter()
        await saver.set_result(task_id, RESULT)
        await asyncio.sleep(PAUSE)
    await asyncio.gather(*waiters)
    quantiles = statistics.quantiles(seconds, n=100)
    return {"p50": quantiles[49], "p99": quantiles[98], "max": max(seconds)}


async def nothing() -> None:
    """What a bare task that waits is made of."""
    await asyncio.get_running_loop().create_future()


async def memory(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> float:
    """Bytes that Python allocates for each of those who wait, as asyncio tasks."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    waiters = [asyncio.create_task(each) for each in coroutines]
    await asyncio.sleep(1)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    return grown / len(waiters)


async def connections(url: str) -> int:
    """Tell how many the server has, without the one that asks."""
    async with redis.asyncio.from_url(url) as client:
        return len(await client.client_list()) - 1


async def trips_of_gathering(
    url: str,
    saver: Backend,
    reader: Backend,
    ids: list[str],
    *,
    is_late: bool,
) -> int:
    """Commands to gather results that are there, or come while they are waited for.

    None of them is in a pipeline with another: each is a round trip.
    """
    handles: list[AsyncTaskiqTask[Any]] = [
        AsyncTaskiqTask(each, reader) for each in ids
    ]
    results = dict.fromkeys(ids, RESULT)
    if not is_late:
        await saver.set_results(results)
    count = CommandCount(url)
    await count.begin()
    gathering = asyncio.create_task(gather_results(handles, timeout=TIMEOUT))
    if is_late:
        await asyncio.sleep(1)
        await saver.set_results(results)
    assert len(await gathering) == len(ids)
    # Storing them was one command for all and one that tells of them.
    return await count.end() - (2 if is_late else 0)


async def main(url: str, waiters: int) -> None:
    """Measure, and report."""
    # The server may have those of an earlier round.
    prefix = uuid.uuid4().hex
    saver = Backend(url, prefix_str=prefix)
    reader = Backend(url, prefix_str=prefix)
    await reader.set_result("first", RESULT)
    await reader.get_result("first")
    without = await connections(url)
    bare = await memory([nothing() for _ in range(waiters)])
    handles: list[Any] = [AsyncTaskiqTask(f"m-{n}", reader) for n in range(waiters)]
    grown = await memory([each.wait_result(timeout=TIMEOUT) for each in handles])
    extra = await connections(url) - without
    measured = await latency(saver, reader, [f"wait-{n}" for n in range(waiters)])
    there, late = (
        [f"there-{n}" for n in range(1000)],
        [f"late-{n}" for n in range(1000)],
    )
    trips = {
        "trips_there": await trips_of_gathering(
            url, saver, reader, there, is_late=False
        ),
        "trips_late": await trips_of_gathering(url, saver, reader, late, is_late=True),
    }
    await reader.shutdown()
    await saver.shutdown()
    report({**measured, "bytes": grown, "bare": bare, "connections": extra, **trips})


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
