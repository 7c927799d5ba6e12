"""What the children of other task queues have in common."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

import uvloop

from tests.benchmarks.children.clocks import DrainClock, report
from tests.benchmarks.children.commands import CommandCount

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ITEM = {"id": 0, "text": "x" * 100}
SENT_AT_ONCE = 200
#: How many jobs run at the same time: as many as in a worker of taskiq by default.
AT_ONCE = 100
#: Seconds that what was handled has to be settled.
PATIENCE = 10.0


class Peer(Protocol):
    """One task queue, in use."""

    async def send(self, items: Sequence[dict[str, Any]]) -> None:
        """Send these together."""

    async def work(self) -> None:
        """Run the worker until it is cancelled."""

    async def results(self) -> int:
        """Count the results that are stored."""

    async def clean(self) -> None:
        """Remove all that was made."""


async def measure(
    make: Callable[[str, DrainClock], AbstractAsyncContextManager[Peer]],
    url: str,
    messages: int,
) -> None:
    """Send messages, let a worker handle them, and report."""
    clock = DrainClock(messages)
    async with make(url, clock) as peer:
        for begin in range(0, messages, SENT_AT_ONCE):
            numbers = range(begin, min(begin + SENT_AT_ONCE, messages))
            await peer.send([{**ITEM, "id": number} for number in numbers])
        count = CommandCount(url)
        await count.begin()
        worker = asyncio.ensure_future(peer.work())
        handled = asyncio.ensure_future(clock.done.wait())
        await asyncio.wait([worker, handled], return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while (found := await peer.results()) != messages:
            assert asyncio.get_running_loop().time() < deadline, f"{found} results"
            await asyncio.sleep(0.05)
        commands = await count.end()
        worker.cancel()
        await asyncio.wait([worker], timeout=2)
        await peer.clean()
    assert clock.total == messages, f"{clock.total} messages handled"
    report({**clock.measured, "commands": commands, "sent": messages})
    sys.stdout.flush()
    os._exit(0)  # a worker that was left behind would keep the loop from closing


def main(
    make: Callable[[str, DrainClock], AbstractAsyncContextManager[Peer]],
) -> None:
    """Run `NAME URL MESSAGES`."""
    logging.disable(logging.WARNING)
    uvloop.run(measure(make, sys.argv[1], int(sys.argv[2])))
