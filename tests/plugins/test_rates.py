"""Rates on Redis: the calls of two worker processes count as one.

For a minute of it: python -m tests.plugins.test_rates "2/s" 60
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from taskiq import AsyncBroker, InMemoryBroker
from taskiq.adapters import redis as adapted_redis
from taskiq.rates import RateStore, Request, store_of
from taskiq.receiver import Receiver
from tests.faults.servers import OwnRedis

from .servers import REDIS
from .test_redis_topologies import cluster, sentinel

ROOT = Path(__file__).parents[2]

#: A worker process, until its input ends.
_WORKER = """
import asyncio, sys
from tests.plugins.test_rates import work
asyncio.run(work(*sys.argv[1:]))
"""


def made(name: str) -> AsyncBroker:
    return adapted_redis.RedisStreamBroker(
        REDIS.url, queue_name=name, consumer_group_name=name
    )


def register(broker: AsyncBroker, rate: str, calls: list[float]) -> None:
    async def plain(_: int) -> None:
        calls.append(time.time())

    async def batch(_: list[int]) -> None:
        calls.append(time.time())

    broker.register_task(plain, "plain", rate=rate)
    limits: Any = {"batch": True, "batch_size": 2, "batch_timeout": 0.1}
    limits["batch_max_buffered"] = 20  # else one of them takes all
    broker.register_task(batch, "batch", **limits, batch_rate=rate)


async def work(name: str, rate: str) -> None:
    """Work until the input ends, and tell when each call began."""
    broker, calls = made(name), list[float]()
    broker.is_worker_process = True
    register(broker, rate, calls)
    finish = asyncio.Event()
    receiver = Receiver(broker, max_async_tasks=20, wait_tasks_timeout=0)
    await broker.startup()
    listening = asyncio.create_task(receiver.listen(finish))
    print("ready", flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)
    finish.set()
    await listening
    await broker.shutdown()
    print(*calls)  # noqa: T201


async def moments(kind: str, rate: str, seconds: float) -> list[list[float]]:
    """When each of two worker processes began its calls, for some seconds and more."""
    name = f"rates_{uuid.uuid4().hex[:12]}"
    sender = made(name)
    register(sender, rate, [])
    await sender.startup()
    command = (sys.executable, "-c", _WORKER, name, rate)
    pipe = asyncio.subprocess.PIPE
    try:
        processes = [
            await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, stdin=pipe, stdout=pipe
            )
            for _ in range(2)
        ]
        task: Any = sender.find_task(kind)
        for each in processes:
            assert each.stdout is not None
            assert await each.stdout.readline() == b"ready\n"
        count = int((seconds + 5) * int(rate.removesuffix("/s"))) * 2
        for number in range(count):  # else one of them reads all
            await task.kiq(number)
        await asyncio.sleep(seconds + 2)
        ended = await asyncio.gather(*(each.communicate(b"") for each in processes))
    finally:
        await sender.shutdown()
        async with Redis.from_url(REDIS.url) as redis:
            keys = await redis.keys(f"*{name}*")
            await redis.delete(*keys)
    return [[float(moment) for moment in out.split()] for out, _ in ended]


@pytest.fixture
def redis_answers() -> None:
    if reason := REDIS.unavailable():
        pytest.skip(reason)


@pytest.mark.usefixtures("redis_answers")
@pytest.mark.parametrize("kind", ["plain", "batch"])
async def test_two_processes_make_as_many_calls_as_the_rate_says(kind: str) -> None:
    seconds, rate = 6.0, 20
    both = await asyncio.wait_for(moments(kind, f"{rate}/s", seconds), 60)
    assert all(both), "each of them makes some"
    calls = sorted(itertools.chain(*both))
    begin = max(each[0] for each in both)  # both are there
    within = [moment for moment in calls if begin <= moment < begin + seconds]
    assert len(within) == pytest.approx(seconds * rate, rel=0.05)


async def check_turns(store: RateStore) -> None:
    """What every store promises."""
    request = Request("task", 60, 2, None)
    first = await store.reserve(request)
    second = await store.reserve(request)
    assert first.wait == pytest.approx(0, abs=0.1)
    assert second.wait == pytest.approx(120, abs=1)
    await store.give_back(request._replace(turns=1), first.mark)  # not the last ones
    await store.give_back(request._replace(turns=1), second.mark)
    third = await store.reserve(request)
    assert third.wait == pytest.approx(180, abs=1)
    # A call that nobody was asked for: the next turn is an interval after it.
    late = await store.reserve(Request("late", 60, 1, 1.0))
    assert late.wait == pytest.approx(59, abs=0.1)
    # Of a thousand turns that many ask for nobody has the one of another.
    many = [Request("many", 60, 1 + number % 3, None) for number in range(60)]
    answers = await asyncio.gather(*map(store.reserve, many))
    starts = sorted(
        answer.wait + number * request.interval
        for answer, request in zip(answers, many, strict=True)
        for number in range(request.turns)
    )
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert gaps == pytest.approx([60] * len(gaps), abs=1)


@pytest.fixture
async def prefix(redis_answers: None) -> AsyncIterator[str]:
    name = f"rates_{uuid.uuid4().hex[:12]}"
    yield name
    async with Redis.from_url(REDIS.url) as redis:
        if keys := await redis.keys(f"*{name}*"):
            await redis.delete(*keys)


async def test_the_broker_counts_or_the_result_backend(prefix: str) -> None:
    results: Any = adapted_redis.RedisAsyncResultBackend(REDIS.url, prefix_str=prefix)
    for broker in (made(prefix), InMemoryBroker().with_result_backend(results)):
        await broker.startup()
        store = store_of(broker)
        assert store is not None
        await check_turns(store)
        await broker.shutdown()
    async with Redis.from_url(REDIS.url) as redis:
        found: list[Any] = await redis.keys(f"*{prefix}*")
        keys = [key.decode() for key in found]
        assert f"taskiq-rate:{prefix}:task" in keys
        assert f"{prefix}:taskiq-rate:task" in keys
        for key in keys:
            if "taskiq-rate" in key:
                assert 0 < await redis.pttl(key) < 8_000_000


@pytest.mark.parametrize("topology", [cluster, sentinel])
async def test_a_cluster_and_sentinels_count_as_one_server_does(
    topology: Any, tmp_path: Path
) -> None:
    if not OwnRedis.is_installed():
        pytest.skip("there is no redis-server to start")
    async with topology(tmp_path) as servers:
        broker = servers.stream(adapted_redis).with_result_backend(
            servers.results(adapted_redis)
        )
        await broker.startup()
        for owner in (broker, broker.result_backend):
            await check_turns(owner.rate_store)
        await broker.shutdown()


async def show(rate: str, seconds: float) -> None:
    for kind in ("plain", "batch"):
        both = await moments(kind, rate, seconds)
        calls = sorted(itertools.chain(*both))
        begin = max(each[0] for each in both)
        within = sum(begin <= moment < begin + seconds for moment in calls)
        gaps = [b - a for a, b in itertools.pairwise(calls)]
        print(  # noqa: T201
            f"{kind} {rate}: {within} calls in {seconds:g} s of two processes, "
            f"{[len(each) for each in both]} of each in all, "
            f"{min(gaps):.4f} to {max(gaps):.4f} s apart"
        )


if __name__ == "__main__":
    asyncio.run(show(sys.argv[1], float(sys.argv[2])))
