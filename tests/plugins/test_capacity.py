"""What a worker holds, what stays in the broker, and who waits for whom."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from redis import Redis

from tests.support.hub import Hub

from .limits import FEW_BUFFERED, MOST_BUFFERED
from .lines import LINES, SHORT_RABBITMQ, Line
from .servers import REDIS
from .stage import Client, Stage, results_of, values_of

APP = "capacity_app"
#: What is told once when a broker hands out too little for a batch.
WARNING = "leave by timeout with 10 messages again and again"
#: What the plugin of Redis streams reads at once, beyond what it was asked for.
READ_AT_ONCE = 100
#: Seconds the flood is held up at most.
MADE_WAY = 180


def open_stage(line: Line, hub: Hub) -> AbstractContextManager[Stage]:
    if reason := line.unavailable():
        pytest.skip(reason)
    return Stage(line, hub).opened()


async def ask_all(stage: Stage, task_name: str, count: int) -> list[object]:
    async with stage.client() as client:
        handles = await client.send_all(task_name, range(count))
        return values_of(await results_of(handles))


def test_batches_fill_whatever_runs_at_once(line: Line, hub: Hub) -> None:
    """One execution slot and no prefetch: what joined a batch takes neither."""
    options = ("--max-async-tasks=1", "--max-prefetch=0")
    with open_stage(line, hub) as stage, stage.worker(*options, app=APP):
        assert asyncio.run(ask_all(stage, "fill", 600)) == [200] * 600


def test_a_prefetch_limit_below_the_batch_size_is_told_once(hub: Hub) -> None:
    line = SHORT_RABBITMQ
    with open_stage(line, hub) as stage, stage.worker(app=APP) as worker:
        assert asyncio.run(ask_all(stage, "starve", 150)) == [10] * 150
        told = [line for line in worker.lines if WARNING in line]
        assert len(told) == 1
        assert "task starve" in told[0]
        assert "qos" in told[0]
        assert "batch_idle_timeout" in told[0]


def test_a_prefetch_limit_that_lets_batches_fill_is_not_told_of(hub: Hub) -> None:
    line = LINES["rabbitmq"]
    with open_stage(line, hub) as stage, stage.worker(app=APP) as worker:
        assert len(asyncio.run(ask_all(stage, "starve", 600))) == 600
        assert "again and again" not in worker.output


# -- A flood ----------------------------------------------------------------------

#: Messages that wait, and the bytes of each: a hundred megabytes.
MESSAGES, WEIGHT = 100_000, 1000
#: How many are run before the worker's memory is looked at, and before it is again.
FIRST, LAST = 3_000, 23_000
#: What a worker may grow by meanwhile: next to nothing of what waits.
GROWTH = 10_000_000


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def send_flood(stage: Stage) -> None:
    async with stage.client() as client:
        for _ in range(MESSAGES // 500):
            await asyncio.gather(
                *(client.send("flood", "x" * WEIGHT) for _ in range(500))
            )


def held_and_left(stage: Stage) -> tuple[int, int]:
    """Count what the worker was given and did not finish, and what it was not given."""
    with Redis.from_url(REDIS.url, decode_responses=True) as redis:
        (group,) = redis.xinfo_groups(f"{stage.name}-stream")
    return int(group["pending"]), int(group["lag"])


def test_a_flood_stays_in_the_broker(hub: Hub) -> None:
    """Memory is bounded by the arguments of the task, not by what was sent."""
    with (
        open_stage(LINES["redis-stream"], hub) as stage,
        stage.worker("--log-level=WARNING", app=APP),
    ):
        asyncio.run(send_flood(stage))
        pid = int(hub.wait_for("held", task="flood")["pid"])
        check_flood(stage, MESSAGES)

        hub.let_go()
        hub.wait(lambda: messages_done(hub) >= FIRST)
        before = resident_bytes(pid)
        hub.wait(lambda: messages_done(hub) >= LAST, timeout=120)
        after = resident_bytes(pid)
        check_flood(stage, MESSAGES - LAST)
        assert after - before <= GROWTH, (before, after)


def messages_done(hub: Hub) -> int:
    return sum(call["size"] for call in hub.all("flood"))


def check_flood(stage: Stage, most_left: int) -> None:
    held, left = held_and_left(stage)
    # One message a second makes way for others to be read.
    assert 0 < held <= MOST_BUFFERED + 100 + READ_AT_ONCE + MADE_WAY
    assert left <= most_left


# -- Neighbours -------------------------------------------------------------------


@pytest.fixture(params=["redis-stream", "rabbitmq", "jetstream-pull"])
def stage_with_four_slots(request: pytest.FixtureRequest, hub: Hub) -> Iterator[Stage]:
    line = LINES[request.param]
    options = ("--max-async-tasks=4",)
    with open_stage(line, hub) as stage, stage.worker(*options, app=APP):
        yield stage


def test_a_slow_batch_task_stops_no_other_task_until_its_capacity_is_exceeded(
    stage_with_four_slots: Stage,
) -> None:
    """A call runs, its buffer is full, and of four slots for deliveries one is free."""
    stage = stage_with_four_slots
    held = FEW_BUFFERED + 3

    async def main() -> None:
        async with stage.client() as client:
            slow = await client.send_all("block", range(held))
            plain = await client.send_all("add", range(20), 1)
            assert values_of(await results_of(plain)) == list(range(1, 21))
            assert stage.hub.held

            letting_go = asyncio.create_task(keep_letting_go(stage))
            assert values_of(await results_of(slow)) == list(range(held))
            letting_go.cancel()
            await check_recovery(client)

    asyncio.run(main())


async def keep_letting_go(stage: Stage) -> None:
    """Let each call go that comes to the hub."""
    while True:
        stage.hub.let_go()
        await asyncio.sleep(0.05)


async def check_recovery(client: Client) -> None:
    assert (await client.ask("add", 40, 2)).return_value == 42
