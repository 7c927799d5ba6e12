"""Child script: drain a queue with streaq and results: `drain_streaq URL MESSAGES`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from streaq import Worker

from tests.benchmarks.children.peers import AT_ONCE, main

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from tests.benchmarks.children.clocks import DrainClock


class Streaq:
    """One worker that sends, and one that works: either is entered once."""

    def __init__(self, url: str, client: Any, clock: DrainClock) -> None:
        self._client = client
        self._worker: Any = Worker(
            redis_url=url,
            concurrency=AT_ONCE,
            handle_signals=False,
        )

        async def index(item: dict[str, Any]) -> None:
            clock.called(1)

        self._sent: Any = client.task(name="index")(index)
        self._worker.task(name="index")(index)

    async def send(self, items: Sequence[dict[str, Any]]) -> None:
        await self._client.enqueue_many([self._sent.enqueue(item) for item in items])

    async def work(self) -> None:
        await self._worker.run_async()

    async def results(self) -> int:
        cursor, found = 0, 0
        while True:
            cursor, keys = await self._client.redis.scan(
                cursor, match="*:task:results:*", count=1000
            )
            found += len(keys)
            if not cursor:
                return found

    async def clean(self) -> None:
        await self._client.redis.flushall()


@asynccontextmanager
async def make(url: str, clock: DrainClock) -> AsyncGenerator[Streaq]:
    """Connect."""
    client: Any = Worker(redis_url=url, handle_signals=False)
    async with client:
        yield Streaq(url, client, clock)


if __name__ == "__main__":
    main(make)
