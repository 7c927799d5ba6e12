"""A batch task of which one item kills the process, on a Redis stream."""

from __future__ import annotations

import asyncio
import os

from taskiq.adapters.redis import RedisAsyncResultBackend, RedisStreamBroker
from tests.interop.lines import REDIS

NAME = os.environ.get("TASKIQ_KILLER", "taskiq-killer")
KILLER = 437

broker = RedisStreamBroker(
    REDIS,
    queue_name=NAME,
    consumer_group_name=NAME,
    idle_timeout=1000,
).with_result_backend(
    RedisAsyncResultBackend(REDIS, prefix_str=NAME, result_ex_time=600),
)


@broker.task(f"{NAME}:double", batch=True, batch_size=100, batch_timeout=0.5)
async def double(numbers: list[int]) -> list[int]:
    await asyncio.sleep(0.05)
    if KILLER in numbers:
        os._exit(9)
    return [2 * number for number in numbers]
