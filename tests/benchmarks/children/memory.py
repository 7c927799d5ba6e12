"""Child script: how much memory messages take that wait in a batch.

`memory METER MESSAGES`, where the meter is `tracemalloc` (what Python allocated) or
`rss` (what the process grew by). The broker makes each message when it is asked for it,
and keeps none: what stays in memory is what the receiver keeps.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import tracemalloc
from typing import TYPE_CHECKING

from taskiq import AckableMessage
from taskiq.receiver import Receiver
from tests.benchmarks.children.clocks import report, rss
from tests.benchmarks.children.core import FullBroker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

#: What one message carries: a string of this many bytes.
PAYLOAD = 200
#: Longer than this script runs.
NEVER = 3600.0


class Endless(FullBroker):
    """Hands out a copy of one message again and again, then waits."""

    def __init__(self, messages: int) -> None:
        super().__init__()
        self.messages = messages
        self.handed_out = asyncio.Event()

    async def ack(self) -> None:
        """Never called: nothing is executed."""

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        (pattern,) = self.queue
        for number in range(self.messages):
            data = pattern.replace(b"0" * 32, b"%032d" % number)
            yield AckableMessage(data=data, ack=self.ack)
        self.handed_out.set()
        await asyncio.Event().wait()


async def main(meter: str, messages: int) -> None:
    """Buffer the messages and report what one takes."""
    broker = Endless(messages)

    @broker.task(
        task_name="index",
        batch=True,
        batch_size=2 * messages,
        batch_max_buffered=2 * messages,
        batch_timeout=NEVER,
    )
    async def index(items: list[str]) -> None:
        raise NotImplementedError

    # Its id is what each copy replaces; the payload has no zeros.
    await index.kicker().with_task_id("0" * 32).kiq("x" * PAYLOAD)
    receiver = Receiver(broker, wait_tasks_timeout=0)
    if meter == "tracemalloc":
        tracemalloc.start()
    gc.collect()
    before = used(meter)
    listening = asyncio.create_task(receiver.listen(asyncio.Event()))
    await broker.handed_out.wait()
    gc.collect()
    grown = used(meter) - before
    held = receiver.batch_statistics().buffered
    assert held == messages, f"{held} messages are buffered"
    report({"bytes": grown / messages, "wire": len(broker.queue[0])})
    listening.cancel()
    await asyncio.wait([listening])


def used(meter: str) -> int:
    """Bytes in use now."""
    return tracemalloc.get_traced_memory()[0] if meter == "tracemalloc" else rss()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
