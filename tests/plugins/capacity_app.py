"""Batch tasks whose capacity is what is looked at; on the line of `app`."""

from __future__ import annotations

import asyncio
import os

from tests.support.reports import report

from .app import NEVER, broker, wait_for_hub
from .limits import FEW_BUFFERED, MOST_BUFFERED

__all__ = ["broker"]

was_held = False


@broker.task("fill", batch=True, batch_size=200, batch_timeout=NEVER)
async def fill(numbers: list[int]) -> int:
    """Give to each message how many were called together."""
    return len(numbers)


@broker.task("starve", batch=True, batch_size=100, batch_timeout=0.2)
async def starve(numbers: list[int]) -> int:
    return len(numbers)


@broker.task(
    "flood",
    batch=True,
    batch_size=100,
    batch_timeout=0.1,
    batch_concurrency=1,
    batch_max_buffered=MOST_BUFFERED,
)
async def flood(texts: list[str]) -> None:
    """Be slow: the first call waits for the hub, each later one 5 ms."""
    global was_held  # noqa: PLW0603 - of this process
    if not was_held:
        was_held = True
        await wait_for_hub(task="flood", pid=os.getpid())
    await asyncio.sleep(0.005)
    report("flood", size=len(texts), pid=os.getpid())


@broker.task(
    "block",
    batch=True,
    batch_size=10,
    batch_timeout=0.1,
    batch_concurrency=1,
    batch_max_buffered=FEW_BUFFERED,
)
async def block(numbers: list[int]) -> list[int]:
    await wait_for_hub(task="block")
    return numbers


# -- For `measure_short_prefetch` -------------------------------------------------


@broker.task("wait_out", batch=True, batch_size=100, batch_timeout=1)
async def wait_out(numbers: list[int]) -> int:
    return len(numbers)


def _with_idle_timeout(milliseconds: int) -> None:
    @broker.task(
        f"idle_{milliseconds}",
        batch=True,
        batch_size=100,
        batch_timeout=1,
        batch_idle_timeout=milliseconds / 1000,
    )
    async def idle(numbers: list[int]) -> int:
        return len(numbers)


for each in (50, 20, 10):
    _with_idle_timeout(each)
