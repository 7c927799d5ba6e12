"""Child script: how late a `timeout` flush is on an idle loop.

`lateness CASE SAMPLES`: one message, and the loop has nothing to do until its batch is
due. The cases: `batch`, the call of a batch task; `bare`, a callback of `call_later`
with the same delay, which is what the machine and asyncio are late by themselves.
"""

from __future__ import annotations

import asyncio
import sys

from taskiq import InMemoryBroker
from tests.benchmarks.children.clocks import report

TIMEOUT = 0.02


async def bare(samples: int) -> list[float]:
    """Seconds that a callback is late."""
    loop = asyncio.get_running_loop()
    late: list[float] = []

    def ring(rang: asyncio.Future[float]) -> None:
        rang.set_result(loop.time())

    for _ in range(samples):
        rang = loop.create_future()
        due = loop.time() + TIMEOUT
        loop.call_later(TIMEOUT, ring, rang)
        late.append(await rang - due)
    return late


async def batch(samples: int) -> list[float]:
    """Seconds that a call is late, the sending and the start of the call included."""
    broker = InMemoryBroker()
    loop = asyncio.get_running_loop()
    late: list[float] = []

    @broker.task(task_name="index", batch=True, batch_timeout=TIMEOUT)
    async def index(items: list[int]) -> None:
        called.set_result(loop.time())

    await broker.startup()
    for number in range(samples):
        called: asyncio.Future[float] = loop.create_future()
        due = loop.time() + TIMEOUT
        await index.kiq(number)
        late.append(await called - due)
    await broker.shutdown()
    return late


async def main(case: str, samples: int) -> None:
    """Run a case and report each sample."""
    late = await (batch if case == "batch" else bare)(samples)
    report({"late": late})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
