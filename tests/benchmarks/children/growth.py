"""Child script: what a message costs as one thing grows.

`growth MESSAGES SIZE KEYS`: the worker's loop over a broker in memory that always has a
message, a batch task that does nothing, batches of `SIZE`, and messages that go round
`KEYS` keys (0: the task has none). Every message may be buffered, so that with as many
keys as messages each key has a batch open at the same time.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from taskiq.receiver import Receiver
from tests.benchmarks.children.clocks import Stopwatch, report, rss
from tests.benchmarks.children.core import AckedBroker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from taskiq import AckableMessage

PREFETCH = 100


class Recorded(AckedBroker):
    """Keeps no results: a million of them would be measured with the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in super().listen():
            yield message
        self.most = rss()


async def main(messages: int, size: int, keys: int) -> None:
    """Run the case and report it."""
    broker = Recorded()
    handled = calls = 0

    @broker.task(
        task_name="index",
        batch=True,
        batch_size=size,
        batch_timeout=3600,
        batch_max_buffered=max(messages, size),
        batch_key=(lambda item: item % keys) if keys else None,
    )
    async def index(items: list[int]) -> None:
        nonlocal handled, calls
        handled += len(items)
        calls += 1

    for number in range(messages):
        await index.kiq(number)
    receiver = Receiver(broker, max_async_tasks=PREFETCH)
    before = rss()
    with Stopwatch() as watch:
        await receiver.listen(asyncio.Event())
    assert handled == messages
    assert broker.acks == messages
    grown = broker.most - before
    report({**watch.measured, "calls": calls, "grown": grown})


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
