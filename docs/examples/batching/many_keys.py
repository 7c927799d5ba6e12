"""A million keys seen once each: what they cost a worker, against a single key.

Run it with ``python docs/examples/batching/many_keys.py [messages]``. Every message of
the first round has a key of its own, so that each is a batch and a call of its own; in
the second round they share a key, in batches of one for a fair comparison, and in the
third round in batches of a hundred. Memory is counted in blocks of Python's allocator:
what is left after a round, and the most there were while it ran.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from taskiq import AsyncBroker
from taskiq.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from taskiq import BrokerMessage

MESSAGES = 1_000_000


class LastBroker(AsyncBroker):
    """Gives the message it was sent again and again, with other numbers."""

    def __init__(self, messages: int) -> None:
        super().__init__()
        self.template = b""
        self.messages = messages

    async def kick(self, message: BrokerMessage) -> None:
        """Keep a message whose only argument is 7777777."""
        self.template = message.message

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """Make one message after the other, so that none has to be stored."""
        for number in range(self.messages):
            yield self.template.replace(b"7777777", b"%d" % number)


class Round(NamedTuple):
    """What one round cost."""

    microseconds: float
    calls: int
    most_blocks: int
    blocks_left: int


async def run_round(messages: int, *, keys: int, batch_size: int) -> Round:
    """Take messages through a worker.

    :param keys: over how many keys they are spread.
    """
    broker = LastBroker(messages)
    calls = most_blocks = done = 0

    def key(item: int) -> int:
        return item % keys

    @broker.task(
        batch=True,
        batch_size=batch_size,
        batch_timeout=0.05,
        batch_max_buffered=1000,
        batch_key=key,
    )
    async def work(items: list[int]) -> None:
        nonlocal calls, most_blocks, done
        calls += 1
        done += len(items)
        if calls % 1000 == 0:
            most_blocks = max(most_blocks, sys.getallocatedblocks())

    await work.kiq(7777777)
    receiver = Receiver(broker, max_async_tasks=100, max_prefetch=100)
    gc.collect()
    before = sys.getallocatedblocks()
    started = time.perf_counter()
    await receiver.listen(asyncio.Event())
    seconds = time.perf_counter() - started
    if done != messages or not receiver.batch_statistics().is_idle:
        raise RuntimeError(
            f"{done} of {messages} were run, held: {receiver.batch_statistics()}"
        )
    gc.collect()
    after = sys.getallocatedblocks()
    most = max(most_blocks - before, 0)
    return Round(1e6 * seconds / messages, calls, most, after - before)


async def main(messages: int) -> None:
    """Print a table of the rounds."""
    rounds = {
        "a key for each message": {"keys": messages, "batch_size": 100},
        "one key, batches of 1": {"keys": 1, "batch_size": 1},
        "one key, batches of 100": {"keys": 1, "batch_size": 100},
    }
    await run_round(1000, keys=1000, batch_size=100)  # caches fill up
    print(f"{messages:,} messages")
    print(f"{'':<24}{'us/message':>11}{'calls':>11}{'most blocks':>13}{'left':>7}")
    for name, arguments in rounds.items():
        cost = await run_round(messages, **arguments)
        print(
            f"{name:<24}{cost.microseconds:>11.1f}{cost.calls:>11,}"
            f"{cost.most_blocks:>13,}{cost.blocks_left:>7,}",
        )


if __name__ == "__main__":
    logging.disable(logging.INFO)
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else MESSAGES))
