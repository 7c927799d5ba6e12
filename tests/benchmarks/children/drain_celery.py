"""Child script: drain a queue on a real server with celery-batches.

`drain_celery TRANSPORT CASE MESSAGES`, where the case is the worker's pool: fills a
queue of its own with `delay`, then runs a worker in this process until all are handled.
No results, no events, no gossip, early acknowledgement: what celery is fastest with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import uuid
from typing import Any

from celery import Celery
from celery_batches import Batches

from tests.benchmarks.children.clocks import DrainClock, report

REDIS = os.environ.get("TASKIQ_BENCHMARK_REDIS", "redis://127.0.0.1:6379/0")
RABBITMQ = os.environ.get(
    "TASKIQ_BENCHMARK_RABBITMQ",
    "amqp://guest:guest@127.0.0.1:5672/",
)
BATCH_SIZE = 100
ITEM = {"id": 0, "text": "x" * 100}


def make_app(transport: str, queue: str) -> Celery:
    """An application with a queue of its own."""
    app = Celery("benchmark", broker=RABBITMQ if transport == "rabbitmq" else REDIS)
    app.conf.update(
        task_default_queue=queue,
        task_ignore_result=True,
        worker_prefetch_multiplier=2 * BATCH_SIZE,
        worker_concurrency=1,
        broker_connection_retry_on_startup=True,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,  # it would leave queues of its own
    )
    return app


def main(transport: str, pool: str, messages: int) -> None:
    """Fill the queue, drain it, remove it."""
    queue = f"benchmark-{uuid.uuid4().hex}"
    app, clock = make_app(transport, queue), DrainClock(messages)

    def index(requests: list[Any]) -> None:
        clock.called(len(requests))
        if clock.done.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # the way to stop a worker

    task = app.task(
        index,
        base=Batches,
        name="index",
        flush_every=BATCH_SIZE,
        flush_interval=1,
    )
    try:
        for number in range(messages):
            task.delay({**ITEM, "id": number})
        worker = app.Worker(
            pool=pool,
            loglevel="CRITICAL",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
            worker.start()
    finally:
        with app.connection_for_write() as connection:
            channel = connection.default_channel
            channel.queue_delete(queue)
            channel.exchange_delete(queue)  # celery declares one of the same name
            if transport != "rabbitmq":  # and keeps what it knows of it in Redis
                keys = ("binding", "binding_permanent")
                channel.client.delete(*(f"_kombu.{key}.{queue}" for key in keys))
    assert clock.total == messages, f"{clock.total} messages handled"
    report(clock.measured)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
