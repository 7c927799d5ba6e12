"""Child script: batches within one process, through an `InMemoryBroker`.

`in_process CASE MESSAGES`. Each call of the batch task does nothing. The cases:

* `results`: `gather` of all `kiq`, then every result: what async-batcher does;
* `send`: one `kiq` after the other and `wait_all`, the lightest way there is: no result
  is fetched.
"""

from __future__ import annotations

import asyncio
import sys

from taskiq import InMemoryBroker
from tests.benchmarks.children.clocks import Stopwatch, report

BATCH_SIZE = 100


async def main(case: str, messages: int) -> None:
    """Run a case and report it."""
    broker = InMemoryBroker()
    sizes: list[int] = []

    @broker.task(task_name="index", batch=True, batch_size=BATCH_SIZE)
    async def index(items: list[int]) -> None:
        sizes.append(len(items))

    await broker.startup()
    with Stopwatch() as watch:
        if case == "results":
            handles = await asyncio.gather(*(index.kiq(n) for n in range(messages)))
            for handle in handles:
                await handle.wait_result(check_interval=0.01)
        else:
            for number in range(messages):
                await index.kiq(number)
            await broker.wait_all()
    await broker.shutdown()
    assert sum(sizes) == messages
    assert max(sizes) == BATCH_SIZE
    report({**watch.measured, "calls": len(sizes)})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
