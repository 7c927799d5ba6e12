"""Leases on real servers: shorter than a batch, and recovery that is as short."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from taskiq import AckableMessage, AsyncBroker
from taskiq.receiver import Receiver
from tests.support.hub import HANG

from .lines import LINES
from .test_conformance import LEASE, short

ROOT = Path(__file__).parents[2]

#: Reads messages and holds them.
HOLDER = """
import asyncio, sys
from tests.plugins.test_leases import held
asyncio.run(held(*sys.argv[1:]))
"""

LEASED = [
    "adapted-redis-stream",
    "jetstream-pull",
    "adapted-jetstream-push",
    "rabbitmq",
    "adapted-postgres",
]

#: Messages that it holds: two batches.
HELD = 10


async def held(line: str, name: str) -> None:
    """Hold messages without a word, as a worker that blocks its event loop does."""
    broker = short(LINES[line].make(name))
    broker.is_worker_process = True
    await broker.startup()
    items: list[str] = []
    async for message in broker.listen():
        assert isinstance(message, AckableMessage)
        items += broker.formatter.loads(message.data).args
        if len(items) == HELD:
            print(json.dumps(items), flush=True)  # noqa: T201
            time.sleep(HANG)  # noqa: ASYNC251


@asynccontextmanager
async def working(line: str, name: str, runs: list[str]) -> AsyncIterator[AsyncBroker]:
    """Let a worker run batches of six seconds, three times as long as a lease."""
    broker = short(LINES[line].make(name))
    broker.is_worker_process = True

    @broker.task(task_name="slow", batch=True, batch_size=5, batch_timeout=0.2)
    async def slow(items: list[str]) -> None:
        runs.extend(items)
        await asyncio.sleep(3 * LEASE)

    finish = asyncio.Event()
    receiver = Receiver(broker, max_async_tasks=20)
    listening = asyncio.create_task(receiver.listen(finish))
    yield broker
    finish.set()
    await asyncio.wait_for(listening, HANG)
    await broker.shutdown()


async def send(line: str, name: str, numbers: range) -> None:
    # That of a pull broker makes the consumer.
    sender = short(LINES[line].sender(name))
    await sender.startup()
    slow = sender.register_task(print, "slow", batch=False)
    for number in numbers:
        await slow.kiq(str(number))
    await sender.shutdown()


@pytest.fixture(params=LEASED)
def leased(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    line = LINES[request.param]
    if reason := line.unavailable():
        pytest.skip(reason)
    name = f"taskiq-leases-{uuid.uuid4().hex[:12]}"
    yield request.param, name
    line.server.remove(name)


async def test_a_batch_longer_than_a_lease_is_not_delivered_twice(
    leased: tuple[str, str],
) -> None:
    """Neither to its worker nor to another one."""
    runs: list[str] = []
    async with working(*leased, runs), working(*leased, runs):
        await asyncio.sleep(1)
        await send(*leased, range(20))
        await asyncio.sleep(8 * LEASE)
    assert sorted(runs) == sorted(map(str, range(20)))


async def test_what_a_killed_process_held_begins_again_soon(
    leased: tuple[str, str],
) -> None:
    """All of it within a lease, and the five seconds that may be between two looks.

    Each call takes longer than that: those of what is suspect go side by side.
    """
    holder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HOLDER,
        *leased,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    for start in range(0, int(HANG) * HELD, HELD):
        await send(*leased, range(start, start + HELD))
        try:
            told = await asyncio.wait_for(holder.stdout.readline(), 1)
        except asyncio.TimeoutError:
            continue
        break
    os.kill(holder.pid, signal.SIGKILL)
    await holder.wait()
    killed_at = time.monotonic()
    runs: list[str] = []
    async with working(*leased, runs):
        while not set(json.loads(told)) <= set(runs):
            await asyncio.sleep(0.05)
            assert time.monotonic() - killed_at < LEASE + 5
    assert len(runs) == len(set(runs))
