"""Child script: drain a queue with SAQ, results stored: `drain_saq URL MESSAGES`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from saq import Queue, Worker

from tests.benchmarks.children.peers import AT_ONCE, main

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from tests.benchmarks.children.clocks import DrainClock


class Saq:
    """A queue, and a worker with as many jobs at once as taskiq."""

    def __init__(self, queue: Any, clock: DrainClock) -> None:
        self._queue = queue

        async def index(_: Any, *, item: dict[str, Any]) -> None:
            clock.called(1)

        self._index = index

    async def send(self, items: Sequence[dict[str, Any]]) -> None:
        await asyncio.gather(*(self._queue.enqueue("index", item=i) for i in items))

    async def work(self) -> None:
        functions = [("index", self._index)]
        await Worker(self._queue, functions, concurrency=AT_ONCE).start()

    async def results(self) -> int:
        # A job, which has its result, is a key of its own; it is on no list once done.
        jobs = [key async for key in self._queue.redis.scan_iter("saq:job:*")]
        return len(jobs) - int(await self._queue.count("incomplete"))

    async def clean(self) -> None:
        await self._queue.redis.flushall()


@asynccontextmanager
async def make(url: str, clock: DrainClock) -> AsyncGenerator[Saq]:
    """Connect."""
    queue: Any = Queue.from_url(url)
    await queue.connect()
    try:
        yield Saq(queue, clock)
    finally:
        await queue.disconnect()


if __name__ == "__main__":
    main(make)
