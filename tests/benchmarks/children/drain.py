"""Child script: drain a queue on a real server, with the taskiq that is installed.

`drain TRANSPORT CASE MESSAGES`: fills a queue of its own with `kiq`, then runs a worker
(`run_receiver_task`, its defaults) in this process until all are handled. The cases:

* `batch`: a batch task of 100; only where the taskiq has them;
* `plain`: one call a message;
* `bare`: no taskiq in the worker: the client library alone receives and acknowledges
  the same messages, with the same settings, one after the other;
* `bare-together`: the same, but what came together is acknowledged together;
* `plugin`: the plugin's broker without a receiver, each `ack` in turn;
* `fill`, `share` and `clean`: fill, drain and remove a queue that several processes
  share; its name is the fourth argument.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import uuid
from typing import TYPE_CHECKING, Any

import aio_pika
import redis.asyncio
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from taskiq import AckableMessage
from taskiq.api import run_receiver_task
from taskiq.utils import maybe_awaitable
from tests.benchmarks.children.clocks import DrainClock, report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskiq import AsyncBroker

REDIS = os.environ.get("TASKIQ_BENCHMARK_REDIS", "redis://127.0.0.1:6379/0")
RABBITMQ = os.environ.get(
    "TASKIQ_BENCHMARK_RABBITMQ",
    "amqp://guest:guest@127.0.0.1:5672/",
)
BATCH_SIZE = 100
#: What RabbitMQ hands out unacknowledged: two batches, so that one can fill while the
#: other one runs.
QOS = 2 * BATCH_SIZE
#: What celery uses. The plugin's own default, a quorum queue, costs more.
CLASSIC = QueueType.CLASSIC
GROUP = "taskiq"
ITEM = {"id": 0, "text": "x" * 100}
SENT_AT_ONCE = 200


def make_broker(
    transport: str,
    queue: str,
    rabbitmq: type[AioPikaBroker] = AioPikaBroker,
) -> AsyncBroker:
    """The plugin's broker for a queue of this name; `clean` removes it.

    :param rabbitmq: the class of that of RabbitMQ.
    """
    if transport == "redis-list":
        return ListQueueBroker(REDIS, queue_name=queue)
    if transport == "redis-stream":
        return RedisStreamBroker(
            REDIS,
            queue_name=queue,
            consumer_group_name=GROUP,
            consumer_id="0",
            xread_count=BATCH_SIZE,
        )
    return rabbitmq(
        RABBITMQ,
        qos=QOS,
        exchange=Exchange(name=queue),
        task_queues=[Queue(name=queue, type=CLASSIC)],
        dead_letter_queue=Queue(name=f"{queue}.dead", type=CLASSIC),
        delay_queue=Queue(name=f"{queue}.delay", type=CLASSIC),
    )


async def clean(transport: str, queue: str) -> None:
    """Remove everything the broker of `queue` has made."""
    if transport != "rabbitmq":
        async with redis.asyncio.from_url(REDIS) as client:
            await client.delete(queue)
        return
    async with await aio_pika.connect(RABBITMQ) as connection:
        channel = await connection.channel()
        for name in (queue, f"{queue}.dead", f"{queue}.delay"):
            await channel.queue_delete(name)
        await channel.exchange_delete(queue)


async def fill(broker: AsyncBroker, messages: int) -> None:
    """Send the messages, many at a time."""
    task = broker.find_task("index")
    assert task is not None
    for begin in range(0, messages, SENT_AT_ONCE):
        numbers = range(begin, min(begin + SENT_AT_ONCE, messages))
        await asyncio.gather(*(task.kiq({**ITEM, "id": n}) for n in numbers))


def register(broker: AsyncBroker, case: str, clock: DrainClock) -> None:
    """The task of the case: it does nothing with what it is given."""
    if case.startswith("batch"):

        @broker.task(task_name="index", batch=True, batch_size=BATCH_SIZE)
        async def index_batch(items: list[dict[str, Any]]) -> None:
            clock.called(len(items))

    else:

        @broker.task(task_name="index")
        async def index(item: dict[str, Any]) -> None:
            clock.called(1)


async def work(broker: AsyncBroker, clock: DrainClock) -> None:
    """Run the worker until everything was handled."""
    worker = asyncio.create_task(run_receiver_task(broker))
    await clock.done.wait()
    await cancel(worker)


async def work_until_idle(broker: AsyncBroker, clock: DrainClock) -> None:
    """Run the worker, one of several, until nothing has come for a second."""
    worker = asyncio.create_task(run_receiver_task(broker))
    seen = -1
    while clock.total > seen:
        seen = clock.total
        await asyncio.sleep(1)
    await cancel(worker)


async def cancel(worker: asyncio.Task[None]) -> None:
    """Cancel until it has ended: a Redis client can swallow a cancellation.

    The worker of 0.13.0 can take any number of them; it is left behind in the end.
    """
    for _ in range(5):
        worker.cancel()
        await asyncio.wait([worker], timeout=1)
        if worker.done():
            return


async def consume_list(queue: str, clock: DrainClock, together: bool) -> None:
    """A list knows no acknowledgement."""
    async with redis.asyncio.from_url(REDIS) as client:
        while not clock.done.is_set():
            await client.brpop([queue])
            clock.called(1)


async def consume_stream(queue: str, clock: DrainClock, together: bool) -> None:
    async with redis.asyncio.from_url(REDIS) as client:

        async def ack(identity: str) -> None:
            await client.xack(queue, GROUP, identity)

        while not clock.done.is_set():
            read = await client.xreadgroup(
                GROUP,
                "benchmark",
                {queue: ">"},
                count=BATCH_SIZE,
            )
            entries = [entry for _, found in entries_of(read) for entry in found]
            await acknowledge([(ack, entry[0]) for entry in entries], clock, together)


def entries_of(read: Any) -> list[Any]:
    """The streams that were read: a list of pairs, or a mapping to lists of lists."""
    if isinstance(read, dict):
        return [(name, found[0]) for name, found in read.items()]
    return list(read)


async def consume_rabbitmq(queue: str, clock: DrainClock, together: bool) -> None:
    async with await aio_pika.connect(RABBITMQ) as connection:
        channel = await connection.channel()
        await channel.set_qos(QOS)
        source = await channel.get_queue(queue)
        received: asyncio.Queue[Any] = asyncio.Queue()
        await source.consume(received.put)

        async def ack(message: Any) -> None:
            await message.ack()

        while not clock.done.is_set():
            messages = [await received.get()]
            while together and not received.empty():
                messages.append(received.get_nowait())
            await acknowledge([(ack, message) for message in messages], clock, together)


async def acknowledge(
    acks: list[tuple[Callable[[Any], Awaitable[None]], Any]],
    clock: DrainClock,
    together: bool,
) -> None:
    """Acknowledge in turn, or up to 16 at once as the settling of a batch does."""
    if not together:
        for ack, subject in acks:
            clock.called(1)
            await ack(subject)
        return
    left = iter(acks)

    async def settle() -> None:
        for ack, subject in left:
            clock.called(1)
            await ack(subject)

    await asyncio.gather(*(settle() for _ in range(min(16, len(acks)))))


async def consume_plugin(broker: AsyncBroker, clock: DrainClock) -> None:
    listening = broker.listen()
    async for message in listening:
        clock.called(1)
        if isinstance(message, AckableMessage):
            await maybe_awaitable(message.ack())
        if clock.done.is_set():
            break
    await listening.aclose()


CONSUMERS = {
    "redis-list": consume_list,
    "redis-stream": consume_stream,
    "rabbitmq": consume_rabbitmq,
}


async def measure(transport: str, case: str, messages: int) -> DrainClock:
    """Fill a queue, drain it, remove it."""
    queue = f"benchmark-{uuid.uuid4().hex}"
    clock = DrainClock(messages)
    broker = await started(transport, queue, case, clock)
    try:
        await fill(broker, messages)
        if case == "plugin":
            await consume_plugin(broker, clock)
        elif case.startswith("bare"):
            consume = CONSUMERS[transport]
            await consume(queue, clock, case == "bare-together")
        else:
            await work(broker, clock)
    finally:
        await broker.shutdown()
        await clean(transport, queue)
    assert clock.total == messages, f"{clock.total} messages handled"
    return clock


async def started(
    transport: str,
    queue: str,
    case: str,
    clock: DrainClock,
) -> AsyncBroker:
    """A broker with the task of the case, ready to send and to receive."""
    broker = make_broker(transport, queue)
    broker.is_worker_process = True
    register(broker, case, clock)
    await broker.startup()
    return broker


async def take_part(transport: str, case: str, messages: int, queue: str) -> DrainClock:
    """One of several processes on a queue: fill it, drain it, or remove it."""
    clock = DrainClock(messages)
    if case == "clean":
        await clean(transport, queue)
        return clock
    broker = await started(transport, queue, "batch", clock)
    if case == "fill":
        await fill(broker, messages)
    else:
        await work_until_idle(broker, clock)
    await broker.shutdown()
    return clock


async def main(transport: str, case: str, messages: int, *queue: str) -> None:
    """Run a case and report it."""
    if queue:
        clock = await take_part(transport, case, messages, *queue)
    else:
        clock = await measure(transport, case, messages)
    report(clock.measured if clock.total else {})
    sys.stdout.flush()
    os._exit(0)  # a worker that was left behind would keep the loop from closing


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
