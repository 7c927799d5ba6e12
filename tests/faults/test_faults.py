"""Nothing is lost when workers are killed, or cut off from their server.

A small version of `python -m tests.faults`.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable
from typing import Any

import pytest
from redis.asyncio import Redis
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from taskiq import AckableMessage
from taskiq.receiver import Receiver
from tests.interop.lines import REDIS

from .lines import Line, unavailable
from .trial import Fault, Outcome, Trial

#: The push consumer is left to the long version: see the guide.
LINES: tuple[Line, ...] = ("redis", "rabbitmq", "nats-pull")
ADAPTED: tuple[Line, ...] = (
    "redis-adapted",
    "rabbitmq-adapted",
    "nats-pull-adapted",
    "postgres-adapted",
)


def small(line: Line, fault: Fault, **settings: Any) -> Trial:
    """Describe a trial of a few seconds: two processes, at most 200 messages held."""
    settings = {
        "messages": 1500,
        "strikes": 2,
        "interval": 0.3,
        "redelivery": 3.0,
        "batch_size": 50,
        "max_buffered": 100,
        "call_seconds": 0.2,
        # Nobody can send while the server is away.
        "is_sent_before": fault == "restart",
        **settings,
    }
    return Trial(line, fault, **settings)


def run_each(*trials: Trial) -> pytest.MarkDecorator:
    """Run a test for each of these trials."""
    return pytest.mark.parametrize("outcome", trials, indirect=True, ids=str)


CUTS = [small(line, "cut") for line in (*LINES, *ADAPTED)]


# -- Killed, told to end, cut off ----------------------------------------------------


@run_each(*[small(line, "sigkill") for line in (*LINES, *ADAPTED)])
def test_killing_worker_processes_loses_nothing(outcome: Outcome) -> None:
    assert "ended: killed by SIGKILL" in outcome.log


# What a process has read, and not run, comes again after the redelivery time. That is
# longer here: on a busy machine messages in time would be delivered again, too.
@run_each(*[small(line, "sigterm", redelivery=10) for line in LINES])
def test_stopping_workers_loses_nothing_and_repeats_nothing(outcome: Outcome) -> None:
    assert outcome.repeated == frozenset()


@run_each(small("redis", "sigterm", redelivery=10, grace=0.1, call_seconds=0.5))
def test_what_a_stop_does_not_wait_for_is_named_and_nothing_else_repeated(
    outcome: Outcome,
) -> None:
    assert outcome.repeated
    given_up = [
        line
        for line in outcome.log.splitlines()
        if re.search("Stopped before (it was|they were) done, not ack", line)
    ]
    named = {int(item) for item in re.findall(r"-(\d+)[,)]", "\n".join(given_up))}
    assert outcome.repeated <= named


@run_each(*CUTS)
def test_cutting_connections_loses_nothing(outcome: Outcome) -> None:
    assert outcome.results == outcome.trial.messages


@run_each(*[trial for trial in CUTS if trial.line.startswith("rabbitmq")])
def test_messages_that_can_no_longer_be_acknowledged_are_named(
    outcome: Outcome,
) -> None:
    """RabbitMQ takes acknowledgements on the connection of the delivery only."""
    assert "Cannot acknowledge task record with ID taskiq-faults-" in outcome.log


# -- A server that is restarted ------------------------------------------------------


@run_each(small("redis", "restart"), small("nats-pull", "restart"))
def test_workers_outlive_a_restart_of_their_server(outcome: Outcome) -> None:
    assert "ended: exit code 1" not in outcome.log
    # Back-off: a tenth of a second at first, twice as long each time.
    attempts = outcome.log.count("it is started again in")
    assert attempts <= 8 * outcome.strikes * outcome.trial.workers


# -- Redis streams -------------------------------------------------------------------


@run_each(
    small("redis", "none", messages=200, workers=1, redelivery=0.5, call_seconds=2),
)
def test_what_is_held_longer_than_the_reclaim_time_is_told_of(outcome: Outcome) -> None:
    assert outcome.repeated
    assert "were delivered again while this process still holds them" in outcome.log


class WatchedStreamBroker(RedisStreamBroker):
    """Counts acknowledgements that wait for Redis at the same time."""

    acking = 0
    most = 0

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        async for message in super().listen():
            yield AckableMessage(data=message.data, ack=self._watched(message))

    def _watched(self, message: AckableMessage) -> Any:
        async def ack() -> None:
            self.acking += 1
            self.most = max(self.most, self.acking)
            done: Awaitable[None] | None = message.ack()
            if done is not None:
                await done
            self.acking -= 1

        return ack


async def test_a_batch_is_acknowledged_on_the_stream_side_by_side() -> None:
    if reason := unavailable("redis"):
        pytest.skip(reason)
    name = f"taskiq-faults-{uuid.uuid4().hex}"
    results: RedisAsyncResultBackend[int] = RedisAsyncResultBackend(
        REDIS,
        prefix_str=name,
        result_ex_time=60,
    )
    broker = WatchedStreamBroker(
        REDIS,
        queue_name=name,
        consumer_group_name=name,
        consumer_id="0",
    )
    broker.with_result_backend(results)

    @broker.task("add", batch=True, batch_size=100)
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    broker.is_worker_process = True
    receiver = Receiver(broker, max_async_tasks=10, max_tasks_to_execute=100)
    try:
        await broker.startup()
        for number in range(100):
            await add.kiq(number)
        await receiver.listen(asyncio.Event())
        assert broker.most > 10
    finally:
        await broker.shutdown()
        await results.shutdown()
        async with Redis.from_url(REDIS) as redis:
            await redis.unlink(name)


# -- Through the command line --------------------------------------------------------


@run_each(*[small(line, "none", messages=3000, redelivery=20) for line in LINES])
def test_two_processes_share_the_messages_in_full_batches(outcome: Outcome) -> None:
    assert outcome.repeated == frozenset()
    assert max(size for _, size in outcome.calls) == outcome.trial.batch_size
    assert len({pid for pid, _ in outcome.calls}) == 2
