"""Child script: batches within one process, through async-batcher.

`in_process_peer MESSAGES`: `gather` of `process` for all items, with a batch function
that does nothing.
"""

from __future__ import annotations

import asyncio
import sys

from async_batcher.batcher import AsyncBatcher

from tests.benchmarks.children.clocks import Stopwatch, report

BATCH_SIZE = 100
sizes: list[int] = []


class Nothing(AsyncBatcher):  # type: ignore[misc] # not installed for the checker
    async def process_batch(self, batch: list[int]) -> None:
        sizes.append(len(batch))


async def main(messages: int) -> None:
    """Process all items and report it."""
    batcher = Nothing(max_batch_size=BATCH_SIZE)
    with Stopwatch() as watch:
        await asyncio.gather(*(batcher.process(number) for number in range(messages)))
    await batcher.stop()
    assert sum(sizes) == messages
    assert max(sizes) == BATCH_SIZE
    report({**watch.measured, "calls": len(sizes)})


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
