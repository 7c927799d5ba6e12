"""The batch application that the workers run, on each broker the same."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from redis.asyncio import Redis

from taskiq import TaskiqEvents

from .lines import Settings, make_broker
from .trial import NUDGE_NAME, TASK_NAME, answer

settings = Settings.from_environment()
broker = make_broker(settings)
counts: Redis = Redis.from_url(settings.counts_url)


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close(_: object) -> None:
    await counts.aclose()


@broker.task(
    TASK_NAME,
    batch=True,
    batch_size=settings.batch_size,
    batch_timeout=settings.batch_timeout,
    batch_max_buffered=settings.max_buffered,
)
async def record(items: list[int]) -> list[int]:
    """Count that each item is run, then take a while."""
    await count(items)
    await asyncio.sleep(settings.call_seconds)
    return [answer(item) for item in items]


@broker.task(NUDGE_NAME)
async def nudge() -> None:
    """Do nothing: see `Trial`."""


async def count(items: list[int]) -> None:
    commands: Any = counts.pipeline(transaction=True)
    for item in items:
        commands.hincrby(settings.runs, str(item), 1)
    commands.hincrby(settings.calls, f"{os.getpid()} {len(items)}", 1)
    await commands.execute()
