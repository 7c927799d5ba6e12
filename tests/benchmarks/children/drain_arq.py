"""Child script: drain a queue with arq, results stored: `drain_arq URL MESSAGES`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from arq import Worker, create_pool, func
from arq.connections import RedisSettings

from tests.benchmarks.children.peers import AT_ONCE, main

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from tests.benchmarks.children.clocks import DrainClock

#: Seconds between two looks for jobs, in place of 0.5: it would be idle in between.
POLL = 0.005


class Arq:
    """A queue, and a worker with as many jobs at once as taskiq."""

    def __init__(self, pool: Any, clock: DrainClock) -> None:
        self._pool = pool

        async def index(_: Any, item: dict[str, Any]) -> None:
            clock.called(1)

        self._function = func(index, name="index")

    async def send(self, items: Sequence[dict[str, Any]]) -> None:
        await asyncio.gather(*(self._pool.enqueue_job("index", item) for item in items))

    async def work(self) -> None:
        worker = Worker(
            [self._function],
            redis_pool=self._pool,
            max_jobs=AT_ONCE,
            poll_delay=POLL,
            handle_signals=False,
            log_results=False,
        )
        await worker.main()

    async def results(self) -> int:
        keys = [key async for key in self._pool.scan_iter("arq:result:*")]
        return len(keys)

    async def clean(self) -> None:
        await self._pool.flushall()


@asynccontextmanager
async def make(url: str, clock: DrainClock) -> AsyncGenerator[Arq]:
    """Connect."""
    pool = await create_pool(RedisSettings.from_dsn(url))
    try:
        yield Arq(pool, clock)
    finally:
        await pool.aclose()


if __name__ == "__main__":
    main(make)
